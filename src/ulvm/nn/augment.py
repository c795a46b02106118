"""Augmentation in two halves: draw the random numbers of many pictures, then apply them.

Drawing happens on the CPU, from one generator, so a run is repeated by its state. Applying is a
function of tensors alone: no random numbers, nothing read back, so that a CUDA graph can hold it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ulvm.nn.kernels.device import usable
from ulvm.nn.model import normalise
from ulvm.spec import Augmentation

Pair = tuple[Tensor, Tensor]

DARKEST_SKIN = 40  # of 255, around a lesion that is laid on other skin


class Pool(NamedTuple):
    """Pictures of one kind among a part's.

    Args:
        first: Row of the first.
        size: How many there are.
        drawn: How many an epoch takes.
        bare: Whether they are skin without a lesion, which ``paste`` may lay one on.
    """

    first: int
    size: int
    drawn: int
    bare: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """Pictures and soft masks of one part of a split, on the device.

    Args:
        images: uint8 (pictures, channels, size, size).
        masks: uint8 (pictures, size, size), 0..255; class c of C is the nearest to 255·c/(C-1).
        pools: Which pictures are drawn how often; else each once an epoch.
        classes: Names of the classes, if masks have several: then none lies between two others.
    """

    images: Tensor
    masks: Tensor
    pools: tuple[Pool, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def drawn(self) -> int:
        """How many pictures an epoch takes."""
        return sum(pool.drawn for pool in self.pools) or len(self)

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
        donors: int64 (pictures,): row of the picture whose lesion is laid on it, -1 for none; no
            tensor where a recipe lays none.
        donor_maps: float32 (pictures, 2, 3), the donors' ``maps``.
    """

    kind: Augmentation
    maps: Tensor
    colours: Tensor
    donors: Tensor | None = None
    donor_maps: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        """The numbers, each with a row a picture."""
        every = [self.maps, self.colours, self.donors, self.donor_maps]
        return [each for each in every if each is not None]

    def __getitem__(self, rows: Tensor | slice) -> Draws:
        """Those of some of the pictures."""
        return Draws(self.kind, *(each[rows] for each in self.tensors()))

    def to(self, device: torch.device) -> Draws:
        """The same on the device."""
        return Draws(self.kind, *(each.to(device) for each in self.tensors()))


def draw(kind: Augmentation, count: int, channels: int, generator: torch.Generator) -> Draws:
    """Draw for ``count`` pictures, one after the other independent and alike.

    Args:
        kind: ``none``; ``paper`` is the released code's; ``strong`` adds scale, shift and colour,
            ``stronger`` half as much again.
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
    elif kind in ("strong", "stronger"):
        scale, ends, gain = {"strong": (0.3, 0.2, 0.08), "stronger": (0.4, 0.3, 0.12)}[kind]
        linear, shift = _strong_maps(count, generator, scale)
        # Saturation, gain of each channel and gamma, as lamps and cameras differ.
        spread = torch.tensor([ends, *[gain] * channels, ends])
        colours = (spread * torch.randn(colours.shape, generator=generator)).exp()
    return Draws(kind, _to_grid(linear, shift), colours)


def draw_donors(
    rows: Tensor, pools: Sequence[Pool], share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Which lesions are laid on pictures of bare skin, and how.

    Args:
        rows: int64 (pictures,), an epoch's order.
        pools: Where the rows come from; those before the first without a drawn lesion have one.
        share: Of the pictures of bare skin, 0..1, that get a lesion.
        generator: Source of every random number, on the CPU.

    Returns:
        ``donors`` and ``donor_maps`` of ``Draws``: lesions in all places, at up to a quarter of
        their size.
    """
    count = len(rows)
    bare = torch.zeros(count, dtype=torch.bool)
    for pool in pools:
        bare |= (rows >= pool.first) & (rows < pool.first + pool.size) & pool.bare
    first_bare = next(pool.first for pool in pools if pool.bare)
    donors = torch.randint(0, first_bare, (count,), generator=generator)
    donors = torch.where(bare & _coin(count, share, generator), donors, -1)
    linear, shift = _strong_maps(count, generator)
    farther = (math.log(4) * torch.rand(count, 1, 1, generator=generator)).exp()
    return donors, _to_grid(linear * farther, shift * (3 * farther - 2))


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
    if draws.donors is not None:
        images, soft = _paste(part, images, soft, draws)
    if draws.kind in ("strong", "stronger"):
        images = normalise(_recolour(images, draws.colours))
    return images, soft


def _gather(part: Part, rows: Tensor, draws: Draws) -> Pair:
    """Pictures and soft masks sampled where the maps point."""
    if draws.kind == "paper" and usable(draws.maps):
        from ulvm.nn.kernels.gather import gather_nearest  # needs Triton

        return gather_nearest(part.images, part.masks, *part.stretch, rows, draws.maps)
    if draws.kind == "paper":
        images, mode, padding = part.normalised(rows), "nearest", "zeros"
    else:  # colours change between gathering and normalising
        images, mode, padding = part.images[rows].to(torch.float32), "bilinear", "reflection"
    both = torch.cat([images, part.soft_masks(rows)[:, None]], dim=1)
    grid = F.affine_grid(draws.maps, list(both.shape), align_corners=False)
    sampled = F.grid_sample(both, grid, mode=mode, padding_mode=padding, align_corners=False)
    if part.classes:
        masks = both[:, -1:]
        sampled[:, -1:] = F.grid_sample(masks, grid, "nearest", padding, align_corners=False)
    return sampled[:, :-1].contiguous(), sampled[:, -1].contiguous()


def _paste(part: Part, images: Tensor, soft: Tensor, draws: Draws) -> Pair:
    """Lay lesions on bare skin: what a lesion takes away of its own skin's light, here too.

    A donor whose skin is too dark to divide by, a corner of a dermoscope's frame say, is left out.
    """
    assert draws.donors is not None
    assert draws.donor_maps is not None
    taken = draws.donors.clamp_min(0)
    grid = F.affine_grid(draws.donor_maps, list(images.shape), align_corners=False)
    masks = F.grid_sample(part.soft_masks(taken)[:, None], grid, align_corners=False)
    lesions = part.images[taken].to(torch.float32)
    lesions = F.grid_sample(lesions, grid, padding_mode="reflection", align_corners=False)
    near, far = _widen(masks, images.shape[-1] // 32), _widen(masks, images.shape[-1] // 12)
    ring = far - near
    skin = (lesions * ring).sum((2, 3), keepdim=True) / ring.sum((2, 3), keepdim=True).clamp_min(1)
    used = draws.donors.ge(0)[:, None, None, None] & (skin.amin(1, keepdim=True) > DARKEST_SKIN)
    ratio = (lesions / skin.clamp_min(1)).clamp_max(1.5)
    side = images.shape[-1] // 64 * 2 + 1
    cover = F.avg_pool2d(near, side, stride=1, padding=side // 2) * used
    return images * (1 + cover * (ratio - 1)), (soft + masks[:, 0] * used[:, 0]).clamp_max(1)


def _widen(masks: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(masks, 2 * pixels + 1, stride=1, padding=pixels)


def _recolour(images: Tensor, factors: Tensor) -> Tensor:
    channels = images.shape[1]
    saturation, gains, gamma = factors[:, :, None, None].split([1, channels, 1], dim=1)
    grey = images.mean(dim=1, keepdim=True)
    images = (grey + (images - grey) * saturation) * gains
    return 255 * (images / 255).clamp(0, 1) ** gamma


def _to_grid(linear: Tensor, shift: Tensor) -> Tensor:
    """Maps drawn as (row, column) as torch's grids (x, y): swap rows and the linear columns."""
    maps = torch.cat([linear, shift], dim=2)
    return maps[:, [1, 0]][:, :, [1, 0, 2]].contiguous()


def _turns_and_flips(count: int, probability: float, generator: torch.Generator) -> Tensor:
    """(count, 2, 2) maps of (row, column) from the result to the source."""
    chosen = _coin(count, probability, generator)
    quarter = torch.randint(0, 4, (count,), generator=generator)
    axis = torch.randint(0, 2, (count,), generator=generator)
    flip = torch.eye(2).repeat(count, 1, 1)
    flip[torch.arange(count), axis, axis] = -1
    return torch.where(chosen[:, None, None], _rotation(90 * quarter) @ flip, torch.eye(2))


def _strong_maps(count: int, generator: torch.Generator, scale: float = 0.3) -> Pair:
    """(count, 2, 2) and shift (count, 2, 1): a turn, a flip, then often all of an affine map."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    free = _coin(count, 0.75, generator)
    linear = _rotation(uniform(-180, 180)) * uniform(-scale, scale).exp()[:, None, None]
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
