"""quality.js and the clean-up in WebAssembly against Python's; what the page says of a picture."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ulvm import lesion_free, synthetic
from ulvm.image import resize, write_png
from ulvm.quality import CONSTANTS, SENTENCES, assess, measure, weigh
from ulvm.segmenter import Segmenter, clean, load

REVIEW = """async ({encoded, map, threshold}) => {
  const { clean, load } = await import("/engine.js");
  const { assess, isOneColour, loadConstants, measure, weigh } = await import("/quality.js");
  await (globalThis.loaded ??= Promise.all([load(), loadConstants()]));
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const picture = bytes(encoded);
  const probability = new Float32Array(bytes(map).buffer);
  const empty = new Float32Array(probability.length);
  const cleaned = isOneColour(picture) ? empty : clean(probability, threshold);
  const limit = Math.fround(threshold);
  const mask = Uint8Array.from(cleaned, (value) => value >= limit);
  const measures = mask.includes(1) ? measure(picture, probability, mask, limit) : null;
  return {
    ...assess(picture, probability, cleaned, threshold),
    measures,
    weighed: measures && weigh(measures),
    cleaned: btoa(
      Array.from(new Uint8Array(cleaned.buffer), (value) => String.fromCharCode(value)).join(""),
    ),
  };
}"""


def encode(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return load()


@pytest.fixture(scope="module")
def page(browser: Any, address: str) -> Any:
    page = browser.new_context(service_workers="block").new_page()
    page.goto(address)
    yield page
    page.context.close()


def pictures() -> list[np.ndarray]:
    drawn = [synthetic.draw_lesion(seed, (256, 256)).image_rgb for seed in range(5)]
    one_colour = np.full((256, 256, 3), 90, np.uint8)
    return [*drawn, *lesion_free.draw_pictures(6, 3, 256), one_colour]


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_review_is_pythons(page: Any, segmenter: Segmenter, threshold: float) -> None:
    seen = set()
    constants = json.loads(CONSTANTS.read_text())
    for picture in pictures():
        probability = segmenter.probability(picture[None])[0, 0]
        cleaned = clean(picture, probability, threshold)
        mask = cleaned >= np.float32(threshold)
        expected = assess(picture, probability, mask, threshold)
        request = {"encoded": encode(picture), "map": encode(probability), "threshold": threshold}
        found = page.evaluate(REVIEW, request)
        same = np.frombuffer(base64.b64decode(found["cleaned"]), np.float32)
        np.testing.assert_array_equal(same.reshape(256, 256), cleaned)
        assert found["quality"] == pytest.approx(expected.quality, abs=1e-9)
        assert found["warnings"] == [doubt.code for doubt in expected.warnings]
        if mask.any():
            measures = measure(picture, probability, mask, threshold)
            assert found["measures"] == pytest.approx(measures, rel=1e-9, abs=1e-9)
            score, chance = weigh(constants, measures)
            assert found["weighed"] == pytest.approx({"score": score, "chance": chance}, abs=1e-9)
        seen.update(found["warnings"] or ["none"])
    assert len(seen) > 2  # the pictures differ in what is said of them


def test_specks_and_holes_are_those_of_python(page: Any, segmenter: Segmenter) -> None:
    rng = np.random.default_rng(4)
    picture = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    coarse = resize(rng.integers(0, 256, (30, 30), dtype=np.uint8), (256, 256))
    probability = (coarse / 255).astype(np.float32)
    found = page.evaluate(
        REVIEW, {"encoded": encode(picture), "map": encode(probability), "threshold": 0.5}
    )
    cleaned = np.frombuffer(base64.b64decode(found["cleaned"]), np.float32).reshape(256, 256)
    np.testing.assert_array_equal(cleaned, clean(picture, probability, 0.5))
    assert (cleaned != probability).any()


def test_the_same_words_as_pythons(page: Any) -> None:
    script = 'import("/quality.js").then(({ SENTENCES }) => SENTENCES)'
    assert page.evaluate(script) == SENTENCES


def test_the_page_says_its_doubts(open_page: Any, address: str, tmp_path: Path) -> None:
    page = open_page(address)
    write_png(tmp_path / "grey.png", np.full((120, 160, 3), 128, np.uint8))
    page.set_input_files("input[type=file]", tmp_path / "grey.png")
    page.get_by_text("Unsure: the picture has one colour.").wait_for()
    assert re.match(r"0\.0", page.text_content("#area-percent"))
    page.context.close()
