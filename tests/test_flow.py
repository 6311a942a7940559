"The flow: what its lesson and the float64 checks leave open, such as depth, half precision and odd sizes."
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing import assert_close

from farmer.flow import AutoregressiveBlock, AutoregressiveFlow, CouplingFlow, InverseAutoregressiveFlow, recorded_inverse


def make_flow(blocks=3, tokens=6, channels=4, width=32, spread=0.3, **options) -> AutoregressiveFlow:
    "A flow away from the identity."
    torch.manual_seed(0)
    flow = AutoregressiveFlow(tokens, channels, width, blocks, 1, 2, **options)
    for block in flow.blocks:
        torch.nn.init.normal_(block.output.weight, std=spread * width**-0.5)
        torch.nn.init.normal_(block.output.bias, std=spread)
    return flow.eval()


def draw(*shape: int, seed: int = 0, **options) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("scale_first", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_new_flow_is_the_identity(blocks, scale_first):
    flow, x = AutoregressiveFlow(6, 4, 32, blocks, 2, 2, scale_first), draw(5, 6, 4)
    z, logdet = flow(x)
    assert torch.equal(z, x) and torch.equal(logdet, torch.zeros(5))
    assert torch.equal(flow.inverse(x), x)


@pytest.mark.parametrize("blocks", [0, -1])
def test_a_flow_without_blocks_is_refused(blocks):
    with pytest.raises(ValueError, match="choose 1 block or more"):
        AutoregressiveFlow(6, 4, 32, blocks, 1, 2)


def test_trained_deep_flow_inverts_in_float32():
    "Tokens of small deviation, as the details of an image: eight blocks learn to magnify them many times."
    torch.manual_seed(0)
    flow = AutoregressiveFlow(8, 3, 32, 8, 1, 1)
    optimiser = torch.optim.AdamW(flow.parameters(), lr=5e-3)
    mixing = draw(24, 24) * 24**-0.5
    for step in range(60):
        x = 0.05 * torch.tanh(2 * draw(32, 24, seed=step) @ mixing).unflatten(1, (8, 3))
        z, logdet = flow(x)
        loss = (0.5 * z.square().sum(dim=(1, 2)) - logdet).mean() / 24
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        z, logdet = flow(x)
    assert logdet.mean() / 24 > 2  # it did learn to magnify, by e^2 and more
    assert (flow.inverse(z) - x).abs().max() <= 1e-5 * x.abs().max()
    latents = draw(32, 8, 3, seed=99)
    with torch.no_grad():
        again, _ = flow(flow.inverse(latents))
    assert (again - latents).abs().max() <= 1e-4 * latents.abs().max()  # of unseen latents, through the magnifying direction


@pytest.mark.parametrize("scale_first", [True, False])
def test_every_weight_learns(scale_first):
    flow = make_flow(scale_first=scale_first, dropout=0.1).train()
    z, logdet = flow(draw(5, 6, 4))
    (z.square().sum() - logdet.sum()).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        rows = parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad.unsqueeze(1)
        assert (rows != 0).any(1).all(), f"a row of {name} gets no gradient"


def test_unchanged_tokens_are_those_that_a_block_reads_first():
    "Odd blocks read forwards, even ones backwards, and the states keep the image's order."
    x = draw(5, 6, 4)
    states, _ = make_flow(blocks=4, scale_first=False).states(x)
    for index, (before, after) in enumerate(zip(states, states[1:])):
        changed = (before != after).any(2).all(0).tolist()
        assert changed == ([True] * 5 + [False] if index % 2 else [False] + [True] * 5)


def test_half_precision_still_counts_in_float32():
    flow, x = make_flow(), draw(16, 6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, logdet = flow(x)
        states, logdets = flow.states(x)
    assert {t.dtype for t in (z, logdet, *states, *logdets)} == {torch.float32}
    exact_z, exact_logdet = flow(x)
    assert_close(z, exact_z, rtol=0.05, atol=0.05)  # bfloat16 has 8 significant bits
    assert_close(logdet, exact_logdet, rtol=0.05, atol=0.05)
    assert not torch.equal(logdet, exact_logdet)  # the transformer did compute in half precision
    logdet.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in flow.parameters() if parameter.grad is not None)


def test_dropout_does_not_touch_evaluation():
    flow, x = make_flow(dropout=0.5), draw(5, 6, 4)
    z, _ = flow(x)
    assert_close(flow.inverse(z), x, rtol=0, atol=1e-5)
    assert not torch.equal(flow.train()(x)[0], z)


def test_what_the_inverse_returns_can_be_trained_on():
    flow = make_flow()
    images = flow.inverse(draw(5, 6, 4))
    assert not images.requires_grad and not images.is_inference()
    flow(images)[1].sum().backward()
    assert flow.blocks[0].output.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("scale_first", [True, False])
@pytest.mark.parametrize("images, tokens, channels", [(0, 6, 4), (3, 1, 4), (3, 6, 1), (1, 1, 1)])
def test_odd_sizes(images, tokens, channels, scale_first):
    flow, x = make_flow(tokens=tokens, channels=channels, scale_first=scale_first), draw(images, tokens, channels)
    z, logdet = flow(x)
    assert z.shape == x.shape and logdet.shape == (images,)
    assert_close(flow.inverse(z), x, rtol=0, atol=1e-5)
    if tokens == 1 and not scale_first:
        assert torch.equal(z, x)


def test_predictions_never_read_the_token_they_serve():
    "Token i can be anything, and mu and s of tokens 1 to i stay what they were."
    torch.manual_seed(0)
    block = AutoregressiveBlock(6, 4, 32, 2, 2).eval()
    torch.nn.init.normal_(block.output.weight)
    x = draw(2, 6, 4)
    for i in range(6):
        changed = x.clone()
        changed[:, i] = 1e3
        for before, after in zip(block.predict(x), block.predict(changed)):
            assert_close(after[:, : i + 1], before[:, : i + 1], rtol=0, atol=1e-6)
            assert i == 5 or (after[:, i + 1] - before[:, i + 1]).abs().max() > 1e-3


def plainly(step, restart, times):
    "Run the step that a GPU would record, after one for warming up, as a recording does."
    step()
    restart()
    for _ in range(times):
        step()


@pytest.mark.parametrize("scale_first", [True, False])
def test_the_recorded_step_is_the_exact_inverse(scale_first):
    block = make_flow(1, tokens=9, scale_first=scale_first).double().blocks[0]
    z = draw(3, 9, 4, dtype=torch.float64)
    x = torch.full_like(z, torch.nan)
    with torch.no_grad():
        recorded_inverse(block, z, x, plainly)
    assert_close(x, block.inverse(z), rtol=0, atol=1e-12)


def test_the_recorded_step_needs_nothing_of_the_host():
    "With tensors that have a device and a shape but no values: an operation that asks for a value, or mixes devices, fails."
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        block, z = AutoregressiveBlock(9, 4, 32, 2, 2), torch.empty(3, 9, 4)
        x = torch.empty_like(z)
        recorded_inverse(block, z, x, plainly)
        with pytest.raises(DataDependentOutputException):
            z.sum().item()
    assert x.device.type == "cuda" and x.shape == (3, 9, 4)


def test_the_recorded_step_under_autocast():
    block, z = make_flow(1, tokens=9).blocks[0], draw(3, 9, 4)
    x = torch.full_like(z, torch.nan)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        recorded_inverse(block, z, x, plainly)
        assert_close(x, block.inverse(z), rtol=0, atol=1e-2)
    assert_close(x, block.inverse(z), rtol=0, atol=0.2)
    assert x.dtype == torch.float32


# --- Coupling flow


def make_coupling(blocks=3, tokens=4, channels=5, **options) -> CouplingFlow:
    "A coupling flow away from the identity."
    torch.manual_seed(0)
    flow = CouplingFlow(tokens, channels, 16, blocks, 2, 2, **options)
    for block in flow.blocks:
        torch.nn.init.normal_(block.output.weight, std=0.2)
        torch.nn.init.normal_(block.output.bias, std=0.5)
    return flow.eval()


@pytest.mark.parametrize("channels", [2, 3, 4, 5])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_coupling_against_autograd(blocks, channels):
    flow, x = make_coupling(blocks, channels=channels).double(), draw(1, 4, channels, dtype=torch.float64)
    z, logdet = flow(x)
    jacobian = torch.autograd.functional.jacobian(lambda tokens: flow(tokens)[0], x).reshape(4 * channels, 4 * channels)
    assert_close(torch.linalg.slogdet(jacobian).logabsdet, logdet[0], rtol=0, atol=1e-12)
    assert_close(flow.inverse(z), x, rtol=0, atol=1e-12)
    assert logdet.abs().item() > 0.1


@pytest.mark.parametrize("channels", [2, 3, 8])
def test_a_new_coupling_flow_is_the_identity(channels):
    flow, x = CouplingFlow(4, channels, 16, 3, 1, 2), draw(5, 4, channels)
    z, logdet = flow.eval()(x)
    assert_close(z, x, rtol=0, atol=1e-6)  # log 2 is not quite minus the log of a sigmoid
    assert logdet.abs().max() < 1e-5


@pytest.mark.parametrize("channels", [2, 5, 8])
def test_two_coupling_blocks_change_every_channel(channels):
    flow, x = make_coupling(2, channels=channels), draw(5, 4, channels)
    assert ((flow(x)[0] - x).abs() > 1e-4).any(0).all()
    first = flow.blocks[0](x)[0]
    assert int((first != x).any(0).any(0).sum()) == channels - channels // 2


def test_coupling_scales_lie_between_0_and_2_and_stay_in_float32():
    flow = make_coupling(1)
    with torch.autocast("cpu", torch.bfloat16):
        z, logdet = flow(draw(5, 4, 5))
    assert z.dtype == logdet.dtype == torch.float32
    flow.blocks[0].output.bias.data.fill_(50.0)
    assert_close(flow.blocks[0].predict(draw(5, 4, 2))[1].exp().max().item(), 2.0)


@pytest.mark.parametrize("blocks, channels", [(0, 4), (2, 1)])
def test_impossible_coupling_flows_are_refused(blocks, channels):
    with pytest.raises(ValueError, match="1 block and 2 channels"):
        CouplingFlow(4, channels, 16, blocks, 1, 2)


def test_a_coupling_flow_has_no_student():
    with pytest.raises(ValueError, match="one pass"):
        InverseAutoregressiveFlow(make_coupling())
