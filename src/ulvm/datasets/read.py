"""The pixels of a pair, and what is wrong with them."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from ulvm import limits
from ulvm.datasets.classes import Classes, find_classes
from ulvm.datasets.find import Pair, SourceFile
from ulvm.errors import InputError
from ulvm.image import Uint8Array, read_mask, resize
from ulvm.picture import TURNED, UPRIGHT, ImageSource, read_picture

MAX_WORKERS = 8  # files read at once, where there are so many processors

_ROOM = limits.Room(limits.PIXELS)

MaskSizes = Literal["same", "squashed", "any"]
"""Masks that are accepted: of their picture's size; also beside a picture that was squashed to a
square or scaled (either keeps the whole frame); or of any size."""

Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PairPixels:
    """What could be read of a pair.

    Args:
        image_rgb: uint8 (height, width, 3); None if it can't be read.
        mask: uint8 (height, width), 0 or 255, or the number of its class; None if it can't be
            read.
        problems: What is wrong, if anything.
    """

    image_rgb: Uint8Array | None
    mask: Uint8Array | None
    problems: list[InputError]


@dataclass(frozen=True)
class MaskRules:
    """Which masks a data set may have, and what they are read as.

    Args:
        sizes: Which sizes are accepted.
        threshold: See `read_mask`.
        classes: Of masks that have several.
    """

    sizes: MaskSizes
    threshold: bool = False
    classes: Classes | None = None

    def __str__(self) -> str:
        kind = f"{self.sizes} halved" if self.threshold else self.sizes
        return kind if self.classes is None else f"{self.sizes} {self.classes}"

    def read(self, source: ImageSource) -> Uint8Array:
        """A file's mask, uint8 (height, width): 0 and 255, or the numbers of classes."""
        if self.classes is not None:
            return self.classes.read(source)
        return read_mask(source, threshold=self.threshold)

    def resize(self, mask: Uint8Array, size_hw: tuple[int, int]) -> Uint8Array:
        """A mask at another size: soft, 0..255, or the numbers of classes."""
        return resize(mask, size_hw) if self.classes is None else self.classes.resize(mask, size_hw)


def mask_rules(
    dataset: str,
    data_dir: str | os.PathLike[str],
    *,
    allow_mask_resize: bool = False,
    threshold_masks: bool = False,
) -> MaskRules:
    """The rules of a data set and the classes of the table beside it; see `decode`."""
    sizes: MaskSizes = "squashed" if dataset.startswith("isic") else "same"
    if allow_mask_resize:
        sizes = "any"
    return MaskRules(sizes, threshold_masks, find_classes(data_dir, dataset))


@contextlib.contextmanager
def read_pair(pair: Pair, rules: MaskRules) -> Iterator[PairPixels]:
    """Decode a picture and its mask, and compare them; as a context, while they are in memory.

    Large pictures wait for each other, for many at once would not fit.
    """
    problems: list[InputError] = []
    picture = image_rgb = mask = None
    with _ROOM.share() as take:
        try:
            picture = _read(pair.image, functools.partial(read_picture, before=take))
            image_rgb = np.array(picture)
        except InputError as error:
            problems.append(error)
        try:
            mask = read_masks(pair, rules)
        except InputError as error:
            problems.append(error)
        if picture is not None and image_rgb is not None and mask is not None:
            turn = picture.info.get(TURNED)
            problem = turn and _turn_problem(pair, image_rgb, mask, turn)
            problem = problem or _size_problem(pair, image_rgb.shape[:2], mask.shape, rules.sizes)
            if problem:
                problems.append(problem)
        yield PairPixels(image_rgb, mask, problems)


def read_resized(pair: Pair, size: int) -> Uint8Array:
    """The picture of a pair at another size, uint8 (size, size, 3), as a cache holds it."""
    with _ROOM.share() as take:
        picture = _read(pair.image, functools.partial(read_picture, before=take))
        return resize(picture, (size, size))


def run_all(
    work: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None
) -> list[Result]:
    """The result for each item, in order, from a few threads; the first error ends it."""
    results = []
    with ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1)) as pool:
        for result in pool.map(work, items):
            results.append(result)
            if progress:
                progress(len(results), len(items))
    return results


def _read(file: SourceFile, reader: Callable[[ImageSource], Result]) -> Result:
    if file.archive is None:
        return reader(file.path)
    with file.open() as stream:
        try:
            return reader(stream)
        except InputError as error:
            given = f"in {file.archive.filename}, {error.given}"
            raise InputError(given, error.accepted, error.remedy) from error


def read_masks(pair: Pair, rules: MaskRules) -> Uint8Array:
    """The mask of all lesions of a picture, at its own size, uint8 (height, width).

    It holds 0 and 255, or the numbers of classes; where several masks overlap, the highest.
    """
    files = (pair.mask, *pair.more_masks)
    masks = [_read(file, rules.read) for file in files]
    for file, mask in zip(files, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise InputError(
                f"{file} is {width_by_height(mask.shape)} and {pair.mask} "
                f"{width_by_height(masks[0].shape)} (width × height)",
                "the masks of one picture have one size",
                "export them again",
            )
    return functools.reduce(np.maximum, masks)


def _turn_problem(
    pair: Pair, image_rgb: Uint8Array, mask: Uint8Array, turn: int
) -> InputError | None:
    """Whether a picture is turned by EXIF and its mask was drawn on it as it is stored.

    Sizes tell where the turn changes them. Else the mask is taken for one of the stored picture
    if turned likewise it sets off the lesion's mean colour by 5 grey levels more.
    """
    mask = np.where(mask > 0, 255, 0).astype(np.uint8)  # of classes too
    turned = np.asarray(Image.fromarray(mask).transpose(UPRIGHT[turn]))
    height, width = image_rgb.shape[:2]
    if turn >= 5 and mask.shape[0] != mask.shape[1]:
        is_stored = (height > width) != (mask.shape[0] > mask.shape[1])
    else:
        is_stored = _contrast(image_rgb, turned) > _contrast(image_rgb, mask) + 5
    if not is_stored:
        return None
    return InputError(
        f"{pair.image} is turned by its EXIF orientation and {pair.mask} is not",
        "a mask shows its picture as viewers do, upright",
        "turn the mask likewise, or take the orientation out of the picture",
    )


def _contrast(image_rgb: Uint8Array, mask: Uint8Array) -> float:
    """Distance of the mean colours inside and outside a mask, in grey levels."""
    height, width = image_rgb.shape[:2]
    inside = np.asarray(Image.fromarray(mask).resize((width, height))) >= 128
    if inside.all() or not inside.any():
        return 0.0
    means = image_rgb[inside].mean(axis=0) - image_rgb[~inside].mean(axis=0)
    return float(np.sqrt(np.mean(means**2)))


def _size_problem(
    pair: Pair, image_hw: tuple[int, ...], mask_hw: tuple[int, ...], accepted: MaskSizes
) -> InputError | None:
    """What is wrong with a mask's size, if anything."""
    # A mask of another shape may have been cut, not squashed: nothing in the files tells.
    squashed = image_hw[0] == image_hw[1]
    scaled = abs(image_hw[0] * mask_hw[1] / (image_hw[1] * mask_hw[0]) - 1) < 0.01
    if (
        image_hw == mask_hw
        or accepted == "any"
        or (accepted == "squashed" and (squashed or scaled))
    ):
        return None
    return InputError(
        f"{pair.mask} is {width_by_height(mask_hw)} and its picture {pair.image.path.name} "
        f"{width_by_height(image_hw)} (width × height)",
        "a mask has the size of its picture",
        "export it again, or pass --resize-masks (allow_mask_resize=True) if both show the same "
        "frame",
    )


def width_by_height(size_hw: Sequence[int]) -> str:
    """A size (height, width) for people, who say width × height."""
    return f"{size_hw[1]}×{size_hw[0]}"
