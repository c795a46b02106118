"""Run by `make plain` in an environment without torch: the runtime must not need it."""

import importlib.util
import sys
import tempfile
from pathlib import Path

FORBIDDEN = ("torch", "scipy", "sklearn", "matplotlib", "onnx")


def main() -> None:
    """Import every runtime module and segment one drawn picture."""
    installed = [name for name in FORBIDDEN if importlib.util.find_spec(name)]
    if installed:
        sys.exit(f"this environment is not plain: it has {', '.join(installed)}")
    import ulvm
    from ulvm import cli, datasets, evaluate, metrics, predict, presets, splits, synthetic

    drawn = synthetic.draw_lesion(0, (300, 400))
    segmentation = ulvm.load()(drawn.image_rgb)
    overlap = 2 * (segmentation.mask & drawn.mask).sum()
    dice = overlap / (segmentation.mask.sum() + drawn.mask.sum())
    with tempfile.TemporaryDirectory() as folder:
        ulvm.write_png(Path(folder) / "mask.png", segmentation.mask)
    modules = (cli, datasets, evaluate, metrics, predict, presets, splits)
    print(f"plain package: {len(modules)} modules imported, Dice {dice:.3f} on a drawn picture")


main()
