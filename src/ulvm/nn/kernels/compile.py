"""Compiling many kernels side by side, before the first of them runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from unittest import mock

import torch
from triton.runtime.jit import KernelInterface

# Its compiler imports this when it first runs: two threads at once could wait for each other.
with contextlib.suppress(ImportError):  # older than 3.4
    import triton.experimental.gluon.language  # noqa: F401


@contextlib.contextmanager
def compiling_ahead() -> Iterator[None]:
    """Kernels launched inside are compiled, not run: their results are whatever memory held.

    Compiled one after the other at their first launches, those of a training step take a minute;
    Triton keeps the results on disk (``TRITON_CACHE_DIR``) for later runs.
    """
    device = torch.cuda.current_device()
    compiled: list[Future[Any]] = []
    with ThreadPoolExecutor(initializer=torch.cuda.set_device, initargs=(device,)) as pool:

        def compile_only(kernel: Any, grid: Any) -> Callable[..., None]:
            def submit(*args: Any, **options: Any) -> None:
                compiled.append(pool.submit(kernel.run, *args, grid=grid, warmup=True, **options))

            return submit

        with mock.patch.object(KernelInterface, "__getitem__", compile_only):
            yield
        for each in compiled:
            each.result()
