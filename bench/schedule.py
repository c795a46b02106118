"""Times the command ``ulvm train paper`` on ISIC 2017, from its start to its end, twice.

The first run finds no compiled kernels, the second those of the first; both find the pictures
decoded, which happens once for a data set and is not counted. Writes
``results/speed/schedule.json``. Nothing is scored on the test part.
"""

from __future__ import annotations

import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import measure
from ulvm import datasets
from ulvm.nn.run_folder import RUN

SPLIT = "paper-permutation"
Numbers = dict[str, float]  # by name


def time_command(command: list[str], out_dir: Path, environment: Mapping[str, str]) -> Numbers:
    """Run a training command; its wall time and the part of it before the first epoch began.

    Args:
        command: Trains into ``out_dir``.
        out_dir: The run's folder, new; ``run.json`` appears there when all is ready to start.
        environment: Variables of the command.
    """
    log = out_dir.with_suffix(".log")
    sign = out_dir / RUN
    start_up = None
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        while process.poll() is None:
            if start_up is None and sign.exists():
                start_up = time.perf_counter() - start
            time.sleep(0.01)
        wall = time.perf_counter() - start
    if process.returncode or start_up is None:
        sys.exit(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-3000:]}")
    return {"wall_s": wall, "start_up_s": start_up}


def arguments(data_dir: Path | str, out_dir: Path | str, epochs: int) -> list[str]:
    """What follows ``ulvm``."""
    command = ["train", "paper", "--dataset", "isic2017", "--data", str(data_dir)]
    command += ["--split", SPLIT, "--device", "cuda", "--out", str(out_dir)]
    return [*command, "--set", f"train.epochs={epochs}"]


def read_metrics(path: Path) -> list[Numbers]:
    """The rows of ``metrics.csv``."""
    with path.open(newline="") as file:
        return [{name: float(text) for name, text in row.items()} for row in csv.DictReader(file)]


def summarise(times: Numbers, rows: list[Numbers]) -> dict[str, Any]:
    """Where the wall time went, and what the training reached on the validation part."""
    first = rows[0]["seconds"]
    best = min(rows, key=lambda row: row["validation_loss"])
    spent = {
        **times,
        "first_epoch_s": first,
        "rest_s": times["wall_s"] - times["start_up_s"] - first,
        "epoch_median_s": statistics.median(row["seconds"] for row in rows),
        "images_per_second": statistics.median(row["images_per_second"] for row in rows),
    }
    return {
        **{name: round(value, 3) for name, value in spent.items()},
        "last": _validation(rows[-1]),
        "best": _validation(best),
    }


def _validation(row: Numbers) -> dict[str, float | int]:
    return {
        "epoch": int(row["epoch"]),
        "validation_loss": row["validation_loss"],
        "validation_dsc_pooled": row["validation_dsc_pooled"],
    }


def main() -> None:
    """Decode, train twice, write, print."""
    parser = measure.command_line(__doc__, "schedule.json", ("epochs", 250, "of each run"))
    parser.add_argument("--data", type=Path, required=True, help="folder of ISIC 2017")
    parser.add_argument("--runs", type=Path, help="new folder that keeps both runs")
    options = parser.parse_args()
    measure.require_gpu()

    datasets.decode("isic2017", options.data, size=measure.SIZE)
    runs: dict[str, Any] = {}
    losses = []
    with tempfile.TemporaryDirectory() as temporary:
        caches = {"TRITON_CACHE_DIR": f"{temporary}/triton", "CUDA_CACHE_PATH": f"{temporary}/cuda"}
        folder = options.runs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("cold", "warm"):
            print(f"{options.epochs} epochs, {name}", file=sys.stderr)
            out_dir = folder / name
            words = arguments(options.data, out_dir, options.epochs)
            command = [sys.executable, "-m", "ulvm", *words]
            times = time_command(command, out_dir, os.environ | caches)
            rows = read_metrics(out_dir / "metrics.csv")
            runs[name] = summarise(times, rows)
            losses.append([(row["train_loss"], row["validation_loss"]) for row in rows])
    result = {
        "what": "wall time of the whole command, from start to exit, with augmentation, "
        "validation every epoch, checkpoints and logs; the first run compiles all kernels, the "
        "second finds them; start-up ends where the first epoch begins",
        "command": " ".join(["ulvm", *arguments("DIR", "OUT", options.epochs)]),
        "epochs": options.epochs,
        **measure.provenance(options.commit, device="cuda"),
        "same_losses": losses[0] == losses[1],
        "runs": runs,
    }
    measure.write_result(options.out, result)
    measure.show(runs, "wall_s", "start_up_s", "first_epoch_s", "rest_s", "epoch_median_s")
    print(*(run["best"] for run in runs.values()), sep="\n")


if __name__ == "__main__":
    main()
