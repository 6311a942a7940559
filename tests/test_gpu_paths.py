"""What a GPU would do, on a machine without one: tensors that have a device and a shape but no values.

An operation that mixes devices fails, and so does one that asks for a value, which on a GPU makes the host wait for it. What
checks the input for users asks for values by its nature; it is left out here.
"""
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from helpers import LABELS, SMALL, clean_images, small
from test_flow import plainly  # in place of a recording: the steps one after another
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from farmer import Farmer, FarmerConfig, Student, flow, guidance, inversion, model, prior, training, transformer
from farmer.analysis import VariationalGuidance, redraw_redundant, swap_redundant
from farmer.transformer import StaticKeyValueCache

IMAGES = 6


@contextmanager
def unrecorded(step, restart):
    "In place of a recording: the step itself, after one for warming up."
    step()
    restart()
    yield step


@pytest.fixture
def gpu(monkeypatch):
    "A model, a student, images and labels on a device that is not there."
    for name in ("check_images", "check_levels", "check_latents", "check_guidable"):
        monkeypatch.setattr(model, name, lambda *_: None)
    for module in (model, inversion):
        monkeypatch.setattr(module, "check_labels", lambda labels, *_: labels)
    monkeypatch.setattr(inversion, "check_latents", lambda *_: None)
    monkeypatch.setattr(inversion, "checksum", lambda *_: 0)  # of the weights, which a student compares with those of its flow
    monkeypatch.setattr(flow, "_recorded_inverse", partial(flow._recorded_inverse, repeat=plainly))
    monkeypatch.setattr(transformer, "recorded", unrecorded)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda mode, _: mode, raising=False)  # a student is a copy, in the same mode
    with FakeTensorMode(), torch.no_grad():
        with torch.device("cuda"):
            made = Farmer(FarmerConfig(**SMALL)).eval()
            student = Student(made.flow)
            images, labels = torch.empty(IMAGES, *made.config.image_shape), torch.empty(IMAGES, dtype=torch.long)
        yield made, student, images, labels  # what follows has to name its device


CALLS = {
    "log_prob": lambda made, student, images, labels: made.log_prob(images, labels),
    "bits_per_dim": lambda made, student, images, labels: made.bits_per_dim(images, labels, levels=5),
    "encode": lambda made, student, images, labels: made.encode(images).redundant,
    "decode": lambda made, student, images, labels: made.decode(made.encode(images)),
    "decode by the student": lambda made, student, images, labels: made.decode(made.encode(images), inverse=student),
    "sample": lambda made, student, images, labels: made.sample(labels),
    "resampling": lambda made, student, images, labels: made.sample(labels, guidance=guidance.ResamplingGuidance(1.0)),
    "posterior": lambda made, student, images, labels: made.sample(labels, guidance=guidance.PosteriorGuidance(1.0)),
    "variational": lambda made, student, images, labels: made.sample(labels, guidance=VariationalGuidance(1.0)),
    "redraw": lambda made, student, images, labels: redraw_redundant(made, made.encode(images), labels, 2.0).redundant,
    "swap": lambda made, student, images, labels: swap_redundant(made.encode(images), made.encode(images)).redundant,
}


@pytest.mark.parametrize("call", CALLS)
def test_neither_mixes_devices_nor_asks_for_a_value(gpu, call):
    assert CALLS[call](*gpu).device.type == "cuda"


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_the_step_that_the_prior_records_is_the_same_operations_every_time(monkeypatch, scale):
    "Of the same shapes, and none asks for a value; what is drawn is what the plain loop draws."
    made = small().double().eval()
    expected, steps = made.sample_latents(LABELS, guidance=scale, seed=0), []

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):
            steps[-1].append((str(function), [tuple(part.shape) for part in tree_leaves(arguments) if isinstance(part, torch.Tensor)]))
            return function(*arguments, **named or {})

    def watched(step, restart):
        def watch():
            steps.append([])
            with Operations():
                step()

        return unrecorded(watch, restart)

    monkeypatch.setattr(transformer, "recorded", watched)
    monkeypatch.setattr(prior, "KeyValueCache", StaticKeyValueCache)
    drawn = made.sample_latents(LABELS, guidance=scale, seed=0)
    torch.testing.assert_close((drawn.informative, drawn.redundant), (expected.informative, expected.redundant), rtol=0, atol=1e-10)
    assert len(steps) == made.config.tokens + 1 and len(steps[0]) > 10 and all(step == steps[0] for step in steps)
    assert not {"aten._local_scalar_dense.default", "aten.nonzero.default"} & {name for name, _ in steps[0]}


def test_the_net_catches_both(gpu):
    made, _, images, labels = gpu
    with pytest.raises(DataDependentOutputException):
        images.sum().item()
    with pytest.raises(RuntimeError, match="device"):
        made.flow(made.tokens_of(images) + torch.ones(1, 4, 4, device="cpu"))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_optimizers_step_on_the_device(gpu, optimizer):
    made = gpu[0]
    for weight in made.parameters():
        weight.grad = torch.empty_like(weight)
    for each in training._make_optimizers(made, training.TrainingConfig(optimizer=optimizer), fused=True):
        each.step()
        assert each.state and all(value.device.type == "cuda" for state in each.state.values() for value in state.values())


def test_a_training_step_is_one_graph():
    "Compiled whole, or not at all: a break, or a value that the host has to read, is an error here."
    made, images, labels = small(), clean_images(), LABELS
    made(images, labels).total.sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in made.named_parameters() if parameter.grad is not None}
    made.zero_grad()
    torch.compile(made, fullgraph=True, backend="aot_eager")(images, labels).total.sum().backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(made.get_parameter(name).grad, gradient)
