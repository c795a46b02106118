"""Whether the kernels give what plain torch gives, on the GPU at hand."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from ulvm.nn import fused
from ulvm.nn.loss import segmentation_loss, targets_of

TOLERANCE = 0.01  # of a parameter's own gradient; float32 itself stays below 2e-5


def use_kernels_if_right(network: nn.Module, images: Tensor, soft: Tensor) -> None:
    """Switch the kernels off, with a warning, if their gradients are not plain torch's.

    Args:
        network: On the GPU, without dropout or running averages; its parameters' own ``grad`` stay
            as they are.
        images: float32 (batch, channels, height, width), normalised real pictures.
        soft: float32 (batch, height, width), their masks in 0..1.
    """
    if fused.kernels_for(images) is None:  # then plain torch runs anyway
        return
    with fused.compiling_ahead():
        _gradients(network, images, soft)
    found = _gradients(network, images, soft)
    fused.enabled = False
    try:
        # Without the short floats that cuDNN takes by default.
        with torch.backends.cudnn.flags(allow_tf32=False):
            expected = _gradients(network, images, soft)
    finally:
        fused.enabled = True
    errors = [
        float((ours - plain).norm() / plain.norm().clamp_min(1e-20))
        for ours, plain in zip(found, expected, strict=True)
    ]
    worst = max(errors)
    if not worst <= TOLERANCE:  # true for NaN too
        fused.enabled = False
        warnings.warn(
            f"the GPU kernels' gradients are {worst:.0e} off plain torch's on this machine; plain "
            "torch is used instead. Please report the GPU, torch and Triton versions.",
            stacklevel=2,
        )


def _gradients(network: nn.Module, images: Tensor, soft: Tensor) -> tuple[Tensor, ...]:
    logits = network(images.contiguous(memory_format=torch.channels_last))
    loss = segmentation_loss(logits, targets_of(soft, logits.shape[1]))
    return torch.autograd.grad(loss, _parameters(network))


def _parameters(network: nn.Module) -> list[nn.Parameter]:
    """Those whose gradient float32 can tell: not the sums that a norm behind them cancels.

    These are single factors (at the start float32 is 0.1 off, relatively) and the biases of
    convolutions (nothing but rounding where a group of the norm has one channel).
    """
    cancelled = {id(part.bias) for part in network.modules() if isinstance(part, nn.Conv2d)}
    return [each for each in network.parameters() if each.numel() > 1 and id(each) not in cancelled]
