"The model's methods for people: what they refuse and how they say so, and no hidden chance."
import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import torch
from helpers import LABELS, SMALL, clean_images, complaint, seeded, small
from torch.testing import assert_close

from farmer.checks import check_generator
from farmer.inversion import Jacobi, Student, certify
from farmer.model import Farmer, FarmerConfig, Latents
from farmer.patches import dequantize

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
    assert torch.equal(unconditional, model(images, torch.full((6,), model.null_class)).total)
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
    for call in (lambda: elsewhere.sample([0], generator=torch.Generator()), lambda: elsewhere.bits_per_dim(clean_images(), generator=torch.Generator())):
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
    several = model.bits_per_dim(images, LABELS, draws=3, generator=seeded())
    generator = seeded()
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
        modes.append([model.log_prob(images, LABELS), model.encode(images).logdet, model.sample(LABELS, generator=seeded())])
        assert [module.training for module in model.modules()] == before
        assert_close(model.decode(model.encode(images)), images, rtol=0, atol=1e-5)
    for trained, evaluated in zip(*modes):
        assert torch.equal(trained, evaluated)
    assert not torch.equal(model.train()(images, LABELS).total, modes[0][0])  # a direct call is what training uses


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
    first = model.sample(LABELS, generator=seeded())
    torch.rand(7)  # the global generator plays no part
    assert torch.equal(first, model.sample(LABELS, generator=seeded()))
    assert not torch.equal(first, model.sample(LABELS, generator=seeded(1)))
    assert torch.equal(first, model.decode(model.sample_latents(LABELS, generator=seeded())))
    state = torch.get_rng_state()
    model.sample(LABELS, generator=torch.Generator())
    assert torch.equal(state, torch.get_rng_state())


def test_a_coupling_flow_makes_a_model_of_its_own(tmp_path):
    "Density, samples, saving: everything but the ways back for sequential inverses."
    torch.manual_seed(0)
    model = Farmer(FarmerConfig(flow="coupling")).eval()
    for block in model.flow.blocks:
        torch.nn.init.normal_(block.output.bias, std=0.3)
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        latents = model.encode(images)
    assert_close(model.decode(latents), images, rtol=0, atol=1e-5)
    latents = model.sample_latents([1, 2], generator=seeded())
    samples = model.decode(latents)
    assert samples.shape == (2, 1, 8, 8) and certify(model, samples, latents).residual.max() < 1e-3
    complaint(ValueError, lambda: model.sample([1], inverse=Jacobi()), "inverse=None")
    complaint(ValueError, lambda: Student(model.flow), "inverse=None")
    complaint(ValueError, lambda: FarmerConfig(flow="coupling", image_shape=(1, 4, 4), patch_size=1, informative_channels=None), "larger patch_size")
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(Farmer.from_pretrained(tmp_path).log_prob(images), model.log_prob(images))


def test_log_prob_is_resolved_into_tokens_and_channels():
    model, images = small().eval(), clean_images()
    with torch.no_grad():
        parts = model(images, LABELS)
        assert [tuple(part.shape) for part in parts] == [(6, 4), (6, 4), (6, 4, 4)]
        assert_close(parts.total, model.log_prob(images, LABELS))
        assert_close(parts.logdet, model.encode(images).logdet)


def test_no_base_class_stands_between_farmer_and_module():
    assert Farmer.__bases__ == (torch.nn.Module,)


@pytest.mark.parametrize("wrong", [True, 1.0, 10**30, "1"])
def test_whole_numbers_are_whole_and_of_64_bits(wrong):
    for field in fields(FarmerConfig):
        if type(field.default) is int:
            complaint(ValueError, lambda: FarmerConfig(**{field.name: wrong}), field.name)


@pytest.mark.parametrize("changes", [
    dict(flow_blocks=1001), dict(flow_blocks=40, flow_layers=40), dict(prior_layers=1000), dict(image_shape=(1, 100_002, 2)), dict(image_shape=(50_000, 4, 4)),
    dict(flow_width=2**20), dict(num_classes=10**7), dict(components=10**6), dict(levels=10**6),
])  # fmt: skip
def test_models_that_nobody_could_build_are_refused_at_once(changes):
    complaint(ValueError, lambda: FarmerConfig(**changes), "1000")


# --- Manners


@pytest.mark.parametrize("changes", [{}, dict(prior="standard-normal")])
def test_a_seed_is_a_generator_made_for_the_call(changes):
    model, images = small(**changes), clean_images()
    state = torch.get_rng_state()
    assert torch.equal(model.sample(LABELS, seed=3), model.sample(LABELS, generator=seeded(3)))
    assert torch.equal(model.sample_latents(LABELS, seed=3).informative, model.sample_latents(LABELS, generator=seeded(3)).informative)
    assert torch.equal(model.bits_per_dim(images, seed=3, draws=2), model.bits_per_dim(images, generator=seeded(3), draws=2))
    assert not torch.equal(model.sample(LABELS, seed=3), model.sample(LABELS, seed=4))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("options, words", [
    (dict(seed=0, generator=seeded()), ["seed", "generator", "not both"]), (dict(seed=-1), ["seed", "-1"]), (dict(seed=0.5), ["seed", "0.5"]), (dict(seed=True), ["seed"]),
    (dict(generator=3), ["generator", "int", "seed="]), (dict(generator=np.random.default_rng(0)), ["torch.Generator", "Generator"]),
])  # fmt: skip
def test_wrong_chance_is_refused_in_one_line(options, words):
    model = small()
    for call in (lambda: model.sample([0], **options), lambda: model.sample_latents([0], **options), lambda: model.bits_per_dim(clean_images(), **options)):
        complaint(ValueError, call, *words)


def test_a_generator_of_another_gpu_is_refused():
    class OnSecond(torch.Generator):
        device = torch.device("cuda:1")

    complaint(ValueError, lambda: check_generator(OnSecond(), torch.device("cuda:0")), "generator is on cuda:1", "cuda:0")
    assert check_generator(OnSecond(), torch.device("cuda:1")).device.index == 1


@pytest.mark.parametrize("alone", [2, torch.tensor(2), np.int64(2)])
def test_a_lone_number_is_neither_a_class_nor_a_count(alone):
    complaint(ValueError, lambda: small().sample(alone), "class 2 is [2]", "[model.null_class] * 2")


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "meta:x", 3.5, None])
def test_a_device_that_is_not_there_is_refused(device):
    complaint(ValueError, lambda: Farmer.from_pretrained("digits", device=device), str(device), "cpu")


def test_where_and_how_a_model_computes():
    model = Farmer.from_pretrained("digits", device="meta")
    assert model.device.type == "meta" and all(weight.device.type == "meta" for weight in model.parameters())
    assert small().dtype == torch.float32 and small().double().dtype == torch.float64


class _Method(torch.nn.Module):
    "A method of a model as the `forward` that torch.export follows."

    def __init__(self, model: Farmer, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs):
        found = getattr(self.model, self.name)(*inputs)
        return found if isinstance(found, torch.Tensor) else (found.informative, found.redundant, found.logdet)


@pytest.mark.parametrize("what", ["encode", "student", "prior", "log_prob"])
def test_torch_export_keeps_the_batch_free(what):
    "Exported with three images, run with two and with seven."
    model = small(dropout=0.1).eval()
    images, labels, z = clean_images(7), torch.arange(7) % 4, torch.randn(7, 4, 4, generator=seeded())
    module, inputs = {
        "encode": (_Method(model, "encode"), (images,)), "log_prob": (_Method(model, "log_prob"), (images, labels.clamp(max=2))),
        "student": (Student(model.flow).eval(), (z,)), "prior": (model.prior, (z, labels)),
    }[what]  # fmt: skip
    batch = torch.export.Dim("batch", min=1)
    free = tuple({0: batch} for _ in inputs)
    free = (free,) if isinstance(module, _Method) else free  # for *inputs
    program = torch.export.export(module, tuple(each[:3] for each in inputs), dynamic_shapes=free)
    for count in (2, 7):
        some = [each[:count] for each in inputs]
        with torch.no_grad():
            assert_close(program.module()(*some), module(*some))
