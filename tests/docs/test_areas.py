"""Lesion areas: measured, and what they explain of a score."""

from pathlib import Path

import numpy as np

import areas
from made_up_results import write_run
from ulvm.datasets import DecodedDataset, Pair
from ulvm.reproduce.experiments import PERMUTATION, Row
from ulvm.splits import load_split


def test_areas_of_bins_and_parts() -> None:
    assert areas.average(np.array([0.1, 0.3, 0.5, 0.7, 0.2]), 2) == [0.2, 0.6, 0.2]
    assert areas.summarise(np.array([0.1, 0.3])) == {"n": 2, "mean": 0.2, "sd": 0.141421}


def test_areas_follow_the_ids_of_the_sorted_split(tmp_path: Path) -> None:
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


def test_quintiles_say_what_is_left_when_areas_are_alike(tmp_path: Path) -> None:
    assert "ISIC 2017: not run on both splits." in areas.quintile_table(tmp_path)
    rows = [Row(preset="paper", split=name) for name in (PERMUTATION, "sorted")]
    permuted, in_order = (load_split("isic2017", row.split).ids("test") for row in rows)
    # Areas of 120 pictures each on one split; on the other there are more of the smallest.
    sizes = [600, 1200, 2400, 4800, 9600]
    sizes_by_id = dict(zip(permuted, np.tile(sizes, 120), strict=True))
    shared = [sizes_by_id[id_] for id_ in in_order if id_ in sizes_by_id]
    left = [
        n - shared.count(size) for size, n in zip(sizes, (200, 100, 100, 100, 100), strict=True)
    ]
    others = (id_ for id_ in in_order if id_ not in sizes_by_id)
    sizes_by_id |= dict(zip(others, np.repeat(sizes, left), strict=True))
    for row, ids in zip(rows, (permuted, in_order), strict=True):
        area = np.array([sizes_by_id[id_] for id_ in ids])
        # A third found and nothing wrong is Dice 1/2; so score the two smallest sizes.
        tp = np.where(area <= 1200, area // 3, area)
        write_run(tmp_path, row, 0, area - tp, area=area)
    text = areas.quintile_table(tmp_path)
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
