"""The page from file to download, offline, by keyboard, with a camera; and that it tells nobody."""

import base64
import csv
import http.server
import io
import re
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ulvm
from ulvm.image import read_mask, resize

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

PACKAGE = Path(ulvm.__file__).parent
EXAMPLES = sorted(path for path in (PACKAGE / "examples").iterdir() if path.is_file())


def choose(page: Any, *paths: Path) -> None:
    page.set_input_files("#files", list(paths))
    done = f"{len(paths)} pictures outlined" if len(paths) > 1 else f"{paths[0].name}: "
    expect(page.locator("#status")).to_contain_text(done)
    expect(page.locator("html")).to_have_attribute("data-state", "ready")


def download(page: Any, button: str) -> bytes:
    with page.expect_download() as waiting:
        page.click(button)
    return Path(waiting.value.path()).read_bytes()


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_mask_is_that_of_python(page: Any, path: Path) -> None:
    choose(page, path)
    expected = ulvm.load()(ulvm.read_image(path))
    found = read_mask(download(page, "#save-mask")) > 0
    assert found.shape == expected.mask.shape
    assert dice(found, expected.mask) >= 0.995
    assert page.inner_text("#area-percent") == f"{100 * found.mean():.1f} %"


@pytest.mark.parametrize("size_hw", [(150, 560), (520, 140)])
def test_mask_is_that_of_python_for_extreme_shapes(
    page: Any, tmp_path: Path, size_hw: tuple[int, int]
) -> None:
    path = tmp_path / f"squeezed-{size_hw[0]}.png"
    squeezed = resize(ulvm.read_image(PACKAGE / "examples" / "light-skin.jpg"), size_hw)
    Image.fromarray(squeezed).save(path)
    choose(page, path)
    expected = ulvm.load()(ulvm.read_image(path)).mask
    assert dice(read_mask(download(page, "#save-mask")) > 0, expected) >= 0.995


GIVE = """async (kind) => {
  const blob = await (await fetch("/example.jpg")).blob();
  const given = new DataTransfer();
  given.items.add(new File([blob], `${kind}.jpg`));
  document.getElementById("stage").dispatchEvent(
    kind === "paste"
      ? new ClipboardEvent(kind, { clipboardData: given, bubbles: true })
      : new DragEvent(kind, { dataTransfer: given, bubbles: true }),
  );
}"""


@pytest.mark.parametrize("kind", ["paste", "drop"])
def test_pictures_are_pasted_and_dropped(page: Any, kind: str) -> None:
    page.evaluate(GIVE, kind)
    expect(page.locator("#status")).to_contain_text(f"{kind}.jpg: 1024 × 768")


def test_threshold_is_the_models_own(page: Any) -> None:
    assert float(page.input_value("#threshold")) == ulvm.load().spec.threshold


def test_overlay_is_the_picture_with_the_mask_tinted(page: Any) -> None:
    path = PACKAGE / "examples" / "portrait.jpg"
    choose(page, path)
    image_rgb = ulvm.read_image(path)
    overlay = ulvm.read_image(download(page, "#save-overlay"))
    changed = (np.abs(overlay.astype(int) - image_rgb) > 4).any(axis=2)
    assert dice(changed, ulvm.load()(image_rgb).mask) > 0.97  # the line is drawn on both sides


def test_square_millimetres_follow_from_the_width_or_from_a_ruler(page: Any) -> None:
    choose(page, PACKAGE / "examples" / "hair-and-ruler.jpg")  # 800 × 600
    share = float(page.inner_text("#area-percent").split()[0]) / 100
    page.fill("#width-mm", "40")
    expect(page.locator("#area-mm2")).to_have_text(re.compile(r"\d"))
    assert float(page.inner_text("#area-mm2")) == pytest.approx(share * 40 * 30, rel=0.01)
    page.click("#ruler")
    box = page.locator("#canvas").bounding_box()
    for x in (0.25, 0.75):
        position = {"x": x * box["width"], "y": 0.5 * box["height"]}
        page.click("#canvas", position=position)
    assert float(page.input_value("#width-mm")) == pytest.approx(20, rel=0.01)
    page.click("#ruler")
    page.fill("#width-mm", "")
    expect(page.locator("#area-mm2")).to_have_text("–")


def test_several_pictures_become_a_zip_and_a_broken_one_is_named(page: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff not a picture")
    page.set_input_files("#files", [*EXAMPLES[:2], broken])
    expect(page.locator("#status")).to_contain_text("2 of 3 pictures outlined")
    expect(page.locator("#error")).to_contain_text("broken.jpg is not a picture")
    archive = zipfile.ZipFile(io.BytesIO(download(page, "#save-all")))
    assert archive.testzip() is None
    stems = [path.stem for path in EXAMPLES[:2]]
    pictures = {f"{stem}_{kind}.png" for stem in stems for kind in ("mask", "overlay")}
    assert set(archive.namelist()) == {*pictures, "areas.csv"}
    rows = list(csv.DictReader(io.StringIO(archive.read("areas.csv").decode())))
    for path, row in zip(EXAMPLES[:2], rows, strict=True):
        mask = read_mask(archive.read(f"{path.stem}_mask.png")) > 0
        assert row["name"] == path.name
        assert float(row["area_percent"]) == pytest.approx(100 * mask.mean(), abs=1e-3)


def test_a_broken_file_is_shown_as_an_error(page: Any, tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not a picture")
    page.set_input_files("#files", path)
    expect(page.locator("html")).to_have_attribute("data-state", "error")
    expect(page.get_by_role("alert")).to_contain_text("notes.png is not a picture")
    choose(page, EXAMPLES[0])  # and the page goes on
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_missing_network_is_shown_as_an_error(browser: Any, address: str) -> None:
    context = browser.new_context(service_workers="block")
    context.route("**/model.onnx", lambda route: route.abort())
    page = context.new_page()
    page.goto(address)
    expect(page.get_by_role("alert")).to_contain_text("The network could not be loaded")
    expect(page.locator("html")).to_have_attribute("data-state", "error")
    context.close()


def test_everything_is_reached_by_keyboard_and_has_a_name(page: Any) -> None:
    choose(page, EXAMPLES[0])
    page.bring_to_front()
    with page.expect_file_chooser() as chooser:
        page.locator("#choose").press("Enter")
    chooser.value.set_files(EXAMPLES[1])
    expect(page.get_by_role("img")).to_have_attribute(
        "aria-label", re.compile(re.escape(EXAMPLES[1].name))
    )
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == [
        *("camera", "example", "threshold", "opacity"),
        *("width-mm", "ruler", "save-mask", "save-overlay"),
    ]
    before = page.inner_text("#area-percent")
    page.locator("#threshold").focus()
    for _ in range(10):
        page.keyboard.press("PageUp")
    expect(page.locator("#area-percent")).not_to_have_text(before)
    page.fill("#threshold", "0.5")
    for role, name in [("slider", "Threshold"), ("slider", "Opacity"), ("spinbutton", "Width")]:
        expect(page.get_by_role(role, name=re.compile(name))).to_be_visible()
    assert "Not a medical device." in page.inner_text("body")


SEGMENT_BOTH_WAYS = """async (base64) => {
  const { Model } = await import("./model.js");
  const { takeFrame } = await import("./camera.js");
  const model = new Model(() => {});
  await model.load();
  const file = new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))]);
  const frame = await takeFrame(await createImageBitmap(file));
  const size = [frame.height, frame.width];
  const results = [await model.segment(frame), await model.segment(file)];
  return [size, ...results.map(({ probability }) => [...probability])];
}"""


@pytest.mark.parametrize("path", EXAMPLES[:3], ids=lambda path: path.name)
def test_frame_that_the_browser_shrinks_gives_nearly_the_mask_of_the_file(
    page: Any, path: Path
) -> None:
    size, *probabilities = page.evaluate(
        SEGMENT_BOTH_WAYS, base64.b64encode(path.read_bytes()).decode()
    )
    assert size == [256, 256]
    assert dice(*(np.array(each) >= 0.5 for each in probabilities)) >= 0.99


def test_camera_is_outlined_live(page: Any) -> None:
    """The rate depends on the machine and is printed, not judged: ``pytest -s`` shows it."""
    page.click("#camera")
    expect(page.locator("#live-figures")).to_contain_text("frames/s")
    page.wait_for_timeout(3000)
    print(f"\nfake camera, headless Chromium: {page.inner_text('#live-figures')}")
    page.click("#capture")
    expect(page.locator("#status")).to_contain_text("camera.png: 640 × 480")
    page.click("#camera")
    expect(page.locator("html")).to_have_attribute("data-state", "live")
    page.keyboard.press("Escape")
    expect(page.locator("html")).to_have_attribute("data-state", "ready")
    assert page.evaluate("document.getElementById('video').srcObject") is None


def test_fits_320_pixels(page: Any) -> None:
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.set_viewport_size({"width": 1280, "height": 720})


def test_asks_nobody_else_and_works_offline(
    open_page: Callable[[str], Any], start_server: Callable[[], Any]
) -> None:
    server = start_server()
    address = f"http://127.0.0.1:{server.server_port}/"
    page = open_page(address)
    requests: list[str] = []
    page.context.on("request", lambda request: requests.append(request.url))
    page.evaluate("navigator.serviceWorker.ready.then(() => null)")
    page.reload()
    choose(page, EXAMPLES[0])
    server.shutdown()
    server.server_close()
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-state", "ready")
    choose(page, EXAMPLES[1])
    assert any(url.endswith(".wasm") for url in requests)  # the worker's are seen as well
    assert [url for url in requests if not url.startswith((address, f"blob:{address}"))] == []
    assert page.errors == []
    page.context.close()


def test_the_browser_refuses_other_addresses(page: Any) -> None:
    """Meta-test: were the page to ask someone else, the request would not leave the browser."""
    asked = []

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        elsewhere = f"http://127.0.0.1:{other.server_port}/"
        refused = page.evaluate("(url) => fetch(url).then(() => false, () => true)", elsewhere)
        other.shutdown()
    assert refused
    assert asked == []
