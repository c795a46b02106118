"""EGE-UNet: Hadamard products with learnt weights, and a bridge that aggregates groups."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulvm.nn.model import double, init_weights
from ulvm.nn.peers.blocks import (
    ChannelNorm,
    LearntPlane,
    convolutions,
    depthwise,
    encode,
    rise,
)
from ulvm.spec import require_divisible


class LearntLine(nn.Module):
    """Weights along one axis of a plane that depend on no picture.

    Args:
        channels: Width of the line.
        length: Its length before it is resized.

    Source: EGE-UNet, its (channel, height) and (channel, width) products.
    """

    def __init__(self, channels: int, length: int = 8) -> None:
        super().__init__()
        self.line = nn.Parameter(torch.ones(1, channels, length))
        self.mix = nn.Sequential(
            nn.Conv1d(channels, channels, 3, padding=1, groups=channels),
            nn.GELU(),
            nn.Conv1d(channels, channels, 1),
        )

    def forward(self, length: int) -> Tensor:
        """Length → (1, channels, length)."""
        return self.mix(F.interpolate(self.line, size=length, mode="linear", align_corners=True))


class HadamardAttention(nn.Module):
    """A quarter of the channels each weighted over the plane, rows, columns, or convolved.

    Args:
        in_channels: Width of the input, a multiple of 4.
        out_channels: Width of the output.

    Source: EGE-UNet, its module GHPA.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        quarter = in_channels // 4
        self.norm_in = ChannelNorm(in_channels)
        self.plane = LearntPlane(quarter)
        self.rows = LearntLine(quarter)
        self.columns = LearntLine(quarter)
        self.convolve = nn.Sequential(nn.Conv2d(quarter, quarter, 1), nn.GELU(), depthwise(quarter))
        self.norm_out = ChannelNorm(in_channels)
        self.project = nn.Sequential(
            depthwise(in_channels), nn.GELU(), nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(batch, in_channels, height, width) → (batch, out_channels, height, width)."""
        height, width = features.shape[2:]
        by_plane, by_rows, by_columns, convolved = self.norm_in(features).chunk(4, dim=1)
        quarters = [
            by_plane * self.plane((height, width)),
            by_rows * self.rows(height)[..., :, None],
            by_columns * self.columns(width)[..., None, :],
            self.convolve(convolved),
        ]
        return self.project(self.norm_out(torch.cat(quarters, dim=1)))


class GroupBridge(nn.Module):
    """A skip connection: the stage's feature, the deeper one and the mask predicted so far.

    Args:
        channels: Width of the stage's feature.
        deeper_channels: Width of the deeper stage's.

    Source: EGE-UNet, its module GAB; four groups with dilations 1, 2, 5 and 7.
    """

    DILATIONS = (1, 2, 5, 7)

    def __init__(self, channels: int, deeper_channels: int) -> None:
        super().__init__()
        group = channels // 2 + 1  # a quarter of either feature, and the mask
        self.match = nn.Conv2d(deeper_channels, channels, 1)
        self.groups = nn.ModuleList(
            nn.Sequential(ChannelNorm(group), depthwise(group, dilation=dilation))
            for dilation in self.DILATIONS
        )
        self.merge = nn.Sequential(ChannelNorm(4 * group), nn.Conv2d(4 * group, channels, 1))

    def forward(self, skip: Tensor, deeper: Tensor, mask: Tensor) -> Tensor:
        """Skip (batch, channels, height, width), deeper feature, mask logits → like the skip."""
        deeper = F.interpolate(
            self.match(deeper), size=skip.shape[2:], mode="bilinear", align_corners=True
        )
        quarters = zip(self.groups, deeper.chunk(4, dim=1), skip.chunk(4, dim=1), strict=True)
        mixed = [mix(torch.cat([below, own, mask], dim=1)) for mix, below, own in quarters]
        return self.merge(torch.cat(mixed, dim=1))


class EGEUNet(nn.Module):
    """EGE-UNet with the masks of its five decoder stages feeding the bridge.

    Args:
        widths: Channels of the six stages.

    Source: Ruan et al. 2023, "EGE-UNet", arXiv 2307.08473.
    Differs: where the paper is silent (norms, activations, sizes of the learnt weights, order of
    the stages' operations) as in the authors' released code, without its loss on the stages'
    masks: only the final logits are returned, in training too.
    """

    def __init__(self, widths: Sequence[int] = (8, 16, 24, 32, 48, 64)) -> None:
        super().__init__()
        falling = widths[::-1]
        self.encoder = nn.ModuleList(
            [
                *convolutions([3, *widths[:3]]),
                *map(HadamardAttention, widths[2:5], widths[3:]),
            ]
        )
        self.encoder_norms = nn.ModuleList(nn.GroupNorm(4, width) for width in widths[:-1])
        self.bridge = nn.ModuleList(map(GroupBridge, falling[1:], falling[:-1]))
        self.decoder = nn.ModuleList(
            [*map(HadamardAttention, falling[:3], falling[1:4]), *convolutions(falling[3:])]
        )
        self.decoder_norms = nn.ModuleList(nn.GroupNorm(4, width) for width in falling[1:])
        self.masks = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in falling[1:])
        self.head = nn.Conv2d(widths[0], 1, 1)
        init_weights(self, "paper")

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) in 0..255 → logits (batch, 1, height, width).

        Raises:
            InputError: Height or width is no multiple of 32.
        """
        require_divisible((images.shape[2], images.shape[3]))
        features, skips = encode(images, self.encoder, self.encoder_norms)
        deeper = features

        stages = zip(self.decoder, self.decoder_norms, self.masks, self.bridge, strict=True)
        for depth, (block, norm, mask, bridge) in enumerate(stages):
            features = rise(features, block, norm, depth)
            deeper = bridge(skips.pop(), deeper, mask(features))
            features = features + deeper
        return double(self.head(features))
