"""Tests of the half that needs torch; without it they are skipped."""

import os

import pytest


def pytest_pycollect_makemodule() -> None:
    # In a hook, for a skip while this file itself is imported would end the session.
    torch = pytest.importorskip("torch", reason="ulvm.nn needs torch")
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # two workers' threads would wait for each other
