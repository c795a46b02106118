"""Runs that start from a model's weights, and runs that end early."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from made_up_folders import write_split_folder
from ulvm import datasets, splits
from ulvm.errors import InputError
from ulvm.models import find_weights
from ulvm.nn.checkpoint import load_weights, save_weights
from ulvm.nn.model import UltraLightVMUNet
from ulvm.nn.parent import load_parent
from ulvm.nn.train import train
from ulvm.nn.validate import Validation
from ulvm.presets import find_preset
from ulvm.provenance import Seen, read_seen
from ulvm.spec import FORMAT, ModelSpec, RunSpec, TrainSpec

pytestmark = pytest.mark.usefixtures("no_curves")
SIZE = 64


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def draw(folder: Path, seed: int) -> Path:
    """Six pictures and their split file."""
    write_split_folder(folder, seed=seed, size=SIZE, train=4, validation=1, test=1)
    return folder


def recipe(data_dir: Path, *assignments: str) -> list[str]:
    return [
        "data.dataset=folder",
        f"data.split={data_dir / 'split.json'}",
        f"data.image_size={SIZE}",
        "train.epochs=1",
        "train.batch_size=4",
        *assignments,
    ]


def run_from(model: str | Path, data_dir: Path, out_dir: Path, *assignments: str) -> Path:
    parent = load_parent(model)
    run = parent.apply(find_preset("paper").run, recipe(data_dir, *assignments))
    return train(run, data_dir, out_dir, parent=parent, device="cpu", progress=False)


@pytest.mark.parametrize("average", [0, 0.99])
def test_training_begins_with_the_parents_weights(tmp_path: Path, average: float) -> None:
    data_dir = draw(tmp_path / "drawn", 1)
    still = ("train.learning_rate=0", "train.min_learning_rate=0", f"train.average_decay={average}")
    weights = run_from("skin", data_dir, tmp_path / "run", *still)
    network, run, provenance = load_weights(weights)
    theirs, parent, _ = load_weights("skin")
    assert run.model == parent.model != find_preset("paper").run.model
    torch.testing.assert_close(network.state_dict(), theirs.state_dict(), rtol=0, atol=1e-6)
    assert provenance["parent"]["model"] == "skin"
    stored = json.loads((weights.parent / "run.json").read_text())
    assert stored["from"]["sha256"] == provenance["parent"]["sha256"]


def test_what_all_parents_have_seen_is_seen(tmp_path: Path) -> None:
    first, second = draw(tmp_path / "first", 1), draw(tmp_path / "second", 2)
    child = run_from("skin", first, tmp_path / "child")
    grandchild = run_from(child.parent, second, tmp_path / "grandchild")
    _, run, provenance = load_weights(grandchild)
    seen = read_seen(run, provenance)
    named = [(each.split.dataset, each.split.name) for each in seen]
    ours = [("folder", "small"), ("folder", "small")]
    assert named == [*ours, ("isic2017", "skin"), ("pad-ufes", "skin")]
    for each, folder in zip(seen, (second, first), strict=False):
        for size in (SIZE, 96):  # at another size than theirs too
            decoded = datasets.decode("folder", folder, size=size)
            assert list(each.pictures) == decoded.fingerprints(decoded.ids[:5], each.size)


def test_the_network_is_the_parents(tmp_path: Path) -> None:
    parent = load_parent("isic2017")
    run = find_preset("unet").run
    assert parent.apply(run, ["train.epochs=3"]).model == parent.model
    with pytest.raises(
        InputError, match=r"model\.d_state=8 does not fit weights of model\.d_state=16\."
    ):
        parent.apply(run, ["model.classes=3", "model.d_state=8"])
    with pytest.raises(InputError, match=r"The network is that of isic2017.*model\.widths"):
        parent.tensors_for(ModelSpec(widths=(8, 8, 8, 8, 8, 8)))


def test_other_classes_have_a_new_head(tmp_path: Path) -> None:
    parent = load_parent("skin")
    run = parent.apply(RunSpec(), ["model.classes=3"])
    taken = parent.tensors_for(run.model)
    assert parent.state.keys() - taken.keys() == {"head.weight", "head.bias"}


def test_a_run_with_a_parent_goes_on_with_it_alone(tmp_path: Path) -> None:
    data_dir = draw(tmp_path / "drawn", 1)
    run_from("skin", data_dir, tmp_path / "run")
    parent = load_parent("skin")
    run = parent.apply(find_preset("paper").run, recipe(data_dir, "train.epochs=2"))
    words: dict[str, Any] = {"device": "cpu", "resume": True, "progress": False}
    with pytest.raises(InputError, match="was started from other weights"):
        train(run, data_dir, tmp_path / "run", **words)
    train(run, data_dir, tmp_path / "run", parent=parent, **words)
    history = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(history) == 2


def test_a_parent_from_before_fingerprints_is_kept_by_its_split(tmp_path: Path) -> None:
    run = RunSpec()
    split = splits.load_split(run.data.dataset, run.data.split)
    path = tmp_path / "old.safetensors"
    save_weights(path, UltraLightVMUNet(run.model), run, {"split_hash": split.hash})
    (seen,) = load_parent(path).seen
    assert seen.split == split
    assert not seen.pictures
    assert Seen.from_dict(json.loads(json.dumps(seen.to_dict()))) == seen


def test_a_file_from_before_patience_is_read(tmp_path: Path) -> None:
    stored = RunSpec().to_dict()
    del stored["train"]["patience"]
    assert RunSpec.from_dict(stored).train.patience == 0
    assert FORMAT == 1  # and so the bundled files
    assert find_weights("skin").is_file()


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (2, 4), (3, 6)])
def test_training_ends_where_patience_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, epochs: int
) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.0, 1.0, 1.5])
    run_validation = Validation.run
    monkeypatch.setattr(Validation, "run", lambda self: (next(losses), run_validation(self)[1]))
    data_dir = draw(tmp_path / "drawn", 1)
    run = RunSpec().override(
        recipe(data_dir, "train.epochs=6", f"train.patience={patience}", "train.batch_size=2")
    )
    train(run, data_dir, tmp_path / "run", device="cpu", progress=False)
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored["epochs_done"] == epochs
    assert stored["best"]["epoch"] == (2 if epochs == 4 else 5)


def test_patience_is_a_count() -> None:
    with pytest.raises(InputError, match=r"TrainSpec\.patience=-1 is out of range"):
        TrainSpec(patience=-1)
