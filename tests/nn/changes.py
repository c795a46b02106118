"""What torch lets others put inside a network: hooks, pruning, adapters, parametrisations."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune


class Bent(nn.Module):
    """An adapter: the sine of what the layer gives."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        bent: Tensor = self.layer(x).sin()
        return bent


class Cosine(nn.Module):
    """A parametrisation: the cosine of the weight."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight.cos()


def hook(owner: nn.Module, name: str) -> None:
    getattr(owner, name).register_forward_hook(lambda _, __, output: output.sin())


def cut(owner: nn.Module, name: str) -> None:
    prune.l1_unstructured(getattr(owner, name), "weight", amount=0.5)


def adapt(owner: nn.Module, name: str) -> None:
    setattr(owner, name, Bent(getattr(owner, name)))


def parametrise(owner: nn.Module, name: str) -> None:
    parametrize.register_parametrization(getattr(owner, name), "weight", Cosine())
