"Files are written whole or not at all, and optional packages are asked for by name."
import errno
import fcntl
import io
import multiprocessing
import os
import signal
import socket
import sys
import time
from unittest import mock

import pytest
from helpers import complaint

from farmer import files
from farmer.files import STOP_SIGNALS, file_digest, import_optional, lock_folder, reading, replace_files, say, spread, start_worker


def test_replace_files_all_or_none(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    replace_files({first: b"old", second: lambda file: file.write(b"old")})
    assert first.read_bytes() == second.read_bytes() == b"old"
    with pytest.raises(TypeError):
        replace_files({first: b"new", second: "text is no bytes"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old", "b": b"old"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_the_partial_file_is_removed(tmp_path, monkeypatch):
    "A real ENOSPC, from the device that is always full."
    kept = tmp_path / "file"
    kept.write_text("old")
    (tmp_path / f".file.{os.getpid()}.partial").write_text("")  # the device leaves none in the folder
    monkeypatch.setattr("builtins.open", lambda path, mode: os.fdopen(os.open("/dev/full", os.O_WRONLY), mode))
    with pytest.raises(OSError) as error:
        replace_files({kept: lambda file: file.write(b"new" * 100_000)})
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and kept.read_text() == "old"


def test_what_the_dead_left_is_removed(tmp_path):
    "By the next write of the same file; not what a living process writes, nor what belongs to another file."
    left, other, living = (tmp_path / name for name in (".file.1.partial", ".other.2.partial", ".file.3.partial"))
    left.write_text("half"), other.write_text("half")
    with open(living, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        replace_files({tmp_path / "file": b"new"})
        assert {path.name for path in tmp_path.iterdir()} == {"file", ".other.2.partial", ".file.3.partial"}
    replace_files({tmp_path / "file": b"newer"})
    assert {path.name for path in tmp_path.iterdir()} == {"file", ".other.2.partial"} and (tmp_path / "file").read_bytes() == b"newer"


def test_a_folder_is_held_by_one(tmp_path):
    folder = tmp_path / "new" / "run"
    with lock_folder(folder, "drawing"):
        message = complaint(ValueError, lambda: lock_folder(folder, "training").__enter__(), f"{folder} is in use by drawing on {socket.gethostname()}")
        assert f"process {os.getpid()};" in message
        with lock_folder(tmp_path, "training"):
            pass  # another one
    with pytest.raises(KeyError), lock_folder(folder, "training"):
        raise KeyError
    with lock_folder(folder, "training"):
        pass
    assert not list(folder.iterdir())


def test_finished_files_are_held_until_all_are_written(tmp_path):
    "Another process that writes the same files meanwhile removes none of them, and a name that begins like another is another."
    def others(file):
        if not os.fork():
            replace_files({tmp_path / name: b"theirs" for name in ("a", "a.b")})
            os._exit(0)
        assert os.wait()[1] == 0
        file.write(b"ours")

    replace_files({tmp_path / "a.b": b"ours", tmp_path / "a": others})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"ours", "a.b": b"ours"}


def test_the_dead_hold_no_folder(tmp_path):
    "kill -9 of one that has forked: neither it nor its child, which lives on, holds the lock."
    pipe, writing = os.pipe()
    process = os.fork()
    if not process:
        holding = lock_folder(tmp_path, "training")
        holding.__enter__()
        child = os.fork()
        if not child:
            time.sleep(60)
        os.write(writing, str(child).encode())
        time.sleep(60)
    child = int(os.read(pipe, 100))
    complaint(ValueError, lambda: lock_folder(tmp_path, "drawing").__enter__(), f"in use by training on {socket.gethostname()}, process {process};")
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    try:
        with lock_folder(tmp_path, "drawing"):
            os.kill(child, 0)  # still there
            assert f"process {os.getpid()}\n" in (tmp_path / ".lock").read_text()
    finally:
        os.kill(child, signal.SIGKILL)


def test_where_there_are_no_locks(tmp_path, monkeypatch):
    "As on some file systems of clusters."
    monkeypatch.setattr("fcntl.flock", mock.Mock(side_effect=OSError(errno.ENOSYS, "not implemented")))
    (tmp_path / ".file.1.partial").write_text("perhaps somebody's")
    with lock_folder(tmp_path, "training"), lock_folder(tmp_path, "drawing"):
        replace_files({tmp_path / "file": b"new"})
    assert {path.name for path in tmp_path.iterdir()} == {"file", ".file.1.partial"}


def test_workers_leave_signals_to_their_parent_and_end_with_it(tmp_path):
    pipe, writing = os.pipe()
    context = multiprocessing.get_context("fork")

    def work() -> None:
        start_worker(0)
        for number in STOP_SIGNALS:
            os.kill(os.getpid(), number)
        os.write(writing, b"alive")
        time.sleep(60)

    parent = os.fork()
    if not parent:
        os.close(pipe)
        context.Process(target=work).start()
        time.sleep(60)
    os.close(writing)
    assert os.read(pipe, 100) == b"alive"
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(pipe, 100) == b""  # its end of it is closed


def test_a_signal_waits_until_workers_are_ready():
    blocked = lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(STOP_SIGNALS)

    class Loader:
        num_workers = 0

        def __iter__(self):
            return iter([blocked()])

    with reading(Loader()) as read:
        assert next(read) == set(STOP_SIGNALS) and not blocked()


def test_anything_can_be_said(capsys, monkeypatch):
    say("caf\udce9.png")
    assert capsys.readouterr().out == "caf\\udce9.png\n"
    strict = io.TextIOWrapper(io.BytesIO(), "latin-1", "strict")
    monkeypatch.setattr("sys.stdout", strict)
    say("\u732b.png")
    strict.flush()
    assert strict.buffer.getvalue() == b"\\u732b.png\n"


def test_file_digest(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("count, length, places", [(1, 9, [0]), (2, 9, [0, 8]), (3, 9, [0, 4, 8]), (9, 3, [0, 1, 2]), (4, 10, [0, 3, 6, 9]), (4, 9, [0, 3, 5, 8])])
def test_spread(count, length, places):
    assert spread(count, length) == places
    assert spread(4, 9, floor=True) == [0, 2, 5, 8]


def test_missing_packages_say_how_to_get_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    complaint(ImportError, lambda: import_optional("matplotlib.pyplot", "matplotlib"), "pip install matplotlib", "notebooks")


def test_a_file_that_another_process_takes_for_left_over(tmp_path, monkeypatch):
    "And removes between its first moment and its lock."
    plain, removed = files._try_lock, []

    def late(descriptor: int) -> bool | None:
        if not removed:
            removed.extend(tmp_path.glob(".*.partial"))
            removed[0].unlink()
        return plain(descriptor)

    monkeypatch.setattr(files, "_try_lock", late)
    replace_files({tmp_path / "one": b"text"})
    assert len(removed) == 1 and [path.name for path in tmp_path.iterdir()] == ["one"] and (tmp_path / "one").read_bytes() == b"text"
