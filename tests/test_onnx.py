"""ONNX Runtime stays silent: no file in the home folder, no look-up; one place imports it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ulvm

ROOT = Path(__file__).parents[1]
# Loaded before the C library, it notes whoever asks for an address or a socket.
SPY = """
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
static void note(const char *what) {
  FILE *file = fopen(getenv("LOOKUPS"), "a");
  if (file) fprintf(file, "%s\\n", what), fclose(file);
}
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
  (void)service, (void)hints, (void)found;
  note(name ? name : "?");
  return EAI_FAIL;
}
int socket(int domain, int type, int protocol) {
  (void)domain, (void)type, (void)protocol;
  note("socket");
  return -1;
}
"""
# Left alone, ONNX Runtime 1.32 looks its host up after some nine seconds.
PREDICT = """
import time
import numpy as np
import ulvm
segmenter = ulvm.load("skin", engine="onnx")
end = time.monotonic() + 12
while time.monotonic() < end:
    segmenter(np.zeros((256, 256, 3), np.uint8))
    time.sleep(0.3)
print("done")
"""
LOOK_UP = "import socket; socket.getaddrinfo('localhost', 1)"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def run_spied(code: str, home: Path) -> tuple[str, str]:
    """What the process printed, and what it looked up."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("the spy needs Linux and gcc")
    (home.parent / "spy.c").write_text(SPY)
    spy, notes = home.parent / "spy.so", home.parent / "notes"
    subprocess.run(["gcc", "-shared", "-fPIC", home.parent / "spy.c", "-o", spy], check=True)
    variables = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        env=variables | {"HOME": str(home), "LD_PRELOAD": str(spy), "LOOKUPS": str(notes)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout, notes.read_text() if notes.exists() else ""


def test_nothing_is_written_or_looked_up(home: Path) -> None:
    assert run_spied(PREDICT, home) == ("done\n", "")
    assert list(home.rglob("*")) == []


def test_the_spy_sees_a_look_up(home: Path) -> None:
    assert "localhost" in run_spied(LOOK_UP, home)[1]


def test_onnxruntime_is_imported_in_one_place() -> None:
    importing = re.compile(r"^\s*(import|from) onnxruntime\b", re.MULTILINE)
    files = [path for folder in ("src", "tests", "bench") for path in (ROOT / folder).rglob("*.py")]
    found = [path for path in files if importing.search(path.read_text("utf-8"))]
    assert found == [Path(ulvm.__file__).with_name("onnx.py")]
