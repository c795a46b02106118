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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded data sets go into a folder of the test's own."""
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Nine drawn pictures with their masks."""
    from ulvm import synthetic

    synthetic.write_dataset(tmp_path / "drawn", 9, seed=5, size_hw=(96, 96))
    return tmp_path / "drawn"
