"""The runs of experiments: train, score, keep one result file each; go on where it stopped."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ulvm import datasets, splits
from ulvm.errors import InputError
from ulvm.evaluate import Evaluation, ProbabilityOf, evaluate
from ulvm.files import write_atomically
from ulvm.nn.checkpoint import load_probability
from ulvm.nn.distributed import choose_device, share_devices, share_threads
from ulvm.nn.run_folder import RUN, has_checkpoint
from ulvm.nn.train import train
from ulvm.reproduce.experiments import PERMUTATION, find_experiment
from ulvm.spec import RunSpec


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One run of a table and where everything about it lies."""

    preset: str
    name: str  # dataset/split/preset-seed
    run: RunSpec
    scored_on: list[tuple[str, str]]  # data set and split of each test part
    data_dir: Path
    run_dir: Path
    result: Path
    device: str
    side_by_side: int


def reproduce(
    tables: Sequence[str],
    data_dir: Path,
    results_dir: Path,
    runs_dir: Path,
    *,
    device: str = "auto",
    side_by_side: int = 1,
    only: Sequence[str] = (),
    assignments: Sequence[str] = (),
) -> Iterator[tuple[str, int, int]]:
    """Train and score the runs of tables that have no result yet.

    A run is scored on the test part of its own split and on PH2; one of ISIC 2018 on the test part
    of ISIC 2017 too, for the audit of leaks alone. A stopped run is resumed.

    Args:
        tables: Keys of ``EXPERIMENTS``; a run that several of them share is made once.
        data_dir: Holds the data sets as downloaded, in folders of their names: ``isic2017``,
            ``isic2018``, ``ph2``.
        results_dir: Gets ``dataset/split/preset-seed.json``.
        runs_dir: Gets the run folders, under the same names.
        device: As ``train``; with ``auto`` the runs take turns on all GPUs.
        side_by_side: Processes that train at the same time.
        only: Runs whose name holds one of these, such as ``branches-1-`` or ``sorted/``; else all.
        assignments: Changes to every run, as ``--set``, to try things; keep such results apart.

    Yields:
        After each run, in the order in which they end: what became of it, how many are done, how
        many there are.

    Raises:
        InputError: No such table, data missing, or a result of another run under the same name;
            after all runs, if some have failed.
    """
    rows = [row for table in tables for row in find_experiment(table).rows]
    by_name = {
        name: _Job(
            preset=row.preset,
            name=name,
            run=run.override(assignments),
            scored_on=_scored_on(run),
            data_dir=data_dir,
            run_dir=runs_dir / name,
            result=results_dir / f"{name}.json",
            device=device,
            side_by_side=side_by_side,
        )
        for row in rows
        for name, run in zip(row.names(), row.runs(), strict=True)
        if not only or any(part in name for part in only)
    }
    jobs = list(by_name.values())
    if not jobs:
        raise InputError(
            f"no run of {', '.join(tables)} has {' or '.join(only)} in its name",
            "the names are " + ", ".join(name for row in rows for name in row.names()),
            "give a part of one to --only",
        )
    turns = itertools.cycle(share_devices(device))
    left = [replace(job, device=next(turns)) for job in jobs if not _is_done(job)]
    for dataset in sorted({target for job in left for target, _ in job.scored_on}):
        _decode(dataset, data_dir, left[0].run.data.image_size)  # once, not in every process
    done = len(jobs) - len(left)
    for said, made in _work_all(left, side_by_side):
        done += made
        yield said, done, len(jobs)
    if done < len(jobs):
        raise InputError(
            f"{len(jobs) - done} of {len(jobs)} runs failed",
            "the others have their results",
            "see what was said of each. The same command tries them again",
        )


def _work_all(jobs: list[_Job], side_by_side: int) -> Iterator[tuple[str, bool]]:
    if side_by_side == 1:
        yield from map(_try, jobs)
        return
    spawn = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(side_by_side, mp_context=spawn) as pool:
        for future in as_completed([pool.submit(_try, job) for job in jobs]):
            yield future.result()


def _is_done(job: _Job) -> bool:
    if not job.result.exists():
        return False
    if RunSpec.from_dict(json.loads(job.result.read_text())["run"]) != job.run:
        raise InputError(
            f"{job.result} is the result of another run",
            "",
            "choose another --results folder, or move that file away",
        )
    return True


def _scored_on(run: RunSpec) -> list[tuple[str, str]]:
    own = (run.data.dataset, run.data.split)
    audit = [("isic2017", PERMUTATION)] if run.data.dataset == "isic2018" else []
    return [own, ("ph2", "all"), *audit]


def _decode(dataset: str, data_dir: Path, size: int) -> datasets.DecodedDataset:
    return datasets.decode(dataset, data_dir / dataset, size=size)


def _try(job: _Job) -> tuple[str, bool]:
    """What became of a run, and whether it has a result: one that fails stops no other."""
    try:
        return _work(job), True
    except Exception as error:  # a loss that is not finite, a GPU without memory, …
        return f"{job.name} failed: {error}", False


def _work(job: _Job) -> str:
    """Train, score and write one run; a line about it."""
    if job.side_by_side > 1:
        share_threads(job.side_by_side)
    resumed = has_checkpoint(job.run_dir)
    start = time.perf_counter()
    train(
        job.run,
        job.data_dir / job.run.data.dataset,
        job.run_dir,
        device=job.device,
        resume=resumed,
        progress=job.side_by_side == 1,  # several bars would overwrite each other
    )
    train_s = time.perf_counter() - start
    stored = json.loads((job.run_dir / RUN).read_text())
    probability_of, run = load_probability(job.run_dir, str(choose_device(job.device)))
    scores = [_score(job, probability_of, dataset, split) for dataset, split in job.scored_on]
    result = {
        "preset": job.preset,
        "run": run.to_dict(),
        "split": {name: stored["split"][name] for name in ("name", "hash")},
        # A resumed run's time is not that of a whole one.
        "train_s": None if resumed else round(train_s, 1),
        "side_by_side": job.side_by_side,
        **{
            name: stored[name]
            for name in ("parameters", "best", "versions", "machine", "git_commit")
        },
        "date": datetime.now(UTC).date().isoformat(),
        "scores": scores,
    }
    write_atomically(job.result, _json(result))
    own, ph2 = scores[:2]
    return (
        f"{job.name}: pooled DSC {own['pooled']['dsc']:.4f}, PH2 {ph2['pooled']['dsc']:.4f}, "
        f"{train_s:.0f} s"
    )


def _score(
    job: _Job, probability_of: ProbabilityOf, dataset: str, split_name: str
) -> dict[str, Any]:
    decoded = _decode(dataset, job.data_dir, job.run.data.image_size)
    split = splits.load_split(dataset, split_name).resolve(decoded.pairs)
    scored = evaluate(
        probability_of,
        decoded,
        split.ids("test"),
        threshold=job.run.threshold,
        boundary=False,
        split=split.name,
        split_hash=split.hash,
        part="test",
    )
    return {"dataset": dataset, **_counted(scored)}


def _counted(scored: Evaluation) -> dict[str, Any]:
    """Scores, and the counts of each picture in the order of the split's ids."""
    scores = scored.to_dict()
    counts = scored.counts
    return {
        **{name: scores[name] for name in ("split", "images", "pooled", "per_image")},
        "pixels": scored.size_hw[0] * scored.size_hw[1],
        "tp": counts.tp.tolist(),
        "fp": counts.fp.tolist(),
        "fn": counts.fn.tolist(),
    }


def _json(result: dict[str, Any]) -> bytes:
    """Indented, with lists of numbers on one line."""
    text = json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[[\d,\s]+\]", lambda found: " ".join(found[0].split()), text)
    return f"{text}\n".encode()
