"""Correcting an outline with the brush: what is saved and counted is the corrected one."""

import csv
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ulvm
from ulvm.image import read_mask

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

EXAMPLES = Path(ulvm.__file__).parent / "examples"
PHOTO = EXAMPLES / "portrait.jpg"


def choose(page: Any, *paths: Path) -> None:
    page.set_input_files("#files", list(paths))
    done = f"{len(paths)} pictures outlined" if len(paths) > 1 else f"{paths[0].name}: "
    expect(page.locator("#status")).to_contain_text(done)
    expect(page.locator("html")).to_have_attribute("data-state", "ready")
    expect(page.locator("#correct")).to_be_enabled()


def saved(page: Any, button: str = "#save-mask") -> bytes:
    with page.expect_download() as waiting:
        page.click(button)
    return Path(waiting.value.path()).read_bytes()


def mask_of(page: Any) -> np.ndarray:
    mask: np.ndarray = read_mask(saved(page)) > 0
    return mask


def drag(page: Any, *points: tuple[float, float]) -> None:
    """A stroke; points in 0..1 of width and height."""
    page.evaluate("scrollTo(0, 0)")
    box = page.locator("#canvas").bounding_box()
    for number, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def test_strokes_change_what_is_counted_and_saved_and_are_undone(page: Any) -> None:
    choose(page, PHOTO)
    expect(page.locator("#area-percent")).to_have_text(re.compile(r"\d"))
    area, first = page.inner_text("#area-percent"), mask_of(page)
    height, width = first.shape
    page.click("#correct")
    page.fill("#brush-size", "5")
    drag(page, (0.1, 0.1), (0.3, 0.1))
    expect(page.locator("#area-percent")).not_to_have_text(area)
    added = mask_of(page)
    assert page.inner_text("#area-percent") == f"{100 * added.mean():.1f} %"
    new = added & ~first
    assert not (first & ~added).any()
    rows, columns = np.nonzero(new)
    radius = 0.05 * min(height, width)
    for found, expected in [
        (columns.min(), 0.1 * width - radius),
        (columns.max(), 0.3 * width + radius),
        (rows.min(), 0.1 * height - radius),
        (rows.max(), 0.1 * height + radius),
    ]:
        assert abs(found - expected) < 2 * max(height, width) / 256
    page.click("#erase")
    page.fill("#brush-size", "20")
    drag(page, (0.1, 0.1), (0.3, 0.1))
    np.testing.assert_array_equal(mask_of(page) & new, False)
    middle = np.argwhere(first).mean(axis=0) / (height, width)
    drag(page, (float(middle[1]), float(middle[0])))
    erased = mask_of(page)
    assert erased.sum() < 0.8 * first.sum()
    expect(page.get_by_role("img")).to_have_attribute("aria-label", re.compile("corrected by hand"))
    page.click("#undo")
    page.keyboard.press("Control+z")
    np.testing.assert_array_equal(mask_of(page), added)
    page.click("#undo")
    expect(page.locator("#undo")).to_be_disabled()
    np.testing.assert_array_equal(mask_of(page), first)
    expect(page.locator("#area-percent")).to_have_text(area)
    page.click("#add")
    page.click("#correct")


def test_the_brush_goes_by_keyboard(page: Any) -> None:
    choose(page, PHOTO)
    first = mask_of(page)
    page.locator("#correct").press("Enter")
    brush = page.locator("#brush")
    page.fill("#brush-size", "4")
    before = brush.get_attribute("aria-label")
    for _ in range(12):
        brush.press("Shift+ArrowLeft")
    assert brush.get_attribute("aria-label") != before
    page.locator("#erase").press("Enter")
    brush.press("Space")
    page.locator("#add").press("Enter")
    for _ in range(60):
        brush.press("Shift+ArrowUp")  # to the border and no further
    brush.press("Space")
    changed = mask_of(page)
    assert (changed & ~first)[:10].any()
    page.locator("#correct").press("Enter")
    expect(brush).to_be_hidden()


def test_corrections_stay_with_their_picture_and_go_into_the_zip(page: Any) -> None:
    other = EXAMPLES / "light-skin.jpg"
    choose(page, PHOTO, other)
    page.locator("#items button").nth(0).click()
    expect(page.locator("#correct")).to_be_enabled()
    page.click("#correct")
    drag(page, (0.05, 0.05), (0.4, 0.05))
    corrected = mask_of(page)
    page.locator("#items button").nth(1).click()
    expect(page.locator("#brush")).to_be_hidden()
    expect(page.locator("#correct")).to_be_enabled()
    page.locator("#items button").nth(0).click()
    expect(page.locator("#correct")).to_be_enabled()
    np.testing.assert_array_equal(mask_of(page), corrected)
    archive = zipfile.ZipFile(io.BytesIO(saved(page, "#save-all")))
    np.testing.assert_array_equal(read_mask(archive.read(f"{PHOTO.stem}_mask.png")) > 0, corrected)
    rows = list(csv.DictReader(io.StringIO(archive.read("areas.csv").decode())))
    assert [row["corrected"] for row in rows] == ["yes", "no"]
    assert float(rows[0]["area_percent"]) == pytest.approx(100 * corrected.mean(), abs=1e-3)


# Its answers come late, as from a worker that still has large pictures before it.
SLOW_REVIEW = """async () => {
  const { model } = await import("./model.js");
  const review = model.review.bind(model);
  model.review = async (...given) => {
    await new Promise((resolve) => setTimeout(resolve, 400));
    return review(...given);
  };
}"""
# A network that finds a large square and a small one with a faint rim, a speck above .6.
FIND_TWO = """async () => {
  const { model } = await import("./model.js");
  const outline = model.outline.bind(model);
  model.outline = async (...given) => {
    const result = await outline(...given);
    const put = (from, side, value) => {
      for (let y = from; y < from + side; y++) {
        result.probability.fill(value, 256 * y + from, 256 * y + from + side);
      }
    };
    result.probability.fill(0);
    put(40, 50, 0.95), put(150, 30, 0.6), put(160, 10, 0.95);
    return result;
  };
}"""


@pytest.fixture
def slow(open_page: Any, address: str) -> Iterator[Any]:
    page = open_page(address)
    page.evaluate(FIND_TWO)
    page.set_viewport_size({"width": 1280, "height": 1000})
    choose(page, EXAMPLES / "frame-and-bubbles.jpg")  # 640 × 640
    page.evaluate(SLOW_REVIEW)
    yield page
    page.context.close()


def test_a_stroke_outlives_a_threshold_that_is_still_worked_on(slow: Any) -> None:
    slow.click("#correct")
    slow.fill("#threshold", "0.55")
    drag(slow, (0.8, 0.1))
    expect(slow.get_by_role("img")).to_have_attribute("aria-label", re.compile("by hand"))
    slow.wait_for_timeout(600)
    assert mask_of(slow)[64, 512]


def test_what_is_saved_at_once_is_by_the_newest_threshold(slow: Any) -> None:
    assert mask_of(slow)[412, 412]
    slow.fill("#threshold", "0.9")
    assert not mask_of(slow)[412, 412]


def test_ruler_and_brush_take_turns(page: Any) -> None:
    choose(page, PHOTO)
    page.click("#ruler")
    page.click("#correct")
    assert page.locator(".mark:visible").count() == 0
    expect(page.locator("#brush")).to_be_visible()
    for small in page.locator("#correct-form :is(button, input):visible").all():
        assert small.bounding_box()["height"] >= 44
    expect(page.get_by_role("slider", name="Size of the brush")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.click("#ruler")
    expect(page.locator("#brush")).to_be_hidden()
    page.click("#ruler")
