"""Writing in one step: whole, or as it was."""

from pathlib import Path

import pytest

from ulvm.errors import InputError
from ulvm.files import make_folder, write_atomically


def test_content_appears_in_a_new_folder(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a" / "b" / "file.bin", b"\0\1")
    assert (tmp_path / "a" / "b" / "file.bin").read_bytes() == b"\0\1"


def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, b"old")

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(InputError, match="No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="cannot be written"):
        make_folder(tmp_path / "file" / "folder")
