"""The committed counts are those of the networks."""

import pytest

from documents import COMPLEXITY, read
from ulvm.presets import PRESETS


def test_the_committed_complexity_has_every_preset() -> None:
    committed = read(COMPLEXITY)
    assert {name: row["parameters"] for name, row in committed.items()} == {
        name: preset.parameters for name, preset in PRESETS.items()
    }
    assert committed["paper"]["paper_macs"] == 60_240_000
    assert all(row["macs"] > 0 for row in committed.values())


def test_complexity_is_what_the_network_costs() -> None:
    pytest.importorskip("torch")
    import counts

    assert counts.measure("paper") == read(COMPLEXITY)["paper"]
