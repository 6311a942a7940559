"""Does a learned first token keep colour specks out of the corners? `python experiments/corner_tokens.py`; minutes a run, two seeds each.

A block of the flow leaves its first token unchanged in the paper, so the two tokens that are first in some block (top left
and bottom right) pass through half of the stack unscaled. The prior shares one mixture among the redundant channels of
all tokens and does not know which is which. Here that stands beside a learned shift and scale of each block's first token
(the library's default): bits/dim, specks in samples (`measuring.speckle`), and the deviation of z^R, which the corners show.
"""
import torch
from conditions import conditions
from measuring import CORNERS, judge_of, measure, real_figures, record, speckle, train

from farmer.model import Farmer
from farmer.patches import dequantize

DATA = "glyphs-palette"


@torch.no_grad()
def corner_deviations(model: Farmer) -> dict[str, float]:
    "Geometric mean over channels of the standard deviation of z^R in held-out images."
    held_out = judge_of(DATA).held_out
    images, _ = held_out.batch(range(len(held_out)))
    latents = model.encode(dequantize(images, held_out.levels, torch.Generator().manual_seed(1)))
    log_deviation = latents.redundant.std(0).log().mean(1)  # (N,)
    others = [index for index in range(model.config.tokens) if index not in CORNERS]
    return {f"deviation of z^R, {name}": log_deviation[tokens].mean().exp().item() for name, tokens in (("corner", CORNERS), ("elsewhere", others))}


def main() -> None:
    rows, held_out = {}, judge_of(DATA).held_out
    for name, condition in conditions("corners, ").items():
        models = [(seed, train(f"corners, {name}", seed).ema) for seed in condition.seeds]
        rows[name] = [measure(model, DATA, seed, ("likelihood", "samples", "colour")) | corner_deviations(model) for seed, model in models]
        for key in ("bits/dim", *(key for key in rows[name][0] if key.startswith(("speckle", "deviation")))):
            print(f"{name}: {key} " + ", ".join(f"{row[key]:.4f}" for row in rows[name]), flush=True)
    real = real_figures(DATA) | speckle(DATA, held_out.batch(range(len(held_out)))[0])
    record("corner_tokens", {"real images": real, "variants": rows}, (0, 1), f"{DATA} trained with either treatment of a block's first token")


if __name__ == "__main__":
    main()
