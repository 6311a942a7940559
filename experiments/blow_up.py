"""Where samples run away: looked for in a trained flow, block by block. `python experiments/photographs.py blow-up` runs it.

A token of the flow is undone by x = mu + exp(-s) z, where mu and s follow from the tokens before. Three suspects: scales so large
that a slightly wrong latent explodes (singular values of the Jacobian), scales beyond what real images show (ranges of s), or
feedback: a token with too much contrast makes the next one's exp(-s) larger, and so on (what remains when every block takes mu
and s from the real image's tokens, whatever was undone before).
"""
import torch
from measuring import judge_of, judged, out_of_range
from torch import Tensor
from torch.nn import functional as F

from farmer.analysis import redraw_redundant
from farmer.files import spread
from farmer.model import Farmer
from farmer.patches import dequantize

VARIANCES = (1, 2, 4)  # of the shared mixture, times

# Letters used for shapes:
# B batch, N tokens, d channels of a token


def singular_values(model: Farmer, tokens: Tensor) -> Tensor:  # (N, d) -> (N d,), ascending
    "Of the Jacobian of the flow, in float64, one row at a time."
    model, tokens = model.double(), tokens.double().requires_grad_()
    with torch.enable_grad():
        rows = [torch.autograd.grad(value, tokens, retain_graph=True)[0].flatten() for value in model.flow(tokens[None])[0].flatten()]
    return torch.linalg.svdvals(torch.stack(rows)).flip(0)


def undo_inside(model: Farmer, z: Tensor) -> Tensor:  # (B, N, d) -> images (B, C, H, W)
    "The exact inverse, but each token of the first block is brought back into the cube of pixels, [-1, 1], before later ones read it."
    for block in reversed(model.flow.blocks[1:]):
        z = block.inverse(z)
    block, tokens = model.flow.blocks[0], []
    cache, position = block.transformer.new_cache(*z.shape[:2]), block.position + block.input.bias
    read = (block.start + block.position[0]).expand(len(z), -1)
    for place, latent in enumerate(z.unbind(1)):
        shift, log_scale = block.shift_and_log_scale(block.transformer.step(read, cache)).chunk(2, dim=-1)
        pixels = model.basis.inverse(torch.addcmul(shift, latent, torch.exp(-log_scale))[:, None])
        tokens.append(model.basis(pixels.clamp(-1, 1))[:, 0])
        read = position[min(place + 1, z.shape[1] - 1)] + F.linear(tokens[-1], block.input.weight)
    return model.images_of(torch.stack(tokens, dim=1))


def sample_figures(model: Farmer, data: str, count: int = 2000) -> dict[str, dict[str, float]]:
    "Of the same unguided latents, undone exactly and inside the cube."
    labels = torch.arange(count) % model.config.num_classes
    latents = model.sample_latents(labels, generator=torch.Generator().manual_seed(0))
    ways = {"exact": model.decode(latents), "inside": undo_inside(model, model.partition.join(latents.informative, latents.redundant))}
    return {name: {"out of range": out_of_range(images), **judged(data, images, labels)} for name, images in ways.items()}


@torch.no_grad()
def blow_up(model: Farmer, data: str, count: int = 500) -> dict:
    "See the top of the file."
    held_out = judge_of(data).held_out
    images, labels = held_out.batch(spread(count, len(held_out)))
    images = dequantize(images, held_out.levels, torch.Generator().manual_seed(1))
    latents, stages, scales = model.encode(images), [model.tokens_of(images)], []
    for block in model.flow.blocks:
        z, log_scale = block(stages[-1])
        stages.append(z)
        scales.append(log_scale)
    result = {
        "log-scales of real images, smallest of each block": [scale.min().item() for scale in scales],
        "log-scales of real images, largest of each block": [scale.max().item() for scale in scales],
    }
    rows = {}
    for variance in VARIANCES:
        drawn = redraw_redundant(model, latents, labels, variance, torch.Generator().manual_seed(0))
        z = model.partition.join(drawn.informative, drawn.redundant)
        free, distances, beyond = z, [], []
        for block, real, scale in zip(reversed(model.flow.blocks), reversed(stages[:-1]), reversed(scales)):
            shift, log_scale = block.predict(real)
            z, free = block.inverse(z), torch.addcmul(shift, free, torch.exp(-log_scale))
            distances.append([(tokens - real).square().mean().sqrt().item() for tokens in (z, free)])
            beyond.append((block.predict(z)[1] < scale.amin((0, 1)) - 0.1).double().mean().item())
        rows[f"variance x {variance}"] = {
            "out of range": out_of_range(model.images_of(z)),
            "out of range without feedback": out_of_range(model.images_of(free)),
            "distance to the real tokens after each block, from the last": [each[0] for each in distances],
            "the same without feedback": [each[1] for each in distances],
            "share of log-scales below those of real images, after each block": beyond,
        }
    values = singular_values(model, stages[0][0])
    result["singular values of the Jacobian at one image: smallest, median, largest"] = [values[place].item() for place in (0, len(values) // 2, -1)]
    return {"where": result | rows, "samples": sample_figures(model, data)}
