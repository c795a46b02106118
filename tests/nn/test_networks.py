"""A spec's network is the named one."""

from typing import get_args

import torch

from ulvm.nn.model import UltraLightVMUNet
from ulvm.nn.networks import build_network
from ulvm.nn.peers import PEERS, UNet
from ulvm.spec import ModelSpec, Network


def test_a_spec_can_name_every_peer_and_nothing_else() -> None:
    assert get_args(Network) == ("ultralight-vm-unet", *PEERS)


def test_our_own_network_is_built_from_the_spec() -> None:
    network = build_network(ModelSpec(widths=(4, 8, 12, 16, 20, 24)))
    assert isinstance(network, UltraLightVMUNet)
    assert network.head.in_channels == 4


def test_other_networks_are_the_peers_as_published() -> None:
    torch.manual_seed(0)
    network = build_network(ModelSpec(network="unet"))
    torch.manual_seed(0)
    twin = PEERS["unet"].construct()
    assert isinstance(network, UNet)
    torch.testing.assert_close(dict(network.state_dict()), dict(twin.state_dict()), rtol=0, atol=0)
