"What the formulas say, in float64, against autograd or torch.distributions rather than against ourselves."
import math

import pytest
import torch
from helpers import LABELS, clean_images, randomize, seeded, small
from torch import distributions
from torch.testing import assert_close

from farmer.flow import AutoregressiveBlock, CouplingBlock, Flow, autoregressive_flow, coupling_flow
from farmer.mixture import GaussianMixture
from farmer.model import Farmer
from farmer.patches import unpatchify


def exact_farmer(**changes) -> Farmer:
    "A small model with weights far from its start, in float64 and evaluation mode."
    return small(**{"flow_blocks": 3, **changes}).double().eval()


# --- Flow

SIZE = dict(width=16, layers=2, heads=2)
FLOWS = {
    "one block": lambda: autoregressive_flow(5, 3, blocks=1, **SIZE),
    "three blocks": lambda: autoregressive_flow(5, 3, blocks=3, **SIZE),
    "first token unchanged": lambda: autoregressive_flow(5, 3, blocks=3, **SIZE, scale_first=False),
    "one coupling": lambda: coupling_flow(5, 3, blocks=1, **SIZE),
    "three couplings": lambda: coupling_flow(5, 3, blocks=3, **SIZE),
    "two channels": lambda: coupling_flow(5, 2, blocks=2, **SIZE),
    "mixed": lambda: Flow([AutoregressiveBlock(5, 3, **SIZE, reverse=True), CouplingBlock(5, torch.tensor([2, 0, 1]), **SIZE)]),
}


def make(kind: str) -> tuple[Flow, torch.Tensor]:
    "A flow away from the identity, and three images for it."
    torch.manual_seed(0)
    flow = randomize(FLOWS[kind]().double()).eval()
    return flow, torch.randn(3, 5, 2 if kind == "two channels" else 3, dtype=torch.float64)


def jacobian_of(function, x: torch.Tensor) -> torch.Tensor:  # x (N, d) -> (N d, N d)
    return torch.autograd.functional.jacobian(lambda tokens: function(tokens[None])[0], x).reshape(x.numel(), x.numel())


@pytest.mark.parametrize("kind", FLOWS)
def test_log_scales_add_up_to_the_log_determinant_of_the_full_jacobian(kind):
    flow, x = make(kind)
    for tokens, log_scale in zip(x, flow(x)[1]):
        jacobian = jacobian_of(lambda x: flow(x)[0], tokens)
        assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_scale.sum(), rtol=0, atol=1e-10)
        assert log_scale.abs().max() > 0.05


@pytest.mark.parametrize("kind", FLOWS)
def test_log_scales_of_a_block_stand_where_they_scale(kind):
    "Each is the derivative of a number of z by the same number of x, token by token and channel by channel, in the image's order."
    flow, x = make(kind)
    for block in flow.blocks:
        for tokens, log_scale in zip(x, block(x)[1]):
            assert_close(jacobian_of(lambda x: block(x)[0], tokens).diagonal(), log_scale.exp().flatten(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", FLOWS)
def test_the_inverse_of_a_flow_is_exact(kind):
    flow, x = make(kind)
    assert_close(flow.inverse(flow(x)[0]), x, rtol=0, atol=1e-12)
    assert_close(flow(flow.inverse(x))[0], x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_no_token_hears_one_that_is_read_later(reverse):
    torch.manual_seed(0)
    block = randomize(AutoregressiveBlock(5, 3, **SIZE, reverse=reverse).double())
    heard = jacobian_of(lambda x: block(x)[0], torch.randn(5, 3, dtype=torch.float64)).reshape(5, 3, 5, 3).abs().sum((1, 3))
    heard = heard.flip(0, 1) if reverse else heard
    assert torch.all(heard.triu(1) == 0) and torch.all(heard[torch.ones(5, 5).tril().bool()] > 0)


# --- Mixture


def random_mixture(batch, components, dimensions, log_scale=(-1.0, 0.5), dtype=torch.float64):
    generator, (low, high) = seeded(), log_scale
    scales = low + (high - low) * torch.rand(*batch, components, dimensions, generator=generator, dtype=dtype)
    logits, mean = (torch.randn(*batch, *shape, generator=generator, dtype=dtype) for shape in ((components,), (components, dimensions)))
    return logits, mean, scales


def reference_mixture(logits, mean, log_scale):
    return distributions.MixtureSameFamily(
        distributions.Categorical(logits=logits), distributions.Independent(distributions.Normal(mean, log_scale.exp()), 1)
    )


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_mixture_against_torch_distributions(batch):
    parameters = [p.requires_grad_() for p in random_mixture(batch, 5, 3)]
    value = torch.randn(*batch, 3, dtype=torch.float64, requires_grad=True)
    ours, reference = GaussianMixture(*parameters), reference_mixture(*parameters)
    assert ours.batch_shape == reference.batch_shape and ours.event_shape == reference.event_shape
    assert ours.sample((7, 2)).shape == reference.sample((7, 2)).shape
    ours, reference = ours.log_prob(value), reference.log_prob(value)
    assert_close(ours, reference, rtol=0, atol=1e-10)
    for a, b in zip(*(torch.autograd.grad(log_prob.sum(), [value, *parameters], retain_graph=True) for log_prob in (ours, reference))):
        assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("log_scale", [-1.0, -3.0, -5.0, -7.0])
@pytest.mark.parametrize("batched", [True, False])
def test_shared_mixture_keeps_float32_accuracy_at_small_deviations(log_scale, batched):
    batch = (2,) if batched else ()
    logits, mean, scales = random_mixture(batch, 6, 20, log_scale=(log_scale - 0.5, log_scale), dtype=torch.float32)
    chosen = torch.randint(6, (*batch, 50, 1)).expand(*batch, 50, 20)
    value = mean.gather(-2, chosen) + torch.randn(*batch, 50, 20) * scales.gather(-2, chosen).exp()
    parameters = [p.unsqueeze(-2 - (p is not logits)) if batched else p for p in (logits, mean, scales)]

    def run(make, inputs):
        inputs = [p.detach().clone().requires_grad_() for p in inputs]
        log_prob = make(*inputs[1:]).log_prob(inputs[0])
        return [log_prob, *torch.autograd.grad(log_prob.sum(), inputs)]

    ours = run(GaussianMixture, [value, *parameters])
    exact = run(reference_mixture, [value.double(), *(p.double() for p in parameters)])
    for a, b in zip(ours, exact):
        assert (a.double() - b).norm() <= 1e-6 * b.norm()


# --- The whole model


def test_log_determinant_of_the_whole_model_in_pixels():
    model, images = exact_farmer(), clean_images(2).double()

    def latents(image: torch.Tensor) -> torch.Tensor:
        encoded = model.encode(image.reshape(1, 1, 4, 4))
        return torch.cat([encoded.informative, encoded.redundant], -1).flatten()

    for image, value in zip(images, model.encode(images).logdet):
        jacobian = torch.autograd.functional.jacobian(latents, image.flatten())
        assert_close(torch.linalg.slogdet(jacobian).logabsdet, value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_round_trip(dtype, tolerance):
    model, images = exact_farmer().to(dtype), clean_images().to(dtype)
    assert_close(model.decode(model.encode(images)), images, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape, informative", [((1, 1, 2), None), ((2, 1, 1), 1)])
def test_density_in_two_dimensions_integrates_to_one(shape, informative):
    model = exact_farmer(image_shape=shape, patch_size=1, informative_channels=informative)
    side = torch.linspace(-24, 24, 300, dtype=torch.float64)
    images = torch.cartesian_prod(side, side).reshape(-1, *shape)
    with torch.no_grad():
        density = model(images, torch.ones(len(images), dtype=torch.long)).total.exp()
    assert abs(density.sum() * (side[1] - side[0]) ** 2 - 1) < 1e-3


def test_one_component_without_partition_is_one_more_flow_block():
    sizes = dict(num_classes=0, prior_layers=2, flow_layers=2)
    model = exact_farmer(**sizes, flow_blocks=2, informative_channels=None, components=1, condition_repeats=1)
    tarflow = exact_farmer(**sizes, flow_blocks=3, prior="standard-normal")
    tarflow.flow.blocks[:2].load_state_dict(model.flow.blocks.state_dict())
    prior, block = model.prior, tarflow.flow.blocks[2]
    with torch.no_grad():
        block.input.load_state_dict(prior.input.state_dict())
        block.transformer.load_state_dict(prior.transformer.state_dict())
        block.start.copy_(prior.condition.weight[0])
        block.position.copy_(prior.position[:-1])
        _, mean, log_scale = prior.informative_head.linear.weight.split([1, 4, 4])
        _, mean_bias, log_scale_bias = prior.informative_head.linear.bias.split([1, 4, 4])
        block.output.weight.copy_(torch.cat([mean, -log_scale]))
        block.output.bias.copy_(torch.cat([mean_bias, -log_scale_bias]))
    images = torch.rand(5, 1, 4, 4, dtype=torch.float64) * 2 - 1
    assert_close(model.log_prob(images), tarflow.log_prob(images), rtol=0, atol=1e-10)


@pytest.mark.parametrize("flip", [True, False])
def test_the_prior_hears_no_token_that_it_reads_later(flip):
    model = exact_farmer(final_order_flip=flip)
    z = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    informative, _ = model.prior(z, torch.tensor([0, 2]))
    for i in range(4):
        gradient = torch.autograd.grad(informative[:, i].sum(), z, retain_graph=True)[0]
        read, later = (gradient[:, i:], gradient[:, :i]) if model.prior.reverse else (gradient[:, : i + 1], gradient[:, i + 1 :])
        assert torch.all(later == 0) and torch.all(read[..., :2] != 0)
        assert torch.all(gradient[..., 2:] == 0)  # nor any redundant channel


@pytest.mark.parametrize("blocks", [2, 3])
@pytest.mark.parametrize("flip", [True, False])
def test_the_prior_reads_in_the_order_of_the_next_block(blocks, flip):
    model = exact_farmer(flow_blocks=blocks, final_order_flip=flip)
    assert model.prior.reverse == (model.flow.blocks[-1].reverse != flip)


@pytest.mark.parametrize("blocks", [2, 3])
@pytest.mark.parametrize("redundant", ["mixture", "standard-normal"])
def test_cached_sampling_equals_uncached(redundant, blocks):
    model, labels, generator = exact_farmer(redundant=redundant, flow_blocks=blocks), torch.tensor([0, 1, 2, 3]), seeded(5)
    prior = model.prior
    order = range(prior.tokens)[:: -1 if prior.reverse else 1]
    informative = torch.zeros(4, prior.tokens, 2, dtype=torch.float64)
    with torch.no_grad():
        for i in order:
            informative[:, i] = prior.mixtures(informative, labels)[0][:, i].sample((), generator)
        draws = prior.mixtures(informative, labels)[1].sample((prior.tokens,), generator)  # in the order of reading
        x = torch.cat([informative, draws.squeeze(2).transpose(0, 1)[:, list(order)]], dim=-1)
        for block in reversed(model.flow.blocks):
            z, x = x, torch.zeros_like(x)
            for i in range(prior.tokens)[:: -1 if block.reverse else 1]:  # one pass of the whole block for each token
                shift, log_scale = block.predict(x)
                x[:, i] = (z * torch.exp(-log_scale) + shift)[:, i]
    uncached = unpatchify(model.basis.inverse(x), 2, (1, 4, 4))
    assert_close(model.sample(labels, generator=seeded(5)), uncached, rtol=0, atol=1e-10)


def test_bits_per_dimension_follow_their_definition():
    model, images = exact_farmer().float(), clean_images()
    bits = model.bits_per_dim(images, LABELS, generator=seeded(3))
    noise = torch.rand(images.shape, generator=seeded(3)) - 0.5
    density = model.log_prob(images + noise * 0.5, LABELS)  # 5 levels: bins of width 0.5
    assert_close(bits, -(density / math.log(2) + 16 * math.log2(0.5)) / 16)
