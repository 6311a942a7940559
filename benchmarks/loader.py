"""How fast images come off the disk: folders and shards beside torchvision's bare JPEG decoder, one process, one run.

    OMP_NUM_THREADS=1 python benchmarks/loader.py [--images 400] [--repeats 7]

It renders a folder of JPEG files (256 pixels a side, quality 90), prepares shards of them as PNG and as PPM, and reads
all of them in a shuffled order. The bare decoder is `decode_image(read_file(path))`: no crop, no labels, no check. Every
row is images/s, and a ratio to the bare decoder read in the same way: one by one, in a DataLoader without workers or in
one with two. Batches have 32 images.

"levels" are whole numbers, 1 byte each, as the bare decoder yields them, read as the trainer reads them: batch by batch,
through `farmer.batches.ReadableImages`. "floats" are the items of a data set, in [-1, 1]: four times the bytes. "Pillow"
decodes the same files with Pillow alone. Target: 0.9 for the folder's levels with two workers, on an idle machine.
"""
import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from timing import best, take_turns, where
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image, read_file

from farmer.batches import ReadableImages, as_read
from farmer.folders import FolderDataset
from farmer.shards import ShardDataset, prepare_shards

SIZE, CLASSES, BATCH, WORKERS, TARGET = 256, 4, 32, 2, 0.9


def picture(generator: np.random.Generator) -> Image.Image:
    "Clouds of colour at two scales, a dozen digits, and grain."

    def clouds(cells: int) -> Image.Image:
        return Image.fromarray(generator.integers(0, 256, (cells, cells, 3), np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)

    image = Image.blend(clouds(6), clouds(40), 0.3)
    for _ in range(12):
        font, colour = ImageFont.load_default(int(generator.integers(20, 120))), tuple(generator.integers(0, 256, 3).tolist())
        ImageDraw.Draw(image).text(tuple(generator.integers(-20, SIZE - 20, 2).tolist()), str(generator.integers(10)), colour, font)
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
    "The same by Pillow."

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1), 0


def read_one_by_one(dataset: Dataset, order: list[int]) -> None:
    for index in order:
        dataset.load([index]) if isinstance(dataset, ReadableImages) else dataset[index]


def loader_of(dataset: Dataset, order: list[int], workers: int) -> DataLoader:
    "With workers that stay: starting them is not what is timed."
    batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)]
    collate = as_read if isinstance(dataset, ReadableImages) else None
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers, persistent_workers=workers > 0)


def read_all(loader: DataLoader) -> None:
    for _ in loader:
        pass


def compare(way: str, calls: dict[str, Callable[[], None]], images: int, repeats: int) -> float:
    "Print a table of images/s; the ratio of the folder's levels."
    rates = {name: images / seconds for name, seconds in best(take_turns(calls, repeats)).items()}
    print(way)
    for name, rate in rates.items():
        print(f"  {name:25s} {rate:7.0f} images/s   {rate / rates['bare torchvision decode']:.2f}", flush=True)
    return rates["folder, levels"] / rates["bare torchvision decode"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(where())
    with tempfile.TemporaryDirectory() as scratch:
        album = Path(scratch) / "album"
        paths = render(album / "train", arguments.images)
        folder, shards = FolderDataset(album, "train", SIZE), {}
        print(f"jpg: {sum(Path(path).stat().st_size for path in paths) / len(paths) / 1024:.1f} KiB an image")
        for kind in ("png", "ppm"):
            start = time.perf_counter()
            report = prepare_shards(album, Path(scratch) / kind, SIZE, kind, workers=WORKERS)[0]
            shards[kind] = ShardDataset(Path(scratch) / kind)
            print(f"{kind}: {report.size / report.images / 1024:.1f} KiB an image, prepared {arguments.images / (time.perf_counter() - start):.0f} images/s")
        for name, other in (("the bare decoder's", Bare(paths)), ("Pillow's", Pillow(paths))):
            print(f"images of the folder that differ from {name}: {sum(not torch.equal(folder.pixels(i), other[i][0]) for i in range(len(paths)))}")
        contestants = {
            "bare torchvision decode": Bare(paths), "folder, levels": ReadableImages(folder), "folder, floats": folder, "Pillow, levels": Pillow(paths),
            "png shards, levels": ReadableImages(shards["png"]), "ppm shards, levels": ReadableImages(shards["ppm"]), "ppm shards, floats": shards["ppm"],
        }  # fmt: skip
        order = torch.randperm(arguments.images, generator=torch.Generator().manual_seed(0)).tolist()
        compare("one by one", {name: partial(read_one_by_one, dataset, order) for name, dataset in contestants.items()}, arguments.images, arguments.repeats)
        for workers in (0, WORKERS):
            calls = {name: partial(read_all, loader_of(dataset, order, workers)) for name, dataset in contestants.items()}
            ratio = compare(f"DataLoader, {workers} workers", calls, arguments.images, arguments.repeats)
    print(f"target {TARGET}: {'reached' if ratio >= TARGET else 'MISSED'} ({ratio:.2f})")


if __name__ == "__main__":
    main()
