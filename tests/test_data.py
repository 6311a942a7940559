"Data sets: the promises a notebook cannot check, such as other processes, published file formats and broken files."
import hashlib
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader

from farmer import data
from farmer.data import ArrayDataset, FolderDataset, load_dataset, show_images, to_images, to_levels

GLYPHS = ("glyphs", "glyphs-field", "glyphs-palette")


def save_image(path, size=(20, 16), value=128, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(path)


def make_album(root, classes=("cat", "dog"), count=3, **options):
    for number, name in enumerate(classes):
        for i in range(count):
            save_image(root / name / f"{i:03d}.png", value=10 * i + number, **options)
    return root


def assert_one_line(error, *fragments):
    text = str(error.value)
    assert "\n" not in text
    for fragment in fragments:
        assert str(fragment) in text, text


# the common contract


@pytest.mark.parametrize("name, shape, levels, counts", [
    ("digits", (1, 8, 8), 17, (1437, 360)),
    ("glyphs", (1, 16, 16), 16, (20_000, 2_000)),
    ("glyphs-field", (3, 16, 16), 32, (20_000, 2_000)),
    ("glyphs-palette", (3, 16, 16), 32, (20_000, 2_000)),
])  # fmt: skip
@pytest.mark.parametrize("split", ["train", "test"])
def test_contract(name, shape, levels, counts, split, monkeypatch):
    if name != "digits" and split == "train":  # drawing all of them is the notebook's job
        monkeypatch.setattr(data, "_glyph_values", lambda name, split: torch.from_numpy(
            np.stack([data.glyph_item(name, split, i) for i in range(20)])))
    dataset = load_dataset(name, split)
    if name == "digits" or split == "test":
        assert len(dataset) == counts[split == "test"]
    assert dataset.image_shape == shape and dataset.levels == levels and dataset.num_classes == 10
    assert dataset.class_names == list("0123456789")
    image, label = dataset[3]
    assert image.shape == shape and image.dtype == torch.float32 and type(label) is int
    images, labels = dataset.batch(range(len(dataset)))
    assert images.dtype == torch.float32 and labels.dtype == torch.int64 and images.shape == (len(dataset), *shape)
    assert images.min() >= -1 and images.max() <= 1
    assert torch.equal(to_images(to_levels(images, levels), levels), images)  # nothing lies between levels
    assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("indices", [[4, 0, 4], range(3), torch.tensor([2, 5]), np.array([1, 7]), (3,), [-1]])
def test_every_way_to_read_gives_the_same_items(indices, tmp_path):
    for dataset in (load_dataset("digits"), load_dataset(make_album(tmp_path / "album", count=8), image_size=4)):
        images, labels = dataset.batch(indices)
        items = [dataset[int(i)] for i in indices]
        assert torch.equal(images, torch.stack([image for image, _ in items]))
        assert labels.tolist() == [label for _, label in items] and labels.dtype == torch.int64


def test_items_end():
    dataset = load_dataset("digits", "test")
    assert sum(1 for _ in dataset) == 360
    with pytest.raises(IndexError):
        dataset[360]


@pytest.mark.parametrize("workers", [0, 2])
def test_data_loader(workers, tmp_path):
    for dataset in (load_dataset("digits", "test"), load_dataset(make_album(tmp_path / "album"), image_size=4)):
        batches = list(DataLoader(dataset, batch_size=4, num_workers=workers))
        images, labels = dataset.batch(range(len(dataset)))
        assert torch.equal(torch.cat([b[0] for b in batches]), images)
        assert torch.equal(torch.cat([b[1] for b in batches]), labels)


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


@pytest.mark.parametrize("change, fragment", [
    ({"values": torch.zeros(2, 1, 4, 4)}, "uint8"),
    ({"values": torch.zeros(2, 4, 4, dtype=torch.uint8)}, "(2, 4, 4)"),
    ({"labels": torch.tensor([0])}, "1 labels for 2 images"),
    ({"labels": torch.tensor([0, 2])}, "labels 0 to 2"),
    ({"labels": torch.tensor([-1, 0])}, "labels -1 to 0"),
    ({"levels": 5}, "levels=5"),
])  # fmt: skip
def test_array_dataset_rejects(change, fragment):
    good = dict(values=torch.full((2, 1, 4, 4), 5, dtype=torch.uint8), labels=torch.tensor([0, 1]), levels=6, class_names=["a", "b"])
    assert len(ArrayDataset(**good)) == 2
    with pytest.raises(ValueError) as error:
        ArrayDataset(**good | change)
    assert_one_line(error, fragment)


# digits and glyphs


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
    field = np.stack([data.field_chroma(generator) for _ in range(500)])
    palette = np.stack([data.palette_chroma(generator) for _ in range(500)])
    assert abs(field).max() <= 0.36 and 0.08 < field.std() < 0.16 and abs(field.mean()) < 0.01
    tiles = palette.reshape(500, 2, 4, 4, 4, 4)
    assert (np.ptp(tiles, axis=(3, 5)) == 0).all()
    assert abs(np.hypot(*palette.mean((2, 3)).T).mean() - 0.22) < 0.01
    assert abs(palette.std((2, 3)).mean() - 0.07) < 0.01
    np.testing.assert_allclose(data.CHROMA_AXES @ data.CHROMA_AXES.T, np.eye(2), atol=1e-15)
    np.testing.assert_allclose(data.CHROMA_AXES.sum(1), 0, atol=1e-15)


def test_a_missing_font_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        data._stencil(tmp_path / "nothing.ttf", "1")
    assert_one_line(error, "nothing.ttf", "reinstall matplotlib")


@pytest.mark.parametrize("module, call", [
    ("sklearn.datasets", lambda: load_dataset("digits")),
    ("matplotlib", data._font_folder),
    ("matplotlib.pyplot", lambda: show_images(torch.zeros(1, 1, 2, 2))),
])  # fmt: skip
def test_missing_packages_say_how_to_get_them(module, call, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as error:
        call()
    assert_one_line(error, 'pip install "farmer[notebooks]"')


def test_import_needs_no_optional_package():
    program = "import sys, farmer.data; print([m for m in ('matplotlib', 'sklearn', 'IPython', 'nbdev') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# names, splits and sizes


@pytest.mark.parametrize("name", ["digit", "MNIST", "", "imagenet"])
def test_unknown_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        load_dataset(name)
    assert_one_line(error, repr(name), "digits, glyphs, glyphs-field, glyphs-palette, mnist, cifar10", "folder")


@pytest.mark.parametrize("name", ["digits", "mnist", "no/such/folder"])
@pytest.mark.parametrize("split", ["val", "Train", "", None])
def test_unknown_split(name, split):
    with pytest.raises(ValueError) as error:
        load_dataset(name, split)
    assert_one_line(error, repr(split), "'train'", "'test'")


def test_missing_folder(tmp_path):
    for name in (tmp_path / "pictures", str(tmp_path / "pictures"), "./pictures", "~/no-such-pictures"):
        with pytest.raises(FileNotFoundError) as error:
            load_dataset(name)
        assert_one_line(error, "pictures", "check the path")


def test_fixed_sizes_cannot_be_changed():
    assert load_dataset("digits", image_size=8).image_shape == (1, 8, 8)
    with pytest.raises(ValueError) as error:
        load_dataset("digits", image_size=16)
    assert_one_line(error, "image_size=16", "8 pixels", "leave it out")


# MNIST and CIFAR-10, in their published formats


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
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            load_dataset("mnist", root=root)
        assert_one_line(error, "mnist", root / "MNIST" / "raw")


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
    with pytest.raises(FileNotFoundError) as error:
        load_dataset("cifar10", root=root)
    assert_one_line(error, "cifar10", "incomplete", "download=True")


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_files_are_not_downloaded(name, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(name, root=tmp_path)
    assert_one_line(error, name, tmp_path, "download=True")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_failed_download_says_where_files_belong(name, tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no route to host\nat all")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", no_network)
    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(name, root=tmp_path, download=True)
    assert_one_line(error, name, "could not be downloaded", tmp_path)


# folders


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
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(tmp_path, "test")
    assert_one_line(error, tmp_path, "no test or val")


def test_a_class_may_be_called_train(tmp_path):
    make_album(tmp_path, ("boat", "train"))
    assert load_dataset(tmp_path).class_names == ["boat", "train"]


def test_class_that_training_does_not_know(tmp_path):
    make_album(tmp_path / "train", ("a", "b"))
    make_album(tmp_path / "test", ("a", "z"))
    with pytest.raises(ValueError) as error:
        load_dataset(tmp_path, "test")
    assert_one_line(error, tmp_path / "test" / "z", "add one or remove it")


def test_hidden_and_foreign_files_are_ignored(tmp_path):
    make_album(tmp_path, ("a",), 2)
    save_image(tmp_path / "a" / "more" / "x.JPEG")
    save_image(tmp_path / "a" / ".ipynb_checkpoints" / "copy.png")
    save_image(tmp_path / ".hidden" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    (tmp_path / "a" / "._000.png").write_bytes(b"resource fork")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ["a"] and len(dataset) == 3


def test_middle_of_the_image(tmp_path):
    values = np.zeros((10, 30, 3), np.uint8)
    values[:, 10:20] = 255  # a white square in the middle of a wide image
    (tmp_path / "a").mkdir()
    Image.fromarray(values).save(tmp_path / "a" / "wide.png")
    Image.fromarray(values.transpose(1, 0, 2).copy()).save(tmp_path / "a" / "tall.png")
    images, _ = load_dataset(tmp_path, image_size=10).batch([0, 1])
    assert torch.equal(images, torch.ones(2, 3, 10, 10))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
@pytest.mark.parametrize("size", [(1, 1), (5, 200), (64, 64)])
def test_all_sorts_of_images(tmp_path, mode, size):
    (tmp_path / "a").mkdir()
    Image.new("RGB", size, (255, 255, 255)).convert(mode).save(tmp_path / "a" / "x.png")
    dataset = load_dataset(tmp_path)
    image, label = dataset[0]
    assert image.shape == dataset.image_shape == (3, 64, 64) and dataset.levels == 256 and label == 0
    assert image.dtype == torch.float32 and torch.equal(image, torch.ones(3, 64, 64))
    assert torch.equal(to_images(to_levels(image, 256), 256), image)


@pytest.mark.parametrize("image_size", [0, -1, 2.5, "64"])
def test_impossible_image_size(tmp_path, image_size):
    with pytest.raises(ValueError) as error:
        load_dataset(make_album(tmp_path), image_size=image_size)
    assert_one_line(error, repr(image_size))


def test_folders_without_images(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(tmp_path)
    assert_one_line(error, tmp_path, "one sub-folder per class")
    save_image(tmp_path / "loose.png")
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(tmp_path)
    assert_one_line(error, tmp_path, "one sub-folder per class")
    make_album(tmp_path, ("a",))
    (tmp_path / "b").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        load_dataset(tmp_path)
    assert_one_line(error, tmp_path / "b", "remove the folder")
    with pytest.raises(ValueError) as error:
        load_dataset(tmp_path / "loose.png")
    assert_one_line(error, "loose.png", "is a file")


def test_too_few_images_for_a_test_split(tmp_path):
    with pytest.raises(ValueError) as error:
        load_dataset(make_album(tmp_path), "test")
    assert_one_line(error, tmp_path, "ten images")


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


def test_names_beyond_ascii(tmp_path):
    save_image(tmp_path / "Füchse und Löwen" / "große Katze 🦁.png")
    dataset = load_dataset(tmp_path, image_size=4)
    assert dataset.class_names == ["Füchse und Löwen"] and dataset[0][0].shape == (3, 4, 4)


def test_folder_dataset_travels_to_other_processes(tmp_path):
    dataset = FolderDataset(make_album(tmp_path), image_size=4)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again.batch([0, 5])[0], dataset.batch([0, 5])[0])


# pictures


@pytest.fixture
def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    yield matplotlib.pyplot
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (7, 3, 16, 12), (12, 1, 5, 9), (2, 3, 256, 256)])
def test_show_images(shape, pyplot):
    show_images(torch.randn(shape), columns=5, titles=range(shape[0]), row_titles=["a"])
    mosaic = pyplot.gca().images[0].get_array()
    assert mosaic.min() >= 0 and mosaic.max() <= 1 and mosaic.shape[2] == 3
    pyplot.gcf().canvas.draw()


def test_show_images_puts_every_pixel_in_its_place(pyplot):
    images = torch.rand(3, 3, 4, 4) * 2 - 1
    show_images(images, columns=2, scale=0.08)  # 8 screen pixels for an image of 4: a factor of 2, and margins of 3
    mosaic = torch.as_tensor(pyplot.gca().images[0].get_array())
    assert mosaic.shape == (22, 22, 3)
    for index, (top, left) in enumerate([(3, 3), (3, 14), (14, 3)]):
        tile = mosaic[top : top + 8 : 2, left : left + 8 : 2].permute(2, 0, 1)
        torch.testing.assert_close(tile, (images[index] + 1) / 2)
    assert (mosaic[11:, 11:] == 1).all()  # the empty place


@pytest.mark.parametrize("shape", [(8, 8), (3, 8, 8), (2, 2, 8, 8), (0, 1, 8, 8)])
def test_show_images_rejects(shape):
    with pytest.raises(ValueError) as error:
        show_images(torch.zeros(shape))
    assert_one_line(error, tuple(shape))
