"The `farmer` command as its users meet it: what it prints, writes and says about mistakes."
import contextlib
import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import SMALL_RUN, contents, farmer_process, free_port, mistake, photos, read_image, small
from torch.utils.data import DataLoader, Dataset

from farmer import Farmer, FarmerConfig, Student, __main__, cli, load_dataset
from farmer.checkpoints import checkpoints
from farmer.cli import _PAGE, _explorer_notebook, main, parse
from farmer.data import IMAGE_SIZES
from farmer.demo import _show_images, text_images
from farmer.distributed import ExecutionConfig
from farmer.evaluation import EvaluationConfig, SmallClassifier, manifest
from farmer.files import lock_folder
from farmer.objectives import evaluate_bits_per_dim
from farmer.presets import DISTILLATION, PRESETS
from farmer.training import Trainer, read_log


def test_train_resume_and_sample_on_a_folder_of_images(tmp_path, capsys):
    data, run = photos(tmp_path / "photos"), tmp_path / "run"
    arguments = ["train", "glyphs-field", "--data", str(data), "--folder", str(run), "--steps", "6", "--save-every", "3", "--evaluate-every", "6", *SMALL_RUN]
    main(arguments)
    printed = capsys.readouterr().out
    assert "22 training images" in printed and "blue (11), red (11)" in printed
    assert "bits/dim, standard error" in printed and f"next: farmer sample {run / 'model'}" in printed
    config = Farmer.from_pretrained(run / "model").config
    assert Farmer.from_pretrained(run / "model").class_names == ("blue", "red")
    assert config.image_shape == (3, 16, 16) and config.num_classes == 2 and config.levels == 256
    assert [path.name for path in checkpoints(run)] == ["step-00000003", "step-00000006"]
    assert read_image(run / "samples" / "step-00000006.png").shape == (3, 10 * 17 + 1, 2 * 17 + 1)
    log = read_log(run)
    main(arguments)
    assert "going on from step 6 of 6" in capsys.readouterr().out and read_log(run) == log
    for name in ("a", "b"):
        main(["sample", str(run / "model"), "--labels", "red", "0", "--count", "3", "--seed", "5", "--output", str(tmp_path / f"{name}.png")])
    assert "6 images of classes 1, 0 (red, blue)" in capsys.readouterr().out
    height, width = read_image(tmp_path / "a.png").shape[1:]
    assert height == 2 * 65 + 1 and width > 3 * 65 + 1  # enlarged four times, lines between, names left of the rows
    assert torch.equal(read_image(tmp_path / "a.png"), read_image(tmp_path / "b.png"))


def test_killed_and_interrupted_runs_go_on(tmp_path):
    run = tmp_path / "run"
    arguments = ["train", "digits", "--folder", run, "--steps", "30", "--save-every", "1", "--evaluate-every", "30", "--device", "cpu", *SMALL_RUN]
    for stop, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        before = len(checkpoints(run)) and int(checkpoints(run)[-1].stem[5:])
        process = farmer_process(*arguments)
        while process.poll() is None and not (checkpoints(run) and int(checkpoints(run)[-1].stem[5:]) > before + 2):
            time.sleep(0.01)
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == status, errors
    assert "the same command goes on from what is saved" in errors
    reached = int(checkpoints(run)[-1].stem[5:])
    process = farmer_process(*arguments)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and f"going on from step {reached} of 30" in printed, errors
    whole = farmer_process(*arguments[:3], tmp_path / "whole", *arguments[4:])
    assert whole.communicate(timeout=120) and whole.returncode == 0
    for name in ("model.safetensors", "config.json"):
        assert (run / "model" / name).read_bytes() == (tmp_path / "whole" / "model" / name).read_bytes()


def test_a_mistake_is_one_write(monkeypatch):
    "Ranks share their standard error: what one writes in two pieces, another can come between."
    written = mock.Mock()
    monkeypatch.setattr("sys.stderr.write", written)
    with pytest.raises(SystemExit):
        main(["train", "didgits"])
    (line,) = (call.args[0] for call in written.call_args_list)
    assert line.startswith("farmer: unknown preset") and line.endswith("\n")


def test_mistakes_end_with_one_line_and_status_2(tmp_path, capsys):
    new = tmp_path / "new"
    assert "unknown preset 'didgits'; choose one of digits" in mistake(capsys, "train", "didgits")
    assert "Unrecognized options: --nonsense" in mistake(capsys, "train", "digits", "--nonsense", "3")
    assert "--patch-size 3 does not divide the image size 8x8" in mistake(capsys, "train", "digits", "--patch-size", "3", "--folder", new)
    for wrong in (0, 4, -1):
        assert "--informative-channels" in mistake(capsys, "train", "digits", "--informative-channels", wrong, "--folder", new)
    assert "farmer: --steps must be a whole number, 1 or more" in mistake(capsys, "train", "digits", "--steps", "0", "--folder", new)
    assert "needs 3 channels (RGB)" in mistake(capsys, "train", "digits", "--basis", "luma-chroma", "--folder", new)
    assert "no model 'nothing'" in mistake(capsys, "sample", "nothing")
    assert "labels must be" in mistake(capsys, "sample", "digits", "--labels", "12")
    assert "solver" in mistake(capsys, "sample", "digits", "--solver", "newton")
    assert "glyphs-field has no student" in mistake(capsys, "sample", "glyphs-field", "--solver", "student")
    assert "tolerance" in mistake(capsys, "sample", "digits", "--solver", "jacobi", "--tolerance", "1e-12")
    assert "farmer: --count must be a whole number" in mistake(capsys, "sample", "digits", "--count", "0")
    assert "scale must be a finite number, 0 or more" in mistake(capsys, "sample", "digits", "--guidance", "-1")
    assert "or one of paper-1.1b-p16" in mistake(capsys, "sample", "digits", "--guidance", "much")
    assert "cannot be guided" in mistake(capsys, "sample", "digits", "--labels", "10", "--guidance", "1")
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in mistake(capsys, "train", "glyphs", "--data", tmp_path / "empty", "--folder", new)
    assert str(tmp_path / "absent") in mistake(capsys, "train", "glyphs", "--data", tmp_path / "absent", "--folder", new)


def test_mistakes_about_models_runs_and_data(tmp_path, capsys):
    assert "is not the folder of a run" in mistake(capsys, "distill", "digits")
    assert str(tmp_path / "nothing") in mistake(capsys, "distill", tmp_path / "nothing")
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    assert "has no model yet" in mistake(capsys, "distill", tmp_path / "unfinished")
    assert "samples" in mistake(capsys, "evaluate", "digits", "--samples", "0", "--folder", tmp_path)
    assert "data/imagenet-256" in mistake(capsys, "train", "imagenet256-1.1b-p16", "--device", "cpu")
    for command in (["evaluate", "--folder", tmp_path], ["explore"]):
        error = mistake(capsys, command[0], "digits", "--data", "glyphs", *command[1:])
        assert "(1, 16, 16)" in error and "digits expects (1, 8, 8)" in error
    assert "no model 'nothing'" in mistake(capsys, "explore", "nothing")
    assert "port 70000" in mistake(capsys, "explore", "digits", "--port", "70000")


def test_a_run_of_other_settings_is_not_resumed(tmp_path, capsys):
    command = ["train", "digits", "--folder", tmp_path, *SMALL_RUN, "--save-every", "2", "--evaluate-every", "2", "--steps"]
    main([str(argument) for argument in (*command, "2")])
    capsys.readouterr()
    assert "steps" in mistake(capsys, *command, "3")


def test_none_is_understood_in_lower_case():
    run = parse(["train", "digits", "--informative-channels", "none", "--device", "none"]).run
    assert run.model.informative_channels is None and run.device is None


def test_every_solver_draws_and_is_certified(tmp_path, capsys):
    "The student of an embedded model, into a folder of its own; then three ways back from the same latents."
    run = tmp_path / "run"
    main(["distill", "digits", "--folder", str(run), "--steps", "4", "--save-every", "4", "--evaluate-every", "4", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "distilling digits" in printed and "root mean square error" in printed and f"next: farmer sample {run / 'model'} --solver student" in printed
    assert Student.from_pretrained(run / "model").training is False
    images = {}
    for solver in ("exact", "jacobi", "student"):
        main(["sample", str(run / "model"), "--solver", solver, "--labels", "7", "--count", "3", "--output", str(tmp_path / f"{solver}.png")])
        printed = capsys.readouterr().out
        assert f"solver {solver}: latents reached within" in printed and ("rounds a block" in printed) == (solver == "jacobi")
        images[solver] = read_image(tmp_path / f"{solver}.png").int()
    assert (images["jacobi"] - images["exact"]).abs().max() <= 1 < (images["student"] - images["exact"]).abs().max()


def test_a_large_models_student_is_trained_as_on_its_machine(tmp_path, capsys):
    "In bfloat16 and compiled, as its preset is; the user's flags come first."
    Farmer(replace(PRESETS["digits"].model, flow_width=256)).save_pretrained(tmp_path / "wide")
    settings = []
    with mock.patch("farmer.cli.Trainer", side_effect=lambda *given, **options: settings.append(options["execution"]) or given[0].nothing):
        for flags in ([], ["--accumulation", "4", "--no-compile"]):
            with pytest.raises(AttributeError, match="nothing"):
                main(["distill", str(tmp_path / "wide"), "--data", "digits", "--folder", str(tmp_path / "run"), "--device", "cpu", *flags])
    assert settings == [PRESETS["cifar10"].execution, replace(PRESETS["cifar10"].execution, accumulation=4, compile=False)]


def test_the_papers_student_is_asked_for_by_name(tmp_path, capsys):
    "Other settings of its training are those of the model's preset, unless they are given."
    run, settings = tmp_path / "run", []
    trainer = mock.patch("farmer.cli.Trainer", side_effect=lambda *given, **options: settings.append((given[3], options["execution"])) or Trainer(*given, **options))
    with trainer:
        main(["distill", "digits", "--student", "paper", "--folder", str(run), "--steps", "2", "--no-horizontal-flip", "--save-every", "2", "--device", "cpu"])
    assert settings == [(replace(DISTILLATION, steps=2, save_every=2), ExecutionConfig())]
    main(["sample", str(run / "model"), "--solver", "student", "--count", "1", "--output", str(tmp_path / "a.png")])
    assert "solver student: latents reached" in capsys.readouterr().out and Student.from_pretrained(run / "model").both_ways
    assert "student" in mistake(capsys, "distill", "digits", "--folder", run, "--student", "other")


@pytest.mark.parametrize("guidance", ["2", "paper-1.9b-p8"])
def test_guided_samples_and_their_report(tmp_path, capsys, guidance):
    command = ["sample", "digits", "--labels", "3", "--count", "4", "--output", str(tmp_path / "a.png")]
    main(command)
    plain = read_image(tmp_path / "a.png")
    assert "guidance" not in capsys.readouterr().out
    main([*command, "--guidance", guidance])
    assert "guidance: effective sample size" in capsys.readouterr().out and not torch.equal(read_image(tmp_path / "a.png"), plain)


def test_a_corrupt_image_is_named(tmp_path, capsys):
    data = photos(tmp_path / "photos")
    (data / "red" / "01.png").write_bytes(b"not an image")
    main(["train", "glyphs-field", "--data", str(data), "--folder", str(tmp_path / "run"), *SMALL_RUN, *WEIGHTLESS, "--batch-size", "22"])
    printed = capsys.readouterr().out
    assert str(data / "red" / "01.png") in printed and "delete or replace" in printed and "next: farmer sample" in printed


def test_damaged_model_is_named(tmp_path, capsys):
    Farmer.from_pretrained("digits").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert str(weights) in mistake(capsys, "sample", tmp_path)


def test_divergence_ends_with_one_line(tmp_path, capsys):
    error = mistake(capsys, "train", "digits", "--folder", tmp_path, "--learning-rate", "1e30", "--warmup-steps", "1", "--steps", "20", "--save-every", "1", *SMALL_RUN)
    assert "step " in error and "last good checkpoint" in error


@pytest.mark.parametrize("package", ["voila", "anywidget"])
def test_explore_without_its_packages(package, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, f"{package}.app", None)
    error = mistake(capsys, "explore", "digits")
    assert f"this needs {package}" in error and "pip install" in error


def test_explorer_notebook_shows_the_model():
    [title, cell] = json.loads(_explorer_notebook("runs/it's/model", None))["cells"]
    assert title["cell_type"] == "markdown" and cell["source"].endswith("""explore("runs/it's/model", None)""")


def test_presets_fit_their_data():
    for name in IMAGE_SIZES.keys() - {"mnist", "cifar10"}:  # all that need no download
        preset = PRESETS[name]
        data = load_dataset(preset.data)
        assert (data.image_shape, data.num_classes, data.levels) == (preset.model.image_shape, preset.model.num_classes, preset.model.levels), name


def test_text_images_pair_rows_of_pixels():
    image = torch.tensor([[-1.0, 1.0, -1.0, 1.0], [-1.0, -1.0, 1.0, 1.0]]).view(1, 1, 2, 4)
    assert text_images(image) == " ▀▄█\n"
    coloured = text_images(image, colour=True)
    assert coloured.count("▀") == 6 and "\x1b[38;5;255;48;5;232m" in coloured


@pytest.mark.parametrize("before, after", [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_user_says_otherwise(before, after):
    with mock.patch("farmer.cli.main"), mock.patch("signal.signal"), mock.patch.dict(os.environ, before, clear=True):
        __main__.main()
        assert os.environ["OMP_WAIT_POLICY"] == after


def test_that_is_said_before_torch_is_loaded():
    code = "import sys, farmer.__main__; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_the_page_finds_its_template():
    assert json.loads((_PAGE / "voila" / "templates" / "farmer" / "conf.json").read_text())["base_template"] == "lab"
    assert "left-out" in (_PAGE / "voila" / "templates" / "farmer" / "index.html.j2").read_text()


# --- Large data and large models


def test_prepare_then_train_then_compare_both_weights(tmp_path, capsys):
    data, shards, run = photos(tmp_path / "photos"), tmp_path / "shards", tmp_path / "run"
    prepare = ["prepare", str(data), str(shards), "--image-size", "16", "--shard-images", "10", "--workers", "0"]
    for _ in range(2):  # the second time there is nothing to do
        main(prepare)
        printed = capsys.readouterr().out
        assert "22 images in 3 shards" in printed and "2 images in 1 shards" in printed and f"--data {shards}" in printed
    main(["train", "glyphs-field", "--data", str(shards), "--folder", str(run), "--steps", "6", "--save-every", "3", "--evaluate-every", "6", *SMALL_RUN])
    kinds = {}
    for name in ("model", "latest"):
        described = manifest(Farmer.from_pretrained(run / name), run / name, str(shards), EvaluationConfig())
        kinds[described["weights"]] = described["weights sha256"]
    assert len(set(kinds.values())) == 2 and set(kinds) == {"moving average", "last step"}
    assert manifest(Farmer.from_pretrained("digits"), "digits", "digits", EvaluationConfig())["weights"] == "not noted"


def test_prepare_says_what_is_wrong(tmp_path, capsys):
    data = photos(tmp_path / "photos")
    assert "no folder" in mistake(capsys, "prepare", tmp_path / "nothing", tmp_path / "out")
    assert "--image-size" in mistake(capsys, "prepare", data, tmp_path / "out", "--image-size", "0")
    assert "elsewhere" in mistake(capsys, "prepare", data, data / "shards", "--image-size", "16")
    main(["prepare", str(data), str(tmp_path / "out"), "--image-size", "16", "--workers", "0"])
    capsys.readouterr()
    assert "--image-size was 16, now 20" in mistake(capsys, "prepare", data, tmp_path / "out", "--image-size", "20", "--workers", "0")
    assert "16" in mistake(capsys, "train", "glyphs-field", "--data", tmp_path / "out", "--image-shape", "3", "20", "20", "--folder", tmp_path / "run", *SMALL_RUN)


def test_presets_of_the_paper():
    "Weights in millions, on the meta device, beside the paper's; and the largest needs less than a gigabyte to be counted."
    code = """if True:
        import re
        from pathlib import Path
        import torch
        from farmer import Farmer
        from farmer.presets import PRESETS
        with torch.device("meta"):
            model = Farmer(PRESETS["imagenet256-1.9b-p8"].model)
            paper = {size: Farmer(PRESETS[f"imagenet256-{size}-p16"].model) for size in ("1.1b", "1.9b")}
        for part in (model, paper["1.1b"].prior, paper["1.1b"].flow, paper["1.9b"].flow):
            print(sum(parameter.numel() for parameter in part.parameters()) / 1e6)
        print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e6)  # the most memory it has had
    """
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    largest, prior, flow, larger_flow, gigabytes = map(float, printed.split())
    assert largest > 1700 and gigabytes < 1
    for found, expected in ((prior, 295), (flow, 828), (larger_flow, 1400)):
        assert abs(found / expected - 1) < 0.03


def test_evaluate_on_two_ranks(tmp_path):
    "Each draws half of the images; the first one prints, and the figures are those of one process."
    command = ["-m", "farmer.cli", "evaluate", "digits", "--samples", "600", "--device", "cpu", "--seed", "3", "--folder"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    reports = []
    for name, start in (("one", []), ("two", launcher)):
        done = subprocess.run([sys.executable, *start, *command, str(tmp_path / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("bits/dim given the label") == 1
        reports.append(json.loads((tmp_path / name / "evaluation.json").read_text()))
    assert reports[0] == reports[1]


# --- What a flag means, and what is checked before any work

WEIGHTLESS = ["--steps", "1", "--save-every", "1", "--evaluate-every", "1", "--device", "cpu"]


def settings_of(*arguments: object) -> cli.Train:
    return parse([str(argument) for argument in arguments]).run


def test_help_version_and_examples(capsys):
    "Every command shows examples that can be parsed; `farmer` alone is help, and each preset says what it needs."
    for arguments, words in (([], "farmer sample photos --labels cat"), (["train", "-h"], "photos, 10 classes of 3x32x32"), (["sample", "--help"], "MODEL")):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        printed = " ".join(capsys.readouterr().out.split())
        assert not caught.value.code and words in printed and "examples: farmer" in printed
    assert "STR" not in printed and "INT" not in printed and "NUMBER|none" in printed
    main(["--version"])
    assert capsys.readouterr().out.startswith("farmer 0.")
    for example in cli._EXAMPLES:
        parse(example.partition("#")[0].split()[1:])


def test_home_folders_and_none(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    run = settings_of("train", "digits", "--folder", "~/run", "--data=~/data", "--start-from", "~/model", "--device", "NONE")
    assert (run.folder, run.data, run.start_from, run.device) == (Path("/home/me/run"), "/home/me/data", "/home/me/model", None)
    assert parse(["sample", "~/model", "--output", "~/a.png"]).model == "/home/me/model"
    assert run.given == {"folder", "data", "start_from", "device"}


@pytest.mark.parametrize("flags, words", [
    ("--num-classes 7", ["--num-classes 7 contradicts", "10", "use 0"]),
    ("--num-classes=11", ["--num-classes 11"]),
    ("--levels 256", ["--levels 256 contradicts", "17"]),
    ("--image-shape 1 16 16", ["--image-shape (1, 16, 16) contradicts", "(1, 8, 8)"]),
    ("--data glyphs --image-shape 1 8 8", ["--image-shape"]),
    ("--start-from glyphs", ["(1, 8, 8)", "glyphs reads (1, 16, 16)"]),
    ("--start-from digits --flow-width 32", ["--flow-width 32 contradicts digits, which has 64"]),
    ("--device foo", ["--device foo is not on this machine"]),
    ("--device mps", ["--device mps is not on this machine"]),
    ("--device cuda:99", ["--device cuda:99 is not on this machine"]),
    ("--seed 99999999999999999999", ["--seed must be a whole number"]),
])  # fmt: skip
def test_flags_that_cannot_be_obeyed(tmp_path, capsys, flags, words):
    with mock.patch("farmer.cli.Trainer", side_effect=AssertionError("too late")):
        error = mistake(capsys, "train", "digits", "--folder", tmp_path / "run", *flags.split())
    assert all(word in error for word in words), error
    assert not (tmp_path / "run").exists()


def test_what_is_said_about_a_line_that_cannot_be_read(capsys):
    for line, words in (
        ("train digits --steps x", "farmer: --steps: 'x' is not a number, or not a whole one (see farmer train --help)"),
        ("train digits --informative-channels 1.5", "farmer: --informative-channels: '1.5' is not a number, or not a whole one"),
        ("train digits --image-shape 1 x 8", "farmer: --image-shape: cannot read ['1', 'x', '8']"),
        ("sample digits --cont 3", "--cont, 3; perhaps you meant --count"),
        ("sample digits --solver newton", "'newton' for argument '--solver'"),
        ("train mnist --data nowhere", "unknown data set 'nowhere'"),
        ("sample", "MODEL"),
    ):
        assert words in mistake(capsys, *line.split())
    error = mistake(capsys, "train", "mnist")
    assert "pass --download, or put" in error  # not download=True, which is Python


def test_a_model_without_classes(tmp_path, capsys):
    "Trained, sampled and evaluated from the command line."
    run = tmp_path / "run"
    main(["train", "digits", "--num-classes", "0", "--folder", str(run), "--steps", "4", "--save-every", "4", "--evaluate-every", "4", *SMALL_RUN])
    model = Farmer.from_pretrained(run / "model")
    assert model.config.num_classes == 0 and model.class_names == () and model.config.levels == 17
    main(["sample", str(run / "model"), "--count", "3", "--output", str(tmp_path / "a.npz")])
    assert "3 images of classes 0 (no class)" in capsys.readouterr().out
    with np.load(tmp_path / "a.npz") as file:
        assert file["arr_0"].shape == (3, 8, 8, 3) and file["arr_1"].tolist() == [0, 0, 0]
    with mock.patch("farmer.evaluation.train_classifier", lambda train, **_: SmallClassifier(train.image_shape, train.num_classes).eval()):
        main(["evaluate", str(run / "model"), "--samples", "100", "--folder", str(tmp_path / "evaluation"), "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "bits/dim without a label" in printed and "given the label" not in printed


def test_a_run_notes_its_settings(tmp_path):
    main(["train", "digits", "--folder", str(tmp_path), "--learning-rate", "0.001", *SMALL_RUN, *WEIGHTLESS])
    noted = json.loads((tmp_path / "run.json").read_text())
    assert noted["training"]["learning_rate"] == 0.001 and noted["model"]["flow_width"] == 32 and noted["execution"]["workers"] == 0


def test_a_run_starts_from_anothers_settings(tmp_path, capsys):
    "`--config run.json` goes on with that run, or is where another starts; flags come first."
    first, again = tmp_path / "first", tmp_path / "again"
    main(["train", "glyphs", "--folder", str(first), "--num-classes", "0", "--dropout", "0.2", *SMALL_RUN, *WEIGHTLESS])
    config = ["train", "--config", str(first / "run.json")]
    run = settings_of(*config)
    assert (run.data, run.folder, run.model.num_classes, run.model.dropout, run.training.steps, run.given) == ("glyphs", first, 0, 0.2, 1, frozenset())
    assert type(run.model.image_shape) is tuple and run.training.betas == (0.9, 0.95) and run.execution.workers == 0
    changed = settings_of("train", f"--config={first / 'run.json'}", "--folder", again, "--seed", "3", "--no-uniform-noise", "--noise-end", "0.01")
    assert (changed.folder, changed.training.seed, changed.training.uniform_noise, changed.model) == (again, 3, False, run.model)
    capsys.readouterr()
    main([*config, "--device", "cpu"])
    assert "going on from step 1 of 1" in capsys.readouterr().out
    main([*config, "--device", "cpu", "--folder", str(again)])
    for name in ("model.safetensors", "config.json"):
        assert (again / "model" / name).read_bytes() == (first / "model" / name).read_bytes()
    assert (again / "run.json").read_bytes() == (first / "run.json").read_bytes()


def test_a_fine_tuned_run_starts_from_its_settings_again(tmp_path):
    note = {"data": "glyphs-field", "model": {"dropout": 0.3, "num_classes": 0, "image_shape": [3, 16, 16]}, "training": {}, "execution": {}, "start_from": "glyphs-palette"}
    (tmp_path / "run.json").write_text(json.dumps(note))
    run = settings_of("train", "--config", tmp_path / "run.json", "--steps", "5")
    assert run.start_from == "glyphs-palette" and run.given == {"steps", "dropout", "label_dropout", "num_classes"}
    config = run.configure(load_dataset("glyphs-field"), Farmer.from_pretrained("glyphs-palette"))
    assert config.dropout == 0.3 and config.num_classes == 0 and config.flow_width == Farmer.from_pretrained("glyphs-palette").config.flow_width


@pytest.mark.parametrize("flags, words", [
    ("digits --config {run}", "--config takes the place of a preset; leave out digits"),
    ("--config {folder}/none.json", "none.json"),
    ("--config", "not the settings of a run"),
    ("--config {old}", "'training' is missing"),
    ("--config {odd}", "flow_colour, which this version does not know"),
    ("--config {wrong}", "--flow-blocks must be a whole number"),
    ("--config {run} --cont 3", "--cont"),
    ("--config {run} --num-classes 7", "--num-classes 7 contradicts digits"),
])  # fmt: skip
def test_settings_that_cannot_be_used(tmp_path, capsys, flags, words):
    good = {"data": "digits", "model": {}, "training": {}, "execution": {}}
    bad = {"run": good, "old": {"data": "digits", "model": {}}, "odd": good | {"model": {"flow_colour": 3}}, "wrong": good | {"model": {"flow_blocks": "many"}}}
    for name, note in bad.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(note))
    places = {name: tmp_path / f"{name}.json" for name in bad} | {"folder": tmp_path}
    with mock.patch("farmer.cli.Trainer", side_effect=AssertionError("too late")):
        assert words in mistake(capsys, "train", *flags.format(**places).split())


# --- Fine-tuning


def test_fine_tuning_starts_where_the_model_is(tmp_path, capsys):
    "On other data: the first figure is the model's own, its basis stays, and what it is stays."
    source, data = Farmer.from_pretrained("glyphs-palette"), load_dataset("glyphs-field", "test")
    main(["train", "digits", "--data", "glyphs-field", "--start-from", "glyphs-palette", "--folder", str(tmp_path), "--learning-rate", "1e-9",
          "--dropout", "0.1", "--no-uniform-noise", "--noise-end", "0.01", "--evaluation-images", "50", "--batch-size", "8", *WEIGHTLESS])  # fmt: skip
    assert "weights of glyphs-palette" in capsys.readouterr().out
    (start,) = [record["held_out_latest"] for record in read_log(tmp_path) if "held_out_latest" in record]
    assert abs(start - evaluate_bits_per_dim(source, data, 50).mean()) < 0.05
    tuned = Farmer.from_pretrained(tmp_path / "model")
    assert torch.equal(tuned.basis.matrix, source.basis.matrix) and tuned.config.basis == "luma-chroma"
    assert tuned.config.dropout == 0.1 and tuned.config.flow_blocks == source.config.flow_blocks


def test_classes_go_by_name_when_a_model_is_fine_tuned():
    source = small().eval()
    source.class_names = ("cat", "dog", "cow")
    images = torch.zeros(2, 1, 4, 4)
    model = cli._start_from(source, FarmerConfig(**{**vars(source.config), "num_classes": 4}), ["ant", "cow", "dog", "cat"]).eval()
    for label, theirs in enumerate((None, 2, 1, 0)):  # a new class starts as no class
        expected = source.log_prob(images, None if theirs is None else torch.tensor([theirs] * 2))
        torch.testing.assert_close(model.log_prob(images, torch.tensor([label] * 2)), expected)
    torch.testing.assert_close(model.log_prob(images), source.log_prob(images))
    source.class_names = ()  # of an older model: the same number of classes are the same classes
    model = cli._start_from(source, source.config, ["x", "y", "z"]).eval()
    torch.testing.assert_close(model.log_prob(images, torch.tensor([2, 0])), source.log_prob(images, torch.tensor([2, 0])))
    model = cli._start_from(source, FarmerConfig(**{**vars(source.config), "num_classes": 0}), ["x", "y", "z"]).eval()
    torch.testing.assert_close(model.log_prob(images), source.log_prob(images))


# --- Sampling


@pytest.fixture
def many(tmp_path) -> Path:
    "A model of 12 classes with names, some of which are numbers or would lead out of a folder."
    model = small(num_classes=12).eval()
    model.class_names = ("../../cat", "7", "dog", *(f"class {number}" for number in range(9)))
    model.save_pretrained(tmp_path / "many")
    return tmp_path / "many"


def test_classes_by_name_and_number(many, tmp_path, capsys):
    draw = ["sample", str(many), "--count", "2", "--output", str(tmp_path / "a.png")]
    for labels, words in ((["dog", "7", "0"], "6 images of classes 2, 1, 0 (dog, 7, ../../cat)"), (["12"], "(no class)"), (["all"], "24 images of")):
        main([*draw, "--labels", *labels])
        assert words in capsys.readouterr().out
    main(draw)  # a bounded number of classes, which is said
    printed = capsys.readouterr().out
    assert "20 images of classes 0, 1, 2, 4" in printed and "--labels all draws 12" in printed
    assert "dog, cow: not all are classes of this model; use all, or numbers or names such as ../../cat" in mistake(capsys, *draw, "--labels", "dog", "cow")
    assert "farmer: --labels must be in 0..11" in mistake(capsys, *draw, "--labels", "-1")


def test_every_kind_of_output_holds_the_same_images(many, tmp_path, capsys):
    draw = ["sample", str(many), "--labels", "dog", "0", "--count", "5", "--batch-size", "4", "--seed", "3", "--output"]
    for name in ("a.npz", "folder", "a.png"):
        main([*draw, str(tmp_path / name)])
    with np.load(tmp_path / "a.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.shape == (10, 4, 4, 3) and images.dtype == np.uint8 and labels.tolist() == [2] * 5 + [0] * 5
    files = sorted((tmp_path / "folder").glob("*.png"))
    assert [file.name for file in files[::5]] == ["000000-dog.png", "000005-.._.._cat.png"] and len(list((tmp_path / "folder").iterdir())) == 11
    assert len(files) == 10 and all(np.array_equal(read_image(file)[0], image[..., 0]) for file, image in zip(files, images))
    page = read_image(tmp_path / "a.png")[:, :, -5 * 65 - 1 :]
    assert torch.equal(page[0, 2:131:16, 2::16][:4, :4], torch.from_numpy(images[0, ..., 0]))


def test_a_folder_of_samples_goes_on(many, tmp_path, capsys):
    draw = ["sample", str(many), "--labels", "1", "2", "--count", "4", "--batch-size", "3", "--output"]
    save, folder = cli.save_files, tmp_path / "folder"

    def interrupted(images: torch.Tensor, paths: list[Path]) -> None:
        if not paths[0].name.startswith("000000"):
            raise KeyboardInterrupt
        save(images, paths)

    with mock.patch("farmer.cli.save_files", interrupted), pytest.raises(SystemExit):
        main([*draw, str(folder)])
    with mock.patch.object(Farmer, "sample_latents", autospec=True, side_effect=Farmer.sample_latents) as drawn:
        main([*draw, str(folder)])
        main([*draw, str(tmp_path / "whole")])
    assert len(drawn.call_args_list) == 2 + 3 and contents(folder) == contents(tmp_path / "whole")
    draw.append(str(folder))
    capsys.readouterr()
    assert "holds something else" in mistake(capsys, *draw, "--seed", "1")
    with lock_folder(folder, "sampling"):
        assert f"{folder} is in use by sampling" in mistake(capsys, *draw)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert "holds something else" in mistake(capsys, *draw[:-1], tmp_path / "mine") and os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_memory_does_not_grow_with_the_number_of_images(many, tmp_path):
    "Never more than a batch is alive, whatever the number."
    alive = []
    decode = Farmer.decode

    def counted(*arguments, **options):
        images = decode(*arguments, **options)
        alive.append(len(images))
        return images

    with mock.patch.object(Farmer, "decode", counted), mock.patch("torch.cat", side_effect=torch.cat) as joined:
        main(["sample", str(many), "--labels", "all", "--count", "20", "--batch-size", "50", "--output", str(tmp_path / "a.npz")])
    assert alive == [50] * 4 + [40]
    assert all(tensor.dim() < 4 for call in joined.call_args_list for tensor in call.args[0])  # images are never joined


@pytest.mark.parametrize("flags, words", [
    ("--output a.doc", "must end in .png"),
    ("--output a.pdf.gz", "must end in .png"),
    ("--count 100000 --labels all", "too many for a picture"),
    ("--seed -1", "--seed must be"),
    ("--seed 99999999999999999999", "--seed must be"),
    ("--batch-size 0", "--batch-size must be"),
    ("--solver jacobi --tolerance nan", "--tolerance must be"),
    ("--labels 3 13", "--labels must be in 0..11"),
    ("--labels 0 12 --guidance 1", "use --guidance 0"),
    ("--guidance nan", "scale must be"),
    ("--solver student", "has no student"),
    ("--device cuda:99", "not on this machine"),
    ("--output {file}/a.png", "exists"),
])  # fmt: skip
def test_samples_are_not_drawn_in_vain(many, tmp_path, capsys, flags, words):
    (tmp_path / "file").touch()
    with mock.patch("farmer.prior.AutoregressivePrior.sample", side_effect=AssertionError("too late")):
        error = mistake(capsys, "sample", many, *flags.format(file=tmp_path / "file").split())
    assert words in error, error


def test_a_picture_is_written_whole_or_not_at_all(many, tmp_path, capsys):
    (tmp_path / "a.png").write_text("before")
    with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
        for name in ("a.png", "a.npz", "folder"):
            assert "No space left" in mistake(capsys, "sample", many, "--output", tmp_path / name)
    assert (tmp_path / "a.png").read_text() == "before" and not (tmp_path / "a.npz").exists()
    assert not list(tmp_path.rglob("*.partial")) and not list(tmp_path.rglob("*/*.png"))


def test_a_large_model_is_sampled_in_few_images_at_once(many, tmp_path):
    "The batch follows what the prior predicts for an image: 500 for a small model, 32 for one of ImageNet; and each has a seed of its own."
    drawn, latents = [], Farmer.sample_latents

    def counted(model, labels, **options):
        drawn.append(len(labels))
        return latents(model, labels, **options)

    with mock.patch.object(Farmer, "sample_latents", counted), mock.patch("farmer.cli.images_at_once", lambda config: 7):
        main(["sample", str(many), "--labels", "all", "--count", "2", "--output", str(tmp_path / "seven")])
    main(["sample", str(many), "--labels", "all", "--count", "2", "--batch-size", "7", "--output", str(tmp_path / "given")])
    pictures = [{name: content for name, content in contents(tmp_path / place).items() if name != "samples.json"} for place in ("seven", "given")]
    assert drawn == [7, 7, 7, 3] and pictures[0] == pictures[1]
    assert cli.images_at_once(Farmer.from_pretrained(many).config) == 500
    assert [cli.images_at_once(PRESETS[f"imagenet256-1.9b-p{patch}"].model) for patch in (16, 8)] == [32, 32]
    few_components = replace(PRESETS["imagenet256-1.1b-p16"].model, components=1)
    assert 100 <= cli.images_at_once(few_components) <= 120  # then the images themselves are what fills the memory


# --- Faults of the machine, and terminals


class _Unreadable(Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> None:
        raise ValueError("image cat.png cannot be read: delete or replace it")


def raised(call) -> Exception:
    with pytest.raises(Exception) as caught:
        call()
    return caught.value


def test_the_real_reason_of_a_worker_is_given():
    error = raised(lambda: list(DataLoader(_Unreadable(), num_workers=1)))
    assert "Traceback" in str(error) and cli._explain(error, "train") == "image cat.png cannot be read: delete or replace it"
    killed = RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. \nmore")
    assert cli._explain(killed, "train") == "a process of --workers ended: DataLoader worker (pid 12) is killed by signal: Killed. "
    assert cli._explain(RuntimeError("a fault of the program"), "train") is None


def test_memory_that_runs_out(capsys):
    "By torch on the CPU, by numpy, on a GPU: one line that says what to change."
    on_a_gpu = mock.Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity"))
    faults = [lambda *_: torch.empty(10**15), lambda *_: np.empty(10**15), on_a_gpu]
    for fault in faults:
        with mock.patch.object(Farmer, "from_pretrained", fault):
            assert "memory ran out; use a smaller --batch-size" in mistake(capsys, "sample", "digits")
    assert "use --accumulation 2" in cli._explain(MemoryError(), "train")  # a smaller batch would train another model


def test_compiling_without_a_compiler():
    from torch._dynamo.exc import BackendCompilerFailed

    failed = raised(lambda: (_ for _ in ()).throw(BackendCompilerFailed(lambda: None, RuntimeError("No working C++ compiler found"), None)))
    assert "No working C++ compiler found); use --no-compile" in cli._explain(failed, "train")


def test_names_and_pictures_that_the_terminal_cannot_show(tmp_path, monkeypatch):
    model = small(num_classes=2).eval()
    model.class_names = ("猫", "café")
    model.save_pretrained(tmp_path / "model")
    for encoding in ("ascii", "latin-1"):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
        monkeypatch.setattr("sys.stdout", terminal)
        main(["sample", str(tmp_path / "model"), "--labels", "猫", "--count", "1", "--output", str(tmp_path / f"{encoding}.png")])
        print(os.fsdecode(b"photo-\xff.jpg"))
        _show_images(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).view(1, 1, 2, 2))
        terminal.flush()
        written = terminal.buffer.getvalue().decode(encoding)
        assert "(\\u732b)" in written and "photo-\\udcff.jpg" in written and "'." in written


# --- What a lab takes: launch/

LAUNCH = Path(__file__).parent.parent / "launch"
WORLD = {"GPUS": "8", "NODES": "8", "HEAD": "10.0.0.1", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a[1-8]", "SLURM_JOB_NUM_NODES": "8", "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64"}
STAND_INS = {  # for commands that are not here
    "srun": 'while [[ $1 == --* ]]; do shift 2; done; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then printf "a%d\\n" {1..8}; else echo "scontrol $*"; fi',
    "torchrun": """trap 'echo "the run saves"; exit 1' USR1
echo "heard: $*"
[ -z "${RUNNING:-}" ] || while true; do sleep 0.05; done
exit ${STATUS:-0}""",
}


def launch(folder: Path, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
    "A launch script in a world of stand-ins, which say what they were asked to do."
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (folder / name).chmod(0o755)
    world = {**os.environ, **WORLD, **environment, "PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", str(LAUNCH / script), *arguments], env=world, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def check_line(line: list[str]) -> cli.Train:
    "What a line of torchrun trains, if both torchrun and the command know all its flags, and the images can be shared out."
    from torch.distributed.run import get_args_parser

    found = get_args_parser().parse_args(line)
    assert found.module and found.training_script == "farmer"
    run = parse(found.training_script_args).run
    ranks = int(found.nnodes.partition(":")[0]) * int(found.nproc_per_node)
    assert run.training.batch_size % (ranks * run.execution.accumulation) == 0 and run.training.batch_size / ranks / run.execution.accumulation <= 32
    return run


@pytest.mark.parametrize("script", ["local.sh", "machines.sh", "slurm.sbatch"])
def test_launch_scripts_give_lines_that_can_be_read(tmp_path, script):
    printed, _ = launch(tmp_path, script, "--seed", "5", FOLDER="runs/mine").communicate(timeout=30)
    (line,) = [line for line in printed.splitlines() if line.startswith("heard: ")]
    run = check_line(line.removeprefix("heard: ").split())
    assert (run.data, run.folder, run.training.seed, run.model.flow_blocks) == ("data/imagenet-256", Path("runs/mine"), 5, 28)
    assert "scontrol requeue" not in printed
    assert all(os.access(LAUNCH / each, os.X_OK) and not subprocess.run(["bash", "-n", LAUNCH / each]).returncode for each in os.listdir(LAUNCH) if ".s" in each)


def test_the_kubernetes_job_can_be_read():
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (script,), line = container["args"], shlex.split(re.search(r"torchrun (.*?) &\n", container["args"][0], re.DOTALL)[1].replace("\\\n", ""))
    folder = check_line(line).folder
    assert container["command"] == ["bash", "-c"] and f"{folder}/model/model.safetensors" in script
    assert f"--nnodes={job['spec']['completions']}" in line and f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in line
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"] and service["metadata"]["name"] == pod["subdomain"]
    assert {volume["name"] for volume in pod["volumes"]} == {mount["name"] for mount in container["volumeMounts"]}
    assert int(container["env"][0]["value"]) < pod["terminationGracePeriodSeconds"]


def pod_script() -> str:
    yaml = pytest.importorskip("yaml")
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    (script,) = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return script


def test_a_pod_succeeds_only_with_a_finished_run(tmp_path):
    "SIGTERM reaches the run, which saves and ends with status 0; the pod fails, and is started again, until the model is there."
    (tmp_path / "torchrun").write_text("""#!/usr/bin/env bash
trap 'echo "the run saves"; exit 0' TERM
echo started
[ -z "${RUNNING:-}" ] || while true; do sleep 0.05; done""")
    (tmp_path / "torchrun").chmod(0o755)
    model = tmp_path / "runs" / "imagenet256-1.1b-p16" / "model" / "model.safetensors"

    def pod(**environment: str) -> subprocess.Popen:
        world = {**os.environ, **environment, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.Popen(["bash", "-c", pod_script().replace("/disk", str(tmp_path))], env=world, stdout=subprocess.PIPE, text=True)

    moved = pod(RUNNING="yes")
    assert moved.stdout.readline() == "started\n"
    time.sleep(0.2)
    moved.terminate()
    assert moved.communicate(timeout=30)[0] == "the run saves\n" and moved.returncode == 1
    model.parent.mkdir(parents=True)
    model.touch()
    assert pod().wait(timeout=30) == 0


@pytest.mark.long
@pytest.mark.parametrize("moved", [0, 1])
def test_pods_find_each_other_after_one_was_moved(tmp_path, moved):
    "Two real torchruns, of one rank each. Both end when one gets SIGTERM, and fail; started again, they go on and finish."
    small = f"-m farmer train digits --folder={tmp_path}/run --device cpu --steps 600 --save-every 50 --evaluate-every 1000"
    script = re.sub(r"-m farmer train .* &", f"{small} &", pod_script().replace("/disk/runs/imagenet256-1.1b-p16", f"{tmp_path}/run"))
    script = script.replace("farmer-0.farmer:29500", f"localhost:{free_port()}").replace("--nproc-per-node=8", "--nproc-per-node=1")
    world = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def start(place: int) -> subprocess.Popen:
        with (tmp_path / f"{place}.txt").open("a") as file:
            return subprocess.Popen(["bash", "-c", script], env=world, stdout=file, stderr=file, start_new_session=True)

    def text() -> str:
        return "".join((tmp_path / f"{place}.txt").read_text() for place in (0, 1))

    pods, end, told, restarts = [start(0), start(1)], time.monotonic() + 900, False, [0, 0]
    try:
        while any(pod.poll() != 0 for pod in pods):
            assert time.monotonic() < end, text()
            time.sleep(0.5)
            if not told and len(checkpoints(tmp_path / "run")) >= 2:
                pods[moved].terminate()
                told = True
            for place in (0, 1):
                if pods[place].poll():
                    pods[place], restarts[place] = start(place), restarts[place] + 1
    finally:
        for pod in pods:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pod.pid, signal.SIGKILL)
    assert told and min(restarts) >= 1 and "SIGTERM: saved at step" in text() and "going on from step" in text()


def test_slurm_requeues_a_run_that_was_warned(tmp_path):
    "SIGUSR1 to the batch script reaches the run, which saves, and the job is queued again; one that ends by itself is not."
    warned = launch(tmp_path, "slurm.sbatch", RUNNING="yes")
    assert warned.stdout.readline().startswith("heard: ")
    time.sleep(0.2)
    warned.send_signal(signal.SIGUSR1)
    printed, _ = warned.communicate(timeout=30)
    assert "the run saves" in printed and printed.splitlines()[-1] == "scontrol requeue 7" and warned.returncode == 0
    for status in (0, 2):
        ended = launch(tmp_path, "slurm.sbatch", STATUS=str(status))
        assert "requeue" not in ended.communicate(timeout=30)[0] and ended.returncode == status


@pytest.mark.slow
def test_torchrun_passes_the_warning_on(tmp_path):
    "SIGUSR1 to torchrun alone, by the flag that slurm.sbatch has: both ranks save."
    (flag,) = re.findall(r"--signals-to-handle (\S+)", (LAUNCH / "slurm.sbatch").read_text())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--signals-to-handle", flag]
    line = [*launcher, "-m", "farmer", "train", "digits", "--folder", str(tmp_path), "--steps", "100000", "--device", "cpu", *SMALL_RUN]
    job = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while job.poll() is None and not (tmp_path / "log.jsonl").exists():
        time.sleep(0.1)
    job.send_signal(signal.SIGUSR1)
    printed, _ = job.communicate(timeout=120)
    assert "SIGUSR1: saved at step" in printed and len(checkpoints(tmp_path)) == 1


# --- A fuzzer of command lines

_ODD = {
    int: ["x", "1.5", "", "-1", "99999999999999999999", "1e3", "0x10", "nan", "--", "{}", "9" * 5000],
    float: ["x", "", "nan", "inf", "-1", "1,5", "1e999"],
    Path: ["{file}/inside", "bad\0name"],
}
_ODD_TEXTS = {
    "data": ["nothing", "/nonexistent/x", "", "digitss", "{file}", "{empty}", "~nobody/x", "bad\0name"],
    "device": ["foo", "cuda:99", "mps:7", "meta", "cuda:x", "cpu:5", "-1"],
    "model": ["nothing", "./nothing/there", "{file}", "{empty}", "{garbage}", "../../etc", "bad\0name"],
    "guidance": ["x", "nan", "-1", "inf", "paper"],
    "labels": ["cow", "-1", "99", "1.5", "", "9" * 30],
    "source": ["{file}", "{empty}", "nothing"],
}
_ODD_TEXTS |= {"start_from": _ODD_TEXTS["model"], "run": _ODD_TEXTS["model"]}
_BASES = {"train": ["train", "digits"], "sample": ["sample", "digits", "--solver", "jacobi"], "evaluate": ["evaluate", "digits"], "prepare": ["prepare", "{images}", "{target}"],
          "distill": ["distill", "digits", "--folder", "{target}"], "explore": ["explore", "digits"], "demo": ["demo"]}  # fmt: skip


def bad_line(chance: random.Random) -> list[str]:
    "A command line that is wrong in one place."
    name = chance.choice(list(_BASES))
    kind = chance.choice(["value"] * 6 + ["command", "flag", "missing", "extra"])
    if kind == "command":
        lines = ["trian", "train didgits", " digits", "--", "-1", "train --digits", "sample\n digits", "help", "--steps 3", "train"]
        return chance.choice(lines).split(" ")
    command = cli.Train if name == "train" else cli._COMMANDS[name]
    flag, hint = chance.choice(sorted({(flag, hint) for flag, hint in all_hints(command) if flag != "given"}, key=str))
    as_flag = "--" + flag.replace("_", "-")
    if kind == "flag":
        return [*_BASES[name], chance.choice([f"{as_flag}z", f"-{as_flag}", as_flag[1:], "--=", "---", f"{as_flag[:3]}?"])]
    if kind == "extra":
        return [*_BASES[name], *chance.choice([["too", "much"], ["--no"], ["\u00e9"], [""]])]
    kinds = get_args(hint) or (hint,)
    if kind == "missing":
        return [*_BASES[name], as_flag, *(["maybe"] if bool in kinds or flag in ("model", "run", "source", "target", "labels") else [])]
    if get_origin(hint) is Literal:
        odd = ["nonsense", "", "EXACT"]
    elif bool in kinds:
        return [*_BASES[name], as_flag, "maybe"]
    elif flag in ("image_shape", "betas"):
        return [*_BASES[name], as_flag, *chance.choice([["1"], ["x", "y", "z"], ["-1", "-1", "-1"], ["1", "8", "nan"], []])]
    else:
        odd = _ODD_TEXTS.get(flag) or next(_ODD[kind] for kind in _ODD if kind in kinds)
    value = chance.choice(odd)
    if flag in ("model", "run", "source", "target"):  # has no flag, but a place
        return [_BASES[name][0], value, *_BASES[name][2:]]
    return [*_BASES[name], *([f"{as_flag}={value}"] if chance.random() < 0.3 else [as_flag, value])]


def all_hints(command: type):
    "Fields of a command and of the configurations in it, with their types."
    for name, hint in get_type_hints(command).items():
        yield from all_hints(hint) if hasattr(hint, "__dataclass_fields__") else [(name, hint)]


def test_bad_command_lines_end_with_one_line(tmp_path, monkeypatch, capsys):
    "A seeded fuzzer of every command and flag; FARMER_FUZZ says how many lines. Nothing is trained, drawn or believed."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    places = {name: str(tmp_path / name) for name in ("file", "empty", "garbage", "images", "target")}
    photos(tmp_path / "images", per_class=1)
    for name in ("empty", "garbage"):
        (tmp_path / name).mkdir()
    for name in ("config.json", "model.safetensors", "run.json"):
        (tmp_path / "garbage" / name).write_bytes(random.Random(0).randbytes(300))
    (tmp_path / "file").touch()
    wrong, late = [], mock.Mock(side_effect=AssertionError("a bad line was obeyed"))
    for place in ("training.Trainer.fit", "evaluation.draw_samples", "cli.show_demo", "prior.AutoregressivePrior.sample", "cli._explorer_notebook"):
        monkeypatch.setattr(f"farmer.{place}", late)
    for seed in range(int(os.environ.get("FARMER_FUZZ", "40"))):
        chance = random.Random(seed)
        line = [re.sub(r"{(\w+)}", lambda found: places[found[1]], part) for part in bad_line(chance)]
        try:
            status = main(line)
        except BaseException as error:
            status = error.code if isinstance(error, SystemExit) else repr(error)
        said = capsys.readouterr().err
        if status != 2 or not said.startswith("farmer: ") or said.count("\n") != 1 or len(said) > 620:
            wrong.append((seed, line, status, said[:500]))
    assert not wrong
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("model"))
