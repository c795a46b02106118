"""ExecuTorch: one ``.pte`` file whose network runs in XNNPACK on a phone's CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower
from executorch.runtime import Runtime

from ulvm.nn.export_forms import export_program
from ulvm.nn.model import PictureToProbability
from ulvm.spec import FORMAT, METADATA_KEY, RunSpec

SUFFIX = ".pte"


def convert(module: PictureToProbability, run: RunSpec, folder: Path) -> Path:
    """Write the network as method ``forward``, and the run as method ``ulvm``."""
    size = run.data.image_size
    example = torch.zeros(1, size, size, run.model.in_channels, dtype=torch.uint8)
    lowered = to_edge_transform_and_lower(
        export_program(module, example),
        partitioner=[XnnpackPartitioner()],
        constant_methods={METADATA_KEY: json.dumps({"format": FORMAT, "run": run.to_dict()})},
    )
    path = folder / f"model{SUFFIX}"
    path.write_bytes(lowered.to_executorch().buffer)
    return path


def predict(path: Path, image_rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Probability from what ``convert`` wrote, in ExecuTorch's runtime for Python."""
    method = Runtime.get().load_program(path).load_method("forward")
    images = torch.from_numpy(image_rgb).split(1)
    return np.concatenate([method.execute([image])[0].numpy().copy() for image in images])
