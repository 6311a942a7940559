"""Give every notebook the two cells that open it anywhere: links, and an installation where `farmer` is missing.

The address of the repository is that of settings.ini, the name of the distribution that of pyproject.toml, the version
that of farmer/__init__.py. With --check, say what differs and change nothing.
"""
import argparse
import configparser
import json
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MADE = re.compile(r"\A\*\*Open in\*\* \[Colab\]|^    %pip install --quiet \"farmer-pixels", re.M)  # how the two cells are known again


def setting(name: str) -> str:
    "A value of settings.ini."
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"][name]


def requirement() -> str:
    "What a fresh machine has to install: this version, with what the notebooks need."
    name = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["name"]
    version = re.search(r'^__version__ *= *"([^"]+)"', (ROOT / "farmer" / "__init__.py").read_text("utf-8"), re.M)[1]
    return f"{name}[notebooks]=={version}"


def links(notebook: str) -> str:
    "What opens a notebook in Colab and in Binder: words, since the usual pictures would come from the network."
    place = setting("repository").removeprefix("https://github.com/")
    branch = setting("branch")
    colab = f"https://colab.research.google.com/github/{place}/blob/{branch}/nbs/{notebook}"
    binder = f"https://mybinder.org/v2/gh/{place}/{branch}?labpath=nbs/{notebook}"
    return f"**Open in** [Colab]({colab}) or [Binder]({binder})"


def installation() -> str:
    "The cell that makes a fresh machine ready."
    return f"""#| echo: false
try:
    import farmer
except ModuleNotFoundError:  # a fresh machine, such as Colab's
    %pip install --quiet "{requirement()}\""""


def with_cells(notebook: dict, name: str) -> dict:
    "The notebook with its two cells, after its title and the name of its module."
    number = name.partition("_")[0]
    made = {f"{number}-links": ("markdown", links(name)), f"{number}-install": ("code", installation())}
    cells = [cell for cell in notebook["cells"] if not MADE.search("".join(cell["source"]))]
    place = 2 if "default_exp" in "".join(cells[1]["source"]) else 1
    new = []
    for identity, (kind, source) in made.items():
        cell = {"cell_type": kind, "id": identity, "metadata": {}, "source": source.splitlines(keepends=True)}
        new.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    return notebook | {"cells": cells[:place] + new + cells[place:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a notebook lacks its cells")
    check = parser.parse_args().check
    stale = []
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        before = json.loads(path.read_text("utf-8"))
        after = with_cells(before, path.name)
        if [cell["source"] for cell in before["cells"]] != [cell["source"] for cell in after["cells"]]:
            stale.append(path.name)
            if not check:
                path.write_text(json.dumps(after, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    if check and stale:
        sys.exit(f"the first cells of {', '.join(stale)} are stale; run: make build")


if __name__ == "__main__":
    main()
