"""From torch's modules and (batch, channels, height, width) to the kernels, and back."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import triton
from torch import Tensor, nn

from ulvm.nn.fused import bridge as bridges
from ulvm.nn.fused import conv, halve, merge, pvm
from ulvm.nn.fused.causal_conv import causal_conv
from ulvm.nn.fused.gather import gather_nearest as gather_nearest
from ulvm.nn.fused.layer_norm import WIDEST, layer_norm
from ulvm.nn.fused.loss import bce_dice as bce_dice
from ulvm.nn.fused.scan import LARGEST_STATE as LARGEST_STATE
from ulvm.nn.fused.scan import scan as scan
from ulvm.nn.model import Mamba, PVMLayer, SkipBridge


def halve_conv(block: nn.Conv2d, norm: nn.GroupNorm, features: Tensor) -> Tensor:
    """3×3 convolution, GroupNorm, 2×2 maximum, GELU: half the height and width."""
    y = halve.conv_halve(
        _last(features),
        _weight(block),
        _bias(block),
        norm.weight,
        norm.bias,
        norm.eps,
        dtype=_activation_type(features),
    )
    return _first(y)


def halve_norm(norm: nn.GroupNorm, features: Tensor) -> Tensor:
    """GroupNorm, 2×2 maximum, GELU."""
    return _first(halve.norm_halve(_last(features), norm.weight, norm.bias, norm.eps))


def convolve(block: nn.Conv2d, features: Tensor) -> Tensor:
    """3×3 convolution."""
    return _first(conv.conv(_last(features), _weight(block), _bias(block)))


def merge_norm(norm: nn.GroupNorm, features: Tensor, skip: Tensor, *, doubled: bool) -> Tensor:
    """GroupNorm, twice the size if ``doubled``, GELU, plus the skip."""
    y = merge.norm_merge(
        _last(features), norm.weight, norm.bias, norm.eps, _last(skip), doubled=doubled
    )
    return _first(y)


def double_head(head: nn.Conv2d, features: Tensor) -> Tensor:
    """1×1 convolution, then twice the size: float32 logits."""
    return merge.head_double(_last(features), head.weight, _bias(head))


def fits_layer_norm(norm: nn.LayerNorm) -> bool:
    """Whether the kernel covers this norm: of one axis, which is narrow."""
    return norm.elementwise_affine and norm.weight.dim() == 1 and len(norm.weight) <= WIDEST


def run_layer_norm(norm: nn.LayerNorm, features: Tensor) -> Tensor:
    """LayerNorm of (…, channels)."""
    if torch.is_autocast_enabled(features.device.type):  # torch's choice for norms
        features = features.float()
    return layer_norm(features, norm.weight, norm.bias, norm.eps)


def run_channel_norm(norm: nn.LayerNorm, features: Tensor) -> Tensor:
    """LayerNorm of each position's channels in (batch, channels, height, width)."""
    return _first(run_layer_norm(norm, _last(features)))


def run_causal_conv(block: nn.Conv1d, tokens: Tensor) -> Tensor:
    """Causal depthwise convolution of (batch, length, channels), then SiLU."""
    if block.bias is None:
        raise TypeError("the kernels take convolutions with a bias")
    return causal_conv(tokens, block.weight, block.bias)


def fits_pvm(layer: PVMLayer) -> bool:
    """Whether the kernels cover this layer: one plain Mamba, small enough for the GPU's chip."""
    if type(layer.mixer) is not Mamba:
        return False
    needed = pvm.sizes_of(weights_of(layer), layer.branches).shared_bytes
    return needed <= _shared_memory(layer.norm.weight.device)


@functools.cache
def _shared_memory(device: torch.device) -> float:
    """Bytes that one program may take on a multiprocessor; no limit in the interpreter."""
    if device.type == "cpu":
        return math.inf
    properties = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return float(properties["max_shared_mem"])


def run_pvm(layer: PVMLayer, features: Tensor) -> Tensor:
    """The whole PVM layer on (batch, channels, height, width)."""
    tokens = _last(features)
    y = pvm.pvm(tokens.flatten(1, 2), weights_of(layer), layer.norm.eps, layer.branches)
    return _first(y.unflatten(1, tokens.shape[1:3]))


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


def run_bridge(module: SkipBridge, skips: list[Tensor]) -> list[Tensor]:
    """Spatial, then channel attention over the skips of all stages."""
    spatial: Any = module.spatial
    channel: Any = module.channel
    bridged = bridges.bridge(
        [_last(skip) for skip in skips],
        None if spatial is None else _weight(spatial.conv),
        None if spatial is None else spatial.conv.bias,
        None if channel is None else channel.conv.weight,
        None if channel is None else [head.weight for head in channel.heads],
        None if channel is None else [head.bias for head in channel.heads],
    )
    return [_first(each) for each in bridged]


def _activation_type(features: Tensor) -> torch.dtype:
    kind = features.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype


def _weight(block: nn.Conv2d) -> Tensor:
    return block.weight.contiguous()  # a channels-last network has other strides


def _bias(block: nn.Conv2d) -> Tensor:
    if block.bias is None:
        raise TypeError("the kernels take convolutions with a bias")
    return block.bias


def _last(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1).contiguous()  # a view where memory is channels-last


def _first(features: Tensor) -> Tensor:
    return features.permute(0, 3, 1, 2)
