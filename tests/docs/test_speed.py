"""What the documents say of speed is what was measured."""

import json
from pathlib import Path

import speed
from documents import SPEED, read


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
    said = speed.browser(tmp_path)
    assert "30 frames/s (median of 2 runs, second by second 20–33; the network takes 42 ms" in said
    assert "first outline after 0.31 s (median of 3)" in said
    assert "486 kB, 278 kB where the host compresses, 210 kB of it the network" in said


def test_fine_tuning_is_told_as_measured(tmp_path: Path) -> None:
    result = read(SPEED / "finetune.json")
    assert result["after"]["per_image"] > result["before"]["per_image"] + 0.1
    said = speed.finetune()
    for model in ("before", "after"):
        assert f"{result[model]['per_image']:.3f} {model}" in said
    changed = result | {"seconds": 120.0, "load": 0.4}
    (tmp_path / "finetune.json").write_text(json.dumps(changed))
    said = speed.finetune(tmp_path)
    assert "in 2 minutes" in said
    assert "busy" not in said


def test_every_target_has_a_row_with_what_was_measured() -> None:
    said = speed.targets()
    assert [line.split("`")[1] for line in said.splitlines() if line.startswith("| `")] == [
        *("onnx", "executorch", "litert"),
    ]
    measured = read(SPEED / "targets.json")["targets"]
    assert all(row["largest_difference"] <= 1e-3 for row in measured.values())
    assert measured["onnx"]["differing_pixels"] <= measured["onnx"]["pixels"] / 10_000
