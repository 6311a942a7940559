"""How fast a large FARMER trains on one GPU: `python benchmarks/large.py speed`, by default FARMER-1.1B with 16-pixel patches.

    python benchmarks/large.py speed         images/s, utilisation, memory: batch sizes up to the largest that fits, compiled or not
    python benchmarks/large.py precision     bits/dim in bfloat16 against float32, the same weights and images
    python benchmarks/large.py recipe        200 steps of the preset's own recipe on 256-pixel renderings of glyphs

Steps are those of `farmer train`: reading, noise, gradients, optimiser, average. Images are random for `speed`. Model FLOPs
utilisation: operations of the products and the attention, three times those of the forward pass, over what the GPU's maker
states for dense bfloat16. On a CPU name a small preset: `--preset digits --batches 16 64`. Numbers go to `large.json` beside this script.
"""
import argparse
import gc
import json
import math
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from farmer.cli import PRESETS, Train
from farmer.data import ArrayDataset, load_dataset
from farmer.model import Farmer
from farmer.training import BatchStream, ExecutionConfig, Trainer, best_device, peak_flops, read_batches, train_step


def random_images(run: Train, count: int) -> ArrayDataset:
    model, generator = run.model, torch.Generator().manual_seed(0)
    values = torch.randint(model.levels, (count, *model.image_shape), dtype=torch.uint8, generator=generator)
    return ArrayDataset(values, torch.arange(count) % model.num_classes, model.levels, [str(label) for label in range(model.num_classes)])


def rendered_glyphs(run: Train, count: int) -> ArrayDataset:
    "Colour glyphs, enlarged: no photographs, but with edges, flat areas and colour."
    glyphs, model = load_dataset("glyphs-field"), run.model
    images = torch.nn.functional.interpolate(glyphs.batch(range(count))[0], size=model.image_shape[1:], mode="bicubic")
    values = ((images.clamp(-1, 1) + 1) / 2 * (model.levels - 1)).round().to(torch.uint8)[:, : model.image_shape[0]]
    return ArrayDataset(values, glyphs.labels[:count], model.levels, [str(label) for label in range(model.num_classes)])


def time_steps(run: Train, data: ArrayDataset, batch: int, execution: ExecutionConfig, device: torch.device, steps: int) -> dict:
    "Median seconds of a step, leaving out the first ones."
    config = replace(run.training, batch_size=batch)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        flops = Trainer.flops(None, Farmer(run.model))
        trainer = Trainer(Farmer(run.model), data, data, config, folder, device, execution)
        batches = read_batches(data, BatchStream(len(data), batch, 0, 0, steps), trainer.slices, 0, device)
        times = []
        for _ in range(steps):
            started = time.perf_counter()
            train_step(trainer, batches)  # which waits for the loss
            times.append(time.perf_counter() - started)
    speed = batch / statistics.median(times[5:])
    row = {"batch": batch, "images/s": speed, "TFLOPs an image": flops / 1e12}
    if device.type == "cuda":
        row["peak memory, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    if peak := peak_flops(device):
        row["utilisation"] = speed * flops / peak
    return row


def speed(run: Train, device: torch.device, arguments: argparse.Namespace) -> list[dict]:
    rows, data = [], random_images(run, max(256, *arguments.batches))
    for compiled in (False, True):
        for batch in arguments.batches:
            execution = replace(run.execution, compile=compiled, workers=0, shard=1, accumulation=1)
            gc.collect()  # the trainer before is part of a cycle: until it is collected, its weights take memory
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            try:
                row = {"compiled": compiled, **time_steps(run, data, batch, execution, device, arguments.steps)}
            except torch.cuda.OutOfMemoryError:
                print(f"batch {batch}, compiled {compiled}: does not fit", flush=True)
                break
            rows.append(row)
            print(", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()), flush=True)
    return rows


def precision(run: Train, device: torch.device, arguments: argparse.Namespace) -> dict:
    "After a few steps, so that no layer is at its start."
    data = rendered_glyphs(run, 256)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = replace(run.training, batch_size=min(arguments.batches), learning_rate=1e-3, warmup_steps=10)
        trainer = Trainer(Farmer(run.model), data, data, config, folder, device, replace(run.execution, compile=False, workers=0))
        batches = read_batches(data, BatchStream(len(data), config.batch_size, 0, 0, arguments.steps), trainer.slices, 0, device)
        for _ in range(arguments.steps):
            train_step(trainer, batches)
    model, bits = trainer.model.eval(), {}
    images, labels = (tensor.to(device) for tensor in data.batch(range(32)))
    for name, enabled in (("float32", False), ("bfloat16", True)):
        with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
            bits[name] = model.bits_per_dim(images, labels, generator=torch.Generator(device).manual_seed(0))
    difference = (bits["bfloat16"] - bits["float32"]).mean().item()
    print(f"float32 {bits['float32'].mean():.4f} bits/dim, bfloat16 off by {difference:+.5f} in the mean, {(bits['bfloat16'] - bits['float32']).abs().max():.5f} at most")
    return {"float32": bits["float32"].mean().item(), "bfloat16, difference": difference}


def recipe(run: Train, device: torch.device, arguments: argparse.Namespace) -> list[float]:
    data, losses = rendered_glyphs(run, 2000), []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = replace(run.training, batch_size=max(arguments.batches))
        execution = replace(run.execution, workers=0, accumulation=math.ceil(config.batch_size / 32))  # 80 GB hold some fifty images
        trainer = Trainer(Farmer(run.model), data, data, config, folder, device, execution)
        batches = read_batches(data, BatchStream(len(data), config.batch_size, 0, 0, arguments.steps), trainer.slices, 0, device)
        for step in range(arguments.steps):
            losses.append(train_step(trainer, batches)["loss"])
            if step % 20 == 0 or step + 1 == arguments.steps:
                print(f"step {step + 1}: {losses[-1]:.4f} bits/dim, learning rate {config.rate(step):.1e}", flush=True)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "precision", "recipe"))
    parser.add_argument("--preset", default="imagenet256-1.1b-p16", choices=PRESETS)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 16, 32, 48, 64, 96])
    parser.add_argument("--steps", type=int, help="30 by default, 200 for the recipe")
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or (200 if arguments.what == "recipe" else 30)
    run, device = PRESETS[arguments.preset], best_device()
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"{arguments.preset} on {where}, torch {torch.__version__}, {arguments.steps} steps")
    found = {"speed": speed, "precision": precision, "recipe": recipe}[arguments.what](run, device, arguments)
    path = Path(__file__).with_name("large.json")
    record = json.loads(path.read_text()) if path.is_file() else {}
    record[f"{arguments.what}, {arguments.preset}, {where}"] = {"torch": torch.__version__, "steps": arguments.steps, "figures": found}
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
