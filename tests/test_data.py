"Pixels and levels, digits and photographs: the promises a lesson cannot check, such as other processes and missing files."
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_reads_alike, complaint

from farmer import data
from farmer.data import ArrayDataset, PhotoDataset, load_dataset, to_images, to_levels


# --- What all have in common


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits(split):
    digits = load_dataset("digits", split)
    assert len(digits) == {"train": 1437, "test": 360}[split]
    assert digits.image_shape == (1, 8, 8) and digits.levels == 17 and digits.class_names == list("0123456789")
    assert set(digits.labels.tolist()) == set(range(10))
    assert_reads_alike(digits)


@pytest.mark.parametrize("name", ["digits", "photos"])
def test_reading_does_not_alter_the_data_set(name):
    dataset = load_dataset(name)
    before = dataset.batch(range(20))[0]
    for index in range(20):  # some of the photographs' crops are mirrored, some are not
        dataset[index][0].fill_(7)
        dataset.pixel_batch([index]).fill_(7)
        dataset.batch([index])[0].fill_(7)
    if name == "photos":
        for index in range(20):
            dataset.pixels(index).fill_(7)
    assert torch.equal(dataset.batch(range(20))[0], before)


@pytest.mark.parametrize("levels", [2, 16, 17, 32, 256])
def test_levels_and_images_are_inverse(levels):
    k = torch.arange(levels, dtype=torch.uint8)
    x = to_images(k, levels)
    assert x.dtype == torch.float32 and x[0] == -1 and x[-1] == 1
    torch.testing.assert_close(x.double(), 2 * k.double() / (levels - 1) - 1, rtol=0, atol=1e-7)
    assert torch.equal(to_levels(x, levels), k)
    assert to_levels(torch.tensor([-3.0, 3.0]), levels).tolist() == [0, levels - 1]


@pytest.mark.parametrize("change, words", [
    ({"values": torch.zeros(2, 1, 4, 4)}, "uint8"),
    ({"values": torch.zeros(2, 4, 4, dtype=torch.uint8)}, "(2, 4, 4)"),
    ({"labels": torch.tensor([0])}, "1 labels for 2 images"),
    ({"labels": torch.tensor([0, 2])}, "labels 0 to 2"),
    ({"labels": torch.tensor([-1, 0])}, "labels -1 to 0"),
    ({"levels": 5}, "levels=5"),
])  # fmt: skip
def test_array_dataset_rejects(change, words):
    good = dict(values=torch.full((2, 1, 4, 4), 5, dtype=torch.uint8), labels=torch.tensor([0, 1]), levels=6, class_names=["a", "b"])
    assert len(ArrayDataset(**good)) == 2
    complaint(ValueError, lambda: ArrayDataset(**good | change), words)


# --- Digits


def test_digit_split_is_fixed():
    "Shipped checkpoints were trained on this split: were it to change, their test images would be training images."
    test = load_dataset("digits", "test")
    content = test.values.numpy().tobytes() + test.labels.numpy().tobytes()
    assert hashlib.sha256(content).hexdigest() == "0bef24db807d8bb41bc488c017ee0c7162797e6665d0d4efb5bf8f48e8157247"
    images = {v.numpy().tobytes() for v in load_dataset("digits").values}
    assert len(images) == 1437 and not images & {v.numpy().tobytes() for v in test.values}


def test_digits_without_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    complaint(ImportError, lambda: load_dataset("digits"), "pip install scikit-learn", "notebooks")


# --- Photographs


@pytest.mark.parametrize("split, size", [("train", 32), ("test", 32), ("train", 64), ("test", 8)])
def test_photos(split, size):
    photos = load_dataset("photos", split, image_size=size)
    assert isinstance(photos, PhotoDataset) and len(photos) == {"train": 20_000, "test": 2_000}[split]
    assert photos.image_shape == (3, size, size) and photos.levels == 256 and photos.num_classes == 10
    assert photos.class_names == sorted(photos.class_names) and torch.equal(photos.labels, torch.arange(len(photos)) % 10)
    assert all(photos.photograph(label).shape[1] == 5 * size for label in range(10))
    assert torch.equal(photos.pixels(-1), photos.pixels(len(photos) - 1))
    photos.labels = photos.labels[:100]  # the length follows
    assert_reads_alike(photos)


def test_photos_are_of_the_size_asked_for():
    assert load_dataset("photos").image_shape == load_dataset("photos", image_size=32).image_shape == (3, 32, 32)
    assert load_dataset("photos", "test", image_size=512).pixels(8).shape == (3, 512, 512)  # more than the file has


PNG_PHOTOS = {0: "astronaut", 1: "cat", 2: "coffee", 5: "motorcycle", 9: "tissue"}  # lossless, so that every machine decodes them alike
PHOTO_DIGESTS = {
    ("train", 32): "b321c87e71f0790e0af88925ad3b2df463e27c3c4caafd4759a5aeb2244033f7",
    ("test", 32): "effbb69a647945c8ffe1ac9fe47d9eb1509717f42cd0105e4b127bfc3aecf330",
    ("train", 64): "4c64de00918ba6b0faac364dad3c99df90c07b7399cb04f5d2f1f932d6fb8c28",
    ("test", 64): "06b66d8091e8aeb98430b6e08c1165a331ac7b4e486806967efba4105b4bbae6",
}


@pytest.mark.parametrize("split, size", PHOTO_DIGESTS)
def test_photos_are_fixed(split, size):
    "Shipped checkpoints were trained on these crops. Only those of PNG files: decoders of JPEG may round differently."
    photos = load_dataset("photos", split, image_size=size)
    assert {label: photos.class_names[label] for label in PNG_PHOTOS} == PNG_PHOTOS
    crops = photos.pixel_batch([10 * turn + label for turn in range(20) for label in PNG_PHOTOS])
    assert hashlib.sha256(crops.numpy().tobytes()).hexdigest() == PHOTO_DIGESTS[split, size]


def test_photos_are_the_same_in_another_process():
    program = (
        "import hashlib; from farmer.data import load_dataset\n"
        "print(*(hashlib.sha256(load_dataset('photos', s).pixels(i).numpy().tobytes()).hexdigest() for s in ('test', 'train') for i in (1999, 0, 7)))"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    items = {(s, i): load_dataset("photos", s).pixels(i) for i in (0, 7, 1999) for s in ("train", "test")}
    here = [hashlib.sha256(items[s, i].numpy().tobytes()).hexdigest() for s in ("test", "train") for i in (1999, 0, 7)]
    assert here == there and len(set(here)) == 6


@pytest.mark.parametrize("size", [8, 18, 32])
def test_no_pixel_of_a_photograph_is_in_both_splits(size):
    "Pixels of the scaled photograph: crops hold exactly those that `place` says, and those are marked."
    seen = {}
    for split in ("train", "test"):
        photos = PhotoDataset(split, size)
        marks = [np.zeros(photos.photograph(label).shape[1:], bool) for label in range(10)]
        for index in range(2000):
            row, column, mirrored = photos.place(index)
            crop = photos.photograph(index % 10)[:, row : row + size, column : column + size]
            assert torch.equal(photos.pixels(index), crop.flip(2) if mirrored else crop) and crop.shape == photos.image_shape
            marks[index % 10][row : row + size, column : column + size] = True
        seen[split] = marks
    for label, (train, test) in enumerate(zip(seen["train"], seen["test"])):
        first, behind = photos.band(label)
        assert behind - first == 3 * size // 2 and abs(first - (train.shape[1] - behind)) <= 1
        assert not train[:, first:behind].any() and not test[:, :first].any() and not test[:, behind:].any()
        assert train[:, :first].any() and train[:, behind:].any() and test[:, [first, behind - 1]].any()


def test_half_the_photographs_crops_are_mirrored_and_all_places_are_used():
    photos = PhotoDataset("test")
    rows, columns, mirrored = zip(*map(photos.place, range(len(photos))))
    assert 0.46 < np.mean(mirrored) < 0.54  # five deviations of 2,000 tosses would be 0.056
    assert set(rows) == set(range(129))
    offsets = {column - photos.band(index % 10)[0] for index, column in enumerate(columns)}
    assert offsets == set(range(17))


@pytest.mark.parametrize("size", [0, 6, 33, 514, -32, 32.0, "32", True])
def test_impossible_sizes_of_photos(size):
    complaint(ValueError, lambda: load_dataset("photos", image_size=size), "image_size", "even whole number, 8 to 512", repr(size))


@pytest.mark.parametrize("module, package", [("skimage", "scikit-image"), ("sklearn", "scikit-learn")])
def test_photos_without_their_packages(module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    complaint(ImportError, lambda: load_dataset("photos"), f"pip install {package}", "notebooks")


@pytest.mark.parametrize("name, package", [("rocket", "scikit-image"), ("temple", "scikit-learn")])
def test_a_photograph_that_another_version_lacks(name, package, monkeypatch):
    monkeypatch.setitem(data._PHOTO_FILES, name, data._PHOTO_FILES[name].replace(".jpg", ".jpeg"))
    version = data.importlib.metadata.version(package)
    complaint(FileNotFoundError, lambda: load_dataset("photos"), repr(name), f"{package} {version} has no file", f"pip install {package}==")


def test_the_lesson_names_the_source_and_terms_of_every_photograph():
    text = (Path(__file__).parent.parent / "nbs" / "00_data.ipynb").read_text("utf-8")
    for name in load_dataset("photos").class_names:
        assert re.search(rf"\| {name} \| [^|]{{5,}} \| [^|]{{2,}} \|", text), name


def test_photos_import_no_package():
    "scikit-learn takes a second."
    program = "import sys; from farmer.data import load_dataset; load_dataset('photos')[0]; print({'skimage', 'sklearn'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "set()"


# --- Chroma


def test_chroma_axes_are_at_right_angles_to_grey_and_to_each_other():
    np.testing.assert_allclose(data.CHROMA_AXES @ data.CHROMA_AXES.T, np.eye(2), atol=1e-15)
    np.testing.assert_allclose(data.CHROMA_AXES.sum(1), 0, atol=1e-15)


# --- Names, splits and sizes


@pytest.mark.parametrize("name", ["digit", "MNIST", "", "imagenet"])
def test_unknown_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    complaint(ValueError, lambda: load_dataset(name), repr(name), "digits, photos, glyphs, glyphs-field, glyphs-palette, mnist, cifar10", "folder")


@pytest.mark.parametrize("name", ["digits", "photos", "glyphs", "mnist", "no/such/folder"])
@pytest.mark.parametrize("split", ["val", "Train", "", None])
def test_unknown_split(name, split):
    complaint(ValueError, lambda: load_dataset(name, split), repr(split), "'train'", "'test'")


def test_missing_folder(tmp_path):
    for name in (tmp_path / "pictures", str(tmp_path / "pictures"), "./pictures", "~/no-such-pictures"):
        complaint(FileNotFoundError, lambda: load_dataset(name), "pictures", "check the path")


def test_fixed_sizes_cannot_be_changed():
    assert load_dataset("digits", image_size=8).image_shape == (1, 8, 8)
    complaint(ValueError, lambda: load_dataset("digits", image_size=16), "image_size=16", "8 pixels", "leave it out")
