"Figures against other people's code and against known answers; evaluations that are interrupted, damaged or impossible."
import json
import math
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import complaint, mistake, seeded
from torch.testing import assert_close
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torchmetrics.image.fid import _compute_fid

from farmer import Farmer, FarmerConfig, Jacobi, Student, load_dataset
from farmer.cli import main
from farmer.evaluation import (
    EvaluationConfig, FeatureStatistics, Features, Inception, Reference, _neighbour_radii, _write_arrays, draw_samples, evaluate, extract,
    frechet_distance, inception_score, inverse_by_name, manifest, precision_recall, read_reference, sample_figures, train_classifier,
    write_reference,
)  # fmt: skip
from farmer.data import ArrayDataset
from farmer.files import file_digest, lock_folder
from farmer.objectives import evaluate_bits_per_dim


def correlated(count: int, dimensions: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = seeded(seed)
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
    complaint(ValueError, lambda: FeatureStatistics.of(torch.randn(40, 40)), "40 images for 40 features", "more than 40")
    broken = torch.randn(50, 4)
    broken[3, 1], broken[7] = math.nan, math.inf
    complaint(ValueError, lambda: FeatureStatistics.of(broken), "2 of 50 images")
    complaint(ValueError, lambda: frechet_distance(*(FeatureStatistics.of(torch.randn(50, size)) for size in (4, 5))), "4 and of 5")


@pytest.mark.parametrize("count, splits", [(1000, 10), (1003, 10), (77, 1), (10, 10)])
def test_inception_score_is_that_of_others(count, splits):
    logits = 3 * correlated(count, 7, 2)
    theirs = isc_features_to_metric(logits, splits=splits, shuffle=False)
    mean, spread = inception_score(logits, splits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-6) and spread == pytest.approx(theirs["inception_score_std"], rel=1e-6, abs=1e-9)


def test_inception_score_refuses_more_splits_than_images():
    complaint(ValueError, lambda: inception_score(torch.randn(9, 3)), "9 images in 10 splits")


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
    assert_close(_neighbour_radii(points, 3), whole.kthvalue(3, dim=1).values.square(), rtol=1e-6, atol=1e-9)
    complaint(ValueError, lambda: precision_recall(points[:3], points), "3 images have no 3 neighbours")


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_no_figure_of_features_that_are_not_finite(wrong):
    good, broken = torch.randn(60, 4, generator=seeded()), torch.randn(60, 4, generator=seeded())
    broken[3, 1] = broken[7, 0] = wrong
    complaint(ValueError, lambda: inception_score(broken), "2 of 60 images are not finite")
    complaint(ValueError, lambda: Reference.of(Features(broken, good)), "2 of 60 images are not finite")
    for pair in ((good, broken), (broken, good)):
        complaint(ValueError, lambda: precision_recall(*pair), "images are not finite")
    complaint(ValueError, lambda: sample_figures(Features(broken[:8], good[:8]), None, Reference.of(Features(good[:4], good[:4]))), "not finite")


def test_only_what_needs_more_images_is_left_out():
    features = lambda count, seed: Features(correlated(count, 12, seed), correlated(count, 5, seed + 1), correlated(count, 20, seed + 2))
    whole = sample_figures(features(300, 0), None, Reference.of(features(300, 5)))
    assert all(type(value) is float for name, value in whole.items() if name != "images")
    rows = lambda drawn, real: sample_figures(features(drawn, 0), None, Reference.of(features(real, 5))).items()
    left_out = lambda drawn, real: {name for name, value in rows(drawn, real) if type(value) is str}
    assert left_out(300, 15) == {"spatial Frechet distance"} and left_out(15, 300) == {"spatial Frechet distance"}
    assert left_out(300, 12) == {"Frechet distance", "spatial Frechet distance"}
    assert left_out(300, 3) == {"Frechet distance", "spatial Frechet distance", "precision", "recall"}
    assert left_out(9, 300) == {"Frechet distance", "spatial Frechet distance", "inception score", "inception score, deviation over splits"}
    assert "needs 13 images or more" in sample_figures(features(300, 0), None, Reference.of(features(12, 5)))["Frechet distance"]


def test_batches_of_any_size_give_the_same_figures():
    held_out = load_dataset("digits", "test")
    images, labels = held_out.batch(range(300))
    train = load_dataset("digits")
    classifier = train_classifier(train, steps=20)
    real = Reference.of(extract(classifier, train.batch(range(300))[0]))
    rows = [sample_figures(extract(classifier, images, size), labels, real) for size in (7, 64, 300)]
    for row in rows[1:]:
        assert row == pytest.approx(rows[0], rel=1e-6)
    assert rows[0]["Frechet distance"] > 0 and rows[0]["recall"] < 1


@pytest.mark.parametrize("wrong", [True, 2.0, -1, 2**64])
def test_steps_and_seed_of_the_classifier_are_whole_numbers(wrong):
    for name in ("steps", "seed"):
        complaint(ValueError, lambda: train_classifier(load_dataset("digits"), **{name: wrong}), name, wrong)


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


def drawn_at_once(*arguments) -> tuple[torch.Tensor, torch.Tensor, int]:
    "Images, labels, and images that were not finite, of `draw_samples`."
    readers, count = draw_samples(*arguments)
    images, labels, _ = (torch.cat(column) for column in zip(*(read() for read in readers)))
    return images, labels, count


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
        complaint(ValueError, lambda: evaluate(*arguments, changed, tmp_path, see), "another evaluation", "another folder")


def test_the_same_model_by_another_name_is_the_same_evaluation(arguments, tmp_path, monkeypatch):
    "However its folder is written, and wherever it lies; not a model with other weights."
    monkeypatch.chdir(tmp_path)
    model = arguments[0]
    for name in ("run/model", "moved"):
        model.save_pretrained(name)
    reports = [evaluate(model, name, *arguments[2:], SMALL, "out", see) for name in ("run/model", "./run/model", tmp_path / "run/../run/model", "moved")]
    assert all(report["samples"] == reports[0]["samples"] for report in reports)
    with torch.no_grad():
        model.flow.blocks[0].start[0] += 1
    model.save_pretrained("moved")
    complaint(ValueError, lambda: evaluate(model, "moved", *arguments[2:], SMALL, "out", see), "another evaluation")


def test_few_held_out_images_leave_the_likelihood(arguments, tmp_path):
    model, name, data, train, held_out = arguments
    few = ArrayDataset(held_out.values[:7], held_out.labels[:7], 17, held_out.class_names)
    report = evaluate(model, name, data, train, few, SMALL, tmp_path / "few", see)
    assert report["likelihood of held-out images"]["images"] == 7 and report["likelihood of held-out images"]["bits/dim given the label"] > 0
    assert "needs 9 images" in report["samples"]["Frechet distance"] and 0 <= report["samples"]["precision"] <= 1
    one = ArrayDataset(held_out.values[:1], held_out.labels[:1], 17, held_out.class_names)
    report = evaluate(model, name, data, train, one, replace(SMALL, noise=0.1), tmp_path / "one", see)
    assert "standard error given the label" not in report["likelihood of held-out images"] and "NaN" not in (tmp_path / "one/evaluation.json").read_text()


def test_images_that_cannot_be_read_are_left_out(arguments, tmp_path, capsys):
    class Damaged(ArrayDataset):
        def pixel_batch(self, indices):
            if 3 in torch.as_tensor(indices).tolist():
                raise ValueError("image 3 is damaged")
            return super().pixel_batch(indices)

    model, name, data, train, held_out = arguments
    damaged = Damaged(held_out.values, held_out.labels, 17, held_out.class_names)
    keep = [index for index in range(len(held_out)) if index != 3]
    whole = ArrayDataset(held_out.values[keep], held_out.labels[keep], 17, held_out.class_names)
    found, right = (evaluate(model, name, data, train, each, SMALL, tmp_path, see) for each in (damaged, whole))
    assert found["samples"] == right["samples"] and found["held-out images"] == right["held-out images"]
    assert found["likelihood of held-out images"]["images"] == 359


def test_what_is_wrong_is_said_before_any_work(arguments, tmp_path, monkeypatch):
    "Before a classifier is trained or an image is drawn."
    monkeypatch.setattr("farmer.evaluation.train_classifier", None)
    model, folder = arguments[0], tmp_path / "out"
    evaluate(*arguments, SMALL, folder, see)
    monkeypatch.setattr(model, "sample", None)
    run = lambda config=SMALL, folder=tmp_path / "new", **options: lambda: evaluate(*arguments, config, folder, **options)
    complaint(ValueError, run(replace(SMALL, samples=64)), "64 samples for 64 features")
    complaint(ValueError, run(replace(SMALL, seed=1), folder), "another evaluation")
    complaint(FileNotFoundError, run(reference=tmp_path / "none.npz"), "no reference")
    other_features, no_numbers = ({"mu": np.zeros(count), "sigma": np.full((count, count), value)} for count, value in ((7, 1.0), (64, math.nan)))
    for arrays in ({"arr_0": np.zeros((9, 4, 4, 3), np.uint8)}, other_features, no_numbers):
        _write_arrays(tmp_path / "bad.npz", **{"arr_0": np.zeros((9, 8, 8, 3), np.uint8), **arrays})
        complaint(ValueError, run(reference=tmp_path / "bad.npz"), "bad.npz", "use the")
    chunk = folder / "samples" / "00003.npz"
    with np.load(chunk) as file:
        arrays = dict(file)
    images, labels = arrays["images"], arrays["labels"]
    for change in ({"images": images + 1}, {"labels": labels[::-1]}, {"finite": labels}, {"images": images[:, :, :4]}, {"images": None}):
        _write_arrays(chunk, **{key: value for key, value in {**arrays, **change}.items() if value is not None})
        complaint(ValueError, run(folder=folder, extractor=see), "00003.npz", "delete it", "draws it again")
    chunk.write_bytes(b"junk")
    complaint(ValueError, run(folder=folder, extractor=see), "00003.npz", "delete it")
    assert not (tmp_path / "new").exists()
    complaint(FileNotFoundError, lambda: evaluate(model, "glyphs-field", *arguments[2:], replace(SMALL, solver="student"), tmp_path / "new"), "no student")


def test_an_evaluation_holds_its_folder(arguments, tmp_path):
    with lock_folder(tmp_path, "another evaluation"):
        complaint(ValueError, lambda: evaluate(*arguments, SMALL, tmp_path, see), "in use", "another evaluation")


def test_images_that_are_not_finite_are_counted(arguments, tmp_path, monkeypatch):
    model = arguments[0]
    sample = model.sample

    def broken(labels, *args, **kwargs):
        images = sample(labels, *args, **kwargs)
        images[1, 0, 3, 3], images[5] = math.nan, math.inf
        return images

    monkeypatch.setattr(model, "sample", broken)
    assert evaluate(*arguments, SMALL, tmp_path, see)["samples"]["not finite"] == 8
    images, labels, count = drawn_at_once(model, SMALL, tmp_path / "more", 17, "x")
    assert count == 8 and (images[1] == 0).all() and images.max() <= 16 and torch.equal(labels, torch.arange(150) % 10)


def test_the_manifest_tells_evaluations_apart(arguments, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", mock.Mock(side_effect=PackageNotFoundError))  # a source tree that is not installed
    model, config = arguments[0], SMALL
    described = manifest(model, "digits", "digits", config)
    assert described["student sha256"] is None and len(described["weights sha256"]) == 64 and described["precision"] == "float32"
    assert manifest(model, "digits", "digits", replace(config, solver="student"))["student sha256"]
    assert manifest(model, "glyphs", "digits", config)["weights sha256"] != described["weights sha256"]
    assert json.loads(json.dumps(described)) == described


def test_a_model_without_classes_is_evaluated(arguments, tmp_path):
    model = Farmer(FarmerConfig(num_classes=0, informative_channels=None)).eval()
    model.save_pretrained(tmp_path / "model")
    report = evaluate(model, tmp_path / "model", "digits", *arguments[3:], replace(SMALL, noise=0.1), tmp_path / "out", see)
    assert "bits/dim without a label" in report["likelihood of held-out images"] and "class accuracy" not in report["samples"]
    assert "bits/dim given the label" not in report["likelihood of held-out images"]


def test_the_density_of_noised_images_is_told_apart(arguments, tmp_path):
    report = evaluate(*arguments, replace(SMALL, noise=0.1), tmp_path, see)
    row = report["density of noised held-out images"]
    model, held_out = arguments[0], arguments[4]
    images, labels = held_out.batch(range(len(held_out)))
    noisy = images + 0.1 * torch.randn(images.shape, generator=seeded(9))
    with torch.no_grad():
        other = model.log_prob(noisy, labels) / 64
    assert row["noise"] == 0.1 and row["images"] == 360 and row["nats/dim"] == pytest.approx(other.mean().item(), abs=4 * row["standard error"])


@pytest.mark.parametrize("field, wrong", [
    ("samples", 0), ("samples", 1.5), ("chunk", 0), ("draws", 0), ("noise", -0.1), ("noise", math.nan), ("noise", math.inf), ("seed", -1), ("solver", "fast"), ("seed", True), ("seed", 2**64),
    ("samples", 10**30), ("chunk", True), ("guidance", math.inf), ("guidance", True),
])  # fmt: skip
def test_every_wrong_field_is_named(field, wrong):
    complaint(ValueError, lambda: EvaluationConfig(**{field: wrong}), field, repr(wrong))


def test_ways_back_have_names(tmp_path):
    assert inverse_by_name("exact", "digits") is None and isinstance(inverse_by_name("student", "digits"), Student)
    found = inverse_by_name("jacobi", "digits", 1e-3)
    assert isinstance(found, Jacobi) and found.tolerance == 1e-3
    complaint(ValueError, lambda: inverse_by_name("fast", "digits"), "exact, jacobi, student", "'fast'")
    complaint(FileNotFoundError, lambda: inverse_by_name("student", "glyphs-field"), "glyphs-field has no student")


@pytest.mark.parametrize("solver", ["jacobi", "student"])
def test_samples_come_by_the_way_back_that_is_named(arguments, tmp_path, solver):
    exact, other = (evaluate(*arguments, replace(SMALL, solver=name), tmp_path / name, see) for name in ("exact", solver))
    assert (exact["samples"] == other["samples"]) == (solver == "jacobi")  # which differs by less than a level
    assert other["manifest"]["settings"]["solver"] == solver and (other["manifest"]["student sha256"] is None) == (solver == "jacobi")
    images, labels, _ = drawn_at_once(arguments[0], replace(SMALL, solver=solver), tmp_path / "again", 17, "x", inverse_by_name(solver, "digits"))
    with np.load(tmp_path / solver / "samples.npz") as file:
        assert np.array_equal(file["arr_0"][..., 0], (images[:, 0] * (255 / 16)).round()) and np.array_equal(file["arr_1"], labels)


def test_too_few_samples_are_refused_before_any_is_drawn(arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(arguments[0], "sample", None)
    complaint(ValueError, lambda: evaluate(*arguments, replace(SMALL, samples=8), tmp_path, see), "8 samples for 8 features")
    assert not list(tmp_path.iterdir())


FEW = lambda config: 50  # images at once, as of a larger model
PROCESS = """
import json, sys
from datetime import timedelta
import torch.distributed as distributed
import farmer.evaluation
from farmer import Farmer, load_dataset
from farmer.evaluation import evaluate
from test_evaluation import FEW, SMALL, see

farmer.evaluation.images_at_once = FEW

rank, ranks, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks, timeout=timedelta(seconds=120))
report = evaluate(Farmer.from_pretrained("digits"), "digits", "digits", load_dataset("digits"), load_dataset("digits", "test"), SMALL, folder + "/out", see)
print(json.dumps(report))
distributed.destroy_process_group()
"""


def test_two_processes_end_with_the_figures_of_one(arguments, tmp_path, monkeypatch):
    "Both take turns with samples, densities and features."
    monkeypatch.setattr("farmer.evaluation.images_at_once", FEW)
    whole = evaluate(*arguments, SMALL, tmp_path / "whole", see)
    processes = [subprocess.Popen([sys.executable, "-c", PROCESS, str(rank), "2", str(tmp_path)], cwd=Path(__file__).parent, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True) for rank in range(2)]  # fmt: skip
    for process in processes:
        printed, error = process.communicate(timeout=180)
        assert process.returncode == 0, error
        assert json.loads(printed.splitlines()[-1]) == json.loads(json.dumps(whole))
    for index in range(4):
        first, second = (np.load(tmp_path / place / "samples" / f"{index:05d}.npz") for place in ("whole", "out"))
        assert all(np.array_equal(first[key], second[key]) for key in first)


def test_a_large_model_meets_few_images_at_once(arguments, tmp_path, monkeypatch, capsys):
    "As many as memory allows, whatever is done with them; the likelihood hardly depends on it, and not on the chunk of the samples."
    seen, config = [], replace(SMALL, samples=100, chunk=None, noise=0.1)
    for name in ("log_prob", "decode"):
        plain = getattr(Farmer, name)
        first = lambda images: len(getattr(images, "informative", images))
        monkeypatch.setattr(Farmer, name, lambda model, images, *rest, plain=plain, **options: seen.append(first(images)) or plain(model, images, *rest, **options))
    monkeypatch.setattr("farmer.evaluation.train_classifier", lambda data, **options: train_classifier(data, 5, **options))
    whole = evaluate(*arguments, config, tmp_path / "whole")
    assert max(seen) == 360 and whole["manifest"]["settings"]["chunk"] == 500 and len(list((tmp_path / "whole/samples").iterdir())) == 1
    seen.clear()
    monkeypatch.setattr("farmer.evaluation.images_at_once", FEW)
    parts = evaluate(*arguments, config, tmp_path / "parts")
    assert max(seen) == 50 and parts["manifest"]["settings"]["chunk"] == 50 and len(list((tmp_path / "parts/samples").iterdir())) == 2
    for section, name, error in (("likelihood of held-out images", "bits/dim given the label", 0.01), ("density of noised held-out images", "nats/dim", 0.02)):
        assert abs(parts[section][name] - whole[section][name]) < error and parts[section]["images"] == 360
    bars = capsys.readouterr().err
    assert all(f"{what}: 100%" in bars for what in ("samples", "classifier", "likelihood", "features of samples", "of training images", "of held-out images"))


def test_the_classifier_shrinks_large_images():
    "So that its work and its memory depend on their number alone; small ones it sees as they are."
    generator = seeded()
    values = torch.randint(256, (40, 3, 96, 160), dtype=torch.uint8, generator=generator)
    network = train_classifier(ArrayDataset(values, torch.arange(40) % 4, 256, "abcd"), steps=2)
    sizes = []
    network.body[0].register_forward_hook(lambda layer, inputs, output: sizes.append(tuple(inputs[0].shape[2:])))
    large = values[:3].float() / 127.5 - 1
    assert extract(network, large).pooled.shape == (3, 64) and extract(network, large[..., :48, :64]).logits.shape == (3, 4)
    assert sizes == [(38, 64), (48, 64)]


# --- The field's conventions


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory):
    "Random ones, in torch-fidelity's format."
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    torch.manual_seed(0)
    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network = FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def inception_weights(random_weights, monkeypatch):
    "These, as if they were the ones that are known."
    monkeypatch.setattr("farmer.evaluation._INCEPTION_SHA256", file_digest(random_weights))
    return random_weights


def test_inception_sees_what_torch_fidelity_sees(inception_weights):
    values = torch.randint(256, (2, 3, 20, 20), dtype=torch.uint8, generator=seeded())
    theirs = FeatureExtractorInceptionV3("theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights))
    found = Inception(inception_weights)(values.float() / 127.5 - 1)
    for ours, other in zip((found.pooled, found.logits), theirs(values)):
        assert_close(ours, other, rtol=0, atol=0)
    assert found.spatial.shape == (2, 17 * 17 * 7)
    grey = Inception(inception_weights)(values[:, :1].float() / 127.5 - 1)
    assert_close(grey.pooled, theirs(values[:, :1].expand(-1, 3, -1, -1))[0], rtol=0, atol=0)


def test_inception_says_where_its_weights_belong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    complaint(FileNotFoundError, Inception, "download weights-inception", "put it there")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    complaint(ValueError, lambda: Inception(tmp_path / "junk.pth"), "download", "again")
    other = tmp_path / "other.pth"
    torch.save({"weights": 3}, other)
    complaint(ValueError, lambda: Inception(other), "SHA-256")  # whatever it holds, it is not read
    assert "missing.pth" in mistake(capsys, "evaluate", "digits", "--inception", tmp_path / "missing.pth", "--folder", tmp_path / "out")


def photographs(count: int, seed: int = 0, size: int = 6) -> torch.Tensor:
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=seeded(seed))


def look(images: torch.Tensor) -> Features:
    flat = images.flatten(1)
    return Features(flat[:, :5], flat[:, :10], flat[:, 40:46])


def test_reference_files_are_read_as_adm_writes_them(tmp_path):
    values = photographs(200)
    features = look(values.float() / 127.5 - 1)
    write_reference(tmp_path / "plain.npz", values, 256, torch.zeros(200))
    plain = read_reference(tmp_path / "plain.npz", look, (3, 6, 6))
    assert_close(plain.pooled, features.pooled)
    assert_close(plain.spatial.covariance, FeatureStatistics.of(features.spatial).covariance)
    rng = np.random.default_rng(0)
    given = {"mu": rng.normal(size=5), "sigma": np.diag(rng.random(5)), "mu_s": rng.normal(size=6), "sigma_s": np.diag(rng.random(6))}
    _write_arrays(tmp_path / "full.npz", arr_0=values.permute(0, 2, 3, 1).numpy(), **given)
    full = read_reference(tmp_path / "full.npz", look, (3, 6, 6))
    assert_close(full.pooled, features.pooled)
    for key, found in (("mu", full.statistics.mean), ("sigma", full.statistics.covariance), ("mu_s", full.spatial.mean), ("sigma_s", full.spatial.covariance)):
        assert np.array_equal(found.numpy(), given[key])
    figures = sample_figures(look(photographs(300, seed=1).float() / 127.5 - 1), None, full)
    assert figures["spatial Frechet distance"] > 1 and "class accuracy" not in figures


@pytest.mark.parametrize("problem, words", [
    ("missing", "no reference"), ("size", "use the reference of that size"), ("layout", "needs arr_0"), ("features", "use the extractor it was made with"),
    ("junk", "needs arr_0"), ("floats", "8-bit"),
])  # fmt: skip
def test_bad_references_are_refused(tmp_path, problem, words):
    path, of_size = tmp_path / "reference.npz", lambda size: photographs(20, size=size).permute(0, 2, 3, 1).numpy()
    arrays = {"arr_0": of_size(8 if problem == "size" else 6).astype(float if problem == "floats" else np.uint8)}
    if problem == "features":
        arrays |= {"mu": np.zeros(7), "sigma": np.eye(7)}
    if problem == "layout":
        arrays = {"images": arrays["arr_0"]}
    if problem == "junk":
        path.write_bytes(b"junk")
    elif problem != "missing":
        _write_arrays(path, **arrays)
    complaint(FileNotFoundError if problem == "missing" else ValueError, lambda: read_reference(path, look, (3, 6, 6)), words)


def test_samples_are_kept_in_adms_layout(arguments, tmp_path):
    report = evaluate(*arguments, SMALL, tmp_path, see)
    with np.load(tmp_path / "samples.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.shape == (150, 8, 8, 3) and images.dtype == np.uint8 and images.min() == 0 and images.max() == 255
    assert np.array_equal(labels, np.arange(150) % 10) and np.array_equal(images[..., 0], images[..., 2])
    again = read_reference(tmp_path / "samples.npz", see, (1, 8, 8))  # a set of samples may serve as somebody's reference
    assert abs(frechet_distance(again.statistics, again.statistics)) < 1e-6 and report["manifest"]["reference"] == "held-out images"


def test_evaluation_against_a_reference_file(arguments, tmp_path):
    images, labels = arguments[4].batch(range(360))
    path = tmp_path / "reference.npz"
    write_reference(path, (images * 8 + 8).to(torch.uint8), 17, labels)
    with_file = evaluate(*arguments, SMALL, tmp_path / "file", see, path)
    without = evaluate(*arguments, SMALL, tmp_path / "data", see)
    assert with_file["samples"]["Frechet distance"] == pytest.approx(without["samples"]["Frechet distance"], rel=0.02)
    assert len(with_file["manifest"]["reference sha256"]) == 64 and without["manifest"]["reference sha256"] is None


# --- The command


def test_evaluate_on_the_command_line(tmp_path, capsys):
    main(["evaluate", "digits", "--samples", "100", "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "bits/dim given the label" in printed and "Frechet distance" in printed and str(tmp_path / "evaluation.json") in printed
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["manifest"]["settings"]["samples"] == 100 and report["samples"]["images"] == 100
    for wrong, word in ((["--samples", "0"], "samples"), (["--data", "glyphs"], "images"), (["--guidance", "much"], "guidance")):
        assert word in mistake(capsys, "evaluate", "digits", "--folder", tmp_path / "new", *wrong)
