"""Signals to a run, at any moment, to one process, one rank, or a whole group with its readers of images: it ends as documented, saved, and
goes on at that very step to the weights of a run that nobody disturbed, bit for bit. And folders that are in use."""
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import SMALL_RUN, contents, make_trainer, photos, short_training, weights_of
from test_distributed import command, start, with_keywords  # processes in which all is imported already

import farmer.__main__
from farmer.checkpoints import checkpoints
from farmer.distributed import ExecutionConfig, Termination, process_group
from farmer.files import STOP_SIGNALS
from farmer.pretrained import EMBEDDED
from farmer.training import Trainer, read_log


@pytest.fixture(autouse=True)
def interruptible():
    "A shell that starts the tests in the background has them ignore Ctrl-C."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

SIGNALS = pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
DIGITS = ["train", "digits", "--device", "cpu", "--evaluate-every", "100000", *SMALL_RUN]


class Interrupted(Exception):
    "What a signal does outside of the steps, here."


def interrupt(number: int, frame: object) -> None:
    raise Interrupted


# --- Chosen moments

MOMENTS = [  # (what is under way, steps that are done, steps that are done when the run ends)
    ("reading", 0, 1), ("gradients", 1, 2), ("counting", 2, 4), ("counting", 4, 6), ("evaluation", 6, 7), ("gradients", 8, 9), ("save", 10, 11), ("save", 12, 12),
]  # fmt: skip


def strike_at(trainer: Trainer, moment: str, step: int, strike) -> None:
    "Call a function at a moment of a run: before the first batch, in a step, between the weights' step and its count, in a save, in an evaluation."
    owner, name = {
        "reading": (trainer, "batches"), "gradients": (trainer, "add_gradients"), "counting": (trainer.average, "update"),
        "save": (trainer.writer, "finish"), "evaluation": (trainer, "evaluate"),
    }[moment]  # fmt: skip
    plain, struck = getattr(owner, name), []

    def then(*arguments):
        result = plain(*arguments)
        if trainer.step == step and not struck:
            struck.append(strike())
        return result

    setattr(owner, name, then)


def signal_group(number: int) -> None:
    "As a scheduler does: from a process outside. A worker takes SIGTERM from its parent as an order to end."
    subprocess.run(["kill", f"-{int(number)}", "--", f"-{os.getpgrp()}"], check=True, start_new_session=True)


def disturbed(folder: Path, number: int, workers: int, group: bool, striking_rank: int) -> None:
    "A run that is ended at each of the moments and goes on, beside one that nobody disturbs."
    settings, execution = short_training(), ExecutionConfig(workers=workers)
    whole = make_trainer(folder / "whole", settings, execution=execution)
    whole.fit()
    before = signal.signal(number, interrupt)
    reached = 0
    for moment, step, end in MOMENTS:
        trainer = make_trainer(folder / "parts", settings, execution=execution)
        assert trainer.step == reached, f"after {moment}: goes on at {trainer.step} instead of {reached}"
        if trainer.ranks.rank == striking_rank:
            strike_at(trainer, moment, step, (lambda: signal_group(number)) if group else (lambda: os.kill(os.getpid(), number)))
        try:
            trainer.fit()
            ended = "nothing"
        except (SystemExit, KeyboardInterrupt, Interrupted) as error:
            ended = f"{type(error).__name__} {getattr(error, 'code', '')}".strip()
        late = ["Interrupted"] if step == end and trainer.ranks.rank == striking_rank else ["nothing"] if step == end else None
        in_order = "KeyboardInterrupt" if number == signal.SIGINT and trainer.ranks.first else "SystemExit 130" if number == signal.SIGINT else "SystemExit 0"
        assert ended in (late or [in_order]), f"{moment} at {step}: {ended}"
        assert trainer.step == end == int(checkpoints(folder / "parts")[-1].name[5:]), f"{moment}: {trainer.step}"
        reached = end
    assert signal.signal(number, before) is interrupt  # the handlers of before are back
    parts = make_trainer(folder / "parts", settings, execution=execution)
    parts.fit()
    for name, tensor in weights_of(whole).items():
        other = weights_of(parts)[name]
        tensor, other = (value.to_local() if hasattr(value, "to_local") else value for value in (tensor, other))
        assert torch.equal(tensor, other), name
    figures = [[record for record in read_log(folder / name) if "held_out_average" in record] for name in ("whole", "parts")]
    assert figures[0] == figures[1] and len(figures[0]) == 2
    print("all the same")


@SIGNALS
def test_a_signal_at_any_moment(tmp_path, capsys, number):
    disturbed(tmp_path, number, workers=0, group=False, striking_rank=0)
    printed = capsys.readouterr().out.splitlines()
    lines = [f"{number.name}: saved at step {end} of 12; the same command goes on from there" for _, step, end in MOMENTS if step != end]
    assert [line for line in printed if "saved" in line] == lines


def in_group(*arguments) -> None:
    "In a process group and, if there is one, among ranks of its own."
    os.setsid()
    multiprocessing.set_start_method("fork", force=True)  # as in a process that no test started
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with process_group("cpu", 1):
        disturbed(*arguments)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGHUP))])
def test_a_signal_to_the_whole_group(tmp_path, number):
    "As a scheduler sends it: to the processes that read images as well."
    [process] = start(tmp_path, 0, in_group, tmp_path, number, 2, True, 0)
    assert process.status() == 0 and "all the same" in process.text, process.text
    assert "Traceback" not in process.text and process.text.count("saved at step") == len(MOMENTS) - 1


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_to_one_of_two_ranks(tmp_path, number):
    ranks = start(tmp_path, 2, in_group, tmp_path, number, 1, True, 1)
    assert [rank.status() for rank in ranks] == [0, 0] and all("all the same" in rank.text for rank in ranks), [rank.text for rank in ranks]


def test_an_interrupted_step_is_not_taken_twice(tmp_path):
    "Ctrl-C in a loop of one's own, where nothing catches it, between the weights' step and its count."
    trainer = make_trainer(tmp_path)
    batches = trainer.batches(12)
    trainer.train_step(next(batches))
    strike_at(trainer, "counting", 1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        trainer.train_step(next(batches))
    with pytest.raises(ValueError, match="the step before was cut short"):
        trainer.fit()
    assert make_trainer(tmp_path).step == 0


def test_a_second_interrupt_ends_at_once(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("farmer.distributed.time.monotonic", lambda: clock[0])
    with pytest.raises(KeyboardInterrupt), Termination() as termination:
        for moment in (100.0, 100.5, 103.0):  # from the terminal and from torchrun at once, and again
            assert termination.asked == (0 if moment == 100 else signal.SIGINT)
            clock[0] = moment
            signal.raise_signal(signal.SIGINT)
        pytest.fail("the third was not heard")
    trainer = make_trainer(tmp_path)
    trainer.termination.interrupted = 0.0

    def twice():
        signal.raise_signal(signal.SIGINT)
        clock[0] += 2
        signal.raise_signal(signal.SIGINT)

    strike_at(trainer, "gradients", 3, twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.step == 3 and not checkpoints(tmp_path)


def test_what_is_ignored_stays_so():
    "As nohup does with SIGHUP."
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Termination() as termination:
            signal.raise_signal(signal.SIGHUP)
        assert not termination.asked and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


# --- The command

AT_IMPORT = """
import os, runpy, sys


class Striking:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {number})


sys.meta_path.insert(0, Striking())
sys.argv = ["farmer", "train", "digits", "--folder", {folder!r}]
runpy.run_module("farmer", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number, module", [*((number, "torch") for number in STOP_SIGNALS), (signal.SIGTERM, "farmer.objectives")])
def test_a_signal_while_all_is_loaded(tmp_path, number, module):
    script = AT_IMPORT.format(module=module, number=int(number), folder=str(tmp_path / "run"))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=Path(__file__).parent.parent,
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in STOP_SIGNALS],
    )  # fmt: skip
    assert done.returncode == 128 + number and not (tmp_path / "run").exists()
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("farmer: ") and not done.stdout


def descendants(process: int) -> set[int]:
    "All processes that a process has started, and theirs."
    found = {process}
    for _ in range(5):
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) in found:
                    found.add(int(folder.name))
            except OSError:  # it has ended
                pass
    return found - {process}


def alive(processes: set[int]) -> set[int]:
    return {process for process in processes if Path(f"/proc/{process}").exists() and "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()}


def wait_until(condition, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_torchrun_is_told_to_stop(tmp_path):
    "It signals the whole group of each rank; all save at one step, nobody stays, and one process goes on from there."
    run = tmp_path / "run"
    arguments = [*DIGITS, "--folder", str(run), "--steps", "100000", "--save-every", "100000"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "farmer"]
    process = subprocess.Popen([*torchrun, *arguments, "--workers", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (run / "log.jsonl").exists() or process.poll() is not None)
    started = descendants(process.pid)
    process.terminate()
    printed, errors = process.communicate(timeout=120)
    [saved] = checkpoints(run)
    step = int(saved.name[5:])
    assert len(started) >= 4 and f"SIGTERM: saved at step {step} of 100000; the same command goes on from there" in printed, (printed, errors)
    assert "DataLoader" not in errors and process.returncode  # torchrun's own status says that it was told to stop
    wait_until(lambda: not alive(started))
    [one] = start(tmp_path, 0, with_keywords, command, arguments, {})
    one.wait_for("loss")
    os.kill(one.process.pid, signal.SIGUSR1)
    assert one.status() == 0 and f"going on from step {step} of 100000" in one.text and "SIGUSR1: saved at step" in one.text


# --- Folders in use, and kills


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_dead(tmp_path):
    "Killed with -9, it leaves neither the lock nor its readers of images."
    arguments = [*DIGITS, "--folder", str(tmp_path / "run"), "--steps", "100000", "--save-every", "10", "--workers", "2"]
    [first] = start(tmp_path, 0, with_keywords, in_fork, arguments, {})
    first.wait_for("loss")
    [second] = start(tmp_path, 0, with_keywords, in_fork, arguments, {})
    assert second.status() == 2 and second.text.count("\n") == 1
    assert f"is in use by training on {socket.gethostname()}, process {first.process.pid}; let that end" in second.text
    workers = descendants(first.process.pid)
    first.process.kill()
    first.process.join()
    [third] = start(tmp_path, 0, with_keywords, in_fork, arguments, {})
    third.wait_for("loss")
    assert "going on from step" in third.text
    assert len(workers) == 2
    wait_until(lambda: not alive(workers))
    third.process.terminate()
    assert third.status() == 0


def in_fork(*arguments) -> None:
    multiprocessing.set_start_method("fork", force=True)
    command(*arguments)


@pytest.mark.long
@pytest.mark.parametrize("tell", [os.killpg, os.kill], ids=["group", "process"])
@pytest.mark.parametrize("workers", [0, 2])
@SIGNALS
def test_twenty_moments_at_random(tmp_path, number, workers, tell):
    "Wherever the run happens to be when its group, or the process alone, is told, it ends in order and goes on at that very step."
    choose, folder = random.Random(f"{number}, {workers}"), tmp_path / "run"
    arguments = (*DIGITS, "--folder", folder, "--steps", "3000", "--save-every", "7", "--workers", workers)
    reached, statuses = 0, {signal.SIGINT: 130}
    for moment in range(20):
        [process] = start(tmp_path, 0, with_keywords, leading, arguments, {})
        process.wait_for(f"going on from step {reached} of 3000" if reached else "training images")
        time.sleep(0.5 * choose.random())
        tell(process.process.pid, number)
        status = process.status()
        if status == 128 + number != 130 or "saved at step" not in process.text:  # before the first step
            continue
        assert status == statuses.get(number, 0) and "Traceback" not in process.text, process.text
        reached = int(checkpoints(folder)[-1].name[5:])
        assert f"{number.name}: saved at step {reached} of 3000" in process.text
    assert reached > 20
    for place in ("run", "whole"):
        arguments = [*DIGITS, "--folder", str(tmp_path / place), "--steps", "3000", "--save-every", "1000"]
        [process] = start(tmp_path, 0, with_keywords, in_fork, arguments, {})
        assert process.status(600) == 0, process.text
    for name in ("model", "latest"):
        assert (folder / name / "model.safetensors").read_bytes() == (tmp_path / "whole" / name / "model.safetensors").read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
@SIGNALS
def test_twenty_moments_of_torchrun(tmp_path, number, workers):
    "Both ranks save at one step, nobody stays, and the next start goes on there. torchrun hears SIGUSR1, too, by the flag that launch/slurm.sbatch has."
    choose, folder, reached = random.Random(f"{number.name}, {workers}"), tmp_path / "run", 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    torchrun += ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGUSR1", "-m", "farmer", *DIGITS, "--steps", "2000"]
    for moment in range(20):
        printed = tmp_path / f"{moment}.txt"
        with printed.open("w") as file:
            process = subprocess.Popen([*torchrun, "--folder", folder, "--save-every", "7", "--workers", str(workers)], stdout=file, stderr=file)
        awaited = f"going on from step {reached} of 2000" if reached else "training images"
        wait_until(lambda: awaited in printed.read_text() or process.poll() is not None)
        time.sleep(4 * choose.random())  # it takes two seconds to the first step
        started = descendants(process.pid)
        process.send_signal(number)
        process.wait(120)
        wait_until(lambda: not alive(started))
        text = printed.read_text()
        assert "killed by signal" not in text and process.returncode, text
        if "saved at step" in text:  # not before the first step
            reached = int(checkpoints(folder)[-1].name[5:])
            assert f"{number.name}: saved at step {reached} of 2000" in text, text
    assert 20 < reached < 2000
    for place in ("run", "whole"):
        subprocess.run([*torchrun, "--folder", tmp_path / place, "--save-every", "500"], check=True, capture_output=True)
    for name in ("model", "latest"):
        assert (folder / name / "model.safetensors").read_bytes() == (tmp_path / "whole" / name / "model.safetensors").read_bytes()


def leading(*arguments) -> None:
    "The command as the leader of a process group, with the handlers of `python -m farmer`."
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(each, farmer.__main__._end)
    in_fork(*arguments)


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_thirty_kills(tmp_path, workers):
    "kill -9 at any moment, start-up too, and a double start each time: the weights are those of a run that nobody killed, and no process stays."
    choose, folder, started = random.Random(workers), tmp_path / "run", set()
    arguments = [*DIGITS, "--folder", str(folder), "--steps", "600", "--save-every", "5", "--workers", str(workers)]
    for kill in range(30):
        processes = [start(tmp_path, 0, with_keywords, in_fork, arguments, {})[0] for _ in range(1 + kill % 2)]
        for process in processes:
            process.wait_until(lambda: "training images" in process.text or "is in use" in process.text, "a beginning")
        time.sleep(0.4 * choose.random())
        for process in processes:
            started |= descendants(process.process.pid)
            process.process.kill()
        statuses = [process.status() for process in processes]
        assert statuses == [-signal.SIGKILL] * len(processes) or sorted(statuses) == [-signal.SIGKILL, 2], [process.text for process in processes]
    for place in ("run", "whole"):
        [process] = start(tmp_path, 0, with_keywords, in_fork, [*arguments[:-6], "--folder", str(tmp_path / place), *arguments[-6:]], {})
        assert process.status(600) == 0, process.text
    for name in ("model", "latest"):
        assert (folder / name / "model.safetensors").read_bytes() == (tmp_path / "whole" / name / "model.safetensors").read_bytes()
    wait_until(lambda: not alive(started))
    assert not [path for path in folder.rglob("*.partial")]


COMMANDS = {  # arguments before the folder that is written, and which of its files count
    "prepare": (["{photos}", "{target}", "--image-size", "16", "--shard-images", "50", "--workers", "2"], ""),
    "sample": (["digits", "--count", "100", "--batch-size", "10", "--labels", "all", "--device", "cpu", "--output", "{target}"], ""),
    "evaluate": (["digits", "--samples", "600", "--chunk", "50", "--device", "cpu", "--folder", "{target}"], "evaluation.json"),
    "distill": (["{teacher}", "--steps", "300", "--batch-size", "8", "--save-every", "5", "--device", "cpu", "--folder", "{target}"], "student.safetensors"),
}


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_fifteen_kills_of_another_command(tmp_path, name):
    "kill -9 at any moment, with a double start each other time: the same command goes on, its files are those that nobody disturbed, and no process stays."
    choose, started, (arguments, counts) = random.Random(name), set(), COMMANDS[name]
    shutil.copytree(EMBEDDED / "digits", tmp_path / "teacher" / "model")
    places = {"photos": photos(tmp_path / "photos", per_class=1000), "teacher": tmp_path / "teacher"}
    begin = lambda target: start(tmp_path, 0, with_keywords, in_fork, [name, *(each.format(target=target, **places) for each in arguments)], {})[0]
    files = lambda folder: {path: content for path, content in contents(folder).items() if path.endswith(counts)}
    begun, whole = time.monotonic(), begin(tmp_path / "whole")
    assert whole.status(600) == 0, whole.text
    expected, seconds, killed = files(tmp_path / "whole"), time.monotonic() - begun, 0
    while killed < 15:
        processes = [begin(tmp_path / "parts") for _ in range(1 + killed % 2)]
        time.sleep(seconds * choose.random())
        for process in processes:
            started |= descendants(process.process.pid) if process.process.is_alive() else set()
            process.process.kill()
        statuses = [process.status() for process in processes]
        killed += -signal.SIGKILL in statuses
        for status, process in zip(statuses, processes):
            assert status in (-signal.SIGKILL, 0) or status == 2 and "is in use" in process.text, process.text
        if 0 in statuses or killed == 15:
            last = begin(tmp_path / "parts")
            assert last.status(600) == 0, last.text
            assert expected and files(tmp_path / "parts") == expected
            wait_until(lambda: not alive(started))
            assert not [path for path in (tmp_path / "parts").rglob("*.partial")]
            shutil.rmtree(tmp_path / "parts")
