"""What small FARMERs make of photographs; a quarter to three quarters of an hour a run for `photos`, an hour for CIFAR-10.

    python experiments/photographs.py results                    `photos`, a third of its steps and no dropout, and TarFlow with as many weights, three seeds each
    python experiments/photographs.py attempts                   other ways to train, the preset among them
    python experiments/photographs.py bases                      does the likelihood alone find the split? channel bases, depths, numbers of informative channels
    python experiments/photographs.py cifar10-bases [FOLDER]     the same on CIFAR-10, one seed
    python experiments/photographs.py cifar10 [FOLDER]           the preset `cifar10-small` and TarFlow with as many weights; a grid of samples
    python experiments/photographs.py blow-up [FOLDER]           where its samples run away, and what was tried against it

Figures of held-out images and, except for bases, of samples with and without guidance; `measuring.photograph_figures` says what those of photographs are.
With a FOLDER, of train/ and test/ with a sub-folder for each class, that is read in place of the original CIFAR-10, and the result says so.
"""
import argparse

import torch
from blow_up import blow_up
from conditions import Condition, conditions
from measuring import FOLDERS, RESULTS, draw, judge_of, measure, objective_of, real_figures, record, run, train
from PIL import Image

from farmer.guidance import ResamplingGuidance
from farmer.plots import save_images
from farmer.presets import PRESETS

GUIDED = {"resampling, w=1": ResamplingGuidance(1.0)}
# What is asked for: the preset, and how the names of its conditions begin.
PARTS = {
    **{part: ("photos", part) for part in ("results", "attempts", "bases")},
    "cifar10": ("cifar10-small", "results"),
    "cifar10-bases": ("cifar10-small", "bases"),
    "blow-up": ("cifar10-small", "blow-up"),
}


def how_measured(prefix: str, condition: Condition) -> dict:
    "Which figures. TarFlow's latents have no parts, and no class to guide by; of samples that run away less is asked, and of a channel basis how it splits images."
    if prefix.startswith("bases"):
        return {"figures": ("likelihood", "probes", "photographs"), "probe_images": 4000}
    if prefix.startswith("blow-up") or condition.model.get("prior") == "standard-normal":
        return {"figures": ("likelihood", "samples")}
    return {"figures": ("likelihood", "samples", "probes", "photographs"), "guided": GUIDED}


def figures_of(prefix: str) -> dict[str, list[dict]]:
    "Of all conditions that begin so, one row for each seed."
    return {name: [run(f"{prefix}{name}", seed, **how_measured(prefix, each)) for seed in each.seeds] for name, each in conditions(prefix).items()}


def before_training(prefix: str) -> dict[str, dict]:
    "What probes read in z^I and z^R when the flow changes nothing yet: in the bases alone."
    rows = {}
    for name, condition in conditions(prefix).items():
        if condition.model.keys() <= {"basis", "dropout"} and not condition.learned_rotation:  # which starts as the pixels
            objective = objective_of(f"{prefix}{name}", 0)
            objective.fit_basis(judge_of(condition.data).train)
            rows[name] = measure(objective.module, condition.data, 0, ("probes",), probe_images=4000)
    return rows


def save_grid(name: str) -> None:
    "Samples of a trained model, a row for each class: guided on the left, unguided on the right."
    model, halves = train(name, 0).ema, []
    for guidance in (GUIDED["resampling, w=1"], 0.0):
        images, _ = draw(model, 0, 60, guidance=guidance)  # classes take turns
        halves.append(images.unflatten(0, (6, 10)).transpose(0, 1))
    place = RESULTS / "cifar10_samples.png"
    save_images(torch.cat(halves, dim=1).flatten(0, 1), place, columns=12)
    with Image.open(place) as grid:
        grid.quantize(256, kmeans=4, dither=Image.Dither.NONE).save(place, optimize=True)  # it goes into a notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=PARTS)
    parser.add_argument("folder", nargs="?")
    asked = parser.parse_args()
    preset, beginning = PARTS[asked.what]
    if asked.folder is not None:
        FOLDERS["cifar10"] = asked.folder
    rows = figures_of(f"{beginning}, {preset}, ")
    steps = {name: condition.training.get("steps", PRESETS[preset].training.steps) for name, condition in conditions(f"{beginning}, {preset}, ").items()}
    result = {"steps": steps, "data": PRESETS[preset].data, "another copy of the data": asked.folder is not None, **real_figures(preset), "variants": rows}
    if beginning == "bases":
        result["before training"] = before_training(f"{beginning}, {preset}, ")
    elif preset == "cifar10-small":
        trained = f"results, {preset}, FARMER"
        save_grid(trained)
        result |= blow_up(train(trained, 0).ema, preset) if asked.what == "blow-up" else {}
    name = f"photos_{asked.what}" if preset == "photos" else f"cifar10_{beginning}".replace("-", "_")
    seeds = range(max(len(row) for row in rows.values()))
    record(name, result, seeds, f"{', '.join(rows)}: {preset} trained and measured")


if __name__ == "__main__":
    main()
