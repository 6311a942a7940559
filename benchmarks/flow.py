"""The flow's speed beside TarFlow's own public code: forward, forward + backward, reverse; one process, equal sizes.

    python benchmarks/flow.py --tarflow path/to/transformer_flow.py [--device cuda] [--seconds 15]

Both models get the same tokens, width, blocks, layers and heads, and both run their stack of blocks on tokens that are
already cut: neither pays for patches or for keeping the states between blocks. What differs is each code's own: TarFlow's
linear layers have biases, ours do not but have a start token and a last norm; both weight counts are printed. Before a
size is timed, each model must invert itself there.

The two take turns, and who goes first alternates, so that a busy machine slows both alike. Each row shows the best and
the median of its repeats, and the ratio of the bests (above 1: ours is faster): other work can only add to a time, so the
best is the nearest to what the code itself costs. A median far above the best tells of a busy machine: run again.
Threads that sleep between products (OMP_WAIT_POLICY=PASSIVE) cost both codes a wake-up each time, which short products
feel most: the header says which way was timed.
Reverse is TarFlow's without guidance. Targets are for 2 threads of a CPU.
"""
import argparse
import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from farmer.flow import AutoregressiveFlow

WHERE = "https://github.com/apple/ml-tarflow"
CHANNELS, WIDTH, BLOCKS, LAYERS, HEADS = 48, 128, 4, 2, 2
SIZES = {(32, 64): (1.0, 1.1, 2.0), (8, 256): (1.0, 1.1, 2.5)}  # (images, tokens): targets of the three rows


class Contestant(NamedTuple):
    model: nn.Module
    forward: Callable[[Tensor], tuple[Tensor, Tensor]]  # tokens -> latents, log-determinant in nats per number, averaged
    reverse: Callable[[Tensor], Tensor]


def farmer_flow(tokens: int) -> Contestant:
    flow = AutoregressiveFlow(tokens, CHANNELS, WIDTH, BLOCKS, LAYERS, HEADS)
    for block in flow.blocks:
        nn.init.normal_(block.output.weight, std=0.02)  # a new block is the identity; let both do real work

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        z, logdet = flow(x)
        return z, logdet.mean() / x[0].numel()

    return Contestant(flow, forward, flow.inverse)


def tarflow(path: Path, tokens: int) -> Contestant:
    spec = importlib.util.spec_from_file_location("transformer_flow", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    side = round(tokens**0.5)
    model = module.Model(  # heads: its default, one per 64 channels of the width
        in_channels=CHANNELS, img_size=side, patch_size=1, channels=WIDTH, num_blocks=BLOCKS, layers_per_block=LAYERS
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


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(calls: list[Callable[[], object]], device: torch.device, seconds: float) -> list[list[float]]:
    "The times of each call, which take turns until the time is spent, five turns at least."
    times = [[] for _ in calls]
    for call in calls * 2:
        call()
    end = time.perf_counter() + seconds
    turns = list(zip(calls, times))
    while len(times[0]) < 5 or time.perf_counter() < end:
        for call, measured in turns:
            measured.append(seconds_of(call, device))
        turns.reverse()
    return times


def row(name: str, times: list[list[float]], target: float) -> str:
    (theirs, ours) = times
    ratio = min(theirs) / min(ours)
    cells = [f"{min(t) * 1e3:8.1f} {statistics.median(t) * 1e3:8.1f}" for t in (ours, theirs)]
    return f"{name:20}{cells[0]}    {cells[1]}  {len(ours):6}  {ratio:5.2f}x  {target:.1f}x {'met' if ratio >= target else 'missed'}"


def compare_size(path: Path, batch: int, tokens: int, targets: tuple[float, float, float], device: torch.device, seconds: float):
    torch.manual_seed(0)
    both = [contestant._replace(model=contestant.model.to(device)) for contestant in (tarflow(path, tokens), farmer_flow(tokens))]
    x = torch.randn(batch, tokens, CHANNELS, device=device)
    weights = [sum(parameter.numel() for parameter in contestant.model.parameters()) for contestant in both]
    print(f"\n{batch} images of {tokens} tokens; weights: ours {weights[1]:,}, TarFlow {weights[0]:,}")
    with torch.no_grad():
        latents = [contestant.forward(x)[0] for contestant in both]
        for contestant, z in zip(both, latents):
            torch.testing.assert_close(contestant.reverse(z), x, rtol=0, atol=1e-3)

    def forward(contestant: Contestant):
        with torch.no_grad():
            contestant.forward(x)

    def forward_backward(contestant: Contestant):
        contestant.model.zero_grad()
        z, logdet = contestant.forward(x)
        (0.5 * z.square().mean() - logdet).backward()

    def reverse(index: int):
        with torch.no_grad():
            both[index].reverse(latents[index])

    print(f"{'milliseconds':20}{'ours best':>8}{'median':>8} {'TarFlow best':>13}{'median':>8} {'repeats':>8}  ratio  target")
    for name, call, target in zip(("forward", "forward + backward"), (forward, forward_backward), targets):
        print(row(name, compare([lambda c=c: call(c) for c in both], device, seconds), target), flush=True)
    print(row("reverse", compare([lambda i=i: reverse(i) for i in (0, 1)], device, seconds), targets[2]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Times the flow beside TarFlow's public code.")
    parser.add_argument("--tarflow", type=Path, metavar="PATH", help=f"transformer_flow.py of {WHERE}")
    parser.add_argument("--device", default="cpu", type=torch.device, help="cpu or cuda (default: cpu)")
    parser.add_argument("--seconds", default=15.0, type=float, help="time for each row (default: 15)")
    options = parser.parse_args()
    if options.tarflow is None or not options.tarflow.is_file():
        missing = "" if options.tarflow is None else f"There is no file {options.tarflow}. "
        print(
            f"{missing}This comparison needs transformer_flow.py of {WHERE}, which has its own licence and is not part of FARMER:\n"
            f"    curl -LO https://raw.githubusercontent.com/apple/ml-tarflow/main/transformer_flow.py\n"
            "then: make bench TARFLOW=transformer_flow.py, or this script with --tarflow transformer_flow.py",
            file=sys.stderr,
        )
        sys.exit(2)
    device = options.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads, OMP_WAIT_POLICY {os.environ.get('OMP_WAIT_POLICY', 'not set')}"
    print(f"AutoregressiveFlow beside TarFlow: {name}, torch {torch.__version__}, float32, tokens of {CHANNELS} channels,")
    print(f"width {WIDTH}, {BLOCKS} blocks of {LAYERS} layers with {HEADS} heads")
    for (batch, tokens), targets in SIZES.items():
        compare_size(options.tarflow, batch, tokens, targets, device, options.seconds)


if __name__ == "__main__":
    main()
