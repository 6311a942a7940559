"Figures against other people's code and against known answers; evaluations that are interrupted, damaged or impossible."
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torchmetrics.image.fid import _compute_fid

from farmer.cli import main
from farmer.data import load_dataset
from farmer.evaluation import (
    EvaluationConfig, FeatureStatistics, Features, draw_samples, evaluate, extract, frechet_distance, inception_score, manifest,
    neighbour_radii, precision_recall, sample_figures, train_classifier,
)  # fmt: skip
from farmer.model import Farmer, FarmerConfig
from farmer.training import evaluate_bits_per_dim


def correlated(count: int, dimensions: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dimensions, generator=generator) @ torch.randn(dimensions, dimensions, generator=generator) + shift


# --- Figures


@pytest.mark.parametrize("dimensions", [1, 5, 40])
def test_frechet_distance_is_that_of_others(dimensions):
    first, second = correlated(300, dimensions, 0), correlated(200, dimensions, 1, shift=0.5)
    a, b = FeatureStatistics.of(first), FeatureStatistics.of(second)
    covariance = np.atleast_2d(np.cov(first.double().numpy(), rowvar=False))
    assert_close(a.covariance, torch.from_numpy(covariance))
    assert_close(a.mean, first.double().mean(0))
    ours = frechet_distance(a, b)
    assert ours == pytest.approx(_compute_fid(a.mean, a.covariance, b.mean, b.covariance).item(), rel=1e-6)
    theirs = [{"mu": each.mean.numpy(), "sigma": each.covariance.numpy()} for each in (a, b)]
    assert ours == pytest.approx(fid_statistics_to_metric(*theirs, False)["frechet_inception_distance"], rel=1e-6)
    assert ours == pytest.approx(frechet_distance(b, a), rel=1e-9) and abs(frechet_distance(a, a)) < 1e-6 * ours


def test_frechet_distance_of_known_gaussians():
    "Independent channels: the distance is |m1 - m2|^2 + |s1 - s2|^2."
    mean, scale = torch.randn(2, 30, dtype=torch.float64), torch.rand(2, 30, dtype=torch.float64)
    statistics = [FeatureStatistics(m, torch.diag(s.square())) for m, s in zip(mean, scale)]
    assert frechet_distance(*statistics) == pytest.approx(((mean[0] - mean[1]).square() + (scale[0] - scale[1]).square()).sum().item(), rel=1e-9)


def test_statistics_refuse_what_they_cannot_describe():
    with pytest.raises(ValueError, match="40 images for 40 features.*more than 40"):
        FeatureStatistics.of(torch.randn(40, 40))
    broken = torch.randn(50, 4)
    broken[3, 1], broken[7] = math.nan, math.inf
    with pytest.raises(ValueError, match="2 of 50 images"):
        FeatureStatistics.of(broken)
    with pytest.raises(ValueError, match="4 and of 5"):
        frechet_distance(FeatureStatistics.of(torch.randn(50, 4)), FeatureStatistics.of(torch.randn(50, 5)))


@pytest.mark.parametrize("count, splits", [(1000, 10), (1003, 10), (77, 1), (10, 10)])
def test_inception_score_is_that_of_others(count, splits):
    logits = 3 * correlated(count, 7, 2)
    theirs = isc_features_to_metric(logits, splits=splits, shuffle=False)
    mean, spread = inception_score(logits, splits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6) and spread == pytest.approx(theirs["inception_score_std"], rel=1e-6, abs=1e-9)


def test_inception_score_refuses_more_splits_than_images():
    with pytest.raises(ValueError, match="9 images in 10 splits"):
        inception_score(torch.randn(9, 3))


def brute_force(real: np.ndarray, generated: np.ndarray, neighbours: int) -> tuple[float, float]:
    "Precision and recall by their definition, one point after the other."

    def covered(points, centres):
        radii = [sorted(np.linalg.norm(centre - np.delete(centres, index, 0), axis=1))[neighbours - 1] for index, centre in enumerate(centres)]
        return float(np.mean([any(np.linalg.norm(point - centre) <= radius for centre, radius in zip(centres, radii)) for point in points]))

    return covered(generated, real), covered(real, generated)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_precision_and_recall_by_their_definition(neighbours):
    real, generated = correlated(90, 4, 3), correlated(70, 4, 4, shift=0.7)
    assert precision_recall(real, generated, neighbours) == brute_force(real.double().numpy(), generated.double().numpy(), neighbours)


def test_precision_and_recall_over_several_blocks():
    "Distances are computed a thousand rows at a time; the split must not show."
    points = correlated(2100, 3, 5)
    whole = torch.cdist(points.double(), points.double(), compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(math.inf)
    assert_close(neighbour_radii(points, 3), whole.kthvalue(3, dim=1).values.square(), rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="3 images have no 3 neighbours"):
        precision_recall(points[:3], points)


def test_batches_of_any_size_give_the_same_figures():
    held_out = load_dataset("digits", "test")
    images, labels = held_out.batch(range(300))
    train = load_dataset("digits")
    classifier = train_classifier(train, steps=20)
    real = extract(classifier, train.batch(range(300))[0])
    rows = [sample_figures(extract(classifier, images, size), labels, real) for size in (7, 64, 300)]
    for row in rows[1:]:
        assert row == pytest.approx(rows[0], rel=1e-6)
    assert rows[0]["Frechet distance"] > 0 and rows[0]["recall"] < 1


def test_the_classifier_depends_on_its_seed_alone():
    data = load_dataset("digits")
    torch.manual_seed(5)
    first = train_classifier(data, steps=3)
    state = torch.get_rng_state()
    again, other = train_classifier(data, steps=3), train_classifier(data, steps=3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)  # other people's random numbers are left alone
    assert torch.equal(first.head.weight, again.head.weight) and not torch.equal(first.head.weight, other.head.weight)


# --- Likelihood


def test_bits_of_a_known_density():
    "Standard normal prior, flow at the identity: bits can be integrated exactly."
    model, held_out = Farmer(FarmerConfig(prior="standard-normal", informative_channels=None)), load_dataset("digits", "test")
    images, _ = held_out.batch(range(len(held_out)))
    width = 2 / 16
    exact = 0.5 * math.log2(2 * math.pi) + (images.double().square() + width**2 / 12) / (2 * math.log(2)) - math.log2(width)
    off = evaluate_bits_per_dim(model, held_out, len(held_out), draws=4).double() - exact.mean((1, 2, 3))
    assert abs(off.mean()) < 4 * off.std() / len(off) ** 0.5


# --- Whole evaluations


SMALL = EvaluationConfig(samples=150, chunk=40, draws=1)


def see(images: torch.Tensor) -> Features:
    "An extractor of anyone's making."
    pixels = images.flatten(1)
    return Features(pixels[:, 24:32] + 0.1 * pixels[:, :8].cos(), pixels[:, :10])


@pytest.fixture
def arguments():
    return Farmer.from_pretrained("digits"), "digits", "digits", load_dataset("digits"), load_dataset("digits", "test")


def test_an_interrupted_evaluation_ends_the_same(arguments, tmp_path, monkeypatch):
    whole = evaluate(*arguments, SMALL, tmp_path / "whole", see)
    model, calls = arguments[0], []
    sample = model.sample

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(model, "sample", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate(*arguments, SMALL, tmp_path / "again", see)
    assert not (tmp_path / "again" / "evaluation.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(model, "sample", lambda labels, *args, **kwargs: calls.append(len(labels)) or sample(labels, *args, **kwargs))
        assert evaluate(*arguments, SMALL, tmp_path / "again", see) == whole
    assert calls[3:] == [40, 30]  # only what was missing
    assert json.loads((tmp_path / "again" / "evaluation.json").read_text()) == json.loads(json.dumps(whole))


def test_another_evaluations_samples_are_refused(arguments, tmp_path):
    evaluate(*arguments, SMALL, tmp_path, see)
    for changed in (replace(SMALL, guidance=1.0), replace(SMALL, seed=1), replace(SMALL, solver="student")):
        with pytest.raises(ValueError, match="another evaluation.*another folder"):
            evaluate(*arguments, changed, tmp_path, see)


def test_images_that_are_not_finite_are_counted(arguments, tmp_path, monkeypatch):
    model = arguments[0]
    sample = model.sample

    def broken(labels, *args, **kwargs):
        images = sample(labels, *args, **kwargs)
        images[1, 0, 3, 3], images[5] = math.nan, math.inf
        return images

    monkeypatch.setattr(model, "sample", broken)
    assert evaluate(*arguments, SMALL, tmp_path, see)["samples"]["not finite"] == 8
    images, labels, count = draw_samples(model, SMALL, tmp_path / "more", 17, "x")
    assert count == 8 and (images[1] == 0).all() and images.max() <= 16 and torch.equal(labels, torch.arange(150) % 10)


def test_the_manifest_tells_evaluations_apart(arguments):
    model, config = arguments[0], SMALL
    described = manifest(model, "digits", "digits", config)
    assert described["student sha256"] is None and len(described["weights sha256"]) == 64 and described["precision"] == "float32"
    assert manifest(model, "digits", "digits", replace(config, solver="student"))["student sha256"]
    assert manifest(model, "glyphs", "digits", config)["weights sha256"] != described["weights sha256"]
    assert json.loads(json.dumps(described)) == described


def test_evaluate_on_the_command_line(tmp_path, capsys):
    main(["evaluate", "digits", "--samples", "100", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "bits/dim given the label" in printed and "Frechet distance" in printed and str(tmp_path / "evaluation.json") in printed
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["manifest"]["settings"]["samples"] == 100 and report["samples"]["images"] == 100
    for wrong, word in ((["--samples", "0"], "samples"), (["--data", "glyphs"], "images"), (["--guidance", "much"], "guidance")):
        with pytest.raises(SystemExit) as caught:
            main(["evaluate", "digits", "--folder", str(tmp_path / "new"), *wrong])
        error = capsys.readouterr().err.splitlines()[-1]
        assert caught.value.code == 2 and error.startswith("farmer: ") and word in error
