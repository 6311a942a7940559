"Distillation: the student of a model trains, resumes, refuses other teachers, and comes out of the command line."
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from helpers import SMALL_RUN, clean_images, complaint, mistake, seeded, small, stripes, stripes_config
from farmer.cli import main
from farmer.checkpoints import checkpoints
from farmer.inversion import Student
from farmer.model import Farmer
from farmer.patches import dequantize
from farmer.objectives import Distillation
from farmer.presets import DISTILLATION, PRESETS, nearest_preset
from farmer.training import Trainer, read_log

SHORT = replace(DISTILLATION, steps=12, batch_size=8, warmup_steps=2, evaluate_every=6, save_every=5, evaluation_images=20)


def teacher(seed: int = 0) -> Farmer:
    return small(seed, **{name: getattr(stripes_config(), name) for name in ("num_classes", "dropout")})


def make(folder, settings=SHORT, seed: int = 0, dataset=None, student: str = "causal") -> Trainer:
    return Trainer(Distillation(teacher(seed), student), dataset or stripes(), stripes(seed=1), settings, folder, device="cpu")


def test_distillation_improves_and_leaves_the_teacher_alone(tmp_path):
    distiller = make(tmp_path, replace(SHORT, steps=150, evaluate_every=50))
    before = {name: tensor.clone() for name, tensor in distiller.objective.teacher.state_dict().items()}
    start = distiller.evaluate()["held_out_average"]
    distiller.fit()
    evaluations = [record for record in read_log(tmp_path) if "held_out_average" in record]
    assert [record["step"] for record in evaluations] == [50, 100, 150] and evaluations[-1]["held_out_average"] < 0.5 * start
    assert evaluations[-1]["residual"] > 0 and (tmp_path / evaluations[-1]["samples"]).is_file()
    finished = distiller.objective.teacher
    assert all(torch.equal(before[name], tensor) for name, tensor in finished.state_dict().items())
    latents = finished.encode(dequantize(clean_images(), 5, seeded(3)))
    error = (finished.decode(latents, inverse=distiller.whole(distiller.ema)) - finished.decode(latents)).square().mean().sqrt()
    assert error < 2 * evaluations[-1]["held_out_average"]


@pytest.mark.parametrize("student, stop", [("causal", 1), ("causal", 5), ("causal", 7), ("paper", 6)])
def test_distillation_resumes_bit_identically(tmp_path, student, stop):
    whole = make(tmp_path / "whole", student=student)
    whole.fit()
    make(tmp_path / "parts", student=student).fit(last_step=stop)
    torch.rand(100)
    resumed = make(tmp_path / "parts", student=student)
    assert resumed.step == stop
    resumed.fit()
    for name, tensor in whole.ema.state_dict().items():
        assert torch.equal(tensor, resumed.ema.state_dict()[name]), name


def test_checkpoints_of_another_teacher_or_data_are_refused(tmp_path):
    make(tmp_path).fit(last_step=2)
    complaint(ValueError, lambda: make(tmp_path, seed=1), "another run", "teacher", "the same data and model")
    complaint(ValueError, lambda: make(tmp_path, dataset=stripes(seed=5)), "another run")
    complaint(ValueError, lambda: make(tmp_path, replace(SHORT, learning_rate=1e-3)), "learning_rate")
    complaint(ValueError, lambda: make(tmp_path, student="paper"), "another run", "the paper's student")


def test_the_papers_student_is_distilled(tmp_path):
    distiller = make(tmp_path, replace(SHORT, steps=150, evaluate_every=150), student="paper")
    assert distiller.model.both_ways and distiller.ema.both_ways
    start = distiller.evaluate()["held_out_average"]
    distiller.fit()
    *_, step, evaluation = read_log(tmp_path)
    assert evaluation["held_out_average"] < 0.7 * start and evaluation["residual"] > 0
    assert step["loss"] > 1.1 * evaluation["held_out_average"]  # its loss is of latents with noise, and of all blocks
    complaint(ValueError, lambda: Distillation(teacher(), "ours"), "causal or paper", "'ours'")


def test_settings_of_a_student_are_those_of_its_models_preset():
    for name, preset in PRESETS.items():
        mine = nearest_preset(replace(preset.model, num_classes=7, prior_layers=1, levels=9)).distillation  # of no matter for a student
        assert mine == preset.distillation, name
    paper = PRESETS["imagenet256-1.9b-p8"]
    assert paper.distillation == replace(paper.training, steps=75_000) and round(75_000 * 1024 / 1_281_167) == 60
    assert PRESETS["digits"].distillation == PRESETS["photos"].distillation == nearest_preset(teacher().config).distillation == DISTILLATION


def test_a_distillation_that_diverges_stops(tmp_path):
    distiller = make(tmp_path)
    with torch.no_grad():
        distiller.model.blocks[0].start.fill_(math.nan)
    complaint(FloatingPointError, distiller.fit, "step 0", "distillation loss")


# --- Command line


def test_train_distill_and_sample(tmp_path, capsys):
    run = tmp_path / "run"
    main(["train", "digits", "--folder", str(run), "--steps", "2", *SMALL_RUN])
    assert json.loads((run / "run.json").read_text())["data"] == "digits"
    density = Farmer.from_pretrained(run / "model").state_dict()
    assert "no student" in mistake(capsys, "sample", run / "model", "--solver", "student", "--output", tmp_path / "none.png")
    arguments = ["distill", str(run), "--steps", "4", "--save-every", "2", "--batch-size", "8", "--evaluation-images", "20"]
    main(arguments)
    printed = capsys.readouterr().out
    assert "root mean square error" in printed and f"next: farmer sample {run / 'model'} --solver student" in printed
    assert len(checkpoints(run / "student")) == 2
    loaded = Farmer.from_pretrained(run / "model")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in density.items())
    assert Student.from_pretrained(run / "model").bind(loaded.flow)
    main([*arguments, "--data", "digits"])
    assert "going on from step 4 of 4" in capsys.readouterr().out
    for solver in ("exact", "jacobi", "student"):
        main(["sample", str(run / "model"), "--count", "2", "--solver", solver, "--output", str(tmp_path / f"{solver}.png")])
        assert f"solver {solver}: latents reached within" in capsys.readouterr().out and (tmp_path / f"{solver}.png").is_file()


def test_an_unfinished_run_cannot_be_distilled(tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "no model yet" in mistake(capsys, "distill", tmp_path / "run")


def test_distilling_an_embedded_model_needs_a_place_for_it(tmp_path, capsys):
    assert "--folder" in mistake(capsys, "distill", "digits")
    main(["distill", "digits", "--folder", str(tmp_path / "new"), "--steps", "1", "--batch-size", "4", "--evaluation-images", "10"])
    assert Student.from_pretrained(tmp_path / "new" / "model")
    assert "neither a folder" in mistake(capsys, "distill", tmp_path / "nothing", "--data", "digits", "--folder", tmp_path / "other")
    shutil.copytree(tmp_path / "new" / "model", tmp_path / "bare")
    assert "--data" in mistake(capsys, "distill", tmp_path / "bare", "--folder", tmp_path / "other")
    main(["distill", str(tmp_path / "new"), "--steps", "1", "--batch-size", "4", "--evaluation-images", "10"])  # it knows its data
    assert "images of shape (1, 16, 16)" in mistake(capsys, "distill", "digits", "--data", "glyphs", "--folder", tmp_path / "other")
