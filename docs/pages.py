"""Write what Sphinx reads into build/docs: notebooks without nbdev's directives, a page for each module, results, changelog.

Notebooks keep their links among each other; links to other files of the repository become full addresses.
"""
import ast
import configparser
import json
import posixpath
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "build" / "docs"
SHELVES = {  # title of a shelf, first and last number of its notebooks
    "The method": (0, 8),
    "The engine": (9, 19),
    "The laboratory": (20, 99),
}
CIRCUMSTANCES = ("commit", "date", "seeds", "device")  # of a result
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([\w-]+)\s*:?\s*(.*)$", re.M)
MARKDOWN_LINK = re.compile(r"(\]\()([^()\s]+)(\))")
sys.path.insert(0, str(ROOT))
import farmer  # noqa: E402


def repository() -> str:
    "Where the files of the branch are shown."
    parser = configparser.ConfigParser(delimiters=["="], interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return f"{parser['DEFAULT']['repository']}/blob/{parser['DEFAULT']['branch']}"


def text(source: str | list[str]) -> str:
    "A notebook holds text as one string or as a list of lines."
    return source if isinstance(source, str) else "".join(source)


def relink(markdown: str, folder: str) -> str:
    "Links as the site has them; `folder` is where the text stood in the repository."

    def moved(match: re.Match) -> str:
        path, mark, anchor = match[2].partition("#")
        if not path or re.match(r"[a-zA-Z][\w+.-]*:|/", path):
            return match[0]
        place = posixpath.normpath(posixpath.join(folder, path))
        if not (ROOT / place).exists():
            return match[0]
        on_site = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}.get(place)
        if place.startswith("nbs/") and place.endswith(".ipynb"):
            on_site = posixpath.basename(place)
        return f"{match[1]}{on_site or f'{repository()}/{place}'}{mark}{anchor}{match[3]}"

    return MARKDOWN_LINK.sub(moved, markdown)


# --- Notebooks


def shown(output: dict) -> dict | None:
    "An output without what needs a running kernel; None if nothing else is left."
    data = output.get("data")
    if data is None:
        return output if output.get("name") != "stderr" else None
    if any(mime.startswith("application/vnd.") for mime in data) and not any(mime.startswith(("image/", "text/html")) for mime in data):
        return None  # a widget or a progress bar
    kept = {mime: value for mime, value in data.items() if not mime.startswith("application/vnd.")}
    if "text/markdown" in kept:
        kept["text/markdown"] = relink(text(kept["text/markdown"]), "nbs")
    return {**output, "data": kept}


def page_of(path: Path) -> dict:
    "The notebook as the site shows it."
    notebook = json.loads(path.read_text("utf-8"))
    cells = []
    for cell in notebook["cells"]:
        source = text(cell["source"])
        if cell["cell_type"] == "code":
            directives = dict(DIRECTIVE.findall(source))
            if directives.keys() & {"hide", "default_exp"}:
                continue
            source = DIRECTIVE.sub("", source).strip("\n")
            tags = list(cell["metadata"].get("tags", []))
            tags += ["remove-input"] if directives.get("echo") == "false" or not source else []
            tags += ["remove-output"] if directives.get("output") == "false" else []
            tags += ["hide-input"] if cell["metadata"].get("jupyter", {}).get("source_hidden") else []
            alt = directives.get("fig-alt") or "output of the code above"
            cell["metadata"] = {"tags": tags, "mystnb": {"image": {"alt": alt}}}
            cell["outputs"] = [output for output in map(shown, cell["outputs"]) if output]
        elif cell["cell_type"] == "markdown":
            source = relink(source, "nbs")
        cells.append({**cell, "source": source})
    metadata = {key: value for key, value in notebook["metadata"].items() if key != "widgets"}
    return {**notebook, "metadata": metadata, "cells": cells}


def notebooks() -> dict[str, list[str]]:
    "Names of the notebooks of each shelf."
    names = sorted(path.stem for path in (ROOT / "nbs").glob("[0-9]*.ipynb"))
    return {shelf: [name for name in names if first <= int(name.partition("_")[0]) <= last] for shelf, (first, last) in SHELVES.items()}


def write_notebooks() -> None:
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        page = page_of(path)
        if path.stem == "index":
            page["cells"].append({"cell_type": "markdown", "id": "contents", "metadata": {}, "source": contents()})
        (SOURCE / path.name).write_text(json.dumps(page), encoding="utf-8")


def contents() -> str:
    "The site's tree of pages, for its sidebar."
    trees = {**notebooks(), "Reference": ["api/index", "results", "changelog", "contributing"]}
    return "\n\n".join(
        "\n".join([":::{toctree}", ":hidden:", f":caption: {caption}", "", *names, ":::"]) for caption, names in trees.items()
    )


# --- Every public name


def prose(words: str) -> str:
    "A docstring as Markdown: code and lists stay, every other sign stands for itself."
    parts = re.split(r"(`+[^`]+`+)", words)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_\[\]<>$|{}#~^])", r"\\\1", part) for part in parts)


def signature(node: ast.FunctionDef, method: bool) -> str:
    "Parameters and result, as Sphinx reads them."
    if method and not any(ast.unparse(each) == "staticmethod" for each in node.decorator_list):
        node.args.args = node.args.args[1:] if not node.args.posonlyargs else node.args.args
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"({ast.unparse(node.args)}){result}"


def fields(comments: dict[str, str]) -> list[str]:
    "What is said beside parameters, as a field list."
    return [f":{name if name == 'returns' else f'param {name}'}: {prose(comment)}" for name, comment in comments.items()]


def option(name: str, code: ast.expr) -> str:
    "An option that is code; options are YAML."
    return f":{name}: {json.dumps(ast.unparse(code), ensure_ascii=False)}"


def directive(kind: str, head: str, body: list[str], colons: int, options: list[str] = ()) -> list[str]:
    fence = ":" * colons
    return [f"{fence}{{py:{kind}}} {head}", *options, "", *body, "", fence, ""]


def function_page(node: ast.FunctionDef, comments: dict[str, dict[str, str]], owner: str = "") -> list[str]:
    "A function or a method."
    decorators = {ast.unparse(each) for each in node.decorator_list}
    body = [prose(ast.get_docstring(node) or ""), "", *fields(comments.get(f"{owner}.{node.name}".lstrip("."), {}))]
    if decorators & {"property", "functools.cached_property"}:
        return directive("property", node.name, body, 4, [option("type", node.returns)] if node.returns else [])
    options = [f":{name}:" for name in ("classmethod", "staticmethod") if name in decorators]
    return directive("method" if owner else "function", node.name + signature(node, bool(owner)), body, 4, options)


def class_page(node: ast.ClassDef, comments: dict[str, dict[str, str]], beside: dict[int, str]) -> list[str]:
    "A class with its fields and public methods."
    initial = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    bases = ", ".join(f"`{ast.unparse(base)}`" for base in node.bases)
    body = [f"Bases: {bases}", ""] if bases else []
    body += [prose(ast.get_docstring(node) or ""), ""]
    body += fields(comments.get(f"{node.name}.__init__", {})) + [""]
    for each, following in zip(node.body, [*node.body[1:], None]):
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and not each.target.id.startswith("_"):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant) and isinstance(following.value.value, str)
            words = following.value.value if is_text else beside.get(each.end_lineno, "")
            options = [option("type", each.annotation)] + ([option("value", each.value)] if each.value else [])
            body += directive("attribute", each.target.id, [prose(words)], 4, options)
        elif isinstance(each, ast.FunctionDef) and not each.name.startswith("_"):
            body += function_page(each, comments, node.name)
    return directive("class", node.name + (signature(initial, True).partition(" -> ")[0] if initial else ""), body, 5)


def module_page(path: Path) -> tuple[str, str]:
    "The page of a module, and its first line."
    source = path.read_text("utf-8")
    tree, comments = ast.parse(source), farmer._parameters(source)
    beside = {number: line.partition("  # ")[2] for number, line in enumerate(source.splitlines(), 1) if "  # " in line}
    words = ast.get_docstring(tree) or ""
    origin = re.search(r"File to edit: \.\./nbs/(\w+)\.ipynb", source)
    lines = [f"# farmer.{path.stem}", "", prose(words), ""]
    lines += [f"Explained in [{origin[1]}](../{origin[1]}.ipynb).", ""] if origin else []
    lines += directive("module", f"farmer.{path.stem}", [], 3)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            lines += class_page(node, comments, beside) if isinstance(node, ast.ClassDef) else function_page(node, comments)
    return "\n".join(lines) + "\n", words.partition("\n")[0]


def write_reference() -> None:
    (SOURCE / "api").mkdir()
    shelf_of = {name.partition("_")[2].replace("command_line", "cli"): shelf for shelf, names in notebooks().items() for name in names}
    rows: dict[str, list[tuple[str, str]]] = {shelf: [] for shelf in (*SHELVES, "Shared")}
    for path in sorted((ROOT / "farmer").glob("[!_]*.py")):
        page, purpose = module_page(path)
        (SOURCE / "api" / f"{path.stem}.md").write_text(page, encoding="utf-8")
        rows[shelf_of.get(path.stem, "Shared")].append((path.stem, purpose))
    lines = ["# Every public name", "", f"`from farmer import {', '.join(farmer.__all__)}`; all else from its module.", ""]
    for shelf, modules in rows.items():
        lines += [f"## {shelf}", "", "| module | what it is for |", "|---|---|"]
        lines += [f"| [farmer.{name}]({name}.md) | {prose(purpose)} |" for name, purpose in modules] + [""]
    lines += [":::{toctree}", ":hidden:", "", *sorted(name for modules in rows.values() for name, _ in modules), ":::"]
    (SOURCE / "api" / "index.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- Results and the rest


def write_results() -> None:
    "What was measured, from the files of farmer/results."
    lines = ["# Results", "", "The figures of [the overview](index.ipynb), the lessons and [the paper's tables](23_paper.ipynb) were measured by scripts of"]
    lines += ["`experiments/`, which wrote these files: what, when, on which state of the code, with which seeds.", ""]
    for path in sorted((ROOT / "farmer" / "results").glob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        lines += [f"## {path.stem.replace('_', ' ')}", "", prose(found["what"][0].upper() + found["what"][1:]) + ".", "", "| | |", "|---|---|"]
        lines += [f"| {name} | {prose(re.sub('[0-9a-f]{40}', lambda match: match[0][:10], str(found[name])))} |" for name in CIRCUMSTANCES if name in found]
        lines += [f"| file | [{path.name}]({repository()}/farmer/results/{path.name}) |", ""]
        body = {key: value for key, value in found.items() if key not in ("what", *CIRCUMSTANCES)}
        lines += ["<details><summary>Figures</summary>", "", "```text", json.dumps(body, indent=1), "```", "", "</details>", ""]
    (SOURCE / "results.md").write_text("\n".join(lines), encoding="utf-8")


def main() -> None:
    shutil.rmtree(SOURCE, ignore_errors=True)
    SOURCE.mkdir(parents=True)
    write_notebooks()
    write_reference()
    write_results()
    for name in ("CHANGELOG", "CONTRIBUTING"):
        words = relink((ROOT / f"{name}.md").read_text("utf-8"), "")
        (SOURCE / f"{name.lower()}.md").write_text(words, encoding="utf-8")


if __name__ == "__main__":
    main()
