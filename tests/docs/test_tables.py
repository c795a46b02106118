"""The documents' tables have their places and are made anew."""

import pytest

import tables
from documents import ROOT, RUNS
from ulvm.reproduce.experiments import EXPERIMENTS
from ulvm.reproduce.report import render

REPRODUCE = (ROOT / "REPRODUCE.md").read_text()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_table_has_its_place_and_its_command(name: str) -> None:
    assert f"### {EXPERIMENTS[name].question}\n" in REPRODUCE
    assert f"$ ulvm reproduce {name} --data DIR\n" in REPRODUCE
    assert f"<!-- table:reproduce:{name} -->\n" in REPRODUCE


def test_an_old_table_is_made_anew() -> None:
    old = "a\n<!-- table:reproduce:branches -->\nold\n<!-- end:table -->\nb\n"
    made = tables.TABLES["reproduce:branches"]()
    verdict, rows, rest = made.split("\n\n", 2)
    assert verdict.startswith("Verdict: **")
    for part in render("branches", RUNS).split("\n\n"):
        assert part in made
    assert rows.startswith("| preset | ")
    assert rest.startswith("<details>")
    assert rest.endswith("</details>")
    new = f"a\n<!-- table:reproduce:branches -->\n{made}\n<!-- end:table -->\nb\n"
    assert tables.fill(old) == new
    with pytest.raises(KeyError, match="reproduce:nothing"):
        tables.fill(old.replace("branches", "nothing"))
