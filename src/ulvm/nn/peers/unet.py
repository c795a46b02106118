"""U-Net with 16 channels in its first stage: the peer of two million parameters."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulvm.spec import require_divisible


def bare_convolution(in_channels: int, out_channels: int) -> nn.Module:
    """A 3×3 convolution without bias, for a norm follows."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


class UNet(nn.Module):
    """The five-stage U-Net of plain convolutions.

    Args:
        base: Channels of the first stage; each later stage has twice as many.
        deep_convolution: Makes the 3×3 convolutions, input and output width → layer, of the two
            deepest stages down and of the deepest stage up, which ends as wide as the first of
            them.

    Source: Ronneberger et al. 2015, arXiv 1505.04597, figure 1.
    Differs: 16 channels in the first stage, not 64, which gives the size that the lesion papers
    quote as about 2 M; convolutions are padded so that sizes stay, and each is followed by
    batch norm in place of its bias, as in most later implementations.
    """

    def __init__(
        self, base: int = 16, deep_convolution: Callable[[int, int], nn.Module] = bare_convolution
    ) -> None:
        super().__init__()
        widths = [base * 2**stage for stage in range(5)]
        kinds = [*[bare_convolution] * 3, deep_convolution, deep_convolution]
        self.down = nn.ModuleList(map(two_convolutions, [3, *widths[:-1]], widths, kinds))
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in widths[-2::-1]
        )
        self.up = nn.ModuleList(
            two_convolutions(2 * width, width, kind)
            for width, kind in zip(widths[-2::-1], kinds[-2::-1], strict=True)
        )
        self.head = nn.Conv2d(base, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) in 0..255 → logits (batch, 1, height, width).

        Raises:
            InputError: Height or width is no multiple of 32.
        """
        require_divisible((images.shape[2], images.shape[3]))
        skips = [self.down[0](images)]
        for convolve in self.down[1:]:
            skips.append(convolve(F.max_pool2d(skips[-1], 2)))
        features = skips.pop()  # (batch, 16 · base, height/16, width/16)
        for enlarge, convolve in zip(self.enlarge, self.up, strict=True):
            features = convolve(torch.cat([skips.pop(), enlarge(features)], dim=1))
        return self.head(features)


def two_convolutions(
    in_channels: int,
    out_channels: int,
    convolution: Callable[[int, int], nn.Module] = bare_convolution,
) -> nn.Sequential:
    """Twice a convolution, batch norm and ReLU."""
    layers: list[nn.Module] = []
    for before in (in_channels, out_channels):
        layers += [
            convolution(before, out_channels),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)
