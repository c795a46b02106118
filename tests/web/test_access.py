"""The page for everyone: by keyboard, with large text or forced colours, on a phone."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ulvm
from ulvm.image import write_png

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

EXAMPLE = Path(ulvm.__file__).parent / "examples" / "light-skin.jpg"
LARGE_TEXT = "document.documentElement.style.fontSize = '32px'"
COLOUR = "(each) => getComputedStyle(each).backgroundColor"


@pytest.fixture
def phone(browser: Any, address: str) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(address)
    page.wait_for_selector("html[data-state=ready]")
    yield page
    page.close()


def choose(page: Any, path: Path) -> None:
    page.set_input_files("#files", path)
    expect(page.locator("#stage")).to_have_attribute("aria-busy", "false")


def test_a_doubt_stands_beside_the_figure_also_on_a_phone(phone: Any, tmp_path: Path) -> None:
    write_png(tmp_path / "grey.png", np.full((120, 160, 3), 128, np.uint8))
    choose(phone, tmp_path / "grey.png")
    expect(phone.locator("#doubts")).to_contain_text("Unsure")
    ends = [phone.locator(each).bounding_box()["y"] for each in ("#result", "#doubts", "#choose")]
    assert ends == sorted(ends)
    expect(phone.get_by_role("img")).to_have_attribute(
        "aria-label", "grey.png: nothing is outlined"
    )


def test_text_twice_as_large_fits_a_phone(phone: Any) -> None:
    choose(phone, EXAMPLE)
    phone.evaluate(LARGE_TEXT)
    assert phone.evaluate("document.documentElement.scrollWidth") == 390


def test_the_focus_is_seen_on_the_empty_stage(phone: Any) -> None:
    before = phone.locator("#stage").screenshot()
    phone.keyboard.press("Tab")
    expect(phone.locator("#empty")).to_be_focused()
    assert phone.locator("#stage").screenshot() != before


def test_what_is_pressed_is_seen_in_forced_colours(phone: Any) -> None:
    phone.emulate_media(forced_colors="active")
    choose(phone, EXAMPLE)
    phone.click("#correct")
    pressed, other = (phone.locator(each).evaluate(COLOUR) for each in ("#add", "#erase"))
    assert pressed != other


def test_a_name_written_from_right_to_left_keeps_the_sentence_in_order(
    phone: Any, tmp_path: Path
) -> None:
    path = tmp_path / "صورة"
    shutil.copy(EXAMPLE, path)
    choose(phone, path)
    expect(phone.locator("#status")).to_have_text(f"{path.name}: 1024 × 768")
    expect(phone.locator("#status bdi")).to_have_text(path.name)


def test_going_back_restores_no_control_without_its_words(phone: Any) -> None:
    phone.fill("#opacity", "40")
    phone.click("footer a")
    phone.go_back()
    shown = phone.inner_text("#opacity-value")
    assert shown == f"{phone.input_value('#opacity')} %"


def test_the_right_button_and_undo_in_a_field_are_the_browsers_own(phone: Any) -> None:
    choose(phone, EXAMPLE)
    phone.hover("#frame")
    phone.mouse.down(button="right")
    expect(phone.locator("#canvas")).to_be_visible()
    phone.mouse.up(button="right")
    phone.click("#correct")
    phone.locator("#brush").press("Space")
    phone.locator("#width-mm").press("Control+z")
    expect(phone.locator("#undo")).to_be_enabled()
    phone.locator("#brush").press("Control+z")
    expect(phone.locator("#undo")).to_be_disabled()
