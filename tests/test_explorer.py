"The explorer: its pictures pixel by pixel, its panels and page without a browser."
import base64
import io
import math
import re
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from types import SimpleNamespace
from unittest import mock

import ipywidgets
import matplotlib
import numpy as np
import pytest
import torch
import traitlets
from helpers import complaint, encoded, images_for, library, png, seeded, small, small_with_latents
from PIL import Image
from torch.testing import assert_close

import farmer
from farmer import Farmer, explorer
from farmer.analysis import DEFAULT_MODEL, channel_reach, open_picture, predict_token, read_picture, redraw_redundant
from farmer.data import ArrayDataset, load_dataset, to_levels
from farmer.explorer import (
    PANELS, Basis, Bits, Mixture, Panel, Recolour, Subject, Swap, Traverse, Variance, YourImage, _bar_picture, _over_image, _page_file, _titles, explore,
)  # fmt: skip
from farmer.files import import_optional
from farmer.glyphs import glyph_item
from farmer.model import Latents
from farmer.patches import patchify
from farmer.plots import heat_map, legend, picture_grid
from farmer.pretrained import embedded_models


# --- Pictures


def pixels(file: bytes) -> np.ndarray:  # (H, W, 4)
    with Image.open(io.BytesIO(file)) as page:
        assert page.format == "PNG"
        return np.array(page.convert("RGBA"))


def cell(file: bytes, column: int, row: int = 0, *, side: int, above: int) -> np.ndarray:  # (side, side, 3) whole numbers
    "One of the square images of a picture."
    x, y = column * (side + 4) + 4, row * (above + side + 4) + above + 4
    return pixels(file)[y : y + side, x : x + side, :3].astype(int)


@pytest.mark.parametrize("titles, row_titles, above", [((), (), 0), (("a", "b"), (), 20), ((), ("row",), 20), (("a",), ("row", "row"), 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_a_grid_of_whole_enlargements(channels, titles, row_titles, above):
    images = torch.rand(7, channels, 8, 8, generator=seeded()) * 2.4 - 1.2  # clipped beyond 1
    found = pixels(picture_grid(images, 3, titles, row_titles, width=27))  # 3 screen pixels for each: 24
    assert found.shape == (3 * (above + 24 + 4), 3 * (24 + 4), 4)
    opaque = np.zeros(found.shape[:2], bool)
    for index, image in enumerate(images):
        x, y = index % 3 * 28 + 4, index // 3 * (above + 28) + above + 4
        expected = to_levels(image.expand(3, -1, -1).repeat_interleave(3, 1).repeat_interleave(3, 2), 256).permute(1, 2, 0)
        assert np.array_equal(found[y : y + 24, x : x + 24, :3], expected.numpy())
        opaque[y : y + 24, x : x + 24] = True
    assert (found[opaque][:, 3] == 255).all()
    written = found[~opaque][:, 3]
    assert (written == 0).mean() > 0.5 and written.any() == bool(titles or row_titles)


def test_sizes_of_pictures():
    image = torch.zeros(2, 1, 8, 8)
    assert pixels(picture_grid(image)).shape == (68, 2 * 68, 4)  # fewer than the columns
    assert pixels(picture_grid(image[:1], width=8)).shape == (12, 12, 4)
    assert pixels(picture_grid(torch.zeros(1, 3, 100, 100))).shape == (68, 68, 4)  # shrunk
    assert pixels(picture_grid(torch.zeros(1, 1, 8, 16))).shape == (36, 68, 4)
    assert pixels(picture_grid(torch.zeros(1, 1, 200, 100), width=50)).shape == (104, 54, 4)
    long = pixels(picture_grid(image[:1], row_titles=["a title wider than the one image below it"]))
    assert long.shape[1] > 200 and long[:24, -10:, 3].any()  # not cut off


def test_titles_stand_above_their_images_and_rows():
    image = torch.ones(4, 1, 8, 8)
    both = pixels(picture_grid(image, 2, ["1", "", "", "4"], ["", "second row"]))[..., 3] > 0
    height = 40 + 64 + 4
    assert not both[:20].any() and both[height : height + 20].any()  # of rows
    above = [both[row * height + 24 : row * height + 42, column * 68 + 4 : column * 68 + 68].any() for row in (0, 1) for column in (0, 1)]
    assert above == [True, False, False, True]


def tiles(page: str) -> list[tuple[str, np.ndarray]]:  # texts, (H, W, 3)
    "The images of a page, with the texts for those who do not see them."
    found = re.findall(r'<img alt="([^"]*)"[^>]*base64,([^"]*)"', page)
    assert len(found) == page.count("<img")
    return [(text, pixels(base64.b64decode(file))[..., :3]) for text, file in found]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_page_shows_the_images_one_by_one(channels):
    images = torch.rand(5, channels, 4, 6, generator=seeded()) * 2 - 1
    page = picture_grid(images, 3, ["a < b", "z^R", "", "d"], ["first", "second"], width=60).html
    assert [text for text, _ in tiles(page)] == ["a &lt; b", "z^R", "first, 3", "d", "second, 2"]
    for (_, shown), image in zip(tiles(page), images):
        assert np.array_equal(shown, to_levels(image.expand(3, -1, -1), 256).permute(1, 2, 0).numpy())
    assert page.count("--columns: 3; --side: 120px") == 2 and "<figcaption>z<sup>R</sup></figcaption>" in page and page.count("<h2>") == 2


def test_a_legend_has_the_colours_of_the_map():
    for signed, places in ((False, (0, 0.5, 1)), (True, (-1, 0, 1))):
        expected = heat_map(torch.tensor(places, dtype=torch.float32).reshape(1, 1, 3), 1.0, signed)[0, :, 0].T.add(1).mul(127.5).round().int().tolist()
        shown = [[*map(int, colour.split())] for colour in re.findall(r"rgb\(([\d ]+)\)", legend("low", "high", signed))]
        assert [shown[0], shown[len(shown) // 2], shown[-1]] == expected


def test_the_ends_of_the_colour_scales():
    values = torch.tensor([[[0.0, 2.0, 1.0, 5.0, -1.0]]])
    plain, signed = heat_map(values, 2.0), heat_map(torch.tensor([[[-3.0, 0.0, 3.0, -9.0, 9.0]]]), 3.0, signed=True)
    assert plain.shape == (1, 3, 1, 5) and min(plain.min(), signed.min()) >= -1 and max(plain.max(), signed.max()) <= 1
    colours = [matplotlib.colormaps["cividis"](place)[:3] for place in (0.0, 1.0, 0.5, 1.0, 0.0)]
    assert_close(plain[0, :, 0].T, torch.tensor(colours, dtype=torch.float32) * 2 - 1)
    purple, white, orange, more_purple, more_orange = ((signed[0, :, 0].T + 1) / 2).unbind()
    assert white.min() > 0.93 and purple[2] > purple[0] > purple[1] and orange[0] > orange[1] > orange[2]
    assert torch.equal(purple, more_purple) and torch.equal(orange, more_orange)


@pytest.mark.parametrize("shape", [(1, 4, 8), (3, 8, 4), (1, 4, 4)])
def test_numbers_of_tokens_stand_where_their_patches_are(shape):
    subject = small_subject(image_shape=shape)
    numbers = torch.arange(subject.model.config.tokens, dtype=torch.float32).expand(2, -1)
    assert torch.equal(patchify(_over_image(subject, numbers)[:, None], 2), numbers.unsqueeze(2).expand(-1, -1, 4))


def test_bars_are_as_high_as_their_values():
    bars = pixels(_bar_picture(torch.tensor([0, 10, 5, 20]), ["#ff0000", "#00ff00", "#0000ff", "#ff0000"], 2))
    step = bars.shape[1] // 4
    heights = [(bars[:90, step * index + 1, 3] > 0).sum() for index in range(4)]
    assert [round(height / 9) for height in heights] == [0, 5, 2, 10] and bars[60, step + 1].tolist() == [0, 255, 0, 255]
    assert [bars[92:, step * index : step * (index + 1), 3].any() for index in range(4)] == [False, False, True, False]


# --- Subjects


def few_images(name, split="train", **options):
    "As `load_dataset`, but of the glyphs, of which there are 20,000 to draw, only 100 for training."
    if split == "test" or not str(name).startswith("glyphs"):
        return load_dataset(name, split, **options)
    test = load_dataset(name, "test")
    values = torch.from_numpy(np.stack([glyph_item(name, "train", index) for index in range(100)]))
    return ArrayDataset(values, torch.arange(100) % 10, test.levels, test.class_names)


@pytest.fixture(scope="module")
def subjects() -> dict[str, Subject]:
    "The embedded models with 24 held-out images, the bits and the training images already computed."
    with mock.patch("farmer.analysis.load_dataset", few_images):
        loaded = {name: Subject.load(name, count=24) for name in ("digits", "glyphs", "glyphs-field")}
        assert all(subject.training and subject.bits.isfinite().all() for subject in loaded.values())
    return loaded


@pytest.fixture
def digits(subjects) -> Subject:
    return subjects["digits"]


def small_subject(**changes) -> Subject:
    "A small model with 24 images of nothing, which stand for training images too."
    model = small_with_latents(**changes)[0].float()
    images = images_for(model, 24).float()
    labels = torch.arange(24) % 3 if model.config.num_classes else torch.zeros(24, dtype=torch.int64)
    with torch.no_grad():
        subject = Subject("small", "nothing", model, images, labels, model.encode(images))
    vars(subject)["training"] = subject.images, subject.latents
    return subject


# --- Panels


def rivals(panel: Basis) -> list[Subject]:
    "The subject, and a small model on the same images: what the panel Basis finds where several models share their data."
    subject, config = panel.subject, panel.subject.model.config
    model = small(image_shape=config.image_shape, num_classes=config.num_classes, patch_size=config.patch_size, levels=config.levels).eval()
    with torch.no_grad():
        return [subject, replace(subject, name="rival", model=model, latents=model.encode(subject.images))]


@pytest.fixture(autouse=True)
def several_models(monkeypatch):
    "So that the panel Basis does not hang on which models happen to be embedded."
    monkeypatch.setattr(Basis, "models", property(rivals))
    monkeypatch.setattr(explorer, "_rivals", lambda subject: ["rival"])


def shown(outputs: dict[str, object]) -> dict[str, object]:
    "What a panel shows, comparable."
    return {name: content if isinstance(content, (bytes, str)) else content.to_json() for name, content in outputs.items()}


@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize("name", ["digits", "glyphs", "glyphs-field"])
def test_every_panel_renders_the_same_state_alike(subjects, name, panel):
    torch.manual_seed(0)
    first = shown(PANELS[panel](subjects[name]).render())
    torch.manual_seed(1)
    panel_again = PANELS[panel](subjects[name])
    starts = {control_name: control.start for control_name, control in panel_again.controls().items()}
    assert first == shown(panel_again.render(**starts)) and first
    for content in first.values():
        assert pixels(content).size if isinstance(content, bytes) else content


TABLE = [  # panel, control, value, outputs that change, outputs that stay
    ("Variance", "image", 5, ["strip", "note"], ["now"]),
    ("Variance", "scale", 2.0, ["now"], ["strip", "note"]),
    ("Variance", "seed", 1, ["now", "strip"], ["note"]),
    ("Swap", "first", 5, ["swapped", "tokens", "note"], []),
    ("Swap", "second", 5, ["swapped", "tokens", "note"], []),
    ("Swap", "tokens", (0, 5, 6, 9), ["swapped"], ["tokens", "note"]),
    ("Traverse", "image", 5, ["now", "sweep"], []),
    ("Traverse", "token", 6, ["now", "sweep", "ranking", "note"], []),
    ("Traverse", "channel", 1, ["now", "sweep", "ranking"], []),
    ("Traverse", "offset", -2.5, ["now"], ["sweep", "ranking"]),
    ("Bits", "image", 5, ["maps", "note"], ["surprise"]),
    ("Bits", "label", "none", ["maps", "note"], ["surprise"]),
    ("Bits", "label", "0", ["maps", "note"], ["surprise"]),
    ("Mixture", "image", 5, ["image", "figure", "note"], []),
    ("Mixture", "token", 6, ["image", "figure", "note"], []),
    ("Mixture", "across", 2, ["figure"], ["image", "note"]),
    ("Mixture", "up", 2, ["figure"], ["image", "note"]),
    ("Mixture", "scale", 3.0, ["figure"], ["image"]),
    ("Basis", "image", 5, ["rows"], []),
    ("Basis", "donor", 5, ["rows"], []),
    ("Basis", "scale", 3.0, ["rows"], []),
    ("Your image", "content", "a picture", ["seen", "note", "nearest", "latents"], []),
    ("Recolour", "content", "a picture", ["where", "made"], []),
    ("Recolour", "image", 5, ["where", "made"], []),
    ("Recolour", "zoom", 2.0, ["where", "made"], []),
    ("Recolour", "across", 0.1, [], ["where", "made"]),  # the whole of a square picture
    ("Recolour", "down", 0.1, [], ["where", "made"]),
    ("Recolour", "other", "a picture", ["made"], ["where"]),
    ("Recolour", "giver", 5, ["made"], ["where"]),
]


@pytest.mark.parametrize("panel, control, value, changes, stays", TABLE)
def test_a_control_changes_what_it_should(digits, panel, control, value, changes, stays):
    opened = PANELS[panel](digits)
    value = png(torch.linspace(-1, 1, 64).reshape(1, 8, 8)) if value == "a picture" else value
    start, moved = shown(opened.render()), shown(opened.render(**{control: value}))
    assert start.keys() == moved.keys() >= {*changes, *stays}
    assert [name for name in changes if start[name] == moved[name]] == [] and [name for name in stays if start[name] != moved[name]] == []


def test_every_control_is_in_the_table(digits):
    assert {(name, control) for name, panel in PANELS.items() for control in panel(digits).controls()} == {row[:2] for row in TABLE}


@pytest.mark.parametrize("panel", PANELS)
def test_impossible_states_are_refused_by_name(digits, panel):
    opened = PANELS[panel](digits)
    controls = opened.controls()
    complaint(ValueError, lambda: opened.render(colour=3), "'colour'", *controls)
    for name, control in controls.items():
        if control.kind == "slider":
            low, high, step = control.values
            for value in (low - step, high + step, math.nan):
                complaint(ValueError, lambda: opened.render(**{name: value}), f"{name} must be between {low} and {high}", str(value))
        if control.kind == "choice":
            complaint(ValueError, lambda: opened.render(**{name: "purple"}), f"{name} must be one of", *control.values, "'purple'")


@pytest.mark.parametrize("panel, control, value", [
    ("Variance", "image", 2.5), ("Variance", "image", "3"), ("Variance", "scale", None), ("Swap", "tokens", (99,)), ("Swap", "tokens", (-1,)),
    ("Swap", "tokens", 3), ("Bits", "label", 3), ("Your image", "content", "a path"), ("Recolour", "other", None), ("Recolour", "zoom", 0.5),
])  # fmt: skip
def test_values_of_the_wrong_kind_are_refused_by_name(digits, panel, control, value):
    complaint(ValueError, lambda: PANELS[panel](digits).render(**{control: value}), control)


def opened_by(line: str, monkeypatch) -> tuple[Panel, dict[str, object]]:
    "The panel and the state that a line of code opens."
    with monkeypatch.context() as patch:
        patch.setattr(Panel, "show", lambda panel, **state: (panel, state))
        imports, _, call = line.partition("; ")
        names: dict[str, object] = {}
        exec(imports, names)
        return eval(call, {**names, "Subject": Subject})


@pytest.mark.parametrize("panel, control, value", [row[:3] for row in TABLE if row[2] != "a picture"])
def test_the_line_of_code_opens_the_same_panel(digits, panel, control, value, monkeypatch):
    monkeypatch.setattr(Subject, "load", lambda name, *rest, **options: name)
    opened = PANELS[panel](digits)
    start = {name: control.start for name, control in opened.controls().items()}
    for state in ({}, start, {control: value}, {**start, control: value}):
        again, again_state = opened_by(opened.code(**state), monkeypatch)
        assert type(again) is PANELS[panel] and again.subject == "digits"
        assert start | again_state == start | state and "\n" not in opened.code(**state)


@pytest.mark.parametrize("arguments, options", [(("digits",), {}), (("digits", "digits"), {}), (("digits",), {"count": 24})])
def test_the_line_of_code_loads_the_same_subject(arguments, options, monkeypatch):
    again, state = opened_by(Bits(Subject.load(*arguments, **options)).code(image=7), monkeypatch)
    assert (again.subject.name, again.subject.data, len(again.subject.images), state) == ("digits", "digits", options.get("count", 200), {"image": 7})


def test_the_line_of_code_reaches_every_image(monkeypatch):
    panel = Variance(Subject.load("digits", count=250))
    again, state = opened_by(panel.code(image=240), monkeypatch)
    assert shown(again.render(**state)) == shown(panel.render(image=240))


def test_the_line_of_code_of_a_picture_runs(digits):
    "It cannot hold the file, but must not end in an error of Python's."
    line = YourImage(digits).code(content=png(digits.images[0]))
    assert len(line) < 200 and isinstance(eval(line.partition("; ")[2], vars(explorer).copy()), ipywidgets.VBox)


def test_a_subject_of_ones_own_is_a_variable_in_the_line_of_code():
    assert Bits(small_subject()).code(image=7).endswith("; Bits(subject).show(image=7)")


def test_a_panel_without_a_subject_shows_the_default_model(monkeypatch):
    monkeypatch.setattr(farmer.analysis, "subject_data", mock.Mock(side_effect=ValueError("loaded no further")))
    with mock.patch.object(Farmer, "from_pretrained", wraps=Farmer.from_pretrained) as load:
        complaint(ValueError, Variance, "loaded no further")
    assert DEFAULT_MODEL in embedded_models() and load.call_args.args == (DEFAULT_MODEL,)


# --- What single panels show


def test_variance_starts_with_the_held_out_images(digits):
    panel, look = Variance(digits), dict(side=64, above=20)
    with torch.no_grad():
        for index in (0, 9):
            expected = cell(picture_grid(digits.images[index : index + 1], width=64), 0, side=64, above=0)
            assert np.array_equal(cell(panel.render()["now"], index, **look), expected)
            strip = panel.render(image=index)["strip"]
            assert np.array_equal(cell(strip, 0, side=64, above=40), expected)
    at_two = cell(panel.render(image=0, scale=2.0)["now"], 0, 1, **look)
    assert not np.array_equal(at_two, cell(panel.render(image=0, scale=0.0)["now"], 0, 1, **look))


def test_swap_of_no_token_gives_the_images_back(digits):
    look = dict(side=144, above=20)
    untouched, full = Swap(digits).render(tokens=())["swapped"], Swap(digits).render()["swapped"]
    for column, own in ((1, 0), (2, 3)):
        assert np.abs(cell(untouched, column, **look) - cell(untouched, own, **look)).max() <= 1  # up to rounding
        assert np.abs(cell(full, column, **look) - cell(full, own, **look)).max() > 1
    made = digits.model.decode(Latents(digits.latents.informative[8:9], digits.latents.redundant[17:18]))
    assert np.abs(cell(full, 1, **look) - cell(picture_grid(made, width=144), 0, side=144, above=0)).max() <= 1


def test_swapping_an_image_with_itself_shows_no_change(digits):
    "Blue, as the note says: rounding errors are nothing to paint yellow."
    change = cell(Swap(digits).render(first=3, second=3)["tokens"], 0, side=64, above=20)
    blue = np.array(matplotlib.colormaps["cividis"](0.0)[:3]) * 255
    assert np.abs(change - blue).max() <= 1


def test_traversing_by_nothing_changes_nothing(digits):
    now, look = Traverse(digits).render(offset=0.0)["now"], dict(side=144, above=20)
    assert np.array_equal(cell(now, 0, **look), cell(now, 1, **look)) and len(np.unique(cell(now, 2, **look).reshape(-1, 3), axis=0)) == 1


def test_traversing_is_in_deviations_over_the_held_out_images(digits):
    for channel, group, index in ((1, "informative", 1), (3, "redundant", 0)):
        _, _, latents = digits.pick(4)
        getattr(latents, group)[0, 6, index] += 2 * getattr(digits.latents, group)[:, 6, index].std(correction=0)
        expected = cell(picture_grid(digits.model.decode(latents), width=144), 0, side=144, above=0)
        outputs = Traverse(digits).render(image=4, token=6, channel=channel, offset=2.0)
        assert np.abs(cell(outputs["now"], 1, side=144, above=20) - expected).max() <= 1
        assert np.abs(cell(outputs["sweep"], 4, side=64, above=40)[::8, ::8] - expected[::18, ::18]).max() <= 1  # titled +2


def test_the_most_surprising_images_cost_most(digits):
    order, surprise = digits.bits.argsort(), Bits(digits).render()["surprise"]
    for row, chosen in enumerate((order[:6], order[-6:])):
        for column, index in enumerate(chosen):
            assert np.array_equal(cell(surprise, column, row, side=64, above=40), cell(picture_grid(digits.images[index, None]), 0, side=64, above=0))


def test_the_bits_in_the_note_are_those_of_the_model(digits):
    image, label = digits.images[4:5], digits.labels[4:5]
    for choice, labels in (("its own", label), ("none", None), ("7", [7])):
        bits = digits.model.bits_per_dim(image, labels, generator=seeded(4)).item()
        assert f"{bits:.3f} bits/dim" in Bits(digits).render(image=4, label=choice)["note"]


def test_the_figure_holds_what_the_prior_predicts(digits):
    figure = Mixture(digits).render(image=4, token=6, across=2, up=0)["figure"]
    prediction = predict_token(digits.model, digits.pick(4)[2], digits.labels[4:5], 6, 1.0, seeded())
    traces = {trace.type + trace.name: trace for trace in figure.data}
    contour, own = traces["contourwith the class"], traces["scatterthis image"]
    assert (own.x[0], own.y[0]) == tuple(digits.latents.informative[4, 6, [2, 0]].tolist())
    points = torch.cartesian_prod(torch.as_tensor(contour.x), torch.as_tensor(contour.y)).float()
    density = library(prediction.conditional.channels([2, 0])).log_prob(points).exp().reshape(60, 60).T
    assert_close(torch.as_tensor(np.array(contour.z)).float(), density / density.max(), rtol=0, atol=1e-4)
    assert_close(torch.tensor(np.array(traces["barwithout"].y)).float(), prediction.unconditional.logits[0].softmax(-1), rtol=0, atol=1e-4)
    assert_close(torch.tensor(np.array(traces["scatterguided draws"].x)), prediction.draws[:, 2])


@pytest.mark.parametrize("control, value, columns", [("image", 5, {0, 1, 2, 3}), ("donor", 5, {3, 4}), ("scale", 3.0, {2})])
def test_basis_compares_its_models_column_by_column(digits, control, value, columns):
    panel, look = PANELS["Basis"](digits), dict(side=96, above=40)
    start, moved = panel.render()["rows"], panel.render(**{control: value})["rows"]
    assert pixels(start).shape == (2 * 140, 5 * 100, 4)  # a row for each model
    for row in (0, 1):
        assert {column for column in range(5) if not np.array_equal(cell(start, column, row, **look), cell(moved, column, row, **look))} == columns
    assert np.array_equal(cell(start, 0, 0, **look), cell(start, 0, 1, **look))  # of the same images


def test_basis_makes_what_its_titles_say(digits):
    panel, look = PANELS["Basis"](digits), dict(side=96, above=40)
    rows = panel.render(image=4, donor=5, scale=2.0)["rows"]
    for row, subject in enumerate(panel.models):
        (_, label, latents), (_, _, other) = subject.pick(4), subject.pick(5)
        states = [redraw_redundant(subject.model, latents, label, scale, seeded()) for scale in (0, 2.0)] + [Latents(latents.informative, other.redundant)]
        for column, state in enumerate(states, 1):
            expected = cell(picture_grid(subject.model.decode(state), width=96), 0, side=96, above=0)
            assert np.abs(cell(rows, column, row, **look) - expected).max() <= 1


def test_basis_compares_the_embedded_models_of_the_same_data(subjects, monkeypatch):
    monkeypatch.undo()  # with the panel's own models
    sources = {"digits": "digits", "glyphs": "glyphs", "digits-pca": "digits", "digits-large": "digits"}
    shape = lambda name: (1, 16, 16) if name == "digits-large" else (1, 8, 8)  # images of another size cannot stand beside
    monkeypatch.setattr(explorer.Farmer, "from_pretrained", lambda name: mock.Mock(config=mock.Mock(image_shape=shape(name))))
    monkeypatch.setattr(explorer, "embedded_models", lambda: sorted(sources))
    monkeypatch.setattr(explorer, "read_source", sources.__getitem__)
    monkeypatch.setattr(Subject, "load", lambda name, *data, count: (name, count))
    assert Basis(subjects["digits"]).models == [subjects["digits"], ("digits-pca", 24)]
    complaint(ValueError, lambda: Basis(subjects["glyphs"]).models, "glyphs", "no other embedded model")


def test_a_picture_is_drawn_by_one_thread(digits):
    "Whose number comes back, also after an error."
    threads, panel, seen = torch.get_num_threads(), Bits(digits), []
    try:
        torch.set_num_threads(2)
        with mock.patch.object(panel, "pictures", lambda **state: seen.append(torch.get_num_threads())):
            panel.render()
        complaint(ValueError, lambda: panel.render(image=99), "99")
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


# --- Recolour


def test_recolouring_is_a_swap_with_the_giver(digits):
    model, photograph = digits.model, png(torch.rand(1, 24, 40, generator=seeded()) * 2 - 1)
    place = dict(across=0.2, down=0.9, zoom=1.5)
    piece, (_, _, donor) = read_picture(photograph, (1, 8, 8), 17, **place), digits.pick(6)
    with torch.no_grad():
        own = model.encode(piece)
        faded = redraw_redundant(model, own, torch.tensor([10]), 0, seeded())  # of no class
    expected = torch.cat([piece, model.decode(faded), model.decode(Latents(own.informative, donor.redundant)), digits.images[6:7]])
    made = Recolour(digits).render(content=photograph, giver=6, **place)["made"]
    for column in range(4):
        assert np.abs(cell(made, column, side=144, above=20) - cell(picture_grid(expected, width=144), column, side=144, above=0)).max() <= 1
    assert made == Recolour(digits).render(content=photograph, other=png(digits.images[6]), **place)["made"]


@pytest.mark.parametrize("height, width, place, edges", [  # left, upper, right and lower edge of the frame, in a picture of 448 pixels
    (100, 100, dict(), (0, 0, 448, 448)), (100, 200, dict(across=0.0), (0, 0, 224, 224)), (200, 100, dict(down=1.0), (0, 224, 224, 448)),
    (448, 448, dict(across=1.0, down=0.5, zoom=4.0), (336, 168, 448, 280)), (7, 7, dict(across=0.0, down=0.0, zoom=2.0), (0, 0, 224, 224)),
])  # fmt: skip
def test_the_frame_stands_where_the_piece_is_cut(digits, height, width, place, edges):
    where = pixels(Recolour(digits).render(content=encoded(Image.new("RGB", (width, height), (200, 30, 30))), **place)["where"]).astype(int)
    left, upper, right, lower = edges
    white, red = (np.abs(where[..., :3] - colour).max(2) < 3 for colour in ((255, 255, 255), (200, 30, 30)))
    frame = np.zeros((448, 448), bool)
    frame[upper:lower, left:right] = True
    frame[upper + 2 : lower - 2, left + 2 : right - 2] = False
    assert where.shape == (448, 448, 4) and np.array_equal(white, frame)
    assert red[upper + 6 : lower - 6, left + 6 : right - 6].all()
    shown = where[..., 3] > 0
    assert shown.sum() == 448 * 448 * min(height, width) // max(height, width) and shown[0, 0]


@pytest.mark.parametrize("size", [(1, 1), (3000, 1), (1, 3000)])
def test_pictures_of_odd_sizes_are_recoloured(digits, size):
    for place in (dict(zoom=1.0), dict(zoom=10.0, across=1.0, down=1.0), dict(zoom=3.3, across=0.3, down=0.7)):
        assert len(Recolour(digits).render(content=encoded(Image.new("RGB", size)), other=encoded(Image.new("L", size)), **place)) == 2


def test_a_file_is_decoded_once_however_often_its_piece_moves(digits):
    panel, content = Recolour(digits), encoded(Image.new("RGB", (50, 40), (1, 2, 3)))
    panel.render(content=content)
    before = open_picture.cache_info().misses
    panel.render(content=content, zoom=2.0)
    panel.render(content=content, across=0.2)
    assert open_picture.cache_info().misses == before


# --- Panels on models of other kinds


@pytest.mark.parametrize("changes", [
    {}, dict(informative_channels=1), dict(flow_blocks=1, final_order_flip=False), dict(image_shape=(3, 4, 8), informative_channels=5),
])  # fmt: skip
@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_works_on_every_size_of_model(panel, changes):
    "Few tokens, one informative channel, images that are not square."
    opened = PANELS[panel](small_subject(**changes))
    ends = [{name: control.values[end] for name, control in opened.controls().items() if control.kind == "slider"} for end in (0, 1)]
    if panel == "Mixture":  # which needs two channels
        if changes.get("informative_channels") == 1:
            complaint(ValueError, lambda: opened.render(**ends[0]), "same channel")
            return
        for state in ends:
            state["up"] = 1 - min(state["across"], 1)
    assert all(shown(opened.render(**state)) for state in ends)


@pytest.mark.parametrize("changes, refused", [
    (dict(num_classes=0), {"Mixture": "nothing to guide between"}),
    (dict(label_dropout=0), {"Mixture": "nothing to guide between"}),
    (dict(redundant="standard-normal"), dict.fromkeys(["Variance", "Basis", "Recolour"], "N(0, 1)")),
    (dict(informative_channels=None), dict.fromkeys(["Variance", "Swap", "Basis", "Recolour"], "no partition")),
    (dict(prior="standard-normal"), dict.fromkeys(["Variance", "Mixture", "Basis", "Recolour"], "N(0, 1)")),
    (dict(flow="coupling"), {}),
])  # fmt: skip
def test_panels_say_what_a_model_lacks(changes, refused):
    "And the page leaves them out."
    subject = small_subject(**changes)
    assert _titles(subject) == [title for title in PANELS if title not in refused]
    for name, panel in PANELS.items():
        opened = panel(subject)
        lowest = {key: control.values[0] for key, control in opened.controls().items() if control.kind == "slider"}
        if name == "Mixture":
            lowest["up"] = 1
        if name in refused:
            complaint(ValueError, lambda: opened.render(**lowest), refused[name])
        else:
            assert shown(opened.render(**lowest))


def test_the_page_leaves_out_what_cannot_be_shown(monkeypatch):
    assert "Mixture" not in _titles(small_subject(informative_channels=1))
    monkeypatch.setattr(explorer, "_rivals", lambda subject: [])
    assert "Basis" not in _titles(small_subject()) and len(_titles(small_subject())) == len(PANELS) - 1


def test_a_model_without_classes():
    subject = small_subject(num_classes=0)
    assert tuple(Bits(subject).controls()["label"].values) == ("its own", "none")
    note = YourImage(subject).render()["note"]
    assert "bits/dim without a label" in note and "with label" not in note


def test_a_picture_under_a_thousand_labels_is_not_asked_for():
    "Each takes as long as an image."
    subject = small_subject(num_classes=101)
    note = YourImage(subject).render()["note"]
    assert "bits/dim without a label" in note and "with label" not in note
    bits = subject.model.bits_per_dim(subject.images[:1], generator=seeded()).item()
    assert f"{bits:.2f} bits/dim without" in note


def test_of_many_channels_some_are_moved():
    "Each takes an inverse of the flow."
    subject = small_subject(image_shape=(3, 16, 16), patch_size=8, informative_channels=5)  # 192 channels
    panel = Traverse(subject)
    assert panel.moved == range(0, 192, 2)
    outputs = panel.render(channel=7)
    assert "channels 0 to 190 in steps of 2" in outputs["ranking"].html
    every = channel_reach(subject.model, subject.pick(panel.state()["image"])[2], 3, panel.deviations(3))
    assert torch.equal(panel.reach(panel.state()["image"], 3), every[::2])


@pytest.mark.parametrize("panel", PANELS)
def test_few_images_are_enough(panel):
    "Every panel starts at values that exist, however few images and tokens there are."
    subject = small_subject(image_shape=(3, 4, 4), informative_channels=5)
    few = replace(subject, images=subject.images[:4], labels=subject.labels[:4], latents=subject.pick(range(4))[2])
    vars(few)["training"] = few.images, few.latents
    opened = PANELS[panel](few)
    for name, control in opened.controls().items():
        if control.kind == "slider":
            assert control.values[0] <= control.start <= control.values[1], name
    assert shown(opened.render())


def test_many_components_of_equal_weight_have_a_figure():
    subject = small_subject(components=60)
    with torch.no_grad():
        for parameter in subject.model.prior.informative_head.linear.parameters():
            parameter[:60] = 0  # the logits
    assert Mixture(subject).render(image=0, token=0)["figure"]


# --- Your image


def test_a_training_image_is_its_own_nearest(digits):
    "In pixels, in z^I and in z^R, read back from a file."
    for index in (0, 777):
        images, _ = digits.training
        nearest_rows = YourImage(digits).render(content=png(images[index]))["nearest"]
        expected = cell(picture_grid(images[index : index + 1]), 0, side=64, above=0)
        for row in range(3):
            same = [np.array_equal(cell(nearest_rows, column, row, side=64, above=20), expected) for column in range(3)]
            assert same == [True, True, False]  # the picture, its nearest, the next


def test_the_costs_in_the_note_are_those_of_the_model(digits):
    image = digits.images[2:3]
    bits = [digits.model.bits_per_dim(image, labels, generator=seeded()).item() for labels in (*([label] for label in range(10)), None)]
    note = YourImage(digits).render(content=png(image[0]))["note"]
    assert f"{min(bits):.2f} bits/dim with label {np.argmin(bits[:10])}, {bits[10]:.2f} without a label" in note and note.startswith("Your picture")
    low, high = np.quantile(digits.bits.numpy(), (0.05, 0.95))
    assert f"Nine of ten held-out images cost {low:.2f} to {high:.2f}" in note


def test_the_first_picture_is_one_that_the_model_reads(digits):
    "A held-out image whose class it is sure of."
    images = replace(digits, images=digits.images.clone())
    wrong = next(index for index in range(10, 24) if digits.labels[index] != digits.labels[0])
    images.images[0] = images.images[wrong]  # read as another class than its label says
    vars(images).update(bits=digits.bits, training=digits.training)
    panel = YourImage(images)
    one = next(image for image, label in zip(images.images[:, None], images.labels) if panel.costs(image)[1][label] > 0.9)
    assert panel.render()["seen"] == picture_grid(one, titles=["as the model sees it"], width=144) and not torch.equal(one, images.images[:1])


def test_doubts_are_said(digits):
    "How likely a label is follows from the costs by Bayes' rule; what costs more than nearly all held-out images has none."
    panel, image = YourImage(digits), digits.images[2:3]
    bits, shares = panel.costs(image)
    assert_close(shares, torch.softmax(-bits[:-1].double() * 64 * math.log(2), 0).float(), rtol=1e-3, atol=1e-5)
    assert "unsure" not in panel.verdict(image) and "nothing like it" not in panel.verdict(image)
    noise = torch.randint(17, (1, 1, 8, 8), generator=seeded()) / 8 - 1
    assert "knows nothing like it" in panel.verdict(noise)
    bits = torch.full_like(bits, digits.bits.median())
    with mock.patch.object(panel, "costs", return_value=(bits, torch.eye(10)[3] * 0.6)):
        assert "<b>The model is unsure</b>: 60% for this label." in panel.verdict(image) and "label 3" in panel.verdict(image)


def test_labels_have_names():
    subject = small_subject()
    subject.model.class_names = ("cat", "<dog>", "2")
    label = Bits(subject).controls()["label"]
    assert label.values == ("its own", "none", "0", "1", "2") and label.texts == ("its own", "none", "0 (cat)", "1 (<dog>)", "2")
    menu = find(Bits(subject).show(label="1"), "Dropdown", "label")
    assert (menu.label, menu.value) == ("1 (<dog>)", "1")
    assert "<dog>" not in YourImage(subject).render()["note"] and "given the class 1 (&lt;dog&gt;)" in Mixture(subject).render(image=1, token=0)["note"]


def test_the_latents_are_a_row_a_token(digits):
    page = pixels(YourImage(digits).render(content=png(digits.images[2]))["latents"])[20:-4, :-4]
    values = torch.cat([digits.latents.informative[2], digits.latents.redundant[2]], 1)
    rows = columns = 10
    page = page[:, : columns * values.shape[1]]
    expected = cell(picture_grid(heat_map(values[None], 3.0, signed=True), width=columns * values.shape[1]), 0, side=10_000, above=0)
    assert np.abs(page[rows // 2 :: rows, columns // 2 :: columns, :3].astype(int) - expected[rows // 2 : -4 : rows, columns // 2 : -4 : columns]).max() <= 1


# --- Widgets


def walk(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def find(root, kind: str, description: str | None = None, name: str | None = None):
    "The one widget of a class, with a description or a class name of its own."
    found = [
        widget
        for widget in walk(root)
        if type(widget).__name__ == kind and description in (None, getattr(widget, "description", None)) and (name is None or name in widget._dom_classes)
    ]
    assert len(found) == 1, f"{len(found)} of {kind} {description or name}"
    return found[0]


def alerts(root) -> list[str]:
    return [widget.value for widget in walk(root) if isinstance(widget, ipywidgets.HTML) and 'role="alert"' in widget.value]


def code_of(root) -> str:
    (line,) = (widget.value for widget in walk(root) if isinstance(widget, ipywidgets.HTML) and "copy this" in widget.value)
    return line


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_shows_what_it_renders(digits, panel):
    opened = PANELS[panel](digits)
    root, name = opened.show(), type(opened).__name__.lower()
    assert isinstance(root, ipywidgets.Widget) and f"farmer-{name}" in root._dom_classes and alerts(root) == []
    for output, content in opened.render().items():
        kind = "HTML" if isinstance(content, (bytes, str)) else "FigureWidget"
        widget = find(root, kind, name=f"farmer-{name}-{output}")
        if kind == "FigureWidget":
            assert [trace.name for trace in widget.data] == [trace.name for trace in content.data]
        else:
            assert widget.value == getattr(content, "html", content)
        if isinstance(content, bytes):
            assert all(text for text, _ in tiles(widget.value))


def test_every_panel_explains_itself(digits):
    texts = dict(line.split(": ", 1) for line in _page_file("panels.html").splitlines())
    assert texts.keys() == {panel.__name__ for panel in PANELS.values()}
    assert all(word in text for text in texts.values() for word in ("<b>You see</b>", "<b>Try</b>", "<b>Expect</b>"))
    assert Bits(digits).show().children[0].value == texts["Bits"]


def test_a_panel_says_that_it_is_busy(digits):
    panel = Bits(digits)
    root, seen = panel.show(), []
    with mock.patch.object(panel, "pictures", lambda **state: seen.append("explorer-busy" in root._dom_classes) or {}):
        find(root, "IntSlider", "image").value = 4
    with mock.patch.object(panel, "pictures", side_effect=KeyError), pytest.raises(KeyError):
        find(root, "IntSlider", "image").value = 5
    assert seen == [True] and "explorer-busy" not in root._dom_classes


def test_a_slider_redraws_and_reset_goes_back(digits):
    panel = Variance(digits)
    root = panel.show()
    now, start, line = find(root, "HTML", name="farmer-variance-now"), panel.render(), code_of(root)
    find(root, "FloatSlider", "variance times").value = 2.5
    find(root, "IntSlider", "seed").value = 4
    assert now.value == panel.render(scale=2.5, seed=4)["now"].html != start["now"].html
    assert "scale=2.5, seed=4" in code_of(root)
    find(root, "Button", "reset").click()
    assert now.value == start["now"].html and code_of(root) == line and find(root, "FloatSlider", "variance times").value == 1.0


def test_a_panel_opens_in_a_state(digits):
    panel = Bits(digits)
    root = panel.show(image=7, label="none")
    assert find(root, "HTML", name="farmer-bits-maps").value == panel.render(image=7, label="none")["maps"].html
    assert (find(root, "IntSlider", "image").value, find(root, "Dropdown", "label").value) == (7, "none")
    find(root, "Dropdown", "label").value = "3"
    assert find(root, "HTML", name="farmer-bits-maps").value == panel.render(image=7, label="3")["maps"].html
    find(root, "Button", "reset").click()
    assert find(root, "HTML", name="farmer-bits-maps").value == panel.render()["maps"].html


@pytest.mark.parametrize("state, words", [(dict(colour=3), ["'colour'"]), (dict(image=99), ["image", "99"]), (dict(label="purple"), ["label", "'purple'"])])
def test_a_panel_does_not_open_in_an_impossible_state(digits, state, words):
    "A line of code with a mistake says so: it is not answered with another state."
    complaint(ValueError, lambda: Bits(digits).show(**state), *words)


def test_a_figure_follows_its_controls(digits):
    panel = Mixture(digits)
    root = panel.show()
    figure = find(root, "FigureWidget")
    for control, state in (("token", dict(token=9)), ("channel across", dict(token=9, across=2)), ("guidance w", dict(token=9, across=2, scale=0.0))):
        find(root, "FloatSlider" if "w" in control.split() else "IntSlider", control).value = [*state.values()][-1]
        expected = panel.render(**state)["figure"]
        for trace, new in zip(figure.data, expected.data, strict=True):
            for part in ("x", "y", "z"):
                if part in new:
                    assert np.array_equal(trace[part], new[part])
        assert figure.layout.xaxis.title.text == expected.layout.xaxis.title.text and figure.layout.xaxis.range == expected.layout.xaxis.range
    assert figure is find(root, "FigureWidget")


@pytest.mark.parametrize("error", [ValueError, OSError, ImportError])
def test_an_error_is_text_and_the_pictures_stay(digits, error):
    panel = Variance(digits)
    root = panel.show()
    now, slider = find(root, "HTML", name="farmer-variance-now"), find(root, "IntSlider", "seed")
    before = now.value
    with mock.patch.object(panel, "pictures", side_effect=error("no <b>such</b> thing")):
        slider.value = 1
        assert ["no &lt;b&gt;such&lt;/b&gt; thing" in text for text in alerts(root)] == [True]
        assert now.value == before and now in walk(root)
    slider.value = 2
    assert alerts(root) == [] and now.value == panel.render(seed=2)["now"].html != before


def test_a_panel_that_fails_from_the_start_says_so(digits):
    with mock.patch.object(Bits, "pictures", side_effect=ValueError("not yet")):
        root = Bits(digits).show()
        assert ["not yet" in text for text in alerts(root)] == [True]
    find(root, "IntSlider", "image").value = 5
    assert alerts(root) == [] and find(root, "HTML", name="farmer-bits-maps").value == Bits(digits).render(image=5)["maps"].html


def test_buttons_of_the_tokens(digits):
    panel = Swap(digits)
    root = panel.show()
    swapped, buttons = find(root, "HTML", name="farmer-swap-swapped"), [widget for widget in walk(root) if isinstance(widget, ipywidgets.ToggleButton)]
    assert len(buttons) == 16 and all(button.value for button in buttons)
    with mock.patch.object(panel, "pictures", wraps=panel.pictures) as counted:
        find(root, "Button", "none").click()
        assert counted.call_count == 1 and not any(button.value for button in buttons)  # one redraw, not one for each button
    assert swapped.value == panel.render(tokens=())["swapped"].html
    buttons[5].value = buttons[2].value = True
    assert swapped.value == panel.render(tokens=(2, 5))["swapped"].html and "tokens=(2, 5)" in code_of(root)
    assert [button.button_style for button in buttons].count("primary") == 2
    find(root, "Button", "all").click()
    assert swapped.value == panel.render()["swapped"].html
    find(root, "Button", "none").click()
    find(root, "Button", "reset").click()
    assert swapped.value == panel.render()["swapped"].html and all(button.value for button in buttons)


def uploaded(content: bytes) -> tuple:
    "The value of an upload widget, as the browser sends it."
    return (traitlets.Bunch(name="a.png", type="image/png", size=len(content), content=memoryview(content), last_modified=datetime.now(timezone.utc)),)


def test_uploading_and_drawing(subjects):
    for name in ("digits", "glyphs-field"):
        panel = YourImage(subjects[name])
        root = panel.show()
        seen, note = find(root, "HTML", name="farmer-yourimage-seen"), find(root, "HTML", name="farmer-yourimage-note")
        upload, canvas, start = find(root, "FileUpload"), find(root, "Canvas"), seen.value
        channels, height, width = panel.subject.model.config.image_shape
        assert canvas.shape == [channels, height, width]
        upload.value = uploaded(png(panel.subject.images[5]))
        assert seen.value == panel.render(content=png(panel.subject.images[5]))["seen"].html != start and note.value.startswith("Your picture")
        drawing = np.random.default_rng(0).integers(0, 256, (height, width, 4))
        drawing[..., 3] = 255
        canvas.pixels = drawing.flatten().tolist()
        drawn = encoded(Image.fromarray(drawing[..., :3].astype(np.uint8)))
        assert seen.value == panel.render(content=drawn)["seen"].html
        upload.value = uploaded(png(panel.subject.images[6]))  # whichever came last
        assert seen.value == panel.render(content=png(panel.subject.images[6]))["seen"].html
        find(root, "Button", "reset").click()
        assert seen.value == start and canvas.pixels == [] and upload.value == () and not note.value.startswith("Your picture")


def test_uploading_a_photograph_and_a_giver(digits):
    panel = Recolour(digits)
    root = panel.show()
    made, line = find(root, "HTML", name="farmer-recolour-made"), code_of(root)
    own, giver = (widget for widget in walk(root) if isinstance(widget, ipywidgets.FileUpload))
    start, files = made.value, [encoded(Image.fromarray(np.random.default_rng(seed).integers(0, 256, (30, 20), np.uint8))) for seed in (0, 1)]
    own.value = uploaded(files[0])
    assert made.value == panel.render(content=files[0])["made"].html != start
    giver.value = uploaded(files[1])
    assert made.value == panel.render(content=files[0], other=files[1])["made"].html
    find(root, "FloatSlider", "zoom").value = 2.5
    find(root, "FloatSlider", "square: down").value = 0.1
    assert made.value == panel.render(content=files[0], other=files[1], zoom=2.5, down=0.1)["made"].html
    giver.value = uploaded(b"hello")
    assert ["not a picture" in text for text in alerts(root)] == [True]
    find(root, "Button", "reset").click()
    assert made.value == start and code_of(root) == line and alerts(root) == []


def test_uploading_what_is_no_picture(digits):
    root = YourImage(digits).show()
    before = find(root, "HTML", name="farmer-yourimage-seen").value
    find(root, "FileUpload").value = uploaded(b"hello")
    assert ["not a picture" in text for text in alerts(root)] == [True] and find(root, "HTML", name="farmer-yourimage-seen").value == before


# --- The page


@pytest.fixture
def page_subjects(subjects, monkeypatch):
    "The page loads the subjects of these tests; returns the list of what it asked for."
    asked = []

    def load(name, data=None, count=200):
        asked.append((name, data))
        if name not in subjects:
            raise FileNotFoundError(f"no model {name!r}")
        return subjects[name]

    monkeypatch.setattr(Subject, "load", load)
    monkeypatch.setattr(explorer, "embedded_models", lambda: ["digits", "glyphs", "glyphs-field"])
    return asked


def panels_on(page) -> list[str]:
    return [name for name in PANELS for widget in walk(page) if f"farmer-{PANELS[name].__name__.lower()}" in widget._dom_classes]


def test_the_page_opens_panels_and_models(page_subjects):
    page = explore("digits")
    chooser, models = find(page, "ToggleButtons"), find(page, "Dropdown", "model")
    assert chooser.options == tuple(PANELS) and models.options == ("digits", "glyphs", "glyphs-field")
    for name in PANELS:
        chooser.value = name
        assert panels_on(page) == [name] and alerts(page) == []
    chooser.value = "Bits"
    find(page, "IntSlider", "image").value = 5
    models.value = "glyphs"
    assert panels_on(page) == ["Bits"] and find(page, "IntSlider", "image").value == 8 and "glyphs" in code_of(page)
    models.value = "digits"
    assert find(page, "IntSlider", "image").value == 5  # as it was left
    assert page_subjects == [("digits", None), ("glyphs", None)]  # each loaded once


def test_the_page_starts_with_the_default_model(page_subjects, subjects, monkeypatch):
    monkeypatch.setitem(subjects, DEFAULT_MODEL, subjects["digits"])
    assert find(explore(), "Dropdown", "model").value == DEFAULT_MODEL and page_subjects == [(DEFAULT_MODEL, None)]


def test_the_page_lists_the_folder_of_a_run_and_its_data(page_subjects, subjects, monkeypatch):
    monkeypatch.setitem(subjects, "runs/mine", replace(subjects["digits"], name="runs/mine"))
    page = explore("runs/mine", "digits")
    assert find(page, "Dropdown", "model").options == ("runs/mine", "digits", "glyphs", "glyphs-field") and alerts(page) == []
    find(page, "Dropdown", "model").value = "glyphs"
    assert page_subjects == [("runs/mine", "digits"), ("glyphs", None)]  # the data is that of the run alone


def test_the_page_survives_a_model_that_is_not_there(page_subjects):
    page = explore("no-such-model")
    assert ["no-such-model" in text for text in alerts(page)] == [True] and panels_on(page) == []
    find(page, "Dropdown", "model").value = "digits"
    assert alerts(page) == [] and panels_on(page) == ["Variance"]


def test_the_page_survives_a_panel_that_raises(page_subjects, monkeypatch):
    monkeypatch.setattr(Basis, "models", property(mock.Mock(side_effect=ValueError("no other embedded model"))))
    page = explore("digits")
    find(page, "ToggleButtons").value = "Basis"
    assert ["no other embedded model" in text for text in alerts(page)] == [True]
    find(page, "ToggleButtons").value = "Swap"
    assert alerts(page) == [] and panels_on(page) == ["Swap"]


@contextmanager
def without(package: str, monkeypatch):
    "As if an optional package were not installed."

    def refuse(module: str, name: str):
        if package in (module, name):
            raise ImportError(f'this needs {name}: pip install {name}')
        if module == "plotly.graph_objects" and package == "anywidget":  # whose stand-in raises when it is made
            return SimpleNamespace(FigureWidget=mock.Mock(side_effect=ImportError("Please install anywidget to use the FigureWidget class")))
        return import_optional(module, name)

    with monkeypatch.context() as patch:
        patch.setattr(explorer, "import_optional", refuse)
        patch.setattr("farmer.plots.import_optional", refuse)
        yield


@pytest.mark.parametrize("package, hit", [
    ("anywidget", ["Mixture"]), ("plotly", ["Mixture"]), ("matplotlib", ["Swap", "Traverse", "Bits", "Your image"]),
])  # fmt: skip
def test_a_missing_package_is_named_and_the_other_panels_work(page_subjects, package, hit, monkeypatch):
    with without(package, monkeypatch):
        page = explore("digits")
        for name in PANELS:
            find(page, "ToggleButtons").value = name
            assert [package in text for text in alerts(page)] == [True] * (name in hit), name
            if (package, name) == ("anywidget", "Your image"):  # the canvas is missing, a file can still be chosen
                assert any("anywidget" in str(getattr(widget, "value", "")) for widget in walk(page)) and find(page, "FileUpload")


def test_without_ipywidgets_nothing_can_be_shown(digits, monkeypatch):
    with without("ipywidgets", monkeypatch):
        for call in (Variance(digits).show, lambda: explore("digits")):
            complaint(ImportError, call, "ipywidgets", "pip install")
        assert shown(Variance(digits).render())  # but drawn it can be
