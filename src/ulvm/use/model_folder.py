"""What the folders for MONAI and bioimage.io have in common: the network, its words, its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ulvm.errors import InputError
from ulvm.files import write_atomically
from ulvm.nn.checkpoint import load_weights
from ulvm.nn.planes import PlanesToProbability
from ulvm.spec import RunSpec
from ulvm.use import NOTICE

TOLERANCE = 1e-4
"""Largest difference of probability between what is written and torch."""

DESCRIPTION = (
    "Outlines skin lesions in dermoscopic pictures: the probability of lesion for each pixel."
)
PAPER = "Wu et al., UltraLight VM-UNet: Parallel Vision Mamba Significantly Reduces Parameters"
PAPER_LINK = "https://arxiv.org/abs/2403.20035"

# As the downloads state it; of others the folder says to look there.
_LICENCES = {
    "isic2017": "CC-0",
    "isic2018": "CC BY-NC 4.0",
    "ph2": "research use only",
}


class Loaded(NamedTuple):
    """A network to be written for others.

    Args:
        module: Planes in, probability out.
        run: That made it.
        classes: What each class is.
    """

    module: PlanesToProbability
    run: RunSpec
    classes: tuple[str, ...]


def load_model(model: str | Path) -> Loaded:
    """A trained network of three channels.

    Args:
        model: A run folder, a weights file or the name of a model.

    Raises:
        InputError: There is none, or it reads other pictures than RGB.
    """
    network, run, _ = load_weights(model)
    if run.model.in_channels != 3:
        raise InputError(
            f"the model reads pictures of {run.model.in_channels} channels",
            "this target takes models of RGB pictures, three channels",
            "export it as ONNX, without --target",
        )
    count = run.model.classes
    classes = ("lesion",) if count == 1 else tuple(f"class {index}" for index in range(count))
    return Loaded(PlanesToProbability(network).eval(), run, classes)


def require_equal(difference: float, what: str) -> None:
    """Refuse to write what computes something else than torch.

    Raises:
        InputError: The difference is above ``TOLERANCE``, or no number.
    """
    if not difference <= TOLERANCE:
        raise InputError(
            f"{what} and torch differ by {difference:.1e} in probability",
            f"up to {TOLERANCE:.0e} is allowed",
            "nothing was written. Try another version of torch",
        )


def write_folder(folder: Path, files: Mapping[str, bytes]) -> int:
    """Write files into a folder, made where missing; equal names are replaced. Their bytes."""
    for name, content in files.items():
        write_atomically(folder / name, content)
    return sum(map(len, files.values()))


def data_licence(run: RunSpec) -> str:
    """What is known of the rights on the pictures that the network was trained on."""
    lines = ["No picture is part of this folder. The network was trained on:", ""]
    for source in run.data.sources:
        licence = _LICENCES.get(source.dataset, "see the terms of its download")
        lines.append(f"- {source.dataset}, split {Path(source.split).name}: {licence}")
    return "\n".join([*lines, "", "The weights and these files: MIT licence.", ""])


def readme(loaded: Loaded, how: str) -> str:
    """A page about the network, with how it is run in this tool."""
    run = loaded.run
    size = run.data.image_size
    classes = ", ".join(loaded.classes)
    threshold = (
        f"A pixel is lesion from {run.threshold} on."
        if len(loaded.classes) == 1
        else "A pixel is of its most probable class."
    )
    return f"""# {run.model.network}

**{NOTICE}** It outlines pigment; it does not tell what a lesion is.

{DESCRIPTION} {PAPER}, {PAPER_LINK}.

| | |
|---|---|
| input | float32 (batch, 3, {size}, {size}), RGB, 0..255; the whole picture, squashed to a square |
| output | float32 (batch, {len(loaded.classes)}, {size}, {size}), 0..1: {classes} |
| mask | resize the probability to the picture's size, bilinear. {threshold} |

Each picture is stretched to its own minimum and maximum inside the network.

{how}

## Rights

{data_licence(run)}"""
