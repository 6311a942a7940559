"""How fast a large FARMER trains on one GPU: `python benchmarks/large.py speed`, by default FARMER-1.1B with 16-pixel patches.

    python benchmarks/large.py speed         images/s, utilisation, memory: batch sizes up to the largest that fits, compiled or not
    python benchmarks/large.py precision     bits/dim in bfloat16 against float32, the same weights and images
    python benchmarks/large.py recipe        200 steps of the preset's own recipe on 256-pixel renderings of glyphs
    python benchmarks/large.py feed          images/s from JPEG files in shards, read by workers, over those from memory
    python benchmarks/large.py train         a model of the preset as far as --minutes go, on --data if its own are not at hand

Steps are those of `farmer train`: reading, noise, gradients, optimiser, average. Images are random for `speed`. Model FLOPs
utilisation: operations of the products and the attention, three times those of the forward pass, over what the GPU's maker
states for dense bfloat16. On a CPU name a small preset: `--preset digits --batches 16 64`.
"""
import argparse
import gc
import math
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from timing import seconds_of, where
from torchvision.transforms.functional import to_pil_image

from farmer.data import ArrayDataset, load_dataset, to_levels
from farmer.distributed import best_device, peak_flops
from farmer.model import Farmer
from farmer.objectives import Likelihood
from farmer.presets import PRESETS, Preset
from farmer.shards import ShardDataset, prepare_shards
from farmer.training import Trainer


def random_images(preset: Preset, count: int) -> ArrayDataset:
    model, generator = preset.model, torch.Generator().manual_seed(0)
    values = torch.randint(model.levels, (count, *model.image_shape), dtype=torch.uint8, generator=generator)
    return ArrayDataset(values, torch.arange(count) % model.num_classes, model.levels, [str(label) for label in range(model.num_classes)])


def rendered_glyphs(preset: Preset, count: int) -> ArrayDataset:
    "Colour glyphs, enlarged: no photographs, but with edges, flat areas and colour."
    glyphs, model = load_dataset("glyphs-field"), preset.model
    images = torch.nn.functional.interpolate(glyphs.batch(range(count))[0], size=model.image_shape[1:], mode="bicubic")
    values = to_levels(images, model.levels)[:, : model.image_shape[0]]
    return ArrayDataset(values, glyphs.labels[:count], model.levels, [str(label) for label in range(model.num_classes)])


def write_album(images: ArrayDataset, folder: Path) -> None:
    "JPEG files, a folder for each class."
    for index, (values, label) in enumerate(zip(images.values, images.labels.tolist())):
        path = folder / images.class_names[label] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(values).save(path, quality=90)


@contextmanager
def trainer_of(preset: Preset, data: ArrayDataset, device: torch.device) -> Iterator[Trainer]:
    "In a folder that goes away with it."
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        yield Trainer(Likelihood(Farmer(preset.model)), data, data, preset.training, folder, device=device, execution=preset.execution)


def time_steps(preset: Preset, data: ArrayDataset, device: torch.device, steps: int) -> dict[str, float]:
    "Median seconds of a step, leaving out the first ones."
    with trainer_of(preset, data, device) as trainer:
        batches = trainer.batches(steps)
        seconds = [seconds_of(lambda: trainer.train_step(next(batches)), device) for _ in range(steps)]
        flops = trainer.objective.flops()
    speed = preset.training.batch_size / statistics.median(seconds[5:])
    row = {"images/s": speed, "TFLOPs an image": flops / 1e12}
    row |= {"peak memory, GiB": torch.cuda.max_memory_allocated() / 2**30} if device.type == "cuda" else {}
    return row | ({"utilisation": speed * flops / peak} if (peak := peak_flops(device)) else {})


def speed(preset: Preset, device: torch.device, batches: list[int], steps: int) -> None:
    data = random_images(preset, max(256, *batches))
    for compiled in (False, True):
        for batch in batches:
            gc.collect()  # whatever is part of a cycle keeps its memory until it is collected
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            execution = replace(preset.execution, compile=compiled, workers=0, shard=1, accumulation=1)
            this = replace(preset, training=replace(preset.training, batch_size=batch), execution=execution)
            try:
                row = time_steps(this, data, device, steps)
            except torch.cuda.OutOfMemoryError:
                print(f"batch {batch}, compiled {compiled}: does not fit", flush=True)
                break
            print(f"batch {batch}, compiled {compiled}: " + ", ".join(f"{name} {value:.3g}" for name, value in row.items()), flush=True)


def precision(preset: Preset, device: torch.device, batches: list[int], steps: int) -> None:
    "After a few steps, so that no layer is at its start."
    data, bits = rendered_glyphs(preset, 256), {}
    training = replace(preset.training, batch_size=min(batches), learning_rate=1e-3, warmup_steps=10)
    with trainer_of(replace(preset, training=training, execution=replace(preset.execution, compile=False, workers=0)), data, device) as trainer:
        for batch in trainer.batches(steps):
            trainer.train_step(batch)
    images, labels = (tensor.to(device) for tensor in data.batch(range(32)))
    for name, enabled in (("float32", False), ("bfloat16", True)):
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            bits[name] = trainer.model.bits_per_dim(images, labels, generator=torch.Generator(device).manual_seed(0))
    difference = bits["bfloat16"] - bits["float32"]
    print(f"float32 {bits['float32'].mean():.4f} bits/dim, bfloat16 off by {difference.mean():+.5f} in the mean, {difference.abs().max():.5f} at most")


def recipe(preset: Preset, device: torch.device, batches: list[int], steps: int) -> None:
    training = replace(preset.training, batch_size=max(batches))
    execution = replace(preset.execution, workers=0, accumulation=math.ceil(max(batches) / 32))  # 80 GB hold some fifty images
    with trainer_of(replace(preset, training=training, execution=execution), rendered_glyphs(preset, 2000), device) as trainer:
        for step, batch in enumerate(trainer.batches(steps)):
            record = trainer.train_step(batch)
            if step % 20 == 0 or step + 1 == steps:
                print(f"step {step + 1}: {record['loss']:.4f} nats/dim of the noised density, learning rate {training.rate(step):.1e}", flush=True)


def feed(preset: Preset, device: torch.device, batches: list[int], steps: int) -> None:
    "Of training steps; shards hold PPM files, which cost nothing to decode, and are read back by the workers of the preset."
    this = replace(preset, training=replace(preset.training, batch_size=max(batches)), execution=replace(preset.execution, shard=1, accumulation=1, compile=False))
    size, count = preset.model.image_shape[1], max(256, *batches)
    with tempfile.TemporaryDirectory() as folder:
        images = rendered_glyphs(preset, count)
        write_album(images, Path(folder, "album", "train"))
        prepare_shards(Path(folder, "album"), Path(folder, "shards"), size, "ppm", workers=2)
        shards, speeds = ShardDataset(Path(folder, "shards")), {}
        for name, data, workers in (("memory", images, 0), ("shards", shards, preset.execution.workers), ("memory, again", images, 0)):
            row = time_steps(replace(this, execution=replace(this.execution, workers=workers)), data, device, steps)
            speeds[name] = row["images/s"]
            print(f"{name}, {workers} workers: {speeds[name]:.1f} images/s", flush=True)
    print(f"shards over memory: {speeds['shards'] / max(speeds['memory'], speeds['memory, again']):.2f}")


def train(preset: Preset, device: torch.device, batches: list[int], steps: int, minutes: float, data: str | None, out: Path) -> None:
    "With as many steps as fit, by the time of the first ones; the learning rate and the noise fall over just these."
    parts = [load_dataset(data or preset.data, split, **({"image_size": preset.model.image_shape[1]} if data else {})) for split in ("train", "test")]
    execution = replace(preset.execution, workers=0, accumulation=1, shard=1)
    preset = replace(preset, training=replace(preset.training, batch_size=max(batches)), execution=execution)
    speed = time_steps(preset, parts[0], device, steps)["images/s"]
    planned = min(preset.training.steps, int(60 * minutes * speed / preset.training.batch_size))
    training = replace(preset.training, steps=planned, warmup_steps=min(preset.training.warmup_steps, planned // 10), evaluate_every=planned, save_every=planned)
    print(f"{speed:.0f} images/s: {planned} steps of {training.batch_size} images", flush=True)
    torch.manual_seed(0)
    trainer = Trainer(Likelihood(Farmer(preset.model)), *parts, training, out, device=device, execution=execution)
    trainer.fit()
    print(f"held-out bits/dim, averaged weights {trainer.evaluate()['held_out_average']:.3f}; weights and samples are in {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "precision", "recipe", "feed", "train"))
    parser.add_argument("--preset", default="imagenet256-1.1b-p16", choices=PRESETS)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 48, 64, 96])
    parser.add_argument("--steps", type=int, help="30 by default, 200 for the recipe")
    parser.add_argument("--minutes", type=float, default=7.0, help="of training, for train")
    parser.add_argument("--data", help="a folder of images in place of the preset's, for train")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu/model"), help="a folder for what train makes")
    asked = parser.parse_args()
    device, steps = best_device(), asked.steps or (200 if asked.what == "recipe" else 30)
    preset, measure = PRESETS[asked.preset], {"speed": speed, "precision": precision, "recipe": recipe, "feed": feed}
    print(f"{asked.preset} on {where(device)}, {steps} steps")
    if asked.what == "train":
        train(preset, device, asked.batches, steps, asked.minutes, asked.data, asked.out)
    else:
        measure[asked.what](preset, device, asked.batches, steps)


if __name__ == "__main__":
    main()
