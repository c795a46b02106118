"""Several processes, one GPU or CPU each, that train one network: ``torchrun … -m ulvm train``.

Every process draws the same weights, order and augmentation from the same seed and takes its
share of each batch, so the batch stays the recipe's. The mean of the gradients is taken in one sum
over all of them, which is part of the recorded step on GPUs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import gc
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ulvm.errors import InputError

# A process waits this long for another, which may be decoding the data or may have died.
TIMEOUT = datetime.timedelta(minutes=30)


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a run and which of them this is.

    Args:
        rank: 0 .. count - 1; rank 0 alone writes files, shows progress and validates.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    def share(self, pictures: int) -> range:
        """Which positions of a batch of ``pictures`` are this process's; maybe none."""
        each, rest = divmod(pictures, self.count)
        start = self.rank * each + min(self.rank, rest)
        return range(start, start + each + (self.rank < rest))

    def average(self, gradients: Sequence[Tensor]) -> None:
        """Put the mean over the processes in the place of each gradient, alike in all of them.

        Args:
            gradients: Of one type, on one device; in the same order in every process.
        """
        if self.count == 1:
            return
        # One sum, for a small network's gradients take less time than starting a second one.
        flat = torch.cat([each.flatten() for each in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        means = flat.split([each.numel() for each in gradients])
        torch._foreach_copy_(
            list(gradients),
            [mean.view_as(each) for mean, each in zip(means, gradients, strict=True)],
        )

    def sum(self, value: Tensor) -> Tensor:
        """The sum of every process's value, added up in place."""
        if self.count > 1:
            dist.all_reduce(value)
        return value

    @contextlib.contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let rank 0 run a block before the others do, who then find what it has cached."""
        if self.count > 1 and self.rank > 0:
            dist.barrier()
        try:
            yield
        finally:
            if self.count > 1 and self.rank == 0:
                dist.barrier()


def launched() -> Processes:
    """The processes that torchrun's environment names; one of one without torchrun."""
    return Processes(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


@contextlib.contextmanager
def join(device: torch.device) -> Iterator[Processes]:
    """Meet the other processes of this run for the length of a block.

    The block leaves no recorded step behind.

    Args:
        device: This process's; NCCL connects GPUs, Gloo CPUs.
    """
    processes = launched()
    if processes.count == 1:
        yield processes
        return
    gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if gpu else "gloo", timeout=TIMEOUT, device_id=device if gpu else None
    )
    yield processes
    # Not after an error: the others may be inside a sum, and torchrun ends them when we exit.
    dist.barrier()
    gc.collect()  # recorded sums must be gone before the connections that they use
    dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """The named device, or for ``auto`` the first of CUDA, MPS, CPU that this machine has.

    Under torchrun ``cuda`` is the GPU of the process's local rank, and ``auto`` CUDA or CPU.

    Raises:
        InputError: The machine has no such device, or torchrun cannot share it out.
    """
    several = launched().count > 1
    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() and not several else "cpu"
    if several and name not in ("cuda", "cpu"):
        raise InputError(
            f"device {name!r} was given to several processes",
            "under torchrun it must be auto, cuda or cpu",
            "choose --device auto, and the visible GPUs with CUDA_VISIBLE_DEVICES",
        )
    if several and name == "cuda":
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        if torch.device(name).type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("ulvm doesn't know it")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as problem:
        said = str(problem).splitlines()[0].split(". ")[0].rstrip(".")  # else a page, of MPS
        raise InputError(
            f"device {name!r} cannot be used ({said})",
            "it can be auto, cpu, cuda, cuda:1 or mps, where the machine has them",
            "choose --device auto, and no more processes than GPUs",
        ) from None
    return torch.device(name)


def share_devices(name: str) -> list[str]:
    """Where runs of one process each go in turn: with ``auto`` all GPUs if there are several."""
    count = torch.cuda.device_count() if name == "auto" else 0
    return [f"cuda:{index}" for index in range(count)] if count > 1 else [name]


def share_threads(processes: int) -> None:
    """Leave this process its share of the cores."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
