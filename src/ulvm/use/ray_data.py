"""``ulvm predict --ray``: very many pictures, over the cores and machines of a Ray cluster.

The workers read pictures and write masks themselves; a row about each comes back, and is kept in
the output folder. A run that is started again leaves out what has its row.
"""

import io
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ulvm.errors import InputError, install_extra
from ulvm.files import write_atomically
from ulvm.image import encode_png
from ulvm.picture import is_written_by_ulvm, read_picture
from ulvm.predict import (
    MASK_ENDING,
    Prediction,
    find_images,
    is_picture_name,
    unique_outputs,
)
from ulvm.segmenter import load
from ulvm.spec import EngineName

ROWS = "rows"  # the folder of rows in the output folder
BLOCK = 64  # pictures a worker is given at a time: what is done again when it is killed
PART = 512  # rows in a file, unless they take longer than
PART_S = 10.0
READERS = 8  # pictures fetched at the same time from an object store, by each worker
COLUMN = "path"  # of addresses in a Parquet file


@dataclass(frozen=True)
class Address:
    """A picture and where its mask goes.

    Args:
        source: A path, or an address that fsspec knows, such as ``s3://bucket/photo.jpg``.
        output: Where its mask goes within the output folder: path without ending.
    """

    source: str
    output: str


def find_addresses(sources: Sequence[str]) -> list[Address]:
    """Every picture that the arguments name, each once, in a fixed order.

    Args:
        sources: Files, folders or patterns as for ``ulvm.predict.find_images``; addresses of an
            object or of a folder of them; or Parquet files with a column ``path`` of such.

    Raises:
        InputError: An argument names no picture; or a Parquet file has no such column.
    """
    found: dict[str, str] = {}  # source → output
    for argument in sources:
        if argument.endswith(".parquet"):
            for source in _read_paths(argument):
                found.setdefault(source, _output_of(source))
        elif "://" in argument:
            found |= _search_store(argument)
        else:
            for each in find_images([argument]):
                if each.error:
                    raise InputError(each.error, "", "")
                found.setdefault(os.path.abspath(each.name), each.output.as_posix())  # noqa: PTH100 - keeps symbolic links apart
    return [Address(source, output) for source, output in sorted(found.items())]


def predict_on_ray(
    addresses: Sequence[Address],
    out: str,
    *,
    model: str | None = None,
    engine: EngineName | None = None,
    threshold: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Write ``<stem>_mask.png`` for each picture that has none yet, over a Ray cluster.

    The cluster is the one that the program is connected to or that ``RAY_ADDRESS`` names; else
    this machine's cores. Every machine of it needs ulvm, and the model under its path.

    Args:
        addresses: From ``find_addresses``.
        out: Output folder, a path or an address that every machine can write to.
        model: As for ``ulvm.load``.
        engine: As for ``ulvm.load``.
        threshold: As for ``Segmenter``.

    Returns:
        ``Prediction.to_dict()`` of each picture that was not done, and its ``output``, once they
        are written down in ``rows/`` of the output folder. A picture that fails has an
        ``error``, and is tried again by the next run. If a worker dies, its pictures are done by
        another.

    Raises:
        InputError: Ray is not installed, the model or the threshold is refused, or the output
            folder cannot be written.
    """
    try:
        import ray
        from ray.data import ActorPoolStrategy, DataContext
    except ModuleNotFoundError as error:
        raise InputError("Ray Data is not installed", "", install_extra("ray")) from error
    load(model, engine=engine).check_threshold(threshold)  # refused here, not on every worker
    rows = _Rows(out)
    waiting = _choose_outputs(addresses, rows.done)
    if not waiting:
        return
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it tells its makers
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    workers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    blocks = max(-(-len(waiting) // BLOCK), min(workers, len(waiting)))
    items = [{"source": each.source, "output": each.output} for each in waiting]
    results = ray.data.from_items(items, override_num_blocks=blocks).map_batches(
        Worker,
        fn_constructor_args=(out, model, engine, threshold),
        batch_size=None,
        num_cpus=1,
        compute=ActorPoolStrategy(size=min(workers, blocks)),
    )
    for part in _in_parts(results.iter_batches(batch_size=None, prefetch_batches=0)):
        rows.write(part)
        yield from part


class Worker:
    """One process of the cluster: a model that is loaded once, for one picture after another.

    Args: as for ``predict_on_ray``.
    """

    def __init__(
        self, out: str, model: str | None, engine: EngineName | None, threshold: float | None
    ) -> None:
        self._folder = _Folder(out)
        self._segmenter = load(model, engine=engine)
        self._threshold = threshold
        self._readers = ThreadPoolExecutor(READERS)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Columns ``source`` and ``output`` → column ``row``, JSON."""
        sources, outputs = batch["source"].tolist(), batch["output"].tolist()
        fetched = any("://" in source for source in sources)
        contents: Iterable[Any] = self._readers.map(_fetch, sources) if fetched else sources
        rows = map(self._predict, sources, outputs, contents)
        return {"row": [json.dumps(row) for row in rows]}

    def _predict(self, source: str, output: str, content: Any) -> dict[str, Any]:
        """The row of a picture; its content is a path, a file, or why it could not be fetched."""
        name = f"{output}{MASK_ENDING}"
        try:
            if isinstance(content, InputError):
                raise content
            found = self._segmenter(read_picture(content), threshold=self._threshold)
            values = found.mask if found.labels is None else found.labels
            self._folder.write(name, encode_png(values))
        except InputError as error:
            return Prediction(source, error=str(error)).to_dict()
        except MemoryError:
            return Prediction(source, error=f"{source} does not fit into memory.").to_dict()
        row = Prediction(source, found.to_dict()).to_dict()
        return {**row, "mask_path": self._folder.address(name), "output": output}


class _Folder:
    """A folder for results: of this machine, or of an object store.

    Args:
        address: Its path or its address.
    """

    def __init__(self, address: str) -> None:
        self._store: Any = None
        self._root = address.removeprefix("file://")
        if "://" in self._root:
            self._store, self._root = _open_store(address)

    def address(self, name: str) -> str:
        """Where a file in it lies."""
        path = f"{self._root}/{name}"
        return str(self._store.unstrip_protocol(path)) if self._store else str(Path(path))

    def write(self, name: str, content: bytes | memoryview) -> None:
        """Write a file in one step.

        Raises:
            InputError: It cannot be written, or a mask would replace what ulvm did not write.
        """
        if self._store:
            path = f"{self._root}/{name}"
            try:
                try:
                    self._store.pipe_file(path, bytes(content))
                except FileNotFoundError:  # a store that has folders
                    self._store.makedirs(path.rpartition("/")[0], exist_ok=True)
                    self._store.pipe_file(path, bytes(content))
            except OSError as error:
                raise _failed(self.address(name), "written", error) from error
            return
        place = Path(self._root, name)
        if place.suffix == ".png" and place.exists() and not is_written_by_ulvm(place):
            raise InputError(
                f"{place} is in the way of a result: ulvm did not write it",
                "",
                "choose another output folder",
            )
        write_atomically(place, content)

    def read_all(self, subfolder: str) -> dict[str, bytes]:
        """The files of a subfolder, by name."""
        if not self._store:
            paths = Path(self._root, subfolder).glob("*.jsonl")
            return {path.name: path.read_bytes() for path in paths}
        try:
            found = self._store.cat(f"{self._root}/{subfolder}/*.jsonl")
        except FileNotFoundError:
            return {}
        return {PurePosixPath(path).name: content for path, content in found.items()}


class _Rows:
    """What a run has done, in files of ``rows/``, each written in one step.

    Args:
        out: The output folder.
    """

    def __init__(self, out: str) -> None:
        self._folder = _Folder(out)
        self.done: dict[str, str] = {}
        """Source → output, of the pictures that need not be done again."""
        self._number = 0
        for name, content in self._folder.read_all(ROWS).items():
            rows = [json.loads(line) for line in content.splitlines()]
            kept = [row for row in rows if row["error"] is None]
            if len(kept) < len(rows):  # those are tried again, and get a new row
                self._write(name, kept)
            self.done |= {row["source"]: row["output"] for row in kept}
            self._number = max(self._number, int(PurePosixPath(name).stem) + 1)

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Keep rows of pictures that were not done."""
        self._write(f"{self._number:06d}.jsonl", rows)
        self._number += 1

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        content = "".join(json.dumps(row) + "\n" for row in rows)
        self._folder.write(f"{ROWS}/{name}", content.encode())


def _choose_outputs(addresses: Sequence[Address], done: dict[str, str]) -> list[Address]:
    """Those that are not done, with ``-2``, ``-3`` … where a mask's name is another's already."""
    waiting = [address for address in addresses if address.source not in done]
    outputs = unique_outputs((address.output for address in waiting), done.values())
    return [Address(each.source, output) for each, output in zip(waiting, outputs, strict=True)]


def _in_parts(batches: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows of the workers' batches, about PART at a time, or what came in PART_S seconds."""
    part: list[dict[str, Any]] = []
    start = time.monotonic()
    for batch in batches:
        part += [json.loads(row) for row in batch["row"].tolist()]
        if len(part) >= PART or time.monotonic() - start >= PART_S:
            yield part
            part, start = [], time.monotonic()
    if part:
        yield part


def _search_store(address: str) -> dict[str, str]:
    """Source → output of an object, or of all pictures below a folder of objects."""
    if is_picture_name(PurePosixPath(address).name):
        return {address: PurePosixPath(address).stem}
    store, root = _open_store(address)
    try:
        found = [path for path in store.find(root) if is_picture_name(PurePosixPath(path).name)]
    except OSError as error:
        raise _failed(address, "listed", error) from error
    if not found:
        raise InputError(f"no picture found at {address}", "", "check the address")
    outputs = (PurePosixPath(path).relative_to(root).with_suffix("") for path in found)
    return {
        str(store.unstrip_protocol(path)): output.as_posix()
        for path, output in zip(found, outputs, strict=True)
    }


def _read_paths(address: str) -> list[str]:
    """The column of addresses in a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        content = io.BytesIO(_read(address))
        names = pyarrow.parquet.read_schema(content).names
        if COLUMN not in names:
            raise InputError(
                f"{address} has no column {COLUMN!r}, but {', '.join(names)}",
                "a column of that name holds the pictures' paths or addresses",
                "rename it",
            )
        table = pyarrow.parquet.read_table(content, columns=[COLUMN])
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise _failed(address, "read", error) from error
    return [str(value) for value in table[COLUMN].to_pylist() if value is not None]


def _output_of(source: str) -> str:
    """Where the mask of a picture that is named by its whole path goes."""
    path = PurePosixPath(source.partition("://")[2] or source)
    parts = [part.rstrip(":\\/") for part in path.with_suffix("").parts]
    return "/".join(part for part in parts if part not in ("", ".", ".."))


def _fetch(source: str) -> Any:
    """A picture as a file, or why it could not be read."""
    try:
        file = io.BytesIO(_read(source))
    except OSError as error:
        return _failed(source, "read", error)
    file.name = source  # what messages call it
    return file


def _read(source: str) -> bytes:
    if "://" not in source:
        return Path(source).read_bytes()
    store, path = _open_store(source)
    return bytes(store.cat_file(path))


def _open_store(address: str) -> tuple[Any, str]:
    """fsspec's file system of an address, and the path in it."""
    import fsspec.core

    try:
        store, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"{address} cannot be opened ({error})",
            "the kinds of addresses are those of fsspec",
            "install the package that it names",
        ) from error
    return store, path.rstrip("/")


def _failed(address: str, what: str, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return InputError(f"{address} cannot be {what} ({reason})", "", "check it and your permissions")
