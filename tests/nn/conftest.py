"""Tests of the half that needs torch; without it they are skipped."""

import pytest


def pytest_pycollect_makemodule() -> None:
    # In a hook, for a skip while this file itself is imported would end the session.
    pytest.importorskip("torch", reason="ulvm.nn needs torch")
