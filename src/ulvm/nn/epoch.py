"""What the steps of an epoch need to know, all drawn at its start on the CPU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ulvm.nn.augment import Draws, Part, Pool, draw, draw_donors
from ulvm.spec import TrainSpec


@dataclasses.dataclass(frozen=True)
class Epoch:
    """The tables of one epoch.

    Args:
        rows: int64 (pictures,), the order of the pictures.
        draws: Their augmentation, in this order.
        schedule: float32 (steps, 2), learning rate and the average's pull of each step.
    """

    rows: Tensor
    draws: Draws
    schedule: Tensor

    def to(self, device: torch.device) -> Epoch:
        """The same on the device."""
        return Epoch(self.rows.to(device), self.draws.to(device), self.schedule.to(device))

    def copy_(self, other: Epoch) -> None:
        """Take over another epoch's numbers without moving in memory."""
        for ours, new in zip(self._tensors(), other._tensors(), strict=True):
            ours.copy_(new)

    def _tensors(self) -> list[Tensor]:
        return [self.rows, *self.draws.tensors(), self.schedule]


def draw_epoch(part: Part, recipe: TrainSpec, epoch: int, generator: torch.Generator) -> Epoch:
    """Order, augmentation and schedule of an epoch.

    Args:
        part: The training pictures.
        recipe: The training recipe.
        epoch: How many came before it.
        generator: Source of every random number, on the CPU.
    """
    steps = -(-part.drawn // recipe.batch_size)
    rows = draw_rows(part.pools or [Pool(0, len(part), len(part))], generator)
    schedule = [
        [learning_rate(recipe, epoch + step / steps), _pull(recipe, epoch * steps + step + 1)]
        for step in range(steps)
    ]
    draws = draw(recipe.augmentation, part.drawn, part.images.shape[1], generator)
    if recipe.pasted and any(pool.bare for pool in part.pools):
        donors, maps = draw_donors(rows, part.pools, recipe.pasted, generator)
        draws = dataclasses.replace(draws, donors=donors, donor_maps=maps)
    return Epoch(rows, draws, torch.tensor(schedule))


def draw_rows(pools: Sequence[Pool], generator: torch.Generator) -> Tensor:
    """int64 rows in random order; each picture of a pool comes equally often, or once more."""
    rows = []
    for pool in pools:
        whole, rest = divmod(pool.drawn, pool.size)
        rows += [torch.arange(pool.size) + pool.first] * whole
        if rest:
            rows.append(torch.randperm(pool.size, generator=generator)[:rest] + pool.first)
    every = torch.cat(rows)
    return every[torch.randperm(len(every), generator=generator)]


def learning_rate(recipe: TrainSpec, epoch: float) -> float:
    """The rate after ``epoch`` epochs, fractions included.

    Source: the released code's ``CosineAnnealingLR(T_max=50, eta_min=1e-5)``, stepped once an
    epoch, for ``cosine-cycle``: past T_max the cosine rises again.
    """
    lowest, highest = recipe.min_learning_rate, recipe.learning_rate
    if recipe.schedule == "cosine-cycle":
        phase = math.floor(epoch) / recipe.period_epochs
    elif epoch < recipe.warmup_epochs:
        return highest * max(epoch, 1e-2) / recipe.warmup_epochs
    else:
        phase = (epoch - recipe.warmup_epochs) / max(1e-9, recipe.epochs - recipe.warmup_epochs)
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * phase)) / 2


def _pull(recipe: TrainSpec, step: int) -> float:
    """How far the average moves towards the weights at a step, farther in the first ones."""
    return 1 - min(recipe.average_decay, step / (step + 10))
