"""What several test files share: small models and data, and ways to say what an error or a command must be like.

Importing this imports torch and the empty package `farmer`; its modules are loaded by the functions that need them.
"""
from __future__ import annotations

import pickle
import io
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms.functional import pil_to_tensor

import farmer

# --- Numbers


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, **options) -> Tensor:
    "Standard normal values that the seed decides."
    return torch.randn(*shape, generator=seeded(seed), **options)


def randomize(module: nn.Module, seed: int = 0, deviation: float = 0.3) -> nn.Module:
    "Weights far from the identity start, so that nothing is right by being zero."
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            size = deviation * (parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.3)
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) * size)
    return module


# --- Models and their images

SMALL = dict(
    image_shape=(1, 4, 4), num_classes=3, levels=5, flow_blocks=2, flow_width=16, prior_width=16, prior_layers=1, head_width=8,
    informative_channels=2, components=3, redundant_components=4, condition_repeats=2,
)  # fmt: skip
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])  # of `clean_images()`


def small(seed: int = 0, **changes) -> farmer.Farmer:
    "A model with weights far from its start, in training mode like any new module; changes are fields of its configuration."
    torch.manual_seed(seed)
    model = farmer.Farmer(farmer.FarmerConfig(**{**SMALL, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def clean_images(count: int = 6, levels: int = 5) -> Tensor:  # (count, 1, 4, 4)
    "Images for `small()`, on the grid of their levels."
    return torch.randint(levels, (count, 1, 4, 4), generator=seeded()) * (2 / (levels - 1)) - 1


def make_flow(blocks=3, tokens=6, channels=4, width=32, spread=0.3, **options) -> farmer.flow.Flow:
    "An autoregressive flow away from the identity."
    torch.manual_seed(0)
    flow = farmer.flow.autoregressive_flow(tokens, channels, blocks=blocks, width=width, layers=1, heads=2, **options)
    for block in flow.blocks:
        nn.init.normal_(block.output.weight, std=spread * width**-0.5)
        nn.init.normal_(block.output.bias, std=spread)
    return flow.eval()


# --- Training runs


def stripes(length: int = 50, seed: int = 0) -> farmer.data.ArrayDataset:
    "Horizontal stripes are class 0, vertical ones class 1, with some noise."
    generator = seeded(seed)
    labels = torch.arange(length) % 2
    rows = torch.randint(2, (length, 1, 4, 1), generator=generator).expand(-1, -1, 4, 4) * 3
    values = torch.where(labels.view(-1, 1, 1, 1).bool(), rows.mT, rows) + torch.randint(2, (length, 1, 4, 4), generator=generator)
    return farmer.data.ArrayDataset(values.to(torch.uint8), labels, 5, ["across", "down"])


def stripes_config(**changes) -> farmer.FarmerConfig:
    "Of a small model that fits `stripes()`."
    return farmer.FarmerConfig(**{**SMALL, "num_classes": 2, "dropout": 0.1, **changes})


def short_training(**changes) -> farmer.training.TrainingConfig:
    "Twelve steps, two evaluations, checkpoints between them."
    defaults = dict(steps=12, batch_size=8, learning_rate=1e-2, warmup_steps=2, evaluate_every=6, save_every=5, evaluation_images=20)
    return farmer.training.TrainingConfig(**{**defaults, **changes})


def make_trainer(folder: Path, training=None, config=None, dataset=None, device="cpu", **options) -> farmer.training.Trainer:
    "Of a fresh model, always the same, on `stripes()`."
    torch.manual_seed(0)
    objective = farmer.objectives.Likelihood(farmer.Farmer(config or stripes_config()))
    return farmer.training.Trainer(objective, dataset or stripes(), stripes(seed=1), training or short_training(), folder, device=device, **options)


# --- Files


def contents(folder: Path) -> dict[str, bytes]:
    "Every file below a folder."
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_image(path: Path) -> Tensor:  # (C, H, W) uint8
    return pil_to_tensor(Image.open(path))


def photos(folder: Path, per_class: int = 12) -> Path:
    "Two classes of small colour pictures: reddish and bluish noise."
    generator = np.random.default_rng(0)
    for name, channel in (("red", 0), ("blue", 2)):
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            pixels = generator.integers(0, 60, (20, 24, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(folder / name / f"{index:02}.png")
    return folder


# --- Errors and the command


def complaint(error: type[Exception], call, *words: object) -> str:
    "The message of the error that `call` ends with: one line that holds all the words."
    with pytest.raises(error) as caught:
        call()
    assert_one_line(caught, *words)
    return str(caught.value)


def assert_one_line(caught: pytest.ExceptionInfo, *words: object) -> None:
    "An error that was caught says what it says in one line that holds all the words."
    message = str(caught.value)
    assert message and "\n" not in message, message
    for word in words:
        assert str(word) in message, f"{word!r} is not in {message!r}"


SMALL_RUN = "--flow-blocks 1 --flow-width 32 --prior-layers 1 --prior-width 32 --batch-size 8 --evaluation-images 20".split()


def farmer_process(*arguments: object, **options) -> subprocess.Popen:
    "The command in a process of its own. Jobs in the background of a shell ignore Ctrl-C and pass that on, hence the reset."
    return subprocess.Popen(
        [sys.executable, "-m", "farmer.cli", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), **options,
    )  # fmt: skip


def mistake(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    "The one line with which the command complains about its arguments."
    with pytest.raises(SystemExit) as caught:
        farmer.cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr().err
    *progress, error = printed.splitlines()
    assert caught.value.code == 2 and error.startswith("farmer: ") and "Traceback" not in printed
    assert all("%|" in line for line in progress if line)  # nothing else but the progress bar
    return error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- Data sets


def assert_reads_alike(dataset: farmer.data.ImageDataset) -> None:
    "Every way to read a data set gives the same items: alone, in batches, from worker processes, after a journey to another process."
    whole = range(len(dataset))
    levels, (images, labels) = dataset.pixel_batch(whole), dataset.batch(whole)
    assert levels.dtype == torch.uint8 and images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.shape == (len(dataset), *dataset.image_shape) and images.min() >= -1 and images.max() <= 1
    assert torch.equal(images, farmer.data.to_images(levels, dataset.levels)) and torch.equal(levels, farmer.data.to_levels(images, dataset.levels))
    assert torch.equal(labels, dataset.labels) and 0 <= labels.min() and labels.max() < dataset.num_classes
    for indices in ([len(dataset) - 1, 0, len(dataset) - 1], range(2), (1,), [-1], torch.tensor([1, 0]), np.array([0, 1])):
        some, items = dataset.batch(indices), [dataset[int(index)] for index in indices]
        assert all(type(label) is int for _, label in items) and some[1].tolist() == [label for _, label in items]
        assert torch.equal(some[0], torch.stack([image for image, _ in items])) and torch.equal(some[0], images[torch.as_tensor(indices)])
    for workers in (0, 2):
        batches = list(DataLoader(dataset, batch_size=(len(dataset) + 2) // 3, num_workers=workers))
        assert torch.equal(torch.cat([batch[0] for batch in batches]), images) and torch.equal(torch.cat([batch[1] for batch in batches]), labels)
    assert torch.equal(pickle.loads(pickle.dumps(dataset)).batch(whole)[0], images)
    with pytest.raises(IndexError):
        dataset[len(dataset)]


# --- Latents, mixtures and pictures


def images_for(model: farmer.Farmer, count: int = 6) -> Tensor:  # (count, C, H, W) in the model's precision
    "Noise on the grid of a model's levels."
    config = model.config
    values = torch.randint(config.levels, (count, *config.image_shape), generator=seeded())
    return (values * (2 / (config.levels - 1)) - 1).to(model.basis.matrix)


def small_with_latents(**changes) -> tuple[farmer.Farmer, farmer.model.Latents]:
    "A small model in float64 with a basis of its own, and the latents of six images."
    model = small(**changes).double().eval()
    channels = model.config.token_channels
    model.basis.matrix.copy_(torch.linalg.qr(normal(channels, channels, seed=7, dtype=torch.float64))[0])
    with torch.no_grad():
        return model, model.encode(images_for(model))


def library(mixture: farmer.mixture.GaussianMixture) -> torch.distributions.Distribution:
    "The same mixture by torch."
    normals = torch.distributions.Normal(mixture.component_mean, mixture.component_log_scale.exp())
    return torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=mixture.logits), torch.distributions.Independent(normals, 1))


def encoded(page: Image.Image, kind: str = "PNG", **options) -> bytes:
    "The content of a file."
    file = io.BytesIO()
    page.save(file, kind, **options)
    return file.getvalue()


def png(image: Tensor) -> bytes:  # (C, H, W) in [-1, 1]
    values = farmer.data.to_levels(image, 256).permute(1, 2, 0).numpy()
    return encoded(Image.fromarray(values[..., 0] if values.shape[2] == 1 else values))


def weights_of(trainer: farmer.training.Trainer) -> dict[str, Tensor]:
    "Latest and averaged weights of a run, and how many were averaged."
    average = {f"average.{name}": tensor for name, tensor in trainer.ema.state_dict().items()}
    return {**trainer.model.state_dict(), **average, "updates": trainer.average.updates}
