"""Small helpers that several modules need: files, locks, checksums, worker processes, messages, optional packages, indices spread evenly."""
import functools
import hashlib
import importlib
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, TextIO, cast

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

try:
    import fcntl
except ModuleNotFoundError:  # not a Unix: no locks
    fcntl = cast(Any, None)

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


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


def _try_lock(descriptor: int) -> bool | None:
    "Lock an open file until it is closed. False: another holds it. None: this file system has no locks."
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except (OSError, AttributeError):
        return None


def _remove_leftovers(paths: Collection[Path]) -> None:
    "Remove what processes that are dead left of writing these files: one that lives has its own locked."
    for parent in {path.parent for path in paths}:
        names = {path.name for path in paths if path.parent == parent}
        with suppress(OSError), os.scandir(parent) as entries:
            for entry in entries:
                if (found := re.fullmatch(r"\.(.+)\.\d+\.partial", entry.name)) and found[1] in names:
                    with suppress(OSError), open(entry.path, "rb") as left:
                        if _try_lock(left.fileno()):
                            os.unlink(entry.path)


def _open_temporary(path: Path) -> BinaryIO:
    "A new file, locked. Opened again if another process took it for left over, and removed it, before it was."
    file = open(path, "wb")
    for _ in range(100):
        if _try_lock(file.fileno()) is not False and path.exists():
            break
        file.close()
        file = open(path, "wb")
    return file


def replace_files(contents: Mapping[Path, bytes | Callable[[BinaryIO], None]]) -> None:
    """Write files, first all of them under temporary names, then rename: if writing fails, the old ones stay and the new are removed.

    A content is given as bytes or as a function that writes it to the open file. What a killed process left of writing them is removed.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.partial") for path in contents}
    _remove_leftovers(contents)
    try:
        with ExitStack() as files:  # open, and so locked, until all are renamed
            for path, content in contents.items():
                file = files.enter_context(_open_temporary(temporary[path]))
                content(file) if callable(content) else file.write(content)
                file.flush()
                os.fsync(file.fileno())
            for path in contents:
                os.replace(temporary[path], path)
    except BaseException:
        for partial in temporary.values():
            partial.unlink(missing_ok=True)
        raise


_locks: set[int] = set()  # descriptors of the folders' locks that this process holds


@functools.cache
def _keep_locks_from_children() -> None:
    "A forked process must not go on holding a lock when its parent is dead."

    def let_go() -> None:
        while _locks:
            os.close(_locks.pop())

    os.register_at_fork(after_in_child=let_go)


@contextmanager
def lock_folder(folder: str | Path, what: str) -> Iterator[None]:
    """Hold an output folder while something, `what`, writes to it. The lock ends with the process, however that ends.

    Raises ValueError, which says who holds it, if another process does, or this one already. Where a file system has no locks, nothing is held.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _keep_locks_from_children()
    while True:
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        if _try_lock(lock) is False:
            holder = os.pread(lock, 1000, 0).decode(errors="replace") or "by another process"
            os.close(lock)
            raise ValueError(f"{folder} is in use {' '.join(holder.split())}; let that end, or choose another folder")
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(folder / ".lock")):
                break
        os.close(lock)  # its holder has just removed it
    _locks.add(lock)
    try:
        with suppress(OSError):  # a full disk
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"by {what} on {socket.gethostname()}, process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        if lock in _locks:  # not in a forked process, which has let go
            _locks.remove(lock)
            with suppress(OSError):
                os.unlink(folder / ".lock")
            os.close(lock)


def start_worker(number: int) -> None:
    "For a DataLoader's `worker_init_fn`: signals are for the parent to answer; its own SIGTERM ends the worker, and so does its death, within a second."
    parent = multiprocessing.parent_process()

    def listen() -> None:
        while True:
            heard = signal.sigtimedwait(STOP_SIGNALS, 1)
            if parent and (not parent.is_alive() or heard and (heard.si_signo, heard.si_pid) == (signal.SIGTERM, parent.pid)):
                os._exit(0)

    if hasattr(signal, "sigtimedwait"):  # not in macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        threading.Thread(target=listen, daemon=True).start()


@contextmanager
def reading(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """What a DataLoader reads, whose processes begin by `start_worker`; a signal waits until they are ready for it. None of them is left afterwards,
    not even one that hangs before it can hear SIGTERM, which would keep this process from ending.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS) if hasattr(signal, "pthread_sigmask") else None
    try:
        read: Any = iter(loader)
    finally:
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield read
    finally:
        if loader.num_workers:
            read._shutdown_workers()  # now, and not when the traceback of an error lets go of them
            for worker in read._workers:
                worker.kill()
                worker.join()


def tell(text: str, stream: TextIO) -> None:
    "Print a line at once. A reader that is gone, such as a closed terminal, does not end the run."
    try:
        print(text, file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str) -> None:
    "Print a line, beside a progress bar if there is one; what the terminal cannot show, such as odd bytes of a file's name, is escaped."
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    tqdm.write(text.encode(encoding, "backslashreplace").decode(encoding))


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
