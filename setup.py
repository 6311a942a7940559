"Build farmer: the metadata comes from settings.ini, the version from farmer/__init__.py."
import configparser
import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
name = settings["lib_name"]
version = re.search(r'^__version__ *= *"([^"]+)"', (here / name / "__init__.py").read_text(encoding="utf-8"), re.M)[1]

setup(
    name=name,
    version=version,
    description=settings["description"],
    author=settings["author"],
    license_expression=settings["license"],
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=" + settings["min_python"],
    packages=find_packages(include=[name, name + ".*"]),
    package_data={name: ["pretrained/*/*", "page/*.ipynb", "page/*.js", "page/voila/templates/farmer/*"]},
    include_package_data=False,  # else setuptools takes the folders of pretrained/ and page/ for forgotten packages
    install_requires=settings["requirements"].split(),
    extras_require={extra: settings[f"{extra}_requirements"].split() for extra in ("notebooks", "evaluation", "logging", "hub", "dev")},
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{name}={name}._modidx:d"],
    },
)
