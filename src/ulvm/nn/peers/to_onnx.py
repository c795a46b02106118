"""A peer as an ONNX graph, to be timed beside ours."""

from __future__ import annotations

import onnx
import torch
from torch import Tensor, nn

from ulvm.nn.export import trace_onnx


class ImageToProbability(nn.Module):
    """A network with the sigmoid that our own graph has as well.

    Args:
        network: A peer.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 3, height, width) in 0..255 → probability (batch, 1, height, width)."""
        return torch.sigmoid(self.network(image))


def build_graph(module: ImageToProbability, size: int) -> bytes:
    """The ONNX file's content, for one picture of one size.

    Args:
        module: In evaluation mode.
        size: Height and width, a multiple of 32.

    Returns:
        A graph with input ``image``, float32 (1, 3, size, size) in 0..255, and output
        ``probability``, float32 (1, 1, size, size).
    """
    example = torch.rand(1, 3, size, size) * 255
    model = trace_onnx(module, example, "image")
    onnx.checker.check_model(model)
    return model.SerializeToString()
