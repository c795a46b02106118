"""UltraLight VM-UNet, top to bottom: Mamba, the PVM layer, the skip bridge, the network.

Source: Wu et al., "UltraLight VM-UNet", arXiv 2403.20035, and the authors' released code.
Differs: the paper's figure draws VSS blocks with a four-direction scan; like the released
code, ``mixer="mamba"`` is the plain one-direction Mamba. The drawn one is ``mixer="ss2d"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulvm.errors import InputError
from ulvm.nn.fused import kernels_for
from ulvm.nn.scan import selective_scan
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


class SelectiveScan(nn.Module):
    """The state space part of Mamba: input-dependent B, C and step size, then the scan.

    Args:
        inner: Width of the sequence.
        d_state: Size of the state per channel.
        dt_rank: Rank of the step size's projection.

    Source: Gu & Dao 2023, arXiv 2312.00752, algorithm 2.
    """

    def __init__(self, inner: int, d_state: int, dt_rank: int) -> None:
        super().__init__()
        self.d_state = d_state
        self.dt_rank = dt_rank
        self.x_proj = nn.Linear(inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.empty(inner))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, inner) → (batch, length, inner)."""
        x = x.contiguous()  # once, not in each operation that reads it
        rank, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.softplus(self.dt_proj(rank))  # (batch, length, inner)
        return selective_scan(x, delta, -torch.exp(self.A_log), B, C, self.D)


class CausalConv(nn.Conv1d):
    """Depthwise convolution over the length that never looks ahead.

    Source: Mamba's ``conv1d``, followed there and here by SiLU.
    """

    def __init__(self, inner: int, width: int) -> None:
        super().__init__(inner, inner, width, groups=inner, padding=width - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, inner) → (batch, length, inner)."""
        kernels = kernels_for(x)
        if kernels is not None:
            return kernels.run_causal_conv(self, x)
        y = super().forward(x.transpose(1, 2))[..., : x.shape[1]]  # (batch, inner, length)
        return F.silu(y.transpose(1, 2))


class Mamba(nn.Module):
    """One Mamba block on tokens, with the gate and both projections.

    Args:
        channels: Width of the tokens.
        d_state, d_conv, expand: As in the source; dt_rank is ceil(channels / 16).

    Source: Gu & Dao 2023, arXiv 2312.00752, figure 3.
    """

    def __init__(self, channels: int, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__()
        inner = expand * channels
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = CausalConv(inner, d_conv)
        self.scan = SelectiveScan(inner, d_state, math.ceil(channels / 16))
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor, size_hw: tuple[int, int] | None = None) -> Tensor:
        """(batch, length, channels) → the same; ``size_hw`` is not needed here."""
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)  # (batch, length, inner) each
        return self.out_proj(self.scan(self.conv(x)) * F.silu(gate))


class BidirectionalMamba(Mamba):
    """Mamba run forwards and backwards with weights of their own, one gate for both.

    Source: Zhu et al. 2024, "Vision Mamba" (Vim), arXiv 2401.09417, algorithm 1.
    """

    def __init__(self, channels: int, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__(channels, d_state, d_conv, expand)
        inner = expand * channels
        self.conv_backwards = CausalConv(inner, d_conv)
        self.scan_backwards = SelectiveScan(inner, d_state, math.ceil(channels / 16))

    def forward(self, tokens: Tensor, size_hw: tuple[int, int] | None = None) -> Tensor:
        """(batch, length, channels) → the same; ``size_hw`` is not needed here."""
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)
        y = self.scan(self.conv(x))
        y = y + self.scan_backwards(self.conv_backwards(x.flip(1))).flip(1)
        return self.out_proj(y * F.silu(gate))


class LayerNorm(nn.LayerNorm):
    """torch's over the last axis; narrow rows have a kernel of ours on CUDA."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, features: Tensor) -> Tensor:
        """(…, channels) → the same shape; float32 under autocast, as torch's."""
        kernels = kernels_for(features)
        if kernels is not None and kernels.fits_layer_norm(self):
            return kernels.run_layer_norm(self, features)
        return super().forward(features)


class SS2DMamba(nn.Module):
    """Mamba with a 3×3 depthwise convolution and scans along rows and columns, both ways.

    Source: Liu et al. 2024, "VMamba", arXiv 2401.10166 (SS2D), as in VM-UNet's VSS block.
    """

    DIRECTIONS = 4

    def __init__(self, channels: int, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__()
        inner = expand * channels
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        # d_conv is the width of a sequence's convolution; the source fixes 3×3 in the plane.
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.scans = nn.ModuleList(
            SelectiveScan(inner, d_state, math.ceil(channels / 16)) for _ in range(self.DIRECTIONS)
        )
        self.norm = LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor, size_hw: tuple[int, int] | None = None) -> Tensor:
        """(batch, height · width, channels) in row order → the same."""
        if size_hw is None:
            raise InputError(
                "the ss2d mixer got tokens without their height and width",
                "accepted is size_hw=(height, width)",
                "pass size_hw to forward_tokens",
            )
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)
        plane = x.transpose(1, 2).unflatten(2, size_hw)  # (batch, inner, height, width)
        plane = F.silu(self.conv(plane))
        # By rows and by columns, (batch, height · width, inner); contiguous once for both ways.
        rows, columns = (
            plane.permute(axes).flatten(1, 2).contiguous() for axes in ((0, 2, 3, 1), (0, 3, 2, 1))
        )
        across, back, down, up = self.scans
        y_rows = across(rows) + back(rows.flip(1)).flip(1)
        y_columns = down(columns) + up(columns.flip(1)).flip(1)
        height, width = size_hw
        y_columns = y_columns.unflatten(1, (width, height)).transpose(1, 2).flatten(1, 2)
        return self.out_proj(self.norm(y_rows + y_columns) * F.silu(gate))


MIXERS = {"mamba": Mamba, "bidirectional": BidirectionalMamba, "ss2d": SS2DMamba}


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
        InputError: ``branches`` does not divide ``in_channels``, or no such mixer.

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
        if in_channels % branches:
            raise InputError(
                f"PVMLayer got {in_channels} channels and {branches} branches",
                "accepted is a number of branches that divides the channels",
                "change one of them",
            )
        if mixer not in MIXERS:
            raise InputError(
                f"PVMLayer has no mixer {mixer!r}",
                "accepted are " + ", ".join(MIXERS),
                "choose one of these",
            )
        self.branches = branches
        self.norm = LayerNorm(in_channels)
        self.mixer = MIXERS[mixer](in_channels // branches, d_state, d_conv, expand)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.project = nn.Linear(in_channels, out_channels)
        init_weights(self, init)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, in_channels, height, width) → (batch, out_channels, height, width)."""
        kernels = kernels_for(features)
        if kernels is not None and kernels.fits_pvm(self):
            return kernels.run_pvm(self, features)
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


class FourGroupNorm(nn.GroupNorm):
    """GroupNorm of four groups whose exported form sums row by row.

    Differs: only in the order of the sums. ONNX Runtime's fused normalisation adds up a whole
    group in one float32 and is 3e-4 off on pictures of one value; rows first gives 1e-5.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(4, channels)

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, height, width) → the same."""
        if not torch.compiler.is_exporting():
            return super().forward(features)
        rows = features.unflatten(1, (self.num_groups, -1)).flatten(2, 3)
        rows = rows - rows.mean(3, keepdim=True).mean(2, keepdim=True)
        variance = (rows * rows).mean(3, keepdim=True).mean(2, keepdim=True)
        normal = (rows / torch.sqrt(variance + self.eps)).view_as(features)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


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
        if (self.spatial or self.channel) and (kernels := kernels_for(skips[0])):
            return kernels.run_bridge(self, skips)
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
        self.encoder_norms = nn.ModuleList(FourGroupNorm(width) for width in widths[:-1])
        self.bridge = SkipBridge(
            widths[:-1],
            spatial=spec.bridge in ("both", "spatial"),
            channel=spec.bridge in ("both", "channel"),
        )
        self.decoder = nn.ModuleList(
            _stage(kind, before, after, spec)
            for kind, before, after in zip(spec.decoder, falling[:-1], falling[1:], strict=True)
        )
        self.decoder_norms = nn.ModuleList(FourGroupNorm(width) for width in falling[1:])
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
            features = halve(block, norm, features)  # type: ignore[arg-type]  # half the size
            skips.append(features)
        features = F.gelu(self.encoder[-1](features))  # (batch, widths[5], height/32, width/32)

        bridged = self.bridge(skips)[::-1]
        for depth, (block, norm) in enumerate(zip(self.decoder, self.decoder_norms, strict=True)):
            # The deepest skip has the bottom's size.
            features = merge(block, norm, features, bridged[depth], doubled=depth > 0)
        if kernels := kernels_for(features):
            return kernels.double_head(self.head, features)
        return double(self.head(features))

    def _check(self, images: Tensor) -> None:
        if images.dim() != 4 or images.shape[1] != self.spec.in_channels:
            raise InputError(
                f"the network got {tuple(images.shape)}",
                f"accepted is (batch, {self.spec.in_channels}, height, width)",
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


def halve(block: nn.Module, norm: FourGroupNorm, features: Tensor) -> Tensor:
    """A step down: GELU of the 2×2 maximum of the normalised block, at half the size."""
    if kernels := kernels_for(features):
        if isinstance(block, nn.Conv2d):
            return kernels.halve_conv(block, norm, features)
        return kernels.halve_norm(norm, block(features))
    return F.gelu(F.max_pool2d(norm(block(features)), 2))


def merge(
    block: nn.Module, norm: nn.Module, features: Tensor, skip: Tensor, *, doubled: bool
) -> Tensor:
    """A step up: GELU of the normalised block, at twice the size if ``doubled``, plus the skip."""
    if kernels := kernels_for(features):
        features = (
            kernels.convolve(block, features) if isinstance(block, nn.Conv2d) else block(features)
        )
        return kernels.merge_norm(norm, features, skip, doubled=doubled)
    features = norm(block(features))
    return F.gelu(double(features) if doubled else features) + skip


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
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, SelectiveScan):
            with torch.no_grad():
                part.A_log.copy_(torch.arange(1.0, part.d_state + 1).log().expand_as(part.A_log))
                part.D.fill_(1.0)
                if init == "mamba":
                    _init_step_size(part.dt_proj)


def _init_step_size(dt_proj: nn.Linear, lowest: float = 1e-3, highest: float = 0.1) -> None:
    bound = dt_proj.in_features**-0.5
    nn.init.uniform_(dt_proj.weight, -bound, bound)
    low, high = math.log(lowest), math.log(highest)
    step = torch.exp(low + torch.rand(dt_proj.out_features) * (high - low)).clamp_min(1e-4)
    dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
