"""The network in MONAI's own trainer, evaluator and sliding window."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
monai = pytest.importorskip("monai", reason="monai is of the extra [monai]")
pytest.importorskip("ignite", reason="MONAI's engines need pytorch-ignite")

from monai.data import DataLoader, Dataset  # noqa: E402
from monai.engines import SupervisedEvaluator, SupervisedTrainer  # noqa: E402
from monai.handlers import MeanDice, from_engine  # noqa: E402
from monai.inferers import SimpleInferer, SlidingWindowInferer, sliding_window_inference  # noqa: E402
from monai.losses import DiceCELoss, DiceLoss  # noqa: E402
from monai.transforms import (  # noqa: E402
    Activationsd,
    AsDiscreted,
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    ScaleIntensityd,
)

from ulvm import synthetic  # noqa: E402
from ulvm.nn import load_weights  # noqa: E402
from ulvm.nn.model import normalise  # noqa: E402
from ulvm.nn.reuse import SelfNormalising, load_pretrained  # noqa: E402

DRAWN = [synthetic.draw_lesion(seed, (64, 64)) for seed in range(8)]


def loader(transforms: list[Any], drawn: Any = DRAWN) -> Any:
    items = [{"image": each.image_rgb, "label": each.mask[..., None]} for each in drawn]
    steps = [
        EnsureChannelFirstd(["image", "label"], channel_dim=-1),
        EnsureTyped(["image", "label"], track_meta=False),
    ]
    return DataLoader(Dataset(items, Compose([*steps, *transforms])), batch_size=4)


def test_its_trainer_lowers_the_loss_and_its_evaluator_scores() -> None:
    torch.manual_seed(0)
    network = SelfNormalising()
    losses: list[float] = []
    loss = DiceCELoss(sigmoid=True)

    def note(logits: Any, masks: Any) -> Any:
        value = loss(logits, masks)
        losses.append(value.item())
        return value

    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=15,
        train_data_loader=loader([]),
        network=network,
        optimizer=torch.optim.AdamW(network.parameters(), 2e-3),
        loss_function=note,
        inferer=SimpleInferer(),
    )
    trainer.run()
    assert len(losses) == 30
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])

    keys = ("pred", "label")
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=loader([], [synthetic.draw_lesion(seed, (256, 256)) for seed in range(8)]),
        network=load_pretrained("skin")[0],
        inferer=SimpleInferer(),
        postprocessing=Compose(
            [Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)]
        ),
        key_val_metric={"dice": MeanDice(output_transform=from_engine(keys))},
    )
    evaluator.run()
    assert evaluator.state.metrics["dice"] > 0.9


def test_its_intensity_scaling_is_the_networks() -> None:
    scaled = loader([ScaleIntensityd("image", minv=0, maxv=255)])
    for ours, theirs in zip(loader([]), scaled, strict=True):
        torch.testing.assert_close(theirs["image"], normalise(ours["image"]), atol=1e-2, rtol=0)


def test_windows_of_a_scaled_picture_are_those_of_the_plain_network() -> None:
    """Scale the whole picture first; the plain network leaves each window as it is."""
    network = load_weights("isic2017")[0]
    picture = normalise(torch.as_tensor(DRAWN[0].image_rgb.copy()).permute(2, 0, 1)[None])
    large = torch.cat([picture, picture.flip(3)], dim=3)  # (1, 3, 64, 128)
    with torch.no_grad():
        found = sliding_window_inference(large, (64, 64), 2, network, overlap=0)
        torch.testing.assert_close(
            torch.as_tensor(found[..., :64]), network(picture), atol=1e-3, rtol=1e-3
        )
        assert SlidingWindowInferer((64, 64), overlap=0.5)(large, network).shape == (1, 1, 64, 128)


def test_its_loss_takes_several_classes() -> None:
    from ulvm.spec import ModelSpec

    network = SelfNormalising(ModelSpec(classes=3, in_channels=4))
    logits = network(torch.rand(2, 4, 64, 64))
    labels = torch.randint(0, 3, (2, 1, 64, 64))
    DiceLoss(softmax=True, to_onehot_y=True)(logits, labels).backward()
