"""Times training on this machine's CPU: the steps of ``ulvm train paper``, augmentation included.

Batches of 8 drawn pictures of 256×256. Writes ``results/speed/train_cpu.json``. Run it on an idle
machine.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import measure
from ulvm.nn.augment import Part
from ulvm.nn.epoch import draw_epoch
from ulvm.nn.step import Learner, Steps
from ulvm.presets import find_preset
from ulvm.spec import RunSpec

CPU = torch.device("cpu")


def time_steps(run: RunSpec, part: Part, count: int) -> list[float]:
    """Milliseconds of each of ``count`` steps, after one that is not counted."""
    torch.manual_seed(run.train.seed)
    steps = Steps(Learner(run, CPU), part)
    generator = torch.Generator().manual_seed(run.train.seed)
    durations: list[float] = []
    while len(durations) <= count:
        epoch = draw_epoch(part, run.train, 0, generator)
        start = time.perf_counter()
        for _ in steps.run(epoch):
            end = time.perf_counter()
            durations.append((end - start) * 1e3)
            start = end
    return durations[1 : count + 1]


def main() -> None:
    """Draw, time, write, print."""
    options = measure.command_line(__doc__, "train_cpu.json", ("steps", 40, "timed")).parse_args()
    run = find_preset("paper").run
    images, masks = measure.draw_pictures(8 * run.train.batch_size)
    part = Part(images.permute(0, 3, 1, 2).contiguous(), (masks * 255).to(torch.uint8))
    times = measure.spread(time_steps(run, part, options.steps))
    result: dict[str, Any] = {
        "what": "a step of ulvm train paper on the CPU: augmentation, forward, BCE + Dice, "
        f"backward, AdamW in float32 on {run.train.batch_size} drawn pictures of {measure.SIZE}×"
        f"{measure.SIZE}",
        **measure.provenance(options.commit),
        **times,
        "images_per_second": round(run.train.batch_size / times["median_ms"] * 1e3, 1),
    }
    measure.write_result(options.out, result)
    print(f"{result['images_per_second']} images/s")


if __name__ == "__main__":
    main()
