"Shards: what was packed comes out again, from any process, after any interruption; and damage is found."
import errno
import functools
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_reads_alike, complaint, contents, encoded
from PIL import Image
from pictures import MODES
from torch.utils.data import DataLoader

import farmer
from farmer.data import load_dataset
from farmer.folders import FolderDataset
from farmer.shards import ShardDataset, index_shards, prepare_shards

SIZE = 24
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")


def make_album(root, count=12, classes=("cat", "dog"), seed=0):
    "Noise in JPEG, PNG and grey, in all sorts of shapes."
    generator = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            height, width = generator.integers(SIZE, 90, 2)
            values = generator.integers(0, 256, (height, width, 3) if i % 3 else (height, width), np.uint8)
            Image.fromarray(values).save(root / name / f"{i:03d}.{'png' if i % 2 else 'jpg'}")
    return root


@pytest.fixture
def album(tmp_path):
    return make_album(tmp_path / "album")


@pytest.fixture
def shards(album, tmp_path):
    prepare_shards(album, tmp_path / "shards", SIZE, shard_images=5, workers=0)
    return tmp_path / "shards"


# --- Layout


def test_layout(album, shards):
    assert sorted(contents(shards)) == sorted(
        [f"train/{i:06d}.tar" for i in range(5)] + ["test/000000.tar"]
        + [f"{split}/{name}" for split in ("train", "test") for name in ("images.npy", "index.json", "remarks.txt")])
    folder, seen = FolderDataset(album, image_size=SIZE), {}
    for path in sorted((shards / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            assert len(members) <= 10 and {(m.mtime, m.uid, m.gid, m.uname) for m in members} == {(0, 0, 0, "")}
            for image, label in zip(members[::2], members[1::2]):
                key, suffix = image.name.split(".")
                assert suffix == "png" and label.name == f"{key}.cls"
                seen[int(key)] = np.asarray(Image.open(tar.extractfile(image))), int(tar.extractfile(label).read())
    assert sorted(seen) == list(range(len(folder))) and list(seen) != sorted(seen)  # all of them, shuffled
    for number, (pixels, label) in seen.items():
        assert np.array_equal(pixels, folder.pixels(number).permute(1, 2, 0)) and label == folder.labels[number]


def test_webdataset_reads_it(shards):
    webdataset = pytest.importorskip("webdataset")
    files = [str(path) for path in sorted((shards / "train").glob("*.tar"))]
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "__key__"))
    dataset = ShardDataset(shards)
    assert len(samples) == len(dataset)
    for pixels, label, key in samples:
        assert np.array_equal(pixels, dataset.pixels(int(key)).permute(1, 2, 0)) and label == dataset.labels[int(key)]


@pytest.mark.parametrize("image_format", ["png", "ppm"])
@pytest.mark.parametrize("workers", [0, 2])
def test_same_images_as_the_folder(album, tmp_path, image_format, workers):
    reports = prepare_shards(str(album), str(tmp_path / "out"), SIZE, image_format, 7, workers)
    for report, split in zip(reports, ("train", "test")):
        folder, shards = FolderDataset(album, split, SIZE), load_dataset(tmp_path / "out", split, image_size=SIZE)
        assert isinstance(shards, ShardDataset) and report.images == len(shards) == len(folder) and report.kept == 0
        assert shards.class_names == folder.class_names and torch.equal(shards.labels, folder.labels)
        assert shards.image_shape == folder.image_shape and shards.levels == 256
        assert torch.equal(shards.pixel_batch(range(len(shards))), folder.pixel_batch(range(len(folder))))
        assert_reads_alike(shards)


def test_the_format_is_that_of_earlier_versions(tmp_path):
    "Every file, to the byte, as the first version of this code prepared it: shards on people's disks must stay readable, and resumable."
    for number in range(22):
        path = tmp_path / "album" / "ab"[number % 2] / f"{number:02d}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)).save(path)
    prepare_shards(tmp_path / "album", tmp_path / "out", 4, "ppm", shard_images=8, workers=0)
    content = b"".join(name.encode() + file for name, file in contents(tmp_path / "out").items())
    assert hashlib.sha256(content).hexdigest() == "95d87a5408364a9983f115f3fcf4632beb119df35b0a45c85cc7588eac4a5555"


def test_own_folders_for_the_splits(tmp_path):
    make_album(tmp_path / "album" / "train", 11, ("a", "b"))
    reports = prepare_shards(tmp_path / "album", tmp_path / "only", SIZE, workers=0)
    assert [r.images for r in reports] == [22]
    complaint(FileNotFoundError, lambda: load_dataset(tmp_path / "only", "test"), tmp_path / "only" / "test")
    make_album(tmp_path / "album" / "val", 2, ("b",))
    reports = prepare_shards(tmp_path / "album", tmp_path / "both", SIZE, workers=0)
    assert [r.images for r in reports] == [22, 2]
    assert load_dataset(tmp_path / "both", "test").labels.tolist() == [1, 1]


def test_pictures_of_any_mode(tmp_path):
    "The same pixels from shards as from the folder, and what is no picture in neither."
    (tmp_path / "album" / "a").mkdir(parents=True)
    for number, (content, _) in enumerate(MODES.values()):
        (tmp_path / "album" / "a" / f"{number:03}.png").write_bytes(content)
    (tmp_path / "album" / "a" / "page.eps").write_bytes(b"%!PS")
    (tmp_path / "album" / "a" / "999.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    train, test = prepare_shards(tmp_path / "album", tmp_path / "out", 6, workers=0)
    assert train.left_out + test.left_out == 1 and str(train).endswith("; passed over: 1 x .eps")
    for split in ("train", "test"):
        folder, shards = FolderDataset(tmp_path / "album", split, 6), ShardDataset(tmp_path / "out", split)
        assert torch.equal(shards.pixel_batch(range(len(shards))), folder.pixel_batch(range(len(shards))))  # the one that is left out comes last
        assert shards.left_out == ({"unreadable": 1} if len(shards) < len(folder) else {})


# --- Processes


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers(shards, context):
    dataset = ShardDataset(shards)
    images, labels = dataset.batch(range(len(dataset)))  # the shards are open already when the workers start
    batches = list(DataLoader(dataset, batch_size=4, num_workers=2, multiprocessing_context=context))
    assert torch.equal(torch.cat([b[0] for b in batches]), images) and torch.equal(torch.cat([b[1] for b in batches]), labels)


def test_few_files_are_open_at_once(shards, monkeypatch):
    small = functools.lru_cache(maxsize=2)(farmer.shards._open_shard.__wrapped__)
    monkeypatch.setattr(farmer.shards, "_open_shard", small)
    dataset, before = ShardDataset(shards), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    dataset.batch(range(len(dataset)))
    assert small.cache_info().misses > 2 and small.cache_info().currsize == 2
    if before:
        assert len(os.listdir("/proc/self/fd")) <= before + 2


# --- Interruptions

PROGRAM = """
import sys, time
from farmer import shards
fast = shards.decode_image
def decode(content):
    time.sleep(0.05)
    return fast(content)
shards.decode_image = decode
shards.prepare_shards(sys.argv[1], sys.argv[2], {size}, shard_images=5, workers={workers})
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed(album, shards, tmp_path, workers):
    target = tmp_path / "killed"
    program = PROGRAM.format(size=SIZE, workers=workers)
    process = subprocess.Popen([sys.executable, "-c", program, album, target], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (target / "train" / "000001.tar").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (target / "train" / "index.json").exists()
    (target / "train" / ".000002.tar.1.partial").write_bytes(b"half")  # wherever it was killed
    complaint(ValueError, lambda: load_dataset(target), target / "train", "not finished")
    train, test = prepare_shards(album, target, SIZE, shard_images=5, workers=0)
    assert 1 <= train.kept < train.shards and test.kept == 0
    assert contents(target) == contents(shards)


@pytest.mark.parametrize("keep", [0.5, 0.99])
def test_half_a_line_in_the_journal(album, shards, tmp_path, keep, monkeypatch):
    target = tmp_path / "power cut"

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(farmer.shards, "_write_index", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare_shards(album, target, SIZE, shard_images=5, workers=0)
    journal = target / "train" / "journal.jsonl"
    whole = journal.read_bytes()
    assert whole.count(b"\n") == 6
    journal.write_bytes(whole[: int(len(whole) * keep)])
    train, _ = prepare_shards(album, target, SIZE, shard_images=5, workers=0)
    assert train.kept < 5 and contents(target) == contents(shards)


def test_done_already(album, shards):
    before = {path: path.stat().st_mtime_ns for path in shards.rglob("*")}
    reports = prepare_shards(album, shards, SIZE, shard_images=5, workers=0)
    assert [r.kept for r in reports] == [r.shards for r in reports] == [5, 1]
    assert {path: path.stat().st_mtime_ns for path in shards.rglob("*")} == before


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("change", ["file", "size", "name", "gone", "image_size", "image_format", "shard_images"])
def test_changes_are_refused(album, tmp_path, complete, change, monkeypatch):
    target, settings = tmp_path / "out", {"image_size": SIZE, "image_format": "png", "shard_images": 5}
    with monkeypatch.context() as patch:
        if not complete:
            patch.setattr(farmer.shards, "_write_index", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        try:
            prepare_shards(album, target, workers=0, **settings)
        except KeyboardInterrupt:
            pass
    before, fragment = contents(target), "the source has changed"
    if change == "file":
        Image.new("RGB", (30, 30)).save(album / "cat" / "new.png")
    elif change == "size":
        Image.new("RGB", (30, 30)).save(album / "cat" / "001.png")
    elif change == "name":
        (album / "cat").rename(album / "lion")
    elif change == "gone":
        (album / "dog" / "003.png").unlink()
    else:
        settings[change] = {"image_size": 16, "image_format": "ppm", "shard_images": 6}[change]
        fragment = f"{change} was"
    complaint(ValueError, lambda: prepare_shards(album, target, workers=0, **settings), target / "train", fragment, "delete it")
    assert contents(target) == before


def test_no_space_left(album, shards, tmp_path, monkeypatch):
    target, write, written = tmp_path / "full", tarfile.TarFile.addfile, []

    def addfile(self, header, content):
        written.append(header.name)
        if len(written) == 14:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, header, content)

    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "addfile", addfile)
        complaint(OSError, lambda: prepare_shards(album, target, SIZE, shard_images=5, workers=0), "no space left", target, "make room")
    assert sorted(contents(target)) == ["train/000000.tar", "train/journal.jsonl"]
    train, _ = prepare_shards(album, target, SIZE, shard_images=5, workers=0)
    assert train.kept == 1 and contents(target) == contents(shards)


# --- Bad sources


def test_broken_and_small_images(album, tmp_path):
    (album / "cat" / "004.jpg").write_bytes((album / "cat" / "004.jpg").read_bytes()[:300])
    (album / "dog" / "002.jpg").write_bytes(b"")
    (album / "dog" / "nowhere.png").symlink_to(tmp_path / "nothing.png")
    Image.new("RGB", (10, 40), (255, 0, 0)).save(album / "cat" / "001.png")
    train, test = prepare_shards(album, tmp_path / "out", SIZE, shard_images=5, workers=2)
    assert (train.left_out, train.enlarged, test.left_out, test.enlarged) == (3, 1, 0, 0)
    remarks = (tmp_path / "out" / "train" / "remarks.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in remarks] == [
        str(album / name) for name in ("cat/001.png", "cat/004.jpg", "dog/002.jpg", "dog/nowhere.png")]
    assert "enlarged from 10 x 40" in remarks[0] and all("left out, unreadable: " in line for line in remarks[1:])
    assert not any(" at 0x" in line for line in remarks)  # the same reasons in another process
    assert "3 unreadable images left out, 1 small ones enlarged" in str(train) and "\n" not in str(train)
    folder, shards = FolderDataset(album, image_size=SIZE), ShardDataset(tmp_path / "out")
    readable = [i for i, file in enumerate(folder.files) if not any(b in file for b in (b"cat/004", b"dog/002", b"nowhere"))]
    assert torch.equal(shards.labels, folder.labels[readable])
    assert torch.equal(shards.batch(range(len(shards)))[0], folder.batch(readable)[0])
    assert shards[1][0].mean((1, 2)).tolist() == [1, -1, -1]


def test_nothing_can_be_read(tmp_path):
    for i in range(11):
        (tmp_path / "album" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "album" / "a" / f"{i:02d}.png").write_bytes(b"<html>404</html>")
    complaint(ValueError, lambda: prepare_shards(tmp_path / "album", tmp_path / "out", SIZE, workers=0), tmp_path / "album", "no image")


@pytest.mark.parametrize("change", ["class", "empty", "few", "flat"])
def test_a_split_that_does_not_fit_is_found_before_the_work(tmp_path, change):
    make_album(tmp_path / "album" / "train", 2)
    if change == "class":
        make_album(tmp_path / "album" / "test", 2, ("cat", "wolf"))
    elif change == "empty":
        (tmp_path / "album" / "test" / "cat").mkdir(parents=True)
    elif change == "flat":
        make_album(tmp_path / "album" / "val", 2, ("",))
    source = tmp_path / "album" / ("train" if change == "few" else "")
    complaint((ValueError, FileNotFoundError), lambda: prepare_shards(source, tmp_path / "out", SIZE, workers=0), {"class": "wolf", "empty": "cat", "few": "ten", "flat": "no class folders"}[change])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options, fragment", [
    ({"image_size": 0}, "image_size must be a whole number"),
    ({"image_size": "64"}, "got '64'"),
    ({"image_format": "jpg"}, "'png' or 'ppm'"),
    ({"shard_images": 0}, "shard_images must be a whole number"),
    ({"workers": -1}, "workers must be a whole number"),
    ({"target": "album/shards"}, "lies in"),
    ({"target": "album"}, "lies in"),
])  # fmt: skip
def test_impossible_settings(album, tmp_path, options, fragment):
    options = {"image_size": SIZE, "target": "out", **options}
    before = contents(tmp_path)
    complaint(ValueError, lambda: prepare_shards(album, tmp_path / options.pop("target"), **options), fragment)
    assert contents(tmp_path) == before


def test_missing_source(tmp_path):
    complaint(FileNotFoundError, lambda: prepare_shards(tmp_path / "nothing", tmp_path / "out", SIZE), tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


def test_foreign_shards_are_not_overwritten(album, tmp_path):
    foreign = tmp_path / "out" / "train" / "000000.tar"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"mine")
    complaint(ValueError, lambda: prepare_shards(album, tmp_path / "out", SIZE, workers=0), foreign.parent, "choose another folder")
    assert contents(tmp_path / "out") == {"train/000000.tar": b"mine"}


# --- Damage


def test_another_size_is_refused(shards):
    assert load_dataset(shards).image_shape == (3, SIZE, SIZE)
    complaint(ValueError, lambda: load_dataset(shards, image_size=64), shards, f"{SIZE} pixels", "not 64")


def test_flipped_byte(shards):
    dataset = ShardDataset(shards)
    dataset.verify()
    path = shards / "train" / "000002.tar"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    complaint(ValueError, lambda: ShardDataset(shards).verify(), "000002.tar", shards / "train")
    (shards / "train" / "000004.tar").unlink()
    table = np.load(shards / "train" / "images.npy")
    table["label"] = 1 - table["label"]
    (shards / "train" / "images.npy").unlink()  # `dataset` keeps the old one
    np.save(shards / "train" / "images.npy", table)
    complaint(ValueError, dataset.verify, "images.npy, 000002.tar, 000004.tar")
    complaint(ValueError, lambda: ShardDataset(shards), shards / "train" / "images.npy", "damaged")  # or the wrong labels would train


@pytest.mark.parametrize("damage", ["cut", "zeros", "other size"])
def test_damaged_image_is_named(shards, damage):
    dataset = ShardDataset(shards)
    index = len(dataset) - 1
    _, _, shard, offset, length = dataset.images[index].item()
    path = shards / "train" / f"{shard:06d}.tar"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: offset + length // 2]
    elif damage == "zeros":
        content[offset : offset + length] = bytes(length)
    else:
        picture = io.BytesIO()
        Image.new("RGB", (5, 5)).save(picture, "png")
        content[offset : offset + picture.tell()] = picture.getvalue()
    path.write_bytes(content)
    complaint(ValueError, lambda: dataset[index], path, f"image {index}", "damaged")
    with pytest.raises(ValueError, match="damaged in shard"):
        list(DataLoader(dataset, num_workers=1))


def test_missing_shard(shards):
    path = shards / "train" / "000000.tar"
    path.unlink()
    dataset = ShardDataset(shards)
    complaint(FileNotFoundError, lambda: dataset.batch(range(len(dataset))), path)


@pytest.mark.parametrize("name, content", [
    ("index.json", "{"), ("index.json", "[]"), ("index.json", "{}"), ("index.json", json.dumps({"format": 99})),
    ("images.npy", ""), ("images.npy", "no array"), ("images.npy", None),
])  # fmt: skip
def test_damaged_index(shards, name, content):
    path = Path(shards / "train" / name)
    path.unlink() if content is None else path.write_text(content)
    complaint(ValueError, lambda: load_dataset(shards), path, "prepare the shards again")


def change_index(folder, change):
    "Apply a function to what index.json holds."
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("key", ["format", "image_size", "image_format", "class_names", "shards", "images", "images_sha256", "left out", "enlarged"])
@pytest.mark.parametrize("value", ["missing", None, "x", -1, True, [[]], {"a": 1}])
def test_an_index_that_cannot_be(album, shards, key, value):
    "Whatever is changed, it is refused or makes no difference to the images."
    before = ShardDataset(shards)
    pixels, labels = before.batch(range(len(before)))
    change_index(shards / "train", lambda index: index.pop(key) if value == "missing" else index.update({key: value}))
    try:
        after = ShardDataset(shards)
    except ValueError as error:
        assert "\n" not in str(error) and str(shards / "train") in str(error) and "prepare the shards again" in str(error)
        if key != "images_sha256":
            complaint(ValueError, lambda: prepare_shards(album, shards, SIZE, shard_images=5, workers=0), shards / "train")
    else:
        assert key in ("left out", "enlarged", "image_format") and torch.equal(after.batch(range(len(before)))[0], pixels) and torch.equal(after.labels, labels)


@pytest.mark.parametrize("key, value", [
    ("name", "../test/000000.tar"), ("name", "/dev/zero"), ("name", 3), ("name", None), ("bytes", 1), ("bytes", "many"), ("bytes", 10**30), ("sha256", []),
])  # fmt: skip
def test_a_shard_that_cannot_be(shards, key, value):
    change_index(shards / "train", lambda index: index["shards"][1].update({key: value}))
    complaint(ValueError, lambda: ShardDataset(shards), shards / "train", "prepare the shards again")


def test_an_index_nested_without_end(shards):
    (shards / "train" / "index.json").write_text('{"format": ' + "[" * 100_000)
    complaint(ValueError, lambda: ShardDataset(shards), shards / "train" / "index.json", "prepare the shards again")


@pytest.mark.parametrize("column, value", [("label", 2), ("label", -1), ("shard", 5), ("shard", -1), ("offset", -1), ("offset", 2**62), ("length", 0), ("length", 2**62)])
@pytest.mark.parametrize("honest", [True, False])
def test_a_table_that_cannot_be(shards, column, value, honest):
    "Also if its checksum says that nothing happened."
    path = shards / "train" / "images.npy"
    table = np.load(path)
    table[column][3] = value
    np.save(path, table)
    if not honest:
        change_index(shards / "train", lambda index: index.update(images_sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    complaint(ValueError, lambda: ShardDataset(shards), path, "damaged", "prepare the shards again")


@pytest.mark.parametrize("kind", ["other columns", "fewer rows", "objects", "zip"])
def test_a_table_of_another_kind(shards, kind):
    path = shards / "train" / "images.npy"
    table = np.load(path)
    table = {"other columns": table["label"], "fewer rows": table[1:], "objects": np.array([{}, None]), "zip": table}[kind]
    np.savez(path.with_suffix(".npz"), table)
    path.with_suffix(".npz").rename(path) if kind == "zip" else np.save(path, table)
    change_index(shards / "train", lambda index: index.update(images_sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
    complaint(ValueError, lambda: ShardDataset(shards), path, "damaged", "prepare the shards again")


def interrupted(album, target, monkeypatch):
    "All shards of train and their journal, but no index."
    with monkeypatch.context() as patch:
        patch.setattr(farmer.shards, "_write_index", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare_shards(album, target, SIZE, shard_images=5, workers=0)
    return target / "train" / "journal.jsonl"


@pytest.mark.parametrize("line", [
    "{}", "[]", "3", "null", "[" * 100_000, '{"name": "000001.tar"}', '{"name": "../../x", "bytes": 5, "sha256": "", "images": [], "remarks": []}',
    '{"name": "000001.tar", "bytes": 1, "sha256": "", "images": [[0, 1]], "remarks": []}', '{"name": "000001.tar", "bytes": 1, "sha256": "", "images": 3, "remarks": []}',
    '{"name": "000001.tar", "bytes": 1, "sha256": "", "images": [[99, 0, 0, 1]], "remarks": []}', "\0\0\0\0",
    '{"name": "000001.tar", "bytes": 1, "sha256": "", "images": [], "remarks": [[99, "left out"]]}',
    '{"name": "000001.tar", "bytes": 1, "sha256": "", "images": [], "remarks": [[0, 1]]}', '{"name": "000001.tar", "bytes": 1, "sha256": "", "images": [], "remarks": [[[], ""]]}',
])  # fmt: skip
def test_a_damaged_journal(album, tmp_path, monkeypatch, line):
    journal = interrupted(album, tmp_path / "out", monkeypatch)
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([*lines[:2], line, *lines[3:]]) + "\n")
    complaint(ValueError, lambda: prepare_shards(album, tmp_path / "out", SIZE, shard_images=5, workers=0), journal, "damaged", "delete")


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_shards_that_the_journal_has_and_the_disk_has_not(album, shards, tmp_path, monkeypatch, damage):
    "They, and what follows, are made again."
    interrupted(album, tmp_path / "out", monkeypatch)
    path = tmp_path / "out" / "train" / "000002.tar"
    content = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(content[:-512])
    train, _ = prepare_shards(album, tmp_path / "out", SIZE, shard_images=5, workers=0)
    assert train.kept == 2 and contents(tmp_path / "out") == contents(shards)


# --- Shards of other tools


def pack(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def foreign_samples(folder, start, stop):
    for i in range(start, stop):
        name = os.fsdecode(folder.files[i])
        key = f"./part.1/{i}"  # a dot in the folder is no suffix
        yield f"{key}.{name[-3:].upper()}", Path(name).read_bytes()
        yield f"{key}.json", b"{}"
        yield f"{key}.cls", f"{int(folder.labels[i])}\n".encode()


def test_index_of_foreign_shards(album, tmp_path):
    folder = FolderDataset(album, image_size=SIZE)
    pack(tmp_path / "out" / "train" / "a.tar", foreign_samples(folder, 0, 15))
    pack(tmp_path / "out" / "train" / "b.tar", foreign_samples(folder, 15, len(folder)))
    index_shards(tmp_path / "out" / "train", SIZE, ["cat", "dog"])
    shards = load_dataset(tmp_path / "out", image_size=SIZE)
    shards.verify()
    assert shards.class_names == ["cat", "dog"] and torch.equal(shards.labels, folder.labels)
    assert torch.equal(shards.batch(range(len(shards)))[0], folder.batch(range(len(folder)))[0])
    complaint(ValueError, lambda: index_shards(tmp_path / "out" / "train", SIZE), "index already")
    complaint(ValueError, lambda: prepare_shards(album, tmp_path / "out", SIZE, workers=0), tmp_path / "out" / "train", "choose another folder")


def test_keys_with_dots(tmp_path):
    "A picture with a label of its own is an image; one without belongs to the sample that the first dot ends."
    files = {name: encoded(Image.new("RGB", (8, 8), (shade, 0, 0))) for name, shade in (("a.png", 1), ("a.b.png", 2), ("c.1.png", 3), ("c.2.PNG", 4), ("d.png", 5))}
    files |= {name: b"%d" % label for name, label in (("a.cls", 0), ("a.b.cls", 1), ("c.1.cls", 2), ("c.2.cls", 3), ("d.cls", 4), ("d.rank.cls", 7))}
    files |= {"d.mask.png": encoded(Image.new("RGB", (8, 8))), "d.txt": b"a dog"}
    pack(tmp_path / "train" / "0.tar", files.items())
    index_shards(tmp_path / "train", 8)
    shards = ShardDataset(tmp_path)
    assert shards.labels.tolist() == [0, 1, 2, 3, 4] and shards.pixel_batch(range(5))[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5]


def test_members_that_are_no_files(tmp_path):
    (tmp_path / "train").mkdir()
    with tarfile.open(tmp_path / "train" / "0.tar", "w") as tar:
        for name, kind in (("1.png", tarfile.SYMTYPE), ("1.cls", tarfile.FIFOTYPE), ("2.cls", tarfile.DIRTYPE)):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, "/etc/passwd"
            tar.addfile(header)
    complaint(FileNotFoundError, lambda: index_shards(tmp_path / "train", 8), "no shards with images")


@pytest.mark.parametrize("samples, fragment", [
    ([("1.png", b"x"), ("1.jpg", b"y"), ("1.cls", b"0")], "two pictures of 1"),
    ([("1.png", b"x"), ("1.cls", b"0"), ("1.png", b"y"), ("1.cls", b"1")], "two pictures of 1"),
    ([("1.png", b"x"), ("1.cls", b"0"), ("1.cls", b"1")], "two labels of 1"),
    ([("1.left.png", b"x"), ("1.right.png", b"x"), ("1.cls", b"0")], "lacks 2 labels, the first in 1.left.cls"),
    ([("1.png", b"x"), ("1.cls", b"0"), ("2.jp2", b"x"), ("2.cls", b"0")], "1 labels without a picture, the first 2.cls"),
    ([("1.png", b"x"), ("1.cls", b"9" * 5000)], "label 99999999"),
    ([("1.png", b"x")], "1.cls"),
    ([("1.png", b"x"), ("1.cls", b"cat")], "no numbers"),
    ([("1.png", b"x"), ("1.cls", b"-1")], "1.cls"),
    ([("1.png", b"x"), ("1.cls", b"3")], "label 3 for 2 class names"),
    ([("1.cls", b"3")], "no shards with images"),
    (None, "no shards with images"),
    (b"no tar file at all" * 100, "damaged"),
])  # fmt: skip
def test_foreign_shards_that_cannot_be_read(tmp_path, samples, fragment):
    if isinstance(samples, bytes):
        (tmp_path / "a.tar").write_bytes(samples)
    elif samples is not None:
        pack(tmp_path / "a.tar", samples)
    complaint((ValueError, FileNotFoundError), lambda: index_shards(tmp_path, SIZE, ["a", "b"]), fragment, tmp_path if "label" not in fragment else "")
    assert not (tmp_path / "index.json").exists()
