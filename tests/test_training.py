"The training loop: exact resume, learning at all, its log, and what it does when something goes wrong."
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from helpers import complaint, make_trainer, seeded, short_training, stripes, stripes_config, weights_of
from torch.testing import assert_close

from farmer import training
from farmer.checkpoints import checkpoints
from farmer.data import ArrayDataset, load_dataset
from farmer.model import Farmer
from farmer.objectives import Likelihood, evaluate_bits_per_dim
from farmer.training import Trainer, TrainingConfig, plot_log, read_log


def without_speed(log: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in log]


@pytest.mark.parametrize("stop", [1, 5, 6, 7, 11])
def test_stop_and_resume_anywhere_gives_bit_identical_weights(tmp_path, stop):
    whole = make_trainer(tmp_path / "whole")
    whole.fit()
    make_trainer(tmp_path / "parts").fit(last_step=stop)
    torch.rand(100)  # disturb the global generator, as another process would have
    resumed = make_trainer(tmp_path / "parts")
    assert resumed.step == stop
    resumed.fit()
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name
    evaluations = [[record for record in read_log(tmp_path / name) if "held_out_average" in record] for name in ("whole", "parts")]
    assert evaluations[0] == evaluations[1]


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
        total = -(record["informative"] + record["redundant"] + record["logdet"])
        assert_close((total - torch.log(torch.tensor(0.5)).item()) / 0.6931471805599453, record["loss"], rtol=1e-4, atol=1e-4)
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
        def __init__(self, folder):
            assert folder == tmp_path / "tensorboard"

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


# --- What goes wrong


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
