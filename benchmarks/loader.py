"""How fast images come off the disk: folders and shards beside torchvision's bare JPEG decoder, one process, one run.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [--images 400] [--repeats 7] [--out benchmarks/loader.json]

It renders a folder of JPEG files (256 pixels a side, quality 90), prepares shards of them as PNG and as PPM, and reads
all of them in a shuffled order. The bare decoder is `decode_image(read_file(path))`: no crop, no labels, no check. Every
row is images/s, and a ratio to the bare decoder read in the same way: one by one, in a DataLoader without workers or in
one with two. All contestants take turns within a repeat, so that other work on the machine slows them alike; a rate is
the best of the repeats, since other work can only add to a time, and a ratio is one of two bests. Batches have 32 images.

"levels" are whole numbers, 1 byte each, as the bare decoder yields them, read as the trainer reads them: batch by batch,
through `farmer.training.ReadableImages`. "floats" are the items of a data set, in [-1, 1]: four times the bytes.
Target: 0.9 for the folder's levels with two workers. On two idle cores, three runs in a row gave 1.00, 0.90 and 1.01;
loader.json is the first of them. With other work on both cores it was less, 0.74 to 0.88 in three shorter runs.

Three ways to the target were tried, and each has its row:
1. Pillow as the decoder, the project's first way ("Pillow, levels"): 0.6 to 0.8 of the bare decoder's speed in a
   loop, with equal pixels. So JPEG files go to torchvision, and Pillow crops only what does not have the size already.
2. Floats, converted faster (the "to_images" rows): one division and one subtraction in place, instead of a product, a division and
   a subtraction each into new memory; looking the 256 values up in a table is slower. What is left still costs a
   quarter of a decoding, and four times the bytes go through shared memory: "folder, floats" stays well below the target.
3. Levels up to where the batch is used, so that no worker converts anything ("folder, levels"). This is what reaches the
   target; a GPU converts a batch in no time, and a quarter of the bytes cross the bus.
"""
import argparse
import json
import os
import platform
import random
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image, read_file

from farmer import data
from farmer.data import FolderDataset, ShardDataset, prepare_shards, to_images
from farmer.training import ReadableImages, as_read

SIZE, CLASSES, BATCH, WORKERS, TARGET = 256, 4, 32, 2, 0.9


def picture(generator: np.random.Generator) -> Image.Image:
    "Clouds of colour at two scales, a dozen digits in many fonts, and grain."
    def clouds(cells: int) -> Image.Image:
        values = generator.integers(0, 256, (cells, cells, 3), np.uint8)
        return Image.fromarray(values).resize((SIZE, SIZE), Image.Resampling.BICUBIC)

    image = Image.blend(clouds(6), clouds(40), 0.3)
    for _ in range(12):
        stencil = data._stencils()[generator.integers(len(data.GLYPH_FONTS))][generator.integers(10)]
        place = tuple(generator.integers(-20, SIZE - 20, 2).tolist())
        image.paste(tuple(generator.integers(0, 256, 3).tolist()), place, stencil.resize((int(generator.integers(20, 120)),) * 2))
    grain = generator.normal(0, generator.uniform(2, 20), (SIZE, SIZE, 1)) + generator.normal(0, 2, (SIZE, SIZE, 3))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def render(folder: Path, count: int) -> list[str]:
    "Write the JPEG files; their paths, in the order of a `FolderDataset`."
    generator = np.random.default_rng(0)
    paths = [folder / str(i * CLASSES // count) / f"{i:05d}.jpg" for i in range(count)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(generator).save(path, quality=90)
    return [str(path) for path in paths]


class Bare(Dataset):
    "torchvision's decoder and nothing else."

    def __init__(self, paths: list[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return decode_image(read_file(self.paths[index]), ImageReadMode.RGB), 0


class Pillow(Bare):
    "The project's first decoder."

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1), 0


def conversions(repeats: int) -> dict[str, int]:
    "Microseconds, at best, of three ways from levels to floats for one image; their results are equal."
    levels = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)
    table = to_images(torch.arange(256), 256)
    ways = {
        "to_images": lambda: to_images(levels, 256),
        "to_images, as it was": lambda: levels.to(torch.float32).mul(2).div(255).sub(1),
        "to_images, by a table": lambda: table.index_select(0, levels.flatten().int()).view(levels.shape),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, convert in ways.items():
            start = time.perf_counter()
            for _ in range(100):
                result = convert()
            best[name] = min(best[name], (time.perf_counter() - start) / 100)
            assert torch.equal(result, to_images(levels, 256))
    return {name: round(1e6 * seconds) for name, seconds in best.items()}


def one_by_one(dataset: Dataset, order: list[int]) -> None:
    for index in order:
        dataset.load([index]) if isinstance(dataset, ReadableImages) else dataset[index]


def loaded(workers: int) -> Callable[[Dataset, list[int]], None]:
    loaders = {}  # with workers that stay: starting them is not what is timed

    def run(dataset: Dataset, order: list[int]) -> None:
        if dataset not in loaders:
            batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
            collate = as_read if isinstance(dataset, ReadableImages) else None
            loaders[dataset] = DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0)
        for _ in loaders[dataset]:
            pass

    return run


def measure(contestants: dict[str, Dataset], run: Callable[[Dataset, list[int]], None], order: list[int], repeats: int) -> dict[str, float]:
    "Images per second of each, the best of the repeats; the first, which warms up, does not count."
    best = dict.fromkeys(contestants, 0.0)
    for repeat in range(repeats + 1):
        for name in random.sample(list(contestants), len(contestants)):
            start = time.perf_counter()
            run(contestants[name], order)
            rate = len(order) / (time.perf_counter() - start)
            best[name] = max(best[name], rate) if repeat else 0.0
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    results = {"torch": torch.__version__, "torchvision": torchvision.__version__, "python": platform.python_version(), "processor": platform.machine(),
               "load of the machine before": round(os.getloadavg()[0], 1), "one conversion, microseconds": conversions(arguments.repeats)}
    with tempfile.TemporaryDirectory() as scratch:
        album = Path(scratch) / "album"
        paths = render(album / "train", arguments.images)
        folder, shards = FolderDataset(album, "train", SIZE), {}
        sizes = {"jpg": sum(Path(path).stat().st_size for path in paths) / len(paths)}
        for kind in ("png", "ppm"):
            start = time.perf_counter()
            report = prepare_shards(album, Path(scratch) / kind, SIZE, kind, workers=WORKERS)[0]
            results[f"prepared {kind}, images/s"] = round(arguments.images / (time.perf_counter() - start))
            sizes[kind], shards[kind] = report.size / report.images, ShardDataset(Path(scratch) / kind)
        results["KiB an image"] = {kind: round(size / 1024, 1) for kind, size in sizes.items()}
        differing = sum(not torch.equal(decode_image(read_file(path), ImageReadMode.RGB), folder.pixels(i)) for i, path in enumerate(paths))
        pillow = sum(not torch.equal(folder.pixels(i), Pillow(paths)[i][0]) for i in range(len(paths)))
        results["images that differ from the bare decoder's"], results["images that Pillow decodes otherwise"] = differing, pillow
        print(json.dumps(results, indent=1))
        contestants = {
            "bare torchvision decode": Bare(paths), "folder, levels": ReadableImages(folder), "folder, floats": folder, "Pillow, levels": Pillow(paths),
            "png shards, levels": ReadableImages(shards["png"]), "ppm shards, levels": ReadableImages(shards["ppm"]), "ppm shards, floats": shards["ppm"],
        }  # fmt: skip
        order = torch.randperm(arguments.images, generator=torch.Generator().manual_seed(0)).tolist()
        for way, run in (("one by one", one_by_one), ("DataLoader, 0 workers", loaded(0)), (f"DataLoader, {WORKERS} workers", loaded(WORKERS))):
            rates = measure(contestants, run, order, arguments.repeats)
            bare = rates["bare torchvision decode"]
            results[way] = {name: {"images/s": round(rate), "ratio": round(rate / bare, 3)} for name, rate in rates.items()}
            print(way)
            for name, rate in rates.items():
                print(f"  {name:25s} {rate:7.0f} images/s   {rate / bare:.2f}")
    ratio = results[f"DataLoader, {WORKERS} workers"]["folder, levels"]["ratio"]
    print(f"target {TARGET}: {'reached' if ratio >= TARGET else 'MISSED'} ({ratio:.2f})")
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
