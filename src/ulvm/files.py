"""Files that are either old or new, never half-written."""

import os
import tempfile
from pathlib import Path

from ulvm.errors import InputError


def find_cache_folder() -> Path:
    """Where what can be made again is kept: the variable ``ULVM_CACHE``, or ``~/.cache/ulvm``."""
    return Path(os.environ.get("ULVM_CACHE") or Path.home() / ".cache" / "ulvm")


def make_folder(path: str | os.PathLike[str]) -> Path:
    """The folder, made with its parents where it is missing.

    Raises:
        InputError: It cannot be made.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(Path(path), error) from error
    return Path(path)


def write_atomically(path: str | os.PathLike[str], content: bytes | memoryview) -> None:
    """Write a file in one step: a reader sees the old content or all of the new.

    Args:
        path: The file; missing folders are made.
        content: All its bytes.

    Raises:
        InputError: The folder cannot be made or written to.
    """
    path = Path(path)
    folder = make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{path.name[:64]}.")
    except OSError as error:
        raise _unwritable(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path} cannot be written ({error.strerror or error})",
        "",
        "choose a folder that you may write to",
    )
