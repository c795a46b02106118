"""Photograph the page with a result, for README. Run by `make screenshots`."""

import shutil
import threading
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, expect, sync_playwright

import ulvm
from ulvm.serve import make_server

OUT = Path(__file__).parent / "screenshots"
EXAMPLES = Path(ulvm.__file__).parent / "examples"
SHOTS: dict[str, Any] = {
    "light": {"viewport": {"width": 1120, "height": 700}},
    "dark": {"viewport": {"width": 1120, "height": 700}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 320, "height": 700}},
}
PICTURES = {"light": "portrait.jpg", "dark": "hair-and-ruler.jpg", "narrow": "light-skin.jpg"}


def take(browser: Browser, address: str, name: str) -> None:
    page = browser.new_context(**SHOTS[name]).new_page()
    page.goto(address)
    page.set_input_files("#files", EXAMPLES / PICTURES[name])
    expect(page.locator("#status")).to_contain_text(f"{PICTURES[name]}: ")
    page.fill("#width-mm", "24")
    page.locator("#width-mm").blur()
    expect(page.locator("#area-mm2")).not_to_have_text("–")
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=OUT / f"{name}.jpg", quality=85)


with make_server(0) as server, sync_playwright() as driver:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    chromium = driver.chromium.launch(
        executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox"]
    )
    for shot in SHOTS:
        take(chromium, f"http://127.0.0.1:{server.server_port}/", shot)
    chromium.close()
    server.shutdown()
