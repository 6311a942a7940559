"The model's methods for people: what they refuse and how they say so, files that survive accidents, and no hidden chance."
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from unittest import mock

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from farmer.data import load_dataset, replace_files
from farmer.model import Farmer, FarmerConfig, Latents, check_generator
from farmer.patches import dequantize

SMALL = dict(image_shape=(1, 4, 4), num_classes=3, levels=5, flow_blocks=2, flow_width=16, prior_width=16, prior_layers=1, head_width=8,
             informative_channels=2, components=3, redundant_components=4, condition_repeats=2)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def small(seed: int = 0, **changes) -> Farmer:
    "A model with weights far from its start, in training mode like any new module."
    torch.manual_seed(seed)
    model = Farmer(FarmerConfig(**{**SMALL, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def clean_images(count: int = 6, levels: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(levels, (count, 1, 4, 4), generator=generator) * (2 / (levels - 1)) - 1


def complaint(error: type[Exception], call, *words: str) -> str:
    "The message of the error that `call` ends with: one line that holds all the words."
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message, message
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"
    return message


# --- Configuration


@pytest.mark.parametrize("field, wrong", [
    ("image_shape", (8, 8)), ("image_shape", [1, 8, 8]), ("image_shape", (1, 0, 8)), ("image_shape", (1, 8.0, 8)), ("image_shape", 8), ("image_shape", None),
    ("num_classes", -1), ("num_classes", 2.0), ("num_classes", None), ("patch_size", 0), ("patch_size", "2"), ("patch_size", 3), ("patch_size", True),
    ("basis", "fourier"), ("basis", None), ("basis", "luma-chroma"), ("flow", "jet"), ("flow_blocks", 0), ("flow_blocks", 4.0), ("flow_layers", 0), ("flow_layers", -1),
    ("flow_width", 0), ("flow_width", 48), ("flow_width", "64"), ("scale_first_token", 1), ("scale_first_token", "false"), ("prior", "normal"), ("prior", 3),
    ("prior_layers", 0), ("prior_width", 33), ("prior_width", 64.0), ("informative_channels", 0), ("informative_channels", 4), ("informative_channels", 5),
    ("informative_channels", -1), ("informative_channels", 1.5), ("informative_channels", "none"), ("components", 0), ("redundant", "gaussian"),
    ("redundant_components", 0), ("condition_repeats", 0), ("label_dropout", 1.0), ("label_dropout", -0.1), ("label_dropout", float("nan")), ("label_dropout", "0"),
    ("dropout", 1), ("dropout", None), ("final_order_flip", None), ("final_order_flip", 0), ("head_width", 0), ("head_width", 48), ("levels", 1), ("levels", 17.0),
])  # fmt: skip
def test_every_wrong_field_is_named(field, wrong):
    complaint(ValueError, lambda: FarmerConfig(**{field: wrong}), field)


def test_every_field_is_tried_above():
    tried = {field for field, _ in test_every_wrong_field_is_named.pytestmark[0].args[1]}
    assert tried == set(asdict(FarmerConfig()))


@pytest.mark.parametrize("right", [dict(dropout=0), dict(label_dropout=0), dict(num_classes=0), dict(informative_channels=None), dict(levels=2),
                                   dict(image_shape=torch.Size((1, 8, 8))), dict(image_shape=(3, 8, 8), basis="luma-chroma"), dict(informative_channels=1)])
def test_border_cases_are_allowed(right):
    assert asdict(FarmerConfig(**right)) == {**asdict(FarmerConfig()), **right}


@pytest.mark.parametrize("config", [FarmerConfig(), FarmerConfig(**SMALL), FarmerConfig(informative_channels=None, dropout=0.25, scale_first_token=False)])
def test_configuration_survives_json(config):
    values = json.loads(json.dumps(asdict(config)))
    assert FarmerConfig(**{**values, "image_shape": tuple(values["image_shape"])}) == config
    assert hash(config) == hash(replace(config))


# --- Images, labels, latents


@pytest.mark.parametrize("spoil, words", [
    (lambda x: x.to(torch.uint8), ["float", "uint8", "127.5"]),
    (lambda x: x.long(), ["float", "int64"]),
    (lambda x: x.numpy(), ["float tensor", "ndarray"]),
    (lambda x: x.tolist(), ["float tensor", "list"]),
    (lambda x: x > 0, ["float", "bool"]),
    (lambda x: x.to(torch.complex64), ["float", "complex64"]),
    (lambda x: x[0], ["(1, 4, 4)", "(batch, 1, 4, 4)"]),
    (lambda x: x[:0], ["(0, 1, 4, 4)", "batch"]),
    (lambda x: x.expand(-1, 3, -1, -1), ["(6, 3, 4, 4)", "(batch, 1, 4, 4)"]),
    (lambda x: x[..., :3], ["(6, 1, 4, 3)"]),
    (lambda x: x.repeat(1, 1, 2, 2), ["(6, 1, 8, 8)"]),
    (lambda x: (x + 1) * 127.5, ["from 0 to 255", "[-1, 1]"]),
    (lambda x: ((x + 1) * 127.5).half(), ["from 0 to 255", "[-1, 1]"]),
    (lambda x: x * 100, ["from -100 to 100"]),
    (lambda x: x.where(x < 1, torch.nan), ["NaN"]),
    (lambda x: x.where(x < 1, -torch.inf), ["infinity"]),
])  # fmt: skip
def test_wrong_images_are_refused(spoil, words):
    model, images = small(), spoil(clean_images())
    for method in (model.log_prob, model.encode, model.bits_per_dim):
        complaint(ValueError, lambda: method(images), *words)


def test_one_image_on_another_scale_is_found_in_a_batch():
    images = clean_images()
    images[4] *= 50
    complaint(ValueError, lambda: small().log_prob(images), "[-1, 1]")


def test_the_models_own_samples_are_accepted_however_far_a_pixel_overshoots():
    images = clean_images().clamp(-0.5, 0.5)
    images[:, 0, 0, 0] = 9.0
    assert small().log_prob(images).isfinite().all()


@pytest.mark.parametrize("convert", [torch.Tensor.double, torch.Tensor.half, torch.Tensor.bfloat16, lambda x: x.permute(0, 1, 3, 2).contiguous().mT])
def test_other_float_types_and_strides_are_read(convert):
    model, images = small(), clean_images()  # five levels are exact in every type
    assert_close(model.log_prob(convert(images), LABELS), model.log_prob(images, LABELS))
    assert model.double().log_prob(images, LABELS).dtype == torch.float64


@pytest.mark.parametrize("labels, words", [
    ([0, 1, 2, 0, 1, 3], ["0..2", "0 to 3", "None"]), ([0, 1, 2, 0, 1, -1], ["0..2", "-1 to 2"]), (LABELS.float(), ["whole numbers", "float32"]),
    (LABELS > 0, ["whole numbers", "bool"]), (LABELS.to(torch.complex64), ["complex64"]), (LABELS[:5], ["6 whole numbers", "(5,)"]), (LABELS[:, None], ["(6, 1)"]),
    (torch.eye(3)[LABELS].long(), ["(6, 3)"]), (2, ["6 whole numbers", "()"]), ([], ["6 whole numbers"]), (["a"] * 6, ["whole numbers"]), ([None] * 6, ["whole numbers"]),
    ([[0], [1, 2]], ["whole numbers"]),
])  # fmt: skip
def test_wrong_labels_are_refused(labels, words):
    model, images = small(), clean_images()
    for method in (model.log_prob, model.bits_per_dim):
        complaint(ValueError, lambda: method(images, labels), *words)


@pytest.mark.parametrize("labels, words", [
    (None, ["whole numbers", "NoneType"]), (2, ["()"]), ([], ["(0,)"]), ([0.0], ["float"]), ([4], ["0..2", "4 to 4", "3 for no class"]), ([-1], ["-1"]), ("0", ["str"]),
])  # fmt: skip
def test_wrong_labels_for_sampling_are_refused(labels, words):
    for method in (small().sample, small().sample_latents):
        complaint(ValueError, lambda: method(labels), *words)


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2], (0, 1, 2, 0, 1, 2), LABELS.to(torch.uint8), LABELS.int(), LABELS.numpy(), LABELS.numpy().astype(np.int16)])
def test_labels_of_every_integer_kind_are_read(labels):
    model, images = small(), clean_images()
    assert torch.equal(model.log_prob(images, labels), model.log_prob(images, LABELS))
    assert model.sample(labels).shape == images.shape


def test_no_label_is_the_null_class():
    model, images = small(), clean_images()
    unconditional = model.log_prob(images)
    assert torch.equal(unconditional, sum(model(images, torch.full((6,), model.null_class))))
    assert not torch.allclose(unconditional, model.log_prob(images, LABELS))
    assert model.sample([model.null_class] * 2).shape == (2, 1, 4, 4)


def test_a_model_without_classes():
    model = small(num_classes=0)
    assert model.log_prob(clean_images()).shape == (6,) and model.sample([model.null_class]).shape == (1, 1, 4, 4)
    complaint(ValueError, lambda: model.log_prob(clean_images(), [0] * 6), "no classes", "labels=None")
    complaint(ValueError, lambda: model.sample([1]), "no classes", "use 0")


def test_wrong_latents_are_refused():
    model, other = small(), small(informative_channels=1)
    latents = model.encode(clean_images())
    complaint(ValueError, lambda: other.decode(latents), "(6, 4, 2)", "(batch, 4, 1)", "(batch, 4, 3)")
    complaint(ValueError, lambda: model.decode(Latents(latents.informative, latents.redundant[:3])), "(3, 4, 2)")
    complaint(ValueError, lambda: model.decode(Latents(latents.informative[0], latents.redundant[0])), "(4, 2)")
    complaint(ValueError, lambda: model.decode(Latents(latents.informative[:0], latents.redundant[:0])), "(0, 4, 2)")
    assert_close(model.decode(Latents(latents.informative.double(), latents.redundant.half())), clean_images(), rtol=0, atol=1e-2)


def test_a_generator_of_another_device_is_refused():
    complaint(ValueError, lambda: check_generator(torch.Generator(), torch.device("cuda:1")), "generator is on cpu", "cuda:1", "torch.Generator(model.device)")
    elsewhere = small().to("meta")
    for call in (lambda: elsewhere.sample([0], torch.Generator()), lambda: elsewhere.bits_per_dim(clean_images(), generator=torch.Generator())):
        complaint(ValueError, call, "generator is on cpu", "meta")


def test_bits_per_dim_refuses_what_it_is_not_defined_for():
    model, images = small(), clean_images()
    complaint(ValueError, lambda: model.bits_per_dim(images * 0.9), "grid of 5 levels", "clean images")
    complaint(ValueError, lambda: model.bits_per_dim(dequantize(images, 5)), "grid of 5 levels")
    complaint(ValueError, lambda: model.bits_per_dim(images, levels=4), "grid of 4 levels")
    complaint(ValueError, lambda: model.bits_per_dim(images + 0.5), "[-1, 1]")  # on the grid, continued beyond its end
    complaint(ValueError, lambda: model.bits_per_dim((images + 1) / 2, levels=4), "grid of 4 levels")  # images in [0, 1]
    for levels in (0, 1, -3):
        complaint(ValueError, lambda: model.bits_per_dim(images, levels=levels), "levels must be at least 2")
    for draws in (0, -1):
        complaint(ValueError, lambda: model.bits_per_dim(images, draws=draws), "draws must be at least 1")


def test_bits_per_dim_averages_its_draws():
    model, images = small(), clean_images()
    several = model.bits_per_dim(images, LABELS, draws=3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    singles = torch.stack([model.bits_per_dim(images, LABELS, generator=generator) for _ in range(3)])
    assert_close(several, singles.mean(0))
    assert not several.requires_grad and (singles[0] - singles[1]).abs().min() > 1e-4


# --- Nothing random but the generator, nothing lost to autograd


@pytest.mark.parametrize("changes", [{}, dict(informative_channels=None), dict(redundant="standard-normal"), dict(prior="standard-normal")])
def test_training_mode_changes_nothing(changes):
    model, images = small(dropout=0.5, **changes), clean_images()
    modes = []
    for training in (True, False):
        model.train(training)
        model.flow.blocks[0].eval()  # a mode of its own, which must come back too
        before = [module.training for module in model.modules()]
        modes.append([model.log_prob(images, LABELS), model.encode(images).logdet, model.sample(LABELS, torch.Generator().manual_seed(0))])
        assert [module.training for module in model.modules()] == before
        assert_close(model.decode(model.encode(images)), images, rtol=0, atol=1e-5)
    for trained, evaluated in zip(*modes):
        assert torch.equal(trained, evaluated)
    assert not torch.equal(sum(model.train()(images, LABELS)), modes[0][0])  # a direct call is what training uses


def test_the_mode_comes_back_after_an_error():
    model = small(dropout=0.5)
    complaint(ValueError, lambda: model.log_prob(clean_images(), [7] * 6))
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision_are_refused(dtype):
    model, images = small().to(dtype), clean_images()
    for call in (lambda: model.log_prob(images), lambda: model.encode(images), lambda: model.sample([0]), lambda: model.bits_per_dim(images)):
        complaint(ValueError, call, str(dtype), "float32", "autocast")


def test_autocast_works_and_stays_close():
    model, images = small(), clean_images()
    parameters = list(model.flow.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        half = model.log_prob(images, LABELS)
        expected = torch.autograd.grad(half.sum(), parameters)
    with torch.autocast("cpu", torch.bfloat16):  # autocast keeps its copies of the weights: those made for sampling must do no harm
        assert model.sample(LABELS).isfinite().all()
        gradients = torch.autograd.grad(model.log_prob(images, LABELS).sum(), parameters)
    assert all(torch.equal(*pair) for pair in zip(gradients, expected))
    assert_close(half, model.log_prob(images, LABELS), rtol=0.05, atol=0.5)


@pytest.mark.parametrize("changes", [{}, dict(informative_channels=None), dict(redundant="standard-normal"), dict(prior="standard-normal")])
def test_results_can_be_used_with_gradients(changes):
    model = small(**changes)
    drawn, latents = model.sample([0, 1]), model.sample_latents([0, 1])
    decoded = model.decode(model.encode(clean_images()))  # of latents that carry a gradient
    for tensor in (drawn, decoded, latents.informative, latents.redundant):
        assert not (tensor.is_inference() or tensor.requires_grad)
        weight = torch.ones_like(tensor, requires_grad=True)
        (tensor * weight).sum().backward()
        assert torch.equal(weight.grad, tensor)
        tensor += 1  # in-place, as an optimiser would
    drawn = model.sample([0, 1]).clamp(-1, 1).requires_grad_()
    model.log_prob(drawn, [0, 1]).sum().backward()
    assert drawn.grad.isfinite().all() and all(parameter.grad is not None for parameter in model.flow.parameters())


def test_results_inside_inference_mode():
    model, images = small(), clean_images()
    with torch.inference_mode():
        assert_close(model.decode(model.encode(images)), images, rtol=0, atol=1e-5)
        latents = model.encode(images)
    assert_close(model.decode(latents), images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, dict(informative_channels=None), dict(prior="standard-normal")])
def test_the_generator_decides_the_samples(changes):
    model = small(**changes)
    first = model.sample(LABELS, torch.Generator().manual_seed(0))
    torch.rand(7)  # the global generator plays no part
    assert torch.equal(first, model.sample(LABELS, torch.Generator().manual_seed(0)))
    assert not torch.equal(first, model.sample(LABELS, torch.Generator().manual_seed(1)))
    assert torch.equal(first, model.decode(model.sample_latents(LABELS, torch.Generator().manual_seed(0))))
    state = torch.get_rng_state()
    model.sample(LABELS, torch.Generator())
    assert torch.equal(state, torch.get_rng_state())


# --- Files


@pytest.fixture
def folder(tmp_path) -> Path:
    small().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()) and model.student is not None
    size = (tmp_path / "model.safetensors").stat().st_size / sum(4 * tensor.numel() for tensor in before.values())
    assert (0.5 < size < 0.52) if half else (1 < size < 1.02)
    loaded = Farmer.from_pretrained(tmp_path)
    assert loaded.student is not None and torch.equal(loaded.basis.matrix, before["basis.matrix"])
    for name, tensor in loaded.state_dict().items():
        rounded = before[name].half().float() if half and name != "basis.matrix" else before[name]
        assert tensor.dtype == torch.float32 and torch.equal(tensor, rounded)
    images = model.sample([3, 8], torch.Generator().manual_seed(0))
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
from test_model import small
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
    bits = model.bits_per_dim(images, labels, generator=torch.Generator().manual_seed(0)).mean()
    levels = ((images + 1) / 2 * (test.levels - 1)).round().long().flatten(1)
    counts = torch.nn.functional.one_hot(levels, test.levels).sum(0) + 1.0  # pixel histograms, of the very images they are tested on
    histogram = -torch.log2(counts / counts.sum(1, keepdim=True)).T.gather(0, levels).mean()
    assert bits < histogram
    noisy = dequantize(images, test.levels, torch.Generator().manual_seed(0))
    with torch.no_grad():
        read = torch.stack([model.log_prob(noisy, [label] * len(noisy)) for label in range(10)]).argmax(0)
        assert (read == labels).double().mean() > 0.9
        assert_close(model.decode(model.encode(noisy)), noisy, rtol=0, atol=1e-5)
    samples = model.sample(torch.arange(10).repeat(30), torch.Generator().manual_seed(0))
    assert model.log_prob(samples, torch.arange(10).repeat(30)).isfinite().all()  # overshoot included


def test_a_coupling_flow_makes_a_model_of_its_own():
    "Density, samples, saving: everything but the solvers for sequential inverses."
    torch.manual_seed(0)
    model = Farmer(FarmerConfig(flow="coupling")).eval()
    for block in model.flow.blocks:
        torch.nn.init.normal_(block.output.bias, std=0.3)
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images)
    assert_close(model.decode(latents), images, rtol=0, atol=1e-5)
    samples, report = model.sample([1, 2], torch.Generator().manual_seed(0), return_report=True)
    assert samples.shape == (2, 1, 8, 8) and report.inversion.residual.max() < 1e-3
    for solver in ("jacobi", "student"):
        with pytest.raises(ValueError, match="solver='exact'"):
            model.sample([1], solver=solver)
    with pytest.raises(ValueError, match="larger patch_size"):
        FarmerConfig(flow="coupling", image_shape=(1, 4, 4), patch_size=1, informative_channels=None)


def test_a_coupling_flow_is_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model = Farmer(FarmerConfig(flow="coupling")).eval()
    model.save_pretrained(tmp_path)
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        assert torch.equal(Farmer.from_pretrained(tmp_path).log_prob(images), model.log_prob(images))


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
    address = model.push_to_hub("someone/digits-1.0", {"samples": {"images": 10, "Frechet distance": 1.23456}})
    assert address == "https://hub/someone/digits-1.0"
    card = (stored / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: farmer\n") and "someone/digits-1.0" in card and "| Frechet distance | 1.235 |" in card
    with torch.no_grad():
        assert torch.equal(Farmer.from_pretrained("someone/digits-1.0").log_prob(clean_images()), model.log_prob(clean_images()))


@pytest.mark.parametrize("name", ["someone/nothing", "runs/typo"])
def test_what_neither_disk_nor_hub_has_is_said_in_one_line(monkeypatch, name):
    hub = huggingface_hub

    def missing(*_, **__):
        raise OSError("404 Client Error.\nDetails follow.")

    monkeypatch.setattr(hub, "snapshot_download", missing)
    complaint(FileNotFoundError, lambda: Farmer.from_pretrained(name), name, "404 Client Error.", "embedded")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    complaint(FileNotFoundError, lambda: Farmer.from_pretrained(name), "farmer[hub]")


@pytest.mark.parametrize("name", ["../someone/name", "/someone/name", "someone/a/b", "./name", "someone/"])
def test_paths_are_not_taken_for_names_on_the_hub(monkeypatch, name):
    monkeypatch.setattr("farmer.model.download_model", None)
    complaint(FileNotFoundError, lambda: Farmer.from_pretrained(name), "neither a folder")
