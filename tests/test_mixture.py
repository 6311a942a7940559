"What samples, changed mixtures, errors, extreme inputs and the head do; the exactness of log_prob is tested in test_exactness.py."
import math

import pytest
import torch
from torch.testing import assert_close

from farmer.mixture import GaussianMixture, MixtureHead
from helpers import library, normal, seeded


def random_mixture(batch=(), components=4, dimensions=3, dtype=torch.float32, log_scale=-1.0) -> GaussianMixture:
    logits, mean, noise = (normal(*batch, *shape, seed=seed, dtype=dtype) for seed, shape in enumerate(((components,), *((components, dimensions),) * 2)))
    return GaussianMixture(logits, mean, log_scale + 0.3 * noise)


def random(*shape, dtype=torch.float32) -> torch.Tensor:
    return normal(*shape, seed=9, dtype=dtype)


# --- Sampling


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_mean_and_covariance_of_samples(batch):
    mixture, draws = random_mixture(batch, dtype=torch.float64), 100_000
    weight, mean = mixture.logits.softmax(-1).unsqueeze(-1), mixture.component_mean
    expected_mean = (weight * mean).sum(-2)
    centred = mean - expected_mean.unsqueeze(-2)
    within = torch.diag_embed((weight * mixture.component_log_scale.exp().square()).sum(-2))
    expected_covariance = within + centred.mT @ (weight * centred)
    values = mixture.sample((draws,), seeded(0))
    residual = values - expected_mean
    covariance = torch.einsum("n...i,n...j->...ij", residual, residual) / draws
    spread = expected_covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    # Five standard errors of a mean, and of a second moment of light-tailed values.
    assert ((values.mean(0) - expected_mean).abs() < 5 * spread / draws**0.5).all()
    assert ((covariance - expected_covariance).abs() < 10 * spread.unsqueeze(-1) * spread.unsqueeze(-2) / draws**0.5).all()
    off_diagonal = expected_covariance - torch.diag_embed(expected_covariance.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() > 0.1  # the comparison above would notice a sampler of independent channels


def test_component_frequencies_and_spreads():
    logits, draws = torch.tensor([0.0, 1.0, -1.0, -40.0]), 40_000
    mean = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    log_scale = torch.tensor([[-1.0, -2.0], [-3.0, 0.0], [-0.5, -0.5], [0.0, 0.0]])
    values = GaussianMixture(logits, mean, log_scale).sample((draws,), seeded(0))
    component = (values.unsqueeze(1) - mean).square().sum(-1).argmin(1)  # ten deviations apart: no doubt who drew it
    counts, expected = torch.bincount(component, minlength=4), draws * logits.softmax(0)
    assert counts[3] == 0
    chi_square = ((counts - expected)[:3].square() / expected[:3]).sum()
    assert chi_square < 13.8  # 0.1% level at 2 degrees of freedom
    for k in range(3):
        spread = values[component == k].std(0)
        assert_close(spread, log_scale[k].exp(), rtol=5 / (2 * counts[k].item()) ** 0.5, atol=0)


def test_every_mixture_of_a_batch_draws_from_itself():
    mean = torch.arange(24.0).view(2, 3, 1, 4) * 100
    mixture = GaussianMixture(torch.zeros(2, 3, 1), mean, torch.zeros(2, 3, 1, 4))
    values = mixture.sample((5, 7), seeded(0))
    assert (values - mean[:, :, 0]).abs().max() < 10


def test_shared_mixture_gives_every_token_its_own_draw():
    values = random_mixture((2, 1)).sample((50,), seeded(0))
    assert values.shape == (50, 2, 1, 3)
    assert len(values[:, 0, 0].unique(dim=0)) == 50
    assert not torch.isclose(values[:, 0], values[:, 1]).all(-1).any()


@pytest.mark.parametrize("batch", [(), (2,), (2, 1), (2, 3)])
@pytest.mark.parametrize("sample_shape", [(), (1,), (5,), (5, 4), torch.Size([2])])
def test_sample_shapes(batch, sample_shape):
    mixture = random_mixture(batch, dtype=torch.float64)
    values = mixture.sample(sample_shape, seeded(0))
    assert values.shape == (*sample_shape, *batch, 3) and values.dtype == torch.float64
    assert mixture.batch_shape == batch and mixture.event_shape == (3,)


def test_a_generator_decides_the_samples():
    mixture = random_mixture((4,))
    first, again, other = (mixture.sample((6,), seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.isclose(first, other).any()
    state = torch.get_rng_state()
    mixture.sample((6,), seeded(3))
    assert torch.equal(state, torch.get_rng_state())  # the global state is left alone
    torch.manual_seed(3)
    assert torch.equal(mixture.sample((6,)), first)  # and decides when no generator is given


def test_samples_carry_no_gradient():
    mixture = MixtureHead(4, 3, 2)(torch.randn(5, 4))
    assert mixture.logits.requires_grad and not mixture.sample((2,)).requires_grad


# --- Temperatures


def test_temperatures_of_one_change_nothing():
    mixture, value = random_mixture((2,)), random(2, 3)
    assert torch.equal(mixture.tempered().log_prob(value), mixture.log_prob(value))


def test_a_temperature_changes_its_own_parameter_only():
    mixture = random_mixture()
    changed = mixture.tempered(weight_temperature=0.5)
    assert_close(changed.logits.softmax(-1), mixture.logits.softmax(-1).square() / mixture.logits.softmax(-1).square().sum())
    assert torch.equal(changed.component_log_scale, mixture.component_log_scale)
    changed = mixture.tempered(scale_temperature=2)
    assert_close(changed.component_log_scale.exp(), 2 * mixture.component_log_scale.exp())
    assert torch.equal(changed.logits, mixture.logits) and torch.equal(changed.component_mean, mixture.component_mean)


def test_a_weight_temperature_below_1_sharpens_and_its_inverse_flattens():
    "Weights 3/4 and 1/4: divided logits square them at 1/2, multiplied logits, the other reading, take their roots."
    halves = GaussianMixture(torch.tensor([0.75, 0.25]).log(), torch.zeros(2, 1), torch.zeros(2, 1))
    assert_close(halves.tempered(0.5).logits.softmax(-1), torch.tensor([0.9, 0.1]))
    assert_close(halves.tempered(1 / 0.5).logits.softmax(-1), torch.tensor([0.75, 0.25]).sqrt() / torch.tensor([0.75, 0.25]).sqrt().sum())


def test_limits_of_the_temperatures():
    mixture, generator = random_mixture(), seeded(0)
    cold = mixture.tempered(weight_temperature=1e-3)
    heaviest = mixture.logits.argmax()
    assert cold.logits.softmax(-1)[heaviest] == 1
    hot = mixture.tempered(weight_temperature=1e6)
    assert_close(hot.logits.softmax(-1), torch.full((4,), 0.25), rtol=0, atol=1e-5)
    still = mixture.tempered(1e-3, 1e-6).sample((100,), generator)
    assert_close(still, mixture.component_mean[heaviest].expand(100, 3), rtol=0, atol=1e-4)
    frozen = mixture.tempered(scale_temperature=1e-6).sample((500,), generator)
    nearest = (frozen.unsqueeze(1) - mixture.component_mean).abs().amax(-1).min(1)
    assert nearest.values.max() < 1e-4 and len(nearest.indices.unique()) == 4


@pytest.mark.parametrize("temperatures", [(0, 1), (1, 0), (-1, 1), (1, -1), (math.nan, 1), (1, math.nan)])
def test_temperatures_must_be_positive(temperatures):
    with pytest.raises(ValueError, match="temperatures must be above 0, got"):
        random_mixture().tempered(*temperatures)


# --- Parts of a mixture, and other variances


@pytest.mark.parametrize("index", [0, -1, slice(1, None), (slice(None), 2), (0, 2), (..., 1), (slice(None), None), [0, 1], (torch.tensor([0, 1]), [2, 0])])
def test_an_index_picks_mixtures_of_the_batch(index):
    mixture = random_mixture((2, 3), 3, 3)  # as many components and dimensions as mixtures: a slip would still have a shape
    picked = mixture[index]
    places = torch.arange(6).view(2, 3)[index]
    assert picked.batch_shape == places.shape
    for name in ("logits", "component_mean", "component_log_scale"):
        assert torch.equal(getattr(picked, name), getattr(mixture, name).flatten(0, 1)[places])


def test_masks_and_too_many_indices():
    mixture, mask = random_mixture((2, 3)), torch.tensor([[True, False, True], [False, False, True]])
    assert torch.equal(mixture[mask].log_prob(random(3)), mixture.log_prob(random(3))[mask])
    for index in ((0, 1, 2), (..., 0, 1, 2)):
        with pytest.raises(IndexError):
            mixture[index]


def test_channels_are_the_marginal():
    mixture, value = random_mixture((2,), dtype=torch.float64), random(2, 3, dtype=torch.float64)
    side = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    everywhere = value[:, [2, 1, 0]].expand(4001, 2, 3).clone()
    everywhere[..., 1] = side[:, None]
    integrated = torch.trapezoid(mixture.log_prob(everywhere).exp(), side, dim=0)
    assert_close(mixture.channels([2, 0]).log_prob(value[:, [0, 2]]).exp(), integrated)


def test_a_variance_factor_scales_every_component():
    mixture = random_mixture()
    wide = mixture.scaled(4)
    assert_close(wide.component_log_scale.exp(), 2 * mixture.component_log_scale.exp())
    assert wide.logits is mixture.logits and wide.component_mean is mixture.component_mean
    assert torch.equal(mixture.scaled(1).component_log_scale, mixture.component_log_scale)
    # The same generator chooses the same components and the same noise, whatever the factor; 0 leaves their means.
    none, one, four = (mixture.scaled(factor).sample((50,), seeded()) for factor in (0, 1, 4))
    assert_close(four - none, 2 * (one - none))
    assert (none[:, None] == mixture.component_mean).all(-1).any(-1).all()


@pytest.mark.parametrize("factor", [-1, math.inf, math.nan])
def test_variance_factors_that_make_no_sense_are_refused(factor):
    with pytest.raises(ValueError, match="the factor of the variance must be 0 or more and finite, got"):
        random_mixture().scaled(factor)


# --- Errors


@pytest.mark.parametrize(
    "logits, mean, log_scale",
    [((4,), (4, 3), (4, 2)), ((5,), (4, 3), (4, 3)), ((2, 4), (4, 3), (4, 3)), ((4, 1), (4, 3), (4, 3)), ((4, 3), (4, 3), (4, 3))],
)
def test_parameters_that_do_not_fit_are_named(logits, mean, log_scale):
    with pytest.raises(ValueError) as error:
        GaussianMixture(torch.zeros(logits), torch.zeros(mean), torch.zeros(log_scale))
    assert all(str(shape) in str(error.value) for shape in (logits, mean, log_scale))


@pytest.mark.parametrize("dimensions", [1, 2, 4])  # 1 would broadcast silently
def test_values_of_other_dimensions_are_refused(dimensions):
    with pytest.raises(ValueError, match=f"values have {dimensions} dimensions, the mixture has 3"):
        random_mixture().log_prob(torch.zeros(5, dimensions))


# --- Extreme values


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("size, log_scale", [(1e4, -1.0), (1e6, -7.0), (1.0, -15.0), (1e-20, 10.0), (1.0, -30.0)])
def test_far_values_and_tiny_scales_stay_finite(shared, size, log_scale):
    mixture = random_mixture((1,) if shared else (5,), log_scale=log_scale)
    inputs = [t.requires_grad_() for t in (size * random(5, 3), mixture.logits, mixture.component_mean, mixture.component_log_scale)]
    log_prob = GaussianMixture(*inputs[1:]).log_prob(inputs[0])
    assert log_prob.shape == (5,) and torch.isfinite(log_prob).all()
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(log_prob.sum(), inputs))


def test_components_of_no_weight_do_no_harm():
    mixture = random_mixture()
    logits = mixture.logits.clone()
    logits[1] = -math.inf
    logits.requires_grad_()
    log_prob = GaussianMixture(logits, mixture.component_mean, mixture.component_log_scale).log_prob(random(5, 3))
    kept = [0, 2, 3]
    expected = GaussianMixture(mixture.logits[kept], mixture.component_mean[kept], mixture.component_log_scale[kept])
    assert_close(log_prob, expected.log_prob(random(5, 3)))
    assert torch.isfinite(torch.autograd.grad(log_prob.sum(), logits)[0]).all()


# --- One mixture for many values


@pytest.mark.parametrize(
    "batch, values",
    [((), (7,)), ((), (2, 7)), ((1,), (7,)), ((2, 1), (2, 7)), ((2, 1), (7,)), ((2, 3, 1), (2, 3, 7)), ((2, 1, 1), (2, 3, 7)), ((2, 1), (5, 2, 7))],
)
def test_shared_mixtures_with_any_leading_dimensions(batch, values):
    mixture, value = random_mixture(batch, dtype=torch.float64), random(*values, 3, dtype=torch.float64)
    full_shape = torch.broadcast_shapes(batch, values)
    logits = mixture.logits.expand(*full_shape, 4)
    mean, log_scale = (p.expand(*full_shape, 4, 3) for p in (mixture.component_mean, mixture.component_log_scale))
    repeated = GaussianMixture(*(p.reshape(-1, *p.shape[len(full_shape) :]) for p in (logits, mean, log_scale)))
    one_by_one = repeated.log_prob(value.expand(*full_shape, 3).reshape(-1, 3)).view(full_shape)  # batch shape (n,): nothing shared
    assert_close(mixture.log_prob(value), one_by_one, rtol=0, atol=1e-10)


def test_shared_values_never_meet_every_component_in_memory():
    "No tensor of n K D numbers, forward or backward: the reason why the shared way exists."
    n, components, dimensions = 50, 40, 30
    mixture, value = random_mixture((2, 1), components, dimensions), random(2, n, dimensions).requires_grad_()
    parameters = [p.requires_grad_() for p in (mixture.logits, mixture.component_mean, mixture.component_log_scale)]
    with torch.profiler.profile(record_shapes=True) as profile:
        GaussianMixture(*parameters).log_prob(value).sum().backward()
    sizes = [math.prod(shape) for event in profile.events() for shape in event.input_shapes if shape]
    assert max(sizes) < n * components * dimensions  # of one of the two images


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("place", [0.0, 100.0, -1e4, 1e6])
def test_shared_mixtures_far_from_the_origin_lose_no_digits(place, dtype):
    "Expanding the square there would cost nats, even in float64: of narrow components 3 at 1e4 and thousands at 1e6."
    mean, log_scale = (place + normal(6, 64, seed=0, dtype=torch.float64)).to(dtype), torch.full((6, 64), -7.0, dtype=dtype)
    mean[0, :32], log_scale[0] = -place, 2.0  # a wide component elsewhere, which does not move the centre
    value = (mean[1 + torch.arange(50) % 5] + math.exp(-7) * normal(50, 64, seed=1, dtype=torch.float64)).to(dtype)
    shared = GaussianMixture(torch.zeros(1, 6, dtype=dtype), mean[None], log_scale[None]).log_prob(value)
    exact = library(GaussianMixture(torch.zeros(6).double(), mean.double(), log_scale.double())).log_prob(value.double())
    assert_close(shared, exact.to(dtype), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch, values", [((), ()), ((4,), (4,)), ((), (4,)), ((2, 1), (2, 4))])
def test_gradcheck(batch, values):
    mixture = random_mixture(batch, components=3, dimensions=2, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (random(*values, 2, dtype=torch.float64), mixture.logits, mixture.component_mean, mixture.component_log_scale)]
    assert torch.autograd.gradcheck(lambda value, *parameters: GaussianMixture(*parameters).log_prob(value), inputs)


@pytest.mark.parametrize("batch", [(1,), (4,)])
def test_mixed_precisions_give_the_finer_one(batch):
    mixture, value = random_mixture(batch), random(4, 3).bfloat16()
    assert torch.equal(mixture.log_prob(value), mixture.log_prob(value.float()))  # nothing is rounded to the coarser one
    assert mixture.log_prob(value.double()).dtype == torch.float64


# --- The head


def test_head_start():
    torch.manual_seed(0)
    mixture = MixtureHead(64, 32, 16)(torch.randn(200, 64))
    assert mixture.batch_shape == (200,) and mixture.event_shape == (16,) and mixture.logits.shape == (200, 32)
    assert (mixture.logits.softmax(-1) * 32 - 1).abs().max() < 0.6
    assert mixture.component_log_scale.abs().max() < 0.6
    typical = mixture.component_mean.mean(0)  # (32, 16): its spread is N(0, 1), known to 5 standard errors
    assert abs(typical.mean()) < 5 / 512**0.5 and abs(typical.std() - 1) < 5 / 1024**0.5
    assert mixture.component_mean.std(0).mean() < 0.1  # nearly the same for all tokens
    assert torch.pdist(typical).min() > 1  # and different for all components


def test_head_has_one_weight_per_input_and_parameter():
    head = MixtureHead(10, 4, 3)
    assert sum(p.numel() for p in head.parameters()) == (10 + 1) * 4 * (1 + 2 * 3)


def test_gradients_reach_every_output_of_the_head():
    torch.manual_seed(0)
    head = MixtureHead(8, 4, 3)
    head(torch.randn(20, 8)).log_prob(torch.randn(20, 3)).sum().backward()
    assert (head.linear.weight.grad.abs().sum(1) > 0).all() and (head.linear.bias.grad != 0).all()


@pytest.mark.parametrize("shared", [True, False])
def test_head_answers_in_float32_under_autocast(shared):
    torch.manual_seed(0)
    head, value = MixtureHead(16, 4, 3), random(2, 5, 3)
    hidden = torch.randn(2, 1 if shared else 5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = head(hidden)
        log_prob, sample = predicted.log_prob(value), predicted.sample()
        assert head.linear(hidden).dtype == torch.bfloat16  # autocast was on
    assert predicted.logits.dtype == predicted.component_mean.dtype == log_prob.dtype == sample.dtype == torch.float32
    # What it predicted, it evaluates in full precision even inside autocast.
    assert_close(log_prob, predicted.log_prob(value), rtol=1e-6, atol=1e-6)


def test_head_keeps_float64():
    predicted = MixtureHead(16, 4, 3).double()(torch.randn(2, 16, dtype=torch.float64))
    assert predicted.log_prob(torch.randn(2, 3, dtype=torch.float64)).dtype == torch.float64


def test_values_of_no_dimensions_can_be_drawn():
    "What a model without redundant channels asks for."
    mixture = GaussianMixture(torch.zeros(3, 1, 2), torch.zeros(3, 1, 2, 0), torch.zeros(3, 1, 2, 0))
    assert mixture.sample((5,)).shape == (5, 3, 1, 0) and torch.equal(mixture.log_prob(torch.zeros(3, 4, 0)), torch.zeros(3, 4))
