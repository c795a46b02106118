"""A data set is decoded once, whole or not at all."""

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from made_up_folders import problem_of, spoil, write_folder
from ulvm.datasets import cache as cache_module
from ulvm.datasets import check, decode, read


@pytest.mark.parametrize("name", ["p0", "p1", "p2", "p3", "p4"])
def test_decode_refuses_what_check_reports(tmp_path: Path, name: str):
    spoil(tmp_path)
    for path in tmp_path.glob("*/p?.png"):
        if path.stem not in (name, "p5"):
            path.unlink()
    (sentence,) = check("folder", tmp_path).problems
    cache = tmp_path / "cache"
    message = problem_of(lambda: decode("folder", tmp_path, size=8, cache_dir=cache))
    assert message.startswith(sentence.removesuffix("."))
    assert not cache.exists() or list(cache.iterdir()) == []


def test_decode_reads_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_folder(tmp_path, ["a", "b"])
    first = decode("folder", tmp_path, size=8, cache_dir=tmp_path / "cache")
    with monkeypatch.context() as patch:
        patch.delattr(read, "read_picture")
        again = decode("folder", tmp_path, size=8, cache_dir=tmp_path / "cache")
    assert again.path == first.path
    np.testing.assert_array_equal(again.images, first.images)
    assert decode("folder", tmp_path, size=9, cache_dir=tmp_path / "cache").path != first.path


def test_changed_files_get_a_new_cache(tmp_path: Path):
    write_folder(tmp_path, ["a", "b"])
    cache = tmp_path / "cache"
    first = decode("folder", tmp_path, size=8, cache_dir=cache)
    path = tmp_path / "masks" / "a.png"
    Image.new("L", (40, 30)).save(path)
    os.utime(path, ns=(0, time.time_ns() + 10**9))
    second = decode("folder", tmp_path, size=8, cache_dir=cache)
    assert first.masks[0].any()
    assert not second.masks[0].any()


def test_an_interrupted_run_leaves_nothing(tmp_path: Path):
    write_folder(tmp_path, ["a", "b", "c"])

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode("folder", tmp_path, size=8, cache_dir=tmp_path / "cache", progress=interrupt)
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_runs_at_once_agree(tmp_path: Path):
    write_folder(tmp_path, ["a", "b", "c"])
    meeting = threading.Barrier(2)
    results = []

    def run() -> None:
        # Both are past the question "is it there already?" before either finishes.
        results.append(
            decode(
                "folder",
                tmp_path,
                size=8,
                cache_dir=tmp_path / "cache",
                progress=lambda done, total: done == total and meeting.wait(20),
            )
        )

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = results
    np.testing.assert_array_equal(first.masks, second.masks)
    assert list((tmp_path / "cache").iterdir()) == [first.path]


def test_cache_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_folder(tmp_path / "data", ["a"])
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path / "from-variable"))
    assert decode("folder", tmp_path / "data", size=8).path.parent == tmp_path / "from-variable"
    monkeypatch.delenv("ULVM_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    path = decode("folder", tmp_path / "data", size=8).path
    assert path.parent == tmp_path / ".cache" / "ulvm"
    assert path.name.startswith("folder-8-")
    (tmp_path / "file").write_text("")
    message = problem_of(
        lambda: decode("folder", tmp_path / "data", size=8, cache_dir=tmp_path / "file")
    )
    assert "ULVM_CACHE" in message


def test_decoded_dataset(tmp_path: Path):
    write_folder(tmp_path, ["a", "b", "c"])
    decoded = decode("folder", tmp_path, size=24, cache_dir=tmp_path / "cache")
    assert decoded.indices(["c", "a"]).tolist() == [2, 0]
    assert "2 ids are not in the folder data: x, y" in problem_of(
        lambda: decoded.indices(["a", "x", "y"])
    )
    assert decoded.images.dtype == decoded.masks.dtype == np.uint8
    # The mask is soft, so its half-way line encloses about the rectangle's area.
    np.testing.assert_allclose(decoded.lesion_areas, 12 * 15 / (30 * 40), atol=0.02)
    decoded.images[:] = 0
    again = decode("folder", tmp_path, size=24, cache_dir=tmp_path / "cache")
    assert again.images.any()
    assert "folder: 3 pairs (all 3) at 24×24 in" in decoded.describe()


SMALL_DISK = """
mount -t tmpfs -o size=256k none {cache} || exit 77
exec {python} -c "
from ulvm.datasets import decode
from ulvm.errors import InputError
try:
    decode('folder', '{data}', size=256, cache_dir='{cache}/ulvm')
except InputError as error:
    print(error)
import os
print(os.listdir('{cache}/ulvm'))
"
"""


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path):
    """Through a memory map it would kill Python (SIGBUS)."""
    write_folder(tmp_path, [f"picture{index}" for index in range(4)])
    cache = tmp_path / "cache"
    cache.mkdir()
    if not shutil.which("unshare"):
        pytest.skip("needs unshare, to mount a small disk")
    script = SMALL_DISK.format(cache=cache, data=tmp_path, python=sys.executable)
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode in (1, 77) and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    said, left = done.stdout.splitlines()
    assert "No space left on device" in said
    assert (
        "It needs a folder with 1 MB of room. Name another one in the variable ULVM_CACHE" in said
    )
    assert left == "[]"


@pytest.mark.parametrize("damage", ["cut", "other shape", "empty", "no array", "missing"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, damage: str):
    write_folder(tmp_path, ["a", "b", "c"])
    cache = tmp_path / "cache"
    first = decode("folder", tmp_path, size=8, cache_dir=cache)
    expected = first.masks.copy()
    path = first.path / "masks.npy"
    content = path.read_bytes()
    path.unlink()
    if damage == "other shape":
        np.save(path, expected[1:])
    elif damage != "missing":
        path.write_bytes({"cut": content[:-1], "empty": b"", "no array": b"x" * 200}[damage])
    again = decode("folder", tmp_path, size=8, cache_dir=cache)
    np.testing.assert_array_equal(again.masks, expected)
    assert list(cache.iterdir()) == [first.path]


def test_what_a_killed_process_had_decoded_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_folder(tmp_path, ["a", "b", "c"])
    cache = tmp_path / "cache"
    left, busy, other = (cache / f".folder-8-abc-{digit * 32}" for digit in "12g")
    for folder in (left, busy, other):
        folder.mkdir(parents=True)
        (folder / "images.npy").touch()
    long_ago = time.time() - cache_module.GIVEN_UP_SECONDS - 9
    for path in (left / "images.npy", left, busy, other / "images.npy", other):
        os.utime(path, (long_ago, long_ago))
    decoded = decode("folder", tmp_path, size=8, cache_dir=cache)
    assert sorted(cache.iterdir()) == sorted([busy, other, decoded.path])


def test_a_folder_that_may_not_even_be_looked_into_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_folder(tmp_path, ["a", "b", "c"])

    cache = tmp_path / "cache"
    exists = Path.exists

    def refuse(self: Path) -> bool:  # as it does where the tests don't run as root
        if self.is_relative_to(cache):
            raise PermissionError(13, "Permission denied", str(self))
        return exists(self)

    monkeypatch.setattr(Path, "exists", refuse)
    said = problem_of(lambda: decode("folder", tmp_path, size=8, cache_dir=cache))
    assert "Permission denied" in said
    assert "ULVM_CACHE" in said


def test_equal_pixels_have_equal_fingerprints(tmp_path: Path):
    """A copy under another name and in another format; other pictures differ."""
    write_folder(tmp_path, ["a", "b", "c"])
    shape = np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(shape).save(tmp_path / "images" / "a.png")
    Image.fromarray(shape).save(tmp_path / "images" / "c.png", compress_level=0)
    Image.fromarray(shape[::-1].copy()).save(tmp_path / "images" / "b.png")
    decoded = decode("folder", tmp_path, size=8, cache_dir=tmp_path / "cache")
    a, b, c = decoded.fingerprints(["a", "b", "c"])
    assert a == c != b
    assert len(a) == 16
