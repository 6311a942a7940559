"""Training by several processes: the same numbers for any number of them, checkpoints that fit any other number, and what
happens when one is killed, hangs, computes nonsense or is told to stop."""
import faulthandler
import multiprocessing
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import SMALL_RUN, free_port, make_trainer, photos, short_training, stripes, stripes_config, weights_of
from torch.testing import assert_close

from farmer import objectives
from farmer.batches import BatchStream
from farmer.checkpoints import checkpoints
from farmer.cli import main
from farmer.distributed import ExecutionConfig, best_device, forward_flops, peak_flops, process_group
from farmer.folders import FolderDataset
from farmer.inversion import Student
from farmer.model import Farmer
from farmer.objectives import Distillation, Likelihood
from farmer.training import Trainer, read_log

STILL = stripes_config(dropout=0.0)  # dropout depends on the ranks
SETTINGS = short_training(steps=20, batch_size=16, horizontal_flip=True, evaluate_every=20, save_every=100)


# --- Processes that start from an interpreter which has everything imported


class Rank:
    "A process of its own, with its output in a file."

    def __init__(self, folder: Path, rank: int, ranks: int, port: int, function, arguments):
        self.started = [self]  # and those that started with it
        self.output = folder / f"output-{rank}-{time.monotonic_ns()}.txt"
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["test_distributed"])
        environment = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), **(environment if ranks else {})}
        self.process = context.Process(target=in_process, args=(self.output, environment, function, arguments))
        self.process.start()

    @property
    def text(self) -> str:
        return self.output.read_text() if self.output.exists() else ""

    def wait_until(self, condition, what: str, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert self.process.is_alive() and time.monotonic() < until, f"{what} did not come: {self.text}"
            time.sleep(0.001)

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: text in self.text, repr(text))

    def status(self, seconds: float = 90) -> int:
        self.process.join(seconds)
        if self.process.is_alive():
            alive = [rank for rank in self.started if rank.process.is_alive()]
            for rank in alive:
                rank.say_where()
                rank.process.kill()
            pytest.fail(f"still running after {seconds} s: " + "\n".join(rank.text for rank in alive))
        return self.process.exitcode

    def say_where(self) -> None:
        "Into the output: what every thread of the process is doing, and of those that it forked."
        forked = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False).stdout.split()
        for process in (self.process.pid, *map(int, forked)):
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(process, signal.SIGUSR2)
            time.sleep(1)


def in_process(output: Path, environment: dict, function, arguments) -> None:
    descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = open(1, "w", buffering=1, closefd=False), open(2, "w", buffering=1, closefd=False)
    faulthandler.register(signal.SIGUSR2, sys.stderr)
    os.environ.update(environment)
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except Exception:
        traceback.print_exc()
        sys.exit(1)


def start(folder: Path, ranks: int, function, *arguments) -> list[Rank]:
    "So many ranks; 0: one process without a process group."
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]))
    port = free_port()
    started = [Rank(folder, rank, ranks, port, function, arguments) for rank in range(max(1, ranks))]
    for rank in started:
        rank.started = started
    return started


def run(folder: Path, ranks: int, function, *arguments) -> list[str]:
    "Run to the end; what each rank printed."
    started = start(folder, ranks, function, *arguments)
    for rank in started:
        assert rank.status() == 0 and "Warning" not in rank.text, rank.text
    return [rank.text for rank in started]


def make(folder: Path, execution: ExecutionConfig, config=STILL, settings=SETTINGS, dataset=None) -> Trainer:
    return make_trainer(folder, settings, config, dataset, execution=execution)


def steps_of(trainer: Trainer, last_step: int) -> list[float]:
    "The loss of every step up to the last one."
    return [trainer.train_step(batch)["loss"] for batch in trainer.batches(last_step)]


# --- The same numbers


def losses(folder: Path, execution: ExecutionConfig, result: Path) -> None:
    with process_group("cpu", 1):
        trainer = make(folder, execution)
        found = steps_of(trainer, SETTINGS.steps)
        average = trainer.whole(trainer.ema)
        if trainer.ranks.first:
            torch.save({"losses": found, "average": average.state_dict()}, result)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("alone")
    losses(folder, ExecutionConfig(), folder / "result")
    return torch.load(folder / "result")


def difference(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) / abs(b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("ranks, shard, accumulation", [(0, 1, 4), (1, 1, 1), (2, 1, 1), (2, 2, 1), (4, 1, 1), (4, 4, 1), (4, 2, 1), (2, 2, 4), (2, 1, 4)])
def test_ranks_shards_and_parts_change_nothing(tmp_path, alone, ranks, shard, accumulation):
    run(tmp_path, ranks, losses, tmp_path / "run", ExecutionConfig(accumulation=accumulation, shard=shard), tmp_path / "result")
    result = torch.load(tmp_path / "result")
    apart = difference(result["losses"], alone["losses"])
    print(f"{ranks} ranks, shard {shard}, accumulation {accumulation}: losses of 20 steps within {apart:.1e} of one process")
    assert apart < 1e-5
    for name, tensor in alone["average"].items():
        assert_close(result["average"][name], tensor, rtol=1e-3, atol=1e-4)


def by_muon(folder: Path, execution: ExecutionConfig, result: Path) -> None:
    with process_group("cpu", 1):
        trainer = make(folder, execution, settings=replace(SETTINGS, optimizer="muon"))
        found = steps_of(trainer, SETTINGS.steps)
        if trainer.ranks.first:
            torch.save(found, result)


def test_muon_on_several_ranks(tmp_path):
    "Its iteration is in bfloat16, so the numbers agree less closely."
    by_muon(tmp_path / "alone", ExecutionConfig(), tmp_path / "result")
    for shard in (1, 2):
        run(tmp_path, 2, by_muon, tmp_path / f"shard {shard}", ExecutionConfig(shard=shard), tmp_path / f"result-{shard}")
        assert difference(torch.load(tmp_path / f"result-{shard}"), torch.load(tmp_path / "result")) < 1e-3


def save_at(folder: Path, execution: ExecutionConfig, step: int) -> None:
    with process_group("cpu", 1):
        make(folder, execution).fit(last_step=step)


class Watched:
    "A data set that notes which images were read."

    def __init__(self, dataset):
        self.dataset, self.seen = dataset, []

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def pixel_batch(self, indices):
        self.seen += [int(index) for index in indices]
        return self.dataset.pixel_batch(indices)


def go_on(folder: Path, execution: ExecutionConfig, result: Path) -> None:
    with process_group("cpu", 1):
        data = Watched(stripes())
        trainer = make(folder, execution, dataset=data)
        data.seen.clear()
        first, found = trainer.step, steps_of(trainer, SETTINGS.steps)
        torch.save({"losses": found, "first": first, "seen": data.seen}, f"{result}-{trainer.ranks.rank}")


@pytest.mark.parametrize("ranks, shard", [(0, 1), (2, 1), (2, 2)])
def test_saved_by_four_ranks_in_mid_epoch_resumed_by_fewer(tmp_path, alone, ranks, shard):
    run(tmp_path, 4, save_at, tmp_path / "run", ExecutionConfig(shard=2), 8)  # of 50 images an epoch, 16 a step
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["step-00000008"]
    run(tmp_path, ranks, go_on, tmp_path / "run", ExecutionConfig(shard=shard), tmp_path / "result")
    results = [torch.load(f"{tmp_path / 'result'}-{rank}") for rank in range(max(1, ranks))]
    for result in results:
        assert result["first"] == 8
        apart = difference(result["losses"], alone["losses"][8:])
        assert apart < 1e-5
    print(f"saved on 4 ranks, resumed on {ranks or 1}, shard {shard}: losses within {apart:.1e} of the uninterrupted run")
    read = [result["seen"] for result in results]
    size = 16 // len(read)
    for number, batch in enumerate(BatchStream(50, 16, SETTINGS.seed, 8, 20)):
        assert sum((seen[number * size : (number + 1) * size] for seen in read), []) == batch


def distill(folder: Path, execution: ExecutionConfig, result: Path) -> None:
    with process_group("cpu", 1) as device:
        torch.manual_seed(0)
        settings = replace(SETTINGS, steps=6, evaluate_every=6, save_every=3)
        teacher = Farmer(STILL)
        for block in teacher.flow.blocks:
            torch.nn.init.normal_(block.output.weight, std=0.1)  # a new flow is the identity, and so is its student
        trainer = Trainer(Distillation(teacher), stripes(), stripes(seed=1), settings, folder, device=device, execution=execution)
        found = steps_of(trainer, 5)
        trainer.fit()
        student = trainer.whole(trainer.ema)
        if trainer.ranks.first:
            torch.save({"losses": found, "student": student.state_dict(), "log": read_log(folder)}, result)


def test_students_are_distilled_alike(tmp_path):
    distill(tmp_path / "alone", ExecutionConfig(), tmp_path / "a")
    run(tmp_path, 2, distill, tmp_path / "two", ExecutionConfig(shard=2, accumulation=2), tmp_path / "b")
    one, two = torch.load(tmp_path / "a"), torch.load(tmp_path / "b")
    assert difference(two["losses"], one["losses"]) < 1e-5
    for name, tensor in one["student"].items():
        assert_close(two["student"][name], tensor, rtol=1e-3, atol=1e-4)
    for a, b in zip(one["log"], two["log"], strict=True):
        assert a.keys() == b.keys() and all(abs(a[key] - b[key]) < 1e-4 for key in a if key not in ("samples", "images_per_second"))


# --- Faster


def test_recomputed_activations_give_the_same_weights(tmp_path):
    trainers = [make(tmp_path / name, ExecutionConfig(checkpoint_activations=on), config=stripes_config()) for name, on in (("kept", False), ("recomputed", True))]
    for trainer in trainers:
        trainer.fit(last_step=5)  # with dropout: it must be the same the second time
    for name, tensor in weights_of(trainers[0]).items():
        assert torch.equal(tensor, weights_of(trainers[1])[name]), name


def half(folder: Path, execution: ExecutionConfig, result: Path) -> None:
    with process_group("cpu", 1):
        trainer = make(folder, execution)
        seen = {}
        forward = trainer.model.prior.informative_head.forward
        trainer.model.prior.informative_head.linear.register_forward_hook(lambda module, inputs, output: seen.update(product=output.dtype))
        trainer.model.prior.informative_head.forward = lambda hidden: seen.update(mixture=forward(hidden)) or seen["mixture"]
        trainer.model.flow.blocks[0].register_forward_hook(lambda module, inputs, output: seen.update(z=output[0].dtype, log_scale=output[1].dtype))
        found = steps_of(trainer, SETTINGS.steps)
        mixture = seen.pop("mixture")
        kinds = {name: str(kind) for name, kind in seen.items()}
        kinds.update(mean=str(mixture.component_mean.dtype), width=str(mixture.component_log_scale.dtype))
        kinds["weights"] = str(next(trainer.model.parameters()).dtype)
        if trainer.ranks.first:
            torch.save({"losses": found, "kinds": kinds}, result)


@pytest.mark.parametrize("ranks, shard", [(0, 1), (2, 1), (2, 2)])
def test_bfloat16_leaves_mixtures_and_logdet_in_float32(tmp_path, alone, ranks, shard):
    run(tmp_path, ranks, half, tmp_path / "run", ExecutionConfig(bfloat16=True, shard=shard), tmp_path / "result")
    result = torch.load(tmp_path / "result")
    assert result["kinds"].pop("product") == "torch.bfloat16"
    assert set(result["kinds"].values()) == {"torch.float32"}
    assert 0 < difference(result["losses"], alone["losses"]) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [0, 2])
def test_compiled_transformers_compute_the_same(tmp_path, alone, ranks):
    run(tmp_path, ranks, losses, tmp_path / "run", ExecutionConfig(compile=True, shard=max(1, ranks)), tmp_path / "result")
    assert difference(torch.load(tmp_path / "result")["losses"], alone["losses"]) < 1e-4


@pytest.mark.slow
def test_everything_that_saves_time_or_memory_at_once(tmp_path, alone):
    "As a large model is trained: compiled, in bfloat16, weights shared by two ranks, activations computed again, a batch in parts."
    every = ExecutionConfig(accumulation=2, shard=2, bfloat16=True, compile=True, checkpoint_activations=True)
    run(tmp_path, 2, losses, tmp_path / "run", every, tmp_path / "result")
    assert 0 < difference(torch.load(tmp_path / "result")["losses"], alone["losses"]) < 0.02  # bfloat16's rounding


def test_operations_are_counted():
    "Of products: two for every weight of a linear layer and every token it reads; of attention: two products of N x N by the width."
    model = Farmer(STILL)
    tokens, repeats, config = STILL.tokens, STILL.condition_repeats, STILL
    linear = 0
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            read = {"flow": tokens, "prior": repeats + tokens}[name.split(".")[0]]
            read = {"input": tokens, "linear": 1}.get(name.split(".")[-1], read) if "prior" in name else read - (name.endswith("input"))
            read = tokens if "informative_head" in name else read
            linear += 2 * module.weight.numel() * read
    attention = 4 * (config.flow_blocks * config.flow_layers * tokens**2 * config.flow_width + config.prior_layers * (repeats + tokens) ** 2 * config.prior_width)
    counted = forward_flops(model, (1, *config.image_shape), (1,))
    print(f"counted {counted}, linear layers and attention by hand {linear + attention}")
    assert linear + attention <= counted < 1.3 * (linear + attention)  # beyond: basis and distances of mixtures


@pytest.mark.parametrize("name, peak", [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H100 NVL", 835), ("NVIDIA H200", 989), ("NVIDIA GH200 480GB", 989), ("NVIDIA H20", 148),
    ("NVIDIA A100-SXM4-40GB", 312), ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA A10", 125), ("NVIDIA A10G", 70), ("NVIDIA L40S", 362), ("NVIDIA L40", 181),
    ("NVIDIA L4", 121), ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA RTX 6000 Ada Generation", 364), ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None), ("NVIDIA RTX A4000", None), ("Tesla T4", None),
])  # fmt: skip
def test_peaks_of_gpus(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda")) == (peak and peak * 1e12) and peak_flops(torch.device("cpu")) is None


def test_a_mac_whose_gpu_does_not_work_computes_on_its_cpu(monkeypatch):
    "Virtual ones say that they have one, and refuse to give any memory of it."

    def refuse(*size, device):
        raise RuntimeError("MPS backend out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", refuse)
    assert best_device() == torch.device("cpu")
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    assert best_device() == torch.device("mps")


# --- Faults

PATIENT = replace(SETTINGS, steps=500, save_every=10, evaluate_every=1000)


class Talking(Trainer):
    "Says which step it is at."

    def add_gradients(self, batch):
        print("at step", self.step)
        return super().add_gradients(batch)


def train_on(folder: Path, settings=PATIENT) -> None:
    torch.manual_seed(0)
    trainer = Talking(Likelihood(Farmer(stripes_config())), stripes(), stripes(seed=1), settings, folder, device="cpu")
    print("resumed at", trainer.step, flush=True)
    trainer.fit()
    torch.save(weights_of(trainer), folder / "weights")


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path):
    "Half of them wherever the run happens to be, half inside a save. Each loses at most the steps since the last save."
    run(tmp_path, 0, train_on, tmp_path / "whole")
    choose, inside, published = random.Random(0), 0, 0
    for kill in range(20):
        [process] = start(tmp_path, 0, train_on, tmp_path / "parts")
        process.wait_for("resumed at")
        assert int(re.search(r"resumed at (\d+)", process.text)[1]) == published
        process.wait_for(f"at step {published + choose.randrange(15)}\n")
        time.sleep(0.01 * choose.random())
        if kill % 2:
            process.wait_until(lambda: list((tmp_path / "parts" / "checkpoints").glob(".*partial/*")), "a save")
        process.process.kill()
        assert process.status() == -signal.SIGKILL
        inside += bool(list((tmp_path / "parts" / "checkpoints").glob(".*partial")))
        published = int(checkpoints(tmp_path / "parts")[-1].name[5:]) if checkpoints(tmp_path / "parts") else 0
    run(tmp_path, 0, train_on, tmp_path / "parts")
    print(f"20 of 20 resumed, {inside} killed inside a save, the last at step {published} of {PATIENT.steps}")
    whole, parts = (torch.load(tmp_path / name / "weights") for name in ("whole", "parts"))
    assert inside >= 5 and whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not list((tmp_path / "parts" / "checkpoints").glob(".*"))


SHARED = ["train", "glyphs-field", "--device", "cpu", "--evaluate-every", "100000", *SMALL_RUN]


def command(*arguments, before=None) -> None:
    "The farmer command, ending as it ends."
    if before is not None:
        before()
    main([str(argument) for argument in arguments])


def outcomes(folder: Path, ranks: int, *arguments, before=None, seconds: float = 60) -> list[str]:
    "The complaint of each rank, of which there must be one line and nothing else but progress."
    started = start(folder, ranks, with_keywords, command, arguments, {"before": before})
    statuses = [rank.status(seconds) for rank in started]
    texts = [rank.text for rank in started]
    assert statuses == [2] * len(started), texts
    for text in texts:
        assert "Traceback" not in text and len(re.findall("farmer: ", text)) == 1, text
    return [text[text.index("farmer: ") :].strip() for text in texts]


def with_keywords(function, arguments, keywords) -> None:
    function(*arguments, **keywords)


def every(complaints: list[str], *parts: str) -> str:
    for complaint in complaints:
        assert "\n" not in complaint and all(part in complaint for part in parts), complaint
    print(complaints[0])
    return complaints[0]


def test_a_batch_that_cannot_be_split(tmp_path):
    data, run = photos(tmp_path / "photos"), tmp_path / "run"
    found = outcomes(tmp_path, 2, *SHARED, "--data", data, "--folder", run, "--batch-size", "9")
    every(found, "--batch-size 9 cannot be split evenly among ranks (2)", "multiple of 2")
    every(outcomes(tmp_path, 2, *SHARED, "--data", data, "--folder", run, "--shard", "3"), "shard 3 does not divide the number of ranks, 2")


def test_a_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        arguments = (*SHARED, "--data", photos(tmp_path / "photos"), "--folder", tmp_path / "run", "--timeout", "0.1")
        rank = Rank(tmp_path, 0, 2, taken.getsockname()[1], with_keywords, (command, arguments, {}))
        assert rank.status() == 2 and "Traceback" not in rank.text
        print(rank.text)
        assert rank.text.startswith(f"farmer: rank 0: port {taken.getsockname()[1]} is in use; choose another") and rank.text.count("\n") == 1


def no_space() -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def only_second_rank_without_space() -> None:
    if os.environ["RANK"] == "1":
        no_space()


@pytest.mark.parametrize("before", [no_space, only_second_rank_without_space])
def test_no_space_left(tmp_path, before):
    run = tmp_path / "run"
    arguments = (*SHARED, "--data", photos(tmp_path / "photos"), "--folder", run, "--steps", "20", "--save-every", "2")
    every(outcomes(tmp_path, 2, *arguments, before=before), "step-00000002 could not be written", "File too large", "make room")
    assert not list((run / "checkpoints").iterdir())


def test_a_checkpoint_of_another_preset(tmp_path):
    run = tmp_path / "run"
    main([*SHARED, "--data", str(photos(tmp_path / "photos")), "--folder", str(run), "--steps", "2"])
    found = outcomes(tmp_path, 2, "train", "digits", "--device", "cpu", "--folder", run, *SMALL_RUN, "--steps", "2")
    every(found, "step-00000002 belongs to another run", "--image-shape [3, 16, 16] -> [1, 8, 8]")


def test_too_many_unreadable_files(tmp_path):
    data, run = photos(tmp_path / "photos", per_class=60), tmp_path / "run"
    files = sorted((data / "red").iterdir())
    for file in files[1:51:2]:
        file.write_bytes(b"not an image")
    arguments = (*SHARED, "--data", data, "--folder", run, "--steps", "40")
    found = outcomes(tmp_path, 2, *arguments, before=with_lenient_start)
    every(found, "images could not be read, the last: image", "delete or replace it")


def with_lenient_start() -> None:
    "As if the files had broken after the run began."
    objectives.fingerprint, Likelihood.fit_basis = lambda dataset: "photos", lambda objective, dataset: None


class Lenient(Likelihood):
    "Reads no images before the first step."

    def identity(self, dataset):
        return "photos"

    def fit_basis(self, dataset):
        pass


class Unmeasured(Trainer):
    "Reads no images for an evaluation."

    def evaluate(self):
        return {"step": self.step}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_few_unreadable_files_are_reported_and_replaced(tmp_path, capsys, workers):
    data = photos(tmp_path / "photos")
    dataset = FolderDataset(data, "train", 4)
    (data / "red" / "01.png").write_bytes(b"not an image")
    (data / "blue" / "03.png").unlink()
    config, settings = replace(STILL, image_shape=(3, 4, 4), levels=256), replace(SETTINGS, steps=6, batch_size=8, horizontal_flip=False)
    execution = ExecutionConfig(workers=workers)
    Unmeasured(Lenient(Farmer(config)), dataset, dataset, settings, tmp_path / "run", device="cpu", execution=execution).fit()
    records = [record for record in read_log(tmp_path / "run") if "unreadable" in record]
    assert [record["count"] for record in records] == list(range(1, len(records) + 1)) and len(records) >= 1
    names = [name for name in ("red/01.png", "blue/03.png") if any(str(data / name) in record["unreadable"] for record in records)]
    assert names == ["red/01.png", "blue/03.png"]
    assert str(data / "red" / "01.png") in capsys.readouterr().out


def break_second_rank() -> None:
    if os.environ["RANK"] == "1":
        plain, calls = Likelihood.loss, []

        def broken(objective, images, labels):
            loss, parts = plain(objective, images, labels)
            calls.append(loss)
            return loss, {**parts, "redundant": parts["redundant"] * (float("nan") if len(calls) == 4 else 1)}

        Likelihood.loss = broken


def test_a_value_that_is_not_finite_stops_all_ranks(tmp_path):
    arguments = (*SHARED, "--data", photos(tmp_path / "photos"), "--folder", tmp_path / "run", "--steps", "20", "--save-every", "2")
    found = outcomes(tmp_path, 2, *arguments, before=break_second_rank)
    every(found, "step 3, rank 1: redundant is nan", "last good checkpoint is", "step-00000002")


def hang_second_rank() -> None:
    if os.environ["RANK"] == "1":
        plain = Trainer.add_gradients
        Trainer.add_gradients = lambda trainer, batch: (time.sleep(20 * (trainer.step == 3)), plain(trainer, batch))[1]


def test_a_rank_that_hangs_ends_the_job(tmp_path):
    arguments = (*SHARED, "--data", photos(tmp_path / "photos"), "--folder", tmp_path / "run", "--steps", "20", "--timeout", "0.1")
    found = outcomes(tmp_path, 2, *arguments, before=hang_second_rank)
    every(found[:1], "rank 0: another rank ended or did not answer within 0.1 minutes")
    every(found[1:], "rank 1: another rank ended")


def end_second_rank() -> None:
    if os.environ["RANK"] == "1":
        plain = Trainer.add_gradients
        Trainer.add_gradients = lambda trainer, batch: os._exit(7) if trainer.step == 3 else plain(trainer, batch)


def test_a_rank_that_dies_ends_the_job(tmp_path):
    arguments = (*SHARED, "--data", photos(tmp_path / "photos"), "--folder", tmp_path / "run", "--steps", "20")
    one, two = start(tmp_path, 2, with_keywords, command, arguments, {"before": end_second_rank})
    assert (one.status(), two.status()) == (2, 7) and "Traceback" not in one.text
    assert one.text.count("farmer: rank 0: another rank ended") == 1


@pytest.mark.parametrize("ranks", [0, 2])
def test_sigterm_saves_and_exits_with_0(tmp_path, ranks):
    run = tmp_path / "run"
    arguments = (*SHARED, "--data", photos(tmp_path / "photos"), "--folder", run, "--steps", "100000", "--save-every", "100000")
    started = start(tmp_path, ranks, with_keywords, command, arguments, {})
    started[0].wait_for("loss")  # the tenth step
    os.kill(started[-1].process.pid, signal.SIGTERM)
    assert [rank.status() for rank in started] == [0] * len(started), [rank.text for rank in started]
    [saved] = checkpoints(run)
    text = "".join(rank.text for rank in started)
    assert text.count("SIGTERM") == 1 and f"SIGTERM: saved at step {int(saved.name[5:])} of 100000; the same command goes on" in text
    assert "held out" not in text and "Traceback" not in text and not (run / "model").exists()


# --- From the command line


def test_torchrun_and_then_one_process(tmp_path):
    run, data = tmp_path / "run", photos(tmp_path / "photos")
    arguments = [*map(str, SHARED), "--data", str(data), "--folder", str(run), "--save-every", "3", "--steps", "6"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "farmer.cli"]
    done = subprocess.run([*torchrun, *arguments, "--shard", "2", "--accumulation", "2", "--workers", "1"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "2 ranks" in done.stdout and done.stdout.count("held out:") == 1 and done.stdout.count("next: ") == 1
    assert Farmer.from_pretrained(run / "model").config.num_classes == 2
    before = (run / "model" / "model.safetensors").read_bytes()
    main(arguments)  # nothing left to do; the averaged weights are the same
    assert (run / "model" / "model.safetensors").read_bytes() == before


def test_distill_from_the_command_line(tmp_path, capsys):
    run, data = tmp_path / "run", photos(tmp_path / "photos")
    main([*SHARED, "--data", str(data), "--folder", str(run), "--steps", "2"])
    arguments = ("distill", run, "--steps", "4", "--save-every", "2", "--batch-size", "8", "--evaluation-images", "2", "--device", "cpu", "--shard", "2")
    started = start(tmp_path, 2, with_keywords, command, arguments, {})
    assert [rank.status() for rank in started] == [0, 0], [rank.text for rank in started]
    assert "root mean square error" in started[0].text and "root mean square error" not in started[1].text
    assert isinstance(Student.from_pretrained(run / "model"), Student)
