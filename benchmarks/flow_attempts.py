"""What was tried to make the flow faster beside TarFlow's code, at equal weights.

    python benchmarks/flow_attempts.py --tarflow path/to/transformer_flow.py [--rounds 20] [--reverse]

Each attempt replaces one operation of our transformer layer; everything else is as in benchmarks/flow.py. Prints the best
time of forward + backward and of forward over all rounds, or with --reverse that of the exact inverse. TarFlow and all
attempts take turns; beside each time stands TarFlow's over it. Attempts marked * compute another function, or need other
weights: they show what there is to gain.
"""
import argparse
import os
import time
from pathlib import Path

import torch
from flow import SIZES, farmer_flow, tarflow  # the script beside this one
from torch import Tensor, nn
from torch.nn import functional as F

from farmer.transformer import TransformerLayer


def attend(layer: TransformerLayer, projected: Tensor) -> Tensor:  # (B, N, 3 W) -> (B, N, W)
    batch, tokens, width = *projected.shape[:2], projected.shape[2] // 3
    query_key_value = projected.view(batch, tokens, 3, layer.heads, width // layer.heads).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(*query_key_value, is_causal=True).transpose(1, 2).reshape(batch, tokens, width)


def with_activation(activation):
    def forward(layer, x: Tensor, cache=None, index=0) -> Tensor:
        x = x + layer.attention_output(attend(layer, layer.query_key_value(layer.attention_norm(x))))
        return x + layer.network_output(activation(layer.network_input(layer.network_norm(x))))

    return forward


def fused_residual(layer, x: Tensor, cache=None, index=0) -> Tensor:
    "The residual sum inside the matrix product."
    shape = x.shape
    branch = attend(layer, layer.query_key_value(layer.attention_norm(x))).flatten(0, 1)
    x = torch.addmm(x.flatten(0, 1), branch, layer.attention_output.weight.T)
    hidden = F.gelu(layer.network_input(layer.network_norm(x)))
    return torch.addmm(x, hidden, layer.network_output.weight.T).view(shape)


def parallel(layer, x: Tensor, cache=None, index=0) -> Tensor:
    "Attention and network side by side: one norm, one product in, one product out."
    width = x.shape[-1]
    projected = F.linear(layer.attention_norm(x), layer.joint_input)
    both = torch.cat([attend(layer, projected[..., : 3 * width]), F.gelu(projected[..., 3 * width :])], dim=-1)
    return x + F.linear(both, layer.joint_output)


ATTEMPTS = {
    "as it is": TransformerLayer.forward,
    "residual fused into the product": fused_residual,  # autocast would round the residual stream
    "* GELU by tanh": with_activation(lambda x: F.gelu(x, approximate="tanh")),
    "* SiLU": with_activation(F.silu),
    "* ReLU": with_activation(F.relu),
    "* attention and network in parallel": parallel,
    "torch.compile": TransformerLayer.forward,
}


# --- Reverse: one token of every image


def apart(x: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
    return x + F.linear(branch, weight)


def fused(x: Tensor, branch: Tensor, weight: Tensor) -> Tensor:
    "The addition inside the product before it."
    return torch.addmm(x, branch, weight.T)


def products(layer: TransformerLayer, x: Tensor, attend_to, activation=F.gelu, add=apart) -> Tensor:
    norm, width = layer.attention_norm, x.shape[1]
    projected = F.linear(F.layer_norm(x, (width,), norm.weight, norm.bias), layer.query_key_value.weight)
    attended = attend_to(projected.view(len(x), 3, layer.heads, 1, -1).transpose(0, 1))
    x, norm = add(x, attended, layer.attention_output.weight), layer.network_norm
    hidden = activation(F.linear(F.layer_norm(x, (width,), norm.weight, norm.bias), layer.network_input.weight))
    return add(x, hidden, layer.network_output.weight)


def batched_products(layer, x: Tensor, cache, index: int) -> Tensor:
    "Attention as two batched products and a softmax."

    def attend_to(query_key_value: Tensor) -> Tensor:
        keys, values = cache.extend(index, query_key_value[1:])
        scores = query_key_value[0] @ keys.transpose(-1, -2) * keys.shape[-1] ** -0.5
        return (scores.softmax(-1) @ values).reshape(x.shape)

    return products(layer, x, attend_to)


def summed_attention(layer, x: Tensor, cache, index: int) -> Tensor:
    "Attention as elementwise products and sums, which need no call into a library of matrix products."

    def attend_to(query_key_value: Tensor) -> Tensor:
        keys, values = cache.extend(index, query_key_value[1:])
        scores = (query_key_value[0] * keys).sum(-1, keepdim=True) * keys.shape[-1] ** -0.5
        return (scores.softmax(-2) * values).sum(-2).reshape(x.shape)

    return products(layer, x, attend_to)


def no_attention(layer, x: Tensor, cache, index: int) -> Tensor:
    return products(layer, x, lambda query_key_value: query_key_value[2].reshape(x.shape))


def with_cached(activation=F.gelu, add=apart):
    def step(layer, x: Tensor, cache, index: int) -> Tensor:
        def attend_to(query_key_value: Tensor) -> Tensor:
            keys, values = cache.extend(index, query_key_value[1:])
            return F.scaled_dot_product_attention(query_key_value[0], keys, values).reshape(x.shape)

        return products(layer, x, attend_to, activation, add)

    return step


def products_only(layer, x: Tensor, cache, index: int) -> Tensor:
    "The four matrix products and nothing else."
    attended = F.linear(x, layer.query_key_value.weight)[:, : x.shape[1]]
    x = F.linear(attended, layer.attention_output.weight)
    return F.linear(F.linear(x, layer.network_input.weight), layer.network_output.weight)


REVERSE = {
    "as it is": TransformerLayer.step,
    "one thread": TransformerLayer.step,
    "additions fused into the products": with_cached(add=fused),
    "attention by two batched products": batched_products,
    "attention by elementwise products": summed_attention,
    "* GELU by tanh": with_cached(lambda x: F.gelu(x, approximate="tanh")),
    "* ReLU": with_cached(F.relu),
    "* no attention": no_attention,
    "* the four matrix products alone": products_only,
}


def compare_reverse(path: Path, rounds: int) -> None:
    threads = torch.get_num_threads()
    for batch, tokens in SIZES:
        torch.manual_seed(0)
        ours, theirs, z = farmer_flow(tokens), tarflow(path, tokens), torch.randn(batch, tokens, 48)
        best = {}
        for _ in range(rounds + 1):
            for name in ("TarFlow", *REVERSE):
                TransformerLayer.step = REVERSE.get(name, TransformerLayer.step)
                torch.set_num_threads(1 if name == "one thread" else threads)
                started = time.perf_counter()
                with torch.no_grad():
                    (theirs if name == "TarFlow" else ours).reverse(z)
                seconds = time.perf_counter() - started
                best[name] = min(seconds, best.get(name, seconds))
                torch.set_num_threads(threads)
        print(f"\n{batch} images of {tokens} tokens, {threads} threads, OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}, torch {torch.__version__}: reverse")
        for name, seconds in best.items():
            print(f"{name:38}{seconds * 1e3:9.1f} ms {best['TarFlow'] / seconds:5.2f}x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tarflow", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--reverse", action="store_true", help="the exact inverse in place of training")
    options = parser.parse_args()
    if options.reverse:
        return compare_reverse(options.tarflow, options.rounds)
    for batch, tokens in SIZES:
        torch.manual_seed(0)
        ours, theirs, joint = farmer_flow(tokens), tarflow(options.tarflow, tokens), farmer_flow(tokens)
        for layer in (module for module in joint.model.modules() if isinstance(module, TransformerLayer)):
            width = layer.attention_output.in_features
            layer.joint_input = nn.Parameter(torch.randn(7 * width, width) * width**-0.5)
            layer.joint_output = nn.Parameter(torch.randn(width, 5 * width) * width**-0.5 * 0.1)
            for name in ("query_key_value", "attention_output", "network_input", "network_output", "network_norm"):
                delattr(layer, name)
        x = torch.randn(batch, tokens, 48)
        models = {"TarFlow": theirs} | {name: joint if "parallel" in name else ours for name in ATTEMPTS}
        compiled = torch.compile(ours.forward)
        best = {}
        for _ in range(options.rounds + 1):
            for name, contestant in models.items():
                TransformerLayer.forward = ATTEMPTS.get(name, TransformerLayer.forward)
                call = compiled if name == "torch.compile" else contestant.forward
                started = time.perf_counter()
                contestant.model.zero_grad()
                z, logdet = call(x)
                (0.5 * z.square().mean() - logdet).backward()
                middle = time.perf_counter()
                with torch.no_grad():
                    call(x)
                times = middle - started, time.perf_counter() - middle
                best[name] = [min(pair) for pair in zip(times, best.get(name, times))]
        print(f"\n{batch} images of {tokens} tokens, {torch.get_num_threads()} threads, torch {torch.__version__}")
        print(f"{'':38}{'forward + backward':>22}{'forward':>18}")
        for name, times in best.items():
            cells = [f"{seconds * 1e3:7.1f} ms {reference / seconds:5.2f}x" for seconds, reference in zip(times, best["TarFlow"])]
            print(f"{name:38}{cells[0]:>22}{cells[1]:>18}", flush=True)


if __name__ == "__main__":
    main()
