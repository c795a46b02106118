"""The training loop: a run spec and a data folder → weights, logs and curves in a run folder."""

from __future__ import annotations

import contextlib
import copy
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ulvm.errors import InputError
from ulvm.metrics import dice, pooled
from ulvm.nn.augment import Part
from ulvm.nn.checkpoint import WEIGHTS, save_weights
from ulvm.nn.distributed import Processes, choose_device, join
from ulvm.nn.epoch import Epoch, draw_epoch, learning_rate
from ulvm.nn.parent import Parent
from ulvm.nn.parts import Folders, load_parts
from ulvm.nn.run_folder import (
    CHECKPOINT,
    draw_curves,
    foreign,
    has_checkpoint,
    load_checkpoint,
    only_here,
    save_checkpoint,
    tensorboard_writer,
    write_metrics,
    write_run,
)
from ulvm.nn.step import Learner, Steps
from ulvm.nn.validate import Validation
from ulvm.provenance import Seen, versions
from ulvm.spec import RunSpec, TrainSpec

# Shortest time between two: a GPU has done an epoch in less, and a large network's take seconds.
CHECKPOINT_SECONDS = 5.0
CHECKPOINT_SHARE = 0.02  # of the time, at most
# The loss lies on the GPU, and looking at it waits for all steps that are under way.
LOOK_SECONDS = 2.0


def train(
    run: RunSpec,
    data_dir: Folders,
    out_dir: str | Path,
    *,
    teacher_dir: Path | None = None,
    parent: Parent | None = None,
    threshold_masks: bool = False,
    allow_mask_resize: bool = False,
    device: str = "auto",
    resume: bool = False,
    tensorboard: bool = False,
    progress: bool = True,
) -> Path:
    """Train a network and leave everything about the run in one folder.

    The folder holds ``run.json`` (the resolved spec, versions, commit, split hash, machine),
    ``metrics.csv`` and ``metrics.jsonl`` (a row an epoch), ``curves.png``, ``checkpoint.pt``
    (to resume from), the one before it, and ``weights.safetensors`` (the epoch with the lowest
    validation loss, as in the released code). The last two hold the ids of the split and a
    fingerprint of each picture. All but the curves are written after the first epoch, then every
    epoch, but not more often than every 5 seconds, nor for more than 2 % of the time.

    Started by ``torchrun --nproc-per-node=N -m ulvm train …`` the processes share each batch of
    the recipe's size, one GPU or CPU each, and rank 0 does the rest.

    Args:
        run: What to train; ``presets.find_preset("paper").run`` is the authors' recipe.
        data_dir: Folder of the data set as downloaded; of several, each one's by its name.
        out_dir: The run's folder; made if missing.
        parent: A model to start from, whose pictures count as seen by the new one too.
        threshold_masks, allow_mask_resize: See ``datasets.decode``.
        teacher_dir: A teacher's masks, for a recipe that has one; see ``parts.write_teacher``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        resume: Continue ``out_dir`` after its last checkpoint, bit for bit; with another number
            of processes up to the order of float sums. With another split, other pictures or
            masks it is refused.
        tensorboard: Write TensorBoard event files as well.
        progress: Show a progress bar on standard error.

    Returns:
        The path of the best epoch's weights.

    Raises:
        InputError: Data, split or folder do not fit, another process trains in the folder, the
            loss stopped being finite, or there is too little memory.
    """
    out_dir = Path(out_dir)
    torch_device = choose_device(device)
    if torch_device.type == "cuda":  # for what launches on the current device, such as Triton
        torch.cuda.set_device(torch_device.index or 0)
    with join(torch_device) as processes, _torch_in_words(), contextlib.ExitStack() as held:
        if processes.rank == 0:
            held.enter_context(only_here(out_dir))
        if not resume and has_checkpoint(out_dir):
            raise InputError(
                f"{out_dir} already holds a run",
                "",
                "add --resume to continue it or choose another folder",
            )
        with processes.first_alone():
            seen, training, validation = load_parts(
                run,
                data_dir,
                torch_device,
                teacher_dir,
                threshold_masks=threshold_masks,
                allow_mask_resize=allow_mask_resize,
            )
        state = _State(run, torch_device, processes, seen, parent)
        state.classes = training.classes
        if resume:
            state.load(out_dir)
        if processes.rank > 0:
            _follow(state, training)
        else:
            with _Bar(run.train, training.drawn, state.epoch, shown=progress) as bar:
                _lead(state, training, validation, data_dir, out_dir, bar, tensorboard=tensorboard)
    return out_dir / WEIGHTS


@contextlib.contextmanager
def _torch_in_words() -> Iterator[None]:
    """What torch and numpy raise where memory is short, of which each device has its own.

    And what a batch norm raises of one picture whose features are one pixel.
    """
    try:
        yield
    except ValueError as problem:
        if "more than 1 value per channel" not in str(problem):
            raise
        raise InputError(
            "a batch of one picture, one pixel at the bottom, can't be normalised",
            "",
            "raise data.image_size, or change train.batch_size so that no picture is left over",
        ) from problem
    except (RuntimeError, MemoryError) as problem:
        said = str(problem).splitlines()[0] if str(problem) else ""
        short = ("out of memory", "not enough memory", "can't allocate memory")
        if isinstance(problem, MemoryError) or any(words in str(problem) for words in short):
            raise InputError(
                f"there is too little memory{said and f' ({said})'}",
                "",
                "lower train.batch_size or data.image_size, or choose another --device",
            ) from problem
        raise


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
    steps = Steps(state.learner, training)
    validate = Validation(state.learner.averaged, validation, run.threshold)
    write_run(out_dir, state.device, state.describe(data_dir))
    writer = tensorboard_writer(out_dir) if tensorboard else None
    next_save = next_look = -math.inf
    saved_epoch = None
    while state.goes_on():
        started = time.perf_counter()
        for pictures in steps.run(state.draw_epoch(training)):
            bar.advance(pictures, steps.loss)
            if state.device.type == "cpu" or time.monotonic() >= next_look:
                _require_finite(float(steps.loss), state.epoch + 1, out_dir)
                next_look = time.monotonic() + LOOK_SECONDS
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
        _require_finite(loss + validation_loss, state.epoch + 1, out_dir)
        state.finish_epoch(row)
        bar.report(row)
        now = time.monotonic()
        if now >= next_save:
            state.save(out_dir)
            saved_epoch = state.epoch
            took = time.monotonic() - now
            next_save = now + max(CHECKPOINT_SECONDS, took / CHECKPOINT_SHARE)
        if writer is not None:
            for name, value in row.items():
                writer.add_scalar(name, value, row["epoch"])
    if writer is not None:
        writer.close()
    if saved_epoch != state.epoch:
        state.save(out_dir)
    draw_curves(out_dir, state.history)
    write_run(out_dir, state.device, state.describe(data_dir))


def _follow(state: _State, training: Part) -> None:
    """Train beside rank 0, which validates and writes; the next sum of gradients waits for it."""
    steps = Steps(state.learner, training)
    while state.goes_on():
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
        seen: tuple[Seen, ...],
        parent: Parent | None,
    ) -> None:
        torch.manual_seed(run.train.seed)
        self.run = run
        self.device = device
        self.processes = processes
        self.seen = seen
        self.parent = None if parent is None else parent.to_dict()
        self.learner = Learner(run, device, processes)
        if parent is not None:
            self.learner.take_over(parent.tensors_for(run.model))
        self.best = copy.deepcopy(self.learner.averaged)
        self.generator = torch.Generator().manual_seed(run.train.seed)
        self.epoch = 0
        self.classes: tuple[str, ...] = ()  # names, of masks that have several
        self.last_is_whole = True  # the checkpoint on disk
        self.history: list[dict[str, Any]] = []

    def draw_epoch(self, training: Part) -> Epoch:
        """The tables of the epoch that comes next."""
        return draw_epoch(training, self.run.train, self.epoch, self.generator)

    @property
    def best_row(self) -> dict[str, Any] | None:
        """The epoch with the lowest validation loss so far, the first of equals."""
        return min(self.history, key=lambda row: row["validation_loss"], default=None)

    def goes_on(self) -> bool:
        """Whether another epoch comes. Every process asks at the same time; rank 0 decides."""
        recipe = self.run.train
        if self.epoch >= recipe.epochs or not recipe.patience:
            return self.epoch < recipe.epochs
        best = self.best_row  # of rank 0, which validates
        waited = self.epoch - best["epoch"] if best and self.processes.rank == 0 else 0
        over = torch.tensor(float(waited >= recipe.patience), device=self.device)
        return not self.processes.sum(over)

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
        save_checkpoint(out_dir, self._to_dict(), keep=self.last_is_whole)
        self.last_is_whole = True
        provenance: dict[str, Any] = {
            "split_hash": self.seen[0].split.hash,
            "seen": [each.to_dict() for each in self.seen],
            "validation": self.best_row,
            "versions": versions(),
        }
        if self.classes:
            provenance["classes"] = list(self.classes)
        if self.parent is not None:
            provenance["parent"] = self.parent
        save_weights(out_dir / WEIGHTS, self.best, self.run, provenance)
        write_metrics(out_dir, self.history)

    def _to_dict(self) -> dict[str, Any]:
        return {
            "run": self.run.to_dict(),
            "seen": [each.to_dict() for each in self.seen],
            "parent": self.parent,
            **self.learner.state_dict(),
            "best": self.best.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "history": self.history,
        }

    def load(self, out_dir: Path) -> None:
        """Take over what ``save`` stored.

        Raises:
            InputError: There is no checkpoint, it belongs to another run, or has done more epochs.
        """
        stored, self.last_is_whole = load_checkpoint(out_dir, self.device)
        try:
            self._require_same(stored, out_dir)
            self.learner.load_state_dict(stored)
            self.best.load_state_dict(stored["best"])
            self.generator.set_state(stored["generator"].cpu())
        except (InputError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as problem:  # another program's tables under the same names
            raise foreign(out_dir / CHECKPOINT) from problem
        self.epoch, self.history = stored["epoch"], stored["history"]

    def _require_same(self, stored: dict[str, Any], out_dir: Path) -> None:
        """Check that a checkpoint is of this run, its split, pictures and masks."""
        theirs, ours = RunSpec.from_dict(stored["run"]).to_dict(), self.run.to_dict()
        # How long it trains may change; anything else would be another run.
        for name in ("epochs", "patience"):
            theirs["train"][name] = ours["train"][name]
        if theirs != ours:
            changed = [
                f"{part}.{name}"
                for part in ("model", "data", "train")
                for name, value in ours[part].items()
                if theirs[part][name] != value
            ] + ["threshold"] * (theirs["threshold"] != ours["threshold"])
            raise InputError(
                f"{out_dir} was run with other values of {', '.join(changed)}",
                "only epochs and patience may differ where a run goes on",
                "repeat the first command with --resume, or choose another folder",
            )
        before, now = (each and each["sha256"] for each in (stored.get("parent"), self.parent))
        if before != now:
            raise InputError(
                f"{out_dir} was started from {'other' if before else 'no'} weights",
                "a run goes on from where it began",
                "repeat the first command with --resume, or choose another folder",
            )
        if stored["epoch"] > self.run.train.epochs:
            raise InputError(
                f"{out_dir} has done {stored['epoch']} epochs already, more than "
                f"{self.run.train.epochs}",
                "a run goes on to as many or more",
                f"ask for train.epochs={stored['epoch']} or more, or choose another folder",
            )
        # Checkpoints older than fingerprints have none.
        for then, now in zip(map(Seen.from_dict, stored.get("seen", ())), self.seen, strict=False):
            if changes := then.changes(now):
                raise InputError(
                    f"{changes} since {out_dir} was trained with them",
                    "a run goes on with what it began with",
                    "put them back, or choose another folder, without --resume",
                )

    def describe(self, data_dir: Folders) -> dict[str, Any]:
        """What ``run.json`` says of the run."""
        described = [
            {
                "dataset": split.dataset,
                "name": split.name,
                "hash": split.hash,
                "sizes": {part: len(ids) for part, ids in split.parts.items()},
            }
            for split in (each.split for each in self.seen)
        ]
        parent = self.parent and {"from": {name: self.parent[name] for name in ("model", "sha256")}}
        return {
            "run": self.run.to_dict(),
            "data_dir": {name: str(folder) for name, folder in data_dir.items()}
            if isinstance(data_dir, Mapping)
            else str(data_dir),
            "split": described[0],
            "splits": described,
            **(parent or {}),
            "parameters": sum(each.numel() for each in self.learner.model.parameters()),
            "processes": self.processes.count,
            "epochs_done": self.epoch,
            "best": self.best_row,
        }


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


def _require_finite(loss: float, epoch: int, out_dir: Path) -> None:
    if not math.isfinite(loss):
        kept = f"{out_dir} keeps its last checkpoint" if has_checkpoint(out_dir) else ""
        raise InputError(
            f"the loss of epoch {epoch} is not finite",
            kept,
            "lower the rate with --set train.learning_rate=… and a new folder",
        )
