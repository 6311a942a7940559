"Build the distribution: its name is in pyproject.toml, the other metadata in settings.ini, the version in farmer/__init__.py."
import configparser
import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
parser.read(here / "settings.ini", encoding="utf-8")
settings = parser["DEFAULT"]
package = settings["lib_name"]
version = re.search(r'^__version__ *= *"([^"]+)"', (here / package / "__init__.py").read_text(encoding="utf-8"), re.M)[1]
repository, branch = settings["repository"], settings["branch"]
owner, _, project = repository.removeprefix("https://github.com/").partition("/")


def absolute(readme: str) -> str:
    "The README with the full addresses of its pictures and links, as the package index needs them."
    local = r"(?![a-zA-Z][\w+.-]*:|#)"
    readme = re.sub(rf"(!\[[^\]]*\]\(|\bsrc=[\"']){local}", rf"\1{repository}/raw/{branch}/", readme)
    return re.sub(rf"((?<!!)\[(?:[^\[\]]|!\[[^\]]*\]\([^)]*\))*\]\(|\bhref=[\"']){local}", rf"\1{repository}/blob/{branch}/", readme)


setup(
    version=version,
    description=settings["description"],
    author=settings["author"],
    license_expression=settings["license"],
    keywords=[word.strip() for word in settings["keywords"].split(",")],
    classifiers=settings["classifiers"].strip().splitlines(),
    project_urls={
        "Repository": repository,
        "Documentation": f"https://{owner}.github.io/{project}/",
        "Issues": f"{repository}/issues",
        "Changelog": f"{repository}/blob/{branch}/CHANGELOG.md",
    },
    long_description=absolute((here / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    python_requires=">=" + settings["min_python"],
    packages=find_packages(include=[package, package + ".*"]),
    package_data={package: ["py.typed", "__init__.pyi", "pretrained/*/*", "results/*", "page/*.*", "page/live/**", "page/voila/templates/farmer/*"]},
    include_package_data=False,  # else setuptools takes the folders of pretrained/ and page/ for forgotten packages
    install_requires=settings["requirements"].split(),
    extras_require={key.removesuffix("_requirements"): settings[key].split() for key in settings if key.endswith("_requirements")},
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{package}={package}._modidx:d"],
    },
)
