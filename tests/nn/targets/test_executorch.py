"""ExecuTorch: the file carries its run, and XNNPACK runs the network."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ulvm.nn.checkpoint import load_weights
from ulvm.spec import METADATA_KEY, RunSpec

pytest.importorskip("executorch", reason="the extra executorch is not installed")


def test_file_carries_the_run(source: Path, export_once: Callable[[str], Path]) -> None:
    path = export_once("executorch")
    from executorch.runtime import Runtime  # after export_once, which silences its first import

    program = Runtime.get().load_program(path)
    (content,) = program.load_method(METADATA_KEY).execute([])
    assert RunSpec.from_dict(json.loads(content)["run"]) == load_weights(source)[1]


def test_xnnpack_runs_the_network(export_once: Callable[[str], Path]) -> None:
    assert b"XnnpackBackend" in export_once("executorch").read_bytes()
