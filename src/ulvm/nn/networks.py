"""A spec's network: this project's own or another paper's."""

from __future__ import annotations

from torch import nn

from ulvm.nn.model import UltraLightVMUNet
from ulvm.nn.peers import build_peer
from ulvm.spec import ModelSpec


def build_network(spec: ModelSpec) -> nn.Module:
    """A network with fresh random weights, in training mode.

    Args:
        spec: Which one, and the sizes and choices of our own.

    Returns:
        It takes (batch, in_channels, height, width) in 0..255, as ``ulvm.nn.model.normalise``
        gives it, and returns logits (batch, classes, height, width).
    """
    if spec.network == ModelSpec.network:
        return UltraLightVMUNet(spec)
    return build_peer(spec.network)
