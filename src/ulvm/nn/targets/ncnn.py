"""ncnn: pnnx translates the traced network, ncnn's own package runs it here."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import ncnn
import numpy as np
import numpy.typing as npt
import pnnx
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ulvm.errors import InputError
from ulvm.nn.export_forms import export_program
from ulvm.nn.model import PictureToProbability
from ulvm.spec import RunSpec

SUFFIX = ".ncnn.param"
WEIGHTS_SUFFIX = ".ncnn.bin"
INPUT, OUTPUT = "in0", "out0"  # as pnnx names them


class PlanesToProbability(nn.Module):
    """The same network for ncnn, which has neither uint8 nor a batch.

    Args:
        module: The network with uint8 pictures as input.
    """

    def __init__(self, module: PictureToProbability) -> None:
        super().__init__()
        self.module = module

    def forward(self, planes: Tensor) -> Tensor:
        """float32 (1, channels, height, width), 0..255 → (1, classes, height, width)."""
        return self.module(planes.permute(0, 2, 3, 1))


def convert(module: PictureToProbability, run: RunSpec, folder: Path) -> Path:
    """Write the network as ``model.ncnn.param`` and ``model.ncnn.bin``.

    The blob ``in0`` is float32 (channels, size, size), RGB in 0..255, as ncnn's
    ``Mat::from_pixels`` gives it; the blob ``out0`` is float32 (classes, size, size).

    Raises:
        InputError: pnnx writes no network, or ncnn cannot load what it wrote.
    """
    size = run.data.image_size
    example = torch.zeros(1, run.model.in_channels, size, size)
    shape = ",".join(map(str, example.shape))
    path = folder / f"model{SUFFIX}"
    with tempfile.TemporaryDirectory() as scratch:  # pnnx writes a dozen files beside its input
        traced = Path(scratch) / "traced.pt"
        _trace(PlanesToProbability(module).eval(), example).save(str(traced))
        words = [f"inputshape=[{shape}]f32", "fp16=0"]
        words += [f"ncnnparam={path}", f"ncnnbin={_weights_of(path)}"]
        done = subprocess.run(
            [pnnx.EXEC_PATH, traced, *words], cwd=scratch, capture_output=True, text=True
        )
    if done.returncode or not path.is_file():
        raise InputError(
            f"the converter pnnx {pnnx.__version__} stopped with status {done.returncode}",
            "it may not know an operator of this network",
            f"nothing was written. Its last words: {(done.stdout + done.stderr)[-300:].strip()}",
        )
    _load(path)
    return path


def predict(path: Path, image_rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Probability from what ``convert`` wrote, in single precision on the CPU."""
    network = _load(path)
    return np.stack([_predict_one(network, image) for image in image_rgb])


def _load(path: Path) -> Any:
    network = ncnn.Net()
    options = network.opt
    options.use_vulkan_compute = False
    # Half precision, which ncnn takes where the processor has it, moves the masks.
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.use_bf16_storage = False
    if network.load_param(str(path)) or network.load_model(str(_weights_of(path))):
        raise InputError(
            f"the runtime ncnn {ncnn.__version__} cannot load what pnnx {pnnx.__version__} wrote",
            "it may not have an operator of this network",
            "nothing was written. Try other versions of the two, or another target",
        )
    return network


def _predict_one(network: Any, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    planes = np.array(image.transpose(2, 0, 1), np.float32, order="C")
    extractor = network.create_extractor()
    # A copy, for Mat borrows the array and ncnn crashes on one that is not its own.
    extractor.input(INPUT, ncnn.Mat(planes).clone())
    _, probability = extractor.extract(OUTPUT)
    return np.array(probability)


def _weights_of(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(SUFFIX) + WEIGHTS_SUFFIX)


def _trace(module: nn.Module, example: Tensor) -> Any:
    """TorchScript, which pnnx reads, of the module's exported form."""
    with torch.no_grad():
        exported = export_program(module, example).module()
        with _SpellOut():
            return torch.jit.trace(exported, example, check_trace=False)


class _SpellOut(TorchFunctionMode):
    """Writes operators that pnnx or ncnn lacks as others that they have."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _SPELT_OUT.get(function, function)(*args, **(kwargs or {}))


aten = torch.ops.aten
_SPELT_OUT = {
    aten.addcmul.default: lambda x, a, b: x + a * b,
    aten.alias.default: lambda x: x,
    aten.clamp_min.default: lambda x, low: torch.clamp(x, min=low),
    aten.expand_as.default: lambda x, other: x.expand([int(size) for size in other.shape]),
    # On x86 ncnn takes an approximation of 12 bits.
    aten.reciprocal.default: lambda x: torch.ones_like(x) / x,
    aten.view_as.default: lambda x, other: x.reshape([int(size) for size in other.shape]),
}
