"""Times a whole training step on a GPU: our kernels against plain torch, interleaved in one run.

A step is forward, BCE + Dice, backward and AdamW of the recipe ``paper`` in float32, on a batch of
drawn pictures that is already on the GPU, recorded as a CUDA graph. Writes
``results/speed/train_step.json``: times, memory, kernels, and whether the same seed gives the same
bits twice.
"""

from __future__ import annotations

import math
import sys
import time
from typing import Any

import torch
from torch import Tensor

import measure
from measure import SIZE
from ulvm.nn.graph import record
from ulvm.nn.kernels import compiling_ahead
from ulvm.nn.kernels.device import enable
from ulvm.nn.model import normalise
from ulvm.nn.step import Learner
from ulvm.presets import find_preset

RATE = 1e-3
SEED = 0
REPEATED = 20  # steps after which two runs of one seed must have the same bits


class Step:
    """A recorded training step on one fixed batch.

    Args:
        images: float32 (batch, 3, size, size), normalised, on the GPU.
        masks: float32 (batch, size, size), 0 or 1.
        kernels: Our kernels; else plain torch.
    """

    def __init__(self, images: Tensor, masks: Tensor, *, kernels: bool) -> None:
        enable(kernels)
        torch.manual_seed(SEED)
        before = torch.cuda.memory_allocated()
        self.learner = Learner(find_preset("paper").run, images.device)
        self.loss = torch.zeros((), device=images.device)
        rate, pull = torch.tensor([RATE, 1.0], device=images.device)

        def work() -> None:
            loss = self.learner.loss(images, masks)
            self.learner.update(loss, rate, pull)
            self.loss.copy_(loss.detach())

        start = time.perf_counter()
        with compiling_ahead():  # side by side, not each at its first launch
            self.learner.loss(images, masks).backward()
        self.learner.optimizer.zero_grad()
        work()
        self.first_loss = float(self.loss)
        self.first_step_s = time.perf_counter() - start
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        self.peak_bytes = torch.cuda.max_memory_allocated() - before
        self.replay = record(work, [*self.learner.tensors(), self.loss])

    def weights(self) -> list[Tensor]:
        """A copy of the network's parameters."""
        return [each.detach().clone() for each in self.learner.model.parameters()]


def gives_same_bits(images: Tensor, masks: Tensor) -> bool:
    """Whether some steps from one seed lead to the same bits of the weights twice."""
    ends = []
    for _ in range(2):
        step = Step(images, masks, kernels=True)
        start = step.weights()
        for _ in range(REPEATED):
            step.replay()
        ends.append(step.weights())
        moved = any(not torch.equal(*pair) for pair in zip(start, ends[-1], strict=True))
        assert moved, "the steps changed no weight"
    return all(torch.equal(*pair) for pair in zip(*ends, strict=True))


def measure_step(step: Step, durations: list[float]) -> dict[str, Any]:
    """All figures of one step."""
    last_loss = float(step.loss)
    assert math.isfinite(last_loss), f"the loss became {last_loss}"
    return {
        **measure.spread(durations),
        "back_to_back_ms": round(measure.time_back_to_back(step.replay), 4),
        "peak_mib": round(step.peak_bytes / 2**20, 1),
        "first_step_s": round(step.first_step_s, 2),
        "first_loss": step.first_loss,
        "last_loss": last_loss,
        **measure.summarise_kernels(measure.profile_kernels(step.replay)),
    }


def main() -> None:
    """Record, time, write, print."""
    parser = measure.command_line(
        __doc__, "train_step.json", ("batches", [8, 64], "pictures"), *measure.ROUNDS
    )
    options = parser.parse_args()
    device = measure.require_gpu()
    measure.use_float32()

    batches: dict[str, Any] = {}
    for batch in options.batches:
        print(f"batch {batch}", file=sys.stderr)
        pictures, masks = (each.to(device) for each in measure.draw_pictures(batch))
        images = normalise(pictures.permute(0, 3, 1, 2))
        same_bits = gives_same_bits(images, masks)
        steps = {
            "ours": Step(images, masks, kernels=True),
            "plain": Step(images, masks, kernels=False),
        }
        replays = {name: step.replay for name, step in steps.items()}
        times = measure.time_interleaved(replays, options.rounds, options.repeats)
        row = {name: measure_step(step, times[name]) for name, step in steps.items()}
        row["same_bits"] = same_bits
        batches[str(batch)] = row
    result = {
        "what": "forward, BCE + Dice, backward, AdamW in float32 (no TF32) on one batch of drawn "
        f"pictures of {SIZE}×{SIZE} on the GPU, one CUDA graph, each replay waited for; "
        f"ours and plain torch in {options.rounds} interleaved rounds of {options.repeats}; "
        "memory: the most that one eager step has allocated, with weights, moments, gradients "
        "and activations, without the batch; same_bits: our weights after "
        f"{REPEATED} steps from one seed, twice",
        **measure.provenance(options.commit, device="cuda"),
        "batches": batches,
    }
    measure.write_result(options.out, result)
    for batch, row in batches.items():
        print(f"\nbatch {batch}; same bits twice: {row['same_bits']}")
        shown = {name: row[name] for name in steps}
        measure.show(shown, "median_ms", "q1_ms", "q3_ms", "back_to_back_ms", "peak_mib", "kernels")
        for kernel in row["ours"]["per_kernel"]:
            print(f"{kernel['us']:8.1f} µs {kernel['count']:4g} × {kernel['name']}")


if __name__ == "__main__":
    main()
