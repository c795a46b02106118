"""Kernels run on the GPU where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported

pytest.importorskip("triton", reason="Triton is not installed")

import triton.language as tl
from triton.runtime import interpreter

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_for_new_numpy(tensor: Any, scope: Any) -> None:
    # int() of an array of one element fails since numpy 2.4; the interpreter of Triton 3.6 does it.
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))


_patch_lang = interpreter._patch_lang


@functools.cache
def _languages_in(module: str) -> list[Any]:
    """What the functions of a module know of Triton's language."""
    return [each for each in vars(sys.modules[module]).values() if each is tl or each is tl.core]


def _patch_lang_once(function: Any) -> Any:
    # Functions that a kernel calls find the language patched already; the interpreter of Triton 3.6
    # looks through all of it at every call, which takes half the time.
    languages = _languages_in(function.__module__)
    if any(tl.core.is_builtin(language.load) for language in languages):
        return _patch_lang(function)
    return interpreter._LangPatchScope()


# The interpreter of Triton 3.6 makes the types, shapes and dtypes of every value anew, which takes
# half of what is left. They are few, and nothing changes them.
_new_block_type, _find_dtype = tl.block_type.__init__, interpreter._get_np_dtype
_block_types: dict[tuple[Any, ...], dict[str, Any]] = {}
_dtypes: dict[str, Any] = {}


def _known_block_type(self: Any, element_ty: Any, shape: Any) -> None:
    sizes = tuple(getattr(size, "value", size) for size in shape)
    key = (str(element_ty), sizes)
    if key not in _block_types:
        _new_block_type(self, element_ty, shape)
        _block_types[key] = vars(self).copy()
    vars(self).update(_block_types[key], element_ty=element_ty)


@functools.cache
def _known_shape(*sizes: int) -> tuple[Any, Any]:
    return tl.tuple([tl.constexpr(size) for size in sizes]), tl.constexpr(math.prod(sizes))


def _known_tensor(self: Any, handle: Any, type: Any) -> None:
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.shape, self.numel = _known_shape(*(type.shape if type.is_block() else ()))


def _known_dtype(kind: Any) -> Any:
    name = str(getattr(kind, "element_ty", kind)) if kind.is_block() else str(kind)
    if name not in _dtypes:
        _dtypes[name] = _find_dtype(kind)
    return _dtypes[name]


tl.block_type.__init__, tl.tensor.__init__ = _known_block_type, _known_tensor
interpreter._get_np_dtype = _known_dtype
interpreter._patch_lang_tensor = _patch_tensor_for_new_numpy
interpreter._patch_lang = _patch_lang_once
# Looking for integers that overflow takes as long as the kernels; sizes here are small.
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


@pytest.fixture
def device() -> str:
    """Where the kernels run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def plain_torch_is_exact() -> Iterator[None]:
    """Without the short floats that cuDNN takes by default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def run_compiler() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Runs a script that compiles kernels for a GPU that is not there, without the interpreter."""

    def run(script: str) -> subprocess.CompletedProcess[str]:
        environment = {
            name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"
        }
        return subprocess.run(
            [sys.executable, "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
