"""Check that farmer/ is what the notebooks export and that the notebooks are clean.

nbdev-export and nbdev-clean run on a copy in a temporary folder, so the check neither changes uncommitted work nor
depends on it being committed.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "pyproject.toml"  # where nbdev finds its settings
HAND_WRITTEN = [f"farmer/{name}.py" for name in ("__init__", "__main__", "checks", "files", "plots", "page/__init__", "page/voila")]


def copy_sources(target: Path) -> None:
    "Copy what the two commands read. Of the modules only those written by hand: what no notebook exports must not survive."
    shutil.copy(ROOT / CONFIG, target)
    for folder, patterns in (("nbs", ("*.ipynb", "llms.txt")), ("farmer", ("*.py",))):
        for name in listing(ROOT, folder, patterns):
            if name.endswith(".py") and name not in HAND_WRITTEN:
                continue
            if name.endswith(".ipynb"):
                check_json(name)
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def check_json(name: str) -> None:
    "Name the notebook that cannot be read, for instance after a merge conflict: nbdev does not."
    try:
        json.loads((ROOT / name).read_text(encoding="utf-8"))
    except ValueError as error:
        sys.exit(f"{name} is not valid JSON: {error}")


def listing(root: Path, folder: str, patterns: tuple[str, ...]) -> list[str]:
    "Names of the files below root/folder that match, relative to root, without hidden folders."
    found = (path.relative_to(root) for pattern in patterns for path in (root / folder).rglob(pattern))
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def run(command: str, folder: Path) -> None:
    "Run an nbdev command of this environment in a folder; its messages appear only if something is wrong."
    program = shutil.which(command, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        sys.exit(f"{command} is not installed: pip install -e '.[dev]'")
    environment = {key: value for key, value in os.environ.items() if key != "IN_TEST"}  # IN_TEST turns export off
    done = subprocess.run([program], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode or "Failed to clean" in done.stderr:
        sys.exit(f"{done.stdout}{done.stderr}{command} failed, see the lines above.")


def differences(made: Path, folder: str, patterns: tuple[str, ...], cure: str) -> list[str]:
    "One line for each file that differs between the copy and the working tree."
    problems = []
    expected, present = listing(made, folder, patterns), listing(ROOT, folder, patterns)
    for name in sorted({*expected, *present}):
        if name not in present:
            problems.append(f"{name} is missing: run {cure}")
        elif name not in expected:
            problems.append(f"{name} is exported by no notebook: delete it")
        elif (made / name).read_bytes() != (ROOT / name).read_bytes():
            problems.append(f"{name} is not what {cure} makes: run {cure}")
    return problems


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        copy_sources(made)
        run("nbdev-export", made)
        problems = differences(made, "farmer", ("*.py",), "nbdev-export")
        problems += differences(made, "nbs", ("llms.txt",), "nbdev-export")
        run("nbdev-clean", made)
        problems += differences(made, "nbs", ("*.ipynb",), "nbdev-clean")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
