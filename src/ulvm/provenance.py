"""Where a result comes from: versions, commit, machine, and the pictures that a model has seen."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from ulvm import splits
from ulvm.errors import InputError
from ulvm.spec import RunSpec
from ulvm.version import __version__

_PACKAGE = Path(__file__).parent


def versions(*packages: str) -> dict[str, str]:
    """Versions of ulvm, Python and installed packages; of those that decide a result by default."""
    names = packages or ("torch", "numpy")
    found = {name: metadata.version(name) for name in names}
    return {"ulvm": __version__, "python": platform.python_version(), **found}


def git_commit(folder: Path = _PACKAGE) -> str | None:
    """The commit of the checkout that the package lies in, with `-dirty` if it was changed.

    None for an installed package, also where its folder lies inside another project's repository,
    and where there is no git.
    """
    root = folder.parents[1]
    if _run_git(root, "rev-parse", "--show-prefix") != "" or not (root / "src" / "ulvm").is_dir():
        return None
    return _run_git(root, "describe", "--always", "--dirty", "--abbrev=12") or None


def _run_git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def processor() -> str:
    """The processor's name."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def choose_unseen(
    ids: Sequence[str],
    run: RunSpec,
    pairs: Iterable[splits.HasPart],
    scored: splits.Split,
    *,
    part: str,
    drop: bool,
) -> list[str]:
    """The pictures that may be scored with a model: those that its run has not seen.

    Args:
        ids: What is to be scored.
        run: How the model was made; the training and validation parts of its splits are seen.
        pairs: The pairs of the data set that is scored.
        scored: The split that ``ids`` are a part of.
        part: Which part: one that the model has seen may be scored if asked for by name.
        drop: Leave seen pictures out instead of refusing.

    Raises:
        InputError: Some were seen and ``drop`` is false, or none is left.
    """
    pairs = list(pairs)
    for source in run.data.sources:
        trained_on = splits.load_split(source.dataset, source.split)
        if scored.dataset == source.dataset:
            trained_on = trained_on.resolve(pairs)
        if part == "test" or scored != trained_on:
            ids = exclude_seen(ids, trained_on, drop=drop)
    return list(ids)


def exclude_seen(ids: Sequence[str], trained_on: splits.Split, *, drop: bool) -> list[str]:
    """The ids that may be scored with a model: those it was neither trained nor chosen with.

    ISIC 2018 repeats most of ISIC 2017 under the same ids, and two splits of one year overlap.

    Args:
        ids: What is to be scored.
        trained_on: Split of the model's run; its training and validation parts count as seen.
        drop: Leave seen ids out instead of refusing.

    Returns:
        The unseen ids, in order.

    Raises:
        InputError: Some were seen and ``drop`` is false, or none is left.
    """
    seen = {id_ for part in ("train", "validation") for id_ in trained_on.parts.get(part, ())}
    unseen = [id_ for id_ in ids if id_ not in seen]
    count = len(ids) - len(unseen)
    if count and (not drop or not unseen):
        raise InputError(
            f"{count} of these {len(ids)} pictures were in the training or validation part "
            f"({trained_on.dataset}, {trained_on.name}) of this model",
            "a score needs pictures that it has not seen",
            "pass --exclude-seen to score the others" if unseen else "choose another part",
        )
    return unseen
