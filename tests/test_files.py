"Files are written whole or not at all, and optional packages are asked for by name."
import errno
import os
import sys

import pytest
from helpers import complaint

from farmer.files import file_digest, import_optional, replace_files, spread


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
