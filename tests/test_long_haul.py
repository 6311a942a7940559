"Ten thousand steps of a small model with all that can happen to a run, `pytest -m long`: nothing grows, and the weights are those of a run that nobody disturbed."
import json
import os
import random
import signal
import threading
from pathlib import Path

import pytest
import torch
from helpers import make_trainer, short_training, stripes_config, weights_of
from test_distributed import STILL, no_space, start

from farmer.checkpoints import checkpoints
from farmer.distributed import ExecutionConfig, process_group
from farmer.training import read_log

STEPS = int(os.environ.get("LONG_HAUL", 10_000))
SETTINGS = short_training(steps=STEPS, batch_size=8, save_every=50, evaluate_every=1000)


def footprint() -> dict[str, int]:
    "What this process holds."
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"memory, MiB": pages * os.sysconf("SC_PAGE_SIZE") // 2**20, "open files": len(os.listdir("/proc/self/fd")), "threads": threading.active_count()}


def haul(folder: Path, shard: int, alive_for: int | None, without_space: bool) -> None:
    "Go on with the run; after so many steps, die as kill -9 kills, or with a full disk run into it."
    with process_group("cpu", 1):
        trainer = make_trainer(folder, SETTINGS, STILL if shard else stripes_config(), execution=ExecutionConfig(shard=max(1, shard)))
        begun, plain = trainer.step, trainer.train_step
        print("goes on at", begun, flush=True)

        def step(batch):
            if trainer.step % 500 == 25:  # between two saves
                print("holds", json.dumps(footprint()), flush=True)
            if alive_for is not None and trainer.step == begun + alive_for:
                no_space() if without_space else os.kill(os.getpid(), signal.SIGKILL)
            return plain(batch)

        trainer.train_step = step
        trainer.fit()
        whole = trainer.whole(trainer.ema)
        if trainer.ranks.first:
            torch.save({"weights": weights_of(trainer) if not shard else {}, "average": whole.state_dict()}, folder / "result")


def spoil(folder: Path) -> None:
    "Half of the newest checkpoint's largest file is gone."
    largest = max(checkpoints(folder)[-1].rglob("*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [(0,), (0, 2, 4)], ids=["one process", "one, two and four ranks"])
def test_ten_thousand_steps(tmp_path, ranks):
    choose, alone, shared = random.Random(0), tmp_path / "whole", len(ranks) > 1
    [process] = start(tmp_path, 0, haul, alone, int(shared), None, False)
    assert process.status(3600) == 0, process.text
    held = [json.loads(line.removeprefix("holds ")) for line in process.text.splitlines() if line.startswith("holds ")]
    print(held[1], held[-1], sep="\n")
    assert len(held) == STEPS // 500 and held[-1]["memory, MiB"] < 1.05 * held[1]["memory, MiB"] + 5
    early, late = held[1 : len(held) // 2], held[len(held) // 2 :]
    assert all(max(each[what] for each in late) <= max(each[what] for each in early) for what in ("open files", "threads")), held

    folder, killed, spoilt, full = tmp_path / "parts", 0, 0, 0
    while True:
        reached = int(checkpoints(folder)[-1].name[5:]) if checkpoints(folder) else 0
        if killed % 9 == 4 and len(checkpoints(folder)) > 1:
            spoil(folder)
            spoilt += 1
            reached = int(checkpoints(folder)[-2].name[5:])
        without_space = killed % 11 == 6
        started = start(tmp_path, ranks[killed % len(ranks)], haul, folder, int(shared), choose.randint(40, 400), without_space)
        statuses = [rank.status(3600) for rank in started]
        assert all(f"goes on at {reached}\n" in rank.text for rank in started), [rank.text for rank in started]
        if statuses == [0] * len(started):
            break
        full += without_space
        assert -signal.SIGKILL in statuses or without_space and 1 in statuses, [rank.text for rank in started]
        killed += 1
    print(f"{killed} ends, {full} of them by a full disk; {spoilt} checkpoints spoilt")
    assert killed > STEPS // 400 and spoilt and full
    result, expected = torch.load(folder / "result"), torch.load(alone / "result")
    for part, tensors in expected.items():
        for name, tensor in tensors.items():
            assert shared or torch.equal(result[part][name], tensor), name
    logs = [read_log(place) for place in (alone, folder)]
    assert [record["step"] for record in logs[0]] == [record["step"] for record in logs[1]]  # nothing lost, nothing twice
    off = [abs(first["loss"] - second["loss"]) for first, second in zip(*logs) if "loss" in first]
    assert max(off[:50]) < 1e-3 and sum(off) / len(off) < 0.04  # ranks round otherwise, which training enlarges; a step too few or too many is 0.08 off
    assert (folder / "log.jsonl").stat().st_size < 1.01 * (alone / "log.jsonl").stat().st_size
    assert not [path for path in folder.rglob("*.partial")]
