"""The network in other people's torch code: for pictures of any range, and its encoder alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulvm.errors import InputError
from ulvm.nn.checkpoint import load_weights
from ulvm.nn.model import UltraLightVMUNet, init_weights, normalise
from ulvm.spec import ModelSpec, RunSpec

DEPTH = 5  # halvings


class SelfNormalising(UltraLightVMUNet):
    """The network with ``normalise`` in front, so that nobody can forget it.

    It takes pictures of any range, 0..1 or 0..255, as a plain module in any training loop; what is
    normalised already stays as it is. The parameters are those of ``UltraLightVMUNet``.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(batch, in_channels, height, width), any range → logits (batch, classes, …)."""
        return super().forward(_normalise_for(self, images))


def _normalise_for(network: nn.Module, images: Tensor) -> Tensor:
    """``normalise`` in the type of a network's weights, such as float16."""
    return normalise(images).to(next(network.parameters()).dtype)


def load_pretrained(
    model: str | Path | None = None,
) -> tuple[SelfNormalising, RunSpec, dict[str, Any]]:
    """A trained network for other people's loops.

    Args:
        model: As for ``ulvm.nn.load_weights``.

    Returns:
        The network in evaluation mode, its run, and what else its file says.

    Raises:
        InputError: As ``load_weights``; or it is another paper's network.
    """
    loaded, run, provenance = load_weights(model)
    if run.model.network != ModelSpec.network:
        raise InputError(
            f"{model} is a {run.model.network}",
            f"it must be a {ModelSpec.network}",
            "load it with ulvm.nn.load_weights",
        )
    network = SelfNormalising(run.model)
    network.load_state_dict(loaded.state_dict())
    return network.eval(), run, provenance


class Encoder(UltraLightVMUNet):
    """The way down of the network, with the names that segmentation_models.pytorch asks for.

    Args:
        spec: Sizes and choices.
        depth: How often the picture is halved, 1 to 5. At 5 the deepest features are those of the
            sixth stage, which has the fifth's size.
        output_stride: 32; halving by max-pool can't be exchanged for dilation.
        pretrained: A model whose weights to take, in place of ``spec``; see ``load_pretrained``.

    Raises:
        InputError: No such depth, or as ``load_pretrained``.
    """

    def __init__(
        self,
        spec: ModelSpec | None = None,
        *,
        depth: int = DEPTH,
        output_stride: int = 32,
        pretrained: str | Path | None = None,
    ) -> None:
        trained = None
        if pretrained is not None:
            trained, run, _ = load_pretrained(pretrained)
            spec = run.model
        super().__init__(spec)
        if not 1 <= depth <= DEPTH:
            raise InputError(
                f"the encoder's depth, {depth}, is out of range",
                f"it must be 1 to {DEPTH}",
                f"use {DEPTH}",
            )
        del self.bridge, self.decoder, self.decoder_norms, self.head
        stages = len(self.encoder) if depth == DEPTH else depth
        self.encoder = self.encoder[:stages]
        self.encoder_norms = self.encoder_norms[:depth]
        self.depth = depth
        self.is_pretrained = trained is not None
        if trained is not None:
            state = trained.state_dict()
            self.load_state_dict({name: state[name] for name in self.state_dict()})

    @property
    def out_channels(self) -> list[int]:
        """Channels of what ``forward`` returns, the picture first."""
        widths = list(self.spec.widths[: self.depth])
        if self.depth == DEPTH:
            widths[-1] = self.spec.widths[-1]
        return [self.spec.in_channels, *widths]

    @property
    def output_stride(self) -> int:
        """By how much the deepest features are smaller than the picture."""
        return int(2**self.depth)

    def forward(self, images: Tensor) -> list[Tensor]:  # type: ignore[override]
        """The picture and the features after each halving.

        Args:
            images: (batch, in_channels, height, width) of any range; height and width are
                multiples of ``output_stride``.

        Returns:
            (batch, out_channels[i], height/2^i, width/2^i) for i = 0 … depth.
        """
        features = _normalise_for(self, images)
        found = [images]
        for block, norm in zip(self.encoder, self.encoder_norms, strict=False):
            features = self.halve(block, norm, features)
            found.append(features)
        if self.depth == DEPTH:
            found[-1] = F.gelu(self.encoder[-1](features))
        return found

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Take pictures of other channels.

        Pretrained weights are added up for one channel, which is a grey picture's, else repeated
        over the new channels and scaled, so that the sum keeps its size; fresh ones are drawn anew.
        """
        first = self.encoder[0]
        if in_channels == self.spec.in_channels:
            return
        if not isinstance(first, nn.Conv2d):
            raise InputError(
                "the encoder's first stage is no convolution",
                "",
                f"give pictures of {self.spec.in_channels} channels",
            )
        before = first.weight.detach()
        self.spec = dataclasses.replace(self.spec, in_channels=in_channels)
        changed = nn.Conv2d(in_channels, first.out_channels, 3, padding=1).to(before)
        init_weights(changed, self.spec.init)
        if pretrained or self.is_pretrained:
            given = before.shape[1]
            taken = before[:, torch.arange(in_channels) % given] * (given / in_channels)
            with torch.no_grad():
                changed.weight.copy_(before.sum(1, keepdim=True) if in_channels == 1 else taken)
                if first.bias is not None and changed.bias is not None:
                    changed.bias.copy_(first.bias)
        self.encoder[0] = changed

    def make_dilated(self, output_stride: int) -> None:
        """Refuse: there is no stride that dilation could replace."""
        raise InputError(
            f"the encoder cannot have an output stride of {output_stride}",
            "max-pooling can't be exchanged for dilation",
            "choose a decoder that takes 32, such as Unet, FPN or MAnet",
        )
