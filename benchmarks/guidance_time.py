"""Sampling under guidance over sampling without, same batch: `python benchmarks/guidance_time.py [--device cuda]`.

On a CUDA GPU also the prior's loop, whose step is recorded as a graph, over the same loop without a recording.
"""
import argparse
from contextlib import nullcontext
from unittest import mock

import torch
from timing import best, take_turns, where

from farmer.analysis import VariationalGuidance
from farmer.guidance import PosteriorGuidance, RejectionGuidance, ResamplingGuidance
from farmer.model import Farmer

WAYS = {
    "unguided": 0.0,
    "default": PosteriorGuidance(2.0),
    "paper": ResamplingGuidance(2.0),
    "variational": VariationalGuidance(2.0),
    "naive": RejectionGuidance(2.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    device = parser.parse_args().device
    print(where(device))
    for name in ("digits", "glyphs"):
        model = Farmer.from_pretrained(name).to(device)
        for batch in (100, 1000):
            labels = torch.arange(batch) % 10
            draw = lambda guidance: model.sample(labels, guidance=guidance, generator=torch.Generator(device).manual_seed(0))
            times = best(take_turns({way: lambda guidance=guidance: draw(guidance) for way, guidance in WAYS.items()}, device=device))
            ratios = ", ".join(f"{way} {seconds / times['unguided']:.2f}x" for way, seconds in times.items() if way != "unguided")
            print(f"{name}, {batch} images: unguided {times['unguided']:.3f} s; over that: {ratios}", flush=True)
            loop = lambda: model.sample_latents(labels, guidance=2.0, seed=0)
            plain = mock.patch("farmer.transformer.recorded", lambda step, restart: nullcontext(step))
            times = best(take_turns({"recorded": loop, "plain": plain(loop)}, device=device))
            print(f"{name}, {batch} images, the prior's loop: {times['recorded']:.3f} s, without a recording {times['plain']:.3f} s", flush=True)


if __name__ == "__main__":
    main()
