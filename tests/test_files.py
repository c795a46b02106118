"""Writing in one step: whole, or as it was."""

import os
from pathlib import Path

import pytest

from ulvm.errors import InputError
from ulvm.files import find_cache_folder, make_folder, sweep_leftovers, write_atomically


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


def test_a_durable_write_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    fsync, replace = os.fsync, Path.replace

    def watched_fsync(handle: int) -> None:
        done.append("sync " + Path(f"/proc/self/fd/{handle}").readlink().name[:9])
        fsync(handle)

    def watched_replace(self: Path, target: Path) -> Path:
        done.append(f"{self.name[:9]} -> {Path(target).name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    folder = tmp_path / "folder"
    for content in (b"old", b"new"):
        write_atomically(folder / "file.pt", content, durable=True, keep_as=folder / "before.pt")
    assert done[-4:] == [
        "sync .file.pt.", "file.pt -> before.pt", ".file.pt. -> file.pt", "sync folder",
    ]  # fmt: skip
    assert (folder / "before.pt").read_bytes() == b"old"


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    kept = ["run.json", ".lock", ".notes.part", ".my.settings", ".run.json.ABCDEFGH.part"]
    for name in [*kept, ".run.json.ab3_d9xz.part"]:
        (tmp_path / name).touch()
    sweep_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_without_a_home_the_cache_folder_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("ULVM_CACHE", raising=False)
    with pytest.raises(InputError, match=r"no home folder.*ULVM_CACHE"):
        find_cache_folder()
    monkeypatch.setenv("ULVM_CACHE", "elsewhere")
    assert find_cache_folder() == Path("elsewhere")


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    """Renaming over a device, as root may, would put a file in its place."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="no regular file"):
        write_atomically(tmp_path / "pipe", b"new")
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("/dev/null")
    with pytest.raises(InputError, match="no regular file"):
        write_atomically(tmp_path / "link", b"new")


def test_a_full_disk_asks_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    full = os.open("/dev/full", os.O_WRONLY)
    (tmp_path / "name").touch()
    named = (full, str(tmp_path / "name"))
    monkeypatch.setattr("ulvm.files.tempfile.mkstemp", lambda **_: named)
    with pytest.raises(InputError, match="Make room there"):
        write_atomically(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []
