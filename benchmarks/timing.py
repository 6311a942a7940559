"How the benchmarks beside this module time: contestants take turns in one process, and the best of each counts."
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def seconds_of(call: Callable[[], object], device: str | torch.device = "cpu") -> float:
    "Wall time of a call; on a GPU until its work is done."
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - started


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    repeats: int = 5,  # of each call, at least
    seconds: float = 0.0,  # go on until so much time is spent
    device: str = "cpu",
) -> dict[str, list[float]]:
    "The times of each call. Who goes first alternates, so that other work slows all alike; the first round, which warms up, does not count."
    times, names, end = {name: [] for name in calls}, list(calls), None
    while end is None or len(times[names[0]]) < repeats or time.perf_counter() < end:
        for name in names:
            spent = seconds_of(calls[name], device)
            if end is not None:
                times[name].append(spent)
        end = end or time.perf_counter() + seconds
        names.reverse()
    return times


def best(times: Mapping[str, list[float]]) -> dict[str, float]:
    "Of each: other work can only add to a time, so the best is the nearest to what the code itself costs."
    return {name: min(values) for name, values in times.items()}


def milliseconds(values: list[float]) -> str:
    "The best and the median; a median far above the best tells of a busy machine."
    return f"{min(values) * 1e3:9.1f} {statistics.median(values) * 1e3:9.1f}"


def where(device: str | torch.device = "cpu") -> str:
    "The machine, in words, for the first line of a benchmark."
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"
