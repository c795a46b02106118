"""Augmentation in two halves: draw the random numbers of many pictures, then apply them.

Drawing happens on the CPU, from one generator, so a run is repeated by its state. Applying is a
function of tensors alone: no random numbers, nothing read back, so that a CUDA graph can hold it.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ulvm.nn.fused import kernels_for
from ulvm.nn.model import normalise
from ulvm.spec import Augmentation

Pair = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class Part:
    """Pictures and soft masks of one part of a split, on the device.

    Args:
        images: uint8 (pictures, channels, size, size).
        masks: uint8 (pictures, size, size), 0..255.
    """

    images: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @functools.cached_property
    def stretch(self) -> Pair:
        """Each picture's minimum and the factor that takes its range to 0..255, as ``normalise``.

        Both are float32 (pictures, 1, 1, 1).
        """
        low = self.images.flatten(1).amin(1).to(torch.float32)
        high = self.images.flatten(1).amax(1).to(torch.float32)
        factor = 255.0 / (high - low).clamp_min(1e-3)
        return low[:, None, None, None], factor[:, None, None, None]

    def normalised(self, rows: Tensor) -> Tensor:
        """``normalise(images[rows])`` without looking for the extremes again."""
        low, factor = self.stretch
        return (self.images[rows].to(torch.float32) - low[rows]) * factor[rows]

    def soft_masks(self, rows: Tensor) -> Tensor:
        """float32 (rows, size, size) in 0..1."""
        return self.masks[rows].to(torch.float32) / 255


@dataclasses.dataclass(frozen=True)
class Draws:
    """The random numbers of some pictures' augmentation.

    Args:
        kind: What they are for.
        maps: float32 (pictures, 2, 3): a place (x, y, 1) in the result → (x, y) in the source,
            -1..1 over the picture, as ``F.affine_grid`` takes them.
        colours: float32 (pictures, 1 + channels + 1): factor of the saturation, gain of each
            channel, gamma; 1 changes nothing.
    """

    kind: Augmentation
    maps: Tensor
    colours: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Draws:
        """Those of some of the pictures."""
        return Draws(self.kind, self.maps[rows], self.colours[rows])

    def to(self, device: torch.device) -> Draws:
        """The same on the device."""
        return Draws(self.kind, self.maps.to(device), self.colours.to(device))


def draw(kind: Augmentation, count: int, channels: int, generator: torch.Generator) -> Draws:
    """Draw for ``count`` pictures, one after the other independent and alike.

    Args:
        kind: ``none``; ``paper`` is the released code's; ``strong`` adds scale, shift and colour.
        count: Number of pictures.
        channels: Channels of each.
        generator: Source of every random number, on the CPU.

    Returns:
        What ``augment`` applies, on the CPU.

    Source: the released code's ``random_rot_flip`` and ``random_rotation`` for ``paper``:
    with probability ½ each, a quarter turn then a flip, and a rotation by 20..79 degrees with
    nearest neighbours and zeros outside.
    """
    linear = torch.eye(2).repeat(count, 1, 1)
    shift = torch.zeros(count, 2, 1)
    colours = torch.ones(count, 1 + channels + 1)
    if kind == "paper":
        linear = _turns_and_flips(count, 0.5, generator)
        angle = torch.randint(20, 80, (count,), generator=generator)
        linear = linear @ _rotation(torch.where(_coin(count, 0.5, generator), angle, 0))
    elif kind == "strong":
        linear, shift = _strong_maps(count, generator)
        # Saturation, gain of each channel and gamma, as lamps and cameras differ.
        spread = torch.tensor([0.2, *[0.08] * channels, 0.2])
        colours = (spread * torch.randn(colours.shape, generator=generator)).exp()
    maps = torch.cat([linear, shift], dim=2)
    # Drawn as (row, column), but torch's grids are (x, y): swap rows and the linear columns.
    return Draws(kind, maps[:, [1, 0]][:, :, [1, 0, 2]].contiguous(), colours)


def augment(part: Part, rows: Tensor, draws: Draws) -> Pair:
    """Normalised network inputs and soft masks, augmented.

    Args:
        part: Where the pictures come from.
        rows: int64 (batch,), which of them, on the part's device.
        draws: One for each of these rows, on the same device.

    Returns:
        float32 images (batch, channels, size, size) in 0..255 and masks (batch, size, size) in
        0..1.
    """
    if draws.kind == "none":
        return part.normalised(rows), part.soft_masks(rows)
    images, soft = _gather(part, rows, draws)
    if draws.kind == "strong":
        images = normalise(_recolour(images, draws.colours))
    return images, soft


def _gather(part: Part, rows: Tensor, draws: Draws) -> Pair:
    """Pictures and soft masks sampled where the maps point."""
    if draws.kind == "paper" and (kernels := kernels_for(draws.maps)):
        return kernels.gather_nearest(part.images, part.masks, *part.stretch, rows, draws.maps)
    if draws.kind == "paper":
        images, mode, padding = part.normalised(rows), "nearest", "zeros"
    else:  # colours change between gathering and normalising
        images, mode, padding = part.images[rows].to(torch.float32), "bilinear", "reflection"
    both = torch.cat([images, part.soft_masks(rows)[:, None]], dim=1)
    grid = F.affine_grid(draws.maps, list(both.shape), align_corners=False)
    sampled = F.grid_sample(both, grid, mode=mode, padding_mode=padding, align_corners=False)
    return sampled[:, :-1].contiguous(), sampled[:, -1].contiguous()


def _recolour(images: Tensor, factors: Tensor) -> Tensor:
    channels = images.shape[1]
    saturation, gains, gamma = factors[:, :, None, None].split([1, channels, 1], dim=1)
    grey = images.mean(dim=1, keepdim=True)
    images = (grey + (images - grey) * saturation) * gains
    return 255 * (images / 255).clamp(0, 1) ** gamma


def _turns_and_flips(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """(count, 2, 2) maps of (row, column) from the result to the source."""
    chosen = _coin(count, probability, generator)
    quarter = torch.randint(0, 4, (count,), generator=generator)
    axis = torch.randint(0, 2, (count,), generator=generator)
    flip = torch.eye(2).repeat(count, 1, 1)
    flip[torch.arange(count), axis, axis] = -1
    return torch.where(chosen[:, None, None], _rotation(90 * quarter) @ flip, torch.eye(2))


def _strong_maps(count: int, generator: torch.Generator) -> Pair:
    """(count, 2, 2) and shift (count, 2, 1): a turn, a flip, then often all of an affine map."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    free = _coin(count, 0.75, generator)
    linear = _rotation(uniform(-180, 180)) * uniform(-0.3, 0.3).exp()[:, None, None]
    stretch = torch.diag_embed(uniform(-0.12, 0.12, 2).exp())
    linear = torch.where(free[:, None, None], linear @ stretch, torch.eye(2))
    shift = torch.where(free[:, None, None], uniform(-0.2, 0.2, 2, 1), torch.zeros(1))
    return _turns_and_flips(count, 1.0, generator) @ linear, shift


def _rotation(degrees: Tensor) -> Tensor:
    """(count, 2, 2): where a rotated picture's (row, column) lies in the source."""
    radians = degrees * (math.pi / 180)
    cos, sin = radians.cos(), radians.sin()
    return torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], -2)


def _coin(count: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < probability
