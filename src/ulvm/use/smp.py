"""Encoders for segmentation_models.pytorch: ``smp.Unet("ultralight-vm-unet", …)``."""

from typing import Any

from ulvm.errors import InputError
from ulvm.models import BUNDLED
from ulvm.nn.reuse import Encoder

NAME = "ultralight-vm-unet"


def register() -> list[str]:
    """Make the encoders known; may be called again.

    They are given to a model with ``encoder_weights=None``, for that argument is a name on a
    server: ``ultralight-vm-unet`` has fresh weights, ``ultralight-vm-unet-isic2017`` those of the
    model isic2017, and so on. They take pictures of any range: preprocessing may be left out.

    Returns:
        The names.

    Raises:
        InputError: segmentation_models.pytorch is not installed.
    """
    try:
        from segmentation_models_pytorch.encoders import encoders
    except ModuleNotFoundError as error:
        raise InputError(
            "segmentation_models.pytorch is not installed",
            "",
            "run pip install 'ultralight-vm-unet[smp]'",
        ) from error
    parameters: dict[str, dict[str, Any]] = {NAME: {}}
    parameters |= {f"{NAME}-{model}": {"pretrained": model} for model in BUNDLED}
    for name, params in parameters.items():
        encoders[name] = {"encoder": Encoder, "pretrained_settings": {}, "params": params}
    return list(parameters)
