"""Kill training at every kind of moment, break its disk and its data; what goes on ends alike.

    python tests/nn/chaos.py            all moments (`make chaos`), a quarter of an hour
    python tests/nn/chaos.py --short    some of each kind; among the tests

One straight run on drawn pictures says which moments there are: the start, each step and
validation, and each operation on a file of the run's folder. For each of them a new process is
killed there (-9), or meets a full disk, or loses power; the run is then resumed, and its weights,
averages, optimizer, random numbers and losses must be the straight run's, bit for bit. Nothing
of this is in the product: the moments are counted by hooks that a forked process sets in itself.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import importlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

import ulvm.nn.train as training
from ulvm import datasets, splits, synthetic
from ulvm.errors import InputError
from ulvm.files import write_atomically
from ulvm.nn import run_folder
from ulvm.nn.checkpoint import WEIGHTS
from ulvm.nn.run_folder import CHECKPOINT, CHECKPOINT_BEFORE, LOCK, has_checkpoint
from ulvm.nn.step import Learner
from ulvm.nn.validate import Validation
from ulvm.presets import find_preset

EPOCHS = 4
REFUSED = 3  # exit code of a process that ends with a sentence
SIZE = 64
CURVES = "curves.png"
OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.chmod", "os.listdir")

Hook = Callable[[str], None]
"""Called at each moment with its kind."""


class FailureError(Exception):
    """Something that must not happen."""


def train_here(data: Path, out: Path, *changes: str) -> None:
    """Train a tiny network, going on where there is a checkpoint."""
    training.CHECKPOINT_SECONDS, training.CHECKPOINT_SHARE = 0.0, float("inf")
    assignments = [
        "data.dataset=folder",
        f"data.split={data / 'split.json'}",
        f"data.image_size={SIZE}",
        "model.widths=8,8,8,8,8,8",
        f"train.epochs={EPOCHS}",
        "train.batch_size=3",
        "train.warmup_epochs=1",
        "train.average_decay=0.9",
    ]
    run = find_preset("best").run.override([*assignments, *changes])
    training.train(run, data, out, device="cpu", resume=has_checkpoint(out), progress=False)


def fork(work: Callable[[], None], log: Path) -> int:
    """Do it in a process of its own; its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with log.open("w") as file:
            try:
                warnings.showwarning = lambda message, *_: print(message, file=file)
                work()
                code = 0
            except InputError as problem:
                print(problem, file=file)
                code = REFUSED
            except BaseException:
                traceback.print_exc(file=file)
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def bits_of(out: Path) -> dict[str, str]:
    """Fingerprints of all that a finished run must have alike."""
    stored = torch.load(out / CHECKPOINT, weights_only=True)
    kept = {name: stored[name] for name in ("model", "averaged", "best", "generator", "optimizer")}
    kept["optimizer"] = kept["optimizer"]["state"]  # the rate is set anew before each step
    kept["weights"] = safetensors.torch.load_file(out / WEIGHTS)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for name, rows in (("history", stored["history"]), ("metrics", lines)):
        kept[name] = [(row["train_loss"], row["validation_loss"]) for row in rows]
    return {
        name: hashlib.sha256(repr(_plain(each)).encode()).hexdigest() for name, each in kept.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return sorted((str(name), _plain(each)) for name, each in value.items())
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def watch(out: Path, hook: Hook) -> None:
    """Call ``hook`` at each moment of what this process does from now on."""
    inside = str(out)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in OPERATIONS and str(arguments[0]).startswith(inside):
            hook(event)

    fsync, fdopen = os.fsync, os.fdopen

    def watched_fsync(handle: int) -> None:
        hook("before fsync")
        fsync(handle)
        hook("after fsync")

    class Halves:
        """A file that is written in two halves."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Halves:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, content: bytes) -> None:
            hook("before write")
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            hook("half written")
            self.file.write(content[len(content) // 2 :])

    os.fsync = watched_fsync
    os.fdopen = lambda handle, mode: Halves(fdopen(handle, mode))  # type: ignore[assignment]
    for owner, name, kind in ((Learner, "update", "step"), (Validation, "run", "validation")):
        _before(owner, name, hook, kind)
    sys.addaudithook(audit)
    hook("start")


def _before(owner: Any, name: str, hook: Hook, kind: str) -> None:
    inner = getattr(owner, name)

    def watched(*arguments: Any) -> Any:
        hook(kind)
        return inner(*arguments)

    setattr(owner, name, watched)


class Chaos:
    """Drawn data, a straight run of it, and the trials.

    Args:
        folder: Where everything lies.
        short: Some moments of each kind instead of all.
        part, parts: Which share of the moments, 0 .. parts - 1, for several to run side by side.
    """

    def __init__(self, folder: Path, short: bool, part: int = 0, parts: int = 1) -> None:
        self.folder, self.short, self.part, self.parts = folder, short, part, parts
        self.data, self.log = folder / "data", folder / "log.txt"
        self.random = random.Random(18)
        synthetic.write_dataset(self.data, 9, seed=1, size_hw=(SIZE, SIZE))
        ids = [pair.id for pair in datasets.find_pairs("folder", self.data)]
        parts = {"train": tuple(ids[:5]), "validation": tuple(ids[5:7]), "test": tuple(ids[7:])}
        splits.Split("own", "folder", parts).save(self.data / "split.json")
        datasets.decode("folder", self.data, size=SIZE)
        self.trials = 0
        self.kinds = self._count()
        self.expected = bits_of(folder / "straight")
        # Drawn once, and by the others only written, which is what can fail.
        curves = (folder / "straight" / CURVES).read_bytes()
        training.draw_curves = lambda out, _: write_atomically(out / CURVES, curves)

    def _count(self) -> list[str]:
        """The kind of each moment of a straight run."""
        kinds: list[str] = []
        listed = self.folder / "moments.json"
        straight = self.folder / "straight"

        def work() -> None:
            watch(straight, kinds.append)
            train_here(self.data, straight)
            listed.write_text(json.dumps(kinds))

        self.require(fork(work, self.log), 0)
        counted: list[str] = json.loads(listed.read_text())
        return counted

    def require(self, code: int, expected: int, said: str = "") -> None:
        """Check how a process ended, and what it said."""
        text = self.log.read_text()
        if code != expected or said.lower() not in text.lower():
            raise FailureError(f"exit code {code}, not {expected} with {said!r}: {text}")

    def fresh(self, name: str) -> Path:
        """A folder for a run that isn't there yet."""
        out = self.folder / name
        shutil.rmtree(out, ignore_errors=True)
        return out

    def finish(self, out: Path, said: str = "") -> None:
        """Go on to the end, and compare all bits."""
        self.require(fork(lambda: train_here(self.data, out), self.log), 0, said)
        self.compare(out)
        if left := [path.name for path in out.glob(".*") if path.name != LOCK]:
            raise FailureError(f"{left} are left")
        self.trials += 1

    def compare(self, out: Path) -> None:
        """Compare all bits of a finished run with the straight one's."""
        found = bits_of(out)
        if other := [name for name in found if found[name] != self.expected[name]]:
            raise FailureError(f"other bits of {', '.join(other)}")

    def refuse(self, out: Path, said: str) -> None:
        """Try to go on, and be told why not."""
        self.require(fork(lambda: train_here(self.data, out), self.log), REFUSED, said)
        self.trials += 1

    def moments(self, most: int, kinds: tuple[str, ...] = ()) -> list[int]:
        """Moments, from 1 on: all, or as many of those as there is time for."""
        chosen = [n for n, kind in enumerate(self.kinds, 1) if not kinds or kind in kinds]
        if not self.short:
            return chosen[self.part :: self.parts]
        return sorted(self.random.sample(chosen, min(most, len(chosen))))

    def stop_at(self, out: Path, moment: int, act: Callable[[], None]) -> int:
        """Train until a moment, and do something there."""
        count = 0

        def hook(_: str) -> None:
            nonlocal count
            count += 1
            if count == moment:
                act()

        def work() -> None:
            watch(out, hook)
            train_here(self.data, out)

        return fork(work, self.log)

    def kill(self) -> str:
        """Kill -9 at each moment; each third run once more while it goes on."""
        twice = 0
        moments = self.moments(8)
        for moment in moments:
            out = self.fresh("killed")
            self.require(self.stop_at(out, moment, _kill), -signal.SIGKILL)
            if moment % 3 == 0:
                again = self.random.randint(1, len(self.kinds) - moment // 2)
                twice += self.stop_at(out, again, _kill) == -signal.SIGKILL
            self.finish(out)
        return f"{len(moments)} of {len(self.kinds)} moments, {twice} killed twice"

    def fill_disk(self) -> str:
        """No room at each operation that needs some."""

        def fail() -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        kinds = ("before write", "half written", "before fsync", "os.rename")
        moments = self.moments(3, kinds)
        for moment in moments:
            out = self.fresh("full")
            code = self.stop_at(out, moment, fail)
            if code:  # what cannot be flushed of a folder is passed over
                self.require(code, REFUSED, "Make room there and try again")
            self.finish(out)
        return f"{len(moments)} moments"

    def cut_power(self) -> str:
        """At each operation, what a disk may hold: all names, or those that were flushed; of the
        files what was flushed."""
        states = self._disks()
        chosen = self.random.sample(states, 3) if self.short else states
        for state in chosen:
            out = self.fresh("cut")
            out.mkdir()
            for name, content in state.items():
                (out / name).write_bytes(content)
            self.finish(out)
        return f"{len(chosen)} of {len(states)} states of the disk"

    def _disks(self) -> list[dict[str, bytes]]:
        found = self.folder / "disks.pickle"
        out = self.fresh("recorded")

        def work() -> None:
            states: dict[str, dict[str, bytes]] = {}
            with recorded(out, states):
                train_here(self.data, out)
            found.write_bytes(pickle.dumps(list(states.values())))

        self.require(fork(work, self.log), 0)
        states: list[dict[str, bytes]] = pickle.loads(found.read_bytes())
        return states

    def damage(self) -> str:
        """Flipped bits and cut ends of the last checkpoint: the one before is used."""
        source = self.fresh("whole")
        self.require(self.stop_at(source, self._late(), _kill), -signal.SIGKILL)
        content = (source / CHECKPOINT).read_bytes()
        count = 3 if self.short else 60
        told = 0
        for trial in range(count):
            out = self.fresh("damaged")
            shutil.copytree(source, out)
            place = self.random.randrange(len(content))
            changed = bytearray(content)
            changed[place] ^= 1 << self.random.randrange(8)
            (out / CHECKPOINT).write_bytes(content[:place] if trial % 3 == 0 else changed)
            if trial % 2:  # the good one before must outlive what follows as well
                self.stop_at(out, self.random.randrange(1, len(self.kinds) // 2), _kill)
            self.finish(out)
            told += "is damaged" in self.log.read_text()
        shutil.copytree(source, self.fresh("both"))
        for name in (CHECKPOINT, CHECKPOINT_BEFORE):
            (self.folder / "both" / name).write_bytes(b"\0" * 99)
        self.refuse(self.folder / "both", "start again in another folder")
        return f"{count} damages, {told} told where no kill came first, half of them killed after"

    def _late(self) -> int:
        """A step of the fourth epoch."""
        return [n for n, kind in enumerate(self.kinds, 1) if kind == "step"][7]

    def change_data(self) -> str:
        """Pictures and masks lost or changed, another split; then all as it was."""
        out = self.fresh("changed")
        self.require(self.stop_at(out, self._late(), _kill), -signal.SIGKILL)
        count = 0
        for side, lost, other in (
            ("images", "without a picture", "pictures of folder have changed"),
            ("masks", "without a mask", "masks of folder have changed"),
        ):
            first, second, *_ = sorted((self.data / side).iterdir())
            content = first.read_bytes()
            first.unlink()
            self.refuse(out, lost)
            first.write_bytes(second.read_bytes())
            self.refuse(out, other)
            first.write_bytes(content)
            count += 2
        split = self.data / "split.json"
        content = split.read_bytes()
        stored = json.loads(content)
        stored["parts"]["train"].pop()
        split.write_text(json.dumps(stored))
        self.refuse(out, "the split of folder has changed")
        split.write_bytes(content)
        self.finish(out)
        return f"{count + 1} changes refused"

    def share(self) -> str:
        """Two processes in one folder: the second is told, the first ends as ever."""
        out = self.fresh("shared")

        def second() -> None:
            code = fork(lambda: train_here(self.data, out), self.folder / "second.txt")
            if code != REFUSED:
                raise FailureError(f"the second process ended with {code}")

        moments = self.moments(2, ("step", "validation"))
        for moment in moments:
            out = self.fresh("shared")
            self.require(self.stop_at(out, moment, second), 0)
            if "Another process trains in" not in (self.folder / "second.txt").read_text():
                raise FailureError((self.folder / "second.txt").read_text())
            self.compare(out)
            self.trials += 1
        return f"{len(moments)} moments"

    def starve(self) -> str:
        """Too little memory for a large network, then enough for ours."""
        out = self.fresh("starved")

        def work() -> None:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20), resource.RLIM_INFINITY))
            train_here(self.data, out, "train.batch_size=5", "data.image_size=2048")

        self.require(fork(work, self.log), REFUSED, "too little memory")
        self.finish(out)
        return "1 large network"

    def mount(self) -> str:
        """A disk that really is full, then read-only, then larger; where one can be mounted."""
        disk = self.folder / "disk"
        disk.mkdir()
        out = disk / "run"
        try:
            _mount(disk, "-t", "tmpfs", "-o", "size=300k", "none")
        except (subprocess.CalledProcessError, OSError):
            return "skipped: no disk can be mounted here"
        try:
            self.refuse(out, "No space left on device")
            _mount(disk, "-o", "remount,ro,size=300k")
            self.refuse(out, "Read-only file system")
            _mount(disk, "-o", "remount,rw,size=20m")
            self.finish(out)
        finally:
            subprocess.run(["umount", disk], check=True)
        return "a full, a read-only and a larger one"


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _mount(disk: Path, *words: str) -> None:
    subprocess.run(["mount", *words, disk], check=True, capture_output=True)


@contextlib.contextmanager
def recorded(out: Path, states: dict[str, dict[str, bytes]]) -> Iterator[None]:
    """Gather what the disk may hold after each operation, each state once."""
    names: dict[str, list[bytes]] = {}  # to the flushed content, shared by both tables
    flushed_names: dict[str, list[bytes]] = {}
    mkstemp, replace, unlink, fsync = tempfile.mkstemp, Path.replace, Path.unlink, os.fsync

    def look() -> None:
        for table in (names, flushed_names):
            state = {name: content[0] for name, content in table.items()}
            states.setdefault(hashlib.sha256(repr(state).encode()).hexdigest(), state)

    def watched_mkstemp(**options: Any) -> tuple[int, str]:
        handle, name = mkstemp(**options)
        names[Path(name).name] = [b""]
        look()
        return handle, name

    def watched_replace(self: Path, target: Path) -> Path:
        result = replace(self, target)
        names[Path(target).name] = names.pop(self.name)
        look()
        return result

    def watched_unlink(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        names.pop(self.name, None)

    def watched_fsync(handle: int) -> None:
        fsync(handle)
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if path == out:
            flushed_names.clear()
            flushed_names.update(names)
        elif path.parent == out:
            names[path.name][0] = path.read_bytes()
        look()

    tempfile.mkstemp, os.fsync = watched_mkstemp, watched_fsync  # type: ignore[assignment]
    Path.replace, Path.unlink = watched_replace, watched_unlink  # type: ignore[method-assign,assignment]
    yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="some moments of each kind")
    parser.add_argument("--only", help="a trial by its name, such as kill")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="a share of the moments")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    torch.set_num_threads(1)  # what forks must have no threads
    for package in ("torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        importlib.import_module(package)  # once, not in every process
    run_folder.commit()  # likewise
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ULVM_CACHE"] = str(Path(folder) / "cache")
        chaos = Chaos(Path(folder).resolve(), options.short, part - 1, parts)
        trials = [chaos.kill, chaos.fill_disk, chaos.cut_power, chaos.damage, chaos.change_data]
        for trial in [*trials, chaos.share, chaos.starve, chaos.mount]:
            if options.only not in (None, trial.__name__):
                continue
            started, before = time.monotonic(), chaos.trials
            try:
                said = trial()
            except FailureError as failure:
                failed, said = True, f"FAILED: {failure}"
            took = time.monotonic() - started
            name = trial.__name__.replace("_", " ")
            print(f"{name}: {said}; {chaos.trials - before} trials, {took:.0f} s", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
