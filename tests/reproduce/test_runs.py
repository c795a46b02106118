"""A table's runs on drawn pictures: trained, scored, kept, found again and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ulvm import datasets, metrics, splits, synthetic
from ulvm.errors import InputError
from ulvm.metrics import Confusion
from ulvm.nn.checkpoint import load_probability
from ulvm.nn.train import train
from ulvm.presets import find_preset
from ulvm.reproduce import runs as module
from ulvm.reproduce.experiments import Experiment, Row
from ulvm.reproduce.runs import reproduce
from ulvm.spec import RunSpec

pytestmark = pytest.mark.usefixtures("no_curves")
SIZE = 32
SHORT = ["train.epochs=2", "train.batch_size=4", f"data.image_size={SIZE}", "model.bridge=none"]


class DrawnRow(Row):
    """A row on the drawn pictures, whose split is a file."""

    def names(self) -> list[str]:
        return [f"drawn/{self.preset}-{seed}" for seed in self.seeds]

    def runs(self) -> list[RunSpec]:
        data = ["data.dataset=folder", f"data.split={self.split}", *SHORT]
        run = find_preset(self.preset).run.override(data)
        return [run.override([f"train.seed={seed}"]) for seed in self.seeds]


@pytest.fixture
def split_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve drawn pictures; every table is of the same two runs on them."""
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data" / "folder"
    synthetic.write_dataset(folder, 12, seed=0, size_hw=(SIZE, SIZE))
    ids = [pair.id for pair in datasets.find_pairs("folder", folder)]
    path = tmp_path / "split.json"
    parts = {"train": tuple(ids[:6]), "validation": tuple(ids[6:8]), "test": tuple(ids[8:])}
    splits.Split("drawn", "folder", parts).save(path)
    rows = (DrawnRow(preset="paper", split=str(path), seeds=(1, 2)),)
    monkeypatch.setattr(
        module, "find_experiment", lambda name: Experiment(question=name, rows=rows)
    )
    # PH2 cannot be drawn with its own ids.
    monkeypatch.setattr(module, "_scored_on", lambda run: [("folder", str(path))] * 2)
    return path


def run_table(tmp_path: Path, device: str = "cpu", **options: Any) -> list[tuple[str, int, int]]:
    folders = [tmp_path / name for name in ("data", "results", "runs")]
    return list(reproduce(["drawn", "again"], *folders, device=device, **options))


def read_result(tmp_path: Path, seed: int) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((tmp_path / f"results/drawn/paper-{seed}.json").read_text())
    return result


def test_results_hold_the_run_and_counts_of_the_weights(tmp_path: Path, split_file: Path) -> None:
    said = run_table(tmp_path, side_by_side=2)
    assert sorted((done, count) for _, done, count in said) == [(1, 2), (2, 2)]
    result = read_result(tmp_path, 2)
    assert result["run"]["train"]["seed"] == 2
    assert (result["preset"], result["parameters"], result["side_by_side"]) == ("paper", 32_843, 2)
    assert result["train_s"] > 0
    assert result["git_commit"] is None or result["git_commit"]

    split = splits.load_split("folder", split_file)
    scored = result["scores"][0]
    assert scored["split"] == {"name": "drawn", "hash": split.hash, "part": "test"}
    decoded = datasets.decode("folder", tmp_path / "data" / "folder", size=SIZE)
    rows = decoded.indices(split.ids("test"))
    probability_of, _ = load_probability(tmp_path / "runs" / "drawn" / "paper-2")
    mask = probability_of(decoded.images[rows])[:, 0] >= 0.5
    expected = metrics.confusion(mask, decoded.masks[rows] >= 128)
    for name in ("tp", "fp", "fn"):
        assert scored[name] == getattr(expected, name).tolist()
    assert scored["pooled"]["dsc"] == pytest.approx(float(metrics.dice(expected.pooled())[0]))
    tp, fp, fn = (np.array(scored[name]) for name in ("tp", "fp", "fn"))
    again = Confusion(tp=tp, fp=fp, fn=fn, tn=scored["pixels"] - tp - fp - fn)
    assert scored["pooled"]["acc"] == pytest.approx(metrics.scores(again).pooled.acc)


def test_what_is_done_is_not_done_again(tmp_path: Path, split_file: Path) -> None:
    assert len(run_table(tmp_path, only=["paper-1"])) == 1
    first = read_result(tmp_path, 1)
    assert [(done, count) for _, done, count in run_table(tmp_path)] == [(2, 2)]
    assert read_result(tmp_path, 1) == first
    assert run_table(tmp_path) == []


def test_a_stopped_run_is_resumed_to_the_same_scores(tmp_path: Path, split_file: Path) -> None:
    run_table(tmp_path, only=["paper-1"])
    whole = read_result(tmp_path, 1)
    (tmp_path / "results/drawn/paper-1.json").unlink()
    run = RunSpec.from_dict(whole["run"])
    run_dir = tmp_path / "runs/drawn/paper-1"
    run_dir.rename(tmp_path / "whole")
    train(
        run.override(["train.epochs=1"]), tmp_path / "data/folder", run_dir, device="cpu",
        progress=False,
    )  # fmt: skip
    run_table(tmp_path, only=["paper-1"])
    resumed = read_result(tmp_path, 1)
    assert resumed["train_s"] is None
    assert resumed["scores"] == whole["scores"]
    assert resumed["best"]["validation_loss"] == whole["best"]["validation_loss"]


@pytest.mark.parametrize(
    ("gpus", "asked", "used"),
    [
        (2, "auto", ["cuda:0", "cuda:1"]),
        (1, "auto", ["auto", "auto"]),
        (2, "cuda:1", ["cuda:1", "cuda:1"]),
    ],
)
def test_runs_take_turns_on_all_gpus(
    gpus: int,
    asked: str,
    used: list[str],
    tmp_path: Path,
    split_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr(module, "_work", lambda job: job.device)
    assert [said for said, _, _ in run_table(tmp_path, asked)] == used


@pytest.mark.parametrize("side_by_side", [1, 2])
def test_a_run_that_fails_stops_no_other(
    side_by_side: int, tmp_path: Path, split_file: Path
) -> None:
    broken = tmp_path / "runs/drawn/paper-1/checkpoint.pt"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no checkpoint")
    said: list[tuple[str, int, int]] = []
    folders = [tmp_path / name for name in ("data", "results", "runs")]
    with pytest.raises(InputError, match="1 of 2 runs failed"):
        said.extend(reproduce(["drawn"], *folders, device="cpu", side_by_side=side_by_side))
    assert sorted(each.split(":")[0] for each, *_ in said) == [
        "drawn/paper-1 failed",
        "drawn/paper-2",
    ]
    assert read_result(tmp_path, 2)["scores"]


def test_a_result_of_another_run_is_refused(tmp_path: Path, split_file: Path) -> None:
    run_table(tmp_path, only=["paper-1"])
    with pytest.raises(InputError, match="result of another run"):
        run_table(tmp_path, only=["paper-1"], assignments=["train.learning_rate=0.1"])


def test_only_must_name_a_run(tmp_path: Path, split_file: Path) -> None:
    with pytest.raises(InputError, match=r"has sorted in.*drawn/paper-1, drawn/paper-2"):
        run_table(tmp_path, only=["sorted"])
