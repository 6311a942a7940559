"""What a small FARMER reaches, beside its baselines: `python benchmarks/results.py digits` or `glyphs`.

Trains every variant with every seed for the same steps and prints, on held-out images, bits/dim given the label and
without it, the class accuracy of unguided samples, and what probes read from the informative and redundant channels.
Means over the seeds, with the standard deviation between them. The numbers also go to a JSON file beside this script.
"""
import argparse
import json
import platform
import statistics
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from farmer.cli import PRESETS, pixel_histogram_bits
from farmer.data import load_dataset, to_levels
from farmer.model import Farmer
from farmer.patches import dequantize
from farmer.training import Trainer, evaluate_bits_per_dim

VARIANTS = {
    "digits": {
        "FARMER": {},
        "TarFlow": dict(prior="standard-normal", flow_blocks=5, flow_width=72, prior_width=72, head_width=24),
    },
    "glyphs": {"FARMER": {}},
}


def everything(dataset, most=None):
    return dataset.batch(range(min(len(dataset), most or len(dataset))))


def probes(model, train, test) -> dict:
    "Accuracy of two probes fitted on up to 20,000 training images, read out on the test images."
    result = {}
    features = []
    for seed, dataset in enumerate((train, test)):  # equal noise in both would let z^R recognise images by it
        images, labels = everything(dataset)
        with torch.no_grad():
            latents = model.encode(dequantize(images, model.config.levels, torch.Generator().manual_seed(seed)))
        features.append({"informative": latents.informative, "redundant": latents.redundant, "pixels": images, "labels": labels})
    for source in ("informative", "redundant", "pixels"):
        inputs = [part[source].flatten(1).numpy() for part in features]
        if not inputs[0].shape[1]:
            continue
        for name, probe in (("5 nearest neighbours", KNeighborsClassifier(5)), ("linear probe", LogisticRegression(max_iter=1000))):
            fitted = make_pipeline(StandardScaler(), probe).fit(inputs[0], features[0]["labels"].numpy())
            result[f"{name}, {source}"] = fitted.score(inputs[1], features[1]["labels"].numpy())
    return result


def run(data, changes, seed, classifier, train, test) -> dict:
    preset = PRESETS[data]
    torch.manual_seed(seed)
    training = replace(preset.training, seed=seed, evaluate_every=preset.training.steps, save_every=preset.training.steps)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        trainer = Trainer(Farmer(replace(preset.model, **changes)), train, test, training, folder, "cpu")
        trainer.train()
        seconds = time.perf_counter() - started
    model, latest = trainer.average.module, trainer.model.eval()
    labels = torch.arange(model.config.num_classes).repeat(100)
    samples = to_levels(model.sample(labels, torch.Generator().manual_seed(seed)), train.levels)
    row = {
        "weights": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": seconds,
        "bits/dim": evaluate_bits_per_dim(model, test, draws=4).mean().item(),
        "bits/dim, latest weights": evaluate_bits_per_dim(latest, test, draws=4).mean().item(),
        "bits/dim, no label": evaluate_bits_per_dim(model, test, conditional=False, draws=4).mean().item(),
        "bits/dim, training images": evaluate_bits_per_dim(model, train, draws=4).mean().item(),
        "class accuracy of samples": (torch.from_numpy(classifier.predict(samples.flatten(1).numpy())) == labels).float().mean().item(),
    }
    return {**row, **(probes(model, train, test) if not changes else {})}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    train, test = (load_dataset(arguments.data, split) for split in ("train", "test"))
    (images, labels), (test_images, test_labels) = everything(train, 6000), everything(test)
    classifier = SVC(C=10).fit(to_levels(images, train.levels).flatten(1).numpy(), labels.numpy())
    real = classifier.score(to_levels(test_images, train.levels).flatten(1).numpy(), test_labels.numpy())
    histogram = pixel_histogram_bits(everything(train)[0], test_images, train.levels)
    preset = PRESETS[arguments.data]
    print(f"{arguments.data}: {len(train)} training, {len(test)} held-out images, {preset.training.steps} steps of {preset.training.batch_size},"
          f" seeds 0 to {arguments.seeds - 1}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"the classifier reads {real:.3f} of real held-out images; a histogram for each pixel needs {histogram:.3f} bits/dim")
    results = {}
    for name, changes in VARIANTS[arguments.data].items():
        rows = [run(arguments.data, changes, seed, classifier, train, test) for seed in range(arguments.seeds)]
        results[name] = rows
        print(f"\n{name}")
        for key in rows[0]:
            values = [row[key] for row in rows]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"  {key:36} {statistics.mean(values):12.3f} +- {spread:.3f}", flush=True)
    record = {"data": arguments.data, "torch": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads(),
              "model": asdict(preset.model), "training": asdict(preset.training), "classifier on real images": real,
              "pixel histogram bits/dim": histogram, "variants": results}
    Path(__file__).with_name(f"results_{arguments.data}.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
