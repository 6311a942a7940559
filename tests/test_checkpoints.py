"Checkpoints: written whole or not at all, checked before they are read, and loaded into the same run only."
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers import contents, make_trainer, short_training, stripes, stripes_config, weights_of

from farmer.checkpoints import checkpoints, fingerprint, newest_checkpoint
from farmer.data import ArrayDataset


def test_checkpoint_of_another_run_is_refused(tmp_path):
    make_trainer(tmp_path).fit(last_step=2)
    with pytest.raises(ValueError, match="another run .batch_size 8 -> 9."):
        make_trainer(tmp_path, short_training(batch_size=9))
    with pytest.raises(ValueError, match="components 3 -> 4"):
        make_trainer(tmp_path, config=stripes_config(components=4))


@pytest.mark.parametrize("change", ["images", "labels", "number"])
def test_checkpoint_of_other_data_is_refused(tmp_path, change):
    make_trainer(tmp_path).fit(last_step=2)
    other = {"images": stripes(seed=1), "labels": stripes(), "number": stripes(51)}[change]
    if change == "labels":
        other.labels = 1 - other.labels
    with pytest.raises(ValueError, match=f"belongs to another run .data 50 images, [0-9a-f]{{8}} -> {len(other)} images, [0-9a-f]{{8}}."):
        make_trainer(tmp_path, dataset=other)
    assert make_trainer(tmp_path, dataset=stripes()).step == 2  # the same data, made again


def test_settings_that_change_no_weight_may_change(tmp_path):
    make_trainer(tmp_path).fit(last_step=2)
    assert make_trainer(tmp_path, short_training(evaluate_every=3, save_every=4, evaluation_images=10)).step == 2
    with pytest.raises(ValueError, match="steps 12 -> 13.*start a new run from its model") as error:
        make_trainer(tmp_path, short_training(steps=13, save_every=4))
    assert "save_every" not in str(error.value) and "\n" not in str(error.value)


class Unreadable(ArrayDataset):
    "Stripes of which some cannot be read."

    def __init__(self, *bad: int):
        whole = stripes()
        super().__init__(whole.values, whole.labels, 5, whole.class_names)
        self.bad = set(bad)

    def pixel_batch(self, indices):
        if bad := self.bad & set(torch.as_tensor(indices).tolist()):
            raise ValueError(f"image {min(bad)} is damaged")
        return super().pixel_batch(indices)


def test_an_unreadable_image_stops_no_resume(tmp_path):
    "It is one of the 16 that the fingerprint sees. An image more or less is other data nevertheless."
    assert fingerprint(Unreadable()) == fingerprint(stripes()) and fingerprint(Unreadable(1)) == fingerprint(stripes())
    assert fingerprint(Unreadable(0)).endswith(", 1 unreadable") and fingerprint(Unreadable(0)).startswith("50 images, ")
    make_trainer(tmp_path / "a").fit(last_step=2)
    assert make_trainer(tmp_path / "a", dataset=Unreadable(0, 49)).step == 2
    make_trainer(tmp_path / "b", dataset=Unreadable(49)).fit(last_step=2)
    assert make_trainer(tmp_path / "b").step == 2
    with pytest.raises(ValueError, match="another run .data 50 images -> 51 images"):
        make_trainer(tmp_path / "b", dataset=stripes(51))


@pytest.mark.parametrize("change", [
    {"step": 3}, {"step": "2"}, {"step": None}, {"files": {}}, {"files": []}, {"files": {".metadata": 3}}, {"data": 3}, {"model_config": []},
])  # fmt: skip
def test_a_manifest_that_says_otherwise_is_damaged(tmp_path, change):
    make_trainer(tmp_path).fit(last_step=2)
    manifest = checkpoints(tmp_path)[-1] / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **change}))
    with pytest.raises(ValueError, match="damaged or not a checkpoint.*delete it"):
        newest_checkpoint(tmp_path)


def test_the_format_stays_as_it_is(tmp_path):
    "Names and facts of format 3: what another version saved must resume."
    trainer = make_trainer(tmp_path)
    trainer.fit(last_step=2)
    [path] = checkpoints(tmp_path)
    names = dcp.FileSystemReader(path).read_metadata().state_dict_metadata.keys()
    weights = {name for name, _ in trainer.model.named_parameters()}
    moments = {f"optimizer.state.{name}.{kind}" for name in weights for kind in ("step", "exp_avg", "exp_avg_sq")}
    copies = {f"{kind}.{name}" for kind in ("model", "average") for name in trainer.model.state_dict()}
    assert {name for name in names if not name.startswith("optimizer.param_groups.0.")} == moments | copies | {"updates"}
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest.keys() == {"farmer_checkpoint", "step", "model_config", "training_config", "data", "files"}
    assert path.name == "step-00000002" and manifest["step"] == 2 and manifest["farmer_checkpoint"] == 3
    assert manifest["data"] == fingerprint(stripes()) == "50 images, 86e32a51"


def test_a_checkpoint_from_before_the_choice_of_an_optimizer_resumes(tmp_path):
    make_trainer(tmp_path).fit(last_step=2)
    manifest = checkpoints(tmp_path)[-1] / "manifest.json"
    facts = json.loads(manifest.read_text())
    assert facts["training_config"].pop("optimizer") == "adamw"
    manifest.write_text(json.dumps(facts))
    assert make_trainer(tmp_path).step == 2
    with pytest.raises(ValueError, match="another run .optimizer adamw -> muon"):
        make_trainer(tmp_path, short_training(optimizer="muon"))


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
    make_trainer(tmp_path).fit(last_step=2)
    path = checkpoints(tmp_path)[-1]
    spoil(path, damage)
    with pytest.raises(ValueError, match="damaged.*delete it") as error:
        make_trainer(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_one_before_a_damaged_checkpoint_is_used(tmp_path, capsys, damage):
    whole = make_trainer(tmp_path / "whole")
    whole.fit()
    make_trainer(tmp_path / "parts").fit(last_step=11)
    assert [path.name for path in checkpoints(tmp_path / "parts")] == ["step-00000010", "step-00000011"]
    spoil(checkpoints(tmp_path / "parts")[-1], damage)
    capsys.readouterr()
    resumed = make_trainer(tmp_path / "parts")
    said = capsys.readouterr().out
    assert resumed.step == 10 and said.count("\n") == 1 and "step-00000011 is damaged; trying the one before, step-00000010" in said
    resumed.fit(last_step=11)  # writes the damaged one again
    assert make_trainer(tmp_path / "parts").step == 11 and "damaged" not in capsys.readouterr().out
    resumed.fit()
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name


def test_checkpoints_of_other_versions_are_refused(tmp_path):
    make_trainer(tmp_path / "a").fit(last_step=2)
    manifest = checkpoints(tmp_path / "a")[-1] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"farmer_checkpoint": 3', '"farmer_checkpoint": 99'))
    with pytest.raises(ValueError, match="format 99, this farmer reads 3; use the version"):
        make_trainer(tmp_path / "a")
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)
    (tmp_path / "b" / "checkpoints" / "step-00000005.pt").write_bytes(b"as it was before")
    with pytest.raises(ValueError, match="step-00000005.pt has format 2 or older"):
        make_trainer(tmp_path / "b")


SAVE_SCRIPT = """
import sys, resource, signal
sys.path.insert(0, {tests!r})
from helpers import make_trainer
from pathlib import Path
trainer = make_trainer(Path({folder!r}))
assert trainer.step == 2
{before}
trainer.fit()
"""


def run_script(tmp_path, before: str) -> subprocess.Popen:
    script = SAVE_SCRIPT.format(tests=str(Path(__file__).parent), folder=str(tmp_path), before=before)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_full_disk_in_the_middle_of_a_save_keeps_the_earlier_checkpoint(tmp_path):
    make_trainer(tmp_path).fit(last_step=2)
    good = contents(checkpoints(tmp_path)[-1])
    size = max(map(len, good.values())) // 2  # files may not grow beyond half a checkpoint: the write fails as on a full disk
    process = run_script(tmp_path, f"signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))")
    _, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and "File too large" in errors
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000002"] and contents(checkpoints(tmp_path)[-1]) == good
    assert not list((tmp_path / "checkpoints").glob(".*partial"))
    assert make_trainer(tmp_path).step == 2


def test_kill_in_the_middle_of_a_save_keeps_the_earlier_checkpoint(tmp_path):
    make_trainer(tmp_path).fit(last_step=2)
    good = contents(checkpoints(tmp_path)[-1])
    process = run_script(tmp_path, "import os, time; os.replace = lambda *a: (print('saving', flush=True), time.sleep(60))")
    assert process.stdout.readline().strip() == "saving"  # all bytes written, the rename not done
    process.kill()
    process.communicate(timeout=60)
    assert contents(checkpoints(tmp_path)[-1]) == good
    whole = make_trainer(tmp_path / "whole")
    whole.fit()
    resumed = make_trainer(tmp_path)
    resumed.fit()
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights_of(resumed)[name]), name
