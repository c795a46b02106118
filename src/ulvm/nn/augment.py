"""Augmentation of a whole batch: one affine map a picture, one gather, then colour.

Every random number comes from one generator on the CPU, so a run is repeated by its state.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ulvm.nn.model import normalise
from ulvm.spec import Augmentation

Pair = tuple[Tensor, Tensor]


def augment(images: Tensor, masks: Tensor, kind: Augmentation, generator: torch.Generator) -> Pair:
    """Normalised network inputs and soft masks, augmented.

    Args:
        images: uint8 (batch, channels, height, width).
        masks: uint8 (batch, height, width), 0..255.
        kind: ``none``; ``paper`` is the released code's; ``strong`` adds scale, shift and colour.
        generator: Source of every random number, on the CPU.

    Returns:
        float32 images (batch, channels, height, width) in 0..255 and masks (batch, height,
        width) in 0..1.

    Source: the released code's ``random_rot_flip`` and ``random_rotation`` for ``paper``:
    with probability ½ each, a quarter turn then a flip, and a rotation by 20..79 degrees with
    nearest neighbours and zeros outside.
    """
    soft = masks.to(torch.float32)[:, None] / 255  # (batch, 1, height, width)
    if kind == "none":
        return normalise(images), soft[:, 0]
    if kind == "paper":
        maps = _turns_and_flips(len(images), 0.5, generator)
        angle = torch.randint(20, 80, (len(images),), generator=generator)
        maps = maps @ _rotation(torch.where(_coin(len(images), 0.5, generator), angle, 0))
        return _gather(normalise(images), soft, maps, mode="nearest", padding="zeros")
    moved, soft_moved = _gather(
        images.to(torch.float32),
        soft,
        _strong_maps(len(images), generator),
        mode="bilinear",
        padding="reflection",
    )
    return normalise(_recolour(moved, generator)), soft_moved


def _turns_and_flips(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """(count, 2, 2) maps of (row, column) from the result to the source."""
    chosen = _coin(count, probability, generator)
    quarter = torch.randint(0, 4, (count,), generator=generator)
    axis = torch.randint(0, 2, (count,), generator=generator)
    flip = torch.eye(2).repeat(count, 1, 1)
    flip[torch.arange(count), axis, axis] = -1
    return torch.where(chosen[:, None, None], _rotation(90 * quarter) @ flip, torch.eye(2))


def _strong_maps(count: int, generator: torch.Generator) -> Tensor:
    """(count, 2, 3): a turn, a flip, then often a free rotation with scale and shift."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    free = _coin(count, 0.75, generator)
    linear = _rotation(uniform(-180, 180)) * uniform(-0.3, 0.3).exp()[:, None, None]
    stretch = torch.diag_embed(uniform(-0.12, 0.12, 2).exp())
    linear = torch.where(free[:, None, None], linear @ stretch, torch.eye(2))
    shift = torch.where(free[:, None, None], uniform(-0.2, 0.2, 2, 1), torch.zeros(1))
    return torch.cat([_turns_and_flips(count, 1.0, generator) @ linear, shift], dim=2)


def _recolour(images: Tensor, generator: torch.Generator) -> Tensor:
    """Saturation, gain of each channel and gamma, as lamps and cameras differ."""
    count, channels = images.shape[:2]

    def around_one(spread: float, width: int) -> Tensor:
        factor = (spread * torch.randn(count, width, generator=generator)).exp()
        return factor[:, :, None, None].to(images.device)

    grey = images.mean(dim=1, keepdim=True)
    images = (grey + (images - grey) * around_one(0.2, 1)) * around_one(0.08, channels)
    return 255 * (images / 255).clamp(0, 1) ** around_one(0.2, 1)


def _gather(images: Tensor, masks: Tensor, maps: Tensor, *, mode: str, padding: str) -> Pair:
    """Sample pictures and masks at the places that ``maps`` (row, column) name."""
    if maps.shape[2] == 2:
        maps = F.pad(maps, (0, 1))  # no shift
    # torch's grids are (x, y): swap rows and, of the linear part, columns.
    theta = maps[:, [1, 0]][:, :, [1, 0, 2]].to(images.device)
    both = torch.cat([images, masks], dim=1)
    grid = F.affine_grid(theta, list(both.shape), align_corners=False)
    sampled = F.grid_sample(both, grid, mode=mode, padding_mode=padding, align_corners=False)
    return sampled[:, :-1].contiguous(), sampled[:, -1].contiguous()


def _rotation(degrees: Tensor) -> Tensor:
    """(count, 2, 2): where a rotated picture's (row, column) lies in the source."""
    radians = degrees * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    return torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)


def _coin(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < probability
