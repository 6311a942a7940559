"""Time of the library's start against that of `import torch`: `python benchmarks/imports.py [RUNS]`.

Each run starts a fresh process; they take turns, and the fastest of each counts. The limits are for the clock, on an otherwise
idle machine; the processor's time depends less on other programs.
"""
import resource
import subprocess
import sys
import time

CODE = {  # what is timed, and how many times `import torch` it may take
    "import torch": ("import torch", 1.0),
    "import farmer": ("import farmer", 1.3),
    "farmer.Farmer": ("import farmer; farmer.Farmer", 1.3),
    "farmer --help": ("import sys; sys.argv[1:] = ['--help']; from farmer.__main__ import main; main()", 1.5),
}


def seconds(code: str) -> tuple[float, float]:
    "Of the processor and by the clock, of a fresh interpreter that runs the code."
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, clock


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    times = [{name: seconds(code) for name, (code, _) in CODE.items()} for _ in range(runs + 1)][1:]  # the first fills the disk's cache
    fastest = {name: [min(each[name][i] for each in times) for i in range(2)] for name in CODE}
    print(f"{'':16}{'processor':>18}{'clock':>18}{'limit':>9}")
    for name, (_, limit) in CODE.items():
        columns = [f"{value:8.2f} s{value / torch:6.2f} x" for value, torch in zip(fastest[name], fastest["import torch"])]
        print(f"{name:16}{''.join(columns)}{limit:7.1f} x{'' if fastest[name][1] <= limit * fastest['import torch'][1] else ', too slow'}")


if __name__ == "__main__":
    main()
