"""What fuzzing found, and its sound seeds, again; and the page of limits."""

import re
from pathlib import Path

import pytest

from fuzz import targets
from ulvm import limits

CORPUS = Path(__file__).parent / "corpus"
PAGE = Path(__file__).parents[1] / "docs" / "limits.md"
KEPT = sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found(path: Path) -> None:
    targets.TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", targets.TARGETS)
def test_sound_seeds_and_their_beginnings(name: str) -> None:
    for content in targets.seeds(name):
        for end in (len(content), len(content) // 2, 1, 0):
            targets.TARGETS[name](content[:end])


def test_a_target_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LookupError

    monkeypatch.setattr(targets, "read_image", fail)
    with pytest.raises(LookupError):
        targets.picture(b"")


def test_the_corpus_is_small() -> None:
    assert KEPT
    assert sum(path.stat().st_size for path in KEPT) < 300_000
    assert {path.parent.name for path in KEPT} <= set(targets.TARGETS)


def test_the_page_has_every_limit() -> None:
    rows = re.findall(r"^\| .+ \| ([\d,]+) \| `(\w+)` \|$", PAGE.read_text("utf-8"), re.MULTILINE)
    constants = {
        name: value for name, value in vars(limits).items() if name.isupper() and name != "IO"
    }
    assert {name: int(value.replace(",", "")) for value, name in rows} == constants


def test_the_engine_has_the_same_depth_of_json() -> None:
    header = Path(limits.__file__).with_name("engine") / "json.h"
    assert f"DEEPEST = {limits.JSON_DEPTH}," in header.read_text("utf-8")
