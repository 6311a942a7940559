"Models in folders and on the hub: files that survive accidents, are checked before they are used, and say what is wrong."
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import huggingface_hub
import pytest
import torch
from helpers import clean_images, complaint, contents, seeded, small
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from farmer.data import load_dataset
from farmer.files import replace_files
from farmer.inversion import Student, certify
from farmer.model import Farmer
from farmer.patches import dequantize
from farmer.pretrained import embedded_models, load_student, model_card, read_source, save_source, weights_note

# --- Files


@pytest.fixture
def folder(tmp_path) -> Path:
    small().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("changes", [{}, dict(informative_channels=None), dict(prior="standard-normal", num_classes=0), dict(dropout=0.2, final_order_flip=False)])
def test_saved_and_loaded_is_bit_identical(tmp_path, changes, dtype):
    model, images = small(**changes).to(dtype), clean_images()
    model.basis.matrix.copy_(torch.linalg.qr(torch.randn(4, 4))[0])
    model.save_pretrained(tmp_path / "deep" / "folder")
    for name in (tmp_path / "deep" / "folder", str(tmp_path / "deep" / "folder")):
        loaded = Farmer.from_pretrained(name)
        assert loaded.config == model.config and not loaded.training and isinstance(loaded, Farmer)
        assert torch.equal(loaded.log_prob(images), model.log_prob(images)) and loaded.basis.matrix.dtype == dtype
    assert sorted(contents(tmp_path / "deep" / "folder")) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("half", [False, True])
def test_half_precision_halves_the_files_and_keeps_the_rotation(tmp_path, half):
    "What is loaded is a float32 model with rounded weights, which its student fits and which is as invertible as any."
    model = Farmer.from_pretrained("glyphs")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, half=half)
    Student.from_pretrained("glyphs").save_pretrained(tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    size = (tmp_path / "model.safetensors").stat().st_size / sum(4 * tensor.numel() for tensor in before.values())
    assert (0.5 < size < 0.52) if half else (1 < size < 1.02)
    loaded = Farmer.from_pretrained(tmp_path)
    assert Student.from_pretrained(tmp_path).bind(loaded.flow) and torch.equal(loaded.basis.matrix, before["basis.matrix"])
    for name, tensor in loaded.state_dict().items():
        rounded = before[name].half().float() if half and name != "basis.matrix" else before[name]
        assert tensor.dtype == torch.float32 and torch.equal(tensor, rounded)
    images = model.sample([3, 8], generator=seeded())
    assert_close(loaded.decode(loaded.encode(images)), images, rtol=0, atol=1e-4)


def test_saving_does_not_move_or_change_the_model(tmp_path):
    model, images = small(), clean_images()
    before = model.log_prob(images)
    model.save_pretrained(tmp_path)
    assert torch.equal(model.log_prob(images), before) and model.training


def test_nothing_there(tmp_path):
    complaint(FileNotFoundError, lambda: Farmer.from_pretrained("no-such-model"), "'no-such-model'", "digits, glyphs")
    complaint(FileNotFoundError, lambda: Farmer.from_pretrained(tmp_path), "no config.json", "save_pretrained")
    complaint(FileNotFoundError, lambda: Farmer.from_pretrained("../pretrained"), "'../pretrained'")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    complaint(FileNotFoundError, lambda: Farmer.from_pretrained(folder), f"no {name}", str(folder))


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_truncated_file(folder, name, keep):
    (folder / name).write_bytes((folder / name).read_bytes()[:keep])
    complaint(ValueError, lambda: Farmer.from_pretrained(folder), name, str(folder))


@pytest.mark.parametrize("text", ['{"model_type": "bert"}', "[1, 2]", "3", "null", '"farmer_format"', "not json", "\ufeff", '{"farmer_format": 1}',
                                  '{"farmer_format": 1, "image_shape": 8}', '{"farmer_format": 1, "image_shape": [1, 8, 8], "colour": 3}',
                                  '{"farmer_format": 1, "image_shape": [1, 8, 8], "patch_size": 3}'])
def test_foreign_or_edited_configuration(folder, text):
    (folder / "config.json").write_text(text, encoding="utf-8")
    complaint(ValueError, lambda: Farmer.from_pretrained(folder), "config.json", str(folder))


def test_configuration_that_is_not_text(folder):
    (folder / "config.json").write_bytes(bytes(range(128, 256)))
    complaint(ValueError, lambda: Farmer.from_pretrained(folder), "config.json")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_configuration_of_another_version(folder, version):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "farmer_format": version}))
    complaint(ValueError, lambda: Farmer.from_pretrained(folder), "format", "reads format 1", "version that wrote it")


def test_foreign_weights(folder):
    config = (folder / "config.json").read_text()
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")
    complaint(ValueError, lambda: Farmer.from_pretrained(folder), "two different saves")
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors", {"config": config})
    complaint(ValueError, lambda: Farmer.from_pretrained(folder), "does not hold the weights")
    weights = small().state_dict()
    for spoiled in ({**weights, "extra": torch.zeros(3)}, {**weights, "basis.matrix": torch.eye(5)}, {k: v for k, v in weights.items() if "start" not in k}):
        save_file(spoiled, folder / "model.safetensors", {"config": config})
        complaint(ValueError, lambda: Farmer.from_pretrained(folder), "does not hold the weights")
    torch.save(weights, folder / "model.safetensors")
    complaint(ValueError, lambda: Farmer.from_pretrained(folder), "not a safetensors file")


@pytest.mark.parametrize("changes", [dict(final_order_flip=False), dict(components=5)])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_files_of_two_models_in_one_folder(folder, tmp_path, name, changes):
    small(**changes).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, folder / name)
    complaint(ValueError, lambda: Farmer.from_pretrained(folder), "two different saves", str(folder))


@pytest.mark.parametrize("changes", [{}, dict(components=5)])
@pytest.mark.parametrize("function", ["os.replace", "os.fsync"])
def test_a_save_that_fails_leaves_the_earlier_model(folder, function, changes):
    before, images = contents(folder), clean_images()
    expected = Farmer.from_pretrained(folder).log_prob(images)
    with mock.patch(function, side_effect=OSError("disk has gone")), pytest.raises(OSError, match="disk has gone"):
        small(seed=1, **changes).save_pretrained(folder)
    assert contents(folder) == before
    assert torch.equal(Farmer.from_pretrained(folder).log_prob(images), expected)


def test_a_save_that_fails_between_the_two_renames_is_noticed(folder):
    rename, calls = os.replace, []

    def second_fails(*paths):
        calls.append(paths)
        if len(calls) == 2:
            raise OSError("disk has gone")
        rename(*paths)

    with mock.patch("os.replace", second_fails), pytest.raises(OSError):
        small(components=5).save_pretrained(folder)
    assert sorted(contents(folder)) == ["config.json", "model.safetensors"]
    complaint(ValueError, lambda: Farmer.from_pretrained(folder), "two different saves")


def test_all_files_are_written_before_the_first_is_replaced(tmp_path):
    old = {tmp_path / "a": b"old a", tmp_path / "b": b"old b"}
    replace_files(old)
    with pytest.raises(TypeError):
        replace_files({tmp_path / "a": b"new", tmp_path / "b": "text is no bytes"})
    assert contents(tmp_path) == {"a": b"old a", "b": b"old b"}


SCRIPT = """
import os, resource, signal, sys, time
sys.path.insert(0, {tests!r})
from helpers import small
model = small(seed=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))  # no file may grow beyond it, as on a full disk
try:
    model.save_pretrained({folder!r})
except OSError as error:
    print(error.strerror, flush=True)
sys.stdin.readline()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
os.replace = lambda *paths: (print("all bytes written, no rename done", flush=True), time.sleep(60))
model.save_pretrained({folder!r})
"""


def test_full_disk_and_kill_leave_the_earlier_model(folder):
    before, images = contents(folder), clean_images()
    expected = Farmer.from_pretrained(folder).log_prob(images)
    script = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder), size=len(before["model.safetensors"]) // 2)
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "File too large\n"
    assert contents(folder) == before
    process.stdin.write("go on\n")
    process.stdin.flush()
    assert process.stdout.readline() == "all bytes written, no rename done\n"
    process.kill()
    process.communicate(timeout=60)
    after = contents(folder)
    assert {name: after[name] for name in before} == before and len(after) > len(before)
    assert torch.equal(Farmer.from_pretrained(folder).log_prob(images), expected)
    small(seed=1).save_pretrained(folder)  # and the debris is no obstacle
    assert torch.equal(Farmer.from_pretrained(folder).log_prob(images), small(seed=1).log_prob(images))


def test_older_files_without_a_newer_field_take_its_default(folder):
    values = {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "scale_first_token"}
    text, weights = json.dumps(values), load_file(folder / "model.safetensors")
    (folder / "config.json").write_text(text)
    save_file(weights, folder / "model.safetensors", {"config": text})
    assert Farmer.from_pretrained(folder).config.scale_first_token is True


# --- Class names


@pytest.mark.parametrize("half", [False, True])
def test_class_names_travel_with_the_weights(tmp_path, half):
    model = small()
    assert model.class_names == ()
    model.save_pretrained(tmp_path, half=half)
    assert "class_names" not in json.loads((tmp_path / "config.json").read_text()) and Farmer.from_pretrained(tmp_path).class_names == ()
    Student(Farmer.from_pretrained(tmp_path).flow).save_pretrained(tmp_path)
    model.class_names = ["Füchse", "2", "a, b"]
    model.save_pretrained(tmp_path, half=half)
    loaded = Farmer.from_pretrained(tmp_path)
    assert loaded.class_names == ("Füchse", "2", "a, b") and loaded.config == model.config
    assert Student.from_pretrained(tmp_path).bind(loaded.flow)  # named classes make no other model


def test_class_names_are_those_of_all_classes(tmp_path):
    model = small()
    model.class_names = ("a", "b")
    complaint(ValueError, lambda: model.save_pretrained(tmp_path / "model"), "class_names", "3 classes")
    assert not (tmp_path / "model").exists()
    model = small(num_classes=0)
    model.class_names = ("a", "b")  # of the data, which the model does not tell apart
    model.save_pretrained(tmp_path / "model")
    assert Farmer.from_pretrained(tmp_path / "model").class_names == ()


@pytest.mark.parametrize("names", ["abc", ["a", "b"], ["a", "b", 3], {"a": 1, "b": 2, "c": 3}, None])
def test_other_class_names_are_refused(folder, names):
    rewrite(folder, config={**json.loads((folder / "config.json").read_text()), "class_names": names})
    complaint(ValueError, lambda: Farmer.from_pretrained(folder), "config.json", "class_names")


def test_the_card_names_the_classes():
    assert "Classes: 0 a, 1 b\n" in model_card(small().config, None, ("a", "b")) and "Classes" not in model_card(small().config)


@pytest.mark.parametrize("name", embedded_models())
def test_embedded_models_name_their_classes(name):
    names = load_dataset("photos").class_names if read_source(name) == "photos" else "0123456789"
    assert Farmer.from_pretrained(name).class_names == tuple(names)


# --- Weights that are no model's


def rewrite(folder: Path, tensors: dict | None = None, config: dict | None = None, checksum: bool = False) -> None:
    "The files of a model with other tensors or another configuration, without a checksum, as earlier versions wrote them, or with the old one."
    text = (folder / "config.json").read_text() if config is None else json.dumps(config)
    with safe_open(folder / "model.safetensors", "pt") as file:
        metadata = file.metadata() if checksum else {}
    save_file(load_file(folder / "model.safetensors") if tensors is None else tensors, folder / "model.safetensors", {**metadata, "config": text})
    (folder / "config.json").write_text(text)


def test_files_without_a_checksum_load(folder):
    right = Farmer.from_pretrained(folder).state_dict()
    rewrite(folder)
    assert all(torch.equal(tensor, right[name]) for name, tensor in Farmer.from_pretrained(folder).state_dict().items())


SPOIL = {
    "one NaN": (lambda name, t: t.index_fill(0, torch.tensor([0]), math.nan) if name == "prior.position" else t, "not finite"),
    "infinity": (lambda name, t: t / 0 if name == "flow.blocks.0.position" else t, "not finite"),
    "zeros": (lambda name, t: torch.zeros_like(t), "zeros alone"),
    "zeros but for the basis": (lambda name, t: t if name.startswith("basis") else torch.zeros_like(t), "zeros alone"),
    "integers": (lambda name, t: t.mul(100).to(torch.int32), "does not hold the weights"),
    "one of integers": (lambda name, t: t.to(torch.int64) if name == "prior.position" else t, "does not hold the weights"),
    "stretched basis": (lambda name, t: 1.001 * t if name == "basis.matrix" else t, "no rotation"),
    "sheared basis": (lambda name, t: t + torch.ones(4, 4).triu(1) if name == "basis.matrix" else t, "no rotation"),
    "transposed": (lambda name, t: t.mT.contiguous() if t.dim() == 2 else t, "does not hold the weights"),
}


@pytest.mark.parametrize("kind", SPOIL)
def test_what_are_no_weights_is_refused(folder, kind):
    change, words = SPOIL[kind]
    whole = load_file(folder / "model.safetensors")
    spoiled = {name: change(name, tensor) for name, tensor in whole.items()}
    assert any(not torch.equal(whole[name], tensor) for name, tensor in spoiled.items())
    rewrite(folder, spoiled)
    complaint(ValueError, lambda: Farmer.from_pretrained(folder), words, "model.safetensors")
    rewrite(folder, whole)
    assert Farmer.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("place", [0.3, 0.9, -1])
def test_a_flipped_bit_of_weights_is_noticed(folder, place, dtype):
    "The lowest bit of a number: no check of values could see it."
    small().to(dtype).save_pretrained(folder)
    Student(Farmer.from_pretrained(folder).flow).save_pretrained(folder)
    for name, load in (("student.safetensors", Student), ("model.safetensors", Farmer)):
        content = bytearray((folder / name).read_bytes())
        start = 8 + int.from_bytes(content[:8], "little")
        where = len(content) - dtype.itemsize if place == -1 else start + int((len(content) - start) * place) // 8 * 8
        content[where] ^= 1
        (folder / name).write_bytes(content)
        complaint(ValueError, lambda: load.from_pretrained(folder), f"{name} is damaged", "checksum")


def test_the_same_weights_make_the_same_files(folder):
    Student(Farmer.from_pretrained(folder).flow).save_pretrained(folder)
    before = contents(folder)
    for _ in range(5):
        model = Farmer.from_pretrained(folder)
        model.save_pretrained(folder)
        Student(model.flow).save_pretrained(folder)
        assert contents(folder) == before


def test_types_and_names_belong_to_the_checksum(folder):
    "The same bytes as numbers of another type, or under exchanged names."
    small().half().save_pretrained(folder)
    whole = load_file(folder / "model.safetensors")
    swapped = dict(whole)
    swapped["flow.blocks.0.start"], swapped["flow.blocks.1.start"] = (whole[f"flow.blocks.{index}.start"] for index in (1, 0))
    for spoiled in (swapped, {name: tensor.view(torch.bfloat16) for name, tensor in whole.items()}):
        rewrite(folder, spoiled, checksum=True)
        complaint(ValueError, lambda: Farmer.from_pretrained(folder), "checksum")
    rewrite(folder, whole, checksum=True)
    assert Farmer.from_pretrained(folder)


@pytest.mark.parametrize("value", [5, -1, 0])
def test_an_order_of_channels_is_one(tmp_path, value):
    small(flow="coupling").save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    order = whole["flow.blocks.0.order"].clone()
    order[order.argmax()] = value
    rewrite(tmp_path, {**whole, "flow.blocks.0.order": order})
    complaint(ValueError, lambda: Farmer.from_pretrained(tmp_path), "order of channels")


HUGE = [
    dict(flow_blocks=10**7), dict(flow_blocks=9_999), dict(flow_blocks=99, flow_layers=99), dict(prior_layers=9_000), dict(flow_width=65_536),
    dict(prior_width=98_304), dict(components=90_000), dict(num_classes=10**6), dict(condition_repeats=99_999), dict(redundant_components=99_999),
    dict(image_shape=[1, 99_996, 99_996]), dict(image_shape=[20_000, 4, 4]), dict(image_shape=[1, 10**12, 4]), dict(flow_blocks=10**30), dict(head_width=2**40),
]  # fmt: skip


@pytest.mark.parametrize("changes", HUGE, ids=str)
def test_a_huge_configuration_takes_no_memory(folder, changes):
    "It is compared with the file's header first; where that is too much work, even that is not begun."
    rewrite(folder, config={**json.loads((folder / "config.json").read_text()), **changes})

    class Watched(Farmer):
        def __init__(self, config):
            assert torch.get_default_device().type == "meta", "memory would be taken"
            super().__init__(config)

    start = time.process_time()
    complaint(ValueError, lambda: Watched.from_pretrained(folder), "config.json")
    assert time.process_time() - start < 5


def test_the_note_of_a_run_is_checked(folder):
    note = folder.parent / "run.json"
    save_source(folder.parent, "digits", {"settings": {"steps": 3}})
    assert read_source(folder) == "digits" and json.loads(note.read_text())["settings"] == {"steps": 3} and weights_note(folder) == "moving average"
    for text, words in (("", "not the note"), ("[]", "no keys"), ("{}", "'data' is missing"), ('{"data": 3}', "'data' is 3"), ("[" * 10**5, "nested")):
        note.write_text(text)
        for read in (read_source, weights_note):
            complaint(ValueError, lambda: read(folder), str(note), words)
    for text in ('{"data": "x"}', '{"data": "x", "weights": 3}', '{"data": "x", "weights": {"other": "y"}}'):
        note.write_text(text)
        assert weights_note(folder) == "not noted"


def test_the_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    small().save_pretrained(tmp_path / "runs" / "model")
    assert Farmer.from_pretrained("~/runs/model").config == Farmer.from_pretrained(Path("~/runs/model")).config == small().config
    complaint(FileNotFoundError, lambda: Farmer.from_pretrained("~nobody-of-this-name/model"), "~nobody-of-this-name/model")


# --- The embedded models


def test_an_embedded_name_means_the_embedded_model_in_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small().save_pretrained("digits")
    assert Farmer.from_pretrained("digits").config.image_shape == (1, 8, 8)
    assert Farmer.from_pretrained("./digits").config.image_shape == Farmer.from_pretrained(Path("digits")).config.image_shape == (1, 4, 4)


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_embedded_models_need_no_network_and_know_their_data(name, monkeypatch):
    monkeypatch.setattr("socket.socket", mock.Mock(side_effect=AssertionError("no network")))
    model, test = Farmer.from_pretrained(name), load_dataset(name, "test")
    assert model.config.image_shape == test.image_shape and model.config.num_classes == test.num_classes and model.config.levels == test.levels
    images, labels = test.batch(range(100))
    bits = model.bits_per_dim(images, labels, generator=seeded()).mean()
    levels = ((images + 1) / 2 * (test.levels - 1)).round().long().flatten(1)
    counts = torch.nn.functional.one_hot(levels, test.levels).sum(0) + 1.0  # pixel histograms, of the very images they are tested on
    histogram = -torch.log2(counts / counts.sum(1, keepdim=True)).T.gather(0, levels).mean()
    assert bits < histogram
    noisy = dequantize(images, test.levels, seeded())
    with torch.no_grad():
        read = torch.stack([model.log_prob(noisy, [label] * len(noisy)) for label in range(10)]).argmax(0)
        assert (read == labels).double().mean() > 0.9
        assert_close(model.decode(model.encode(noisy)), noisy, rtol=0, atol=1e-5)
    samples = model.sample(torch.arange(10).repeat(30), generator=seeded())
    assert model.log_prob(samples, torch.arange(10).repeat(30)).isfinite().all()  # overshoot included


# --- Students


def test_a_student_is_saved_and_loaded_beside_its_model(tmp_path):
    model = small()
    complaint(FileNotFoundError, lambda: Student(model.flow).save_pretrained(tmp_path), "no config.json")
    model.save_pretrained(tmp_path)
    complaint(FileNotFoundError, lambda: Student.from_pretrained(tmp_path), "no student", "farmer distill")
    student = Student(model.flow)
    student.save_pretrained(tmp_path)
    assert sorted(contents(tmp_path)) == ["config.json", "model.safetensors", "student.safetensors"]
    assert not any(name.startswith("student") for name in load_file(tmp_path / "model.safetensors"))
    latents = model.encode(clean_images())
    assert torch.equal(model.decode(latents, inverse=Student.from_pretrained(tmp_path)), model.decode(latents, inverse=student))
    model.save_pretrained(tmp_path)  # the same flow saved again: its student is not lost
    assert (tmp_path / "student.safetensors").exists()
    small(seed=1).save_pretrained(tmp_path)  # another flow
    assert not (tmp_path / "student.safetensors").exists()


def test_a_student_of_the_whole_flow_belongs_to_its_file_of_half_size(tmp_path):
    model = small()
    model.save_pretrained(tmp_path, half=True)
    Student(model.flow).save_pretrained(tmp_path)
    assert Student.from_pretrained(tmp_path).bind(Farmer.from_pretrained(tmp_path).flow)


def test_a_sub_class_loads_as_itself(tmp_path):
    class Own(Farmer):
        pass

    small().save_pretrained(tmp_path)
    assert type(Own.from_pretrained(tmp_path)) is Own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_student_survives_saving_in_any_precision(tmp_path, dtype):
    model = small()
    model.to(dtype).save_pretrained(tmp_path)
    Student(model.flow).save_pretrained(tmp_path)
    assert next(Student.from_pretrained(tmp_path).parameters()).dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("half", [False, True])
def test_a_student_keeps_which_ways_it_looks(tmp_path, half):
    model = small().eval()
    model.save_pretrained(tmp_path)
    z = model.flow(model.tokens_of(clean_images()))[0]
    made = {}
    for both_ways in (False, True):
        student = Student(model.flow, both_ways=both_ways).eval()
        student.save_pretrained(tmp_path, half)
        loaded = Student.from_pretrained(tmp_path)
        made[both_ways] = loaded(z)
        assert loaded.both_ways == both_ways
        assert_close(made[both_ways], student(z), rtol=0, atol=1e-2 if half else 0)
    assert (made[True] - made[False]).abs().max() > 0.02


def test_students_of_other_models_are_refused(tmp_path):
    for name, options in (("own", {}), ("other", {"seed": 1}), ("deeper", {"flow_blocks": 3})):
        model = small(**options)
        model.save_pretrained(tmp_path / name)
        Student(model.flow).save_pretrained(tmp_path / name)
    for other in (model, small(seed=1)):  # of another architecture, and of the same one
        complaint(ValueError, lambda: Student(other.flow).save_pretrained(tmp_path / "own"), "another model")
    path = tmp_path / "own" / "student.safetensors"
    whole = path.read_bytes()
    load = lambda: Student.from_pretrained(tmp_path / "own")
    for source, word in (("other", "another flow"), ("deeper", "another architecture")):
        shutil.copy(tmp_path / source / "student.safetensors", path)
        complaint(ValueError, load, word, "delete it")
    path.write_bytes(whole[:-100])
    complaint(ValueError, load, "student.safetensors is damaged")
    path.write_bytes(whole)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors.pop("blocks.0.start")
    save_file(tensors, path, metadata)
    complaint(ValueError, load, "does not hold the weights")
    assert Farmer.from_pretrained(tmp_path / "own")  # the model itself is as good as before


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_embedded_students(name):
    model, student = Farmer.from_pretrained(name), Student.from_pretrained(name)
    latents = model.sample_latents(torch.arange(10).repeat(5), generator=seeded())
    exact, made = model.decode(latents), model.decode(latents, inverse=student)
    error = (exact - made).square().mean().sqrt()
    untrained = (exact - model.decode(latents, inverse=Student(model.flow))).square().mean().sqrt()
    assert error < 0.03 and error < 0.3 * untrained and certify(model, made, latents).rms_residual.max() < 0.5


# --- Hugging Face hub


def test_a_model_goes_to_the_hub_and_comes_back(tmp_path, monkeypatch):
    "The hub itself is replaced by a folder."
    hub, stored = huggingface_hub, tmp_path / "stored"

    def upload_folder(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, stored)

    def snapshot_download(repo_id, allow_patterns):
        assert repo_id == "someone/digits-1.0"
        return str(stored)

    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, repo_id, private, exist_ok: f"https://hub/{repo_id}")
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    model = small().eval()
    address = model.push_to_hub("someone/digits-1.0", evaluation={"samples": {"images": 10, "Frechet distance": 1.23456}}, student=Student(model.flow))
    assert address == "https://hub/someone/digits-1.0"
    card = (stored / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: farmer\n") and "someone/digits-1.0" in card and "| Frechet distance | 1.235 |" in card
    with torch.no_grad():
        assert torch.equal(Farmer.from_pretrained("someone/digits-1.0").log_prob(clean_images()), model.log_prob(clean_images()))
    assert Student.from_pretrained("someone/digits-1.0").bind(model.flow)


def test_a_model_goes_up_with_the_note_of_its_run_and_its_licence(tmp_path, monkeypatch):
    "The path of the data, which names a person, stays at home."
    stored, asked = tmp_path / "stored", []

    def snapshot_download(repo_id, allow_patterns, **options):
        asked.append(options)
        return str(stored)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo_id, private, exist_ok: repo_id)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, repo_id, folder_path, commit_message: shutil.copytree(folder_path, stored))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model, run = small().eval(), tmp_path / "run"
    run.mkdir()
    complaint(FileNotFoundError, lambda: model.push_to_hub("someone/cats", run=run), "run.json")
    assert not stored.exists()
    save_source(run, str(tmp_path / "cats"), {"training": {"steps": 3}})
    model.push_to_hub("someone/cats", student=Student(model.flow), run=run, license="cc-by-4.0")
    card, note = (stored / "README.md").read_text(), json.loads((stored / "run.json").read_text())
    assert "\nlicense: cc-by-4.0\n" in card.partition("# A FARMER")[0] and 'pip install "farmer-pixels[hub]"' in card
    assert "Licence of these weights: cc-by-4.0" in card and 'Farmer.from_pretrained("someone/cats")' in card
    assert note["training"] == {"steps": 3} and note["data"] == "cats" == read_source("someone/cats") and str(tmp_path) not in (stored / "run.json").read_text()
    Farmer.from_pretrained("someone/cats", revision="v2", token="secret")
    Student.from_pretrained("someone/cats")
    load_student("someone/cats", revision="v2")
    assert asked[-3:] == [{"revision": "v2", "token": "secret"}, {}, {"revision": "v2"}]


def test_a_revision_belongs_to_the_hub(folder):
    for name in ("digits", folder):
        complaint(ValueError, lambda: Farmer.from_pretrained(name, revision="v2"), name, "v2", "owner/name")


@pytest.mark.parametrize("name", ["someone/nothing", "runs/typo"])
def test_what_neither_disk_nor_hub_has_is_said_in_one_line(monkeypatch, name):
    hub = huggingface_hub

    def missing(*_, **__):
        raise OSError("404 Client Error.\nDetails follow.")

    monkeypatch.setattr(hub, "snapshot_download", missing)
    complaint(FileNotFoundError, lambda: Farmer.from_pretrained(name), name, "404 Client Error.", "embedded")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    complaint(FileNotFoundError, lambda: Farmer.from_pretrained(name), "pip install huggingface_hub")


@pytest.mark.parametrize("name", ["../someone/name", "/someone/name", "someone/a/b", "./name", "someone/"])
def test_paths_are_not_taken_for_names_on_the_hub(monkeypatch, name):
    monkeypatch.setattr("farmer.pretrained._download", None)
    complaint(FileNotFoundError, lambda: Farmer.from_pretrained(name), "neither a folder")
