"The causal transformer: against attention written another way, causality to the bit, and a cache that is the same function."
import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from farmer.transformer import CausalTransformer, KeyValueCache, StaticKeyValueCache, TransformerLayer, no_autograd
from helpers import complaint, normal, randomize

WIDTH, HEADS, TOKENS, BATCH = 24, 3, 9, 4


def make(layers: int = 2, dropout: float = 0.0, seed: int = 0) -> CausalTransformer:
    "In float64, with norms that scale and shift: a fresh norm does neither and would hide mistakes."
    torch.manual_seed(seed)
    return randomize(CausalTransformer(WIDTH, layers, HEADS, dropout).double(), seed, deviation=1.0).eval()


def tokens(seed: int = 0, batch: int = BATCH, length: int = TOKENS) -> torch.Tensor:
    return normal(batch, length, WIDTH, seed=seed, dtype=torch.float64)


def read(transformer: CausalTransformer, x: torch.Tensor, prefix: int, cache: KeyValueCache | None = None) -> torch.Tensor:
    "Answers to all tokens: a prefix in parallel, the others one by one."
    cache = transformer.new_cache(len(x), x.shape[1]) if cache is None else cache
    parallel = [transformer(x[:, :prefix], cache)] if prefix else []
    return torch.cat(parallel + [transformer.step(token, cache).unsqueeze(1) for token in x[:, prefix:].unbind(1)], dim=1)


# --- The function it computes

def torch_attention(layer: TransformerLayer, normed: torch.Tensor) -> torch.Tensor:
    "torch's own module with the layer's weights and an explicit mask."
    attention = nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True, dtype=torch.float64)
    attention.in_proj_weight.data, attention.out_proj.weight.data = layer.query_key_value.weight.data, layer.attention_output.weight.data
    later = torch.ones(normed.shape[1], normed.shape[1], dtype=torch.bool).triu(1)
    return attention(normed, normed, normed, attn_mask=later, need_weights=False)[0]


def loop_attention(layer: TransformerLayer, normed: torch.Tensor) -> torch.Tensor:
    "One token and one head at a time, over a list of what may be seen: no mask at all."
    query, key, value = (normed @ weight.T for weight in layer.query_key_value.weight.split(WIDTH))
    size = WIDTH // HEADS
    rows = []
    for i in range(normed.shape[1]):
        heads = []
        for h in range(0, WIDTH, size):
            scores = (key[:, : i + 1, h : h + size] @ query[:, i, h : h + size, None]).squeeze(2) / math.sqrt(size)
            shares = scores.exp() / scores.exp().sum(1, keepdim=True)
            heads.append((shares[:, :, None] * value[:, : i + 1, h : h + size]).sum(1))
        rows.append(torch.cat(heads, dim=1))
    return torch.stack(rows, dim=1) @ layer.attention_output.weight.T


def reference_norm(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("attention", [torch_attention, loop_attention])
@pytest.mark.parametrize("layers", [1, 3])
def test_equals_a_reference_written_another_way(layers, attention):
    transformer, x = make(layers), tokens()
    expected = x
    with torch.no_grad():
        for layer in transformer.layers:
            expected = expected + attention(layer, reference_norm(layer.attention_norm, expected))
            hidden = reference_norm(layer.network_norm, expected) @ layer.network_input.weight.T
            hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
            expected = expected + hidden @ layer.network_output.weight.T
        assert_close(transformer(x), reference_norm(transformer.norm, expected), rtol=0, atol=1e-12)


def test_gradients_equal_those_of_the_reference():
    layer, x = make(1).layers[0], tokens()
    weights = tokens(seed=1)

    def gradients(function):
        point = x.clone().requires_grad_()
        return torch.autograd.grad((function(point) * weights).sum(), [point, layer.query_key_value.weight, layer.attention_output.weight])

    def reference(point):
        point = point + loop_attention(layer, reference_norm(layer.attention_norm, point))
        return point + layer.network_output(F.gelu(layer.network_input(layer.network_norm(point))))

    for ours, expected in zip(gradients(layer), gradients(reference)):
        assert_close(ours, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("layers", [1, 3])
def test_no_output_hears_a_later_input(layers):
    transformer, x = make(layers), tokens(batch=2)
    jacobian = torch.autograd.functional.jacobian(transformer, x).square().sum(dim=(2, 5)).movedim(1, 2)  # (B, B, N, N): out i, in j
    for out in range(2):
        assert torch.all(jacobian[out, 1 - out] == 0)  # nor another sequence of the batch
        permitted = torch.ones(TOKENS, TOKENS).tril().bool()
        assert torch.all(jacobian[out, out][~permitted] == 0) and torch.all(jacobian[out, out][permitted] > 0)
    changed = x.clone()
    changed[:, 5:] += 100
    assert torch.equal(transformer(changed)[:, :5], transformer(x)[:, :5])


def test_a_layer_that_is_not_causal_sees_all_tokens():
    layer, x = make(1).layers[0], tokens()
    before = layer(x)
    layer.causal = False
    queries, keys, values = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in layer.query_key_value(layer.attention_norm(x)).chunk(3, dim=2))
    attended = (queries @ keys.mT / math.sqrt(WIDTH // HEADS)).softmax(-1) @ values
    expected = x + layer.attention_output(attended.transpose(1, 2).flatten(2))
    expected = expected + layer.network_output(F.gelu(layer.network_input(layer.network_norm(expected))))
    with torch.no_grad():
        assert_close(layer(x), expected, rtol=0, atol=1e-12)
        assert_close(layer(x)[:, -1], before[:, -1], rtol=0, atol=1e-12)  # the last token sees all tokens either way
        assert (layer(x) - before)[:, :-1].abs().amax(2).min() > 0
        changed = x.clone()
        changed[:, -1] += 1
        assert (layer(changed) - layer(x)).abs().amax((0, 2)).min() > 0  # every answer moves
    assert TransformerLayer.causal and "causal" not in layer.state_dict()


@pytest.mark.parametrize("layers", [2, 8, 32])
def test_a_new_transformer_changes_its_input_moderately_at_any_depth(layers):
    torch.manual_seed(0)
    transformer = CausalTransformer(64, layers, 4)
    x = torch.randn(8, 32, 64)
    with torch.no_grad():
        stream = x
        for layer in transformer.layers:
            stream = layer(stream)
        assert 1.1 < stream.var() < 2
        assert F.cosine_similarity(stream, x, dim=-1).mean() > 0.75


# --- The cache

@pytest.mark.parametrize("prefix", [0, 1, 5, TOKENS - 1, TOKENS])
@pytest.mark.parametrize("layers", [1, 3])
def test_prefill_and_steps_equal_forward(layers, prefix):
    transformer, x = make(layers), tokens()
    with torch.no_grad():
        assert_close(read(transformer, x, prefix), transformer(x), rtol=0, atol=1e-12)


def test_steps_equal_forward_in_float32():
    transformer, x = make(3).float(), tokens().float()
    with torch.inference_mode():
        assert transformer.new_cache(1, 1).storage.dtype == torch.float32
        assert_close(read(transformer, x, 3), transformer(x), rtol=0, atol=1e-5)


def test_step_ignores_dropout_and_training_forward_does_not():
    transformer, x = make(2, dropout=0.5), tokens()
    with torch.no_grad():
        expected = transformer(x)
        assert_close(read(transformer, x, 4), expected, rtol=0, atol=1e-12)
        transformer.train()
        assert not torch.allclose(transformer(x), expected)
        assert_close(read(transformer, x, 0), expected, rtol=0, atol=1e-12)


def test_dropout_zeroes_branches_and_keeps_the_stream():
    torch.manual_seed(0)
    layer, x = make(1, dropout=0.9).layers[0].train(), tokens(batch=200, length=1)
    with torch.no_grad():
        untouched = (layer(x) == x).double().mean().item()
    assert abs(untouched - 0.9**2) < 0.02  # both branches dropped: 4800 numbers, standard error 0.006


@pytest.mark.parametrize("prefix", [0, 4])
def test_reset_reuses_the_memory_and_forgets(prefix):
    transformer = make(2)
    cache = transformer.new_cache(BATCH, TOKENS)
    cache.storage.fill_(math.nan)  # whatever is read before it is written spoils the answer
    address = cache.storage.data_ptr()
    with torch.no_grad():
        first = read(transformer, tokens(0), prefix, cache)
        assert cache.position == TOKENS
        cache.reset()
        read(transformer, tokens(1), prefix, cache)
        cache.reset()
        assert cache.position == 0
        assert torch.equal(read(transformer, tokens(0), prefix, cache), first)
        cache.reset()
        assert_close(read(transformer, tokens(2, length=3), 1, cache), transformer(tokens(2, length=3)), rtol=0, atol=1e-12)
    assert cache.storage.data_ptr() == address and cache.position == 3


def test_going_back_to_an_earlier_position():
    transformer, x, other = make(2), tokens(0), tokens(1)
    cache = transformer.new_cache(BATCH, TOKENS)
    with torch.no_grad():
        read(transformer, x, 4, cache)
        cache.position = 4
        joined = torch.cat([x[:, :4], other[:, 4:]], dim=1)
        steps = torch.stack([transformer.step(token, cache) for token in other[:, 4:].unbind(1)], dim=1)
        assert_close(steps, transformer(joined)[:, 4:], rtol=0, atol=1e-12)


def test_two_caches_of_one_transformer_do_not_mix():
    transformer, x, y = make(2), tokens(0), tokens(1)
    first, second = transformer.new_cache(BATCH, TOKENS), transformer.new_cache(BATCH, TOKENS)
    with torch.no_grad():
        pairs = [(transformer.step(a, first), transformer.step(b, second)) for a, b in zip(x.unbind(1), y.unbind(1))]
        assert_close(torch.stack([a for a, _ in pairs], 1), transformer(x), rtol=0, atol=1e-12)
        assert_close(torch.stack([b for _, b in pairs], 1), transformer(y), rtol=0, atol=1e-12)


def test_forward_trains_with_a_cache_and_the_cache_holds_no_graph():
    transformer, x = make(2), tokens()
    weights = list(transformer.parameters())
    cache = transformer.new_cache(BATCH, TOKENS)
    expected = torch.autograd.grad(transformer(x[:, :5]).square().sum(), weights)
    hidden = transformer(x[:, :5], cache)
    for ours, without in zip(torch.autograd.grad(hidden.square().sum(), weights), expected):
        assert_close(ours, without, rtol=0, atol=1e-10)
    answer = transformer.step(x[:, 5], cache)
    assert torch.is_grad_enabled() and not answer.requires_grad and not cache.storage.requires_grad
    assert_close(answer, transformer(x)[:, 5].detach(), rtol=0, atol=1e-12)


def test_a_full_cache_says_so_and_stays_as_it_was():
    transformer, x = make(2), tokens()
    cache = transformer.new_cache(BATCH, 5)
    complaint(ValueError, lambda: transformer(x, cache), "room for 5 tokens, token 9 does not fit; reset it or make a longer one")
    assert cache.position == 0
    with torch.no_grad():
        read(transformer, x[:, :5], 3, cache)
        stored = cache.storage.clone()
        complaint(ValueError, lambda: transformer.step(x[:, 5], cache), "room for 5 tokens, token 6 does not fit")
    assert cache.position == 5 and torch.equal(cache.storage, stored)


def test_forward_needs_an_empty_cache():
    transformer, x = make(1), tokens()
    cache = transformer.new_cache(BATCH, TOKENS)
    transformer.step(x[:, 0], cache)
    complaint(ValueError, lambda: transformer(x[:, 1:], cache), "already holds 1 tokens; reset it, or read on with step()")
    cache.reset()
    transformer(x, cache)
    assert cache.position == TOKENS


def test_the_static_cache_is_the_same_function_with_a_position_that_a_record_can_advance():
    transformer = make(2)
    cache = transformer.new_cache(BATCH, TOKENS + 2, StaticKeyValueCache)
    position = cache.position
    with torch.no_grad():
        for seed in (0, 1):  # the second sequence in memory that holds the first
            x = tokens(seed)
            assert_close(read(transformer, x, 0, cache), transformer(x), rtol=0, atol=1e-12)
            assert cache.position is position and position.item() == TOKENS
            cache.reset()
    assert position.item() == 0


def test_recomputed_activations_keep_less_and_give_the_same_gradients():
    def gradients_and_memory(recompute: bool) -> tuple[list[torch.Tensor], int]:
        torch.manual_seed(0)
        transformer, kept = CausalTransformer(64, 8, 4, dropout=0.1), {}
        transformer.checkpoint_activations = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.update({tensor.data_ptr(): tensor.numel()}) or tensor, lambda tensor: tensor):
            loss = transformer(torch.randn(16, 32, 64)).square().mean()
        loss.backward()
        return [parameter.grad for parameter in transformer.parameters()], sum(kept.values())

    (plain, memory), (again, less) = gradients_and_memory(False), gradients_and_memory(True)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True)) and less < memory / 4


# --- Sizes and loading

@pytest.mark.parametrize("width, heads", [(24, 5), (8, 16)])
def test_heads_must_divide_the_width(width, heads):
    complaint(ValueError, lambda: CausalTransformer(width, 2, heads), f"width {width} is not a multiple of {heads} heads")


def test_sizes_of_parameters_and_cache():
    transformer = CausalTransformer(768, 3, 12)
    assert sum(parameter.numel() for parameter in transformer.parameters()) == 3 * (12 * 768**2 + 4 * 768) + 2 * 768
    cache = transformer.bfloat16().new_cache(batch=2, length=320)
    assert cache.storage.shape == (3, 2, 2, 12, 320, 64) and cache.storage.nbytes == 2 * 3 * 2 * 320 * 768 * 2


def test_a_copy_with_the_same_weights_is_the_same_function():
    transformer, other = make(2), make(2, seed=1)
    assert not torch.allclose(other(tokens()), transformer(tokens()))
    other.load_state_dict(copy.deepcopy(transformer.state_dict()))
    assert torch.equal(other(tokens()), transformer(tokens()))


def test_token_by_token_loops_cast_each_weight_once_under_autocast():
    transformer, token, counts = CausalTransformer(32, 2, 2).eval(), torch.randn(3, 32), []
    for steps in (5, 25):
        with torch.autocast("cpu", torch.bfloat16), no_autograd(token.device), torch.profiler.profile() as profile:
            cache = transformer.new_cache(3, steps)
            for _ in range(steps):
                transformer.step(token, cache)
        counts.append(sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy"))
    assert cache.storage.dtype == torch.bfloat16 and transformer.new_cache(3, 5).storage.dtype == torch.float32
    per_step = (counts[1] - counts[0]) / 20
    assert 0 < per_step <= 8 and counts[0] <= 5 * per_step + 2 * 4 + 1  # of activations; the 8 weights once, and the cache's type


def test_no_autograd_is_inference_mode_unless_autocasting():
    with no_autograd(torch.device("cpu")):
        assert torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    with torch.autocast("cpu", torch.bfloat16), no_autograd(torch.device("cpu")):
        assert not torch.is_inference_mode_enabled() and not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
