"""UltraLBM-UNet: one small Mamba both ways beside depthwise convolutions, and its student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ulvm.nn.mamba import Mamba
from ulvm.nn.model import double, init_weights
from ulvm.nn.peers.blocks import convolutions, depthwise, encode, rise
from ulvm.spec import require_divisible

QUARTERS = 4


class MultiBranch(nn.Module):
    """Quarters of the channels go four ways; the same LayerNorm before and after, then a Linear.

    The first ``scanned`` quarters pass one shared Mamba, forwards and backwards; the last one
    passes unchanged; those between are convolved. Each way has the same scaled residual.

    Args:
        in_channels: Width of the input, a multiple of 4.
        out_channels: Width of the output.
        kernel: Height and width of the convolution.
        scanned: 2 for the paper's GLMBP, 0 for its LMBP.

    Source: arXiv 2512.21584, global-local and local multi-branch perception.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, scanned: int) -> None:
        super().__init__()
        group = in_channels // QUARTERS
        convolved = QUARTERS - 1 - scanned
        self.scanned = scanned
        self.sizes = (scanned * group, convolved * group, group)
        self.norm = nn.LayerNorm(in_channels)
        self.mixer = Mamba(group, d_state=16, d_conv=4, expand=2) if scanned else None
        # Quarters side by side in one convolution: the same as one for each.
        self.convolve = _separable(convolved * group, kernel, groups=convolved)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.project = nn.Linear(in_channels, out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, in_channels, height, width) → (batch, out_channels, height, width)."""
        size_hw = features.shape[2:]
        tokens = self.norm(features.flatten(2).transpose(1, 2))  # (batch, length, in_channels)
        scanned, near, last = tokens.split(self.sizes, dim=2)
        plane = near.transpose(1, 2).unflatten(2, size_hw)
        near = self.convolve(plane).flatten(2).transpose(1, 2)
        ways = [near, last] if self.mixer is None else [*self._scan(scanned), near, last]
        mixed = torch.cat(ways, dim=2) + self.skip_scale * tokens
        mixed = self.project(self.norm(mixed))
        return mixed.transpose(1, 2).unflatten(2, size_hw)

    def _scan(self, tokens: Tensor) -> list[Tensor]:
        """(batch, length, scanned · group) → for each quarter (batch, length, group)."""
        assert self.mixer is not None
        quarters = torch.stack(tokens.chunk(self.scanned, dim=2))  # (scanned, batch, length, group)
        both = torch.stack([quarters, quarters.flip(2)])
        mixed = self.mixer(both.flatten(0, 2))  # both ways and all quarters as one batch
        forwards, backwards = mixed.unflatten(0, (2, self.scanned, -1)).unbind()
        return list((forwards + backwards.flip(2)).unbind())


class ScaledSkip(nn.Module):
    """The skips of all stages, weighed by one learnt number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, skip: Tensor) -> Tensor:
        """Any shape → the same."""
        return self.scale * skip


class UltraLBMUNet(nn.Module):
    """UltraLBM-UNet; with half the widths its student, UltraLBM-UNet-T.

    Args:
        widths: Channels of the six stages, multiples of 4.

    Source: Fan et al. 2025, "UltraLBM-UNet", arXiv 2512.21584, which prints 0.034 M and 0.011 M.
    Differs: where the paper leaves a choice as in its authors' released code, whose 34,166 and
    10,956 parameters this has: no Mamba in the outer two of the six deep stages (with one there
    they would be 35,798 and 11,672), kernels of 3, 5, 7, 7, 5 and 3 in the six, one learnt
    weight for all skips. That code gives Mamba the reversed channels for its second pass; here it
    gets the reversed tokens, which is what the paper's "bidirectional" means. The paper's student
    learns from its teacher; what the harness trains learns from the masks alone.
    """

    KERNELS = (3, 5, 7)  # of encoder stages 4 to 6, and of decoder stages 3 to 1
    SCANNED = (0, 2, 2)

    def __init__(self, widths: Sequence[int] = (8, 16, 24, 32, 48, 64)) -> None:
        super().__init__()
        falling = widths[::-1]
        down = map(MultiBranch, widths[2:5], widths[3:], self.KERNELS, self.SCANNED)
        up = map(MultiBranch, falling[:3], falling[1:4], self.KERNELS[::-1], self.SCANNED[::-1])
        self.encoder = nn.ModuleList([*convolutions([3, *widths[:3]]), *down])
        self.encoder_norms = nn.ModuleList(nn.GroupNorm(4, width) for width in widths[:-1])
        self.skip = ScaledSkip()
        self.decoder = nn.ModuleList([*up, *convolutions(falling[3:])])
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
        for depth, (block, norm) in enumerate(zip(self.decoder, self.decoder_norms, strict=True)):
            features = rise(features, block, norm, depth) + self.skip(skips.pop())
        return double(self.head(features))


def _separable(channels: int, kernel: int, groups: int) -> nn.Sequential:
    """A depthwise, then a pointwise convolution within each group, batch norm and GELU each."""
    return nn.Sequential(
        depthwise(channels, kernel, bias=False),
        nn.BatchNorm2d(channels),
        nn.GELU(),
        nn.Conv2d(channels, channels, 1, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.GELU(),
    )
