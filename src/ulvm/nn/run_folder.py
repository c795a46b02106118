"""A run's folder: its lock and checkpoints, ``run.json``, metrics, curves, TensorBoard files."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import platform
import sys
import warnings
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock
import torch

from ulvm.contact_sheet import import_matplotlib
from ulvm.errors import InputError, RunWarning, install_extra
from ulvm.files import flush_folder, make_folder, sweep_leftovers, unwritable, write_atomically
from ulvm.provenance import git_commit, processor, versions

RUN = "run.json"
CHECKPOINT = "checkpoint.pt"
CHECKPOINT_BEFORE = "checkpoint-before.pt"  # of the time before, should the last one be damaged
LOCK = ".lock"
Epoch = dict[str, Any]


@contextlib.contextmanager
def only_here(out_dir: Path) -> Iterator[None]:
    """Make a run's folder, keep other processes out of it, and sweep what killed ones left.

    Raises:
        InputError: It cannot be written to, or another process trains there.
    """
    is_new = not out_dir.exists()
    make_folder(out_dir)
    if is_new:
        for folder in out_dir.absolute().parents:
            flush_folder(folder)
    lock = filelock.FileLock(out_dir / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise InputError(
            f"another process trains in {out_dir}",
            "a folder has room for one run",
            "wait until it ends, or choose another folder",
        ) from None
    except NotImplementedError:  # a file system without locks
        pass
    except OSError as error:
        raise unwritable(out_dir, error) from error
    try:
        sweep_leftovers(out_dir)
        yield
    finally:
        lock.release()


def has_checkpoint(out_dir: Path) -> bool:
    """Whether a run can be resumed there."""
    return any((out_dir / name).exists() for name in (CHECKPOINT, CHECKPOINT_BEFORE))


def save_checkpoint(out_dir: Path, content: dict[str, Any], *, keep: bool = True) -> None:
    """Write a checkpoint, and keep the last one as the one before, unless that is damaged."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    before = out_dir / CHECKPOINT_BEFORE if keep else None
    write_atomically(out_dir / CHECKPOINT, buffer.getvalue(), durable=True, keep_as=before)


def load_checkpoint(out_dir: Path, device: torch.device) -> tuple[dict[str, Any], bool]:
    """The last checkpoint, or the one before with a warning, if the last one is no use.

    Returns:
        Its content, and whether it is the last one.

    Raises:
        InputError: There is none, none is whole, or the file is no checkpoint of ulvm.
    """
    damaged = []
    for name in (CHECKPOINT, CHECKPOINT_BEFORE):
        path = out_dir / name
        if not path.exists():
            continue
        content = _read_checkpoint(path, device)
        if isinstance(content, str):
            damaged.append(f"{path} {content}")
            continue
        if damaged:
            warnings.warn(
                f"{damaged[0]}: the run goes on from the checkpoint before, of epoch "
                f"{content['epoch']}",
                RunWarning,
                stacklevel=2,
            )
        return content, not damaged
    if damaged:
        raise InputError(" and ".join(damaged), "", _OTHER_FOLDER)
    raise InputError(
        f"{out_dir} holds no checkpoint",
        "a run has one after its first epoch",
        "leave out --resume to start it",
    )


_FOREIGN = "is no checkpoint that this version of ulvm wrote"
_OTHER_FOLDER = "resume with the version that wrote it, or start again in another folder"


def _read_checkpoint(path: Path, device: torch.device) -> dict[str, Any] | str:
    """The content of a checkpoint, or what is wrong with it."""
    try:
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            wrong = archive.testzip()  # torch doesn't look at the sums
    except OSError as problem:
        return f"cannot be read ({problem.strerror or problem})"
    except Exception as problem:  # zipfile has many
        return f"is damaged ({str(problem) or type(problem).__name__})"
    if wrong is not None:
        return f"is damaged (the sum of {wrong} is wrong)"
    try:
        stored: dict[str, Any]
        stored = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
        if {"run", "epoch", "history", "model", "best"} <= stored.keys():
            return stored
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # torch's advice, to trust the file, is no help
        pass
    return _FOREIGN


def foreign(path: Path) -> InputError:
    """The error for a whole file that is no checkpoint of this program."""
    return InputError(f"{path} {_FOREIGN}", "", _OTHER_FOLDER)


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
        "git_commit": commit(),
        "machine": machine(device),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(out_dir / RUN, text.encode(), durable=True)


def write_metrics(out_dir: Path, history: list[Epoch]) -> None:
    """Write ``metrics.csv`` and ``metrics.jsonl``, a row an epoch."""
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    write_atomically(out_dir / "metrics.csv", table.getvalue().encode(), durable=True)
    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_atomically(out_dir / "metrics.jsonl", lines.encode(), durable=True)


def draw_curves(out_dir: Path, history: list[Epoch]) -> None:
    """Draw ``curves.png``: both losses and the validation score over the epochs."""
    Figure, _ = import_matplotlib()
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


@functools.cache
def commit() -> str | None:
    """Of the code that this process began with: the checkout may change while it trains."""
    return git_commit()


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
