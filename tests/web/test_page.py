"""The page from file to download, offline, by keyboard, with a camera; and that it tells nobody."""

import base64
import csv
import functools
import http.server
import io
import re
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image, ImageFilter

import ulvm
from ulvm.image import read_mask, resize
from ulvm.serve import page_files

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect

PACKAGE = Path(ulvm.__file__).parent
ROOT = PACKAGE.parents[1]
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_webp_is_turned_as_its_exif_says(page: Any, tmp_path: Path, orientation: int) -> None:
    """Chromium itself leaves it as it lies."""
    path = tmp_path / f"turned-{orientation}.webp"
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(PACKAGE / "examples" / "grey.png") as picture:
        picture.convert("RGB").save(path, lossless=True, exif=exif.tobytes())
    choose(page, path)
    expected = ulvm.load()(ulvm.read_image(path)).mask
    found = read_mask(download(page, "#save-mask")) > 0
    assert found.shape == expected.shape
    assert dice(found, expected) >= 0.995


def test_a_picture_that_fits_no_canvas_is_refused_not_read_as_blank(
    page: Any, tmp_path: Path
) -> None:
    """Chromium draws into canvases of up to 65,535 pixels a side, and into others nothing."""
    for size_hw, button in [((4, 70_000), None), ((70_000, 40), "#save-mask")]:
        path = tmp_path / f"{size_hw[0]}.png"
        Image.new("RGB", size_hw[::-1], (200, 150, 140)).save(path)
        page.set_input_files("#files", path)
        if button:
            page.click(button)
        expect(page.get_by_role("alert")).to_contain_text("too large for this browser. Scale it")
    choose(page, EXAMPLES[0])


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
    page.fill("#opacity", "25")
    choose(page, path)
    image_rgb = ulvm.read_image(path)
    overlay = ulvm.read_image(download(page, "#save-overlay"))
    changed = (np.abs(overlay.astype(int) - image_rgb) > 4).any(axis=2)
    assert dice(changed, ulvm.load()(image_rgb).mask) > 0.97  # the line is drawn on both sides
    page.fill("#opacity", "0")


def test_only_the_outline_is_drawn_unless_a_tint_is_asked_for(page: Any) -> None:
    path = PACKAGE / "examples" / "portrait.jpg"
    choose(page, path)
    image_rgb = ulvm.read_image(path)
    overlay = ulvm.read_image(download(page, "#save-overlay"))
    changed = (np.abs(overlay.astype(int) - image_rgb) > 4).any(axis=2)
    mask = ulvm.load()(image_rgb).mask
    assert 0 < changed.mean() < 0.1 < mask.mean()
    inner = ~np.array(Image.fromarray(~mask).filter(ImageFilter.MaxFilter(21)))
    assert inner.any()
    assert not changed[inner].any()


def test_square_millimetres_follow_from_the_width_or_from_a_ruler(page: Any) -> None:
    choose(page, PACKAGE / "examples" / "hair-and-ruler.jpg")  # 800 × 600
    share = float(page.inner_text("#area-percent").split()[0]) / 100
    page.fill("#width-mm", "40")
    expect(page.locator("#area-mm2")).to_have_text(re.compile(r"\d"))
    assert float(page.inner_text("#area-mm2")) == pytest.approx(share * 40 * 30, rel=0.01)
    page.click("#ruler")
    box = page.locator("#canvas").bounding_box()
    for x in (0.1, 0.6):
        position = {"x": x * box["width"], "y": 0.4 * box["height"]}
        page.click("#canvas", position=position)
    assert float(page.input_value("#width-mm")) == pytest.approx(20, rel=0.01)
    page.click("#ruler")
    page.fill("#width-mm", "")
    expect(page.locator("#area-mm2")).to_have_text("–")


THUMBNAILS = """(all) => all.map((canvas) =>
  canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean),
)"""


def test_several_pictures_become_a_zip_and_every_broken_one_is_named(
    page: Any, tmp_path: Path
) -> None:
    broken = [tmp_path / "broken.jpg", tmp_path / "photo.heic"]
    for path in broken:
        path.write_bytes(b"\xff\xd8\xff not a picture")
    page.set_input_files("#files", [broken[0], *EXAMPLES[:2], broken[1]])
    expect(page.locator("#status")).to_contain_text("2 of 4 pictures outlined")
    expect(page.locator("#error")).to_contain_text("broken.jpg is not a picture")
    expect(page.locator("#error")).to_contain_text("photo.heic is a HEIC photo")
    assert page.locator("#items").bounding_box()["y"] < 200  # above the fold
    shown = page.locator("#items button canvas").evaluate_all(THUMBNAILS)
    assert shown == [False, True, True, False]
    page.locator("#items button").nth(2).click()
    expect(page.get_by_role("img")).to_have_attribute(
        "aria-label", re.compile(f"{re.escape(EXAMPLES[1].name)}.* %")
    )
    page.fill("#width-mm", "20")
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
    assert [bool(row["area_mm2"]) for row in rows] == [False, True]  # one picture's scale
    page.locator("#items button").nth(1).click()
    expect(page.locator("#width-mm")).to_have_value("")
    page.locator("#items button").nth(2).click()
    expect(page.locator("#width-mm")).to_have_value("20")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_picture_that_is_shown_is_upright(page: Any, path: Path) -> None:
    choose(page, path)
    image_rgb = ulvm.read_image(path)
    hide = "#canvas, #compare { visibility: hidden !important }"
    shown = np.array(
        Image.open(io.BytesIO(page.locator("#frame").screenshot(style=hide))).convert("RGB")
    )
    height, width, _ = shown.shape
    assert width / height == pytest.approx(image_rgb.shape[1] / image_rgb.shape[0], rel=0.02)
    assert np.abs(resize(shown, (40, 40)).astype(int) - resize(image_rgb, (40, 40))).mean() < 4


WATCH = """() => {
  globalThis.seen = [];
  const stage = document.getElementById("stage");
  const text = (id) => document.getElementById(id).textContent;
  const canvas = document.getElementById("canvas");
  const isDrawn = () => canvas.getContext("2d")
    .getImageData(0, 0, canvas.width, canvas.height).data.some(Boolean);
  if (!isDrawn()) throw new Error("no outline to begin with");
  const note = (what) => seen.push([
    what, stage.ariaBusy, text("area-percent"), text("area-mm2"),
    ["save-mask", "save-overlay", "ruler", "width-mm", "correct"].every(
      (id) => document.getElementById(id).disabled,
    ),
    document.getElementById("width-mm").value, isDrawn(),
  ]);
  new MutationObserver(() => stage.ariaBusy === "true" && note("begun"))
    .observe(stage, { attributes: true, attributeFilter: ["aria-busy"] });
  const { transferFromImageBitmap } = ImageBitmapRenderingContext.prototype;
  ImageBitmapRenderingContext.prototype.transferFromImageBitmap = function (bitmap) {
    transferFromImageBitmap.call(this, bitmap);
    if (bitmap) setTimeout(note, 0, "picture");
  };
}"""


def test_a_new_picture_is_shown_at_once_without_the_old_ones_figures(
    browser: Any, address: str, tmp_path: Path
) -> None:
    page = browser.new_page()
    page.goto(address)
    page.wait_for_selector("html[data-state=ready]")
    choose(page, EXAMPLES[0])
    page.fill("#width-mm", "20")
    expect(page.locator("#area-mm2")).to_have_text(re.compile(r"\d"))
    large = tmp_path / "large.jpg"
    Image.fromarray(ulvm.read_image(EXAMPLES[1])).resize((4000, 3000)).save(large)
    page.evaluate(WATCH)
    choose(page, large)
    untold = ["true", "–", "–", True, "", False]
    assert page.evaluate("seen") == [["begun", *untold], ["picture", *untold]]
    assert page.get_attribute("#stage", "aria-busy") == "false"
    assert page.inner_text("#area-mm2") == "–"
    page.close()


def test_the_area_says_of_what_and_the_speed_waits_for_a_third_picture(
    open_page: Callable[[str], Any], address: str
) -> None:
    """The first pictures also compile: their time says nothing."""
    page = open_page(address)
    for count in (1, 2, 3):
        choose(page, EXAMPLES[count])
        assert bool(page.inner_text("#speed")) == (count == 3)
    assert re.search(r"\d ms a picture .*\(median of 3\)", page.inner_text("#speed"))
    assert re.search(r"^Area\s+\d+\.\d %\s+of the picture$", page.inner_text("#result > div"))
    assert " ms" not in page.inner_text("#result")
    page.context.close()


def test_holding_the_button_or_the_picture_shows_it_without_outline(page: Any) -> None:
    choose(page, EXAMPLES[0])
    canvas = page.locator("#canvas")
    for held in ("#compare", "#frame"):
        page.hover(held)
        page.mouse.down()
        expect(canvas).to_be_hidden()
        page.mouse.up()
        expect(canvas).to_be_visible()
    page.locator("#compare").focus()
    page.keyboard.down("Space")
    expect(canvas).to_be_hidden()
    page.keyboard.up("Space")
    expect(canvas).to_be_visible()


def test_the_ruler_goes_by_keyboard(page: Any) -> None:
    choose(page, PACKAGE / "examples" / "hair-and-ruler.jpg")
    page.locator("#ruler").press("Enter")
    first, second = page.locator(".mark").all()
    before = first.get_attribute("aria-label")
    for _ in range(4):
        first.press("ArrowLeft")
        second.press("Shift+ArrowRight")
    assert first.get_attribute("aria-label") != before
    moved = 44 / page.locator("#frame").bounding_box()["width"]  # 4 pixels and 4 times 10
    assert float(page.input_value("#width-mm")) == pytest.approx(10 / (0.5 + moved), rel=0.01)
    page.locator("#ruler").press("Enter")
    assert page.locator(".mark:visible").count() == 0


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
    context.route("**/model.safetensors", lambda route: route.abort())
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
        "aria-label", re.compile(f"{re.escape(EXAMPLES[1].name)}.* %")
    )
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id"))
    assert reached == [
        *("camera", "example", "threshold", "opacity"),
        *("width-mm", "ruler", "correct", "save-mask", "save-overlay"),
    ]
    before = page.inner_text("#area-percent")
    page.locator("#threshold").focus()
    for _ in range(10):
        page.keyboard.press("PageUp")
    expect(page.locator("#area-percent")).not_to_have_text(before)
    page.fill("#threshold", "0.5")
    for role, name in [("slider", "Threshold"), ("slider", "Tint"), ("spinbutton", "Width")]:
        expect(page.get_by_role(role, name=re.compile(name))).to_be_visible()
    for small in page.locator("main :is(button, input, .mark):visible").all():
        assert small.bounding_box()["height"] >= 44
    assert "Not a medical device." in page.inner_text("body")


OUTLINE_EACH_WAY = """async (base64) => {
  const { model } = await import("./model.js");
  const { traceOutline } = await import("./outline.js");
  const file = new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))]);
  const result = await model.outline(file, ({ bitmap }) => bitmap.close());
  Object.assign(result, await model.review(result, 0.5));
  const curves = [traceOutline(result.probability, 256, 0.5)];
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  for (const frame of [new VideoFrame(bitmap, { timestamp: 0 }), bitmap]) {
    curves.push((await model.outlineFrame(frame, 0.5)).curves);
  }
  return curves.map((each) => JSON.stringify(each.map((curve) => [...curve])));
}"""


@pytest.mark.parametrize("path", EXAMPLES[:3], ids=lambda path: path.name)
def test_a_frame_is_outlined_as_the_file_is(page: Any, path: Path) -> None:
    """As a VideoFrame, and as the ImageBitmap of browsers that know none."""
    encoded = base64.b64encode(path.read_bytes()).decode()
    of_file, *of_frames = page.evaluate(OUTLINE_EACH_WAY, encoded)
    assert of_file != "[]"
    assert of_frames == [of_file, of_file]


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


def test_a_camera_that_is_unplugged_is_said(page: Any) -> None:
    page.click("#camera")
    expect(page.locator("#live-figures")).to_contain_text("frames/s")
    page.evaluate("document.getElementById('video').srcObject.getTracks()[0].stop()")
    expect(page.get_by_role("alert")).to_contain_text("The camera stopped: it was unplugged")
    expect(page.locator("#camera")).to_have_text("Camera")


def test_a_missing_camera_is_said(browser: Any, address: str) -> None:
    page = browser.new_page()
    for name, words in [("NotFoundError", "No camera was found"), ("NotAllowedError", "allow it")]:
        page.add_init_script(
            "navigator.mediaDevices.getUserMedia = () => "
            f"Promise.reject(new DOMException('Requested device not found', '{name}'));"
        )
        page.goto(address)
        page.click("#camera")
        expect(page.get_by_role("alert")).to_contain_text(re.compile(words, re.IGNORECASE))
    page.close()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("delete globalThis.WebAssembly", "this browser has no WebAssembly"),
        ("WebAssembly.validate = () => false", "Update it, or take another browser"),
    ],
)
def test_a_browser_that_cannot_run_it_is_told_so(
    browser: Any, address: str, script: str, words: str
) -> None:
    page = browser.new_page()
    page.add_init_script(script)
    page.goto(address)
    expect(page.get_by_role("alert")).to_contain_text(words)
    expect(page.locator("html")).to_have_attribute("data-state", "error")
    page.close()


def test_without_javascript_or_modules_the_page_says_what_it_needs(
    browser: Any, address: str
) -> None:
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(address)
    expect(page.locator(".error:visible")).to_have_text(re.compile("needs JavaScript"))
    page.context.close()
    page = browser.new_page()
    page.route("**/page.js", lambda route: route.abort())
    page.goto(address)
    expect(page.locator("#stuck")).to_be_visible()
    page.close()


def test_the_empty_stage_is_a_button_with_words_for_the_device(browser: Any, address: str) -> None:
    told = ("Drop a picture", "Choose or take a picture")
    for touch, words in enumerate(told):
        page = browser.new_context(has_touch=bool(touch), is_mobile=bool(touch)).new_page()
        page.goto(address)
        page.wait_for_selector("html[data-state=ready]")
        text = page.inner_text("#empty")
        assert [each in text for each in told] == [each == words for each in told]
        assert ("Ctrl" in text) == (not touch)
        with page.expect_file_chooser() as chooser:
            page.click("#empty")
        chooser.value.set_files(EXAMPLES[0])
        expect(page.locator("#status")).to_contain_text(f"{EXAMPLES[0].name}: ")
        page.context.close()


GIVE_TEXT = """(kind) => {
  const given = new DataTransfer();
  given.setData("text/uri-list", "https://example.org/spot.jpg");
  document.getElementById("stage").dispatchEvent(
    kind === "paste"
      ? new ClipboardEvent(kind, { clipboardData: given, bubbles: true })
      : new DragEvent(kind, { dataTransfer: given, bubbles: true }),
  );
}"""


@pytest.mark.parametrize(
    ("kind", "words"), [("paste", "No picture was copied"), ("drop", "A link or text was dropped")]
)
def test_links_and_text_are_answered(page: Any, kind: str, words: str) -> None:
    page.evaluate(GIVE_TEXT, kind)
    expect(page.get_by_role("alert")).to_contain_text(words)
    choose(page, EXAMPLES[0])


def test_card_licence_and_source_are_there(page: Any, address: str) -> None:
    about = page.context.new_page()
    about.goto(address)
    about.click("footer a")
    expect(about.locator("h1")).to_contain_text("Model card")
    assert "Not a medical device." in about.inner_text("body")
    assert about.locator("table").count() >= 2
    assert about.locator("#licence").text_content() == (ROOT / "LICENSE").read_text().strip()
    for link in about.locator("a[href^='http']").all():
        assert link.get_attribute("href") == "https://arxiv.org/abs/2403.20035"
    about.close()


def test_all_that_it_loads_is_small() -> None:
    on_request = ("/example.jpg", "/gallery/", "/icon-")
    files = {
        name: file.read_bytes()
        for name, file in page_files().items()
        if name != "/index.html" and not name.startswith(on_request)
    }
    engines = {name: files.pop(name) for name in ("/engine.wasm", "/engine-relaxed.wasm")}
    for name, content in engines.items():
        loaded = [content, *files.values()]
        packed = sum(len(zlib.compress(each, 9)) for each in loaded)
        print(f"\n{name}: {sum(map(len, loaded)):,} bytes, {packed:,} compressed")
        assert sum(map(len, loaded)) <= 600_000
        assert packed <= 300_000


class _Plain(http.server.SimpleHTTPRequestHandler):
    """A static host that knows nothing of WebAssembly and sends no headers of ours."""

    extensions_map: ClassVar = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_runs_from_a_folder_of_a_static_host(browser: Any, tmp_path: Path) -> None:
    folder = tmp_path / "somewhere" / "deep"
    folder.mkdir(parents=True)
    for name, file in page_files().items():
        if name != "/":
            (folder / name[1:]).parent.mkdir(exist_ok=True)
            (folder / name[1:]).write_bytes(file.read_bytes())
    handler = functools.partial(_Plain, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as host:
        threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{host.server_port}/somewhere/deep/")
        page.click("#example")
        expect(page.locator("#status")).to_contain_text("example.jpg: 1024 × 768")
        page.evaluate("navigator.serviceWorker.ready.then(() => null)")
        page.reload()  # now the service worker keeps the example
        page.click("#example")
        expect(page.locator("#status")).to_contain_text("example.jpg: 1024 × 768")
        host.shutdown()
        host.server_close()
        page.reload()
        page.click("#example")
        expect(page.locator("#status")).to_contain_text("example.jpg: 1024 × 768")
        page.close()


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
