"""A MONAI bundle, checked by MONAI's own commands and run on drawn pictures."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import ulvm
from ulvm.cli import main
from ulvm.image import read_image, read_mask
from ulvm.synthetic import draw_lesion
from ulvm.use import NOTICE

pytest.importorskip("torch", reason="needs the extra [train]")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    bundle = pytest.importorskip("monai.bundle", reason="needs monai")
pytest.importorskip("ignite", reason="needs pytorch-ignite")
pytest.importorskip("jsonschema", reason="needs jsonschema")

TENSOR = {
    "type": "object",
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
    "properties": {
        "type": {"enum": ["image", "series", "tuples", "probabilities"]},
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array"},
        "dtype": {"type": "string"},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object"},
    },
}
TENSORS = {"type": "object", "minProperties": 1, "additionalProperties": TENSOR}
TEXTS = ("version", "monai_version", "pytorch_version", "numpy_version", "task", "description")
SCHEMA = {  # of the mandatory keys of the specification; the published file is on the web
    "type": "object",
    "required": [*TEXTS, "authors", "copyright", "network_data_format"],
    "properties": {
        **{name: {"type": "string"} for name in (*TEXTS, "authors", "copyright", "intended_use")},
        "changelog": {"type": "object"},
        "required_packages_version": {"type": "object"},
        "optional_packages_version": {"type": "object"},
        "references": {"type": "array", "items": {"type": "string"}},
        "network_data_format": {
            "type": "object",
            "required": ["inputs", "outputs"],
            "properties": {"inputs": TENSORS, "outputs": TENSORS},
        },
    },
}


@pytest.fixture(autouse=True)
def library_notices() -> Iterator[None]:
    """What these packages deprecate in one another is not ours to fail on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.getLogger("monai").handlers.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("monai") / "skin"
    done = CliRunner().invoke(main, ["export", "skin", "--target", "monai", "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


def test_the_files_of_the_specification(folder: Path) -> None:
    files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    assert sorted(files) == [
        "configs/inference.json",
        "configs/metadata.json",
        "docs/README.md",
        "docs/data_license.txt",
        "models/model.pt",
        "models/model.ts",
    ]
    assert NOTICE in (folder / "docs/README.md").read_text()
    assert "isic2017" in (folder / "docs/data_license.txt").read_text()
    assert json.loads((folder / "configs/metadata.json").read_text())["intended_use"] == NOTICE


def test_verify_metadata(folder: Path, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))  # a file that is there is not downloaded
    metadata = folder / "configs/metadata.json"
    bundle.verify_metadata(meta_file=str(metadata), filepath=str(schema))
    broken = json.loads(metadata.read_text())
    del broken["network_data_format"]["outputs"]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="outputs"):
        bundle.verify_metadata(meta_file=str(tmp_path / "broken.json"), filepath=str(schema))


def test_verify_net_in_out(folder: Path, tmp_path: Path) -> None:
    words: dict[str, Any] = {
        "net_id": "network_def",
        "config_file": str(folder / "configs/inference.json"),
        "bundle_root": str(folder),
        "device": "cpu",
    }
    bundle.verify_net_in_out(meta_file=str(folder / "configs/metadata.json"), **words)
    wrong = json.loads((folder / "configs/metadata.json").read_text())
    wrong["network_data_format"]["outputs"]["pred"]["num_channels"] = 2
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match="channel number"):
        bundle.verify_net_in_out(meta_file=str(tmp_path / "wrong.json"), **words)


def test_run_gives_our_masks(folder: Path, tmp_path: Path) -> None:
    pictures, masks = tmp_path / "pictures", tmp_path / "masks"
    pictures.mkdir()
    Image.fromarray(draw_lesion(1).image_rgb).save(pictures / "exact.png")
    Image.fromarray(draw_lesion(2, (300, 420)).image_rgb).save(pictures / "large.png")
    Image.fromarray(draw_lesion(3, (120, 200)).image_rgb).save(pictures / "small.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = io.BytesIO()
    Image.fromarray(draw_lesion(4, (300, 420)).image_rgb).save(turned, "JPEG", exif=exif)
    (pictures / "turned.jpg").write_bytes(turned.getvalue())
    bundle.run(
        config_file=str(folder / "configs/inference.json"),
        bundle_root=str(folder),
        dataset_dir=str(pictures),
        output_dir=str(masks),
    )
    segment = ulvm.load()
    for path in sorted(pictures.iterdir()):
        expected = segment(read_image(path)).mask
        found = read_mask(masks / f"{path.stem}_mask.png") > 0
        assert found.shape == expected.shape
        assert expected.any()
        differing = np.count_nonzero(found != expected)
        # torch's resizing rounds a grey level in some pixels otherwise than Pillow's.
        assert differing <= (0 if path.stem == "exact" else 0.002 * expected.sum()), path.name
