"""A data set at the network's size: decoded once, then mapped into memory."""

import contextlib
import hashlib
import os
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from ulvm.datasets.find import Pair, find_pairs
from ulvm.datasets.read import (
    MaskRules,
    Progress,
    mask_rules,
    read_pair,
    read_resized,
    run_all,
    width_by_height,
)
from ulvm.errors import InputError
from ulvm.files import find_cache_folder, flush_folder
from ulvm.image import Uint8Array, resize
from ulvm.looks import look_of
from ulvm.spec import LARGEST_SIZE
from ulvm.splits import name_some, normal_id

# A folder that is still being decoded into has files younger than this; older ones were given up.
GIVEN_UP_SECONDS = 3600
FINGERPRINT_BYTES = 8

CACHE_FORMAT = 2  # counts up where the same files decode to other pixels


@dataclass(frozen=True)
class DecodedDataset:
    """Every pair of a data set at one size, memory-mapped.

    Args:
        name: Name of the data set.
        pairs: The pairs, in order of id; row i of both arrays is pair i.
        images: Pictures, uint8 (pairs, size, size, 3), RGB 0..255.
        masks: Masks, uint8 (pairs, size, size), 0..255; soft at the edges from resizing. Of
            several classes, the number of each pixel's.
        path: The cache folder that holds both arrays.
        classes: Names of the classes, background first; empty for masks of lesion or not.
    """

    name: str
    pairs: list[Pair]
    images: Uint8Array
    masks: Uint8Array
    path: Path
    classes: tuple[str, ...] = ()

    @property
    def ids(self) -> list[str]:
        """The id of each row."""
        return [pair.id for pair in self.pairs]

    @property
    def parts(self) -> list[str]:
        """The official part of each row."""
        return [pair.part for pair in self.pairs]

    @property
    def lesion_areas(self) -> npt.NDArray[np.float64]:
        """The share of each picture that its mask covers, 0..1."""
        least = 1 if self.classes else 128
        return np.array([(mask >= least).mean() for mask in self.masks])

    def fingerprints(self, ids: Iterable[str], size: int = 0) -> list[str]:
        """What each picture looks like, as 16 hex digits: equal for equal pixels.

        Args:
            ids: Of which pictures.
            size: Height and width to look at; at another than that of ``images`` the files are
                read again. 0 for the same.
        """

        def fingerprint(row: int) -> str:
            same = size in (0, self.images.shape[1])
            image_rgb = self.images[row] if same else read_resized(self.pairs[row], size)
            return hashlib.blake2b(image_rgb.data, digest_size=FINGERPRINT_BYTES).hexdigest()

        return run_all(fingerprint, self.indices(ids).tolist(), None)

    def looks(self, ids: Iterable[str]) -> list[str]:
        """What each picture looks like; see `looks.look_of`."""
        return run_all(lambda row: look_of(self.images[row]), self.indices(ids).tolist(), None)

    def describe(self) -> str:
        """One line on what is there: pairs per part, size, place."""
        counts = ", ".join(f"{part} {count}" for part, count in Counter(self.parts).items())
        megabytes = (self.images.nbytes + self.masks.nbytes) / 1e6
        return (
            f"{self.name}: {len(self.pairs)} pairs ({counts}) at "
            f"{width_by_height(self.masks.shape[1:])} in {self.path} ({megabytes:,.0f} MB)"
        )

    def indices(self, ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """The row of each id, in the order given.

        Raises:
            InputError: An id isn't in the data.
        """
        rows = {id_: row for row, id_ in enumerate(self.ids)}
        wanted = [normal_id(id_) for id_ in ids]
        missing = [id_ for id_ in wanted if id_ not in rows]
        if missing:
            raise InputError(
                f"{len(missing)} ids are not in the {self.name} data: {name_some(missing)}",
                f"it has {len(rows)} pairs",
                "complete the download, or choose a split that fits the data",
            )
        return np.array([rows[id_] for id_ in wanted], dtype=np.int64)


def decode(
    dataset: str,
    data_dir: str | os.PathLike[str],
    *,
    size: int,
    cache_dir: str | os.PathLike[str] | None = None,
    allow_mask_resize: bool = False,
    threshold_masks: bool = False,
    progress: Progress | None = None,
) -> DecodedDataset:
    """Every picture and mask at the network's size, decoded once and kept in a cache.

    With a table `classes.csv` beside the pictures (see `datasets.classes`) the masks have the
    classes that it lists.

    Pictures and masks are resized on their own, bilinear with antialiasing, whatever their shape.
    The cache folder is named by a fingerprint of the source files' paths, sizes and times, and
    appears in one step when it is complete; changed or moved files get a new one.

    Args:
        dataset: One of `DATASETS`.
        data_dir: See `find_pairs`.
        size: Height and width in pixels.
        cache_dir: Where caches go; otherwise the variable `ULVM_CACHE`, otherwise `~/.cache/ulvm`.
        allow_mask_resize: Accept masks of any size. Otherwise a mask has the size of its picture;
            in ISIC, whose pictures are often kept as small copies beside full-size masks, the
            picture may also be a square (the frame squashed) or of the mask's proportions.
        threshold_masks: Take a mask of many values for lesion from half its range on.
        progress: Called with (pairs done, pairs in all).

    Returns:
        The pairs and two memory-mapped arrays; writing to them never reaches the file.

    Raises:
        InputError: See `find_pairs`; or a file cannot be read, or a mask has values other than
            two or another size than its picture.
    """
    if not 1 <= size <= LARGEST_SIZE:
        accepted = f"it is from 1 to {LARGEST_SIZE} pixels"
        raise InputError(f"size={size} is out of range", accepted, "give the network's size")
    pairs = find_pairs(dataset, data_dir)
    rules = mask_rules(
        dataset, data_dir, allow_mask_resize=allow_mask_resize, threshold_masks=threshold_masks
    )
    root = Path(cache_dir) if cache_dir else find_cache_folder()
    folder = root / f"{dataset}-{size}-{_fingerprint(pairs, rules)}"
    shape = (len(pairs), size, size)
    try:
        arrays = _map_arrays(folder, shape) if folder.exists() else None
        if arrays is None:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _write_cache(folder, pairs, size, rules, progress)
            arrays = _map_arrays(folder, shape)
            assert arrays is not None
    except OSError as error:
        needed = len(pairs) * size * size * 4 / 1e6
        raise InputError(
            f"the cache {folder} cannot be written ({error})",
            f"it needs a folder with {needed:,.0f} MB of room",
            "name another one in the variable ULVM_CACHE",
        ) from error
    return DecodedDataset(
        dataset, pairs, *arrays, folder, rules.classes.names if rules.classes else ()
    )


def _map_arrays(folder: Path, shape: tuple[int, int, int]) -> tuple[Uint8Array, Uint8Array] | None:
    """The pictures and masks of a cache; of a damaged one none, and it is removed."""
    try:
        # "c": torch warns about read-only arrays; what is written stays in this process.
        images = np.load(folder / "images.npy", mmap_mode="c")
        masks = np.load(folder / "masks.npy", mmap_mode="c")
        if (images.shape, masks.shape) == ((*shape, 3), shape):
            return images, masks
    except (FileNotFoundError, ValueError, EOFError):
        pass
    shutil.rmtree(folder)
    return None


def _fingerprint(pairs: Sequence[Pair], rules: MaskRules) -> str:
    digest = hashlib.sha256(f"{CACHE_FORMAT} {rules}\n".encode())
    for pair in pairs:
        files = (pair.image, pair.mask, *pair.more_masks)
        lines = [f"{pair.id} {pair.part}"]
        lines += [f"{file.path.absolute()} {file.size} {file.changed}" for file in files]
        for line in lines:  # names of files may be no UTF-8
            digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:12]


def _write_cache(
    folder: Path, pairs: Sequence[Pair], size: int, rules: MaskRules, progress: Progress | None
) -> None:
    """Decode into a folder of another name, then rename it in one step."""

    def decode_row(row: int) -> None:
        with read_pair(pairs[row], rules) as read:
            for error in read.problems:
                remedy = f"{error.remedy}; `ulvm data check` lists all such files"
                raise InputError(error.given, error.accepted, remedy) from error
            assert read.image_rgb is not None
            assert read.mask is not None
            images[row] = resize(read.image_rgb, (size, size))
            masks[row] = rules.resize(read.mask, (size, size))

    _sweep(folder.parent)
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    partial.mkdir()
    shape = (len(pairs), size, size)
    try:
        with (
            _ArrayFile(partial / "images.npy", (*shape, 3)) as images,
            _ArrayFile(partial / "masks.npy", shape) as masks,
        ):
            run_all(decode_row, range(len(pairs)), progress)
        flush_folder(partial)
        try:
            partial.rename(folder)
            flush_folder(folder.parent)
        except OSError:
            if not folder.exists():  # otherwise another process was first, with the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove what processes that were killed had decoded."""
    for partial in root.glob(f".*-{'[0-9a-f]' * 32}"):
        with contextlib.suppress(FileNotFoundError):  # it ended well meanwhile
            last = max(file.stat().st_mtime for file in [partial, *partial.iterdir()])
            if last < time.time() - GIVEN_UP_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


class _ArrayFile:
    """A ``.npy`` file of uint8, written row by row from several threads.

    On a full disk that is an error, where writing through a memory map kills the process.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._lock = threading.Lock()
        self._file = path.open("wb")
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._start = self._file.tell()

    def __setitem__(self, row: int, values: Uint8Array) -> None:
        with self._lock:
            self._file.seek(self._start + row * values.nbytes)
            self._file.write(values.tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is None:  # then the disk shall have it before the folder gets its name
                self._file.flush()
                os.fsync(self._file.fileno())
