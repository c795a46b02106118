"""The training loop: a run spec and a data folder → weights, logs and curves in a run folder."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ulvm import datasets, splits
from ulvm.errors import InputError
from ulvm.files import write_atomically
from ulvm.metrics import Confusion, confusion, dice, pooled
from ulvm.nn.augment import augment
from ulvm.nn.checkpoint import WEIGHTS, save_weights
from ulvm.nn.model import UltraLightVMUNet, normalise, probability_of_logits
from ulvm.spec import RunSpec, TrainSpec
from ulvm.version import __version__

CHECKPOINT = "checkpoint.pt"
RUN = "run.json"
VALIDATION_BATCH = 10


@dataclasses.dataclass(frozen=True)
class Part:
    """Pictures and soft masks of one part of a split, on the device.

    Args:
        images: uint8 (pictures, 3, size, size).
        masks: uint8 (pictures, size, size), 0..255.
    """

    images: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.images)


def train(
    run: RunSpec,
    data_dir: str | Path,
    out_dir: str | Path,
    *,
    device: str = "auto",
    resume: bool = False,
    tensorboard: bool = False,
    progress: bool = True,
) -> Path:
    """Train a network and leave everything about the run in one folder.

    The folder holds ``run.json`` (the resolved spec, versions, commit, split hash, machine),
    ``metrics.csv`` and ``metrics.jsonl`` (a row an epoch), ``curves.png``, ``checkpoint.pt``
    (the last epoch, to resume from) and ``weights.safetensors`` (the epoch with the lowest
    validation loss, as in the released code).

    Args:
        run: What to train; ``presets.find_preset("paper").run`` is the authors' recipe.
        data_dir: Folder of the data set as downloaded.
        out_dir: The run's folder; made if missing.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        resume: Continue ``out_dir`` after its last finished epoch, bit for bit.
        tensorboard: Write TensorBoard event files as well.
        progress: Show a progress bar on standard error.

    Returns:
        The path of the best epoch's weights.

    Raises:
        InputError: Data, split or folder do not fit, or the loss stopped being finite.
    """
    out_dir = Path(out_dir)
    torch_device = choose_device(device)
    split, training, validation = load_parts(run, data_dir, torch_device, progress=progress)
    state = _State(run, torch_device)
    if resume:
        state.load(out_dir / CHECKPOINT)
    elif (out_dir / CHECKPOINT).exists():
        raise InputError(
            f"{out_dir} already holds a run",
            "accepted is a new folder, or --resume",
            "add --resume to continue it or choose another folder",
        )
    _write_run(out_dir, state, split, torch_device, data_dir)
    writer = _tensorboard_writer(out_dir) if tensorboard else None

    with _Bar(run.train, len(training), state.epoch, shown=progress) as bar:
        while state.epoch < run.train.epochs:
            started = time.perf_counter()
            loss = _train_epoch(state, training, bar)
            elapsed = time.perf_counter() - started
            validation_loss, counts = _validate(state.averaged, validation, run.threshold)
            row = {
                "epoch": state.epoch + 1,
                "train_loss": loss,
                "validation_loss": validation_loss,
                "validation_dsc_pooled": float(pooled(dice)(counts)),
                "learning_rate": learning_rate(run.train, state.epoch + 1),
                "images_per_second": len(training) / elapsed,
                "seconds": time.perf_counter() - started,
            }
            _require_finite(row, out_dir)
            state.finish_epoch(row, out_dir, split.hash)
            bar.report(row)
            if writer is not None:
                for name, value in row.items():
                    writer.add_scalar(name, value, row["epoch"])
    if writer is not None:
        writer.close()
    _draw_curves(out_dir / "curves.png", state.history)
    _write_run(out_dir, state, split, torch_device, data_dir)
    return out_dir / WEIGHTS


def load_parts(
    run: RunSpec, data_dir: str | Path, device: torch.device, *, progress: bool = False
) -> tuple[splits.Split, Part, Part]:
    """The resolved split and its training and validation pictures on the device."""
    decoded = datasets.decode(run.data.dataset, data_dir, size=run.data.image_size)
    split = splits.load_split(run.data.dataset, run.data.split)
    split = split.resolve(decoded.pairs)

    def load(part: str) -> Part:
        rows = decoded.indices(split.ids(part))
        images = torch.from_numpy(np.asarray(decoded.images[rows]))  # (n, size, size, 3)
        masks = torch.from_numpy(np.asarray(decoded.masks[rows]))
        return Part(images.permute(0, 3, 1, 2).contiguous().to(device), masks.to(device))

    return split, load("train"), load("validation")


def choose_device(name: str) -> torch.device:
    """The named device, or for ``auto`` the first of CUDA, MPS, CPU that this machine has.

    Raises:
        InputError: The machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as problem:
        raise InputError(
            f"device {name!r} cannot be used ({str(problem).splitlines()[0]})",
            "accepted are auto, cpu, cuda, cuda:1, mps where the machine has them",
            "choose --device auto",
        ) from None
    return torch.device(name)


def learning_rate(train: TrainSpec, epoch: float) -> float:
    """The rate after ``epoch`` epochs, fractions included.

    Source: the released code's ``CosineAnnealingLR(T_max=50, eta_min=1e-5)``, stepped once an
    epoch, for ``cosine-cycle``: past T_max the cosine rises again.
    """
    lowest, highest = train.min_learning_rate, train.learning_rate
    if train.schedule == "cosine-cycle":
        phase = math.floor(epoch) / train.period_epochs
    elif epoch < train.warmup_epochs:
        return highest * max(epoch, 1e-2) / train.warmup_epochs
    else:
        phase = (epoch - train.warmup_epochs) / max(1e-9, train.epochs - train.warmup_epochs)
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * phase)) / 2


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice per picture with smoothing 1.

    Args:
        logits: (batch, classes, height, width).
        masks: (batch, height, width); for one class float in 0..1 (soft edges are kept), for
            more int64 class labels.

    Returns:
        A scalar; 0 is perfect.

    Source: the released code's ``BceDiceLoss`` with both weights 1, for one class; the mean
    over classes of the same for more.
    """
    if logits.shape[1] == 1:
        truth = masks[:, None].to(logits.dtype)  # (batch, 1, height, width)
        entropy = F.binary_cross_entropy_with_logits(logits, truth)
    else:
        truth = F.one_hot(masks, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        entropy = F.cross_entropy(logits, masks)
    probability = probability_of_logits(logits)
    overlap = (probability * truth).sum(dim=(2, 3))  # (batch, classes)
    total = probability.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    return entropy + 1 - ((2 * overlap + 1) / (total + 1)).mean()


class _State:
    """Everything that a run needs to continue bit for bit."""

    def __init__(self, run: RunSpec, device: torch.device) -> None:
        torch.manual_seed(run.train.seed)
        self.run = run
        self.device = device
        self.model = self._build()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=run.train.learning_rate,
            weight_decay=run.train.weight_decay,
        )
        self.averaged = self.model
        if run.train.average_decay:
            self.averaged = self._build()
            self.averaged.load_state_dict(self.model.state_dict())
        self.generator = torch.Generator().manual_seed(run.train.seed)
        self.epoch = 0
        self.step = 0
        self.best_loss = math.inf
        self.history: list[dict[str, Any]] = []

    def _build(self) -> UltraLightVMUNet:
        # Channels last in memory: the full-size convolutions run faster and stay the same.
        network = UltraLightVMUNet(self.run.model).to(self.device)
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def update_average(self) -> None:
        """Move the average towards the weights, faster in the first steps."""
        self.step += 1
        if self.averaged is self.model:
            return
        decay = min(self.run.train.average_decay, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay
            )

    def finish_epoch(self, row: dict[str, Any], out_dir: Path, split_hash: str) -> None:
        """Keep the row, the checkpoint and, if it is the best yet, the weights."""
        self.epoch += 1
        self.history.append(row)
        if row["validation_loss"] < self.best_loss:
            self.best_loss = row["validation_loss"]
            provenance = {"split_hash": split_hash, "validation": row, "versions": versions()}
            save_weights(out_dir / WEIGHTS, self.averaged, self.run, provenance)
        buffer = io.BytesIO()
        torch.save(self._to_dict(), buffer)
        write_atomically(out_dir / CHECKPOINT, buffer.getvalue())
        _write_metrics(out_dir, self.history)

    def _to_dict(self) -> dict[str, Any]:
        return {
            "run": self.run.to_dict(),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "step": self.step,
            "best_loss": self.best_loss,
            "history": self.history,
        }

    def load(self, path: Path) -> None:
        """Take over what ``finish_epoch`` stored.

        Raises:
            InputError: There is no checkpoint, or it belongs to another run.
        """
        if not path.exists():
            raise InputError(
                f"{path.parent} holds no checkpoint",
                "accepted for --resume is the folder of a run that finished an epoch",
                "leave out --resume to start it",
            )
        stored = torch.load(path, map_location=self.device, weights_only=True)
        theirs, ours = stored["run"], self.run.to_dict()
        # More epochs may be asked for; anything else would be another run.
        theirs["train"]["epochs"] = ours["train"]["epochs"]
        if theirs != ours:
            ours_flat, theirs_flat = _flatten(ours), _flatten(theirs)
            changed = [name for name, value in ours_flat.items() if theirs_flat[name] != value]
            raise InputError(
                f"{path.parent} was run with other values of {', '.join(changed)}",
                "accepted for --resume is the same preset with the same --set",
                "repeat the first command with --resume, or choose another folder",
            )
        self.model.load_state_dict(stored["model"])
        self.averaged.load_state_dict(stored["averaged"])
        self.optimizer.load_state_dict(stored["optimizer"])
        self.generator.set_state(stored["generator"].cpu())
        self.epoch, self.step = stored["epoch"], stored["step"]
        self.best_loss, self.history = stored["best_loss"], stored["history"]


def _flatten(run: dict[str, Any]) -> dict[str, Any]:
    """``{"train": {"seed": 1}, …}`` → ``{"train.seed": 1, …}``, as ``--set`` names fields."""
    flat: dict[str, Any] = {}
    for part, value in run.items():
        if isinstance(value, dict):
            flat |= {f"{part}.{name}": each for name, each in value.items()}
        else:
            flat[part] = value
    return flat


def _train_epoch(state: _State, training: Part, bar: _Bar) -> float:
    """One pass in a new random order; the mean loss."""
    recipe = state.run.train
    state.model.train()
    order = torch.randperm(len(training), generator=state.generator)
    batches = order.split(recipe.batch_size)
    total = torch.zeros((), device=state.device)
    for index, batch in enumerate(batches):
        rate = learning_rate(recipe, state.epoch + index / len(batches))
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        rows = batch.to(state.device)
        images, masks = augment(
            training.images[rows], training.masks[rows], recipe.augmentation, state.generator
        )
        images = images.contiguous(memory_format=torch.channels_last)
        if state.run.model.classes > 1:
            masks = masks.ge(0.5).long()
        loss = segmentation_loss(state.model(images), masks)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        state.optimizer.step()
        state.update_average()
        total += loss.detach() * len(batch)
        bar.advance(len(batch), loss.detach())
    return float(total) / len(training)


@torch.no_grad()
def _validate(
    model: UltraLightVMUNet, validation: Part, threshold: float
) -> tuple[float, Confusion]:
    """Mean loss over the pictures and their confusion counts."""
    model.eval()
    total = 0.0
    counts = []
    for start in range(0, len(validation), VALIDATION_BATCH):
        rows = slice(start, start + VALIDATION_BATCH)
        images = normalise(validation.images[rows])
        soft = validation.masks[rows].float() / 255
        logits = model(images.contiguous(memory_format=torch.channels_last))
        target = soft if logits.shape[1] == 1 else soft.ge(0.5).long()
        total += float(segmentation_loss(logits, target)) * len(images)
        lesion = lesion_mask(probability_of_logits(logits), threshold)
        counts.append(confusion(lesion.cpu().numpy(), soft.ge(0.5).cpu().numpy()))
    return total / len(validation), sum(counts[1:], start=counts[0])


def lesion_mask(probability: Tensor, threshold: float) -> Tensor:
    """(batch, classes, height, width) in 0..1 → bool (batch, height, width), foreground."""
    if probability.shape[1] == 1:
        return probability[:, 0] >= threshold
    return probability.argmax(dim=1) > 0


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
        self.validation = "–"

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, pictures: int, loss: Tensor) -> None:
        """Count a step; the loss is read only when the bar is redrawn, as reading it waits."""
        if self.bar.update(pictures):
            self.bar.set_postfix_str(
                f"loss {float(loss):.3f}, validation DSC {self.validation}", refresh=False
            )

    def report(self, row: dict[str, Any]) -> None:
        """Name the epoch that just ended."""
        self.validation = f"{row['validation_dsc_pooled']:.4f}"
        self.bar.set_description(f"epoch {row['epoch']}/{self.epochs}")


def _require_finite(row: dict[str, Any], out_dir: Path) -> None:
    if not math.isfinite(row["train_loss"]) or not math.isfinite(row["validation_loss"]):
        raise InputError(
            f"the loss of epoch {row['epoch']} is not finite",
            f"accepted is a run that stays finite; {out_dir} keeps the epoch before",
            "lower the rate with --set train.learning_rate=… and a new folder",
        )


def _write_metrics(out_dir: Path, history: list[dict[str, Any]]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    write_atomically(out_dir / "metrics.csv", table.getvalue().encode())
    lines = "".join(json.dumps(row) + "\n" for row in history)
    write_atomically(out_dir / "metrics.jsonl", lines.encode())


def _write_run(
    out_dir: Path,
    state: _State,
    split: splits.Split,
    device: torch.device,
    data_dir: str | Path,
) -> None:
    best = min(state.history, key=lambda row: row["validation_loss"], default=None)
    content = {
        "run": state.run.to_dict(),
        "command": sys.argv,
        "data_dir": str(data_dir),
        "split": {
            "name": split.name,
            "hash": split.hash,
            "sizes": {part: len(split.ids(part)) for part in ("train", "validation")},
        },
        "parameters": sum(each.numel() for each in state.model.parameters()),
        "device": str(device),
        "versions": versions(),
        "git_commit": _git_commit(),
        "machine": machine(device),
        "epochs_done": state.epoch,
        "best": best,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_atomically(out_dir / RUN, (json.dumps(content, indent=2) + "\n").encode())


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    return {
        "ulvm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What the run ran on."""
    description: dict[str, Any] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        description["gpu"] = torch.cuda.get_device_name(device)
    return description


def _processor() -> str:
    for line in _read_lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _read_lines(path: Path) -> Iterator[str]:
    if path.exists():
        yield from path.read_text().splitlines()


def _git_commit() -> str | None:
    """The commit of the checkout that this file lies in; None for an installed package."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None if done.returncode == 0 else None


def _draw_curves(path: Path, history: list[dict[str, Any]]) -> None:
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
    write_atomically(path, buffer.getvalue())


def _tensorboard_writer(out_dir: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError:
        raise InputError(
            "TensorBoard is not installed",
            "accepted is the extra ultralight-vm-unet[tensorboard]",
            "pip install 'ultralight-vm-unet[tensorboard]' or leave out --tensorboard",
        ) from None
    return SummaryWriter(str(out_dir / "tensorboard"))
