"""The table of claims, from result files made up here."""

from pathlib import Path

import pytest

import claims
from made_up_results import AREA, write_run
from ulvm.reproduce.experiments import EXPERIMENTS


def cells_of(folder: Path, start: str) -> list[str]:
    """Published, ours and the verdict of the claim that starts so."""
    (line,) = [each for each in claims.render(folder).splitlines() if each.startswith(f"| {start}")]
    _, published, _, ours, verdict = line.strip("| ").split(" | ")
    return [published, ours, verdict]


def write(folder: Path, table: str, preset: str, *missed: int) -> None:
    row = next(row for row in EXPERIMENTS[table].rows if row.preset == preset)
    for position, each in enumerate(missed):
        write_run(folder, row, position, each)


def test_every_claim_has_a_command_and_without_runs_says_so(tmp_path: Path) -> None:
    lines = [line.strip("| ").split(" | ") for line in claims.render(tmp_path).splitlines()]
    assert {len(line) for line in lines} == {5}
    trained = [line for line in lines if line[2].startswith("`ulvm reproduce ")]
    assert {line[2].split()[2] for line in trained} < {*EXPERIMENTS}
    assert len(trained) == len(lines) - 4  # head, rule, two savings
    assert {line[3] for line in trained} == {"not run"}


def test_a_score_says_where_the_published_one_lies_and_how_many_seeds_reach_it(
    tmp_path: Path,
) -> None:
    row = EXPERIMENTS["main"].rows[0]
    for position, missed in enumerate((2000, 1600, 1800)):
        write_run(tmp_path, row, position, missed)
    published, ours, verdict = cells_of(tmp_path, "DSC on ISIC 2017, trained on ISIC 2017 `paper-p")
    assert published == "0.9091"
    dices = [2 * (AREA - missed) / (2 * AREA - missed) for missed in (2000, 1600, 1800)]
    assert ours.startswith(f"{sum(dices) / 3:.4f} ± ")
    assert verdict == "ours lower, within our interval; reached by 1 of 3 seeds"


@pytest.mark.parametrize(
    ("missed", "verdict"),
    [
        ((2500, 2600, 2700), "not reproduced: ours lower; reached by 0 of 3 seeds"),
        ((100, 200, 300), "reproduced; reached by 3 of 3 seeds"),
    ],
)
def test_a_score_beyond_the_interval_is_not_reproduced(
    tmp_path: Path, missed: tuple[int, ...], verdict: str
) -> None:
    row = EXPERIMENTS["main"].rows[0]
    for position, each in enumerate(missed):
        write_run(tmp_path, row, position, each)
    assert cells_of(tmp_path, "DSC on ISIC 2017, trained on ISIC 2017 `paper-p")[2] == verdict


def test_three_lines_say_how_the_reproduction_went(tmp_path: Path) -> None:
    assert claims.in_short(tmp_path) == "Not run yet."
    write(tmp_path, "main", "paper", 2500, 2600, 2700, 2500, 2600)
    write(tmp_path, "branches", "branches-1", 1000, 1000, 1000)
    own, ph2, choices = claims.in_short(tmp_path).splitlines()
    assert own.startswith("- Dice on ISIC 2017: published 0.9091, ours 0.85")
    assert own.endswith("; not reproduced: ours lower, reached by 0 of 5 seeds.")
    assert ph2.startswith("- Dice on PH2: published 0.9265, ours 0.9474 ")
    assert choices.endswith("of up to 136,269 parameters: 1 of 1 scores differently beyond noise.")


@pytest.mark.parametrize(
    ("one", "four", "verdict"),
    [
        # Dice .8571 and .9189: as claimed, but by more than the .0022 that is claimed.
        ((2500,) * 3, (1500,) * 3, "lower: real, above"),
        ((1500,) * 3, (2500,) * 3, "higher: real, below"),
        ((2020, 1020, 3020), (2000, 1000, 3000), "within noise, inside"),
    ],
)
def test_a_difference_is_told_from_noise_and_set_beside_the_published_one(
    tmp_path: Path, one: tuple[int, ...], four: tuple[int, ...], verdict: str
) -> None:
    write(tmp_path, "branches", "branches-1", *one)
    write(tmp_path, "branches", "paper", *four)
    published, ours, found = cells_of(tmp_path, "one branch scores lower than four, with 2.76 × ")
    assert published == "-0.0022"
    told, where = verdict.rsplit(", ", 1)
    assert found == f"{told}; the published difference lies {where} our interval"
    assert ", p = " in ours


def test_a_claim_without_published_scores_has_a_verdict_too(tmp_path: Path) -> None:
    write(tmp_path, "plug", "unet", 2000)
    write(tmp_path, "plug", "unet-pvm", 1000)
    published, ours, verdict = cells_of(tmp_path, "PVM layers serve a U-Net, with 0.344 × ")
    assert (published, verdict) == ("–", "higher: real (one seed)")
    assert ours.startswith("+0.0585 ")


def test_savings_are_of_the_exact_counts() -> None:
    assert claims.saving_row("vm-unet", 0.9982)[3:] == ["99.82%", "exact"]
    assert claims.saving_row("lightm-unet", 0.8784)[3:] == [
        "87.74%",
        "exact, by the counts as printed",
    ]
    assert claims.saving_row("vm-unet", 0.9)[4] == "not as published, by the counts as printed"
