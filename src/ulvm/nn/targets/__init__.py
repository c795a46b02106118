"""Weights → what a phone's runtime reads, run here and compared with torch before it is written.

Each module beside this one is a target and has three names: ``SUFFIX``, the ending of its main
file; ``convert``, which writes a network into a folder; ``predict``, which runs what was written.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch

from ulvm.errors import InputError, install_extra
from ulvm.files import write_atomically
from ulvm.image import FloatArray, Uint8Array
from ulvm.nn.checkpoint import load_weights
from ulvm.nn.export import side_file
from ulvm.nn.model import PictureToProbability
from ulvm.provenance import versions
from ulvm.spec import FORMAT, RunSpec
from ulvm.synthetic import probe_images

TARGETS = ("executorch", "litert")  # each the name of a module here and of an extra
TOLERANCE = 1e-3


class Target(Protocol):
    """What a module of this folder offers."""

    SUFFIX: str

    def convert(self, module: PictureToProbability, run: RunSpec, folder: Path) -> Path:
        """Write the network into an empty folder, as files ``model.…``, and give the main one."""

    def predict(self, path: Path, image_rgb: Uint8Array) -> FloatArray:
        """uint8 (batch, size, size, channels) → float32 (batch, classes, size, size)."""


def export_for(target: str, source: str | Path, out: str | Path) -> dict[str, Any]:
    """Write a trained network for a phone's runtime, with ``OUT.json`` beside it.

    Input and output are those of the ONNX file, one picture a call.

    Args:
        target: One of ``TARGETS``.
        source: As for ``load_weights``.
        out: The main file, with the target's ending; further files get the same stem.

    Returns:
        The content of that file.

    Raises:
        InputError: No such target, its packages are missing, another ending, ``source`` is no
            run, or the runtime and torch differ by more than 1e-3 in probability or in any pixel
            of a mask; then nothing is written.
    """
    out = Path(out)
    if target not in TARGETS:
        raise InputError(
            f"there is no target {target!r}",
            "choose from " + ", ".join(TARGETS),
            "",
        )
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")  # the converters' own deprecation notices
        try:
            runtime = cast(Target, importlib.import_module(f"{__name__}.{target}"))
            stem = _stem(out, runtime.SUFFIX)
            network, run, provenance = load_weights(source)
            module = PictureToProbability(network).eval()
            path = runtime.convert(module, run, Path(folder))
            difference, pixels = compare(runtime, path, module, run)
        except ModuleNotFoundError as problem:
            raise InputError(
                f"the target {target} needs the package {problem.name}, which is not installed",
                "",
                install_extra(target),
            ) from None
        # The main file last, when what belongs to it is there.
        parts = sorted(Path(folder).iterdir(), key=lambda part: part == path)
        contents = {stem + part.name.removeprefix("model"): part.read_bytes() for part in parts}
    if not (difference <= TOLERANCE and pixels == 0):
        raise InputError(
            f"the file for {target} and torch {torch.__version__} differ by {difference:.1e} in "
            f"probability and in {pixels} pixels of the masks",
            f"up to {TOLERANCE:.0e} and no pixel are allowed",
            "nothing was written. Try other versions of the two",
        )
    side = {
        "format": FORMAT,
        "target": target,
        "file": out.name,
        "sha256": {name: hashlib.sha256(each).hexdigest() for name, each in contents.items()},
        "bytes": sum(map(len, contents.values())),
        "largest_difference_from_torch": difference,
        "run": run.to_dict(),
        "exported_with": versions(),
        **provenance,
    }
    for name, content in contents.items():
        write_atomically(out.parent / name, content)
    write_atomically(side_file(out), (json.dumps(side, indent=2) + "\n").encode())
    return side


def compare(
    runtime: Target, path: Path, module: PictureToProbability, run: RunSpec
) -> tuple[float, int]:
    """Largest difference of probability from torch (nan where one gives nan); differing pixels."""
    images = np.concatenate(list(probe_images(run.data.image_size, run.model.in_channels)))
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    found = runtime.predict(path, images)
    differing = _labels(expected, run) != _labels(found, run)
    return float(np.abs(expected - found).max()), int(np.count_nonzero(differing))


def _stem(out: Path, suffix: str) -> str:
    if not out.name.endswith(suffix) or out.name == suffix:
        raise InputError(
            f"the name {out} does not fit this target",
            f"it must end in {suffix}",
            "",
        )
    return out.name.removesuffix(suffix)


def _labels(probability: FloatArray, run: RunSpec) -> npt.NDArray[Any]:
    if run.model.classes > 1:
        return probability.argmax(axis=1)
    return probability >= np.float32(run.threshold)
