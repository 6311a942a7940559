"""Time of the library's start against that of `import torch`: `python benchmarks/imports.py [RUNS]`.

Each run starts a fresh process; they take turns, and the fastest of each counts. Of the processor, since other programs do not
change that much, and by the clock.
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
    torch = min(each["import torch"][0] for each in times)
    print(f"{'':16}{'processor':>12}{'':9}{'clock':>9}")
    for name, (_, limit) in CODE.items():
        processor, clock = (min(each[name][i] for each in times) for i in range(2))
        print(f"{name:16}{processor:10.2f} s{processor / torch:7.2f} x{clock:7.2f} s{'' if processor <= limit * torch else f', more than {limit} x'}")


if __name__ == "__main__":
    main()
