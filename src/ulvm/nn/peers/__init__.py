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


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A network of another paper.

    Args:
        title: Its name in tables.
        construct: Makes it with fresh random weights.
        parameters: Exact count.
        uncounted: Layers whose own parameters the published count leaves out, for the counting
            tool of its authors knows only some kinds of layers.
        source: Where the network is from.
    """

    title: str
    construct: Callable[[], nn.Module]
    parameters: int
    uncounted: tuple[type[nn.Module], ...] = ()
    source: str


PEERS: dict[str, Peer] = {
    "unet": Peer(
        title="U-Net, 16 channels",
        construct=UNet,
        parameters=1_942_577,
        source="arXiv 1505.04597; the lesion papers' 2 M U-Net has no published definition",
    ),
    "ege-unet": Peer(
        title="EGE-UNet",
        construct=EGEUNet,
        parameters=53_374,
        source="arXiv 2307.08473",
    ),
    "malunet": Peer(
        title="MALUNet",
        construct=MALUNet,
        parameters=177_943,
        uncounted=(nn.GroupNorm,),
        source="arXiv 2211.01784",
    ),
    "unext": Peer(
        title="UNeXt",
        construct=UNeXt,
        parameters=1_471_921,
        source="arXiv 2203.04967",
    ),
    "unext-s": Peer(
        title="UNeXt-S",
        construct=partial(UNeXt, widths=(8, 16, 32, 64, 128)),
        parameters=253_561,
        source="arXiv 2203.04967; the small network is in its released code only",
    ),
    "lb-unet": Peer(
        title="LB-UNet",
        construct=LBUNet,
        parameters=55_865,
        uncounted=(nn.GroupNorm, ChannelNorm, LearntPlane),
        source="MICCAI 2024, paper 2135",
    ),
    "vm-unet": Peer(
        title="VM-UNet",
        construct=VMUNet,
        parameters=27_427_561,
        source="arXiv 2402.02491",
    ),
    "lightm-unet": Peer(
        title="LightM-UNet",
        construct=LightMUNet,
        parameters=403_302,
        source="arXiv 2403.05246",
    ),
    "unet-pvm": Peer(
        title="U-Net, deep PVM layers",
        construct=partial(UNet, deep_convolution=PVMLayer),
        parameters=667_671,
        source="unet with PVM layers (arXiv 2403.20035) for its deep convolutions",
    ),
    "unext-pvm": Peer(
        title="UNeXt, deep PVM layers",
        construct=partial(UNeXt, deep_convolution=PVMLayer),
        parameters=974_357,
        source="unext with PVM layers (arXiv 2403.20035) for its deep convolutions",
    ),
    "lite-unet": Peer(
        title="U-Net on EfficientNet-Lite0",
        construct=LiteUNet,
        parameters=3_825_121,
        source="the teacher; EfficientNet-Lite0 without its classifier on the way down",
    ),
    "aulunet": Peer(
        title="AULUNet",
        construct=AULUNet,
        parameters=28_636,
        source="BMVC 2025, paper 1199",
    ),
    "ultralbm-unet": Peer(
        title="UltraLBM-UNet",
        construct=UltraLBMUNet,
        parameters=34_166,
        source="arXiv 2512.21584",
    ),
    "ultralbm-unet-student": Peer(
        title="UltraLBM-UNet-T",
        construct=partial(UltraLBMUNet, widths=(4, 8, 12, 16, 24, 32)),
        parameters=10_956,
        source="arXiv 2512.21584, the student",
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
