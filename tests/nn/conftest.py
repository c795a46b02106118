"""Tests of the half that needs torch; without it they are skipped."""

from collections.abc import Iterator

import pytest


def pytest_pycollect_makemodule() -> None:
    # In a hook, for a skip while this file itself is imported would end the session.
    pytest.importorskip("torch", reason="ulvm.nn needs torch")


@pytest.fixture(autouse=True)
def unwritten_memory_is_nan() -> Iterator[None]:
    """What is read before it was written is NaN, so that no result hides it."""
    import torch

    # With this, torch fills fresh memory; on CUDA it would also refuse some of torch's own kernels.
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    yield
    torch.use_deterministic_algorithms(False)
