"""The speed that matters: how long until a model is as good as TarFlow's own public code in the end?

    OMP_NUM_THREADS=1 python experiments/time_to_quality.py --tarflow path/to/transformer_flow.py [--data digits glyphs photos] [--rival muon] [--basis pixels] [--steps 3000] [--seeds 3]

TarFlow's model, with as many weights within 2%, trains with the steps, the batches, the noise and the averaged weights of the
preset, by the same trainer. It gets the labels, a tenth of them dropped, as its authors do, and AdamW, as theirs; --rival muon: Muon.
Then FARMER trains with Muon, in runs planned for a sixth, a quarter, a third ... and all of those steps, until one ends with as few
bits/dim of held-out images; the time to that quality lies on a straight line between the last two runs. Neither model has dropout,
which short runs do not need. TarFlow learns at the preset's rate and at twice that, and the better end counts, not a run that
diverges; FARMER at twice the rate. --basis and --steps take the place of the preset's: the basis of FARMER, the steps of TarFlow.

Seconds are those of the steps, in CPU time of the process, so other work on the machine does not count; evaluations do not
either. bits/dim: uniform dequantisation, the same held-out images for both. In the file of results, farmer/results/time_to_quality.json,
what was found takes the place of what was found before with the same data and the same optimiser of TarFlow.
"""
import argparse
import importlib.util
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
from measuring import RESULTS, commit, record
from torch import Tensor, nn

from farmer.data import ImageDataset, load_dataset
from farmer.files import spread
from farmer.model import Farmer, FarmerConfig
from farmer.objectives import Likelihood
from farmer.patches import bits_per_dimension, dequantize
from farmer.presets import PRESETS
from farmer.training import Trainer, TrainingConfig
from farmer.transformer import TransformerLayer

SHARES = (1 / 6, 1 / 4, 1 / 3, 1 / 2, 3 / 4, 1)  # of TarFlow's steps
RATES = {"TarFlow": (1, 2), "FARMER": (2,)}  # times the preset's learning rate


class TarFlowLikelihood:
    "TarFlow's own loss of TarFlow's own model, for our trainer."

    unit = "nats/dim of the noised density, a constant apart"

    def __init__(self, module: nn.Module, config: FarmerConfig):
        self.module, self.config = module, config

    def to(self, device: torch.device) -> None:
        self.module.to(device)

    def identity(self, dataset: ImageDataset) -> str:
        return "TarFlow"

    def fit_basis(self, dataset: ImageDataset) -> None: ...

    def flops(self) -> int:
        return 0  # nobody asks

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        z, _, logdet = self.module(images, torch.where(labels == self.config.num_classes, -1, labels))  # a dropped label is -1 to it
        loss = 0.5 * z.square().mean((1, 2)) - logdet
        return loss, {"loss": loss}

    def figures(self, means: dict[str, float]) -> dict[str, float]:
        return means

    @torch.no_grad()
    def held_out(self, module: nn.Module, dataset: ImageDataset, images: int) -> float:
        clean, labels = dataset.batch(spread(images, len(dataset)))
        noised = dequantize(clean, dataset.levels, torch.Generator().manual_seed(0))
        nats = []
        for image, label in zip(noised.split(500), labels.split(500)):
            z, _, logdet = module(image, label)
            nats.append((-0.5 * (z.square() + math.log(2 * math.pi))).sum((1, 2)) + logdet * z[0].numel())
        return bits_per_dimension(torch.cat(nats), clean[0].numel(), dataset.levels).mean().item()

    def save_samples(self, module: nn.Module, path: Path, seed: int) -> dict[str, float]:
        return {}


def weights_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tarflow(source: ModuleType, config: FarmerConfig, weights: int) -> nn.Module:
    "One block more than FARMER's flow has, since it needs no prior; as wide as the number of weights asks for, with four heads."
    colours, size = config.image_shape[0], config.image_shape[1]

    def made(channels: int) -> nn.Module:
        torch.manual_seed(0)
        model = source.Model(colours, size, config.patch_size, 64, config.flow_blocks + 1, config.flow_layers, num_classes=config.num_classes)
        block = lambda old: source.MetaBlock(
            config.token_channels, channels, config.tokens, old.permutation, config.flow_layers, head_dim=channels // 4, num_classes=config.num_classes
        )
        model.blocks = nn.ModuleList(block(old) for old in model.blocks)
        layers = [module for module in model.modules() if isinstance(module, source.AttentionBlock)]
        for layer in layers:  # by which the trainer knows what Muon may move
            layer.__class__ = type("AttentionBlock", (source.AttentionBlock, TransformerLayer), {})
        return model

    return made(min(range(16, 513, 4), key=lambda channels: abs(weights_of(made(channels)) - weights)))


def train(objective: Likelihood | TarFlowLikelihood, data: tuple[ImageDataset, ImageDataset], settings: TrainingConfig) -> dict[str, float]:
    "CPU seconds of the steps, and what the averaged weights reach."
    steps = settings.steps
    settings = replace(settings, warmup_steps=min(settings.warmup_steps, steps // 10), evaluate_every=10**9, save_every=10**9)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(objective, *data, settings, folder, device="cpu")
        begun = time.process_time()
        for batch in trainer.batches(steps):
            trainer.train_step(batch)
        spent = time.process_time() - begun
        return {"steps": steps, "learning rate": settings.learning_rate, "seconds": spent, "bits/dim": trainer.objective.held_out(trainer.ema, data[1], 1000)}


def share_of_time(rival: dict, ours: list[dict]) -> float | None:
    "Until FARMER is as good: between the last run that is not, and the first that is, on a straight line; none if no run is."
    if ours[-1]["bits/dim"] > rival["bits/dim"]:
        return None
    worse, better = (ours[-2:] if len(ours) > 1 else ours * 2)
    part = (worse["bits/dim"] - rival["bits/dim"]) / (worse["bits/dim"] - better["bits/dim"]) if worse is not better else 1
    return (worse["seconds"] + part * (better["seconds"] - worse["seconds"])) / rival["seconds"]


def compare(source: ModuleType, name: str, seed: int, optimizer: str, basis: str | None, steps: int | None) -> dict:
    "One seed on one data set."
    preset, data = PRESETS[name], tuple(load_dataset(PRESETS[name].data, split) for split in ("train", "test"))
    model = replace(preset.model, basis=basis or preset.model.basis, dropout=0.0)
    settings = replace(preset.training, steps=steps or preset.training.steps, seed=seed)
    weights = weights_of(Farmer(model))

    def end(objective: Callable[[], Likelihood | TarFlowLikelihood], rates: tuple[int, ...], optimizer: str, share: float) -> dict:
        "The better of the rates."
        runs = []
        for rate in rates:
            torch.manual_seed(seed)
            with suppress(FloatingPointError):  # a rate too high for it
                changes = {"steps": int(share * settings.steps), "learning_rate": rate * settings.learning_rate, "optimizer": optimizer}
                runs.append(train(objective(), data, replace(settings, **changes)))
        return min(runs, key=lambda run: run["bits/dim"])

    rival, ours = end(lambda: TarFlowLikelihood(tarflow(source, model, weights), model), RATES["TarFlow"], optimizer, 1), []
    for share in SHARES:
        ours.append(end(lambda: Likelihood(Farmer(model)), RATES["FARMER"], "muon", share))
        if ours[-1]["bits/dim"] <= rival["bits/dim"]:
            break
    row = {"basis": model.basis, "seed": seed, "weights": {"FARMER": weights, "TarFlow": weights_of(tarflow(source, model, weights))}, "TarFlow": rival, "FARMER": ours}
    row["share of TarFlow's time"] = share = share_of_time(rival, ours)
    said = f"{share:.2f} of its time" if share else "not reached"
    print(f"{name}, seed {seed}: TarFlow by {optimizer} {rival['bits/dim']:.3f} bits/dim after {rival['seconds']:.0f} s; FARMER {ours[-1]['bits/dim']:.3f} after {ours[-1]['seconds']:.0f} s; as good as it after {said}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tarflow", type=Path, required=True, metavar="PATH", help="transformer_flow.py of https://github.com/apple/ml-tarflow")
    parser.add_argument("--data", nargs="+", default=["digits", "glyphs", "photos"], choices=PRESETS, metavar="PRESET")
    parser.add_argument("--rival", default="adamw", choices=("adamw", "muon"), help="optimiser of TarFlow")
    parser.add_argument("--basis", choices=("pixels", "pca", "luma-chroma"), help="channel basis of FARMER, in place of the preset's")
    parser.add_argument("--steps", type=int, help="of TarFlow, in place of the preset's")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    if not asked.tarflow.is_file():
        parser.error(f"there is no file {asked.tarflow}; it has its own licence and is not part of FARMER")
    spec = importlib.util.spec_from_file_location("transformer_flow", asked.tarflow)
    source = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(source)
    found = json.loads((RESULTS / "time_to_quality.json").read_text())["comparisons"]
    for name in asked.data:
        rows = [compare(source, name, seed, asked.rival, asked.basis, asked.steps) for seed in range(asked.seeds)]
        shares = [row["share of TarFlow's time"] for row in rows]
        print(f"{name}: " + (f"{statistics.mean(shares):.2f} of TarFlow's time, {min(shares):.2f} to {max(shares):.2f}" if all(shares) else "not reached by every seed"))
        found[f"{name}, TarFlow by {asked.rival}"] = {"commit": commit(), "rows": rows}
        what = "time until FARMER by Muon has as few bits/dim as TarFlow's own code in the end, one comparison for each data set and optimiser of TarFlow"
        record("time_to_quality", {"comparisons": found}, range(asked.seeds), what)


if __name__ == "__main__":
    main()
