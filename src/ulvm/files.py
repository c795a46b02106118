"""Files that are either old or new, never half-written."""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ulvm.errors import InputError

_LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.part")


def find_cache_folder() -> Path:
    """Where what can be made again is kept: the variable ``ULVM_CACHE``, or ``~/.cache/ulvm``.

    Raises:
        InputError: There is neither the variable nor a home folder.
    """
    if named := os.environ.get("ULVM_CACHE"):
        return Path(named)
    try:
        return Path.home() / ".cache" / "ulvm"
    except RuntimeError as error:
        raise InputError(
            "this account has no home folder",
            "ulvm keeps there what it has decoded",
            "name a folder for it in the variable ULVM_CACHE",
        ) from error


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made with its parents where it is missing.

    Raises:
        InputError: It cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(Path(path), error) from error
    return Path(path)


def walk(
    folder: str | os.PathLike[str], onerror: Callable[[OSError], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """As ``os.walk``, sorted, behind links too, but each folder once and none above the first."""
    top = Path(os.path.realpath(folder))
    visited = set()
    for parent, subfolders, names in os.walk(folder, onerror=onerror, followlinks=True):
        here = Path(os.path.realpath(parent))
        if here in visited or here in top.parents:
            subfolders.clear()
            continue
        visited.add(here)
        subfolders.sort()
        yield parent, subfolders, sorted(names)


def write_atomically(
    path: str | os.PathLike[str],
    content: bytes | memoryview,
    *,
    durable: bool = False,
    keep_as: str | os.PathLike[str] | None = None,
) -> None:
    """Write a file in one step: a reader sees the old content or all of the new.

    A process that is killed leaves a file ``.NAME.XXXXXXXX.part``; see ``sweep_leftovers``.

    Args:
        path: The file; missing folders are made.
        content: All its bytes.
        durable: Wait until the disk has it, so that a power cut leaves one of the two as well.
        keep_as: Another path in that folder, which gets the old content.

    Raises:
        InputError: The folder cannot be made or written to, or something else than a file is there.
    """
    path = Path(path)
    folder = make_folder(path.parent)
    try:
        if path.exists() and not path.is_file():
            given = f"{path} cannot be written (what is there is no regular file)"
            raise InputError(given, "", "choose another name")
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name[:64]}.", suffix=".part")
    except OSError as error:
        raise unwritable(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.chmod(0o644)
        if keep_as is not None:
            with contextlib.suppress(FileNotFoundError):
                path.replace(keep_as)
        temporary.replace(path)
        if durable:
            flush_folder(folder)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder, where the system can do that."""
    with contextlib.suppress(OSError):  # Windows opens no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sweep_leftovers(folder: Path) -> None:
    """Remove what killed processes left of ``write_atomically``, where no other one is writing."""
    for path in folder.glob(".*.part"):
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def unwritable(path: object, error: OSError) -> InputError:
    """The error for a file or folder that the system refuses to write."""
    remedy = "choose a folder that you may write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        remedy = "make room there and try again"
    elif error.errno == errno.ENAMETOOLONG:
        remedy = "choose a shorter name"
    return InputError(f"{path} cannot be written ({error.strerror or error})", "", remedy)
