"""Weights on disk: safetensors with the run's spec inside, and the authors' checkpoint."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ulvm.errors import InputError, not_found
from ulvm.files import write_atomically
from ulvm.image import FloatArray, Uint8Array
from ulvm.models import RUN_WEIGHTS, read_weights
from ulvm.nn.kernels import accelerate
from ulvm.nn.model import UltraLightVMUNet, normalise, probability_of_logits
from ulvm.nn.networks import build_network
from ulvm.segmenter import read_header, read_run
from ulvm.spec import FORMAT, METADATA_KEY, ModelSpec, RunSpec
from ulvm.splits import name_some

WEIGHTS = RUN_WEIGHTS
COUNTER = "num_batches_tracked"
# Where training checkpoints keep the state dict.
_WRAPPERS = (
    "model_state_dict",
    "state_dict",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "ema",
)
# The released code keeps losses as numpy numbers beside the weights; numpy 2 renamed their module.
_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64)),
]


def save_weights(path: Path, model: nn.Module, run: RunSpec, provenance: dict[str, Any]) -> None:
    """Write weights and spec as one safetensors file, in one step.

    Args:
        path: The file; its folder is made.
        model: The network, on any device.
        run: The resolved run that made it.
        provenance: JSON values to keep beside it: scores, split hash, versions.
    """
    metadata = {METADATA_KEY: json.dumps({"format": FORMAT, "run": run.to_dict(), **provenance})}
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, save(state, metadata), durable=True)


def load_weights(
    model: str | Path | None = None, device: str = "cpu"
) -> tuple[nn.Module, RunSpec, dict[str, Any]]:
    """Read what ``save_weights`` wrote.

    Args:
        model: A name in ``ulvm.models.NAMES``, a weights file or a run folder of ``ulvm train``;
            by default the bundled model.
        device: Where the network goes.

    Returns:
        The network in evaluation mode, on a GPU with kernels put in, its run and the stored
        provenance.

    Raises:
        InputError: The file is missing, no safetensors file, not written by ulvm, or its tensors
            are not those of its network, finite.
    """
    path, content = read_weights(model)
    return load_bytes(content, str(path), device)


def load_bytes(
    content: bytes, name: str, device: str = "cpu"
) -> tuple[nn.Module, RunSpec, dict[str, Any]]:
    """``load_weights`` of a file's bytes; ``name`` is for messages."""
    try:
        state = load(content)
    except safetensors.SafetensorError as problem:
        raise InputError(
            f"{name} cannot be read as safetensors ({problem})",
            "it must be a .safetensors file that ulvm wrote",
            "for the authors' .pth use load_authors_checkpoint",
        ) from None
    run, stored = read_run(read_header(content), name)
    with torch.device("meta"):  # without memory, for a wrong width may ask for any
        shapes = {key: value.shape for key, value in build_network(run.model).state_dict().items()}
    _require_tensors(state, shapes, name)
    network = build_network(run.model)
    network.load_state_dict(state)
    return accelerate(network.to(device)).eval(), run, {"format": FORMAT, **stored}


def _require_tensors(state: Mapping[Any, Any], shapes: Mapping[str, torch.Size], name: str) -> None:
    """Check that there are these tensors and no others, of numbers that are finite.

    Raises:
        InputError: One is missing, left over, of another shape or type, or not finite.
    """
    given = ""
    if missing := sorted(shapes.keys() - state.keys()):
        given = f"lacks {name_some(missing, 3)}"
    elif unknown := sorted(map(str, state.keys() - shapes.keys())):
        given = f"has unknown tensors {name_some(unknown, 3)}"
    for key, shape in {} if given else shapes.items():
        value = state[key]
        counts = key.endswith(COUNTER)  # of batch norms, whole numbers
        if type(value) not in (Tensor, nn.Parameter) or value.is_floating_point() is counts:
            given = f"has {key} of type {getattr(value, 'dtype', type(value).__name__)}"
        elif value.layout != torch.strided or value.is_quantized or value.is_meta:
            given = f"has {key} in an unusual layout"
        elif value.shape != shape:
            given = f"has {key} of shape {tuple(value.shape)}, not {tuple(shape)}"
        elif not torch.isfinite(value).all():
            given = f"has a number in {key} that is not finite"
        if given:
            break
    if given:
        raise InputError(
            f"{name} {given}",
            f"its network has {len(shapes)} tensors of finite numbers",
            "copy the file again, or check that it belongs to that network",
        )


def load_probability(
    model: str | Path, device: str = "cpu", *, double: bool = False
) -> tuple[Callable[[Uint8Array], FloatArray], RunSpec]:
    """A weights file as a function of pictures, like ``Segmenter.probability``.

    Args:
        model: As for ``load_weights``.
        device: Where it runs.
        double: Computes in float64, for others to be compared with.

    Returns:
        The function, uint8 (batch, size, size, channels) → float32 (batch, classes, size,
        size) in 0..1, and the run that made the weights.

    Raises:
        InputError: As ``load_weights``.
    """
    network, run, _ = load_weights(model, device)
    dtype = torch.float64 if double else torch.float32
    network.to(dtype)

    def probability_of(images_rgb: Uint8Array) -> FloatArray:
        planes = torch.from_numpy(images_rgb).to(device).permute(0, 3, 1, 2)
        with torch.no_grad():
            logits = network(normalise(planes).to(dtype))
            return probability_of_logits(logits).float().cpu().numpy()

    return probability_of, run


def load_authors_checkpoint(path: str | Path) -> UltraLightVMUNet:
    """The paper's network with weights from the authors' ``.pth`` file.

    Args:
        path: A state dict saved by the released code, or a training checkpoint that holds one
            under ``model_state_dict``, ``state_dict``, ``model`` and the like; with or without
            a prefix of all names, such as ``module.``, ``_orig_mod.`` or ``net.``, and THOP's
            ``total_ops`` / ``total_params`` entries.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        InputError: The file is missing, not a weights file, or has other tensors.
    """
    if not Path(path).is_file():
        raise not_found(path, "it must be the authors' .pth file")
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception:  # A changed pickle raises nearly any kind; no code of it runs.
        raise InputError(
            f"{path} cannot be read as weights",
            "it must hold tensors only, saved by torch.save(model.state_dict(), …)",
            "save the state dict of that object and try again",
        ) from None
    for wrapper in (*_WRAPPERS, *_WRAPPERS):  # one in another, too
        if isinstance(stored, Mapping) and isinstance(stored.get(wrapper), Mapping):
            stored = stored[wrapper]
    if not isinstance(stored, Mapping):
        raise InputError(
            f"{path} holds a {type(stored).__name__}",
            "it must hold a state dict, names → tensors",
            "save model.state_dict()",
        )
    return model_from_authors(stored)


def model_from_authors(state: Mapping[str, Tensor]) -> UltraLightVMUNet:
    """The paper's network from tensors under the authors' names.

    Raises:
        InputError: Tensors are missing, left over, of other shapes or types, or not finite.
    """
    tensors = {
        str(name): value
        for name, value in state.items()
        if not str(name).endswith(("total_ops", "total_params"))
    }
    # What is wrapped around the network, such as DataParallel, stands before all names.
    while len({name.partition(".")[0] for name in tensors}) == 1 and all("." in n for n in tensors):
        tensors = {name.partition(".")[2]: value for name, value in tensors.items()}
    table = authors_names(ModelSpec())
    model = UltraLightVMUNet()
    shapes = {table[ours]: value.shape for ours, value in model.state_dict().items()}
    _require_tensors(tensors, shapes, "the checkpoint")
    model.load_state_dict({ours: tensors[theirs] for ours, theirs in table.items()})
    return model.eval()


def authors_names(spec: ModelSpec) -> dict[str, str]:
    """Our parameter name → the released code's, for every parameter of the network."""
    with torch.device("meta"):
        names = UltraLightVMUNet(spec).state_dict()
    return {name: _authors_name(name) for name in names}


def _authors_name(name: str) -> str:
    name = re.sub(r"(?<=\.)\d(?=\.)", lambda found: str(int(found[0]) + 1), name)
    for ours, theirs in _THEIRS.items():
        name = re.sub(ours, theirs, name)
    return name


# Patterns of our names → the released code's, which count from 1.
_THEIRS = {
    r"^(en|de)coder\.(\d)": r"\1coder\2.0",
    r"^(e|d)\wcoder_norms\.(\d)": r"\1bn\2",
    r"^bridge\.channel\.heads\.(\d)": r"scab.catt.att\1",
    r"^bridge\.channel\.conv": "scab.catt.get_all_att",
    r"^bridge\.spatial\.conv": "scab.satt.shared_conv2d.0",
    r"^head": "final",
    r"mixer\.conv": "mamba.conv1d",
    r"mixer(\.scan)?": "mamba",
    r"project": "proj",
}
