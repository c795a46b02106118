"""The names of the models are understood by everything that takes a model."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import ulvm
from ulvm import models, synthetic
from ulvm.cli import main
from ulvm.errors import InputError
from ulvm.models import ALIASES, BUNDLED, DEFAULT, ELSEWHERE, NAMES, find_weights
from ulvm.presets import PRESETS

PICTURE = synthetic.draw_lesion(3, (100, 150)).image_rgb


def test_every_bundled_file_is_what_its_row_says() -> None:
    named = {bundled.file for bundled in BUNDLED.values()}
    assert named == {path.name for path in models.FOLDER.glob("*.safetensors")}
    for name, bundled in BUNDLED.items():
        path = find_weights(name)
        assert path.name == bundled.file
        assert hashlib.sha256(path.read_bytes()).hexdigest() == bundled.sha256
        assert ulvm.load(name)(PICTURE).mask.any()


def test_names_mean_one_thing_each() -> None:
    assert {"bundled", "isic2017", "paper", "skin"} <= set(NAMES)
    assert DEFAULT in BUNDLED
    assert set(ALIASES.values()) <= set(BUNDLED)
    assert not set(BUNDLED) & set(ELSEWHERE)
    assert set(ELSEWHERE) <= set(PRESETS)  # the sentence says so
    assert find_weights() == find_weights("bundled") == find_weights(DEFAULT)


def test_a_model_outside_the_package_is_found_in_a_clone_or_its_place_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "CLONE_FOLDER", tmp_path)
    for name, file in ELSEWHERE.items():
        words = rf"{name} does not come .* results/weights/{file} .* `ulvm train {name}`"
        with pytest.raises(InputError, match=words):
            ulvm.load(name)
        shutil.copy(find_weights(), tmp_path / file)
        assert find_weights(name) == tmp_path / file
        assert ulvm.load(name)(PICTURE).mask.any()


def test_a_name_is_a_word_and_a_path_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(DEFAULT).mkdir()
    assert find_weights(DEFAULT).parent == models.FOLDER
    for folder in (f"./{DEFAULT}", Path(DEFAULT)):
        with pytest.raises(InputError, match=r"is a folder without weights\.safetensors"):
            find_weights(folder)
        assert not models.is_name(folder)
    with pytest.raises(InputError, match=r"Model not found: isic2016.*, isic2017, "):
        find_weights("isic2016")


def test_without_the_onnx_file_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = BUNDLED["skin"]._replace(onnx_sha256=None)
    monkeypatch.setitem(BUNDLED, "skin", plain)
    for name in ("isic2017", "skin"):
        with pytest.raises(InputError, match=f"`ulvm export {name} --out {name}.onnx`"):
            ulvm.load(name, engine="onnx")


@pytest.mark.parametrize("onnx", [False, True])
def test_missing_or_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, onnx: bool
) -> None:
    whole = find_weights("skin", onnx=onnx)
    monkeypatch.setattr(models, "FOLDER", tmp_path)
    with pytest.raises(InputError, match=rf"{whole.name} is missing from this installation"):
        find_weights("skin", onnx=onnx)
    content = bytearray(whole.read_bytes())
    content[-100] ^= 1
    (tmp_path / whole.name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{whole.name} of this installation of ulvm is damaged"):
        find_weights("skin", onnx=onnx)


def test_commands_and_torch_take_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "isic2017"
    checkpoint = pytest.importorskip("ulvm.nn.checkpoint")
    exporter = pytest.importorskip("ulvm.nn.export")
    # The exporter of torch would take a minute; what it wrote of this model lies in the clone.
    graph = find_weights(name, onnx=True).read_bytes()
    monkeypatch.setattr(exporter, "build_onnx", lambda *_: graph)

    def run(*words: Any) -> str:
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        return result.output

    probability, spec = checkpoint.load_probability(name)
    small = np.zeros((1, spec.data.image_size, spec.data.image_size, 3), np.uint8)
    np.testing.assert_allclose(probability(small), ulvm.load(name).probability(small), atol=1e-4)

    run("data", "draw", "--out", tmp_path / "drawn", "--count", 3)
    data = ("--dataset", "folder", "--data", tmp_path / "drawn")
    assert "medical device" in run("eval", name, *data, "--out", tmp_path / "scores")
    picture = next((tmp_path / "drawn").rglob("*.png"))
    assert "1 of 1" in run("predict", picture, "--model", name, "--out", tmp_path / "masks")
    assert "differs from torch" in run("export", name, "--out", tmp_path / "model.onnx")
