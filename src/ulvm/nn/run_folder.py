"""What a run leaves beside its weights: ``run.json``, metrics, curves, TensorBoard files."""

from __future__ import annotations

import csv
import io
import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ulvm.errors import InputError, install_extra
from ulvm.files import write_atomically
from ulvm.provenance import git_commit, processor, versions

RUN = "run.json"
Epoch = dict[str, Any]


def write_run(out_dir: Path, device: torch.device, content: dict[str, Any]) -> None:
    """Write ``run.json``: what the caller knows of the run, and what decided its result.

    Args:
        out_dir: The run's folder.
        device: Where it runs.
        content: JSON values that come first.
    """
    content = {
        **content,
        "command": sys.argv,
        "device": str(device),
        "versions": versions(),
        "git_commit": git_commit(),
        "machine": machine(device),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(out_dir / RUN, (json.dumps(content, indent=2) + "\n").encode())


def write_metrics(out_dir: Path, history: list[Epoch]) -> None:
    """Write ``metrics.csv`` and ``metrics.jsonl``, a row an epoch."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    write_atomically(out_dir / "metrics.csv", table.getvalue().encode())
    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_atomically(out_dir / "metrics.jsonl", lines.encode())


def draw_curves(out_dir: Path, history: list[Epoch]) -> None:
    """Draw ``curves.png``: both losses and the validation score over the epochs."""
    from matplotlib.figure import Figure

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, scores = figure.subplots(2, sharex=True)
    for name in ("train_loss", "validation_loss"):
        losses.plot(epochs, [row[name] for row in history], label=name.replace("_", " "))
    losses.set_ylabel("BCE + Dice loss")
    losses.legend()
    scores.plot(epochs, [row["validation_dsc_pooled"] for row in history])
    scores.set_ylabel("validation DSC (pooled)")
    scores.set_xlabel("epoch")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(out_dir / "curves.png", buffer.getvalue())


def tensorboard_writer(out_dir: Path) -> Any:
    """A writer of TensorBoard event files in the run's folder.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise InputError(
            "TensorBoard is not installed",
            "",
            f"{install_extra('tensorboard')}, or leave out --tensorboard",
        ) from None
    return SummaryWriter(str(out_dir / "tensorboard"))


def machine(device: torch.device) -> dict[str, Any]:
    """What the run ran on."""
    description: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        description["gpu"] = torch.cuda.get_device_name(device)
    return description
