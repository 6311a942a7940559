"""What may go into a model: checks of arguments, and of what comes from a disk. Each raises ValueError in one line that says what to do."""
import json
import math
import os
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NoReturn, Protocol, get_args, get_origin, get_type_hints, runtime_checkable

import numpy as np
import torch
from torch import Tensor


def check_number(name: str, value: Any, interval: str, whole: bool = False) -> None:
    "Raise ValueError unless the value is a finite number, or a whole one of 64 bits, in an interval such as `[0, 1)` or `(0, inf)`."
    low, high = (float(end) for end in interval[1:-1].split(","))
    number = type(value) is int if whole else isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = number and abs(value) <= (2**63 - 1 if whole else sys.float_info.max)
    fits = fits and (low <= value if interval[0] == "[" else low < value) and (value <= high if interval[-1] == "]" else value < high)
    if not fits:
        limits = f"in {interval}" if math.isfinite(high) else f"{low:g} or more" if interval[0] == "[" else f"above {low:g}"
        raise ValueError(f"{name} must be a {'whole' if whole else 'finite'} number, {limits}; got {value!r}")


def check_fields(config: object, intervals: Mapping[str, str] = {}) -> None:
    "Check every field of a configuration (a dataclass) by its type. Numbers without an interval: whole from 1, real from 0."
    for name, kind in get_type_hints(type(config)).items():
        value, kinds = getattr(config, name), get_args(kind) or (kind,)
        if type(None) in kinds and value is None:
            continue
        if get_origin(kind) is Literal and value not in kinds:
            raise ValueError(f"{name} must be one of {', '.join(kinds)}; got {value!r}")
        if kind is bool and type(value) is not bool:
            raise ValueError(f"{name} must be true or false; got {value!r}")
        if int in kinds and get_origin(kind) is not tuple:
            check_number(name, value, intervals.get(name, "[1, inf)"), whole=True)
        elif kind is float:
            check_number(name, value, intervals.get(name, "[0, inf)"))


_LARGEST_JSON = 2**24  # bytes


def _is_json(value: Any, kind: Any) -> bool:
    "Whether a value from JSON is of a type such as float, str | None, list[int] or dict[str, dict]. True is no number, a whole one is a float, too."
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return any(_is_json(value, each) for each in inner)
    if origin in (list, dict):
        return type(value) is origin and all(_is_json(each, inner[-1]) for each in (value.values() if isinstance(value, dict) else value))
    return type(value) in (int, float) and abs(value) <= sys.float_info.max if kind is float else type(value) is kind


def parse_json(content: str | bytes, source: object, what: str, fields: Mapping[str, Any]) -> dict:
    """The object in JSON that came from a disk, which has these keys with values of these types, and perhaps others.

    Raises ValueError that names the source, what it should be, and what is wrong: not JSON, nested too deeply, a number
    that is not finite, a key that is missing or of another type.
    """

    def refuse(reason: str) -> NoReturn:
        raise ValueError(f"{source} is not {what}: {reason}; get it again from where it came, or make it again") from None

    def no_number(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number")

    try:
        values = json.loads(content, parse_constant=no_number)
    except RecursionError:
        refuse("it is nested too deeply")
    except ValueError as error:  # no JSON, no text, a number of too many digits
        refuse(str(error).partition(";")[0])
    if type(values) is not dict:
        refuse("it has no keys")
    for key, kind in fields.items():
        if key not in values:
            refuse(f"{key!r} is missing")
        if not _is_json(values[key], kind):
            refuse(f"{key!r} is {reprlib.repr(values[key])}, not {kind if get_args(kind) else kind.__name__}")
    return values


def read_json(path: str | os.PathLike, what: str, fields: Mapping[str, Any]) -> dict:
    "As `parse_json`, from a file of at most 16 MiB. Raises FileNotFoundError if it is not there."
    path = Path(path)
    if path.exists() and (not path.is_file() or path.stat().st_size > _LARGEST_JSON):
        raise ValueError(f"{path} is not {what}: it is no file, or too large; make it again")
    return parse_json(path.read_bytes(), path, what, fields)


def read_arrays(
    path: Path,
    what: str,  # it should be, and what to do if it is not
    fields: Mapping[str, tuple[type, tuple[int | None, ...]]],  # numpy type and shape of each array; None: any length
    optional: Sequence[str] = (),  # those that may be missing
) -> dict[str, np.ndarray]:
    "Arrays of an .npz file, which is never unpickled. Raises ValueError for any other file, and for NaN."
    try:
        with np.load(path) as file:
            arrays = {key: file[key] for key in fields if key in file or key not in optional}
    except Exception as error:  # whatever is not such a file fails in its own way
        raise ValueError(f"{path} is damaged or not {what}") from error
    for key, array in arrays.items():
        kind, shape = fields[key]
        fits = array.ndim == len(shape) and all(side in (None, length) for side, length in zip(shape, array.shape))
        if not fits or not np.issubdtype(array.dtype, kind) or not array.size or (kind is np.floating and not np.isfinite(array).all()):
            raise ValueError(f"{path} is not {what}: its {key} is {array.dtype} of shape {array.shape}, or not finite")
    return arrays


def check_shown(images: Tensor) -> None:
    "Raise ValueError unless images (B, C, H, W) can be shown: grey or RGB, at least one."
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images of shape {tuple(images.shape)} cannot be shown; pass (B, 1 or 3, H, W) with B at least 1")


def check_images(images: Tensor, image_shape: Sequence[int]) -> None:
    """Raise ValueError unless `images` is a float batch (B, C, H, W), finite, and in [-1, 1] up to noise and overshoot.

    Single pixels may lie far outside, as they sometimes do in samples. But if the mean of |x| over an image exceeds 2,
    twice what is possible within [-1, 1], the image is on another scale. While torch.export follows, only shapes are checked.
    """
    if not (isinstance(images, Tensor) and images.is_floating_point()):
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images must be a float tensor in [-1, 1], got {kind}; convert 8-bit images with x.float() / 127.5 - 1")
    if images.dim() != 4 or tuple(images.shape[1:]) != tuple(image_shape) or images.shape[0] == 0:
        raise ValueError(f"images have shape {tuple(images.shape)}, this model reads (batch, {', '.join(map(str, image_shape))})")
    if torch.compiler.is_exporting():
        return
    magnitude = images.detach().abs().mean((1, 2, 3), dtype=torch.promote_types(images.dtype, torch.float32)).max().item()
    if not math.isfinite(magnitude):
        raise ValueError("images contain NaN or infinity; remove those images")
    if magnitude > 2:
        low, high = (value.item() for value in images.detach().aminmax())
        raise ValueError(f"images must be in [-1, 1], found values from {low:.3g} to {high:.3g}; convert 8-bit values with x / 127.5 - 1")


def check_features(features: Tensor) -> None:  # (n, D)
    "Raise ValueError for NaN or infinity, with which figures would be wrong, not all of them visibly."
    if not features.isfinite().all():
        raise ValueError(f"features of {(~features.isfinite().all(1)).sum()} of {len(features)} images are not finite: leave those images out, and say so")


def check_levels(images: Tensor, levels: int) -> None:
    "Raise ValueError unless every value is one of the `levels` equally spaced ones in [-1, 1]."
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    grid = (images + 1) * (levels - 1) / 2
    if (grid - grid.round().clamp(0, levels - 1)).abs().max() > 1e-2:
        raise ValueError(f"images are not on a grid of {levels} levels in [-1, 1], as bits per dimension needs; pass clean images or the right levels")


def check_labels(
    labels: Tensor | Sequence[int] | None,
    num_classes: int,
    batch: int | None,  # how many there must be; None: any number, to draw images, and the null class is allowed
    device: torch.device,
) -> Tensor:  # (B,) int64 on the device
    "Labels as a tensor, with `None` become the null class. Raises ValueError for labels of the wrong kind, number or range."
    drawing, classes = batch is None, f"in 0..{num_classes - 1}" if num_classes else "absent, as this model has no classes"
    if labels is None and batch is not None:
        return torch.full((batch,), num_classes, device=device)
    try:
        labels = torch.as_tensor(labels, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"labels must be a list or tensor of whole numbers, got {type(labels).__name__}") from error
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    if not whole or labels.dim() != 1 or labels.shape[0] == 0 or labels.shape[0] != (labels.shape[0] if drawing else batch):
        count, hint = "" if drawing else f"{batch} ", ""
        if drawing and whole and labels.dim() == 0:  # a class, or how many images?
            hint = f"; one image of class {labels} is [{labels}], {labels} images without a class are [model.null_class] * {labels}"
        raise ValueError(f"labels must be a list or tensor of {count}whole numbers, got {labels.dtype} of shape {tuple(labels.shape)}{hint}")
    labels = labels.long()
    if torch.compiler.is_exporting():
        return labels
    lowest, highest = labels.min().item(), labels.max().item()
    if not 0 <= lowest <= highest < num_classes + drawing:
        hint = f"use {num_classes} for no class" if drawing else "use labels=None for no class"
        raise ValueError(f"labels must be {classes}, found {lowest} to {highest}; {hint}")
    return labels


def check_latents(informative: Tensor, redundant: Tensor, tokens: int, informative_channels: int, redundant_channels: int) -> None:
    "Raise ValueError unless latents have the shapes (B, N, d_I) and (B, N, d_R) that a model reads."
    found = tuple(informative.shape), tuple(redundant.shape)
    batch = found[0][0] if found[0] else 0
    if batch == 0 or found != ((batch, tokens, informative_channels), (batch, tokens, redundant_channels)):
        raise ValueError(
            f"latents have shapes {found[0]} and {found[1]}, this model reads"
            f" (batch, {tokens}, {informative_channels}) and (batch, {tokens}, {redundant_channels})"
        )


def check_generator(generator: torch.Generator | None, device: torch.device, seed: int | None = None) -> torch.Generator | None:
    "The generator to draw with: the one given, or a new one of a seed. Raises ValueError for both, and unless it draws where the model computes."
    if seed is not None:
        check_number("seed", seed, "[0, inf)", whole=True)
        if generator is not None:
            raise ValueError("pass either a seed or a generator, not both")
        return torch.Generator(device).manual_seed(seed)
    if not isinstance(generator, torch.Generator | None):
        raise ValueError(f"generator must be a torch.Generator or None, got {type(generator).__name__}; a whole number goes into seed=")
    if generator is not None and (generator.device.type, generator.device.index or 0) != (device.type, device.index or 0):
        raise ValueError(f"the generator is on {generator.device}, the model on {device}; make it with torch.Generator(model.device)")
    return generator


def check_device(device: str | torch.device) -> torch.device:
    "A device of this machine. Raises ValueError for any other."
    try:
        return torch.empty(0, device=torch.device(device)).device
    except (AssertionError, RuntimeError, TypeError) as error:  # no such kind, no driver, not that many
        raise ValueError(f"device {str(device)!r} cannot be used on this machine; choose another, such as 'cpu'") from error


def check_same_facts(dataset: Any, config: Any, name: str = "the model") -> None:
    "Raise ValueError unless a data set has the image shape, the number of classes and the levels that a model's configuration expects."
    for field, what in (("image_shape", "images of shape"), ("num_classes", "classes:"), ("levels", "levels:")):
        data, expected = getattr(dataset, field), getattr(config, field)
        if field == "num_classes" and expected == 0:
            continue
        if (tuple(data) if field == "image_shape" else data) != expected:
            raise ValueError(f"the data set has {what} {data}, {name} expects {expected}; set {field} of the model accordingly, or give its own data")
    if len(dataset) == 0:
        raise ValueError("the data set is empty")


def check_architecture(config: Any) -> None:
    "Raise ValueError for fields of a model's configuration that are wrong, or do not fit together, naming the field and the fix."
    shape = config.image_shape
    if not (isinstance(shape, tuple) and len(shape) == 3 and all(type(side) is int and side > 0 for side in shape)):
        raise ValueError(f"image_shape must be a tuple of three whole numbers above 0: channels, height, width; got {shape!r}")
    intervals = {"num_classes": "[0, 1000000]", "levels": "[2, 65536]", "dropout": "[0, 1)", "label_dropout": "[0, 1)"}
    check_fields(config, intervals | {name: "[1, 100000]" for name, value in vars(config).items() if type(value) is int and name not in intervals})
    if max(*shape, config.token_channels) > 100_000 or config.flow_blocks * config.flow_layers + config.prior_layers > 1000:
        raise ValueError("a model has at most 1000 transformer layers, 100000 pixels a side and 100000 channels of a token; choose smaller numbers")
    if shape[1] % config.patch_size or shape[2] % config.patch_size:
        raise ValueError(f"patch_size {config.patch_size} does not divide the image size {shape[1]}x{shape[2]}; choose a common divisor of both")
    if config.basis == "luma-chroma" and shape[0] != 3:
        raise ValueError(f"basis luma-chroma needs 3 channels (RGB), image_shape has {shape[0]}; choose pca or pixels")
    if config.informative_channels is not None and config.informative_channels >= config.token_channels:
        raise ValueError(
            f"informative_channels {config.informative_channels} must be below {config.token_channels}, the channels of a token"
            f" (image channels x patch_size^2); use none for no partition"
        )
    if config.flow == "coupling" and config.token_channels < 2:
        raise ValueError("flow coupling splits the channels of a token, and these have 1; choose a larger patch_size, or autoregressive")
    for name in ("flow_width", "prior_width"):
        if getattr(config, name) % config.head_width:
            raise ValueError(f"{name} {getattr(config, name)} is not a multiple of head_width {config.head_width}")


def check_guidable(config: Any, labels: Tensor) -> None:  # (B,)
    "Raise ValueError where a model has nothing to guide by: no classes, no density without a class, or no class in the labels."
    null_class = config.num_classes
    if null_class == 0 or config.prior == "standard-normal":
        raise ValueError("this model knows no classes, so there is nothing to guide by; use guidance=0")
    if config.label_dropout == 0:
        raise ValueError("this model was trained with label_dropout 0 and has not learned the density without a class; use guidance=0 or train again")
    if (labels == null_class).any():
        raise ValueError(f"labels hold {null_class}, no class, which cannot be guided towards; use guidance=0 or labels in 0..{null_class - 1}")


@runtime_checkable
class Bindable(Protocol):
    "A way back that must know its flow first, such as `Jacobi()`."

    def bind(self, flow: Any) -> Callable[[Tensor], Tensor]: ...


Inverse = Callable[[Tensor], Tensor] | Bindable  # from z (B, N, d) to x (B, N, d)


def check_inverse(inverse: object) -> None:
    "Raise ValueError unless it is None, a function, or an object that gives one for a flow; a class is neither."
    if isinstance(inverse, type) or not (inverse is None or callable(inverse) or hasattr(inverse, "bind")):
        raise ValueError(f"inverse must be None for the exact one, Jacobi(), a Student, or any function from z to x; got {inverse!r}")
