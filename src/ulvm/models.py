"""The models by name: which weights file each name means, and where it is.

A new model is a row of ``BUNDLED``; the one that is taken where none is named is ``DEFAULT``.
"""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from ulvm.errors import InputError, not_found
from ulvm.limits import MODEL_BYTES, read_file

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
        "b022b59db4248bda6262b79e12d8c4a79132a3448c87b28ecb4799a63ed2ba76",
        "a44da8b8487ed284eb4afb9d41a40e8113f17f4ae745f0c0a2707794e3557639",
    ),
    "isic2017": Bundled(
        "isic2017.safetensors",
        "abd4884164de53f9aa7cdfc95a695d41417eb9dd4a645b34de8a42b73283cc36",
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
    """The weights file of a model; arguments and errors are those of ``read_weights``."""
    return read_weights(model, onnx=onnx)[0]


def read_weights(
    model: str | os.PathLike[str] | None = None, *, onnx: bool = False
) -> tuple[Path, bytes]:
    """The weights file of a model, and its content.

    Args:
        model: A name in ``NAMES``, a weights file or a run folder of ``ulvm train``; by default
            the model ``DEFAULT``. Where a folder has the name of a model, ``./skin`` or a
            ``Path`` means the folder.
        onnx: Whether an ONNX file is wanted, not a safetensors file.

    Raises:
        InputError: There is none, it has the other ending or cannot be read, or a file that came
            with ulvm is not what it was.
    """
    model = DEFAULT if model is None else model
    sha256: str | None = None
    if is_name(model):
        path, sha256 = _find_named(str(model), onnx)
    else:
        path = _find_file(Path(model), onnx)
    content = read_file(path, MODEL_BYTES)
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            f"the bundled model {path.name} of this installation of ulvm is damaged",
            "",
            "install ulvm again",
        )
    return path, content


def _find_file(path: Path, onnx: bool) -> Path:
    if onnx:
        accepted, ending = "it must be an ONNX file that `ulvm export` wrote", ".onnx"
    else:
        accepted = "it must be a .safetensors file or run folder of `ulvm train`, or one of the "
        accepted, ending = f"{accepted}names {', '.join(NAMES)}", ".safetensors"
    if path.is_dir():
        if onnx:
            raise InputError(f"the model {path} is a folder", accepted, "name a file in it")
        if not (path / RUN_WEIGHTS).is_file():
            raise InputError(
                f"the model {path} is a folder without {RUN_WEIGHTS}",
                accepted,
                "check the path, or wait for the first epoch of training",
            )
        return path / RUN_WEIGHTS
    if not path.is_file():
        folder = not onnx and not path.suffix  # perhaps a run that isn't there
        tried = f"{path}, nor {path / RUN_WEIGHTS}" if folder else path
        raise not_found(tried, accepted, what="model")
    if path.suffix in {".safetensors", ".onnx"} - {ending}:
        raise InputError(f"the model {path} is no {ending} file", accepted, "leave the engine out")
    return path


def _find_named(name: str, onnx: bool) -> tuple[Path, str | None]:
    """The file of a name, and the SHA-256 of a bundled one."""
    bundled = BUNDLED.get(ALIASES.get(name, name))
    if onnx and (bundled is None or bundled.onnx_sha256 is None):
        raise InputError(
            f"the model {name} is not there as an ONNX file",
            "",
            f"leave the engine out, or write one with `ulvm export {name} --out {name}.onnx`",
        )
    if bundled is None:
        path = CLONE_FOLDER / ELSEWHERE[name]
        if not path.is_file():
            raise InputError(
                f"the model {name} does not come with the package",
                f"it is results/weights/{path.name} of a clone of the project",
                f"name that file, or make one with `ulvm train {name}`",
            )
        return path, None
    path = FOLDER / bundled.file
    if onnx:
        path = path.with_suffix(".onnx")
    if not path.is_file():
        raise InputError(
            f"the bundled model {path.name} is missing from this installation of ulvm",
            "",
            "name a file that `ulvm export` wrote. The bundled one is in a clone only"
            if onnx
            else "name a file that `ulvm train` wrote, or install ulvm again",
        )
    return path, bundled.onnx_sha256 if onnx else bundled.sha256
