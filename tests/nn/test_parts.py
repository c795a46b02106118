"""What a run with several data sets is trained on."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ulvm import datasets, splits, synthetic
from ulvm.errors import InputError, RunWarning
from ulvm.nn.parts import load_parts, share_out, write_teacher
from ulvm.nn.train import train
from ulvm.presets import find_preset
from ulvm.spec import DataSpec, RunSpec, SourceSpec

CPU = torch.device("cpu")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two drawn data sets of 8 pictures, 5 to train with."""
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ulvm.nn.parts.DRAWN_PICTURES", 10)
    monkeypatch.setattr("ulvm.nn.parts.CROPS", 1)
    made = {}
    for seed, name in enumerate(("folder", "pad-ufes")):
        made[name] = tmp_path / name
        synthetic.write_dataset(made[name], 8, seed=seed, size_hw=(64, 64))
        ids = [pair.id for pair in datasets.find_pairs(name, made[name])]
        parts = {"train": ids[:5], "validation": ids[5:7], "test": ids[7:]}
        split = splits.Split("small", name, {part: tuple(some) for part, some in parts.items()})
        split.save(made[name] / "split.json")
    return made


def run_of(folders: dict[str, Path], **changes: float) -> RunSpec:
    split = {name: str(folder / "split.json") for name, folder in folders.items()}
    more = (SourceSpec(dataset="pad-ufes", split=split["pad-ufes"], weight=3.0),)
    data = DataSpec(dataset="folder", split=split["folder"], image_size=64, more=more)
    run = find_preset("skin").run
    recipe = dataclasses.replace(
        run.train, epochs=1, batch_size=4, **{"teacher_share": 0.0, "lesion_free": 0.0, **changes}
    )
    return dataclasses.replace(run, data=data, train=recipe)


def test_data_sets_are_drawn_by_their_weights(folders: dict[str, Path]) -> None:
    used, training, validation = load_parts(run_of(folders), folders, CPU)
    assert [seen.split.dataset for seen in used] == ["folder", "pad-ufes"]
    assert [tuple(pool) for pool in training.pools] == [(0, 5, 2, False), (5, 5, 8, False)]
    assert (len(training), training.drawn, len(validation)) == (10, 10, 4)


def test_a_validation_picture_that_is_trained_with_is_named(folders: dict[str, Path]) -> None:
    trained, *_ = sorted((folders["folder"] / "images").iterdir())
    held = sorted((folders["pad-ufes"] / "images").iterdir())[5]
    Image.open(trained).transpose(Image.Transpose.ROTATE_90).save(held)
    with pytest.warns(RunWarning, match=rf"1 pictures .* trained with, {held.stem} of pad-ufes"):
        load_parts(run_of(folders), folders, CPU)


def test_pictures_without_a_lesion_take_their_share(folders: dict[str, Path]) -> None:
    _, training, _ = load_parts(run_of(folders, lesion_free=0.5), folders, CPU)
    first = training.pools[2].first
    assert training.drawn == 20 + training.pools[-1].drawn
    *without, drawings = training.pools[2:]
    assert sum(pool.drawn for pool in without) == 10
    assert int(training.masks[first : drawings.first].max()) == 0
    assert drawings.drawn == without[0].drawn
    assert not drawings.bare
    assert (training.masks[drawings.first :].amax((1, 2)) == 255).all()


def test_a_teachers_masks_are_mixed_in(folders: dict[str, Path], tmp_path: Path) -> None:
    run = run_of(folders, teacher_share=0.5)
    with pytest.raises(InputError, match="Found no teacher's masks of folder"):
        load_parts(run, folders, CPU)
    for name, folder in folders.items():
        ids = [pair.id for pair in datasets.find_pairs(name, folder)]
        write_teacher(tmp_path / "taught", name, ids, np.full((8, 64, 64), 100, np.uint8))
    _, plain, _ = load_parts(run_of(folders), folders, CPU)
    _, taught, _ = load_parts(run, folders, CPU, tmp_path / "taught")
    expected = torch.round(plain.masks.float() / 2 + 50)
    assert torch.equal(taught.masks.float(), expected)


def test_each_data_set_needs_its_folder(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="Each needs a folder of its own"):
        load_parts(run_of(folders), folders["folder"], CPU)
    with pytest.raises(InputError, match="This run has folder, pad-ufes"):
        load_parts(run_of(folders), {"folder": folders["folder"]}, CPU)


def test_a_run_of_several_data_sets_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    train(run_of(folders, lesion_free=0.3), folders, tmp_path / "run", device="cpu", progress=False)
    text = (tmp_path / "run" / "run.json").read_text()
    assert '"pad-ufes"' in text
    assert (tmp_path / "run" / "weights.safetensors").exists()


def test_shares_add_up() -> None:
    assert share_out([(10, 1.0), (10, 2.0), (7, 0.5)], 27) == [8, 16, 3]
    assert sum(share_out([(3, 1.0)] * 7, 10)) == 10


def test_what_is_read_is_known_by_its_looks(folders: dict[str, Path]) -> None:
    """A picture or mask that changes changes its own fingerprint alone."""
    run = run_of(folders)
    before = load_parts(run, folders, CPU)[0]
    parts = ("pictures", "masks")
    for side, name in (("images", "pictures"), ("masks", "masks")):
        files = sorted((folders["pad-ufes"] / side).iterdir())
        files[0].write_bytes(files[1].read_bytes())
        after = load_parts(run, folders, CPU)[0]
        assert after[0] == before[0]
        same = {part: getattr(after[1], part) == getattr(before[1], part) for part in parts}
        assert same == {part: part != name for part in parts}
        if side == "images":
            assert after[1].pictures == (before[1].pictures[1], *before[1].pictures[1:])
        before = after


@pytest.mark.parametrize("channels", [1, 4])
def test_a_network_for_other_channels_is_refused(folders: dict[str, Path], channels: int) -> None:
    run = run_of(folders).override([f"model.in_channels={channels}"])
    with pytest.raises(InputError, match=f"in_channels={channels} does not fit pictures of three"):
        load_parts(run, folders, CPU)
