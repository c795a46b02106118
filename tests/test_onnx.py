"""ONNX Runtime prints nothing, and one place imports it; its look-ups: test_promises.py."""

import re
import subprocess
import sys
from pathlib import Path

import ulvm

ROOT = Path(__file__).parents[1]
PREDICT = "import numpy, ulvm; ulvm.load(engine='onnx')(numpy.zeros((256, 256, 3), 'uint8'))"


def test_nothing_is_printed() -> None:
    command = [sys.executable, "-c", PREDICT]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


def test_onnxruntime_is_imported_in_one_place() -> None:
    importing = re.compile(r"^\s*(import|from) onnxruntime\b", re.MULTILINE)
    files = [path for folder in ("src", "tests", "bench") for path in (ROOT / folder).rglob("*.py")]
    found = [path for path in files if importing.search(path.read_text("utf-8"))]
    assert found == [Path(ulvm.__file__).with_name("onnx.py")]
