"""GPU work recorded once as a CUDA graph and then replayed with a single launch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ulvm.nn.kernels import compiling_ahead

_WARM_UPS = 3  # torch's documentation: libraries choose algorithms and allocate in the first ones


def record(work: Callable[[], None], changed: Sequence[Tensor]) -> Callable[[], None]:
    """Record the GPU work of a function; the returned function replays it.

    Recording leaves no trace: the trial runs before it are undone, random numbers included.
    Tensors that the work reads and writes keep their places, so change them in place only. They
    live as long as the returned function, which holds ``work``.

    Args:
        work: Launches the same kernels on the same tensors at every call, and waits for none.
        changed: Every tensor that one call leaves changed for the next, on one CUDA device.

    Source: torch's notes on CUDA graphs, "whole network capture".
    """
    before = [each.detach().clone() for each in changed]
    random = torch.cuda.get_rng_state()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for trial in range(1 + _WARM_UPS):
            with compiling_ahead() if trial == 0 else contextlib.nullcontext():
                work()
            with torch.no_grad():
                for each, value in zip(changed, before, strict=True):
                    each.copy_(value)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Only this thread's calls are checked: one of torch's own watches over sums of several GPUs.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        work()
    torch.cuda.set_rng_state(random)

    def replay(_keeps_its_tensors: object = work) -> None:
        graph.replay()

    return replay
