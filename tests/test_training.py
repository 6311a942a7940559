"The training loop: exact resume, learning at all, its log, and what it does when something goes wrong."
import gc
import json
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from helpers import complaint, make_trainer, seeded, short_training, stripes, stripes_config, weights_of
from matplotlib import pyplot
from torch.testing import assert_close

from farmer import training
from farmer.checkpoints import checkpoints
from farmer.data import ArrayDataset, load_dataset
from farmer.files import lock_folder
from farmer.model import Farmer
from farmer.objectives import Likelihood, evaluate_bits_per_dim
from farmer.training import Trainer, TrainingConfig, plot_log, read_log


def without_speed(log: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in log]


@pytest.mark.parametrize("stop, optimizer", [(1, "adamw"), (5, "adamw"), (6, "adamw"), (7, "adamw"), (11, "adamw"), (6, "muon")])
def test_stop_and_resume_anywhere_gives_bit_identical_weights(tmp_path, stop, optimizer):
    settings = short_training(optimizer=optimizer)
    whole = make_trainer(tmp_path / "whole", settings)
    whole.fit()
    make_trainer(tmp_path / "parts", settings).fit(last_step=stop)
    torch.rand(100)  # disturb the global generator, as another process would have
    resumed = make_trainer(tmp_path / "parts", settings)
    assert resumed.step == stop
    resumed.fit()
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name
    evaluations = [[record for record in read_log(tmp_path / name) if "held_out_average" in record] for name in ("whole", "parts")]
    assert evaluations[0] == evaluations[1]


def test_muon_moves_the_matrices_of_transformer_layers_and_adamw_the_rest(tmp_path):
    trainer = make_trainer(tmp_path, short_training(optimizer="muon"))
    held = [{id(weight) for group in optimizer.param_groups for weight in group["params"]} for optimizer in trainer.optimizers]
    names = {name: id(weight) for name, weight in trainer.model.named_parameters()}
    matrices = {number for name, number in names.items() if name.endswith(("query_key_value.weight", "attention_output.weight", "network_input.weight", "network_output.weight"))}
    assert [type(optimizer).__name__ for optimizer in trainer.optimizers] == ["AdamW", "Muon"]
    assert matrices and held == [set(names.values()) - matrices, matrices]
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.fit(last_step=2)
    assert not any(torch.equal(weight, before[name]) for name, weight in trainer.model.named_parameters())
    assert {group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups} == {trainer.config.rate(1)}


def test_a_run_that_is_there_already_has_nothing_to_do(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit(last_step=7)
    before, log = weights_of(trainer)["updates"].item(), read_log(tmp_path)
    trainer.fit(last_step=5)
    make_trainer(tmp_path).fit(last_step=7)
    assert trainer.step == 7 == before == weights_of(trainer)["updates"].item() and read_log(tmp_path) == log


def test_training_learns_and_logs(tmp_path):
    trainer = make_trainer(tmp_path, short_training(steps=200, evaluate_every=100))
    before = evaluate_bits_per_dim(trainer.model, trainer.held_out).mean()
    trainer.fit()
    after = evaluate_bits_per_dim(trainer.ema, trainer.held_out).mean()
    assert after < before - 0.5 and after < 5**0.5  # log2(5) = 2.32 is the cost of a blind guess
    assert trainer.model.training and not trainer.ema.training
    log = read_log(tmp_path)
    records, evaluations = [r for r in log if "loss" in r], [r for r in log if "held_out_average" in r]
    assert [r["step"] for r in records] == list(range(10, 201, 10)) and [r["step"] for r in evaluations] == [100, 200]
    for record in records:
        assert_close(-(record["informative"] + record["redundant"] + record["logdet"]), record["loss"])  # nats per dimension
    assert records[0]["noise"] > records[-1]["noise"]
    assert all((tmp_path / evaluation["samples"]).is_file() for evaluation in evaluations)
    assert len(checkpoints(tmp_path)) == 2
    plot_log(tmp_path)


def test_a_model_without_classes_trains_on_data_that_has_some(tmp_path):
    trainer = make_trainer(tmp_path, config=stripes_config(num_classes=0))
    trainer.fit()
    assert read_log(tmp_path)[-1]["held_out_average"] > 0


@pytest.mark.parametrize("channels", [2, 4])
def test_pictures_of_samples_show_what_a_picture_can_hold(tmp_path, channels):
    values = torch.randint(5, (20, channels, 4, 4), generator=seeded(), dtype=torch.uint8)
    data = ArrayDataset(values, torch.arange(20) % 2, 5, ["across", "down"])
    config = stripes_config(image_shape=(channels, 4, 4))
    trainer = Trainer(Likelihood(Farmer(config)), data, data, short_training(steps=2, evaluate_every=2), tmp_path, device="cpu")
    trainer.fit()
    assert len(list((tmp_path / "samples").iterdir())) == 1


def test_a_trained_model_keeps_its_basis(tmp_path):
    "The axes of a basis that is fitted anew may turn, and its flow would not know them. More images than the fit looks at."
    model, train = Farmer.from_pretrained("glyphs"), load_dataset("glyphs")
    before = model.basis.matrix.clone()
    Trainer(Likelihood(model), train, load_dataset("glyphs", "test"), short_training(), tmp_path, device="cpu")
    assert torch.equal(model.basis.matrix, before)
    fresh = Farmer(model.config)
    Likelihood(fresh).fit_basis(train)
    assert_close(fresh.basis.matrix, before, rtol=0, atol=1e-4)  # it was fitted to the same images, once


def test_held_out_images_must_fit_the_model_too(tmp_path):
    complaint(ValueError, lambda: Trainer(Likelihood(Farmer(stripes_config())), stripes(), load_dataset("digits"), short_training(), tmp_path), "image_shape")


def test_schedules():
    config = TrainingConfig(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1, noise_start=0.2, noise_end=0.05)
    rates, noises = [config.rate(step) for step in range(101)], [config.noise(step) for step in range(101)]
    assert rates[0] == 0.1 and max(rates) == rates[10] == rates[9] == 1.0 and rates[100] == pytest.approx(0.1)
    assert noises[0] == pytest.approx(0.2) and noises[100] == pytest.approx(0.05) and noises == sorted(noises, reverse=True)


def test_the_average_follows_its_definition(tmp_path):
    trainer = make_trainer(tmp_path, short_training(ema_decay=0.3))
    weight, expected = (module.prior.redundant_head.linear.weight for module in (trainer.model, trainer.ema))
    expected = expected.detach().clone()
    for count, batch in enumerate(trainer.batches(12)):
        trainer.train_step(batch)
        decay = min(0.3, (1 + count) / (10 + count)) if count else 0.0
        expected = decay * expected + (1 - decay) * weight.detach()
    assert_close(trainer.ema.prior.redundant_head.linear.weight.detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_trainer_is_freed_with_its_last_reference(tmp_path):
    gc.disable()
    try:
        trainer = make_trainer(tmp_path)
        trainer.fit(last_step=2)
        gone = weakref.ref(trainer)
        del trainer
        assert gone() is None
    finally:
        gc.enable()


# --- The log


def test_a_log_line_cut_by_a_crash_spoils_only_itself(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    whole.fit()
    make_trainer(tmp_path / "parts").fit(last_step=11)
    log = tmp_path / "parts" / "log.jsonl"
    written = read_log(tmp_path / "parts")
    assert [record["step"] for record in written] == [6, 10, 11]
    log.write_bytes(log.read_bytes()[:-20])
    assert read_log(tmp_path / "parts") == written[:-1]
    resumed = make_trainer(tmp_path / "parts")
    assert read_log(tmp_path / "parts") == written[:-1]
    resumed.fit()
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name
    assert without_speed(read_log(tmp_path / "parts")) == without_speed(read_log(tmp_path / "whole"))


def test_a_log_without_a_checkpoint_is_of_a_run_that_starts_again(tmp_path):
    make_trainer(tmp_path / "whole").fit()
    make_trainer(tmp_path / "parts").log.write({"step": 3, "loss": 1.0})
    with open(tmp_path / "parts" / "log.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while it wrote, before the first checkpoint
    make_trainer(tmp_path / "parts").fit()
    assert without_speed(read_log(tmp_path / "parts")) == without_speed(read_log(tmp_path / "whole"))


@pytest.mark.parametrize("installed", [True, False])
def test_tensorboard_is_written_when_it_is_installed(tmp_path, monkeypatch, installed):
    written = []

    class Board:
        def __init__(self, folder, purge_step):
            assert folder == tmp_path / "tensorboard" and purge_step == 1

        def add_scalar(self, name, value, step):
            written.append((name, step))

        def add_image(self, name, image, step, dataformats):
            assert image.ndim == 3 and dataformats == "HWC"
            written.append((name, step))

        def flush(self):
            pass

    monkeypatch.setattr(training.importlib.util, "find_spec", lambda name: installed or None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", type("module", (), {"SummaryWriter": Board}))
    make_trainer(tmp_path).fit()
    expected = {("loss", 10), ("gradient_norm", 12), ("held_out_average", 6), ("samples", 12), ("noise", 10), ("images_per_second", 12)}
    assert expected <= set(written) if installed else not written


def test_curves_of_a_run_that_goes_on_are_there_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    short = short_training(steps=40, save_every=15, evaluate_every=100)
    first = make_trainer(tmp_path, short)
    first.fit(last_step=15)
    first.log.write({"step": 20, "loss": 1.0})  # then it was killed
    first.log.board.close()
    again = make_trainer(tmp_path, short)
    again.fit()
    again.log.board.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in events] == [10, 15, 20, 30, 40] and events[2].value != 1.0


def test_what_is_no_record_is_left_out(tmp_path):
    good = [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.5}]
    lines = [json.dumps(good[0]), "[" * 10**5, "3", "null", '{"loss": 1.0}', '{"step": "ten"}', "\ufffd", json.dumps(good[1]), '{"step": 30, "lo']
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    assert read_log(tmp_path) == good
    (tmp_path / "log.jsonl").write_bytes(b"\xff\xfe\n" + json.dumps(good[0]).encode() + b"\n")
    assert read_log(tmp_path) == good[:1]
    (tmp_path / "log.jsonl").write_text("")
    complaint(ValueError, lambda: plot_log(tmp_path), "has no record of a step yet")


def test_the_loss_in_a_log_is_a_density_whatever_unit_was_written(tmp_path):
    parts = {"informative": -1.25, "redundant": -0.5, "logdet": 2.0}
    lines = [{"step": 10, "loss": 2.6, **parts}, {"step": 20, "loss": 0.1}, {"step": 20, "held_out_latest": 2.0, "held_out_average": 2.5}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_log(tmp_path) == [{**lines[0], "loss": -0.25}, *lines[1:]]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (dict(lines[0], gradient_norm=1.0), lines[2])))
    plot_log(tmp_path)
    held_out, density, _ = pyplot.gcf().axes
    assert held_out.get_ylabel() == "bits/dim" and density.get_ylabel() == "nats per dimension" and "noised" in density.get_title()
    assert {line.get_label(): line.get_ydata()[0] for line in density.lines} == {"sum": 0.25, **parts}


def test_an_evaluation_that_was_cut_short_is_made_up_for(tmp_path, monkeypatch):
    "The save of its step comes before it, so nothing else is lost."
    whole = make_trainer(tmp_path / "whole", short_training(save_every=6))
    whole.fit()

    def killed(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(Likelihood, "held_out", killed)
        make_trainer(tmp_path / "parts", short_training(save_every=6)).fit()
    resumed = make_trainer(tmp_path / "parts", short_training(save_every=6))
    assert resumed.step == 6
    resumed.fit()
    assert without_speed(read_log(tmp_path / "parts")) == without_speed(read_log(tmp_path / "whole"))


def test_a_file_gets_a_line_a_minute(tmp_path, monkeypatch, capfd):
    clock = iter(range(0, 100_000, 20))  # seconds, at each look
    monkeypatch.setattr("farmer.distributed.time.monotonic", lambda: next(clock))
    make_trainer(tmp_path, short_training(steps=100, evaluate_every=1000, save_every=1000)).fit()
    printed = capfd.readouterr().err
    lines = printed.splitlines()
    assert printed.isascii() and "\r" not in printed and len(printed) < 120 * len(lines)
    assert [int(re.search(r"(\d+)/100 ", line)[1]) for line in lines] == [10, 40, 70, 100] and "loss" in lines[0]


# --- Folders, and runs that change


def test_a_folder_in_use_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    with lock_folder(tmp_path, "something else"):
        for attempt in (trainer.fit, lambda: make_trainer(tmp_path)):
            complaint(ValueError, attempt, f"{tmp_path} is in use by something else on", f"process {os.getpid()}")
    during = []
    trainer.evaluate = lambda: during.append(complaint(ValueError, lambda: make_trainer(tmp_path), "is in use by training")) or {"step": trainer.step}
    trainer.fit()
    assert len(during) == 2 and make_trainer(tmp_path).step == 12


def test_what_changes_no_weight_may_change(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    whole.fit()
    make_trainer(tmp_path / "parts").fit(last_step=7)
    resumed = make_trainer(tmp_path / "parts", short_training(evaluate_every=3, save_every=2, evaluation_images=5))
    resumed.fit()
    assert all(torch.equal(tensor, weights_of(resumed)[name]) for name, tensor in weights_of(whole).items())
    assert [record["step"] for record in read_log(tmp_path / "parts") if "held_out_average" in record] == [6, 9, 12]
    complaint(ValueError, lambda: make_trainer(tmp_path / "whole", short_training(steps=20)), "steps 12 -> 20", "--start-from")


def test_a_trainer_that_its_folder_has_left_behind_is_refused(tmp_path):
    "As in a notebook, while the same run goes on in a terminal; its save would take the folder back."
    stale = make_trainer(tmp_path)
    stale.fit(last_step=5)
    make_trainer(tmp_path).fit()
    before = checkpoints(tmp_path)
    complaint(ValueError, stale.fit, "at step 5, its folder at step-00000012", "make a new Trainer")
    assert checkpoints(tmp_path) == before and make_trainer(tmp_path).step == 12
    (before[-1] / "manifest.json").write_text("{")  # a damaged checkpoint is nowhere to go on from
    again = make_trainer(tmp_path)
    assert again.step == 10
    again.fit()
    assert again.step == 12


def test_fine_tuning_starts_where_the_model_is(tmp_path):
    "On other data: digits in a mirror."
    model, train, test = Farmer.from_pretrained("digits"), *(load_dataset("digits", split) for split in ("train", "test"))
    train, test = (ArrayDataset(data.values.flip(3), data.labels, 17, data.class_names) for data in (train, test))
    before = evaluate_bits_per_dim(model, test, images=200).mean().item()
    settings = short_training(steps=60, batch_size=64, evaluation_images=200, learning_rate=1e-3, noise_start=0.0, evaluate_every=60)
    trainer = Trainer(Likelihood(model), train, test, settings, tmp_path, device="cpu")
    record = trainer.evaluate()
    assert abs(record["held_out_latest"] - before) < 0.001 and abs(record["held_out_average"] - before) < 0.001
    trainer.fit()
    after = read_log(tmp_path)[-1]["held_out_average"]
    print(f"{before:.3f} bits/dim; before the first step {record['held_out_average']:.3f}, after 60 {after:.3f}")
    assert after < before - 0.2


# --- What goes wrong


class Broken(ArrayDataset):
    "Some of its images cannot be read."

    missing: set[int] = set()

    def pixel_batch(self, indices):
        for index in torch.as_tensor(indices).tolist():
            if index in self.missing:
                raise OSError(f"image {index} is cut short")
        return super().pixel_batch(indices)


def broken(missing: set[int], seed: int = 0) -> Broken:
    whole = stripes(seed=seed)
    data = Broken(whole.values, whole.labels, 5, whole.class_names)
    data.missing = missing
    return data


def test_held_out_images_that_cannot_be_read_are_left_out(tmp_path, capsys):
    torch.manual_seed(0)
    objective = Likelihood(Farmer(stripes_config()))
    Trainer(objective, stripes(), broken({0, 3, 49}, seed=1), short_training(evaluation_images=50), tmp_path, device="cpu").fit()
    evaluations = [record for record in read_log(tmp_path) if "held_out_average" in record]
    assert [record["held_out_unreadable"] for record in evaluations] == [3, 3]
    said = [line for line in capsys.readouterr().out.splitlines() if "cut short" in line]
    assert said == [f"image {index} is cut short ({count} of 50 so far; left out)" for count, index in enumerate((0, 3, 49), 1)]
    assert len(evaluate_bits_per_dim(objective.module, broken({1, 2}))) == 48
    complaint(ValueError, lambda: evaluate_bits_per_dim(objective.module, broken(set(range(50)))), "none of 50 images can be read, the last: image 49 is cut short")


def test_images_for_basis_and_fingerprint_that_cannot_be_read_stop_nothing(tmp_path):
    make_trainer(tmp_path / "new", dataset=broken({0, 3})).fit(2)
    assert make_trainer(tmp_path / "new", dataset=broken({0, 3})).step == 2
    make_trainer(tmp_path / "run").fit(2)
    assert make_trainer(tmp_path / "run", dataset=broken({0, 49})).step == 2  # they broke after the run began
    complaint(ValueError, lambda: make_trainer(tmp_path / "run", dataset=stripes(48)), "belongs to another run")


def test_not_a_number_stops_with_step_quantity_and_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.fit(last_step=5)
    with torch.no_grad():
        trainer.model.prior.redundant_head.linear.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 5: redundant is nan; the last good checkpoint is .*step-00000005"):
        trainer.fit()
    assert make_trainer(tmp_path).step == 5


def test_gradient_that_is_not_finite_stops(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.model.flow.blocks[0].start.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="step 0: gradient norm is (inf|nan); no checkpoint has been saved yet"):
        trainer.fit()


@pytest.mark.parametrize("change", [{"image_shape": (1, 8, 8)}, {"num_classes": 3}, {"levels": 4}])
def test_model_and_data_must_fit(tmp_path, change):
    complaint(ValueError, lambda: make_trainer(tmp_path, config=stripes_config(**change)), next(iter(change)))


def test_no_data(tmp_path):
    whole = stripes()
    empty = ArrayDataset(whole.values[:0], whole.labels[:0], 5, whole.class_names)
    objective = Likelihood(Farmer(stripes_config()))
    complaint(ValueError, lambda: Trainer(objective, empty, whole, short_training(), tmp_path), "the data set is empty")


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(learning_rate=-1.0), dict(ema_decay=1.0), dict(noise_start=float("nan")),
                                   dict(batch_size=0), dict(uniform_noise=False)])
def test_impossible_settings(wrong):
    complaint(ValueError, lambda: TrainingConfig(**wrong), next(iter(wrong)) if "uniform_noise" not in wrong else "noise_end")


def test_too_many_unreadable_images_end_the_run(tmp_path):
    class Breaking(ArrayDataset):
        broken = False

        def pixel_batch(self, indices):
            if self.broken and any(index % 2 for index in indices):
                raise OSError(f"{[index for index in indices if index % 2]} cannot be read")
            return super().pixel_batch(indices)

    whole = stripes()
    data = Breaking(whole.values, whole.labels, 5, whole.class_names)
    trainer = make_trainer(tmp_path, dataset=data)
    data.broken = True  # after the run began
    message = complaint(ValueError, trainer.fit, "images could not be read, the last")
    records = [record for record in read_log(tmp_path) if "unreadable" in record]
    assert message.startswith(f"{len(records)} of ") and [record["count"] for record in records] == list(range(1, len(records) + 1)) and len(records) > 10


def test_saving_and_loading_say_nothing(tmp_path):
    "torch warns when one process saves by itself, as it should; and no filter of the user's is lost."
    script = f"""
import sys, warnings
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from helpers import make_trainer
make_trainer(Path({str(tmp_path)!r})).fit(6)
before = list(warnings.filters)
make_trainer(Path({str(tmp_path)!r})).fit()
assert warnings.filters == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "arning" not in done.stderr, done.stderr


def test_evaluation_does_not_change_a_run(tmp_path):
    often, never = (make_trainer(tmp_path / str(every), short_training(evaluate_every=every)) for every in (1, 1000))
    for trainer in (often, never):
        trainer.fit()
    for name, tensor in weights_of(often).items():
        assert torch.equal(tensor, weights_of(never)[name]), name


def test_bits_per_dim_of_a_data_set():
    torch.manual_seed(0)
    model = Farmer(stripes_config())
    bits = evaluate_bits_per_dim(model, stripes(), images=20)
    assert bits.shape == (20,) and torch.equal(bits, evaluate_bits_per_dim(model, stripes(), images=20))
    assert not torch.equal(bits, evaluate_bits_per_dim(model, stripes(), images=20, seed=1))
    assert not torch.equal(bits, evaluate_bits_per_dim(model, stripes(), images=20, conditional=False))
