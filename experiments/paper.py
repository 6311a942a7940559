"""Train and measure the small twins of the paper's tables and figures: `python experiments/paper.py`, or `make paper`.

The models are those of conditions.py whose names begin with `paper`, `figure 6` and `flows`; the student of FARMER on glyphs
comes on top. nbs/23_paper reads what comes out. `--jobs 2` keeps two cores busy. `paper.py "figure 6"` measures only the conditions whose names
begin so.
"""
import argparse
import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import get_context, parent_process

import torch
from conditions import CONDITIONS, TWINS
from measuring import RESULTS, RUNS, circumstances, draw, judge_of, judged, record, run, seconds_of, show, train, write

from farmer.guidance import PosteriorGuidance, RejectionGuidance, ResamplingGuidance
from farmer.inversion import Student
from farmer.objectives import Distillation
from farmer.presets import DISTILLATION
from farmer.training import Trainer, read_log

GUIDED = {
    f"{name}, w={scale:g}": way(scale)
    for name, way in {"naive (rejection)": RejectionGuidance, "resampling": ResamplingGuidance, "posterior": PosteriorGuidance}.items()
    for scale in (1.0, 2.5)
}
TEACHER = "paper, glyphs, FARMER"
SEEDS = (0, 1, 2)


def end_with_parent() -> None:
    "In a worker: when this script is killed, nobody stays behind."
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def run_twin(name: str, seed: int) -> dict:
    torch.set_num_threads(1)
    return run(name, seed, guided=GUIDED if name in (TEACHER, "paper, digits, FARMER") else {})


def distill(seed: int) -> Trainer:
    "The finished distillation of FARMER on glyphs."
    judge = judge_of("glyphs")
    config = replace(DISTILLATION, **TWINS, seed=seed)
    teacher = train(TEACHER, seed).ema
    trainer = Trainer(Distillation(teacher), judge.train, judge.held_out, config, RUNS / f"{TEACHER}, {seed}" / "student", device="cpu")
    trainer.fit()
    return trainer


def run_student(seed: int) -> dict:
    "Train and measure a student, unless its figures are there."
    torch.set_num_threads(1)
    place = RUNS / f"{TEACHER}, {seed}" / "student" / "figures.json"
    if not place.is_file():
        trainer = distill(seed)
        error = [line["held_out_average"] for line in read_log(trainer.folder) if "held_out_average" in line][-1]
        images, labels = draw(trainer.objective.teacher, seed, inverse=trainer.ema)
        row = {"seconds of training": seconds_of(trainer), "held-out error": error, **judged("glyphs", images, labels)}
        place.write_text(json.dumps(row, indent=1) + "\n")
        show(f"student, seed {seed}", row)
    return json.loads(place.read_text())


def median_seconds(functions: dict[str, Callable[[], object]], repeats: int = 7) -> dict[str, float]:
    "Of each function, taking turns, after one call to warm up."
    times = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}


@torch.no_grad()
def measure_times(batch: int = 64) -> dict[str, float]:
    "Seconds an image of every stage of sampling, for glyphs (the paper's tables 4 and 5), on one thread, in batches of `batch`."
    torch.set_num_threads(1)
    model, coupling = (train(name, 0).ema for name in (TEACHER, "paper, glyphs, coupling flow"))
    student: Student = distill(0).ema
    labels = torch.arange(batch) % 10
    draw_latents = lambda: model.sample_latents(labels, generator=torch.Generator().manual_seed(0))
    latents = draw_latents()
    z = model.partition.join(latents.informative, latents.redundant)
    ways = {"AF forward": model.flow, "AF reverse": model.flow.inverse, "student reverse": student}
    ways |= {"coupling forward": coupling.flow, "coupling reverse": coupling.flow.inverse}
    seconds = median_seconds({"AR prior": draw_latents, **{name: partial(way, z) for name, way in ways.items()}})
    return {"batch": batch, **{name: value / batch for name, value in seconds.items()}}


def row_of(name: str) -> tuple[str, ...]:
    "Keys of a condition's row in paper.json."
    part, rest = name.split(", ", 1)
    match part:
        case "paper":
            return "models", *rest.split(", ", 1)  # data, model
        case "flows":
            return part, *rest.rsplit(", ", 1)  # where, flow
    return part, rest


def put(result: dict, keys: tuple[str, ...], row: object) -> None:
    *outer, last = keys
    for key in outer:
        result = result.setdefault(key, {})
    result[last] = row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="?", help="beginning of the names of the conditions to measure; the rows of the others stay as they are")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on one thread")
    only, jobs = vars(parser.parse_args()).values()
    asked = (only,) if only else ("paper, ", "figure 6, ", "flows, ")
    tasks = {name: condition.seeds for name, condition in CONDITIONS.items() if name.startswith(asked) and name.startswith(("paper, ", "figure 6, ", "flows, "))}
    if not tasks:
        parser.error(f"no condition of the paper's twins begins with {only!r}; experiments/conditions.py has their names")
    with get_context("spawn").Pool(jobs, end_with_parent) as pool:
        waiting = {(name, seed): pool.apply_async(run_twin, (name, seed)) for seed in SEEDS for name, seeds in tasks.items() if seed in seeds}
        students = [] if only else pool.map(run_student, SEEDS)
        rows = {name: [waiting[name, seed].get() for seed in seeds] for name, seeds in tasks.items()}
    result = json.loads((RESULTS / "paper.json").read_text()) if only else {}
    for name, row in rows.items():
        put(result, row_of(name), row)
    if only:
        result.setdefault("measured later", {})[only] = circumstances()
        write("paper", result)
        return
    result |= {"steps": TWINS["steps"], "samples": 2000, "jobs": jobs, "students": students, "times": measure_times()}
    record("paper", result, SEEDS, "the small twins of the paper's tables trained and measured; where there are fewer rows than seeds, with the first only")


if __name__ == "__main__":
    main()
