"Folders of pictures: which files are read, as which class, in which split; the crop; and files of all sorts, broken ones too; published data sets."
import hashlib
import os
import pickle
import struct

import numpy as np
import pytest
import torch
import torchvision
from helpers import assert_one_line, assert_reads_alike, complaint, encoded
from PIL import EpsImagePlugin, Image
from pictures import COLOURS, MODES, deep_png, tolerance
from torch.utils.data import DataLoader

from farmer.data import load_dataset
from farmer.folders import FolderDataset, center_crop, read_picture

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


# --- Layouts


def place(file):
    "Class and name of a picture that `make_layout` made."
    return os.fsdecode(file).rsplit("/", 2)[-2:]


def make_layout(root, paths):
    "Pictures of one colour: its folder and name decide it."
    for path in paths:
        save_image(root / path, value=hash_value(path))
    return root


def hash_value(path):
    return hashlib.sha256("/".join(path.split("/")[-2:]).encode()).digest()[0]


@pytest.mark.parametrize("train, test, names", [
    ("train", "val", ["n01440764", "n01443537", "n02102040"]),  # ImageNet; fastai's imagenette
    ("train", "test", ["airplane", "automobile", "bird"]),  # CIFAR as folders
    ("train", "valid", ["3", "7", "10"]),  # fastai
    ("training", "testing", [str(number) for number in range(11)]),  # fastai's MNIST
    ("Training", "Testing", ["glioma", "notumor", "pituitary"]),  # Keras, Kaggle
    ("Training", "Test", ["Apple 10", "Apple 6", "Apple Red"]),
    ("TRAIN", "Validation", ["a", "b"]),
])  # fmt: skip
@pytest.mark.parametrize("wrapper", ["", "data", "archive/data set"])
def test_layouts(tmp_path, train, test, names, wrapper):
    make_layout(tmp_path / wrapper, [f"{split}/{name}/{split}{i}.png" for split in (train, test) for name in names for i in range(2)])
    (tmp_path / "__MACOSX" / "data" / train).mkdir(parents=True)  # as zip files of a Mac have it
    (tmp_path / "README.txt").write_text("cite us")
    for split, folder in (("train", train), ("test", test)):
        dataset = load_dataset(tmp_path, split, image_size=8)
        assert dataset.class_names == names and dataset.labels.tolist() == [label for label in range(len(names)) for _ in range(2)]
        for index, file in enumerate(dataset.files):
            name, picture = place(file)
            assert name == names[dataset.labels[index]] and picture.startswith(folder) and (dataset.pixels(index) == hash_value(f"{name}/{picture}")).all()


@pytest.mark.parametrize("wrapper", ["", "pictures", "archive/train"])
def test_classes_that_are_numbers(tmp_path, wrapper):
    make_layout(tmp_path / wrapper, [f"{name}/{i}.png" for name in range(12) for i in range(2)])
    dataset = load_dataset(tmp_path, image_size=8)
    assert dataset.class_names == [str(number) for number in range(12)]
    for index, file in enumerate(dataset.files):
        assert int(place(file)[0]) == dataset.labels[index] and dataset.pixels(index).unique().tolist() == [hash_value("/".join(place(file)))]


def test_numbers_come_first_and_by_their_value(tmp_path):
    make_album(tmp_path, ("10", "9", "b10", "b9", "007", "-1", "Z"))
    assert load_dataset(tmp_path).class_names == ["007", "9", "10", "-1", "Z", "b10", "b9"]


def test_a_folder_in_each_split_as_zip_files_have_it(tmp_path):
    make_layout(tmp_path, ["train/train/cat/0.png", "train/train/dog/0.png", "test/test/dog/0.png"])
    assert load_dataset(tmp_path).class_names == ["cat", "dog"] and load_dataset(tmp_path, "test").labels.tolist() == [1]


def test_a_single_class_is_no_wrapper(tmp_path):
    make_layout(tmp_path, ["train/cat/0.png", "train/dog/0.png", "test/dog/old/0.png", "test/dog/new/1.png"])
    assert load_dataset(tmp_path, "test").labels.tolist() == [1, 1]
    make_layout(tmp_path / "one", ["cat/0.png", "cat/more/1.png", "cat/other/2.png"])
    assert load_dataset(tmp_path / "one").class_names == ["cat"] and len(load_dataset(tmp_path / "one")) == 3


@pytest.mark.parametrize("paths, folder", [
    (["Testing/cat/0.png", "Testing/dog/0.png"], "train"), (["train/0.png", "test/0.png"], "train"), (["Training/0.png", "Testing/cat/0.png"], "Training"),
    (["val/cat/0.png", "cat/0.png"], "train"), (["data/valid/cat/0.png", "data/test/cat/1.png"], "data/train"),
])  # fmt: skip
def test_splits_without_classes_for_training(tmp_path, paths, folder):
    make_layout(tmp_path, paths)
    for split in ("train", "test"):
        complaint(ValueError, lambda: load_dataset(tmp_path, split), "no class folders in", tmp_path / folder, "sort the training images")


def test_what_is_left_out_is_said(tmp_path):
    make_layout(tmp_path, [f"train/{name}/{i}.{suffix}" for name in "ab" for i, suffix in enumerate(("png", "GIF", "jfif", "avif", "Jpeg", "TIF"))])
    make_layout(tmp_path, ["test/a/0.png", "train/loose.png"])
    for name in ("notes.txt", "more.TXT", "drawing.eps", "LICENSE"):
        (tmp_path / "train" / "b" / name).write_text("%!PS-Adobe")
    os.mkfifo(tmp_path / "train" / "a" / "pipe.png")
    train, test = load_dataset(tmp_path), load_dataset(tmp_path, "test")
    assert train.left_out == {".txt": 2, ".eps": 1, "files without a suffix": 1, "pipes and devices": 1, "pictures outside the class folders": 1}
    assert train.describe().startswith("12 images, 2 classes: a (6), b (6); left out: 1 x pictures outside") and "2 x .txt" in train.describe()
    assert test.describe() == "1 images, 2 classes: a (1), b (0)"
    assert train.batch(range(12))[0].shape == (12, 3, 64, 64)


def test_many_classes_are_described_in_short(tmp_path):
    make_album(tmp_path, [f"{number:04}" for number in range(30)], 1)
    assert load_dataset(tmp_path).describe() == "30 images, 30 classes: " + ", ".join(f"{i:04} (1)" for i in range(10)) + ", ..., 0029 (1)"


# --- Links


def linked(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("link, target", [
    ("train/cat/up", "."), ("train/cat/up", "train"), ("train/cat/up", "train/cat"), ("train/cat/up", ".."), ("train/cat/up", "/"), ("train/cat/up", "test"),
    ("train/cat/more", "train/dog"), ("train/cat/more", "test/cat"), ("test/dog/more", "train/dog"), ("train/cat/more/deep", "test/dog"),
    ("train/cat/x.png", "test/cat/0.png"), ("train/cat/x.png", "train/dog/1.png"), ("test/dog/x.png", "train/dog/1.png"),
])  # fmt: skip
def test_links_into_the_data_set_are_left_out(tmp_path, link, target):
    make_layout(tmp_path / "set", [f"{split}/{name}/{i}.png" for split in ("train", "test") for name in ("cat", "dog") for i in range(3)])
    before = {split: load_dataset(tmp_path / "set", split) for split in ("train", "test")}
    linked(tmp_path / "set" / link, tmp_path / "set" / target)
    for split, dataset in before.items():
        after = load_dataset(tmp_path / "set", split)
        assert after.files.tolist() == dataset.files.tolist() and after.left_out == ({"links to what is read anyway": 1} if link.startswith(split) else {})


def test_two_links_that_lead_in_circles(tmp_path):
    make_layout(tmp_path, [f"set/{name}/{i}.png" for name in ("cat", "dog") for i in range(20)] + ["else/one/0.png", "else/two/0.png"])
    linked(tmp_path / "set/cat/dogs", tmp_path / "set/dog")
    linked(tmp_path / "set/dog/cats", tmp_path / "set/cat")
    linked(tmp_path / "set/dog/itself", tmp_path / "set/dog/itself")
    linked(tmp_path / "set/cat/else", tmp_path / "else/one")
    linked(tmp_path / "else/one/next", tmp_path / "else/two")
    linked(tmp_path / "else/two/next", tmp_path / "else/one")
    train, test = load_dataset(tmp_path / "set"), load_dataset(tmp_path / "set", "test")
    assert (len(train), len(test)) == (38, 4) and train.left_out["links to what is read anyway"] == 4  # of 42 pictures


def test_links_to_other_places_are_followed(tmp_path):
    make_layout(tmp_path, ["store/cat/0.png", "store/dog/0.png", "store/dog/1.png", "store/more/x.png", "pool/.git/objects/7.png"])
    linked(tmp_path / "set/train/cat", tmp_path / "store/cat")
    linked(tmp_path / "set/train/dog/0.png", tmp_path / "store/dog/0.png")
    linked(tmp_path / "set/train/dog/more", tmp_path / "store/more")
    assert [place(file) for file in load_dataset(tmp_path / "set").files] == [["cat", "0.png"], ["dog", "0.png"], ["more", "x.png"]]
    linked(tmp_path / "set/test/dog", tmp_path / "store/dog")  # which makes a training image one for testing
    train, test = load_dataset(tmp_path / "set"), load_dataset(tmp_path / "set", "test")
    assert [place(file)[1] for file in train.files] == ["0.png", "x.png"] and train.left_out == {"links to what is read anyway": 1} and len(test) == 2
    linked(tmp_path / "pool/a/0.png", "../.git/objects/7.png")  # as git-annex keeps large files
    assert len(load_dataset(tmp_path / "pool")) == 1 and not load_dataset(tmp_path / "pool").left_out
    linked(tmp_path / "link", tmp_path / "set")
    assert len(load_dataset(tmp_path / "link")) == 2


@pytest.mark.parametrize("link, target", [("train/puma", "train/cat"), ("test/cat", "train/cat"), ("test", "train"), ("train/all", "."), ("train/all", "test/dog")])
def test_folders_that_are_the_same_by_a_link(tmp_path, link, target):
    make_layout(tmp_path, ["train/cat/0.png", "train/dog/1.png"] + ["test/dog/2.png"] * (link != "test"))
    linked(tmp_path / link, tmp_path / target)
    complaint(ValueError, lambda: load_dataset(tmp_path), "by a link", tmp_path / "train", "remove one")


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    make_layout(tmp_path, ["a/0.png", "b/inner/0.png"])
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)  # who is root may read everything
    complaint(PermissionError, lambda: load_dataset(tmp_path), tmp_path / "b" / "inner", "Permission denied", "make it readable or remove it")


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines", b"bell\x07", "großer Fuchs 🦊".encode()])
def test_names_that_are_no_text(tmp_path, name):
    "They are escaped in messages and in class names, which so can be printed and saved anywhere."
    folder = os.path.join(os.fsencode(tmp_path), name)
    os.mkdir(folder)
    with open(os.path.join(folder, name + b".png"), "wb") as file:
        file.write(b"no picture")
    dataset = load_dataset(tmp_path)
    message = complaint(ValueError, lambda: dataset[0], "cannot be read")
    for text in (message, dataset.describe(), *dataset.class_names):
        text.encode()
        assert text.isprintable() and any(shown in text for shown in ("caf\\udce9", "two\\nlines", "bell\\x07", "großer Fuchs 🦊"))


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
    monkeypatch.setattr(torchvision.io, "decode_jpeg", None)
    assert torch.equal(fast, dataset.pixels(0))


def test_jpegs_with_four_channels(tmp_path):
    (tmp_path / "a").mkdir()
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "a" / "red.jpg")
    red = load_dataset(tmp_path, image_size=32)[0][0].mean((1, 2))
    assert red[0] > 0.9 and red[1] < -0.9 and red[2] < -0.9


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_is_read_as_a_viewer_shows_it(tmp_path, mode):
    "Whatever the file is called."
    content, expected = MODES[mode]
    expected = np.broadcast_to(expected.reshape(*expected.shape[:2], -1), (*expected.shape[:2], 3)).astype(float)
    assert np.abs(np.asarray(read_picture(content)) - expected).max() <= tolerance(mode)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / f"x.{'png' if content[:2] == bytes([255, 216]) else 'jpg'}").write_bytes(content)
    side = min(expected.shape[:2])
    top, left = ((length - side) // 2 for length in expected.shape[:2])
    found = FolderDataset(tmp_path, image_size=side).pixels(0).permute(1, 2, 0).numpy()
    assert np.abs(found - expected[top : top + side, left : left + side]).max() <= tolerance(mode)


def large_jpeg():
    "A small file that says it is a JPEG of 65,000 x 65,000 pixels."
    content = encoded(Image.new("RGB", (16, 16)), "JPEG")
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", 65000, 65000) + content[place + 4 :]


LARGE_PNG = deep_png(np.zeros((1, 1, 1)), 0, size=(60000, 60000))
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/owned) (w) file closefile\nshowpage\n"


@pytest.mark.parametrize("content, reason", [
    (EPS, "none of JPEG, PNG"), (b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(EPS)) + bytes(20) + EPS, "none of JPEG, PNG"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "none of"), (b"%PDF-1.7\n", "none of"), (b"#!/bin/sh\necho", "none of"),
    *((encoded(Image.fromarray(COLOURS), kind), "none of") for kind in ("ICO", "PCX", "TGA", "IM", "SGI", "JPEG2000")),
    (encoded(Image.new("RGB", (8, 8)), "WEBP")[:20], "cut short"),
    (encoded(Image.fromarray(COLOURS), "AVIF")[:-40], "cut short"), (encoded(Image.fromarray(COLOURS), "GIF")[:-60], "cut short"),
    (LARGE_PNG, "too many pixels"), (large_jpeg(), "too many pixels"), (b"P5 60000 60000 255 ", "too many pixels"), (b"P5 10000 9999 255 ", "too many pixels"),
    (b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0), "too many pixels"),
    (encoded(Image.new("RGB", (60000, 1))), "too long and narrow"), (bytes(1000), "none of"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_what_is_no_picture_is_named(tmp_path, monkeypatch, recwarn, capfd, content, reason, name):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("a program was started"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / name).write_bytes(content)
    complaint(ValueError, lambda: load_dataset(tmp_path)[0], tmp_path / "a" / name, reason, "delete or replace it")
    assert not recwarn.list and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("target, reason", [("/dev/zero", "no file"), ("pipe", "no file"), ("/nowhere", "No such file"), ("sparse", "at most 300 MB")])
def test_links_to_what_is_no_file(tmp_path, target, reason):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(10**12)
    linked(tmp_path / "set" / "a" / "x.png", tmp_path / target)
    complaint(ValueError, lambda: load_dataset(tmp_path / "set")[0], tmp_path / "set" / "a" / "x.png", reason, "delete or replace it")


def test_damage_that_decoders_only_warn_of_is_not_printed(tmp_path, recwarn, capfd):
    exif = Image.Exif()
    exif[0x112] = 6
    content = encoded(Image.fromarray(COLOURS), "TIFF", exif=exif)
    for damaged in (content[:-3], encoded(Image.fromarray(COLOURS), "JPEG", exif=exif.tobytes()[:-6])):
        try:
            read_picture(damaged)
        except ValueError:
            pass
    assert not recwarn.list and capfd.readouterr() == ("", "")


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
