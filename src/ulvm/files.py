"""Files that are either old or new, never half-written."""

import os
import tempfile
from pathlib import Path

from ulvm.errors import InputError


def write_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file in one step: a reader sees the old content or all of the new.

    Args:
        path: The file; missing folders are made.
        content: All its bytes.

    Raises:
        InputError: The folder cannot be made or written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as problem:
        raise InputError(
            f"{path} cannot be written ({problem.strerror})",
            "accepted is a folder that you may write to",
            "choose another output folder",
        ) from problem
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
