"""The tables and figures of REPRODUCE.md, from result files made up here."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

import tables
from made_up_results import write_run
from ulvm.datasets import DecodedDataset, Pair
from ulvm.evaluate import PREDICTION_COLOUR, TRUTH_COLOUR
from ulvm.presets import PRESETS
from ulvm.report import render
from ulvm.segmenter import load
from ulvm.splits import load_split
from ulvm.synthetic import draw_lesion
from ulvm.tables import ONE, PERMUTATION, TABLES, Row

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


def test_the_browser_is_told_by_the_median_and_the_range_of_all_runs(tmp_path: Path) -> None:
    runs = [{"range": [20, 31], "inference_ms": 40}, {"range": [25, 33], "inference_ms": 44}]
    files = [{"name": "model.safetensors", "bytes": 210_404}, {"name": "page.js", "bytes": 1_000}]
    visits = [{"outline": 250.0}, {"outline": 900.0}, {"outline": 311.0}]
    result = {
        **{"runs": runs, "files": files, "frames_per_second": 29.5, "date": "2026-01-02"},
        **{"bytes": 485_678, "gzip_bytes": 278_000, "versions": {"chromium": "156.0.1"}},
        "visits": visits,
        "machine": {"threads": 2, "processor": "Example"},
    }
    (tmp_path / "browser.json").write_text(json.dumps(result))
    said = tables.browser(tmp_path)
    assert "30 frames/s (median of 2 runs, second by second 20–33; the network takes 42 ms" in said
    assert "first outline after 0.31 s (median of 3)" in said
    assert "486 kB, 278 kB where the host compresses, 210 kB of it the network" in said


def test_every_target_has_a_row_with_what_was_measured() -> None:
    said = tables.targets()
    assert [line.split("`")[1] for line in said.splitlines() if line.startswith("| `")] == [
        *("onnx", "executorch", "litert", "ncnn", "openvino"),
    ]
    measured = json.loads((tables.BENCH_RESULTS / "targets.json").read_text())["targets"]
    assert all(row["largest_difference"] <= 1e-3 for row in measured.values())
    assert measured["onnx"]["differing_pixels"] <= measured["onnx"]["pixels"] / 10_000


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
    drawn_all, missing = figures.draw_all(runs, times, tmp_path / "none.json", tmp_path / "figures")
    for drawn in drawn_all:
        svg = drawn.with_suffix(".svg").read_text()
        texts = set(re.findall(r"<text[^>]*>([^<]+)</text>", svg))
        shown = {name for name, *_ in figures.NETWORKS.values()} | {"its variants"}
        names[drawn.name] = texts & shown
        assert drawn.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert names == {
        "dice-parameters": {"UltraLight VM-UNet", "UNeXt", "VM-UNet", "its variants"},
        "dice-milliseconds": {"UltraLight VM-UNet", "UNeXt", "its variants"},
    }
    no_run, no_time, no_areas = missing
    assert no_run.startswith(
        "no run of ege-unet, malunet, aulunet, ultralbm-unet, ultralbm-unet-student, "
        "lightm-unet, unext-pvm, unet, unet-pvm, "
    )
    assert "vm-unet" not in no_run.split(", ")
    assert no_time == "no time of vm-unet"
    assert no_areas == "none.json is missing: run bench/areas.py"
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

    figures.draw_all(runs, times, tmp_path / "none.json", tmp_path / "again")
    for path in (tmp_path / "figures").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_without_results_no_figure_is_drawn_and_it_is_said_why(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import figures

    none, out = tmp_path / "none.json", tmp_path / "figures"
    drawn, missing = figures.draw_all(tmp_path, none, none, out)
    assert drawn == []
    assert [line.split()[0] for line in missing] == ["no", "none.json", "none.json"]
    write_noisy_run(tmp_path, "paper", 1700)
    assert figures.draw_all(tmp_path, none, none, out)[0] == []  # one compares nothing
    assert tables.figure("dice-parameters", out).startswith("Not drawn yet")


def test_every_run_of_the_tables_is_in_the_figures() -> None:
    pytest.importorskip("matplotlib")
    import figures

    rows = [row for table in TABLES.values() for row in table.rows]
    assert {*figures.NETWORKS, *figures.VARIANTS} == {row.preset for row in rows}


def test_areas_of_bins_and_parts() -> None:
    import areas

    assert areas.average(np.array([0.1, 0.3, 0.5, 0.7, 0.2]), 2) == [0.2, 0.6, 0.2]
    assert areas.describe(np.array([0.1, 0.3])) == {"n": 2, "mean": 0.2, "sd": 0.141421}


def test_areas_follow_the_ids_of_the_sorted_split(tmp_path: Path) -> None:
    import areas

    ids = {part: load_split("isic2017", "sorted").ids(part) for part in ("train", "test")}
    every = sorted(id_ for part in load_split("isic2017", "sorted").parts.values() for id_ in part)
    # Only the last 100 ids have a lesion: half of the frame of 2×2 pixels.
    masks = np.zeros((2000, 2, 2), np.uint8)
    masks[-100:, 0] = 255
    pairs = [Pair(id_, "train", None, None) for id_ in every]  # type: ignore[arg-type]
    measured = areas.measure(DecodedDataset("isic2017", pairs, masks, masks, tmp_path))
    assert measured["bins"] == [0.0] * 38 + [0.5] * 2
    assert ids["train"][0] == every[0]
    parts = measured["splits"]["sorted"]["parts"]
    assert (parts["train"]["mean"], parts["test"]["mean"]) == (0.0, round(0.5 / 6, 6))
    assert measured["splits"]["official"]["parts"].keys() == {"train"}


def test_the_figure_of_areas_shows_the_parts_of_the_sorted_split(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import figures

    committed = json.loads(tables.AREAS_RESULT.read_text())
    figure = figures.draw_areas(committed)
    for axes, measured in zip(figure.axes, committed.values(), strict=True):
        sizes = [found["n"] for found in measured["splits"]["sorted"]["parts"].values()]
        assert [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"] == list(
            np.cumsum(sizes)
        )
        assert 100 * max(measured["bins"]) < figures.AREA_TOP
    _, missing = figures.draw_all(tmp_path, tmp_path / "cpu.json", tables.AREAS_RESULT, tmp_path)
    words = tables.figure("areas", tmp_path)
    assert "ISIC 2017 22.9 % in train, 8.0 % in validation, 15.0 % in test" in words
    assert not any("areas" in line for line in missing)


def test_quintiles_say_what_is_left_when_areas_are_alike(tmp_path: Path) -> None:
    assert "ISIC 2017: not run on both splits." in tables.quintiles(tmp_path)
    rows = [Row(preset="paper", split=name) for name in (PERMUTATION, "sorted")]
    permuted, in_order = (load_split("isic2017", row.split).ids("test") for row in rows)
    # Areas of 120 pictures each on one split; on the other there are more of the smallest.
    sizes = [600, 1200, 2400, 4800, 9600]
    areas = dict(zip(permuted, np.tile(sizes, 120), strict=True))
    shared = [areas[id_] for id_ in in_order if id_ in areas]
    left = [
        n - shared.count(size) for size, n in zip(sizes, (200, 100, 100, 100, 100), strict=True)
    ]
    others = (id_ for id_ in in_order if id_ not in areas)
    areas |= dict(zip(others, np.repeat(sizes, left), strict=True))
    for row, ids in zip(rows, (permuted, in_order), strict=True):
        area = np.array([areas[id_] for id_ in ids])
        # A third found and nothing wrong is Dice 1/2; so score the two smallest sizes.
        tp = np.where(area <= 1200, area // 3, area)
        write_run(tmp_path, row, 0, area - tp, area=area)
    text = tables.quintiles(tmp_path)
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ISIC 2017")]
    assert [(row[2], row[5]) for row in cells] == [("120", "200"), *[("120", "100")] * 4]
    assert [row[4] for row in cells] == ["0.5000"] * 2 + ["1.0000"] * 3
    pooled, per_image, same, other = text.splitlines()[-4:]
    # tp and fn in units of 1000: 72 + 2016 and 144; on the sorted split 80 + 1680 and 160.
    first, second = 2 * 2088 / (2 * 2088 + 144), 2 * 1760 / (2 * 1760 + 160)
    assert (
        f"`sorted` has {second:.4f} (seeds: 1 of 3), `{PERMUTATION}` {first:.4f} (seeds" in pooled
    )
    assert pooled.endswith(
        f"the area of lesions explains {second - first:+.4f}, and +0.0000 remains."
    )
    assert "a gap of -0.0500. " in per_image  # (300 / 2 + 300) / 600 - (240 / 2 + 360) / 600
    assert per_image.endswith("the area of lesions explains -0.0500, and +0.0000 remains.")
    assert f"the {len(shared)} pictures in both test parts: " in same
    assert same.endswith(
        "within noise (one seed); a difference due to what a split trains and"
        " chooses on is not shown."
    )
    assert other == "- ISIC 2018: not run on both splits."


def test_the_drawn_pictures_show_each_network_with_weights(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import drawn_pictures

    for name in ("vm-unet", "paper", "notes"):
        (tmp_path / f"{name}.safetensors").touch()
    assert [*drawn_pictures.find_networks(tmp_path)] == ["bundled model", "paper", "vm-unet"]

    lesions = [
        draw_lesion(seed, **drawn_pictures.PLAIN | options)
        for seed, options in drawn_pictures.PICTURES.values()
    ]
    networks = drawn_pictures.find_networks(tmp_path / "none")
    (_, _, no_scores), (_, _, scores) = drawn_pictures.draw_rows(networks, lesions)
    segment = load()  # the same weights, in the engine
    for lesion, score in zip(lesions, scores, strict=True):
        mask = segment(lesion.image_rgb).mask
        both = np.count_nonzero(mask & lesion.mask)
        assert score == pytest.approx(2 * both / (mask.sum() + lesion.mask.sum()), abs=1e-3)
    assert no_scores == []
    sheet, words = drawn_pictures.draw_sheet(tmp_path / "none")
    assert words.endswith(f"mean Dice: bundled model {np.mean(scores):.3f}")
    assert sheet.size[1] == drawn_pictures.HEAD + 2 * (drawn_pictures.TILE + drawn_pictures.GAP)
    kept = drawn_pictures.reduce_colours(sheet, 62).convert("RGB").getcolors()
    assert {TRUTH_COLOUR, PREDICTION_COLOUR} <= {colour for _, colour in kept}


def test_names_in_the_figures_are_those_of_the_networks() -> None:
    pytest.importorskip("torch")
    import figures
    from ulvm.nn.peers import PEERS

    titles = {name: peer.title for name, peer in PEERS.items()} | {"paper": "UltraLight VM-UNet"}
    assert {preset: name for preset, (name, *_) in figures.NETWORKS.items()} == {
        preset: titles[preset] for preset in figures.NETWORKS
    }
