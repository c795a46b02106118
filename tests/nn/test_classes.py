"""Training, scoring and predicting several classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from command_line import run
from ulvm.nn.augment import Part, augment, draw
from ulvm.nn.checkpoint import save_weights
from ulvm.nn.loss import targets_of
from ulvm.nn.model import UltraLightVMUNet
from ulvm.spec import RunSpec

SIZE = 64
pytestmark = pytest.mark.usefixtures("no_curves", "cache")
NAMES = ("skin", "naevus", "crust")
COLOURS = np.array([[220, 180, 160], [120, 50, 30], [230, 220, 60]], np.uint8)


def draw_folder(folder: Path) -> None:
    """A dark and a yellow disc on skin, in train/, val/ and test/."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE]
    for part, count in (("train", 12), ("val", 4), ("test", 4)):
        for side in ("images", "masks"):
            (folder / part / side).mkdir(parents=True)
        for index in range(count):
            labels = np.zeros((SIZE, SIZE), np.uint8)
            for number in (1, 2):
                middle, radius = rng.uniform(14, 50, 2), rng.uniform(9, 14)
                labels[(y - middle[0]) ** 2 + (x - middle[1]) ** 2 < radius**2] = number
            noise = rng.integers(-9, 10, (SIZE, SIZE, 3))
            picture = (COLOURS[labels] + noise).clip(0, 255).astype(np.uint8)
            name = f"{part}_{index}.png"
            Image.fromarray(picture).save(folder / part / "images" / name)
            Image.fromarray(labels * 90).save(folder / part / "masks" / name)
    (folder / "classes.csv").write_text("value,name\n0,skin\n90,naevus\n180,crust\n")


def test_three_classes_from_drawing_to_masks(tmp_path: Path) -> None:
    mine, out = tmp_path / "mine", tmp_path / "run"
    draw_folder(mine)
    where = ("--dataset", "folder", "--data", mine)
    words = ["train", "best", *where, "--out", out]
    for assignment in (
        f"data.image_size={SIZE}",
        "train.epochs=40",
        "train.batch_size=4",
        "train.learning_rate=0.01",
        "train.average_decay=0.8",
    ):
        words += ["--set", assignment]
    refused = run(*words)
    assert refused.exit_code == 1
    assert "lists 3 classes, the network has 1" in refused.output
    assert "--set model.classes=3" in refused.output
    bare = run(*words, "--set", "model.classes=3", "--set", "train.lesion_free=0.1")
    assert "does not fit masks of several classes" in bare.output

    trained = run(*words, "--set", "model.classes=3")
    assert trained.exit_code == 0, trained.output
    scored = run("eval", out, *where, "--out", tmp_path / "scores")
    assert scored.exit_code == 0, scored.output
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert list(scores["classes"]) == list(NAMES)
    assert min(scores["classes"].values()) > 0.8, scores["classes"]
    assert scores["pooled"]["dsc"] > 0.8
    assert "DSC of each class" in scored.output

    masks = tmp_path / "masks"
    done = run("predict", mine / "test" / "images", "--model", out, "--out", masks)
    assert done.exit_code == 0, done.output
    right = total = 0
    for path in sorted(masks.rglob("*mask*.png")):
        labels = np.asarray(Image.open(path))
        name = path.name.split("_mask")[0] + ".png"
        truth = np.asarray(Image.open(mine / "test" / "masks" / name)) // 90
        right += (labels == truth).sum()
        total += truth.size
    assert total == 4 * SIZE**2
    assert right > 0.9 * total

    table = mine / "classes.csv"
    swapped = table.read_text().splitlines()
    table.write_text("\n".join([*swapped[:2], *swapped[:1:-1]]))
    done = run("eval", out, *where, "--out", tmp_path / "scores")
    assert done.exit_code == 1
    assert "lists skin, crust, naevus, the model has skin, naevus, crust" in done.output


def test_a_model_of_one_class_is_scored_by_the_foreground(tmp_path: Path) -> None:
    draw_folder(tmp_path / "mine")
    done = run(
        "eval", "skin", "--dataset", "folder", "--data", tmp_path / "mine", "--out", tmp_path
    )
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert "classes" not in scores
    assert scores["images"] == 20


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_than_rgb_are_refused_in_words(tmp_path: Path, channels: int) -> None:
    spec = RunSpec().override([f"model.in_channels={channels}", f"data.image_size={SIZE}"])
    save_weights(tmp_path / "odd.safetensors", UltraLightVMUNet(spec.model), spec, {})
    draw_folder(tmp_path / "mine")
    where = ("--dataset", "folder", "--data", tmp_path / "mine", "--out", tmp_path / "out")
    odd = tmp_path / "odd.safetensors"
    for words in (
        ("train", "paper", "--from", odd, *where),
        ("eval", odd, *where),
        ("predict", tmp_path / "mine" / "test" / "images", "--model", odd, *where[-2:]),
    ):
        done = run(*words)
        assert done.exit_code == 1, done.output
        assert (
            f"model.in_channels={channels} does not fit pictures of three channels" in done.output
        )


def test_classes_without_a_table_are_refused(tmp_path: Path) -> None:
    draw_folder(tmp_path / "mine")
    (tmp_path / "mine" / "classes.csv").unlink()
    for path in (tmp_path / "mine").glob("*/masks/*.png"):
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    words = ("--dataset", "folder", "--data", tmp_path / "mine", "--out", tmp_path / "run")
    done = run("train", "paper", *words, "--set", "model.classes=3")
    assert done.exit_code == 1
    assert "model.classes=3 does not fit masks of lesion or not" in done.output


@pytest.mark.parametrize("kind", ["paper", "strong", "stronger"])
def test_augmented_labels_are_labels(kind) -> None:
    """Between classes 0 and 2 no class 1 appears, as it would by interpolation."""
    masks = torch.zeros(8, SIZE, SIZE, dtype=torch.uint8)
    masks[:, 10:40, 20:50] = 255
    part = Part(torch.zeros(8, 3, SIZE, SIZE, dtype=torch.uint8), masks, classes=NAMES)
    draws = draw(kind, 8, 3, torch.Generator().manual_seed(0))
    _, soft = augment(part, torch.arange(8), draws)
    assert set(targets_of(soft, 3).unique().tolist()) == {0, 2}


@pytest.mark.parametrize("classes", [2, 3, 4, 10, 255])
def test_classes_survive_as_shares_of_255(classes: int) -> None:
    from ulvm.nn.parts import _spread

    labels = np.arange(classes, dtype=np.uint8)[None, None]
    soft = torch.from_numpy(_spread(labels, classes)).float() / 255
    assert targets_of(soft, classes).tolist() == labels.tolist()
