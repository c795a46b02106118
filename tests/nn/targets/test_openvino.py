"""OpenVINO: the graph carries its run and sums row by row."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ulvm.nn.checkpoint import load_weights
from ulvm.spec import METADATA_KEY, RunSpec

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")


def test_files_carry_the_run_and_no_paths(source: Path, export_once: Callable[[str], Path]) -> None:
    path = export_once("openvino")
    assert {each.name for each in path.parent.iterdir()} == {"net.xml", "net.bin", "net.xml.json"}
    graph = openvino.Core().read_model(path)
    metadata = json.loads(graph.get_rt_info(["framework", METADATA_KEY]).value)
    assert RunSpec.from_dict(metadata["run"]) == load_weights(source)[1]
    assert str(Path(openvino.__file__).parents[1]) not in path.read_text()


def test_no_mean_of_means_is_left_to_merge(export_once: Callable[[str], Path]) -> None:
    kinds = []
    for node in openvino.Core().read_model(export_once("openvino")).get_ops():
        if node.get_type_name() == "ReduceMean":
            kinds.append(node.input_value(0).get_node().get_type_name())
    assert "Multiply" in kinds
    assert "ReduceMean" not in kinds
