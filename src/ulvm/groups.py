"""The table of a data set's pictures: whose they are, and what else is known of each."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ulvm.errors import InputError
from ulvm.limits import TABLE_BYTES, read_file
from ulvm.splits import name_some, normal_id

TABLE = "groups.csv"
_TOLD = re.compile(r"sep=([,;\t])[\r\n]+")  # the first line of what Excel is to open
_FORM = "it must be a CSV file whose first line is 'id,group', or has more columns"

Rows = dict[str, dict[str, str]]
"""Of each picture by its id, the value of each column; names of columns in small letters."""


def read_table(path: str | os.PathLike[str], needed: Sequence[str] = ("id",)) -> Rows:
    """A CSV file with a column ``id`` and others, as spreadsheets write it.

    Columns are separated by commas, semicolons or tabs. Accepted are UTF-8, UTF-16 with its mark,
    and Windows' Latin letters (cp1252).

    Raises:
        InputError: The file cannot be read, lacks a column that is needed, or has an id twice.
    """
    rows = read_rows(path, needed, _FORM)
    counts = Counter(normal_id(row["id"]) for row in rows)
    if twice := [id_ for id_, count in counts.items() if count > 1]:
        raise InputError(
            f"{path} has {len(twice)} ids more than once: {name_some(twice)}",
            "each picture has one line",
            "take the others out",
        )
    return {normal_id(row["id"]): row for row in rows}


def read_rows(
    path: str | os.PathLike[str], needed: Sequence[str], form: str
) -> list[dict[str, str]]:
    """The rows of a CSV file by its columns' names, in small letters.

    Args:
        path: The file; see `read_table` for what is accepted.
        needed: Columns that it must have.
        form: What it must be, for messages.

    Raises:
        InputError: The file cannot be read or lacks a column that is needed.
    """
    text = _decode(read_file(path, TABLE_BYTES)).lstrip("\r\n")
    told = _TOLD.match(text)
    text = text[told.end() if told else 0 :]
    delimiter = told[1] if told else max(",;\t", key=text.partition("\n")[0].count)
    try:
        # With newline="", a line ends where csv says so, not at every mark of Unicode's.
        first, *rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)) or [[]]
    except csv.Error as error:
        raise InputError(f"{path} is no table ({error})", form, "save it again as CSV") from error
    columns = [name.strip().lower() for name in first]
    if not set(needed) <= set(columns):
        names = " and ".join(f"'{name}'" for name in needed)
        raise InputError(
            f"{path} has no column{'s' * (len(needed) > 1)} {names}", form, "rename its columns"
        )
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise InputError(f"{path} has the column '{twice[0]}' twice", form, "rename one of them")
    padding = [""] * len(columns)  # for rows that end early
    return [
        dict(zip(columns, map(str.strip, [*row, *padding]), strict=False))
        for row in rows
        if any(map(str.strip, row))
    ]


def _decode(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def read_groups(path: str | os.PathLike[str], ids: Sequence[str]) -> list[str]:
    """The group of each id, from a table with the columns ``id`` and ``group``.

    Raises:
        InputError: See `read_table`; or there is no column ``group``, or an id is missing or has
            no group.
    """
    rows = read_table(path, needed=("id", "group"))
    for what, wrong in [
        ("lacks {} ids", [id_ for id_ in ids if id_ not in rows]),
        (
            "gives {} ids no group",
            [id_ for id_ in ids if id_ in rows and not rows[id_].get("group")],
        ),
    ]:
        if wrong:
            raise InputError(
                f"{path} {what.format(len(wrong))}: {name_some(wrong)}",
                "every picture needs a line with its group",
                "add them; a picture that belongs with no other has its own id as group",
            )
    return [normal_id(rows[id_]["group"]) for id_ in ids]


def find_table(data_dir: Path, dataset: str) -> Rows:
    """The table that lies beside a data set's pictures; empty where there is none."""
    path = find_table_file(data_dir, dataset)
    return {} if path is None else read_table(path)


def find_table_file(data_dir: Path, dataset: str) -> Path | None:
    """Where that table lies."""
    paths = (data_dir / TABLE, data_dir / dataset / TABLE)
    return next((path for path in paths if path.is_file()), None)
