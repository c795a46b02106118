"""Where results come from: commits, versions, and pictures that a model has seen."""

import dataclasses
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ulvm import provenance
from ulvm.errors import InputError
from ulvm.presets import find_preset
from ulvm.provenance import (
    Seen,
    choose_unseen,
    find_copies,
    find_own_split,
    git_commit,
    read_seen,
)
from ulvm.spec import RunSpec
from ulvm.splits import HasPart, Split, load_split


class Looks:
    """A data set whose pictures look as their names in ``looks`` say."""

    def __init__(self, name: str, looks: dict[str, str]) -> None:
        self.name = name
        self.pairs: list[HasPart] = []
        self._looks = looks

    @property
    def ids(self) -> list[str]:
        return list(self._looks)

    def looks(self, ids: Iterable[str]) -> list[str]:
        return [self._looks[id_] for id_ in ids]

    def fingerprints(self, ids: Iterable[str], size: int = 0) -> list[str]:
        return [fingerprint(self._looks[id_], size) for id_ in ids]


def fingerprint(look: str, size: int = 0) -> str:
    return f"{look}{size or ''}".encode().hex().rjust(16, "0")


def seen_of(dataset: str, looks: dict[str, str], *, fingerprints: bool = True) -> Seen:
    """A run of "a" and "b", chosen with "c", tested with "d"."""
    split = Split("own", dataset, {"train": ("a", "b"), "validation": ("c",), "test": ("d",)})
    pictures = tuple(fingerprint(looks[id_]) for id_ in "abc")
    return Seen(split, pictures, "ab") if fingerprints else Seen(split)


def unseen(seen: Seen, scored: Looks, ids: str, *, part: str = "test", drop: bool = False) -> str:
    everything = Split("all", scored.name, {"test": tuple(scored.ids)})
    return "".join(choose_unseen([*ids], [seen], scored, everything, part=part, drop=drop))


def test_pictures_that_a_model_has_seen_are_refused_or_left_out() -> None:
    same = {id_: f"{id_} looks so" for id_ in "abcde"}
    for dataset, known in (("folder", True), ("folder", False), ("ph2", True), ("ph2", False)):
        seen = seen_of(dataset, same, fingerprints=known)
        scored = Looks(dataset, same)
        assert unseen(seen, scored, "de") == "de"
        with pytest.raises(InputError, match=r"2 of these 3 pictures.*--exclude-seen"):
            unseen(seen, scored, "dac")
        assert unseen(seen, scored, "dac", drop=True) == "d"
        with pytest.raises(InputError, match="Choose another part"):
            unseen(seen, scored, "a", drop=True)


def test_in_folders_it_is_the_look_that_counts_and_not_the_name() -> None:
    looks = {id_: f"{id_} of us" for id_ in "abcd"}
    seen = seen_of("folder", looks)
    others = Looks("folder", {id_: f"{id_} of them" for id_ in "abcd"})
    assert unseen(seen, others, "abcd") == "abcd"
    copies = Looks("folder", {"x": looks["a"], "y": "new", "z": looks["c"], "d": looks["d"]})
    assert unseen(seen, copies, "xyzd", drop=True) == "yd"
    public = Looks("ph2", {"a": "resized", "x": looks["b"], "y": "new"})  # its names are its own
    assert unseen(seen, public, "axy", drop=True) == "y"


def test_a_part_that_was_seen_is_scored_where_it_is_asked_for_by_name() -> None:
    looks = {id_: id_ for id_ in "abcd"}
    seen = seen_of("folder", looks)
    scored = Looks("folder", looks)
    words = (["a", "b"], [seen], scored, seen.split)
    assert choose_unseen(*words, part="train", drop=False) == ["a", "b"]
    with pytest.raises(InputError, match="training or validation part"):
        choose_unseen(*words, part="test", drop=False)


def test_a_folder_is_known_by_its_pictures() -> None:
    looks = {id_: f"{id_} of us" for id_ in "abcd"}
    seen = [seen_of("folder", looks)]
    for known in (looks, looks | {"a": "drawn anew"}, {"d": looks["d"], "e": "new"}):
        assert find_own_split(seen, Looks("folder", known)) == seen[0].split
    others = {id_: f"{id_} of them" for id_ in "abcd"}
    for unknown in (others, {"e": "new"}):
        assert find_own_split(seen, Looks("folder", unknown)) is None
    assert find_own_split(seen, Looks("ph2", looks)) is None


def test_what_was_seen_is_stored_with_the_ids_of_a_split_of_ones_own() -> None:
    own = seen_of("folder", {id_: id_ for id_ in "abc"})
    assert own.to_dict()["parts"] == {"train": ["a", "b"], "validation": ["c"], "test": ["d"]}
    committed = load_split("isic2017", "paper-permutation")
    known = Seen(committed, tuple(f"{index:016x}" for index in range(1400)), "cd")
    stored = known.to_dict()
    assert "parts" not in stored  # ulvm comes with them
    assert len(json.dumps(stored)) < 1400 * 16 + 300
    changed = dataclasses.replace(committed, parts={**committed.parts, "test": ()})
    assert "parts" in Seen(changed).to_dict()
    for seen in (own, known, Seen(changed, known.pictures)):
        found = Seen.from_dict(json.loads(json.dumps(seen.to_dict())))
        assert dataclasses.replace(found, looks=()) == seen
    copied = dataclasses.replace(own, looks=tuple(each * 30 for each in "abc"))
    assert Seen.from_dict(copied.to_dict()) == copied
    shipped = Seen.from_dict(known.to_dict())
    assert len(shipped.looks) == 1400
    assert shipped.to_dict()["looks"] == ""


@pytest.mark.parametrize(
    "change",
    [
        {"hash": "0" * 12},
        {"pictures": "0" * 47},
        {"pictures": "g" * 16 + "0" * 32},
        {"pictures": None},
        {"parts": {"train": ["a", "x"], "validation": ["c"], "test": ["d"]}},
        {"dataset": 7},
        {"size": -1},
        {"looks": "0" * 30},
        {"looks": 3},
        {"size": "large"},
    ],
)
def test_damaged_words_on_what_was_seen_are_refused(change: dict[str, Any]) -> None:
    run = RunSpec().override(["data.dataset=folder", "data.split=gone.json"])
    stored = seen_of("folder", {id_: id_ for id_ in "abc"}).to_dict()
    assert read_seen(run, {"seen": [stored]})[0].ids == ("a", "b", "c")
    for damaged in ([stored | change], [], stored, None, [stored, stored]):
        with pytest.raises(InputError):
            read_seen(run, {"seen": damaged})


def test_an_older_model_goes_by_its_split_file_while_that_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    split = seen_of("folder", {id_: id_ for id_ in "abc"}).split
    split.save(path)
    run = RunSpec().override(["data.dataset=folder", f"data.split={path}"])
    for said in ({}, {"split_hash": split.hash}, {"split_hashes": {"folder": split.hash}}):
        assert read_seen(run, said) == [Seen(split)]
    dataclasses.replace(split, parts={**split.parts, "test": ("d", "e")}).save(path)
    with pytest.raises(InputError, match=r"own\.json has changed since the model was trained"):
        read_seen(run, {"split_hash": split.hash})


@pytest.mark.parametrize("preset", ["skin", "paper"])  # as `skin` and `isic2017` were trained
def test_pictures_of_the_shipped_models_are_known_under_other_names(preset: str) -> None:
    """Their files are older than looks, which lie beside them."""
    for seen in read_seen(find_preset(preset).run, {}):
        assert len(seen.looks) == len(seen.ids) > 300
        renamed = Looks("folder", {"1": seen.looks[7], "2": "0f" * 15})
        assert find_copies(["1", "2"], [seen], renamed) == ["1"]


def test_what_the_parents_saw_is_seen_too() -> None:
    run = RunSpec().override(["data.dataset=folder", "data.split=gone.json"])
    ours = seen_of("folder", {id_: f"{id_} ours" for id_ in "abc"})
    theirs = seen_of("folder", {id_: f"{id_} other" for id_ in "abc"})
    said = {"seen": [ours.to_dict()], "parent": {"model": "skin", "seen": [theirs.to_dict()]}}
    seen = read_seen(run, said)
    assert seen == [ours, theirs]
    looks = {"a": "a ours", "b": "b other", "c": "new", "d": "d"}
    scored = Looks("folder", looks)
    everything = Split("all", "folder", {"test": tuple(looks)})
    words: dict[str, Any] = {"part": "test", "drop": True}
    assert choose_unseen([*looks], seen, scored, everything, **words) == ["c", "d"]
    assert choose_unseen([*looks], seen[:1], scored, everything, **words) == ["b", "c", "d"]
    for damaged in ({}, {"seen": None}, {"seen": [{}]}, "skin"):
        with pytest.raises(InputError, match="damaged"):
            read_seen(run, said | {"parent": damaged})


def test_what_a_parent_saw_is_known_at_the_size_it_saw_it_at() -> None:
    looks = {id_: f"{id_} of us" for id_ in "abcd"}
    small = tuple(fingerprint(looks[id_], 64) for id_ in "abc")
    parent = dataclasses.replace(seen_of("folder", looks), pictures=small, size=64)
    copies = Looks("folder", {"x": looks["a"], "y": "new"})
    assert unseen(parent, copies, "xy", drop=True) == "y"
    assert find_own_split([parent], Looks("folder", looks)) is parent.split


def test_a_parents_folder_is_known_too() -> None:
    ours = seen_of("folder", {id_: f"{id_} ours" for id_ in "abc"})
    looks = {id_: f"{id_} other" for id_ in "abcd"}
    theirs = dataclasses.replace(seen_of("folder", looks), masks="theirs")
    assert find_own_split([ours, theirs], Looks("folder", looks)) is theirs.split


def test_what_changed_between_two_starts_is_named() -> None:
    then = seen_of("folder", {id_: id_ for id_ in "abc"})
    assert then.changes(then) == ""
    assert "folder have changed: b" in then.changes(
        seen_of("folder", {"a": "a", "b": "brighter", "c": "c"})
    )
    assert "masks" in then.changes(dataclasses.replace(then, masks="12"))
    split = dataclasses.replace(then.split, parts={**then.split.parts, "test": ()})
    assert "split" in then.changes(dataclasses.replace(then, split=split))


def test_the_years_share_what_their_readme_says() -> None:
    """1800 ids of ISIC 2018 are in ISIC 2017's training part: scoring across years must see it."""
    seen = Seen(load_split("isic2017", "official"))
    scored = [*load_split("isic2018", "official").ids("train")]
    pictures = Looks("isic2018", {id_: id_[-8:] for id_ in scored})
    everything = Split("all", "isic2018", {"test": tuple(scored)})
    left = choose_unseen(scored, [seen], pictures, everything, part="test", drop=True)
    assert len(scored) - len(left) == 1800 + 121


def make_repository(folder: Path) -> str:
    """A repository with a commit of every file; its short name."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    commit = [*who, "commit", "-q", "--allow-empty", "-m", "first"]
    for words in (["init", "-q"], ["add", "."], commit):
        subprocess.run(["git", *words], cwd=folder, check=True)
    done = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, check=True, capture_output=True
    )
    return done.stdout.decode().strip()


def test_the_commit_is_that_of_the_package_and_of_no_repository_around(tmp_path: Path) -> None:
    package = tmp_path / "src" / "ulvm"
    package.mkdir(parents=True)
    (package / "version.py").touch()
    commit = make_repository(tmp_path)
    assert git_commit(package) == commit
    for place in ("venv/lib/python3.12/site-packages/ulvm", "inner/src/ulvm"):
        inside = tmp_path / place
        inside.mkdir(parents=True)
        assert git_commit(inside) is None


def test_the_commit_is_not_that_of_a_repository_in_the_environment_or_around_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook of another repository names it in variables; ulvm copied into one isn't part of it."""
    package = tmp_path / "ours" / "src" / "ulvm"
    package.mkdir(parents=True)
    (package / "version.py").touch()
    other = tmp_path / "other"
    other.mkdir()
    (other / "theirs.py").write_text("1")
    theirs = make_repository(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    assert git_commit(package) is None
    monkeypatch.delenv("GIT_DIR")
    assert make_repository(tmp_path / "ours") not in (None, theirs)
    copied = other / "src" / "ulvm"
    copied.mkdir(parents=True)
    (copied / "version.py").touch()
    assert git_commit(copied) is None


def test_no_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src" / "ulvm").mkdir(parents=True)
    make_repository(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path / "src" / "ulvm") is None


def test_versions_are_those_installed() -> None:
    numpy = pytest.importorskip("numpy")
    assert provenance.versions("numpy")["numpy"] == numpy.__version__
    assert set(provenance.versions("numpy")) == {"ulvm", "python", "numpy"}
