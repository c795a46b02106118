"""The result files of ``ulvm reproduce`` as Markdown tables, each with a verdict."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ulvm.metrics import LEVEL, RESAMPLES, IntArray
from ulvm.presets import find_preset
from ulvm.reproduce.experiments import EXPERIMENTS, Row, find_experiment, published_scores
from ulvm.reproduce.results import (
    TITLES,
    Comparison,
    Estimate,
    Runs,
    compare_runs,
    estimate,
    place,
    read_runs,
)
from ulvm.spec import RunSpec
from ulvm.splits import load_split

SPLIT_SCORED = {"ph2": "all"}  # other data sets are scored on the test part of the row's split
NOTHING = "–"
PAIRED = (
    "Differences of DSC: a resample has the same images for both rows, seeds drawn apart; real"
    " where the interval leaves out 0, with one seed of these runs only, for seeds differ too; p"
    " two-sided, not corrected for the number of rows."
)

# Of which the table of leaks counts the shared ids.
_PAPER_SPLITS = ("official", "paper-permutation", "sorted")


def render(table_name: str, results_dir: Path) -> str:
    """A verdict, a table as Markdown, and how its figures were made.

    Args:
        table_name: A key of ``EXPERIMENTS``.
        results_dir: Holds ``dataset/split/preset-seed.json``; beside it,
            ``complexity.json`` and ``speed/presets.json`` have the multiply-accumulates and the
            times; without them none are shown.

    Returns:
        Rows without a run say "not run", and how many seeds there are.

    Raises:
        InputError: No such table, or a result file does not fit its name.
    """
    runs = [read_runs(row, results_dir) for row in find_experiment(table_name).rows]
    if table_name == "main":
        return _render_main(runs)
    if table_name == "leaks":
        (leaked,) = runs
        control = EXPERIMENTS["main"].rows[0]
        return _render_leaks(leaked, read_runs(control, results_dir))
    return _render_ablation(table_name, runs, results_dir.parent)


def _render_main(all_runs: Sequence[Runs]) -> str:
    head = "trained on, split, scored on, n, seeds, DSC, SE, SP, ACC, IoU, DSC per image"
    head += ", published DSC / SE / SP / ACC, published is … our interval"
    rows, beside = [], []
    for runs in all_runs:
        row = runs.row
        for scored_on in (row.dataset, "ph2"):
            images = len(load_split(scored_on, SPLIT_SCORED.get(scored_on, row.split)).ids("test"))
            where = [TITLES[row.dataset], f"`{row.split}`", TITLES[scored_on], str(images)]
            published = published_scores(row.preset, row.dataset, scored_on)
            printed = " / ".join(f"{figure:.4f}" for figure in published.values()) or NOTHING
            scores, verdict = ["not run"] + [NOTHING] * 5, NOTHING
            if scored_on in runs.counts:
                found = estimate(runs.counts[scored_on])
                names = [f"pooled.{name}" for name in ("dsc", "se", "sp", "acc", "iou")]
                scores = [str(found[name]) for name in (*names, "per_image.dsc")]
                places = {m: place(published[m], found[f"pooled.{m}"].interval) for m in published}
                verdict = " / ".join(places.values()) or NOTHING
                if published:
                    beside.append((found["pooled.dsc"].mean < published["dsc"], places["dsc"]))
            rows.append([*where, runs.seeds, *scores, printed, verdict])
    caption = (
        f"{_caption(all_runs)} Published: arXiv 2403.20035; its ISIC 2018 row contradicts itself"
        " (its SE, SP and ACC imply a DSC of .888)."
    )
    return _join_parts(_verdict_main(beside), markdown(head, rows), caption)


def _verdict_main(beside: Sequence[tuple[bool, str]]) -> str:
    """Of each published Dice, whether ours is lower and where it lies: one sentence."""
    if not beside:
        return "Verdict: **not run**."
    lower = sum(is_lower for is_lower, _ in beside)
    beyond = sum(is_lower and where == "above" for is_lower, where in beside)
    if not lower:
        return "Verdict: **reproduced**: ours is nowhere lower."
    word = "not reproduced: ours lower" if beyond else "ours lower, within our intervals"
    times = f"in {lower} of {_number(len(beside), 'score')}"
    return f"Verdict: **{word}** {times}, beyond our interval in {beyond}."


@dataclass(frozen=True, eq=False)
class _Ablation:
    """A row of an ablation table with what its runs say; None where nothing has been run."""

    runs: Runs
    reference: Runs

    @property
    def name(self) -> str:
        return f"`{self.runs.row.preset}`"

    @property
    def parameters(self) -> int:
        return find_preset(self.runs.row.preset).parameters

    @cached_property
    def published(self) -> float | None:
        row = self.runs.row
        return published_scores(row.preset, row.dataset, row.dataset).get("dsc")

    @cached_property
    def scores(self) -> dict[str, Estimate] | None:
        return estimate(self.runs.counts[self.runs.row.dataset]) if self.runs.files else None

    @cached_property
    def difference(self) -> Comparison | None:
        if self.runs is self.reference:
            return None
        return compare_runs(self.runs, self.reference, self.runs.row.dataset)


def _render_ablation(table_name: str, all_runs: Sequence[Runs], measured: Path) -> str:
    by_preset = {runs.row.preset: runs for runs in all_runs}
    costs, timing = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for path in (measured / "complexity.json", measured / "speed" / "presets.json")
    )
    times = {model["name"]: model["threads"]["1"] for model in timing.get("models", [])}
    base = "the network without PVM" if table_name == "plug" else "`paper`"
    head = "preset, parameters, G multiply-accumulates (counted as the paper does)"
    head += ", CPU: ms (of all rounds), seeds, DSC, SE, SP, PH2 DSC, published DSC"
    head += f", difference to {base}, p, verdict"
    ablations, rows = [], []
    for preset, runs in by_preset.items():
        reference = by_preset[preset.removesuffix("-pvm") if table_name == "plug" else "paper"]
        ablation = _Ablation(runs, reference)
        ablations.append(ablation)
        cost, own, published = costs.get(preset), ablation.scores, ablation.published
        printed = NOTHING if published is None else f"{published:.4f}"
        cells = ["not run", *[NOTHING] * 3]
        if own:
            cells = [str(own["pooled.dsc"]), own["pooled.se"].spread, own["pooled.sp"].spread]
            cells.append(str(estimate(runs.counts["ph2"])["pooled.dsc"]))
            if published is not None:
                printed += f", {place(published, own['pooled.dsc'].interval)} our interval"
        difference = _cells(ablation.difference)
        if own and runs is not reference and not reference.files:
            difference[0] = f"`{reference.row.preset}` not run"
        rows.append(
            [
                ablation.name,
                f"{ablation.parameters:,}",
                f"{cost['macs'] / 1e9:.3f} ({cost['paper_macs'] / 1e9:.3f})" if cost else NOTHING,
                _time(times[preset]) if preset in times else NOTHING,
                runs.seeds,
                *cells,
                printed,
                *difference,
            ]
        )
    caption = f"{_caption(all_runs)} {PAIRED}"
    if times.keys() & by_preset.keys():
        caption += (
            f" CPU: median of the fastest round, one thread, fresh weights; {timing['what']};"
            f" {timing['machine']['processor']}, ONNX Runtime"
            f" {timing['versions']['onnxruntime']}, {timing['date']}."
        )
    return _join_parts(_verdict(ablations, base), markdown(head, rows), caption)


def _time(row: Mapping[str, float]) -> str:
    return f"{row['lowest_round_ms']:.1f} ({row['median_ms']:.1f})"


def _verdict(ablations: Sequence[_Ablation], base: str) -> str:
    """Whether the published order is ours, if there is one, and which differences are real."""
    found = [(row.name, row.difference) for row in ablations if row.difference]
    if not found:
        return "Verdict: **not run**."
    real = []
    for name, each in found:
        if each.is_real:
            corrected = min(1, each.p_value * len(found))  # Bonferroni
            by_chance = f" (one of {len(found)} rows: p = {corrected:.3f} corrected)"
            side = "higher" if each.difference > 0 else "lower"
            real.append(f"{name} {side}{by_chance * (corrected > 1 - LEVEL)}")
    words = f"no difference to {base} is real"
    if real:
        words = f"against {base} {', '.join(real)}; no other difference is real"
    if any(each.seeds == 1 for _, each in found):
        words += "; rows of one seed"
    missing = [row.name for row in ablations if not row.scores]
    if missing:
        words += f"; not run: {', '.join(missing)}"
    order = _compare_order(ablations)
    return f"Verdict: **{order + '; ' if order else ''}{words}**."


def _compare_order(ablations: Sequence[_Ablation]) -> str:
    """Whether the rows that are printed and run have the printed order; empty if it can't be."""
    both = [row for row in ablations if row.published is not None and row.scores]
    if len(both) < 2:
        return ""
    printed = sorted(both, key=lambda row: row.published or 0)
    ours = sorted(both, key=lambda row: row.scores["pooled.dsc"].mean if row.scores else 0)
    if printed != ours:
        return "not reproduced: the published order is not ours"
    others = [row.difference for row in both if row.difference]
    if all(each.is_real for each in others):
        return "reproduced"
    return "the published order, but not beyond noise"


def _cells(found: Comparison | None) -> list[str]:
    """Cells for the difference, p and the verdict."""
    return [str(found), f"{found.p_value:.3f}", found.verdict] if found else [NOTHING] * 3


def _render_leaks(leaked: Runs, control: Runs) -> str:
    """Shared ids of the committed splits, then the score on pictures seen and unseen."""
    shared = [
        [
            f"{TITLES[trained_on]} `{trained}`",
            f"{TITLES[scored_on]} `{scored}`",
            *(str(count) for count in _count_shared(trained_on, trained, scored_on, scored)),
        ]
        for trained_on, scored_on in (("isic2018", "isic2017"), ("isic2017", "isic2018"))
        for trained in _PAPER_SPLITS
        for scored in _PAPER_SPLITS
        if load_split(scored_on, scored).parts["test"]
    ]
    shared_head = "trained on, scored on the test part of, its ids, in training, in validation"
    shared_head += ", share seen"

    scored_on = control.row.dataset
    scores, told_of = [], {}
    for runs in (leaked, control):
        for name, chosen in _subsets(leaked.row, control.row).items():
            cells, difference = ["not run", NOTHING], None
            if runs.files:
                found = estimate(runs.counts[scored_on].select(chosen))
                cells = [str(found["pooled.dsc"]), str(found["per_image.dsc"])]
            if runs is leaked:
                difference = told_of[name] = compare_runs(runs, control, scored_on, chosen)
            trained_on = f"{TITLES[runs.row.dataset]} `{runs.row.split}`"
            number = str(len(chosen))
            scores.append([trained_on, runs.seeds, name, number, *cells, *_cells(difference)])
    score_head = f"trained on, seeds, pictures of {TITLES[scored_on]}'s test part, n, DSC"
    score_head += f", DSC per image, difference to {TITLES[scored_on]}'s runs, p, verdict"
    return _join_parts(
        _verdict_leaks(told_of),
        markdown(shared_head, shared),
        "By id, from the committed lists; of `official` only parts whose ids are committed. "
        "9 pairs more are one picture under two ids; `ulvm data check` finds such pairs.",
        markdown(score_head, scores),
        f"{_caption([leaked, control])} Seen: the id is in training or validation of the ISIC 2018"
        " runs; those of ISIC 2017 have seen none, so what they too score higher on the seen"
        f" pictures is no leak. {PAIRED}",
    )


def _verdict_leaks(found: Mapping[str, Comparison | None]) -> str:
    """Whether pictures that were seen in training score higher, and those that were not."""
    seen, unseen = found["seen"], found["unseen"]
    if not seen or not unseen:
        return "Verdict: **not run**."
    return (
        f"Verdict: **pictures seen in training {seen.difference:+z.4f} ({seen.verdict}), others"
        f" {unseen.difference:+z.4f} ({unseen.verdict})**."
    )


def _count_shared(
    trained_on: str, trained: str, scored_on: str, scored: str
) -> tuple[int, int, int, str]:
    """Test ids of one split; how many another split trains on, validates on; their share."""
    parts = load_split(trained_on, trained).parts
    test = set(load_split(scored_on, scored).parts["test"])
    training, validation = (len(test & {*parts[part]}) for part in ("train", "validation"))
    return len(test), training, validation, f"{(training + validation) / len(test):.1%}"


def _subsets(trained: Row, scored: Row) -> dict[str, IntArray]:
    """Positions of a split's test images that a run has seen in training or validation, or not."""
    parts = load_split(trained.dataset, trained.split).parts
    test = load_split(scored.dataset, scored.split).ids("test")
    seen = np.isin(test, [*parts["train"], *parts["validation"]])
    everything = np.arange(len(test))
    return {"all": everything, "seen": everything[seen], "unseen": everything[~seen]}


def markdown(head: str | Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    Args:
        head: Its columns, in a string with commas between them.
        rows: Cells.
    """
    names = head.split(", ") if isinstance(head, str) else head
    rule = ["---"] * len(names)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (names, rule, *rows))


def _join_parts(*parts: str) -> str:
    return "\n\n".join(parts)


def _number(count: int, thing: str) -> str:
    return f"{count} {thing}" + "s" * (count != 1)


def _caption(all_runs: Sequence[Runs]) -> str:
    """What every table says: reduction, splits, interval, and what made the runs."""
    files = [file for runs in all_runs for file in runs.files]
    splits = [
        f"{TITLES[dataset]} `{name}` ({load_split(dataset, name).hash})"
        for dataset, name in dict.fromkeys((runs.row.dataset, runs.row.split) for runs in all_runs)
    ]
    text = (
        f"Test parts, pooled over all pixels unless per image; splits {_join(splits)}. Mean ± sd"
        f" over seeds [{LEVEL:.0%} bootstrap interval, {RESAMPLES:,} resamples, over seeds and"
        " images together; with one seed over images alone]."
    )
    if not files:
        return f"{text} No run yet."
    commits = (file["git_commit"] for file in files)
    made = [
        _join(map(_recipe, files), " and "),
        _join(file["machine"].get("gpu", file["machine"]["processor"]) for file in files),
        _join(f"ulvm {file['versions']['ulvm']}" for file in files),
        _join(f"torch {file['versions']['torch']}" for file in files),
        "commit " + _join(commit[:7] if commit else "unknown" for commit in commits),
        _join(sorted(file["date"] for file in files)),
    ]
    return f"{text} {_number(len(files), 'run')}: {'; '.join(made)}."


def _recipe(file: Mapping[str, Any]) -> str:
    run = RunSpec.from_dict(file["run"])
    train = run.train
    return (
        f"{train.epochs} epochs of batches of {train.batch_size} at {run.data.image_size}×"
        f"{run.data.image_size}, AdamW {train.learning_rate:g} to {train.min_learning_rate:g}"
        f" ({train.schedule}), augmentation `{train.augmentation}`, {train.precision}"
    )


def _join(texts: Iterable[str], between: str = ", ") -> str:
    """Each text once."""
    return between.join(dict.fromkeys(texts))
