"""The README's GPU table, from result files made up here."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))
import tables

ABOUT = {
    "date": "2030-01-02",
    "machine": {"gpu": "Some GPU"},
    "versions": {"torch": "2.11.0", "triton": "3.6.0"},
}


def timing(median_ms: float, **more: Any) -> dict[str, Any]:
    return {"median_ms": median_ms, "q1_ms": median_ms - 0.1, "q3_ms": median_ms + 0.2} | more


def step(median_ms: float, mib: float) -> dict[str, Any]:
    return timing(median_ms, peak_mib=mib, kernels=90)


TRAIN_STEP = ABOUT | {
    "batches": {
        "8": {"ours": step(1.384, 256), "plain": step(50, 1024), "same_bits": True},
        "64": {"ours": step(9.65, 1536), "plain": step(300, 8192), "same_bits": True},
    }
}
INFERENCE = ABOUT | {
    "batches": {
        "256": {
            "float32": timing(4, images_per_second=64_000),
            "bfloat16": timing(2, images_per_second=128_000),
            "float16": timing(3, images_per_second=85_000),
            "float32, plain torch": timing(30, images_per_second=8_000),
        }
    },
    "agreement": {
        "precisions": {
            "bfloat16": {"pooled_dice": 0.998, "lowest_dice": 0.9},
            "float16": {"pooled_dice": 0.9999, "lowest_dice": 0.995},
        }
    },
}
SCHEDULE = ABOUT | {
    "epochs": 250,
    "runs": {
        "cold": {"wall_s": 130.0, "start_up_s": 70.0},
        "warm": {"wall_s": 54.0, "start_up_s": 9.0},
    },
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, result in (
        ("train_step", TRAIN_STEP),
        ("inference", INFERENCE),
        ("schedule", SCHEDULE),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    return tmp_path


def row(table: str, start: str) -> list[str]:
    (found,) = (line for line in table.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_steps_stand_beside_the_authors_and_the_goal(folder: Path) -> None:
    table = tables.gpu(folder)
    assert row(table, "training step, batch 8")[1:] == [
        *("69.2 ms", "50.00 ms", "1.384 ms (1.284–1.584)", "50.0", "≤ 1.5 ms: reached")
    ]
    assert row(table, "training step, batch 64")[-2:] == ["10.0", "≤ 6 ms: missed"]
    assert "1.50 GiB" in table
    assert "< 2 GiB: reached" in table


def test_the_fastest_precision_is_one_whose_masks_agree(folder: Path) -> None:
    cells = row(tables.gpu(folder), "the same, batch 256")
    assert "float16, Dice 0.99990" in cells[0]  # bfloat16 is faster but differs
    assert cells[3:] == ["85,000 images/s", "–", "≥ 80,000 images/s: reached"]


def test_without_a_comparison_of_masks_only_float32_counts() -> None:
    cells = tables.inference_rows(INFERENCE | {"agreement": None})[-1]
    assert cells[3] == "64,000 images/s"


def test_the_schedule_is_compared_only_when_it_is_whole(folder: Path) -> None:
    table = tables.gpu(folder)
    assert row(table, "`ulvm train paper`, ISIC 2017, 250 epochs, kernels")[-2:] == [
        *("50", "≤ 60 s: reached")
    ]
    assert "≤ 120 s: missed" in table
    short = tables.schedule_rows(SCHEDULE | {"epochs": 5})
    assert [cells[-2:] for cells in short] == [["–", "–"]] * 2


def test_missing_files_are_left_out(folder: Path, tmp_path: Path) -> None:
    (folder / "inference.json").unlink()
    table = tables.gpu(folder)
    assert "inference" not in table
    assert "training step" in table
    assert tables.gpu(tmp_path / "nowhere") == "Not measured yet."


def test_every_row_has_the_cells_of_the_head(folder: Path) -> None:
    lines = [line for line in tables.gpu(folder).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
