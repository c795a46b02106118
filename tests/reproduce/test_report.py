"""Tables and sentences from made-up result files."""

from __future__ import annotations

import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from made_up_results import AREA, write_run
from ulvm.errors import InputError
from ulvm.metrics import Interval
from ulvm.reproduce.experiments import EXPERIMENTS, PERMUTATION
from ulvm.reproduce.report import render
from ulvm.reproduce.results import Comparison, read_runs
from ulvm.splits import load_split


def rows_of(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results" / "runs"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_table_is_whole_before_anything_is_run(name: str, folder: Path) -> None:
    table = render(name, folder)
    assert "No run yet." in table
    assert "not run" in table
    for block in re.findall(r"(?:^\|.*\n)+", table, flags=re.M):
        assert len({len(row) for row in rows_of(block)}) == 1


def test_runs_that_are_missing_are_counted(folder: Path) -> None:
    row = EXPERIMENTS["main"].rows[0]
    write_run(folder, row, 0, 1000)
    write_run(folder, row, 3, 1200)
    assert read_runs(row, folder).seeds == "2 of 5"
    first, *others = rows_of(render("main", folder))[2:]
    assert first[4] == "2 of 5"
    assert {other[4] for other in others[1:]} == {"0 of 3"}


def test_the_main_table_holds_our_scores_and_where_the_published_ones_lie(folder: Path) -> None:
    row = EXPERIMENTS["main"].rows[0]
    for position, missed in enumerate((1000, 1100, 1200, 1300, 1400)):
        write_run(folder, row, position, missed)
    table = render("main", folder)
    _, _, own, ph2, *_ = rows_of(table)
    dices = [2 * (AREA - missed) / (2 * AREA - missed) for missed in range(1000, 1500, 100)]
    assert own[:5] == ["ISIC 2017", f"`{PERMUTATION}`", "ISIC 2017", "600", "5"]
    assert own[5].startswith(f"{np.mean(dices):.4f} ± {np.std(dices, ddof=1):.4f} [")
    # No background pixel is wrong, so SP is 1; .9091 of DSC is below what these runs reach.
    assert own[7] == "1.0000 ± 0.0000 [1.0000, 1.0000]"
    assert own[-2:] == ["0.9091 / 0.9053 / 0.9790 / 0.9646", "below / above / below / below"]
    assert ph2[3] == "200"
    assert "250 epochs of batches of 8 at 256×256" in table
    assert "5 runs" in table
    assert "Some GPU; ulvm 0.1.0; torch 2.11.0; commit 0123456; 2030-01-02." in table


def test_what_made_the_runs_is_said_once_for_each_way(folder: Path) -> None:
    rows = EXPERIMENTS["mixers"].rows
    write_run(folder, rows[0], 0, 1000)
    run = rows[1].runs()[0].override(["train.epochs=2"])
    on_cpu = {"machine": {"processor": "Some CPU"}, "git_commit": None}
    write_run(folder, rows[1], 0, 1000, run=run.to_dict(), **on_cpu)
    table = render("mixers", folder)
    assert " and 2 epochs of batches of 8" in table
    assert " 1 run: " in render("peers", folder)
    assert "Some GPU, Some CPU; ulvm 0.1.0; torch 2.11.0; commit 0123456, unknown;" in table


def test_an_ablation_is_compared_with_the_paper_model(folder: Path) -> None:
    random = np.random.default_rng(0)
    missed = random.integers(1000, 3000, 600)
    for row in EXPERIMENTS["branches"].rows:
        worse = {"branches-1": 100, "paper": 0, "branches-8": 0}.get(row.preset)
        if worse is not None:
            for position in range(len(row.seeds)):
                offset = 3 * (position - len(row.seeds) // 2)
                write_run(folder, row, position, missed + worse + offset)
    (folder.parent / "complexity.json").write_text(
        json.dumps({"paper": {"parameters": 49457, "macs": 84_123_456, "paper_macs": 60_240_000}})
    )
    spread = {"median_ms": 14.71, "lowest_round_ms": 14.58, "highest_round_ms": 14.96}
    times = {
        "what": "5 rounds",
        "date": "2030-01-03",
        "machine": {"processor": "Other CPU"},
        "versions": {"onnxruntime": "1.2.3"},
        "models": [{"name": "paper", "threads": {"1": spread}}],
    }
    (folder.parent / "speed").mkdir()
    (folder.parent / "speed" / "presets.json").write_text(json.dumps(times))
    table = render("branches", folder)
    assert table.endswith("fresh weights; 5 rounds; Other CPU, ONNX Runtime 1.2.3, 2030-01-03.")
    by_preset = {row[0]: row for row in rows_of(table)}
    one, two, ours, eight = (
        by_preset[f"`{name}`"] for name in ("branches-1", "branches-2", "paper", "branches-8")
    )
    assert ours[1:5] == ["49,457", "0.084 (0.060)", "14.6 (14.7)", "5"]
    assert ours[-3:] == ["–"] * 3
    assert one[2:4] == ["–", "–"]
    assert one[-4].startswith("0.9069, ")
    assert one[-3].startswith("-0.00")
    assert one[-1] == "real"
    assert two[4:6] == ["0 of 3", "not run"]
    assert (two[-4], two[-1]) == ("0.9073", "–")
    assert eight[-3].startswith("+0.0000 ")
    assert eight[-1] == "within noise"


def verdict_of(table: str, folder: Path) -> str:
    return render(table, folder).splitlines()[0].removeprefix("Verdict: ").rstrip(".")


def test_the_main_verdict_counts_the_scores_that_are_lower(folder: Path) -> None:
    row = EXPERIMENTS["main"].rows[0]
    assert verdict_of("main", folder) == "**not run**"

    def write(*missed: int) -> None:
        for position, each in enumerate(missed):
            write_run(folder, row, position, each)

    # Of PH2, made-up runs reach .9474 where .9265 is published.
    write(2000, 1600, 1800)
    assert verdict_of("main", folder) == (
        "**ours lower, within our intervals** in 1 of 2 scores, beyond our interval in 0"
    )
    write(2500, 2600, 2700)
    assert verdict_of("main", folder) == (
        "**not reproduced: ours lower** in 1 of 2 scores, beyond our interval in 1"
    )
    write(100, 200, 300)
    assert verdict_of("main", folder) == "**reproduced**: ours is nowhere lower"


def test_the_verdict_of_an_ablation_follows_its_numbers(folder: Path) -> None:
    rows = {row.preset: row for row in EXPERIMENTS["branches"].rows}

    def write(preset: str, *missed: int) -> None:
        for position, each in enumerate(missed):
            write_run(folder, rows[preset], position, each)

    assert verdict_of("branches", folder) == "**not run**"

    # Dice .8571, .8889 and .9189: all real, in the published order.
    write("branches-1", 2500, 2500, 2500)
    write("branches-2", 2000, 2000, 2000)
    write("paper", 1500, 1500, 1500)
    assert verdict_of("branches", folder) == (
        "**reproduced; against `paper` `branches-1` lower, `branches-2` lower; no other difference"
        " is real; not run: `branches-8`**"
    )

    # The same order by chance: seeds scatter more than the rows differ.
    write("branches-1", 2020, 1020, 3020)
    write("branches-2", 2010, 1010, 3010)
    write("paper", 2000, 1000, 3000)
    assert verdict_of("branches", folder) == (
        "**the published order, but not beyond noise; no difference to `paper` is real; not run:"
        " `branches-8`**"
    )

    write("branches-2", 2500, 2500, 2500)
    assert verdict_of("branches", folder) == (
        "**not reproduced: the published order is not ours; no difference to `paper` is real; not"
        " run: `branches-8`**"
    )


def test_the_verdict_says_what_chance_gives_among_several_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in EXPERIMENTS["branches"].rows[:3]:
        write_run(folder, row, 0, 2000)
    for p_value, said in ((0.01, ""), (0.02, " (one of 3 rows: p = 0.060 corrected)")):
        interval = Interval(low=0.001, high=0.008)
        found = Comparison(difference=0.004, interval=interval, p_value=p_value, seeds=3)
        monkeypatch.setattr("ulvm.reproduce.report.compare_runs", lambda *_, found=found: found)
        assert f"`branches-1` higher{said}, `branches-2` higher" in verdict_of("branches", folder)


def test_the_verdict_says_that_there_is_one_seed(folder: Path) -> None:
    for row, missed in zip(EXPERIMENTS["mixers"].rows[:2], (2000, 1000), strict=True):
        write_run(folder, row, 0, missed)
    assert " 2 runs: " in render("mixers", folder)
    assert verdict_of("mixers", folder) == (
        "**against `paper` `mixer-bidirectional` higher; no other difference is real; rows of one"
        " seed; not run: `mixer-ss2d`**"
    )


def test_a_plugged_in_layer_is_compared_with_the_network_without_it(folder: Path) -> None:
    rows = {row.preset: row for row in EXPERIMENTS["plug"].rows}
    write_run(folder, rows["unet"], 0, 2000)
    write_run(folder, rows["unet-pvm"], 0, 1000)
    write_run(folder, rows["unext-pvm"], 0, 1000)
    by_preset = {row[0]: row for row in rows_of(render("plug", folder))}
    difference = 2 * 9000 / 19_000 - 2 * 8000 / 18_000
    assert by_preset["`unet-pvm`"][-3].startswith(f"{difference:+.4f} ")
    assert by_preset["`unet-pvm`"][-1] == "real (one seed)"
    assert by_preset["`unext-pvm`"][-3:] == ["`unext` not run", "–", "–"]
    assert by_preset["`unet`"][-3:] == ["–"] * 3


def test_shared_ids_are_those_of_the_committed_files(folder: Path) -> None:
    lists = resources.files("ulvm") / "split_lists"

    def parts(name: str) -> dict[str, list[str] | None]:
        loaded: dict[str, list[str] | None] = json.loads((lists / f"{name}.json").read_text())[
            "parts"
        ]
        return loaded

    rows = {(row[0], row[1]): row[2:] for row in rows_of(render("leaks", folder)) if len(row) == 6}
    tests = 0
    for of, at in (("2018", "2017"), ("2017", "2018")):
        for trained in ("official", "paper-permutation", "sorted"):
            seen = parts(f"isic{of}-{trained}")
            for scored in ("paper-permutation", "sorted"):
                test = parts(f"isic{at}-{scored}")["test"]
                assert test is not None
                shared = [
                    sum(id_ in (seen[part] or []) for id_ in test)
                    for part in ("train", "validation")
                ]
                row = rows[f"ISIC {of} `{trained}`", f"ISIC {at} `{scored}`"]
                assert row[:3] == [str(len(test)), *map(str, shared)]
                assert row[3] == f"{100 * sum(shared) / len(test):.1f}%"
                tests += 1
    assert len(rows) == tests + 2  # head and rule


def test_the_audit_scores_seen_and_unseen_pictures_apart(folder: Path) -> None:
    (row,) = EXPERIMENTS["leaks"].rows
    learnt = load_split("isic2018", PERMUTATION).parts
    seen = {*learnt["train"], *learnt["validation"]}
    test = load_split("isic2017", PERMUTATION).ids("test")
    missed = np.array([500 if id_ in seen else 2000 for id_ in test])
    for position in range(3):
        write_run(folder, row, position, 1000, audit=missed)
    control = EXPERIMENTS["main"].rows[0]
    for position in range(5):
        write_run(folder, control, position, 2000)
    found = {(row[0], row[2]): row for row in rows_of(render("leaks", folder)) if len(row) == 9}
    trained = f"ISIC 2018 `{PERMUTATION}`"
    assert [found[trained, name][3] for name in ("all", "seen", "unseen")] == ["600", "433", "167"]
    assert found[trained, "seen"][4] == "0.9744 ± 0.0000 [0.9744, 0.9744]"  # 2·95 / (2·95 + 5)
    assert found[trained, "unseen"][4] == "0.8889 ± 0.0000 [0.8889, 0.8889]"  # 2·80 / (2·80 + 20)
    assert found[trained, "seen"][-1] == "real"
    assert found[trained, "unseen"][-3:] == [
        *("+0.0000 [+0.0000, +0.0000]", "1.000", "within noise")
    ]
    assert found[f"ISIC 2017 `{PERMUTATION}`", "seen"][1] == "5"
    assert verdict_of("leaks", folder) == (
        "**pictures seen in training +0.0855 (real), others +0.0000 (within noise)**"
    )


def test_an_unknown_table_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="Did you mean 'branches'"):
        render("branch", folder)
