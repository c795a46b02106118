"""The paper's claims, each with the command that tests it, our figure and a verdict.

``tables.py`` writes this table at the head of REPRODUCE.md.
"""

from __future__ import annotations

import math
from pathlib import Path

from ulvm.presets import PRESETS
from ulvm.reproduce.experiments import (
    EXPERIMENTS,
    published,
    published_parameters,
    published_scores,
)
from ulvm.reproduce.report import NOTHING, markdown
from ulvm.reproduce.results import (
    TITLES,
    Estimate,
    Runs,
    compare_runs,
    estimate,
    place,
    read_runs,
)

NOT_RUN = ["not run", NOTHING]
# Experiment, row, the row that it is compared with there, the claim.
DIFFERENCES = (
    ("branches", "branches-1", "paper", "one branch scores lower than four"),
    ("branches", "branches-2", "paper", "two branches score lower than four"),
    ("bridges", "bridge-none", "paper", "plain skips score lower than the bridge"),
    ("peers", "vm-unet", "paper", "VM-UNet scores no higher"),
    ("peers", "ege-unet", "paper", "EGE-UNet scores no higher"),
    ("peers", "unet", "paper", "a U-Net scores lower"),
    ("plug", "unet-pvm", "unet", "PVM layers serve a U-Net"),
    ("plug", "unext-pvm", "unext", "PVM layers serve a UNeXt"),
)


def render(results_dir: Path) -> str:
    """The table as Markdown.

    Args:
        results_dir: Holds ``dataset/split/preset-seed.json``.
    """
    rows = []
    for row in EXPERIMENTS["main"].rows:
        runs = read_runs(row, results_dir)
        trained_on = f"{TITLES[row.dataset]} `{row.split}`"
        for scored_on in (row.dataset, "ph2"):
            if "dsc" in published_scores(row.preset, row.dataset, scored_on):
                claim = f"DSC on {TITLES[scored_on]}, trained on {trained_on}"
                rows.append(score_row(claim, runs, scored_on))
    rows += [difference_row(*each, results_dir) for each in DIFFERENCES]
    rows += [saving_row(row["preset"], row["share"]) for row in published()["parameters_saved"]]
    head = ["claim of the paper", "published", "command", "ours", "verdict"]
    return markdown(head, rows)


def score_row(claim: str, runs: Runs, scored_on: str) -> list[str]:
    """A published score beside ours."""
    printed = published_scores(runs.row.preset, runs.row.dataset, scored_on)["dsc"]
    cells = NOT_RUN
    if scored_on in runs.counts:
        ours = estimate(runs.counts[scored_on])["pooled.dsc"]
        cells = [str(ours), f"{judge(ours, printed)}; reached by {ours.reached(printed)} seeds"]
    return [claim, f"{printed:.4f}", command("main"), *cells]


def judge(ours: Estimate, printed: float) -> str:
    """A published score beside ours in words."""
    if ours.mean >= printed:
        return "reproduced"
    if place(printed, ours.interval) == "inside":
        return "ours lower, within our interval"
    return "not reproduced: ours lower"


def in_short(results_dir: Path) -> str:
    """Three lines for README.md: the score, the score on other pictures, the paper's choices."""
    runs = read_runs(EXPERIMENTS["main"].rows[0], results_dir)
    if not runs.files:
        return "Not run yet."
    lines = []
    for scored_on in ("isic2017", "ph2"):
        printed = published_scores("paper", "isic2017", scored_on)["dsc"]
        ours = estimate(runs.counts[scored_on])["pooled.dsc"]
        lines.append(
            f"- Dice on {TITLES[scored_on]}: published {printed:.4f}, ours {ours}; "
            f"{judge(ours, printed)}, reached by {ours.reached(printed)} seeds."
        )
    rows = [
        row
        for name in ("branches", "bridges", "peers")
        for row in EXPERIMENTS[name].rows
        if row.preset != "paper"
    ]
    found = {row: compare_runs(read_runs(row, results_dir), runs, "isic2017") for row in rows}
    known = {row: difference for row, difference in found.items() if difference}
    real = sum(difference.is_real for difference in known.values())
    largest = max((PRESETS[row.preset].parameters for row in known), default=0)
    lines.append(
        "- Other numbers of branches, other skip bridges, other papers' networks of up to "
        f"{largest:,} parameters: {real or 'none'} of {len(known)} scores differently beyond noise"
        f"{' (some ran with one seed)' if any(each.seeds == 1 for each in known.values()) else ''}."
    )
    return "\n".join(lines)


def difference_row(
    table: str, preset: str, reference: str, claim: str, results_dir: Path
) -> list[str]:
    """A published difference, if the paper prints both scores, beside ours."""
    rows = {row.preset: row for row in EXPERIMENTS[table].rows}
    runs, other = (read_runs(rows[name], results_dir) for name in (preset, reference))
    dataset = runs.row.dataset
    scores = [published_scores(name, dataset, dataset).get("dsc") for name in (preset, reference)]
    printed = None if None in scores else scores[0] - scores[1]  # type: ignore[operator]
    found = compare_runs(runs, other, dataset)
    cells = NOT_RUN
    if found:
        verdict = found.verdict
        if found.is_real:
            verdict = f"{'higher' if found.difference > 0 else 'lower'}: {verdict}"
        if printed is not None:
            verdict += (
                f"; the published difference lies {place(printed, found.interval)} our interval"
            )
        cells = [f"{found}, p = {found.p_value:.3f}", verdict]
    size = PRESETS[preset].parameters / PRESETS[reference].parameters
    claim = f"{claim}, with {size:.3g} × the parameters"
    return [claim, NOTHING if printed is None else f"{printed:+.4f}", command(table), *cells]


def saving_row(preset: str, printed: float) -> list[str]:
    """A published share of parameters saved beside that of the exact counts."""
    exact = 1 - PRESETS["paper"].parameters / PRESETS[preset].parameters
    ours, theirs = (published_parameters(name) or math.nan for name in ("paper", preset))
    right = "exact" if round(1 - ours / theirs, 4) == printed else "not as published"
    verdict = right if round(exact, 4) == printed else f"{right}, by the counts as printed"
    claim = f"fewer parameters than `{preset}`"
    return [claim, f"{printed:.2%}", f"`ulvm inspect {preset}`", f"{exact:.2%}", verdict]


def command(table: str) -> str:
    """What runs a table."""
    return f"`ulvm reproduce {table} --data DIR`"
