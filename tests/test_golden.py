"""The embedded models compute what they did when the numbers in golden.safetensors were recorded.

Recorded with commit c197f8d2621107c4c6fc39fa069c70405821155c, torch 2.15 on a CPU, for each model that was embedded then:

    pixels, labels      the first, the middle and the last held-out image of its data set, as whole numbers from 0 to levels - 1
    log_prob, log_prob unlabelled, informative, redundant, logdet
                        nats of these images, float64 weights, dequantised with a generator of seed 0; the parts with labels
    bits                bits_per_dim with labels, float64 weights, a generator of seed 0
    latents ...         encode of the first dequantised image, float64 weights
    sample KIND         of classes 3 and 8, a generator of seed 0, float64 weights; unguided and with each way of guidance
    sample float32      the same without guidance, float32 weights
    sample student      the same by the student, where there is one, float32 weights
    decode student      what the student makes of the latents of the first image, float32 weights

Samples are in steps of 2^-13, or in float32 where values beyond 4 occur. The other way round, a change of the method that
means to change these numbers says so and records them anew.
"""
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from farmer import Farmer, Jacobi, Student
from farmer.analysis import VariationalGuidance
from farmer.guidance import PosteriorGuidance, RejectionGuidance, ResamplingGuidance
from farmer.patches import dequantize
from farmer.pretrained import embedded_models

GOLDEN = load_file(Path(__file__).with_name("golden.safetensors"))
NAMES = sorted({key.partition("/")[0] for key in GOLDEN})
STUDENTS = [name for name in NAMES if f"{name}/sample student" in GOLDEN]
STEP = 2.0**-13
NATS, PIXELS, LATENTS = dict(rtol=0, atol=1e-5), dict(rtol=0, atol=1e-4), dict(rtol=1e-5, atol=1e-5)
GUIDANCE = {
    "plain": 0.0,
    "posterior": PosteriorGuidance(2.0),
    "resampling": ResamplingGuidance(1.0),
    "variational": VariationalGuidance(1.0, iterations=4),
    "rejection": RejectionGuidance(1.0),
}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def recorded(name: str, key: str) -> Tensor:
    value = GOLDEN[f"{name}/{key}"]
    return value * STEP if value.dtype == torch.int16 else value


def images_of(name: str, model: Farmer) -> Tensor:  # (3, C, H, W) float64 in [-1, 1]
    return recorded(name, "pixels").double() * (2 / (model.config.levels - 1)) - 1


def assert_recorded(value: Tensor, name: str, key: str, **tolerance: float) -> None:
    assert_close(value, recorded(name, key).to(value.dtype), **tolerance)


def test_what_is_recorded():
    assert set(NAMES) == {name for name in embedded_models() if not name.startswith("photos")} and STUDENTS == ["digits", "glyphs"]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_densities_and_latents(name):
    model, labels = Farmer.from_pretrained(name).double(), recorded(name, "labels")
    clean = images_of(name, model)
    noisy = dequantize(clean, model.config.levels, seeded())
    assert_recorded(model.log_prob(noisy, labels), name, "log_prob", **NATS)
    assert_recorded(model.log_prob(noisy), name, "log_prob unlabelled", **NATS)
    parts = model(noisy, labels)
    for key, value in {"informative": parts.informative.sum(1), "redundant": parts.redundant.sum(1), "logdet": parts.logdet}.items():
        assert_recorded(value, name, key, **NATS)
    assert_close(parts.total, model.log_prob(noisy, labels))
    assert_recorded(model.bits_per_dim(clean, labels, generator=seeded()), name, "bits", **NATS)
    latents = model.encode(noisy[:1])
    assert_recorded(latents.informative, name, "latents informative", **LATENTS)
    assert_recorded(latents.redundant, name, "latents redundant", **LATENTS)
    assert_close(latents.logdet, parts.logdet[:1])


@pytest.mark.parametrize("kind", GUIDANCE)
@pytest.mark.parametrize("name", NAMES)
def test_samples(name, kind):
    model = Farmer.from_pretrained(name).double()
    assert_recorded(model.sample([3, 8], guidance=GUIDANCE[kind], generator=seeded()), name, f"sample {kind}", **PIXELS)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_single_precision_and_the_ways_back(name):
    model = Farmer.from_pretrained(name)
    assert_recorded(model.sample([3, 8], generator=seeded()), name, "sample float32", **PIXELS)
    assert_recorded(model.sample([3, 8], inverse=Jacobi(), generator=seeded()), name, "sample float32", **PIXELS)
    images = images_of(name, model).float()
    latents = model.encode(images)
    assert_close(model.decode(latents), images, **PIXELS)
    assert_close(model.decode(latents, inverse=Jacobi()), images, **PIXELS)


@pytest.mark.parametrize("name", STUDENTS)
@torch.no_grad()
def test_students(name):
    model, student = Farmer.from_pretrained(name), Student.from_pretrained(name)
    assert_recorded(model.sample([3, 8], inverse=student, generator=seeded()), name, "sample student", **PIXELS)
    latents = model.encode(images_of(name, model).float()[:1])
    assert_recorded(model.decode(latents, inverse=student), name, "decode student", **PIXELS)
