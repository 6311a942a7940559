"""Training speed of this checkout against another one, preset by preset, on the CPU.

    python benchmarks/training.py PATH_OF_ANOTHER_CHECKOUT

Each checkout trains in a process of its own, in turns of ten steps while the other waits, so that whatever else the machine
does falls on both alike. Printed for each preset: images/s of both, and how much faster this checkout is: the median over
the turns, with the quartiles.
"""
import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
STEPS = 10  # of a turn

# A training run that waits for a line of input before every turn, and prints the seconds of each. It starts this checkout,
# and those before trainers had objectives.
RUN = """
import os, sys, tempfile, time
from dataclasses import replace
checkout, name, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.path.insert(0, checkout)
import torch
import farmer
assert farmer.__file__.startswith(checkout), farmer.__file__
from farmer.data import load_dataset
from farmer.model import Farmer
from farmer.training import Trainer
try:
    from farmer.objectives import Likelihood
    from farmer.presets import PRESETS
except ImportError:
    from farmer.cli import PRESETS
    Likelihood = None

class Turns:
    "A data set that takes turns: it is asked for one batch a step."
    def __init__(self, dataset):
        self.dataset, self.count = dataset, 0
    def __getattr__(self, name):
        return getattr(self.dataset, name)
    def __len__(self):
        return len(self.dataset)
    def pixel_batch(self, indices):
        if self.count % steps == 0:
            if self.count:
                print(time.perf_counter() - self.started, flush=True)
            if not sys.stdin.readline():
                os._exit(0)
            self.started = time.perf_counter()
        self.count += 1
        return self.dataset.pixel_batch(indices)

preset = PRESETS[name]
train, test = (load_dataset(preset.data, split) for split in ("train", "test"))
config = replace(preset.training, evaluate_every=10**9, save_every=10**9)
torch.manual_seed(0)
with tempfile.TemporaryDirectory() as folder:
    model = Farmer(preset.model)
    trainer = Trainer(Likelihood(model) if Likelihood else model, Turns(train), test, config, folder, device="cpu")
    print(config.batch_size, flush=True)
    (trainer.fit if Likelihood else trainer.train)()
"""


class Run:
    "A training run in a process of its own, which waits for its turns."

    def __init__(self, checkout: Path, preset: str):
        command = [sys.executable, "-c", RUN, str(checkout), preset, str(STEPS)]
        self.process = subprocess.Popen(command, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
        self.images = int(self.process.stdout.readline()) * STEPS  # of a turn

    def turn(self) -> float:
        "Seconds of the next ten steps."
        print(file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of another checkout")
    parser.add_argument("--presets", nargs="+", default=["digits", "glyphs"])
    parser.add_argument("--turns", type=int, default=45, help="of ten steps, for each checkout")
    parser.add_argument("--threads", default="2")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS=options.threads, OMP_WAIT_POLICY="PASSIVE")  # threads that wait sleep, as in the command line
    for preset in options.presets:
        runs = {"other": Run(options.other.resolve(), preset), "this": Run(HERE, preset)}
        seconds = {name: [] for name in runs}
        for turn in range(options.turns):
            for name in sorted(runs, reverse=turn % 2 == 1):
                seconds[name].append(runs[name].turn())
        for run in runs.values():
            run.end()
        ratios = [other / this for other, this in zip(seconds["other"][2:], seconds["this"][2:])]  # the first turns warm up
        low, middle, high = statistics.quantiles(ratios, n=4)
        other, this = (run.images / statistics.median(seconds[name][2:]) for name, run in runs.items())
        print(f"{preset:8} images/s: other {other:5.0f}, this {this:5.0f}; this is {middle:.3f} times as fast ({low:.3f} to {high:.3f})", flush=True)


if __name__ == "__main__":
    main()
