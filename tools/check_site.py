"""Check a built site: every internal link and picture leads somewhere, pictures have words, nothing comes from the network.

`python tools/check_site.py [FOLDER]`, docs/_site if none is given. Prints one line for each fault; exit status 1 if there is one.
"""
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("video", "src")}  # by the browser itself


class Page(HTMLParser):
    "The links, places and pictures of a page."

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.targets: list[tuple[str, str]] = []  # (tag, address)
        self.places: set[str] = set()
        self.faults: list[str] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.places |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "img" and not (given.get("alt") or "").strip():
            self.faults.append(f"a picture without alt text: {given.get('src', '')[:60]}")
        for key in ("href", "src"):
            address = given.get(key)
            if address is None or given.get("rel") in ("canonical", "license"):
                continue
            if urlsplit(address).scheme in ("http", "https") and (tag, key) in LOADED:
                self.faults.append(f"loads {address} from the network")
            self.targets.append((tag, address))


@cache
def read(path: Path) -> Page:
    return Page(path)


def fault_of(site: Path, path: Path, address: str) -> str | None:
    "What is wrong with a link of a page; None if nothing is, or if it leads elsewhere."
    parts = urlsplit(address)
    if parts.scheme or parts.netloc or not (parts.path or parts.fragment):
        return None
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    target = target / "index.html" if target.is_dir() else target
    if not target.is_relative_to(site) or not target.is_file():
        return f"{address} leads nowhere"
    if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).places:
        return f"{address}: no such place on that page"
    return None


def faults(site: Path) -> list[str]:
    "One line for each fault of the site."
    found = []
    for path in sorted(site.rglob("*.html")):
        page = read(path)
        wrong = page.faults + [fault for _, address in page.targets if (fault := fault_of(site, path, address))]
        found += [f"{path.relative_to(site)}: {fault}" for fault in dict.fromkeys(wrong)]
    return found


def main() -> None:
    site = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "_site").resolve()
    if not (site / "index.html").is_file():
        sys.exit(f"no site in {site}: make docs")
    found = faults(site)
    pages = len(list(site.rglob("*.html")))
    sys.exit("\n".join(found) if found else print(f"{pages} pages: every link and picture leads somewhere, nothing comes from the network"))


if __name__ == "__main__":
    main()
