"""How the experiments train and measure: one judge, one way to train, one `measure`, one `record`.

Scripts beside this one say which conditions and which figures. A run is kept in a folder of its own with its figures, so that
the same command goes on where it was stopped.
"""
import json
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from conditions import CONDITIONS, Condition
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from farmer.analysis import probes, redraw_redundant, swap_redundant
from farmer.data import ArrayDataset, ImageDataset, load_dataset, to_images, to_levels
from farmer.demo import pixel_histogram_bits
from farmer.evaluation import FeatureStatistics, Reference, SmallClassifier, extract, frechet_distance, sample_figures, train_classifier
from farmer.files import spread
from farmer.guidance import Guidance
from farmer.model import Farmer, Latents
from farmer.objectives import Likelihood, evaluate_bits_per_dim
from farmer.patches import LUMA_CHROMA, ChannelBasis, dequantize, patchify, principal_components
from farmer.presets import PRESETS, Preset
from farmer.training import Trainer, read_log

ROOT = Path(__file__).resolve().parent
RUNS = ROOT.parent / "runs" / "experiments"
RESULTS = ROOT.parent / "farmer" / "results"  # in the package, where the lessons find them wherever they run
FOLDERS = {}  # of data that are not a data set's name: "cifar10" -> where another copy of it lies

# Letters used for shapes:
# B batch, n images, C H W channels, height and width of an image


# --- The judge


class Judge(NamedTuple):
    "Real images, and the small classifier that reads samples and whose features the Frechet distance compares."

    train: ImageDataset
    held_out: ImageDataset
    extractor: SmallClassifier
    real: Reference  # the held-out images
    training: FeatureStatistics  # up to 20,000 training images


def interleave(images: Tensor) -> Tensor:  # (..., 16, 16) -> (..., 16, 16); its own inverse
    "Row and column 4 i + j go to 4 j + i: a patch of 4 x 4 then holds pixels that were four apart, and neighbours are in other patches."
    order = torch.arange(16).view(4, 4).T.flatten()
    return images[..., order, :][..., order]


@cache
@torch.enable_grad()  # whoever asks first
def judge_of(data: str) -> Judge:
    "Trained on the training images, with a fixed seed; interleaved glyphs are judged as glyphs."
    if data == "interleaved glyphs":
        judge = judge_of("glyphs")
        train, held_out = (ArrayDataset(interleave(part.values), part.labels, part.levels, part.class_names) for part in judge[:2])
        return judge._replace(train=train, held_out=held_out)
    source = PRESETS[data].data
    train, held_out = (load_dataset(FOLDERS.get(source, source), split, image_size=PRESETS[data].model.image_shape[1]) for split in ("train", "test"))
    extractor = train_classifier(train)
    see = lambda dataset: extract(extractor, dataset.batch(range(min(len(dataset), 20_000)))[0])
    return Judge(train, held_out, extractor, Reference.of(see(held_out)), FeatureStatistics.of(see(train).pooled))


def classes_read(data: str, images: Tensor) -> Tensor:  # (B, C, H, W) -> (B,)
    return extract(judge_of(data).extractor, images).logits.argmax(1)


def judged(data: str, images: Tensor, labels: Tensor) -> dict[str, float]:
    "Figures of images that were asked for with these labels, rounded to the data's levels."
    judge = judge_of(data)
    images = to_images(to_levels(images, judge.train.levels), judge.train.levels)
    features = extract(judge.extractor, interleave(images) if data == "interleaved glyphs" else images)
    figures = sample_figures(features, labels, judge.real)
    return figures | {"Frechet distance to training images": frechet_distance(FeatureStatistics.of(features.pooled), judge.training)}


def real_figures(data: str) -> dict[str, float]:
    "What to hold a model's figures against."
    train, held_out, _, real, training = judge_of(data)
    images, labels = held_out.batch(range(len(held_out)))
    return {
        "classifier on real images": (classes_read(data, images) == labels).double().mean().item(),
        "pixel histogram bits/dim": pixel_histogram_bits(train.batch(range(len(train)))[0], images, train.levels),
        "Frechet distance of training to held-out images": frechet_distance(training, real.statistics),
    }


# --- Colour images: chroma of 4 x 4 tiles, in units of the image's [0, 1]

SCALES = (0, 0.5, 1, 2, 4)  # of the variance of the shared mixture
CORNERS = [0, 15]  # the tokens that are first in some block of the flow


def tiles(images: Tensor) -> Tensor:  # (B, 3, 16, 16) -> (B, 16 tiles, 2 chroma axes, 16 pixels)
    planes = patchify(images.clamp(-1, 1), 4).unflatten(2, (3, 16)) / 2
    return torch.einsum("kc,bncp->bnkp", LUMA_CHROMA[1:].float(), planes)


@cache
def usual_directions(data: str) -> Tensor:  # (16, r)
    "Directions of a tile's chroma with 99% of its variance in real images."
    samples = tiles(judge_of(data).train.batch(range(6000))[0]).flatten(0, 2)
    components = principal_components(samples).float().T
    variance = (samples @ components).square().mean(0)
    return components[:, : int((variance.cumsum(0) < 0.99 * variance.sum()).sum()) + 1]


def speckle(data: str, images: Tensor) -> dict[str, float]:
    "Root mean square of the chroma that real tiles hardly hold, in corner tiles, in the others, and the ratio."
    chroma, directions = tiles(images), usual_directions(data)
    rest = (chroma - chroma @ directions @ directions.T).square().mean((0, 2, 3))  # (16,)
    others = [index for index in range(16) if index not in CORNERS]
    corner, other = rest[CORNERS].mean().sqrt().item(), rest[others].mean().sqrt().item()
    return {"speckle, corner": corner, "speckle, elsewhere": other, "speckle, ratio": corner / other}


def colour_figures(model: Farmer, data: str, drawn: Tensor, seed: int) -> dict[str, float]:
    """Whether z^R is colour and z^I the digit, on all held-out images, and specks in the samples that were drawn.

    A swap gives an image the z^R of the next one, another digit: how often the digit is still read, and how the tiles' chroma
    correlates with that of the image that gave z^R. The variance is that of the shared mixture, when z^R is drawn anew.
    """
    held_out = judge_of(data).held_out
    images, labels = held_out.batch(range(len(held_out)))
    latents = model.encode(dequantize(images, held_out.levels, torch.Generator().manual_seed(1)))
    read = lambda images: (classes_read(data, images) == labels).double().mean().item()
    donor = torch.arange(len(images)).roll(-1)
    swapped = model.decode(swap_redundant(latents, Latents(latents.informative[donor], latents.redundant[donor])))
    chroma = torch.stack([tiles(shown).mean(3).flatten() for shown in (swapped, images[donor])])
    row = {"swap, digit kept": read(swapped), "swap, chroma of donor": torch.corrcoef(chroma)[0, 1].item()}
    for scale in SCALES:
        redrawn = redraw_redundant(model, latents, labels, scale, torch.Generator().manual_seed(seed))
        row[f"variance x {scale:g}, digit read"] = read(model.decode(redrawn))
    return row | speckle(data, drawn)


# --- Photographs: Figure 7 of the paper in numbers


def luma(images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, pixels)
    return images.clamp(-1, 1).mean(1).flatten(1)


def chroma(images: Tensor) -> Tensor:  # (B, 3, H, W) -> (B, 2 pixels)
    return torch.einsum("kc,bchw->bkhw", LUMA_CHROMA[1:].float(), images.clamp(-1, 1)).flatten(1)


def correlation(first: Tensor, second: Tensor) -> float:  # 2 x (B, n)
    "Over all pixels of all images."
    return torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()


def out_of_range(images: Tensor) -> float:
    "Share of images of which more than 1% of the pixels' values lie outside [-1.5, 1.5]."
    return ((images.abs() > 1.5).flatten(1).double().mean(1) > 0.01).double().mean().item()


def photograph_figures(model: Farmer, data: str, seed: int, count: int = 500) -> dict[str, float]:
    """What z^R holds, on held-out images: z^R drawn anew with the variance of the shared mixture scaled, or taken from the next image.

    Correlations with the original's luma and chroma; after a swap with those of the receiver, who keeps z^I, and of the giver.
    """
    held_out = judge_of(data).held_out
    images, labels = held_out.batch(spread(count, len(held_out)))
    latents = model.encode(dequantize(images, held_out.levels, torch.Generator().manual_seed(1)))
    row = {}
    for scale in SCALES:
        shown = model.decode(redraw_redundant(model, latents, labels, scale, torch.Generator().manual_seed(seed)))
        for name, part in (("luma", luma), ("chroma", chroma)):
            row[f"variance x {scale:g}, {name}"] = correlation(part(shown), part(images))
        row[f"variance x {scale:g}, out of range"] = out_of_range(shown)
    giver = torch.arange(len(images)).roll(-1)
    shown = model.decode(swap_redundant(latents, Latents(latents.informative[giver], latents.redundant[giver])))
    for name, part in (("luma", luma), ("chroma", chroma)):
        row[f"swap, {name} of receiver"] = correlation(part(shown), part(images))
        row[f"swap, {name} of giver"] = correlation(part(shown), part(images[giver]))
    return row


# --- Train and measure


class LearnedRotation(ChannelBasis):
    "A rotation of the channels that is trained, the identity at first."

    def __init__(self, channels: int):  # d
        nn.Module.__init__(self)
        self.turn = parametrizations.orthogonal(nn.Linear(channels, channels, bias=False))
        self.turn.weight = torch.eye(channels)

    @property
    def matrix(self) -> Tensor:  # (d, d)
        return self.turn.weight


class Bounded(nn.Module):
    "Log-scales, the second half of what a block predicts, that stay smoothly below a limit on both sides."

    def __init__(self, limit: float):
        super().__init__()
        self.limit = limit

    def forward(self, predicted: Tensor) -> Tensor:  # (..., 2 d)
        shift, log_scale = predicted.chunk(2, dim=-1)
        return torch.cat([shift, self.limit * torch.tanh(log_scale / self.limit)], dim=-1)


class FixedStart(Likelihood):
    "For a model whose basis is not fitted before the first step: it is given, or learned."

    def fit_basis(self, dataset: ImageDataset) -> None: ...


def preset_of(condition: Condition) -> Preset:
    return PRESETS[condition.data.removeprefix("interleaved ")]


def objective_of(name: str, seed: int) -> Likelihood:
    "A condition's model before its first step."
    condition = CONDITIONS[name]
    torch.manual_seed(seed)
    model = Farmer(replace(preset_of(condition).model, **condition.model))
    if condition.learned_rotation:
        model.basis = LearnedRotation(model.config.token_channels)
    if condition.order:
        colours, side = model.config.image_shape[0], model.config.patch_size
        order = torch.arange(model.config.token_channels).view(colours, -1).T  # (pixels, colours)
        if condition.order == "checkerboard":
            pixels = torch.arange(side**2)
            order = order[((pixels // side + pixels % side) % 2).argsort(stable=True)]
        model.basis.matrix = torch.eye(order.numel())[order.flatten()]
    if condition.largest_log_scale is not None:
        for block in model.flow.blocks:
            block.output = nn.Sequential(block.output, Bounded(condition.largest_log_scale))
    return FixedStart(model) if condition.learned_rotation or condition.order else Likelihood(model)


@torch.enable_grad()
def train(name: str, seed: int, folder: Path = RUNS) -> Trainer:
    "A finished run of a condition, trained now, from where it was stopped, or before."
    condition = CONDITIONS[name]
    judge, config = judge_of(condition.data), replace(preset_of(condition).training, seed=seed, **condition.training)
    trainer = Trainer(objective_of(name, seed), judge.train, judge.held_out, config, folder / f"{name}, {seed}", device="cpu")
    trainer.fit()
    return trainer


def seconds_of(trainer: Trainer) -> float:
    "Of training, without evaluations: the steps of the run at the speeds that it wrote down along the way."
    speeds = [record["images_per_second"] for record in read_log(trainer.folder) if "images_per_second" in record]
    return trainer.config.steps * trainer.config.batch_size / statistics.harmonic_mean(speeds)


def draw(model: Farmer, seed: int, count: int = 2000, **how) -> tuple[Tensor, Tensor]:  # images (count, C, H, W), labels (count,)
    "Samples, classes taking turns, 500 at a time. `how` is passed to `model.sample`."
    labels, generator = torch.arange(count) % max(model.config.num_classes, 1), torch.Generator().manual_seed(seed)
    return torch.cat([model.sample(part, generator=generator, **how) for part in labels.split(500)]), labels


def bits_per_dim(model: Farmer, dataset: ImageDataset, count: int, conditional: bool = True) -> float:
    "Mean of as many images; four draws of the dequantisation noise for each, one where there are millions of values."
    values = count * dataset.pixels(0).numel()
    return evaluate_bits_per_dim(model, dataset, count, conditional, draws=4 if values <= 2_000_000 else 1).mean().item()


@torch.no_grad()
def measure(
    model: Farmer,
    data: str,
    seed: int,  # of sampling, and of the noise on the images that probes read
    figures: Sequence[str] = ("likelihood", "samples"),  # of likelihood, samples, probes, colour, photographs
    guided: Mapping[str, float | Guidance] = {},  # ways of guiding by name: figures of samples for each
    samples: int = 2000,
    probe_images: int = 10_000,  # that probes are fitted on, at most
) -> dict:
    "The figures of one model on held-out images and on samples."
    train, held_out = judge_of(data)[:2]
    row = {"weights": sum(parameter.numel() for parameter in model.parameters())}
    if "likelihood" in figures:
        for name, dataset, conditional in (("", held_out, True), (" without a label", held_out, False), (", training images", train, True)):
            row[f"bits/dim{name}"] = bits_per_dim(model, dataset, len(held_out), conditional)
    if "samples" in figures or "colour" in figures:
        drawn, labels = draw(model, seed, samples)
    if "samples" in figures:
        row |= judged(data, drawn, labels) | {"samples out of range": out_of_range(drawn)}
    for name, guidance in guided.items():
        row[name] = judged(data, *draw(model, seed, samples, guidance=guidance))
    if "probes" in figures:
        found = probes(model, train, held_out, probe_images, seed)
        names = {"class": "class probe, linear", "class, 5 nearest neighbours": "class probe, 5 nearest neighbours", "luma": "luma R2", "colour": "chroma R2"}
        row |= {f"{name}, {source}": found[target][source] for target, name in names.items() if target in found for source in found[target]}
    if "photographs" in figures:
        row |= photograph_figures(model, data, seed)
    return row | (colour_figures(model, data, drawn, seed) if "colour" in figures else {})


def run(
    name: str, seed: int, figures: Sequence[str] = ("likelihood", "samples"), guided: Mapping[str, Guidance] = {}, folder: Path = RUNS, **how
) -> dict:
    "Train and measure one model, unless its figures are beside it already. `how` is passed to `measure`."
    place, data = folder / f"{name}, {seed}" / "figures.json", CONDITIONS[name].data
    if not place.is_file():
        trainer = train(name, seed, folder)
        row = {"seconds of training": seconds_of(trainer), **measure(trainer.ema, data, seed, figures, guided, **how)}
        if "likelihood" in figures:
            held_out = judge_of(data).held_out
            row["bits/dim, latest weights"] = bits_per_dim(trainer.model, held_out, len(held_out))
        place.write_text(json.dumps(row, indent=1) + "\n")
        show(f"{name}, seed {seed}", row)
    return json.loads(place.read_text())


def show(title: str, row: Mapping) -> None:
    "One line of the figures that matter most."
    shown = ("seconds of training", "bits/dim", "class accuracy", "Frechet distance")
    print(f"{title}: " + ", ".join(f"{key} {row[key]:.3f}" for key in shown if key in row), flush=True)


# --- Record


def commit() -> str:
    "Of the code that measured, and whether it had changed since."
    ask = lambda *words: subprocess.check_output(["git", "--no-optional-locks", *words], cwd=ROOT, text=True).strip()
    return ask("rev-parse", "HEAD") + (", with later changes" if ask("status", "--porcelain", "--", "../farmer", "*.py") else "")


def circumstances() -> dict[str, object]:
    "When, where and with which code something is measured."
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"commit": commit(), "date": now, "device": f"cpu, {platform.machine()}", "torch": torch.__version__, "threads": torch.get_num_threads()}


def write(name: str, result: Mapping) -> None:
    "farmer/results/NAME.json."
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"all figures are in {path}")


def record(
    name: str,
    result: Mapping,
    seeds: Iterable[int],
    what: str,  # was run, in one sentence
) -> None:
    "Write a result, and all that one needs to know to get it again."
    write(name, {"what": what, **circumstances(), "seeds": list(seeds), **result})
