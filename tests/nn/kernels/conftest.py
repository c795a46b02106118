"""Kernels run on the GPU where there is one, else in Triton's interpreter on the CPU."""

from __future__ import annotations

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


def _patch_lang_once(function: Any) -> Any:
    # Functions that a kernel calls find the language patched already; the interpreter of Triton 3.6
    # looks through all of it at every call, which takes half the time.
    modules = [each for each in function.__globals__.values() if each is tl or each is tl.core]
    if any(tl.core.is_builtin(module.load) for module in modules):
        return _patch_lang(function)
    return interpreter._LangPatchScope()


interpreter._patch_lang_tensor = _patch_tensor_for_new_numpy
interpreter._patch_lang = _patch_lang_once
# Looking for integers that overflow takes as long as the kernels; sizes here are small.
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


@pytest.fixture
def device() -> str:
    """Where the kernels run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    """What a kernel reads before it was written is NaN, so that no result hides it."""
    # With this, torch fills fresh memory; on CUDA it would also refuse some of torch's own kernels.
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(False)


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
