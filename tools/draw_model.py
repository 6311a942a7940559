"""Draw the data flow of a FARMER, with real numbers of the embedded glyphs model: `python tools/draw_model.py model.png`."""
import argparse
import io
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from torch import Tensor

from farmer import Farmer, load_dataset
from farmer.mixture import GaussianMixture
from farmer.patches import dequantize, patchify

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#00795A", "0.35"  # informative, redundant, log-determinant, the rest
TINTS = {colour: LinearSegmentedColormap.from_list(colour, ["white", colour, "black"]) for colour in (BLUE, ORANGE)}
WIDTH, HEIGHT = 120, 62  # of the drawing; the unit is a tenth of an inch, y runs upwards
SIDE = 12  # of an image and of a matrix
UPPER, LOWER = 32, 7  # lower edges of the two lanes
FLOW, PRIOR = (49.5, 29), (96, 22.5)  # left edge and width of the two networks


@dataclass(frozen=True)
class Lane:
    "An image on its way between pixels and latents. N tokens of d = d_I + d_R channels, n blocks."

    image: Tensor
    "(1, C, H, W)"
    tokens: Tensor
    "(N, d), before the flow"
    states: list[Tensor]
    "the tokens after each block but the last, seen as images: n - 1 times (1, C, H, W)"
    informative: Tensor
    "(1, N, d_I)"
    redundant: Tensor
    "(1, N, d_R)"


def follow(model: Farmer, image: Tensor) -> Lane:
    "All that the model makes of an image (1, C, H, W)."
    states = [model.tokens_of(image)]
    for block in model.flow.blocks:
        states.append(block(states[-1])[0])
    return Lane(image, states[0][0], [model.images_of(state) for state in states[1:-1]], *model.partition.split(states[-1]))


class Canvas:
    "A figure to place things on by their coordinates."

    def __init__(self):
        self.figure = Figure(figsize=(WIDTH / 10, HEIGHT / 10), dpi=160, facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
        self.axes.axis("off")

    def inset(self, x: float, y: float, width: float, height: float, colour: str = "0.3", **style) -> Axes:
        "Axes with their lower left corner at (x, y)."
        axes = self.figure.add_axes((x / WIDTH, y / HEIGHT, width / WIDTH, height / HEIGHT), xticks=[], yticks=[], **style)
        axes.spines[:].set(color=colour, linewidth=1.4)
        return axes

    def matrix(self, values: Tensor, x: float, y: float, width: float, height: float, colour: str = "0.3", cmap: object = "gray", limit: float = 1) -> None:
        axes = self.inset(x, y, width, height, colour)
        axes.imshow(values, cmap=cmap, aspect="auto", interpolation="nearest", vmin=-limit, vmax=limit)

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str = "0.25", width: float = 1.6) -> None:
        style = {"arrowstyle": "-|>,head_width=0.32,head_length=0.6", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
        self.axes.annotate("", end, start, arrowprops=style)

    def words(self, x: float, y: float, text: object, size: float = 10, **style) -> None:
        self.axes.text(x, y, text, fontsize=size, **{"ha": "center", "va": "baseline", "linespacing": 1.3, **style})

    def box(self, x: float, width: float, name: str) -> None:
        "A network, through which both lanes run."
        corners = {"boxstyle": "round,pad=0,rounding_size=1.2", "facecolor": "#f4f5f7", "edgecolor": "0.55", "linewidth": 1.2}
        self.axes.add_patch(FancyBboxPatch((x, 1.5), width, 52, **corners))
        self.words(x + width / 2, 50.7, name, 12, weight="bold")


def block_places(model: Farmer) -> list[float]:
    "Where the blocks of the flow stand, evenly spread over its box."
    left, width = FLOW
    return torch.linspace(left + 2, left + width - 2, len(model.flow.blocks)).tolist()


def draw_lane(canvas: Canvas, model: Farmer, lane: Lane, y: float, forward: bool) -> None:
    "Image, patches, tokens, what the blocks of the flow make of them, latents."
    canvas.matrix(lane.image[0, 0], 2, y, SIDE, SIDE)
    size = model.config.patch_size
    columns = model.config.image_shape[2] // size
    step = (SIDE + 0.4) / columns  # with the gap between patches
    for index, patch in enumerate(patchify(lane.image, size)[0].unflatten(1, (-1, size, size))[:, 0]):
        canvas.matrix(patch, 19 + step * (index % columns), y + SIDE + 0.4 - step * (index // columns + 1), step - 0.4, step - 0.4, "0.7")
    canvas.matrix(lane.tokens, 37, y, 7.5, SIDE, limit=3)
    for block, x in zip(model.flow.blocks, block_places(model)):
        top, bottom = (x, y + SIDE), (x, y)
        canvas.arrow(*((bottom, top) if block.reverse else (top, bottom)), GREEN, 2)
    for state, (x, following) in zip(lane.states, itertools.pairwise(block_places(model))):
        side = following - x - 1.6
        canvas.matrix(state[0, 0], x + 0.8, y + (SIDE - side) / 2, side, side, "0.6", limit=2)
    canvas.matrix(lane.informative[0], 83.5, y, 5.6, SIDE, BLUE, TINTS[BLUE], 2.5)
    canvas.matrix(lane.redundant[0], 89.5, y, 3.4, SIDE, ORANGE, TINTS[ORANGE], 2.5)
    for start, end in ((14.7, 18.3), (31.6, 36.3), (45.2, 49.2), (78.8, 82.9), (93.4, 95.8)):
        canvas.arrow(*(((start, y + 6), (end, y + 6)) if forward else ((end, y + 6), (start, y + 6))))


def draw_density(canvas: Canvas, place: tuple[float, float, float, float], mixture: GaussianMixture, values: Tensor, colour: str) -> None:
    "The density of the first channel of one mixture, batch shape (1,), and where the values (n,) lie on it."
    x = torch.linspace(-3, 3, 200)
    density = mixture.channels([0]).log_prob(x[:, None, None])[:, 0].exp()
    axes = canvas.inset(*place, xlim=(-3, 3), ylim=(0, 1.1 * density.max()), facecolor="none")
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.fill_between(x, density, color=colour, alpha=0.35, linewidth=0)
    axes.plot(values, torch.zeros(len(values)), "|", color=colour, markersize=10, markeredgewidth=1.6, clip_on=False)


def draw_prior(canvas: Canvas, model: Farmer, lane: Lane, label: Tensor) -> None:
    "What the prior expects of some informative tokens, and of all redundant ones."
    left, width = PRIOR
    own, shared = model.prior.mixtures(lane.informative, label)
    for column, token in enumerate((2, 5, 10)):
        draw_density(canvas, (left + 1.4 + 6.8 * column, 41.3, 6, 3.4), own[:, token], lane.informative[0, token : token + 1, 0], BLUE)
        canvas.words(left + 4.4 + 6.8 * column, 39, f"token {token + 1}", 8.5, color=BLUE)
    draw_density(canvas, (left + 3, 30.8, width - 6, 3.4), shared[:, 0], lane.redundant[0, :, 0], ORANGE)
    canvas.words(left + width / 2, 46, "each token of $z^I$ has its\nown mixture of Gaussians", color=BLUE)
    canvas.words(left + width / 2, 35.4, "all of $z^R$ share one", color=ORANGE)


def draw_words(canvas: Canvas, model: Farmer, label: int, nats: list[float]) -> None:
    "Titles, names, shapes, and what happens at each arrow."
    config, (left, width) = model.config, FLOW
    shape, matrix = "{} x {} x {}".format(*config.image_shape), f"{config.tokens} x {config.token_channels}"
    patches = f"{config.tokens} of {config.patch_size} x {config.patch_size}"
    for x, name, size in ((8, "image", shape), (25, "patches", patches), (40.75, "tokens", matrix), (88.2, "latents", matrix)):
        canvas.words(x, 50.3, name, 11.5, weight="bold")
        canvas.words(x, 47.9, size, 9.5, color=GREY)
    for y in (UPPER + SIDE + 1, LOWER + SIDE + 1):
        canvas.words(86.3, y, "$z^I$", 12, color=BLUE)
        canvas.words(91.2, y, "$z^R$", 12, color=ORANGE)
    for x, down, up in ((16.5, "cut", "join"), (34, "rotate", "rotate\nback")):
        canvas.words(x, UPPER + 7, down)
        canvas.words(x, LOWER + 7.2, up)
    for block, x in enumerate(block_places(model), start=1):
        canvas.words(x, UPPER + SIDE + 1, block, color=GREEN, weight="bold")
    canvas.words(left + width / 2, 47, "invertible blocks; the arrow is the\norder in which each reads the tokens", 9.5, color=GREY)
    canvas.words(left + width / 2, UPPER - 3, "all tokens at once")
    canvas.words(left + width / 2, LOWER - 3.2, "token by token; or at once, by a student", 9.5)
    left, width = PRIOR
    canvas.words(left + width / 2, LOWER + 3.3, "draw $z^I$ token by token,\nguided if you like,\nthen all of $z^R$ at once")
    canvas.arrow((left + width / 2, 57.4), (left + width / 2, 53.8))
    canvas.words(left + width / 2, 58.6, f"class label {label}", 11.5)
    canvas.words(2, 58.6, "Likelihood", 14, weight="bold", ha="left")
    canvas.words(2, LOWER + SIDE + 4.2, "Sampling", 14, weight="bold", ha="left")
    canvas.words(14, LOWER + SIDE + 4.2, "undoes every step, from the last to the first", 10, color=GREY, ha="left")
    terms = [f"{value:+.1f}".replace("-", "\N{MINUS SIGN}") + f" {name}" for value, name in zip(nats, ("informative", "redundant", "log-determinant"))]
    for x, text, colour in ((18.5, f"log p  =  {sum(nats):.1f} nats  =", "black"), *zip((38, 54.5, 71), terms, (BLUE, ORANGE, GREEN))):
        canvas.words(x, 58.6, text, 11.5, color=colour, ha="left")


@torch.no_grad()
def draw(name: str = "glyphs", index: int = 13, seed: int = 4) -> Figure:
    "The likelihood of a held-out image of an embedded grey model, and a sample of its class."
    model, generator = Farmer.from_pretrained(name), torch.Generator().manual_seed(seed)
    image, label = load_dataset(name, "test").batch([index])
    read = follow(model, dequantize(image, model.config.levels, generator))
    parts = model(read.image, label)
    nats = [parts.informative.sum().item(), parts.redundant.sum().item(), parts.logdet.item()]
    assert math.isclose(sum(nats), parts.total.item(), rel_tol=1e-4)
    canvas = Canvas()
    for (left, width), title in ((FLOW, "autoregressive flow"), (PRIOR, "autoregressive prior")):
        canvas.box(left, width, title)
    draw_lane(canvas, model, read, UPPER, forward=True)
    draw_lane(canvas, model, follow(model, model.sample(label, generator=generator)), LOWER, forward=False)
    draw_prior(canvas, model, read, label)
    draw_words(canvas, model, label.item(), nats)
    return canvas.figure


def as_png(figure: Figure, colours: int | None = 128) -> bytes:
    "In few colours: a third of the bytes. With None, for photographs, in 64 shades each of red, green and blue: two thirds."
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn)
    picture = Image.open(drawn).convert("RGB")
    if colours is None:
        picture = picture.point([round(value / 255 * 63) * 255 // 63 for value in range(256)] * 3)
    else:
        picture = picture.quantize(colours, kmeans=4, dither=Image.Dither.NONE)
    picture.save(small, "PNG", optimize=True)
    return small.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="of the picture, a .png")
    parser.parse_args().path.write_bytes(as_png(draw()))


if __name__ == "__main__":
    main()
