"""Run notebooks as somebody does who has nothing else: each alone in an empty folder, with the wheel of this checkout in a new environment.

    python tools/run_alone.py [nbs/03_flow.ipynb ...]

Fails if one does. A few minutes for the environment, and as long as the notebooks take; all of them if none is named.
"""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def call(*command: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in command], check=True, **options)


def environment(folder: Path) -> Path:
    "A new one with the wheel and what notebooks need; its folder of commands."
    call(sys.executable, "-m", "build", "--wheel", "--outdir", folder / "wheel", ROOT, stdout=subprocess.DEVNULL)
    [wheel] = (folder / "wheel").glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    commands = folder / "venv" / "bin"
    call(commands / "python", "-m", "pip", "install", "-qq", "--disable-pip-version-check", f"{wheel}[notebooks,hub,export]", "nbconvert")
    return commands


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path)
    notebooks = [path.resolve() for path in parser.parse_args().notebooks] or sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        commands = environment(Path(scratch))
        settings = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
        for path in notebooks:
            alone = Path(scratch, path.stem)
            alone.mkdir()
            shutil.copy(path, alone)
            begun = time.monotonic()
            done = subprocess.run(
                [commands / "jupyter", "nbconvert", "--to", "notebook", "--execute", "--inplace", path.name], cwd=alone, env=settings, capture_output=True, text=True
            )
            failed += [path.name] if done.returncode else []
            print(f"{path.name}: {'failed' if done.returncode else 'runs'}, {time.monotonic() - begun:.0f} s", flush=True)
            if done.returncode:
                print(done.stderr[-3000:])
            shutil.rmtree(alone)
    if failed:
        sys.exit(f"{len(failed)} of {len(notebooks)} fail: {', '.join(failed)}")


if __name__ == "__main__":
    main()
