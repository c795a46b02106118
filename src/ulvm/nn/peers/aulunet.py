"""AULUNet: two depthwise convolutions weighed channel by channel, and gated skips."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulvm.nn.model import double
from ulvm.nn.peers.blocks import depthwise
from ulvm.spec import require_divisible


class KernelFusion(nn.Module):
    """A near and a wide depthwise convolution, mixed by weights that the picture decides.

    Args:
        channels: Width of input and output.

    Source: AULUNet, its adaptive kernel fusion (AKF).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near = depthwise(channels, bias=False)
        self.wide = depthwise(channels, dilation=2, bias=False)
        self.weigh = nn.Conv2d(channels, channels, 1)
        self.mix = _pointwise(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, height, width) → the same."""
        share = torch.sigmoid(self.weigh(_mean(features)))  # (batch, channels, 1, 1), of the near
        near, wide = self.near(features), self.wide(features)
        return self.mix(wide + share * (near - wide))


class GlobalFusion(nn.Module):
    """Each channel is made stronger or weaker, by what the means of all channels say.

    Args:
        channels: Width of input and output.

    Source: AULUNet, its residual global fusion (RGF) at the bottom.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, height, width) → the same."""
        return features + features * torch.tanh(self.weigh(_mean(features)))


class SkipGate(nn.Module):
    """Adds as much of the skip, at each position and channel, as it and the decoder decide.

    Args:
        channels: Width of both features.

    Source: AULUNet, its lightweight skip gate (LSG).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Two features (batch, channels, height, width) → one."""
        return features + torch.sigmoid(self.gate(torch.cat([features, skip], dim=1))) * skip


class AULUNet(nn.Module):
    """AULUNet: six stages, the first of them at the picture's own size.

    Args:
        widths: Channels of the six stages.

    Source: Rahman et al., "AULUNet", BMVC 2025, paper 1199; it prints 0.029 M parameters.
    Differs: what lies between its three modules (1×1 convolutions with batch norm and ReLU,
    average pooling, bilinear upsampling), the widths and the dilation of 2 are as in the authors'
    released code, and give its 28,636 parameters. Weights start as torch draws them.
    """

    def __init__(self, widths: Sequence[int] = (5, 10, 15, 25, 35, 60)) -> None:
        super().__init__()
        falling = widths[::-1]
        first = widths[0]
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            KernelFusion(first),
        )
        self.encoder = nn.ModuleList(
            nn.Sequential(KernelFusion(before), _pointwise(before, after))
            for before, after in pairwise(widths)
        )
        self.bottom = GlobalFusion(widths[-1])
        self.narrow = nn.ModuleList(
            _pointwise(before, after) for before, after in pairwise(falling)
        )
        self.gates = nn.ModuleList(map(SkipGate, falling[1:]))
        self.decoder = nn.ModuleList(map(KernelFusion, falling[1:]))
        self.head = nn.Conv2d(first, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) in 0..255 → logits (batch, 1, height, width).

        Raises:
            InputError: Height or width is no multiple of 32.
        """
        require_divisible((images.shape[2], images.shape[3]))
        skips = [self.stem(images)]
        for stage in self.encoder:
            skips.append(stage(F.avg_pool2d(skips[-1], 2)))
        features = self.bottom(skips.pop())  # (batch, widths[5], height/32, width/32)
        for narrow, gate, stage in zip(self.narrow, self.gates, self.decoder, strict=True):
            features = stage(gate(narrow(double(features)), skips.pop()))
        return self.head(features)


def _mean(features: Tensor) -> Tensor:
    return features.mean(dim=(2, 3), keepdim=True)


def _pointwise(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )
