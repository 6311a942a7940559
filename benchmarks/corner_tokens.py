"""Which treatment of a block's first token keeps colour specks out of the corners? An experiment, not a timing.

A block of the flow leaves its first token unchanged in the paper, so the two tokens that are first in some block (top left
and bottom right) pass through half of the stack unscaled. The prior shares one mixture among the redundant channels of
all tokens and does not know which is which. This script trains the same small FARMER on colour glyphs in these ways,

    none        the first token of a block passes unchanged, as in the paper
    first       a learned constant shift and scale for each block's first token (`scale_first=True`)
    after       as `none`, then a learned affine map for every position and channel of the finished latents
    both        `first` and `after`
    after-data  as `after`, started from the data's mean and deviation at that place instead of the identity (ActNorm)
    both-data   `first` and `after-data`

and prints a table: held-out bits/dim with their standard error; deviation of z^R at the two corners and at the other
places (geometric mean over channels); spread of the samples' chroma, of corner tiles and of other tiles around the image's
mean colour, and inside corner tiles and other tiles. Specks show as a large spread inside. About two minutes for each on one core:

    OMP_NUM_THREADS=1 python benchmarks/corner_tokens.py --steps 1500 --seed 0
"""
import argparse
import tempfile
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from farmer.cli import PRESETS
from farmer.data import load_dataset
from farmer.flow import AutoregressiveFlow
from farmer.model import Farmer
from farmer.patches import LUMA_CHROMA, dequantize, patchify
from farmer.training import Trainer, evaluate_bits_per_dim

VARIANTS = {  # scale the first token; affine map after the flow; start it from data
    "none": (False, False, False),
    "first": (True, False, False),
    "after": (False, True, False),
    "both": (True, True, False),
    "after-data": (False, True, True),
    "both-data": (True, True, True),
}


class FlowWithAffine(AutoregressiveFlow):
    "A flow followed by `(z - shift) * exp(log_scale)` with parameters for every position and channel."

    def __init__(self, tokens: int, channels: int, *sizes):
        super().__init__(tokens, channels, *sizes)
        self.shift = nn.Parameter(torch.zeros(tokens, channels))
        self.log_scale = nn.Parameter(torch.zeros(tokens, channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # (B, N, d) -> (B, N, d), (B,) nats
        z, logdet = super().forward(x)
        return (z - self.shift) * self.log_scale.exp(), logdet + self.log_scale.sum()

    def inverse(self, z: Tensor) -> Tensor:  # (B, N, d) -> (B, N, d)
        return super().inverse((z * torch.exp(-self.log_scale) + self.shift).detach())


def make_model(variant: str, images: Tensor) -> Farmer:
    scale_first, affine, from_data = VARIANTS[variant]
    c = replace(PRESETS["glyphs-palette"].model, scale_first_token=scale_first)
    model = Farmer(c)
    if affine:
        state = model.flow.state_dict()
        model.flow = FlowWithAffine(
            c.tokens, c.token_channels, c.flow_width, c.flow_blocks, c.flow_layers, c.flow_width // c.head_width, scale_first, c.dropout
        )
        model.flow.load_state_dict(state, strict=False)  # the same start as without the affine map
    if from_data:
        tokens = model.basis.fit(images, c.patch_size, c.basis)(patchify(images, c.patch_size))  # a new flow is the identity
        model.flow.shift.data, model.flow.log_scale.data = tokens.mean(0), -tokens.std(0).log()
    return model


def tile_chroma(images: Tensor) -> tuple[Tensor, Tensor]:  # (B, 3, 16, 16) in [-1, 1] -> (B, 16, 2) and (B, 16)
    "Mean chroma of every 4 x 4 tile, in the data's own units of [0, 1], and the chroma's deviation inside the tile."
    chroma = torch.einsum("kc,bchw->bkhw", LUMA_CHROMA[1:].float(), images.clamp(-1, 1)) / 2
    tiles = F.pixel_unshuffle(chroma, 4).unflatten(1, (2, 16)).flatten(3)  # (B, 2, pixels, tiles)
    return tiles.mean(2).transpose(1, 2), tiles.var(2, unbiased=False).mean(1).sqrt()


def colour_spread(images: Tensor) -> list[float]:
    """How colours vary: everywhere; of corner tiles and of other tiles around the mean colour of the image's other tiles;
    and inside corner tiles and other tiles, where the data has rounding errors only."""
    mean, inside = tile_chroma(images)
    corner = torch.zeros(16, dtype=torch.bool)
    corner[[0, 15]] = True
    centre = mean[:, ~corner].mean(1, keepdim=True)
    around = (mean - centre).square().mean(2)
    root = lambda value: value.mean().sqrt().item()
    return [mean.std(dim=(0, 1)).mean().item(), root(around[:, corner]), root(around[:, ~corner]), root(inside[:, corner] ** 2), root(inside[:, ~corner] ** 2)]


@torch.no_grad()
def block_scales(model: Farmer, images: Tensor) -> str:
    "Mean log-scale of the redundant channels in every block: of its first token, of its last one, and of the others."
    tokens, words = model.basis(patchify(images, model.config.patch_size)), []
    for index, (block, state) in enumerate(zip(model.flow.blocks, model.flow.states(tokens)[0])):
        s = block.predict(state.flip(1) if index % 2 else state)[1][..., model.partition.informative :].mean(dim=(0, 2))
        words.append(f"{s[0]:.2f} {s[-1]:.2f} {s[1:-1].mean():.2f}")
    return "; ".join(words)


@torch.no_grad()
def report(model: Farmer, test, samples: int) -> tuple[list[float], Tensor, Tensor]:
    images, labels = test.batch(range(len(test)))
    generator = torch.Generator().manual_seed(1)
    redundant = model.encode(dequantize(images, test.levels, generator)).redundant
    deviation = redundant.std(0)  # (N, d_R)
    corner = deviation[[0, -1]].log().mean().exp().item()
    rest = deviation[1:-1].log().mean().exp().item()
    bits = evaluate_bits_per_dim(model, test, len(test), draws=2)
    drawn = model.sample(torch.arange(samples) % 10, generator)
    return [bits.mean().item(), bits.std().item() / len(bits) ** 0.5, corner, rest, *colour_spread(drawn)], deviation, drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--save", help="folder for the trained weights and samples")
    arguments = parser.parse_args()
    train, test = (load_dataset("glyphs-palette", split) for split in ("train", "test"))
    config = replace(PRESETS["glyphs-palette"].training, steps=arguments.steps, seed=arguments.seed, evaluate_every=10**9, save_every=10**9)
    print("variant    | bits/dim  s.e. | z^R corner  rest | chroma  corner  rest  in corner  in rest", flush=True)
    real = colour_spread(test.batch(range(len(test)))[0])
    print(f"{'real':10s} | {'':14s} | {'':16s} | " + "  ".join(f"{value:.3f}" for value in real), flush=True)
    noisy = dequantize(train.batch(range(4096))[0], train.levels, torch.Generator().manual_seed(0))
    for variant in arguments.variants:
        torch.manual_seed(arguments.seed)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(make_model(variant, noisy), train, test, config, folder, "cpu")
            trainer.train()
        row, deviation, drawn = report(trainer.average.module.eval(), test, arguments.samples)
        print(f"{variant:10s} | {row[0]:.4f}  {row[1]:.4f} | {row[2]:.3f}  {row[3]:.3f} | " + "  ".join(f"{value:.3f}" for value in row[4:]), flush=True)
        print(f"{'':10s}   log-scale of first, last, other tokens in each block: {block_scales(trainer.average.module, noisy[:1000])}", flush=True)
        if arguments.save:
            torch.save({"row": row, "deviation": deviation, "samples": drawn, "model": trainer.average.module.state_dict()},
                       f"{arguments.save}/{variant}-{arguments.seed}-{arguments.steps}.pt")


if __name__ == "__main__":
    main()
