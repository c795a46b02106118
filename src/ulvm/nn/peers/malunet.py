"""MALUNet: external attention and dilated gates in the deep stages of a six-stage U-Net."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulvm.nn.model import SkipBridge, double, init_weights
from ulvm.nn.peers.blocks import convolutions, depthwise, encode, rise
from ulvm.spec import require_divisible


class ExternalAttention(nn.Module):
    """Attention to a memory that is the same for all pictures, with a residual.

    Args:
        channels: Width of input and output; the memory holds four times as many entries.

    Source: MALUNet, its module IEA, after Guo et al. 2021, arXiv 2105.02358.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1)
        self.keys = nn.Conv1d(channels, 4 * channels, 1, bias=False)
        self.values = nn.Conv1d(4 * channels, channels, 1, bias=False)
        self.project = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.GroupNorm(4, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, height, width) → the same."""
        scores = self.keys(self.query(features).flatten(2))  # (batch, 4 · channels, length)
        weights = torch.softmax(scores, dim=2)
        weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-9)
        read = self.values(weights).unflatten(2, features.shape[2:])
        return F.gelu(self.norm(self.project(read)) + features)


class DilatedGate(nn.Module):
    """Four groups of channels seen at four dilations, then a gate between two sizes of kernel.

    Args:
        in_channels: Width of the input, a multiple of 4.
        out_channels: Width of the output.

    Source: MALUNet, its module DGA; dilations 7, 5, 2 and 1.
    """

    DILATIONS = (7, 5, 2, 1)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        quarter = in_channels // 4
        self.dilated = nn.ModuleList(
            depthwise(quarter, dilation=dilation) for dilation in self.DILATIONS
        )
        self.mix = nn.Sequential(
            nn.GroupNorm(4, in_channels), nn.Conv2d(in_channels, in_channels, 1), nn.GELU()
        )
        self.gate = nn.Sequential(_separable(in_channels, in_channels, 3), nn.Sigmoid())
        self.value = nn.Sequential(_separable(in_channels, in_channels, 5), nn.GELU())
        self.project = nn.Sequential(_separable(in_channels, out_channels, 3), nn.GELU())
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, in_channels, height, width) → (batch, out_channels, height, width)."""
        quarters = zip(self.dilated, features.chunk(4, dim=1), strict=True)
        mixed = self.mix(torch.cat([see(quarter) for see, quarter in quarters], dim=1))
        return self.project(self.gate(mixed) * self.value(mixed)) + self.shortcut(mixed)


class MALUNet(nn.Module):
    """MALUNet with its spatial and channel attention bridge.

    Args:
        widths: Channels of the six stages.

    Source: Ruan et al. 2022, "MALUNet", arXiv 2211.01784. UltraLight VM-UNet took over its
    bridge, so ``ulvm.nn.model.SkipBridge`` serves both.
    Differs: keys and values of the external attention are trained apart, as in the authors'
    released code, whose 177,943 parameters these are. The paper prints 0.175 M, which is that
    count without the group norms.
    """

    def __init__(self, widths: Sequence[int] = (8, 16, 24, 32, 48, 64)) -> None:
        super().__init__()
        falling = widths[::-1]
        self.encoder = nn.ModuleList(
            [
                *convolutions([3, *widths[:3]]),
                *(
                    nn.Sequential(ExternalAttention(before), DilatedGate(before, after))
                    for before, after in pairwise(widths[2:])
                ),
            ]
        )
        self.encoder_norms = nn.ModuleList(nn.GroupNorm(4, width) for width in widths[:-1])
        self.bridge = SkipBridge(widths[:-1], spatial=True, channel=True)
        self.decoder = nn.ModuleList(
            [
                *(
                    nn.Sequential(DilatedGate(before, after), ExternalAttention(after))
                    for before, after in pairwise(falling[:4])
                ),
                *convolutions(falling[3:]),
            ]
        )
        self.decoder_norms = nn.ModuleList(nn.GroupNorm(4, width) for width in falling[1:])
        self.head = nn.Conv2d(widths[0], 1, 1)
        init_weights(self, "paper")

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) in 0..255 → logits (batch, 1, height, width).

        Raises:
            InputError: Height or width is no multiple of 32.
        """
        require_divisible((images.shape[2], images.shape[3]))
        features, skips = encode(images, self.encoder, self.encoder_norms)
        bridged = self.bridge(skips)
        for depth, (block, norm) in enumerate(zip(self.decoder, self.decoder_norms, strict=True)):
            features = rise(features, block, norm, depth) + bridged.pop()
        return double(self.head(features))


def _separable(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        depthwise(in_channels, kernel),
        nn.GroupNorm(4, in_channels),
        nn.Conv2d(in_channels, out_channels, 1),
    )
