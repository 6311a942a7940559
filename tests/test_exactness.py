"What the formulas say, in float64, against autograd or torch.distributions rather than against ourselves."
import math

import pytest
import torch
from torch import distributions, nn
from torch.testing import assert_close

from farmer.flow import AutoregressiveBlock, AutoregressiveFlow
from farmer.mixture import GaussianMixture
from farmer.model import Farmer, FarmerConfig


def randomize(module: nn.Module, seed: int = 0, deviation: float = 0.3) -> nn.Module:
    "Weights far from the identity start, so that nothing is right by being zero."
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * deviation * (parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3))
    return module


def small_farmer(**changes) -> Farmer:
    defaults = dict(image_shape=(1, 4, 4), num_classes=3, patch_size=2, flow_blocks=3, flow_width=16, prior_width=16, head_width=8,
                    informative_channels=2, components=3, redundant_components=4, condition_repeats=2)
    torch.manual_seed(0)
    return randomize(Farmer(FarmerConfig(**{**defaults, **changes})).double()).eval()


def random_mixture(batch, components, dimensions, seed=0, log_scale=(-1.0, 0.5), dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=dtype)
    low, high = log_scale
    scales = low + (high - low) * torch.rand(*batch, components, dimensions, generator=generator, dtype=dtype)
    return draw(*batch, components), draw(*batch, components, dimensions), scales


def reference_mixture(logits, mean, log_scale):
    return distributions.MixtureSameFamily(
        distributions.Categorical(logits=logits), distributions.Independent(distributions.Normal(mean, log_scale.exp()), 1)
    )


@pytest.mark.parametrize("scale_first", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_logdet_is_that_of_the_full_jacobian(blocks, scale_first):
    torch.manual_seed(0)
    flow = randomize(AutoregressiveFlow(5, 3, 16, blocks, 2, 2, scale_first).double())
    x = torch.randn(4, 5, 3, dtype=torch.float64)
    _, logdet = flow(x)
    for image, value in zip(x, logdet):
        jacobian = torch.autograd.functional.jacobian(lambda t: flow(t[None])[0][0], image).reshape(15, 15)
        assert_close(torch.linalg.slogdet(jacobian).logabsdet, value, rtol=0, atol=1e-10)


def test_logdet_of_the_whole_model_in_pixels():
    model = small_farmer()
    images = torch.rand(2, 1, 4, 4, dtype=torch.float64) * 2 - 1
    def latents(image):
        encoded = model.encode(image.reshape(1, 1, 4, 4))
        return torch.cat([encoded.informative, encoded.redundant], -1).flatten()
    for image, value in zip(images, model.encode(images).logdet):
        jacobian = torch.autograd.functional.jacobian(latents, image.flatten())
        assert_close(torch.linalg.slogdet(jacobian).logabsdet, value, rtol=0, atol=1e-10)


def test_first_token_passes_unchanged_when_asked():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3)
    unchanged, _ = randomize(AutoregressiveBlock(5, 3, 16, 1, 2, scale_first=False))(x)
    scaled, _ = randomize(AutoregressiveBlock(5, 3, 16, 1, 2, scale_first=True))(x)
    assert torch.equal(unchanged[:, 0], x[:, 0]) and not torch.allclose(scaled[:, 0], x[:, 0])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_round_trip(dtype, tolerance):
    model = small_farmer().to(dtype)
    images = torch.rand(8, 1, 4, 4, dtype=dtype) * 2 - 1
    assert_close(model.decode(model.encode(images)), images, rtol=0, atol=tolerance)


def test_states_are_the_forward_pass():
    flow = randomize(AutoregressiveFlow(5, 3, 16, 3, 1, 2).double())
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    states, logdets = flow.states(x)
    z, logdet = flow(x)
    assert_close(states[-1], z)
    assert_close(sum(logdets), logdet)
    assert torch.equal(states[0], x) and len(states) == 4


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


def test_density_in_two_dimensions_integrates_to_one():
    for config in (dict(image_shape=(1, 1, 2), patch_size=1, informative_channels=None), dict(image_shape=(2, 1, 1), patch_size=1, informative_channels=1)):
        model = small_farmer(**config)
        side = torch.linspace(-16, 16, 200, dtype=torch.float64)
        images = torch.cartesian_prod(side, side).reshape(-1, *model.config.image_shape)
        label = torch.full((len(images),), 1)
        with torch.no_grad():
            density = sum(model(images, label)).exp()
        area = (side[1] - side[0]) ** 2
        assert abs(density.sum() * area - 1) < 1e-3


def test_one_component_without_partition_is_one_more_flow_block():
    torch.manual_seed(0)
    sizes = dict(image_shape=(1, 4, 4), num_classes=0, patch_size=2, flow_width=16, prior_width=16, head_width=8, prior_layers=2, flow_layers=2)
    farmer = randomize(Farmer(FarmerConfig(**sizes, flow_blocks=2, informative_channels=None, components=1, condition_repeats=1)).double())
    tarflow = randomize(Farmer(FarmerConfig(**sizes, flow_blocks=3, prior="standard-normal")).double(), seed=1)
    tarflow.flow.blocks[:2].load_state_dict(farmer.flow.blocks.state_dict())
    prior, block = farmer.prior, tarflow.flow.blocks[2]
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
    assert_close(farmer.log_prob(images), tarflow.log_prob(images), rtol=0, atol=1e-10)


def test_no_token_hears_a_later_one():
    model = small_farmer()
    z = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    informative, redundant = model.partition.split(z)
    mixture, shared = model.prior.mixtures(informative, torch.tensor([0, 2]))
    per_token = mixture.log_prob(informative)
    for i in range(4):
        gradient = torch.autograd.grad(per_token[:, i].sum(), z, retain_graph=True)[0]
        assert torch.all(gradient[:, i + 1 :] == 0) and torch.any(gradient[:, : i + 1] != 0)
        assert torch.all(gradient[..., 2:] == 0)
    z_flow, _ = model.flow.blocks[0](z)
    for i in range(4):
        gradient = torch.autograd.grad(z_flow[:, i].sum(), z, retain_graph=True)[0]
        assert torch.all(gradient[:, i + 1 :] == 0)


@pytest.mark.parametrize("redundant", ["mixture", "standard-normal"])
def test_cached_sampling_equals_uncached(redundant):
    model = small_farmer(redundant=redundant)
    labels = torch.tensor([0, 1, 2, 3])
    prior = model.prior
    informative = torch.zeros(4, prior.tokens, 2, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for i in range(prior.tokens):
            mixture, _ = prior.mixtures(informative, labels)
            step = GaussianMixture(mixture.logits[:, i], mixture.component_mean[:, i], mixture.component_log_scale[:, i])
            informative[:, i] = step.sample((), generator)
        shared = prior.mixtures(informative, labels)[1]
        redundant = shared.sample((prior.tokens,), generator).squeeze(2).transpose(0, 1)
    z = model.reading_order(torch.cat([informative, redundant], -1))
    x = z
    for index, block in reversed(list(enumerate(model.flow.blocks))):  # invert without the cache: one pass per token
        y = x.flip(1) if index % 2 else x
        solved = torch.zeros_like(y)
        with torch.no_grad():
            for i in range(y.shape[1]):
                start = block.start.expand(len(y), 1, -1)
                hidden = block.transformer(torch.cat([start, block.input(solved[:, :-1])], 1) + block.position)
                shift, log_scale = block.shift_and_log_scale(hidden)
                solved[:, i] = (y * torch.exp(-log_scale) + shift)[:, i]
        x = solved.flip(1) if index % 2 else solved
    from farmer.patches import unpatchify

    uncached = unpatchify(model.basis.inverse(x), 2, (1, 4, 4))
    cached = model.sample(labels, torch.Generator().manual_seed(5))
    assert_close(cached, uncached, rtol=0, atol=1e-10)
    single = Farmer(model.config).float()
    single.load_state_dict(model.state_dict())
    assert torch.equal(single.sample([0, 1], torch.Generator().manual_seed(1)), single.sample([0, 1], torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("blocks, flip, reversed_", [(2, True, False), (3, True, True), (2, False, True), (3, False, False)])
def test_the_prior_reads_in_the_order_of_the_next_block(blocks, flip, reversed_):
    model = small_farmer(flow_blocks=blocks, final_order_flip=flip)
    tokens = torch.arange(4).reshape(1, 4, 1)
    assert model.reading_order(tokens).flatten().tolist() == ([3, 2, 1, 0] if reversed_ else [0, 1, 2, 3])


def test_the_three_parts_add_up_and_bits_per_dimension_follows_its_definition():
    model = small_farmer(levels=5).float()
    images = torch.randint(5, (6, 1, 4, 4)) / 2 - 1
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    assert_close(sum(model(images, labels)), model.log_prob(images, labels))
    bits = model.bits_per_dim(images, labels, generator=torch.Generator().manual_seed(3))
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(3)) - 0.5
    density = model.log_prob(images + noise * 0.5, labels)
    assert_close(bits, -(density / math.log(2) + 16 * math.log2(0.5)) / 16)
    assert_close(model.log_prob(images), sum(model(images, torch.full((6,), 3))))
