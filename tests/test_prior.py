"What the prior's options mean and which it refuses; its exactness is tested in test_exactness.py."
import math

import pytest
import torch
from torch.testing import assert_close

from farmer.prior import AutoregressivePrior, ChannelPartition


def make(**changes) -> AutoregressivePrior:
    torch.manual_seed(0)
    settings = dict(tokens=5, partition=ChannelPartition(4, 3), num_classes=2, width=16, layers=1, heads=2, components=3,
                    redundant_components=4, condition_repeats=2)
    return AutoregressivePrior(**{**settings, **changes})


@pytest.mark.parametrize("redundant", ["standard_normal", "Mixture", "normal", "", None])
def test_unknown_density_of_the_redundant_channels_is_refused(redundant):
    with pytest.raises(ValueError, match="redundant must be one of mixture, standard-normal; got"):
        make(redundant=redundant)


def test_densities_of_the_redundant_channels():
    z, labels = torch.randn(6, 5, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    assert make().redundant_head is not None
    reduced = make(redundant="standard-normal")
    assert reduced.redundant_head is None
    expected = -0.5 * (z[..., 3:].square() + math.log(2 * math.pi)).sum((1, 2))
    assert_close(reduced(z, labels)[1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("redundant", ["mixture", "standard-normal"])
def test_without_redundant_channels_their_log_density_is_zero(redundant):
    prior = make(partition=ChannelPartition(4, 4), redundant=redundant)
    informative, rest = prior(torch.randn(6, 5, 4), torch.zeros(6, dtype=torch.int64))
    assert torch.equal(rest, torch.zeros(6)) and torch.isfinite(informative).all()
