"Drawn digits: that they are the same everywhere and always, show what they should, and need the fonts they need."
import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import assert_reads_alike, complaint
from matplotlib.ft2font import FT2Font
from PIL import Image

from farmer import glyphs
from farmer.data import load_dataset

GLYPHS = ("glyphs", "glyphs-field", "glyphs-palette")


@pytest.mark.parametrize("name, shape, levels", [("glyphs", (1, 16, 16), 16), ("glyphs-field", (3, 16, 16), 32), ("glyphs-palette", (3, 16, 16), 32)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_contract(name, shape, levels, split, monkeypatch):
    if split == "train":  # rendering all of them is the notebook's job
        values = np.stack([glyphs.glyph_item(name, split, i) for i in range(20)])
        monkeypatch.setattr(glyphs, "_glyph_values", lambda name, split: torch.from_numpy(values))
    dataset = load_dataset(name, split)
    assert len(dataset) == {"train": 20, "test": 2_000}[split]
    assert dataset.image_shape == shape and dataset.levels == levels and dataset.num_classes == 10
    assert dataset.class_names == list("0123456789") and set(dataset.labels.tolist()) == set(range(10))
    assert_reads_alike(dataset)


def test_glyphs_are_the_same_in_another_process():
    program = (
        "import hashlib, numpy as np; from farmer.glyphs import glyph_item\n"
        f"items = [glyph_item(n, s, i) for n in {GLYPHS} for s in ('test', 'train') for i in (5, 1999, 0)]\n"
        "print(hashlib.sha256(b''.join(i.tobytes() for i in items)).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    items = {(n, s, i): glyphs.glyph_item(n, s, i) for i in (1999, 0, 5) for s in ("train", "test") for n in GLYPHS}
    here = b"".join(items[n, s, i].tobytes() for n in GLYPHS for s in ("test", "train") for i in (5, 1999, 0))
    assert hashlib.sha256(here).hexdigest() == other


@pytest.mark.parametrize("name", GLYPHS)
def test_glyph_items(name):
    dataset = load_dataset(name, "test")
    assert torch.equal(dataset.labels, torch.arange(2000) % 10)
    for i in (0, 17, 1999):
        assert np.array_equal(dataset.values[i].numpy(), glyphs.glyph_item(name, "test", i))
        assert not np.array_equal(dataset.values[i].numpy(), glyphs.glyph_item(name, "train", i))


def test_colour_glyphs_show_the_grey_glyph():
    grey = load_dataset("glyphs", "test").batch(range(500))[0]
    for name in GLYPHS[1:]:
        luma = load_dataset(name, "test").batch(range(500))[0].mean(1, keepdim=True)
        expected = 2 * (0.3 + 0.4 * (grey + 1) / 2) - 1
        difference = (luma - expected).abs()
        assert difference.mean() < 0.02 and difference.quantile(0.98) < 0.06  # rounding to levels; rarely, clipping


def test_chroma_has_the_stated_size():
    generator = np.random.default_rng(0)
    field = np.stack([glyphs._field_chroma(generator) for _ in range(500)])
    palette = np.stack([glyphs._palette_chroma(generator) for _ in range(500)])
    assert abs(field).max() <= 0.36 and 0.08 < field.std() < 0.16 and abs(field.mean()) < 0.01
    tiles = palette.reshape(500, 2, 4, 4, 4, 4)
    assert (np.ptp(tiles, axis=(3, 5)) == 0).all()
    assert abs(np.hypot(*palette.mean((2, 3)).T).mean() - 0.22) < 0.01
    assert abs(palette.std((2, 3)).mean() - 0.07) < 0.01


def test_fonts_are_those_that_draw_digits():
    "The rule of the notebook's first exercise: every digit listed, and nine of ten most similar to the same digit of another font."
    tables = {path: FT2Font(str(path)).get_charmap() for path in sorted(glyphs._font_folder().glob("*.ttf"))}
    listed = [path for path, table in tables.items() if all(ord(c) in table for c in "0123456789")]
    stencils = [[glyphs._stencil(path, c).resize((16, 24), Image.Resampling.BOX) for c in "0123456789"] for path in listed]
    shapes = np.array([[np.asarray(stencil, float).ravel() for stencil in row] for row in stencils])
    shapes -= shapes.mean(-1, keepdims=True)
    shapes /= np.linalg.norm(shapes, axis=-1, keepdims=True)
    correlation = np.einsum("fdp,gep->fgde", shapes, shapes)
    correlation[np.arange(len(listed)), np.arange(len(listed))] = -1
    recognised = (correlation.max(1).argmax(-1) == np.arange(10)).sum(1)
    assert {path.stem for path, count in zip(listed, recognised) if count >= 9} == set(glyphs._FONTS)


def test_a_missing_font_is_named(tmp_path):
    complaint(FileNotFoundError, lambda: glyphs._stencil(tmp_path / "nothing.ttf", "1"), "nothing.ttf", "reinstall matplotlib")


def test_fonts_come_with_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    complaint(ImportError, glyphs._font_folder, "pip install matplotlib", "notebooks")
