"""The flow's speed beside TarFlow's own public code: forward, forward + backward, reverse; one process, equal sizes.

    python benchmarks/flow.py --tarflow path/to/transformer_flow.py [--device cuda] [--seconds 15]

Both models get the same tokens, width, blocks, layers and heads, and both run their stack of blocks on tokens that are
already cut: neither pays for patches or for keeping the states between blocks. What differs is each code's own: TarFlow's
linear layers have biases, ours do not but have a start token and a last norm; both weight counts are printed. Before a
size is timed, each model must invert itself there. Reverse is TarFlow's without guidance.

The ratio is one of the bests (above 1: ours is faster). Threads that sleep between products (OMP_WAIT_POLICY=PASSIVE) cost
both codes a wake-up each time, which short products feel most: the header says which way was timed. Targets are for 2
threads of a CPU.
"""
import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from timing import best, milliseconds, take_turns, where
from torch import Tensor, nn

from farmer.flow import autoregressive_flow

SOURCE = "https://github.com/apple/ml-tarflow"
CHANNELS, WIDTH, BLOCKS, LAYERS, HEADS = 48, 128, 4, 2, 2
SIZES = {(32, 64): (1.0, 1.1, 2.0), (8, 256): (1.0, 1.1, 2.5)}  # (images, tokens): targets of the three rows


class Contestant(NamedTuple):
    model: nn.Module
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]  # tokens -> latents, log-determinant in nats per number, averaged
    reverse: Callable[[Tensor], Tensor]


def farmer_flow(tokens: int) -> Contestant:
    flow = autoregressive_flow(tokens, CHANNELS, blocks=BLOCKS, width=WIDTH, layers=LAYERS, heads=HEADS)
    for block in flow.blocks:
        nn.init.normal_(block.output.weight, std=0.02)  # a new block is the identity; let both do real work

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        z, log_scale = flow(x)
        return z, log_scale.mean()

    return Contestant(flow, forward, flow.inverse)


def tarflow(path: Path, tokens: int) -> Contestant:
    spec = importlib.util.spec_from_file_location("transformer_flow", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Model(  # heads: its default, one per 64 channels of the width
        in_channels=CHANNELS, img_size=round(tokens**0.5), patch_size=1, channels=WIDTH, num_blocks=BLOCKS, layers_per_block=LAYERS
    )
    for block in model.blocks:
        nn.init.normal_(block.proj_out.weight, std=0.02)

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        logdet = x.new_zeros(())
        for block in model.blocks:
            x, block_logdet = block(x)
            logdet = logdet + block_logdet.mean()
        return x, logdet

    def reverse(z: Tensor) -> Tensor:
        x = z.clone()  # it writes into its argument
        for block in reversed(model.blocks):
            x = block.reverse(x)
        return x

    return Contestant(model, forward, reverse)


def train_step(contestant: Contestant, x: Tensor) -> None:
    contestant.model.zero_grad()
    z, logdet = contestant.forward(x)
    (0.5 * z.square().mean() - logdet).backward()


def compare_size(path: Path, batch: int, tokens: int, targets: tuple[float, ...], device: str, seconds: float) -> None:
    torch.manual_seed(0)
    both = {"ours": farmer_flow(tokens), "TarFlow": tarflow(path, tokens)}
    x, weights = torch.randn(batch, tokens, CHANNELS, device=device), {}
    for name, contestant in both.items():
        weights[name] = sum(parameter.numel() for parameter in contestant.model.to(device).parameters())
    print(f"\n{batch} images of {tokens} tokens; weights: ours {weights['ours']:,}, TarFlow {weights['TarFlow']:,}")
    with torch.no_grad():
        latents = {name: contestant.forward(x)[0] for name, contestant in both.items()}
        for name, contestant in both.items():
            torch.testing.assert_close(contestant.reverse(latents[name]), x, rtol=0, atol=1e-3)
    ways = {
        "forward": {name: torch.no_grad()(partial(contestant.forward, x)) for name, contestant in both.items()},
        "forward + backward": {name: partial(train_step, contestant, x) for name, contestant in both.items()},
        "reverse": {name: torch.no_grad()(partial(contestant.reverse, latents[name])) for name, contestant in both.items()},
    }
    print(f"{'milliseconds':20}{'ours best':>9} {'median':>9} {'TarFlow':>9} {'median':>9}  ratio")
    for (name, calls), target in zip(ways.items(), targets):
        times = take_turns(calls, seconds=seconds, device=device)
        ratio = best(times)["TarFlow"] / best(times)["ours"]
        verdict = f"{ratio:5.2f}x, target {target:.1f}x {'met' if ratio >= target else 'missed'}"
        print(f"{name:20}{milliseconds(times['ours'])} {milliseconds(times['TarFlow'])}  {verdict}, {len(times['ours'])} repeats", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tarflow", type=Path, metavar="PATH", help=f"transformer_flow.py of {SOURCE}")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--seconds", default=15.0, type=float, help="time for each row (default: 15)")
    options = parser.parse_args()
    if options.tarflow is None or not options.tarflow.is_file():
        missing = "" if options.tarflow is None else f"There is no file {options.tarflow}. "
        print(
            f"{missing}This comparison needs transformer_flow.py of {SOURCE}, which has its own licence and is not part of FARMER:\n"
            f"    curl -LO https://raw.githubusercontent.com/apple/ml-tarflow/main/transformer_flow.py\n"
            "then: make bench TARFLOW=transformer_flow.py, or this script with --tarflow transformer_flow.py",
            file=sys.stderr,
        )
        sys.exit(2)
    print(f"The flow beside TarFlow: {where(options.device)}, OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}, float32;")
    print(f"tokens of {CHANNELS} channels, width {WIDTH}, {BLOCKS} blocks of {LAYERS} layers with {HEADS} heads")
    for (batch, tokens), targets in SIZES.items():
        compare_size(options.tarflow, batch, tokens, targets, options.device, options.seconds)


if __name__ == "__main__":
    main()
