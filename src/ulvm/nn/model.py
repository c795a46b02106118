"""UltraLight VM-UNet, top to bottom: the PVM layer, the skip bridge, the network.

Source: Wu et al., "UltraLight VM-UNet", arXiv 2403.20035, and the authors' released code.
Differs: the paper's figure draws VSS blocks with a four-direction scan; like the released
code, ``mixer="mamba"`` is the plain one-direction Mamba. The drawn one is ``mixer="ss2d"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulvm.errors import InputError, unknown_name
from ulvm.nn.mamba import MIXERS, SelectiveScan
from ulvm.spec import Init, Mixer, ModelSpec, Stage, require_divisible


def normalise(images: Tensor) -> Tensor:
    """Stretch each picture to 0..255, as the network expects.

    Args:
        images: (batch, channels, height, width), any real range or uint8.

    Returns:
        float32 (batch, channels, height, width); a picture of one value becomes zeros.

    Source: the released code's per-image min-max after its data-set z-score, which cancels.
    """
    # Contiguous, for torch's GroupNorm loses three digits on channels-last pictures of one value.
    images = images.to(torch.float32).contiguous()
    low = images.amin(dim=(1, 2, 3), keepdim=True)
    high = images.amax(dim=(1, 2, 3), keepdim=True)
    return (images - low) * (255.0 / (high - low).clamp_min(1e-3))


def probability_of_logits(logits: Tensor) -> Tensor:
    """Sigmoid for one class, softmax over classes for more.

    Args:
        logits: (batch, classes, height, width).

    Returns:
        The same shape, 0..1.
    """
    return torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)


class PVMLayer(nn.Module):
    """Parallel Vision Mamba: one small Mamba, shared by equal groups of the channels.

    It changes the width and keeps the size, so it can stand where a convolution stands::

        nn.Conv2d(64, 96, 3, padding=1)  →  PVMLayer(64, 96)

    Args:
        in_channels: Width of the input, a multiple of ``branches``.
        out_channels: Width of the output.
        branches: Groups of channels; they run as one batch through the one shared mixer.
        d_state, d_conv, expand: Mamba's sizes.
        mixer: ``mamba`` (the released code), ``bidirectional`` (Vim) or ``ss2d`` (VMamba).

    Raises:
        InputError: ``branches`` does not divide ``in_channels``, a size is below 1, or there is no
            such mixer or init.

    Source: arXiv 2403.20035, section 3.2, equations 1 to 5; the released code applies the same
    LayerNorm before and after the mixers.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        branches: int = 4,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        mixer: Mixer = "mamba",
        init: Init = "paper",
    ) -> None:
        super().__init__()
        sizes = {"in_channels": in_channels, "out_channels": out_channels, "branches": branches}
        sizes |= {"d_state": d_state, "d_conv": d_conv, "expand": expand}
        for name, size in sizes.items():
            if not hasattr(size, "__index__") or size < 1:
                raise InputError(f"PVMLayer got {name}={size!r}", "it is a whole number from 1", "")
        if in_channels % branches:
            raise InputError(
                f"PVMLayer got {in_channels} channels and {branches} branches",
                "the branches must divide the channels",
                "change one of them",
            )
        for what, given, known in (("mixer", mixer, MIXERS), ("init", init, get_args(Init))):
            if given not in known:
                raise unknown_name(f"PVMLayer has no {what} {given!r}", given, known)
        self.branches = branches
        self.norm = nn.LayerNorm(in_channels)
        self.mixer = MIXERS[mixer](in_channels // branches, d_state, d_conv, expand)
        self.skip_scale = nn.Parameter(torch.empty(1))
        self.project = nn.Linear(in_channels, out_channels)
        init_weights(self, init)

    def reset_parameters(self) -> None:
        """Set the layer's own parameter, as torch's layers do; ``init_weights`` sets all inside."""
        nn.init.ones_(self.skip_scale)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, in_channels, height, width) → (batch, out_channels, height, width)."""
        if features.dim() != 4:
            raise InputError(
                f"PVMLayer got {tuple(features.shape)}",
                "it takes (batch, channels, height, width)",
                "",
            )
        height, width = features.shape[2:]
        tokens = features.flatten(2).transpose(1, 2)  # (batch, height · width, in_channels)
        tokens = self.forward_tokens(tokens, (height, width))
        return tokens.transpose(1, 2).unflatten(2, (height, width))

    def forward_tokens(self, tokens: Tensor, size_hw: tuple[int, int] | None = None) -> Tensor:
        """(batch, length, in_channels) → (batch, length, out_channels).

        Args:
            tokens: (batch, length, in_channels).
            size_hw: Height and width whose product is the length; only ``ss2d`` needs it.
        """
        batch, length, channels = tokens.shape
        group = channels // self.branches
        # Branches become batch items: (batch, channels, length) → (batch · branches, group, length)
        groups = self.norm(tokens).transpose(1, 2).reshape(batch * self.branches, group, length)
        groups = groups.transpose(1, 2)
        groups = self.mixer(groups, size_hw) + self.skip_scale * groups
        groups = groups.transpose(1, 2).reshape(batch, channels, length)
        return self.project(self.norm(groups.transpose(1, 2)))


class SpatialAttention(nn.Module):
    """Where to look: a map from each position's mean and maximum over the channels.

    Source: arXiv 2403.20035, section 3.3 (SAB), from MALUNet; one convolution for all stages.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=9, dilation=3)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, height, width) → (batch, 1, height, width), 0..1."""
        maps = [features.mean(dim=1, keepdim=True), features.amax(dim=1, keepdim=True)]
        return torch.sigmoid(self.conv(torch.cat(maps, dim=1)))


class ChannelAttention(nn.Module):
    """Which channels matter, decided for each stage from the means of all stages.

    Args:
        widths: Channels of the stages.

    Source: arXiv 2403.20035, section 3.3 (CAB), from MALUNet.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.heads = nn.ModuleList(nn.Linear(sum(widths), width) for width in widths)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Per stage (batch, channels, height, width) → (batch, channels, 1, 1), 0..1."""
        means = torch.cat([each.mean(dim=(2, 3)) for each in features], dim=1)
        means = self.conv(means[:, None])[:, 0]  # (batch, sum of widths)
        return [torch.sigmoid(head(means))[:, :, None, None] for head in self.heads]


class SkipBridge(nn.Module):
    """Spatial, then channel attention over the skip features of all stages.

    Args:
        widths: Channels of the skip features.
        spatial, channel: Which attentions to build; without both, skips pass unchanged.

    Source: arXiv 2403.20035, section 3.3 (SCAB); the order of the residuals is the released
    code's: channel attention weighs attended + skip and is added to the attended feature.
    """

    def __init__(self, widths: Sequence[int], *, spatial: bool, channel: bool) -> None:
        super().__init__()
        self.spatial = SpatialAttention() if spatial else None
        self.channel = ChannelAttention(widths) if channel else None

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        """Features of each stage → bridged features of the same shapes."""
        attended = residual = skips
        if self.spatial is not None:
            attended = [self.spatial(skip) * skip for skip in skips]
            residual = [focus + skip for focus, skip in zip(attended, skips, strict=True)]
        if self.channel is None:
            return residual
        weights = self.channel(residual)
        return [
            weight * whole + focus
            for weight, whole, focus in zip(weights, residual, attended, strict=True)
        ]


class UltraLightVMUNet(nn.Module):
    """The six-stage U-Net with PVM layers in its deep stages.

    Args:
        spec: Sizes and choices; the default is the paper's model with 49,457 parameters.

    Source: arXiv 2403.20035, figure 2, and the released code.
    """

    def __init__(self, spec: ModelSpec | None = None) -> None:
        super().__init__()
        self.spec = spec = spec or ModelSpec()
        widths = spec.widths
        rising = [spec.in_channels, *widths]
        falling = widths[::-1]
        self.encoder = nn.ModuleList(
            _stage(kind, before, after, spec)
            for kind, before, after in zip(spec.encoder, rising[:-1], rising[1:], strict=True)
        )
        self.encoder_norms = nn.ModuleList(nn.GroupNorm(4, width) for width in widths[:-1])
        self.bridge = SkipBridge(
            widths[:-1],
            spatial=spec.bridge in ("both", "spatial"),
            channel=spec.bridge in ("both", "channel"),
        )
        self.decoder = nn.ModuleList(
            _stage(kind, before, after, spec)
            for kind, before, after in zip(spec.decoder, falling[:-1], falling[1:], strict=True)
        )
        self.decoder_norms = nn.ModuleList(nn.GroupNorm(4, width) for width in falling[1:])
        self.head = nn.Conv2d(widths[0], spec.classes, 1)
        init_weights(self, spec.init)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of each pixel.

        Args:
            images: (batch, in_channels, height, width), 0..255 from ``normalise``; height and
                width are multiples of 32.

        Returns:
            (batch, classes, height, width).

        Raises:
            InputError: Another number of channels, or a size that cannot be halved five times.
        """
        self._check(images)
        features = images
        skips = []
        for block, norm in zip(self.encoder[:-1], self.encoder_norms, strict=True):
            features = self.halve(block, norm, features)
            skips.append(features)
        features = F.gelu(self.encoder[-1](features))  # (batch, widths[5], height/32, width/32)

        bridged = self.bridge(skips)[::-1]
        for depth, (block, norm) in enumerate(zip(self.decoder, self.decoder_norms, strict=True)):
            # The deepest skip has the bottom's size.
            features = self.merge(block, norm, features, bridged[depth], doubled=depth > 0)
        return self.classify(features)

    def halve(self, block: nn.Module, norm: nn.Module, features: Tensor) -> Tensor:
        """A step down: GELU of the 2×2 maximum of the normalised block, at half the size."""
        return F.gelu(F.max_pool2d(norm(block(features)), 2))

    def merge(
        self, block: nn.Module, norm: nn.Module, features: Tensor, skip: Tensor, *, doubled: bool
    ) -> Tensor:
        """A step up: GELU of the normalised block, at twice the size if ``doubled``, plus skip."""
        features = norm(block(features))
        return F.gelu(double(features) if doubled else features) + skip

    def classify(self, features: Tensor) -> Tensor:
        """Logits from the last stage's features, at twice the size."""
        return double(self.head(features))

    def _check(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[1] != self.spec.in_channels:
            raise InputError(
                f"the network got {tuple(images.shape)}",
                f"it takes (batch, {self.spec.in_channels}, height, width)",
                "reorder the axes or set ModelSpec.in_channels",
            )
        require_divisible((int(images.shape[2]), int(images.shape[3])))


class PictureToProbability(nn.Module):
    """The network with everything around it: uint8 RGB in, probability out.

    Args:
        network: The network in evaluation mode.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image_rgb: Tensor) -> Tensor:
        """uint8 (batch, height, width, channels) → float32 (batch, classes, height, width)."""
        return probability_of_logits(self.network(normalise(image_rgb.permute(0, 3, 1, 2))))


def _stage(kind: Stage, in_channels: int, out_channels: int, spec: ModelSpec) -> nn.Module:
    if kind == "conv":
        return nn.Conv2d(in_channels, out_channels, 3, padding=1)
    return PVMLayer(
        in_channels,
        out_channels,
        branches=spec.branches,
        d_state=spec.d_state,
        d_conv=spec.d_conv,
        expand=spec.expand,
        mixer=spec.mixer,
        init=spec.init,
    )


def double(features: Tensor) -> Tensor:
    """Twice the height and width, bilinear, corners kept."""
    return F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=True)


def init_weights(module: nn.Module, init: Init) -> None:
    """Draw every initial value of a network, in the order of its modules.

    Args:
        module: The network or layer, changed in place.
        init: ``paper`` sweeps over every layer as the released code does, so that Mamba's own
            step size is lost; ``mamba`` keeps Mamba's: steps log-uniform in .001 .. .1.

    Source: the released code's ``_init_weights``; Mamba's ``dt_init="random"``.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
        elif isinstance(part, nn.Conv1d):
            nn.init.normal_(
                part.weight, std=math.sqrt(2 / (part.kernel_size[0] * part.out_channels))
            )
        elif isinstance(part, nn.Conv2d):
            fan_out = math.prod(part.kernel_size) * part.out_channels // part.groups
            nn.init.normal_(part.weight, std=math.sqrt(2 / fan_out))
        elif isinstance(part, PVMLayer | SelectiveScan | nn.LayerNorm | nn.GroupNorm):
            part.reset_parameters()  # to constants
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)
    if init == "mamba":
        for part in module.modules():
            if isinstance(part, SelectiveScan):
                _init_step_size(part.dt_proj)


@torch.no_grad()
def _init_step_size(dt_proj: nn.Linear) -> None:
    bound = dt_proj.in_features**-0.5
    nn.init.uniform_(dt_proj.weight, -bound, bound)
    low, high = math.log(1e-3), math.log(0.1)
    step = torch.exp(low + torch.rand(dt_proj.out_features) * (high - low)).clamp_min(1e-4)
    dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
