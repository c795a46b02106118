"""A small network drawn by lot, as a run on disk and exported once for each target."""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ulvm.nn.checkpoint import WEIGHTS, save_weights
from ulvm.nn.model import UltraLightVMUNet
from ulvm.nn.targets import export_for
from ulvm.spec import DataSpec, ModelSpec, RunSpec


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder. One PVM layer, for the converters take their time over its operators."""
    run = RunSpec(
        model=ModelSpec(init="mamba", encoder=("conv",) * 5 + ("pvm",), decoder=("conv",) * 5),
        data=DataSpec(image_size=64),
    )
    torch.manual_seed(0)
    network = UltraLightVMUNet(run.model)
    with torch.no_grad():
        network.head.bias.fill_(-6)  # masks with both values
    folder = tmp_path_factory.mktemp("run")
    save_weights(folder / WEIGHTS, network, run, {"note": "drawn by lot"})
    return folder


@pytest.fixture(scope="session")
def export_once(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a target → its main file; skips where its packages are missing."""

    @functools.cache
    def export(name: str) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries, as export_for does
            target = pytest.importorskip(
                f"ulvm.nn.targets.{name}", reason=f"the extra {name} is not installed"
            )
        out = tmp_path_factory.mktemp(name) / f"net{target.SUFFIX}"
        export_for(name, source, out)
        return out

    return export
