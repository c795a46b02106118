"""From data sets on disk to the pictures of a run on the device."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ulvm import datasets, lesion_free, splits
from ulvm.errors import InputError, RunWarning
from ulvm.image import Uint8Array
from ulvm.looks import are_copies
from ulvm.nn.augment import Part, Pool
from ulvm.provenance import Seen
from ulvm.spec import RunSpec, SourceSpec, require_rgb

DRAWN_PICTURES = 200
CROPS = 1000  # tried for each data set, at least
_SEED = 16  # of what the project draws for training; a run's own seed decides what is drawn when

Folders = str | Path | Mapping[str, str | Path]
"""The folder of the run's only data set, or of each by its name."""


def load_parts(
    run: RunSpec,
    data_dir: Folders,
    device: torch.device,
    teacher_dir: Path | None = None,
    **masks_accepted: Any,
) -> tuple[tuple[Seen, ...], Part, Part]:
    """The training and validation pictures of a run on the device, and what is known of them.

    Args:
        run: Which data sets, in which splits.
        data_dir: Where they lie.
        device: Where the pictures go.
        teacher_dir: What ``read_teacher`` reads, if the recipe has a teacher.
        masks_accepted: ``threshold_masks`` and ``allow_mask_resize`` of ``datasets.decode``.

    Returns:
        For each data set, in the order of ``run.data.sources``, its resolved split and
        fingerprints; and both parts.

    Raises:
        InputError: Data, split, teacher and network do not fit.
    """
    require_rgb(run.model)
    folders = folder_of_each(run.data.sources, data_dir)
    used, masks, pools = [], [], []
    images: list[Uint8Array] = []
    names: tuple[str, ...] = ()
    held_images, held_masks = [], []
    for source in run.data.sources:
        place, size = folders[source.dataset], run.data.image_size
        decoded = datasets.decode(source.dataset, place, size=size, **masks_accepted)
        _require_classes(run, source.dataset, decoded.classes)
        if images and decoded.classes != names:
            raise InputError(
                f"the classes of {source.dataset} are not those of {run.data.dataset}",
                "data sets that are trained with together have the same, in the same order",
                "make their classes.csv alike",
            )
        names = decoded.classes
        split = splits.load_split(source.dataset, source.split).resolve(decoded.pairs)
        rows = decoded.indices(split.ids("train"))
        images.append(np.asarray(decoded.images[rows]))
        truth = _spread(decoded.masks[rows], len(names))
        if run.train.teacher_share:
            taught = read_teacher(teacher_dir, source.dataset, split.ids("train"))
            share = run.train.teacher_share
            truth = np.rint(truth * (1 - share) + taught * share).astype(np.uint8)
        masks.append(truth)
        pools.append((len(rows), source.weight))
        held = decoded.indices(split.ids("validation"))
        held_images.append(np.asarray(decoded.images[held]))
        held_masks.append(_spread(decoded.masks[held], len(names)))
        seen = (*split.ids("train"), *split.ids("validation"))
        fingerprints, looks = decoded.fingerprints(seen), decoded.looks(seen)
        both = hashlib.blake2b(truth.tobytes() + held_masks[-1].tobytes(), digest_size=8)
        used.append(Seen(split, tuple(fingerprints), both.hexdigest(), size, tuple(looks)))
    _warn_of_copies(used)
    counts = [count for count, _ in pools]
    drawn = share_out(pools, sum(counts))
    bare = [False] * len(pools)
    if run.train.lesion_free:
        without = draw_lesion_free(images, masks, run.data.image_size)
        total = round(sum(drawn) * run.train.lesion_free / (1 - run.train.lesion_free))
        shares = share_out([(1, 1.0)] * len(without), total)  # of each kind alike
        # Else the style of a drawing alone would say that there is no lesion.
        drawings, outlines = lesion_free.draw_lesions(DRAWN_PICTURES, _SEED, run.data.image_size)
        drawn += [*shares, shares[0]]
        bare += [False] + [True] * (len(without) - 1) + [False]
        counts += [*map(len, without), len(drawings)]
        images += [*without, drawings]
        masks += [*(np.zeros(each.shape[:3], np.uint8) for each in without), outlines]
    firsts = np.cumsum([0, *counts[:-1]]).tolist()
    mixed = tuple(Pool(*each) for each in zip(firsts, counts, drawn, bare, strict=True))
    training = _part(images, masks, device, mixed if len(mixed) > 1 else (), names)
    return tuple(used), training, _part(held_images, held_masks, device, (), names)


def _warn_of_copies(used: Sequence[Seen]) -> None:
    """Say which pictures of the validation parts look like one that is trained with.

    Data sets may share pictures, under one id or two, and folders hold copies.
    """
    trained: list[str] = []
    held: dict[str, str] = {}
    for seen in used:
        count = len(seen.split.ids("train"))
        trained += seen.looks[:count]
        held |= {
            f"{id_} of {seen.split.dataset}": look
            for id_, look in zip(seen.ids[count:], seen.looks[count:], strict=True)
        }
    copied = are_copies([*held.values()], trained)
    if copies := [name for name, is_copy in zip(held, copied, strict=True) if is_copy]:
        warnings.warn(
            f"{len(copies)} pictures of the validation part look like ones that are trained with, "
            f"{splits.name_some(copies)}: its scores are too high",
            RunWarning,
            stacklevel=2,
        )


def _require_classes(run: RunSpec, dataset: str, names: Sequence[str]) -> None:
    """Check that the network has the classes of a data set's masks, and the recipe can take them.

    Raises:
        InputError: It doesn't.
    """
    classes = run.model.classes
    if not names:
        if classes > 2:
            raise InputError(
                f"model.classes={classes} does not fit masks of lesion or not",
                "several classes are listed in a classes.csv beside the pictures",
                "write that table, 'value,name', background first, or leave out model.classes",
            )
        return
    if classes != len(names):
        raise InputError(
            f"the classes.csv of {dataset} lists {len(names)} classes, the network has {classes}",
            "it must have one for each, background too",
            f"write --set model.classes={len(names)}",
        )
    for name in ("lesion_free", "teacher_share"):
        if getattr(run.train, name):
            raise InputError(
                f"train.{name}={getattr(run.train, name)} does not fit masks of several classes",
                "it is made for masks of lesion or not",
                f"write --set train.{name}=0",
            )


def _spread(masks: Uint8Array, classes: int) -> Uint8Array:
    """Numbers of classes over 0..255, as ``Part`` has them; other masks as they are."""
    if not classes:
        return np.asarray(masks)
    return np.rint(np.arange(classes) * (255 / (classes - 1))).astype(np.uint8)[masks]


def folder_of_each(sources: Sequence[SourceSpec], data_dir: Folders) -> Mapping[str, str | Path]:
    """The folder of each data set by its name.

    Raises:
        InputError: One has none, or a name belongs to no data set of the run.
    """
    names = [source.dataset for source in sources]
    folders: Mapping[str, str | Path]
    folders = data_dir if isinstance(data_dir, Mapping) else {names[0]: data_dir}
    if set(folders) != set(names):
        raise InputError(
            f"--data names folders of {', '.join(folders) or 'no data set'}",
            f"this run has {', '.join(names)}. Each needs a folder of its own",
            "write --data NAME=DIR for each of them",
        )
    return folders


def share_out(pools: Sequence[tuple[int, float]], total: int) -> list[int]:
    """How many of ``total`` pictures each pool (count, weight) gives, the rest to the largest."""
    weighted = [count * weight for count, weight in pools]
    drawn = [round(total * each / sum(weighted)) for each in weighted]
    drawn[int(np.argmax(drawn))] += total - sum(drawn)
    return drawn


def draw_lesion_free(
    images: Sequence[Uint8Array], masks: Sequence[Uint8Array], size: int
) -> list[Uint8Array]:
    """Pictures without a lesion, by kind: no skin, drawn skin, crops of each data set's."""
    drawn = lesion_free.draw_pictures(DRAWN_PICTURES, _SEED, size)
    kinds = [drawn[1::2], drawn[::2]]
    for some, truth in zip(images, masks, strict=True):
        clear = np.where(truth >= 64, truth, 0)  # a teacher's faint marks are no mask
        tries = 1 + CROPS // len(some)  # of each picture
        crops = [lesion_free.crop_beside(some, clear, _SEED + lot) for lot in range(tries)]
        kinds.append(np.concatenate(crops))
    return [kind for kind in kinds if len(kind)]


def read_teacher(folder: Path | None, dataset: str, ids: Sequence[str]) -> Uint8Array:
    """A teacher's probability of each picture, uint8 (ids, size, size).

    Args:
        folder: Holds ``DATASET.npz`` with ``ids`` and ``probability``, as ``write_teacher`` does.
        dataset: Name of the data set.
        ids: Which pictures, in which order.

    Raises:
        InputError: There is no such file, or it lacks a picture.
    """
    path = Path(folder or "") / f"{dataset}.npz"
    if folder is None or not path.is_file():
        raise InputError(
            f"found no teacher's masks of {dataset}" + (f" in {folder}" if folder else ""),
            f"this recipe learns from {path.name}",
            "name its folder, or set train.teacher_share=0",
        )
    with np.load(path) as stored:
        row_of = {str(id_): row for row, id_ in enumerate(stored["ids"])}
        if missing := [id_ for id_ in ids if id_ not in row_of]:
            raise InputError(
                f"{path} lacks {len(missing)} pictures: {splits.name_some(missing)}",
                "it must hold every picture of the training part",
                "predict the others too",
            )
        return np.asarray(stored["probability"][[row_of[id_] for id_ in ids]])


def write_teacher(folder: Path, dataset: str, ids: Sequence[str], probability: Uint8Array) -> None:
    """Write what ``read_teacher`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / f"{dataset}.npz", ids=np.array(ids), probability=probability)


def _part(
    images: Sequence[Uint8Array],
    masks: Sequence[Uint8Array],
    device: torch.device,
    pools: tuple[Pool, ...],
    names: tuple[str, ...],
) -> Part:
    pictures, truth = (
        torch.from_numpy(np.concatenate(each)).to(device) for each in (images, masks)
    )
    return Part(pictures.permute(0, 3, 1, 2).contiguous(), truth, pools, classes=names)
