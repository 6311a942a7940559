"""Small helpers that several modules need: files, checksums, optional packages, indices spread evenly."""
import hashlib
import importlib
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import torch
from torch import nn


def import_optional(module: str, package: str, extra: str = "notebooks") -> ModuleType:
    "Import an optional dependency. Raises ImportError that says which extra of this library brings it."
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f'this needs {package}: pip install {package}, or this library with its extra "{extra}"') from error


def file_digest(path: Path) -> str:
    "SHA-256 of a file, in hexadecimal digits."
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_files(contents: Mapping[Path, bytes | Callable[[BinaryIO], None]]) -> None:
    """Write files, first all of them under temporary names, then rename: if writing fails, the old ones stay and the new are removed.

    A content is given as bytes or as a function that writes it to the open file.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in contents}
    try:
        for path, content in contents.items():
            with open(temporary[path], "wb") as file:
                content(file) if callable(content) else file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for path in contents:
            os.replace(temporary[path], path)
    except BaseException:
        for partial in temporary.values():
            partial.unlink(missing_ok=True)
        raise


def spread(count: int, length: int, floor: bool = False) -> list[int]:
    "Places of `count` of `length` things, evenly spread from first to last; all if there are fewer. `floor`: rounded down, as runs have fixed it."
    places = torch.linspace(0, length - 1, min(count, length))
    return (places if floor else places.round()).long().tolist()


def checksum(module: nn.Module, precision: torch.dtype = torch.float32) -> str:
    "Of all weights, rounded to a precision, to tell whether a student belongs to a flow."
    value = 0
    for tensor in module.state_dict().values():
        value = zlib.crc32(tensor.detach().cpu().to(precision).to(torch.float32).contiguous().numpy().tobytes(), value)
    return f"{value:08x}"
