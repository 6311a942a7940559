"Data sets in memory: the promises a lesson cannot check, such as other processes, published file formats and broken files."
import hashlib
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from helpers import assert_reads_alike, complaint
from matplotlib.ft2font import FT2Font
from PIL import Image

from farmer import data
from farmer.data import ArrayDataset, load_dataset, to_images, to_levels

GLYPHS = ("glyphs", "glyphs-field", "glyphs-palette")


# --- What all have in common


@pytest.mark.parametrize("name, shape, levels, counts", [
    ("digits", (1, 8, 8), 17, (1437, 360)),
    ("glyphs", (1, 16, 16), 16, (20_000, 2_000)),
    ("glyphs-field", (3, 16, 16), 32, (20_000, 2_000)),
    ("glyphs-palette", (3, 16, 16), 32, (20_000, 2_000)),
])  # fmt: skip
@pytest.mark.parametrize("split", ["train", "test"])
def test_contract(name, shape, levels, counts, split, monkeypatch):
    if name != "digits" and split == "train":  # rendering all of them is the lesson's job
        values = np.stack([data.glyph_item(name, split, i) for i in range(20)])
        monkeypatch.setattr(data, "_glyph_values", lambda name, split: torch.from_numpy(values))
    dataset = load_dataset(name, split)
    if name == "digits" or split == "test":
        assert len(dataset) == counts[split == "test"]
    assert dataset.image_shape == shape and dataset.levels == levels and dataset.num_classes == 10
    assert dataset.class_names == list("0123456789") and set(dataset.labels.tolist()) == set(range(10))
    assert_reads_alike(dataset)


def test_reading_does_not_alter_the_data_set():
    dataset = load_dataset("digits")
    dataset[0][0].fill_(7)
    dataset.batch([0])[0].fill_(7)
    assert dataset.batch([0])[0].max() <= 1


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


# --- Digits and glyphs


def test_digit_split_is_fixed():
    "Shipped checkpoints were trained on this split: were it to change, their test images would be training images."
    test = load_dataset("digits", "test")
    content = test.values.numpy().tobytes() + test.labels.numpy().tobytes()
    assert hashlib.sha256(content).hexdigest() == "0bef24db807d8bb41bc488c017ee0c7162797e6665d0d4efb5bf8f48e8157247"
    images = {v.numpy().tobytes() for v in load_dataset("digits").values}
    assert len(images) == 1437 and not images & {v.numpy().tobytes() for v in test.values}


def test_glyphs_are_the_same_in_another_process():
    program = (
        "import hashlib, numpy as np; from farmer.data import glyph_item\n"
        f"items = [glyph_item(n, s, i) for n in {GLYPHS} for s in ('test', 'train') for i in (5, 1999, 0)]\n"
        "print(hashlib.sha256(b''.join(i.tobytes() for i in items)).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    items = {(n, s, i): data.glyph_item(n, s, i) for i in (1999, 0, 5) for s in ("train", "test") for n in GLYPHS}
    here = b"".join(items[n, s, i].tobytes() for n in GLYPHS for s in ("test", "train") for i in (5, 1999, 0))
    assert hashlib.sha256(here).hexdigest() == other


@pytest.mark.parametrize("name", GLYPHS)
def test_glyph_items(name):
    dataset = load_dataset(name, "test")
    assert torch.equal(dataset.labels, torch.arange(2000) % 10)
    for i in (0, 17, 1999):
        assert np.array_equal(dataset.values[i].numpy(), data.glyph_item(name, "test", i))
        assert not np.array_equal(dataset.values[i].numpy(), data.glyph_item(name, "train", i))


def test_colour_glyphs_show_the_grey_glyph():
    grey = load_dataset("glyphs", "test").batch(range(500))[0]
    for name in GLYPHS[1:]:
        luma = load_dataset(name, "test").batch(range(500))[0].mean(1, keepdim=True)
        expected = 2 * (0.3 + 0.4 * (grey + 1) / 2) - 1
        difference = (luma - expected).abs()
        assert difference.mean() < 0.02 and difference.quantile(0.98) < 0.06  # rounding to levels; rarely, clipping


def test_chroma_has_the_stated_size_and_no_luma():
    generator = np.random.default_rng(0)
    field = np.stack([data._field_chroma(generator) for _ in range(500)])
    palette = np.stack([data._palette_chroma(generator) for _ in range(500)])
    assert abs(field).max() <= 0.36 and 0.08 < field.std() < 0.16 and abs(field.mean()) < 0.01
    tiles = palette.reshape(500, 2, 4, 4, 4, 4)
    assert (np.ptp(tiles, axis=(3, 5)) == 0).all()
    assert abs(np.hypot(*palette.mean((2, 3)).T).mean() - 0.22) < 0.01
    assert abs(palette.std((2, 3)).mean() - 0.07) < 0.01
    np.testing.assert_allclose(data.CHROMA_AXES @ data.CHROMA_AXES.T, np.eye(2), atol=1e-15)
    np.testing.assert_allclose(data.CHROMA_AXES.sum(1), 0, atol=1e-15)


def test_fonts_are_those_that_draw_digits():
    "The rule of the lesson's second exercise: every digit listed, and nine of ten most similar to the same digit of another font."
    tables = {path: FT2Font(str(path)).get_charmap() for path in sorted(data._font_folder().glob("*.ttf"))}
    listed = [path for path, table in tables.items() if all(ord(c) in table for c in "0123456789")]
    stencils = [[data._stencil(path, c).resize((16, 24), Image.Resampling.BOX) for c in "0123456789"] for path in listed]
    shapes = np.array([[np.asarray(stencil, float).ravel() for stencil in row] for row in stencils])
    shapes -= shapes.mean(-1, keepdims=True)
    shapes /= np.linalg.norm(shapes, axis=-1, keepdims=True)
    correlation = np.einsum("fdp,gep->fgde", shapes, shapes)
    correlation[np.arange(len(listed)), np.arange(len(listed))] = -1
    recognised = (correlation.max(1).argmax(-1) == np.arange(10)).sum(1)
    assert {path.stem for path, count in zip(listed, recognised) if count >= 9} == set(data._GLYPH_FONTS)


def test_a_missing_font_is_named(tmp_path):
    complaint(FileNotFoundError, lambda: data._stencil(tmp_path / "nothing.ttf", "1"), "nothing.ttf", "reinstall matplotlib")


@pytest.mark.parametrize("module, package, call", [
    ("sklearn.datasets", "scikit-learn", lambda: load_dataset("digits")),
    ("matplotlib", "matplotlib", data._font_folder),
])  # fmt: skip
def test_missing_packages_say_how_to_get_them(module, package, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    complaint(ImportError, call, f"pip install {package}", "notebooks")


# --- Names, splits and sizes


@pytest.mark.parametrize("name", ["digit", "MNIST", "", "imagenet"])
def test_unknown_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    complaint(ValueError, lambda: load_dataset(name), repr(name), "digits, glyphs, glyphs-field, glyphs-palette, mnist, cifar10", "folder")


@pytest.mark.parametrize("name", ["digits", "mnist", "no/such/folder"])
@pytest.mark.parametrize("split", ["val", "Train", "", None])
def test_unknown_split(name, split):
    complaint(ValueError, lambda: load_dataset(name, split), repr(split), "'train'", "'test'")


def test_missing_folder(tmp_path):
    for name in (tmp_path / "pictures", str(tmp_path / "pictures"), "./pictures", "~/no-such-pictures"):
        complaint(FileNotFoundError, lambda: load_dataset(name), "pictures", "check the path")


def test_fixed_sizes_cannot_be_changed():
    assert load_dataset("digits", image_size=8).image_shape == (1, 8, 8)
    complaint(ValueError, lambda: load_dataset("digits", image_size=16), "image_size=16", "8 pixels", "leave it out")


# --- MNIST and CIFAR-10, in their published formats


def write_mnist(root, images, labels, prefix):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    (raw / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, *images.shape) + images.tobytes())
    (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(labels)) + labels.tobytes())


@pytest.fixture
def mnist(tmp_path):
    generator = np.random.default_rng(0)
    splits = {}
    for split, prefix, count in (("train", "train", 12), ("test", "t10k", 5)):
        splits[split] = generator.integers(0, 256, (count, 28, 28), np.uint8), generator.integers(0, 10, count).astype(np.uint8)
        write_mnist(tmp_path, *splits[split], prefix)
    return tmp_path, splits


def test_mnist(mnist):
    root, splits = mnist
    for split, (images, labels) in splits.items():
        dataset = load_dataset("mnist", split, root=root)
        assert dataset.image_shape == (1, 28, 28) and dataset.levels == 256 and dataset.class_names == list("0123456789")
        assert np.array_equal(dataset.values[:, 0].numpy(), images) and dataset.labels.tolist() == labels.tolist()
        torch.testing.assert_close(dataset[2][0][0], torch.from_numpy(images[2] / 255 * 2 - 1).float())


def test_broken_mnist(mnist):
    root, _ = mnist
    file = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    for content in (file.read_bytes()[:-100], file.read_bytes()[:6], b""):
        file.write_bytes(content)
        complaint((ValueError, FileNotFoundError), lambda: load_dataset("mnist", root=root), "mnist", root / "MNIST" / "raw")


@pytest.fixture
def cifar10(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return name, hashlib.md5((folder / name).read_bytes()).hexdigest()

    images = generator.integers(0, 256, (6, 4, 3, 32, 32), np.uint8)
    labels = generator.integers(0, 10, (6, 4)).tolist()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    files = [write(n, {"data": x.reshape(4, -1), "labels": y}) for n, x, y in zip(names, images, labels)]
    class_names = [f"class {i}" for i in range(10)]
    _, checksum = write("batches.meta", {"label_names": class_names})
    kind = torchvision.datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [list(f) for f in files[:5]])
    monkeypatch.setattr(kind, "test_list", [list(files[5])])
    monkeypatch.setattr(kind, "meta", {"filename": "batches.meta", "key": "label_names", "md5": checksum})
    return tmp_path, images, labels, class_names


def test_cifar10(cifar10):
    root, images, labels, class_names = cifar10
    train, test = load_dataset("cifar10", root=root), load_dataset("cifar10", "test", root=root)
    assert train.image_shape == (3, 32, 32) and train.levels == 256 and train.class_names == class_names
    assert np.array_equal(train.values.numpy(), images[:5].reshape(20, 3, 32, 32))
    assert np.array_equal(test.values.numpy(), images[5])
    assert train.labels.tolist() == sum(labels[:5], []) and test.labels.tolist() == labels[5]


def test_broken_cifar10(cifar10):
    root = cifar10[0]
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"not a pickle")
    complaint(FileNotFoundError, lambda: load_dataset("cifar10", root=root), "cifar10", "incomplete", "download=True")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_files_are_not_downloaded(name, tmp_path):
    complaint(FileNotFoundError, lambda: load_dataset(name, root=tmp_path), name, tmp_path, "download=True")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_failed_download_says_where_files_belong(name, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no route to host\nat all")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", no_network)
    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
    complaint(FileNotFoundError, lambda: load_dataset(name, root=tmp_path, download=True), name, "could not be downloaded", tmp_path)
