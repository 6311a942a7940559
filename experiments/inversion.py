"""Ways back through the flow: how good is the student, which way of training it is best, how many rounds does Jacobi need?

    python experiments/inversion.py students          the embedded students: error to the exact inverse, Frechet distance, class accuracy
    python experiments/inversion.py students photos   the same of one; the figures of the others stay
    python experiments/inversion.py rivals            the same of the paper's student, and of ours trained with its noise and loss
    python experiments/inversion.py attempts          ways of training a student of the embedded glyphs, equal steps
    python experiments/inversion.py jacobi            rounds of every block of the embedded flows

`students`, `rivals`: 1,000 samples for each of three sampling seeds, into one file. The rivals are trained here, with as many steps,
images and the same rates as ours, in runs/experiments: 5 minutes each on one core. Each goes on where it was stopped. The distance
from the model is the Kullback-Leibler divergence of the student's samples, which have an exact density under both if attention is
causal. Latent noise: held-out latents plus noise of this deviation, undone, against clean images.

`attempts`: 800 steps of 64 images, two seeds; root mean square error to the exact inverse on 500 held-out images and on
500 samples of the prior, in the scale of pixels. benchmarks/inversion_time.py times the ways.
"""
import argparse
import copy
import json
import math
import statistics
import time
from collections.abc import Callable

import torch
from measuring import RESULTS, RUNS, judge_of, judged, record
from torch import Tensor, nn
from torch.nn import functional as F

from farmer.flow import Flow
from farmer.inversion import Student, certify, guessed_inverse, invert_block, paper_student_loss
from farmer.model import Farmer, Latents
from farmer.objectives import Distillation
from farmer.patches import dequantize
from farmer.presets import DISTILLATION, nearest_preset
from farmer.training import Trainer

NAMES = ("digits", "glyphs")
SEEDS = (0, 1, 2)
STUDENTS = ("digits", "glyphs", "photos")  # that are embedded
RIVALS = {"digits": ("paper", "causal, noise and loss of the paper")}  # of our students, and where they are trained

# Letters used for shapes:
# B batch, N tokens, d channels of a token, W width of the transformer


def rms(difference: Tensor) -> float:
    return difference.square().mean().sqrt().item()


def held_out_pairs(model: Farmer, name: str, count: int) -> tuple[Tensor, Tensor]:  # z and x, (B, N, d)
    dataset = judge_of(name).held_out
    images, _ = dataset.batch(range(min(count, len(dataset))))
    x = model.tokens_of(dequantize(images, model.config.levels, torch.Generator().manual_seed(5)))
    return model.flow(x)[0], x


def prior_latents(model: Farmer, labels: Tensor, seed: int) -> tuple[Latents, Tensor]:  # and joined, z (B, N, d)
    latents = model.sample_latents(labels, generator=torch.Generator().manual_seed(seed))
    return latents, model.partition.join(latents.informative, latents.redundant)


# --- Students side by side


def student_figures(model: Farmer, student: Student, name: str, seed: int) -> dict[str, float]:
    "Of samples: the student's beside those of the exact inverse, of the same latents."
    labels = torch.arange(10).repeat(100)
    latents, z = prior_latents(model, labels, seed)
    images = {"exact": model.decode(latents), "student": model.decode(latents, inverse=student)}
    found = certify(model, images["student"], latents, labels)
    row = {
        "rmse, prior samples": rms(images["exact"] - images["student"]), "residual, root mean square": found.rms_residual.square().mean().sqrt().item(),
        "residual, largest": found.residual.max().item(),
    }  # fmt: skip
    if not student.both_ways:
        log_prob = sum(part.sum(1) for part in model.prior(z, labels)) - student.transform(z)[1].sum((1, 2))  # under the student
        row["divergence from the model, nats/image"] = (log_prob - found.log_prob).mean().item()
    references = {"held-out images": "Frechet distance", "training images": "Frechet distance to training images"}
    figures = {solver: judged(name, drawn, labels) for solver, drawn in images.items()}
    for solver, found in figures.items():
        row[f"class accuracy, {solver}"] = found["class accuracy"]
        row |= {f"Frechet to {reference}, {solver}": found[key] for reference, key in references.items()}
    return row | {f"Frechet to {reference}, student over exact": figures["student"][key] / figures["exact"][key] for reference, key in references.items()}


@torch.no_grad()
def all_figures(model: Farmer, student: Student, name: str) -> dict[str, list[float]]:
    z, x = held_out_pairs(model, name, 1000)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(6))
    row = {"rmse, held out": [rms(student(z) - x)], "rmse, start of distillation": [rms(Student(model.flow, student.both_ways)(z) - x)]}
    row |= {f"rmse, latent noise {size}": [rms(student(z + size * noise) - x)] for size in (0.1, 0.2, 0.3)}
    row |= {f"rmse, latent noise {size}, exact inverse": [rms(model.flow.inverse(z + size * noise) - x)] for size in (0.1, 0.2, 0.3)}
    found = [student_figures(model, student, name, seed) for seed in SEEDS]
    return row | {key: [each[key] for each in found] for key in found[0]}


class NoisyDistillation(Distillation):
    "Our student, trained as the paper's."

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = paper_student_loss(self.module, self.teacher.flow, self.teacher.tokens_of(images))
        return loss, {"distillation loss": loss}


@torch.enable_grad()
def rival(name: str, kind: str) -> Student:
    "Trained now, from where it was stopped, or before."
    judge, teacher = judge_of(name), Farmer.from_pretrained(name)
    objective = Distillation(teacher, "paper") if kind == "paper" else NoisyDistillation(teacher)
    trainer = Trainer(objective, judge.train, judge.held_out, nearest_preset(teacher.config).distillation, RUNS / f"students, {name}, {kind}", device="cpu")
    trainer.fit()
    return trainer.ema


def kept_figures() -> dict:
    "Of the embedded students, and under `rivals` of others, as measured so far."
    earlier = RESULTS / "inversion_students.json"
    kept = json.loads(earlier.read_text()) if earlier.is_file() else {}
    return {name: kept[name] for name in STUDENTS if name in kept} | {"rivals": kept.get("rivals", {})}


def print_figures(name: str, kind: str, row: dict[str, list[float]]) -> None:
    for key, values in row.items():
        spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
        print(f"{name}, {kind:38}{key:52}{statistics.mean(values):10.4f}{spread}", flush=True)


def students(data: str) -> dict:
    results = kept_figures()
    for name in STUDENTS if data == "all" else [data]:
        results[name] = all_figures(Farmer.from_pretrained(name), Student.from_pretrained(name), name)
        print_figures(name, "ours", results[name])
    return results


def rivals(data: str) -> dict:
    results = kept_figures()
    for name in RIVALS if data == "all" else [data]:
        results["rivals"][name] = {kind: all_figures(Farmer.from_pretrained(name), rival(name, kind), name) for kind in RIVALS[name]}
        for kind, row in results["rivals"][name].items():
            print_figures(name, kind, row)
    return results


# --- Ways of training a student: modules from z (B, N, d) to states on the way back, the last block's first, the tokens last


def look_both_ways(flow: Flow) -> nn.ModuleList:
    "Its blocks, without their causal masks."
    for block in flow.blocks:
        for layer in block.transformer.layers:
            layer.causal = False
    return flow.blocks


class BothWays(nn.Module):
    "The paper's student: blocks of the flow's sizes whose attention sees all tokens, and a token's own z."

    def __init__(self, flow: Flow):  # new, or a copy
        super().__init__()
        self.blocks = look_both_ways(flow)
        width, channels = self.blocks[0].input.weight.shape
        self.own = nn.ModuleList(nn.Linear(channels, width, bias=False) for _ in self.blocks)
        for own in self.own:
            nn.init.zeros_(own.weight)

    def forward(self, z: Tensor) -> list[Tensor]:
        states = []
        for block, own in zip(reversed(self.blocks), reversed(self.own)):
            turned = block.turn(z)
            hidden = torch.cat([block.start.expand(len(z), 1, -1), block.input(turned[:, :-1])], dim=1) + block.position + own(turned)
            for layer in block.transformer.layers:
                hidden = layer(hidden)
            shift, log_scale = block.turn(block.shift_and_log_scale(block.transformer.norm(hidden))).chunk(2, dim=-1)
            z = z * torch.exp(-log_scale) + shift
            states.append(z)
        return states


class HiddenAlignment(nn.Module):
    "One transformer without blocks, as in follow-up work: hidden states are read out linearly at the places of the flow's states."

    def __init__(self, flow: Flow):  # new
        super().__init__()
        self.blocks = look_both_ways(flow)
        width, channels = self.blocks[0].input.weight.shape
        self.skip = nn.ModuleList(nn.Linear(channels, channels) for _ in flow.blocks)
        self.read = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels)) for _ in flow.blocks)
        for skip, read in zip(self.skip, self.read):
            nn.init.eye_(skip.weight)
            for parameter in (skip.bias, read[1].weight, read[1].bias):
                nn.init.zeros_(parameter)

    def forward(self, z: Tensor) -> list[Tensor]:
        first, states = self.blocks[-1], []
        x = first.input(z) + first.position
        for block, skip, read in zip(reversed(self.blocks), self.skip, self.read):
            for layer in block.transformer.layers:
                x = layer(x)
            states.append(read(x) + skip(z))
        return states


class Causal(Student):
    "Ours, with the outputs of all blocks."

    def forward(self, z: Tensor) -> list[Tensor]:
        states = [z]
        for block in reversed(self.blocks):
            states.append(guessed_inverse(block, states[-1], guess=states[-1])[0])
        return states[1:]


ATTEMPTS = {  # weights, student, loss, noise on latents (largest deviation), noise on images (deviation at the start, falls to 0)
    "attends to all, new weights; block outputs; latent noise .3 (paper)": ("new", BothWays, "blocks", 0.3, 0),
    "attends to all, new weights; block outputs": ("new", BothWays, "blocks", 0, 0),
    "attends to all, new weights; image": ("new", BothWays, "image", 0, 0),
    "no blocks, new weights; aligned hidden states (BiFlow)": ("new", HiddenAlignment, "blocks", 0, 0),
    "no blocks, new weights; image": ("new", HiddenAlignment, "image", 0, 0),
    "attends to all, flow's weights; block outputs; latent noise .3": ("copy", BothWays, "blocks", 0.3, 0),
    "attends to all, flow's weights; block outputs": ("copy", BothWays, "blocks", 0, 0),
    "attends to all, flow's weights; image": ("copy", BothWays, "image", 0, 0),
    "causal, flow's weights; block outputs; latent noise .3": ("copy", Causal, "blocks", 0.3, 0),
    "causal, flow's weights; block outputs": ("copy", Causal, "blocks", 0, 0),
    "causal, flow's weights; image": ("copy", Causal, "image", 0, 0),
    "causal, flow's weights; image; latent noise .05": ("copy", Causal, "image", 0.05, 0),
    "causal, flow's weights; image; image noise .1 (the library's)": ("copy", Causal, "image", 0, 0.1),
    "causal, flow's weights; image and latent residual; image noise .1": ("copy", Causal, "residual", 0, 0.1),
}


def attempt(
    model: Farmer,
    weights: str,  # that the student starts from: new, or a copy of the flow's
    make_student: Callable[[Flow], nn.Module],
    loss_name: str,  # image: of the result alone; blocks: of every block; residual: and of the latents that the result has
    latent_noise: float,
    image_noise: float,
    steps: int,
    seed: int,
) -> nn.Module:
    torch.manual_seed(seed)
    generator, dataset, flow = torch.Generator().manual_seed(seed), judge_of("glyphs").train, model.flow
    student = make_student(Farmer(model.config).flow if weights == "new" else copy.deepcopy(flow).requires_grad_(True))
    optimizer = torch.optim.AdamW(student.parameters(), lr=DISTILLATION.learning_rate, betas=DISTILLATION.betas, weight_decay=0.0)
    order = torch.cat([torch.randperm(len(dataset), generator=generator) for _ in range(math.ceil(64 * steps / len(dataset)))])
    for step in range(steps):
        images, _ = dataset.batch(order[64 * step : 64 * step + 64])
        fade = 0.5 + 0.5 * math.cos(math.pi * step / steps)
        with torch.no_grad():
            images = dequantize(images, model.config.levels, generator)
            images = images + image_noise * fade * torch.randn(images.shape, generator=generator)
            targets = [model.tokens_of(images)]
            for block in flow.blocks:
                targets.append(block(targets[-1])[0])
            z = targets.pop()
            noisy = z + latent_noise * torch.rand(64, 1, 1, generator=generator) * torch.randn(z.shape, generator=generator)
        outputs = student(noisy)
        loss = F.mse_loss(outputs[-1], targets[0])
        if loss_name == "blocks":
            loss = sum(F.mse_loss(*pair) for pair in zip(outputs, reversed(targets))) / len(targets)
        elif loss_name == "residual":
            loss = loss + 0.05 * F.mse_loss(flow(outputs[-1])[0], noisy)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = DISTILLATION.learning_rate * min(1, (step + 1) / 50) * fade
        optimizer.step()
    return student


def attempts(steps: int = 800, seeds: int = 2) -> dict:
    model, results = Farmer.from_pretrained("glyphs").requires_grad_(False), {}
    _, drawn = prior_latents(model, torch.arange(10).repeat(50), seed=7)
    pairs = {"held out": held_out_pairs(model, "glyphs", 500), "prior": (drawn, model.flow.inverse(drawn))}
    for name, way in ATTEMPTS.items():
        row = {"held out": [], "prior": [], "residual": [], "seconds": []}
        for seed in range(seeds):
            started = time.perf_counter()
            student = attempt(model, *way, steps, seed)
            row["seconds"].append(time.perf_counter() - started)
            with torch.no_grad():
                for kind, (z, x) in pairs.items():
                    made = student(z)[-1]
                    row[kind].append(rms(made - x))
                row["residual"].append(rms(model.flow(made)[0] - z))
        results[name] = row
        print(f"{name:68}" + "".join(f"  {kind} {statistics.mean(values):.4f}" for kind, values in row.items()), flush=True)
    return {"steps": steps, "rows": results}


# --- Jacobi


@torch.no_grad()
def jacobi(tolerance: float = 1e-5) -> dict:
    results = {}
    for name in NAMES:
        model, rows = Farmer.from_pretrained(name), []
        _, z = prior_latents(model, torch.arange(64) % 10, seed=0)
        for number, block in reversed(list(enumerate(model.flow.blocks, start=1))):
            found, exact = invert_block(block, z, tolerance), block.inverse(z)
            row = {"block": number, "rounds": found.rounds.double().mean().item(), "most rounds": found.rounds.max().item()}
            rows.append(row | {"difference": (found.x - exact).abs().max().item()})
            z = exact
        results[f"{name}, trained, 64 images"] = rows
        print(f"{name}: rounds of each block, last first: " + ", ".join(f"{row['rounds']:.1f}" for row in rows), flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("students", "rivals", "attempts", "jacobi"))
    parser.add_argument("data", nargs="?", default="all", choices=(*STUDENTS, "all"), help="for students and rivals")
    arguments = parser.parse_args()
    if arguments.what == "rivals" and arguments.data not in (*RIVALS, "all"):
        parser.error(f"rivals are trained on {' and '.join(RIVALS)}, not on {arguments.data}")
    sentence = "the embedded students and the paper's, trained on the same teachers, by three seeds of sampling"
    experiment, seeds, sentence = {
        "students": (lambda: students(arguments.data), SEEDS, sentence),
        "rivals": (lambda: rivals(arguments.data), SEEDS, sentence),
        "attempts": (attempts, (0, 1), "students of the embedded glyphs trained in different ways"),
        "jacobi": (jacobi, (0,), "rounds of Jacobi iterations until values move by less than 1e-5; nothing was trained"),
    }[arguments.what]
    record("inversion_students" if arguments.what == "rivals" else f"inversion_{arguments.what}", experiment(), seeds, sentence)


if __name__ == "__main__":
    main()
