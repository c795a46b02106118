"""Whether the kernels can run on a tensor."""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor

from ulvm.nn.scan import is_traced

enabled = True
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


def usable(features: Tensor) -> bool:
    """Whether the kernels can take this tensor.

    They can on CUDA, where Triton is installed, in single and half precision, while nothing records
    or transforms torch's own operations.
    """
    return enabled and on_gpu(features) and features.dtype in _TYPES and not is_traced()


def on_gpu(tensor: Tensor) -> bool:
    """Whether the kernels exist where this tensor is."""
    return tensor.is_cuda and installed()


def enable(on: bool) -> None:
    """Let the kernels run, or plain torch in their place on CUDA too."""
    global enabled
    enabled = on


@functools.cache
def installed() -> bool:
    """Whether Triton is."""
    return importlib.util.find_spec("triton") is not None
