"On a CUDA device the same model, in the same numbers as far as its arithmetic allows: `make gpu`."
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from helpers import LABELS, clean_images, make_trainer, short_training, small
from torch.testing import assert_close

from farmer import Farmer, Jacobi, Student, certify, transformer
from farmer.distributed import ExecutionConfig
from farmer.guidance import PosteriorGuidance, RejectionGuidance, ResamplingGuidance

pytestmark = pytest.mark.gpu


def test_densities_and_the_way_back_in_float64():
    model, images = small().double().eval(), clean_images().double()
    expected = model.log_prob(images, LABELS)
    model.cuda()
    assert_close(model.log_prob(images, LABELS).cpu(), expected)  # images and labels come from the CPU
    assert_close(model.decode(model.encode(images)).cpu(), images)
    assert_close(model.decode(model.encode(images), inverse=Jacobi(1e-10)).cpu(), images, rtol=0, atol=1e-8)


@pytest.mark.parametrize("guidance", [0.0, PosteriorGuidance(2.0), ResamplingGuidance(1.0), RejectionGuidance(1.0)])
def test_samples_are_repeatable_and_certified(guidance):
    model = Farmer.from_pretrained("digits").cuda()
    labels = torch.arange(10)
    first, again = (model.sample_latents(labels, guidance=guidance, generator=torch.Generator("cuda").manual_seed(0)) for _ in range(2))
    assert torch.equal(first.informative, again.informative)
    images = model.decode(first)
    assert images.isfinite().all() and certify(model, images, first, labels).residual.max() < 1e-3


@pytest.mark.parametrize("guidance", [0.0, PosteriorGuidance(2.0), ResamplingGuidance(1.0), RejectionGuidance(1.0)])
def test_the_recorded_loop_of_the_prior_draws_what_the_plain_one_does(monkeypatch, guidance):
    @contextmanager
    def plainly(step, restart):
        yield step

    model = Farmer.from_pretrained("digits").double().cuda()
    draw = lambda: model.sample_latents(torch.arange(10), guidance=guidance, generator=torch.Generator("cuda").manual_seed(0))
    recorded = [draw(), draw()]
    monkeypatch.setattr(transformer, "recorded", plainly)
    for latents in recorded:
        assert_close((latents.informative, latents.redundant), ((plain := draw()).informative, plain.redundant))


def test_a_student_moves_with_to():
    model, student = Farmer.from_pretrained("glyphs").cuda(), Student.from_pretrained("glyphs").cuda()
    latents = model.sample_latents([3, 8], generator=torch.Generator("cuda").manual_seed(0))
    assert (model.decode(latents, inverse=student) - model.decode(latents)).square().mean().sqrt() < 0.2


@pytest.mark.parametrize("execution", [ExecutionConfig(), ExecutionConfig(bfloat16=True), ExecutionConfig(bfloat16=True, compile=True), ExecutionConfig(accumulation=2)])
def test_training_learns_and_resumes(tmp_path, execution):
    training = short_training(steps=100, evaluate_every=50, save_every=50)
    trainer = make_trainer(tmp_path, training, device="cuda", execution=execution)
    before = trainer.evaluate()["held_out_latest"]
    trainer.fit(last_step=50)
    resumed = make_trainer(tmp_path, training, device="cuda", execution=replace(execution, compile=False))
    assert resumed.step == 50
    resumed.fit()
    assert resumed.evaluate()["held_out_latest"] < before - 0.3
