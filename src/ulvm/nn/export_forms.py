"""Forms of layers that only exported files have; the network itself stays as ``nn/model.py``."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)


class RowGroupNorm(nn.GroupNorm):
    """GroupNorm that sums row by row.

    Differs: only in the order of the sums. ONNX Runtime's fused normalisation adds up a whole
    group in one float32 and is 3e-4 off on pictures of one value; rows first gives 1e-5.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(batch, channels, height, width) → the same."""
        rows = features.unflatten(1, (self.num_groups, -1)).flatten(2, 3)
        rows = rows - rows.mean(3, keepdim=True).mean(2, keepdim=True)
        variance = (rows * rows).mean(3, keepdim=True).mean(2, keepdim=True)
        normal = (rows / torch.sqrt(variance + self.eps)).view_as(features)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


def for_export(module: _Module) -> _Module:
    """A copy whose layers have the forms above; it shares no tensor with the module."""
    module = copy.deepcopy(module)
    for part in module.modules():
        if type(part) is nn.GroupNorm:
            part.__class__ = RowGroupNorm
    return module


def export_program(module: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    """The module with these forms as ``torch.export`` writes it, for one shape of its input."""
    with torch.no_grad():
        return torch.export.export(for_export(module), (example,))
