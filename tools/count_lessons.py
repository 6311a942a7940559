"""Print the length of every notebook and module; with --check, fail if one breaks the limits below.

Words are those of the text, without solutions in <details> and the links that open it; code is that of cells which are not folded; time is what a reader needs for them at 220
words, 12 lines of code or 2 pictures a minute.
"""
import argparse
import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = {"The method": (0, 8), "The engine": (9, 19), "The laboratory": (20, 30)}  # by number of the notebook
LESSONS = 9
LESSON_LIMITS = {"words": 3000, "exported lines": 300, "lines of the median code cell": 12, "minutes to read": 45}
METHOD_LIMIT = 360
MODULE_LIMITS = {"cli": 660, "evaluation": 470, "explorer": 680, "export": 460, "training": 420}
MODULE_LIMIT = 450  # of any other module
PACKAGE_LIMIT = 8400  # lines, the index that nbdev writes apart
WORDS_A_MINUTE, LINES_A_MINUTE, PICTURES_A_MINUTE = 220, 12, 2


@dataclass(frozen=True)
class Notebook:
    "The length of a notebook."

    name: str
    words: int
    exported: int  # lines of exported cells
    median: float  # lines of a code cell
    longest: int  # lines of a code cell that is not exported
    minutes: float  # to read it

    @property
    def number(self) -> int | None:
        match = re.match(r"\d+", self.name)
        return int(match[0]) if match else None

    def problems(self) -> list[str]:
        "What a lesson has too much of."
        found = dict(zip(LESSON_LIMITS, (self.words, self.exported, self.median, self.minutes)))
        return [f"{self.name}: {value:g} {what}, the limit is {LESSON_LIMITS[what]}" for what, value in found.items() if value > LESSON_LIMITS[what]]


def measure(path: Path) -> Notebook:
    "Count what a notebook holds."
    words, pictures, read, code, exported = 0, 0, 0, [], []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            words += len(re.sub(r"<details.*?</details>|^\*\*Open in\*\*[^\n]*", "", source, flags=re.S | re.M).split())
            continue
        pictures += sum(any(mime.startswith("image/") for mime in output.get("data", {})) for output in cell["outputs"])
        if not cell["metadata"].get("jupyter", {}).get("source_hidden"):
            lines = source.splitlines()
            (exported if re.search(r"^#\s*\|\s*export", source, re.M) else code).append(len(lines))
            shown = not re.search(r"^#\s*\|\s*echo: false", source, re.M)
            read += shown * sum(bool(line.strip()) and not line.startswith("#|") for line in lines)
    median = statistics.median(code + exported) if code + exported else 0
    minutes = words / WORDS_A_MINUTE + read / LINES_A_MINUTE + pictures / PICTURES_A_MINUTE
    return Notebook(path.stem, words, sum(exported), median, max(code, default=0), minutes)


def measure_modules() -> dict[str, int]:
    "Lines of every module."
    return {path.stem: len(path.read_text("utf-8").splitlines()) for path in sorted((ROOT / "farmer").glob("*.py")) if path.stem != "_modidx"}


def print_notebooks(notebooks: list[Notebook]) -> None:
    print(f"{'':22}{'words':>8}{'exported':>10}{'median':>8}{'longest':>9}{'minutes':>9}")
    for part, (first, last) in PARTS.items():
        members = [each for each in notebooks if each.number is not None and first <= each.number <= last]
        for each in members:
            print(f"{each.name:22}{each.words:8,}{each.exported:10,}{each.median:8g}{each.longest:9}{each.minutes:9.0f}")
        words, exported, minutes = (sum(getattr(each, field) for each in members) for field in ("words", "exported", "minutes"))
        print(f"{part:22}{words:8,}{exported:10,}{'':17}{minutes:9.0f}, {minutes / 60:.1f} hours\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a limit is broken")
    check = parser.parse_args().check
    notebooks, modules = [measure(path) for path in sorted((ROOT / "nbs").glob("*.ipynb"))], measure_modules()
    print_notebooks(notebooks)
    print("\n".join(f"{name:22}{lines:8,}" for name, lines in modules.items()))
    print(f"{'farmer/':22}{sum(modules.values()):8,}")
    first, last = PARTS["The method"]
    lessons = [each for each in notebooks if each.number is not None and first <= each.number <= last]
    problems = [problem for lesson in lessons for problem in lesson.problems()]
    minutes = sum(lesson.minutes for lesson in lessons)
    problems += [f"{minutes:.0f} minutes for all lessons, the limit is {METHOD_LIMIT}"] if minutes > METHOD_LIMIT else []
    problems += [f"{len(lessons)} lessons, not {LESSONS}"] if len(lessons) != LESSONS else []
    limits = {name: MODULE_LIMITS.get(name, MODULE_LIMIT) for name in modules}
    problems += [f"farmer/{name}.py: {lines} lines, the limit is {limits[name]}" for name, lines in modules.items() if lines > limits[name]]
    problems += [f"farmer/: {sum(modules.values()):,} lines, the limit is {PACKAGE_LIMIT - 1:,}"] if sum(modules.values()) >= PACKAGE_LIMIT else []
    if check and problems:
        sys.exit("\n" + "\n".join(problems))


if __name__ == "__main__":
    main()
