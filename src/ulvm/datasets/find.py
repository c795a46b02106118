"""Which picture has which mask: listing folders and zip files; nothing is decoded."""

import contextlib
import io
import itertools
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ulvm.datasets.layouts import DATASETS, DOWNLOADS, FORMS, JUNK, MASK_ENDINGS, Form, Layout
from ulvm.errors import InputError, unknown_name
from ulvm.files import walk
from ulvm.limits import ZIP_MEMBER_BYTES, open_regular
from ulvm.picture import SUFFIXES
from ulvm.splits import name_some, normal_id

_ONE_MASK = "add or remove files until each picture has its one mask"


@dataclass(frozen=True)
class SourceFile:
    """One file, in a folder or inside a zip.

    Args:
        path: The file; inside a zip, the zip's path and the member's name joined.
        size: Size in bytes.
        changed: Time of the last change in nanoseconds; inside a zip, the member's CRC.
        archive: The opened zip that holds the file, or none.
        member: Its name there.
    """

    path: Path
    size: int
    changed: int
    archive: zipfile.ZipFile | None = None
    member: str = ""

    def read_bytes(self) -> bytes:
        """The file's content.

        Raises:
            InputError: As ``open``.
        """
        with self.open() as file:
            return file.read()

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file, to read.

        Raises:
            InputError: It cannot be opened. Of a member of a zip also: it is too long, encrypted,
                damaged, or compressed in a way that Python doesn't know.
        """
        if self.archive is None:
            with io.BufferedReader(open_regular(self.path)) as file:
                yield file
            return
        if self.size > ZIP_MEMBER_BYTES:
            raise InputError(
                f"{self} is longer than {ZIP_MEMBER_BYTES:,} bytes", "", "unpack the zip file"
            )
        try:
            with self.archive.open(self.member) as member:
                yield member
        except (InputError, MemoryError):
            raise
        except NotImplementedError as error:
            raise InputError(
                f"{self} is packed in another way than Python reads ({error})",
                "a zip file holds plain, deflated, BZ2 or LZMA files",
                "unpack it with the program that made it",
            ) from error
        except Exception as error:  # Python's readers raise many kinds on damaged members.
            if "encrypted" in str(error):
                raise InputError(
                    f"{self} is encrypted", "", "unpack it with its password"
                ) from error
            raise InputError(
                f"{self} is damaged ({str(error) or type(error).__name__})",
                "a whole zip file is needed",
                "download it again",
            ) from error

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Pair:
    """A picture and its mask.

    Args:
        id: Id of the picture, such as `ISIC_0000000`; Unicode in its composed form (NFC), so that
            names written on a Mac and elsewhere agree.
        part: Official part: `train`, `validation` or `test`; `all` where there are no parts.
        image: The picture's file.
        mask: The mask's file.
        more_masks: Files of further lesions of the same picture; the mask is all of them.
    """

    id: str
    part: str
    image: SourceFile
    mask: SourceFile
    more_masks: tuple[SourceFile, ...] = ()


@dataclass
class Found:
    """What lies in one part's folders, before it is judged."""

    part: str
    images: dict[str, list[SourceFile]] = field(default_factory=dict)
    masks: dict[str, list[SourceFile]] = field(default_factory=dict)
    more_masks: dict[str, list[SourceFile]] = field(default_factory=dict)
    ignored: list[Path] = field(default_factory=list)
    unreadable: list[Path] = field(default_factory=list)

    def problems(self) -> Iterator[InputError]:
        """Files that are none, pictures without mask, masks without picture, ids found twice."""
        for path in self.unreadable:
            yield InputError(f"{path} leads to no file", "", "remove it or repair the link")
        for given, wanted, names in [
            ("pictures without a mask", "a mask", self.images.keys() - self.masks.keys()),
            ("masks without a picture", "a picture", self.masks.keys() - self.images.keys()),
        ]:
            if names:
                yield InputError(
                    f"{len(names)} {given} in the {self.part} part: {name_some(sorted(names))}",
                    f"every id needs {wanted}",
                    _ONE_MASK,
                )
        for files in [*self.images.values(), *self.masks.values()]:
            if files[1:]:
                yield InputError(
                    f"{files[0]} and {files[1]} have the same id",
                    "an id has one picture and one mask",
                    _ONE_MASK,
                )

    def pairs(self) -> list[Pair]:
        """The complete pairs, by id."""
        pairs = []
        for id_ in sorted(self.images.keys() & self.masks.keys()):
            more = tuple(self.more_masks.get(id_, ()))
            pairs.append(Pair(id_, self.part, self.images[id_][0], self.masks[id_][0], more))
        return pairs


def find_pairs(dataset: str, data_dir: str | os.PathLike[str]) -> list[Pair]:
    """Every picture of a data set with its mask; nothing is decoded.

    Linked folders are followed; hidden files and folders are passed over.

    Args:
        dataset: One of `DATASETS`.
        data_dir: Folder with the official folders or zip files, or its parent with a subfolder of
            the data set's name or with no other. A zip may be unpacked into a folder of its own
            name twice (X/X).

    Returns:
        Pairs in order of id. Where there are parts, those that are there.

    Raises:
        InputError: The data isn't there, a picture has no mask, a mask no picture, or an id is
            there twice.
    """
    parts = find_parts(dataset, data_dir)
    for problem in (problem for found in parts for problem in found.problems()):
        raise problem
    pairs = join_parts(parts)
    for problem in ids_in_two_parts(pairs):
        raise problem
    return pairs


def join_parts(parts: Sequence[Found]) -> list[Pair]:
    """The pairs of all parts, in order of id."""
    return sorted((pair for found in parts for pair in found.pairs()), key=lambda pair: pair.id)


def ids_in_two_parts(pairs: Sequence[Pair]) -> list[InputError]:
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


def find_parts(dataset: str, data_dir: str | os.PathLike[str]) -> list[Found]:
    """The parts of the data set that are there, at least one.

    Raises:
        InputError: There are none, or of one only the pictures or only the masks.
    """
    if dataset not in DATASETS:
        raise unknown_name(f"no data set '{dataset}'", dataset, DATASETS)
    root = Path(data_dir)
    places = _Places(root, dataset)
    parts = []
    for layout in max(FORMS[dataset], key=places.count_there):
        images, masks = places.locate(layout.images), places.locate(layout.masks)
        if images and masks:
            parts.append(_scan(layout, images, masks))
        elif images and layout.masks_may_miss:
            parts.append(Found(layout.part, ignored=images))
        elif images or masks:
            there, missing = layout.images[0], layout.masks[0]
            if masks:
                there, missing = missing, there
            raise InputError(
                f"{(images or masks)[0]} is there, but not {missing}",
                f"{there} and {missing} come together, as folders or .zip files",
                f"{DOWNLOADS[dataset]}, or move {there} elsewhere",
            )
    if not any(found.images or found.masks or found.unreadable for found in parts):
        names = " or ".join(
            " + ".join(
                dict.fromkeys(name for one in form for name in (one.images[0], one.masks[0]))
            )
            for form in FORMS[dataset][:4]
        )
        raise InputError(
            f"no pictures of {dataset} in {root}" + ("" if root.exists() else ", which is missing"),
            f"looked for {names}, as folders or .zip files, there and in {root / dataset}",
            DOWNLOADS[dataset],
        )
    return parts


class _Places:
    """Where a data set's folders may lie: the data folder and what wraps it."""

    def __init__(self, root: Path, dataset: str) -> None:
        self._root = root
        self._parents = [root, root / dataset]
        inside = (
            [path for path in root.iterdir() if not JUNK.search(path.name)] if root.is_dir() else []
        )
        if len(inside) == 1 and inside[0].is_dir():
            self._parents += inside

    def locate(self, names: Sequence[str]) -> list[Path]:
        """Those of these folders, or zips of their names, that are there, each once."""
        there: dict[tuple[int, int], Path] = {}
        for place in filter(None, map(self._locate, names)):
            status = place.stat()  # where capitals don't count, two names are one folder
            there.setdefault((status.st_dev, status.st_ino), place)
        return list(there.values())

    def count_there(self, form: Form) -> int:
        """How many of a form's sides are there."""
        sides = [side for layout in form for side in (layout.images, layout.masks)]
        return sum(bool(self.locate(side)) for side in sides)

    def _locate(self, name: str) -> Path | None:
        candidates = [
            place for parent in self._parents for place in (parent / name, parent / f"{name}.zip")
        ]
        if self._root.name in (name, f"{name}.zip"):
            candidates.append(self._root)
        return next((place for place in candidates if place.exists()), None)


def _scan(layout: Layout, images: Sequence[Path], masks: Sequence[Path]) -> Found:
    """Sort the files of a part into pictures and masks by id."""
    found = Found(layout.part)
    if layout.images == layout.masks:
        for file, stem in _list_pictures(masks, found):
            name = layout.name.fullmatch(stem)
            if name is None:  # PH2's _roi pictures
                found.ignored.append(file.path)
                continue
            numbered = re.search(r"_\d+$", name[2] or "")
            side = found.more_masks if numbered else found.masks if name[2] else found.images
            side.setdefault(name[1], []).append(file)
        return found
    for file, stem in _list_pictures(images, found):
        found.images.setdefault(stem.removesuffix(layout.picture_ending), []).append(file)
    for file, stem in _list_pictures(masks, found):
        if stem not in found.images:
            endings = (ending for ending in MASK_ENDINGS if stem.lower().endswith(ending))
            stem = stem[: len(stem) - len(next(endings, ""))]
        found.masks.setdefault(stem, []).append(file)
    return found


def _list_pictures(places: Sequence[Path], found: Found) -> Iterator[tuple[SourceFile, str]]:
    """The picture files with their composed stems; others are noted in ``found``."""
    for place in places:
        listed = _list_folder(place, found) if place.is_dir() else _list_zip(place)
        for file in listed:
            if file.path.suffix.lower() in SUFFIXES:
                yield file, normal_id(file.path.stem)
            else:
                found.ignored.append(file.path)


def _list_folder(place: Path, found: Found) -> Iterator[SourceFile]:
    """The files in a folder, at any depth and behind links, without by-products."""
    for folder, subfolders, names in walk(place):
        inside = Path(folder).relative_to(place)
        subfolders[:] = [name for name in subfolders if not JUNK.search(f"{name}/")]
        for name in names:
            if JUNK.search((inside / name).as_posix()):
                continue
            path = Path(folder, name)
            try:
                status = path.stat()
            except OSError:  # a link to nothing
                status = None
            if status and stat.S_ISREG(status.st_mode):
                yield SourceFile(path, status.st_size, status.st_mtime_ns)
            elif path.suffix.lower() in SUFFIXES:
                found.unreadable.append(path)
            else:
                found.ignored.append(path)


def _list_zip(place: Path) -> Iterator[SourceFile]:
    """The files in a zip, without by-products."""
    try:
        open_regular(place).close()
        archive = zipfile.ZipFile(place)
    except InputError:
        raise
    except Exception as error:  # Python's reader raises many kinds on damaged lists of members.
        raise InputError(
            f"{place} cannot be opened ({error})", "a whole zip file is needed", "download it again"
        ) from error
    for info in archive.infolist():
        name = info.filename.replace("\\", "/")  # as some programs of Windows write it
        # It may be empty, which is_dir doesn't expect.
        if name and not name.endswith("/") and not JUNK.search(name):
            yield SourceFile(place / name, info.file_size, info.CRC, archive, info.filename)
