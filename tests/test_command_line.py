"The `farmer` command as its users meet it: what it prints, writes and says about mistakes."
import json
import os
import signal
import subprocess
import sys
import time
from unittest import mock

import pytest
import torch
from helpers import SMALL_RUN, farmer_process, mistake, photos, read_image

from farmer import Farmer, Student, __main__, load_dataset
from farmer.checkpoints import checkpoints
from farmer.cli import _PAGE, _explorer_notebook, main, parse
from farmer.data import IMAGE_SIZES
from farmer.demo import text_images
from farmer.evaluation import EvaluationConfig, manifest
from farmer.presets import PRESETS
from farmer.training import read_log


def test_train_resume_and_sample_on_a_folder_of_images(tmp_path, capsys):
    data, run = photos(tmp_path / "photos"), tmp_path / "run"
    arguments = ["train", "glyphs-field", "--data", str(data), "--folder", str(run), "--steps", "6", "--save-every", "3", "--evaluate-every", "6", *SMALL_RUN]
    main(arguments)
    printed = capsys.readouterr().out
    assert "22 training images" in printed and "bits/dim, standard error" in printed and f"next: farmer sample {run / 'model'}" in printed
    config = Farmer.from_pretrained(run / "model").config
    assert config.image_shape == (3, 16, 16) and config.num_classes == 2 and config.levels == 256
    assert [path.name for path in checkpoints(run)] == ["step-00000003", "step-00000006"]
    assert read_image(run / "samples" / "step-00000006.png").shape == (3, 10 * 17 + 1, 2 * 17 + 1)
    log = read_log(run)
    main(arguments)
    assert "going on from step 6 of 6" in capsys.readouterr().out and read_log(run) == log
    for name in ("a", "b"):
        main(["sample", str(run / "model"), "--labels", "1", "0", "--count", "3", "--seed", "5", "--output", str(tmp_path / f"{name}.png")])
    assert "6 images of classes 1, 0" in capsys.readouterr().out
    assert read_image(tmp_path / "a.png").shape == (3, 2 * 17 + 1, 3 * 17 + 1)
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
    assert "training and evaluations go on where they stopped when the same command is given again" in errors
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
    assert "patch_size 3 does not divide the image size 8x8" in mistake(capsys, "train", "digits", "--patch-size", "3", "--folder", new)
    for wrong in (0, 4, -1):
        assert "informative_channels" in mistake(capsys, "train", "digits", "--informative-channels", wrong, "--folder", new)
    assert "steps must be a whole number, 1 or more" in mistake(capsys, "train", "digits", "--steps", "0", "--folder", new)
    assert "needs 3 channels (RGB)" in mistake(capsys, "train", "digits", "--basis", "luma-chroma", "--folder", new)
    assert "no model 'nothing'" in mistake(capsys, "sample", "nothing")
    assert "labels must be" in mistake(capsys, "sample", "digits", "--labels", "12")
    assert "solver" in mistake(capsys, "sample", "digits", "--solver", "newton")
    assert "glyphs-field has no student" in mistake(capsys, "sample", "glyphs-field", "--solver", "student")
    assert "tolerance" in mistake(capsys, "sample", "digits", "--solver", "jacobi", "--tolerance", "1e-12")
    assert "count must be a whole number, 1 or more" in mistake(capsys, "sample", "digits", "--count", "0")
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
    error = mistake(capsys, "train", "glyphs-field", "--data", data, "--folder", tmp_path / "run", "--steps", "2", *SMALL_RUN)
    assert str(data / "red" / "01.png") in error and "delete or replace" in error


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
    with mock.patch("farmer.cli.main"), mock.patch.dict(os.environ, before, clear=True):
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
    assert "image_size" in mistake(capsys, "prepare", data, tmp_path / "out", "--image-size", "0")
    assert "elsewhere" in mistake(capsys, "prepare", data, data / "shards", "--image-size", "16")
    main(["prepare", str(data), str(tmp_path / "out"), "--image-size", "16", "--workers", "0"])
    capsys.readouterr()
    assert "image_size was 16, now 20" in mistake(capsys, "prepare", data, tmp_path / "out", "--image-size", "20", "--workers", "0")
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
