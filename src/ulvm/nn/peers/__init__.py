"""Networks of other papers, written from those papers, to compare with in one harness.

Every network takes (batch, 3, height, width) in 0..255, multiples of 32, as
``ulvm.nn.model.normalise`` gives it, and returns logits (batch, 1, height, width). Where a
paper leaves a choice open, the choice is the one of its authors' released code, which was read
for facts only: no line here is from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from ulvm.errors import InputError
from ulvm.nn.model import PVMLayer
from ulvm.nn.peers.aulunet import AULUNet
from ulvm.nn.peers.blocks import ChannelNorm, LearntPlane
from ulvm.nn.peers.ege_unet import EGEUNet
from ulvm.nn.peers.lb_unet import LBUNet
from ulvm.nn.peers.lightm_unet import LightMUNet
from ulvm.nn.peers.lite_unet import LiteUNet
from ulvm.nn.peers.malunet import MALUNet
from ulvm.nn.peers.ultralbm_unet import UltraLBMUNet
from ulvm.nn.peers.unet import UNet
from ulvm.nn.peers.unext import UNeXt
from ulvm.nn.peers.vm_unet import VMUNet


@dataclass(frozen=True)
class Peer:
    """A network of another paper.

    Args:
        title: Its name in tables.
        construct: Makes it with fresh random weights.
        parameters: Exact count.
        source: Where the network is from.
        uncounted: Layers whose own parameters the published count leaves out, for the counting
            tool of its authors knows only some kinds of layers.
    """

    title: str
    construct: Callable[[], nn.Module]
    parameters: int
    source: str
    uncounted: tuple[type[nn.Module], ...] = ()


_UNEXT_S = partial(UNeXt, widths=(8, 16, 32, 64, 128))
_STUDENT = partial(UltraLBMUNet, widths=(4, 8, 12, 16, 24, 32))
_UNET_PVM = partial(UNet, deep_convolution=PVMLayer)
_UNEXT_PVM = partial(UNeXt, deep_convolution=PVMLayer)
_LB_UNCOUNTED = (nn.GroupNorm, ChannelNorm, LearntPlane)
_U_NET = "arXiv 1505.04597; the lesion papers' 2 M U-Net has no published definition"
_SMALL = "arXiv 2203.04967; the small network is in its released code only"
_DEEP = "with PVM layers (arXiv 2403.20035) for its deep convolutions"
_LITE = "the teacher; EfficientNet-Lite0 without its classifier on the way down"

PEERS: dict[str, Peer] = {
    "unet": Peer("U-Net, 16 channels", UNet, 1_942_577, _U_NET),
    "ege-unet": Peer("EGE-UNet", EGEUNet, 53_374, "arXiv 2307.08473"),
    "malunet": Peer("MALUNet", MALUNet, 177_943, "arXiv 2211.01784", (nn.GroupNorm,)),
    "unext": Peer("UNeXt", UNeXt, 1_471_921, "arXiv 2203.04967"),
    "unext-s": Peer("UNeXt-S", _UNEXT_S, 253_561, _SMALL),
    "lb-unet": Peer("LB-UNet", LBUNet, 55_865, "MICCAI 2024, paper 2135", _LB_UNCOUNTED),
    "vm-unet": Peer("VM-UNet", VMUNet, 27_427_561, "arXiv 2402.02491"),
    "lightm-unet": Peer("LightM-UNet", LightMUNet, 403_302, "arXiv 2403.05246"),
    "unet-pvm": Peer("U-Net, deep PVM layers", _UNET_PVM, 667_671, f"unet {_DEEP}"),
    "unext-pvm": Peer("UNeXt, deep PVM layers", _UNEXT_PVM, 974_357, f"unext {_DEEP}"),
    "lite-unet": Peer("U-Net on EfficientNet-Lite0", LiteUNet, 3_825_121, _LITE),
    "aulunet": Peer("AULUNet", AULUNet, 28_636, "BMVC 2025, paper 1199"),
    "ultralbm-unet": Peer("UltraLBM-UNet", UltraLBMUNet, 34_166, "arXiv 2512.21584"),
    "ultralbm-unet-student": Peer(
        "UltraLBM-UNet-T", _STUDENT, 10_956, "arXiv 2512.21584, the student"
    ),
}


def build_peer(name: str) -> nn.Module:
    """A peer with fresh random weights, in training mode.

    Args:
        name: A key of ``PEERS``.

    Raises:
        InputError: There is no such peer.
    """
    if name not in PEERS:
        raise InputError(
            f"there is no peer {name!r}",
            "choose from " + ", ".join(PEERS),
            "",
        )
    return PEERS[name].construct()


def count_parameters(network: nn.Module, uncounted: tuple[type[nn.Module], ...] = ()) -> int:
    """Parameters of a network.

    Args:
        network: Any.
        uncounted: Layers whose own parameters, not their parts', are left out.
    """
    return sum(
        parameter.numel()
        for part in network.modules()
        if not isinstance(part, uncounted)
        for parameter in part.parameters(recurse=False)
    )


__all__ = ["PEERS", "Peer", "build_peer", "count_parameters"]
