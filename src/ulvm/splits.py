"""Which picture is in training, validation and test: committed id lists, their hash, own folds."""

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ulvm.errors import InputError, install_extra, printable, unknown_name
from ulvm.files import write_atomically
from ulvm.limits import JSON_BYTES, parse_json, read_file
from ulvm.spec import FOLDER_SPLIT

PARTS = ("train", "validation", "test")

EVERYTHING = "all"
"""Name of the split whose test part is every picture; of PH2 it is committed."""

_LISTS = resources.files("ulvm") / "split_lists"


class HasPart(Protocol):
    """Anything with an id and the part of the download it was found in, such as a `Pair`."""

    @property
    def id(self) -> str: ...
    @property
    def part(self) -> str: ...


@dataclass(frozen=True)
class Split:
    """The ids of one data set in three parts that share none.

    Args:
        name: Name of the split, such as `paper-permutation`.
        dataset: Name of the data set, such as `isic2017`.
        parts: Ids of `train`, `validation` and `test`; a part left out is empty.
        open_parts: Parts that stand for "every id of that official part", whose ids are known
            only once the data is there; `resolve` fills them.

    Raises:
        InputError: An id is in two parts or twice in one, or a part has another name.
    """

    name: str
    dataset: str
    parts: Mapping[str, tuple[str, ...]]
    open_parts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part in [*self.parts, *self.open_parts]:
            if part not in PARTS:
                raise unknown_name(f"split '{self.name}' has a part '{part}'", part, PARTS)
        parts = {part: tuple(self.parts.get(part, ())) for part in PARTS}
        object.__setattr__(self, "parts", parts)
        found_in: dict[str, list[str]] = {}
        for part, ids in parts.items():
            for id_ in ids:
                found_in.setdefault(id_, []).append(part)
        leaks = [f"{id_} ({', '.join(where)})" for id_, where in found_in.items() if where[1:]]
        if leaks:
            raise InputError(
                f"split '{self.name}' has {len(leaks)} ids more than once: {name_some(leaks)}",
                "an id is in one part once, or the scores are worth nothing",
                "take each out of all parts but one",
            )

    @property
    def sha256(self) -> str:
        """64 hex digits over the data set's name and each part's ids, in any order."""
        ids = {
            part: None if part in self.open_parts else sorted(self.parts[part]) for part in PARTS
        }
        canonical = json.dumps(
            {"dataset": self.dataset, "parts": ids}, sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def hash(self) -> str:
        """The first 12 hex digits of `sha256`."""
        return self.sha256[:12]

    def ids(self, part: str) -> tuple[str, ...]:
        """The ids of a part that must have some.

        Args:
            part: `train`, `validation` or `test`.

        Returns:
            One id or more.

        Raises:
            InputError: There is no such part, it is empty, or its download isn't there.
        """
        if part not in PARTS:
            raise unknown_name(f"'{part}' is no part of a split", part, PARTS)
        if part in self.open_parts and self.name == FOLDER_SPLIT:
            folder = {"validation": "val"}.get(part, part)
            raise InputError(
                f"no pictures in {folder}/",
                "without a split, a folder is split as it is sorted: train/, val/ and test/, each "
                "with images/ and masks/",
                "sort the pictures so, or name a split file; `ulvm data split` writes some",
            )
        if part in self.open_parts:
            raise InputError(
                f"the {part} part of split '{self.name}' of {self.dataset} has no ids",
                f"it is the official {part} part, found in the downloaded data",
                f"put {self.dataset}'s official {part} images and ground truth beside the "
                "training part",
            )
        if not self.parts[part]:
            filled = [name for name in PARTS if self.parts[name]]
            raise InputError(
                f"the {part} part of split '{self.name}' of {self.dataset} is empty",
                f"it has ids in {' and '.join(filled) or 'no part'}",
                "choose another part or split",
            )
        return self.parts[part]

    def resolve(self, pairs: Iterable[HasPart]) -> "Split":
        """The split with its open parts filled from what was found.

        Args:
            pairs: What `datasets.find_pairs` gives.

        Returns:
            The same split; a part that isn't in the data stays open, and `ids` says so.
        """
        found: dict[str, list[str]] = {part: [] for part in self.open_parts}
        for pair in pairs:
            if pair.part in found:
                found[pair.part].append(pair.id)
        filled = {part: tuple(sorted(ids)) for part, ids in found.items() if ids}
        still_open = tuple(part for part in self.open_parts if part not in filled)
        return Split(self.name, self.dataset, {**self.parts, **filled}, still_open)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `split_from` gives an equal split back."""
        parts = {
            part: None if part in self.open_parts else list(self.parts[part]) for part in PARTS
        }
        return {"name": self.name, "dataset": self.dataset, "parts": parts}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the split as JSON that `load_split` reads; the file appears whole or not at all."""
        write_atomically(path, f"{json.dumps(self.to_dict(), indent=1)}\n".encode())


def available_splits(dataset: str) -> list[str]:
    """Names of the committed splits of a data set; none for a folder of one's own."""
    prefix, suffix = f"{dataset}-", ".json"
    names = sorted(file.name for file in _LISTS.iterdir())
    return [
        name.removeprefix(prefix).removesuffix(suffix)
        for name in names
        if name.startswith(prefix) and name.endswith(suffix)
    ]


def load_split(dataset: str, name_or_path: str | os.PathLike[str]) -> Split:
    """A committed split by name, or one of your own by the path of its JSON file.

    Args:
        dataset: `isic2017`, `isic2018`, `ph2` or `folder`.
        name_or_path: A name that `available_splits` lists, or a path that ends in `.json`, whose
            file holds `{"name", "dataset", "parts": {"train": [ids], …}}`; `folders` of a folder
            that is sorted into `train/`, `val/` and `test/`.

    Returns:
        The split; `official` and `folders` have open parts until `resolve` is called.

    Raises:
        InputError: No such split or file, or the file isn't a split of this data set.
    """
    given = os.fspath(name_or_path)
    if given.endswith(".json"):
        return _parse_split(dataset, Path(given))
    if dataset == "folder" and given == FOLDER_SPLIT:
        return Split(FOLDER_SPLIT, dataset, {}, PARTS)
    known = available_splits(dataset)
    if given not in known:
        missing = f"no split '{given}' of {dataset}"
        if known:
            raise unknown_name(missing, given, known)
        raise InputError(
            missing, "it has no committed splits", "name the .json file of a split of your own"
        )
    with resources.as_file(_LISTS / f"{dataset}-{given}.json") as path:
        return _parse_split(dataset, path)


def choose_split(dataset: str, name: str | None, usual: str, pairs: Iterable[HasPart]) -> Split:
    """The split to score a model by.

    Args:
        dataset: Name of the data set.
        name: The one that was asked for, `all` for every picture, or none.
        usual: The one to take then; if the data set hasn't got it, every picture.
        pairs: What `datasets.find_pairs` gives.

    Returns:
        It, resolved.

    Raises:
        InputError: See `load_split`.
    """
    known = available_splits(dataset)
    if name is None:
        name = usual if usual in known else EVERYTHING
    if name == EVERYTHING and name not in known:
        return Split(EVERYTHING, dataset, {"test": tuple(pair.id for pair in pairs)})
    return load_split(dataset, name).resolve(pairs)


_FORM = 'a split is {"name": …, "dataset": …, "parts": {"train": [ids], …}}'
_REMEDY = "write it with Split.save or correct it by hand"


def _parse_split(dataset: str, path: Path) -> Split:
    try:
        content = parse_json(read_file(path, JSON_BYTES))
    except InputError as error:
        given = f"the split cannot be read: {error.given}"
        raise InputError(given, _FORM, error.remedy) from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error})", _FORM, _REMEDY) from error
    return split_from(content, dataset, str(path))


def split_from(content: Any, dataset: str, where: str) -> Split:
    """The split that `Split.to_dict` or a split file describes.

    Args:
        content: Values of JSON.
        dataset: Name of the data set that it must be of.
        where: What to call it in messages, such as the file's path; its stem names a nameless one.

    Raises:
        InputError: It is no split, or one of another data set.
    """
    parts = content.get("parts") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not all(
        ids is None or (isinstance(ids, list) and all(isinstance(id_, str) for id_ in ids))
        for ids in parts.values()
    ):
        raise InputError(f"{where} holds no lists of ids under 'parts'", _FORM, _REMEDY)
    if content.get("dataset", dataset) != dataset:
        raise InputError(
            f"{where} is a split of {content['dataset']}",
            f"a split of {dataset} is needed",
            "choose the data set that the ids are from",
        )
    return Split(
        printable(content.get("name", Path(where).stem)),
        dataset,
        {part: tuple(map(normal_id, ids)) for part, ids in parts.items() if ids is not None},
        tuple(part for part, ids in parts.items() if ids is None),
    )


def make_folds(
    ids: Sequence[str],
    *,
    folds: int,
    seed: int,
    areas: Sequence[float] | npt.NDArray[np.float64] | None = None,
    groups: Sequence[str] | None = None,
    dataset: str = "folder",
) -> list[Split]:
    """Splits for cross-validation: each id is in the test part of exactly one of them.

    Fold k is tested on part k of the ids, validated on the next part, trained on the others.

    Args:
        ids: Ids, each once.
        folds: Number of splits, 3 or more.
        seed: Seed of the shuffling, 0 to 2³² - 1.
        areas: Lesion area of each id, in any unit; each fold then gets small and large lesions
            alike (by quantiles).
        groups: Group of each id, such as the patient; a group is never divided.
        dataset: Name of the data set.

    Returns:
        One split per fold, named `fold1-of-5-seed42` and so on; `Split.save` writes them.

    Raises:
        InputError: Too few ids or groups for so many folds, lists of different length, an id
            twice, a seed out of range, or scikit-learn isn't installed.
    """
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise InputError(
            "scikit-learn is not installed",
            "folds are made with it",
            install_extra("eval"),
        ) from error
    for name, values in [("areas", areas), ("groups", groups)]:
        if values is not None and len(values) != len(ids):
            raise InputError(
                f"got {len(values)} {name} for {len(ids)} ids",
                f"each id needs one of {name}",
                "match them",
            )
    if not 0 <= seed < 2**32:
        raise InputError(
            f"seed={seed} is out of range", "seeds are whole numbers from 0 to 4,294,967,295", ""
        )
    grouping = np.unique(list(ids if groups is None else groups), return_inverse=True)[1]
    units = int(grouping.max(initial=-1)) + 1
    if not 3 <= folds <= units:
        raise InputError(
            f"cannot make {folds} folds of {units} {'ids' if groups is None else 'groups'}",
            "there are at least 3 (train, validation, test) and at most one for each id or group",
            "change the number of folds",
        )
    strata = np.zeros(len(ids), dtype=np.int64)
    if areas is not None:
        quantiles = min(5, len(ids) // folds)
        strata = np.digitize(areas, np.quantile(areas, np.arange(1, quantiles) / quantiles))
    folder = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    tests = [test for _, test in folder.split(strata, strata, grouping)]
    splits = []
    for fold in range(folds):
        chosen = {"test": tests[fold], "validation": tests[(fold + 1) % folds]}
        chosen["train"] = np.setdiff1d(np.arange(len(ids)), np.concatenate(list(chosen.values())))
        parts = {part: tuple(sorted(ids[row] for row in rows)) for part, rows in chosen.items()}
        splits.append(Split(f"fold{fold + 1}-of-{folds}-seed{seed}", dataset, parts))
    return splits


def normal_id(name: str) -> str:
    """An id in Unicode's composed form (NFC): a Mac writes names of files decomposed."""
    return unicodedata.normalize("NFC", name)


def name_some(names: Sequence[str], limit: int = 5) -> str:
    """The first few names and how many more there are, for an error or a report."""
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")
