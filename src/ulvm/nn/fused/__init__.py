"""The network's steps as Triton kernels, for CUDA GPUs; the same mathematics as ``nn/model.py``.

Each module holds one operation, forward and backward, on channels-last activations
(batch, height, width, channels); ``layers.py`` feeds them from torch's modules. Without Triton or
CUDA nothing but this file is imported.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from types import ModuleType

import torch
from torch import Tensor

enabled = True  # set it to False to run plain torch on CUDA too
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def kernels_for(features: Tensor) -> ModuleType | None:
    """``fused.layers`` if the kernels can take this tensor, else None.

    They can on CUDA, where Triton is installed, in single and half precision.
    """
    if not (enabled and features.is_cuda and features.dtype in _TYPES):
        return None
    if torch.compiler.is_exporting() or not _installed():
        return None
    return importlib.import_module("ulvm.nn.fused.layers")


def compiling_ahead() -> contextlib.AbstractContextManager[None]:
    """``fused.compile.compiling_ahead`` where Triton is installed, else nothing."""
    if not (enabled and _installed()):
        return contextlib.nullcontext()
    ahead: contextlib.AbstractContextManager[None] = importlib.import_module(
        "ulvm.nn.fused.compile"
    ).compiling_ahead()
    return ahead


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None
