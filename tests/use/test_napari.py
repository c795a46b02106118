"""napari's plugin: its manifest by npe2, its function on layers of a viewer without a window."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ulvm
from ulvm import synthetic
from ulvm.errors import InputError
from ulvm.models import BUNDLED
from ulvm.use import NOTICE
from ulvm.use.napari import segment, to_rgb

npe2 = pytest.importorskip("npe2", reason="npe2 is of the extra [napari]")
layers = pytest.importorskip("napari.layers", reason="napari is of the extra [napari]")
components = pytest.importorskip("napari.components", reason="napari is of the extra [napari]")

MANIFEST = Path(ulvm.__file__).parent / "use" / "napari.yaml"
PICTURE = synthetic.draw_lesion(3, (100, 150)).image_rgb
WANTED = ulvm.load()(PICTURE, threshold=0.5).mask


def test_npe2_finds_the_manifest_valid() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "npe2", "validate", "--imports", MANIFEST],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid" in done.stdout


def test_the_installed_package_is_a_plugin_of_napari() -> None:
    entries = importlib.metadata.entry_points(group="napari.manifest", name="ultralight-vm-unet")
    if not entries:
        pytest.skip("ulvm was installed here before it was a plugin: pip install -e . again")
    manifest = npe2.PluginManifest.from_distribution("ultralight-vm-unet")
    assert [each.display_name for each in manifest.contributions.widgets] == [
        "Outline a skin lesion"
    ]


def test_the_widget_is_made_from_the_function() -> None:
    """By npe2's own way from the manifest to a magicgui factory, and its types to napari's."""
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manager = npe2.PluginManager.instance()
    if manifest.name not in manager:
        manager.register(manifest)
    (widget,) = manifest.contributions.widgets
    factory = widget.get_callable()
    assert factory.keywords["function"] is segment
    from magicgui.signature import magic_signature
    from magicgui.type_map._type_map import resolve_single_type

    widgets = magic_signature(segment).parameters
    assert list(widgets) == ["image", "model", "threshold"]
    assert list(widgets["model"].options["choices"]) == list(BUNDLED)
    assert resolve_single_type(segment.__annotations__["image"]) is layers.Image


def test_a_layer_of_a_viewer_becomes_labels_in_the_same_place() -> None:
    viewer = components.ViewerModel()
    layer = viewer.add_image(PICTURE, rgb=True, scale=(0.01, 0.01), translate=(3, 4), name="mole")
    data, options, kind = segment(layer, threshold=0.5)
    np.testing.assert_array_equal(data, WANTED)
    labels = getattr(viewer, f"add_{kind}")(data, **options)
    np.testing.assert_array_equal(labels.scale, layer.scale)
    np.testing.assert_array_equal(labels.translate, layer.translate)
    assert labels.name == "mole: lesion"
    assert labels.metadata["notice"] == NOTICE
    own = segment(layer)[1]["metadata"]["threshold"]
    assert own == ulvm.load().spec.threshold
    assert [each.name for each in viewer.layers] == ["mole", "mole: lesion"]


@pytest.mark.parametrize("kind", ["float", "uint16", "alpha", "stack", "pyramid"])
def test_every_kind_of_colour_layer(kind: str) -> None:
    data: Any = {
        "float": PICTURE / 255,
        "uint16": PICTURE.astype(np.uint16) * 257,
        "alpha": np.dstack([PICTURE, np.full(PICTURE.shape[:2], 255, np.uint8)]),
        "stack": np.stack([PICTURE, PICTURE[::-1]]),
        "pyramid": [PICTURE, PICTURE[::2, ::2]],
    }[kind]
    layer = components.ViewerModel().add_image(data, rgb=True, multiscale=kind == "pyramid")
    labels, *_ = segment(layer, threshold=0.5)
    if kind == "stack":
        assert labels.shape == (2, 100, 150)
        labels = labels[0]
    np.testing.assert_array_equal(labels, WANTED)


def test_grey_layers_take_their_contrast_limits() -> None:
    grey = PICTURE.mean(axis=2)
    viewer = components.ViewerModel()
    expected, *_ = segment(viewer.add_image(grey.round().astype(np.uint8)), threshold=0.5)
    layer = viewer.add_image(grey * 16, contrast_limits=(0, 255 * 16))
    found, *_ = segment(layer, threshold=0.5)
    assert expected.any()
    np.testing.assert_array_equal(found, expected)


def test_what_shows_no_picture_is_refused() -> None:
    with pytest.raises(InputError, match="shows a picture"):
        to_rgb(np.zeros(5), rgb=False, limits=(0, 1))
