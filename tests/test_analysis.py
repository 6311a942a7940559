"The instruments against autograd, torch.distributions and plain loops; what models of other kinds are refused; pictures of all sorts of files."
import json
import math
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import LABELS, complaint, encoded, images_for, library, png, seeded, small, small_with_latents
from PIL import Image
from pictures import MODES, indexed, tolerance, with_red_and_blue_exchanged
from torch.autograd.functional import jacobian
from torch.nn import functional as F
from torch.testing import assert_close

from farmer import Farmer, analysis, load_dataset
from farmer.analysis import (
    Subject, _image_factors, channel_reach, concatenate, cut_out, likelihood_parts, nearest, predict_token, probes, read_picture, redraw_redundant,
    share_between_components, swap_redundant, traverse,
)  # fmt: skip
from farmer.data import to_levels
from farmer.model import Latents
from farmer.patches import dequantize

ORDERS = [(1, True), (1, False), (2, True), (2, False), (3, True), (3, False)]  # number of flow blocks, and final_order_flip


def prior_order(blocks: int, flip: bool, tokens: int = 4) -> list[int]:
    "Tokens in the order in which the prior reads them, by the rule of the configuration."
    after_the_last_block = range(tokens) if blocks % 2 == 0 else reversed(range(tokens))
    return list(after_the_last_block)[:: 1 if flip else -1]


def part_of(latents: Latents, index: slice) -> Latents:
    return Latents(latents.informative[index], latents.redundant[index])


def first_of(latents: Latents) -> Latents:
    return part_of(latents, slice(1))


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
        means = model.prior.mixtures(latents.informative, LABELS)[1].component_mean  # (6, 1, 8, 2)
    distance, component = (drawn.unsqueeze(2) - means).norm(dim=-1).min(-1)
    assert distance.max() == 0 and all(len(row.unique()) > 1 for row in component)


@pytest.mark.parametrize("blocks, flip", ORDERS)
def test_scale_one_is_the_models_own_draw(blocks, flip, monkeypatch):
    "From the generator's state at which sampling comes to z^R, redrawing gives the very values that were sampled."
    model, _ = small_with_latents(flow_blocks=blocks, final_order_flip=flip)
    generator, states, predict = seeded(), [], model.prior.redundant_mixture
    monkeypatch.setattr(model.prior, "redundant_mixture", lambda hidden: states.append(generator.get_state()) or predict(hidden))
    latents = model.sample_latents(LABELS, generator=generator)
    generator.set_state(states[0])
    assert_close(redraw_redundant(model, latents, LABELS, 1.0, generator).redundant, latents.redundant)


@pytest.mark.parametrize("scale, changes, words", [
    (-0.1, {}, ["0 or more", "-0.1"]),
    (math.nan, {}, ["0 or more", "nan"]),
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
    first, second = (part_of(latents, part) for part in (slice(0, 3), slice(3, 6)))
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
    joined = concatenate([first, second])
    assert torch.equal(joined.informative, latents.informative) and torch.equal(joined.redundant, latents.redundant)


# --- One channel moved


@pytest.mark.parametrize("channel", range(4))
def test_traversing_changes_one_value(channel):
    _, latents = small_with_latents(informative_channels=3)
    one, offsets = first_of(latents), torch.tensor([-2.0, 0.0, 0.5], dtype=torch.float64)
    before = torch.cat([one.informative, one.redundant], 2).clone()
    moved = traverse(one, 2, channel, offsets)
    expected = torch.zeros(3, 4, 4, dtype=torch.float64)
    expected[:, 2, channel] = offsets
    assert_close(torch.cat([moved.informative, moved.redundant], 2) - before, expected)
    assert torch.equal(torch.cat([one.informative, one.redundant], 2), before)


@pytest.mark.parametrize("changes", [dict(image_shape=(3, 4, 4), informative_channels=5), dict(informative_channels=None)])
def test_reach_counts_the_pixels_of_a_plain_loop(changes):
    model, latents = small_with_latents(**changes)
    one, d = first_of(latents), model.config.token_channels
    deviations = torch.linspace(0, 3, d, dtype=torch.float64)
    start, counts = model.decode(one)[0], []
    for channel in range(d):
        z = torch.cat([one.informative, one.redundant], 2)
        z[0, 1, channel] += deviations[channel]
        change = model.decode(Latents(*model.partition.split(z)))[0] - start
        counts.append(sum(any(abs(change[c, y, x]) > 0.5 for c in range(len(start))) for y in range(4) for x in range(4)))  # 5 levels: 0.5 apart
    assert channel_reach(model, one, 1, deviations).tolist() == counts and 0 == counts[0] < max(counts)
    assert channel_reach(model, one, 1, deviations, range(0, d, 2)).tolist() == counts[::2]


# --- Where the bits are paid


def test_the_parts_are_computed_few_images_at_a_time(monkeypatch):
    "As many as fit into memory."
    model, _ = small_with_latents()
    noisy, sizes = dequantize(images_for(model), 5, seeded()), []
    whole = likelihood_parts(model, noisy, LABELS)
    monkeypatch.setattr(analysis, "images_at_once", lambda config: 4)
    model.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    parts = likelihood_parts(model, noisy, LABELS)
    assert sizes == [4, 2]
    for part in ("informative", "redundant", "volume_informative", "volume_redundant"):
        assert_close(getattr(parts, part), getattr(whole, part))


@pytest.mark.parametrize("changes", [
    dict(flow_blocks=1), dict(flow_blocks=2), dict(flow_blocks=3), dict(flow_blocks=2, final_order_flip=False), dict(flow_blocks=3, final_order_flip=False),
    dict(informative_channels=None), dict(redundant="standard-normal"), dict(scale_first_token=False), dict(image_shape=(3, 4, 8), informative_channels=5),
    dict(flow="coupling"), dict(prior="standard-normal"), dict(prior="standard-normal", flow="coupling", informative_channels=None),
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


@pytest.mark.parametrize("changes", [
    dict(flow_blocks=1), dict(flow_blocks=2), dict(flow_blocks=3, scale_first_token=False), dict(informative_channels=None), dict(flow="coupling"),
])  # fmt: skip
def test_the_volume_is_autograds_determinant(changes):
    model, _ = small_with_latents(**changes)
    noisy = dequantize(images_for(model), 5, seeded())
    parts = likelihood_parts(model, noisy, LABELS)
    volume = -math.log(2) * (parts.volume_informative + parts.volume_redundant).sum(1) - 16 * math.log(2 / 4)
    for index in range(len(noisy)):
        full = jacobian(lambda image: model.flow(model.tokens_of(image))[0], noisy[index : index + 1]).reshape(16, 16)
        assert_close(volume[index], torch.linalg.slogdet(full).logabsdet)
    assert volume.abs().min() > 1e-2  # not the identity


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_the_volume_of_a_token_is_the_diagonal_of_the_jacobian(blocks):
    "Of one block's; of several blocks, the product of their diagonals."
    model, _ = small_with_latents(flow_blocks=blocks, informative_channels=3)
    noisy = dequantize(images_for(model), 5, seeded())[:2]
    parts = likelihood_parts(model, noisy, LABELS[:2])
    for index in range(2):
        state, logs = model.tokens_of(noisy[index : index + 1]), torch.zeros(4, 4, dtype=torch.float64)
        for block in model.flow.blocks:
            logs += jacobian(lambda x: block(x)[0], state).reshape(16, 16).diagonal().abs().log().reshape(4, 4)
            state = block(state)[0].detach()
        bits = -(logs + math.log(2 / 4)) / math.log(2)
        assert_close(parts.volume_informative[index], bits[:, :3].sum(1))
        assert_close(parts.volume_redundant[index], bits[:, 3:].sum(1))


@pytest.mark.parametrize("blocks, flip", ORDERS)
def test_densities_stand_where_their_tokens_are_in_the_image(blocks, flip):
    "Against torch.distributions. A token's density depends on the tokens that the prior reads before it, and on no other."
    model, _ = small_with_latents(flow_blocks=blocks, final_order_flip=flip)
    noisy, order = dequantize(images_for(model), 5, seeded()), prior_order(blocks, flip)
    parts = likelihood_parts(model, noisy, LABELS)
    with torch.no_grad():
        latents = model.encode(noisy)
        shared = library(model.prior.mixtures(latents.informative, LABELS)[1])
        for place, token in enumerate(order):
            spoilt = latents.informative.clone()
            spoilt[:, order[place:]] = 100.0
            own = library(model.prior.mixtures(spoilt, LABELS)[0][:, token])
            assert_close(parts.informative[:, token] * -math.log(2), own.log_prob(latents.informative[:, token]))
            assert_close(parts.redundant[:, token] * -math.log(2), shared.log_prob(latents.redundant[:, token, None])[:, 0])


def test_the_share_between_components_obeys_the_law_of_total_variance():
    model, latents = small_with_latents(redundant_components=5)
    with torch.no_grad():
        shared = model.prior.mixtures(latents.informative, LABELS)[1]
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
    "And depends on the tokens that the prior reads before it, not on this one nor on later ones."
    model, latents = small_with_latents(flow_blocks=blocks, final_order_flip=flip)
    one, order = first_of(latents), prior_order(blocks, flip)
    for place, token in enumerate(order):
        found = predict_token(model, one, LABELS[1:2], token, 0.0, seeded())
        for mixture, label in ((found.conditional, LABELS[1:2]), (found.unconditional, torch.tensor([model.null_class]))):
            with torch.no_grad():
                own = model.prior.mixtures(one.informative, label)[0][:, token]
            for name in ("logits", "component_mean", "component_log_scale"):
                assert_close(getattr(mixture, name), getattr(own, name))
        for tokens, same in ((order[place:], True), (order[:place], place == 0)):
            moved = Latents(one.informative.clone(), one.redundant)
            moved.informative[:, tokens] += 1
            again = predict_token(model, moved, LABELS[1:2], token, 0.0, seeded())
            for pair in ((found.conditional, again.conditional), (found.unconditional, again.unconditional)):
                assert torch.allclose(*(mixture.component_mean for mixture in pair)) == same
            assert torch.allclose(found.draws, again.draws) == same


def test_without_guidance_the_draws_come_from_the_conditional():
    model, latents = small_with_latents()
    found = predict_token(model, first_of(latents), LABELS[:1], 1, 0.0, seeded(), draws=20_000)
    expected = library(found.conditional)
    assert_close(found.guided.component_mean, found.conditional.component_mean)
    assert found.draws.shape == (20_000, 2) and found.effective_sample_size == pytest.approx(100_000)
    assert_close(found.draws.mean(0), expected.mean[0], rtol=0, atol=0.06)
    assert_close(found.draws.var(0), expected.variance[0], rtol=0.06, atol=0)


def test_guided_draws_follow_the_guided_density():
    "Whose moments a sum over a grid gives: p_c^(1+w) p_u^(-w), of one channel."
    model, latents = small_with_latents(seed=1, informative_channels=1)
    found = predict_token(model, first_of(latents), LABELS[:1], 0, 1.5, seeded(), draws=20_000)
    grid = torch.linspace(-15, 15, 6001, dtype=torch.float64).unsqueeze(1)
    weight = (2.5 * library(found.conditional).log_prob(grid) - 1.5 * library(found.unconditional).log_prob(grid)).softmax(0)
    mean = weight @ grid[:, 0]
    assert_close(found.draws.mean(), mean, rtol=0, atol=0.06)
    assert_close(found.draws.var(), weight @ (grid[:, 0] - mean).square(), rtol=0.06, atol=0)
    assert (mean - library(found.conditional).mean[0, 0]).abs() > 0.1  # guidance does something here


@pytest.mark.parametrize("changes, words", [
    (dict(num_classes=0), "nothing to guide between"), (dict(label_dropout=0), "nothing to guide between"), (dict(prior="standard-normal"), "N(0, 1)"),
])  # fmt: skip
def test_models_with_nothing_to_guide_between_are_refused(changes, words):
    model, latents = small_with_latents(**changes)
    complaint(ValueError, lambda: predict_token(model, first_of(latents), torch.tensor([0]), 0, 1.0), words)


@pytest.mark.parametrize("compute", [
    lambda model, latents: redraw_redundant(model, latents, LABELS, 0.5, seeded()).redundant,
    lambda model, latents: likelihood_parts(model, images_for(model), LABELS).total,
    lambda model, latents: share_between_components(model, latents, LABELS),
    lambda model, latents: predict_token(model, first_of(latents), LABELS[:1], 1, 1.0, seeded()).draws,
], ids=["redraw", "parts", "share", "prediction"])  # fmt: skip
def test_dropout_plays_no_part(compute):
    "As in the model's own methods, whatever its mode, which comes back."
    model, latents = small_with_latents(dropout=0.5)
    evaluated = compute(model, latents)
    assert_close(compute(model.train(), latents), evaluated)
    assert all(module.training for module in model.modules())


# --- Probes


def test_factors_of_a_known_image():
    images = -torch.ones(2, 3, 8, 8)
    images[0, :, 0, 0] = 1  # white, in the corner
    images[1, 0, 4:, 4:] = 1  # red, in the lower right quarter
    factors = _image_factors(images)
    assert_close(factors["position"][0], torch.tensor([-1.0, -1.0]))
    assert_close(factors["position"][1], torch.tensor([4 / 7, 4 / 7]))
    assert_close(factors["stroke"][:, 0], torch.tensor([2 / 64, 16 * 2 / 3 / 64]))
    assert_close(factors["luma"][0], torch.tensor([-0.5, *[-1.0] * 15]))
    assert_close(factors["colour"][0], torch.zeros(32), rtol=0, atol=1e-6)
    red = factors["colour"][1].view(2, 4, 4)
    assert_close(red[:, 3, 3], torch.tensor([2 / 2**0.5, 2 / 6**0.5]))
    assert_close(red[:, :2], torch.zeros(2, 2, 4), rtol=0, atol=1e-6)  # no colour above it
    assert "colour" not in _image_factors(images[:, :1])


def test_probes_read_what_is_there():
    model, (train, held_out) = Farmer.from_pretrained("glyphs-field"), (load_dataset("glyphs-field", split) for split in ("train", "test"))
    table = probes(model, train, held_out, images=1500)
    for target in ("class", "class, 5 nearest neighbours", "position"):
        assert table[target]["informative"] > 0.8 > 0.5 > table[target]["redundant"]
    assert table["colour"]["redundant"] > 0.8 > 0.3 > table["colour"]["informative"] and table["colour"]["pixels"] > 0.95
    upside_down = lambda images: [part for part in reversed(model.partition.split(model.tokens_of(images)))]
    swapped = probes(model, train, held_out, images=600, channels=upside_down)  # on the basis alone
    assert swapped["colour"]["informative"] > 0.8 > 0.3 > swapped["colour"]["redundant"]


def test_probes_of_a_model_without_a_partition():
    model = small(image_shape=(1, 8, 8), num_classes=10, levels=17, informative_channels=None)
    table = probes(model, load_dataset("digits"), load_dataset("digits", "test"), images=300)
    assert table.keys() == {"class", "class, 5 nearest neighbours", "position", "stroke"} and table["class"].keys() == {"informative", "pixels"}


# --- The subject


@pytest.fixture
def small_run(tmp_path):
    "The folder of a run on digits with a small model in it."
    small(image_shape=(1, 8, 8), num_classes=10, levels=17).save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"data": "digits"}))
    return tmp_path / "run"


@pytest.mark.parametrize("name", ["digits", "glyphs", "glyphs-field"])
def test_a_subject_holds_the_first_held_out_images_of_every_class(name):
    subject, test = Subject.load(name, count=24), load_dataset(name, "test")
    turns = [(test.labels == label).nonzero()[turn].item() for turn in range(3) for label in range(10)]
    images, labels = test.batch(turns[:24])
    assert (subject.name, subject.data, subject.code) == (name, name, f"Subject.load({name!r}, count=24)")
    assert torch.equal(subject.images, images) and torch.equal(subject.labels, labels)
    assert_close(subject.model.decode(subject.latents), images, rtol=0, atol=1e-3)
    assert_close(subject.bits, subject.model.bits_per_dim(images, labels, generator=seeded()), rtol=0, atol=1e-3)
    picked, label, latents = subject.pick([5, 2])
    assert torch.equal(picked, images[[5, 2]]) and torch.equal(label, labels[[5, 2]])
    assert torch.equal(latents.redundant, subject.latents.redundant[[5, 2]]) and torch.equal(subject.pick(5)[0], images[5:6])
    assert not subject.latents.informative.requires_grad


def test_training_images_are_from_the_training_split():
    subject, train = Subject.load("digits", count=24), load_dataset("digits", "train")
    images, latents = subject.training
    every = train.batch(range(len(train)))[0]
    assert len(images) == len(train) and {image.numpy().tobytes() for image in images} == {image.numpy().tobytes() for image in every}
    for label in range(10):  # classes take turns
        assert torch.equal(images[label], every[(train.labels == label).nonzero()[0].item()])
    with torch.no_grad():
        assert_close(latents.redundant[[0, 1000]], subject.model.encode(images[[0, 1000]]).redundant)


@pytest.mark.parametrize("side, held_out, training", [(8, 200, 5000), (16, 200, 5000), (32, 200, 1302), (64, 200, 325), (256, 20, 200)])
def test_fewer_images_if_they_are_large(side, held_out, training, tmp_path, monkeypatch):
    "As reading 5,000 of 32 x 32 pixels would take a quarter of a minute, and the density of 200 of 256 x 256 pixels half of one."
    small(image_shape=(3, side, side), patch_size=min(16, side // 2), num_classes=10, levels=256).save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(analysis, "_one_of_each_class", lambda dataset, count: asked.append(count) or [0])
    subject = Subject.load(tmp_path, "photos")
    assert len(subject.images) == len(subject.training[0]) == 1 and asked == [held_out, training]
    assert subject.code == f"Subject.load({str(tmp_path)!r}, 'photos')"


def test_more_images_than_there_are():
    assert len(Subject.load("digits", count=10_000).images) == 360


def test_the_folder_of_a_run(small_run):
    for folder in (small_run / "model", str(small_run / "model")):
        subject = Subject.load(folder, count=5)
        assert (subject.name, subject.data) == (str(small_run / "model"), "digits") and len(subject.images) == len(subject.latents.redundant) == 5
    given = Subject.load(folder, "digits", count=5)
    assert given.data == "digits" and given.code == f"Subject.load({folder!r}, 'digits', count=5)"
    (small_run / "run.json").unlink()
    complaint(ValueError, lambda: Subject.load(folder), "data", folder)
    assert torch.equal(Subject.load(folder, "digits", count=5).images, subject.images)


def test_a_folder_with_the_name_of_an_embedded_model(small_run, monkeypatch):
    monkeypatch.chdir(small_run)
    (small_run / "run.json").unlink()
    (small_run / "model").rename(small_run / "digits")
    subject = Subject.load(Path("digits"), "digits")
    assert subject.code == "Subject.load('./digits', 'digits')" and subject.model.config.flow_width == 16


def test_nothing_there():
    complaint(FileNotFoundError, lambda: Subject.load("no-such-model"), "'no-such-model'", "digits, glyphs")
    complaint(ValueError, lambda: Subject.load("digits", "no-such-data"), "'no-such-data'")
    complaint(FileNotFoundError, lambda: Subject.load("digits", "./no-such-data"), "no-such-data")


def test_photographs_come_in_the_size_of_the_model(tmp_path):
    small(image_shape=(3, 64, 64), patch_size=16, num_classes=10, levels=256).save_pretrained(tmp_path)
    assert Subject.load(tmp_path, "photos", count=10).images.shape == (10, 3, 64, 64)


@pytest.mark.parametrize("name, data", [("digits", "glyphs"), ("digits", "glyphs-field"), ("glyphs", "glyphs-field")])
def test_data_of_another_size_is_refused(name, data):
    complaint(ValueError, lambda: Subject.load(name, data), f"{name} expects", *(str(load_dataset(each, "test").image_shape) for each in (name, data)))


@pytest.mark.parametrize("changes, words", [(dict(num_classes=1, levels=256), ["classes: 2", "1"]), (dict(num_classes=2, levels=5), ["levels: 256", "5"])])
def test_data_that_a_model_cannot_have_learned_is_refused(tmp_path, picture_folder, changes, words):
    "Labels beyond its classes, or pixels off its grid of levels, which would make bits per dimension wrong."
    small(image_shape=(3, 4, 4), informative_channels=5, **changes).save_pretrained(tmp_path / "model")
    complaint(ValueError, lambda: Subject.load(tmp_path / "model", picture_folder), str(tmp_path / "model"), *words)


@pytest.fixture
def picture_folder(tmp_path) -> str:
    "Two classes of twenty pictures, of which it keeps four for testing."
    for index in range(40):
        folder = tmp_path / "data" / f"class-{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8, 3), 6 * index, np.uint8)).save(folder / f"{index:03}.png")
    return str(tmp_path / "data")


def test_a_small_folder_of_pictures_is_a_subject(tmp_path, picture_folder):
    small(image_shape=(3, 4, 4), informative_channels=5, num_classes=2, levels=256).save_pretrained(tmp_path / "model")
    subject = Subject.load(tmp_path / "model", picture_folder)
    assert subject.images.shape == (4, 3, 4, 4) and subject.labels.tolist() == [0, 1, 0, 1] and len(subject.training[0]) == 36


def test_a_model_without_classes_on_its_data(tmp_path):
    small(image_shape=(1, 8, 8), num_classes=0, levels=17).save_pretrained(tmp_path / "model")
    subject = Subject.load(tmp_path / "model", "digits", count=24)
    assert (subject.labels == subject.model.null_class).all() and subject.bits.isfinite().all()


# --- Pictures from files


@pytest.mark.parametrize("name", ["digits", "glyphs", "glyphs-field"])
def test_an_image_of_the_data_is_read_exactly(name):
    data = load_dataset(name, "test")
    for image in data.batch(range(3))[0]:
        assert torch.equal(read_picture(png(image), image.shape, data.levels)[0], image)


def test_a_larger_picture_is_cut_and_shrunk():
    image = load_dataset("digits", "test").batch([0])[0][0]
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
    colour = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    found = to_levels(read_picture(encoded(Image.fromarray(colour)), (1, 8, 8), 256), 256)[0, 0].numpy()
    assert np.abs(found - colour @ [0.299, 0.587, 0.114]).max() < 1
    grey = torch.linspace(-1, 1, 256).reshape(1, 16, 16)
    assert_close(read_picture(png(grey), (3, 16, 16), 256)[0], grey.expand(3, -1, -1))


@pytest.mark.parametrize("place, rows, columns", [
    (dict(), slice(0, 6), slice(3, 9)), (dict(across=0), slice(0, 6), slice(0, 6)), (dict(across=1, down=0.7), slice(0, 6), slice(6, 12)),
    (dict(zoom=2, across=0, down=1), slice(3, 6), slice(0, 3)), (dict(zoom=2, across=1 / 3, down=0), slice(0, 3), slice(3, 6)),
])  # fmt: skip
def test_a_piece_is_cut_where_it_was_asked_for(place, rows, columns):
    "Of a picture of 6 x 12 squares, each of 10 pixels."
    squares = np.random.default_rng(0).integers(0, 256, (6, 12, 3), np.uint8)
    content, side = encoded(Image.fromarray(squares.repeat(10, 0).repeat(10, 1))), rows.stop - rows.start
    found = to_levels(read_picture(content, (3, side, side), 256, **place), 256)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, squares[rows, columns])
    assert cut_out((120, 60), (3, side, side), **place) == pytest.approx([10 * columns.start, 10 * rows.start, 10 * columns.stop, 10 * rows.stop])


@pytest.mark.parametrize("size", [(1, 1), (4000, 1), (1, 4000), (3000, 7)])
def test_pictures_of_any_size_and_place_are_read(size):
    content = encoded(Image.new("RGB", size, (255, 0, 0)))
    for place in ({}, dict(across=1.0, down=1.0, zoom=10), dict(across=0.3, down=0.9, zoom=2.7)):
        for shape in ((3, 8, 8), (3, 4, 12)):
            assert_close(read_picture(content, shape, 256, **place), torch.tensor([1.0, -1, -1]).reshape(1, 3, 1, 1).expand(1, *shape))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_the_common_formats_are_read(kind):
    page = Image.fromarray(np.full((20, 20), 255, np.uint8))
    assert_close(read_picture(encoded(page, kind), (1, 4, 4), 17), torch.ones(1, 1, 4, 4))


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_is_read_as_a_viewer_shows_it(mode):
    content, expected = MODES[mode]
    expected = np.broadcast_to(expected.reshape(*expected.shape[:2], -1), (*expected.shape[:2], 3)).astype(float)
    found = to_levels(read_picture(content, (3, *expected.shape[:2]), 256), 256)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - expected).max() <= tolerance(mode)
    grey = to_levels(read_picture(content, (1, *expected.shape[:2]), 256), 256)[0, 0].numpy()
    assert np.abs(grey - expected @ [0.299, 0.587, 0.114]).max() <= 3
    coarse = (read_picture(content, (3, *expected.shape[:2]), 17) + 1) * 8
    assert_close(coarse, coarse.round(), rtol=0, atol=1e-5)
    assert np.abs(coarse[0].permute(1, 2, 0).numpy() - expected / 255 * 16).max() < 0.75


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))


@pytest.mark.parametrize("content", [
    b"hello", b"\x89PNG\r\n\x1a\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", encoded(NOISE)[:60], encoded(NOISE)[:2000], encoded(NOISE, "JPEG")[:500],
    b"P6 3x 20 255 " + bytes(300), encoded(NOISE, "JPEG", icc_profile=with_red_and_blue_exchanged())[:-200], encoded(indexed(), "GIF")[:-90], b"",
])  # fmt: skip
def test_what_is_no_picture_is_refused(content):
    complaint(ValueError, lambda: read_picture(content, (3, 8, 8), 17), "not a picture that can be read", "PNG or JPEG")


def test_any_error_of_a_decoder_is_a_refusal(monkeypatch):
    "A damaged AVIF file ends in a RuntimeError of Pillow's."
    monkeypatch.setattr("farmer.analysis.Image.open", mock.Mock(side_effect=RuntimeError("Failed to decode image")))
    complaint(ValueError, lambda: read_picture(encoded(NOISE), (3, 8, 8), 17), "not a picture that can be read")


def test_a_file_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(analysis, "_MAX_UPLOAD", 2_000_000)
    complaint(ValueError, lambda: read_picture(bytes(3_000_000), (1, 8, 8), 17), "3 MB", "at most 2", "smaller")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("most", [1500, 500])  # 1,600 pixels: Pillow warns of the first, and refuses beyond twice the second
def test_too_many_pixels_are_refused(monkeypatch, most):
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", most)
    complaint(ValueError, lambda: read_picture(encoded(NOISE), (1, 8, 8), 17), "pixels", "too many", "smaller")


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_small_file_that_would_fill_the_memory_is_refused(side):
    complaint(ValueError, lambda: read_picture(b"P5 %d %d 255 " % (side, side), (1, 8, 8), 17), "pixels", "too many", "smaller")


def test_nearest_is_nearest():
    values = torch.randn(50, 4, 3, generator=seeded())
    distances = torch.cdist(values[7:8].flatten(1), values.flatten(1))[0]
    assert nearest(values[7:8], values, 5) == distances.argsort()[:5].tolist() and nearest(values[7:8], values, 1) == [7]
    assert len(nearest(values[7:8], values, 60)) == 50
