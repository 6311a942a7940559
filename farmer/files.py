"""Small helpers for files and packages that several modules need."""
import errno
import hashlib
import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import BinaryIO


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


def is_full(error: OSError) -> bool:
    "Whether an error says that no space is left."
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def spread(count: int, length: int) -> list[int]:
    "Indices of `count` of `length` things, evenly spread from the first to the last; all of them if there are fewer."
    count = min(count, length)
    return [0] if count == 1 else [round(place * (length - 1) / (count - 1)) for place in range(count)]
