"""Several pictures at once: their list, those that fail, folders, and the names in the zip file."""

import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

import ulvm

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

EXAMPLE = Path(ulvm.__file__).parent / "examples" / "light-skin.jpg"


def copies(folder: Path, *names: str) -> list[Path]:
    for name in names:
        shutil.copy(EXAMPLE, folder / name)
    return [folder / name for name in names]


def test_no_two_files_of_the_zip_share_a_name(page: Any, tmp_path: Path) -> None:
    page.set_input_files("#files", copies(tmp_path, "a.jpg", "a.jpeg", "a-2.jpg", "A.JPG"))
    with page.expect_download() as waiting:
        page.click("#save-all")
    names = zipfile.ZipFile(io.BytesIO(Path(waiting.value.path()).read_bytes())).namelist()
    assert len({name.casefold() for name in names}) == 4 * 2 + 1


def test_nothing_is_saved_until_all_are_done_or_when_all_failed(page: Any, tmp_path: Path) -> None:
    broken = [tmp_path / "one.jpg", tmp_path / "two.jpg"]
    for path in broken:
        path.write_text("no picture")
    page.set_input_files("#files", broken)
    expect(page.locator("#status")).to_have_text("0 of 2 pictures outlined")
    expect(page.locator("html")).to_have_attribute("data-state", "error")
    expect(page.locator("#save-all")).to_be_disabled()


def test_the_list_scrolls_to_the_picture_that_is_shown(page: Any, tmp_path: Path) -> None:
    page.evaluate("scrollTo(0, 0)")
    page.set_input_files("#files", copies(tmp_path, *(f"{each}.jpg" for each in range(14))))
    expect(page.locator("#status")).to_have_text("14 of 14 pictures outlined")
    expect(page.locator("#items button").last).to_be_in_viewport(ratio=1)
    assert page.evaluate("scrollY") == 0


@pytest.mark.parametrize("beside", [0, 1])
def test_a_dropped_folder_is_named(page: Any, tmp_path: Path, beside: int) -> None:
    (tmp_path / "visit").mkdir()
    dropped = [tmp_path / "visit", *copies(tmp_path, "a.jpg")[:beside]]
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in dropped], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
    session.detach()
    expect(page.get_by_role("alert")).to_have_text(
        "visit is a folder. Open it, then drop its pictures."
    )
    said = "1 of 2 pictures outlined" if beside else "visit could not be outlined"
    expect(page.locator("#status")).to_have_text(said)
