"The flow: what its lesson and the float64 checks of test_exactness.py leave open, such as depth, half precision and odd sizes."
import pytest
import torch
from helpers import make_flow, normal, randomize
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.testing import assert_close

from farmer.flow import AutoregressiveBlock, Flow, _recorded_inverse, autoregressive_flow, coupling_flow

SIZE = dict(width=32, layers=2, heads=2)
MAKERS = {
    "autoregressive": autoregressive_flow,
    "first token unchanged": lambda *sizes, **options: autoregressive_flow(*sizes, **options, scale_first=False),
    "coupling": coupling_flow,
}


def make_coupling(blocks=3, tokens=4, channels=5) -> Flow:
    "A coupling flow away from the identity."
    torch.manual_seed(0)
    return randomize(coupling_flow(tokens, channels, blocks=blocks, **SIZE), deviation=0.6).eval()


# --- Flows of any kind


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_a_new_flow_is_the_identity(blocks, channels, kind):
    flow, x = MAKERS[kind](6, channels, blocks=blocks, **SIZE).eval(), normal(5, 6, channels)
    z, log_scale = flow(x)
    rounding = 1e-6 if kind == "coupling" else 0  # log 2 is not quite minus the log of a sigmoid
    assert_close(z, x, rtol=0, atol=rounding)
    assert_close(log_scale, torch.zeros(5, 6, channels), rtol=0, atol=rounding)
    assert_close(flow.inverse(x), x, rtol=0, atol=rounding)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("blocks", [0, -1])
def test_a_flow_without_blocks_is_refused(blocks, kind):
    with pytest.raises(ValueError, match="choose 1 block or more"):
        MAKERS[kind](6, 4, blocks=blocks, **SIZE)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_weight_learns(kind):
    flow = randomize(MAKERS[kind](6, 4, blocks=3, dropout=0.1, **SIZE)).train()
    z, log_scale = flow(normal(5, 6, 4))
    (z.square().sum() - log_scale.sum()).backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        rows = parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad.unsqueeze(1)
        assert (rows != 0).any(1).all() or "in_proj_bias" in name, f"a row of {name} gets no gradient"  # a softmax ignores the bias of its keys


@pytest.mark.parametrize("make", [make_flow, make_coupling])
def test_half_precision_still_counts_in_float32(make):
    flow, x = make(tokens=6, channels=4), normal(16, 6, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z, log_scale = flow(x)
        each, each_log_scale = flow.blocks[0](x)
    assert {t.dtype for t in (z, log_scale, each, each_log_scale)} == {torch.float32}
    exact_z, exact_log_scale = flow(x)
    assert_close(z, exact_z, rtol=0.1, atol=0.1)  # bfloat16 has 8 significant bits
    assert_close(log_scale, exact_log_scale, rtol=0.05, atol=0.05)
    assert not torch.equal(log_scale, exact_log_scale)  # the transformer did compute in half precision
    log_scale.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in flow.parameters() if parameter.grad is not None)


def test_dropout_does_not_touch_evaluation():
    flow, x = make_flow(dropout=0.5), normal(5, 6, 4)
    z, _ = flow(x)
    assert_close(flow.inverse(z), x, rtol=0, atol=1e-5)
    assert not torch.equal(flow.train()(x)[0], z)


@pytest.mark.parametrize("make", [make_flow, make_coupling])
def test_what_the_inverse_returns_can_be_trained_on(make):
    flow = make(tokens=6, channels=4)
    images = flow.inverse(normal(5, 6, 4))
    assert not images.requires_grad and not images.is_inference()
    flow(images)[1].sum().backward()
    assert flow.blocks[0].output.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("scale_first", [True, False])
@pytest.mark.parametrize("images, tokens, channels", [(0, 6, 4), (3, 1, 4), (3, 6, 1), (1, 1, 1)])
def test_odd_sizes(images, tokens, channels, scale_first):
    flow, x = make_flow(tokens=tokens, channels=channels, scale_first=scale_first), normal(images, tokens, channels)
    z, log_scale = flow(x)
    assert z.shape == log_scale.shape == x.shape
    assert_close(flow.inverse(z), x, rtol=0, atol=1e-5)
    if tokens == 1 and not scale_first:
        assert torch.equal(z, x)


def test_trained_deep_flow_inverts_in_float32():
    "Tokens of small deviation, as the details of an image: eight blocks learn to magnify them many times."
    torch.manual_seed(0)
    flow = autoregressive_flow(8, 3, blocks=8, width=32, layers=1, heads=1)
    optimiser = torch.optim.AdamW(flow.parameters(), lr=5e-3)
    mixing = normal(24, 24) * 24**-0.5
    for step in range(60):
        x = 0.05 * torch.tanh(2 * normal(32, 24, seed=step) @ mixing).unflatten(1, (8, 3))
        z, log_scale = flow(x)
        loss = (0.5 * z.square() - log_scale).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        z, log_scale = flow(x)
    assert log_scale.mean() > 2  # it did learn to magnify, by e^2 and more
    assert (flow.inverse(z) - x).abs().max() <= 1e-5 * x.abs().max()
    latents = normal(32, 8, 3, seed=99)
    with torch.no_grad():
        again, _ = flow(flow.inverse(latents))
    assert (again - latents).abs().max() <= 1e-4 * latents.abs().max()  # of unseen latents, through the magnifying direction


# --- The autoregressive block


def test_unchanged_tokens_are_those_that_a_block_reads_first():
    "Odd blocks read forwards, even ones backwards, and all of them keep the image's order."
    x, flow = normal(5, 6, 4), make_flow(blocks=4, scale_first=False)
    for index, block in enumerate(flow.blocks):
        changed = (block(x)[0] != x).any(2).all(0).tolist()
        assert changed == ([True] * 5 + [False] if index % 2 else [False] + [True] * 5)


def test_a_scaled_first_token_has_constants():
    block = make_flow(1).blocks[0]
    shift, log_scale = block.predict(normal(5, 6, 4))
    for constant in (shift[:, 0], log_scale[:, 0]):
        assert torch.all(constant == constant[0]) and constant.abs().max() > 0.01


@pytest.mark.parametrize("reverse", [False, True])
def test_the_inverse_of_a_block_is_causal(reverse):
    "A token of x depends on the token of z at its own place and on those read before it; hence a causal student misses nothing."
    torch.manual_seed(0)
    block = randomize(AutoregressiveBlock(5, 2, **SIZE, reverse=reverse), deviation=1.0).double()
    z = normal(1, 5, 2, dtype=torch.float64).expand(5, -1, -1)
    moved = block.inverse(z + torch.eye(5, dtype=torch.float64).unsqueeze(2)) - block.inverse(z)  # one token of z each
    depends = (moved.abs() > 1e-9).all(2)  # (z, x)
    assert torch.equal(depends, torch.ones(5, 5).tril().bool() if reverse else torch.ones(5, 5).triu().bool())


@pytest.mark.parametrize("reverse", [False, True])
def test_a_block_of_two_tokens_by_hand(reverse):
    "mu = 1/2 and exp(alpha) = 2 of the first token read; mu = 2 x and exp(alpha) = 2^x of the other, x being the first."
    block = AutoregressiveBlock(2, 1, width=8, layers=1, heads=1, reverse=reverse)

    def predict(x):
        first = block.turn(x)[:, :1]
        shift, exponent = torch.cat([torch.full_like(first, 0.5), 2 * first], 1), torch.cat([torch.ones_like(first), first], 1)
        return block.turn(shift), block.turn(exponent) * torch.log(torch.tensor(2.0))

    block.predict = predict
    z, log_scale = block(block.turn(torch.tensor([[[1.0], [2.5]]])))
    assert_close(z, torch.ones(1, 2, 1))
    assert_close(log_scale.sum(), torch.log(torch.tensor(4.0)))


def plainly(step, restart, times):
    "Run the step that a GPU would record, after one for warming up, as a recording does."
    step()
    restart()
    for _ in range(times):
        step()


@pytest.mark.parametrize("scale_first", [True, False])
def test_the_recorded_step_is_the_exact_inverse(scale_first):
    block = make_flow(1, tokens=9, scale_first=scale_first).double().blocks[0]
    z = normal(3, 9, 4, dtype=torch.float64)
    x = torch.full_like(z, torch.nan)
    with torch.no_grad():
        _recorded_inverse(block, z, x, plainly)
    assert_close(x, block.inverse(z), rtol=0, atol=1e-12)


def test_the_recorded_step_needs_nothing_of_the_host():
    "With tensors that have a device and a shape but no values: an operation that asks for a value, or mixes devices, fails."
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        block, z = AutoregressiveBlock(9, 4, **SIZE), torch.empty(3, 9, 4)
        x = torch.empty_like(z)
        _recorded_inverse(block, z, x, plainly)
        with pytest.raises(DataDependentOutputException):
            z.sum().item()
    assert x.device.type == "cuda" and x.shape == (3, 9, 4)


def test_the_recorded_step_under_autocast():
    block, z = make_flow(1, tokens=9).blocks[0], normal(3, 9, 4)
    x = torch.full_like(z, torch.nan)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _recorded_inverse(block, z, x, plainly)
        assert_close(x, block.inverse(z), rtol=0, atol=1e-2)
    assert_close(x, block.inverse(z), rtol=0, atol=0.2)
    assert x.dtype == torch.float32


@pytest.mark.gpu
@pytest.mark.parametrize("scale_first", [True, False])
def test_a_recording_on_a_gpu_is_the_exact_inverse(scale_first):
    flow, z = make_flow(tokens=9, scale_first=scale_first).double(), normal(3, 9, 4, dtype=torch.float64)
    expected = flow.inverse(z)
    assert_close(flow.cuda().inverse(z.cuda()).cpu(), expected, rtol=0, atol=1e-10)


# --- The coupling block


@pytest.mark.parametrize("channels", [2, 5, 8])
def test_two_coupling_blocks_change_every_channel(channels):
    flow, x = make_coupling(2, channels=channels), normal(5, 4, channels)
    assert ((flow(x)[0] - x).abs() > 1e-4).any(0).all()
    z, log_scale = flow.blocks[0](x)
    changed = (z != x).any(0).any(0)
    assert changed.sum() == channels - channels // 2
    assert torch.equal((log_scale != 0).any(0).any(0), changed)


def test_coupling_scales_lie_between_0_and_2():
    flow = make_coupling(1)
    for bias, scale in ((50.0, 2.0), (-50.0, 0.0)):
        flow.blocks[0].output.bias.data.fill_(bias)
        assert_close(flow.blocks[0].predict(normal(5, 4, 2))[1].exp(), torch.full((5, 4, 3), scale))


def test_a_coupling_needs_two_channels():
    with pytest.raises(ValueError, match="needs 2 channels or more, got 1"):
        coupling_flow(4, 1, blocks=2, **SIZE)
