"""Grids of images: shown in a notebook, or written to a file."""
import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .checks import check_number, check_shown
from .files import import_optional, replace_files


def image_grid(
    images: Tensor,  # (B, C, H, W) in [-1, 1], C = 1 (grey) or 3 (RGB); values outside are clipped
    columns: int,  # images in a row
    width: int | None = None,  # of an image in screen pixels, reached by a whole enlargement or by smooth shrinking; None: as it is
    margin: tuple[int, int] = (1, 1),  # screen pixels above and left of every image
    ground: float = 1.0,  # grey between the images, from 0 (black) to 1 (white)
) -> Tensor:  # (height, width, 3) in [0, 1]
    "Lay images out in rows. Raises ValueError for images that cannot be shown."
    check_shown(images)
    check_number("columns", columns, "[1, inf)", whole=True)
    images = images.detach().cpu().float().clamp(-1, 1).add(1).div(2).expand(-1, 3, -1, -1)
    factor = 1 if width is None else width / images.shape[-1]
    if factor >= 1:
        images = images.repeat_interleave(round(factor), 2).repeat_interleave(round(factor), 3)
    else:
        images = F.interpolate(images, scale_factor=factor, mode="bilinear", antialias=True).clamp(0, 1)
    images = F.pad(images, (margin[1], 0, margin[0], 0), value=ground)
    images = torch.cat([images, images.new_full((-len(images) % columns, *images.shape[1:]), ground)])
    rows = images.unflatten(0, (-1, columns))  # (rows, columns, 3, height, width)
    return rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)


def save_images(images: Tensor, path: Path, columns: int) -> None:  # (B, C, H, W) in [-1, 1]
    "Write a grid of images to a file, whole or not at all; the suffix of the path decides the format."
    grid = F.pad(image_grid(images, columns, ground=0.5), (0, 0, 0, 1, 0, 1), value=0.5)
    page, content = Image.fromarray(grid.mul(255).round().byte().numpy()), io.BytesIO()
    try:
        page.save(content, Image.registered_extensions()[path.suffix.lower()])
    except (KeyError, OSError):
        raise ValueError(f"{path} has no suffix of a picture format that can be written; use .png") from None
    replace_files({path: content.getvalue()})


def show_images(
    images: Tensor,  # (B, C, H, W) in [-1, 1], C = 1 (grey) or 3 (RGB); values outside are clipped
    columns: int = 10,  # images in a row
    titles: Sequence[object] | None = None,  # a short text above every image
    row_titles: Sequence[object] | None = None,  # a text left of every row
    scale: float = 0.6,  # width of an image in inches, rounded so that pixels stay squares
) -> None:
    "Draw a grid of images with matplotlib; add a heading with `plt.title`. In a script, call `plt.show()` afterwards."
    pyplot, dots = import_optional("matplotlib.pyplot", "matplotlib"), 100
    columns, margin = min(columns, len(images)), (15 if titles is not None else 3, 3)
    grid = image_grid(images, columns, max(1, round(scale * dots)), margin)
    height, width = grid.shape[:2]
    axes = pyplot.figure(figsize=(width / dots, height / dots), dpi=dots).add_axes((0, 0, 1, 1))
    axes.imshow(grid.numpy(), interpolation="nearest")
    axes.axis("off")
    row_height, column_width = height / math.ceil(len(images) / columns), width / columns
    for index, title in enumerate(titles if titles is not None else ()):
        x = (index % columns + 0.5) * column_width + margin[1] / 2
        axes.text(x, index // columns * row_height + margin[0] - 3, title, fontsize=7, ha="center")
    for row, title in enumerate(row_titles if row_titles is not None else ()):
        axes.text(-4, (row + 0.5) * row_height + margin[0] / 2, title, fontsize=8, ha="right", va="center")
