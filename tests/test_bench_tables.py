"""The tables and figures of REPRODUCE.md, from result files made up here."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))
import tables

from ulvm.presets import PRESETS
from ulvm.results import render
from ulvm.splits import load_split
from ulvm.tables import ONE, TABLES, Row

REPRODUCE = (tables.ROOT / "REPRODUCE.md").read_text()
COMPLEXITY = tables.ROOT / "results" / "complexity.json"


@pytest.mark.parametrize("name", TABLES)
def test_each_table_has_its_place_and_its_command(name: str) -> None:
    assert f"### {TABLES[name].question}\n" in REPRODUCE
    assert f"$ ulvm reproduce {name} --data DIR\n" in REPRODUCE
    assert f"<!-- table:reproduce:{name} -->\n" in REPRODUCE


def test_an_old_table_is_made_anew() -> None:
    old = "a\n<!-- table:reproduce:branches -->\nold\n<!-- end:table -->\nb\n"
    made = render("branches", tables.RUN_RESULTS)
    new = f"a\n<!-- table:reproduce:branches -->\n{made}\n<!-- end:table -->\nb\n"
    assert tables.fill(old) == new
    with pytest.raises(KeyError, match="reproduce:nothing"):
        tables.fill(old.replace("branches", "nothing"))


def test_the_committed_complexity_has_every_preset() -> None:
    committed = json.loads(COMPLEXITY.read_text())
    assert {name: row["parameters"] for name, row in committed.items()} == {
        name: preset.parameters for name, preset in PRESETS.items()
    }
    assert committed["paper"]["paper_macs"] == 60_240_000
    assert all(row["macs"] > 0 for row in committed.values())


def test_complexity_is_what_the_network_costs() -> None:
    pytest.importorskip("torch")
    import complexity

    assert complexity.measure("paper") == json.loads(COMPLEXITY.read_text())["paper"]


def write_run(folder: Path, preset: str, missed: int) -> None:
    """A run of seed 42 that misses about so many of 10,000 pixels in each picture."""
    row = Row(preset=preset, seeds=ONE)
    split = load_split(row.dataset, row.split)
    images = len(split.ids("test"))
    fn = np.random.default_rng(0).normal(missed, 500, images).astype(int)
    score = {
        "dataset": row.dataset,
        "split": {"name": split.name, "hash": split.hash, "part": "test"},
        "pixels": 256 * 256,
        "tp": (10_000 - fn).tolist(),
        "fp": [0] * images,
        "fn": fn.tolist(),
    }
    path = folder / f"{row.names()[0]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"run": row.runs()[0].to_dict(), "scores": [score]}))


def test_figures_show_the_networks_that_were_run(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import figures

    runs, cpu = tmp_path / "runs", tmp_path / "cpu.json"
    for preset, missed in (("paper", 1700), ("unext", 1900), ("vm-unet", 1600)):
        write_run(runs, preset, missed)
    timed = {"UltraLight VM-UNet": 14.7, "UNeXt": 12.4, "LB-UNet": 8.2}
    models = [{"name": name, "threads": {"1": {"median_ms": ms}}} for name, ms in timed.items()]
    cpu.write_text(json.dumps({"models": models}))

    names = {}
    for drawn in figures.draw_all(runs, cpu, tmp_path / "figures"):
        svg = drawn.with_suffix(".svg").read_text()
        texts = set(re.findall(r"<text[^>]*>([^<]+)</text>", svg))
        names[drawn.name] = texts & {name for name, *_ in figures.NETWORKS.values()}
        assert drawn.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert names == {
        "dice-parameters": {"UltraLight VM-UNet", "UNeXt", "VM-UNet"},
        "dice-milliseconds": {"UltraLight VM-UNet", "UNeXt"},
    }
    ours, unext, _ = points = figures.read_points(runs)
    assert (ours.x, ours.published, unext.published) == (49_457, 0.9091, None)
    assert ours.found.mean == pytest.approx(2 * 8300 / 18_300, abs=0.002)
    assert [point.x for point in figures.put_at_times(points, {"models": models})] == [14.7, 12.4]

    figures.draw_all(runs, cpu, tmp_path / "again")
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_without_results_no_figure_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import figures

    assert figures.draw_all(tmp_path, figures.CPU_RESULT, tmp_path / "figures") == []


def test_names_in_the_figures_are_those_of_the_timings() -> None:
    pytest.importorskip("torch")
    import figures

    from ulvm.nn.peers import PEERS

    timed = {row["name"] for row in json.loads(figures.CPU_RESULT.read_text())["models"]}
    titles = {name: peer.title for name, peer in PEERS.items()} | {"paper": "UltraLight VM-UNet"}
    assert {preset: name for preset, (name, *_) in figures.NETWORKS.items()} == {
        preset: titles[preset] for preset in figures.NETWORKS
    }
    assert titles["paper"] in timed
