"""LightM-UNet: Mamba layers in the encoder, convolutions in the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulvm.nn.mamba import Mamba
from ulvm.nn.model import init_weights
from ulvm.spec import require_divisible


class ResidualVisionMamba(nn.Module):
    """Mamba with a scaled residual; the same LayerNorm before and after, then a Linear.

    Args:
        in_channels: Width of the input.
        out_channels: Width of the output.

    Source: LightM-UNet, its RVM layer. Unlike in a PVM layer, the residual
    is of the input, not of the normed input.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels)
        self.mixer = Mamba(in_channels, d_state=16, d_conv=4, expand=2)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.project = nn.Linear(in_channels, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, in_channels, height, width) → (batch, out_channels, height, width)."""
        tokens = features.flatten(2).transpose(1, 2)  # (batch, height · width, in_channels)
        mixed = self.mixer(self.norm(tokens)) + self.skip_scale * tokens
        mixed = self.project(self.norm(mixed))
        return mixed.transpose(1, 2).unflatten(2, features.shape[2:])


class Residual(nn.Module):
    """Twice GroupNorm, ReLU and a layer, added to the input.

    Args:
        channels: Width of input and output, a multiple of 8.
        layers: What follows the norms.

    Source: LightM-UNet's encoder block; its decoder block is MONAI's ``ResBlock``.
    """

    def __init__(self, channels: int, *layers: nn.Module) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in layers)
        self.layers = nn.ModuleList(layers)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, height, width) → the same."""
        changed = features
        for norm, layer in zip(self.norms, self.layers, strict=True):
            changed = layer(F.relu(norm(changed)))
        return features + changed


class LightMUNet(nn.Module):
    """LightM-UNet in the size that the UltraLight VM-UNet paper compares itself with.

    Args:
        base: Channels of the first stage; each later stage has twice as many.
        blocks: Residual blocks of each encoder stage.

    Source: Liao et al. 2024, "LightM-UNet", arXiv 2403.05246, and its released code.
    Differs: the compared paper's 0.403 M are the code as first released with its default of 8
    channels, which is built here: 3×3 convolutions in the stem and the decoder, where the paper
    draws separable ones. The paper's own network has 32 channels; its 1.09 M is that code's
    count without the Mambas, with which it has 5.4 M. Weights are drawn as in our own network.
    """

    def __init__(self, base: int = 8, blocks: Sequence[int] = (1, 2, 2, 4)) -> None:
        super().__init__()
        widths = [base * 2**stage for stage in range(len(blocks))]
        self.stem = _convolution(3, base, 3)
        self.encoder = nn.ModuleList(
            nn.Sequential(*(_mamba_block(width) for _ in range(count)))
            for width, count in zip(widths, blocks, strict=True)
        )
        self.widen = nn.ModuleList(map(ResidualVisionMamba, widths[:-1], widths[1:]))
        self.enlarge = nn.ModuleList(
            nn.Sequential(
                _convolution(2 * width, width, 1), nn.Upsample(scale_factor=2, mode="bilinear")
            )
            for width in widths[-2::-1]
        )
        self.decoder = nn.ModuleList(
            Residual(width, _convolution(width, width, 3), _convolution(width, width, 3))
            for width in widths[-2::-1]
        )
        self.head_norm = nn.GroupNorm(8, base)
        self.head = nn.Conv2d(base, 1, 1)
        init_weights(self, "mamba")

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) in 0..255 → logits (batch, 1, height, width).

        Raises:
            InputError: Height or width is no multiple of 32.
        """
        require_divisible((images.shape[2], images.shape[3]))
        features = self.encoder[0](self.stem(images))
        skips = []
        for stage, widen in zip(self.encoder[1:], self.widen, strict=True):
            skips.append(features)
            features = stage(F.max_pool2d(widen(features), 2))
        for enlarge, stage in zip(self.enlarge, self.decoder, strict=True):
            features = stage(enlarge(features) + skips.pop())
        return self.head(F.relu(self.head_norm(features)))


def _mamba_block(channels: int) -> Residual:
    return Residual(
        channels, ResidualVisionMamba(channels, channels), ResidualVisionMamba(channels, channels)
    )


def _convolution(in_channels: int, out_channels: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
