"""The network's modules as the kernels compute them, put in the place of the plain ones.

Each class here is a plain module's with another forward pass. It takes the kernels where they can
run and the modules inside are as the plain class builds them; else it is the plain module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from ulvm.nn.kernels import conv, device, halve, merge, pvm
from ulvm.nn.kernels.bridge import bridge
from ulvm.nn.kernels.causal_conv import causal_conv
from ulvm.nn.kernels.device import usable
from ulvm.nn.kernels.layer_norm import WIDEST, layer_norm
from ulvm.nn.kernels.scan import LARGEST_STATE, scan
from ulvm.nn.mamba import CausalConv, Mamba, SelectiveScan
from ulvm.nn.model import (
    ChannelAttention,
    PVMLayer,
    SkipBridge,
    SpatialAttention,
    UltraLightVMUNet,
)
from ulvm.nn.peers.blocks import ChannelNorm
from ulvm.nn.scan import selective_scan


class FastLayerNorm(nn.LayerNorm):
    """LayerNorm of narrow rows."""

    def forward(self, features: Tensor) -> Tensor:
        """(…, channels) → the same shape; float32 under autocast, as torch's."""
        if not (usable(features) and _is_narrow(self)):
            return super().forward(features)
        return _normalise_rows(self, features)


class FastChannelNorm(ChannelNorm):
    """LayerNorm of each position's channels."""

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, height, width) → the same."""
        if not (usable(features) and _is_narrow(self)):
            return super().forward(features)
        return _first(_normalise_rows(self, _last(features)))


class FastCausalConv(CausalConv):
    """Causal depthwise convolution, then SiLU."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, inner) → (batch, length, inner)."""
        if not usable(x) or self.bias is None:
            return super().forward(x)
        return causal_conv(x, self.weight, self.bias)


class FastSelectiveScan(SelectiveScan):
    """The projections of torch, the recurrence of ours."""

    def recur(self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        """As ``selective_scan``, without an array of all states."""
        if not usable(x) or A.shape[1] > LARGEST_STATE:
            return selective_scan(x, delta, A, B, C, D)
        return scan(x, delta, A, B, C, D)


class FastPVMLayer(PVMLayer):
    """The whole layer, where its mixer is the plain Mamba and small enough for the chip."""

    def forward(self, features: Tensor) -> Tensor:
        """(batch, in_channels, height, width) → (batch, out_channels, height, width)."""
        if not (usable(features) and _untouched(*self.children()) and fits_pvm(self)):
            return super().forward(features)
        tokens = _last(features)
        y = pvm.pvm(tokens.flatten(1, 2), weights_of(self), self.norm.eps, self.branches)
        return _first(y.unflatten(1, tokens.shape[1:3]))


class FastSkipBridge(SkipBridge):
    """Both attentions, or one of them, over the skips of all stages."""

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        """Features of each stage → bridged features of the same shapes."""
        attentions = list(self.children())
        if not (attentions and usable(skips[0]) and _untouched(*attentions)):
            return super().forward(skips)
        spatial: Any = self.spatial
        channel: Any = self.channel
        bridged = bridge(
            [_last(skip) for skip in skips],
            None if spatial is None else _weight(spatial.conv),
            None if spatial is None else spatial.conv.bias,
            None if channel is None else channel.conv.weight,
            None if channel is None else [head.weight for head in channel.heads],
            None if channel is None else [head.bias for head in channel.heads],
        )
        return [_first(each) for each in bridged]


class FastUltraLightVMUNet(UltraLightVMUNet):
    """Steps down and up in one or two operations each, and the head in one."""

    def halve(self, block: Any, norm: Any, features: Tensor) -> Tensor:
        """Convolution, GroupNorm, 2×2 maximum, GELU: half the height and width."""
        if not (usable(features) and _is_norm_of_four(norm)):
            return super().halve(block, norm, features)
        if not fits_convolution(block):
            x = _last(block(features))
            return _first(halve.norm_halve(x, norm.weight, norm.bias, norm.eps))
        kind = features.device.type
        low = torch.is_autocast_enabled(kind)
        y = halve.conv_halve(
            _last(features),
            _weight(block),
            block.bias,
            norm.weight,
            norm.bias,
            norm.eps,
            dtype=torch.get_autocast_dtype(kind) if low else features.dtype,
        )
        return _first(y)

    def merge(
        self, block: Any, norm: Any, features: Tensor, skip: Tensor, *, doubled: bool
    ) -> Tensor:
        """Convolution; GroupNorm, twice the size if ``doubled``, GELU, plus the skip."""
        if not (usable(features) and _is_norm_of_four(norm)):
            return super().merge(block, norm, features, skip, doubled=doubled)
        if fits_convolution(block):
            x = conv.conv(_last(features), _weight(block), block.bias)
        else:
            x = _last(block(features))
        y = merge.norm_merge(x, norm.weight, norm.bias, norm.eps, _last(skip), doubled=doubled)
        return _first(y)

    def classify(self, features: Tensor) -> Tensor:
        """1×1 convolution, then twice the size: float32 logits."""
        head: Any = self.head
        if not (usable(features) and _is_convolution(head, 1)):
            return super().classify(features)
        return merge.head_double(_last(features), head.weight, head.bias)


_FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.LayerNorm: FastLayerNorm,
    ChannelNorm: FastChannelNorm,
    CausalConv: FastCausalConv,
    SelectiveScan: FastSelectiveScan,
    PVMLayer: FastPVMLayer,
    SkipBridge: FastSkipBridge,
    UltraLightVMUNet: FastUltraLightVMUNet,
}
# What a kernel may read the parameters of without calling it.
_KNOWN = {
    *_FAST,
    *_FAST.values(),
    *(Mamba, SpatialAttention, ChannelAttention),
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.GroupNorm, nn.ModuleList),
}


def swap(network: nn.Module) -> None:
    """Put the classes above in the places of the plain ones, and leave others as they are."""
    for part in network.modules():
        part.__class__ = _FAST.get(type(part), type(part))


def _untouched(*modules: nn.Module) -> bool:
    """Whether these and all modules inside are of known classes, and no hook waits for a call."""
    return not _has_any_global_hook() and all(
        type(part) in _KNOWN and not _has_hooks(part)
        for module in modules
        for part in module.modules()
    )


def _has_hooks(part: nn.Module) -> bool:
    return bool(
        part._forward_hooks
        or part._forward_pre_hooks
        or part._backward_hooks
        or part._backward_pre_hooks
    )


def _is_convolution(block: nn.Module, width: int) -> bool:
    """Whether it is a plain one of that width, which keeps height and width, with a bias."""
    return (
        type(block) is nn.Conv2d
        and block.kernel_size == (width, width)
        and block.padding == (width // 2, width // 2)
        and (*block.stride, *block.dilation, block.groups) == (1, 1, 1, 1, 1)
        and block.padding_mode == "zeros"
        and block.bias is not None
        and _untouched(block)
    )


def _is_norm_of_four(norm: nn.Module) -> bool:
    return type(norm) is nn.GroupNorm and norm.num_groups == 4 and norm.affine and _untouched(norm)


def _is_narrow(norm: nn.LayerNorm) -> bool:
    """Whether the kernel covers it: one axis of at most WIDEST channels."""
    return (
        norm.elementwise_affine and len(norm.normalized_shape) == 1 and len(norm.weight) <= WIDEST
    )


def fits_convolution(block: Any) -> bool:
    """Whether the kernels cover it: a plain one of 3×3, small enough for the GPU's chip."""
    if not _is_convolution(block, 3):
        return False
    needed = conv.shared_bytes(block.in_channels, block.out_channels)
    return needed <= device.shared_memory(block.weight.device)


def fits_pvm(layer: PVMLayer) -> bool:
    """Whether the kernels cover this layer: one plain Mamba, small enough for the GPU's chip."""
    mixer: Any = layer.mixer
    if type(mixer) is not Mamba:
        return False
    biased = [layer.project, mixer.conv, mixer.scan.dt_proj]
    unbiased = [mixer.in_proj, mixer.scan.x_proj, mixer.out_proj]
    if any(each.bias is None for each in biased) or any(each.bias is not None for each in unbiased):
        return False
    needed = pvm.sizes_of(weights_of(layer), layer.branches).shared_bytes
    return needed <= device.shared_memory(layer.norm.weight.device)


def weights_of(layer: PVMLayer) -> pvm.Weights:
    """The layer's parameters under the kernels' names."""
    mamba: Any = layer.mixer
    return pvm.Weights(
        norm_weight=layer.norm.weight,
        norm_bias=layer.norm.bias,
        in_proj=mamba.in_proj.weight,
        conv_weight=mamba.conv.weight,
        conv_bias=mamba.conv.bias,
        x_proj=mamba.scan.x_proj.weight,
        dt_weight=mamba.scan.dt_proj.weight,
        dt_bias=mamba.scan.dt_proj.bias,
        A_log=mamba.scan.A_log,
        D=mamba.scan.D,
        out_proj=mamba.out_proj.weight,
        skip_scale=layer.skip_scale,
        project_weight=layer.project.weight,
        project_bias=layer.project.bias,
    )


def _normalise_rows(norm: nn.LayerNorm, rows: Tensor) -> Tensor:
    if torch.is_autocast_enabled(rows.device.type):  # torch's choice for norms
        rows = rows.float()
    return layer_norm(rows, norm.weight, norm.bias, norm.eps)


def _weight(block: nn.Conv2d) -> Tensor:
    return block.weight.contiguous()  # a channels-last network has other strides


def _last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1).contiguous()  # a view where memory is channels-last


def _first(features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2)
