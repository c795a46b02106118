"""What the benchmarks share: options, pictures, timing, where it ran, result files; GPU kernels."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ulvm import synthetic
from ulvm.files import write_atomically
from ulvm.nn.run_folder import machine
from ulvm.provenance import git_commit, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "speed"
SIZE = 256
WARM_UP = 5  # untimed runs before each block: clocks and caches settle
# Of `time_interleaved`, on a GPU.
ROUNDS = (("rounds", 5, "of all"), ("repeats", 10, "timed runs of each a round"))
PROFILED = 5  # runs in a profile
LOAD_BEFORE = round(os.getloadavg()[0], 1)
NAME = 100  # characters kept of a kernel's name; torch's own are long templates
Run = Callable[[], object]


def command_line(
    description: str | None, result: str, *numbers: tuple[str, int | list[int], str]
) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark.

    Args:
        description: What it does.
        result: The file that it writes into ``results/speed/``.
        numbers: Name, default and help of options that are numbers, or lists of them.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=RESULTS / result)
    parser.add_argument("--commit", help="to record where this folder is no git checkout")
    for name, value, words in numbers:
        nargs = "+" if isinstance(value, list) else None
        parser.add_argument(f"--{name}", type=int, nargs=nargs, default=value, help=words)
    return parser


def require_gpu() -> torch.device:
    """The current CUDA GPU; exits where there is none."""
    if not torch.cuda.is_available():
        sys.exit("this benchmark needs a CUDA GPU and a CUDA build of torch; torch sees none")
    return torch.device("cuda")


def use_float32() -> None:
    """Keep cuDNN's convolutions in float32; by default torch lets them round to TF32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def provenance(commit: str | None, *packages: str, device: str = "cpu") -> dict[str, Any]:
    """Date, commit, machine and its load before, versions of what decides the result.

    Args:
        commit: Overrides git's.
        packages: Besides torch and numpy.
        device: ``cpu`` or ``cuda``.
    """
    found = versions("torch", "numpy", *packages, *(["triton"] if device == "cuda" else []))
    if device == "cuda":
        found["cuda"] = str(torch.version.cuda)
    where = {"cores": len(os.sched_getaffinity(0)), "load_average_before": LOAD_BEFORE}
    return {
        "date": today(),
        "git_commit": commit or git_commit(),
        "machine": machine(torch.device(device)) | where,
        "versions": found,
    }


def today() -> str:
    """The date, as result files give it."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def draw_pictures(count: int, drawn: int = 64) -> tuple[Tensor, Tensor]:
    """Drawn pictures and masks, on the CPU.

    Args:
        count: How many.
        drawn: How many of them differ; time does not depend on it.

    Returns:
        uint8 (count, size, size, 3) and float32 (count, size, size), 0 or 1.
    """
    images, masks = synthetic.draw_batch(min(count, drawn), 0, (SIZE, SIZE))
    rows = np.arange(count) % drawn
    return torch.from_numpy(images[rows]), torch.from_numpy(masks[rows].astype(np.float32))


def time_interleaved(
    runs: Mapping[str, Run], rounds: int, repeats: int, wait: Run = torch.cuda.synchronize
) -> dict[str, list[float]]:
    """Milliseconds of each run, waited for each time; blocks take turns, ``rounds`` times."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            for _ in range(WARM_UP):
                run()
            wait()
            times[name] += time_block(run, repeats, wait=wait)
    return times


def time_block(
    run: Run, repeats: int, seconds: float = math.inf, *, wait: Run = lambda: None
) -> list[float]:
    """Milliseconds of so many runs, each waited for; of fewer if time is up, but at least one."""
    block: list[float] = []
    end = time.perf_counter() + seconds
    while len(block) < repeats and (not block or time.perf_counter() < end):
        start = time.perf_counter()
        run()
        wait()
        block.append((time.perf_counter() - start) * 1e3)
    return block


def time_back_to_back(run: Run, repeats: int = 20, wait: Run = torch.cuda.synchronize) -> float:
    """Milliseconds of a run when ``repeats`` follow each other without waiting."""
    run()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    wait()
    return (time.perf_counter() - start) * 1e3 / repeats


def spread(durations: list[float]) -> dict[str, float | int]:
    """Count, lowest, quartiles and highest of milliseconds."""
    q1, median, q3 = statistics.quantiles(durations, n=4, method="inclusive")
    return {
        "n": len(durations),
        "median_ms": round(median, 4),
        "min_ms": round(min(durations), 4),
        "q1_ms": round(q1, 4),
        "q3_ms": round(q3, 4),
        "max_ms": round(max(durations), 4),
    }


def show(rows: Mapping[str, Mapping[str, Any]], *names: str) -> None:
    """Print these figures of each row, if it has them."""
    for title, row in rows.items():
        print(title, *(f"{name} {row[name]:g}" for name in names if name in row), sep=", ")


def profile_kernels(run: Run) -> list[dict[str, Any]]:
    """The GPU's kernels, copies and fills in one run, longest first: name, count, microseconds."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED):
            run()
        torch.cuda.synchronize()
    return sum_kernels(
        [
            (event.name, event.time_range.elapsed_us())
            for event in profiled.events()
            if event.device_type == DeviceType.CUDA
        ],
        PROFILED,
    )


def sum_kernels(events: list[tuple[str, float]], runs: int) -> list[dict[str, Any]]:
    """One row a name from (name, microseconds) of all ``runs``, per run and longest first."""
    rows: dict[str, list[float]] = {}
    for name, duration in events:
        rows.setdefault(name.removeprefix("void ")[:NAME], []).append(duration)
    table = [
        {"name": name, "count": len(each) / runs, "us": round(sum(each) / runs, 2)}
        for name, each in rows.items()
    ]
    return sorted(table, key=lambda row: -row["us"])


def summarise_kernels(rows: list[dict[str, Any]], shown: int = 40) -> dict[str, Any]:
    """Totals of a profile and its longest kernels."""
    if not rows:
        print("the profiler saw no kernel; its counts are void", file=sys.stderr)
    return {
        "kernels": round(sum(row["count"] for row in rows)),
        "busy_us": round(sum(row["us"] for row in rows), 1),
        "per_kernel": rows[:shown],
        "others_us": round(sum(row["us"] for row in rows[shown:]), 1),
    }


def cpu_seconds(process: int) -> float:
    """Processor time that a running process has used, on Linux."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result file in one step."""
    text = json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())
