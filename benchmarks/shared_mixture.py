"""A mixture shared by many tokens, against torch.distributions: `python benchmarks/shared_mixture.py [--device cuda]`.

The redundant head's task at the paper's size: 8 images, 256 tokens of 640 channels, one mixture of 200 components per
image. Prints, for `GaussianMixture` and `torch.distributions.MixtureSameFamily`, seconds, peak memory and the error
against float64. At the default size torch.distributions needs about 7 GB and a minute or two; `--batch 1` an eighth of
both.

Time: both in one process, taking turns; the best of the repeats.
Peak memory on the CPU: each pass in a process of its own, the growth of the resident memory's high-water mark
(getrusage, ru_maxrss) from just before the call; includes what the allocator and the matrix library take on top of the
tensors. On CUDA: torch.cuda.max_memory_allocated less what was allocated before.
"""
import argparse
import json
import platform
import resource
import subprocess
import sys
from functools import partial

import torch
from timing import best, take_turns, where
from torch import Tensor, distributions

from farmer.mixture import GaussianMixture

PASSES = ("forward", "forward + backward")
TARGET = 10


def peer(logits: Tensor, mean: Tensor, log_scale: Tensor) -> distributions.Distribution:
    normal = distributions.Independent(distributions.Normal(mean, log_scale.exp(), validate_args=False), 1, validate_args=False)
    weights = distributions.Categorical(logits=logits, validate_args=False)
    return distributions.MixtureSameFamily(weights, normal, validate_args=False)


MODELS = {"farmer": GaussianMixture, "torch.distributions": peer}


def make_inputs(size: argparse.Namespace, log_sigma: float = -1.0) -> list[Tensor]:
    "Values drawn from the mixture (B, N, D), then logits (B, 1, K), means and log-scales (B, 1, K, D)."
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size.batch, 1, size.components, generator=generator)
    mean = torch.randn(size.batch, 1, size.components, size.channels, generator=generator)
    log_scale = log_sigma - 0.5 * torch.rand(mean.shape, generator=generator)
    value = GaussianMixture(logits, mean, log_scale).sample((size.tokens,), generator)[:, :, 0].transpose(0, 1)
    return [tensor.contiguous().to(size.device) for tensor in (value, logits, mean, log_scale)]


def run(name: str, which: str, inputs: list[Tensor]) -> list[Tensor]:
    "The log-density, and for `forward + backward` its gradients by value, logits, mean and log-scale."
    inputs = [tensor.detach().requires_grad_(which != "forward") for tensor in inputs]
    log_prob = MODELS[name](*inputs[1:]).log_prob(inputs[0])
    gradients = torch.autograd.grad(log_prob.sum(), inputs) if which != "forward" else ()
    if log_prob.is_cuda:
        torch.cuda.synchronize()
    return [log_prob.detach(), *gradients]


def high_water_mark() -> int:
    "Largest resident memory of this process so far, in bytes."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def cpu_peak(name: str, which: str, size: argparse.Namespace) -> int:
    "Bytes that one pass adds to this process, which must be fresh."
    inputs = make_inputs(size)
    run(name, which, make_inputs(argparse.Namespace(batch=1, tokens=4, components=3, channels=5, device="cpu")))  # load libraries
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # Linux: lower the mark to the memory in use now, or a small pass could hide below it
    except OSError:
        pass
    before = high_water_mark()
    run(name, which, inputs)
    return high_water_mark() - before


def cuda_peak(name: str, which: str, inputs: list[Tensor]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run(name, which, inputs)
    return torch.cuda.max_memory_allocated() - before


def measure_memory(size: argparse.Namespace) -> dict:
    if size.device.startswith("cuda"):
        inputs = make_inputs(size)
        for name in MODELS:
            run(name, PASSES[1], inputs)  # load libraries
        return {(name, which): cuda_peak(name, which, inputs) for which in PASSES for name in MODELS}
    peaks = {}
    for which in PASSES:
        for name in MODELS:
            command = [sys.executable, __file__, *sys.argv[1:], "--peak", json.dumps([name, which])]
            peaks[name, which] = int(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return peaks


def measure_time(size: argparse.Namespace) -> dict:
    inputs = make_inputs(size)
    calls = {(name, which): partial(run, name, which, inputs) for which in PASSES for name in MODELS}
    return best(take_turns(calls, size.repeats, device=size.device))


def print_accuracy(size: argparse.Namespace) -> None:
    "Errors of float32 against torch.distributions in float64, on one image and at most 64 tokens to spare memory."
    size = argparse.Namespace(**{**vars(size), "batch": 1, "tokens": min(size.tokens, 64)})
    print("\nrelative error against float64, ||a - b|| / ||b||")
    print(f"  {'log sigma':12}{'':22}{'log-density':>12}{'by value':>12}{'by logits':>12}{'by mean':>12}{'by log_scale':>14}")
    for log_sigma in (-1.0, -3.0, -5.0, -7.0):
        inputs = make_inputs(size, log_sigma)
        exact = run("torch.distributions", PASSES[1], [tensor.double() for tensor in inputs])
        for name in MODELS:
            ours = run(name, PASSES[1], inputs)
            errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, exact)]
            print(f"  {log_sigma:<12}{name:22}" + "".join(f"{error:{14 if i == 4 else 12}.0e}" for i, error in enumerate(errors)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(batch=8, tokens=256, components=200, channels=640, repeats=5).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # used by this script for its fresh processes
    size = parser.parse_args()
    if size.peak:
        print(cpu_peak(*json.loads(size.peak), size))
        return
    print(f"B={size.batch} N={size.tokens} K={size.components} D={size.channels}, float32, {where(size.device)}")
    memory = measure_memory(size)  # first, while this process is small: a child's high-water mark starts from its parent's
    seconds = measure_time(size)
    print(f"\n{'':22}{'':22}{'seconds':>10}{'peak MiB':>12}")
    for which in PASSES:
        for name in MODELS:
            print(f"  {which:20}{name:22}{seconds[name, which]:>10.4f}{memory[name, which] / 2**20:>12.1f}")
    print()
    for which in PASSES:
        time_ratio, memory_ratio = (figures["torch.distributions", which] / max(figures["farmer", which], 1e-9) for figures in (seconds, memory))
        verdict = "met" if min(time_ratio, memory_ratio) >= TARGET else "MISSED"
        print(f"  {which:20}{time_ratio:6.1f}x faster, {memory_ratio:6.1f}x less peak memory (target {TARGET}x each: {verdict})")
    print_accuracy(size)


if __name__ == "__main__":
    main()
