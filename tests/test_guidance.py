"What guidance promises: weights worked by hand, scale 0 and equal mixtures change nothing, clear errors, nothing in silence."
import dataclasses
import math

import pytest
import torch
from torch import distributions
from torch.testing import assert_close

from farmer.guidance import (
    PAPER_GUIDANCE, GuidanceReport, PosteriorGuidance, RejectionGuidance, ResamplingGuidance, VariationalGuidance, is_improper, resample,
    sample_guided, variational_proposal,
)
from farmer.mixture import GaussianMixture
from farmer.model import Farmer, FarmerConfig

WAYS = (PosteriorGuidance, ResamplingGuidance, VariationalGuidance, RejectionGuidance)
SMALL = dict(image_shape=(1, 4, 4), num_classes=3, levels=5, flow_blocks=2, flow_width=16, prior_width=16, prior_layers=1, head_width=8,
             informative_channels=2, components=3, redundant_components=4, condition_repeats=2)


def small(**changes) -> Farmer:
    torch.manual_seed(0)
    model = Farmer(FarmerConfig(**{**SMALL, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def mixture(batch: int, components: int, dimensions: int, seed: int = 0, wider: float = 0.0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    return GaussianMixture(draw(batch, components), draw(batch, components, dimensions), 0.2 * draw(batch, components, dimensions) + wider)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(mean: float, deviation: float, batch: int = 1) -> GaussianMixture:
    return GaussianMixture(*(torch.full((batch, *shape), value, dtype=torch.float64) for shape, value in (((1,), 0.0), ((1, 1), mean), ((1, 1), math.log(deviation)))))


# --- Probabilities


def test_weights_by_hand():
    "p_c = N(0, 1), p_u = N(0, 2): log p_c / p_u = log 2 - 3 z^2 / 8, times w from p_c and w + 1 from p_u."
    values, log_weight = ResamplingGuidance(2.0, 3, 4).candidates(normal(0, 1), normal(0, 2), (3, 4), seeded())
    log_ratio = math.log(2) - 0.375 * values[..., 0].square()
    assert_close(log_weight, torch.cat([2 * log_ratio[:3], 3 * log_ratio[3:]]), rtol=0, atol=1e-12)


def test_temperatures_act_where_they_should():
    way = ResamplingGuidance(1.0, 2, 2, 16, 0.5, 0.7, 0.2, 0.9, 1.1)
    own, other = mixture(1, 3, 2), mixture(1, 3, 2, seed=1)
    values, log_weight = way.candidates(own, other, (2, 2), seeded())
    assert torch.equal(values[:2], own.tempered(0.5, 0.7).sample((2,), seeded()))
    reference = []
    for part in (own, other):
        normals = distributions.Independent(distributions.Normal(part.component_mean, part.component_log_scale.exp() * 0.9), 1)
        reference.append(distributions.MixtureSameFamily(distributions.Categorical(logits=part.logits / 0.2), normals).log_prob(values))
    assert_close(log_weight, 1.1 * torch.tensor([[1.0], [1.0], [2.0], [2.0]], dtype=torch.float64) * (reference[0] - reference[1]), rtol=0, atol=1e-10)


def test_resample_follows_the_weights_and_says_when_it_cannot():
    candidates = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1).expand(3, 30_000, 1)
    drawn = resample(candidates, torch.tensor([1.0, 2.0, 5.0]).log().view(3, 1).expand(3, 30_000), seeded())
    for value, share in ((1, 1 / 8), (2, 2 / 8), (3, 5 / 8)):
        assert abs((drawn.value == value).double().mean() - share) < 4 * (share * (1 - share) / 30_000) ** 0.5
    assert_close(drawn.effective_sample_size, torch.full((30_000,), 64 / 30))
    assert not drawn.fallback.any()
    bad = torch.tensor([[math.nan, 0.0, -math.inf, 2.0], [-math.inf, math.nan, math.nan, math.inf]])
    drawn = resample(torch.arange(8.0).view(2, 4, 1), bad, seeded())
    assert drawn.fallback.tolist() == [True, False, True, False]
    assert drawn.value.flatten().tolist() == [0, 1, 2, 3] and drawn.effective_sample_size.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("way", WAYS)
def test_scale_0_draws_from_the_conditional_mixture(way):
    own, other = mixture(5, 4, 3), mixture(5, 4, 3, seed=1)
    drawn = way(0.0).draw(own, other, torch.full((5,), 0.1, dtype=torch.float64), seeded())
    assert torch.equal(drawn.value, own.sample((1,), seeded())) and not drawn.fallback.any()


@pytest.mark.parametrize("scale", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("way", [PosteriorGuidance, ResamplingGuidance, VariationalGuidance])
def test_equal_mixtures_make_the_scale_irrelevant(way, scale):
    same = mixture(50, 4, 3)
    drawn = way(scale).draw(same, same, torch.full((50,), 0.3, dtype=torch.float64), seeded())
    assert_close(drawn.effective_sample_size, torch.full((50,), 10.0, dtype=torch.float64), rtol=0, atol=1e-8)
    assert not drawn.fallback.any()


def test_the_fitted_proposal_is_exact_for_equal_mixtures_and_for_single_gaussians():
    same = mixture(6, 4, 3)
    fitted, held = variational_proposal(same, same, 3.0, 5)
    assert_close(fitted.component_mean, same.component_mean, rtol=0, atol=1e-10)
    assert_close(fitted.component_log_scale, same.component_log_scale, rtol=0, atol=1e-10)
    assert_close(fitted.logits.log_softmax(-1), same.logits.log_softmax(-1), rtol=0, atol=1e-10)
    assert not held.any()
    own, other = mixture(6, 1, 3), mixture(6, 1, 3, seed=1, wider=0.8)
    fitted, held = variational_proposal(own, other, 2.0, 3)
    values = torch.randn(100, 6, 3, dtype=torch.float64)
    constant = 3 * own.log_prob(values) - 2 * other.log_prob(values) - fitted.log_prob(values)
    assert_close(constant, constant[:1].expand_as(constant), rtol=0, atol=1e-9)
    assert not held.any()


@pytest.mark.parametrize("way, error", [(lambda w: VariationalGuidance(w), 0.03), (lambda w: ResamplingGuidance(w, 200, 200), 0.05), (lambda w: PosteriorGuidance(w, 200), 0.05), (lambda w: RejectionGuidance(w), 0.03)])  # fmt: skip
def test_a_single_gaussian_is_guided_as_the_formula_says(way, error):
    scale, own, other = 2.0, (1.0, 0.7), (0.0, 1.0)
    precision = (1 + scale) / own[1] ** 2 - scale / other[1] ** 2
    mean = (1 + scale) * own[0] / own[1] ** 2 / precision
    n = 20_000
    values = way(scale).draw(normal(*own, n), normal(*other, n), torch.zeros(n, dtype=torch.float64), seeded()).value
    assert abs(values.mean() - mean) < error and abs(values.std() - precision**-0.5) < error


def test_posterior_guidance_keeps_the_bayes_bound():
    "Its weights never exceed r^-w: with r near 1 every candidate counts, whatever the unconditional mixture says."
    own, other = normal(0, 1, 500), normal(5, 0.1, 500)
    settled = PosteriorGuidance(4.0).draw(own, other, torch.full((500,), 0.999, dtype=torch.float64), seeded())
    assert settled.effective_sample_size.quantile(0.05) > 9.9 and settled.value.max() < 4.5
    certain = PosteriorGuidance(4.0).draw(own, other, torch.ones(500, dtype=torch.float64), seeded())
    assert certain.effective_sample_size.min() > 10 - 1e-6 and not certain.fallback.any()


def test_improper():
    assert not is_improper(normal(0, 1), normal(0, 2), 4.0)
    assert is_improper(normal(0, 2), normal(0, 1), 1.0)
    assert not is_improper(normal(0, 1), normal(0, 1), 100.0)
    edge = math.sqrt(2)  # (1 + w) / 2 = w at w = 1
    assert is_improper(normal(0, edge + 1e-9), normal(0, 1), 1.0) and not is_improper(normal(0, edge - 1e-9), normal(0, 1), 1.0)


def test_rejection_falls_back_and_says_so():
    own, other = normal(0, 1, 2000), normal(0, 0.8, 2000)  # improper at w = 4
    drawn = RejectionGuidance(4.0, attempts=1).draw(own, other, torch.zeros(2000), seeded())
    assert drawn.fallback.double().mean() > 0.5 and drawn.value.isfinite().all()


# --- The whole model


@pytest.mark.parametrize("way", WAYS)
def test_sample_with_a_report(way):
    model, labels = small(), torch.tensor([0, 1, 2, 0, 1])
    images, whole = model.sample(labels, seeded(), guidance=way(2.0), return_report=True)
    report = whole.guidance
    assert images.shape == (5, 1, 4, 4) and images.isfinite().all()
    assert isinstance(report, GuidanceReport) and report.effective_sample_size.shape == report.improper.shape == report.fallback.shape == (5, 4)
    assert report.log_posterior.shape == (5, 5) and (report.log_posterior <= 0).all()
    assert_close(report.log_posterior[:, 0], torch.full((5,), -math.log(3)))
    assert (report.effective_sample_size >= 0.999).all() and "\n" not in report.summary() and "effective sample size" in report.summary()
    assert torch.equal(images, model.sample(labels, seeded(), guidance=way(2.0)))  # same seed, same images; asking changes nothing
    assert not torch.equal(images, model.sample(labels, seeded(1), guidance=way(2.0)))
    assert (report.pool_effective_sample_size is not None) == (way is ResamplingGuidance)


def test_scale_0_is_no_guidance():
    model, labels = small(), [0, 1, 2]
    plain = model.sample(labels, seeded())
    assert torch.equal(plain, model.sample(labels, seeded(), guidance=0.0)) and torch.equal(plain, model.sample(labels, seeded(), guidance=0))
    for way in WAYS:
        assert_close(model.sample(labels, seeded(), guidance=way(0.0)), plain, rtol=0, atol=1e-5)
    assert model.sample(labels, seeded(), return_report=True)[1].guidance is None


def test_a_number_is_the_default_way():
    model = small()
    assert torch.equal(model.sample([1], seeded(), guidance=1.5), model.sample([1], seeded(), guidance=PosteriorGuidance(1.5)))


def test_both_halves_read_the_same_tokens():
    "The recorded posterior is the running sum of the log-ratios of one parallel pass over the drawn tokens."
    model, labels = small().double(), torch.tensor([0, 1, 2, 2])
    z, report = sample_guided(model.prior, labels, PosteriorGuidance(1.0), seeded())
    informative, _ = model.partition.split(z)
    own, other = (model.prior.mixtures(informative, y)[0].log_prob(informative) for y in (labels, torch.full_like(labels, 3)))
    expected = torch.full((4,), -math.log(3), dtype=torch.float64)
    for i in range(4):
        expected = (expected + own[:, i] - other[:, i]).clamp(-50, 0)
        assert_close(report.log_posterior[:, i + 1], expected, rtol=0, atol=1e-8)


def test_dropout_is_off_under_guidance():
    model = small(dropout=0.5)
    first = model.train().sample([0, 1], seeded(), guidance=2.0)
    assert torch.equal(first, model.sample([0, 1], seeded(), guidance=2.0)) and model.training


def test_the_papers_settings():
    table = {"1.1b-p16": (1.0, 0.9, 5, 5, 0.2, 0.9, 1.1, 2.5), "1.1b-p8": (1.0, 1.0, 5, 5, 0.2, 0.9, 1.1, 2.0),
             "1.9b-p16": (1.0, 0.9, 5, 5, 0.2, 0.9, 1.1, 3.5), "1.9b-p8": (1.0, 1.0, 5, 5, 0.1, 1.0, 1.1, 1.5)}  # fmt: skip
    assert PAPER_GUIDANCE.keys() == {f"paper-{name}" for name in table}
    for name, row in table.items():
        way = PAPER_GUIDANCE[f"paper-{name}"]
        assert row == (way.proposal_weight_temperature, way.proposal_scale_temperature, way.conditional_candidates, way.unconditional_candidates,
                       way.weighing_weight_temperature, way.weighing_scale_temperature, way.score_temperature, way.scale)  # fmt: skip


# --- Bad input


def test_every_wrong_setting_is_named():
    for way in WAYS:
        for field in dataclasses.fields(way):
            whole = not (field.name == "scale" or field.name.endswith("temperature"))
            wrong = (0, -1, 2.0, True, "5") if whole else (-0.1, math.nan, math.inf, "1", None, True) + (() if field.name == "scale" else (0, 0.0))
            for value in wrong:
                with pytest.raises(ValueError, match=field.name):
                    way(**{"scale": 1.0, field.name: value})


@pytest.mark.parametrize("changes, labels, guidance, words", [
    ({}, [0, 3], 1.0, "cannot be guided"), ({}, None, 1.0, "labels must be"), ({}, [0], -1.0, "scale"), ({}, [0], math.nan, "scale"), ({}, [0], "2", "scale"),
    ({"label_dropout": 0.0}, [0], 1.0, "label_dropout"), ({"num_classes": 0}, [0], 1.0, "no classes"), ({"prior": "standard-normal"}, [0], 1.0, "no classes"),
])  # fmt: skip
def test_what_cannot_be_guided_says_why(changes, labels, guidance, words):
    with pytest.raises(ValueError, match=words) as caught:
        small(**changes).sample(labels, guidance=guidance)
    assert "\n" not in str(caught.value)
