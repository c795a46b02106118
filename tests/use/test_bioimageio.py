"""A folder for bioimage.io, judged by `bioimageio test`, without the network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import ulvm
from ulvm.cli import main
from ulvm.models import find_weights
from ulvm.spec import DataSpec, ModelSpec, RunSpec
from ulvm.use import NOTICE

pytest.importorskip("torch", reason="needs the extra [train]")
TOOL = Path(sys.executable).with_name("bioimageio")
needs_tool = pytest.mark.skipif(not TOOL.exists(), reason="needs bioimageio.core")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model where the tool judges it; else a small one, which is exported sooner."""
    if TOOL.exists():
        return find_weights("skin")
    import torch

    from ulvm.nn.checkpoint import save_weights
    from ulvm.nn.networks import build_network

    model = ModelSpec(encoder=("conv",) * 5 + ("pvm",), decoder=("conv",) * 5, bridge="none")
    run = RunSpec(model=model, data=DataSpec(image_size=64))
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "weights.safetensors"
    save_weights(path, build_network(model), run, {})
    return path


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bioimageio") / "skin"
    words = ["export", str(source), "--target", "bioimageio", "--out", str(out)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    return out


def judge(folder: Path, cache: Path) -> dict[str, object]:
    """What `bioimageio test` says, with every address of the web out of reach."""
    report = cache / "report.json"
    environment = {
        **os.environ,
        "BIOIMAGEIO_CACHE_PATH": str(cache),
        "https_proxy": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
    }
    command = [TOOL, "test", folder, "--summary", json.dumps([str(report)])]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=500
    )
    assert report.exists(), (done.stdout + done.stderr)[-2000:]
    verdict: dict[str, object] = json.loads(report.read_text())
    return verdict


@needs_tool
def test_the_tool_passes_the_folder(folder: Path, tmp_path: Path) -> None:
    verdict = judge(folder, tmp_path)
    assert verdict["status"] == "passed", json.dumps(verdict)[:2000]
    details = str(verdict["details"])
    assert "torchscript" in details
    assert "onnx" in details


@needs_tool
def test_the_tool_can_fail(folder: Path, tmp_path: Path) -> None:
    """Meta-test: another output than the network's, and a description that is none."""
    wrong = tmp_path / "wrong"
    shutil.copytree(folder, wrong)
    output = np.load(wrong / "test_output.npy")
    np.save(wrong / "test_output.npy", 1 - output)
    description = json.loads((wrong / "rdf.yaml").read_text())
    del description["outputs"][0]["test_tensor"]["sha256"]
    (wrong / "rdf.yaml").write_text(json.dumps(description))
    assert judge(wrong, tmp_path)["status"] != "passed"


def test_what_the_folder_says(folder: Path, source: Path) -> None:
    description = json.loads((folder / "rdf.yaml").read_text())
    assert NOTICE in description["description"]
    assert NOTICE in (folder / "README.md").read_text()
    planes, output = (np.load(folder / f"test_{end}.npy") for end in ("input", "output"))
    model = ulvm.load(source)
    size = model.spec.data.image_size
    assert planes.shape == (1, 3, size, size)
    picture = planes[0].transpose(1, 2, 0).astype(np.uint8)
    expected = model.probability(picture[None])
    np.testing.assert_allclose(output, expected, atol=1e-4)


def test_folders_and_files_are_not_taken_for_one_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["export", "skin", "--target", "bioimageio", "--out", str(tmp_path / "file")]
    done = CliRunner().invoke(main, words)
    assert done.exit_code != 0
    assert "writes a folder" in done.output
    done = CliRunner().invoke(main, ["export", "skin", "--out", str(tmp_path)])
    assert done.exit_code != 0
    assert "is a folder" in done.output
