"""CVAT's automatic annotation: a detection function for its SDK and its command line.

``cvat-cli task auto-annotate TASK --function-module ulvm.use.cvat`` calls ``create``.
"""

from typing import Any

from PIL import Image

from ulvm.errors import InputError, install_extra
from ulvm.outline import flatten, polygons
from ulvm.segmenter import Segmenter, load
from ulvm.use.coco import TOLERANCE


class LesionFunction:
    """Finds the lesion in each picture of a task; a ``DetectionFunction`` of CVAT's SDK.

    Args:
        segmenter: A model of one class.
        label: What the lesion is called in the task.
    """

    def __init__(self, segmenter: Segmenter, label: str) -> None:
        try:
            import cvat_sdk.auto_annotation as sdk
        except ModuleNotFoundError as error:
            raise InputError("CVAT's SDK is not installed", "", install_extra("cvat")) from error
        if segmenter.spec.model.classes > 1:
            raise InputError(
                f"the model finds {segmenter.spec.model.classes} classes",
                "this function gives one label to one class",
                "choose a model of one class",
            )
        self._sdk = sdk
        self._segmenter = segmenter
        self.spec: Any = sdk.DetectionFunctionSpec(labels=[sdk.label_spec(label, 0)])

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """The lesion as a mask, or as polygons where CVAT asks for those.

        Args:
            context: CVAT's; its confidence is compared with the mean probability inside.
            image: The frame, of any mode.

        Returns:
            CVAT's shapes; none where nothing was found or it is less probable than asked for.
        """
        from cvat_sdk.masks import encode_mask

        found = self._segmenter(image.convert("RGB"))
        confidence = found.mean_probability_inside
        if confidence is None or confidence < (context.conf_threshold or 0):
            return []
        if context.conv_mask_to_poly:
            outlines = polygons(found.mask, tolerance=TOLERANCE)
            return [self._sdk.polygon(0, flatten(each)) for each in outlines]
        return [self._sdk.mask(0, encode_mask(found.mask))]


def create(model: str | None = None, label: str = "lesion") -> LesionFunction:
    """What ``cvat-cli`` calls, with what ``-p model=str:…`` and ``-p label=str:…`` say.

    Args:
        model: As for ``ulvm.load``.
        label: What the lesion is called in the task.

    Raises:
        InputError: As ``ulvm.load``; or CVAT's SDK is missing.
    """
    return LesionFunction(load(model), label)
