"""Targets: refused where they do not agree with torch, written whole, missing packages named."""

import importlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ulvm import cli, synthetic
from ulvm.errors import InputError
from ulvm.nn import targets
from ulvm.nn.checkpoint import load_probability, load_weights
from ulvm.nn.model import PictureToProbability


@pytest.fixture
def copying(source: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A target that runs the run's own torch, in two files; a test may add to its answer."""
    answer, _ = load_probability(source)

    def convert(module: object, run: object, folder: Path) -> Path:
        (folder / "model.weights").write_bytes(b"weights")
        (folder / "model.some.graph").write_bytes(b"graph")
        return folder / "model.some.graph"

    target = types.SimpleNamespace(SUFFIX=".some.graph", convert=convert, error=0.0)
    target.predict = lambda path, images: answer(images) + np.float32(target.error)
    monkeypatch.setattr(targets, "TARGETS", ("copying",))
    monkeypatch.setitem(sys.modules, "ulvm.nn.targets.copying", target)
    return target


def test_all_files_get_the_name_that_was_asked_for(
    copying: types.SimpleNamespace, source: Path, tmp_path: Path
) -> None:
    side = targets.export_for("copying", source, tmp_path / "out" / "net.some.graph")
    written = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(written) == {"net.some.graph", "net.weights", "net.some.graph.json"}
    assert json.loads(written["net.some.graph.json"].read_text()) == side
    assert side["largest_difference_from_torch"] == 0
    assert side["note"] == "drawn by lot"
    assert side["run"] == load_probability(source)[1].to_dict()
    assert side["bytes"] == len(b"graphweights")


@pytest.mark.parametrize("error", [2e-3, np.nan])
def test_another_probability_is_refused_and_not_written(
    copying: types.SimpleNamespace, source: Path, tmp_path: Path, error: float
) -> None:
    copying.error = error
    with pytest.raises(InputError, match=r"differ by .*Nothing was written"):
        targets.export_for("copying", source, tmp_path / "out" / "net.some.graph")
    assert not (tmp_path / "out").exists()


def test_another_mask_is_refused_though_the_probability_is_near(
    copying: types.SimpleNamespace, source: Path, tmp_path: Path
) -> None:
    copying.error = 9e-4
    with pytest.raises(InputError, match=r"9\.0e-04 in probability and in [1-9]\d* pixels"):
        targets.export_for("copying", source, tmp_path / "net.some.graph")


def test_the_name_must_have_the_ending(
    copying: types.SimpleNamespace, source: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"must end in \.some\.graph"):
        targets.export_for("copying", source, tmp_path / "net.onnx")


def test_an_unknown_target_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no target 'walkman'.*executorch"):
        targets.export_for("walkman", tmp_path, tmp_path / "net")


@pytest.mark.parametrize("name", targets.TARGETS)
def test_a_missing_package_names_the_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"ulvm.nn.targets.{name}", raising=False)
    package = {"litert": "litert_torch"}.get(name, name)
    for module in [package, *(each for each in sys.modules if each.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"pip install '\.\[{name}\]'"):
        targets.export_for(name, tmp_path, tmp_path / "net")


@pytest.mark.parametrize("name", targets.TARGETS)
def test_drawn_pictures_give_what_torch_gives(
    name: str, source: Path, export_once: Callable[[str], Path]
) -> None:
    path = export_once(name)
    expected, run = load_probability(source)
    images, _ = synthetic.draw_batch(5, seed=1, size_hw=(64, 64))
    found = importlib.import_module(f"ulvm.nn.targets.{name}").predict(path, images)
    np.testing.assert_allclose(found, expected(images), atol=1e-4)
    assert 0.05 < (found >= run.threshold).mean() < 0.95, "masks of one value compare nothing"


@pytest.mark.parametrize("name", targets.TARGETS)
def test_another_network_is_refused(
    name: str, source: Path, export_once: Callable[[str], Path]
) -> None:
    """The comparison can fail: the file does not pass for a network with one other bias."""
    path = export_once(name)
    target = importlib.import_module(f"ulvm.nn.targets.{name}")
    network, run, _ = load_weights(source)
    module = PictureToProbability(network).eval()
    assert targets.compare(target, path, module, run)[0] < 1e-4
    with torch.no_grad():
        network.head.bias.add_(0.1)
    difference, pixels = targets.compare(target, path, module, run)
    assert difference > targets.TOLERANCE
    assert pixels > 0


def test_the_command_offers_every_target() -> None:
    (option,) = (each for each in cli.main.commands["export"].params if each.name == "target")
    assert {"c", *targets.TARGETS} < {*option.type.choices}  # type: ignore[attr-defined]


def test_the_command_passes_the_target_on(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = types.SimpleNamespace(SUFFIX=".tflite")
    monkeypatch.setitem(sys.modules, "ulvm.nn.targets.litert", target)
    words = ["export", str(source), "--target", "litert", "--out", "net.onnx"]
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 1
    assert "must end in .tflite" in result.output
