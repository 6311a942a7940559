"""Make README.md and images/ from nbs/index.ipynb; with --check, say what differs and change nothing.

Markdown is copied, code is fenced, outputs follow their code. Links are rewritten to work from the project root. The
folder images/ belongs to the README: pictures that it does not show are removed. Directives understood in a code cell:
`#| hide`, `#| echo: false`, `#| output: false`, `#| fig-alt: text for a picture`.
"""
import argparse
import base64
import json
import posixpath
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK, README, IMAGES = "nbs/index.ipynb", "README.md", "images"
HEADER = f"<!-- made from {NOTEBOOK} by tools/make_readme.py: do not edit -->"
SUFFIX = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/svg+xml": "svg"}
DIRECTIVE = re.compile(r"#\s*\|\s*([\w-]+)\s*:?\s*(.*)")
# Code is matched first so that links inside it stay as they are.
FENCED = r"^ {0,3}(?P<fence>`{3,}|~{3,}).*?^ {0,3}(?P=fence)[ \t]*$"
INLINE = r"(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
BEFORE_TARGET = r"""\]\(|^ {0,3}\[[^\]]+\]:\s+|\b(?:src|href)=["']"""  # [text](target), [label]: target, src="target"
LINK = re.compile(rf"""{FENCED}|{INLINE}|(?P<before>{BEFORE_TARGET})(?P<target>[^()\s"']+)""", re.M | re.S)


class Page:
    "The text of the README and the pictures that it shows."

    def __init__(self) -> None:
        self.blocks: list[str] = []
        self.pictures: dict[str, bytes] = {}

    def add_picture(self, mime: str, data: str) -> str:
        "Keep a picture and return its name; numbers follow the order in the notebook."
        name = f"{IMAGES}/index-{len(self.pictures) + 1}.{SUFFIX[mime]}"
        self.pictures[name] = data.encode() if mime == "image/svg+xml" else base64.b64decode(data)
        return name

    def add_markdown(self, cell: dict) -> None:
        source = relink(text(cell["source"]))
        for attachment, bundle in cell.get("attachments", {}).items():
            mime = next(mime for mime in SUFFIX if mime in bundle)
            source = source.replace(f"attachment:{attachment}", self.add_picture(mime, text(bundle[mime])))
        self.blocks.append(source.strip())

    def add_code(self, cell: dict) -> None:
        lines = text(cell["source"]).splitlines()
        directives = dict(match.groups() for line in lines if (match := DIRECTIVE.match(line)))
        if directives.keys() & {"hide", "default_exp"}:
            return
        code = "\n".join(line for line in lines if not DIRECTIVE.match(line)).strip("\n")
        if code and directives.get("echo") != "false":
            self.blocks.append(fenced(code, "python"))
        if directives.get("output") != "false":
            for output in cell["outputs"]:
                self.add_output(output, directives.get("fig-alt", ""))

    def add_output(self, output: dict, alt: str) -> None:
        if output["output_type"] == "error":
            sys.exit(f"{NOTEBOOK} holds a saved error ({output['ename']}): run it again")
        if output["output_type"] == "stream":
            if output["name"] == "stdout":
                self.blocks.append(fenced(text(output["text"]).strip("\n")))
            return
        data = output["data"]
        if any(mime.startswith("application/vnd.") for mime in data):  # widgets live in the notebook only
            return
        if picture := next((mime for mime in SUFFIX if mime in data), None):
            self.blocks.append(f"![{alt or 'output of the code above'}]({self.add_picture(picture, text(data[picture]))})")
        elif "text/markdown" in data:
            self.blocks.append(relink(text(data["text/markdown"])).strip())
        elif "text/html" in data:
            self.blocks.append(re.sub(r"\n\s*\n", "\n", text(data["text/html"])).strip())  # a blank line ends HTML
        elif "text/plain" in data:
            self.blocks.append(fenced(text(data["text/plain"]).strip("\n")))


def text(source: str | list[str]) -> str:
    "A notebook holds text as one string or as a list of lines."
    return source if isinstance(source, str) else "".join(source)


def fenced(code: str, language: str = "") -> str:
    ticks = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{ticks}{language}\n{code}\n{ticks}"


def moved(target: str) -> str:
    "A link written for the folder of the notebook, as seen from the project root."
    if re.match(r"[a-zA-Z][\w+.-]*:|[#/]", target):  # a full address, an attachment or a place on this page
        return target
    path, mark, anchor = target.partition("#")
    return posixpath.normpath(posixpath.join(posixpath.dirname(NOTEBOOK), path)) + mark + anchor


def relink(markdown: str) -> str:
    "Rewrite the relative links of a text."
    return LINK.sub(lambda match: match["before"] + moved(match["target"]) if match["target"] else match[0], markdown)


def make() -> dict[str, bytes]:
    "Every file that the notebook makes, by name."
    page = Page()
    for cell in json.loads((ROOT / NOTEBOOK).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            page.add_markdown(cell)
        elif cell["cell_type"] == "code":
            page.add_code(cell)
    body = "\n\n".join([HEADER, *filter(None, page.blocks)]) + "\n"
    return {README: body.encode(), **page.pictures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if anything would change")
    check = parser.parse_args().check
    made = make()
    body = made[README].decode()
    present = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / IMAGES).rglob("*") if path.is_file())
    stale = [name for name in present if name not in made and name not in body]
    changed = [name for name, data in made.items()
               if not (ROOT / name).is_file() or (ROOT / name).read_bytes() != data]
    if check:
        cure = "run python tools/make_readme.py"
        problems = [f"{name} is not what {NOTEBOOK} makes: {cure}" for name in changed]
        problems += [f"{name} is shown nowhere in {README}: {cure}" for name in stale]
        if problems:
            sys.exit("\n".join(problems))
        return
    for name in changed:
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(made[name])
    for name in stale:
        (ROOT / name).unlink()


if __name__ == "__main__":
    main()
