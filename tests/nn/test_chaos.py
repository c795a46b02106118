"""The short form of `make chaos`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
def test_training_survives_kills_full_disks_and_power_cuts() -> None:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("chaos.py"), "--short"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trials" in done.stdout
