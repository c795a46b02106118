"""Times the page in a real browser: a first visit up to the first outline and what it loads, and
frames a second over a camera.

Headless Chromium without a GPU, a fake camera of 640×480 at 60 frames/s, the package's own server.
Needs chromium and playwright. Writes ``results/speed/browser.json``. Run it on an idle machine.
"""

from __future__ import annotations

import shutil
import statistics
import threading
import zlib
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

import ulvm
from measure import command_line, provenance, write_result
from ulvm.serve import make_server

EXAMPLES = Path(ulvm.__file__).parent / "examples"
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync", "--use-fake-ui-for-media-stream"]
ARGUMENTS += ["--use-fake-device-for-media-stream=fps=60"]
SETTLE_MS = 3000  # while the camera starts and the browser compiles what runs often
FIGURES = "#live-figures"  # "60 frames/s · 7 ms"
PICTURE = "light-skin.jpg"  # 1024 × 768
# Milliseconds from the start of the navigation: ready, and the first outline drawn.
CLOCK = """new MutationObserver(() => {
  globalThis.times ??= {};
  if (document.documentElement?.dataset.state === "ready") times.ready ??= performance.now();
  if (document.getElementById("stage")?.ariaBusy === "false") {
    requestAnimationFrame(() => (times.outline ??= performance.now()));
  }
}).observe(document, { subtree: true, childList: true, attributes: true });"""


def visit(browser: Browser, address: str) -> tuple[Page, dict[str, float], list[dict[str, Any]]]:
    """A first visit with a picture chosen at once: the page, its times, the files it asked for."""
    page = browser.new_context().new_page()
    responses: dict[str, Any] = {}  # the service worker asks again for what it keeps
    page.on("response", lambda response: responses.setdefault(response.url, response))
    page.add_init_script(CLOCK)
    page.goto(address, wait_until="commit")
    page.locator("html[data-state]").wait_for()
    page.set_input_files("#files", EXAMPLES / PICTURE)
    page.locator("#status", has_text=f"{PICTURE}: ").wait_for()
    page.evaluate("navigator.serviceWorker.ready.then(() => null)")
    times = page.evaluate("times")
    files = []
    for url, response in responses.items():
        content = response.body()
        packed = len(zlib.compress(content, 9))
        name = url.removeprefix(address).partition("?")[0] or "index.html"
        files.append({"name": name, "bytes": len(content), "gzip_bytes": packed})
    return page, times, files


def watch_camera(page: Page, seconds: int) -> dict[str, Any]:
    """What the page says of itself, once a second, while the camera runs."""
    page.click("#camera")
    page.locator(FIGURES, has_text="frames/s").wait_for(timeout=60_000)
    page.wait_for_timeout(SETTLE_MS)
    rates, times = [], []
    for _ in range(seconds):
        page.wait_for_timeout(1000)
        rate, milliseconds = page.inner_text(FIGURES).split("·")
        rates.append(int(rate.split()[0]))
        times.append(int(milliseconds.split()[0]))
    page.click("#camera")
    return {
        "seconds": seconds,
        "frames_per_second": statistics.median(rates),
        "range": [min(rates), max(rates)],
        "inference_ms": statistics.median(times),
    }


def main() -> None:
    """Visit, watch, write, print."""
    numbers = (
        ("seconds", 15, "of each run"),
        ("runs", 3, "of the camera"),
        ("visits", 9, "first ones"),
    )
    options = command_line(__doc__, "browser.json", *numbers).parse_args()
    with make_server(0) as server, sync_playwright() as driver:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        address = f"http://127.0.0.1:{server.server_port}/"
        visits = []
        for _ in range(options.visits):
            page, times, files = visit(chromium, address)
            visits.append(times)
            page.context.close()
        print(visits)
        runs = []
        for _ in range(options.runs):
            page, _, _ = visit(chromium, address)
            runs.append(watch_camera(page, options.seconds))
            page.context.close()
            print(runs[-1])
        version = chromium.version
        chromium.close()
        server.shutdown()
    where = provenance(options.commit)
    where["versions"]["chromium"] = version
    result = {
        "what": "headless Chromium without a GPU; visits: ms from the start of a first visit, with "
        "a picture of 1024×768 chosen as soon as the page can take one; files: what a first visit "
        "loads, as it is and by gzip; runs: live outlines over a fake camera of 640×480 at 60 "
        "frames/s, 256×256 inference, the page's own figures once a second",
        **where,
        "frames_per_second": statistics.median(run["frames_per_second"] for run in runs),
        "runs": runs,
        "first_outline_ms": statistics.median(times["outline"] for times in visits),
        "visits": visits,
        "bytes": sum(file["bytes"] for file in files),
        "gzip_bytes": sum(file["gzip_bytes"] for file in files),
        "files": sorted(files, key=lambda file: -file["bytes"]),
    }
    write_result(options.out, result)


if __name__ == "__main__":
    main()
