"""Numbers in the notebooks' prose that nothing shows: no code, no output, no result file that the notebook reads.

A decimal, a percentage or a number of three digits and more has to be seen in the same notebook, up to the rounding of the
prose, or stand in a sentence that says whose it is: the paper's, or somebody's with a link. Formulas, code, links and
years are not looked at. With --check, fail if there are any.
"""
import argparse
import json
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "farmer" / "results"
UNSEEN = r"`[^`]*`|Python \d\.\d+|arXiv:?\s\d{4}\.\d{4,5}|\$\$.*?\$\$|\$[^$]*\$|\[!\[.*?\)\]\(.*?\)|(?<=\])\([^)]*\)|https?://\S+|<[^>]*>|&\w+;"
NUMBER = re.compile(r"(?<![\w.,-])(\d{1,3}(?:,\d{3})+|\d+)?(\.\d+)?(?:\s?(%|million|billion|thousand|MB|KB|GB))?(?![\w])")
ANY = re.compile(r"\d[\d,_]*\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?", re.I)
FACTORS = {"%": (1, 0.01), "million": (1, 1e6), "billion": (1, 1e9), "thousand": (1, 1e3), "MB": (1, 1e6), "KB": (1, 1e3), "GB": (1, 1e9), None: (1,)}
ATTRIBUTED = re.compile(r"\bpapers?\b|paper's|\]\(http|\bpublished\b|\btheirs\b|\bImageNet\b")


def numbers_in(text: str) -> set[float]:
    "All numbers of a text, as floats."
    found = set()
    for match in ANY.findall(text):
        cleaned = match.replace(",", "").replace("_", "").rstrip(".")
        if cleaned:
            found.add(float(cleaned))
    return found


def numbers_of(value: object) -> set[float]:
    "All numbers of a result file, means over lists included."
    if isinstance(value, dict):
        return set().union(*map(numbers_of, value.values())) if value else set()
    if isinstance(value, list):
        found = set().union(*map(numbers_of, value)) if value else set()
        plain = [each for each in value if isinstance(each, (int, float))]
        return found | ({sum(plain) / len(plain)} if plain else set())
    if isinstance(value, (int, float)) and math.isfinite(value):
        return {float(value)}
    return numbers_in(value) if isinstance(value, str) else set()


def held(value: float, digits: int, unit: str | None, known: list[float]) -> bool:
    "Is a number known that reads so when it is rounded?"
    tolerance = 0.5 * 10.0**-digits * 1.01
    factors = FACTORS[unit]
    return any(abs(other / factor - value) <= tolerance for other in known for factor in factors)


def claims_of(markdown: str) -> list[str]:
    "Sentences, and rows of tables, that do not say whose numbers they quote."
    blocks = re.split(r"\n\s*\n", re.sub(r"```.*?```", "", re.sub(r"<details.*?</details>", "", markdown, flags=re.S), flags=re.S))
    parts = [part for block in blocks for part in ([block] if block.lstrip().startswith("|") else re.split(r"(?<=[.!?:;])\s+(?=[A-Z*`$\[(])", block))]
    return [re.sub(UNSEEN, " ", part, flags=re.S) for part in parts if not ATTRIBUTED.search(part)]


def unseen(path: Path) -> list[str]:
    "What a notebook claims without showing it."
    cells = json.loads(path.read_text("utf-8"))["cells"]
    known, claims = set(), []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            known |= set().union(set(), *(numbers_in(part) for part in re.findall(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$", source, re.S)))
            claims += claims_of(source)
            continue
        known |= numbers_in(source)
        for name in re.findall(r"[\w/]*\b(\w+)\.json|\"(\w+)\"", source):
            file = RESULTS / f"{name[0] or name[1]}.json"
            if file.is_file():
                known |= numbers_of(json.loads(file.read_text("utf-8")))
        for output in cell["outputs"]:
            shown = [output.get("text", "")] + [body for mime, body in output.get("data", {}).items() if mime.startswith("text/")]
            known |= set().union(*(numbers_in("".join(body)) for body in shown))
    known, found = sorted(known), []
    for claim in claims:
        for whole, fraction, unit in NUMBER.findall(claim):
            if not (whole or fraction):
                continue
            value, digits = float((whole or "0").replace(",", "") + fraction), max(len(fraction) - 1, 0)
            if not (fraction or unit or value >= 100) or (not fraction and not unit and 1900 <= value <= 2100):
                continue
            if not held(value, digits, unit or None, known):
                found.append(f"{path.stem}: {whole}{fraction}{' ' + unit if unit else ''} in: {' '.join(claim.split())[:140]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of nbs/ if none is named")
    parser.add_argument("--check", action="store_true", help="fail if there are any")
    asked = parser.parse_args()
    found = [line for path in asked.notebooks or sorted((ROOT / "nbs").glob("*.ipynb")) for line in unseen(path)]
    print("\n".join(found))
    if asked.check and found:
        sys.exit(f"{len(found)} numbers in prose that nothing shows")


if __name__ == "__main__":
    main()
