"""The network in C, called through ctypes: uint8 RGB in, float32 probability out.

The library lies beside this file; ``build.py`` makes it from the C files here. While C runs,
other Python threads go on.
"""

import ctypes
import functools
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ulvm.errors import InputError, printable

LIBRARY = {"win32": "libulvm.dll", "darwin": "libulvm.dylib"}.get(sys.platform, "libulvm.so")

UNSUPPORTED, _NO_MEMORY = 4, 5  # ULVM_UNSUPPORTED and ULVM_NO_MEMORY of ulvm.h


class EngineError(InputError):
    """What the engine refused; the message is its own sentence.

    Args:
        sentence: What happened, and what to do.
        code: Of ulvm.h; ``UNSUPPORTED`` is a network that only ONNX Runtime runs.
    """

    def __init__(self, sentence: str, code: int) -> None:
        ValueError.__init__(self, printable(sentence))
        self.given, self.accepted, self.remedy = sentence, "", ""
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return (EngineError, (self.given, self.code))


class Engine:
    """A network in memory; call it with pictures. Threads may share one, and take turns.

    It can be copied and pickled, and after a fork the child opens it anew.

    Args:
        weights: The bytes of a safetensors file that ``ulvm train`` wrote.
        threads: How many share one picture, 1 to 16.

    Raises:
        InputError: They are no such weights, or describe a network that the engine doesn't run.
        MemoryError: There is too little memory.
    """

    def __init__(self, weights: bytes, *, threads: int = 1) -> None:
        self._weights, self._threads = weights, threads
        self._reset()
        self._open()
        _engines.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._close: weakref.finalize[Any, Any] | None = None

    def _open(self) -> int:
        """The handle, made if there is none."""
        if self._handle is None:
            weights = self._weights
            self._handle = _call("ulvm_open", weights, len(weights), self._threads)
            self._close = weakref.finalize(self, _library().ulvm_close, self._handle)
            self._close.atexit = False  # a thread may be in the library still
        return self._handle

    def _forget(self) -> None:
        """In a forked child: threads of the engine weren't copied, and its lock may be held."""
        if self._close is not None:
            self._close.detach()
        self._reset()

    def __reduce__(self) -> tuple[Any, ...]:
        return (functools.partial(Engine, threads=self._threads), (self._weights,))

    @property
    def in_channels(self) -> int:
        """Channels of a picture."""
        return int(_library().ulvm_in_channels(self._open()))

    @property
    def classes(self) -> int:
        """Maps of probability a picture: 1, or one for each class."""
        return int(_library().ulvm_classes(self._open()))

    @property
    def level(self) -> str:
        """The instruction set in use, such as ``avx2``; the variable ULVM_LEVEL forces one."""
        return str(_library().ulvm_level(self._open()).decode())

    def __call__(self, images_rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Probability of a batch of pictures.

        Args:
            images_rgb: uint8 (batch, height, width, in_channels), range 0..255; height and width
                are multiples of 32.

        Returns:
            float32 (batch, classes, height, width), range 0..1.

        Raises:
            InputError: The array has another shape or type, or the output is not finite.
            MemoryError: There is too little memory.
        """
        shape = images_rgb.shape
        if images_rgb.dtype != np.uint8 or len(shape) != 4 or shape[3] != self.in_channels:
            raise InputError(
                f"the batch is {images_rgb.dtype} {shape}",
                f"it must be uint8 (batch, height, width, {self.in_channels})",
                "resize each picture with ulvm.image.resize and stack them",
            )
        batch, height, width, _ = shape
        images_rgb = np.ascontiguousarray(images_rgb)
        probability = np.empty((batch, self.classes, height, width), np.float32)
        for image_rgb, maps in zip(images_rgb, probability, strict=True):
            picture, result = image_rgb.ctypes.data, maps.ctypes.data
            with self._lock:
                _call("ulvm_run", self._open(), picture, height, width, result)
        return probability


def resize_probability(
    probability: npt.NDArray[np.float32], size_hw: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """A probability map at another size: bilinear with half-pixel centres, as Pillow does.

    Args:
        probability: float32 (height, width), range 0..1.
        size_hw: Height and width wanted, in pixels.

    Returns:
        float32 of the given size, range 0..1.

    Raises:
        MemoryError: There is too little memory.
    """
    resized = np.empty(size_hw, np.float32)
    _resize(probability, size_hw, 0.5, resized.ctypes.data, None, None)
    return np.minimum(resized, 1, out=resized)  # float32 sums of weights may exceed 1 a little


def resize_mask(
    probability: npt.NDArray[np.float32], size_hw: tuple[int, int], threshold: float
) -> tuple[npt.NDArray[np.bool_], int]:
    """Where ``resize_probability`` would give at least the threshold, without holding its result.

    Args:
        probability: float32 (height, width), range 0..1.
        size_hw: Height and width wanted, in pixels.
        threshold: Compared in float32.

    Returns:
        bool of the given size, and how many of its pixels are true.

    Raises:
        MemoryError: There is too little memory.
    """
    mask = np.empty(size_hw, np.bool_)
    area = ctypes.c_int64()
    _resize(probability, size_hw, threshold, None, mask.ctypes.data, ctypes.byref(area))
    return mask, area.value


def clean_probability(
    probability: npt.NDArray[np.float32], threshold: float
) -> npt.NDArray[np.float32]:
    """A probability map whose mask has no specks and no holes.

    Parts of the mask below a quarter of its largest part become 0, holes 1; all else stays.
    Pixels that share a corner are one part. A hole is background that is not joined to the edge
    of the frame through pixels that share a side.

    Args:
        probability: float32 (height, width), range 0..1.
        threshold: Of the mask; compared in float32.

    Returns:
        float32 (height, width), a new array.

    Raises:
        MemoryError: There is too little memory.
    """
    cleaned = np.array(probability, np.float32, order="C")
    place = cleaned.ctypes.data
    _call("ulvm_clean_probability", place, *cleaned.shape, threshold, place)
    return cleaned


def _resize(
    probability: npt.NDArray[np.float32],
    size_hw: tuple[int, int],
    threshold: float,
    resized: int | None,
    mask: int | None,
    area: Any,
) -> None:
    source = np.ascontiguousarray(probability, np.float32)
    sizes = (*source.shape, *size_hw)
    _call("ulvm_resize_probability", source.ctypes.data, *sizes, threshold, resized, mask, area)


def _call(function: str, *arguments: Any) -> Any:
    """What a function of the library returns, which takes an ``ulvm_error`` last.

    Raises:
        EngineError: It filled that in.
        MemoryError: There is too little memory.
    """
    error = _Error()
    result = getattr(_library(), function)(*arguments, ctypes.byref(error))
    if error.code == _NO_MEMORY:
        raise MemoryError(error.text())
    if error.code:
        raise EngineError(error.text(), error.code)
    return result


class _Error(ctypes.Structure):
    """``ulvm_error`` of ulvm.h."""

    _fields_ = (("code", ctypes.c_int), ("sentence", ctypes.c_char * 252))

    def text(self) -> str:
        return str(self.sentence.decode("utf-8", "replace"))


@functools.cache
def _library() -> ctypes.CDLL:
    """The library, with the types of ulvm.h."""
    path = Path(__file__).with_name(LIBRARY)
    if not path.is_file():
        raise InputError(
            f"the engine {LIBRARY} is missing from this installation of ulvm",
            "",
            "install ulvm again, or run `make engine` in the clone",
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise InputError(
            f"the engine {path} cannot be loaded ({error})",
            "it must have been made for this system",
            "install ulvm again on this machine",
        ) from error
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    error_pointer = ctypes.POINTER(_Error)
    types: dict[str, tuple[Any, list[Any]]] = {
        "ulvm_open": (pointer, [ctypes.c_char_p, size, number, error_pointer]),
        "ulvm_run": (number, [pointer, pointer, number, number, pointer, error_pointer]),
        "ulvm_close": (None, [pointer]),
        "ulvm_in_channels": (number, [pointer]),
        "ulvm_classes": (number, [pointer]),
        "ulvm_level": (ctypes.c_char_p, [pointer]),
        "ulvm_clean_probability": (
            number,
            [pointer, number, number, ctypes.c_float, pointer, error_pointer],
        ),
        "ulvm_resize_probability": (
            number,
            [pointer, *[number] * 4, ctypes.c_float, *[pointer] * 3, error_pointer],
        ),
    }
    for name, (result, arguments) in types.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def _forget_all() -> None:
    for engine in list(_engines):
        engine._forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
