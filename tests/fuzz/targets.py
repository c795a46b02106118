"""What is fed with damaged bytes. A target raises nothing: it is refused by an ``InputError``."""

import contextlib
import io
import json
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

from ulvm import limits
from ulvm.datasets.find import Found, _list_pictures
from ulvm.errors import InputError, printable
from ulvm.image import read_image, read_mask
from ulvm.models import find_weights
from ulvm.segmenter import load_bytes, read_run
from ulvm.spec import RunSpec
from ulvm.splits import load_split

WEIGHTS = find_weights("skin")
SMALL = np.full((24, 32, 3), 150, np.uint8)
FOLDER = Path(tempfile.mkdtemp(prefix="ulvm-fuzz-"))  # of one process


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Lets an ``InputError`` pass if its message can be shown and is short."""
    message = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except InputError as error:
            message = str(error)
    if message is not None:
        assert printable(message) == message
        assert 10 < len(message) < 4000


def picture(content: bytes) -> None:
    """A picture, and a mask; of few pixels, so that there are many cases a second."""
    small = {"PIXELS": 2**16, "RUN_LENGTH_PIXELS": 2**14, "SIDE": 2**12}
    with mock.patch.multiple(limits, **small):
        with refusing():
            image_rgb = read_image(content)
            assert image_rgb.dtype == np.uint8
            assert image_rgb.shape[2:] == (3,)
        with refusing():
            assert not set(np.unique(read_mask(content))) - {0, 255}


def weights(content: bytes) -> None:
    """A weights file: its bytes as they are, and as header, line's end and data. One that loads
    outlines a small picture.
    """
    header, _, data = content.partition(b"\n")
    for file in (content, len(header).to_bytes(8, "little") + header + data):
        with refusing():
            segmenter = load_bytes(file, "weights")
            if segmenter.spec.data.image_size <= 64:
                found = segmenter(SMALL).probability
                assert 0 <= found.min() <= found.max() <= 1


def spec(content: bytes) -> None:
    """A run in JSON, as model files hold it, and as an assignment of ``--set``."""
    text = content.decode("utf-8", "replace")
    with refusing():
        try:
            metadata = limits.parse_json(text)
        except ValueError:
            metadata = None
        run, _ = read_run(metadata, "file")
        assert RunSpec.from_dict(run.to_dict()) == run
    with refusing():
        run = RunSpec().override(text.split("\0"))
        assert RunSpec.from_dict(run.to_dict()) == run


def splits(content: bytes) -> None:
    """A split file."""
    path = FOLDER / "split.json"
    path.write_bytes(content)
    with refusing():
        split = load_split("folder", path)
        assert len(split.hash) == 12


def zips(content: bytes) -> None:
    """A zip of pictures."""
    place = FOLDER / "images.zip"
    place.write_bytes(content)
    with refusing(), mock.patch("ulvm.datasets.find.ZIP_MEMBER_BYTES", 2**20):
        files = [file for file, _ in _list_pictures([place], Found("all"))]
        try:
            for file in files[:20]:
                with refusing():
                    file.read_bytes()
        finally:
            for file in files[:1]:
                assert file.archive is not None
                file.archive.close()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "picture": picture,
    "weights": weights,
    "spec": spec,
    "splits": splits,
    "zip": zips,
}


def seeds(name: str) -> list[bytes]:
    """Sound inputs to begin with."""
    if name == "weights":
        content = WEIGHTS.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        return [content, content[8:end] + b"\n" + content[end:]]
    if name == "spec":
        run = json.dumps({"format": 1, "run": RunSpec().to_dict()})
        return [run.encode(), b"train.epochs=3\0model.widths=8,16,24,32,48,64\0threshold=.4"]
    if name == "splits":
        parts = {"train": ["a", "b"], "validation": ["c"], "test": None}
        return [json.dumps({"name": "n", "dataset": "folder", "parts": parts}).encode()]
    if name == "zip":
        return [_zip(method) for method in (0, 8, 12, 14)]
    return [
        *_pictures("PNG", "L", "P", "RGBA", "1", "I;16"),
        *_pictures("TIFF", "RGB", "F", "I;16"),
        *_pictures("BMP", "P"),
        *_pictures("GIF", "P"),
        *_pictures("WEBP", "RGB"),
        *_pictures("JPEG", "RGB", "CMYK"),
    ]


def _pictures(kind: str, *modes: str) -> list[bytes]:
    made = []
    for mode in modes:
        values = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
        image = Image.fromarray(values).convert("L" if mode == "I;16" else mode)
        content = io.BytesIO()
        image.convert(mode).save(content, kind)
        made.append(content.getvalue())
    return made


def _zip(method: int) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        archive.writestr("images/a.png", b"a" * 100)
        archive.writestr("images/b.png", b"b")
    return content.getvalue()
