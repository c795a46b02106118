"""Side by side, each worker has one thread: two workers' threads would wait for each other."""

import os
from pathlib import Path

import pytest

# Here, before numpy, torch or a test's own process reads them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training run ends with an empty picture of its curves: to draw it takes as long as to
    train."""

    def write_nothing(out_dir: Path, history: object) -> None:
        (out_dir / "curves.png").write_bytes(b"")

    monkeypatch.setattr("ulvm.nn.train.draw_curves", write_nothing)
