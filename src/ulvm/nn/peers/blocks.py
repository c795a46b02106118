"""Layers that several of the peers have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulvm.nn.model import double


def halve(features: Tensor, norm: nn.Module) -> Tensor:
    """Norm, 2×2 max-pool, GELU: what ends an encoder stage of the six-stage peers."""
    return F.gelu(F.max_pool2d(norm(features), 2))


def encode(
    images: Tensor, encoder: nn.ModuleList, norms: nn.ModuleList
) -> tuple[Tensor, list[Tensor]]:
    """The six-stage peers' way down: the bottom, 1/32 of the size, and the skips above it."""
    features, skips = images, []
    for block, norm in zip(encoder[:-1], norms, strict=True):
        features = halve(block(features), norm)
        skips.append(features)
    return F.gelu(encoder[-1](features)), skips


def rise(features: Tensor, block: nn.Module, norm: nn.Module, depth: int) -> Tensor:
    """A decoder stage of the six-stage peers, before its skip is added.

    Twice the size, but for depth 0: the deepest skip has the bottom's size.
    """
    features = norm(block(features))
    return F.gelu(double(features) if depth > 0 else features)


def depthwise(channels: int, kernel: int = 3, dilation: int = 1, *, bias: bool = True) -> nn.Conv2d:
    """A convolution of each channel alone that keeps height and width."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, channels, kernel, 1, padding, dilation, channels, bias)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each position.

    Source: ConvNeXt, arXiv 2201.03545, whose form without transposes EGE-UNet and LB-UNet use.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, height, width) → the same."""
        features = features.float()  # as torch's norms do where the network runs in lower precision
        centred = features - features.mean(dim=1, keepdim=True)
        variance = (centred * centred).mean(dim=1, keepdim=True)
        normal = centred / torch.sqrt(variance + self.eps)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


class LearntPlane(nn.Module):
    """Weights over a plane that depend on no picture: a small learnt map, resized and convolved.

    Args:
        channels: Width of the map.
        side: Height and width of the map before it is resized.

    Source: EGE-UNet, arXiv 2307.08473; LB-UNet has it too.
    """

    def __init__(self, channels: int, side: int = 8) -> None:
        super().__init__()
        self.plane = nn.Parameter(torch.ones(1, channels, side, side))
        self.mix = nn.Sequential(depthwise(channels), nn.GELU(), nn.Conv2d(channels, channels, 1))

    def forward(self, size_hw: tuple[int, int]) -> Tensor:
        """Height and width → (1, channels, height, width)."""
        return self.mix(
            F.interpolate(self.plane, size=size_hw, mode="bilinear", align_corners=True)
        )


def convolution(in_channels: int, out_channels: int) -> nn.Module:
    """A 3×3 convolution that keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def convolutions(widths: Sequence[int]) -> list[nn.Module]:
    """3×3 convolutions from each width to the next."""
    return [convolution(before, after) for before, after in pairwise(widths)]
