"""Grids of images: shown in a notebook, written to a file, or on a page of the explorer."""
import base64
import html
import io
import math
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
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


def picture_format(path: Path) -> str | None:
    "The format in which Pillow would write a picture to the path, by its suffix; None if there is none."
    name = Image.registered_extensions().get(path.suffix.lower())
    return name if name in Image.SAVE else None


def _with_row_titles(page: Image.Image, titles: Sequence[object], rows: int) -> Image.Image:
    "A page with a text left of every row."
    font, texts = ImageFont.load_default(), [str(title) if len(str(title)) <= 30 else f"{str(title)[:29]}…" for title in titles]
    left = 8 + round(max(font.getlength(text) for text in texts))
    canvas = Image.new("RGB", (left + page.width, page.height), "white")
    canvas.paste(page, (left, 0))
    for row, text in enumerate(texts):
        place = left - 4 - font.getlength(text), (row + 0.5) * page.height / rows - font.getbbox(text)[3] / 2
        ImageDraw.Draw(canvas).text(place, text, "black", font)
    return canvas


def save_images(
    images: Tensor,  # (B, C, H, W) in [-1, 1]
    path: Path,  # its suffix decides the format
    columns: int,  # images in a row
    width: int | None = None,  # of an image in screen pixels, as in `image_grid`
    row_titles: Sequence[object] = (),  # a text left of every row
) -> None:
    "Write a grid of images to a file, whole or not at all. Raises ValueError for a suffix that stands for no format."
    grid = F.pad(image_grid(images, columns, width, ground=0.5), (0, 0, 0, 1, 0, 1), value=0.5)
    page, content = Image.fromarray(grid.mul(255).round().byte().numpy()), io.BytesIO()
    if row_titles:
        page = _with_row_titles(page, row_titles, math.ceil(len(images) / columns))
    try:
        page.save(content, picture_format(path))
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{path} has no suffix of a picture format that can be written; use .png") from None
    replace_files({path: content.getvalue()})


def to_uint8(images: Tensor) -> np.ndarray:  # (B, C, H, W) in [-1, 1] -> (B, H, W, C) uint8, 0 to 255
    "Images as other libraries want them; values outside [-1, 1] are clipped."
    return images.detach().cpu().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def to_pil(images: Tensor) -> list[Image.Image]:  # (B, 1 or 3, H, W) in [-1, 1]
    "Images as 8-bit pictures of Pillow, grey or RGB; values outside [-1, 1] are clipped. Raises ValueError for what cannot be shown."
    check_shown(images)
    return [Image.fromarray(values.squeeze(2) if values.shape[2] == 1 else values) for values in to_uint8(images)]


def save_files(images: Tensor, paths: Sequence[Path]) -> None:  # (B, 1 or 3, H, W) in [-1, 1]
    "Write each image to a PNG file of its own, each whole or not at all."
    contents = {}
    for picture, path in zip(to_pil(images), paths):
        picture.save(content := io.BytesIO(), "PNG")
        contents[path] = content.getvalue()
    places = list(contents.items())
    for first in range(0, len(places), 100):  # so many are open at once
        replace_files(dict(places[first : first + 100]))


def save_archive(batches: Iterable[Tensor], labels: Tensor, image_shape: Sequence[int], path: Path) -> None:  # (b, 1 or 3, H, W) each, (n,)
    "Write images, batch after batch, in ADM's layout: arr_0 (n, H, W, 3) uint8, grey as three equal channels, and arr_1, their labels."
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels), *image_shape[1:], 3)}

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(entry, header)
                for images in batches:
                    entry.write(to_uint8(images.expand(-1, 3, -1, -1)).data)
            with archive.open("arr_1.npy", "w") as entry:
                np.lib.format.write_array(entry, labels.numpy())

    replace_files({path: write})


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


# --- On a page, whose style is `page/explorer.css`

GREY = (128, 128, 128)


class Picture(bytes):
    "A PNG file, and in `html` the same for a page: image by image, so that they wrap, with texts for those who see them and those who do not."

    html: str

    def __new__(cls, file: bytes, page: str):
        picture = super().__new__(cls, file)
        picture.html = page
        return picture


def written(text: str) -> str:  # HTML
    "A text for a page, with z^I and z^R as one writes them."
    return re.sub(r"z\^([IR])", r"z<sup>\1</sup>", html.escape(text))


def image_tag(file: bytes, text: str, kind: str = "") -> str:
    "An image in HTML, with a text for those who do not see it."
    return f'<img alt="{html.escape(text)}" class="{kind}" decoding="sync" src="data:image/png;base64,{base64.b64encode(file).decode()}">'


def png_file(page: Image.Image) -> bytes:
    "The content of a PNG file."
    file = io.BytesIO()
    page.save(file, "PNG", compress_level=1)  # quick rather than small: panels redraw while a slider moves
    return file.getvalue()


def picture_grid(
    images: Tensor,  # (B, C, H, W) in [-1, 1], C = 1 or 3; values outside are clipped
    columns: int = 10,
    titles: Sequence[str] = (),  # a short text above every image
    row_titles: Sequence[str] = (),  # a line above every row
    width: int = 64,  # of an image in the file's pixels, rounded to a whole enlargement; on a wide page twice as much
    scale: str = "",  # of the colours: `legend`
) -> Picture:
    "A grid of images. The file is transparent between them, with grey text: it suits light and dark pages."
    font, line, columns = ImageFont.load_default(15), 20, min(columns, len(images))
    margin = line * (bool(titles) + bool(row_titles)) + 4, 4
    grid = image_grid(images, columns, width, margin, ground=math.nan)  # between the images, where it becomes transparent
    cells = Image.fromarray(torch.cat([grid.nan_to_num(0.5), ~grid[..., :1].isnan()], dim=2).mul(255).round().byte().numpy())
    page = Image.new("RGBA", (max(cells.width, *(math.ceil(font.getlength(title)) for title in ("", *row_titles))), cells.height), (*GREY, 0))
    page.paste(cells)
    pen, across, down = ImageDraw.Draw(page), cells.width // columns, cells.height // math.ceil(len(images) / columns)
    for index, title in enumerate(titles[: len(images)]):
        pen.text((index % columns * across + across / 2 + 2, index // columns * down + margin[0] - 6), title, GREY, font, anchor="ms")
    for row, title in enumerate(row_titles):
        pen.text((0, row * down + line - 2), title, GREY, font, anchor="ls")
    return Picture(png_file(page), _picture_page(images, columns, titles, row_titles, 2 * width) + scale)


def _picture_page(images: Tensor, columns: int, titles: Sequence[str], row_titles: Sequence[str], width: int) -> str:  # HTML
    "The images of `picture_grid` on a page: each by itself, in its own size, enlarged there."
    tiles = image_grid(images, 1, None, (0, 0)).unflatten(0, (len(images), -1)).mul(255).round().byte().numpy()  # (B, H, W, 3)
    text, kind = "", "explorer-sharp" if width > 2 * images.shape[3] else ""
    for row, name in enumerate(row_titles or ("",)):
        figures = []
        for index in range(row * columns, min((row + 1) * columns, len(tiles))) if row_titles else range(len(tiles)):
            title = titles[index] if index < len(titles) else ""
            caption, alt = f"<figcaption>{written(title)}</figcaption>" if titles else "", title or f"{name or 'image'}, {index - row * columns + 1}"
            figures.append(f"<figure>{caption}{image_tag(png_file(Image.fromarray(tiles[index])), alt, kind)}</figure>")
        heading = f"<h2>{written(name)}</h2>" if name else ""
        text += f'{heading}<div class="explorer-grid" style="--columns: {columns}; --side: {width}px">{"".join(figures)}</div>'
    return text


def heat_map(
    values: Tensor,  # (B, h, w)
    most: float,  # the value at the end of the colour scale
    signed: bool = False,  # from -most (purple) by way of 0 (white) to most (orange); otherwise from 0 (blue) to most (yellow)
) -> Tensor:  # (B, 3, H, W) in [-1, 1]
    "Numbers as colours that colour-blind readers can tell apart."
    colours = import_optional("matplotlib", "matplotlib").colormaps["PuOr_r" if signed else "cividis"]
    position = (values / most + 1) / 2 if signed else values / most
    return torch.from_numpy(colours(position.detach().clamp(0, 1).numpy())[..., :3]).float().mul(2).sub(1).movedim(-1, 1)


def legend(low: str, high: str, signed: bool = False) -> str:  # HTML
    "The colour scale of `heat_map` between the texts of its ends."
    colours = heat_map(torch.linspace(-1 if signed else 0, 1, 9).reshape(1, 1, 9), 1.0, signed)[0, :, 0].T.add(1).mul(127.5).round().int().tolist()
    scale = ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colours)
    return f'<div class="explorer-legend">{low} <span class="explorer-scale" style="background: linear-gradient(to right, {scale})"></span> {high}</div>'
