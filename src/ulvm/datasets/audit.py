"""What `ulvm data check` says of a data set: sizes, faults, copies, ids that others have too."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ulvm.datasets.find import Found, Pair, find_parts, ids_in_two_parts, join_parts
from ulvm.datasets.read import (
    MaskRules,
    Progress,
    mask_rules,
    read_pair,
    run_all,
    width_by_height,
)
from ulvm.errors import InputError, printable
from ulvm.groups import TABLE, find_table
from ulvm.looks import BITS, find_alike, look_of
from ulvm.splits import available_splits, load_split, name_some, normal_id


class Duplicate(NamedTuple):
    """Two pictures that look the same.

    Args:
        first: Id of one.
        second: Id of the other.
        bits: In how many of the bits of `looks.look_of` they differ.
        same_file: Whether the files' bytes are the same.
    """

    first: str
    second: str
    bits: int
    same_file: bool


@dataclass(frozen=True)
class CheckReport:
    """Everything `check` found out about a data set.

    Args:
        dataset: Name of the data set.
        data_dir: Where it lies.
        pairs: Complete pairs per official part.
        image_sizes: How many pictures have each size (height, width), most common first.
        mask_sizes: The same of the masks.
        lesion_area: Mean share of the picture that the mask covers, 0..1, per part.
        duplicates: Pictures that are there twice under two ids, most alike first.
        shared: Ids that a data set of the name is known to hold too.
        problems: What `decode` would refuse; one sentence each.
        notes: What `decode` accepts and you should know; one sentence each.
    """

    dataset: str
    data_dir: str
    pairs: dict[str, int]
    image_sizes: dict[tuple[int, int], int]
    mask_sizes: dict[tuple[int, int], int]
    lesion_area: dict[str, float]
    duplicates: list[Duplicate]
    shared: dict[str, list[str]]
    problems: list[str]
    notes: list[str]

    def table(self) -> str:
        """The report as text for a terminal."""
        rows = [("data set", f"{self.dataset} in {self.data_dir}")]
        for part, count in self.pairs.items():
            area = f", mean lesion area {self.lesion_area[part]:.1%}" if count else ""
            rows.append((part, f"{count} pairs{area}"))
        rows += [("picture sizes", _sizes_text(self.image_sizes))]
        rows += [("mask sizes", _sizes_text(self.mask_sizes))]
        rows += [("shared ids", f"{len(ids)} with {name}") for name, ids in self.shared.items()]
        rows += [("duplicates", f"{len(self.duplicates)} pairs of pictures")]
        rows += [("problems", str(len(self.problems) or "none"))]
        width = max(len(name) for name, _ in rows)
        lines = [f"{name:<{width}}  {value}" for name, value in rows]
        for title, sentences in [("Problems", self.problems), ("Notes", self.notes)]:
            if sentences:
                lines += ["", f"{title}:", *(f"- {sentence}" for sentence in sentences)]
        return "\n".join(map(printable, lines))  # names of files and folders are in it

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON takes it; a size (height, width) becomes `"widthxheight"`."""
        report = asdict(self)
        report["duplicates"] = [found._asdict() for found in self.duplicates]
        for key in ("image_sizes", "mask_sizes"):
            report[key] = {f"{w}x{h}": count for (h, w), count in report[key].items()}
        return report


def _sizes_text(sizes: dict[tuple[int, int], int]) -> str:
    """The smallest, largest and most common size."""
    if not sizes:
        return "none could be read"
    common, count = next(iter(sizes.items()))
    if len(sizes) == 1:
        return f"{width_by_height(common)}, all {count}"
    by_area = sorted(sizes, key=lambda size_hw: size_hw[0] * size_hw[1])
    return (
        f"{len(sizes)} sizes, {width_by_height(by_area[0])} to {width_by_height(by_area[-1])}, "
        f"most often {width_by_height(common)} ({count})"
    )


@dataclass(frozen=True)
class _Seen:
    """What `check` keeps of a pair once its pixels are gone; none where a file can't be read."""

    pair: Pair
    problems: list[InputError]
    digest: bytes | None = None
    look: str = ""
    image_hw: tuple[int, int] | None = None
    mask_hw: tuple[int, int] | None = None
    area: float | None = None
    has_corners: bool = False  # all four in the mask


def check(
    dataset: str,
    data_dir: str | os.PathLike[str],
    *,
    against: Sequence[str] | None = None,
    allow_mask_resize: bool = False,
    threshold_masks: bool = False,
    progress: Progress | None = None,
) -> CheckReport:
    """A report on every file of a data set, from decoding all of them.

    Two pictures count as duplicates if they look alike, as they are, turned or flipped (see
    `looks`); cropped copies are not found.

    Args:
        dataset: See `find_pairs`.
        data_dir: See `find_pairs`.
        against: Names of data sets to look for shared ids in; by default the other ISIC year.
        allow_mask_resize: See `decode`.
        threshold_masks: See `decode`.
        progress: Called with (pairs done, pairs in all).

    Returns:
        The report; `problems` is empty if `decode` would accept the data.

    Raises:
        InputError: The data isn't there, or of a part only the pictures or only the masks.
    """
    found_parts = find_parts(dataset, data_dir)
    problems = [str(problem) for found in found_parts for problem in found.problems()]
    pairs = join_parts(found_parts)
    problems += [str(problem) for problem in ids_in_two_parts(pairs)]
    rules = mask_rules(
        dataset, data_dir, allow_mask_resize=allow_mask_resize, threshold_masks=threshold_masks
    )
    seen = run_all(lambda pair: _look_at(pair, rules), pairs, progress)
    problems += [str(problem) for one in seen for problem in one.problems]

    ids = {pair.id for pair in pairs}
    others = {"isic2017": ["isic2018"], "isic2018": ["isic2017"]}.get(dataset, [])
    shared = {name: shared_ids(ids, name) for name in (others if against is None else against)}
    duplicates = _find_duplicates(seen)
    areas = {
        found.part: [
            one.area for one in seen if one.area is not None and one.pair.part == found.part
        ]
        for found in found_parts
    }
    return CheckReport(
        dataset=dataset,
        data_dir=str(data_dir),
        pairs={found.part: len(found.pairs()) for found in found_parts},
        image_sizes=dict(Counter(one.image_hw for one in seen if one.image_hw).most_common()),
        mask_sizes=dict(Counter(one.mask_hw for one in seen if one.mask_hw).most_common()),
        lesion_area={
            part: float(np.mean(values)) if values else 0.0 for part, values in areas.items()
        },
        duplicates=duplicates,
        shared=shared,
        problems=problems,
        notes=[
            *_write_notes(found_parts, seen, duplicates, shared),
            *_groups_in_two_parts(pairs, Path(data_dir), dataset),
        ],
    )


def _look_at(pair: Pair, rules: MaskRules) -> _Seen:
    """Decode a pair, keeping its problems instead of raising them."""
    with read_pair(pair, rules) as read:
        image_rgb, mask = read.image_rgb, read.mask
        digest, look = None, ""
        if image_rgb is not None:
            digest = hashlib.sha256(pair.image.read_bytes()).digest()
            look = look_of(image_rgb)
        image_hw, mask_hw = (None if each is None else each.shape[:2] for each in (image_rgb, mask))
        area = None if mask is None else float((mask > 0).mean())
        has_corners = mask is not None and bool(mask[[0, 0, -1, -1], [0, -1, 0, -1]].all())
        return _Seen(pair, read.problems, digest, look, image_hw, mask_hw, area, has_corners)


def _find_duplicates(seen: Sequence[_Seen]) -> list[Duplicate]:
    """Pictures that look the same, most alike first."""
    whole = [one for one in seen if one.look]
    duplicates = []
    for i, j, bits in find_alike([one.look for one in whole]):
        first, second = whole[i], whole[j]
        same_file = first.digest == second.digest
        duplicates.append(Duplicate(first.pair.id, second.pair.id, bits, same_file))
    return sorted(duplicates, key=lambda found: found.bits)


def _write_notes(
    found_parts: Sequence[Found],
    seen: Sequence[_Seen],
    duplicates: Sequence[Duplicate],
    shared: dict[str, list[str]],
) -> Iterator[str]:
    """A sentence on everything that is accepted but worth knowing."""
    other_size = [
        one.pair.id
        for one in seen
        if one.image_hw and one.mask_hw and one.image_hw != one.mask_hw and not one.problems
    ]
    if other_size:
        yield (
            f"{len(other_size)} masks have another size than their picture "
            f"({name_some(other_size, 3)}); both are resized on their own, which is right if "
            "both show the whole frame."
        )
    for name, ids in shared.items():
        if ids:
            yield (
                f"{len(ids)} ids are also in {name}: never score a model trained on one on the "
                "other without removing them."
            )
    if duplicates:
        listed = [
            f"{found.first} = {found.second} "
            f"({'same file' if found.same_file else f'differ in {found.bits} of {BITS} bits'})"
            for found in duplicates
        ]
        yield (
            f"{len(duplicates)} pairs of pictures look the same: {name_some(listed, 20)}; "
            "keep both ids of a pair in one part."
        )
    for what, area in [("empty", 0.0), ("all lesion", 1.0)]:
        if ids := [one.pair.id for one in seen if one.area == area]:
            yield f"{len(ids)} masks are {what}: {name_some(ids)}."
    inverted = sum(one.has_corners for one in seen)
    if 2 * inverted > sum(one.area is not None for one in seen):
        yield (
            f"{inverted} masks hold all four corners of the frame: if what is black in them is the "
            "lesion, invert them."
        )
    ignored = [path.name for found in found_parts for path in found.ignored]
    if ignored:
        yield f"{len(ignored)} other files were ignored: {name_some(ignored, 3)}."


def _groups_in_two_parts(pairs: Sequence[Pair], data_dir: Path, dataset: str) -> Iterator[str]:
    """A sentence on groups of the table beside the data, such as patients, that are divided."""
    try:
        table = find_table(data_dir, dataset)
    except InputError as error:
        yield str(error)
        return
    parts: dict[str, set[str]] = {}
    for pair in pairs:
        if group := table.get(pair.id, {}).get("group"):
            parts.setdefault(normal_id(group), set()).add(pair.part)
    if divided := [group for group, where in parts.items() if len(where) > 1]:
        yield (
            f"{len(divided)} groups of {TABLE} are in more than one part: {name_some(divided)}; "
            "scores of such parts are too high."
        )
    if table and (unlisted := [pair.id for pair in pairs if pair.id not in table]):
        yield f"{len(unlisted)} ids are not in {TABLE}: {name_some(unlisted)}."


def shared_ids(a: str | Iterable[str], b: str | Iterable[str]) -> list[str]:
    """The ids that two collections have in common, in order.

    Args:
        a: Ids; or the name of a data set, for all ids that its committed lists know.
        b: The same.

    Returns:
        Sorted ids. ISIC 2017's own test ids aren't in its lists, so the 529 that ISIC 2018 shares
        with it are found only from the data itself: give the ids of both.
    """
    return sorted(_known_ids(a) & _known_ids(b))


def _known_ids(source: str | Iterable[str]) -> set[str]:
    if not isinstance(source, str):
        return set(source)
    names = available_splits(source)
    if not names:
        raise InputError(
            f"there are no committed ids of '{source}'",
            "isic2017, isic2018 and ph2 have them",
            "choose one of these or give the ids",
        )
    splits = [load_split(source, name) for name in names]
    return {id_ for split in splits for ids in split.parts.values() for id_ in ids}
