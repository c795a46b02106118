"""UNeXt and UNeXt-S: convolutions outside, MLPs on shifted channels inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulvm.nn.model import init_weights
from ulvm.nn.peers.blocks import convolution, depthwise
from ulvm.spec import require_divisible


class ShiftedMLP(nn.Module):
    """Tokenized MLP: shift over the height, mix channels, shift over the width, mix again.

    Args:
        channels: Width of the tokens.

    Source: UNeXt, its shifted MLP; five groups of channels are shifted by −2 .. 2 positions, zeros
    coming in.
    """

    SHIFTS = (-2, -1, 0, 1, 2)

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.first = nn.Linear(channels, channels)
        self.position = depthwise(channels)
        self.second = nn.Linear(channels, channels)
        init_weights(self, "paper")

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, height, width) → the same."""
        size_hw = features.shape[2:]
        tokens = features.flatten(2).transpose(1, 2)  # (batch, height · width, channels)
        normal = self.norm(tokens).transpose(1, 2).unflatten(2, size_hw)
        mixed = self.first(_shift(normal, 2, self.SHIFTS).flatten(2).transpose(1, 2))
        placed = self.position(mixed.transpose(1, 2).unflatten(2, size_hw))
        placed = F.gelu(placed)
        mixed = self.second(_shift(placed, 3, self.SHIFTS).flatten(2).transpose(1, 2))
        return features + mixed.transpose(1, 2).unflatten(2, size_hw)


class PatchEmbedding(nn.Module):
    """Halve the size with an overlapping 3×3 convolution, then LayerNorm over the channels.

    Source: UNeXt, its tokenized MLP stage.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_channels)
        init_weights(self, "paper")

    def forward(self, features: Tensor) -> Tensor:
        """(batch, in_channels, height, width) → (batch, out_channels, height/2, width/2)."""
        return _norm_channels(self.conv(features), self.norm)


class UNeXt(nn.Module):
    """Three convolution stages, two tokenized MLP stages, and the way back.

    Args:
        widths: Channels of the five stages.
        deep_convolution: Makes the 3×3 convolutions, input and output width → layer, of the
            third stage down and of the three stages up whose input is as wide or deeper.

    Source: Valanarasu & Patel 2022, "UNeXt", arXiv 2203.04967.
    Differs: widths as in the authors' released code, 16, 32, 128, 160, 256 (and 8, 16, 32, 64,
    128 for UNeXt-S), which give the paper's 1.47 M; its text says 32 and 64 for the first two.
    """

    def __init__(
        self,
        widths: Sequence[int] = (16, 32, 128, 160, 256),
        deep_convolution: Callable[[int, int], nn.Module] = convolution,
    ) -> None:
        super().__init__()
        falling = [*widths[::-1], widths[0]]
        down = [convolution, convolution, deep_convolution]
        up = [*[deep_convolution] * 3, convolution, convolution]
        self.encoder = nn.ModuleList(
            nn.Sequential(
                convolve(before, after),
                nn.BatchNorm2d(after),
                nn.MaxPool2d(2),
                nn.ReLU(),
            )
            for convolve, before, after in zip(down, [3, *widths[:2]], widths[:3], strict=True)
        )
        self.embed = nn.ModuleList(map(PatchEmbedding, widths[2:4], widths[3:]))
        self.encoder_mlps = nn.ModuleList(map(ShiftedMLP, widths[3:]))
        self.encoder_norms = nn.ModuleList(map(nn.LayerNorm, widths[3:]))
        self.decoder = nn.ModuleList(
            convolve(before, after)
            for convolve, (before, after) in zip(up, pairwise(falling), strict=True)
        )
        self.decoder_batch_norms = nn.ModuleList(map(nn.BatchNorm2d, falling[1:-1]))
        self.decoder_mlps = nn.ModuleList(map(ShiftedMLP, falling[1:3]))
        self.decoder_norms = nn.ModuleList(map(nn.LayerNorm, falling[1:3]))
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) in 0..255 → logits (batch, 1, height, width).

        Raises:
            InputError: Height or width is no multiple of 32.
        """
        require_divisible((images.shape[2], images.shape[3]))
        features = images
        skips = []
        for stage in self.encoder:
            features = stage(features)
            skips.append(features)
        for embed, mlp, norm in zip(self.embed, self.encoder_mlps, self.encoder_norms, strict=True):
            features = _norm_channels(mlp(embed(features)), norm)
            skips.append(features)
        skips.pop()  # (batch, widths[4], height/32, width/32) is the bottom itself

        for depth, conv in enumerate(self.decoder[:-1]):
            features = F.relu(_double(self.decoder_batch_norms[depth](conv(features))))
            features = features + skips.pop()
            if depth < len(self.decoder_mlps):
                features = _norm_channels(
                    self.decoder_mlps[depth](features), self.decoder_norms[depth]
                )
        return self.head(F.relu(_double(self.decoder[-1](features))))


def _shift(features: Tensor, axis: int, shifts: Sequence[int]) -> Tensor:
    """Move groups of channels along one axis, each by its own number of positions."""
    reach = max(shifts)
    length = features.shape[axis]
    borders = (0, 0, reach, reach) if axis == 2 else (reach, reach)
    groups = F.pad(features, borders).chunk(len(shifts), dim=1)
    moved = [
        group.narrow(axis, reach - shift, length)
        for group, shift in zip(groups, shifts, strict=True)
    ]
    return torch.cat(moved, dim=1)


def _norm_channels(features: Tensor, norm: nn.Module) -> Tensor:
    return norm(features.movedim(1, -1)).movedim(-1, 1)


def _double(features: Tensor) -> Tensor:
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
