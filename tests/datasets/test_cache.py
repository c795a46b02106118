"""A data set is decoded once, whole or not at all."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from made_up_folders import problem_of, spoil, write_folder
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
