"""Export: the ONNX file equals torch, carries its spec, and is refused where it does not."""

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from onnxscript import rewriter

from ulvm import segmenter, synthetic
from ulvm.errors import InputError
from ulvm.nn import export as exporting
from ulvm.nn.checkpoint import WEIGHTS, load_probability, save_weights
from ulvm.nn.model import PictureToProbability, UltraLightVMUNet
from ulvm.onnx import onnxruntime
from ulvm.spec import DataSpec, ModelSpec, RunSpec

SIZE = 64


def save_network(folder: Path, seed: int = 0, **model: object) -> RunSpec:
    run = RunSpec(model=ModelSpec(init="mamba", **model), data=DataSpec(image_size=SIZE))
    torch.manual_seed(seed)
    network = UltraLightVMUNet(run.model)
    for norm in (*network.encoder_norms, *network.decoder_norms):
        torch.nn.init.normal_(norm.weight)  # type: ignore[arg-type]  # of both signs
        torch.nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    save_weights(folder / WEIGHTS, network, run, {"note": "drawn by lot"})
    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    save_network(folder)
    exporting.export(folder, folder / "model.onnx")
    return folder


def test_onnx_runtime_gives_what_torch_gives_for_any_batch(exported: Path) -> None:
    loaded = segmenter.load(exported / "model.onnx")
    expected, _ = load_probability(exported)
    for count in (1, 2, 5):
        images, _ = synthetic.draw_batch(count, seed=count, size_hw=(SIZE, SIZE))
        found = loaded.probability(images)
        assert found.shape == (count, 1, SIZE, SIZE)
        np.testing.assert_allclose(found, expected(images), atol=1e-5)


def test_file_and_side_file_carry_the_run(exported: Path) -> None:
    loaded = segmenter.load(exported / "model.onnx")
    side = json.loads((exported / "model.onnx.json").read_text())
    content = (exported / "model.onnx").read_bytes()
    assert loaded.spec == RunSpec.from_dict(side["run"])
    assert loaded.provenance["note"] == side["note"] == "drawn by lot"
    assert side["sha256"] == hashlib.sha256(content).hexdigest()
    assert side["largest_difference_from_torch"] < 1e-5
    assert b"/home" not in content
    assert str(Path(torch.__file__).parent).encode() not in content


def test_two_exports_into_one_folder_keep_what_is_said_of_each(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = (exported / "model.onnx").read_bytes()  # making it takes half a minute
    monkeypatch.setattr(exporting, "build_onnx", lambda *_: graph)
    exporting.export(exported, exported / "other.onnx")
    for name in ("model.onnx", "other.onnx"):
        side = json.loads((exported / f"{name}.json").read_text())
        assert side["file"] == name
        content = (exported / name).read_bytes()
        assert side["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("difference", "written"), [(2.9e-4, True), (1.1e-3, False)])
def test_the_rounding_of_another_processor_is_allowed(
    exported: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    difference: float,
    written: bool,
) -> None:
    """MALUNet on one machine; what the phones' runtimes may differ by is refused beyond."""
    content = (exported / "model.onnx").read_bytes()
    monkeypatch.setattr(exporting, "build_onnx", lambda *_: content)
    monkeypatch.setattr(exporting, "largest_difference", lambda *_: difference)
    with contextlib.nullcontext() if written else pytest.raises(InputError, match="differ by"):
        exporting.export(exported, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").exists() == written


def test_extreme_pictures_stay_finite(exported: Path) -> None:
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    for batch in exporting.probe_images(SIZE, 3):
        (probability,) = session.run(None, {"image_rgb": batch})
        assert np.isfinite(probability).all()


def test_a_graph_that_differs_is_refused_and_not_written(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check can fail: the content of another network does not pass for this one."""
    other = (exported / "model.onnx").read_bytes()
    save_network(tmp_path, seed=1)
    monkeypatch.setattr(exporting, "build_onnx", lambda *_: other)
    with pytest.raises(InputError, match=r"differ by .*Nothing was written"):
        exporting.export(tmp_path, tmp_path / "out" / "model.onnx")
    assert not (tmp_path / "out").exists()


def test_nan_counts_as_a_difference(exported: Path) -> None:
    network = UltraLightVMUNet(ModelSpec())
    with torch.no_grad():
        network.head.bias.fill_(torch.nan)
    module = PictureToProbability(network).eval()
    content = (exported / "model.onnx").read_bytes()
    assert np.isnan(exporting.largest_difference(module, content, SIZE, 3))


def test_only_the_slow_rule_is_left_out_and_put_back() -> None:
    def names() -> list[str | None]:
        return [rule.name for rule in rewriter._DEFAULT_REWRITE_RULES]

    before = names()
    with exporting._without_slow_rule():
        assert names() == [name for name in before if name != exporting.SLOW_RULE]
    assert names() == before
    assert before.count(exporting.SLOW_RULE) == 1


ONE_PVM_LAYER = {"encoder": ("conv",) * 5 + ("pvm",), "decoder": ("conv",) * 5}


@pytest.mark.parametrize(
    "model",
    [
        {"classes": 3, "mixer": "ss2d", "bridge": "channel", **ONE_PVM_LAYER},
        {"mixer": "bidirectional", "bridge": "none", **ONE_PVM_LAYER},
    ],
)
def test_other_networks_export_too(tmp_path: Path, model: dict[str, object]) -> None:
    run = save_network(tmp_path, **model)
    side = exporting.export(tmp_path / WEIGHTS, tmp_path / "model.onnx")
    assert side["largest_difference_from_torch"] < 1e-4
    segmentation = segmenter.load(tmp_path / "model.onnx")(synthetic.draw_lesion(3).image_rgb)
    assert segmentation.mask.shape == (256, 256)
    assert (segmentation.labels is None) == (run.model.classes == 1)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder without weights"):
        exporting.export(tmp_path, tmp_path / "model.onnx")
