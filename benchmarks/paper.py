"""Train and measure the small twins of the paper's tables and figures: `python benchmarks/paper.py`, or `make paper`.

Every model trains with three seeds, Figure 6's and two conditions of Table 4 with one, for equal steps on the same data; models that are compared
have equal numbers of weights within 2% (with patches of 8: 4%), balanced by the number of mixture components, or by the width for TarFlow. The figures of a
run are kept beside it, so that the same command goes on where it was stopped. All of them go to `paper.json` beside this
script, which `nbs/12_paper` reads. `--jobs 2` keeps two cores busy; `--seeds 1` is a quick look.
"""
import argparse
import json
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch

from farmer.cli import PRESETS
from farmer.data import ArrayDataset, load_dataset, to_images, to_levels
from farmer.evaluation import Reference, extract, sample_figures, train_classifier
from farmer.guidance import PosteriorGuidance, RejectionGuidance, ResamplingGuidance
from farmer.inversion import DISTILLATION, Distiller
from farmer.model import Farmer
from farmer.training import Trainer, evaluate_bits_per_dim, read_log

STEPS, SAMPLES = 1200, 2000
NO_PARTITION = dict(informative_channels=None, components=35)
PLAIN = dict(condition_repeats=1, final_order_flip=False)

# data -> model -> what it changes in the data's preset
MODELS = {
    "glyphs": {
        "FARMER": {},
        "no partition": NO_PARTITION,
        "JetFormer's reduction": dict(redundant="standard-normal", components=56),
        "TarFlow": dict(prior="standard-normal", flow_blocks=5, flow_width=78, prior_width=78, head_width=26),
        "coupling flow": dict(flow="coupling"),
        "none": NO_PARTITION | PLAIN,
        "partition": PLAIN,
        "partition, condition": dict(final_order_flip=False),
        "partition, order flip": dict(condition_repeats=1),
    },
    "digits": {
        "FARMER": {},
        "no partition": dict(informative_channels=None, components=34),
        "JetFormer's reduction": dict(redundant="standard-normal", components=44),
        "TarFlow": dict(prior="standard-normal", flow_blocks=5, flow_width=72, prior_width=72, head_width=24),
        "coupling flow": dict(flow="coupling"),
    },
}
FIGURE_6 = {f"{name} {value}": {name: value} for name, values in
            (("components", (1, 64)), ("informative_channels", (2, 13))) for value in values}
# Table 4 asked again under other conditions: (data, condition) -> what it changes, and with how many seeds
CONDITIONS = {
    ("digits", "patch 4"): (dict(patch_size=4, informative_channels=10), 3),
    ("glyphs", "patch 8"): (dict(patch_size=8, informative_channels=40), 3),
    ("glyphs", "patch 2"): (dict(patch_size=2, informative_channels=3), 1),
    ("glyphs", "8 blocks"): (dict(flow_blocks=8), 1),
    ("glyphs", "64 components"): (dict(components=64), 3),
    ("interleaved glyphs", "patch 4"): ({}, 3),
}
FLOWS = ("autoregressive", "coupling")
GUIDANCE = {"naive (rejection)": RejectionGuidance, "resampling": ResamplingGuidance, "posterior": PosteriorGuidance}
GUIDED_SCALES = (1.0, 2.5)


def interleave(images: torch.Tensor) -> torch.Tensor:  # (..., 16, 16) -> (..., 16, 16); its own inverse
    "Row and column 4 i + j go to 4 j + i: a patch of 4 x 4 then holds pixels that were four apart, and neighbours are in other patches."
    order = torch.arange(16).view(4, 4).T.flatten()
    return images[..., order, :][..., order]


@cache
def judge(data: str) -> tuple:
    "Training and held-out images; the extractor, trained on the former, and what it sees in the latter."
    if data == "interleaved glyphs":
        *both, extractor, real = judge("glyphs")
        return *(ArrayDataset(interleave(part.values), part.labels, part.levels, part.class_names) for part in both), extractor, real
    train, test = (load_dataset(data, split) for split in ("train", "test"))
    extractor = train_classifier(train)
    return train, test, extractor, Reference.of(extract(extractor, test.batch(range(len(test)))[0]))


def quality(data: str, model: Farmer, seed: int, **how) -> dict:
    "Figures of images drawn from a model."
    _, test, extractor, real = judge(data)
    labels = torch.arange(SAMPLES) % max(model.config.num_classes, 1)
    parts, generator = [], torch.Generator().manual_seed(seed)
    for part in labels.split(500):
        parts.append(model.sample(part, generator, **how))
    images = to_images(to_levels(torch.cat(parts), test.levels), test.levels)
    images = interleave(images) if data == "interleaved glyphs" else images
    return sample_figures(extract(extractor, images), labels, real)


def run(data: str, name: str, changes: dict, seed: int, folder: Path) -> None:
    "Train and measure one model, unless its figures are there."
    place = folder / f"{data}, {name}, {seed}"
    if (place / "figures.json").is_file():
        return
    torch.set_num_threads(1)
    train, test = judge(data)[:2]
    preset = PRESETS["glyphs" if data == "interleaved glyphs" else data]
    training = replace(preset.training, steps=STEPS, seed=seed, evaluate_every=STEPS, save_every=300)
    torch.manual_seed(seed)
    trainer = Trainer(Farmer(replace(preset.model, **changes)), train, test, training, place, "cpu")
    started, first = time.perf_counter(), trainer.step
    trainer.train()
    seconds = (time.perf_counter() - started) * STEPS / max(1, STEPS - first)
    model = trainer.average.module.eval()
    row = {"weights": sum(parameter.numel() for parameter in model.parameters()), "seconds of training": seconds}
    for label, conditional in (("bits/dim", True), ("bits/dim without a label", False)):
        row[label] = evaluate_bits_per_dim(model, test, len(test), conditional, draws=4).mean().item()
    row |= quality(data, model, seed)
    if name == "FARMER":
        for kind, guidance in GUIDANCE.items():
            for scale in GUIDED_SCALES:
                row[f"{kind}, w={scale:g}"] = quality(data, model, seed, guidance=guidance(scale))
    model.save_pretrained(place / "model")
    (place / "figures.json").write_text(json.dumps(row, indent=1) + "\n")
    print(f"{data}, {name}, seed {seed}: {seconds:.0f} s, {row['bits/dim']:.3f} bits/dim, Frechet {row['Frechet distance']:.2f},"
          f" class accuracy {row['class accuracy']:.3f}", flush=True)


def distill(seed: int, folder: Path) -> None:
    "Train and measure the student of FARMER on glyphs, unless its figures are there."
    place = folder / f"glyphs, FARMER, {seed}"
    if (place / "student.json").is_file():
        return
    torch.set_num_threads(1)
    train, test = judge("glyphs")[:2]
    training = replace(DISTILLATION, steps=STEPS, seed=seed, evaluate_every=STEPS, save_every=300)
    distiller = Distiller(Farmer.from_pretrained(place / "model"), train, test, training, place / "student", "cpu")
    started, first = time.perf_counter(), distiller.step
    distiller.train()
    seconds = (time.perf_counter() - started) * STEPS / max(1, STEPS - first)
    model = distiller.finished()
    model.save_pretrained(place / "model")
    errors = [record for record in read_log(place / "student") if "held_out_average" in record][-1]
    row = {"seconds of training": seconds, "held-out error": errors["held_out_average"], **quality("glyphs", model, seed, solver="student")}
    (place / "student.json").write_text(json.dumps(row, indent=1) + "\n")
    print(f"student, seed {seed}: {seconds:.0f} s, error {row['held-out error']:.4f}, Frechet {row['Frechet distance']:.2f}", flush=True)


def median_seconds(functions: dict, repeats: int = 7) -> dict[str, float]:
    "Of each function, taking turns, after one call to warm up."
    times = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def measure_times(folder: Path, batch: int = 64) -> dict:
    "Seconds an image of every stage of sampling, for glyphs (tables 4 and 5), on one thread, in batches of `batch`."
    torch.set_num_threads(1)
    model, coupling = (Farmer.from_pretrained(folder / f"glyphs, {name}, 0" / "model") for name in ("FARMER", "coupling flow"))
    labels = torch.arange(batch) % 10
    latents = model.sample_latents(labels, torch.Generator().manual_seed(0))
    z = model.partition.join(latents.informative, latents.redundant)
    with torch.no_grad():
        seconds = median_seconds({
            "AR prior": lambda: model.sample_latents(labels, torch.Generator().manual_seed(0)),
            "AF forward": lambda: model.flow(z),
            "AF reverse": lambda: model.flow.inverse(z),
            "student reverse": lambda: model.student(z),
            "coupling forward": lambda: coupling.flow(z),
            "coupling reverse": lambda: coupling.flow.inverse(z),
        })  # fmt: skip
    return {"batch": batch, **{name: value / batch for name, value in seconds.items()}}


def collect(arguments: argparse.Namespace) -> dict:
    "All figures of the runs that are there."

    def rows(data: str, name: str, file: str = "figures.json") -> list[dict]:
        places = [arguments.folder / f"{data}, {name}, {seed}" / file for seed in range(arguments.seeds)]
        return [json.loads(place.read_text()) for place in places if place.is_file()]

    return {
        "steps": STEPS, "samples": SAMPLES, "torch": torch.__version__, "machine": platform.machine(), "jobs": arguments.jobs,
        "models": {data: {name: rows(data, name) for name in models} for data, models in MODELS.items()},
        "students": rows("glyphs", "FARMER", "student.json"),
        "figure 6": {name: rows("glyphs", name) for name in FIGURE_6},
        "flows": {f"{data}, {condition}": {flow: rows(data, f"{flow}, {condition}") for flow in FLOWS} for data, condition in CONDITIONS},
        "times": measure_times(arguments.folder),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    parser.add_argument("--folder", type=Path, default=Path("runs/paper"), help="where runs are kept")
    arguments = parser.parse_args()
    tasks = [(data, name, changes, seed, arguments.folder) for seed in range(arguments.seeds)
             for data, models in MODELS.items() for name, changes in models.items()]
    tasks += [("glyphs", name, changes, 0, arguments.folder) for name, changes in FIGURE_6.items()]
    tasks += [(data, f"{flow}, {condition}", changes | {"flow": flow}, seed, arguments.folder)
              for (data, condition), (changes, seeds) in CONDITIONS.items() for seed in range(min(seeds, arguments.seeds)) for flow in FLOWS]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        for future in [pool.submit(run, *task) for task in tasks]:
            future.result()
        for future in [pool.submit(distill, seed, arguments.folder) for seed in range(arguments.seeds)]:
            future.result()
    path = Path(__file__).with_name("paper.json")
    path.write_text(json.dumps(collect(arguments), indent=1) + "\n")
    print(f"all figures are in {path}")


if __name__ == "__main__":
    main()
