"""Draw the page's icon at the sizes that phones ask for, from icon.svg. Needs chromium."""

import base64
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

import ulvm

FOLDER = Path(ulvm.__file__).parent / "web"
SIZE = 512
COLOURS = 64
# File: its size, and how much of it the drawing takes; a phone may cut off a maskable icon's rim.
ICONS = {
    "icon-192.png": (192, 1.0),
    "icon-512.png": (512, 1.0),
    "icon-maskable.png": (512, 0.8),
}
PAGE = """<body style="margin: 0; background: {background}">
  <img src="data:image/svg+xml;base64,{svg}"
    style="position: absolute; width: {share}%; left: {rest}%; top: {rest}%"></body>"""


def main() -> None:
    """Draw and write."""
    svg = base64.b64encode((FOLDER / "icon.svg").read_bytes()).decode()
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--headless", "--no-sandbox"]
        )
        page = chromium.new_page(viewport={"width": SIZE, "height": SIZE})
        for name, (size, share) in ICONS.items():
            is_whole = share == 1
            page.set_content(
                PAGE.format(
                    svg=svg,
                    background="transparent" if is_whole else "#0b6e69",
                    share=100 * share,
                    rest=50 * (1 - share),
                )
            )
            shot = Image.open(io.BytesIO(page.screenshot(omit_background=is_whole)))
            icon = shot.resize((size, size), Image.Resampling.LANCZOS)
            icon.quantize(COLOURS, Image.Quantize.FASTOCTREE).save(FOLDER / name, optimize=True)
        chromium.close()


if __name__ == "__main__":
    main()
