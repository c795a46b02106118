"""torch.hub: ``torch.hub.load("path/to/clone", "ultralight_vm_unet", source="local")``."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

dependencies = ["numpy", "PIL", "safetensors", "torch"]

if importlib.util.find_spec("ulvm") is None:  # a clone that isn't installed
    sys.path.insert(0, str(Path(__file__).parent / "src"))


def ultralight_vm_unet(pretrained: bool | str = False, **sizes: Any) -> Any:
    """UltraLight VM-UNet: pictures (batch, 3, height, width) → logits (batch, 1, height, width).

    Pictures may have any range. Height and width are multiples of 32. Not a medical device: for
    research and education.

    Args:
        pretrained: The name of a model, such as "isic2017", or its file; True for the default one;
            False for fresh weights.
        sizes: Fields of ``ulvm.spec.ModelSpec`` for fresh weights, such as in_channels, classes.

    Returns:
        A torch module, in evaluation mode if it is pretrained.
    """
    from ulvm.nn.reuse import SelfNormalising, load_pretrained
    from ulvm.spec import ModelSpec

    if not pretrained:
        return SelfNormalising(ModelSpec(**sizes))
    if sizes:
        raise ValueError(f"A pretrained network has its own sizes. Leave out {', '.join(sizes)}.")
    return load_pretrained(None if pretrained is True else pretrained)[0]
