"""The training loop: a run spec and a data folder → weights, logs and curves in a run folder."""

from __future__ import annotations

import copy
import io
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ulvm import splits
from ulvm.errors import InputError
from ulvm.files import write_atomically
from ulvm.metrics import dice, pooled
from ulvm.nn.augment import Part
from ulvm.nn.checkpoint import WEIGHTS, save_weights
from ulvm.nn.distributed import Processes, choose_device, join
from ulvm.nn.epoch import Epoch, learning_rate
from ulvm.nn.parts import Folders, load_parts
from ulvm.nn.run_folder import (
    draw_curves,
    tensorboard_writer,
    write_metrics,
    write_run,
)
from ulvm.nn.step import Learner, Steps, draw_epoch_of
from ulvm.nn.validate import Validation
from ulvm.provenance import versions
from ulvm.spec import RunSpec, TrainSpec

CHECKPOINT = "checkpoint.pt"
# Shortest time between two: a GPU has done an epoch in less, and a large network's take seconds.
CHECKPOINT_SECONDS = 5.0
CHECKPOINT_SHARE = 0.02  # of the time, at most


def train(
    run: RunSpec,
    data_dir: Folders,
    out_dir: str | Path,
    *,
    teacher_dir: Path | None = None,
    start_from: Path | None = None,
    threshold_masks: bool = False,
    device: str = "auto",
    resume: bool = False,
    tensorboard: bool = False,
    progress: bool = True,
) -> Path:
    """Train a network and leave everything about the run in one folder.

    The folder holds ``run.json`` (the resolved spec, versions, commit, split hash, machine),
    ``metrics.csv`` and ``metrics.jsonl`` (a row an epoch), ``curves.png``, ``checkpoint.pt``
    (to resume from) and ``weights.safetensors`` (the epoch with the lowest validation loss, as
    in the released code). All but the curves are written after the first epoch, then every
    epoch, but not more often than every 5 seconds, nor for more than 2 % of the time.

    Started by ``torchrun --nproc-per-node=N -m ulvm train …`` the processes share each batch of
    the recipe's size, one GPU or CPU each, and rank 0 does the rest.

    Args:
        run: What to train; ``presets.find_preset("paper").run`` is the authors' recipe.
        data_dir: Folder of the data set as downloaded; of several, each one's by its name.
        out_dir: The run's folder; made if missing.
        start_from: Tensors as ``torch.save`` writes them, for a network that can start from some.
        threshold_masks: See ``datasets.decode``.
        teacher_dir: A teacher's masks, for a recipe that has one; see ``parts.write_teacher``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        resume: Continue ``out_dir`` after its last checkpoint, bit for bit; with another number
            of processes up to the order of float sums.
        tensorboard: Write TensorBoard event files as well.
        progress: Show a progress bar on standard error.

    Returns:
        The path of the best epoch's weights.

    Raises:
        InputError: Data, split or folder do not fit, or the loss stopped being finite.
    """
    out_dir = Path(out_dir)
    torch_device = choose_device(device)
    if torch_device.type == "cuda":  # for what launches on the current device, such as Triton
        torch.cuda.set_device(torch_device.index or 0)
    with join(torch_device) as processes:
        _train(
            run,
            data_dir,
            out_dir,
            torch_device,
            processes,
            teacher_dir,
            start_from,
            threshold_masks=threshold_masks,
            resume=resume,
            tensorboard=tensorboard,
            progress=progress,
        )
    return out_dir / WEIGHTS


def _train(
    run: RunSpec,
    data_dir: Folders,
    out_dir: Path,
    device: torch.device,
    processes: Processes,
    teacher_dir: Path | None,
    start_from: Path | None,
    *,
    threshold_masks: bool,
    resume: bool,
    tensorboard: bool,
    progress: bool,
) -> None:
    """This process's part of ``train``."""
    with processes.first_alone():
        used, training, validation = load_parts(
            run, data_dir, device, teacher_dir, threshold_masks=threshold_masks
        )
    state = _State(run, device, processes, used)
    if start_from:
        state.learner.start_from(torch.load(start_from, map_location=device, weights_only=True))
    if resume:
        state.load(out_dir / CHECKPOINT)
    elif (out_dir / CHECKPOINT).exists():
        raise InputError(
            f"{out_dir} already holds a run",
            "",
            "add --resume to continue it or choose another folder",
        )
    if processes.rank > 0:
        _follow(state, training)
        return
    with _Bar(run.train, training.drawn, state.epoch, shown=progress) as bar:
        _lead(state, training, validation, data_dir, out_dir, bar, tensorboard=tensorboard)


def _lead(
    state: _State,
    training: Part,
    validation: Part,
    data_dir: Folders,
    out_dir: Path,
    bar: _Bar,
    *,
    tensorboard: bool,
) -> None:
    """Train, validate and write."""
    run = state.run
    steps = Steps(state.learner, training, run.train, state.processes)
    validate = Validation(state.learner.averaged, validation, run.threshold)
    write_run(out_dir, state.device, state.describe(data_dir))
    writer = tensorboard_writer(out_dir) if tensorboard else None
    next_save = -math.inf
    while state.epoch < run.train.epochs:
        started = time.perf_counter()
        for pictures in steps.run(state.draw_epoch(training)):
            bar.advance(pictures, steps.loss)
        loss = steps.mean_loss()
        elapsed = time.perf_counter() - started
        validation_loss, counts = validate.run()
        row = {
            "epoch": state.epoch + 1,
            "train_loss": loss,
            "validation_loss": validation_loss,
            "validation_dsc_pooled": float(pooled(dice)(counts)),
            "learning_rate": learning_rate(run.train, state.epoch + 1),
            "images_per_second": training.drawn / elapsed,
            "seconds": time.perf_counter() - started,
        }
        _require_finite(row, out_dir)
        state.finish_epoch(row)
        bar.report(row)
        now = time.monotonic()
        if now >= next_save:
            state.save(out_dir)
            took = time.monotonic() - now
            next_save = now + max(CHECKPOINT_SECONDS, took / CHECKPOINT_SHARE)
        if writer is not None:
            for name, value in row.items():
                writer.add_scalar(name, value, row["epoch"])
    if writer is not None:
        writer.close()
    state.save(out_dir)
    draw_curves(out_dir, state.history)
    write_run(out_dir, state.device, state.describe(data_dir))


def _follow(state: _State, training: Part) -> None:
    """Train beside rank 0, which validates and writes; the next sum of gradients waits for it."""
    steps = Steps(state.learner, training, state.run.train, state.processes)
    while state.epoch < state.run.train.epochs:
        for _ in steps.run(state.draw_epoch(training)):
            pass
        steps.mean_loss()
        state.epoch += 1


class _State:
    """Everything that a run needs to continue bit for bit."""

    def __init__(
        self,
        run: RunSpec,
        device: torch.device,
        processes: Processes,
        used: tuple[splits.Split, ...],
    ) -> None:
        torch.manual_seed(run.train.seed)
        self.run = run
        self.device = device
        self.processes = processes
        self.splits = used
        self.learner = Learner(run, device, processes)
        self.best = copy.deepcopy(self.learner.averaged)
        self.generator = torch.Generator().manual_seed(run.train.seed)
        self.epoch = 0
        self.history: list[dict[str, Any]] = []

    def draw_epoch(self, training: Part) -> Epoch:
        """The tables of the epoch that comes next."""
        return draw_epoch_of(training, self.run.train, self.epoch, self.generator)

    @property
    def best_row(self) -> dict[str, Any] | None:
        """The epoch with the lowest validation loss so far, the first of equals."""
        return min(self.history, key=lambda row: row["validation_loss"], default=None)

    def finish_epoch(self, row: dict[str, Any]) -> None:
        """Keep the row and, if it is the best yet, the weights."""
        self.epoch += 1
        self.history.append(row)
        if self.best_row is row:
            self.best.load_state_dict(self.learner.averaged.state_dict())

    def save(self, out_dir: Path) -> None:
        """Write the checkpoint, then what can be made from it: the best weights, the metrics.

        A crash in between leaves files of an earlier checkpoint, which are valid too, and
        resuming writes them again.
        """
        buffer = io.BytesIO()
        torch.save(self._to_dict(), buffer)
        write_atomically(out_dir / CHECKPOINT, buffer.getvalue())
        provenance = {
            "split_hash": self.splits[0].hash,
            "split_hashes": {split.dataset: split.hash for split in self.splits},
            "validation": self.best_row,
            "versions": versions(),
        }
        save_weights(out_dir / WEIGHTS, self.best, self.run, provenance)
        write_metrics(out_dir, self.history)

    def _to_dict(self) -> dict[str, Any]:
        return {
            "run": self.run.to_dict(),
            **self.learner.state_dict(),
            "best": self.best.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "history": self.history,
        }

    def load(self, path: Path) -> None:
        """Take over what ``save`` stored.

        Raises:
            InputError: There is no checkpoint, or it belongs to another run.
        """
        if not path.exists():
            raise InputError(
                f"{path.parent} holds no checkpoint",
                "a run has one after its first epoch",
                "leave out --resume to start it",
            )
        stored = torch.load(path, map_location=self.device, weights_only=True)
        theirs, ours = RunSpec.from_dict(stored["run"]).to_dict(), self.run.to_dict()
        # More epochs may be asked for; anything else would be another run.
        theirs["train"]["epochs"] = ours["train"]["epochs"]
        if theirs != ours:
            ours_flat, theirs_flat = _flatten(ours), _flatten(theirs)
            changed = [name for name, value in ours_flat.items() if theirs_flat[name] != value]
            raise InputError(
                f"{path.parent} was run with other values of {', '.join(changed)}",
                "only epochs may differ where a run goes on",
                "repeat the first command with --resume, or choose another folder",
            )
        self.learner.load_state_dict(stored)
        self.best.load_state_dict(stored["best"])
        self.generator.set_state(stored["generator"].cpu())
        self.epoch, self.history = stored["epoch"], stored["history"]

    def describe(self, data_dir: Folders) -> dict[str, Any]:
        """What ``run.json`` says of the run."""
        described = [_describe_split(split) for split in self.splits]
        return {
            "run": self.run.to_dict(),
            "data_dir": {name: str(folder) for name, folder in data_dir.items()}
            if isinstance(data_dir, Mapping)
            else str(data_dir),
            "split": described[0],
            "splits": described,
            "parameters": sum(each.numel() for each in self.learner.model.parameters()),
            "processes": self.processes.count,
            "epochs_done": self.epoch,
            "best": self.best_row,
        }


def _describe_split(split: splits.Split) -> dict[str, Any]:
    return {
        "dataset": split.dataset,
        "name": split.name,
        "hash": split.hash,
        "sizes": {part: len(split.ids(part)) for part in ("train", "validation")},
    }


def _flatten(run: dict[str, Any]) -> dict[str, Any]:
    """``{"train": {"seed": 1}, …}`` → ``{"train.seed": 1, …}``, as ``--set`` names fields."""
    flat: dict[str, Any] = {}
    for part, value in run.items():
        if isinstance(value, dict):
            flat |= {f"{part}.{name}": each for name, each in value.items()}
        else:
            flat[part] = value
    return flat


class _Bar:
    """A progress bar over pictures: loss, validation DSC, images a second, time left."""

    def __init__(self, recipe: TrainSpec, pictures: int, epoch: int, *, shown: bool) -> None:
        self.bar = tqdm(
            total=recipe.epochs * pictures,
            initial=epoch * pictures,
            unit="img",
            disable=not shown,
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file needs few lines
            smoothing=0.05,
        )
        self.epochs = recipe.epochs
        self.loss = self.validation = "–"

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, pictures: int, loss: Tensor) -> None:
        """Count a step; its loss is read where that waits for no GPU, else the epoch's is shown."""
        if self.bar.update(pictures):
            if loss.device.type == "cpu":
                self.loss = f"{float(loss):.3f}"
            self.bar.set_postfix_str(
                f"loss {self.loss}, validation DSC {self.validation}", refresh=False
            )

    def report(self, row: dict[str, Any]) -> None:
        """Name the epoch that just ended."""
        self.loss = f"{row['train_loss']:.3f}"
        self.validation = f"{row['validation_dsc_pooled']:.4f}"
        self.bar.set_description(f"epoch {row['epoch']}/{self.epochs}")


def _require_finite(row: dict[str, Any], out_dir: Path) -> None:
    if not math.isfinite(row["train_loss"]) or not math.isfinite(row["validation_loss"]):
        raise InputError(
            f"the loss of epoch {row['epoch']} is not finite",
            f"{out_dir} keeps its last checkpoint, if any",
            "lower the rate with --set train.learning_rate=… and a new folder",
        )
