"""Where a result comes from: versions, commit, machine, and the pictures that a model has seen."""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ulvm import splits
from ulvm.errors import InputError
from ulvm.looks import DIGITS, are_copies
from ulvm.spec import LARGEST_SIZE, RunSpec
from ulvm.version import __version__

if TYPE_CHECKING:
    from ulvm.datasets.cache import DecodedDataset

_PACKAGE = Path(__file__).parent
SHIPPED_LOOKS = _PACKAGE / "weights" / "looks.json"
SHIPPED_SPLIT = "skin"  # whose pictures all shipped models have seen, or fewer
_NAMELESS = {"folder"}  # data sets in which an id is a file's name, and no picture's own


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
    if _run_git(root, "rev-parse", "--show-prefix") != "":
        return None
    if not _run_git(root, "ls-files", "src/ulvm"):  # another's, into which ulvm was copied
        return None
    return _run_git(root, "describe", "--always", "--dirty", "--abbrev=12") or None


def _run_git(folder: Path, *words: str) -> str | None:
    # A hook of another repository names that one in variables.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, env=clean, capture_output=True, text=True, check=False
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


@dataclass(frozen=True)
class Seen:
    """What a run has seen of a data set: it was trained and chosen with these pictures.

    Args:
        split: With the ids of its parts.
        pictures: A fingerprint (`DecodedDataset.fingerprints`) for each id of the training part,
            then of the validation part; none of a model that is older than them.
        masks: Fingerprint of all masks of both parts, for a run to be resumed with the same.
        size: Height and width that the fingerprints were taken at; 0 for the model's own.
        looks: What each picture looks like (`looks.look_of`), in the order of `ids`; none of most
            models that are older.
    """

    split: splits.Split
    pictures: tuple[str, ...] = ()
    masks: str = ""
    size: int = 0
    looks: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the training part, then of the validation part."""
        return (*self.split.parts["train"], *self.split.parts["validation"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: ids and looks only where ulvm doesn't come with them."""
        stored = self.split.to_dict() | {"hash": self.split.hash}
        name, dataset = self.split.name, self.split.dataset
        known = name in splits.available_splits(dataset)
        if known and splits.load_split(dataset, name).hash == self.split.hash:
            del stored["parts"]
        looks = "" if self.looks == _looks_of(self.split) else "".join(self.looks)
        pictures = {"pictures": "".join(self.pictures), "size": self.size, "looks": looks}
        return stored | pictures | {"masks": self.masks}

    @classmethod
    def from_dict(cls, stored: Any) -> Self:
        """What `to_dict` made.

        Raises:
            InputError: It is something else.
        """
        try:
            dataset, name = str(stored["dataset"]), str(stored["name"])
            if "parts" in stored:
                split = splits.split_from(stored, dataset, name)
            else:
                split = splits.load_split(dataset, name)
            pictures = tuple(re.findall("[0-9a-f]{16}", stored["pictures"]))
            found = re.findall(f"[0-9a-f]{{{DIGITS}}}", stored.get("looks", ""))
            looks = tuple(found) or _looks_of(split)
            size = int(stored.get("size", 0))
            seen = cls(split, pictures, str(stored["masks"]), size, looks)
            whole = {len(pictures), len(looks)} <= {0, len(seen.ids)} and 0 <= size <= LARGEST_SIZE
            if whole and split.hash == stored["hash"]:
                return seen
        except (KeyError, TypeError, ValueError, AttributeError):
            pass
        raise _damaged()

    def changes(self, now: Seen) -> str:
        """How the same data set differs now, in words; empty if it doesn't."""
        dataset = self.split.dataset
        if now.split.hash != self.split.hash:
            return f"the split of {dataset} has changed ({self.split.hash} → {now.split.hash})"
        changed = [
            id_
            for id_, before, after in zip(self.ids, self.pictures, now.pictures, strict=True)
            if before != after
        ]
        if changed:
            some = splits.name_some(changed)
            return f"{len(changed)} pictures of {dataset} have changed: {some}"
        return f"masks of {dataset} have changed" if now.masks != self.masks else ""


def read_seen(run: RunSpec, provenance: Mapping[str, Any]) -> list[Seen]:
    """What a model has seen, one for each data set of its run, then what its parents have.

    Args:
        run: How the model was made.
        provenance: What its file says beside: `seen` as `Seen.to_dict` gives it; an older one
            has the hash of each split at most, which is then read from where it lies. `parent`
            is the model that it started from, if any, with all that that one has seen.

    Raises:
        InputError: Damaged; or a split file is missing or has changed.
    """
    own = _read_own(run, provenance)
    parent = provenance.get("parent")
    if parent is None:
        return own
    stored = parent.get("seen") if isinstance(parent, Mapping) else None
    if not isinstance(stored, list):
        raise _damaged()
    return [*own, *map(Seen.from_dict, stored)]


def _read_own(run: RunSpec, provenance: Mapping[str, Any]) -> list[Seen]:
    if "seen" in provenance:
        stored = provenance["seen"]
        seen = [Seen.from_dict(each) for each in stored] if isinstance(stored, list) else []
        if [each.split.dataset for each in seen] != [source.dataset for source in run.data.sources]:
            raise _damaged()
        return seen
    hashes = provenance.get("split_hashes") or {run.data.dataset: provenance.get("split_hash")}
    found = []
    for source in run.data.sources:
        split = splits.load_split(source.dataset, source.split)
        expected = hashes.get(source.dataset, split.hash) or split.hash
        if source.split.endswith(".json") and not split.open_parts and expected != split.hash:
            raise InputError(
                f"{source.split} has changed since the model was trained "
                f"({expected} → {split.hash})",
                "without the split of then, pictures that it was trained with may be scored",
                "put the old file back",
            )
        found.append(Seen(split, looks=_looks_of(split)))
    return found


def ids_of_shipped(dataset: str) -> list[str]:
    """The pictures of a data set that the shipped models have seen, as `SHIPPED_LOOKS` has them."""
    if SHIPPED_SPLIT not in splits.available_splits(dataset):
        return []
    parts = splits.load_split(dataset, SHIPPED_SPLIT).parts
    return sorted([*parts["train"], *parts["validation"]])


@functools.cache
def _shipped_looks(dataset: str) -> dict[str, str]:
    """What each picture of a data set looks like that the shipped models have seen, by its id."""
    stored = json.loads(SHIPPED_LOOKS.read_bytes()).get(dataset, "")
    looks = re.findall(f".{{{DIGITS}}}", stored)
    return dict(zip(ids_of_shipped(dataset), looks, strict=True))


def _looks_of(split: splits.Split) -> tuple[str, ...]:
    """What the pictures of a split look like, as far as ulvm comes with it: of all, or none."""
    known, ids = _shipped_looks(split.dataset), Seen(split).ids
    return tuple(known[id_] for id_ in ids) if known.keys() >= set(ids) else ()


def _damaged() -> InputError:
    return InputError(
        "what the model says of the pictures it was trained with is damaged",
        "without it no score can be trusted",
        "copy the file again",
    )


def find_own_split(seen: Iterable[Seen], pictures: DecodedDataset) -> splits.Split | None:
    """The split by which a model was made of this data set, for its test part to be scored.

    A folder of one's own is known by what its pictures look like, or, where it has none of those
    that were trained with, by the names of the test part.
    """
    for each in seen:
        if each.split.dataset != pictures.name:
            continue
        if pictures.name in _NAMELESS and each.pictures:
            there = set(pictures.ids)
            known = dict(zip(each.ids, each.pictures, strict=True))
            both = [id_ for id_ in known if id_ in there]
            looks = zip(both, pictures.fingerprints(both, each.size), strict=True)
            if both and not any(known[id_] == look for id_, look in looks):
                continue
            if not both and not there & set(each.split.parts["test"]):
                continue
        return each.split
    return None


def choose_unseen(
    ids: Sequence[str],
    seen: Iterable[Seen],
    pictures: DecodedDataset,
    scored: splits.Split,
    *,
    part: str,
    drop: bool,
) -> list[str]:
    """The pictures that may be scored with a model: those it was neither trained nor chosen with.

    A picture is known by its fingerprint, and by its id where that is its own: ISIC 2018 repeats
    most of ISIC 2017 under the same ids. Names of two people's folders say nothing.

    Args:
        ids: What is to be scored.
        seen: See `read_seen`.
        pictures: The data set that is scored.
        scored: The split that ``ids`` are a part of.
        part: Which part: one that the model has seen may be scored if asked for by name.
        drop: Leave seen pictures, and what looks like copies of them, out instead of refusing.

    Raises:
        InputError: Some were seen and ``drop`` is false, or none is left.
    """
    left = list(ids)
    for each in seen:
        split = each.split
        if scored.dataset == split.dataset:
            split = split.resolve(pictures.pairs)
        if part != "test" and scored.hash == split.hash:
            continue
        by_name = not (each.pictures and {scored.dataset, split.dataset} <= _NAMELESS)
        names = {*split.parts["train"], *split.parts["validation"]} if by_name else set()
        looks = pictures.fingerprints(left, each.size) if each.pictures else left
        known = set(each.pictures)
        pairs = zip(left, looks, strict=True)
        unseen = [id_ for id_, look in pairs if id_ not in names and look not in known]
        if drop:
            copies = set(find_copies(unseen, [each], pictures))
            unseen = [id_ for id_ in unseen if id_ not in copies]
        count = len(left) - len(unseen)
        if count and (not drop or not unseen):
            raise InputError(
                f"{count} of these {len(left)} pictures were in the training or validation part "
                f"({split.dataset}, {split.name}) of this model",
                "a score needs pictures that it has not seen",
                "pass --exclude-seen to score the others" if unseen else "choose another part",
            )
        left = unseen
    return left


def find_copies(ids: Sequence[str], seen: Iterable[Seen], pictures: DecodedDataset) -> list[str]:
    """Those of these pictures that look like one that the model has seen.

    A copy may be turned, flipped, of another size or saved anew; what is cut off by more than some
    hundredths isn't found, nor what a model saw that is older than `Seen.looks`.
    """
    known = [look for each in seen for look in each.looks]
    copied = are_copies(pictures.looks(ids), known) if known else [False] * len(ids)
    return [id_ for id_, is_copy in zip(ids, copied, strict=True) if is_copy]
