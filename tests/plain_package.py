"""Run by `make plain` where neither torch nor ONNX Runtime is: the runtime must not need them."""

import importlib.util
import sys
import tempfile
from pathlib import Path

FORBIDDEN = ("torch", "scipy", "sklearn", "matplotlib", "onnx", "onnxruntime", "safetensors")


def main() -> None:
    """Import every runtime module and segment one drawn picture."""
    installed = [name for name in FORBIDDEN if importlib.util.find_spec(name)]
    if installed:
        sys.exit(f"this environment is not plain: it has {', '.join(installed)}")
    import ulvm
    from ulvm import cli, datasets, evaluate, metrics, predict, presets, serve, splits, synthetic

    drawn = synthetic.draw_lesion(0, (300, 400))
    segmenter = ulvm.load()
    segmentation = segmenter(drawn.image_rgb)
    overlap = 2 * (segmentation.mask & drawn.mask).sum()
    dice = overlap / (segmentation.mask.sum() + drawn.mask.sum())
    with tempfile.TemporaryDirectory() as folder:
        ulvm.write_png(Path(folder) / "photo.png", drawn.image_rgb)
        again = segmenter(Path(folder) / "photo.png")
        again.save(Path(folder) / "mask.png")
    if not again.polygons() or "medical device" not in again._repr_html_():
        sys.exit("a segmentation has no outline, or doesn't show itself")
    pages = serve.page_files()
    modules = (cli, datasets, evaluate, metrics, predict, presets, serve, splits)
    print(
        f"plain package: {len(modules)} modules imported, {len(pages)} files of the page, engine "
        f"{segmenter.network.level}, Dice {dice:.3f} on a drawn picture"
    )


main()
