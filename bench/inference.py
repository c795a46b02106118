"""Times the network on a GPU in three precisions, and says whether their masks agree.

Timed is what the released model computes: normalised pictures on the GPU → probability, as a CUDA
graph; each batch size has all precisions and plain torch interleaved. With ``--data`` the masks of
the ISIC 2017 ``paper-permutation`` test pictures in each precision are compared with those in
float32; the true masks are not looked at, so nothing is scored. Writes
``results/speed/inference.json``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import measure
from measure import SIZE
from ulvm import datasets, splits
from ulvm.image import BoolArray, Uint8Array
from ulvm.metrics import confusion, dice, pooled
from ulvm.models import find_weights
from ulvm.nn.checkpoint import load_weights
from ulvm.nn.graph import record
from ulvm.nn.kernels.device import enable
from ulvm.nn.model import (
    PictureToProbability,
    UltraLightVMUNet,
    normalise,
    probability_of_logits,
)
from ulvm.nn.validate import lesion_mask

WEIGHTS = find_weights("isic2017")
PRECISIONS = ("float32", "bfloat16", "float16")
PLAIN = "float32, plain torch"
SPLIT = "paper-permutation"
Function = Callable[[Tensor], Tensor]


def in_precision(function: Function, precision: str, *, kernels: bool) -> Function:
    """The function computed in this precision, with our kernels or without."""
    dtype = getattr(torch, precision)

    @torch.no_grad()
    def run(images: Tensor) -> Tensor:
        enable(kernels)
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return function(images)

    return run


def time_batch(network: UltraLightVMUNet, batch: int, rounds: int, repeats: int) -> dict[str, Any]:
    """A summary for each precision, and for plain torch in float32."""
    device = next(network.parameters()).device
    pictures = measure.draw_pictures(batch)[0].to(device)
    images = normalise(pictures.permute(0, 3, 1, 2))
    images = images.contiguous(memory_format=torch.channels_last)

    def probability(images: Tensor) -> Tensor:
        return probability_of_logits(network(images))

    def recorded(precision: str, *, kernels: bool) -> Callable[[], None]:
        run = in_precision(probability, precision, kernels=kernels)

        def work() -> None:
            run(images)

        return record(work, [])

    replays = {name: recorded(name, kernels=True) for name in PRECISIONS}
    replays[PLAIN] = recorded("float32", kernels=False)
    times = measure.time_interleaved(replays, rounds, repeats)
    rows: dict[str, Any] = {}
    for name, replay in replays.items():
        back_to_back_ms = measure.time_back_to_back(replay)
        rows[name] = {
            **measure.spread(times[name]),
            "back_to_back_ms": round(back_to_back_ms, 4),
            "images_per_second": round(batch / back_to_back_ms * 1e3),
            **measure.summarise_kernels(measure.profile_kernels(replay)),
        }
    return rows


def predict_masks(
    network: UltraLightVMUNet, images_rgb: Uint8Array, precision: str, threshold: float
) -> BoolArray:
    """uint8 (pictures, size, size, 3) → bool (pictures, size, size)."""
    device = next(network.parameters()).device
    run = in_precision(PictureToProbability(network), precision, kernels=True)
    return np.concatenate(
        [
            lesion_mask(run(images.to(device)), threshold).cpu().numpy()
            for images in torch.from_numpy(images_rgb).split(50)
        ]
    )


def agreement(masks: BoolArray, reference: BoolArray, ids: list[str]) -> dict[str, Any]:
    """Dice between two sets of masks, pooled and of the picture where it is lowest."""
    counts = confusion(masks, reference)
    each = dice(counts)
    lowest = int(each.argmin())
    return {
        "pooled_dice": float(pooled(dice)(counts)),
        "lowest_dice": float(each[lowest]),
        "lowest_id": ids[lowest],
        "changed_pixels": int((masks != reference).sum()),
    }


def compare(network: UltraLightVMUNet, data_dir: Path, threshold: float) -> dict[str, Any]:
    """Agreement of each lower precision with float32 on the test pictures."""
    decoded = datasets.decode("isic2017", data_dir, size=SIZE)
    split = splits.load_split("isic2017", SPLIT).resolve(decoded.pairs)
    ids = list(split.ids("test"))
    images_rgb = np.asarray(decoded.images[decoded.indices(ids)])
    masks = {name: predict_masks(network, images_rgb, name, threshold) for name in PRECISIONS}
    rows = {name: agreement(masks[name], masks["float32"], ids) for name in PRECISIONS[1:]}
    return {"split": SPLIT, "hash": split.hash, "pictures": len(ids), "precisions": rows}


def main() -> None:
    """Record, time, compare, write, print."""
    parser = measure.command_line(
        __doc__, "inference.json", ("batches", [1, 64, 256], "pictures"), *measure.ROUNDS
    )
    parser.add_argument("--data", type=Path, help="folder of ISIC 2017, to compare masks")
    options = parser.parse_args()
    device = measure.require_gpu()
    measure.use_float32()

    network, run, _ = load_weights(WEIGHTS, str(device))
    if options.data:
        datasets.decode("isic2017", options.data, size=SIZE)  # found again below
    batches: dict[str, Any] = {}
    for batch in options.batches:
        print(f"batch {batch}", file=sys.stderr)
        batches[str(batch)] = time_batch(network, batch, options.rounds, options.repeats)
    result = {
        "what": f"normalised drawn pictures of {SIZE}×{SIZE} on the GPU → probability, one "
        "CUDA graph, each replay waited for; lower precisions by autocast (float32 without TF32); "
        f"{options.rounds} interleaved rounds of {options.repeats}; images_per_second "
        "from replays back to back",
        **measure.provenance(options.commit, device="cuda"),
        "batches": batches,
        "agreement": compare(network, options.data, run.threshold) if options.data else None,
    }
    measure.write_result(options.out, result)
    for batch, rows in batches.items():
        print(f"\nbatch {batch}")
        measure.show(rows, "median_ms", "q1_ms", "q3_ms", "images_per_second", "kernels", "busy_us")
    print(result["agreement"])


if __name__ == "__main__":
    main()
