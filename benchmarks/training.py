"""Training speed of this checkout against another one, preset by preset, on the CPU.

    python benchmarks/training.py PATH_OF_ANOTHER_CHECKOUT

Each run is a process of its own, the two checkouts take turns, and the figure of a run is the median over its records of
ten steps, evaluations and saves left out. Printed: images/s of every run, and the ratio of the two medians.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent

# Reads both the interface of this checkout and that of version 0.1.0, before the trainer had objectives.
RUN = """
import json, sys, tempfile
from dataclasses import replace
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
import farmer
assert Path(farmer.__file__).is_relative_to(sys.argv[1]), farmer.__file__
from farmer.data import load_dataset
from farmer.model import Farmer
from farmer.training import Trainer, read_log
try:
    from farmer.objectives import Likelihood
    from farmer.presets import PRESETS
except ImportError:
    from farmer.cli import PRESETS
    Likelihood = None
name, steps = sys.argv[2], int(sys.argv[3])
preset = PRESETS[name]
train, test = (load_dataset(preset.data, split) for split in ("train", "test"))
config = replace(preset.training, evaluate_every=10**9, save_every=10**9)
torch.manual_seed(0)
with tempfile.TemporaryDirectory() as folder:
    model = Farmer(preset.model)
    trainer = Trainer(Likelihood(model) if Likelihood else model, train, test, config, folder, device="cpu")
    (trainer.fit if Likelihood else trainer.train)(steps)
    print(json.dumps([record["images_per_second"] for record in read_log(folder)][1:]))
"""


def speed(checkout: Path, preset: str, steps: int) -> float:
    "Images a second of a fresh process, the first ten steps left out."
    done = subprocess.run([sys.executable, "-c", RUN, str(checkout), preset, str(steps)], cwd="/", capture_output=True, text=True, env=os.environ)
    if done.returncode:
        sys.exit(done.stderr)
    return statistics.median(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="folder of another checkout")
    parser.add_argument("--presets", nargs="+", default=["digits", "glyphs"])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--turns", type=int, default=3, help="runs of each checkout")
    parser.add_argument("--threads", default="2")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS=options.threads, OMP_WAIT_POLICY="PASSIVE")  # threads that wait sleep, when others use the cores
    for preset in options.presets:
        speeds = {"other": [], "this": []}
        for turn in range(options.turns):
            order = {"other": options.other.resolve(), "this": HERE}
            for name in order if turn % 2 == 0 else reversed(order):
                speeds[name].append(speed(order[name], preset, options.steps))
        other, this = (statistics.median(speeds[name]) for name in ("other", "this"))
        shown = {name: " ".join(f"{value:6.0f}" for value in values) for name, values in speeds.items()}
        print(f"{preset:8} images/s  other {shown['other']}  this {shown['this']}  ratio {this / other:.3f}", flush=True)


if __name__ == "__main__":
    main()
