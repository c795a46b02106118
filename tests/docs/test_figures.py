"""Figures show what was run and say so in words."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import tables
from documents import AREAS, read
from made_up_results import write_run
from ulvm.reproduce.experiments import EXPERIMENTS, ONE, Row


def write_noisy_run(folder: Path, preset: str, missed: int) -> None:
    """A run of seed 42 that misses about so many of 10,000 pixels in each picture."""
    noisy = np.random.default_rng(0).normal(missed, 500, 600).astype(int)
    write_run(folder, Row(preset=preset, seeds=ONE), 0, noisy)


def test_figures_show_the_networks_that_were_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import figures

    runs, times = tmp_path / "runs", tmp_path / "times.json"
    run = (("paper", 1700), ("unext", 1900), ("vm-unet", 1600), ("d-conv-2", 1800))
    for preset, missed in run:
        write_noisy_run(runs, preset, missed)
    timed = {"paper": 14.7, "unext": 12.4, "malunet": 8.2, "d-conv-2": 13.9}
    models = [
        {"name": name, "threads": {"1": {"lowest_round_ms": ms}}} for name, ms in timed.items()
    ]
    times.write_text(json.dumps({"models": models}))

    names = {}
    for drawn in figures.draw_all(runs, times, AREAS, tmp_path / "figures"):
        svg = drawn.with_suffix(".svg").read_text()
        texts = set(re.findall(r"<text[^>]*>([^<]+)</text>", svg))
        shown = {name for name, *_ in figures.NETWORKS.values()} | {"its variants"}
        names[drawn.name] = texts & shown
        assert drawn.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert names == {
        "dice-parameters": {"UltraLight VM-UNet", "UNeXt", "VM-UNet", "its variants"},
        "dice-milliseconds": {"UltraLight VM-UNet", "UNeXt", "its variants"},
        "areas": set(),
    }
    assert re.fullmatch(
        r"!\[Pooled DSC on ISIC 2017's test part against parameters: UltraLight VM-UNet 0\.\d{4} at"
        r" 49,457, UNeXt 0\.\d{4} at 1,471,921, VM-UNet 0\.\d{4} at 27,427,561, 1 variants of ours"
        r" 0\.(\d{4}) to 0\.\1 at 49,209 to 49,209\]\(docs/figures/dice-parameters\.png\)",
        tables.figure("dice-parameters", tmp_path / "figures"),
    )
    ours, unext, *_ = points = figures.read_points(runs)
    assert (ours.x, ours.published, unext.published) == (49_457, 0.9091, None)
    assert ours.found.mean == pytest.approx(2 * 8300 / 18_300, abs=0.002)
    at_times = figures.put_at_times(points, {"models": models})
    assert [point.x for point in at_times] == [14.7, 12.4, 13.9]

    figures.draw_all(runs, times, AREAS, tmp_path / "again")
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_every_run_of_the_tables_is_in_the_figures() -> None:
    pytest.importorskip("matplotlib")
    import figures

    rows = [row for table in EXPERIMENTS.values() for row in table.rows]
    assert {*figures.NETWORKS, *figures.VARIANTS} == {row.preset for row in rows}


def test_the_figure_of_areas_shows_the_parts_of_the_sorted_split(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import figures

    committed = read(AREAS)
    figure = figures.draw_areas(committed)
    for axes, measured in zip(figure.axes, committed.values(), strict=True):
        sizes = [found["n"] for found in measured["splits"]["sorted"]["parts"].values()]
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"] == list(
            np.cumsum(sizes)
        )
        assert 100 * max(measured["bins"]) < figures.AREA_TOP
    words = tables.figure("areas")
    assert "ISIC 2017 22.9 % in train, 8.0 % in validation, 15.0 % in test" in words


def test_names_in_the_figures_are_those_of_the_networks() -> None:
    pytest.importorskip("torch")
    import figures
    from ulvm.nn.peers import PEERS

    titles = {name: peer.title for name, peer in PEERS.items()} | {"paper": "UltraLight VM-UNet"}
    assert {preset: name for preset, (name, *_) in figures.NETWORKS.items()} == {
        preset: titles[preset] for preset in figures.NETWORKS
    }
