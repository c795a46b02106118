"""Many pictures over a Ray cluster of two processes: each once, also where a worker is killed."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import ulvm
from ulvm.cli import main
from ulvm.errors import InputError
from ulvm.image import read_mask
from ulvm.synthetic import draw_lesion
from ulvm.use import ray_data
from ulvm.use.ray_data import Address, find_addresses, predict_on_ray

COUNT = 300


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray on two cores of this machine."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    pytest.importorskip("ray.data", reason="the extra ray is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)
    yield ray
    ray.shutdown()


# Of Ray's own code, in its version of the day.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two folders of small drawn pictures, five different ones."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("first", "second"):
        (folder / name).mkdir()
    for number in range(COUNT):
        path = folder / ("first", "second")[number % 2] / f"{number:04}.png"
        if number < 5:
            Image.fromarray(draw_lesion(number, (60, 80 + number)).image_rgb).save(path)
        else:
            older = number % 5
            path.hardlink_to(folder / ("first", "second")[older % 2] / f"{older:04}.png")
    return folder


def rows_in(out: Path) -> list[dict[str, Any]]:
    paths = sorted((out / "rows").glob("*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def require_each_once(out: Path, pictures: Path, expected: int = COUNT) -> None:
    """One row and one right mask for each picture."""
    sources = sorted(str(path) for path in pictures.rglob("*.png"))
    rows = rows_in(out)
    assert sorted(row["source"] for row in rows if row["error"] is None) == sources
    assert len(rows) == len(list(out.rglob("*_mask.png"))) == expected
    masks = [ulvm.load()(draw_lesion(seed, (60, 80 + seed)).image_rgb).mask for seed in range(5)]
    for row in rows:
        mask = masks[int(Path(row["source"]).stem) % 5]
        assert row["area_pixels"] == mask.sum()
        assert (read_mask(row["mask_path"]) == np.where(mask, 255, 0)).all()


def test_a_killed_worker_loses_and_repeats_nothing(
    cluster: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_data, "BLOCK", 10)
    monkeypatch.setattr(ray_data, "PART", 20)
    killed = []
    for number, _ in enumerate(predict_on_ray(find_addresses([str(pictures)]), str(tmp_path))):
        if number == 40:
            children = worker_processes()
            os.kill(children[0], signal.SIGKILL)
            killed.append(children[0])
    assert killed
    assert killed[0] not in worker_processes()
    require_each_once(tmp_path, pictures)


def worker_processes() -> list[int]:
    """Of the actors, by the name that Ray gives a process."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            name = status.read_bytes()
        except OSError:
            continue
        if name.startswith(b"ray::") and b"Map" in name:
            found.append(int(status.parent.name))
    return sorted(found)


def test_a_run_that_was_stopped_goes_on(
    cluster: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_data, "BLOCK", 10)
    monkeypatch.setattr(ray_data, "PART", 20)
    addresses = find_addresses([str(pictures)])
    running = predict_on_ray(addresses, str(tmp_path))
    for _ in range(30):
        next(running)
    running.close()  # as by Ctrl+C
    done = len(rows_in(tmp_path))
    assert 30 <= done < COUNT
    written = {
        row["mask_path"]: Path(row["mask_path"]).stat().st_mtime_ns for row in rows_in(tmp_path)
    }
    rest = list(predict_on_ray(addresses, str(tmp_path)))
    assert len(rest) == COUNT - done
    require_each_once(tmp_path, pictures)
    assert all(Path(path).stat().st_mtime_ns == when for path, when in written.items())
    assert list(predict_on_ray(addresses, str(tmp_path))) == []


def test_the_command_reads_a_parquet_file_and_writes_to_a_store(
    cluster: Any, tmp_path: Path
) -> None:
    """The store is a folder under an address of fsspec's, read and written by way of it."""
    import pyarrow
    import pyarrow.parquet

    sources = []
    for seed in range(3):
        path = tmp_path / f"{seed}.png"
        Image.fromarray(draw_lesion(seed, (60, 80 + seed)).image_rgb).save(path)
        sources.append(f"local://{path}")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    sources += [f"local://{tmp_path}/broken.png", f"local://{tmp_path}/missing.png"]
    pyarrow.parquet.write_table(pyarrow.table({"path": sources}), tmp_path / "list.parquet")
    out = f"local://{tmp_path}/out"
    command = ["predict", str(tmp_path / "list.parquet"), "--ray", "--out", out]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1, done.output
    assert "broken.png is not a picture" in done.output
    assert "missing.png cannot be read" in done.output
    assert "3 of 5 pictures done" in done.output
    masks = sorted((tmp_path / "out").rglob("*_mask.png"))
    assert [path.name for path in masks] == [f"{seed}_mask.png" for seed in range(3)]
    Image.fromarray(draw_lesion(3, (60, 80)).image_rgb).save(tmp_path / "broken.png")
    again = CliRunner().invoke(main, command)
    assert "4 of 5 pictures done, 2 now" in again.output
    rows = rows_in(tmp_path / "out")
    assert [row["error"] is None for row in rows].count(True) == 4
    assert len({row["source"] for row in rows}) == len(rows) == 5


def test_a_folder_of_a_store_is_searched(tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="fsspec is not installed")
    for name in ("a/one.png", "a/one_mask.png", "b/.two.png", "b/three.JPG", "b/text.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_addresses([f"local://{tmp_path}"])
    assert [each.output for each in found] == ["a/one", "b/three"]
    assert all("://" in each.source for each in found)
    with pytest.raises(InputError, match="No picture found"):
        find_addresses([f"local://{tmp_path}/c"])


def test_masks_of_one_name_get_numbers_and_keep_them() -> None:
    addresses = [Address("/x/a.jpg", "a"), Address("/x/a.png", "a"), Address("/x/b.png", "b")]
    chosen = ray_data._choose_outputs(addresses, {})
    assert [each.output for each in chosen] == ["a", "a-2", "b"]
    rest = ray_data._choose_outputs(addresses, {"/x/a.png": "a-2"})
    assert [each.output for each in rest] == ["a", "b"]
    rest = ray_data._choose_outputs(addresses, {"/x/a.png": "a"})
    assert [each.output for each in rest] == ["a-2", "b"]


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("s3://bucket/day/photo.jpg", "bucket/day/photo"),
        ("/data/photo.jpg", "data/photo"),
        ("../../etc/photo.jpg", "etc/photo"),
    ],
)
def test_a_mask_never_leaves_the_output_folder(source: str, output: str) -> None:
    assert ray_data._output_of(source) == output


def test_ray_writes_masks_only() -> None:
    done = CliRunner().invoke(main, ["predict", "photo.jpg", "--ray", "--overlay"])
    assert done.exit_code == 2
    assert "leave out --overlay" in done.output


def test_rows_of_slow_pictures_are_written_before_a_part_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = [{"row": np.array([json.dumps(number)])} for number in range(3)]
    assert list(ray_data._in_parts(batches)) == [[0, 1, 2]]
    monkeypatch.setattr(ray_data, "PART_S", 0.0)
    assert list(ray_data._in_parts(batches)) == [[0], [1], [2]]
