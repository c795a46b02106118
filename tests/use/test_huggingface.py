"""The mixin's own round trip through a folder, without a network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ulvm
from ulvm import synthetic
from ulvm.spec import DataSpec, ModelSpec, RunSpec
from ulvm.use import NOTICE

pytest.importorskip("torch")
hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is of the extra [huggingface]")

from ulvm.use.huggingface import HubNetwork  # noqa: E402

PICTURE = synthetic.draw_lesion(3, (100, 150)).image_rgb


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)


def test_a_folder_and_back(tmp_path: Path) -> None:
    network = HubNetwork.from_ulvm("isic2017")
    network.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    again = HubNetwork.from_pretrained(tmp_path)
    assert again.run == network.run == ulvm.load("isic2017").spec
    assert again.provenance == network.provenance
    assert again.provenance["split_hash"]
    assert not again.training
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
    again.save_pretrained(tmp_path / "again")
    for name in ("README.md", "config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_same_file_is_opened_by_ulvm(tmp_path: Path) -> None:
    HubNetwork.from_ulvm("isic2017").save_pretrained(tmp_path)
    found = ulvm.load(tmp_path / "model.safetensors")(PICTURE)
    np.testing.assert_array_equal(found.mask, ulvm.load("isic2017")(PICTURE).mask)


def test_other_sizes_come_back(tmp_path: Path) -> None:
    run = RunSpec(
        model=ModelSpec(in_channels=4, classes=3, branches=2), data=DataSpec(image_size=64)
    )
    HubNetwork(run).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["run"] == run.to_dict()
    again = HubNetwork.from_pretrained(tmp_path)
    assert again.run == run
    assert again(torch.rand(1, 4, 64, 64)).shape == (1, 3, 64, 64)


def test_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    HubNetwork().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["head.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"head\.weight"):
        HubNetwork.from_pretrained(tmp_path)


def test_the_card_is_one_that_the_hub_reads(tmp_path: Path) -> None:
    HubNetwork.from_ulvm("isic2017").save_pretrained(tmp_path)
    card = hub.ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit"
    assert card.data.pipeline_tag == "image-segmentation"
    assert "pytorch_model_hub_mixin" in card.data.tags
    assert NOTICE in card.text
    assert "46,644 parameters" in card.text
    assert "isic2017 (paper-permutation)" in card.text


def test_the_licence_is_left_open_where_the_data_bind(tmp_path: Path) -> None:
    HubNetwork(RunSpec(data=DataSpec(dataset="isic2018"))).save_pretrained(tmp_path)
    assert hub.ModelCard.load(tmp_path / "README.md").data.license == "other"
