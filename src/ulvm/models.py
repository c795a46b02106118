"""The models by name: which weights file each name means, and where it is.

A new model is a row of ``BUNDLED``; the one that is taken where none is named is ``DEFAULT``.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from ulvm.errors import InputError

RUN_WEIGHTS = "weights.safetensors"
"""The weights file in a run folder of ``ulvm train``: the best epoch's."""

FOLDER = Path(__file__).with_name("weights")
CLONE_FOLDER = Path(__file__).parents[2] / "results" / "weights"


class Bundled(NamedTuple):
    """A weights file that comes with ulvm.

    Args:
        file: Its name in ``weights/``.
        sha256: Of its content.
        onnx_sha256: Of the same weights as ONNX, beside it in a clone; None where there is none.
    """

    file: str
    sha256: str
    onnx_sha256: str | None = None


BUNDLED = {
    "skin": Bundled(
        "skin.safetensors",
        "ef0b51e63d4ba595ca285dd7ad13a72c0812f9515dd3a532fb030e9de0c6efbd",
        "0822b98fbf5f44e53ef5d73ea645a11b8d3ff0334f16feff6d4597a872778a05",
    ),
    "isic2017": Bundled(
        "isic2017.safetensors",
        "c7edca50955377f426ba599b1acefeb686474ac7c10d5cfffd70fac076d62eae",
    ),
}
DEFAULT = "skin"
ALIASES = {"bundled": DEFAULT}

# In `results/weights/` of a clone, for the package stays small; each is also a preset of its name.
ELSEWHERE = {
    "paper": "paper.safetensors",
    "research": "research-42.safetensors",
}

NAMES = tuple(sorted({*BUNDLED, *ALIASES, *ELSEWHERE}))


def is_name(model: str | os.PathLike[str] | None) -> bool:
    """Whether it names a model of this project; a ``Path``, ``./skin`` too, is always a file."""
    return isinstance(model, str) and model in NAMES


def find_weights(model: str | os.PathLike[str] | None = None, *, onnx: bool = False) -> Path:
    """The weights file of a model.

    Args:
        model: A name in ``NAMES``, a weights file or a run folder of ``ulvm train``; by default
            the model ``DEFAULT``. Where a folder has the name of a model, ``./skin`` or a
            ``Path`` means the folder.
        onnx: Whether an ONNX file is wanted, not a safetensors file.

    Returns:
        An existing file.

    Raises:
        InputError: There is none, it has the other ending, or a file that came with ulvm is
            not what it was.
    """
    if model is None:
        model = DEFAULT
    if isinstance(model, str) and model in NAMES:
        return _find_named(ALIASES.get(model, model), onnx)
    accepted, ending = (
        ("it must be an ONNX file that `ulvm export` wrote", ".onnx")
        if onnx
        else (
            "it must be a .safetensors file or run folder of `ulvm train`, or one of the names "
            + ", ".join(NAMES),
            ".safetensors",
        )
    )
    path = Path(model)
    if path.is_dir() and not onnx:
        if not (path / RUN_WEIGHTS).is_file():
            raise InputError(
                f"the model {path} is a folder without {RUN_WEIGHTS}",
                accepted,
                "check the path, or wait for the first epoch of training",
            )
        return path / RUN_WEIGHTS
    if not path.is_file():
        raise InputError(
            f"the model {path} is a folder" if path.is_dir() else f"model not found: {path}",
            accepted,
            "check the path",
        )
    if path.suffix in {".safetensors", ".onnx"} - {ending}:
        raise InputError(f"the model {path} is no {ending} file", accepted, "leave the engine out")
    return path


def _find_named(name: str, onnx: bool) -> Path:
    if name in BUNDLED:
        return _find_bundled(name, onnx)
    path = CLONE_FOLDER / ELSEWHERE[name]
    if onnx:
        raise _no_onnx(name)
    if not path.is_file():
        raise InputError(
            f"the model {name} does not come with the package",
            f"it is results/weights/{path.name} of a clone of the project",
            f"name that file, or make one with `ulvm train {name}`",
        )
    return path


def _find_bundled(name: str, onnx: bool) -> Path:
    bundled = BUNDLED[name]
    path, sha256 = FOLDER / bundled.file, bundled.sha256
    if onnx:
        if bundled.onnx_sha256 is None:
            raise _no_onnx(name)
        path, sha256 = path.with_suffix(".onnx"), bundled.onnx_sha256
    if not path.is_file():
        raise InputError(
            f"the bundled model {path.name} is missing from this installation of ulvm",
            "",
            "name a file that `ulvm export` wrote. The bundled one is in a clone only"
            if onnx
            else "name a file that `ulvm train` wrote, or install ulvm again",
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise InputError(
            f"the bundled model {path.name} of this installation of ulvm is damaged",
            "",
            "install ulvm again",
        )
    return path


def _no_onnx(name: str) -> InputError:
    return InputError(
        f"the model {name} is not there as an ONNX file",
        "",
        f"leave the engine out, or write one with `ulvm export {name} --out {name}.onnx`",
    )
