"""Tables of pictures as spreadsheets write them."""

import os
from pathlib import Path

import pytest

from ulvm.errors import InputError
from ulvm.groups import find_table, read_groups, read_table


def test_groups_come_from_a_csv_file(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("id,group\nb,2\na,1\n")
    assert read_groups(tmp_path / "groups.csv", ["a", "b"]) == ["1", "2"]
    with pytest.raises(InputError, match="lacks 1 ids: c"):
        read_groups(tmp_path / "groups.csv", ["a", "c"])
    (tmp_path / "wrong.csv").write_text("name,patient\na,1\n")
    with pytest.raises(InputError, match="no columns"):
        read_groups(tmp_path / "wrong.csv", ["a"])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_what_spreadsheets_write(tmp_path: Path, separator: str, encoding: str) -> None:
    lines = ["ID;Group ;Diagnosis", "a;Müller, A.;nv", 'b;"Groß";', ";;", ""]
    if separator == ",":
        lines[1] = 'a;"Müller, A.";nv'
    text = "\r\n".join(lines).replace(";", separator)
    (tmp_path / "groups.csv").write_bytes(text.encode(encoding))
    assert read_groups(tmp_path / "groups.csv", ["b", "a"]) == ["Groß", "Müller, A."]
    assert read_table(tmp_path / "groups.csv")["a"]["diagnosis"] == "nv"


@pytest.mark.parametrize(
    "text",
    [
        "sep=;\r\nid;group\r\na;1\r\nb;2\r\n",  # what Excel is told
        "\n\nid,group\ra,1\rb,2\r , \r  ,\r",  # blank rows, a Mac's line ends of long ago
        'id,note,group\na,"one\ntwo, three",1\nb,x\u2028y,2\n',  # line ends in a cell
        "\tid\tgroup\n0\ta\t1\n1\tb\t2\n",  # a column without a name
    ],
)
def test_odd_but_clear_tables(tmp_path: Path, text: str) -> None:
    (tmp_path / "groups.csv").write_bytes(text.encode())
    assert read_groups(tmp_path / "groups.csv", ["a", "b"]) == ["1", "2"]


def test_a_group_is_one_in_both_unicode_forms(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("id,group\na,\xe9\nb,e\u0301\n")
    assert len(set(read_groups(tmp_path / "groups.csv", ["a", "b"]))) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,group,Group\na,1,2\nb,1,3\nc,2,2\n", "column 'group' twice"),
        ("id;group\na;\nb; \nc;1\n", "gives 2 ids no group: a, b"),
        ("id,group\na,1\na,2\n", "1 ids more than once: a"),
        ("picture,group\na,1\n", "no columns 'id' and 'group'"),
        ("id,patient\na,1\nb,1\nc,1\n", "no columns 'id' and 'group'"),
        ("", "no columns"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_groups(tmp_path / "groups.csv", ["a", "b", "c"])


def test_damaged_tables_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "groups.csv"
    for content, message in (
        (b"\xff\xfei", "no columns"),  # half a letter of UTF-16
        (b"id,group\na," + b"9" * 140_000, "is no table"),
        (b"group,id\n1\n", "lacks 1 ids"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_groups(path, ["a"])
    monkeypatch.setattr("ulvm.groups.TABLE_BYTES", 20)
    path.write_bytes(b"id,group\n" + b"a,1\n" * 9)
    with pytest.raises(InputError, match="longer than 20 bytes"):
        read_groups(path, ["a"])
    if hasattr(os, "mkfifo"):
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(InputError, match="pipe"):
            read_groups(path, ["a"])


def test_ids_of_a_mac_are_found(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("id,group\ne\u0301,1\n")
    assert read_groups(tmp_path / "groups.csv", ["\xe9"]) == ["1"]


def test_the_table_beside_the_data(tmp_path: Path) -> None:
    assert find_table(tmp_path, "pad-ufes") == {}
    (tmp_path / "pad-ufes").mkdir()
    (tmp_path / "pad-ufes" / "groups.csv").write_text("id,group,diagnosis\na,1,mel\n")
    for folder in (tmp_path, tmp_path / "pad-ufes"):
        assert find_table(folder, "pad-ufes")["a"]["diagnosis"] == "mel"
