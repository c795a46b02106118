"""Small drawn data sets: in the forms of public downloads, and with a split to train with."""

import itertools
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ulvm import datasets, splits, synthetic
from ulvm.errors import InputError


def draw(seed: int, height: int = 30, width: int = 40) -> tuple[Image.Image, Image.Image]:
    """A picture of smooth noise and a mask with one rectangle."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    mask = np.zeros((height, width), np.uint8)
    top, left = generator.integers(2, 10, 2)
    mask[top : top + 12, left : left + 15] = 255
    return coarse.resize((width, height), Image.Resampling.BICUBIC), Image.fromarray(mask)


def save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def write_isic2017(root: Path, ids: dict[str, list[str]]) -> None:
    for part, names in ids.items():
        for name in names:
            image, mask = draw(int(name[-7:]))
            save(image, root / f"ISIC-2017_{part}_Data" / f"{name}.jpg")
            truth = root / f"ISIC-2017_{part}_Part1_GroundTruth"
            save(mask, truth / f"{name}_segmentation.png")
            save(mask, root / f"ISIC-2017_{part}_Data" / f"{name}_superpixels.png")
        for name in ("ATTRIBUTION.txt", "LICENSE.txt", ".DS_Store", "Thumbs.db"):
            (root / f"ISIC-2017_{part}_Data" / name).write_text("")
        junk = root / f"ISIC-2017_{part}_Data" / "__MACOSX"
        junk.mkdir()
        (junk / f"._{names[0]}.jpg").write_bytes(b"\0")


def write_folder(root: Path, names: list[str], ending: str = "") -> None:
    for seed, name in enumerate(names):
        image, mask = draw(seed)
        save(image, root / "images" / f"{name}.png")
        save(mask, root / "masks" / f"{name}{ending}.png")


def write_split_folder(root: Path, *, seed: int, size: int = 64, **parts: int) -> Path:
    """Drawn pictures, so many of each part of the split whose file is returned."""
    synthetic.write_dataset(root, sum(parts.values()), seed=seed, size_hw=(size, size))
    ids = iter([pair.id for pair in datasets.find_pairs("folder", root)])
    named = {part: tuple(itertools.islice(ids, count)) for part, count in parts.items()}
    path = root / "split.json"
    splits.Split("small", "folder", named).save(path)
    return path


def zip_folder(folder: Path, *, inner: bool) -> None:
    """Turn a folder into a zip of the same name, with the folder inside or only its files."""
    with zipfile.ZipFile(f"{folder}.zip", "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent if inner else folder))
    shutil.rmtree(folder)


def double_folder(folder: Path) -> None:
    folder.rename(folder.with_name("moving"))
    folder.mkdir()
    folder.with_name("moving").rename(folder / folder.name)


def problem_of(action: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        action()
    return str(caught.value)


def spoil(root: Path) -> dict[str, str]:
    """A folder with one fault of each kind; the word that `check` must say for each."""
    write_folder(root, [f"p{index}" for index in range(8)])
    images, masks = root / "images", root / "masks"
    (masks / "p0.png").unlink()
    (images / "p1.png").write_bytes((images / "p1.png").read_bytes()[:60])
    (masks / "p2.png").write_bytes(b"no picture")
    grey = np.asarray(Image.open(masks / "p3.png")).copy()
    grey[0, :3] = (1, 2, 3)
    Image.fromarray(grey).save(masks / "p3.png")
    Image.open(masks / "p4.png").resize((20, 15), Image.Resampling.NEAREST).save(masks / "p4.png")
    return {
        "p0": "without a mask",
        "p1": "damaged",
        "p2": "not a picture",
        "p3": "5 different values",
        "p4": "20×15",
    }


ISIC_IDS = {
    "Training": ["ISIC_0000003", "ISIC_0000001"],
    "Validation": ["ISIC_0000002"],
    "Test_v2": ["ISIC_0000004"],
}
