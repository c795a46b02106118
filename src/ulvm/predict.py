"""Files, folders, patterns and standard input → mask and overlay files, one result at a time.

Imports numpy and the network only where they are used: the first pictures are read meanwhile.
"""

from __future__ import annotations

import glob
import os
import re
import sys
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ulvm import limits
from ulvm.errors import InputError, printable
from ulvm.files import make_folder, unwritable, walk
from ulvm.picture import SUFFIXES, is_written_by_ulvm, read_picture
from ulvm.use.formats import OPTIONAL_SUFFIXES

if TYPE_CHECKING:
    from ulvm.segmenter import Segmentation, Segmenter

DEFAULT_OUT_DIR = "ulvm-output"
STANDARD_INPUT = "-"
MASK_ENDING = "_mask.png"
OVERLAY_ENDING = "_overlay.png"
_RESULT = re.compile(  # the last two as `use/dicom_results.py` writes them
    rf"({re.escape(MASK_ENDING)}|{re.escape(OVERLAY_ENDING)}|_(seg|outline)(-\d+)?\.dcm)$"
)
MAX_WORKERS = 4


@dataclass(frozen=True)
class Source:
    """One picture to segment, or one argument that named none.

    Args:
        name: What to call it: its path, or ``-`` for standard input.
        output: Where its results go within the output folder: path without ending.
        error: Why the argument named no picture; None when it did.
    """

    name: str
    output: Path
    error: str | None = None


@dataclass(frozen=True)
class Prediction:
    """What became of one source.

    Args:
        source: Its name.
        summary: ``Segmentation.to_dict()``; empty after an error.
        mask_path: The mask written: 0 and 255, or for several classes the labels.
        overlay_path: The overlay written, if one was asked for.
        error: What went wrong, in one sentence; None when all went well.
        dicom_paths: DICOM results written, if they were asked for.
        extra: What the function given for it made of the result.
    """

    source: str
    summary: dict[str, Any] = field(default_factory=dict)
    mask_path: Path | None = None
    overlay_path: Path | None = None
    error: str | None = None
    dicom_paths: tuple[Path, ...] = ()
    extra: Any = field(default=None, repr=False)

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Height and width of the picture in pixels; None after an error."""
        if not self.summary:
            return None
        height, width = self.summary["size_hw"]
        return height, width

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the summary's, and paths as strings."""
        return {
            "source": self.source,
            **self.summary,
            "mask_path": self.mask_path and str(self.mask_path),
            "overlay_path": self.overlay_path and str(self.overlay_path),
            "dicom_paths": [str(path) for path in self.dicom_paths],
            "error": self.error,
        }


def caption(summary: dict[str, Any]) -> str:
    """A summary's warnings in one line, such as ``unsure: the spot is small``; "" without any."""
    texts = [doubt["text"] for doubt in summary["warnings"]]
    return "unsure: " + "; ".join(texts) if texts else ""


def find_images(sources: Sequence[str]) -> list[Source]:
    """The pictures that the arguments of a command line name, each once.

    Folders are searched with their subfolders, for picture endings only; hidden files and
    ``*_mask.png``, ``*_overlay.png`` and DICOM results are passed over, in folders and in patterns.
    HEIC, AVIF and DICOM files are among them, so that each is segmented or said to be unreadable.

    Args:
        sources: Files, folders, glob patterns that the shell left as they are, or ``-`` for
            standard input.

    Returns:
        In the order of the arguments, sorted within one. An argument that names no picture
        gives a source with an ``error``.
    """
    found: dict[str, Source] = {}
    for argument in sources:
        path = Path(argument)
        if argument == STANDARD_INPUT:
            expanded = [Source(STANDARD_INPUT, Path("stdin"))]
        elif argument and path.is_dir():  # an empty argument is no folder, though Path says so
            expanded = _search_folder(path)
        elif glob.has_magic(argument) and not path.exists():
            expanded = []
            for match in sorted(_match(argument)):
                if match.is_dir():
                    expanded += _search_folder(match)
                elif is_picture_name(match.name):
                    expanded.append(_file_source(match, match.parent))
        else:
            expanded = [_file_source(path, path.parent)] if argument else []
        if not expanded:
            message = InputError(
                f"no picture found at {argument or 'an empty path'}",
                "the names of pictures end in " + ", ".join(sorted(SUFFIXES | OPTIONAL_SUFFIXES)),
                "check the path",
            )
            expanded = [Source(argument, Path(), str(message))]
        for source in expanded:
            key = source.name if source.error else os.path.abspath(source.name)  # noqa: PTH100 - keeps symbolic links apart
            found.setdefault(key, source)
    return list(found.values())


def predict_files(
    segmenter: Segmenter | Future[Segmenter],
    sources: Sequence[Source],
    *,
    out_dir: str | os.PathLike[str] | None = None,
    overlay: bool = True,
    threshold: float | None = None,
    dicom_seg: bool = False,
    raw: bool = False,
    extra: Callable[[Segmentation], Any] | None = None,
) -> Iterator[Prediction]:
    """Segment pictures and write ``<stem>_mask.png`` and ``<stem>_overlay.png`` for each.

    Folders below a given folder are kept. Where two pictures would share an output, later ones
    get ``-2``, ``-3`` … in the order of ``sources``. Earlier outputs of ulvm are replaced; a
    picture that was given, or a file that ulvm did not write, never is.

    Args:
        segmenter: The model, or one that is being opened: the first pictures are read meanwhile.
        sources: From ``find_images``.
        out_dir: Output folder, made where missing; by default ``ulvm-output``.
        overlay: Whether to write overlays.
        threshold: As for ``Segmenter``.
        dicom_seg: Whether to write DICOM results too; the sources are DICOM files then.
        raw: As for ``Segmenter``.
        extra: Called with each result while its arrays are there, in the thread that made it.

    Returns:
        One result for each source, in order, as each is ready. A source that fails gives a
        result with an ``error``; the others go on.

    Raises:
        InputError: The output folder cannot be made, or the threshold is out of range. With a
            model that is being opened, the latter and what is wrong with it before the first
            result.
    """

    def model() -> Segmenter:
        opened = segmenter.result() if isinstance(segmenter, Future) else segmenter
        opened.check_threshold(threshold)
        return opened

    if not isinstance(segmenter, Future):
        model()
    folder = make_folder(DEFAULT_OUT_DIR if out_dir is None else out_dir)
    originals = {os.path.realpath(source.name) for source in sources if not source.error}
    room = limits.Room(limits.PIXELS)

    def predict(source: Source, output: str) -> Prediction:
        if source.error:
            return Prediction(source.name, error=source.error)
        mask_path = folder / f"{output}{MASK_ENDING}"
        overlay_path = folder / f"{output}{OVERLAY_ENDING}" if overlay else None
        try:
            if dicom_seg and source.name == STANDARD_INPUT:
                raise InputError(
                    "standard input gives no DICOM results",
                    "they are made of files",
                    "name the file",
                )
            for path in filter(None, (mask_path, overlay_path)):
                _require_replaceable(path, originals)
            file = _standard_input() if source.name == STANDARD_INPUT else source.name
            with room.share() as take:
                picture = read_picture(file, take)
                segmentation = model()(picture, threshold=threshold, raw=raw)

                from ulvm.image import paint_caption, paint_overlay, write_png

                labels = segmentation.labels
                write_png(mask_path, segmentation.mask if labels is None else labels)
                if overlay_path:
                    paint_overlay(picture, segmentation.mask)
                    paint_caption(picture, caption(segmentation.to_dict()))
                    write_png(overlay_path, picture)
                del picture
                dicom_paths: list[Path] = []
                if dicom_seg:
                    from ulvm.use.dicom_results import write_results

                    dicom_paths = write_results(
                        source.name,
                        segmentation,
                        lambda frame: model()(frame, threshold=threshold, raw=raw),
                        folder / output,
                        lambda path: _require_replaceable(path, originals),
                    )
                more = extra(segmentation) if extra else None
        except InputError as error:
            return Prediction(source.name, error=str(error))
        except MemoryError:
            message = f"{printable(source.name)} does not fit into memory."
            return Prediction(source.name, error=message)
        except Exception as error:  # One picture never ends the others.
            message = f"{source.name} cannot be segmented ({type(error).__name__}: {error})."
            return Prediction(source.name, error=printable(message))
        return Prediction(
            source.name,
            segmentation.to_dict(),
            mask_path,
            overlay_path,
            dicom_paths=tuple(dicom_paths),
            extra=more,
        )

    def stream() -> Iterator[Prediction]:
        workers = min(MAX_WORKERS, os.cpu_count() or 1)
        pool = ThreadPoolExecutor(workers, thread_name_prefix="ulvm-predict")
        pending: deque[Future[Prediction]] = deque()
        try:
            outputs = unique_outputs(str(source.output) for source in sources)
            for source, output in zip(sources, outputs, strict=True):
                pending.append(pool.submit(predict, source, output))
                if len(pending) > 2 * workers:
                    model()
                    yield pending.popleft().result()
            model()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    return stream()


def _match(pattern: str) -> list[Path]:
    """What a pattern names. Its ``**`` passes over hidden folders, and linked ones: they may go
    round in a ring."""
    path = Path(pattern)
    if "**" not in path.parts:
        return [Path(match) for match in glob.glob(pattern)]  # noqa: PTH207 - for absolute ones too
    inner = "/".join(path.relative_to(path.anchor).parts)
    inner = re.sub(r"[^/]\*\*+|\*\*+[^/]", lambda found: found[0].replace("**", "*"), inner)
    inner = re.sub(r"(\*\*/)+", "**/", inner)
    return [
        match
        for match in Path(path.anchor).glob(inner)
        if not any(part.startswith(".") and part not in path.parts for part in match.parts)
    ]


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:
        raise InputError("standard input is closed", "", "name a file, or give one after <")
    return sys.stdin.buffer


def _file_source(path: Path, folder: Path) -> Source:
    name = path.relative_to(folder)
    # DICOM files are often named by a number such as 1.2.840.1, which has no ending.
    return Source(str(path), name if name.suffix[1:].isdigit() else name.with_suffix(""))


def _search_folder(folder: Path) -> list[Source]:
    """The pictures below a folder and behind links in it, sorted by path, and a failed source for
    each unreadable folder."""
    failed: list[OSError] = []
    paths: list[Path] = []
    for parent, subfolders, names in walk(folder, failed.append):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths += [Path(parent, name) for name in names if is_picture_name(name)]
    sources = [_file_source(path, folder) for path in sorted(paths)]
    for error in failed:
        message = InputError(
            f"the folder {error.filename} cannot be read ({error.strerror})",
            "",
            "check its permissions",
        )
        sources.append(Source(str(error.filename), Path(), str(message)))
    return sources


def is_picture_name(name: str) -> bool:
    """Whether a folder search takes a file of this name: a picture, not hidden, not a result."""
    return (
        Path(name).suffix.lower() in SUFFIXES | OPTIONAL_SUFFIXES | {".avif"}
        and not name.startswith(".")
        and not _RESULT.search(name)
    )


def unique_outputs(outputs: Iterable[str], taken: Iterable[str] = ()) -> Iterator[str]:
    """Each output, with ``-2``, ``-3`` … where another one has it already, or it is taken."""
    used = {_as_file_systems_see(output) for output in taken}
    last_number: dict[str, int] = {}
    for output in outputs:
        first, unique = _as_file_systems_see(output), output
        while _as_file_systems_see(unique) in used:
            last_number[first] = last_number.get(first, 1) + 1
            unique = f"{output}-{last_number[first]}"
        used.add(_as_file_systems_see(unique))
        yield unique


def _as_file_systems_see(path: str) -> str:
    """Equal for what may be one file: Windows and macOS don't tell A.png from a.png, and macOS not
    an accented letter from a letter and its accent."""
    return unicodedata.normalize("NFC", path.casefold())


def _require_replaceable(path: Path, originals: set[str]) -> None:
    try:
        is_there = path.exists()
    except OSError as error:  # such as a name that is too long
        raise unwritable(path, error) from error
    if os.path.realpath(path) in originals or (is_there and not is_written_by_ulvm(path)):
        raise InputError(
            f"{path} is in the way of a result: ulvm did not write it, or was given it as input",
            "",
            "choose another output folder",
        )
