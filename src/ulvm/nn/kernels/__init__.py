"""The network's steps as Triton kernels, for CUDA GPUs; the same mathematics as ``nn/model.py``.

The network knows nothing of them: ``accelerate`` puts them in from outside. Each module holds one
operation, forward and backward, on channels-last activations (batch, height, width, channels);
``modules.py`` feeds them from torch's modules. Without Triton or CUDA none of these is imported.
"""

from __future__ import annotations

import contextlib
from typing import TypeVar

from torch import nn

from ulvm.nn.kernels import device

_Network = TypeVar("_Network", bound=nn.Module)


def accelerate(network: _Network) -> _Network:
    """Let kernels compute what they can of a network that is on a CUDA GPU, in place.

    Parameters and their names stay as they are. Where a module inside has a hook or was replaced
    (by pruning, an adapter, a parametrisation), what contains it runs in plain torch.

    Args:
        network: Any; without kernels for it, or elsewhere than on such a GPU, it stays unchanged.

    Returns:
        The same object.
    """
    if any(device.on_gpu(each) for each in network.parameters()):
        from ulvm.nn.kernels.modules import swap

        swap(network)
    return network


def compiling_ahead() -> contextlib.AbstractContextManager[None]:
    """``kernels.compile.compiling_ahead`` where Triton is installed, else nothing."""
    if not (device.enabled and device.installed()):
        return contextlib.nullcontext()
    from ulvm.nn.kernels.compile import compiling_ahead

    return compiling_ahead()
