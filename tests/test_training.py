"The training loop: exact resume, learning at all, and what it does when something goes wrong."
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from farmer.data import ArrayDataset
from farmer.model import Farmer, FarmerConfig
from farmer.training import BatchStream, Trainer, TrainingConfig, checkpoints, evaluate_bits_per_dim, read_log, warmed_up_average

CONFIG = FarmerConfig(image_shape=(1, 4, 4), num_classes=2, levels=5, flow_blocks=2, flow_width=16, prior_width=16, prior_layers=1,
                      head_width=8, informative_channels=2, components=3, redundant_components=4, condition_repeats=2, dropout=0.1)
TRAINING = TrainingConfig(steps=12, batch_size=8, learning_rate=1e-2, warmup_steps=2, evaluate_every=6, save_every=5, evaluation_images=20)


def stripes(length: int = 50, seed: int = 0) -> ArrayDataset:
    "Horizontal stripes are class 0, vertical ones class 1, with some noise."
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(length) % 2
    rows = torch.randint(2, (length, 1, 4, 1), generator=generator).expand(-1, -1, 4, 4) * 3
    values = torch.where(labels.view(-1, 1, 1, 1).bool(), rows.mT, rows) + torch.randint(2, (length, 1, 4, 4), generator=generator)
    return ArrayDataset(values.to(torch.uint8), labels, 5, ["across", "down"])


def make(folder, training=TRAINING, config=CONFIG, dataset=None) -> Trainer:
    torch.manual_seed(0)
    return Trainer(Farmer(config), dataset or stripes(), stripes(seed=1), training, folder, "cpu")


def weights(trainer: Trainer) -> dict:
    return {**trainer.model.state_dict(), **{f"average.{k}": v for k, v in trainer.average.state_dict().items()}}


@pytest.mark.parametrize("stop", [1, 5, 6, 7, 11])
def test_stop_and_resume_anywhere_gives_bit_identical_weights(tmp_path, stop):
    whole = make(tmp_path / "whole")
    whole.train()
    make(tmp_path / "parts").train(last_step=stop)
    torch.rand(100)  # disturb the global generator, as another process would have
    resumed = make(tmp_path / "parts")
    assert resumed.step == stop
    resumed.train()
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    strip = lambda log: [{k: v for k, v in record.items() if k != "images_per_second"} for record in log if "held_out_average" in record]
    assert strip(read_log(tmp_path / "whole")) == strip(read_log(tmp_path / "parts"))


def test_training_learns_and_logs(tmp_path):
    trainer = make(tmp_path, replace(TRAINING, steps=200, evaluate_every=100))
    before = evaluate_bits_per_dim(trainer.model.eval(), trainer.held_out).mean()
    trainer.model.train()
    trainer.train()
    after = evaluate_bits_per_dim(trainer.average.module, trainer.held_out).mean()
    assert after < before - 0.5 and after < 5**0.5  # log2(5) = 2.32 is the cost of a blind guess
    log = read_log(tmp_path)
    records, evaluations = [r for r in log if "loss" in r], [r for r in log if "held_out_average" in r]
    assert [r["step"] for r in records] == list(range(10, 201, 10)) and [r["step"] for r in evaluations] == [100, 200]
    for record in records:
        total = -(record["informative"] + record["redundant"] + record["logdet"])
        assert_close((total - torch.log(torch.tensor(0.5)).item()) / 0.6931471805599453, record["loss"], rtol=1e-4, atol=1e-4)
    assert records[0]["noise"] > records[-1]["noise"]
    assert all((tmp_path / evaluation["samples"]).is_file() for evaluation in evaluations)
    assert len(checkpoints(tmp_path)) == 2


def test_every_epoch_sees_every_image_once_in_a_new_order():
    batches = list(BatchStream(length=10, batch_size=4, seed=0, first_step=0, last_step=5))
    stream = [index for batch in batches for index in batch]
    assert [len(batch) for batch in batches] == [4] * 5
    assert sorted(stream[:10]) == list(range(10)) and sorted(stream[10:]) == list(range(10)) and stream[:10] != stream[10:]
    assert list(BatchStream(10, 4, 0, 3, 5)) == batches[3:]
    assert len(list(BatchStream(3, 8, 0, 0, 2))[0]) == 8


def test_schedules():
    config = TrainingConfig(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1, noise_start=0.2, noise_end=0.05)
    rates, noises = [config.rate(step) for step in range(101)], [config.noise(step) for step in range(101)]
    assert rates[0] == 0.1 and max(rates) == rates[10] == rates[9] == 1.0 and rates[100] == pytest.approx(0.1)
    assert noises[0] == pytest.approx(0.2) and noises[100] == pytest.approx(0.05) and noises == sorted(noises, reverse=True)


def test_the_average_follows_its_definition():
    update = warmed_up_average(0.9)
    average, expected = [torch.zeros(1)], 0.0
    for count in range(1, 200):
        update(average, [torch.tensor([float(count)])], count)
        decay = min(0.9, (1 + count) / (10 + count))
        expected = decay * expected + (1 - decay) * count
    assert_close(average[0].item(), expected, rtol=1e-5, atol=0)


def test_not_a_number_stops_with_step_quantity_and_checkpoint(tmp_path):
    trainer = make(tmp_path)
    trainer.train(last_step=5)
    with torch.no_grad():
        trainer.model.prior.redundant_head.linear.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"step 5: redundant is nan; the last good checkpoint is .*step-00000005"):
        trainer.train()
    assert make(tmp_path).step == 5


def test_gradient_that_is_not_finite_stops(tmp_path):
    trainer = make(tmp_path)
    trainer.model.flow.blocks[0].start.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(FloatingPointError, match="step 0: gradient norm is (inf|nan); no checkpoint has been saved yet"):
        trainer.train()


def test_checkpoint_of_another_run_is_refused(tmp_path):
    make(tmp_path).train(last_step=2)
    with pytest.raises(ValueError, match="another run .batch_size 8 -> 9."):
        make(tmp_path, replace(TRAINING, batch_size=9))
    with pytest.raises(ValueError, match="components 3 -> 4"):
        make(tmp_path, config=replace(CONFIG, components=4))


@pytest.mark.parametrize("change", ["images", "labels", "number"])
def test_checkpoint_of_other_data_is_refused(tmp_path, change):
    make(tmp_path).train(last_step=2)
    other = {"images": stripes(seed=1), "labels": stripes(), "number": stripes(51)}[change]
    if change == "labels":
        other.labels = 1 - other.labels
    with pytest.raises(ValueError, match=f"belongs to another run .50 images, [0-9a-f]{{8}} -> {len(other)} images, [0-9a-f]{{8}}."):
        make(tmp_path, dataset=other)
    assert make(tmp_path, dataset=stripes()).step == 2  # the same data, made again


def without_speed(log: list[dict]) -> list[dict]:
    return [{key: value for key, value in record.items() if key != "images_per_second"} for record in log]


def test_a_log_line_cut_by_a_crash_spoils_only_itself(tmp_path):
    whole = make(tmp_path / "whole")
    whole.train()
    make(tmp_path / "parts").train(last_step=11)
    log = tmp_path / "parts" / "log.jsonl"
    written = read_log(tmp_path / "parts")
    assert [record["step"] for record in written] == [6, 10, 11]
    log.write_bytes(log.read_bytes()[:-20])
    assert read_log(tmp_path / "parts") == written[:-1]
    resumed = make(tmp_path / "parts")
    assert read_log(tmp_path / "parts") == written[:-1]
    resumed.train()
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
    assert without_speed(read_log(tmp_path / "parts")) == without_speed(read_log(tmp_path / "whole"))


def test_a_log_without_a_checkpoint_is_of_a_run_that_starts_again(tmp_path):
    make(tmp_path / "whole").train()
    make(tmp_path / "parts").log({"step": 3, "loss": 1.0})
    with open(tmp_path / "parts" / "log.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while it wrote, before the first checkpoint
    make(tmp_path / "parts").train()
    assert without_speed(read_log(tmp_path / "parts")) == without_speed(read_log(tmp_path / "whole"))


def contents(checkpoint: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in checkpoint.iterdir()}


DAMAGE = ["truncated", "one byte", "a file less", "no manifest", "foreign", "empty manifest"]


def spoil(checkpoint: Path, damage: str) -> None:
    data, manifest = next(checkpoint.glob("*.distcp")), checkpoint / "manifest.json"
    if damage == "truncated":
        data.write_bytes(data.read_bytes()[:-200])
    elif damage == "one byte":
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(content)
    elif damage == "a file less":
        data.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text({"foreign": '{"weights": 3}', "empty manifest": ""}[damage])


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_only_checkpoint_is_damaged(tmp_path, damage):
    make(tmp_path).train(last_step=2)
    path = checkpoints(tmp_path)[-1]
    spoil(path, damage)
    with pytest.raises(ValueError, match="damaged.*delete it") as error:
        make(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_one_before_a_damaged_checkpoint_is_used(tmp_path, capsys, damage):
    whole = make(tmp_path / "whole")
    whole.train()
    make(tmp_path / "parts").train(last_step=11)
    assert [path.name for path in checkpoints(tmp_path / "parts")] == ["step-00000010", "step-00000011"]
    spoil(checkpoints(tmp_path / "parts")[-1], damage)
    capsys.readouterr()
    resumed = make(tmp_path / "parts")
    said = capsys.readouterr().out
    assert resumed.step == 10 and said.count("\n") == 1 and "step-00000011 is damaged; trying the one before, step-00000010" in said
    resumed.train(last_step=11)  # writes the damaged one again
    assert make(tmp_path / "parts").step == 11 and "damaged" not in capsys.readouterr().out
    resumed.train()
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name


def test_checkpoints_of_other_versions_are_refused(tmp_path):
    make(tmp_path / "a").train(last_step=2)
    manifest = checkpoints(tmp_path / "a")[-1] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"farmer_checkpoint": 3', '"farmer_checkpoint": 99'))
    with pytest.raises(ValueError, match="format 99, this farmer reads 3; use the version"):
        make(tmp_path / "a")
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)
    (tmp_path / "b" / "checkpoints" / "step-00000005.pt").write_bytes(b"as it was before")
    with pytest.raises(ValueError, match="step-00000005.pt has format 2 or older"):
        make(tmp_path / "b")


def test_model_and_data_must_fit(tmp_path):
    with pytest.raises(ValueError, match="image_shape"):
        make(tmp_path, config=replace(CONFIG, image_shape=(1, 8, 8)))
    with pytest.raises(ValueError, match="num_classes"):
        make(tmp_path, config=replace(CONFIG, num_classes=3))
    with pytest.raises(ValueError, match="levels"):
        make(tmp_path, config=replace(CONFIG, levels=4))


@pytest.mark.parametrize("wrong", [dict(steps=0), dict(learning_rate=-1.0), dict(ema_decay=1.0), dict(noise_start=float("nan")),
                                   dict(batch_size=0), dict(uniform_noise=False)])
def test_impossible_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "uniform_noise" not in wrong else "noise_end"):
        TrainingConfig(**wrong)


SAVE_SCRIPT = """
import sys, resource, signal
sys.path.insert(0, {tests!r})
from test_training import make
from pathlib import Path
trainer = make(Path({folder!r}))
assert trainer.step == 2
{before}
trainer.train()
"""


def run_script(tmp_path, before: str) -> subprocess.Popen:
    script = SAVE_SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path), before=before)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_full_disk_in_the_middle_of_a_save_keeps_the_earlier_checkpoint(tmp_path):
    make(tmp_path).train(last_step=2)
    good = contents(checkpoints(tmp_path)[-1])
    size = max(map(len, good.values())) // 2  # files may not grow beyond half a checkpoint: the write fails as on a full disk
    process = run_script(tmp_path, f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))")
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and "File too large" in errors
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"] and contents(checkpoints(tmp_path)[-1]) == good
    assert not list((tmp_path / "checkpoints").glob(".*partial"))
    assert make(tmp_path).step == 2


def test_kill_in_the_middle_of_a_save_keeps_the_earlier_checkpoint(tmp_path):
    make(tmp_path).train(last_step=2)
    good = contents(checkpoints(tmp_path)[-1])
    process = run_script(tmp_path, "import os, time; os.replace = lambda *a: (print('saving', flush=True), time.sleep(60))")
    assert process.stdout.readline().strip() == "saving"  # all bytes written, the rename not done
    process.kill()
    process.communicate(timeout=60)
    assert contents(checkpoints(tmp_path)[-1]) == good
    whole = make(tmp_path / "whole")
    whole.train()
    resumed = make(tmp_path)
    resumed.train()
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(resumed)[name]), name
