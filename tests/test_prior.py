"What the prior's options mean, which it refuses, and what a policy may do; more about exactness is in test_exactness.py."
import math

import pytest
import torch
from torch import Tensor, distributions
from torch.testing import assert_close

from farmer.mixture import GaussianMixture, MixtureHead
from farmer.prior import Ancestral, AutoregressivePrior, ChannelPartition, StandardNormalPrior, drop_labels
from helpers import normal, randomize, seeded

LABELS = torch.tensor([0, 1, 2])


def make(**changes) -> AutoregressivePrior:  # in float64
    torch.manual_seed(0)
    settings = dict(tokens=5, partition=ChannelPartition(4, 3), num_classes=2, width=16, layers=1, heads=2, components=3,
                    redundant_components=4, condition_repeats=2)
    return randomize(AutoregressivePrior(**{**settings, **changes}).double())


def latents(*shape: int) -> Tensor:
    return normal(*(shape or (3, 5, 4)), dtype=torch.float64)


# --- The density


def slow_mixture(head: MixtureHead, hidden: Tensor) -> distributions.Distribution:  # (W,)
    "The mixture that one output predicts, from torch.distributions."
    k, dimensions = head.components, head.dimensions
    logits, mean, log_scale = (head.linear.weight @ hidden + head.linear.bias).split([k, k * dimensions, k * dimensions])
    normals = distributions.Normal(mean.view(k, dimensions), log_scale.view(k, dimensions).exp())
    return distributions.MixtureSameFamily(distributions.Categorical(logits=logits), distributions.Independent(normals, 1))


def slow_log_prob(prior: AutoregressivePrior, z: Tensor, label: int) -> tuple[Tensor, Tensor]:  # (N, d) -> 2 x (N,) nats
    "The formula taken literally: for every token, the transformer is handed those before it and nothing else."
    informative, redundant = z.split([3, 1], dim=1)
    terms = []
    for i in range(6):
        read = [prior.condition.weight[label]] * prior.condition_repeats
        read += [prior.input.weight @ token + prior.input.bias for token in informative[:i]]
        hidden = prior.transformer((torch.stack(read) + prior.position[: len(read)]).unsqueeze(0))[0, -1]
        if i < 5:
            terms.append(slow_mixture(prior.informative_head, hidden).log_prob(informative[i]))
    return torch.stack(terms), slow_mixture(prior.redundant_head, hidden).log_prob(redundant)


def test_log_prob_is_the_formula():
    prior, z = make(layers=2), latents()
    found = prior.log_prob(z, LABELS)
    for b, label in enumerate(LABELS.tolist()):
        assert_close([part[b] for part in found], list(slow_log_prob(prior, z[b], label)), rtol=0, atol=1e-10)
    assert all(torch.equal(a, b) for a, b in zip(prior(z, LABELS), found))


def test_a_prior_that_reads_backwards_answers_in_the_order_of_the_image():
    forwards, backwards, z = make(), make(reverse=True), latents()
    backwards.load_state_dict(forwards.state_dict())
    for one, other in zip(forwards.log_prob(z, LABELS), backwards.log_prob(z.flip(1), LABELS)):
        assert_close(one, other.flip(1), rtol=0, atol=1e-10)
    own, shared = backwards.mixtures(z[..., :3], LABELS)
    assert torch.equal(own.log_prob(z[..., :3]), backwards.log_prob(z, LABELS)[0])
    assert_close(forwards.sample(LABELS, generator=seeded()), backwards.sample(LABELS, generator=seeded()).flip(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("redundant", ["standard_normal", "Mixture", "normal", "", None])
def test_unknown_density_of_the_redundant_channels_is_refused(redundant):
    with pytest.raises(ValueError, match="redundant must be one of mixture, standard-normal; got"):
        make(redundant=redundant)


@pytest.mark.parametrize("informative", [0, 5, -1])
def test_a_partition_keeps_at_least_one_channel_informative(informative):
    with pytest.raises(ValueError, match=f"informative channels must be between 1 and the token's 4 channels, got {informative}"):
        ChannelPartition(4, informative)


def test_jetformers_reduction_makes_the_redundant_channels_noise():
    reduced, z = make(redundant="standard-normal"), latents()
    assert reduced.redundant_head is None
    assert_close(reduced.log_prob(z, LABELS)[1], -0.5 * (z[..., 3:].square() + math.log(2 * math.pi)).sum(2))


@pytest.mark.parametrize("redundant", ["mixture", "standard-normal"])
def test_without_redundant_channels_their_log_density_is_zero(redundant):
    prior = make(partition=ChannelPartition(4, 4), redundant=redundant)
    informative, rest = prior.log_prob(latents(), LABELS)
    assert prior.redundant_head is None and not rest.any() and informative.isfinite().all()
    assert prior.sample(LABELS, generator=seeded()).shape == (3, 5, 4)


def test_the_standard_normal_prior():
    prior, z = StandardNormalPrior(5, ChannelPartition(4, 3)), latents().float()
    expected = distributions.Normal(0, 1).log_prob(z)
    assert_close(prior.log_prob(z, LABELS), (expected[..., :3].sum(2), expected[..., 3]))
    assert torch.equal(prior.sample(LABELS, generator=seeded()), torch.randn(3, 5, 4, generator=seeded()))
    assert not prior.state_dict()


# --- Drawing


class Recorder(Ancestral):
    "Reads every image twice, with and without its label, and keeps what it is asked to draw from."

    def __init__(self):
        self.seen = []

    def sequences(self, labels: Tensor) -> Tensor:
        return torch.cat([labels, torch.full_like(labels, 2)])

    def draw(self, mixture: GaussianMixture, generator) -> Tensor:
        self.seen.append(mixture)
        return mixture[: mixture.batch_shape[0] // 2].sample((), generator)

    def draw_redundant(self, shared: GaussianMixture, tokens: int, generator) -> Tensor:
        self.shared = shared
        return super().draw_redundant(shared[: shared.batch_shape[0] // 2], tokens, generator)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_policy_sees_the_mixtures_of_all_its_sequences(reverse):
    prior, policy = make(reverse=reverse, layers=2), Recorder()
    drawn = prior.sample(LABELS, policy=policy, generator=seeded())
    assert_close(drawn, prior.sample(LABELS, generator=seeded()), rtol=0, atol=1e-12)  # it draws from the labelled half alone
    values = drawn[..., :3].repeat(2, 1, 1)
    own, shared = prior.mixtures(values, policy.sequences(LABELS))
    for step, mixture in enumerate(policy.seen):
        place = 4 - step if reverse else step
        assert mixture.batch_shape == (6,)
        assert_close(mixture.log_prob(values[:, place]), own[:, place].log_prob(values[:, place]), rtol=0, atol=1e-10)
    redundant = drawn[..., 3:].repeat(2, 1, 1)
    assert len(policy.seen) == 5 and policy.shared.batch_shape == (6, 1)
    assert_close(policy.shared.log_prob(redundant), shared.log_prob(redundant), rtol=0, atol=1e-10)


def test_draws_follow_the_density():
    "One token, one channel of each kind: the mean of -log p over draws is the entropy, here by integration."
    prior = make(tokens=1, partition=ChannelPartition(2, 1))
    drawn = prior.sample(torch.zeros(20_000, dtype=torch.int64), generator=seeded())
    informative, redundant = (part.flatten().detach() for part in prior.log_prob(drawn, torch.zeros(20_000, dtype=torch.int64)))
    side = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    log_density = prior.mixtures(drawn[:1, :, :1], torch.zeros(1, dtype=torch.int64))[0].log_prob(side[:, None, None])[:, 0].detach()
    entropy = -torch.trapezoid(log_density.exp() * log_density, side)
    assert abs(-informative.mean() - entropy) < 5 * informative.std() / 20_000**0.5
    assert redundant.isfinite().all()


# --- Label dropout


def test_labels_drop_where_the_number_is_below_the_probability():
    labels, numbers = torch.tensor([0, 1, 2, 3]), torch.tensor([0.0, 0.09, 0.1, 0.9])
    assert drop_labels(labels, 0.1, 7, numbers=numbers).tolist() == [7, 7, 2, 3]
    assert torch.equal(drop_labels(labels, 0.0, 7, numbers=numbers), labels)
    many = torch.zeros(1000, dtype=torch.int64)
    assert torch.equal(drop_labels(many, 0.3, 7, seeded()), drop_labels(many, 0.3, 7, numbers=torch.rand(1000, generator=seeded())))
