"""Whole small runs on drawn pictures: what they leave, and how they continue."""

import contextlib
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import ulvm.nn.train as training
from made_up_folders import write_split_folder
from ulvm import datasets, splits, synthetic
from ulvm.errors import InputError, RunWarning
from ulvm.metrics import Confusion
from ulvm.nn.checkpoint import WEIGHTS, load_probability, load_weights
from ulvm.nn.model import PictureToProbability
from ulvm.nn.peers import build_peer
from ulvm.nn.run_folder import CHECKPOINT, CHECKPOINT_BEFORE, LOCK, RUN, only_here
from ulvm.nn.step import Learner
from ulvm.nn.train import train
from ulvm.nn.validate import Validation
from ulvm.presets import find_preset
from ulvm.provenance import read_seen
from ulvm.spec import RunSpec

PICTURES = 12
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
gpu = (pytest.mark.gpu, needs_gpu)


pytestmark = pytest.mark.usefixtures("no_curves")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_split_folder(folder, seed=1, train=8, validation=2, test=PICTURES - 10)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def small_run(data_dir: Path, *assignments: str) -> RunSpec:
    return find_preset("best").run.override(
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


def run_small(
    data_dir: Path, out_dir: Path, *assignments: str, resume: bool = False, device: str = "cpu"
) -> Path:
    run = small_run(data_dir, *assignments)
    return train(run, data_dir, out_dir, device=device, resume=resume, progress=False)


def test_a_run_leaves_everything_in_its_folder(data_dir: Path, tmp_path: Path) -> None:
    weights = run_small(data_dir, tmp_path / "run")
    assert {path.name for path in weights.parent.iterdir()} == {
        RUN, CHECKPOINT, CHECKPOINT_BEFORE, WEIGHTS, "metrics.csv", "metrics.jsonl", "curves.png",
        LOCK,
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


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
@pytest.mark.parametrize(
    ("seconds", "share", "stored_epoch"), [(0.0, math.inf, 2), (1e9, math.inf, 1), (0.0, 1e-9, 1)]
)
def test_resume_continues_bit_for_bit(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    share: float,
    stored_epoch: int,
    device: str,
) -> None:
    """Whether the checkpoint is of the last finished epoch or of one long before."""
    averaged = "train.average_decay=0.9"
    straight = run_small(data_dir, tmp_path / "straight", averaged, device=device)
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", seconds)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", share)
    interrupt_validation(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        run_small(data_dir, tmp_path / "resumed", averaged, device=device)
    monkeypatch.undo()
    stored = torch.load(tmp_path / "resumed" / CHECKPOINT, weights_only=True)
    assert stored["epoch"] == stored_epoch
    resumed = run_small(data_dir, tmp_path / "resumed", averaged, resume=True, device=device)
    one, other = (
        torch.load(each.parent / CHECKPOINT, weights_only=True) for each in (straight, resumed)
    )
    for name in ("model", "averaged", "best", "generator", "optimizer"):
        torch.testing.assert_close(one[name], other[name], rtol=0, atol=0)
    losses = [
        [(row["train_loss"], row["validation_loss"]) for row in each["history"]]
        for each in (one, other)
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3


def interrupt_validation(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let a run stop in its ``number``-th validation."""
    run = Validation.run
    calls = []

    def interrupted(self: Validation) -> tuple[float, Confusion]:
        calls.append(None)
        if len(calls) == number:
            raise KeyboardInterrupt
        return run(self)

    monkeypatch.setattr(Validation, "run", interrupted)


def test_a_crash_between_files_is_repaired_by_resuming(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is written before the weights and holds them, so it never knows less."""

    def crash(*_: object) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr(training, "save_weights", crash)
    with pytest.raises(OSError, match="went away"):
        run_small(data_dir, tmp_path / "run", "train.epochs=1")
    monkeypatch.undo()
    assert not (tmp_path / "run" / WEIGHTS).exists()
    weights = run_small(data_dir, tmp_path / "run", "train.epochs=1", resume=True)
    stored = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    network, _, provenance = load_weights(weights)
    assert provenance["validation"] == stored["history"][0]
    torch.testing.assert_close(dict(network.state_dict()), dict(stored["best"]), rtol=0, atol=0)


def test_the_best_weights_are_those_of_the_best_epoch(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few checkpoints too, and although later epochs moved the weights on."""
    run = Validation.run
    seen = []

    def watched(self: Validation) -> tuple[float, Confusion]:
        _, counts = run(self)
        seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return float([3, 1, 2][len(seen) - 1]), counts

    monkeypatch.setattr(Validation, "run", watched)
    network, _, provenance = load_weights(run_small(data_dir, tmp_path / "run"))
    assert provenance["validation"]["epoch"] == 2
    torch.testing.assert_close(dict(network.state_dict()), seen[1], rtol=0, atol=0)


def test_another_network_is_stored_with_its_batch_norms(data_dir: Path, tmp_path: Path) -> None:
    epoch = ["train.epochs=1", "model.init=paper", "model.network=unet"]
    weights = run_small(data_dir, tmp_path / "run", *epoch)
    best = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)["best"]
    twin = build_peer("unet")
    twin.load_state_dict(best)
    assert best["down.0.1.num_batches_tracked"] == 2
    assert best["down.0.1.running_mean"].any()
    pictures, _ = synthetic.draw_batch(2, 0, (64, 64))
    with torch.no_grad():
        expected = PictureToProbability(twin.eval())(torch.from_numpy(pictures)).numpy()
    probability_of, run = load_probability(weights)
    assert run.model.network == "unet"
    np.testing.assert_array_equal(probability_of(pictures), expected)


def test_a_checkpoint_without_the_newest_fields_is_resumed(data_dir: Path, tmp_path: Path) -> None:
    path = run_small(data_dir, tmp_path / "run", "train.epochs=1").parent / CHECKPOINT
    stored = torch.load(path, weights_only=True)
    del stored["run"]["train"]["precision"], stored["run"]["model"]["network"], stored["random"]
    torch.save(stored, path)
    run_small(data_dir, tmp_path / "run", "train.epochs=2", resume=True)
    assert torch.load(path, weights_only=True)["epoch"] == 2


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


def test_tensorboard_files_are_written_when_asked(data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = small_run(data_dir, "train.epochs=1")
    train(run, data_dir, tmp_path / "run", device="cpu", tensorboard=True, progress=False)
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.*"))


def damage(path: Path) -> None:
    """One bit of the largest tensor's numbers, where torch doesn't see it."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        numbers = archive.read(largest)
    content[content.index(numbers) + len(numbers) // 2] ^= 1
    path.write_bytes(content)


TWO_EPOCHS = ("train.augmentation=none", "train.epochs=2")


@pytest.fixture(scope="module")
def two_epochs(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a checkpoint of each epoch, for tests that spoil a copy of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ULVM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(training, "CHECKPOINT_SHARE", math.inf)
        return run_small(data_dir, tmp_path_factory.mktemp("two") / "run", *TWO_EPOCHS).parent


@pytest.mark.parametrize("how", ["a bit", "cut", "empty", "gone", "text"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    data_dir: Path, two_epochs: Path, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(training, "CHECKPOINT_SHARE", math.inf)
    straight = load_weights(two_epochs)[0]
    folder = tmp_path / "run"
    shutil.copytree(two_epochs, folder)
    path, before = folder / CHECKPOINT, folder / CHECKPOINT_BEFORE
    content = path.read_bytes()
    if how == "a bit":
        damage(path)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-100], "empty": b"", "text": b"none" * 99}[how])
    context = contextlib.nullcontext()
    if how != "gone":  # which a kill between two names leaves too
        context = pytest.warns(RunWarning, match=r"checkpoint\.pt is damaged.*before, of epoch 1")
    with context:
        resumed = run_small(data_dir, folder, *TWO_EPOCHS, resume=True)
    torch.testing.assert_close(
        dict(load_weights(resumed)[0].state_dict()), dict(straight.state_dict()), rtol=0, atol=0
    )
    assert torch.load(before, weights_only=True)["epoch"] == 1  # no damaged one took its place
    for each in (path, before):
        damage(each)
    with pytest.raises(InputError, match=r"checkpoint\.pt is damaged.*before\.pt is damaged"):
        run_small(data_dir, folder, *TWO_EPOCHS, resume=True)


FOREIGN = {
    "a list": [1, 2],
    "a tensor": torch.zeros(3),
    "other tables": {"state_dict": {}},
    "other values": dict.fromkeys(["run", "epoch", "history", "model", "best"], 3),
    "an object": Path("here"),
}


@pytest.mark.parametrize("kind", [*FOREIGN, "other shapes", "no generator", "archive"])
def test_a_foreign_checkpoint_is_a_sentence(data_dir: Path, tmp_path: Path, kind: str) -> None:
    """And nobody is advised to load it with weights_only=False."""
    folder = tmp_path / "run"
    if kind in FOREIGN:
        folder.mkdir()
        torch.save(FOREIGN[kind], folder / CHECKPOINT)
    elif kind == "archive":
        folder.mkdir()
        with zipfile.ZipFile(folder / CHECKPOINT, "w") as archive:
            archive.writestr("photo.txt", "none")
    else:
        run_small(data_dir, folder, "train.epochs=1")
        stored = torch.load(folder / CHECKPOINT, weights_only=True)
        if kind == "no generator":
            del stored["generator"]
        else:
            stored["best"]["head.weight"] = torch.zeros(2, 2)
        torch.save(stored, folder / CHECKPOINT)
    with pytest.raises(
        InputError, match="is no checkpoint that this version of ulvm wrote"
    ) as said:
        run_small(data_dir, folder, "train.epochs=1", resume=True)
    assert "weights_only" not in str(said.value)


def test_a_run_goes_on_with_the_split_and_pixels_it_began_with(
    data_dir: Path, tmp_path: Path
) -> None:
    own = shutil.copytree(data_dir, tmp_path / "own")
    folder = tmp_path / "run"
    run_small(own, folder, "train.epochs=1")
    for side, words in (
        ("images", "1 pictures of folder have changed"),
        ("masks", "Masks of fold"),
    ):
        first, second, *_ = sorted((own / side).iterdir())
        kept = first.read_bytes()
        first.write_bytes(second.read_bytes())
        with pytest.raises(InputError, match=words):
            run_small(own, folder, "train.epochs=2", resume=True)
        first.write_bytes(kept)
    kept = (own / "split.json").read_text()
    moved = json.loads(kept)
    moved["parts"]["test"].append(moved["parts"]["train"].pop())
    (own / "split.json").write_text(json.dumps(moved))
    with pytest.raises(InputError, match="The split of folder has changed"):
        run_small(own, folder, "train.epochs=2", resume=True)
    (own / "split.json").write_text(kept)
    assert run_small(own, folder, "train.epochs=2", resume=True).exists()


def test_what_was_seen_is_in_checkpoint_and_weights(data_dir: Path, tmp_path: Path) -> None:
    weights = run_small(data_dir, tmp_path / "run", "train.epochs=1")
    stored = torch.load(weights.parent / CHECKPOINT, weights_only=True)
    _, run, provenance = load_weights(weights)
    assert provenance["seen"] == stored["seen"]
    (seen,) = read_seen(run, provenance)
    assert seen.split == splits.load_split("folder", data_dir / "split.json")
    decoded = datasets.decode("folder", data_dir, size=64)
    assert list(seen.pictures) == decoded.fingerprints(decoded.ids[:10])


def test_fewer_epochs_than_done_are_refused(data_dir: Path, tmp_path: Path) -> None:
    weights = run_small(data_dir, tmp_path / "run", "train.epochs=2")
    before = (weights.parent / RUN).read_text()
    with pytest.raises(InputError, match="has done 2 epochs already, more than 1"):
        run_small(data_dir, tmp_path / "run", "train.epochs=1", resume=True)
    assert (weights.parent / RUN).read_text() == before


def test_a_folder_takes_one_process(data_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with only_here(folder), pytest.raises(InputError, match="Another process trains in"):
        run_small(data_dir, folder, "train.epochs=1")
    assert [path.name for path in folder.iterdir()] == [LOCK]
    (folder / ".run.json.0123abcd.part").touch()  # of a process that was killed
    run_small(data_dir, folder, "train.epochs=1")
    assert not list(folder.glob("*.part"))


def test_a_loss_that_is_not_finite_is_seen_before_the_epoch_ends(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    update = Learner.update

    def watched(self: Learner, *arguments: torch.Tensor) -> None:
        steps.append(None)
        update(self, *arguments)

    monkeypatch.setattr(Learner, "update", watched)
    high = ("train.learning_rate=1e30", "train.warmup_epochs=0", "train.batch_size=1")
    with pytest.raises(InputError, match="not finite") as said:
        run_small(data_dir, tmp_path / "run", *high)
    assert len(steps) <= 3
    assert "checkpoint" not in str(said.value)  # there is none


@pytest.mark.parametrize(
    "problem",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_too_little_memory_is_a_sentence(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr(Learner, "update", fail)
    with pytest.raises(InputError, match=r"too little memory.*Lower train\.batch_size"):
        run_small(data_dir, tmp_path / "run")


def test_one_picture_of_one_pixel_in_a_batch_norm_is_a_sentence(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def normalise(*_: object) -> None:
        torch.nn.BatchNorm2d(4)(torch.zeros(1, 4, 1, 1))

    monkeypatch.setattr(Learner, "update", normalise)
    with pytest.raises(InputError, match=r"can't be normalised.*Raise data\.image_size"):
        run_small(data_dir, tmp_path / "run")


def test_other_errors_of_torch_are_not_taken_for_that(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes")

    monkeypatch.setattr(Learner, "update", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        run_small(data_dir, tmp_path / "run")


def test_a_notebooks_way_of_showing_figures_ends_no_training(tmp_path: Path) -> None:
    """It names a module that the program it starts may not have."""
    script = f"""
import os
from pathlib import Path
from ulvm.nn.run_folder import draw_curves
row = dict(epoch=1, train_loss=1.0, validation_loss=1.0, validation_dsc_pooled=0.5)
draw_curves(Path({str(tmp_path)!r}), [row])
assert os.environ["MPLBACKEND"]
"""
    for backend in ("module://nobodys.backend_inline", "nobodys-inline"):
        changed = os.environ | {"MPLBACKEND": backend}
        subprocess.run([sys.executable, "-c", script], env=changed, check=True)
        (tmp_path / "curves.png").unlink()
