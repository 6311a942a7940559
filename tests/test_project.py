"""The rules that keep the project readable, checked on every notebook and module that exists."""
import ast
import functools
import importlib.metadata
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_NOTEBOOK_BYTES = 500_000
MAX_CELL_LINES = 60
# What farmer must not need to be imported: everything of the extras, and tyro, which only the command line uses.
BLOCKED = ("matplotlib", "sklearn", "plotly", "ipywidgets", "IPython", "jupyter", "jupyterlab", "anywidget", "traitlets", "voila", "playwright", "nbdev", "fastcore", "tyro")

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
MODULES = sorted(path for path in (ROOT / "farmer").glob("*.py") if path.stem != "_modidx")  # _modidx is nbdev's index
for_each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
for_each_module = pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)


@functools.cache
def cells(notebook: Path) -> list[dict]:
    "The cells of a notebook, each source as one string."
    return [{**cell, "source": "".join(cell["source"])} for cell in json.loads(notebook.read_text("utf-8"))["cells"]]


def code_cells(notebook: Path) -> list[str]:
    return [cell["source"] for cell in cells(notebook) if cell["cell_type"] == "code"]


def directives(source: str) -> dict[str, str]:
    "`#| name value` lines of a cell."
    return dict(re.findall(r"^#\s*\|\s*([\w-]+)[ :]*(.*?)\s*$", source, re.M))


def is_exported(source: str) -> bool:
    return bool(directives(source).keys() & {"export", "exporti", "exports"})


def exported_cells(notebook: Path) -> list[str]:
    return [source for source in code_cells(notebook) if is_exported(source)]


def number(notebook: Path) -> int | None:
    "The reading order of a notebook: 3 for 03_flow, None without a number."
    match = re.match(r"\d+", notebook.stem)
    return int(match[0]) if match else None


@functools.cache
def module_numbers() -> dict[str, int | None]:
    "The number of each module's notebook."
    return {module: number(notebook) for notebook in NOTEBOOKS for source in code_cells(notebook)
            if (module := directives(source).get("default_exp"))}


def imported_modules(path: Path) -> set[str]:
    "The modules of farmer that a file imports, in any spelling and at any depth."
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ("farmer." if node.level else "") + (node.module or "")
            names = [f"{package.rstrip('.')}.{alias.name}" for alias in node.names]
        else:
            continue
        parts = [name.split(".") for name in names]
        found |= {part[1] for part in parts if part[0] == "farmer" and len(part) > 1}
    known = {module.stem for module in MODULES} | module_numbers().keys()
    return found & known  # `from farmer import __version__` names no module


# --- Modules

@for_each_module
def test_imports_point_down(module):
    "A module imports only modules of notebooks with a lower number, so the notebooks can be read in order."
    numbers = {"__init__": -1, "__main__": math.inf, **module_numbers()}  # everything imports the one, nothing the other
    assert numbers.get(module.stem) is not None, f"{module.name} is exported by no numbered notebook"
    for imported in imported_modules(module):
        assert numbers.get(imported, math.inf) < numbers[module.stem], (
            f"{module.stem} (notebook {numbers[module.stem]}) imports {imported} (notebook {numbers.get(imported)})")


IMPORT_ALL = f"""
import importlib, json, sys, traceback

class Without:
    "A finder that does not see the blocked packages, as if they were not installed; torch merely looks for some."
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {BLOCKED!r} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
failures = dict()
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception:
        failures[name] = traceback.format_exc()
print(json.dumps(failures))
"""
IMPORTABLE = ["farmer"] + [f"farmer.{path.stem}" for path in MODULES if path.stem not in ("__init__", "__main__", "cli")]


@pytest.fixture(scope="module")
def import_failures():
    "Tracebacks by module name, from one fresh process: importing torch once per module would take too long."
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, *IMPORTABLE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", IMPORTABLE)
def test_import_needs_only_the_core(name, import_failures):
    "On a cluster `pip install farmer` must be enough: no notebook, plotting or development tools."
    assert name not in import_failures, import_failures[name]


def test_metadata():
    "What pip installed: the farmer command, the license, two extras. If this fails, install again."
    package = importlib.metadata.distribution("farmer")
    scripts = {point.name: point.value for point in package.entry_points if point.group == "console_scripts"}
    assert scripts == {"farmer": "farmer.cli:main"}
    assert package.metadata["License-Expression"] == "Apache-2.0"
    assert set(package.metadata.get_all("Provides-Extra")) == {"notebooks", "evaluation", "logging", "hub", "dev"}
    cli = ROOT / "farmer" / "cli.py"
    if cli.exists():
        names = {node.name for node in ast.parse(cli.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}
        assert "main" in names, "the farmer command calls farmer.cli.main, which cli.py does not define"


# --- Notebooks

@for_each_notebook
def test_no_star_imports(notebook):
    "Every exported name can be traced to where it comes from."
    for source in exported_cells(notebook):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                assert all(alias.name != "*" for alias in node.names), ast.unparse(node)


@for_each_notebook
def test_exported_cells_are_short(notebook):
    for source in exported_cells(notebook):
        lines = source.splitlines()
        assert len(lines) <= MAX_CELL_LINES, f"{len(lines)} lines, at most {MAX_CELL_LINES}: {' / '.join(lines[:3])} ..."


@for_each_notebook
def test_notebook_is_small(notebook):
    "Pictures bloat a repository for ever: show smaller or fewer ones."
    assert notebook.stat().st_size <= MAX_NOTEBOOK_BYTES


@for_each_notebook
def test_notebook_opens_with_title_and_purpose(notebook):
    first = cells(notebook)[0]
    assert first["cell_type"] == "markdown"
    lines = first["source"].splitlines()
    assert lines[0].startswith("# "), "the first line must be the title: # ..."
    assert any(line.startswith("> ") for line in lines), "a line `> ...` under the title must say what it is for"


@for_each_notebook
def test_no_saved_errors(notebook):
    outputs = [output for cell in cells(notebook) for output in cell.get("outputs", [])]
    errors = [f"{output['ename']}: {output['evalue']}" for output in outputs if output["output_type"] == "error"]
    assert not errors, errors


@for_each_notebook
def test_numbered_notebooks_assert(notebook):
    "A lesson proves at least one of its claims while it runs; assertions inside exported code do not count."
    lessons = [source for source in code_cells(notebook) if not is_exported(source)]
    asserting = [source for source in lessons if re.search(r"^\s*assert\b|\bassert_\w+\(", source, re.M)]
    assert asserting or number(notebook) is None, "no assertion outside the exported cells"


# --- README

def test_readme_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text("utf-8")
    targets = re.findall(r"\]\(([^()\s]+)", readme) + re.findall(r"""\b(?:src|href)=["']([^"']+)""", readme)
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-zA-Z][\w+.-]*:|#", target)]
    missing = [target for target in local if not (ROOT / target).exists()]
    assert not missing, f"README.md links to {missing}: mend the links in nbs/index.ipynb"
