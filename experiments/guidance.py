"""Ways of sampling a guided mixture: are they right, what do they do to images, and how do they do on trained heads?

    python experiments/guidance.py mixtures          2-D pairs of mixtures against the truth on a grid: total variation, time
    python experiments/guidance.py samples digits    samples of the embedded model (or glyphs): class accuracy, Frechet distances
    python experiments/guidance.py heads             on trained heads in 3, 10 and 128 dimensions: effective sample sizes, and
                                                     both directions of the paper's temperature of component weights

`mixtures`: conditional mixtures with means N(0, 1.5^2) and deviations around 0.5; the unconditional one is a perturbed,
wider copy, its components in the same order (aligned) or not (shuffled). Three pairs of every kind, seeds 0 to 2; 20,000
draws each; histograms of 60 x 60 bins. The floor is the distance of as many draws from the truth itself. The posterior of
`PosteriorGuidance` is 0 there, so that all ways aim at the same density.

`samples`: 1,000 samples, seeds 0 to 2; distances in the features of a network trained on real images, and in pixels.
`heads`: 200 images each; all ways see the same pairs of mixtures.
"""
import argparse
import itertools
import math
import statistics
import time
from dataclasses import dataclass, replace

import torch
from measuring import draw, judge_of, judged, real_figures, record, train
from torch import Tensor

from farmer.analysis import VariationalGuidance
from farmer.data import ImageDataset, to_images, to_levels
from farmer.evaluation import FeatureStatistics, frechet_distance
from farmer.guidance import Draw, Guidance, PosteriorGuidance, RejectionGuidance, ResamplingGuidance, is_improper, resample
from farmer.mixture import GaussianMixture
from farmer.model import Farmer
from farmer.presets import PAPER_GUIDANCE

SCALES = (0.5, 1.0, 2.0, 4.0)
SEEDS = (0, 1, 2)


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

    def guide(self, conditional, unconditional, posterior, generator) -> Draw:
        value = paired_mixture(conditional, unconditional, self.scale).sample((1,), generator)
        return Draw(value, torch.ones_like(value[0, :, 0]), torch.zeros_like(value[0, :, 0], dtype=torch.bool))


@dataclass(frozen=True)
class PairedResamplingGuidance(Guidance):
    "Candidates from the paired mixture, weighed by p' over it."

    candidates: int = 10

    def guide(self, conditional, unconditional, posterior, generator) -> Draw:
        proposal = paired_mixture(conditional, unconditional, self.scale)
        values = proposal.sample((self.candidates,), generator)
        log_target = (1 + self.scale) * conditional.log_prob(values) - self.scale * unconditional.log_prob(values)
        return resample(values, log_target - proposal.log_prob(values), generator)


@dataclass(frozen=True)
class PerTokenGuidance(ResamplingGuidance):
    "The paper's guidance with a pool of its own for the redundant channels of every token."

    def draw_redundant(self, conditional, unconditional, tokens, generator=None) -> tuple[Tensor, None]:
        image = torch.arange(conditional.batch_shape[0]).repeat_interleave(tokens)
        each = [mixture[image, 0] for mixture in (conditional, unconditional)]  # batch shape (B N,)
        values = [self.proposal(mixture).sample((self.redundant_candidates,), generator) for mixture in each]
        drawn = resample(torch.cat(values), torch.cat(self.log_weights(*each, *values)), generator)
        return drawn.value[0].unflatten(0, (-1, tokens)), None


@dataclass(frozen=True)
class InformativeGuidance(ResamplingGuidance):
    "The paper's guidance of the informative channels only."

    draw_redundant = Guidance.draw_redundant


WAYS = {
    "naive (JetFormer)": RejectionGuidance,
    "paper, 5 + 5": ResamplingGuidance,
    "balance, 5 + 5 (default)": PosteriorGuidance,
    "paired closed form": PairedGuidance,
    "paired, 10 resampled": PairedResamplingGuidance,
    "variational, 2 steps": lambda scale: VariationalGuidance(scale, iterations=2),
    "variational, 8 steps": lambda scale: VariationalGuidance(scale, iterations=8),
    "variational, 24 steps": VariationalGuidance,
}


# --- 2-D mixtures against a grid

SIDE = torch.linspace(-9, 9, 361)
GRID = torch.cartesian_prod(SIDE, SIDE)
BINS = 60


def make_pair(components: int, aligned: bool, seed: int) -> tuple[GaussianMixture, GaussianMixture]:
    "Batch shape (1,): a conditional mixture and an unconditional one."
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    logits, mean, log_scale = normal(components), 1.5 * normal(components, 2), math.log(0.5) + 0.3 * normal(components, 2)
    other = [logits + 0.7 * normal(components), mean + 0.5 * normal(components, 2), log_scale + 0.25 + 0.15 * normal(components, 2).abs()]
    order = torch.arange(components) if aligned else torch.randperm(components, generator=generator)
    return GaussianMixture(logits[None], mean[None], log_scale[None]), GaussianMixture(*(parameter[None, order] for parameter in other))


def true_shares(conditional: GaussianMixture, unconditional: GaussianMixture, scale: float) -> Tensor:  # (361, 361)
    log_density = (1 + scale) * conditional.log_prob(GRID).double() - scale * unconditional.log_prob(GRID).double()
    return log_density.softmax(0).view(361, 361)


def distance_to_truth(values: Tensor, shares: Tensor) -> float:  # (n, 2), (361, 361)
    index = ((values - SIDE[0] + 0.025) / 0.3).floor().long().clamp(0, BINS - 1)
    found = torch.bincount(index[:, 0] * BINS + index[:, 1], minlength=BINS**2).view(BINS, BINS).double() / len(values)
    return 0.5 * (found - shares[:360, :360].reshape(BINS, 6, BINS, 6).sum((1, 3))).abs().sum().item()


def mixtures(draws: int = 20_000) -> dict:
    rows, seconds, copies = [], {name: 0.0 for name in WAYS}, torch.zeros(2000, dtype=torch.long)
    for components, aligned, scale, seed in itertools.product((4, 16), (True, False), (0.0, *SCALES), SEEDS):
        pair = make_pair(components, aligned, seed)
        assert not is_improper(*pair, scale)
        shares, many = true_shares(*pair, scale), [mixture[copies] for mixture in pair]
        generator = torch.Generator().manual_seed(seed)
        index = torch.multinomial(shares.flatten(), draws, replacement=True, generator=generator)
        exact = GRID[index] + 0.05 * (torch.rand(draws, 2, generator=generator) - 0.5)
        row = {"K": components, "aligned": aligned, "w": scale, "seed": seed, "floor": distance_to_truth(exact, shares)}
        for name, way in WAYS.items():
            started = time.perf_counter()
            parts = [way(scale).draw(*many, torch.zeros(2000), generator).value[0] for _ in range(draws // 2000)]
            seconds[name] += time.perf_counter() - started
            row[name] = distance_to_truth(torch.cat(parts), shares)
        rows.append(row)
    print("total variation to the truth: mean and largest, over K = 4 and 16, aligned and shuffled pairs, 3 of each")
    for name in ("floor", *WAYS):
        cells = [[row[name] for row in rows if row["w"] == scale] for scale in (0.0, *SCALES)]
        print(f"{name:26}" + "".join(f"{f'w={w:g} {statistics.mean(cell):.3f} ({max(cell):.2f})':>22}" for w, cell in zip((0, *SCALES), cells)))
    return {"rows": rows, "microseconds per draw": {name: s / len(rows) / draws * 1e6 for name, s in seconds.items()}}


# --- Samples of embedded models


def pixel_statistics(images: Tensor) -> FeatureStatistics:  # (n, C, H, W)
    return FeatureStatistics.of(images.flatten(1))


def of_dataset(dataset: ImageDataset) -> FeatureStatistics:
    return pixel_statistics(dataset.batch(range(min(len(dataset), 20_000)))[0])


def samples(data: str) -> dict:
    model, real, judge = Farmer.from_pretrained(data), real_figures(data), judge_of(data)
    pixels = {"training": of_dataset(judge.train), "held-out": of_dataset(judge.held_out)}
    ways = {"unguided": 0.0}
    for scale in (0.25, *SCALES):
        ways |= {f"default w={scale:g}": scale, f"paper w={scale:g}": ResamplingGuidance(scale)}
    ways |= {f"naive w={scale:g}": RejectionGuidance(scale) for scale in (1.0, 4.0)} | {"variational w=1": VariationalGuidance(1.0)}
    ways |= {"paper, pool per token w=4": PerTokenGuidance(4.0), "paper, z^I only w=4": InformativeGuidance(4.0)}
    ways["paper-1.1b-p16"] = paper = PAPER_GUIDANCE["paper-1.1b-p16"]
    ways["paper-1.1b-p16, flatten"] = replace(paper, temperature_direction="flatten")
    ways["paper-1.1b-p16, T_pi,v = 1"] = replace(paper, weighing_weight_temperature=1.0)
    names = {"class accuracy": "class accuracy", "Frechet distance to training images": "to training images", "Frechet distance": "to held-out images"}
    keys = {"judge on held-out images": "classifier on real images", "training to held-out": "Frechet distance of training to held-out images"}
    result = {key: real[name] for key, name in keys.items()}
    print(f"{data}: " + ", ".join(f"{key} {value:.3f}" for key, value in result.items()))
    result |= {"training to held-out, pixels": frechet_distance(*pixels.values())}
    for way, guidance in ways.items():
        drawn = [draw(model, seed, 1000, guidance=guidance) for seed in SEEDS]
        rows = [judged(data, *each) for each in drawn]
        seen = [pixel_statistics(to_images(to_levels(images, judge.train.levels), judge.train.levels)) for images, _ in drawn]
        result[way] = {name: [row[key] for row in rows] for key, name in names.items()}
        result[way] |= {f"pixels, to {name} images": [frechet_distance(each, pixels[name]) for each in seen] for name in pixels}
        cells = [f"{name} {statistics.mean(values):6.3f} ± {statistics.stdev(values):.3f}" for name, values in result[way].items()]
        print(f"{way:28}" + ", ".join(cells), flush=True)
    return result


# --- Trained heads


def pairs_seen(model: Farmer, images: int, scale: float) -> tuple[GaussianMixture, GaussianMixture, Tensor]:
    "The mixtures with the class and without that the default way of guiding saw, batch shape (images N,), and p(class | tokens so far)."
    labels = torch.arange(images) % model.config.num_classes
    latents = model.sample_latents(labels, guidance=scale, generator=torch.Generator().manual_seed(0))
    mixtures = [model.prior.mixtures(latents.informative, each)[0] for each in (labels, torch.full_like(labels, model.null_class))]
    flat = [GaussianMixture(*(p.flatten(0, 1) for p in (m.logits, m.component_mean, m.component_log_scale))) for m in mixtures]
    return *flat, model.prior.turn(latents.report.log_posterior[:, :-1]).exp().flatten()


def directions(conditional: GaussianMixture, unconditional: GaussianMixture) -> dict[str, float]:  # batch shape (B,)
    """The paper's settings of 1.1B, patch 16, and what the temperature of the component weights does when weighing.

    The weight of the largest component, how many equally good candidates the same ten are worth, and the total variation
    between the probabilities that two readings give them; means over tokens.
    """
    way = PAPER_GUIDANCE["paper-1.1b-p16"]
    readings = {"none": replace(way, weighing_weight_temperature=1.0), "sharpen": way, "flatten": replace(way, temperature_direction="flatten")}
    generator = torch.Generator().manual_seed(1)
    values = [way.proposal(mixture).sample((5,), generator) for mixture in (conditional, unconditional)]
    chances = {name: torch.cat(each.log_weights(conditional, unconditional, *values)).softmax(0) for name, each in readings.items()}
    sizes = {"largest weight": conditional.logits.softmax(-1).amax(-1).mean().item()}
    sizes |= {f"worth, {name}": (1 / chance.square().sum(0)).mean().item() for name, chance in chances.items()}
    pairs = itertools.combinations(chances, 2)
    return sizes | {f"{a} to {b}": 0.5 * (chances[a] - chances[b]).abs().sum(0).mean().item() for a, b in pairs}


@torch.no_grad()
def heads(images: int = 200) -> dict:
    ways = {
        "paper, 5 + 5": ResamplingGuidance, "balance, 5 + 5": PosteriorGuidance, "balance, posterior": PosteriorGuidance,
        "paired, 10 resampled": PairedResamplingGuidance, "variational, 24 steps": VariationalGuidance,
    }  # fmt: skip
    models = {"digits": Farmer.from_pretrained("digits"), "glyphs": Farmer.from_pretrained("glyphs"), "128": train("guidance, 128 channels", 0).ema}
    result = {}
    print(f"effective sample size of 10 candidates at w = {SCALES}: mean over tokens (median)")
    for name, model in models.items():
        pairs = {scale: pairs_seen(model, images, scale) for scale in SCALES}
        improper = [is_improper(*pair[:2], scale).float().mean().item() for scale, pair in pairs.items()]
        result[name] = {"dimensions": model.partition.informative, "improper": improper}
        print(f"{name}: d_I = {model.partition.informative}; improper tokens " + ", ".join(f"{value:.1%}" for value in improper))
        for way, make in ways.items():
            settled = 1.0 if way == "balance, posterior" else 0.0
            sizes = [make(w).draw(c, u, settled * r, torch.Generator().manual_seed(1)).effective_sample_size for w, (c, u, r) in pairs.items()]
            result[name][way] = [(size.mean().item(), size.median().item()) for size in sizes]
            print(f"  {way:24}" + "".join(f"{f'{mean:.2f} ({median:.2f})':>16}" for mean, median in result[name][way]), flush=True)
        found = directions(*pairs_seen(model, images, PAPER_GUIDANCE["paper-1.1b-p16"].scale)[:2])
        result[name]["weight temperature"] = found
        print("  weight temperature 0.2: " + ", ".join(f"{key} {value:.2f}" for key, value in found.items()), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("mixtures", "samples", "heads"))
    parser.add_argument("model", nargs="?", choices=("digits", "glyphs"), default="digits", help="for samples")
    arguments = parser.parse_args()
    if arguments.what == "samples":
        what = f"1,000 samples of the embedded {arguments.model} for each way of guiding and each seed of sampling; nothing was trained"
        record(f"guidance_samples_{arguments.model}", samples(arguments.model), SEEDS, what)
    elif arguments.what == "mixtures":
        record("guidance_mixtures", mixtures(), SEEDS, "made-up pairs of 2-D mixtures, 20,000 draws of each way of guiding")
    else:
        record("guidance_heads", heads(), (0,), "200 images of two embedded models, and of one trained here with 128 informative channels")


if __name__ == "__main__":
    main()
