"""What each way back through the flow costs: `python benchmarks/inversion_time.py`, on a GPU with `--device cuda`.

On a CPU: 28 blocks of width 256, 256 tokens of 768 channels, one image, float32: exact, Jacobi, student. On a GPU: the flow of
FARMER-1.1B in bfloat16, exact and student, over batch sizes. Weights are random; so is the Jacobi iteration's number of rounds.
"""
import argparse

import torch
from timing import best, take_turns, where
from torch import nn

from farmer.flow import Flow, autoregressive_flow
from farmer.inversion import Student, jacobi_inverse


def large_flow(width: int, layers: int, device: str) -> Flow:
    "28 blocks on 256 tokens of 768 channels, as FARMER-1.1B's."
    torch.manual_seed(0)
    flow = autoregressive_flow(256, 768, blocks=28, width=width, layers=layers, heads=width // 64).to(device).eval()
    for block in flow.blocks:
        nn.init.normal_(block.output.weight, std=0.1 * width**-0.5)
    return flow


def time_gpu(device: str) -> None:
    flow = large_flow(768, 4, device)
    student = Student(flow)
    weights = sum(parameter.numel() for parameter in flow.blocks[0].transformer.parameters())
    print(f"{where(device)}, bfloat16; weights of a block's transformer {weights:,}; paper: exact 0.1689, student 0.0076 s/image")
    print(f"{'images':>8}{'exact s/image':>15}{'student s/image':>17}{'ratio':>8}{'weights read, GB/s':>20}")
    for batch in (1, 8, 32, 128, 512):
        z = torch.randn(batch, 256, 768, device=device)
        with torch.autocast("cuda", torch.bfloat16):
            times = best(take_turns({"exact": lambda: flow.inverse(z), "student": lambda: student(z)}, 3, device=device))
        read = 28 * 256 * weights * 2 / times["exact"] / 1e9
        print(f"{batch:8}{times['exact'] / batch:15.4f}{times['student'] / batch:17.5f}{times['exact'] / times['student']:7.1f}x{read:20.0f}", flush=True)


def time_cpu() -> None:
    flow, threads = large_flow(256, 1, "cpu"), torch.get_num_threads()
    student, z = Student(flow), torch.randn(1, 256, 768)
    found, exact = jacobi_inverse(flow, z, 1e-5), flow.inverse(z)
    print(f"{where()}; 28 blocks of width 256 x 1 layer, 256 tokens of 768 channels, one image, float32")
    print(f"jacobi: {found.rounds.double().mean():.1f} rounds a block, largest difference from exact {(found.x - exact).abs().max():.1e}")
    times = best(take_turns({"exact": lambda: flow.inverse(z), "jacobi 1e-5": lambda: jacobi_inverse(flow, z, 1e-5), "student": lambda: student(z)}, 3))
    torch.set_num_threads(3 - min(threads, 2))  # a single image is short work: more threads may cost more than they help
    times |= best(take_turns({f"exact, {torch.get_num_threads()} threads": lambda: flow.inverse(z)}, 3))
    torch.set_num_threads(threads)
    for name, seconds in times.items():
        print(f"{name:20}{seconds:8.3f} s   {seconds / times['student']:6.1f}x the student")
    fastest = min(seconds for name, seconds in times.items() if name != "student")
    print(f"student over the fastest other way: {fastest / times['student']:.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    device = parser.parse_args().device
    with torch.no_grad():
        time_cpu() if device == "cpu" else time_gpu(device)


if __name__ == "__main__":
    main()
