"""The training loop: its parts against oracles, then whole small runs on drawn pictures."""

import csv
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import ulvm.nn.train as training
from ulvm import datasets, splits, synthetic
from ulvm.errors import InputError
from ulvm.nn.checkpoint import WEIGHTS, load_weights
from ulvm.nn.train import CHECKPOINT, RUN, learning_rate, segmentation_loss, train
from ulvm.presets import find_preset
from ulvm.spec import RunSpec, TrainSpec

PICTURES = 12


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    synthetic.write_dataset(folder, PICTURES, seed=1, size_hw=(64, 64))
    ids = [pair.id for pair in datasets.find_pairs("folder", folder)]
    parts = {"train": tuple(ids[:8]), "validation": tuple(ids[8:10]), "test": tuple(ids[10:])}
    splits.Split("small", "folder", parts).save(folder / "split.json")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def small_run(data_dir: Path, *assignments: str) -> RunSpec:
    return find_preset("bundled").run.override(
        [
            "data.dataset=folder",
            f"data.split={data_dir / 'split.json'}",
            "data.image_size=64",
            "train.epochs=3",
            "train.warmup_epochs=1",
            "train.batch_size=4",
            *assignments,
        ]
    )


def run_small(data_dir: Path, out_dir: Path, *assignments: str, resume: bool = False) -> Path:
    run = small_run(data_dir, *assignments)
    return train(run, data_dir, out_dir, device="cpu", resume=resume, progress=False)


def test_the_authors_schedule_is_torchs_cosine_annealing() -> None:
    recipe = TrainSpec()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=1e-5)
    for epoch in range(250):
        rate = optimizer.param_groups[0]["lr"]
        assert learning_rate(recipe, epoch + 0.7) == pytest.approx(rate, rel=1e-6), epoch
        optimizer.step()
        schedule.step()


def test_one_cycle_rises_once_and_falls_to_its_floor() -> None:
    recipe = TrainSpec(schedule="one-cycle", epochs=10, warmup_epochs=2, learning_rate=1.0)
    rates = [learning_rate(recipe, epoch / 4) for epoch in range(41)]
    top = rates.index(max(rates))
    assert top == 8
    assert rates[top] == pytest.approx(1.0)
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a > b for a, b in itertools.pairwise(rates[top:]))
    assert rates[-1] == pytest.approx(recipe.min_learning_rate)


def test_loss_of_one_class_worked_by_hand() -> None:
    logits = torch.tensor([[[[0.0, math.log(3)]]]])  # probabilities ½ and ¾
    mask = torch.tensor([[[0.0, 1.0]]])
    entropy = (-math.log(0.5) - math.log(0.75)) / 2
    dice = (2 * 0.75 + 1) / (0.5 + 0.75 + 1 + 1)
    assert segmentation_loss(logits, mask).item() == pytest.approx(entropy + 1 - dice)


def test_loss_of_two_classes_is_lowest_for_the_truth() -> None:
    labels = torch.randint(0, 3, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    right = F.one_hot(labels, 3).movedim(-1, 1) * 50.0
    assert segmentation_loss(right, labels).item() == pytest.approx(0, abs=1e-3)
    assert segmentation_loss(right.roll(1, dims=1), labels).item() > 10


def test_a_run_leaves_everything_in_its_folder(data_dir: Path, tmp_path: Path) -> None:
    weights = run_small(data_dir, tmp_path / "run")
    assert {path.name for path in weights.parent.iterdir()} == {
        RUN, CHECKPOINT, WEIGHTS, "metrics.csv", "metrics.jsonl", "curves.png",
    }  # fmt: skip
    stored = json.loads((weights.parent / RUN).read_text())
    split = splits.load_split("folder", data_dir / "split.json")
    assert RunSpec.from_dict(stored["run"]) == small_run(data_dir)
    assert stored["split"]["hash"] == split.hash
    assert stored["epochs_done"] == 3
    assert stored["parameters"] == 49_457
    with (weights.parent / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    lines = (weights.parent / "metrics.jsonl").read_text().splitlines()
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [json.loads(line)["train_loss"] for line in lines] == [
        float(row["train_loss"]) for row in rows
    ]
    best = min(rows, key=lambda row: float(row["validation_loss"]))
    _, run, provenance = load_weights(weights)
    assert run == small_run(data_dir)
    assert provenance["validation"]["epoch"] == int(best["epoch"])


def test_training_learns_drawn_lesions(data_dir: Path, tmp_path: Path) -> None:
    weights = run_small(data_dir, tmp_path / "run", "train.epochs=12", "train.augmentation=none")
    history = [
        json.loads(line) for line in (weights.parent / "metrics.jsonl").read_text().splitlines()
    ]
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert history[-1]["validation_loss"] < history[0]["validation_loss"]


def test_resume_continues_bit_for_bit(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run_small(data_dir, tmp_path / "straight")
    validate = training._validate
    calls = []

    def interrupted(*arguments: object) -> object:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return validate(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "_validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_small(data_dir, tmp_path / "resumed")
    monkeypatch.undo()
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path / "cache"))
    resumed = run_small(data_dir, tmp_path / "resumed", resume=True)
    tensors = [
        torch.load(each.parent / CHECKPOINT, weights_only=True) for each in (straight, resumed)
    ]
    for name, value in tensors[0]["model"].items():
        assert torch.equal(value, tensors[1]["model"][name]), name
    assert torch.equal(tensors[0]["generator"], tensors[1]["generator"])
    losses = [[row["train_loss"] for row in each["history"]] for each in tensors]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def test_another_seed_gives_another_run(data_dir: Path, tmp_path: Path) -> None:
    networks = [
        load_weights(run_small(data_dir, tmp_path / seed, f"train.seed={seed}", "train.epochs=1"))[
            0
        ]
        for seed in ("1", "2")
    ]
    first, second = (network.head.weight for network in networks)
    assert not torch.equal(first, second)


def test_a_run_is_not_overwritten_nor_resumed_as_another(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no checkpoint"):
        run_small(data_dir, tmp_path / "run", resume=True)
    run_small(data_dir, tmp_path / "run", "train.epochs=1")
    with pytest.raises(InputError, match=r"already holds a run.*--resume"):
        run_small(data_dir, tmp_path / "run", "train.epochs=1")
    with pytest.raises(InputError, match=r"train\.batch_size"):
        run_small(data_dir, tmp_path / "run", "train.epochs=1", "train.batch_size=2", resume=True)


def test_a_loss_that_is_not_finite_stops_the_run(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not finite.*learning_rate"):
        run_small(data_dir, tmp_path / "run", "train.learning_rate=1e30", "train.warmup_epochs=0")
    assert not (tmp_path / "run" / WEIGHTS).exists()


def test_two_classes_train_too(data_dir: Path, tmp_path: Path) -> None:
    weights = run_small(data_dir, tmp_path / "run", "model.classes=2", "train.epochs=1")
    network, _, _ = load_weights(weights)
    with torch.no_grad():
        assert network(torch.rand(1, 3, 64, 64) * 255).shape == (1, 2, 64, 64)


def test_unknown_device_is_named() -> None:
    with pytest.raises(InputError, match="'abacus' cannot be used"):
        training.choose_device("abacus")


def test_validation_counts_every_picture(data_dir: Path) -> None:
    """Batches of any size give the loss and the counts of one picture at a time."""
    run = small_run(data_dir)
    _, part, _ = training.load_parts(run, data_dir, torch.device("cpu"))
    torch.manual_seed(0)
    network = training.UltraLightVMUNet(run.model)
    loss, counts = training._validate(network, part, 0.5)
    singles = [
        training._validate(
            network, training.Part(part.images[i : i + 1], part.masks[i : i + 1]), 0.5
        )
        for i in range(len(part))
    ]
    assert loss == pytest.approx(np.mean([single for single, _ in singles]), rel=1e-4)
    assert counts.images == len(part)
    assert counts.tp.sum() == sum(int(each.tp.sum()) for _, each in singles)


def test_tensorboard_files_are_written_when_asked(data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = small_run(data_dir, "train.epochs=1")
    train(run, data_dir, tmp_path / "run", device="cpu", tensorboard=True, progress=False)
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.*"))
