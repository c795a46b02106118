"""LB-UNet: learnt planes, shuffled groups, and boundaries that help the decoder."""

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
    halve,
    rise,
)
from ulvm.spec import require_divisible


class GroupShuffle(nn.Module):
    """Four groups of channels, each weighted by a learnt plane, in another order.

    Args:
        in_channels: Width of the input, a multiple of 4.
        out_channels: Width of the output.

    Source: LB-UNet, its group shuffle attention (GSA).
    """

    ORDER = (1, 3, 0, 2)

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm_in = ChannelNorm(in_channels)
        self.planes = nn.ModuleList(LearntPlane(in_channels // 4) for _ in range(4))
        self.norm_out = ChannelNorm(in_channels)
        self.project = nn.Sequential(
            depthwise(in_channels), nn.GELU(), nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """(batch, in_channels, height, width) → (batch, out_channels, height, width)."""
        size_hw = (features.shape[2], features.shape[3])
        groups = self.norm_in(features).chunk(4, dim=1)
        weighted = [
            group * plane(size_hw) for group, plane in zip(groups, self.planes, strict=True)
        ]
        return self.project(self.norm_out(torch.cat([weighted[i] for i in self.ORDER], dim=1)))


class WideMix(nn.Sequential):
    """7×7 depthwise convolution, then a pointwise one that widens four times and back.

    Source: LB-UNet's released code, in the third encoder stage only; after ConvNeXt.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels, padding_mode="reflect"),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, 4 * channels, 1),
            nn.GELU(),
            nn.Conv2d(4 * channels, channels, 1),
            nn.BatchNorm2d(channels),
            nn.GELU(),
        )


class PredictionMap(nn.Module):
    """What a decoder stage predicts, used to weigh its own feature and the skip.

    Args:
        channels: Width of both features.
        mask_weight: Weight of the predicted mask on the skip.
        boundary_weight: Weight of the predicted boundary; None for the two deepest stages,
            which predict no boundary.

    Source: LB-UNet, its prediction map auxiliary module (PMA).
    """

    def __init__(self, channels: int, mask_weight: float, boundary_weight: float | None) -> None:
        super().__init__()
        self.weights = [mask_weight]
        if boundary_weight is not None:
            self.weights.append(boundary_weight)
        self.predict = nn.ModuleList(nn.Conv2d(channels, 1, 1) for _ in self.weights)

    def forward(self, features: Tensor, skip: Tensor) -> Tensor:
        """Two features (batch, channels, height, width) → one."""
        merged = features + skip
        for predict, weight in zip(self.predict, self.weights, strict=True):
            predicted = torch.sigmoid(predict(features))  # (batch, 1, height, width)
            merged = merged + predicted * features + weight * predicted * skip
        return merged


class LBUNet(nn.Module):
    """LB-UNet with the predictions of its five decoder stages feeding the next.

    Args:
        widths: Channels of the six stages.

    Source: "LB-UNet: A Lightweight Boundary-assisted UNet", MICCAI 2024, paper 2135.
    Differs: where the paper is silent as in the authors' released code, without its losses on the
    stages' masks and boundaries: only the final logits are returned, in training too. The paper
    prints 0.038 M, which leaves out the learnt planes, layer norms and group norms.
    """

    MASK_WEIGHTS = (0.1, 0.2, 0.3, 0.4, 0.5)  # deepest stage first
    BOUNDARY_WEIGHTS = (None, None, 0.1, 0.2, 0.3)

    def __init__(self, widths: Sequence[int] = (8, 16, 24, 32, 48, 64)) -> None:
        super().__init__()
        falling = widths[::-1]
        first, second, third = convolutions([3, *widths[:3]])
        self.encoder = nn.ModuleList(
            [
                first,
                second,
                nn.Sequential(third, WideMix(widths[2])),
                *map(GroupShuffle, widths[2:5], widths[3:]),
            ]
        )
        self.encoder_norms = nn.ModuleList(nn.GroupNorm(4, width) for width in widths[:-1])
        # The shallow stages are halved by a convolution, the others by a maximum.
        self.shrink = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, width, 2, stride=2))
            for width in widths[:3]
        )
        self.decoder = nn.ModuleList(
            [*map(GroupShuffle, falling[:3], falling[1:4]), *convolutions(falling[3:])]
        )
        self.decoder_norms = nn.ModuleList(nn.GroupNorm(4, width) for width in falling[1:])
        self.predictions = nn.ModuleList(
            map(PredictionMap, falling[1:], self.MASK_WEIGHTS, self.BOUNDARY_WEIGHTS)
        )
        self.head = nn.Conv2d(widths[0], 1, 1)
        init_weights(self, "paper")

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) in 0..255 → logits (batch, 1, height, width).

        Raises:
            InputError: Height or width is no multiple of 32.
        """
        require_divisible((images.shape[2], images.shape[3]))
        features = images
        skips = []
        for depth, (block, norm) in enumerate(
            zip(self.encoder[:-1], self.encoder_norms, strict=True)
        ):
            features = block(features)
            if depth < len(self.shrink):
                features = F.gelu(self.shrink[depth](norm(features)))
            else:
                features = halve(features, norm)
            skips.append(features)
        features = F.gelu(self.encoder[-1](features))

        stages = zip(self.decoder, self.decoder_norms, self.predictions, strict=True)
        for depth, (block, norm, predictions) in enumerate(stages):
            features = predictions(rise(features, block, norm, depth), skips.pop())
        return double(self.head(features))
