"""ncnn: the whole network agrees with torch, another does not, what it cannot hold is named."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ulvm import synthetic
from ulvm.errors import InputError
from ulvm.nn import targets
from ulvm.nn.model import PictureToProbability, UltraLightVMUNet
from ulvm.spec import DataSpec, ModelSpec, RunSpec

ncnn = pytest.importorskip("ulvm.nn.targets.ncnn", reason="the extra ncnn is not installed")
# As export_for does: the converters' own deprecation notices.
pytestmark = pytest.mark.filterwarnings("ignore")

RUN = RunSpec(model=ModelSpec(init="mamba"), data=DataSpec(image_size=64))


@pytest.fixture(scope="module")
def module() -> PictureToProbability:
    torch.manual_seed(0)
    network = UltraLightVMUNet(RUN.model)
    with torch.no_grad():
        network.head.weight.mul_(5)  # masks with both values, few pixels near the threshold
    return PictureToProbability(network).eval()


@pytest.fixture(scope="module")
def converted(module: PictureToProbability, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = ncnn.convert(module, RUN, tmp_path_factory.mktemp("converted"))
    return path


def test_folder_holds_graph_and_weights_only(converted: Path) -> None:
    assert {each.name for each in converted.parent.iterdir()} == {
        "model.ncnn.param",
        "model.ncnn.bin",
    }


def test_whole_network_gives_what_torch_gives(
    module: PictureToProbability, converted: Path
) -> None:
    images, _ = synthetic.draw_batch(5, seed=1, size_hw=(64, 64))
    expected = module(torch.from_numpy(images)).detach().numpy()
    found = ncnn.predict(converted, images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    clear = abs(expected - RUN.threshold) > 1e-4  # elsewhere a mask is a toss-up
    assert clear.mean() > 0.999
    np.testing.assert_array_equal((found > RUN.threshold)[clear], (expected > RUN.threshold)[clear])
    assert 0.05 < (found > RUN.threshold).mean() < 0.95, "masks of one value compare nothing"


def test_comparison_passes_the_network_and_refuses_another(
    module: PictureToProbability, converted: Path
) -> None:
    assert targets.compare(ncnn, converted, module, RUN)[0] < targets.TOLERANCE
    torch.manual_seed(1)
    other = PictureToProbability(UltraLightVMUNet(RUN.model)).eval()
    assert targets.compare(ncnn, converted, other, RUN)[0] > targets.TOLERANCE


def test_a_translator_that_fails_is_named_with_its_last_words(
    module: PictureToProbability, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = tmp_path / "pnnx"
    failing.write_text("#!/bin/sh\necho no such operator >&2\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setattr(ncnn.pnnx, "EXEC_PATH", str(failing))
    with pytest.raises(InputError, match=r"status 3.*no such operator"):
        ncnn.convert(module, RUN, tmp_path)


def test_a_layer_that_ncnn_lacks_is_refused(converted: Path, tmp_path: Path) -> None:
    graph = converted.read_text().replace("GELU ", "aten::gelu ", 1)
    (tmp_path / "model.ncnn.param").write_text(graph)
    (tmp_path / "model.ncnn.bin").write_bytes(converted.with_name("model.ncnn.bin").read_bytes())
    with pytest.raises(InputError, match="cannot load"):
        ncnn.predict(tmp_path / "model.ncnn.param", np.zeros((1, 64, 64, 3), np.uint8))
