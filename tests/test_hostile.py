"""Files that are damaged, foreign or hostile: each ends in one line, or loads with the right values, and no code of theirs runs.

A seeded fuzzer damages every kind of file that this library reads. 60 cases run by default, as many as the environment
variable FARMER_FUZZ says if it is there.
"""
import copy
import io
import json
import os
import pickle
import random
import resource
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import complaint, photos, seeded, small
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, metadata as dcp_metadata

from farmer.checkpoints import CheckpointWriter, load_checkpoint, newest_checkpoint
from farmer.checks import parse_json, read_arrays, read_json
from farmer.data import IMAGE_SIZES, load_dataset
from farmer.distributed import Ranks
from farmer.evaluation import EvaluationConfig, Features, Inception, _write_arrays, draw_samples, read_reference
from farmer.inversion import Student
from farmer.model import Farmer
from farmer.pretrained import read_source, save_source
from farmer.shards import prepare_shards
from farmer.training import read_log

CASES = int(os.environ.get("FARMER_FUZZ", 60))

# --- Every kind of file, how it is made and what reading it gives

FACTS = {"model_config": {"width": 3}, "training_config": {}, "data": "none"}


def parts(seed: int = 0) -> tuple:
    "What a checkpoint is of: a layer, its optimiser after a step, its average, a count."
    torch.manual_seed(seed)
    layer = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return layer, [optimizer], copy.deepcopy(layer), torch.tensor(5)


def look(images: torch.Tensor) -> Features:
    flat = images.flatten(1)
    return Features(flat[:, :5], flat[:, :10], flat[:, 20:26])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    "A run's folder with every kind of file."
    folder = tmp_path_factory.mktemp("files")
    model = small()
    model.class_names = ("a", "b", "c")
    model.save_pretrained(folder / "model")
    Student(model.flow).save_pretrained(folder / "model")
    save_source(folder, "digits")
    (folder / "log.jsonl").write_text("".join(json.dumps({"step": step, "loss": 3.5}) + "\n" for step in range(10, 60, 10)))
    writer = CheckpointWriter(folder, Ranks(), minutes=1)
    with writer.until_saved():
        writer.save(7, FACTS, *parts())
    list(prepare_shards(photos(folder / "photos", 10), folder / "shards", 8, "png", 4, 0))
    values = torch.randint(256, (40, 6, 6, 3), dtype=torch.uint8, generator=seeded()).numpy()
    _write_arrays(folder / "reference.npz", arr_0=values, mu=np.arange(5.0), sigma=np.eye(5), mu_s=np.arange(6.0), sigma_s=np.eye(6))
    draw(folder, model)
    return folder


def draw(folder: Path, model: Farmer | None = None) -> object:
    readers, broken = draw_samples(model or Farmer.from_pretrained(folder / "model"), EvaluationConfig(samples=8, chunk=4), folder, 5, "mine")
    return [[part.tolist() for part in read()] for read in readers], broken


def weights(module: nn.Module) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in module.state_dict().items()}


def known(name: str) -> str:
    "The name of a data set; others are refused when they are loaded."
    if name not in IMAGE_SIZES:
        complaint((ValueError, FileNotFoundError), lambda: load_dataset(name))
        raise ValueError("unknown")
    return name


def read_model(folder: Path) -> object:
    model = Farmer.from_pretrained(folder / "model")
    return weights(model), model.config, model.class_names


def read_checkpoint(folder: Path) -> object:
    layer, [optimizer], average, updates = loaded = parts(seed=1)
    step = load_checkpoint(newest_checkpoint(folder), FACTS, *loaded)
    moments = [value.tolist() for state in optimizer.state.values() for value in state.values()]
    return step, weights(layer), moments, weights(average), updates.item()


def read_shards(folder: Path) -> object:
    data = load_dataset(folder / "shards", image_size=8)
    return data.pixel_batch(range(len(data))).tolist(), data.labels.tolist()


def see_reference(folder: Path) -> object:
    real = read_reference(folder / "reference.npz", look, (3, 6, 6))
    return real.pooled.tolist(), [part.tolist() for part in (*real.statistics, *real.spatial)]


CHECKPOINT = "checkpoints/step-00000007/"
READERS = {
    "model/config.json": read_model,
    "model/model.safetensors": read_model,
    "model/student.safetensors": lambda folder: weights(Student.from_pretrained(folder / "model")),
    "run.json": lambda folder: known(read_source(folder / "model")),
    "log.jsonl": lambda folder: all(isinstance(record, dict) and "step" in record for record in read_log(folder)),
    CHECKPOINT + "manifest.json": read_checkpoint,
    CHECKPOINT + ".metadata": read_checkpoint,
    CHECKPOINT + "__0_0.distcp": read_checkpoint,
    "shards/train/index.json": read_shards,
    "shards/train/images.npy": read_shards,
    "reference.npz": see_reference,
    "samples/00001.npz": draw,
}

# --- The fuzzer

ODD = [None, True, -1, 0, 10**30, 1.5, 1e999, "x", "\n", [], {}, [[[]]], {"step": "step"}]


def change_json(values: object, chance: random.Random) -> object:
    "The values with one of them lost, of another kind, or of another name."
    if isinstance(values, (dict, list)) and values and chance.random() < 0.8:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        key, kind = chance.choice(keys), chance.randrange(4)
        values = copy.copy(values)
        if kind == 0:
            values.pop(key)
        elif kind == 1 and isinstance(values, dict):
            values[f"{key}?"] = values.pop(key)
        else:
            values[key] = change_json(values[key], chance)
        return values
    return chance.choice(ODD)


def damage(content: bytes, others: list[bytes], is_json: bool, chance: random.Random) -> bytes:
    "A content, spoiled in a way that chance decides."
    place, kind = chance.randrange(len(content)), chance.randrange(12 if is_json else 8)
    if kind < 3:  # single bytes, often near the start, where headers are
        spoiled = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 8))):
            where = chance.randrange(len(content) if chance.random() < 0.5 else min(300, len(content)))
            spoiled[where] ^= 1 << chance.randrange(8) if kind else chance.randrange(1, 256)
        return bytes(spoiled)
    if kind == 3:
        return content[:place]
    if kind == 4:
        return content[:place] + chance.randbytes(chance.randrange(1, 100)) + content[place:]
    if kind == 5:
        end = place + chance.randrange(1, 200)
        return content[:place] + bytes(len(content[place:end])) + content[end:]
    if kind == 6:
        return chance.choice([b"", b"\0" * 100, chance.randbytes(500), *others])
    if kind == 7:
        return content[:place] + content[place + chance.randrange(1, 50) :]
    if kind == 8:
        depth = chance.choice((100, 5000, 200_000))
        nested = b"[" * depth + b"]" * depth
        return chance.choice((nested, nested[:depth], b'{"step":' * depth, content.rstrip()[:-1] + b', "a": ' + nested + b"}"))
    lines = content.splitlines() if b'"loss"' in content else [content]
    return b"".join(json.dumps(change_json(json.loads(line), chance)).encode() + b"\n" for line in lines)


def outcome(read, folder: Path, seen: str) -> object:
    "What reading gives, or None for an error in one line. Fails for any other error, and for what takes long or much."
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        return read(folder)
    except (ValueError, OSError) as error:
        message = str(error)
        assert message and "\n" not in message, f"{seen}: {message!r}"
        return None
    except Exception as error:
        raise AssertionError(f"{seen}: {type(error).__name__}: {error}") from error
    finally:
        assert time.process_time() - start < 10, f"{seen} takes long"
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, f"{seen} takes more than 1 GB"


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_refused_or_read_rightly(files, name, capsys):
    read, path = READERS[name], files / name
    whole, right, is_json = path.read_bytes(), READERS[name](files), name.endswith(("json", "jsonl"))
    others = [(files / other).read_bytes() for other in READERS if other != name]
    refused = 0
    for case in range(-(-CASES // len(READERS))):
        spoiled = damage(whole, others, is_json, random.Random(f"{name} {case}"))
        try:
            path.write_bytes(spoiled)
            found = outcome(read, files, f"{name}, case {case}")
        finally:
            path.write_bytes(whole)
        assert found is None or found == right, f"{name}, case {case} is believed"
        refused += found is None
    assert refused or name == "log.jsonl"
    assert READERS[name](files) == right


def fit_manifest(checkpoint: Path) -> None:
    "Make a manifest agree with files that were changed, as malice would."
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "crc32": zlib.crc32(content)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_damage_that_the_manifest_hides_is_an_error_in_one_line_at_most(files, name):
    checkpoint = files / CHECKPOINT
    whole = {path: path.read_bytes() for path in checkpoint.iterdir()}
    for case in range(-(-CASES // len(READERS))):
        try:
            (checkpoint / name).write_bytes(damage(whole[checkpoint / name], [], False, random.Random(f"hidden {name} {case}")))
            fit_manifest(checkpoint)
            outcome(read_checkpoint, files, f"{name}, case {case}")
        finally:
            for path, content in whole.items():
                path.write_bytes(content)


# --- Code that data could run


class Evil:
    "A pickle of it creates a file when it is read."

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def with_evil_metadata(folder: Path, evil: Evil) -> None:
    (folder / CHECKPOINT / ".metadata").write_bytes(pickle.dumps(evil))


def with_evil_field(folder: Path, evil: Evil) -> None:
    "All classes are torch's own, but one of the values is not."
    metadata = FileSystemReader(folder / CHECKPOINT).read_metadata()
    metadata.planner_data = evil
    (folder / CHECKPOINT / ".metadata").write_bytes(pickle.dumps(metadata))


def with_evil_number(folder: Path, evil: Evil) -> None:
    "A learning rate that is a pickle, among the tensors."
    checkpoint, content = folder / CHECKPOINT, io.BytesIO()
    torch.save(evil, content)
    metadata, data = FileSystemReader(checkpoint).read_metadata(), checkpoint / "__0_0.distcp"
    [place] = [info for index, info in metadata.storage_data.items() if index.fqn.endswith("param_groups.0.lr")]
    place.offset, place.length = data.stat().st_size, len(content.getvalue())
    data.write_bytes(data.read_bytes() + content.getvalue())
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))


def with_evil_arrays(path: Path, evil: Evil, *names: str) -> None:
    np.savez(path, **{name: np.array([evil], dtype=object) for name in names})


EVIL = {
    "metadata": (with_evil_metadata, read_checkpoint, "no checkpoint needs"),
    "field of the metadata": (with_evil_field, read_checkpoint, "no checkpoint needs"),
    "number of the optimiser": (with_evil_number, read_checkpoint, "cannot be loaded"),
    "model": (lambda folder, evil: torch.save(evil, folder / "model/model.safetensors"), read_model, "not a safetensors file"),
    "student": (lambda folder, evil: torch.save(evil, folder / "model/student.safetensors"), READERS["model/student.safetensors"], "not a safetensors file"),
    "inception": (lambda folder, evil: torch.save(evil, folder / "evil.pth"), lambda folder: Inception(folder / "evil.pth"), "SHA-256"),
    "reference": (lambda folder, evil: with_evil_arrays(folder / "reference.npz", evil, "arr_0"), see_reference, "needs arr_0"),
    "samples": (lambda folder, evil: with_evil_arrays(folder / "samples/00001.npz", evil, "images", "identity"), draw, "draws it again"),
    "shards": (lambda folder, evil: np.save(folder / "shards/train/images.npy", np.array([evil], dtype=object)), read_shards, "images.npy"),
}


@pytest.mark.parametrize("place", EVIL)
def test_no_file_runs_code(files, tmp_path, place):
    spoil, read, words = EVIL[place]
    evil, before = Evil(tmp_path / "executed"), {path: path.read_bytes() for path in files.rglob("*") if path.is_file()}
    try:
        spoil(files, evil)
        fit_manifest(files / CHECKPOINT)
        complaint(ValueError, lambda: read(files), words)
        assert not evil.path.exists()
    finally:
        for path, content in before.items():
            path.write_bytes(content)
    pickle.loads(pickle.dumps(evil))  # it would have run
    assert evil.path.exists()


def test_a_checkpoint_changes_no_class_and_reads_no_other_folder(files):
    checkpoint = files / CHECKPOINT
    before = {path: path.read_bytes() for path in checkpoint.iterdir()}
    hostile = b"".join([pickle.PROTO, b"\2", b"ctorch.distributed.checkpoint.metadata\nMetadata\n", b"N}(X\7\0\0\0versionX\3\0\0\0badu\x86b."])
    elsewhere = FileSystemReader(checkpoint).read_metadata()
    for place in elsewhere.storage_data.values():
        place.relative_path = f"../step-00000007/{place.relative_path}"
    try:
        for content, words in ((hostile, "more than its own data"), (pickle.dumps(elsewhere), "another folder")):
            (checkpoint / ".metadata").write_bytes(content)
            fit_manifest(checkpoint)
            complaint(ValueError, lambda: read_checkpoint(files), words, "step-00000007")
        assert dcp_metadata.Metadata.version is None
        pickle.loads(hostile)
        assert dcp_metadata.Metadata.version == "bad"  # what pickle would have done
    finally:
        dcp_metadata.Metadata.version = None
        for path, content in before.items():
            path.write_bytes(content)


# --- What comes from a disk


@pytest.mark.parametrize("content, words", [
    (b"", "Expecting value"), (b"[1]", "no keys"), (b'{"b": 1}', "'a' is missing"), (b'{"a": true}', "'a' is True, not int | None"),
    (b'{"a": 1.0}', "'a' is 1.0"), (b'{"a": NaN}', "NaN is no number"), (b"[" * 100_000, "nested too deeply"), (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
    (b"\xff\xfe{", "codec"), (b"\xff\0", "Expecting"),
])  # fmt: skip
def test_json_from_a_disk_is_checked(tmp_path, content, words):
    (tmp_path / "x.json").write_bytes(content)
    complaint(ValueError, lambda: read_json(tmp_path / "x.json", "a note", {"a": int | None}), "x.json is not a note", words)


def test_types_of_json():
    good = {"whole": 3, "real": 2, "text": "x", "names": ["a"], "sizes": {"a": {"b": 1}}, "more": None}
    kinds = {"whole": int, "real": float, "text": str, "names": list[str], "sizes": dict[str, dict[str, int]], "more": str | None}
    assert parse_json(json.dumps(good), "x", "a note", kinds) == good
    for key, wrong in {"whole": 3.0, "real": True, "text": None, "names": ["a", 1], "sizes": {"a": {"b": "c"}}, "more": 1}.items():
        complaint(ValueError, lambda: parse_json(json.dumps({**good, key: wrong}), "x", "a note", kinds), repr(key))
    complaint(ValueError, lambda: parse_json('{"real": 1e999}', "x", "a note", {"real": float}), "'real' is inf")


def test_what_is_no_file_or_too_large_is_no_json(tmp_path):
    complaint(FileNotFoundError, lambda: read_json(tmp_path / "none.json", "a note", {}), "none.json")
    os.mkfifo(tmp_path / "pipe.json")
    with open(tmp_path / "large.json", "wb") as file:
        file.truncate(2**24 + 1)
    for name in ("pipe.json", "large.json", ""):
        complaint(ValueError, lambda: read_json(tmp_path / name, "a note", {}), "no file, or too large")


@pytest.mark.parametrize("array", [np.zeros((3, 2)), np.zeros(3, np.float32) * np.nan, np.zeros(0), np.zeros(3, int), np.array(["a"] * 3), np.full(3, np.inf)])
def test_arrays_from_a_disk_are_checked(tmp_path, array):
    np.savez(tmp_path / "x.npz", a=array)
    read = lambda: read_arrays(tmp_path / "x.npz", "a set; make it again", {"a": (np.floating, (None,))})
    complaint(ValueError, read, "is not a set", "make it again", array.dtype)
    complaint(ValueError, lambda: read_arrays(tmp_path / "x.npz", "a set", {"b": (np.floating, (None,))}), "damaged or not a set")
    assert read_arrays(tmp_path / "x.npz", "a set", {"b": (np.floating, (None,))}, optional=["b"]) == {}
