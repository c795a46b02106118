"""napari's widget "Outline a skin lesion": an image layer in, a layer of labels out.

napari finds it through ``napari.yaml`` and makes its window from the function's annotations.
"""

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt

from ulvm.errors import InputError
from ulvm.image import Uint8Array
from ulvm.models import BUNDLED, DEFAULT
from ulvm.segmenter import load
from ulvm.use import NOTICE

if TYPE_CHECKING:
    import napari.layers
    import napari.types

_PLACES = ("scale", "translate", "rotate", "shear", "affine", "units")  # where a layer is shown


def segment(
    image: "napari.layers.Image",
    model: Annotated[str, {"choices": list(BUNDLED)}] = DEFAULT,
    threshold: Annotated[float, {"min": 0.0, "max": 0.95, "step": 0.05}] = 0.0,
) -> "napari.types.LayerDataTuple":
    """The lesion of a picture, or of each picture of a stack, as labels in the same place.

    Args:
        image: Colour or grey, (…, height, width[, 3 or 4]): 8 bits, or any other range, of which
            the layer's contrast limits are taken; colours as floats are 0..1, as in napari.
        model: A model that comes with ulvm.
        threshold: A pixel is lesion where the probability is at least this; 0: the model's own.

    Returns:
        napari's tuple of labels, uint8 (…, height, width), 1 in the lesion; options; "labels".

    Raises:
        InputError: The layer is empty or has no picture.
    """
    pixels = image.data[0] if image.multiscale else image.data
    pictures = to_rgb(np.asarray(pixels), rgb=image.rgb, limits=image.contrast_limits)
    segmenter = load(model)
    used = segmenter.check_threshold(threshold or None)
    labels = np.zeros(pictures.shape[:-1], np.uint8)
    for index in np.ndindex(pictures.shape[:-3]):
        labels[index] = segmenter(pictures[index], threshold=used).mask
    options: dict[str, Any] = {
        "name": f"{image.name}: lesion",
        "opacity": 0.4,
        "metadata": {"model": model, "threshold": used, "notice": NOTICE},
    }
    options |= {name: getattr(image, name) for name in _PLACES if hasattr(image, name)}
    return labels, options, "labels"


def to_rgb(pixels: npt.NDArray[Any], *, rgb: bool, limits: tuple[float, float]) -> Uint8Array:
    """A layer's pixels as the network's pictures.

    Args:
        pixels: (…, height, width, 3 or 4) for colours, else (…, height, width).
        rgb: Whether they are colours.
        limits: The samples that are shown black and white, for grey.

    Returns:
        uint8 (…, height, width, 3), transparency on white.
    """
    if pixels.ndim < (3 if rgb else 2) or not pixels.size:
        raise InputError(
            f"the layer has shape {pixels.shape}", "", "choose one that shows a picture"
        )
    if pixels.dtype != np.uint8:
        low, high = (0.0, 1.0) if rgb else limits
        if rgb and np.issubdtype(pixels.dtype, np.integer):
            high = float(np.iinfo(pixels.dtype).max)
        scaled = (pixels.astype(np.float32) - low) * (255 / max(high - low, 1e-12))
        pixels = np.clip(np.nan_to_num(scaled), 0, 255).round().astype(np.uint8)
    if not rgb:
        return np.repeat(pixels[..., None], 3, axis=-1)
    if pixels.shape[-1] == 4:
        opacity = pixels[..., 3:].astype(np.float32) / 255
        white = 255 * (1 - opacity)
        return (pixels[..., :3] * opacity + white).round().astype(np.uint8)
    return np.ascontiguousarray(pixels)
