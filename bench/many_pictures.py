"""Times ``ulvm predict --ray`` on drawn pictures, and kills a worker meanwhile.

A cluster of two processes on this machine, and before and after it one process without Ray that
does the same work. Rates are pictures for each second of processor time, which other programs on
the machine change little, and of wall time. Checks that each picture has one row and one mask, and
the right one. Writes ``results/speed/many_pictures.json``. Linux only.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from measure import command_line, cpu_seconds, provenance, write_result
from ulvm.image import encode_png
from ulvm.segmenter import load
from ulvm.synthetic import draw_lesion
from ulvm.use.ray_data import BLOCK, PART, Address, Worker, find_addresses, predict_on_ray

PICTURE_HW = (450, 600)  # as HAM10000's
DRAWN = 20  # different pictures; the others are links to them
WORKERS = 2


def draw_folder(folder: Path, count: int) -> dict[int, bytes]:
    """So many pictures in folders of a thousand; the right mask of each that differs."""
    masks = {}
    segmenter = load()
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if number >= DRAWN:
            older = number % DRAWN
            path.hardlink_to(folder / "000" / f"{older:06}.jpg")
            continue
        Image.fromarray(draw_lesion(number, PICTURE_HW).image_rgb).save(path, quality=90)
        masks[number] = bytes(encode_png(segmenter(Image.open(path).convert("RGB")).mask))
    return masks


def run_one(addresses: list[Address], out: str) -> dict[str, float]:
    """Seconds of the work in this process, without Ray."""
    worker = Worker(out, None, None, None)
    parts = [addresses[first : first + BLOCK] for first in range(0, len(addresses), BLOCK)]
    wall, used = time.perf_counter(), time.process_time()
    for part in parts:
        worker(
            {
                "source": np.array([each.source for each in part]),
                "output": np.array([each.output for each in part]),
            }
        )
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - used}


def time_one(addresses: list[Address], out: Path) -> dict[str, Any]:
    """The work in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return rates(len(addresses), pool.submit(run_one, addresses, str(out)).result(), 1)


def rates(pictures: int, seconds: dict[str, float], processes: int) -> dict[str, Any]:
    """Figures of a result file."""
    return {
        "pictures": pictures,
        **{name: round(value, 1) for name, value in seconds.items()},
        "per_cpu_second": round(pictures / seconds["cpu_s"], 1),
        "per_second_and_process": round(pictures / seconds["wall_s"] / processes, 1),
    }


def ray_processes() -> dict[int, str]:
    """The processes below this one, by their names."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            names[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {each for each, parent in parents.items() if parent in found} - found:
        found |= more
    return {each: names[each] for each in found if each in names}


class Clock:
    """Processor time of this process and all below it; what an ended one used is kept."""

    def __init__(self) -> None:
        self.used: dict[int, float] = {}

    def read(self) -> float:
        """Seconds until now."""
        for process in ray_processes():
            with contextlib.suppress(OSError):  # it has ended
                self.used[process] = cpu_seconds(process)
        return sum(self.used.values())


def is_worker(name: str) -> bool:
    """Whether Ray calls a process that is one of its actors."""
    return name.startswith("ray::") and "Map" in name


def time_ray(addresses: list[Address], out: Path) -> dict[str, Any]:
    """The work on a cluster, a worker killed after a third; from the first rows on."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    clock = Clock()
    start = time.perf_counter()
    first: dict[str, float] = {}
    killed = 0
    for number, _ in enumerate(predict_on_ray(addresses, str(out))):
        if not first:
            first = {
                "startup_s": time.perf_counter() - start,
                "wall": time.perf_counter(),
                "cpu": clock.read(),
            }
        if number == len(addresses) // 3:
            clock.read()
            killed = min(each for each, name in ray_processes().items() if is_worker(name))
            os.kill(killed, signal.SIGKILL)
    seconds = {
        "wall_s": time.perf_counter() - first["wall"],
        "cpu_s": clock.read() - first["cpu"],
    }
    ray.shutdown()
    counted = len(addresses) - PART  # those of the first rows were before
    return {
        "startup_s": round(first["startup_s"], 1),
        "killed_workers": int(killed > 0),
        **rates(counted, seconds, WORKERS),
    }


def check(out: Path, addresses: list[Address], masks: dict[int, bytes]) -> None:
    """Exits unless each picture has one row and its mask."""
    rows = [
        json.loads(line)
        for path in (out / "rows").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    if sorted(row["source"] for row in rows) != [each.source for each in addresses]:
        sys.exit(f"{len(rows)} rows for {len(addresses)} pictures")
    for row in rows:
        number = int(Path(row["source"]).stem) % DRAWN
        if Path(row["mask_path"]).read_bytes() != masks[number]:
            sys.exit(f"{row['mask_path']} is not the mask of its picture")
    if len(list(out.rglob("*_mask.png"))) != len(addresses):
        sys.exit("there are masks that no row names")


def main() -> None:
    """Draw, time, check, write, print."""
    numbers = ("pictures", 20_000, "in all"), ("alone", 2_000, "for one process, each time")
    options = command_line(__doc__, "many_pictures.json", *numbers).parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary, "pictures"), Path(temporary, "out")
        masks = draw_folder(folder, options.pictures)
        addresses = find_addresses([str(folder)])
        some = addresses[: options.alone]
        before = time_one(some, Path(temporary, "before"))
        on_ray = time_ray(addresses, out)
        after = time_one(some, Path(temporary, "after"))
        check(out, addresses, masks)
    alone = (before["per_cpu_second"] + after["per_cpu_second"]) / 2
    result: dict[str, Any] = {
        "what": "`ulvm predict --ray` on a local cluster of two processes, a worker killed, beside "
        "one process without Ray; drawn JPEG pictures; processor time of all of Ray's processes, "
        "raylet and driver too, once the first rows are there",
        **provenance(options.commit, "ray"),
        "size_hw": list(PICTURE_HW),
        "pictures": options.pictures,
        "each_once": True,  # or nothing is written
        "alone": [before, after],
        "ray": on_ray,
        "rate_beside_alone": round(on_ray["per_cpu_second"] / alone, 3),
    }
    write_result(options.out, result)
    print(
        f"{options.pictures} pictures, each once; {on_ray['per_cpu_second']} for a processor's "
        f"second, alone {alone:.1f}: {result['rate_beside_alone']:.2f} of it; {options.out}"
    )


if __name__ == "__main__":
    main()
