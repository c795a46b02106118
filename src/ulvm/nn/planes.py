"""The network as other people's frameworks call it: planes of float32 in, probability out."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from torch import Tensor, nn

from ulvm.image import FloatArray
from ulvm.nn.export_forms import for_export
from ulvm.nn.model import normalise, probability_of_logits
from ulvm.spec import RunSpec
from ulvm.synthetic import probe_images


class PlanesToProbability(nn.Module):
    """The network with everything around it: float32 planes in, probability out.

    Args:
        network: The network in evaluation mode.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(batch, channels, height, width), any range → float32 (batch, classes, height, width)."""
        return probability_of_logits(self.network(normalise(image)))


def build_torchscript(module: PlanesToProbability, run: RunSpec) -> tuple[bytes, float]:
    """A TorchScript file of one size of picture and any batch.

    Args:
        module: In evaluation mode, on the CPU.
        run: That made it.

    Returns:
        The file, and the largest difference of its probability from the module's.
    """
    with warnings.catch_warnings(), torch.no_grad():
        # torch says that sizes become constants, which they shall, and prefers its newer formats.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, _example(run), check_trace=False)
        content = io.BytesIO()
        torch.jit.save(traced, content)
        loaded = torch.jit.load(io.BytesIO(content.getvalue()))
        worst = 0.0
        for images in probe_images(run.data.image_size, run.model.in_channels):
            planes = torch.from_numpy(images).permute(0, 3, 1, 2).float()
            difference = (loaded(planes) - module(planes)).abs().max().item()
            worst = float(np.maximum(worst, difference))  # keeps a nan
    return content.getvalue(), worst


def build_onnx_of_planes(module: PlanesToProbability, run: RunSpec) -> tuple[bytes, float]:
    """The same as an ONNX file: ``image`` in, ``probability`` out, its batch free.

    Args:
        module: In evaluation mode, on the CPU.
        run: That made it.

    Returns:
        The file, and the largest difference of its probability from the module's.
    """
    # Here, for a MONAI bundle needs neither package.
    from ulvm.nn.export import trace_onnx
    from ulvm.onnx import onnxruntime

    model = trace_onnx(for_export(module), _example(run), "image", free_batch=True)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = 0.0
    for images in probe_images(run.data.image_size, run.model.in_channels):
        planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2), dtype=np.float32)
        with torch.no_grad():
            expected = module(torch.from_numpy(planes)).numpy()
        (found,) = session.run(["probability"], {"image": planes})
        worst = float(np.maximum(worst, np.abs(found - expected).max()))
    return content, worst


def state_dict_file(module: PlanesToProbability) -> bytes:
    """The network's tensors as ``torch.save`` writes a state dict."""
    content = io.BytesIO()
    torch.save(module.network.state_dict(), content)
    return content.getvalue()


def probability_of_planes(module: PlanesToProbability, planes: FloatArray) -> FloatArray:
    """float32 (batch, channels, height, width) → float32 (batch, classes, height, width)."""
    with torch.no_grad():
        found: FloatArray = module(torch.from_numpy(planes)).numpy()
    return found


def _example(run: RunSpec) -> Tensor:
    size = run.data.image_size
    planes = torch.randint(0, 256, (2, run.model.in_channels, size, size))
    return planes.to(torch.float32)
