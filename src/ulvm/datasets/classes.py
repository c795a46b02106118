"""Masks of several classes: a small table says which value or colour is which."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import numpy as np

from ulvm.errors import InputError
from ulvm.groups import read_rows
from ulvm.image import Uint8Array, mask_values, resize
from ulvm.picture import ImageSource, decode

TABLE = "classes.csv"
MOST = 255
_FORM = "it must be a CSV file whose first line is 'value,name' or 'r,g,b,name'"
_COLOURS = ("r", "g", "b")


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a data set's masks, background first.

    Args:
        names: The name of each class.
        values: What its pixels hold: a grey value or a palette's index; of colours
            65536 red + 256 green + blue.
        coloured: Whether values are colours.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    coloured: bool

    def read(self, source: ImageSource) -> Uint8Array:
        """The class of each pixel of a mask file.

        Args:
            source: A path, the bytes of a file, or a binary file object.

        Returns:
            uint8 (height, width), 0 for the background.

        Raises:
            InputError: See ``ulvm.image.read_mask``; or a value isn't in the table.
        """
        with decode(source) as (image, name):
            if self.coloured:
                rgb = np.asarray(image.convert("RGB"), np.int32)
                found = (rgb[..., 0] << 16) + (rgb[..., 1] << 8) + rgb[..., 2]
            else:
                found = mask_values(image, name)
        order = np.argsort(self.values)
        known = np.array(self.values)[order]
        place = np.searchsorted(known, found).clip(max=len(known) - 1)
        unknown = np.unique(found[known[place] != found])
        if len(unknown):
            listed = ", ".join(map(self._show, unknown[:3])) + ", …" * (len(unknown) > 3)
            raise InputError(
                f"{name} holds {listed}, not in {TABLE}",
                f"it lists {', '.join(map(self._show, self.values[:6]))}"
                + ", …" * (len(self.values) > 6),
                "add a line for each, or save the mask as PNG if it is a JPEG",
            )
        labels: Uint8Array = order.astype(np.uint8)[place]
        return labels

    def resize(self, labels: Uint8Array, size_hw: tuple[int, int]) -> Uint8Array:
        """The class that has most of each new pixel; of equals the one that comes first."""
        shares = [
            resize(np.where(labels == number, 255, 0).astype(np.uint8), size_hw)
            for number in range(len(self.names))
        ]
        largest: Uint8Array = np.stack(shares).argmax(axis=0).astype(np.uint8)
        return largest

    def _show(self, value: float) -> str:
        if not self.coloured:
            return f"{value:g}"
        return f"({int(value) >> 16}, {int(value) >> 8 & 255}, {int(value) & 255})"


def read_classes(path: Path) -> Classes:
    """The table in a file, ``value,name`` or ``r,g,b,name``, a line a class, background first.

    Raises:
        InputError: The file cannot be read or is no such table.
    """
    rows = read_rows(path, ("name",), _FORM)
    coloured = bool(rows) and set(_COLOURS) <= rows[0].keys()
    columns, most = (_COLOURS, 255) if coloured else (("value",), 65535)
    values = []
    for row in rows:
        numbers = [row.get(column, "") for column in columns]
        if not all(re.fullmatch("[0-9]{1,5}", each) and int(each) <= most for each in numbers):
            raise InputError(
                f"{path} gives {row.get('name') or 'a class'} {','.join(numbers) or 'no value'}",
                _FORM,
                f"write whole numbers in 0..{most}",
            )
        value = 0
        for each in numbers:
            value = 256 * value + int(each)
        values.append(value)
    names = [row["name"] for row in rows]
    for what, found in (("name", names), ("value", values)):
        if len(set(found)) < len(rows):
            raise InputError(
                f"{path} has a {what} twice", "each class has one line", "take one out"
            )
    if not 2 <= len(rows) <= MOST:
        raise InputError(
            f"{path} has {len(rows)} classes", f"it lists 2 to {MOST}, background first", ""
        )
    return Classes(tuple(names), tuple(values), coloured)


def find_classes(data_dir: str | os.PathLike[str], dataset: str) -> Classes | None:
    """The table that lies beside a data set's pictures; None where there is none."""
    paths = (Path(data_dir) / TABLE, Path(data_dir) / dataset / TABLE)
    return next((read_classes(path) for path in paths if path.is_file()), None)
