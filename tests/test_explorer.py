"The explorer: its numbers against autograd and torch.distributions, its pictures pixel by pixel, its panels and page without a browser."
import io
import json
import math
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
from PIL import Image
from test_model import LABELS, complaint, small
from torch.autograd.functional import jacobian
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn import functional as F
from torch.testing import assert_close

from farmer import explorer
from farmer.data import ArrayDataset, glyph_item, import_optional, load_dataset, to_levels
from farmer.explorer import PANELS, Bits, Mixture, Panel, Subject, Swap, Traverse, Variance, YourImage, explore
from farmer.explorer import bar_picture, channel_reach, heat_map, likelihood_parts, marginal, nearest, picture, predict_token
from farmer.explorer import read_picture, redraw_redundant, relatives, share_between_components, swap_redundant, token_grid, traverse
from farmer.mixture import GaussianMixture
from farmer.model import Farmer, Latents
from farmer.patches import dequantize, patchify

ORDERS = [(1, True), (1, False), (2, True), (2, False), (3, True), (3, False)]  # number of flow blocks, and final_order_flip
DIGITS = dict(image_shape=(1, 8, 8), num_classes=10, levels=17)  # what a small model needs to read digits


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small_with_latents(**changes) -> tuple[Farmer, Latents]:
    "A small model in float64 with a basis of its own, and the latents of six images."
    model = small(**changes).double().eval()
    channels = model.config.token_channels
    model.basis.matrix.copy_(torch.linalg.qr(torch.randn(channels, channels, generator=seeded(7), dtype=torch.float64))[0])
    with torch.no_grad():
        return model, model.encode(images_for(model))


def images_for(model: Farmer, count: int = 6) -> torch.Tensor:
    return (torch.randint(model.config.levels, (count, *model.config.image_shape), generator=seeded()) * (2 / (model.config.levels - 1)) - 1).double()


def prior_order(blocks: int, flip: bool, tokens: int = 4) -> list[int]:
    "Tokens in the order in which the prior reads them, by the rule of the configuration."
    after_the_last_block = range(tokens) if blocks % 2 == 0 else reversed(range(tokens))
    return list(after_the_last_block)[:: 1 if flip else -1]


def library(mixture: GaussianMixture) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(logits=mixture.logits), Independent(Normal(mixture.component_mean, mixture.component_log_scale.exp()), 1))


def random_mixture(*shape: int, seed: int = 0) -> GaussianMixture:  # (..., K, D)
    generator = seeded(seed)
    draw = lambda *size: torch.randn(size, generator=generator, dtype=torch.float64)
    return GaussianMixture(draw(*shape[:-1]), 2 * draw(*shape), 0.5 * draw(*shape))


# --- Redundant channels: drawn anew, swapped


@pytest.mark.parametrize("blocks, flip", ORDERS)
def test_the_scale_multiplies_the_variance_and_nothing_else(blocks, flip):
    "z = mean + sqrt(scale) eps, with the same means and eps for the same generator state."
    model, latents = small_with_latents(flow_blocks=blocks, final_order_flip=flip)
    zero, one, four = (redraw_redundant(model, latents, LABELS, scale, seeded()) for scale in (0, 1, 4))
    assert_close(four.redundant - zero.redundant, 2 * (one.redundant - zero.redundant))
    assert (one.redundant - zero.redundant).abs().min() > 1e-6
    assert all(torch.equal(each.informative, latents.informative) for each in (zero, one, four))
    assert not torch.equal(one.redundant, redraw_redundant(model, latents, LABELS, 1, seeded(1)).redundant)


def test_scale_zero_draws_component_means():
    model, latents = small_with_latents(redundant_components=8)
    drawn = redraw_redundant(model, latents, LABELS, 0, seeded()).redundant  # (6, 4, 2)
    with torch.no_grad():
        means = model.prior.mixtures(model.reading_order(latents.informative), LABELS)[1].component_mean  # (6, 1, 8, 2)
    distance, component = (drawn.unsqueeze(2) - means).norm(dim=-1).min(-1)
    assert distance.max() == 0 and all(len(row.unique()) > 1 for row in component)


@pytest.mark.parametrize("blocks, flip", ORDERS)
def test_scale_one_is_the_models_own_draw(blocks, flip, monkeypatch):
    "From the generator's state at which sampling comes to z^R, redrawing gives the very values that were sampled."
    model, _ = small_with_latents(flow_blocks=blocks, final_order_flip=flip)
    generator, states, predict = seeded(), [], model.prior.redundant_mixture
    monkeypatch.setattr(model.prior, "redundant_mixture", lambda hidden: states.append(generator.get_state()) or predict(hidden))
    latents = model.sample_latents(LABELS, generator)
    generator.set_state(states[0])
    assert_close(redraw_redundant(model, latents, LABELS, 1.0, generator).redundant, latents.redundant)


@pytest.mark.parametrize("scale, changes, words", [
    (-0.1, {}, ["scale must be 0 or more", "-0.1"]),
    (math.nan, {}, ["scale must be 0 or more", "nan"]),
    (1.0, dict(informative_channels=None), ["no partition"]),
    (1.0, dict(prior="standard-normal"), ["N(0, 1)"]),
    (1.0, dict(redundant="standard-normal"), ["N(0, 1)"]),
])  # fmt: skip
def test_what_cannot_be_redrawn_is_refused(scale, changes, words):
    model, latents = small_with_latents(**changes)
    complaint(ValueError, lambda: redraw_redundant(model, latents, LABELS, scale), *words)
    if changes:
        complaint(ValueError, lambda: share_between_components(model, latents, LABELS), *words)


def test_swapping_all_tokens_or_some():
    _, latents = small_with_latents()
    first, second = (Latents(latents.informative[part], latents.redundant[part]) for part in (slice(0, 3), slice(3, 6)))
    before = [part.clone() for each in (first, second) for part in (each.informative, each.redundant)]
    for tokens, places in ((None, [0, 1, 2, 3]), ([0, 1, 2, 3], [0, 1, 2, 3]), ((1, 3), [1, 3]), ([], [])):
        swapped = swap_redundant(first, second, tokens)
        for token in range(4):
            donor = second if token in places else first
            assert torch.equal(swapped.redundant[:, token], donor.redundant[:, token])
        assert torch.equal(swapped.informative, first.informative)
        assert torch.equal(swap_redundant(swapped, first, tokens).redundant, first.redundant)  # swapped back
        assert torch.equal(swap_redundant(first, first, tokens).redundant, first.redundant)
    after = [part for each in (first, second) for part in (each.informative, each.redundant)]
    assert all(torch.equal(*pair) for pair in zip(before, after))


# --- One channel moved


@pytest.mark.parametrize("channel", range(4))
def test_traversing_changes_one_value(channel):
    _, latents = small_with_latents(informative_channels=3)
    one, offsets = Latents(latents.informative[:1], latents.redundant[:1]), torch.tensor([-2.0, 0.0, 0.5], dtype=torch.float64)
    before = torch.cat([one.informative, one.redundant], 2).clone()
    moved = traverse(one, 2, channel, offsets)
    expected = torch.zeros(3, 4, 4, dtype=torch.float64)
    expected[:, 2, channel] = offsets
    assert_close(torch.cat([moved.informative, moved.redundant], 2) - before, expected)
    assert torch.equal(torch.cat([one.informative, one.redundant], 2), before)


@pytest.mark.parametrize("changes", [dict(image_shape=(3, 4, 4), informative_channels=5), dict(informative_channels=None)])
def test_reach_counts_the_pixels_of_a_plain_loop(changes):
    model, latents = small_with_latents(**changes)
    one, d = Latents(latents.informative[:1], latents.redundant[:1]), model.config.token_channels
    deviations = torch.linspace(0, 3, d, dtype=torch.float64)
    start, counts = model.decode(one)[0], []
    for channel in range(d):
        z = torch.cat([one.informative, one.redundant], 2)
        z[0, 1, channel] += deviations[channel]
        change = model.decode(Latents(*model.partition.split(z)))[0] - start
        counts.append(sum(any(abs(change[c, y, x]) > 0.5 for c in range(len(start))) for y in range(4) for x in range(4)))  # 5 levels: 0.5 apart
    assert channel_reach(model, one, 1, deviations).tolist() == counts and 0 == counts[0] < max(counts)


# --- Where the bits are paid


@pytest.mark.parametrize("changes", [
    dict(flow_blocks=1), dict(flow_blocks=2), dict(flow_blocks=3), dict(flow_blocks=2, final_order_flip=False), dict(flow_blocks=3, final_order_flip=False),
    dict(informative_channels=None), dict(redundant="standard-normal"), dict(scale_first_token=False), dict(image_shape=(3, 4, 8), informative_channels=5),
])  # fmt: skip
def test_the_parts_sum_to_bits_per_dim(changes):
    model, _ = small_with_latents(**changes)
    images, dimensions = images_for(model), math.prod(model.config.image_shape)
    noisy = dequantize(images, 5, seeded())
    parts = likelihood_parts(model, noisy, LABELS)
    assert_close(parts.total.sum(1), model.bits_per_dim(images, LABELS, generator=seeded()) * dimensions)
    assert_close(parts.total.sum(1), -model.log_prob(noisy, LABELS).detach() / math.log(2) - dimensions * math.log2(2 / 4))
    groups = parts.informative, parts.redundant, parts.volume_informative, parts.volume_redundant
    assert all(part.shape == (6, model.config.tokens) for part in groups)
    assert_close(sum(groups), parts.total)
    if changes.get("informative_channels", 2) is None:
        assert not parts.redundant.any() and not parts.volume_redundant.any()


@pytest.mark.parametrize("changes", [dict(flow_blocks=1), dict(flow_blocks=2), dict(flow_blocks=3, scale_first_token=False), dict(informative_channels=None)])
def test_the_volume_is_autograds_determinant(changes):
    model, _ = small_with_latents(**changes)
    noisy = dequantize(images_for(model), 5, seeded())
    parts = likelihood_parts(model, noisy, LABELS)
    volume = -math.log(2) * (parts.volume_informative + parts.volume_redundant).sum(1) - 16 * math.log(2 / 4)
    for index in range(len(noisy)):
        full = jacobian(lambda image: model.flow(model.basis(patchify(image, 2)))[0], noisy[index : index + 1]).reshape(16, 16)
        assert_close(volume[index], torch.linalg.slogdet(full).logabsdet)
    assert volume.abs().min() > 1e-2  # not the identity


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_volume_of_a_token_is_the_diagonal_of_the_jacobian(blocks):
    "Of one block's; of several blocks, the product of their diagonals."
    model, _ = small_with_latents(flow_blocks=blocks, informative_channels=3)
    noisy = dequantize(images_for(model), 5, seeded())[:2]
    parts = likelihood_parts(model, noisy, LABELS[:2])
    for index in range(2):
        state, logs = model.basis(patchify(noisy[index : index + 1], 2)), torch.zeros(4, 4, dtype=torch.float64)
        for number, block in enumerate(model.flow.blocks):
            step = lambda x: (block(x.flip(1))[0].flip(1) if number % 2 else block(x)[0])
            logs += jacobian(step, state).reshape(16, 16).diagonal().abs().log().reshape(4, 4)
            state = step(state).detach()
        bits = -(logs + math.log(2 / 4)) / math.log(2)
        assert_close(parts.volume_informative[index], bits[:, :3].sum(1))
        assert_close(parts.volume_redundant[index], bits[:, 3:].sum(1))


@pytest.mark.parametrize("blocks, flip", ORDERS)
def test_densities_stand_where_their_tokens_are_in_the_image(blocks, flip):
    "Against torch.distributions, with the mixtures taken from the prior place by place."
    model, _ = small_with_latents(flow_blocks=blocks, final_order_flip=flip)
    noisy, order = dequantize(images_for(model), 5, seeded()), prior_order(blocks, flip)
    parts = likelihood_parts(model, noisy, LABELS)
    with torch.no_grad():
        latents = model.encode(noisy)
        own, shared = model.prior.mixtures(latents.informative[:, order], LABELS)
        for place, token in enumerate(order):
            assert_close(parts.informative[:, token] * -math.log(2), library(own).log_prob(latents.informative[:, order])[:, place])
            assert_close(parts.redundant[:, token] * -math.log(2), library(shared).log_prob(latents.redundant[:, token, None])[:, 0])


def test_a_normal_prior_has_no_parts_to_show():
    model, latents = small_with_latents(prior="standard-normal")
    complaint(ValueError, lambda: likelihood_parts(model, images_for(model), LABELS), "N(0, 1)")
    complaint(ValueError, lambda: predict_token(model, latents, LABELS[:1], 0, 1.0), "N(0, 1)")


# --- Mixtures


def test_marginals_are_those_of_the_library():
    mixture = random_mixture(2, 5, 4, 3)
    value = torch.randn(2, 5, 3, generator=seeded(1), dtype=torch.float64)
    for channels in ([0], [2, 0], (0, 1, 2)):
        part = GaussianMixture(mixture.logits, *(each[..., list(channels)] for each in (mixture.component_mean, mixture.component_log_scale)))
        assert_close(marginal(mixture, channels).log_prob(value[..., list(channels)]), library(part).log_prob(value[..., list(channels)]))


def test_a_marginal_is_the_integral_over_the_other_channel():
    mixture, across = random_mixture(4, 2), torch.linspace(-20, 20, 4001, dtype=torch.float64)
    for fixed in (-1.0, 0.3):
        plane = torch.stack([torch.full_like(across, fixed), across], 1)
        assert_close(torch.trapezoid(library(mixture).log_prob(plane).exp(), across), marginal(mixture, [0]).log_prob(torch.tensor([fixed]).double()).exp())


def test_the_share_between_components_obeys_the_law_of_total_variance():
    model, latents = small_with_latents(redundant_components=5)
    with torch.no_grad():
        shared = model.prior.mixtures(model.reading_order(latents.informative), LABELS)[1]
    total = library(shared).variance.sum(-1)
    within = (shared.logits.softmax(-1).unsqueeze(-1) * shared.component_log_scale.exp().square()).sum((-2, -1))
    share = share_between_components(model, latents, LABELS)
    assert_close(share, (1 - within / total).squeeze(1))
    assert share.shape == (6,) and 0.01 < share.min() and share.max() < 0.99


def test_scale_zero_keeps_the_share_between_components():
    "Of many draws, measured."
    model, latents = small_with_latents(redundant_components=5)
    many = Latents(*(part[:1].expand(5000, -1, -1) for part in (latents.informative, latents.redundant)))
    zero, one = (redraw_redundant(model, many, LABELS[:1].expand(5000), scale, seeded()).redundant.flatten(0, 1).var(0).sum() for scale in (0, 1))
    assert_close(zero / one, share_between_components(model, latents, LABELS)[0], rtol=0, atol=0.03)


# --- The prediction of a token


@pytest.mark.parametrize("blocks, flip", ORDERS)
def test_a_prediction_is_the_priors_at_that_token(blocks, flip):
    model, latents = small_with_latents(flow_blocks=blocks, final_order_flip=flip)
    one, order = Latents(latents.informative[:1], latents.redundant[:1]), prior_order(blocks, flip)
    for place, token in enumerate(order):
        found = predict_token(model, one, LABELS[1:2], token, 0.0, seeded())
        for mixture, label in ((found.conditional, LABELS[1:2]), (found.unconditional, torch.tensor([model.null_class]))):
            with torch.no_grad():
                own = model.prior.mixtures(one.informative[:, order], label)[0]
            for name in ("logits", "component_mean", "component_log_scale"):
                assert_close(getattr(mixture, name), getattr(own, name)[:, place])


@pytest.mark.parametrize("blocks, flip", ORDERS)
def test_a_prediction_does_not_depend_on_later_tokens(blocks, flip):
    model, latents = small_with_latents(flow_blocks=blocks, final_order_flip=flip)
    order = prior_order(blocks, flip)
    token, later = order[1], order[1:]

    def predicted(tokens: list[int]):
        one = Latents(latents.informative[:1].clone(), latents.redundant[:1])
        one.informative[:, tokens] += 1
        found = predict_token(model, one, LABELS[:1], token, 1.0, seeded())
        return torch.cat([found.conditional.component_mean.flatten(), found.unconditional.component_mean.flatten(), found.draws.flatten()])

    assert_close(predicted(later), predicted([]))
    assert not torch.allclose(predicted(order[:1]), predicted([]))


def test_without_guidance_the_draws_come_from_the_conditional():
    model, latents = small_with_latents()
    found = predict_token(model, Latents(latents.informative[:1], latents.redundant[:1]), LABELS[:1], 1, 0.0, seeded(), draws=20_000)
    expected = library(found.conditional)
    assert found.guided is found.conditional and found.draws.shape == (20_000, 2)
    assert_close(found.draws.mean(0), expected.mean[0], rtol=0, atol=0.06)
    assert_close(found.draws.var(0), expected.variance[0], rtol=0.06, atol=0)


def test_guided_draws_follow_the_guided_density():
    "Whose moments a sum over a grid gives: p_c^(1+w) p_u^(-w), of one channel."
    model, latents = small_with_latents(seed=1, informative_channels=1)
    found = predict_token(model, Latents(latents.informative[:1], latents.redundant[:1]), LABELS[:1], 0, 1.5, seeded(), draws=20_000)
    grid = torch.linspace(-15, 15, 6001, dtype=torch.float64).unsqueeze(1)
    weight = (2.5 * library(found.conditional).log_prob(grid) - 1.5 * library(found.unconditional).log_prob(grid)).softmax(0)
    mean = weight @ grid[:, 0]
    assert_close(found.draws.mean(), mean, rtol=0, atol=0.06)
    assert_close(found.draws.var(), weight @ (grid[:, 0] - mean).square(), rtol=0.06, atol=0)
    assert (mean - library(found.conditional).mean[0, 0]).abs() > 0.1  # guidance does something here


@pytest.mark.parametrize("changes", [dict(num_classes=0), dict(label_dropout=0)])
def test_models_with_nothing_to_guide_between_are_refused(changes):
    model, latents = small_with_latents(**changes)
    one = Latents(latents.informative[:1], latents.redundant[:1])
    complaint(ValueError, lambda: predict_token(model, one, torch.tensor([0]), 0, 1.0), "nothing to guide between")


@pytest.mark.parametrize("compute", [
    lambda model, latents: redraw_redundant(model, latents, LABELS, 0.5, seeded()).redundant,
    lambda model, latents: likelihood_parts(model, images_for(model), LABELS).total,
    lambda model, latents: share_between_components(model, latents, LABELS),
    lambda model, latents: predict_token(model, Latents(latents.informative[:1], latents.redundant[:1]), LABELS[:1], 1, 1.0, seeded()).draws,
], ids=["redraw", "parts", "share", "prediction"])  # fmt: skip
def test_dropout_plays_no_part(compute):
    "As in the model's own methods, whatever its mode, which comes back."
    model, latents = small_with_latents(dropout=0.5)
    evaluated = compute(model, latents)
    assert_close(compute(model.train(), latents), evaluated)
    assert all(module.training for module in model.modules())


# --- Pictures


def pixels(file: bytes) -> np.ndarray:  # (H, W, 4)
    with Image.open(io.BytesIO(file)) as page:
        assert page.format == "PNG"
        return np.array(page.convert("RGBA"))


def cell(file: bytes, column: int, row: int = 0, *, side: int, above: int) -> np.ndarray:  # (side, side, 3) whole numbers
    "One of the square images of a picture."
    x, y = column * (side + 4), row * (above + side + 4) + above
    return pixels(file)[y : y + side, x : x + side, :3].astype(int)


@pytest.mark.parametrize("titles, row_titles, above", [((), (), 0), (("a", "b"), (), 20), ((), ("row",), 20), (("a",), ("row", "row"), 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_a_grid_of_whole_enlargements(channels, titles, row_titles, above):
    images = torch.rand(7, channels, 8, 8, generator=seeded()) * 2.4 - 1.2  # clipped beyond 1
    found = pixels(picture(images, 3, titles, row_titles, width=30))  # 3 screen pixels for each: 24
    assert found.shape == (3 * (above + 24 + 4), 3 * (24 + 4), 4)
    opaque = np.zeros(found.shape[:2], bool)
    for index, image in enumerate(images):
        x, y = index % 3 * 28, index // 3 * (above + 28) + above
        expected = to_levels(image.expand(3, -1, -1).repeat_interleave(3, 1).repeat_interleave(3, 2), 256).permute(1, 2, 0)
        assert np.array_equal(found[y : y + 24, x : x + 24, :3], expected.numpy())
        opaque[y : y + 24, x : x + 24] = True
    assert (found[opaque][:, 3] == 255).all()
    written = found[~opaque][:, 3]
    assert (written == 0).mean() > 0.5 and written.any() == bool(titles or row_titles)


def test_sizes_of_pictures():
    image = torch.zeros(2, 1, 8, 8)
    assert pixels(picture(image)).shape == (68, 2 * 68, 4)  # fewer than the columns
    assert pixels(picture(image[:1], width=8)).shape == (12, 12, 4)
    assert pixels(picture(torch.zeros(1, 3, 100, 100))).shape == (68, 68, 4)  # shrunk
    assert pixels(picture(torch.zeros(1, 1, 8, 16))).shape == (36, 68, 4)
    assert pixels(picture(torch.zeros(1, 1, 200, 100), width=50)).shape == (104, 54, 4)
    long = pixels(picture(image[:1], row_titles=["a title wider than the one image below it"]))
    assert long.shape[1] > 200 and long[:20, -10:, 3].any()  # not cut off


def test_titles_stand_above_their_images_and_rows():
    image = torch.ones(4, 1, 8, 8)
    both = pixels(picture(image, 2, ["1", "", "", "4"], ["", "second row"]))[..., 3] > 0
    height = 40 + 64 + 4
    assert not both[:20].any() and both[height : height + 20].any()  # of rows
    above = [both[row * height + 20 : row * height + 40, column * 68 : column * 68 + 64].any() for row in (0, 1) for column in (0, 1)]
    assert above == [True, False, False, True]


def test_the_ends_of_the_colour_scales():
    values = torch.tensor([[[0.0, 2.0, 1.0, 5.0, -1.0]]])
    plain, signed = heat_map(values, 2.0), heat_map(torch.tensor([[[-3.0, 0.0, 3.0, -9.0, 9.0]]]), 3.0, signed=True)
    assert plain.shape == (1, 3, 1, 5) and min(plain.min(), signed.min()) >= -1 and max(plain.max(), signed.max()) <= 1
    colours = [matplotlib.colormaps["cividis"](place)[:3] for place in (0.0, 1.0, 0.5, 1.0, 0.0)]
    assert_close(plain[0, :, 0].T, torch.tensor(colours, dtype=torch.float32) * 2 - 1)
    purple, white, orange, more_purple, more_orange = ((signed[0, :, 0].T + 1) / 2).unbind()
    assert white.min() > 0.93 and purple[2] > purple[0] > purple[1] and orange[0] > orange[1] > orange[2]
    assert torch.equal(purple, more_purple) and torch.equal(orange, more_orange)


def test_a_heat_map_is_enlarged_token_by_token():
    values = torch.arange(8.0).reshape(1, 2, 4)
    assert torch.equal(heat_map(values, 7, size=(4, 8)), heat_map(values, 7).repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("shape", [(1, 4, 8), (3, 8, 4), (1, 4, 4)])
def test_the_grid_of_tokens_is_that_of_the_patches(shape):
    model = small(image_shape=shape)
    numbers = torch.arange(model.config.tokens, dtype=torch.float32).expand(2, -1)
    image = F.interpolate(token_grid(model, numbers)[:, None], shape[1:])
    assert torch.equal(patchify(image, 2), numbers.unsqueeze(2).expand(-1, -1, 4))


def test_bars_are_as_high_as_their_values():
    bars = pixels(bar_picture(torch.tensor([0, 10, 5, 20]), ["#ff0000", "#00ff00", "#0000ff", "#ff0000"], 2))
    step = bars.shape[1] // 4
    heights = [(bars[:90, step * index + 1, 3] > 0).sum() for index in range(4)]
    assert [round(height / 9) for height in heights] == [0, 5, 2, 10] and bars[60, step + 1].tolist() == [0, 255, 0, 255]
    assert [bars[92:, step * index : step * (index + 1), 3].any() for index in range(4)] == [False, False, True, False]


# --- The subject


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
    with mock.patch("farmer.explorer.load_dataset", few_images):
        loaded = {name: Subject.load(name, count=24) for name in ("digits", "glyphs", "glyphs-field")}
        assert all(subject.training and subject.bits.isfinite().all() for subject in loaded.values())
    return loaded


@pytest.fixture
def digits(subjects) -> Subject:
    return subjects["digits"]


@pytest.fixture
def small_run(tmp_path):
    "The folder of a run on digits with a small model in it."
    small(**DIGITS).save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"data": "digits"}))
    return tmp_path / "run"


def small_subject(**changes) -> Subject:
    "A small model with 24 images of nothing, which stand for training images too."
    model = small_with_latents(**changes)[0].float()
    images = images_for(model, 24).float()
    labels = torch.arange(24) % 3 if model.config.num_classes else torch.zeros(24, dtype=torch.int64)
    with torch.no_grad():
        subject = Subject("small", "nothing", model, images, labels, model.encode(images))
    vars(subject)["training"] = subject.images, subject.labels, subject.latents
    return subject


@pytest.mark.parametrize("name", ["digits", "glyphs", "glyphs-field"])
def test_a_subject_holds_the_first_held_out_images_of_every_class(subjects, name):
    subject, test = subjects[name], load_dataset(name, "test")
    turns = [(test.labels == label).nonzero()[turn].item() for turn in range(3) for label in range(10)]
    images, labels = test.batch(turns[:24])
    assert (subject.name, subject.data) == (name, name)
    assert torch.equal(subject.images, images) and torch.equal(subject.labels, labels)
    assert_close(subject.model.decode(subject.latents), images, rtol=0, atol=1e-3)
    assert_close(subject.bits, subject.model.bits_per_dim(images, labels, generator=seeded()), rtol=0, atol=1e-3)
    picked, label, latents = subject.pick([5, 2])
    assert torch.equal(picked, images[[5, 2]]) and torch.equal(label, labels[[5, 2]])
    assert torch.equal(latents.redundant, subject.latents.redundant[[5, 2]]) and torch.equal(subject.pick(5)[0], images[5:6])
    assert not subject.latents.informative.requires_grad


def test_training_images_are_from_the_training_split(digits):
    train = load_dataset("digits", "train")
    images, labels, latents = digits.training
    every = train.batch(range(len(train)))[0]
    assert len(images) == len(train) and {image.numpy().tobytes() for image in images} == {image.numpy().tobytes() for image in every}
    assert labels[:12].tolist() == [*range(10), 0, 1] and torch.equal(images[3], every[(train.labels == 3).nonzero()[0].item()])  # classes take turns
    with torch.no_grad():
        assert_close(latents.redundant[[0, 1000]], digits.model.encode(images[[0, 1000]]).redundant)


def test_more_images_than_there_are():
    assert len(Subject.load("digits", count=10_000).images) == 360


def test_the_folder_of_a_run(small_run):
    for folder in (small_run / "model", str(small_run / "model")):
        subject = Subject.load(folder, count=5)
        assert (subject.name, subject.data) == (str(small_run / "model"), "digits") and len(subject.images) == len(subject.latents.redundant) == 5
    assert Subject.load(folder, "digits", count=5).data == "digits"
    (small_run / "run.json").unlink()
    complaint(ValueError, lambda: Subject.load(folder), "data", str(folder))
    assert torch.equal(Subject.load(folder, "digits", count=5).images, subject.images)


def test_nothing_there():
    complaint(FileNotFoundError, lambda: Subject.load("no-such-model"), "'no-such-model'", "digits, glyphs")
    complaint(ValueError, lambda: Subject.load("digits", "no-such-data"), "'no-such-data'")
    complaint(FileNotFoundError, lambda: Subject.load("digits", "./no-such-data"), "no-such-data")


@pytest.mark.parametrize("data", ["glyphs", "glyphs-field"])
def test_data_of_another_size_is_refused(data):
    complaint(ValueError, lambda: Subject.load("digits", data), "digits", data, "trained on")


def test_data_of_other_channels_is_refused():
    complaint(ValueError, lambda: Subject.load("glyphs", "glyphs-field"), "glyphs", "(1, 16, 16)", "(3, 16, 16)", "trained on")


@pytest.fixture
def small_folder(tmp_path) -> str:
    "A folder of pictures: two classes of twenty, of which it keeps four for testing."
    for index in range(40):
        folder = tmp_path / "data" / f"class-{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8, 3), 6 * index, np.uint8)).save(folder / f"{index:03}.png")
    return str(tmp_path / "data")


@pytest.mark.parametrize("changes", [dict(num_classes=1, levels=256), dict(num_classes=2, levels=5)])
def test_data_that_a_model_cannot_have_learned_is_refused(tmp_path, small_folder, changes):
    "Labels beyond its classes, or pixels off its grid of levels, which would make bits per dimension wrong."
    small(image_shape=(3, 4, 4), informative_channels=5, **changes).save_pretrained(tmp_path / "model")
    complaint(ValueError, lambda: Subject.load(tmp_path / "model", small_folder).bits, str(tmp_path / "model"))


def test_a_small_folder_of_pictures_is_a_subject(tmp_path, small_folder):
    "Every panel starts at values that exist, however few images and tokens there are."
    small(image_shape=(3, 4, 4), informative_channels=5, num_classes=2, levels=256).save_pretrained(tmp_path / "model")
    subject = Subject.load(tmp_path / "model", small_folder)
    assert subject.images.shape == (4, 3, 4, 4) and subject.labels.tolist() == [0, 1, 0, 1] and len(subject.training[0]) == 36
    sliders = [(panel, name, slider) for panel in PANELS for name, slider in PANELS[panel](subject).controls().items() if slider.kind == "slider"]
    assert [(panel, name) for panel, name, slider in sliders if not slider.values[0] <= slider.start <= slider.values[1]] == []
    for panel in PANELS.values():
        assert shown(panel(subject).draw())


# --- Panels


def rivals(subject: Subject) -> list[Subject]:
    "The subject, and a small model on the same images: what `relatives` gives where several models share their data."
    config = subject.model.config
    model = small(image_shape=config.image_shape, num_classes=config.num_classes, patch_size=config.patch_size, levels=config.levels).eval()
    with torch.no_grad():
        return [subject, replace(subject, name="rival", model=model, latents=model.encode(subject.images))]


@pytest.fixture(autouse=True)
def several_models(monkeypatch):
    "So that the panel Basis does not hang on which models happen to be embedded."
    monkeypatch.setattr(explorer, "relatives", rivals)


def shown(outputs: dict[str, object]) -> dict[str, object]:
    "What a panel shows, comparable."
    return {name: content if isinstance(content, (bytes, str)) else content.to_json() for name, content in outputs.items()}


@pytest.mark.parametrize("panel", PANELS)
@pytest.mark.parametrize("name", ["digits", "glyphs", "glyphs-field"])
def test_every_panel_draws_the_same_state_alike(subjects, name, panel):
    torch.manual_seed(0)
    first = shown(PANELS[panel](subjects[name]).draw())
    torch.manual_seed(1)
    panel_again = PANELS[panel](subjects[name])
    starts = {control_name: control.start for control_name, control in panel_again.controls().items()}
    assert first == shown(panel_again.draw(**starts)) and first
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
    ("Mixture", "scale", 3.0, ["figure"], ["image", "note"]),
    ("Basis", "image", 5, ["rows"], []),
    ("Basis", "donor", 5, ["rows"], []),
    ("Basis", "scale", 3.0, ["rows"], []),
    ("Your image", "content", "a picture", ["seen", "note", "nearest", "latents"], []),
]


@pytest.mark.parametrize("panel, control, value, changes, stays", TABLE)
def test_a_control_changes_what_it_should(digits, panel, control, value, changes, stays):
    opened = PANELS[panel](digits)
    value = png(torch.linspace(-1, 1, 64).reshape(1, 8, 8)) if value == "a picture" else value
    start, moved = shown(opened.draw()), shown(opened.draw(**{control: value}))
    assert start.keys() == moved.keys() >= {*changes, *stays}
    assert [name for name in changes if start[name] == moved[name]] == [] and [name for name in stays if start[name] != moved[name]] == []


def test_every_control_is_in_the_table(digits):
    assert {(name, control) for name, panel in PANELS.items() for control in panel(digits).controls()} == {row[:2] for row in TABLE}


@pytest.mark.parametrize("panel", PANELS)
def test_impossible_states_are_refused_by_name(digits, panel):
    opened = PANELS[panel](digits)
    controls = opened.controls()
    complaint(ValueError, lambda: opened.draw(colour=3), "'colour'", *controls)
    for name, control in controls.items():
        if control.kind == "slider":
            low, high, step = control.values
            for value in (low - step, high + step, math.nan):
                complaint(ValueError, lambda: opened.draw(**{name: value}), f"{name} must be between {low} and {high}", str(value))
        if control.kind == "choice":
            complaint(ValueError, lambda: opened.draw(**{name: "purple"}), f"{name} must be one of", *control.values, "'purple'")


@pytest.mark.parametrize("panel, control, value", [
    ("Variance", "image", 2.5), ("Variance", "image", "3"), ("Variance", "scale", None), ("Swap", "tokens", (99,)), ("Swap", "tokens", (-1,)),
    ("Swap", "tokens", 3), ("Bits", "label", 3), ("Your image", "content", "a path"),
])  # fmt: skip
def test_values_of_the_wrong_kind_are_refused_by_name(digits, panel, control, value):
    complaint(ValueError, lambda: PANELS[panel](digits).draw(**{control: value}), control)


def opened_by(line: str, monkeypatch) -> tuple[Panel, dict[str, object]]:
    "The panel and the state that a line of code opens."
    with monkeypatch.context() as patch:
        patch.setattr(Panel, "show", lambda panel, **state: (panel, state))
        imports, _, call = line.partition("; ")
        names: dict[str, object] = {}
        exec(imports, names)
        return eval(call, {**names, "Subject": Subject})


@pytest.mark.parametrize("panel, control, value", [row[:3] for row in TABLE if row[1] != "content"])
def test_the_line_of_code_opens_the_same_panel(digits, panel, control, value, monkeypatch):
    monkeypatch.setattr(Subject, "load", lambda name, *rest, **options: name)
    opened = PANELS[panel](digits)
    start = {name: control.start for name, control in opened.controls().items()}
    for state in ({}, start, {control: value}, {**start, control: value}):
        again, again_state = opened_by(opened.code(**state), monkeypatch)
        assert type(again) is PANELS[panel] and again.subject == "digits"
        assert start | again_state == start | state and "\n" not in opened.code(**state)


def test_the_line_of_code_says_the_data_where_the_folder_does_not(small_run, monkeypatch):
    monkeypatch.chdir(small_run)
    (small_run / "run.json").unlink()
    (small_run / "model").rename(small_run / "digits-run")  # a name that starts like the data's
    for name in ("digits-run", str(small_run / "digits-run")):
        again, state = opened_by(Bits(Subject.load(name, "digits", count=24)).code(image=7), monkeypatch)
        assert (again.subject.name, again.subject.data, state) == (name, "digits", {"image": 7})


def test_the_line_of_code_reaches_every_image(monkeypatch):
    panel = Variance(Subject.load("digits", count=250))
    again, state = opened_by(panel.code(image=240), monkeypatch)
    assert shown(again.draw(**state)) == shown(panel.draw(image=240))


def test_the_line_of_code_of_a_picture_runs(digits):
    "It cannot hold the file, but must not end in an error of Python's."
    line = YourImage(digits).code(content=png(digits.images[0]))
    assert len(line) < 200 and isinstance(eval(line.partition("; ")[2], vars(explorer).copy()), ipywidgets.VBox)


def test_a_panel_without_a_subject_shows_glyphs_field(subjects, monkeypatch):
    monkeypatch.setattr(Subject, "load", lambda *args: subjects[args[0] if args else "glyphs-field"])
    assert Variance().subject.name == "glyphs-field"


# --- What single panels show


def test_variance_starts_with_the_held_out_images(digits):
    panel, look = Variance(digits), dict(side=64, above=20)
    with torch.no_grad():
        for index in (0, 9):
            expected = cell(picture(digits.images[index : index + 1], width=64), 0, side=64, above=0)
            assert np.array_equal(cell(panel.draw()["now"], index, **look), expected)
            strip = panel.draw(image=index)["strip"]
            assert np.array_equal(cell(strip, 0, side=64, above=40), expected)
    at_two = cell(panel.draw(image=0, scale=2.0)["now"], 0, 1, **look)
    assert not np.array_equal(at_two, cell(panel.draw(image=0, scale=0.0)["now"], 0, 1, **look))


def test_swap_of_no_token_gives_the_images_back(digits):
    look = dict(side=144, above=20)
    untouched, full = Swap(digits).draw(tokens=())["swapped"], Swap(digits).draw()["swapped"]
    for column, own in ((1, 0), (2, 3)):
        assert np.abs(cell(untouched, column, **look) - cell(untouched, own, **look)).max() <= 1  # up to rounding
        assert np.abs(cell(full, column, **look) - cell(full, own, **look)).max() > 1
    made = digits.model.decode(Latents(digits.latents.informative[3:4], digits.latents.redundant[17:18]))
    assert np.abs(cell(full, 1, **look) - cell(picture(made, width=144), 0, side=144, above=0)).max() <= 1


def test_swapping_an_image_with_itself_shows_no_change(digits):
    "Blue, as the note says: rounding errors are nothing to paint yellow."
    change = cell(Swap(digits).draw(first=3, second=3)["tokens"], 0, side=64, above=20)
    blue = np.array(matplotlib.colormaps["cividis"](0.0)[:3]) * 255
    assert np.abs(change - blue).max() <= 1


def test_traversing_by_nothing_changes_nothing(digits):
    now, look = Traverse(digits).draw(offset=0.0)["now"], dict(side=144, above=20)
    assert np.array_equal(cell(now, 0, **look), cell(now, 1, **look)) and len(np.unique(cell(now, 2, **look).reshape(-1, 3), axis=0)) == 1


def test_traversing_is_in_deviations_over_the_held_out_images(digits):
    for channel, group, index in ((1, "informative", 1), (3, "redundant", 0)):
        _, _, latents = digits.pick(4)
        getattr(latents, group)[0, 6, index] += 2 * getattr(digits.latents, group)[:, 6, index].std(correction=0)
        expected = cell(picture(digits.model.decode(latents), width=144), 0, side=144, above=0)
        outputs = Traverse(digits).draw(image=4, token=6, channel=channel, offset=2.0)
        assert np.abs(cell(outputs["now"], 1, side=144, above=20) - expected).max() <= 1
        assert np.abs(cell(outputs["sweep"], 4, side=64, above=40)[::8, ::8] - expected[::18, ::18]).max() <= 1  # titled +2


def test_the_most_surprising_images_cost_most(digits):
    order, surprise = digits.bits.argsort(), Bits(digits).draw()["surprise"]
    for row, chosen in enumerate((order[:6], order[-6:])):
        for column, index in enumerate(chosen):
            assert np.array_equal(cell(surprise, column, row, side=64, above=40), cell(picture(digits.images[index, None]), 0, side=64, above=0))


def test_the_bits_in_the_note_are_those_of_the_model(digits):
    image, label = digits.images[4:5], digits.labels[4:5]
    for choice, labels in (("its own", label), ("none", None), ("7", [7])):
        bits = digits.model.bits_per_dim(image, labels, generator=seeded(4)).item()
        assert f"{bits:.3f} bits/dim" in Bits(digits).draw(image=4, label=choice)["note"]


def test_the_figure_holds_what_the_prior_predicts(digits):
    figure = Mixture(digits).draw(image=4, token=6, across=2, up=0)["figure"]
    prediction = predict_token(digits.model, digits.pick(4)[2], digits.labels[4:5], 6, 1.0, seeded())
    traces = {trace.type + trace.name: trace for trace in figure.data}
    contour, own = traces["contourwith the class"], traces["scatterthis image"]
    assert (own.x[0], own.y[0]) == tuple(digits.latents.informative[4, 6, [2, 0]].tolist())
    points = torch.cartesian_prod(torch.as_tensor(contour.x), torch.as_tensor(contour.y)).float()
    density = library(marginal(prediction.conditional, [2, 0])).log_prob(points).exp().reshape(60, 60).T
    assert_close(torch.as_tensor(np.array(contour.z)).float(), density / density.max(), rtol=0, atol=1e-4)
    assert_close(torch.tensor(np.array(traces["barwithout"].y)).float(), prediction.unconditional.logits[0].softmax(-1), rtol=0, atol=1e-4)
    assert_close(torch.tensor(np.array(traces["scatterguided draws"].x)), prediction.draws[:, 2])


@pytest.mark.parametrize("control, value, columns", [("image", 5, {0, 1, 2, 3}), ("donor", 5, {3, 4}), ("scale", 3.0, {2})])
def test_basis_compares_its_models_column_by_column(digits, control, value, columns):
    panel, look = PANELS["Basis"](digits), dict(side=96, above=40)
    start, moved = panel.draw()["rows"], panel.draw(**{control: value})["rows"]
    assert pixels(start).shape == (2 * 140, 5 * 100, 4)  # a row for each model
    for row in (0, 1):
        assert {column for column in range(5) if not np.array_equal(cell(start, column, row, **look), cell(moved, column, row, **look))} == columns
    assert np.array_equal(cell(start, 0, 0, **look), cell(start, 0, 1, **look))  # of the same images


def test_basis_makes_what_its_titles_say(digits):
    panel, look = PANELS["Basis"](digits), dict(side=96, above=40)
    rows = panel.draw(image=4, donor=5, scale=2.0)["rows"]
    for row, subject in enumerate(panel.models):
        (_, label, latents), (_, _, other) = subject.pick(4), subject.pick(5)
        states = [redraw_redundant(subject.model, latents, label, scale, seeded()) for scale in (0, 2.0)] + [Latents(latents.informative, other.redundant)]
        for column, state in enumerate(states, 1):
            expected = cell(picture(subject.model.decode(state), width=96), 0, side=96, above=0)
            assert np.abs(cell(rows, column, row, **look) - expected).max() <= 1


def test_relatives_are_the_embedded_models_of_the_same_data(subjects, monkeypatch):
    digits = subjects["digits"]
    sources = {"digits": "digits", "glyphs": "glyphs", "digits-pca": "digits"}
    monkeypatch.setattr(explorer, "embedded_models", lambda: sorted(sources))
    monkeypatch.setattr(explorer, "read_source", sources.__getitem__)
    monkeypatch.setattr(Subject, "load", lambda name, *data, count: (name, count))
    assert relatives(digits) == [digits, ("digits-pca", 24)]
    complaint(ValueError, lambda: relatives(subjects["glyphs"]), "glyphs", "no other embedded model")


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
            complaint(ValueError, lambda: opened.draw(**ends[0]), "same channel")
            return
        for state in ends:
            state["up"] = 1 - min(state["across"], 1)
    assert all(shown(opened.draw(**state)) for state in ends)


@pytest.mark.parametrize("changes, refused", [
    (dict(num_classes=0), {"Mixture": "nothing to guide between"}),
    (dict(label_dropout=0), {"Mixture": "nothing to guide between"}),
    (dict(redundant="standard-normal"), {"Variance": "N(0, 1)", "Basis": "N(0, 1)"}),
    (dict(informative_channels=None), {"Variance": "no partition", "Swap": "no partition", "Basis": "no partition"}),
    (dict(prior="standard-normal"), dict.fromkeys(["Variance", "Bits", "Mixture", "Basis", "Your image"], "N(0, 1)")),
])  # fmt: skip
def test_panels_say_what_a_model_lacks(changes, refused):
    subject = small_subject(**changes)
    for name, panel in PANELS.items():
        opened = panel(subject)
        lowest = {key: control.values[0] for key, control in opened.controls().items() if control.kind == "slider"}
        if name == "Mixture":
            lowest["up"] = 1
        if name in refused:
            complaint(ValueError, lambda: opened.draw(**lowest), refused[name])
        else:
            assert shown(opened.draw(**lowest))


def test_a_model_without_classes_on_its_data(tmp_path):
    small(**{**DIGITS, "num_classes": 0}).save_pretrained(tmp_path / "model")
    subject = Subject.load(tmp_path / "model", "digits", count=24)
    assert (subject.labels == subject.model.null_class).all() and subject.bits.isfinite().all()
    for name in ("Variance", "Swap", "Traverse", "Bits", "Your image"):
        assert shown(PANELS[name](subject).draw())
    assert tuple(Bits(subject).controls()["label"].values) == ("its own", "none")
    assert "no label" in YourImage(subject).draw()["note"]


def test_many_components_of_equal_weight_have_a_figure():
    subject = small_subject(components=60)
    with torch.no_grad():
        for parameter in subject.model.prior.informative_head.linear.parameters():
            parameter[:60] = 0  # the logits
    assert Mixture(subject).draw(image=0, token=0)["figure"]


# --- Your image


def png(image: torch.Tensor) -> bytes:  # (C, H, W) in [-1, 1]
    values = to_levels(image, 256).permute(1, 2, 0).numpy()
    return encoded(Image.fromarray(values[..., 0] if values.shape[2] == 1 else values))


def encoded(page: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    page.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", ["digits", "glyphs", "glyphs-field"])
def test_an_image_of_the_data_is_read_exactly(subjects, name):
    subject = subjects[name]
    for image in subject.images[:3]:
        assert torch.equal(read_picture(png(image), image.shape, subject.model.config.levels)[0], image)


def test_a_larger_picture_is_cut_and_shrunk(digits):
    image = digits.images[0]
    large = F.pad(image.repeat_interleave(5, 1).repeat_interleave(5, 2), (13, 13), value=1)  # 40 high, 66 wide
    assert torch.equal(read_picture(png(large), (1, 8, 8), 17)[0], image)
    assert torch.equal(read_picture(png(large.mT), (1, 8, 8), 17)[0], image.mT)
    wide = image.repeat_interleave(2, 2)
    assert torch.equal(read_picture(png(F.pad(wide, (0, 0, 3, 3))), (1, 8, 16), 17)[0], wide)  # a model of oblong images


@pytest.mark.parametrize("levels", [2, 17, 32, 256])
def test_pictures_come_on_the_models_levels(levels):
    noise = torch.rand(3, 33, 47, generator=seeded()) * 2 - 1
    for channels in (1, 3):
        read = read_picture(png(noise), (channels, 8, 8), levels)
        places = (read + 1) / 2 * (levels - 1)
        assert read.shape == (1, channels, 8, 8) and read.dtype == torch.float32 and read.abs().max() <= 1
        assert_close(places, places.round(), rtol=0, atol=1e-4)


def test_grey_models_see_the_luminance_and_colour_models_see_grey():
    colour = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]]).reshape(3, 3, 1).repeat_interleave(3, 2)  # red, green and blue rows
    with Image.open(io.BytesIO(png(colour))) as page:
        expected = np.array(page.convert("L"))
    assert np.array_equal(to_levels(read_picture(png(colour), (1, 3, 3), 256), 256)[0, 0].numpy(), expected)
    grey = torch.linspace(-1, 1, 256).reshape(1, 16, 16)
    assert_close(read_picture(png(grey), (3, 16, 16), 256)[0], grey.expand(3, -1, -1))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_the_common_formats_are_read(kind):
    page = Image.fromarray(np.full((20, 20), 255, np.uint8))
    assert_close(read_picture(encoded(page, kind), (1, 4, 4), 17), torch.ones(1, 1, 4, 4))


def test_sixteen_bits_of_grey_are_read_as_their_upper_eight():
    values = np.linspace(0, 255, 64).astype(np.uint16).reshape(8, 8)
    deep, plain = (encoded(Image.fromarray(each)) for each in (values * 257, values.astype(np.uint8)))
    assert torch.equal(read_picture(deep, (1, 8, 8), 17), read_picture(plain, (1, 8, 8), 17))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))


@pytest.mark.parametrize("content", [
    b"hello", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", encoded(NOISE)[:60], encoded(NOISE)[:2000], encoded(NOISE, "JPEG")[:500],
    b"P6 3x 20 255 " + bytes(300),
])  # fmt: skip
def test_what_is_no_picture_is_refused(content):
    complaint(ValueError, lambda: read_picture(content, (3, 8, 8), 17), "not a picture that can be read", "PNG or JPEG")


def test_any_error_of_a_decoder_is_a_refusal(monkeypatch):
    "A damaged AVIF file ends in a RuntimeError of Pillow's."
    monkeypatch.setattr("farmer.explorer.Image.open", mock.Mock(side_effect=RuntimeError("Failed to decode image")))
    complaint(ValueError, lambda: read_picture(encoded(NOISE), (3, 8, 8), 17), "not a picture that can be read")


def test_a_file_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(explorer, "MAX_UPLOAD", 2_000_000)
    complaint(ValueError, lambda: read_picture(bytes(3_000_000), (1, 8, 8), 17), "3 MB", "at most 2", "smaller")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("most", [1500, 500])  # 1,600 pixels: Pillow warns of the first, and refuses beyond twice the second
def test_too_many_pixels_are_refused(monkeypatch, most):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", most)
    complaint(ValueError, lambda: read_picture(encoded(NOISE), (1, 8, 8), 17), "pixels", "too many", "smaller")


def test_nearest_is_nearest():
    values = torch.randn(50, 4, 3, generator=seeded())
    distances = torch.cdist(values[7:8].flatten(1), values.flatten(1))[0]
    assert nearest(values[7:8], values, 5) == distances.argsort()[:5].tolist() and nearest(values[7:8], values, 1) == [7]


def test_a_training_image_is_its_own_nearest(digits):
    "In pixels, in z^I and in z^R, read back from a file."
    for index in (0, 777):
        images, _, _ = digits.training
        nearest_rows = YourImage(digits).draw(content=png(images[index]))["nearest"]
        expected = cell(picture(images[index : index + 1]), 0, side=64, above=0)
        for row in range(3):
            same = [np.array_equal(cell(nearest_rows, column, row, side=64, above=20), expected) for column in range(3)]
            assert same == [True, True, False]  # the picture, its nearest, the next


def test_the_costs_in_the_note_are_those_of_the_model(digits):
    image = digits.images[2:3]
    bits = [digits.model.bits_per_dim(image, labels, generator=seeded()).item() for labels in (*([label] for label in range(10)), None)]
    note = YourImage(digits).draw(content=png(image[0]))["note"]
    assert f"{min(bits):.2f} bits/dim with label {np.argmin(bits[:10])}, {bits[10]:.2f} without a label" in note and note.startswith("Your picture")
    low, high = np.quantile(digits.bits.numpy(), (0.05, 0.95))
    assert f"Nine of ten held-out images cost {low:.2f} to {high:.2f}" in note


def test_the_latents_are_a_row_a_token(digits):
    page = pixels(YourImage(digits).draw(content=png(digits.images[2]))["latents"])[20:-4, :-4]
    values = torch.cat([digits.latents.informative[2], digits.latents.redundant[2]], 1)
    rows = columns = 10
    page = page[:, : columns * values.shape[1]]
    expected = cell(picture(heat_map(values[None], 3.0, signed=True), width=columns * values.shape[1]), 0, side=10_000, above=0)
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
def test_a_panel_shows_what_it_draws(digits, panel):
    opened = PANELS[panel](digits)
    root, name = opened.show(), type(opened).__name__.lower()
    assert isinstance(root, ipywidgets.Widget) and f"farmer-{name}" in root._dom_classes and alerts(root) == []
    for output, content in opened.draw().items():
        kind = {bytes: "Image", str: "HTML"}.get(type(content), "FigureWidget")
        widget = find(root, kind, name=f"farmer-{name}-{output}")
        if kind == "FigureWidget":
            assert [trace.name for trace in widget.data] == [trace.name for trace in content.data]
        else:
            assert widget.value == content
        if kind == "Image":
            assert widget.layout.width == f"{pixels(content).shape[1]}px"  # a pixel of the screen for each of the picture


def test_a_slider_redraws_and_reset_goes_back(digits):
    panel = Variance(digits)
    root = panel.show()
    now, start, line = find(root, "Image", name="farmer-variance-now"), panel.draw(), code_of(root)
    find(root, "FloatSlider", "variance times").value = 2.5
    find(root, "IntSlider", "seed").value = 4
    assert now.value == panel.draw(scale=2.5, seed=4)["now"] != start["now"]
    assert "scale=2.5, seed=4" in code_of(root)
    find(root, "Button", "reset").click()
    assert now.value == start["now"] and code_of(root) == line and find(root, "FloatSlider", "variance times").value == 1.0


def test_a_panel_opens_in_a_state(digits):
    panel = Bits(digits)
    root = panel.show(image=7, label="none")
    assert find(root, "Image", name="farmer-bits-maps").value == panel.draw(image=7, label="none")["maps"]
    assert (find(root, "IntSlider", "image").value, find(root, "Dropdown", "label").value) == (7, "none")
    find(root, "Dropdown", "label").value = "3"
    assert find(root, "Image", name="farmer-bits-maps").value == panel.draw(image=7, label="3")["maps"]
    find(root, "Button", "reset").click()
    assert find(root, "Image", name="farmer-bits-maps").value == panel.draw()["maps"]


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
        expected = panel.draw(**state)["figure"]
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
    now, slider = find(root, "Image", name="farmer-variance-now"), find(root, "IntSlider", "seed")
    before = now.value
    with mock.patch.object(panel, "pictures", side_effect=error("no <b>such</b> thing")):
        slider.value = 1
        assert ["no &lt;b&gt;such&lt;/b&gt; thing" in text for text in alerts(root)] == [True]
        assert now.value == before and now in walk(root)
    slider.value = 2
    assert alerts(root) == [] and now.value == panel.draw(seed=2)["now"] != before


def test_a_panel_that_fails_from_the_start_says_so(digits):
    with mock.patch.object(Bits, "pictures", side_effect=ValueError("not yet")):
        root = Bits(digits).show()
        assert ["not yet" in text for text in alerts(root)] == [True]
    find(root, "IntSlider", "image").value = 5
    assert alerts(root) == [] and find(root, "Image", name="farmer-bits-maps").value == Bits(digits).draw(image=5)["maps"]


def test_buttons_of_the_tokens(digits):
    panel = Swap(digits)
    root = panel.show()
    swapped, buttons = find(root, "Image", name="farmer-swap-swapped"), [widget for widget in walk(root) if isinstance(widget, ipywidgets.ToggleButton)]
    assert len(buttons) == 16 and all(button.value for button in buttons)
    with mock.patch.object(panel, "pictures", wraps=panel.pictures) as counted:
        find(root, "Button", "none").click()
        assert counted.call_count == 1 and not any(button.value for button in buttons)  # one redraw, not one for each button
    assert swapped.value == panel.draw(tokens=())["swapped"]
    buttons[5].value = buttons[2].value = True
    assert swapped.value == panel.draw(tokens=(2, 5))["swapped"] and "tokens=(2, 5)" in code_of(root)
    assert [button.button_style for button in buttons].count("primary") == 2
    find(root, "Button", "all").click()
    assert swapped.value == panel.draw()["swapped"]
    find(root, "Button", "none").click()
    find(root, "Button", "reset").click()
    assert swapped.value == panel.draw()["swapped"] and all(button.value for button in buttons)


def uploaded(content: bytes) -> tuple:
    "The value of an upload widget, as the browser sends it."
    return (traitlets.Bunch(name="a.png", type="image/png", size=len(content), content=memoryview(content), last_modified=datetime.now(timezone.utc)),)


def test_uploading_and_drawing(subjects):
    for name in ("digits", "glyphs-field"):
        panel = YourImage(subjects[name])
        root = panel.show()
        seen, note = find(root, "Image", name="farmer-yourimage-seen"), find(root, "HTML", name="farmer-yourimage-note")
        upload, canvas, start = find(root, "FileUpload"), find(root, "Canvas"), seen.value
        channels, height, width = panel.subject.model.config.image_shape
        assert canvas.shape == [channels, height, width]
        upload.value = uploaded(png(panel.subject.images[5]))
        assert seen.value == panel.draw(content=png(panel.subject.images[5]))["seen"] != start and note.value.startswith("Your picture")
        drawing = np.random.default_rng(0).integers(0, 256, (height, width, 4))
        drawing[..., 3] = 255
        canvas.pixels = drawing.flatten().tolist()
        drawn = encoded(Image.fromarray(drawing[..., :3].astype(np.uint8)))
        assert seen.value == panel.draw(content=drawn)["seen"]
        upload.value = uploaded(png(panel.subject.images[6]))  # whichever came last
        assert seen.value == panel.draw(content=png(panel.subject.images[6]))["seen"]
        find(root, "Button", "reset").click()
        assert seen.value == start and canvas.pixels == [] and upload.value == () and not note.value.startswith("Your picture")


def test_uploading_what_is_no_picture(digits):
    root = YourImage(digits).show()
    before = find(root, "Image", name="farmer-yourimage-seen").value
    find(root, "FileUpload").value = uploaded(b"hello")
    assert ["not a picture" in text for text in alerts(root)] == [True] and find(root, "Image", name="farmer-yourimage-seen").value == before


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
    assert panels_on(page) == ["Bits"] and find(page, "IntSlider", "image").value == 3 and "glyphs" in code_of(page)
    models.value = "digits"
    assert find(page, "IntSlider", "image").value == 5  # as it was left
    assert page_subjects == [("digits", None), ("glyphs", None)]  # each loaded once


def test_the_page_starts_with_glyphs_field(page_subjects):
    assert find(explore(), "Dropdown", "model").value == "glyphs-field" and page_subjects == [("glyphs-field", None)]


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
    monkeypatch.setattr(explorer, "relatives", mock.Mock(side_effect=ValueError("no other embedded model")))
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
            raise ImportError(f'this needs {name}: pip install "farmer[notebooks]"')
        if module == "plotly.graph_objects" and package == "anywidget":  # whose stand-in raises when it is made
            return SimpleNamespace(FigureWidget=mock.Mock(side_effect=ImportError("Please install anywidget to use the FigureWidget class")))
        return import_optional(module, name)

    explorer.canvas_class.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(explorer, "import_optional", refuse)
        yield
    explorer.canvas_class.cache_clear()


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
        assert shown(Variance(digits).draw())  # but drawn it can be
