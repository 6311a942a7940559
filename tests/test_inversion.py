"Ways back through the flow: Jacobi iterations, the one-pass student, its training, its file, and the report that checks them."
import copy
import json
import math
import shutil
import weakref
from dataclasses import replace
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_command_line import SMALL as SMALL_RUN, mistake
from test_flow import draw, make_flow
from test_model import LABELS, clean_images, complaint, small
from test_training import CONFIG, stripes
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from farmer.cli import main
from farmer.flow import InverseAutoregressiveFlow, invert_block, jacobi_inverse, jacobi_round
from farmer.inversion import DISTILLATION, Distiller
from farmer.model import Farmer
from farmer.patches import dequantize
from farmer.training import Trainer, checkpoints, read_log


def with_student(seed: int = 0, **changes) -> Farmer:
    "A model whose student is not quite its flow's inverse."
    model = small(seed, **changes)
    model.student = InverseAutoregressiveFlow(model.flow)
    return model


# --- Jacobi


@pytest.mark.parametrize("scale_first", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_jacobi_is_exact_to_its_tolerance(blocks, scale_first):
    flow, x = make_flow(blocks, tokens=12, scale_first=scale_first).double(), draw(7, 12, 4, dtype=torch.float64)
    z = flow(x)[0].detach()
    for tolerance in (1e-3, 1e-6, 1e-9):
        found = jacobi_inverse(flow, z, tolerance)
        assert_close(found.x, x, rtol=0, atol=30 * tolerance)
        assert found.rounds.shape == found.change.shape == (7, blocks)
        assert (found.change <= tolerance).all()
    assert (jacobi_inverse(flow, z, 1e-9).rounds >= jacobi_inverse(flow, z, 1e-3).rounds).all()


def test_as_many_rounds_as_tokens_are_exact_whatever_the_guess():
    block, x = make_flow(1, tokens=6, spread=1.0).double().blocks[0], draw(3, 6, 4, dtype=torch.float64)
    with torch.no_grad():
        z, guess = block(x)[0], 5 * draw(3, 6, 4, seed=1, dtype=torch.float64)
        for count in range(1, 7):
            guess = jacobi_round(block, z, guess)
            assert_close(guess[:, :count], x[:, :count], rtol=0, atol=1e-9)  # token after token gets right
    assert_close(guess, block.inverse(z), rtol=0, atol=1e-9)


def test_jacobi_gives_each_image_what_it_gets_alone():
    flow = make_flow(2, tokens=10)
    z = draw(5, 10, 4) * torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0]).view(5, 1, 1)
    together = jacobi_inverse(flow, z, 1e-4)
    for index in range(5):
        alone = jacobi_inverse(flow, z[index : index + 1], 1e-4)
        assert_close(alone.x[0], together.x[index], rtol=0, atol=1e-5)
        assert torch.equal(alone.rounds[0], together.rounds[index])
    assert len(together.rounds.sum(1).unique()) > 1  # and they do not all stop at once


def test_jacobi_survives_guesses_that_overflow():
    "A token whose latent is huge makes the first guesses of all later ones wild; they must not spoil what is right already."
    block, z = make_flow(1, tokens=8).blocks[0], draw(4, 8, 4)
    z[0, 5] = 1e25
    with torch.no_grad():
        assert jacobi_round(block, z, z)[0, :5].isnan().any()  # without care, that is what happens
    found = invert_block(block, z, 1e-5)
    assert_close(found.x[:, :5], block.inverse(z)[:, :5], rtol=0, atol=1e-4)
    assert_close(found.x[1:], block.inverse(z)[1:], rtol=0, atol=1e-4)


def test_jacobi_refuses_half_precision():
    complaint(ValueError, lambda: jacobi_inverse(make_flow(), draw(2, 6, 4).bfloat16()), "torch.bfloat16", "float32 or float64")


@pytest.mark.parametrize("tolerance", [0.0, -1.0, 1e-8, math.nan])
def test_a_tolerance_below_the_resolution_is_refused(tolerance):
    complaint(ValueError, lambda: jacobi_inverse(make_flow(), draw(2, 6, 4), tolerance), "resolution of torch.float32", "float64")
    if tolerance == 1e-8:
        jacobi_inverse(make_flow().double(), draw(2, 6, 4, dtype=torch.float64), tolerance)


def test_values_that_never_stand_still_are_reported():
    model = small()
    latents = model.encode(clean_images())
    latents.redundant = torch.full_like(latents.redundant, 3e38)  # beyond what float32 can undo
    latents.redundant[2:] = 0
    with pytest.warns(UserWarning, match="did not reach tolerance 1e-05 for 2 of 6 images: values still move by"):
        _, report = model.decode(latents, "jacobi", return_report=True)
    assert report.rounds[:2].max() == 5 and not (report.residual[:2] < 1).any() and (report.residual[2:] < 1e-3).all()


# --- The inverse autoregressive flow


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_log_determinant_of_the_student_is_autograds(blocks):
    student = InverseAutoregressiveFlow(make_flow(blocks)).double()
    z = draw(2, 6, 4, dtype=torch.float64)
    x, logdet = student(z)
    for index in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda one: student(one)[0], z[index : index + 1]).reshape(24, 24)
        assert_close(torch.linalg.slogdet(jacobian).logabsdet, logdet[index], rtol=0, atol=1e-10)


def test_a_new_student_does_one_jacobi_round_a_block():
    flow = make_flow(2, dropout=0.5).train()
    student, z = InverseAutoregressiveFlow(flow), draw(3, 6, 4)
    with torch.no_grad():
        flow.eval()
        halfway = jacobi_round(flow.blocks[1], z.flip(1), z.flip(1)).flip(1)
        assert_close(student.train()(z)[0], jacobi_round(flow.blocks[0], halfway, halfway))  # no dropout, even in training mode
        student.blocks[0].start.add_(1)
    assert not torch.equal(student.blocks[0].start, flow.blocks[0].start)  # a copy
    assert all(parameter.requires_grad for parameter in InverseAutoregressiveFlow(flow.requires_grad_(False)).parameters())


# --- Solvers of a model


@pytest.mark.parametrize("solver", ["exact", "jacobi", "student"])
def test_the_report_says_what_the_flow_says(solver):
    model = with_student().double()
    latents = model.sample_latents(LABELS, torch.Generator().manual_seed(0))
    images, report = model.decode(latents, solver, labels=LABELS, return_report=True)
    reached = model.encode(images)
    off = torch.cat([reached.informative - latents.informative, reached.redundant - latents.redundant], -1)
    assert_close(report.residual, off.abs().amax((1, 2)).detach())
    assert_close(report.rms_residual, off.square().mean((1, 2)).sqrt().detach())
    assert_close(report.log_prob, model.log_prob(images, LABELS).detach())
    assert (report.rounds is not None) == (solver == "jacobi") and "\n" not in report.summary()
    assert report.residual.max() > 0.01 if solver == "student" else report.residual.max() < 1e-3
    unlabelled = model.decode(latents, solver, return_report=True)[1]
    assert_close(unlabelled.log_prob, model.log_prob(images).detach())
    assert torch.equal(images, model.decode(latents, solver)) and not images.requires_grad


def test_solvers_sample_alike():
    model = with_student()
    draws = {solver: model.sample(LABELS, torch.Generator().manual_seed(0), solver=solver) for solver in ("exact", "jacobi", "student")}
    assert_close(draws["jacobi"], draws["exact"], rtol=0, atol=1e-4)
    assert not torch.allclose(draws["student"], draws["exact"], atol=1e-3)
    loose = model.sample(LABELS, torch.Generator().manual_seed(0), solver="jacobi", tolerance=0.3)
    assert not torch.equal(loose, draws["jacobi"])
    images, report = model.sample(LABELS, torch.Generator().manual_seed(0), solver="student", return_report=True)
    assert torch.equal(images, draws["student"]) and report.guidance is None and report.inversion.rounds is None


def test_solvers_that_do_not_exist_are_refused():
    model = small()
    latents = model.encode(clean_images())
    complaint(ValueError, lambda: model.decode(latents, "student"), "no student", "farmer distill")
    complaint(ValueError, lambda: model.sample([0], solver="newton"), "exact, jacobi or student", "'newton'")
    with mock.patch.object(model.prior, "sample", side_effect=AssertionError("drawn in vain")):
        complaint(ValueError, lambda: model.sample([0], solver="student"), "no student")
    complaint(ValueError, lambda: model.decode(latents, labels=[0, 1], return_report=True), "2 labels", "6 images")


def test_the_student_moves_with_the_model_and_is_no_part_of_its_density():
    model = with_student().double()
    before = model.log_prob(dequantize(clean_images().double(), 5), LABELS).shape
    assert model.student.blocks[0].start.dtype == torch.float64 and before == (6,)
    assert not any("student" in name for name in model.state_dict()) and len(list(model.parameters())) == len(list(small().parameters()))
    assert copy.deepcopy(model).student.blocks[0].start.dtype == torch.float64
    assert model.to("meta").student.blocks[0].start.device.type == "meta"
    model = with_student().double()
    images = clean_images().double()
    density = model.log_prob(images, LABELS)
    model.student = None
    assert torch.equal(density, model.log_prob(images, LABELS))


@pytest.mark.parametrize("solver", ["exact", "jacobi", "student"])
def test_solvers_under_autocast_return_full_precision(solver):
    model = with_student()
    latents = model.sample_latents(LABELS, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        images = model.decode(latents, solver, tolerance=1e-2)
    assert images.dtype == torch.float32
    assert_close(images, model.decode(latents, solver), rtol=0, atol=0.2)


# --- Files


def test_a_student_is_saved_and_loaded_with_its_model(tmp_path):
    model = with_student()
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "student.safetensors"]
    assert not any(name.startswith("student") for name in load_file(tmp_path / "model.safetensors"))
    loaded, latents = Farmer.from_pretrained(tmp_path), model.encode(clean_images())
    assert torch.equal(loaded.decode(latents, "student"), model.decode(latents, "student"))
    loaded.student = None
    loaded.save_pretrained(tmp_path)  # the same flow saved again: its student is not lost
    assert loaded.student is None and Farmer.from_pretrained(tmp_path).student is not None
    small(seed=1).save_pretrained(tmp_path)  # another flow
    assert not (tmp_path / "student.safetensors").exists() and Farmer.from_pretrained(tmp_path).student is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_student_survives_saving_in_any_precision(tmp_path, dtype):
    with_student().to(dtype).save_pretrained(tmp_path)
    assert Farmer.from_pretrained(tmp_path).student.blocks[0].start.dtype == torch.promote_types(dtype, torch.float32)


def test_loading_other_weights_drops_the_student():
    model = with_student()
    model.load_state_dict(small(seed=1).state_dict())
    assert model.student is None


def test_students_of_other_models_are_refused(tmp_path):
    with_student().save_pretrained(tmp_path / "own")
    with_student(seed=1).save_pretrained(tmp_path / "other")
    with_student(flow_blocks=3).save_pretrained(tmp_path / "deeper")
    path = tmp_path / "own" / "student.safetensors"
    whole = path.read_bytes()
    for source, word in (("other", "another flow"), ("deeper", "another architecture")):
        shutil.copy(tmp_path / source / "student.safetensors", path)
        complaint(ValueError, lambda: Farmer.from_pretrained(tmp_path / "own"), word, "delete it")
    path.write_bytes(whole[:-100])
    complaint(ValueError, lambda: Farmer.from_pretrained(tmp_path / "own"), "student.safetensors is damaged")
    tensors = load_file(tmp_path / "other" / "student.safetensors")
    tensors.pop("blocks.0.start")
    path.write_bytes(whole)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(tensors, path, metadata)
    complaint(ValueError, lambda: Farmer.from_pretrained(tmp_path / "own"), "does not hold the weights")
    path.unlink()
    assert Farmer.from_pretrained(tmp_path / "own").student is None


@pytest.mark.parametrize("name", ["digits", "glyphs"])
def test_embedded_students(name):
    model = Farmer.from_pretrained(name)
    labels = torch.arange(10).repeat(5)
    latents = model.sample_latents(labels, torch.Generator().manual_seed(0))
    exact, (made, report) = model.decode(latents), model.decode(latents, "student", labels=labels, return_report=True)
    fresh = InverseAutoregressiveFlow(model.flow)
    z = model.partition.join(latents.informative, latents.redundant)
    with torch.no_grad():
        before = (fresh(z)[0] - model.flow.inverse(z)).square().mean().sqrt()
    error = (exact - made).square().mean().sqrt()
    assert error < 0.03 and error < 0.3 * before and report.rms_residual.max() < 0.5


# --- Memory


class LiveBytes(TorchDispatchMode):
    "Counts the bytes of storages that operations made and that are still alive."

    def __init__(self):
        super().__init__()
        self.owners, self.live, self.most = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.adopt(tensor)
        return result

    def adopt(self, tensor):
        key, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        if key not in self.owners:
            self.owners[key] = 0
            self.live += size
            self.most = max(self.most, self.live)
        self.owners[key] += 1
        weakref.finalize(tensor, self.release, key, size)

    def release(self, key, size):
        self.owners[key] -= 1
        if not self.owners[key]:
            del self.owners[key]
            self.live -= size


def test_exact_inversion_holds_its_cache_and_nothing_that_grows(monkeypatch):
    tokens, batch, width = 40, 3, 32
    flow, z, at_token = make_flow(2, tokens=tokens, width=width), draw(3, tokens, 4), []
    step = type(flow.blocks[0].transformer).step
    with LiveBytes() as memory:
        monkeypatch.setattr(type(flow.blocks[0].transformer), "step", lambda *args: (at_token.append(memory.live), step(*args))[1])
        flow.inverse(z)
    first, second = at_token[:tokens], at_token[tokens:]
    assert len(second) == tokens and len(set(first[2:])) == len(set(second[2:])) == 1  # the same at every token
    cache = 2 * batch * width * tokens * 4  # keys and values of one layer, float32
    image = batch * tokens * 4 * 4
    assert cache <= first[-1] <= cache + 8 * image + width * tokens * 4 + 20 * batch * width * 4  # the cache, and little beside it


# --- Distillation

SHORT = replace(DISTILLATION, steps=12, batch_size=8, warmup_steps=2, evaluate_every=6, save_every=5, evaluation_images=20)


def teacher(seed: int = 0) -> Farmer:
    return small(seed, **{name: getattr(CONFIG, name) for name in ("num_classes", "dropout")})


def make(folder, settings=SHORT, seed: int = 0, dataset=None) -> Distiller:
    return Distiller(teacher(seed), dataset or stripes(), stripes(seed=1), settings, folder, "cpu")


def test_distillation_improves_and_leaves_the_teacher_alone(tmp_path):
    distiller = make(tmp_path, replace(SHORT, steps=150, evaluate_every=50))
    before = {name: tensor.clone() for name, tensor in distiller.teacher.state_dict().items()}
    start = distiller.evaluate()["held_out_average"]
    distiller.train()
    evaluations = [record for record in read_log(tmp_path) if "held_out_average" in record]
    assert [record["step"] for record in evaluations] == [50, 100, 150] and evaluations[-1]["held_out_average"] < 0.5 * start
    assert evaluations[-1]["residual"] > 0 and (tmp_path / evaluations[-1]["samples"]).is_file()
    finished = distiller.finished()
    assert all(torch.equal(before[name], tensor) for name, tensor in finished.state_dict().items())
    latents = finished.encode(dequantize(clean_images(), 5, torch.Generator().manual_seed(3)))
    error = (finished.decode(latents, "student") - finished.decode(latents)).square().mean().sqrt()
    assert error < 2 * evaluations[-1]["held_out_average"]


@pytest.mark.parametrize("stop", [1, 5, 7])
def test_distillation_resumes_bit_identically(tmp_path, stop):
    whole = make(tmp_path / "whole")
    whole.train()
    make(tmp_path / "parts").train(last_step=stop)
    torch.rand(100)
    resumed = make(tmp_path / "parts")
    assert resumed.step == stop
    resumed.train()
    for name, tensor in whole.average.state_dict().items():
        assert torch.equal(tensor, resumed.average.state_dict()[name]), name


def test_checkpoints_of_another_teacher_or_data_are_refused(tmp_path):
    make(tmp_path).train(last_step=2)
    complaint(ValueError, lambda: make(tmp_path, seed=1), "another run", "teacher", "the same data and model")
    complaint(ValueError, lambda: make(tmp_path, dataset=stripes(seed=5)), "another run")
    complaint(ValueError, lambda: make(tmp_path, replace(SHORT, learning_rate=1e-3)), "learning_rate")


def test_training_drops_a_student_that_no_longer_fits(tmp_path):
    model = with_student(num_classes=2)
    trainer = Trainer(model, stripes(), stripes(seed=1), replace(SHORT, weight_decay=0.03), tmp_path, "cpu")
    assert trainer.model.student is None


def test_a_distillation_that_diverges_stops(tmp_path):
    distiller = make(tmp_path)
    with torch.no_grad():
        distiller.model.blocks[0].start.fill_(math.nan)
    complaint(FloatingPointError, distiller.train, "step 0", "distillation loss")


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
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in density.items()) and loaded.student is not None
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
    assert Farmer.from_pretrained(tmp_path / "new" / "model").student is not None
    assert "neither a folder" in mistake(capsys, "distill", tmp_path / "nothing", "--data", "digits", "--folder", tmp_path / "other")
    shutil.copytree(tmp_path / "new" / "model", tmp_path / "bare")
    assert "--data" in mistake(capsys, "distill", tmp_path / "bare", "--folder", tmp_path / "other")
    main(["distill", str(tmp_path / "new"), "--steps", "1", "--batch-size", "4", "--evaluation-images", "10"])  # it knows its data
    assert "glyphs" in mistake(capsys, "distill", "digits", "--data", "glyphs", "--folder", tmp_path / "other")
