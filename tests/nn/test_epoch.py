"""The tables of an epoch: torch's schedule, a permutation, one draw a picture."""

import itertools

import pytest
import torch

from ulvm.nn.augment import Part, Pool
from ulvm.nn.epoch import draw_epoch, draw_rows, learning_rate
from ulvm.spec import TrainSpec


def test_the_authors_schedule_is_torchs_cosine_annealing() -> None:
    recipe = TrainSpec()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=1e-5)
    for epoch in range(250):
        rate = optimizer.param_groups[0]["lr"]
        assert learning_rate(recipe, epoch + 0.7) == pytest.approx(rate, rel=1e-6), epoch
        optimizer.step()
        schedule.step()


def test_one_cycle_rises_once_and_falls_to_its_floor() -> None:
    recipe = TrainSpec(schedule="one-cycle", epochs=10, warmup_epochs=2, learning_rate=1.0)
    rates = [learning_rate(recipe, epoch / 4) for epoch in range(41)]
    top = rates.index(max(rates))
    assert top == 8
    assert rates[top] == pytest.approx(1.0)
    assert all(a < b for a, b in itertools.pairwise(rates[: top + 1]))
    assert all(a > b for a, b in itertools.pairwise(rates[top:]))
    assert rates[-1] == pytest.approx(recipe.min_learning_rate)


def test_tables_hold_an_entry_for_each_picture_and_step() -> None:
    part = Part(torch.zeros(10, 3, 8, 8, dtype=torch.uint8), torch.zeros(10, 8, 8).byte())
    recipe = TrainSpec(batch_size=4, augmentation="strong", schedule="one-cycle", average_decay=0.9)
    generator = torch.Generator().manual_seed(0)
    first, second = (draw_epoch(part, recipe, epoch, generator) for epoch in (0, 1))
    for epoch in (first, second):
        assert sorted(epoch.rows.tolist()) == list(range(10))
        assert epoch.draws.maps.shape == (10, 2, 3)
        assert epoch.draws.colours.shape == (10, 5)
        assert epoch.schedule.shape == (3, 2)
    assert not torch.equal(first.rows, second.rows)
    assert not torch.equal(first.draws.maps, second.draws.maps)
    rates, pulls = second.schedule.T.tolist()
    assert rates == pytest.approx([learning_rate(recipe, 1 + step / 3) for step in range(3)])
    # Steps 4, 5 and 6 of the run: decay step / (step + 10), until 0.9 is less.
    assert pulls == pytest.approx([10 / 14, 10 / 15, 10 / 16])
    late = draw_epoch(part, recipe, 1000, generator)
    assert late.schedule[:, 1].tolist() == pytest.approx([0.1] * 3)


def test_pools_give_as_many_rows_as_they_should() -> None:
    rows = draw_rows([Pool(0, 4, 10), Pool(4, 6, 3)], torch.Generator().manual_seed(0)).tolist()
    counts = [rows.count(row) for row in range(10)]
    assert len(rows) == 13
    assert set(counts[:4]) == {2, 3}
    assert sorted(counts[4:]) == [0, 0, 0, 1, 1, 1]
