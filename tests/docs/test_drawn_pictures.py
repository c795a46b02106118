"""The sheet of drawn pictures shows each network with weights."""

from pathlib import Path

import numpy as np
import pytest

from ulvm.contact_sheet import PREDICTION_COLOUR, TRUTH_COLOUR
from ulvm.segmenter import load
from ulvm.synthetic import draw_lesion


def test_the_drawn_pictures_show_each_network_with_weights(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import drawn_pictures

    for name in ("vm-unet", "paper", "notes"):
        (tmp_path / f"{name}.safetensors").touch()
    assert [*drawn_pictures.find_networks(tmp_path)] == ["skin, the default", "paper", "vm-unet"]

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
    assert words.endswith(f"mean Dice: skin, the default {np.mean(scores):.3f}")
    assert sheet.size[1] == drawn_pictures.HEAD + 2 * (drawn_pictures.TILE + drawn_pictures.GAP)
    kept = drawn_pictures.reduce_colours(sheet, 62).convert("RGB").getcolors()
    assert {TRUTH_COLOUR, PREDICTION_COLOUR} <= {colour for _, colour in kept}
