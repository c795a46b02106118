"""engine.js, the engine in WebAssembly, against the Python side's arrays."""

import base64
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ulvm
from ulvm import synthetic
from ulvm.image import resize

# Larger than one band of rows, squashed, upscaled, and a single row.
SIZES_HW = [(1500, 1100), (600, 450), (97, 1201), (256, 256), (40, 33), (1, 500)]
BUILDS = ["engine.wasm", "engine-relaxed.wasm"]

INFER = """async ({encoded, height, width}) => {
  const { infer, load, takePicture } = await import("/engine.js");
  await (globalThis.loaded ??= load());
  const rgba = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  await takePicture(height, width, (band, top, rows) =>
    band.set(rgba.subarray(top * width * 4, (top + rows) * width * 4)),
  );
  const bytes = new Uint8Array(infer().buffer);
  return btoa(Array.from(bytes, (value) => String.fromCharCode(value)).join(""));
}"""

MASK = """async ({encoded, height, width, threshold}) => {
  const { load, resizeToMask } = await import("/engine.js");
  await (globalThis.loaded ??= load());
  const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
  const result = { probability: new Float32Array(bytes.buffer), height, width };
  const { area, mask } = resizeToMask(result, threshold, true);
  const same = resizeToMask(result, threshold, false).area === area;
  return { area, same, mask: btoa(Array.from(mask, (v) => String.fromCharCode(v)).join("")) };
}"""


def encode(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


@pytest.fixture(scope="module", params=BUILDS)
def build(request: pytest.FixtureRequest, browser: Any, address: str) -> Any:
    """A page that takes this build, with the engine in the page itself."""
    page = browser.new_context(service_workers="block").new_page()
    other = next(name for name in BUILDS if name != request.param)
    page.route(f"**/{other}", lambda route: route.continue_(url=f"{address}{request.param}"))
    page.goto(address)
    yield page
    page.context.close()


@pytest.mark.parametrize("size_hw", SIZES_HW, ids=str)
def test_probability_is_pythons(build: Any, size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    image_rgb = resize(synthetic.draw_lesion(1, (300, 400)).image_rgb, size_hw)
    rgba = np.dstack([image_rgb, np.full(size_hw, 255, np.uint8)])
    request = {"encoded": encode(rgba), "height": height, "width": width}
    found = np.frombuffer(base64.b64decode(build.evaluate(INFER, request)), np.float32)
    golden = ulvm.load().probability(resize(image_rgb, (256, 256))[None])
    assert np.abs(found - golden.reshape(-1)).max() < 2e-3


@pytest.mark.parametrize("size_hw", SIZES_HW, ids=str)
def test_mask_at_the_pictures_size_is_pillows(build: Any, size_hw: tuple[int, int]) -> None:
    height, width = size_hw
    probability = np.random.default_rng(1).random((256, 256), np.float32)
    enlarged = Image.fromarray(probability).resize((width, height), Image.Resampling.BILINEAR)
    golden = np.asarray(enlarged) >= np.float32(0.4)
    request = {"encoded": encode(probability), "height": height, "width": width, "threshold": 0.4}
    found = build.evaluate(MASK, request)
    mask = np.frombuffer(base64.b64decode(found["mask"]), np.uint8).reshape(size_hw)
    assert found["area"] == mask.sum()
    assert found["same"]
    assert np.mean(mask != golden) < 1e-4


@pytest.mark.parametrize("damage", ["short", "not finite"])
def test_damaged_weights_are_refused_by_the_engines_sentence(
    browser: Any, address: str, damage: str
) -> None:
    context = browser.new_context(service_workers="block")
    page = context.new_page()

    def spoil(route: Any) -> None:
        body = route.fetch().body()
        route.fulfill(body=body[:5000] if damage == "short" else body[:-4] + b"\0\0\xc0\x7f")

    context.route("**/model.safetensors", spoil)
    page.goto(address)
    page.locator("html[data-state=error]").wait_for()
    assert "The network could not be loaded" in page.inner_text("#error")
    context.close()
