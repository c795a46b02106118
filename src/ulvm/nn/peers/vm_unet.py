"""VM-UNet: a U-Net of VSS blocks only, the largest network the paper compares itself with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ulvm.nn.mamba import SS2DMamba
from ulvm.nn.model import init_weights
from ulvm.spec import require_divisible


class VSSBlock(nn.Module):
    """LayerNorm and the four-direction scan, with a residual that training drops at times.

    Args:
        channels: Width of the tokens.
        drop: Probability that training leaves a picture as it is, 0..1.

    Source: VMamba, arXiv 2401.10166, as VM-UNet uses it.
    """

    def __init__(self, channels: int, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.norm = nn.LayerNorm(channels)
        self.mixer = SS2DMamba(channels, d_state=16, d_conv=3, expand=2)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, height, width, channels) → the same."""
        height, width = features.shape[1:3]
        tokens = self.norm(features).flatten(1, 2)  # (batch, height · width, channels)
        mixed = self.mixer(tokens, (height, width)).unflatten(1, (height, width))
        if self.training and self.drop > 0:
            kept = torch.rand(len(mixed), 1, 1, 1, device=mixed.device) >= self.drop
            mixed = mixed * kept / (1 - self.drop)
        return features + mixed


class PatchMerging(nn.Module):
    """Half the height and width, twice the channels.

    Source: Swin Transformer, arXiv 2103.14030, as VM-UNet uses it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.project = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, height, width, channels) → (batch, height/2, width/2, 2 · channels)."""
        corners = [features[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.project(self.norm(torch.cat(corners, dim=3)))


class PatchExpanding(nn.Module):
    """``factor`` times the height and width, ``factor`` times fewer channels.

    Source: Swin-Unet, arXiv 2105.05537, as VM-UNet uses it.
    """

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(channels, factor * channels, bias=False)
        self.norm = nn.LayerNorm(channels // factor)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, height, width, channels) → (batch, f·height, f·width, channels/f)."""
        factor = self.factor
        cells = self.expand(features).unflatten(3, (factor, factor, -1))
        # (batch, height, width, down, right, channels/f) → rows and columns of cells
        return self.norm(cells.transpose(2, 3).flatten(3, 4).flatten(1, 2))


class VMUNet(nn.Module):
    """VM-UNet with the depths that its authors train on skin lesions.

    Args:
        widths: Channels of the four encoder stages.
        depths: VSS blocks of each encoder stage.
        decoder_depths: VSS blocks of each decoder stage, the deepest first.
        drop: Highest probability of dropping a block's residual in training; it falls to 0
            towards the picture.

    Source: Ruan & Xiang 2024, "VM-UNet", arXiv 2402.02491; depths and ``drop`` from the
    authors' configuration.
    Differs: random weights in place of VMamba-S trained on ImageNet, so its scores are not
    comparable with the paper's; the projections that make B, C and the step size are drawn like
    every other linear layer. Convolutions are drawn as torch does, as in the released code.
    """

    def __init__(
        self,
        widths: Sequence[int] = (96, 192, 384, 768),
        depths: Sequence[int] = (2, 2, 2, 2),
        decoder_depths: Sequence[int] = (2, 2, 2, 1),
        drop: float = 0.3,
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, widths[0], 4, stride=4)
        self.embed_norm = nn.LayerNorm(widths[0])
        # On the CPU, for the network may be built where there are no numbers (torch's meta device).
        drops = torch.linspace(0, drop, sum(depths), device="cpu").tolist()
        self.encoder = _stages(widths, depths, drops)
        self.merge = nn.ModuleList(map(PatchMerging, widths[:-1]))
        drops = torch.linspace(drop, 0, sum(decoder_depths), device="cpu").tolist()
        self.decoder = _stages(widths[::-1], decoder_depths, drops)
        self.expand = nn.ModuleList(PatchExpanding(width, 2) for width in widths[:0:-1])
        self.enlarge = PatchExpanding(widths[0], 4)
        self.head = nn.Conv2d(widths[0] // 4, 1, 1)
        init_weights(self, "mamba")
        for part in self.modules():
            # Biases too: with none, black patches are 0 behind every norm, each of which
            # multiplies their gradient by up to 1 / sqrt(eps).
            if isinstance(part, nn.Conv2d):
                part.reset_parameters()

    def forward(self, images: Tensor) -> Tensor:
        """(batch, 3, height, width) in 0..255 → logits (batch, 1, height, width).

        Raises:
            InputError: Height or width is no multiple of 32.
        """
        require_divisible((images.shape[2], images.shape[3]))
        features = self.embed_norm(self.embed(images).movedim(1, 3))
        skips = []
        for stage, merge in zip(self.encoder[:-1], self.merge, strict=True):
            features = merge(stage(features))
            skips.append(features)  # what enters the next stage
        features = self.decoder[0](self.encoder[-1](features))
        for stage, expand in zip(self.decoder[1:], self.expand, strict=True):
            features = stage(expand(features + skips.pop()))
        return self.head(self.enlarge(features).movedim(3, 1))


def _stages(widths: Sequence[int], depths: Sequence[int], drops: Sequence[float]) -> nn.ModuleList:
    rates = iter(drops)
    return nn.ModuleList(
        nn.Sequential(*(VSSBlock(width, next(rates)) for _ in range(depth)))
        for width, depth in zip(widths, depths, strict=True)
    )
