"Folders of pictures: which files are read, as which class, in which split; the crop; and files of all sorts, broken ones too; published data sets."
import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
import torchvision
from helpers import assert_one_line, assert_reads_alike, complaint
from PIL import Image
from torch.utils.data import DataLoader

import farmer
from farmer.data import load_dataset
from farmer.folders import FolderDataset, center_crop

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")


def save_image(path, size=(20, 16), value=128):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)


def make_album(root, classes=("cat", "dog"), count=3):
    for number, name in enumerate(classes):
        for i in range(count):
            save_image(root / name / f"{i:03d}.png", value=10 * i + number)
    return root


def test_contract(tmp_path):
    dataset = load_dataset(make_album(tmp_path, count=8), image_size=4)
    assert isinstance(dataset, FolderDataset) and dataset.image_shape == (3, 4, 4) and dataset.levels == 256
    assert_reads_alike(dataset)


# --- Listing


def test_every_tenth_image_is_for_testing(tmp_path):
    make_album(tmp_path, ("b", "a"), 20)
    train, test = load_dataset(tmp_path, image_size=8), load_dataset(str(tmp_path), "test", image_size=8)
    assert train.class_names == test.class_names == ["a", "b"]
    assert (len(train), len(test)) == (36, 4) and test.labels.tolist() == [0, 0, 1, 1]
    assert [f.decode()[-9:] for f in test.files] == ["a/009.png", "a/019.png", "b/009.png", "b/019.png"]
    assert not set(train.files) & set(test.files)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_own_folders_for_the_splits(tmp_path, held_out):
    make_album(tmp_path / "train", ("a", "b", "c"), 11)
    make_album(tmp_path / held_out, ("b", "c"), 1)
    train, test = load_dataset(tmp_path, image_size=8), load_dataset(tmp_path, "test", image_size=8)
    assert len(train) == 33 and test.labels.tolist() == [1, 2]  # numbered as in training although class a is absent
    assert test.class_names == train.class_names == ["a", "b", "c"]


def test_only_a_train_folder(tmp_path):
    make_album(tmp_path / "train")
    assert len(load_dataset(tmp_path)) == 6
    complaint(FileNotFoundError, lambda: load_dataset(tmp_path, "test"), tmp_path, "no test or val")


def test_a_class_may_be_called_train(tmp_path):
    make_album(tmp_path, ("boat", "train"))
    assert load_dataset(tmp_path).class_names == ["boat", "train"]


def test_class_that_training_does_not_know(tmp_path):
    make_album(tmp_path / "train", ("a", "b"))
    make_album(tmp_path / "test", ("a", "z"))
    complaint(ValueError, lambda: load_dataset(tmp_path, "test"), tmp_path / "test" / "z", "add one or remove it")


def test_hidden_and_foreign_files_are_ignored(tmp_path):
    make_album(tmp_path, ("a",), 2)
    save_image(tmp_path / "a" / "more" / "x.JPEG")
    save_image(tmp_path / "a" / ".ipynb_checkpoints" / "copy.png")
    save_image(tmp_path / ".hidden" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "a" / "._000.png").write_bytes(b"resource fork")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ["a"] and len(dataset) == 3


def test_folders_without_images(tmp_path):
    complaint(FileNotFoundError, lambda: load_dataset(tmp_path), tmp_path, "one sub-folder per class")
    save_image(tmp_path / "loose.png")
    complaint(FileNotFoundError, lambda: load_dataset(tmp_path), tmp_path, "one sub-folder per class")
    make_album(tmp_path, ("a",))
    (tmp_path / "b").mkdir()
    complaint(FileNotFoundError, lambda: load_dataset(tmp_path), tmp_path / "b", "remove the folder")
    complaint(ValueError, lambda: load_dataset(tmp_path / "loose.png"), "loose.png", "is a file")
    complaint(FileNotFoundError, lambda: FolderDataset(tmp_path / "nothing"), tmp_path / "nothing", "give the path of a folder")


def test_too_few_images_for_a_test_split(tmp_path):
    complaint(ValueError, lambda: load_dataset(make_album(tmp_path), "test"), tmp_path, "ten images")


def test_names_beyond_ascii(tmp_path):
    save_image(tmp_path / "Füchse und Löwen" / "große Katze 🦁.png")
    dataset = load_dataset(tmp_path, image_size=4)
    assert dataset.class_names == ["Füchse und Löwen"] and dataset[0][0].shape == (3, 4, 4)


@pytest.mark.parametrize("image_size", [0, -1, 2.5, "64"])
def test_impossible_image_size(tmp_path, image_size):
    complaint(ValueError, lambda: load_dataset(make_album(tmp_path), image_size=image_size), "image_size", repr(image_size))


# --- The crop


@pytest.mark.parametrize("width, height, size, steps", [
    (500, 375, 256, [(341, 256)]),  # less than twice the size: bicubic alone
    (1200, 1100, 256, [(600, 550), (300, 275), (279, 256)]),  # 600 x 550 is halved again
    (513, 512, 256, [(256, 256)]),  # halves are rounded down
    (100, 40, 64, [(160, 64)]),  # enlarged
    (192, 128, 128, []),  # of the right height already: the middle columns as they are
    (64, 64, 64, []),
])  # fmt: skip
def test_center_crop_step_by_step(width, height, size, steps):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    expected = image
    for step in steps:
        halved = step == (expected.width // 2, expected.height // 2)
        expected = expected.resize(step, Image.Resampling.BOX if halved else Image.Resampling.BICUBIC)
    left, top = (expected.width - size) // 2, (expected.height - size) // 2
    expected = np.asarray(expected)[top : top + size, left : left + size]
    assert np.array_equal(np.asarray(center_crop(image, size)), expected)


def test_middle_of_the_image(tmp_path):
    values = np.zeros((10, 30, 3), np.uint8)
    values[:, 10:20] = 255  # a white square in the middle of a wide image
    (tmp_path / "a").mkdir()
    Image.fromarray(values).save(tmp_path / "a" / "wide.png")
    Image.fromarray(values.transpose(1, 0, 2).copy()).save(tmp_path / "a" / "tall.png")
    images, _ = load_dataset(tmp_path, image_size=10).batch([0, 1])
    assert torch.equal(images, torch.ones(2, 3, 10, 10))


# --- Decoding


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
@pytest.mark.parametrize("size", [(1, 1), (5, 200), (64, 64)])
def test_all_sorts_of_images(tmp_path, mode, size):
    (tmp_path / "a").mkdir()
    Image.new("RGB", size, (255, 255, 255)).convert(mode).save(tmp_path / "a" / "x.png")
    dataset = load_dataset(tmp_path)
    image, label = dataset[0]
    assert image.shape == dataset.image_shape == (3, 64, 64) and label == 0
    assert image.dtype == torch.float32 and torch.equal(image, torch.ones(3, 64, 64))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"quality": 95, "subsampling": 0}, {"progressive": True}])
@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_both_decoders_agree(mode, options, size, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).convert(mode).resize(size).save(tmp_path / "a" / "x.jpg", **options)
    dataset = FolderDataset(tmp_path, image_size=min(size))
    fast = dataset.pixels(0)
    monkeypatch.setattr(farmer.folders, "decode_jpeg", None)
    assert torch.equal(fast, dataset.pixels(0))


def test_jpegs_with_four_channels(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "a" / "red.jpg")
    red = load_dataset(tmp_path, image_size=32)[0][0].mean((1, 2))
    assert red[0] > 0.9 and red[1] < -0.9 and red[2] < -0.9


def noise_bytes(kind, tmp_path):
    path = tmp_path / f"whole.{kind}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tiff", "webp", "ppm"])
@pytest.mark.parametrize("damage", ["empty", "text", "head", "half", "wrong"])
def test_broken_images_are_named(tmp_path, kind, damage):
    whole = noise_bytes(kind, tmp_path)
    broken = {
        "empty": b"", "text": b"<html>404</html>", "head": whole[:12], "half": whole[: len(whole) // 2],
        "wrong": whole[:60] + bytes(reversed(whole[60 : len(whole) // 3])),
    }  # fmt: skip
    album = make_album(tmp_path / "album", ("a",), 1)
    (album / "a" / f"broken.{kind}").write_bytes(broken[damage])
    dataset = load_dataset(album)
    dataset[0]
    for read in (lambda: dataset[1], lambda: dataset.batch([0, 1])):
        with pytest.raises(ValueError) as error:
            read()
        assert_one_line(error, f"broken.{kind}", "delete or replace it")
        assert error.value.__suppress_context__


def test_broken_image_in_a_worker_process(tmp_path):
    album = make_album(tmp_path, ("a",), 1)
    (album / "a" / "broken.png").write_bytes(b"")
    with pytest.raises(ValueError, match="broken.png.*delete or replace it"):
        list(DataLoader(load_dataset(album), num_workers=1))


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
