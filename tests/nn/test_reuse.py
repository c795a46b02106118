"""The network for other people's loops: any range of pictures, its encoder, and torch.hub."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ulvm
from ulvm import synthetic
from ulvm.errors import InputError
from ulvm.image import resize
from ulvm.models import BUNDLED
from ulvm.nn.checkpoint import save_weights
from ulvm.nn.model import UltraLightVMUNet, normalise
from ulvm.nn.networks import build_network
from ulvm.nn.reuse import Encoder, SelfNormalising, load_pretrained
from ulvm.presets import PLUS_MODEL
from ulvm.spec import ModelSpec, RunSpec

ROOT = Path(ulvm.__file__).resolve().parents[2]
PICTURE = resize(synthetic.draw_lesion(3, (100, 150)).image_rgb, (256, 256))
PLANES = torch.from_numpy(PICTURE.copy()).permute(2, 0, 1)[None].float()


@pytest.mark.parametrize("name", BUNDLED)
def test_any_range_gives_the_probability_of_the_engine(name: str) -> None:
    network, run, provenance = load_pretrained(name)
    assert not network.training
    assert provenance
    segmenter = ulvm.load(name)
    assert run == segmenter.spec
    expected = segmenter.probability(PICTURE[None])
    for images in (PLANES, PLANES / 255, PLANES * 2 - 30, normalise(PLANES)):
        with torch.no_grad():
            found = torch.sigmoid(network(images)).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_its_parameters_are_those_of_the_network() -> None:
    plain, free = UltraLightVMUNet(), SelfNormalising()
    free.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    torch.testing.assert_close(free(images), plain(normalise(images)))
    free(images).sum().backward()
    assert all(value.grad is not None for value in free.parameters())


def test_another_papers_network_is_refused(tmp_path: Path) -> None:
    spec = ModelSpec(network="malunet")
    save_weights(tmp_path / "m.safetensors", build_network(spec), RunSpec(model=spec), {})
    with pytest.raises(InputError, match=r"is a malunet\. It must be a ultralight-vm-unet"):
        load_pretrained(tmp_path / "m.safetensors")


@pytest.mark.parametrize("spec", [ModelSpec(), PLUS_MODEL])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_the_encoder_says_what_it_gives(spec: ModelSpec, depth: int) -> None:
    encoder = Encoder(spec, depth=depth)
    features = encoder(torch.rand(2, 3, 64, 96))
    assert [each.shape[1] for each in features] == encoder.out_channels
    assert [tuple(each.shape[2:]) for each in features] == [
        (64 >> step, 96 >> step) for step in range(depth + 1)
    ]
    assert encoder.output_stride == 2**depth
    sum(each.sum() for each in features[1:]).backward()  # type: ignore[union-attr]
    assert all(value.grad is not None for value in encoder.parameters())


def test_the_encoder_is_the_networks_way_down() -> None:
    network, run, _ = load_pretrained("isic2017")
    seen: list[torch.Tensor] = []
    network.bridge.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    bottom: list[torch.Tensor] = []
    network.encoder[-1].register_forward_hook(lambda *words: bottom.append(words[2]))
    encoder = Encoder(pretrained="isic2017").eval()
    assert encoder.spec == run.model
    with torch.no_grad():
        network(PLANES)
        found = encoder(PLANES / 255)
    for ours, theirs in zip(found[1:5], seen, strict=False):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found[5], torch.nn.functional.gelu(bottom[0]), atol=1e-3, rtol=1e-3)


def test_other_channels() -> None:
    encoder = Encoder(pretrained="isic2017").eval()
    grey = PLANES.mean(dim=1, keepdim=True)
    with torch.no_grad():
        expected = encoder(grey.expand(1, 3, 256, 256))
        encoder.set_in_channels(1)
        assert encoder.out_channels[0] == 1
        found = encoder(grey)
    torch.testing.assert_close(found[1:], expected[1:], atol=1e-3, rtol=1e-3)
    doubled = Encoder(pretrained="isic2017").eval()
    doubled.set_in_channels(6)
    with torch.no_grad():
        found = doubled(PLANES.repeat(1, 2, 1, 1))
        expected = Encoder(pretrained="isic2017").eval()(PLANES)
    torch.testing.assert_close(found[1:], expected[1:], atol=1e-3, rtol=1e-3)
    fresh = Encoder()
    before = fresh.encoder[0].weight
    fresh.set_in_channels(3, pretrained=False)
    assert fresh.encoder[0].weight is before


def test_networks_of_another_type_of_numbers() -> None:
    encoder = Encoder(pretrained="isic2017").double().eval()
    encoder.set_in_channels(2, pretrained=False)
    assert {each.dtype for each in encoder(PLANES[:, :2])[1:]} == {torch.float64}
    network = load_pretrained("isic2017")[0]
    expected = network(PLANES).sigmoid()
    for dtype, apart in ((torch.float64, 1e-4), (torch.float16, 0.05)):
        found = network.to(dtype)(PLANES.to(dtype)).sigmoid()
        assert found.dtype == dtype
        assert (found - expected).abs().max() < apart


def test_what_an_encoder_cannot_be() -> None:
    with pytest.raises(InputError, match="1 to 5"):
        Encoder(depth=6)
    with pytest.raises(InputError, match="Unet, FPN"):
        Encoder().make_dilated(16)


@pytest.mark.parametrize("installed", [True, False])
def test_torch_hub_loads_a_clone(tmp_path: Path, installed: bool) -> None:
    """By torch's own loader, also from a clone whose package is not installed."""
    clone = ROOT
    if not installed:
        clone = tmp_path / "clone"
        (clone / "src").mkdir(parents=True)
        shutil.copy(ROOT / "hubconf.py", clone)
        shutil.copytree(
            ROOT / "src" / "ulvm", clone / "src" / "ulvm", ignore=shutil.ignore_patterns("web")
        )
    program = """
import sys, torch
clone, installed = sys.argv[1], sys.argv[2] == "True"
if not installed:
    sys.path = [each for each in sys.path if not each.endswith("src")]
    sys.meta_path = [each for each in sys.meta_path if "ditable" not in repr(each)]
fresh = torch.hub.load(clone, "ultralight_vm_unet", source="local", classes=3, in_channels=4)
assert fresh(torch.rand(1, 4, 64, 64)).shape == (1, 3, 64, 64)
trained = torch.hub.load(clone, "ultralight_vm_unet", source="local", pretrained="isic2017")
assert sum(value.numel() for value in trained.parameters()) == 46_644
assert not trained.training
torch.hub.load(clone, "ultralight_vm_unet", source="local", pretrained=True)
try:
    torch.hub.load(clone, "ultralight_vm_unet", source="local", pretrained=True, classes=3)
except ValueError as error:
    assert "Leave out classes" in str(error)
import ulvm
assert ulvm.__file__.startswith(clone), ulvm.__file__
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(clone), str(installed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
