"""Ways of sampling a guided mixture: are they right, what do they cost, and what do they do to images?

    python benchmarks/guidance.py mixtures          2-D pairs of mixtures against the truth on a grid: total variation, time
    python benchmarks/guidance.py samples digits    samples of the embedded model (or glyphs): class accuracy, Frechet distance
    python benchmarks/guidance.py heads             effective sample sizes on trained heads in 3, 10 and 128 dimensions
    python benchmarks/guidance.py time              guided over unguided sampling time, same batch

`mixtures`: conditional mixtures with means N(0, 1.5^2) and deviations around 0.5; the unconditional one is a perturbed,
wider copy, its components in the same order (aligned) or not (shuffled). Three pairs of every kind, seeds 0 to 2; 20,000
draws each; histograms of 60 x 60 bins. The floor is the distance of as many draws from the truth itself. The posterior of
`PosteriorGuidance` is 0 there, so that all ways aim at the same density.

`samples`: 1,000 samples, seeds 0 to 2, mean and standard deviation. A small convolutional network trained on the training
images (with noise, two minutes at most) judges the class; the Frechet distance is that of its 64 features, to all
training images and to all held-out ones. Each mode also writes its numbers to a JSON file beside this script.
"""
import argparse
import json
import math
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from farmer.cli import PRESETS
from farmer.data import load_dataset
from farmer.guidance import (
    Draw, Guidance, PosteriorGuidance, RejectionGuidance, ResamplingGuidance, VariationalGuidance, draw_unguided, is_improper, resample,
    sample_guided, PAPER_GUIDANCE,
)
from farmer.mixture import GaussianMixture
from farmer.model import Farmer, Latents
from farmer.training import Trainer

SCALES = (0.5, 1.0, 2.0, 4.0)


# --- Ways that are not in the library


def paired_mixture(conditional: GaussianMixture, unconditional: GaussianMixture, scale: float) -> GaussianMixture:
    "Component k of one mixture guided by component k of the other, in closed form; the conditional's width where that is improper."
    own, other = (torch.exp(-2 * mixture.component_log_scale) for mixture in (conditional, unconditional))
    linear = (1 + scale) * own * conditional.component_mean - scale * other * unconditional.component_mean
    precision = (1 + scale) * own - scale * other
    precision = torch.where(precision > 0, precision, own)
    logits = sum(
        factor * (mixture.logits.log_softmax(-1) - mixture.component_log_scale.sum(-1) - 0.5 * (p * mixture.component_mean.square()).sum(-1))
        for factor, mixture, p in ((1 + scale, conditional, own), (-scale, unconditional, other))
    )
    logits = logits + 0.5 * (linear.square() / precision).sum(-1) - 0.5 * precision.log().sum(-1)
    return GaussianMixture(logits, linear / precision, -0.5 * precision.log())


@dataclass(frozen=True)
class PairedGuidance(Guidance):
    "Drawn from the paired mixture as if that were p'."

    def draw(self, conditional, unconditional, posterior, generator=None) -> Draw:
        return draw_unguided(paired_mixture(conditional, unconditional, self.scale), generator)


@dataclass(frozen=True)
class PairedResamplingGuidance(Guidance):
    "Candidates from the paired mixture, weighed by p' over it."

    candidates: int = 10

    def draw(self, conditional, unconditional, posterior, generator=None) -> Draw:
        proposal = paired_mixture(conditional, unconditional, self.scale)
        values = proposal.sample((self.candidates,), generator)
        log_target = (1 + self.scale) * conditional.log_prob(values) - self.scale * unconditional.log_prob(values)
        return resample(values, log_target - proposal.log_prob(values), generator)


@dataclass(frozen=True)
class MetropolisGuidance(Guidance):
    "Independence Metropolis-Hastings with proposals from p_c and p_u by halves: slow, and right in the end."

    steps: int = 300

    def draw(self, conditional, unconditional, posterior, generator=None) -> Draw:
        def log_weight(value: Tensor) -> Tensor:
            own, other = conditional.log_prob(value), unconditional.log_prob(value)
            return (1 + self.scale) * own - self.scale * other - torch.logaddexp(own, other)

        def coin(like: Tensor) -> Tensor:
            return torch.rand(like.shape[:-1], generator=generator, dtype=like.dtype, device=like.device)

        value = conditional.sample((), generator)
        weight = log_weight(value)
        for _ in range(self.steps):
            own, other = conditional.sample((), generator), unconditional.sample((), generator)
            proposed = torch.where(coin(own).unsqueeze(-1) < 0.5, own, other)
            proposed_weight = log_weight(proposed)
            accepted = coin(own).log() < proposed_weight - weight
            value, weight = torch.where(accepted.unsqueeze(-1), proposed, value), torch.where(accepted, proposed_weight, weight)
        return Draw(value.unsqueeze(0), torch.ones_like(weight), torch.zeros_like(accepted))


WAYS = {
    "naive (JetFormer)": RejectionGuidance,
    "paper, 5 + 5": ResamplingGuidance,
    "balance, 5 + 5 (default)": PosteriorGuidance,
    "balance, 50 + 50": lambda scale: PosteriorGuidance(scale, candidates=50),
    "paired closed form": PairedGuidance,
    "paired, 10 resampled": PairedResamplingGuidance,
    "variational, 2 steps": lambda scale: VariationalGuidance(scale, iterations=2),
    "variational, 8 steps": lambda scale: VariationalGuidance(scale, iterations=8),
    "variational, 24 steps": VariationalGuidance,
    "Metropolis, 300 steps": MetropolisGuidance,
}


# --- 2-D mixtures against a grid

SIDE = torch.linspace(-9, 9, 361)
GRID = torch.cartesian_prod(SIDE, SIDE)
BINS = 60


def make_pair(components: int, aligned: bool, seed: int) -> tuple[GaussianMixture, GaussianMixture]:
    "Batch shape (): a conditional mixture and an unconditional one."
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator)
    logits, mean, log_scale = draw(components), 1.5 * draw(components, 2), math.log(0.5) + 0.3 * draw(components, 2)
    other = [logits + 0.7 * draw(components), mean + 0.5 * draw(components, 2), log_scale + 0.25 + 0.15 * draw(components, 2).abs()]
    if not aligned:
        order = torch.randperm(components, generator=generator)
        other = [parameter[order] for parameter in other]
    return GaussianMixture(logits, mean, log_scale), GaussianMixture(*other)


def true_shares(conditional: GaussianMixture, unconditional: GaussianMixture, scale: float) -> Tensor:  # (361, 361)
    log_density = (1 + scale) * conditional.log_prob(GRID).double() - scale * unconditional.log_prob(GRID).double()
    return log_density.softmax(0).view(361, 361)


def histogram(values: Tensor) -> Tensor:  # (n, 2) -> (60, 60)
    index = ((values - SIDE[0] + 0.025) / 0.3).floor().long().clamp(0, BINS - 1)
    return torch.bincount(index[:, 0] * BINS + index[:, 1], minlength=BINS**2).view(BINS, BINS).double() / len(values)


def distance_to_truth(values: Tensor, shares: Tensor) -> float:
    return 0.5 * (histogram(values) - shares[:360, :360].reshape(BINS, 6, BINS, 6).sum((1, 3))).abs().sum().item()


def spread(pair: tuple[GaussianMixture, GaussianMixture], draws: int) -> list[GaussianMixture]:
    "The same mixtures with batch shape (draws,), without copies."
    return [GaussianMixture(*(p.expand(draws, *p.shape) for p in (m.logits, m.component_mean, m.component_log_scale))) for m in pair]


def mixtures(draws: int = 20_000) -> dict:
    rows, seconds = [], {name: 0.0 for name in WAYS}
    for components in (4, 16):
        for aligned in (True, False):
            for scale in (0.0, *SCALES):
                for seed in range(3):
                    pair = make_pair(components, aligned, seed)
                    assert not is_improper(*pair, scale)
                    shares = true_shares(*pair, scale)
                    generator = torch.Generator().manual_seed(seed)
                    index = torch.multinomial(shares.flatten(), draws, replacement=True, generator=generator)
                    exact = GRID[index] + 0.05 * (torch.rand(draws, 2, generator=generator) - 0.5)
                    row = {"K": components, "aligned": aligned, "w": scale, "seed": seed, "floor": distance_to_truth(exact, shares)}
                    for name, way in WAYS.items():
                        started = time.perf_counter()
                        parts = [
                            way(scale).draw(*spread(pair, 2000), torch.zeros(2000), generator).value[0] for _ in range(draws // 2000)
                        ]
                        seconds[name] += time.perf_counter() - started
                        row[name] = distance_to_truth(torch.cat(parts), shares)
                    rows.append(row)
    print("mean total variation to the truth over aligned and shuffled pairs, 3 of each; in brackets the largest")
    cases = [(components, scale) for components in (4, 16) for scale in (0.0, *SCALES)]
    print(f"{'':26}" + "".join(f"{f'K={k} w={w:g}':>13}" for k, w in cases) + "   us/draw")
    for name in ("floor", *WAYS):
        cells = []
        for components, scale in cases:
            values = [row[name] for row in rows if (row["K"], row["w"]) == (components, scale)]
            cells.append(f"{statistics.mean(values):.3f} ({max(values):.2f})")
        cost = "" if name == "floor" else f"{seconds[name] / len(rows) / draws * 1e6:10.1f}"
        print(f"{name:26}" + "".join(f"{cell:>13}" for cell in cells) + cost)
    for name in list(WAYS)[1:]:
        worse = sum(row[name] > row["paper, 5 + 5"] + 0.01 for row in rows)
        high = sum(row[name] > 0.05 + max(0, row["floor"] - 0.03) for row in rows)
        print(f"{name:26} worse than the paper's by over .01 in {worse:2} of {len(rows)} cases; above .05 (plus what the floor has above .03) in {high:2}")
    return {"rows": rows, "microseconds per draw": {name: s / len(rows) / draws * 1e6 for name, s in seconds.items()}}


# --- Samples of trained models


class Judge(nn.Module):
    "A small convolutional classifier; its 64 features are what the Frechet distance compares."

    def __init__(self, image_shape: tuple[int, int, int], classes: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(image_shape[0], 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 64, 3, 2, padding=1), nn.GELU(),
            nn.Conv2d(64, 64, 3, 2 if image_shape[1] > 8 else 1, padding=1), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
            nn.Dropout(0.3), nn.Linear(1024, 64),
        )  # fmt: skip
        self.classes = nn.Sequential(nn.GELU(), nn.Linear(64, classes))

    def forward(self, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B, classes)
        return self.classes(self.features(images))


def train_judge(images: Tensor, labels: Tensor, classes: int, steps: int = 1000) -> Judge:
    torch.manual_seed(0)
    judge = Judge(images.shape[1:], classes)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(images), (128,))
        noisy = images[chosen] + 0.1 * torch.randn_like(images[chosen])
        loss = nn.functional.cross_entropy(judge(noisy), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


def frechet_distance(first: Tensor, second: Tensor) -> float:  # (n, F), (m, F)
    first, second = first.double(), second.double()
    a, b = torch.cov(first.T), torch.cov(second.T)
    cross = torch.linalg.eigvals(a @ b).real.clamp(min=0).sqrt().sum()
    return ((first.mean(0) - second.mean(0)).square().sum() + a.trace() + b.trace() - 2 * cross).item()


@dataclass(frozen=True)
class PerTokenGuidance(ResamplingGuidance):
    "The paper's guidance with a pool of its own for the redundant channels of every token."

    def draw_redundant(self, conditional, unconditional, tokens, generator=None):
        counts = (tokens * self.conditional_candidates, tokens * self.unconditional_candidates)
        pool, log_weight = self.candidates(conditional, unconditional, counts, generator)  # (S N, B, 1, D), (S N, B, 1)
        batch = pool.shape[1]
        pool, log_weight = pool.view(-1, tokens * batch, pool.shape[-1]), log_weight.view(-1, tokens * batch)
        return resample(pool, log_weight, generator).value[0].view(tokens, batch, -1).transpose(0, 1), None


@dataclass(frozen=True)
class InformativeGuidance(ResamplingGuidance):
    "The paper's guidance of the informative channels only."

    draw_redundant = Guidance.draw_redundant


@torch.no_grad()
def samples(name: str, count: int = 1000, seeds: int = 3) -> dict:
    train, test = load_dataset(name, "train"), load_dataset(name, "test")
    (images, labels), (held_out, held_out_labels) = train.batch(range(min(len(train), 20_000))), test.batch(range(len(test)))
    with torch.enable_grad():
        judge = train_judge(images, labels, train.num_classes)
    references = {"training images": judge.features(images), "held-out images": judge.features(held_out)}
    real = (judge(held_out).argmax(1) == held_out_labels).float().mean().item()
    between = frechet_distance(*references.values())
    print(f"{name}: the judge reads {real:.1%} of held-out images; Frechet distance of training to held-out images {between:.1f}")
    model = Farmer.from_pretrained(name)
    wanted = torch.arange(train.num_classes).repeat(count // train.num_classes)
    ways = {"unguided": 0.0}
    for scale in (0.25, 0.5, 1.0, 2.0, 4.0):
        ways |= {f"default w={scale:g}": scale, f"paper w={scale:g}": ResamplingGuidance(scale)}
    for scale in (1.0, 4.0):
        ways |= {
            f"paper, pool per token w={scale:g}": PerTokenGuidance(scale),
            f"paper, z^I only w={scale:g}": InformativeGuidance(scale),
            f"naive w={scale:g}": RejectionGuidance(scale),
            f"variational w={scale:g}": VariationalGuidance(scale),
        }
    ways |= {preset: PAPER_GUIDANCE[preset] for preset in PAPER_GUIDANCE}
    result = {"judge on held-out images": real, "training to held-out": between}
    print(f"{'':32}{'class accuracy':>17}{'to training images':>22}{'to held-out images':>22}")
    for way, guidance in ways.items():
        rows = []
        for seed in range(seeds):
            latents, report = model.sample_latents(wanted, torch.Generator().manual_seed(seed), guidance=guidance, return_report=True)
            drawn = model.decode(latents).clamp(-1, 1)
            features = judge.features(drawn)
            rows.append(
                [(judge(drawn).argmax(1) == wanted).float().mean().item(), *(frechet_distance(features, reference) for reference in references.values())]
            )
        columns = list(zip(*rows))
        result[way] = {"class accuracy": columns[0], "to training images": columns[1], "to held-out images": columns[2]}
        if report is not None:
            result[way]["report of the last seed"] = report.summary()
        cells = [f"{statistics.mean(c):.{digits}f} ± {statistics.stdev(c):.{digits}f}" for c, digits in zip(columns, (3, 1, 1))]
        print(f"{way:32}{cells[0]:>17}{cells[1]:>22}{cells[2]:>22}   {report.summary() if report else ''}", flush=True)
    for scale in (1.0, 4.0):
        for average in (False, True):
            drawn = sample_knowing_all_classes(model, wanted, scale, average, torch.Generator().manual_seed(0)).clamp(-1, 1)
            accuracy = (judge(drawn).argmax(1) == wanted).float().mean().item()
            distance = frechet_distance(judge.features(drawn), references["held-out images"])
            name = f"default w={scale:g}, exact r" + (" and class-average p_u" if average else "") + ", seed 0"
            result[name] = {"class accuracy": accuracy, "to held-out images": distance}
            print(f"{name:48} class accuracy {accuracy:.3f}, Frechet distance to held-out images {distance:.1f}")
    for column in ("to training images", "to held-out images"):
        for way in ("default", "paper"):
            four, one = (statistics.mean(result[f"{way} w={scale}"][column]) for scale in (4, 1))
            print(f"Frechet distance {column}, w=4 over w=1: {way} {four / one:.2f}")
    return result


@torch.inference_mode()
def sample_knowing_all_classes(model: Farmer, labels: Tensor, scale: float, average: bool, generator: torch.Generator) -> Tensor:
    """Images by the default way, with r the exact posterior over all classes, each read by the prior (not only the null class).

    With `average`, p_u is the average of all classes by that posterior, too: then Bayes' rule holds exactly.
    """
    prior, classes, batch = model.prior, model.config.num_classes, torch.arange(len(labels))
    informative = prior.position.new_empty(len(labels), prior.tokens, prior.partition.informative)
    log_likelihood = informative.new_zeros(classes, len(labels))
    cache = prior.transformer.new_cache((classes + 1) * len(labels), prior.condition_repeats + prior.tokens)
    hidden = prior.transformer(prior.prefix(torch.arange(classes + 1).repeat_interleave(len(labels))), cache)[:, -1]
    for i in range(prior.tokens):
        predicted = prior.informative_head(hidden)
        parts = [p.unflatten(0, (classes + 1, -1)) for p in (predicted.logits, predicted.component_mean, predicted.component_log_scale)]
        every = [GaussianMixture(*(p[c] for p in parts)) for c in range(classes + 1)]
        log_posterior = log_likelihood.log_softmax(0)
        unconditional, posterior = every[-1], log_posterior[labels, batch].exp()
        if average:
            logits = torch.cat([m.logits.log_softmax(-1) + share.unsqueeze(-1) for m, share in zip(every, log_posterior)], -1)
            unconditional = GaussianMixture(logits, *(p[:-1].transpose(0, 1).flatten(1, 2) for p in parts[1:]))
            posterior = torch.zeros_like(posterior)
        conditional = GaussianMixture(*(p[labels, batch] for p in parts))
        informative[:, i] = PosteriorGuidance(scale).draw(conditional, unconditional, posterior, generator).value[0]
        log_likelihood = log_likelihood + torch.stack([mixture.log_prob(informative[:, i]) for mixture in every[:-1]])
        read = prior.input(informative[:, i]) + prior.position[prior.condition_repeats + i]
        hidden = prior.transformer.step(read.repeat(classes + 1, 1), cache)
    own = hidden.unflatten(0, (classes + 1, -1))[labels, batch]
    redundant = prior.redundant_mixture(own).sample((prior.tokens,), generator).squeeze(2).transpose(0, 1)
    return model.decode(Latents(model.reading_order(informative), model.reading_order(redundant)))


# --- Trained heads


@torch.enable_grad()
def model_128() -> Farmer:
    "A model of colour glyphs whose tokens have 128 informative channels of 192; trained once, about four minutes."
    folder = Path("runs/guidance-128")
    if not (folder / "model").is_dir():
        preset = PRESETS["glyphs-field"]
        torch.manual_seed(0)
        config = replace(preset.model, patch_size=8, informative_channels=128, levels=32)
        train, test = (load_dataset("glyphs-field", split) for split in ("train", "test"))
        training = replace(preset.training, steps=1500, evaluate_every=1500, save_every=1500)
        trainer = Trainer(Farmer(config), train, test, training, folder, "cpu")
        trainer.train()
        trainer.average.module.save_pretrained(folder / "model")
    return Farmer.from_pretrained(folder / "model")


@dataclass(frozen=True)
class Recorder(Guidance):
    "Draws by another way while it keeps the mixtures that it sees."

    way: Guidance = None
    seen: list = None

    def __post_init__(self):
        pass

    def draw(self, conditional, unconditional, posterior, generator=None) -> Draw:
        self.seen.append((conditional, unconditional, posterior))
        return self.way.draw(conditional, unconditional, posterior, generator)


@torch.no_grad()
def heads(images: int = 200) -> dict:
    ways = {
        "paper, 5 + 5": ResamplingGuidance, "balance, 5 + 5": PosteriorGuidance, "balance, posterior": PosteriorGuidance,
        "paired, 10 resampled": PairedResamplingGuidance, "variational, 24 steps": VariationalGuidance,
    }  # fmt: skip
    result = {}
    print("effective sample size of 10 candidates: mean over tokens (median); all ways see the same pairs of trained heads")
    for name, model in {"digits": Farmer.from_pretrained("digits"), "glyphs": Farmer.from_pretrained("glyphs"), "128": model_128()}.items():
        dimensions = model.partition.informative
        print(f"\n{name}: d_I = {dimensions}, {model.config.tokens} tokens" + "".join(f"{f'w={scale:g}':>16}" for scale in SCALES))
        pairs = {}
        for scale in SCALES:
            recorder = Recorder(scale, PosteriorGuidance(scale), [])
            sample_guided(model.prior, torch.arange(images) % 10, recorder, torch.Generator().manual_seed(0))
            pairs[scale] = recorder.seen
        improper = [torch.stack([is_improper(*pair[:2], scale) for pair in pairs[scale]]).float().mean().item() for scale in SCALES]
        print(f"{'improper tokens':32}" + "".join(f"{value:>16.1%}" for value in improper))
        result[name] = {"dimensions": dimensions, "improper": improper}
        for way, make in ways.items():
            cells = []
            for scale in SCALES:
                sizes = torch.stack([
                    make(scale).draw(c, u, r if way == "balance, posterior" else torch.zeros_like(r), torch.Generator().manual_seed(1)).effective_sample_size
                    for c, u, r in pairs[scale]
                ])  # fmt: skip
                cells.append((sizes.mean().item(), sizes.median().item()))
            result[name][way] = cells
            print(f"{way:32}" + "".join(f"{f'{mean:.2f} ({median:.2f})':>16}" for mean, median in cells), flush=True)
    return result


# --- Time


def timings(repeats: int = 7) -> dict:
    result = {}
    for name in ("digits", "glyphs"):
        model = Farmer.from_pretrained(name)
        for batch in (100, 1000):
            labels = torch.arange(batch) % 10
            ways = {"unguided": 0.0, "default": 2.0, "paper": ResamplingGuidance(2.0), "variational": VariationalGuidance(2.0), "naive": RejectionGuidance(2.0)}
            best = {way: math.inf for way in ways}
            for _ in range(repeats):
                for way, guidance in ways.items():
                    started = time.perf_counter()
                    model.sample(labels, torch.Generator().manual_seed(0), guidance=guidance)
                    best[way] = min(best[way], time.perf_counter() - started)
            result[f"{name}, {batch}"] = best
            print(f"{name}, {batch} images, {torch.get_num_threads()} threads: unguided {best['unguided']:.3f} s; over that: "
                  + ", ".join(f"{way} {seconds / best['unguided']:.2f}x" for way, seconds in best.items() if way != "unguided"), flush=True)  # fmt: skip
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("mixtures", "samples", "heads", "time"))
    parser.add_argument("model", nargs="?", choices=("digits", "glyphs"), default="digits", help="for samples")
    arguments = parser.parse_args()
    run = {"mixtures": mixtures, "samples": lambda: samples(arguments.model), "heads": heads, "time": timings}[arguments.mode]
    name = arguments.mode + (f"_{arguments.model}" if arguments.mode == "samples" else "")
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), **run()}
    Path(__file__).with_name(f"guidance_{name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
