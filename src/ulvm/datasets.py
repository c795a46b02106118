"""Data sets as downloaded: find the pairs, check them all, decode them once.

`isic2017`, `isic2018` and `ph2` are read from the official folders or zip files as they are;
`isic2016`, `ham10000` and `pad-ufes` too; `folder` is `images/` and `masks/` with the same file
names, or both of them in each of `train/`, `val/` and `test/`.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import uuid
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial as partial_of
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import PIL

from ulvm.errors import InputError
from ulvm.files import find_cache_folder
from ulvm.image import read_image, read_mask, resize
from ulvm.picture import SUFFIXES, ImageSource
from ulvm.spec import DatasetName
from ulvm.splits import available_splits, load_split, name_some

DATASETS: tuple[str, ...] = get_args(DatasetName)

MASK_ENDINGS = ("_segmentation", "_lesion", "_mask")
# What the official downloads and operating systems put beside the pictures.
_JUNK = re.compile(
    r"(^|/)(__MACOSX/|\._|\.DS_Store$|Thumbs\.db$|desktop\.ini$)|_superpixels\.png$"
    r"|(^|/)(ATTRIBUTION|LICENSE|PH2_dataset)\.(txt|xlsx)$",
    re.IGNORECASE,
)

_PH2_NAME = re.compile(r"(IMD\d+)(_lesion)?")

CACHE_FORMAT = 1
MAX_WORKERS = 8  # files read at once, where there are so many processors
# Near duplicates: grey versions of this side whose root-mean-square difference is below this
# many grey levels. In ISIC 2018, known copies lie below 2.5 and the next pair at 3.4.
DUPLICATE_SIDE = 32
DUPLICATE_RMS = 3.0

MaskSizes = Literal["same", "squashed", "any"]
"""Masks `decode` accepts: of their picture's size; also beside a picture that was squashed to a
square or scaled (either keeps the whole frame); or of any size."""

Pixels = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]
"""Called with (files done, files in all)."""


@dataclass(frozen=True)
class SourceFile:
    """One file, in a folder or inside a zip.

    Args:
        path: The file; inside a zip, the zip's path and the member's name joined.
        size: Size in bytes.
        changed: Time of the last change in nanoseconds; inside a zip, the member's CRC.
        archive: The opened zip that holds the file, or none.
    """

    path: Path
    size: int
    changed: int
    archive: zipfile.ZipFile | None = None
    member: str = ""

    def read_bytes(self) -> bytes:
        """The file's content."""
        if self.archive is None:
            return self.path.read_bytes()
        return self.archive.read(self.member)

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Pair:
    """A picture and its mask.

    Args:
        id: Id of the picture, such as `ISIC_0000000`.
        part: Official part: `train`, `validation` or `test`; `all` where there are no parts.
        image: The picture's file.
        mask: The mask's file.
    """

    id: str
    part: str
    image: SourceFile
    mask: SourceFile


@dataclass(frozen=True)
class _Layout:
    """Where a part of a data set lies: one folder for the pictures, one for the masks.

    ``more_images`` is a second folder of pictures, which may be missing.
    """

    part: str
    images: str
    masks: str
    more_images: str | None = None


_PLAIN = (_Layout("all", "images", "masks"),)
_CAPITAL = (_Layout("all", "Images", "Masks"),)
# Each data set in the forms it is found, each form with its parts; the first that is there is read.
_FORMS: dict[str, tuple[tuple[_Layout, ...], ...]] = {
    "isic2016": (
        tuple(
            _Layout(
                part, f"ISBI2016_ISIC_Part1_{name}_Data", f"ISBI2016_ISIC_Part1_{name}_GroundTruth"
            )
            for part, name in [("train", "Training"), ("test", "Test")]
        ),
    ),
    "isic2017": (
        tuple(
            _Layout(part, f"ISIC-2017_{name}_Data", f"ISIC-2017_{name}_Part1_GroundTruth")
            for part, name in [
                ("train", "Training"),
                ("validation", "Validation"),
                ("test", "Test_v2"),
            ]
        ),
    ),
    "isic2018": (
        tuple(
            _Layout(part, f"ISIC2018_Task1-2_{name}_Input", f"ISIC2018_Task1_{name}_GroundTruth")
            for part, name in [
                ("train", "Training"),
                ("validation", "Validation"),
                ("test", "Test"),
            ]
        ),
    ),
    # The official tree, with or without its outer folder, and flat.
    "ph2": (
        (_Layout("all", "PH2Dataset", "PH2Dataset"),),
        (_Layout("all", "PH2 Dataset images", "PH2 Dataset images"),),
        (_Layout("all", "trainx", "trainy"),),
    ),
    "ham10000": (
        (
            _Layout(
                "all",
                "HAM10000_images_part_1",
                "HAM10000_segmentations_lesion_tschandl",
                "HAM10000_images_part_2",
            ),
        ),
        _PLAIN,
        _CAPITAL,
    ),
    # The pictures are in images/imgs_part_1 to 3, the masks are another's and come on their own.
    "pad-ufes": (_PLAIN, _CAPITAL),
    "folder": (
        _PLAIN,
        _CAPITAL,
        *(
            tuple(
                _Layout(part, f"{name}/{images}", f"{name}/{masks}")
                for part, name in [("train", "train"), ("validation", val), ("test", "test")]
            )
            for val in ("val", "validation", "valid")
            for images, masks in (("images", "masks"), ("Images", "Masks"))
        ),
    ),
}
_DOWNLOADS = {
    "isic2017": "download the ISIC 2017 Task 1 files from https://challenge.isic-archive.com/data/",
    "isic2018": "download the ISIC 2018 Task 1 files from https://challenge.isic-archive.com/data/",
    "ph2": "download PH2 from https://www.fc.up.pt/addi/ph2%20database.html and unpack the .rar",
    "isic2016": "download ISIC 2016 Task 1 from https://challenge.isic-archive.com/data/",
    "ham10000": "download HAM10000 and its lesion segmentations from the Harvard Dataverse",
    "pad-ufes": "put the pictures of PAD-UFES-20 in images/ and masks of their names in masks/",
    "folder": "put the pictures in images/ and the masks, with the same file names, in masks/",
}


@dataclass
class _Found:
    """What lies in one part's folders, before it is judged."""

    part: str
    images: dict[str, list[SourceFile]]
    masks: dict[str, list[SourceFile]]
    ignored: list[SourceFile]

    def problems(self) -> list[InputError]:
        """Pictures without mask, masks without picture, ids found twice."""
        remedy = "add or remove files until each picture has its one mask"
        found = []
        for given, wanted, names in [
            ("pictures without a mask", "a mask", self.images.keys() - self.masks.keys()),
            ("masks without a picture", "a picture", self.masks.keys() - self.images.keys()),
        ]:
            if names:
                found.append(
                    InputError(
                        f"{len(names)} {given} in the {self.part} part: {name_some(sorted(names))}",
                        f"every id needs {wanted}",
                        remedy,
                    )
                )
        for files in [*self.images.values(), *self.masks.values()]:
            if files[1:]:
                found.append(
                    InputError(
                        f"{files[0]} and {files[1]} have the same id",
                        "an id has one picture and one mask",
                        remedy,
                    )
                )
        return found

    def pairs(self) -> list[Pair]:
        """The complete pairs, by id."""
        return [
            Pair(id_, self.part, self.images[id_][0], self.masks[id_][0])
            for id_ in sorted(self.images.keys() & self.masks.keys())
        ]


def find_pairs(dataset: str, data_dir: str | os.PathLike[str]) -> list[Pair]:
    """Every picture of a data set with its mask; nothing is decoded.

    Args:
        dataset: One of `DATASETS`.
        data_dir: Folder with the official folders or zip files, or its parent with a subfolder of
            the data set's name. A zip may be unpacked into a folder of its own name twice (X/X).

    Returns:
        Pairs in order of id. Where there are parts, those that are there.

    Raises:
        InputError: The data isn't there, a picture has no mask, a mask no picture, or an id is
            there twice.
    """
    pairs: list[Pair] = []
    for found in _find_parts(dataset, data_dir):
        for problem in found.problems():
            raise problem
        pairs += found.pairs()
    pairs.sort(key=lambda pair: pair.id)
    for problem in _ids_in_two_parts(pairs):
        raise problem
    return pairs


def _ids_in_two_parts(pairs: Sequence[Pair]) -> list[InputError]:
    """Pairs, in order of id, whose id is in more than one official part."""
    return [
        InputError(
            f"{first.image} ({first.part}) and {second.image} ({second.part}) have the same id",
            "an id is in one official part",
            "remove one of the two with its mask",
        )
        for first, second in itertools.pairwise(pairs)
        if first.id == second.id
    ]


def _find_parts(dataset: str, data_dir: str | os.PathLike[str]) -> list[_Found]:
    """The parts of the data set that are there, at least one."""
    if dataset not in DATASETS:
        raise InputError(
            f"no data set '{dataset}'", f"there are {', '.join(DATASETS)}", "choose one of these"
        )
    root = Path(data_dir)
    parts = []
    form = max(_FORMS[dataset], key=lambda form: _count_there(root, dataset, form))
    for layout in form:
        images = _locate(root, dataset, layout.images)
        masks = _locate(root, dataset, layout.masks)
        if images and masks:
            more = layout.more_images and _locate(root, dataset, layout.more_images)
            parts.append(_scan(dataset, layout.part, [images, *([more] if more else [])], masks))
        elif images or masks:
            there, missing = layout.images, layout.masks
            if masks:
                there, missing = missing, there
            raise InputError(
                f"{images or masks} is there, but not {missing}",
                f"{there} and {missing} come together, as folders or .zip files",
                f"{_DOWNLOADS[dataset]}, or move {there} elsewhere",
            )
    if not any(found.images or found.masks for found in parts):
        names = " or ".join(
            " + ".join(dict.fromkeys((layout.images, layout.masks)))
            for form in _FORMS[dataset][:4]
            for layout in form
        )
        raise InputError(
            f"no pictures of {dataset} in {root}" + ("" if root.exists() else ", which is missing"),
            f"looked for {names}, as folders or .zip files, there and in {root / dataset}",
            _DOWNLOADS[dataset],
        )
    return parts


def _count_there(root: Path, dataset: str, form: Sequence[_Layout]) -> int:
    """How many of a form's folders are there: the fullest form is read, the first of equals."""
    return sum(
        _locate(root, dataset, name) is not None
        for layout in form
        for name in (layout.images, layout.masks)
    )


def _locate(root: Path, dataset: str, name: str) -> Path | None:
    """The folder or zip of this name in the data folder, or the data folder itself."""
    candidates = [
        place
        for parent in (root, root / dataset)
        for place in (parent / name, parent / f"{name}.zip")
    ]
    if root.name in (name, f"{name}.zip"):
        candidates.append(root)
    return next((place for place in candidates if place.exists()), None)


def _scan(dataset: str, part: str, images: Sequence[Path], masks: Path) -> _Found:
    """Sort the files of a part into pictures and masks by id."""
    found = _Found(part, {}, {}, [])

    def list_pictures(place: Path) -> Iterable[SourceFile]:
        for file in _list_files(place):
            if file.path.suffix.lower() in SUFFIXES:
                yield file
            else:
                found.ignored.append(file)

    if images[0] == masks:  # PH2's own layout has both in one tree, told apart by name
        for file in list_pictures(masks):
            name = _PH2_NAME.fullmatch(file.path.stem)
            if name is None:  # the _roi pictures
                found.ignored.append(file)
            else:
                side = found.masks if name[2] else found.images
                side.setdefault(name[1], []).append(file)
        return found
    for place in images:
        for file in list_pictures(place):
            found.images.setdefault(file.path.stem, []).append(file)
    for file in list_pictures(masks):
        id_ = file.path.stem
        if id_ not in found.images:
            ending = next((ending for ending in MASK_ENDINGS if id_.endswith(ending)), "")
            id_ = id_.removesuffix(ending)
        found.masks.setdefault(id_, []).append(file)
    return found


def _list_files(place: Path) -> Iterable[SourceFile]:
    """The files in a folder or zip, at any depth, without the known by-products."""
    if place.is_dir():
        for folder, _, names in os.walk(place):
            for name in names:
                path = Path(folder, name)
                if not _JUNK.search(path.relative_to(place).as_posix()):
                    stat = path.stat()
                    yield SourceFile(path, stat.st_size, stat.st_mtime_ns)
        return
    try:
        archive = zipfile.ZipFile(place)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(
            f"{place} cannot be opened ({error})", "a whole zip file", "download it again"
        ) from error
    for info in archive.infolist():
        if not info.is_dir() and not _JUNK.search(info.filename):
            yield SourceFile(
                place / info.filename, info.file_size, info.CRC, archive, info.filename
            )


@dataclass(frozen=True)
class DecodedDataset:
    """Every pair of a data set at one size, memory-mapped.

    Args:
        name: Name of the data set.
        pairs: The pairs, in order of id; row i of both arrays is pair i.
        images: Pictures, uint8 (pairs, size, size, 3), RGB 0..255.
        masks: Masks, uint8 (pairs, size, size), 0..255; soft at the edges from resizing.
        path: The cache folder that holds both arrays.
    """

    name: str
    pairs: list[Pair]
    images: Pixels
    masks: Pixels
    path: Path

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
        return np.array([(mask >= 128).mean() for mask in self.masks])

    def describe(self) -> str:
        """One line on what is there: pairs per part, size, place."""
        counts = ", ".join(f"{part} {count}" for part, count in Counter(self.parts).items())
        megabytes = (self.images.nbytes + self.masks.nbytes) / 1e6
        return (
            f"{self.name}: {len(self.pairs)} pairs ({counts}) at {_size_text(self.masks.shape[1:])}"
            f" in {self.path} ({megabytes:,.0f} MB)"
        )

    def indices(self, ids: Iterable[str]) -> npt.NDArray[np.int64]:
        """The row of each id, in the order given.

        Raises:
            InputError: An id isn't in the data.
        """
        rows = {id_: row for row, id_ in enumerate(self.ids)}
        wanted = list(ids)
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
    if size < 1:
        raise InputError(f"size {size}", "a size of one pixel or more", "give the network's size")
    pairs = find_pairs(dataset, data_dir)
    mask_sizes = _mask_sizes(dataset, allow_mask_resize)
    root = Path(cache_dir) if cache_dir else find_cache_folder()
    kind = f"{mask_sizes} thresholded" if threshold_masks else mask_sizes
    folder = root / f"{dataset}-{size}-{_fingerprint(pairs, kind)}"
    if not folder.exists():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            _write_cache(folder, pairs, size, mask_sizes, threshold_masks, progress)
        except OSError as error:
            needed = len(pairs) * size * size * 4 / 1e6
            raise InputError(
                f"the cache {folder} cannot be written ({error})",
                f"it needs a folder with {needed:,.0f} MB of room",
                "name another one in the variable ULVM_CACHE",
            ) from error
    return DecodedDataset(
        dataset,
        pairs,
        # "c": torch warns about read-only arrays; what is written stays in this process.
        np.load(folder / "images.npy", mmap_mode="c"),
        np.load(folder / "masks.npy", mmap_mode="c"),
        folder,
    )


def _mask_sizes(dataset: str, allow_mask_resize: bool) -> MaskSizes:
    if allow_mask_resize:
        return "any"
    return "squashed" if dataset.startswith("isic") else "same"


def _fingerprint(pairs: Sequence[Pair], kind: str) -> str:
    digest = hashlib.sha256(f"{CACHE_FORMAT} {kind}\n".encode())
    for pair in pairs:
        digest.update(f"{pair.id} {pair.part}\n".encode())
        for file in (pair.image, pair.mask):
            digest.update(f"{file.path.absolute()} {file.size} {file.changed}\n".encode())
    return digest.hexdigest()[:12]


def _write_cache(
    folder: Path,
    pairs: Sequence[Pair],
    size: int,
    mask_sizes: MaskSizes,
    threshold_masks: bool,
    progress: Progress | None,
) -> None:
    """Decode into a folder of another name, then rename it in one step."""
    partial = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    partial.mkdir()
    try:
        _write_arrays(partial, pairs, size, mask_sizes, threshold_masks, progress)
        index = [
            {"id": pair.id, "part": pair.part, "image": str(pair.image), "mask": str(pair.mask)}
            for pair in pairs
        ]
        (partial / "index.json").write_text(
            json.dumps({"size": size, "pillow": PIL.__version__, "pairs": index}, indent=1),
            encoding="utf-8",
        )
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was first, with the same content
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_arrays(
    folder: Path,
    pairs: Sequence[Pair],
    size: int,
    mask_sizes: MaskSizes,
    threshold_masks: bool,
    progress: Progress | None,
) -> None:
    read_one = partial_of(read_mask, threshold=threshold_masks)
    shape = (len(pairs), size, size)
    create = np.lib.format.open_memmap
    images = create(folder / "images.npy", mode="w+", dtype=np.uint8, shape=(*shape, 3))
    masks = create(folder / "masks.npy", mode="w+", dtype=np.uint8, shape=shape)

    def decode_row(row: int) -> None:
        pair = pairs[row]
        try:
            image_rgb, mask = _read(pair.image, read_image), _read(pair.mask, read_one)
            if problem := _size_problem(pair, image_rgb.shape[:2], mask.shape, mask_sizes):
                raise problem
        except InputError as error:
            remedy = f"{error.remedy}; `ulvm data check` lists all such files"
            raise InputError(error.given, error.accepted, remedy) from error
        images[row] = resize(image_rgb, (size, size))
        masks[row] = resize(mask, (size, size))

    _run_all(decode_row, range(len(pairs)), progress)
    images.flush()
    masks.flush()


Item = TypeVar("Item")
Result = TypeVar("Result")


def _run_all(
    work: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None
) -> list[Result]:
    """The result for each item, in order, from a few threads; the first error ends it."""
    results = []
    with ThreadPoolExecutor(min(MAX_WORKERS, os.cpu_count() or 1)) as pool:
        for result in pool.map(work, items):
            results.append(result)
            if progress:
                progress(len(results), len(items))
    return results


def _read(file: SourceFile, reader: Callable[[ImageSource], Pixels]) -> Pixels:
    if file.archive is None:
        return reader(file.path)
    try:
        with file.archive.open(file.member) as stream:
            return reader(stream)
    except (zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{file} is damaged ({error})", "a whole zip file is needed", "download it again"
        ) from error
    except InputError as error:
        given = f"in {file.archive.filename}, {error.given}"
        raise InputError(given, error.accepted, error.remedy) from error


def _size_problem(
    pair: Pair, image_hw: tuple[int, ...], mask_hw: tuple[int, ...], accepted: MaskSizes
) -> InputError | None:
    """What is wrong with a mask's size, if anything."""
    # A mask of another shape may have been cut, not squashed: nothing in the files tells.
    squashed = image_hw[0] == image_hw[1]
    scaled = abs(image_hw[0] * mask_hw[1] / (image_hw[1] * mask_hw[0]) - 1) < 0.01
    if (
        image_hw == mask_hw
        or accepted == "any"
        or (accepted == "squashed" and (squashed or scaled))
    ):
        return None
    return InputError(
        f"{pair.mask} is {_size_text(mask_hw)} and its picture {pair.image.path.name} "
        f"{_size_text(image_hw)} (width × height)",
        "a mask has the size of its picture",
        "export it again, or pass --resize-masks (allow_mask_resize=True) if both show the same "
        "frame",
    )


def _size_text(size_hw: tuple[int, ...]) -> str:
    return f"{size_hw[1]}×{size_hw[0]}"


class Duplicate(NamedTuple):
    """Two pictures that look the same.

    Args:
        first: Id of one.
        second: Id of the other.
        rms: Root-mean-square difference of their small grey versions, in grey levels.
        same_file: Whether the files' bytes are the same.
    """

    first: str
    second: str
    rms: float
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
        return "\n".join(lines)

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
        return f"{_size_text(common)}, all {count}"
    by_area = sorted(sizes, key=lambda size_hw: size_hw[0] * size_hw[1])
    return (
        f"{len(sizes)} sizes, {_size_text(by_area[0])} to {_size_text(by_area[-1])}, "
        f"most often {_size_text(common)} ({count})"
    )


@dataclass(frozen=True)
class _Seen:
    """What `check` keeps of a pair once its pixels are gone; none where a file can't be read."""

    pair: Pair
    problems: list[InputError]
    digest: bytes | None = None
    thumbnail: npt.NDArray[np.float32] | None = None
    image_hw: tuple[int, int] | None = None
    mask_hw: tuple[int, int] | None = None
    area: float | None = None


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

    Two pictures count as duplicates if their files have the same bytes, or if their 32×32 grey
    versions differ by less than 3 grey levels (root mean square); turned or cropped copies are
    not found.

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
    found_parts = _find_parts(dataset, data_dir)
    problems = [str(problem) for found in found_parts for problem in found.problems()]
    pairs = sorted(
        (pair for found in found_parts for pair in found.pairs()), key=lambda pair: pair.id
    )
    problems += [str(problem) for problem in _ids_in_two_parts(pairs)]
    accepted = _mask_sizes(dataset, allow_mask_resize)
    seen = _run_all(lambda pair: _look_at(pair, accepted, threshold_masks), pairs, progress)
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
        notes=_write_notes(found_parts, seen, duplicates, shared),
    )


def _look_at(pair: Pair, accepted: MaskSizes, threshold_masks: bool) -> _Seen:
    """Decode a pair, keeping its problems instead of raising them."""
    problems = []
    image_rgb = mask = None
    try:
        image_rgb = _read(pair.image, read_image)
    except InputError as error:
        problems.append(error)
    try:
        mask = _read(pair.mask, partial_of(read_mask, threshold=threshold_masks))
    except InputError as error:
        problems.append(error)
    if (
        image_rgb is not None
        and mask is not None
        and (problem := _size_problem(pair, image_rgb.shape[:2], mask.shape, accepted))
    ):
        problems.append(problem)
    digest = thumbnail = None
    if image_rgb is not None:
        digest = hashlib.sha256(pair.image.read_bytes()).digest()
        side = (DUPLICATE_SIDE, DUPLICATE_SIDE)
        thumbnail = resize(image_rgb, side).mean(axis=2, dtype=np.float32).ravel()  # (side²,)
    return _Seen(
        pair,
        problems,
        digest,
        thumbnail,
        None if image_rgb is None else (image_rgb.shape[0], image_rgb.shape[1]),
        None if mask is None else (mask.shape[0], mask.shape[1]),
        None if mask is None else float((mask > 0).mean()),
    )


def _find_duplicates(seen: Sequence[_Seen]) -> list[Duplicate]:
    """Pictures that look the same, most alike first."""
    ids = [one.pair.id for one in seen if one.thumbnail is not None]
    digests = [one.digest for one in seen if one.thumbnail is not None]
    thumbnails = [one.thumbnail for one in seen if one.thumbnail is not None]
    if not thumbnails:
        return []
    grey = np.stack(thumbnails)  # (pictures, side²)
    grey -= grey.mean(axis=0)  # small numbers, so that |a|² + |b|² − 2ab loses no digits
    squares = (grey**2).sum(axis=1)
    duplicates = []
    for start in range(0, len(grey), 1024):  # in blocks: the whole table may not fit into memory
        block = slice(start, start + 1024)
        distances = squares[block, None] + squares - 2 * grey[block] @ grey.T
        for row, column in np.argwhere(distances < DUPLICATE_RMS**2 * grey.shape[1]):
            i, j = start + int(row), int(column)
            if i < j:
                rms = round(float(np.sqrt(np.mean((grey[i] - grey[j]) ** 2))), 2)
                duplicates.append(Duplicate(ids[i], ids[j], rms, digests[i] == digests[j]))
    return sorted(duplicates, key=lambda found: found.rms)


def _write_notes(
    found_parts: Sequence[_Found],
    seen: Sequence[_Seen],
    duplicates: Sequence[Duplicate],
    shared: dict[str, list[str]],
) -> list[str]:
    """A sentence on everything that is accepted but worth knowing."""
    notes = []
    other_size = [
        one.pair.id
        for one in seen
        if one.image_hw and one.mask_hw and one.image_hw != one.mask_hw and not one.problems
    ]
    if other_size:
        notes.append(
            f"{len(other_size)} masks have another size than their picture "
            f"({name_some(other_size, 3)}); both are resized on their own, which is right if "
            "both show the whole frame."
        )
    for name, ids in shared.items():
        if ids:
            notes.append(
                f"{len(ids)} ids are also in {name}: never score a model trained on one on the "
                "other without removing them."
            )
    if duplicates:
        listed = [
            f"{found.first} = {found.second} "
            f"({'same file' if found.same_file else f'differ by {found.rms:.1f} grey levels'})"
            for found in duplicates
        ]
        notes.append(
            f"{len(duplicates)} pairs of pictures look the same: {name_some(listed, 20)}; "
            "keep both ids of a pair in one part."
        )
    for what, area in [("empty", 0.0), ("all lesion", 1.0)]:
        if ids := [one.pair.id for one in seen if one.area == area]:
            notes.append(f"{len(ids)} masks are {what}: {name_some(ids)}.")
    ignored = [file.path.name for found in found_parts for file in found.ignored]
    if ignored:
        notes.append(f"{len(ignored)} other files were ignored: {name_some(ignored, 3)}.")
    return notes


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
            f"no committed ids of '{source}'",
            "isic2017, isic2018 and ph2 have them",
            "choose one of these or give the ids",
        )
    splits = [load_split(source, name) for name in names]
    return {id_ for split in splits for ids in split.parts.values() for id_ in ids}
