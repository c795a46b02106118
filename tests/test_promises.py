"""docs/promises.md: its tests exist, its figures are the code's, and no socket is opened."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ulvm import synthetic
from ulvm.cli import main
from ulvm.image import read_mask
from ulvm.limits import PIXELS
from ulvm.serve import MOST_CONNECTIONS, MOST_SECONDS

ROOT = Path(__file__).resolve().parents[1]
PROMISES = (ROOT / "docs" / "promises.md").read_text("utf-8")

# Python's own events, where no tracer is installed: written into a file by each process.
HOOK = """
import os, sys
def note(event, words):
    if event.startswith("socket.") and event != "socket.__new__" or (
        event == "socket.__new__" and words[1] != 1  # a Unix socket stays on the machine
    ):
        with open(os.environ["SEEN"], "a") as file:
            file.write(f"socket(AF_INET {event} {words!r}\\n")
sys.addaudithook(note)
"""
OPENS_ONE = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"
# In one process, which imports torch once.
RUN_COMMANDS = """
import shlex, sys
from ulvm.cli import main
for line in sys.argv[1:]:
    if main(shlex.split(line), standalone_mode=False):
        sys.exit(line)
"""
# Left alone, ONNX Runtime 1.32 writes into the home folder, and looks a host up after nine seconds.
RUN_BESIDE_ONNX_RUNTIME = f"""
import time
import numpy as np
import ulvm
segmenter = ulvm.load("skin", engine="onnx")
segmenter(np.zeros((256, 256, 3), np.uint8))
end = time.monotonic() + 12
{RUN_COMMANDS}
time.sleep(max(0, end - time.monotonic()))
"""
# Where both are there, both watch: strace what isn't Python too, the events also names looked up.
TRACERS = ("strace", "audit") if shutil.which("strace") else ("audit",)


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A photo, and pictures with masks and splits of them."""
    Image.fromarray(synthetic.draw_lesion(2, (90, 140)).image_rgb).save(tmp_path / "photo.png")
    synthetic.write_dataset(tmp_path / "drawn", 6, seed=5, size_hw=(64, 64))
    return tmp_path


def run_traced(words: list[str], folder: Path, tracers: Sequence[str] = TRACERS) -> list[str]:
    """The network sockets that the process and its children opened, as the tracers saw them."""
    seen = {tracer: folder / f"seen-{tracer}.txt" for tracer in tracers}
    for path in seen.values():
        path.unlink(missing_ok=True)
    environment = {**os.environ, "ULVM_CACHE": str(folder / "cache"), "HOME": str(folder)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, *words]
    if "strace" in tracers:
        trace = f"strace -f --seccomp-bpf -qq -e trace=socket -o {seen['strace']}"
        command = [*trace.split(), *command]
    if "audit" in tracers:
        (folder / "hook").mkdir(exist_ok=True)
        (folder / "hook" / "sitecustomize.py").write_text(HOOK)
        paths = [str(folder / "hook"), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        environment["SEEN"] = str(seen["audit"])
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [
        line for path in seen.values() if path.exists() for line in path.read_text().splitlines()
    ]
    return [line for line in lines if re.search(r"socket\(AF_(?!UNIX)", line)]


DATA = "--dataset folder --data drawn"
SMALL = "--set data.image_size=64 --set train.epochs=1 --set train.batch_size=2"
# One PVM layer and no bridge, for the exporter takes its time over each operator.
SMALL += " --set model.encoder=conv,conv,conv,conv,conv,pvm --set model.bridge=none"
SMALL += " --set model.decoder=conv,conv,conv,conv,conv"
SPLIT = "--split splits/fold1-of-3-seed42.json"
PLAIN = [
    "predict photo.png --overlay",
    "demo",
    f"data check {DATA}",
    f"data prepare {DATA} --size 64",
    f"data split {DATA} --folds 3 --out splits",
    "data draw --out more --count 1 --size 64",
    f"eval bundled {DATA} --out scores",
    "presets",
]
WITH_TORCH = [
    "inspect",
    f"train paper {DATA} {SPLIT} {SMALL} --out run",
    "export run --out model.onnx",
    "predict photo.png --model model.onnx",
]
WITHOUT_A_RUN = {"serve", "reproduce"}  # one serves; the other trains and scores as these do


def test_no_command_but_serve_opens_a_socket(desk: Path) -> None:
    commands = list(PLAIN)
    if shutil.which("cc"):
        commands.append("export bundled --target c --out lesion.c")
    assert run_traced(["-c", RUN_COMMANDS, *commands], desk) == []


def test_no_command_with_torch_opens_a_socket(desk: Path) -> None:
    pytest.importorskip("torch")
    split = PLAIN[4]
    assert run_traced(["-c", RUN_BESIDE_ONNX_RUNTIME, split, *WITH_TORCH], desk) == []
    assert not list(desk.rglob("*onnxruntime*"))


def test_every_command_is_traced() -> None:
    traced = {command.split()[0] for command in (*PLAIN, *WITH_TORCH)}
    assert traced | WITHOUT_A_RUN == set(main.commands)


@pytest.mark.parametrize("tracer", ["strace", "audit"])
def test_the_tracer_sees_sockets(desk: Path, tracer: str) -> None:
    """Meta-test: one in the process, and one in a child of it."""
    if tracer not in TRACERS:
        pytest.skip("strace is not installed")
    assert run_traced(["-c", OPENS_ONE], desk, [tracer])
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {OPENS_ONE!r}])"
    assert run_traced(["-c", child], desk, [tracer])


def test_a_command_that_fails_is_no_pass(desk: Path) -> None:
    """Meta-test: of several in one process."""
    for wrong in ("predict none.png", "presets --none"):
        with pytest.raises(AssertionError):
            run_traced(["-c", RUN_COMMANDS, "presets", wrong, "presets"], desk, ["audit"])


def test_predict_needs_no_network(desk: Path) -> None:
    apart = ["unshare", "--user", "--map-root-user", "--net"]
    if not shutil.which("unshare") or subprocess.run([*apart, "true"], check=False).returncode:
        pytest.skip("this system has no network namespaces, or does not allow them")
    for out, before in (("here", []), ("apart", apart)):
        words = [sys.executable, "-m", "ulvm", "predict", "photo.png", "--out", out]
        subprocess.run([*before, *words], cwd=desk, check=True, capture_output=True)
    masks = [read_mask(desk / out / "photo_mask.png") for out in ("here", "apart")]
    np.testing.assert_array_equal(masks[0], masks[1])


def test_the_wheels_hashes_are_written_beside_them(tmp_path: Path) -> None:
    """The line of the Makefile, run over a wheel that is none."""
    if shutil.which("sha256sum") is None:
        pytest.skip("sha256sum is not installed")
    rule = (ROOT / "Makefile").read_text().partition("\nwheels:")[2].partition("\n\n")[0]
    (line,) = (line.strip() for line in rule.splitlines() if "SHA256SUMS" in line)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "a.whl").write_bytes(b"wheel")
    subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    written = (tmp_path / "dist" / "SHA256SUMS").read_text()
    assert written == f"{hashlib.sha256(b'wheel').hexdigest()}  a.whl\n"


def test_the_tests_that_are_named_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PROMISES)
    assert len(named) >= 25
    assert PROMISES.count("::test_") == len(named)
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / path).read_text("utf-8"), f"{path}::{name}"
    for row in re.findall(r"^\| .* \|$", PROMISES, re.M):
        assert "::" in row or row.endswith("| tested by |"), row


def test_the_figures_are_those_of_the_code() -> None:
    assert f"{PIXELS:,} pixels" in PROMISES
    assert f"{MOST_CONNECTIONS} connections" in PROMISES
    assert f"{MOST_SECONDS:.0f} seconds" in PROMISES


def test_the_page_for_reports_says_what_it_is_not() -> None:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    for words in ("Not a medical device", "in scope", "How to report", "SHA256SUMS"):
        assert words in text
