"""How much memory `farmer sample`, `farmer evaluate` and the explorer take of a model with many classes and large images, on a CPU.

    python benchmarks/memory.py sample        10,000 images into an archive
    python benchmarks/memory.py kill          the same into a folder, until kill -9 half-way
    python benchmarks/memory.py resume        the same command again: are they the images of the archive in the end?
    python benchmarks/memory.py evaluate      2,000 samples, on one rank and on two: are they the same figures?
    python benchmarks/memory.py explore       each panel of the explorer once, of such a model of the ten classes of `photos`

The model is untrained, with the images and classes of FARMER-1.1B and two narrow blocks: an image takes as much memory, but less
time. The classifier of `evaluate` trains for 50 steps in place of 800, as each takes the same memory. Memory is the largest
resident one of a process, as Linux counts it. Each part goes on from what those before it left in --out, `evaluate --ranks 2` from
`evaluate --ranks 1`. All figures go into memory.json there.
"""
import argparse
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from large import random_images, write_album
from PIL import Image
from timing import where

from farmer.data import ArrayDataset
from farmer.explorer import PANELS
from farmer.model import Farmer
from farmer.presets import PRESETS, Preset
from farmer.shards import prepare_shards


PANEL = """import sys
from farmer.analysis import Subject
from farmer.explorer import PANELS
PANELS[sys.argv[2]](Subject.load(sys.argv[1], "photos")).render()"""
COMMAND = """import sys
from functools import partial
from farmer import cli, evaluation
evaluation.train_classifier = partial(evaluation.train_classifier, steps=50)
cli.main(sys.argv[1:])"""


def narrow_model(preset: Preset, out: Path) -> Path:
    "What an image takes of the memory is that of the large model, its time is not. Few components: as many images as ever are computed at once."
    size = {"flow_blocks": 2, "flow_layers": 1, "flow_width": 32, "prior_layers": 1, "prior_width": 32, "head_width": 32}
    torch.manual_seed(0)
    model = Farmer(replace(preset.model, **size, components=4, redundant_components=64))
    for block in model.flow.blocks:
        torch.nn.init.constant_(block.output.bias[model.config.token_channels :], 1.5)  # of log-scales: images of little contrast, quick to pack
    model.save_pretrained(out / "model")
    return out / "model"


def farmer(*arguments: object, program: str = COMMAND, ranks: int = 1, kill: Callable[[], bool] | None = None) -> dict[str, float]:
    "The command `farmer`, or another program, in so many processes: seconds, and the largest memory of one of them. kill -9 when that says so."
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    command, begun, ended = [sys.executable, "-c", program, *map(str, arguments)], time.perf_counter(), []
    each = [meeting | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)] if ranks > 1 else [{}]
    started = [subprocess.Popen(command, env=os.environ | environment) for environment in each]
    while kill is not None and not kill() and not os.waitid(os.P_PID, started[0].pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.2)
    for process in started:
        if kill is not None:
            process.kill()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.append(used.ru_maxrss / 1e6 * 1.024)  # of KiB, in GB
        if process.returncode and kill is None:
            sys.exit(f"{' '.join(command[3:])} ended with {process.returncode}")
    return {"seconds": round(time.perf_counter() - begun), "GB a process, at most": round(max(ended), 2)}


def note(out: Path, what: str, row: dict) -> None:
    file = out / "memory.json"
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {"where": where()}) | {what: row}, indent=1) + "\n")
    print(f"{what}: " + ", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def asked(preset: Preset, images: int, out: Path) -> list[object]:
    return ["sample", narrow_model(preset, out), "--device", "cpu", "--labels", "all", "--count", images // preset.model.num_classes, "--output"]


def sample(preset: Preset, images: int, out: Path) -> None:
    note(out, f"sample {images} into an archive", farmer(*asked(preset, images, out), out / "samples.npz"))


def kill(preset: Preset, images: int, out: Path) -> None:
    shutil.rmtree(folder := out / "samples", ignore_errors=True)
    there = lambda: len(list(folder.glob("*.png")))
    row = farmer(*asked(preset, images, out), folder, kill=lambda: there() >= images // 2)
    note(out, f"sample {images} into a folder, killed", row | {"images by then": there()})


def resume(preset: Preset, images: int, out: Path) -> None:
    "PNG files lose nothing, so that they can be compared with the archive."
    folder = out / "samples"
    row = farmer(*asked(preset, images, out), folder)
    with zipfile.ZipFile(out / "samples.npz") as archive, archive.open("arr_0.npy") as entry:
        np.lib.format.read_magic(entry)
        count, *shape = np.lib.format.read_array_header_1_0(entry)[0]
        same = [np.asarray(Image.open(path)).tobytes() == entry.read(math.prod(shape)) for path in sorted(folder.glob("*.png"))]
    note(out, f"sample {images} into the same folder", row | {"images": len(same), "those as in the archive": sum(same), "images of the archive": count})


def evaluate(preset: Preset, images: int, out: Path, counts: list[int]) -> None:
    "Of shards, as for a training: two images a class, and held out one of every fourth class."
    model, shards, classes = narrow_model(preset, out), out / "shards", preset.model.num_classes
    if not shards.exists():
        shown = random_images(preset, 3 * classes)
        for split, places in (("train", slice(0, 2 * classes)), ("test", slice(2 * classes, 3 * classes, max(1, classes // 250)))):
            write_album(ArrayDataset(shown.values[places], shown.labels[places], shown.levels, shown.class_names), out / "album" / split)
        prepare_shards(out / "album", shards, preset.model.image_shape[1], "ppm", workers=0)
    for ranks in counts:
        shutil.rmtree(folder := out / f"evaluation-{ranks}", ignore_errors=True)
        row = farmer("evaluate", model, "--device", "cpu", "--data", shards, "--samples", images, "--folder", folder, ranks=ranks)
        figures = {path.name.partition("-")[2]: (path / "evaluation.json").read_text() for path in out.glob("evaluation-*")}
        if others := sorted(figures.keys() - {str(ranks)}):
            row[f"the same figures as by {' and '.join(others)}"] = len(set(figures.values())) == 1
        note(out, f"evaluate {images} samples, ranks: {ranks}", row)


def explore(preset: Preset, out: Path) -> None:
    model = narrow_model(replace(preset, model=replace(preset.model, num_classes=10)), out / "ten-classes")
    for panel in PANELS:
        if panel != "Basis":  # which compares embedded models
            note(out, f"panel {panel}", farmer(model, panel, program=PANEL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sample", "kill", "resume", "evaluate", "explore"))
    parser.add_argument("--preset", default="imagenet256-1.1b-p16", choices=PRESETS)
    parser.add_argument("--images", type=int, help="10,000 by default, 2,000 for evaluate")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], help="for evaluate, one number after another")
    parser.add_argument("--out", type=Path, default=Path("runs/memory"), help="a folder for what is made")
    options = parser.parse_args()
    preset, images = PRESETS[options.preset], options.images or (2000 if options.what == "evaluate" else 10_000)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "evaluate":
        evaluate(preset, images, options.out, options.ranks)
    elif options.what == "explore":
        explore(preset, options.out)
    else:
        {"sample": sample, "kill": kill, "resume": resume}[options.what](preset, images, options.out)


if __name__ == "__main__":
    main()
