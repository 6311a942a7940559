"""What the colour glyphs' latents know: `python benchmarks/colour.py glyphs-field` or `glyphs-palette`.

Trains the preset with three seeds, and with one seed on the two other channel bases, and the prototype of this project: a
quarter of the steps and the paper's unscaled first token. A finished run in the folder is measured again without training.
Measures on held-out images and on samples:

    class accuracy        of 1,000 samples, unguided, with guidance w = 1 (the default way, and the paper's), by a classifier
                          that reads luma
    class probe           what 5 nearest neighbours and a linear model read of the class from z^I and from z^R
    chroma R2             explained variance when the chroma of all 4 x 4 tiles is read linearly from z^I or from z^R
    swap                  z^I of one image with z^R of the next, another digit: digit still read as the first one's, and
                          correlation of the tiles' chroma with that of the donor of z^R
    variance              digit read correctly when z^R is drawn anew with the mixture's variance times 0, .5, 1, 2, 4
    speckle               root mean square, in samples, of the chroma that real tiles hardly hold (beyond the principal
                          components with 99% of their variance): in the corners whose tokens come first in some block of
                          the flow, elsewhere, and the ratio

Chroma is in units of the image's [0, 1]. Numbers go to a JSON file beside this script.
"""
import argparse
import json
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from farmer.cli import PRESETS
from farmer.data import load_dataset
from farmer.explorer import redraw_redundant, swap_redundant
from farmer.guidance import ResamplingGuidance
from farmer.model import Farmer
from farmer.patches import LUMA_CHROMA, dequantize, patchify, principal_components
from farmer.training import Trainer, evaluate_bits_per_dim

VARIANTS = {  # name: changes of the preset's model, of its training, seeds
    "luma-chroma": ({}, {}, (0, 1, 2)),
    "pca": (dict(basis="pca"), {}, (0,)),
    "pixels": (dict(basis="pixels"), {}, (0,)),
    "prototype": (dict(scale_first_token=False), dict(steps=1500), (0,)),
}
SCALES = (0, 0.5, 1, 2, 4)
CORNERS = torch.tensor([0, 15])  # the tokens that are first in some block


def luma(images: Tensor):
    return images.clamp(-1, 1).mean(1).flatten(1).numpy()


def tiles(images: Tensor) -> Tensor:  # (B, 3, 16, 16) -> (B, 16 tiles, 2 chroma axes, 16 pixels)
    planes = patchify(images.clamp(-1, 1), 4).unflatten(2, (3, 16)) / 2
    return torch.einsum("kc,bncp->bnkp", LUMA_CHROMA[1:].float(), planes)


def tile_colour(images: Tensor) -> Tensor:  # (B, 32)
    return tiles(images).mean(3).flatten(1)


def speckle(images: Tensor, directions: Tensor) -> dict:
    "`directions` (16, r): what real tiles hold."
    chroma = tiles(images)
    rest = (chroma - chroma @ directions @ directions.T).square().mean((0, 2, 3))
    inner = torch.ones(16, dtype=torch.bool)
    inner[CORNERS] = False
    corner, inner = rest[CORNERS].mean().sqrt().item(), rest[inner].mean().sqrt().item()
    return {"speckle, corner": corner, "speckle, elsewhere": inner, "speckle, ratio": corner / inner}


def usual_directions(images: Tensor) -> Tensor:  # (16, r)
    samples = tiles(images).flatten(0, 2)
    components = principal_components(samples).float().T
    variance = (samples @ components).square().mean(0)
    return components[:, : int((variance.cumsum(0) < 0.99 * variance.sum()).sum()) + 1]


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()


@torch.no_grad()
def measure(model: Farmer, train, test, classifier, directions: Tensor, seed: int) -> dict:
    row = {"bits/dim": evaluate_bits_per_dim(model, test, draws=4).mean().item()}
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(10).repeat(100)
    ways = {"": 0.0, ", w=1": 1.0, ", w=1 by the paper's resampling": ResamplingGuidance(1.0)}
    drawn = {way: model.sample(labels, generator, guidance=guidance) for way, guidance in ways.items()}
    read = lambda images, truth: float((classifier.predict(luma(images)) == truth.numpy()).mean())
    row |= {f"accuracy of samples{way}": read(images, labels) for way, images in drawn.items()}
    parts = []
    for offset, (dataset, count) in enumerate(((train, 20_000), (test, 2_000))):
        images, classes = dataset.batch(range(count))
        latents = model.encode(dequantize(images, dataset.levels, torch.Generator().manual_seed(offset)))
        parts.append((images, classes, latents))
    (images, classes, latents), (test_images, test_classes, test_latents) = parts
    for name in ("informative", "redundant"):
        inputs, test_inputs = (getattr(part, name).flatten(1).numpy() for part in (latents, test_latents))
        for probe_name, probe in (("5 nearest neighbours", KNeighborsClassifier(5)), ("linear", LogisticRegression(max_iter=300))):
            fitted = make_pipeline(StandardScaler(), probe).fit(inputs[:10_000], classes[:10_000].numpy())
            row[f"class probe, {probe_name}, {name}"] = float(fitted.score(test_inputs, test_classes.numpy()))
        row[f"chroma R2, {name}"] = float(Ridge().fit(inputs, tile_colour(images)).score(test_inputs, tile_colour(test_images)))
    donor = torch.arange(len(test_images)).roll(-1)  # the next image, which shows the next digit
    other = type(test_latents)(test_latents.informative[donor], test_latents.redundant[donor])
    swapped = model.decode(swap_redundant(test_latents, other))
    row["swap, digit kept"] = read(swapped, test_classes)
    row["swap, chroma of donor"] = correlation(tile_colour(swapped), tile_colour(test_images[donor]))
    for scale in SCALES:
        redrawn = model.decode(redraw_redundant(model, test_latents, test_classes, scale, torch.Generator().manual_seed(seed)))
        row[f"variance x {scale:g}, digit read"] = read(redrawn, test_classes)
    return row | speckle(drawn[""], directions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=("glyphs-field", "glyphs-palette"))
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--folder", type=Path, default=Path("runs/colour"), help="where runs are kept")
    arguments = parser.parse_args()
    preset = PRESETS[arguments.data]
    train, test = (load_dataset(arguments.data, split) for split in ("train", "test"))
    (images, labels), (test_images, test_labels) = train.batch(range(6000)), test.batch(range(len(test)))
    classifier = SVC(C=10).fit(luma(images), labels.numpy())
    directions = usual_directions(images)
    real = {"classifier on real images": float(classifier.score(luma(test_images), test_labels.numpy())), **speckle(test_images, directions)}
    print(f"{arguments.data}: {preset.training.steps} steps of {preset.training.batch_size}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("real images: " + ", ".join(f"{name} {value:.3f}" for name, value in real.items()), flush=True)
    results = {}
    for name in arguments.variants:
        changes, training_changes, seeds = VARIANTS[name]
        results[name] = []
        for seed in seeds:
            torch.manual_seed(seed)
            training = replace(preset.training, seed=seed, **training_changes)
            folder = arguments.folder / f"{arguments.data}, {name}, {seed}"
            trainer = Trainer(Farmer(replace(preset.model, **changes)), train, test, training, folder, "cpu")
            trainer.train()
            results[name].append(measure(trainer.average.module.eval(), train, test, classifier, directions, seed))
        print(f"\n{name}, {len(seeds)} seed{'s' * (len(seeds) > 1)}")
        for key in results[name][0]:
            values = [row[key] for row in results[name]]
            print(f"  {key:48} {statistics.mean(values):8.3f} +- {statistics.stdev(values) if len(values) > 1 else 0:.3f}", flush=True)
    record = {"data": arguments.data, "torch": torch.__version__, "threads": torch.get_num_threads(),
              "model": asdict(preset.model), "training": asdict(preset.training), "real images": real, "variants": results}
    path = Path(__file__).with_name(f"colour_{arguments.data.removeprefix('glyphs-')}.json")
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
