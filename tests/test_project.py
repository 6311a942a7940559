"""The rules that keep the project readable, checked on every notebook and module that exists."""
import ast
import functools
import importlib.metadata
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_NOTEBOOK_BYTES = 500_000
MAX_FUNCTION_LINES = 60  # also of an exported cell without a class
MAX_CLASS_LINES = 160  # also of an exported cell with one
HAND_WRITTEN = ("__init__", "__main__", "checks", "files", "plots")  # modules that no notebook exports; any module may import them
LAST_LESSON = 8  # number of the last notebook of the method, the only ones called lessons
# What farmer must not need to be imported: everything of the extras, and tyro, which only the command line uses.
BLOCKED = ("matplotlib", "sklearn", "skimage", "plotly", "ipywidgets", "IPython", "jupyter", "jupyterlab", "anywidget", "traitlets", "voila", "playwright", "nbdev", "fastcore", "tyro")
# Where a module calls one of a higher number while it runs, through the package: `farmer.pretrained.load_model(...)`.
FRONT_DOOR = {("model", "pretrained"), ("inversion", "pretrained"), ("data", "folders"), ("data", "glyphs"), ("folders", "shards"), ("cli", "export")}
# Public names that nothing else here imports, but users may; types in the signatures of public names need not be listed.
DOCUMENTED = {
    "data": {"PhotoDataset"},
    "transformer": {"KeyValueCache"},
    "flow": {"CouplingBlock"},
    "model": {"evaluating"},
    "inversion": {"jacobi_inverse"},
    "pretrained": {"model_card"},
    "shards": {"index_shards"},
    "checkpoints": {"checkpoints"},
    "analysis": {"variational_proposal"},
    "evaluation": {"draw_samples", "inception_score", "manifest", "precision_recall", "read_reference", "write_reference"},
    "demo": {"label_log_probs", "text_images"},
    "presets": {"Preset"},
    "explorer": {"explore", "Bits", "Variance", "Swap", "Traverse", "Mixture", "Basis", "YourImage", "Recolour"},
    "export": {"export_model"},
    "cli": {"main", "parse", "Demo", "Prepare", "Train", "TrainCommand", "Distill", "Sample", "Evaluate", "Explore", "Export"},
}  # fmt: skip

NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
NUMBERED = [path for path in NOTEBOOKS if path.stem[0].isdigit()]
MODULES = sorted(path for path in (ROOT / "farmer").glob("*.py") if path.stem != "_modidx")  # _modidx is nbdev's index
SCRIPTS = sorted(path for folder in ("benchmarks", "experiments", "tools", "web") for path in (ROOT / folder).rglob("*.py"))
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


def module_of(notebook: Path) -> str | None:
    "The module that a notebook exports."
    return next((directives(source)["default_exp"] for source in code_cells(notebook) if "default_exp" in directives(source)), None)


@functools.cache
def module_numbers() -> dict[str, float]:
    "The number of each module's notebook; -1 for modules written by hand."
    exported = {module: number(notebook) for notebook in NOTEBOOKS if (module := module_of(notebook))}
    return {**exported, **dict.fromkeys(HAND_WRITTEN, -1), "__main__": math.inf}


# --- What code imports


@functools.cache
def tree_of(path: Path) -> ast.Module:
    "The code of a module, a script or a notebook."
    if path.suffix == ".py":
        return ast.parse(path.read_text("utf-8"))
    return ast.parse("\n".join(re.sub(r"^([ \t]*)[%!].*", r"\1pass", source, flags=re.M) for source in code_cells(path)))


def imports(tree: ast.Module) -> set[tuple[str, str]]:
    "What code imports from the package, in any spelling and at any depth: (module, name), or (module, '') for a whole module."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name.split(".")[1], "") for alias in node.names if alias.name.startswith("farmer.")}
        elif isinstance(node, ast.ImportFrom):
            package = ("farmer." if node.level else "") + (node.module or "")
            top, _, module = package.strip(".").partition(".")
            if top == "farmer":
                found |= {(module, alias.name) if module else (alias.name, "") for alias in node.names}
    return {(module, name) for module, name in found if module in module_numbers() or (ROOT / "farmer" / f"{module}.py").exists()}


def chains(tree: ast.Module) -> set[tuple[str, ...]]:
    "Dotted names that code reads, such as (farmer, pretrained, load_model)."
    found = set()
    for node in ast.walk(tree):
        chain = []
        while isinstance(node, ast.Attribute):
            chain.append(node.attr)
            node = node.value
        if chain and isinstance(node, ast.Name):
            found.add((node.id, *reversed(chain)))
    return found


def uses(tree: ast.Module) -> set[tuple[str, str]]:
    "Names of the package that code uses, as (module, name): imported, or reached through its module."
    whole, read = {module for module, name in imports(tree) if not name}, chains(tree)
    through_module = {(chain[0], chain[1]) for chain in read if chain[0] in whole}
    return imports(tree) | through_module | {(chain[1], chain[2]) for chain in read if chain[0] == "farmer" and len(chain) > 2}


def public_names(tree: ast.Module) -> set[str]:
    "What a module defines at its top level, without a leading underscore."
    names = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def types_in_signatures(tree: ast.Module) -> set[str]:
    "Names in annotations and among the base classes of what a module defines in public: whoever uses the one meets the other."
    public = [node for node in tree.body if getattr(node, "name", "_")[0] != "_"]
    inner = [node for outer in public for node in ast.walk(outer)]
    expressions = [node.annotation for node in inner if isinstance(node, (ast.arg, ast.AnnAssign))]
    expressions += [node.returns for node in inner if isinstance(node, ast.FunctionDef)] + [base for node in inner if isinstance(node, ast.ClassDef) for base in node.bases]
    return {name for expression in expressions if expression for name in re.findall(r"\w+", ast.unparse(expression))}


# --- Modules


@for_each_module
def test_one_notebook_of_its_name_exports_the_module(module):
    if module.stem not in HAND_WRITTEN:
        (notebook,) = [path for path in NOTEBOOKS if module_of(path) == module.stem]
        assert notebook.stem.partition("_")[2] == {"cli": "command_line"}.get(module.stem, module.stem)


@for_each_module
def test_imports_point_down(module):
    "A module imports only modules of notebooks with a lower number, so the notebooks can be read in order."
    numbers = module_numbers()
    assert module.stem in numbers, f"{module.name} is exported by no numbered notebook"
    for imported, _ in imports(tree_of(module)):
        by_hand = module.stem in HAND_WRITTEN and imported in HAND_WRITTEN
        assert by_hand or numbers.get(imported, math.inf) < numbers[module.stem], (
            f"{module.stem} (notebook {numbers[module.stem]}) imports {imported} (notebook {numbers.get(imported)})")


@for_each_module
def test_the_front_door_is_used_where_it_must_be(module):
    "`farmer.module.name` reaches a module of a higher number, and only where that is agreed; others are imported."
    reached = {chain[1] for chain in chains(tree_of(module)) if chain[0] == "farmer" and chain[1] in module_numbers()}
    assert {(module.stem, other) for other in reached} <= FRONT_DOOR


@for_each_module
def test_functions_and_classes_are_short(module):
    for node in ast.walk(tree_of(module)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            lines, limit = node.end_lineno - node.lineno + 1, MAX_CLASS_LINES if isinstance(node, ast.ClassDef) else MAX_FUNCTION_LINES
            assert lines <= limit, f"{node.name} has {lines} lines, the limit is {limit}"


@for_each_module
def test_a_class_is_whole(module):
    "Nothing is added to a class from outside: a reader sees all of it in one place."
    tree = tree_of(module)
    classes = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    assigned = [target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Attribute)]
    added = {ast.unparse(target) for target in assigned if isinstance(target.value, ast.Name) and target.value.id in classes}
    assert not added, f"assigned from outside: {added}"


@for_each_module
def test_importing_changes_nothing_outside(module):
    "No environment variable, warning filter, log or number of threads is set by an import: that is the caller's."
    nodes = [node for node in tree_of(module).body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    found = {".".join(chain) for node in nodes for chain in chains(ast.Module([node], []))}
    assert not [name for name in found if name.startswith(("os.environ", "os.putenv", "warnings.", "logging.basic", "torch.set_", "torch.backends."))]


@functools.cache
def used_outside(module: Path) -> set[str]:
    "Names of a module that other modules, other notebooks or scripts use."
    others = [path for path in (*MODULES, *NOTEBOOKS, *SCRIPTS) if path != module and not (path.suffix == ".ipynb" and module_of(path) == module.stem)]
    return {name for path in others for used, name in uses(tree_of(path)) if used == module.stem}


@for_each_module
def test_public_names_have_users(module):
    "A name without a user outside its module is private, with a leading underscore, or documented for users above."
    if not module.stem.startswith("__"):
        public, documented = public_names(tree_of(module)), DOCUMENTED.get(module.stem, set())
        assert documented <= public, f"documented, but not there: {documented - public}"
        unused = public - used_outside(module) - documented - types_in_signatures(tree_of(module))
        assert not unused, f"nothing outside {module.name} uses {sorted(unused)}"


def test_importing_the_package_loads_nothing_heavy():
    "Names are loaded when first used, so that `import farmer` costs nothing and modules can meet at the front door."
    code = "import sys, farmer; print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'torchvision', 'numpy', 'PIL', 'tyro'}))"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


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
    "On a cluster the requirements alone must be enough: no notebook, plotting or development tools."
    assert name not in import_failures, import_failures[name]


def test_metadata():
    "What pip installed: the farmer command, the license, the extras. If this fails, install again."
    package = importlib.metadata.distribution("farmer-pixels")
    scripts = {point.name: point.value for point in package.entry_points if point.group == "console_scripts"}
    assert scripts == {"farmer": "farmer.__main__:main"}
    assert package.metadata["License-Expression"] == "Apache-2.0"
    assert set(package.metadata.get_all("Provides-Extra")) == {"notebooks", "evaluation", "hub", "logging", "export", "docs", "dev"}


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
    "Long code is grown in steps and explained between them; only a class, which stands whole in one cell, may take more."
    for source in exported_cells(notebook):
        lines = [line for line in source.splitlines() if not re.match(r"#\s*\|", line)]
        has_class = any(isinstance(node, ast.ClassDef) for node in ast.parse(source).body)
        assert len(lines) <= (MAX_CLASS_LINES if has_class else MAX_FUNCTION_LINES), f"{len(lines)} lines: {' '.join(lines[:3])} ..."


@for_each_notebook
def test_notebook_is_small(notebook):
    "Pictures bloat a repository for ever: show smaller or fewer ones."
    assert notebook.stat().st_size <= MAX_NOTEBOOK_BYTES
    assert "widgets" not in json.loads(notebook.read_text("utf-8"))["metadata"], "saved widget state; a kernel makes it anew"


@for_each_notebook
def test_notebook_opens_with_title_purpose_and_module(notebook):
    first, second = cells(notebook)[:2]
    assert first["cell_type"] == "markdown"
    lines = first["source"].splitlines()
    assert lines[0].startswith("# "), "the first line must be the title: # ..."
    assert any(line.startswith("> ") for line in lines), "a line `> ...` under the title must say what it is for"
    assert not module_of(notebook) or "default_exp" in directives(second["source"]), "the second cell must name the module"


@pytest.mark.parametrize("path", sorted((ROOT / "farmer" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_results_say_how_they_came_about(path):
    found = json.loads(path.read_text("utf-8"))
    assert {"what", "commit", "date", "device"} <= found.keys(), "write it with `measuring.record`"


@for_each_notebook
def test_no_saved_errors(notebook):
    outputs = [output for cell in cells(notebook) for output in cell.get("outputs", [])]
    errors = [f"{output['ename']}: {output['evalue']}" for output in outputs if output["output_type"] == "error"]
    assert not errors, errors


@pytest.mark.parametrize("notebook", NUMBERED, ids=lambda path: path.stem)
def test_numbered_notebooks_assert(notebook):
    "A notebook proves at least one of its claims while it runs; assertions inside exported code do not count."
    shown = [source for source in code_cells(notebook) if not is_exported(source)]
    assert any(re.search(r"^\s*assert\b|\bassert_\w+\(", source, re.M) for source in shown), "no assertion outside the exported cells"


@pytest.mark.parametrize("notebook, following", list(itertools.pairwise(NUMBERED)), ids=lambda path: path.stem)
def test_the_end_leads_to_the_next_notebook(notebook, following):
    last = [cell["source"] for cell in cells(notebook) if cell["cell_type"] == "markdown"][-1]
    links = re.findall(r"\*{0,2}Next:\*{0,2}.*?\]\(([^()\s]+)\)", last)
    assert links[:1] == [following.name], f"the last markdown cell must hold `Next: [{following.stem}]({following.name})`"


# --- Text


def texts() -> dict[str, str]:
    "What people read: notebooks, code, scripts, pages."
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", "pyproject.toml")]
    pages += [path for path in (*MODULES, *SCRIPTS, *(ROOT / "tests").glob("*.py"))]
    written = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in pages}
    return written | {f"nbs/{path.name}": "\n".join(cell["source"] for cell in cells(path)) for path in NOTEBOOKS}


def test_notebooks_that_are_named_exist():
    "A name such as 03_flow, or a number as in 'lesson 03', is that of a notebook; lessons are those of the method."
    known = {path.stem for path in NUMBERED}
    lessons = {path.stem[:2] for path in NUMBERED if number(path) <= LAST_LESSON}
    for place, text in texts().items():
        unknown = {name for name in re.findall(r"\b\d\d_[a-z]\w*", text) if name not in known}
        unknown |= {f"lesson {name}" for name in re.findall(r"\blessons? (\d+)", text) if name not in lessons}
        assert not unknown, f"{place} speaks of {sorted(unknown)}"


def test_no_text_installs_another_farmer():
    "On the package index `farmer` is somebody else's; ours is farmer-pixels."
    more = [*(ROOT / "docs").glob("*.*"), *(ROOT / ".github").rglob("*.yml"), ROOT / "CHANGELOG.md", ROOT / "settings.ini"]
    pattern = re.compile(r"""\b(?:install|uninstall|download|uvx|pipx run|uv add|uv tool run|--with|--from)\b[^\n#|&;`]*?[\s"']farmer(?![\w/.-])""")
    assert pattern.search("pip install -U 'farmer[hub]'") and pattern.search("uvx farmer demo") and not pattern.search('pip install "farmer-pixels[hub]"')
    for place, text in {**texts(), **{path.name: path.read_text("utf-8") for path in more}}.items():
        if place != "tests/test_project.py":
            assert not (found := pattern.search(text)), f"{place}: {found and found[0]}: the distribution is farmer-pixels"


def test_the_readme_quotes_the_library_as_it_is():
    "Signatures apart, which it shows without types."
    _, method = (ROOT / "README.md").read_text("utf-8").split("## The method in 60 lines")
    quoted = "\n".join(re.findall(r"```python\n(.*?)```", method, re.DOTALL)).splitlines()
    library = {line.strip() for path in (ROOT / "farmer").glob("*.py") for line in path.read_text("utf-8").splitlines()}
    assert len(quoted) > 50
    assert not [line for line in quoted if line.strip() not in library and not line.startswith("def ")], "run nbs/index.ipynb again, then make build"


def test_readme_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text("utf-8")
    targets = re.findall(r"\]\(([^()\s]+)", readme) + re.findall(r"""\b(?:src|href)=["']([^"']+)""", readme)
    local = [target.partition("#")[0] for target in targets if not re.match(r"[a-zA-Z][\w+.-]*:|#", target)]
    missing = [target for target in local if not (ROOT / target).exists()]
    assert not missing, f"README.md links to {missing}: mend the links in nbs/index.ipynb"
