"""Whether the kernels can run on a tensor, and what they know of the chip.

They are tuned for an H100; on others they are as right, and maybe slower.
"""

from __future__ import annotations

import functools
import importlib.util
import math

import torch
from torch import Tensor

from ulvm.nn.scan import is_traced

MULTIPROCESSORS = 132
TWO_ON_EACH = 2 * MULTIPROCESSORS  # programs that sum over pixels: each leaves a partial sum
EIGHT_ON_EACH = 8 * MULTIPROCESSORS  # programs of few warps that keep the chip busy

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


@functools.cache
def shared_memory(device: torch.device) -> float:
    """Bytes that one program may take on a multiprocessor; no limit in the interpreter."""
    if device.type == "cpu":
        return math.inf
    import triton

    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return float(properties["max_shared_mem"])
