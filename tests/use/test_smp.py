"""Models of segmentation_models.pytorch with our encoder, made by its own functions."""

import pytest
import torch

pytest.importorskip("torch")
try:
    import segmentation_models_pytorch as smp
except (ImportError, RuntimeError) as problem:  # RuntimeError: torchvision of another torch
    pytest.skip(
        f"segmentation_models.pytorch, of the extra [smp], does not load: {problem}",
        allow_module_level=True,
    )

from ulvm.models import BUNDLED
from ulvm.use.smp import register

NAMES = register()


def test_the_names_are_known_to_it() -> None:
    assert register() == NAMES
    assert ["ultralight-vm-unet", *(f"ultralight-vm-unet-{name}" for name in BUNDLED)] == NAMES
    assert set(NAMES) <= set(smp.encoders.get_encoder_names())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_channels", [1, 3, 4])
@pytest.mark.parametrize("depth", [3, 4, 5])
def test_its_own_getter_gives_what_it_says(name: str, in_channels: int, depth: int) -> None:
    encoder = smp.encoders.get_encoder(name, in_channels=in_channels, depth=depth, weights=None)
    features = encoder(torch.rand(2, in_channels, 64, 96))
    assert [each.shape[1] for each in features] == list(encoder.out_channels)
    assert [each.shape[2] for each in features] == [64 >> step for step in range(depth + 1)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["Unet", "FPN", "MAnet", "Linknet", "UnetPlusPlus", "PSPNet"])
def test_models_train(kind: str, name: str) -> None:
    model = smp.create_model(
        kind, encoder_name=name, encoder_weights=None, in_channels=3, classes=2
    )
    masks = torch.zeros(2, 64, 64, dtype=torch.long)
    masks[:, 16:48, 16:48] = 1
    loss = smp.losses.DiceLoss("multiclass")(model(torch.rand(2, 3, 64, 64)), masks)
    loss.backward()
    deepest = 3 if kind == "PSPNet" else 5
    grown = [value.grad is not None for value in model.encoder.encoder[:deepest].parameters()]
    assert all(grown)


def test_pretrained_weights_are_those_of_the_model() -> None:
    from ulvm.nn.reuse import load_pretrained

    model = smp.Unet("ultralight-vm-unet-isic2017", encoder_weights=None)
    trained = load_pretrained("isic2017")[0].state_dict()
    state = model.encoder.state_dict()
    assert state.keys() <= trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in state.items())


def test_what_it_cannot_be_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="Choose a decoder"):
        smp.DeepLabV3("ultralight-vm-unet", encoder_weights=None)
