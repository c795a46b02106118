"""LiteRT: the network agrees with torch, another does not."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ulvm import synthetic
from ulvm.nn import targets
from ulvm.nn.checkpoint import load_weights
from ulvm.nn.model import PictureToProbability

litert = pytest.importorskip("ulvm.nn.targets.litert", reason="the extra litert is not installed")
# As export_for does: the converters' own deprecation notices.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    network, run, _ = load_weights(source)
    folder = tmp_path_factory.mktemp("converted")
    path: Path = litert.convert(PictureToProbability(network).eval(), run, folder)
    return path


def test_drawn_pictures_give_what_torch_gives(source: Path, converted: Path) -> None:
    network, run, _ = load_weights(source)
    images, _ = synthetic.draw_batch(5, seed=1, size_hw=(64, 64))
    expected = PictureToProbability(network)(torch.from_numpy(images)).detach().numpy()
    found = litert.predict(converted, images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(found > run.threshold, expected > run.threshold)


def test_comparison_passes_the_network_and_refuses_another(source: Path, converted: Path) -> None:
    network, run, _ = load_weights(source)
    module = PictureToProbability(network).eval()
    difference, pixels = targets.compare(litert, converted, module, run)
    assert difference < targets.TOLERANCE
    assert pixels == 0
    with torch.no_grad():
        network.head.bias.add_(0.1)
    assert targets.compare(litert, converted, module, run)[0] > targets.TOLERANCE


def test_input_is_a_picture_and_every_operator_is_built_in(converted: Path) -> None:
    interpreter = litert.Interpreter(str(converted))
    (given,) = interpreter.get_input_details()
    assert given["dtype"] is np.uint8
    assert given["shape"].tolist() == [1, 64, 64, 3]
    assert b"Flex" not in converted.read_bytes()
