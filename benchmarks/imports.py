"""Time of `import farmer; farmer.Farmer` against that of `import torch, torchvision`: `python benchmarks/imports.py [RUNS]`.

Each run starts a fresh process; the two take turns, and the fastest of each counts.
"""
import subprocess
import sys
import time

CODE = {"torch, torchvision": "import torch, torchvision", "farmer.Farmer": "import farmer; farmer.Farmer", "farmer": "import farmer"}


def seconds(code: str) -> float:
    "Wall time of a fresh interpreter that runs the code."
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    times = [{name: seconds(code) for name, code in CODE.items()} for _ in range(runs + 1)][1:]  # the first fills the disk's cache
    fastest = {name: min(each[name] for each in times) for name in CODE}
    for name, value in fastest.items():
        print(f"{name:20}{value:7.2f} s{value / fastest['torch, torchvision']:7.2f} x")


if __name__ == "__main__":
    main()
