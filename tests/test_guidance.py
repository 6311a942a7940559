"What guidance promises: weights worked by hand, scale 0 and equal mixtures change nothing, clear errors, nothing in silence."
import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import distributions
from torch.testing import assert_close

from farmer.analysis import VariationalGuidance, variational_proposal
from farmer.guidance import Guided, PosteriorGuidance, RejectionGuidance, ResamplingGuidance, is_improper, resample
from farmer.mixture import GaussianMixture
from farmer.presets import PAPER_GUIDANCE
from helpers import complaint, seeded, small

WAYS = (PosteriorGuidance, ResamplingGuidance, VariationalGuidance, RejectionGuidance)
WEIGHING = (PosteriorGuidance, ResamplingGuidance, VariationalGuidance)


def mixture(batch: int, components: int, dimensions: int, seed: int = 0, wider: float = 0.0) -> GaussianMixture:
    generator = seeded(seed)
    values = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    return GaussianMixture(values(batch, components), values(batch, components, dimensions), 0.2 * values(batch, components, dimensions) + wider)


def gaussian(mean: float, std: float, batch: int = 1) -> GaussianMixture:
    values = torch.tensor([0.0, mean, math.log(std)], dtype=torch.float64).expand(batch, 3)
    return GaussianMixture(values[:, :1], values[:, 1:2, None], values[:, 2:, None])


def constant(value: float, batch: int) -> torch.Tensor:
    return torch.full((batch,), value, dtype=torch.float64)


# --- Weights


def test_weights_by_hand():
    "p_c = N(0, 1), p_u = N(0, 2): log p_c / p_u = log 2 - 3 z^2 / 8, times w from p_c and w + 1 from p_u."
    values = torch.randn(7, 1, 1, generator=seeded(), dtype=torch.float64)
    own, other = ResamplingGuidance(2.0).log_weights(gaussian(0, 1), gaussian(0, 2), values[:3], values[3:])
    log_ratio = math.log(2) - 0.375 * values[..., 0].square()
    assert_close(torch.cat([own, other]), torch.cat([2 * log_ratio[:3], 3 * log_ratio[3:]]), rtol=0, atol=1e-12)


def test_temperatures_act_where_they_should():
    way = ResamplingGuidance(1.0, 2, 2, 16, 0.5, 0.7, 0.2, 0.9, 1.1)
    own, other = mixture(1, 3, 2), mixture(1, 3, 2, seed=1)
    proposed = own.tempered(0.5, 0.7).sample((2,), seeded())
    assert torch.equal(way.proposal(own).sample((2,), seeded()), proposed)
    unguided = dataclasses.replace(way, scale=0.0).draw(own, other, constant(0.1, 1), seeded())
    assert torch.equal(unguided.value, own.tempered(0.5, 0.7).sample((1,), seeded()))
    reference = []
    for part in (own, other):
        normals = distributions.Independent(distributions.Normal(part.component_mean, part.component_log_scale.exp() * 0.9), 1)
        reference.append(distributions.MixtureSameFamily(distributions.Categorical(logits=part.logits / 0.2), normals).log_prob(proposed))
    for power, log_weight in zip((1, 2), way.log_weights(own, other, proposed, proposed)):
        assert_close(log_weight, 1.1 * power * (reference[0] - reference[1]), rtol=0, atol=1e-10)


def test_both_directions_of_the_weight_temperatures():
    "Temperature 0.2: sharpen takes the fifth power of the component weights, flatten the fifth root; nothing else differs."
    own, other, values = mixture(2, 3, 2), mixture(2, 3, 2, seed=1), torch.randn(4, 2, 2, generator=seeded(), dtype=torch.float64)
    for direction, power in (("sharpen", 5.0), ("flatten", 0.2)):
        way = ResamplingGuidance(1.0, proposal_weight_temperature=0.2, weighing_weight_temperature=0.2, temperature_direction=direction)
        by_hand = [GaussianMixture(power * part.logits, part.component_mean, part.component_log_scale) for part in (own, other)]
        assert_close(way.proposal(own).logits.softmax(-1), own.logits.softmax(-1) ** power / (own.logits.softmax(-1) ** power).sum(-1, keepdim=True))
        assert_close(way.log_weights(own, other, values, values)[0], by_hand[0].log_prob(values) - by_hand[1].log_prob(values))
    sharpened, flattened = (ResamplingGuidance(1.0, weighing_weight_temperature=0.2, temperature_direction=each) for each in ("sharpen", "flatten"))
    assert not torch.allclose(sharpened.log_weights(own, other, values, values)[0], flattened.log_weights(own, other, values, values)[0])
    assert ResamplingGuidance(1.0, weighing_weight_temperature=0.2) == sharpened  # the default


def test_tokens_choose_from_a_pool_of_candidates_and_only_from_good_ones():
    own, other = gaussian(-5, 0.1, 2)[:, None], gaussian(5, 0.1, 2)[:, None]  # batch shape (2, 1): shared by the tokens
    values, size = ResamplingGuidance(1.0, redundant_candidates=3).draw_redundant(own, other, 50, seeded())
    assert values.shape == (2, 50, 1) and (values < 0).all() and (size <= 3.001).all() and size.shape == (2,)
    assert all(len(image.unique()) <= 3 for image in values)


def test_draws_without_a_finite_weight_are_marked():
    bad = torch.tensor([[math.nan, 0.0, -math.inf, 2.0], [-math.inf, math.nan, math.nan, math.inf]])
    drawn = resample(torch.arange(8.0).view(2, 4, 1), bad, seeded())
    assert drawn.fallback.tolist() == [True, False, True, False]
    assert drawn.value.flatten().tolist() == [0, 1, 2, 3] and drawn.effective_sample_size.tolist() == [1, 1, 1, 1]


def test_improper():
    assert not is_improper(gaussian(0, 1), gaussian(0, 2), 4.0)
    assert is_improper(gaussian(0, 2), gaussian(0, 1), 1.0)
    assert not is_improper(gaussian(0, 1), gaussian(0, 1), 100.0)
    edge = math.sqrt(2)  # (1 + w) / 2 = w at w = 1
    assert is_improper(gaussian(0, edge + 1e-9), gaussian(0, 1), 1.0) and not is_improper(gaussian(0, edge - 1e-9), gaussian(0, 1), 1.0)


# --- Ways of guiding


@pytest.mark.parametrize("way", WAYS)
def test_scale_0_draws_from_the_conditional_mixture(way):
    own, other = mixture(5, 4, 3), mixture(5, 4, 3, seed=1)
    drawn = way(0.0).draw(own, other, constant(0.1, 5), seeded())
    assert torch.equal(drawn.value, own.sample((1,), seeded())) and not drawn.fallback.any()


@pytest.mark.parametrize("scale", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("way", WEIGHING)
def test_equal_mixtures_make_the_scale_irrelevant(way, scale):
    same = mixture(50, 4, 3)
    drawn = way(scale).draw(same, same, constant(0.3, 50), seeded())
    assert_close(drawn.effective_sample_size, constant(10.0, 50), rtol=0, atol=1e-8)
    assert not drawn.fallback.any()


@pytest.mark.parametrize(
    "way, error",
    [
        (VariationalGuidance(2.0), 0.03),
        (ResamplingGuidance(2.0, 200, 200), 0.05),
        (PosteriorGuidance(2.0, 200), 0.05),
        (RejectionGuidance(2.0, attempts=200), 0.03),
    ],
)
def test_a_single_gaussian_is_guided_as_the_formula_says(way, error):
    (mean, std), other_std, n = (1.0, 0.7), 1.0, 20_000
    precision = 3 / std**2 - 2 / other_std**2
    values = way.draw(gaussian(mean, std, n), gaussian(0.0, other_std, n), constant(0.0, n), seeded()).value
    assert abs(values.mean() - 3 * mean / std**2 / precision) < error and abs(values.std() - precision**-0.5) < error


def test_posterior_guidance_keeps_the_bayes_bound():
    "Its weights never exceed r^-w: with r near 1 every candidate counts, whatever the unconditional mixture says."
    own, other = gaussian(0, 1, 500), gaussian(5, 0.1, 500)
    settled = PosteriorGuidance(4.0).draw(own, other, constant(0.999, 500), seeded())
    assert settled.effective_sample_size.quantile(0.05) > 9.9 and settled.value.max() < 4.5
    certain = PosteriorGuidance(4.0).draw(own, other, constant(1.0, 500), seeded())
    assert certain.effective_sample_size.min() > 10 - 1e-6 and not certain.fallback.any()


def test_rejection_falls_back_and_says_so():
    own, other = gaussian(0, 1, 2000), gaussian(0, 0.8, 2000)  # improper at w = 4
    drawn = RejectionGuidance(4.0, attempts=1).draw(own, other, constant(0.0, 2000), seeded())
    assert drawn.fallback.double().mean() > 0.5 and drawn.value.isfinite().all()


def test_rejection_leans_as_the_published_code_does():
    """p_c = N(1, 0.3), p_u = N(0, 0.3), w = 2: p' = N(3, 0.3), while the accepted density is the lower of two curves.

    The proposal N(1, 0.6) and p', both over their largest value: the bound comes from the grid and from the proposal's peak.
    """
    drawn = RejectionGuidance(2.0).draw(gaussian(1, 0.3, 5000), gaussian(0, 0.3, 5000), constant(0.0, 5000), seeded())
    line = torch.linspace(-5, 10, 15_001, dtype=torch.float64)
    density = torch.minimum(-0.5 * ((line - 1) / 0.6).square(), -0.5 * ((line - 3) / 0.3).square()).softmax(0)
    mean = (density * line).sum()
    std = (density * (line - mean).square()).sum().sqrt()
    assert abs(mean - 2.44) < 0.005 and abs(drawn.value.mean() - mean) < 0.015 and abs(drawn.value.std() - std) < 0.015
    assert drawn.fallback.double().mean() < 0.001 and drawn.effective_sample_size.eq(1).all()


def test_rejection_tempers_the_deviations_of_both_mixtures():
    tempered = RejectionGuidance(2.0, scale_temperature=0.9)
    own, other = mixture(300, 4, 3), mixture(300, 4, 3, seed=1)
    hot = [GaussianMixture(part.logits, part.component_mean, part.component_log_scale + math.log(0.9)) for part in (own, other)]
    expected = RejectionGuidance(2.0).draw(*hot, constant(0.0, 300), seeded())
    assert_close(tempered.draw(own, other, constant(0.0, 300), seeded()).value, expected.value)


def test_the_fitted_proposal_is_exact_for_equal_mixtures_and_for_single_gaussians():
    same = mixture(6, 4, 3)
    fitted, held = variational_proposal(same, same, 3.0, 5)
    assert_close(fitted.component_mean, same.component_mean, rtol=0, atol=1e-10)
    assert_close(fitted.component_log_scale, same.component_log_scale, rtol=0, atol=1e-10)
    assert_close(fitted.logits.log_softmax(-1), same.logits.log_softmax(-1), rtol=0, atol=1e-10)
    assert not held.any()
    own, other = mixture(6, 1, 3), mixture(6, 1, 3, seed=1, wider=0.8)
    fitted, held = variational_proposal(own, other, 2.0, 3)
    values = torch.randn(100, 6, 3, generator=seeded(), dtype=torch.float64)
    difference = 3 * own.log_prob(values) - 2 * other.log_prob(values) - fitted.log_prob(values)
    assert_close(difference, difference[:1].expand_as(difference), rtol=0, atol=1e-9)
    assert not held.any()


def test_the_papers_settings():
    table = {
        "1.1b-p16": (1.0, 0.9, 5, 5, 0.2, 0.9, 1.1, 2.5),
        "1.1b-p8": (1.0, 1.0, 5, 5, 0.2, 0.9, 1.1, 2.0),
        "1.9b-p16": (1.0, 0.9, 5, 5, 0.2, 0.9, 1.1, 3.5),
        "1.9b-p8": (1.0, 1.0, 5, 5, 0.1, 1.0, 1.1, 1.5),
    }
    assert PAPER_GUIDANCE.keys() == {f"paper-{name}" for name in table}
    for name, row in table.items():
        way = PAPER_GUIDANCE[f"paper-{name}"]
        proposal = way.proposal_weight_temperature, way.proposal_scale_temperature, way.conditional_candidates, way.unconditional_candidates
        assert row == (*proposal, way.weighing_weight_temperature, way.weighing_scale_temperature, way.score_temperature, way.scale)


# --- In the prior's loop


@pytest.mark.parametrize("way", WAYS)
def test_latents_come_with_a_report(way):
    model, labels = small(), torch.tensor([0, 1, 2, 0, 1])
    latents = model.sample_latents(labels, guidance=way(2.0), generator=seeded())
    report, images = latents.report, model.decode(latents)
    assert images.shape == (5, 1, 4, 4) and images.isfinite().all()
    assert report.effective_sample_size.shape == report.improper.shape == report.fallback.shape == (5, 4)
    assert report.log_posterior.shape == (5, 5) and (report.log_posterior <= 0).all()
    assert_close(report.log_posterior[:, 0], torch.full((5,), -math.log(3)))
    assert (report.effective_sample_size >= 0.999).all() and "\n" not in report.summary() and "effective sample size" in report.summary()
    assert (report.pool_effective_sample_size is not None) == (way is ResamplingGuidance) == (", pool" in report.summary())
    assert torch.equal(images, model.sample(labels, guidance=way(2.0), generator=seeded()))  # same seed, same images
    assert not torch.equal(images, model.sample(labels, guidance=way(2.0), generator=seeded(1)))


def test_scale_0_is_no_guidance_and_a_number_is_the_default_way():
    model, labels = small(), [0, 1, 2]
    plain = model.sample(labels, generator=seeded())
    for nothing in (0.0, 0):
        assert torch.equal(plain, model.sample(labels, guidance=nothing, generator=seeded()))
    for way in WAYS:
        assert_close(model.sample(labels, guidance=way(0.0), generator=seeded()), plain, rtol=0, atol=1e-5)
        assert model.sample_latents(labels, guidance=way(0.0)).report.log_posterior.shape == (3, 5)
    assert model.sample_latents(labels, generator=seeded()).report is None and Guided(PosteriorGuidance(1.0), 3).report is None
    double = model.double().sample_latents(labels, guidance=np.float64(2)).report
    assert double.log_posterior.dtype == torch.float64 and not double.log_posterior.is_inference()
    assert torch.equal(model.sample(labels, guidance=1.5, generator=seeded()), model.sample(labels, guidance=PosteriorGuidance(1.5), generator=seeded()))


def test_scale_0_keeps_the_temperatures_of_the_proposal():
    "With deviations of nearly 0 every token, informative and redundant, is the mean of a component of its conditional mixture."
    model, labels = small().double(), torch.tensor([0, 1, 2, 0, 1])
    for way in (ResamplingGuidance(0.0, proposal_scale_temperature=1e-9, weighing_scale_temperature=0.5), RejectionGuidance(0.0, scale_temperature=1e-9)):
        latents = model.sample_latents(labels, guidance=way, generator=seeded())
        for values, mixture in zip((latents.informative, latents.redundant), model.prior.mixtures(latents.informative, labels)):
            off = (mixture.component_mean - values.unsqueeze(2)).abs().amax(-1).amin(-1)
            assert off.max() < 1e-6
        plain = model.sample_latents(labels, generator=seeded()).informative
        assert not torch.allclose(latents.informative, plain)
        assert latents.report.effective_sample_size.eq(1).all() and latents.report.pool_effective_sample_size is None


@pytest.mark.parametrize("flow_blocks", [1, 2])  # the prior reads backwards, forwards
def test_both_halves_read_the_same_tokens(flow_blocks):
    "The recorded posterior is the running sum of the log-ratios of one parallel pass over the drawn tokens."
    model, labels = small(flow_blocks=flow_blocks).double(), torch.tensor([0, 1, 2, 2])
    policy = Guided(PosteriorGuidance(1.0), 3)
    informative, _ = model.partition.split(model.prior.sample(labels, policy=policy, generator=seeded()))
    own, other = (model.prior.turn(model.prior.mixtures(informative, y)[0].log_prob(informative)) for y in (labels, torch.full_like(labels, 3)))
    expected = constant(-math.log(3), 4)
    for i in range(4):
        expected = (expected + own[:, i] - other[:, i]).clamp(-50, 0)
        assert_close(policy.report.log_posterior[:, i + 1], expected, rtol=0, atol=1e-7)
    assert model.prior.reverse == (flow_blocks == 1)


def test_dropout_is_off_under_guidance():
    model = small(dropout=0.5).train()
    first = model.sample([0, 1], guidance=2.0, generator=seeded())
    assert torch.equal(first, model.sample([0, 1], guidance=2.0, generator=seeded())) and model.training


# --- Bad input


@pytest.mark.parametrize("way", WAYS)
def test_every_wrong_setting_is_named(way):
    for field in dataclasses.fields(way):
        whole = not (field.name == "scale" or field.name.endswith("temperature"))
        wrong = (0, -1, 2.0, True, "5") if whole else (-0.1, math.nan, math.inf, "1", None, True) + (() if field.name == "scale" else (0, 0.0))
        for value in wrong:
            complaint(ValueError, lambda: way(**{"scale": 1.0, field.name: value}), field.name)


@pytest.mark.parametrize(
    "changes, labels, guidance, words",
    [
        ({}, [0, 3], 1.0, "cannot be guided"),
        ({}, None, 1.0, "labels must be"),
        ({}, [0], -1.0, "scale"),
        ({}, [0], math.nan, "scale"),
        ({}, [0], "2", "scale"),
        ({"label_dropout": 0.0}, [0], 1.0, "label_dropout"),
        ({"num_classes": 0}, [0], 1.0, "no classes"),
        ({"prior": "standard-normal"}, [0], 1.0, "no classes"),
    ],
)
def test_what_cannot_be_guided_says_why(changes, labels, guidance, words):
    complaint(ValueError, lambda: small(**changes).sample(labels, guidance=guidance), words)
