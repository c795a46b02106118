"""Scores over seeds against brute force and cases worked by hand; tables from made-up files."""

from __future__ import annotations

import dataclasses
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ulvm import metrics
from ulvm.errors import InputError
from ulvm.metrics import Confusion, Interval
from ulvm.presets import PRESETS
from ulvm.results import PUBLISHED, compare, estimate, place, read_runs, render
from ulvm.splits import load_split
from ulvm.tables import PERMUTATION, TABLES, Row

PIXELS = 256 * 256
AREA = 10_000  # of every lesion in the made-up files


def make_counts(tp: Any, fp: Any, fn: Any) -> Confusion:
    tp, fp, fn = (np.array(each, dtype=np.int64) for each in (tp, fp, fn))
    return Confusion(tp=tp, fp=fp, fn=fn, tn=PIXELS - tp - fp - fn)


def draw_counts(seeds: int, images: int, *, stream: int, missed: float = 0.2) -> Confusion:
    """Runs on the same true masks, whose area is the same for every stream."""
    area = np.random.default_rng(99).integers(500, 30_000, images)
    random = np.random.default_rng(stream)
    fraction = np.clip(random.normal(missed, 0.1, (seeds, images)), 0, 1)
    fn = (area * fraction).astype(np.int64)
    fp = (area * random.uniform(0, 0.2, (seeds, images))).astype(np.int64)
    return make_counts(area - fn, fp, fn)


def pooled_dice(counts: Confusion, seed: int, images: Any) -> float:
    tp, fp, fn = (int(each[seed, images].sum()) for each in (counts.tp, counts.fp, counts.fn))
    return 2 * tp / (2 * tp + fp + fn)


def brute_force(*rows: Confusion, resamples: int = 2000) -> np.ndarray[Any, Any]:
    """Mean pooled Dice of each row in each resample, one at a time, (resamples, rows)."""
    random = np.random.default_rng(12345)
    found = []
    for _ in range(resamples):
        images = random.integers(rows[0].images, size=rows[0].images)
        found.append(
            [
                np.mean(
                    [
                        pooled_dice(counts, seed, images)
                        for seed in random.integers(len(counts.tp), size=len(counts.tp))
                    ]
                )
                for counts in rows
            ]
        )
    return np.array(found)


def test_two_seeds_and_two_images_worked_by_hand() -> None:
    # Dice by seed and image: (1, 0) and (.5, .5); every mask has 8 pixels.
    counts = make_counts([[8, 0], [4, 4]], [[0, 8], [4, 4]], [[0, 8], [4, 4]])
    found = estimate(counts)["pooled.dsc"]
    assert found.mean == 0.5  # both seeds pool to .5
    assert found.sd == 0
    # The worst of 16 equally likely draws takes the first seed and the second image twice.
    assert found.interval == Interval(low=0.0, high=1.0)


def test_spread_is_over_seeds_and_every_score_is_that_of_metrics() -> None:
    counts = draw_counts(3, 50, stream=1)
    singles = [
        metrics.scores(make_counts(counts.tp[seed], counts.fp[seed], counts.fn[seed]))
        for seed in range(3)
    ]
    found = estimate(counts)
    for name in metrics.POOLED_METRICS:
        of_seeds = [getattr(single.pooled, name) for single in singles]
        assert found[f"pooled.{name}"].mean == pytest.approx(np.mean(of_seeds), abs=1e-12)
        assert found[f"pooled.{name}"].sd == pytest.approx(np.std(of_seeds, ddof=1), abs=1e-12)
    of_seeds = [single.per_image.dsc.mean for single in singles]
    assert found["per_image.dsc"].mean == pytest.approx(np.mean(of_seeds), abs=1e-12)


def test_the_interval_is_that_of_brute_force() -> None:
    counts = draw_counts(3, 40, stream=2)
    counts.fn[0] += 900  # one seed is worse, so that the seeds matter
    low, high = np.quantile(brute_force(counts)[:, 0], [0.025, 0.975])
    found = estimate(counts)["pooled.dsc"].interval
    width = high - low
    assert found.low == pytest.approx(low, abs=0.05 * width)
    assert found.high == pytest.approx(high, abs=0.05 * width)
    images_alone = estimate(make_counts(counts.tp[:1], counts.fp[:1], counts.fn[:1]))
    interval = images_alone["pooled.dsc"].interval
    assert interval.high - interval.low < width


def test_with_one_seed_the_interval_is_over_images_alone() -> None:
    counts = draw_counts(1, 60, stream=3)
    found = estimate(counts)
    single = make_counts(counts.tp[0], counts.fp[0], counts.fn[0])
    for name, statistic in (
        ("pooled.dsc", metrics.pooled(metrics.dice)),
        ("per_image.dsc", metrics.per_image_mean(metrics.dice)),
    ):
        oracle = metrics.bootstrap_interval(single, statistic)
        assert found[name].interval.low == pytest.approx(oracle.low, abs=0.002)
        assert found[name].interval.high == pytest.approx(oracle.high, abs=0.002)
    assert np.isnan(found["pooled.dsc"].sd)
    assert "±" not in str(found["pooled.dsc"])


def test_a_comparison_is_that_of_brute_force() -> None:
    a, b = draw_counts(3, 40, stream=4), draw_counts(2, 40, stream=5, missed=0.21)
    resampled = brute_force(a, b)
    differences = resampled[:, 0] - resampled[:, 1]
    low, high = np.quantile(differences, [0.025, 0.975])
    found = compare(a, b)
    means = [
        np.mean([pooled_dice(row, seed, slice(None)) for seed in range(len(row.tp))])
        for row in (a, b)
    ]
    assert found.difference == pytest.approx(means[0] - means[1], abs=1e-12)
    assert found.interval.low == pytest.approx(low, abs=0.05 * (high - low))
    assert found.interval.high == pytest.approx(high, abs=0.05 * (high - low))
    p_value = 2 * min((differences <= 0).mean(), (differences >= 0).mean())
    assert found.p_value == pytest.approx(p_value, abs=0.04)


def test_pairs_see_a_difference_that_is_smaller_than_either_interval() -> None:
    a = draw_counts(1, 60, stream=6)
    b = make_counts(a.tp - 20, a.fp, a.fn + 20)
    found = compare(a, b)
    interval = estimate(a)["pooled.dsc"].interval
    assert 0 < found.difference < (interval.high - interval.low) / 10
    assert found.verdict == "real (one seed)"
    assert found.p_value == pytest.approx(2 / 2001)
    assert compare(b, a).interval.high < 0


def test_equal_runs_differ_by_noise_alone() -> None:
    a = draw_counts(1, 60, stream=7)
    found = compare(a, a)
    assert (found.difference, found.p_value, found.verdict) == (0, 1, "within noise (one seed)")


def test_the_seeds_of_two_rows_are_drawn_apart() -> None:
    one = draw_counts(1, 60, stream=8)
    wrong = np.array([[0], [200], [400]]) + one.fp
    a = make_counts(one.tp.repeat(3, axis=0), wrong, one.fn.repeat(3, axis=0))
    interval = compare(a, a).interval
    assert interval.low < 0 < interval.high  # with the same seeds for both it would be 0


def test_different_true_masks_are_no_pairs() -> None:
    a = draw_counts(2, 40, stream=9)
    shifted = make_counts(a.tp + 1, a.fp, a.fn)
    with pytest.raises(InputError, match="different true masks"):
        compare(a, shifted)
    with pytest.raises(InputError, match="different true masks"):
        compare(a, draw_counts(2, 41, stream=9))


def test_a_published_number_lies_inside_above_or_below() -> None:
    interval = Interval(low=0.88, high=0.91)
    assert [place(figure, interval) for figure in (0.87, 0.88, 0.9091, 0.92)] == [
        *("below", "inside", "inside", "above")
    ]


def test_published_dice_is_that_of_the_presets() -> None:
    printed = {
        preset: figures["dsc"]
        for (preset, *where), figures in PUBLISHED.items()
        if where == ["isic2017"] * 2 and PRESETS[preset].published_dsc is not None
    }
    assert printed == {"paper": PRESETS["paper"].published_dsc}


def make_score(dataset: str, split_name: str, missed: Any) -> dict[str, Any]:
    split = load_split(dataset, split_name)
    images = len(split.ids("test"))
    missed = np.broadcast_to(missed, images)
    return {
        "dataset": dataset,
        "split": {"name": split.name, "hash": split.hash, "part": "test"},
        "images": images,
        "pixels": PIXELS,
        "tp": (AREA - missed).tolist(),
        "fp": [0] * images,
        "fn": missed.tolist(),
    }


def write_run(
    folder: Path, row: Row, position: int, missed: Any, audit: Any = None, **more: Any
) -> Path:
    """A result file of one seed that misses so many of 10,000 pixels in each picture."""
    run = row.runs()[position]
    scores = [make_score(row.dataset, row.split, missed), make_score("ph2", "all", 1000)]
    if audit is not None:
        scores.append(make_score("isic2017", PERMUTATION, audit))
    result = {
        "preset": row.preset,
        "run": run.to_dict(),
        "versions": {"ulvm": "0.1.0", "torch": "2.11.0"},
        "machine": {"gpu": "Some GPU", "processor": "Some CPU"},
        "git_commit": "0123456789abcdef",
        "date": "2030-01-02",
        "scores": scores,
        **more,
    }
    path = folder / f"{row.names()[position]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return path


def rows_of(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "results" / "runs"


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_whole_before_anything_is_run(name: str, folder: Path) -> None:
    table = render(name, folder)
    assert "No run yet." in table
    assert "not run" in table
    for block in re.findall(r"(?:^\|.*\n)+", table, flags=re.M):
        assert len({len(row) for row in rows_of(block)}) == 1


def test_runs_that_are_missing_are_counted(folder: Path) -> None:
    row = TABLES["main"].rows[0]
    write_run(folder, row, 0, 1000)
    write_run(folder, row, 3, 1200)
    assert read_runs(row, folder).seeds == "2 of 5"
    first, *others = rows_of(render("main", folder))[2:]
    assert first[4] == "2 of 5"
    assert {other[4] for other in others[1:]} == {"0 of 3"}


def test_the_main_table_holds_our_scores_and_where_the_published_ones_lie(folder: Path) -> None:
    row = TABLES["main"].rows[0]
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
    rows = TABLES["mixers"].rows
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
    for row in TABLES["branches"].rows:
        worse = {"branches-1": 100, "paper": 0, "branches-8": 0}.get(row.preset)
        if worse is not None:
            for position in range(3):
                write_run(folder, row, position, missed + worse + 3 * position)
    (folder.parent / "complexity.json").write_text(
        json.dumps({"paper": {"parameters": 49457, "macs": 84_123_456, "paper_macs": 60_240_000}})
    )
    spread = {"median_ms": 14.71, "lowest_round_ms": 14.6, "highest_round_ms": 14.96}
    times = {
        "what": "5 rounds",
        "date": "2030-01-03",
        "machine": {"processor": "Other CPU"},
        "versions": {"onnxruntime": "1.2.3"},
        "models": [{"name": "paper", "threads": {"1": spread}}],
    }
    (folder.parent / "cpu_times.json").write_text(json.dumps(times))
    table = render("branches", folder)
    assert "fresh weights; 5 rounds; Other CPU, ONNX Runtime 1.2.3, 2030-01-03.\n" in table
    by_preset = {row[0]: row for row in rows_of(table)}
    one, two, ours, eight = (
        by_preset[f"`{name}`"] for name in ("branches-1", "branches-2", "paper", "branches-8")
    )
    assert ours[1:5] == ["49,457", "0.084 (0.060)", "14.7 (14.6–15.0)", "3"]
    assert ours[-3:] == ["–"] * 3
    assert one[2:4] == ["–", "–"]
    assert one[-4].startswith("0.9069, ")
    assert one[-3].startswith("-0.00")
    assert one[-1] == "real"
    assert two[4:6] == ["0 of 3", "not run"]
    assert (two[-4], two[-1]) == ("0.9073", "–")
    assert eight[-3].startswith("+0.0000 ")
    assert eight[-1] == "within noise"


def sentences(table: str) -> list[str]:
    return [line.removeprefix("- ") for line in table.splitlines() if line.startswith("- ")]


def dice_without(missed: int) -> float:
    return 2 * (AREA - missed) / (2 * AREA - missed)


def test_the_main_sentences_say_how_far_the_published_scores_are(folder: Path) -> None:
    row = TABLES["main"].rows[0]
    for position, missed in enumerate((2000, 1600, 1800)):
        write_run(folder, row, position, missed)
    own, ph2, in_order, *_ = sentences(render("main", folder))
    # Dice .8889, .9130 and .9011: one reaches .9091. The mean's interval is over three seeds.
    ours = np.mean([dice_without(missed) for missed in (2000, 1600, 1800)])
    assert own.startswith(
        f"Trained on ISIC 2017 `{PERMUTATION}`, seeds: 3 of 5; scored on ISIC 2017: our DSC "
        f"{ours:.4f} is {0.9091 - ours:.4f} below the published 0.9091, which lies inside our "
        "interval [0.8889, 0.9130]; seeds that reach it: 1 of 3, the best has 0.9130."
    )
    # SE is 1 - missed / area, so .80 to .84; SP is 1; ACC is 1 - missed / pixels, .969 to .976.
    assert own.endswith("SE is above, SP is below, ACC is below our interval.")
    # 1000 of 10,000 missed on PH2: Dice .9474.
    assert "is 0.0209 above the published 0.9265, which lies below our interval" in ph2
    assert "seeds that reach it: 3 of 3" in ph2
    assert in_order.endswith("`sorted`, seeds: 0 of 3; scored on ISIC 2017: not run.")


def test_the_sentences_of_an_ablation_follow_its_numbers(folder: Path) -> None:
    rows = {row.preset: row for row in TABLES["branches"].rows}

    def write(preset: str, *missed: int) -> None:
        for position, each in enumerate(missed):
            write_run(folder, rows[preset], position, each)

    published, order, against = sentences(render("branches", folder))
    assert published.startswith("Published DSC: `branches-1` 0.9069, not run; ")
    assert order == (
        "The published order `branches-1` < `branches-2` < `paper`: not run (`branches-1`,"
        " `branches-2`, `paper`)."
    )
    assert against == "DSC against `paper`: not run."

    # Dice .8571, .8889 and .9189: all real, in the published order.
    write("branches-1", 2500, 2500, 2500)
    write("branches-2", 2000, 2000, 2000)
    write("paper", 1500, 1500, 1500)
    published, order, against = sentences(render("branches", folder))
    assert published == (
        "Published DSC: `branches-1` 0.9069, above our interval around 0.8571; `branches-2` 0.9073,"
        " above our interval around 0.8889; `paper` 0.9091, below our interval around 0.9189."
    )
    assert order == (
        "The published order `branches-1` < `branches-2` < `paper` reproduces: real differences"
        " to `paper`: `branches-1`, `branches-2`."
    )
    assert against == (
        "DSC against `paper`: 2 of 2 differences real. Lower: `branches-1` -0.0618 [-0.0618,"
        " -0.0618], p = 0.001, 0.002 corrected for 2 rows, 2.76 × the parameters; `branches-2`"
        " -0.0300 [-0.0300, -0.0300], p = 0.001, 0.002 corrected for 2 rows, 1.41 × the"
        " parameters. Not run: `branches-8`."
    )

    # The same order by chance: seeds scatter more than the rows differ.
    write("branches-1", 2020, 1020, 3020)
    write("branches-2", 2010, 1010, 3010)
    write("paper", 2000, 1000, 3000)
    _, order, against = sentences(render("branches", folder))
    assert order.endswith("is ours too, but not all of it real: real differences to `paper`: none.")
    assert against.startswith("DSC against `paper`: none of 2 differences real. Within noise: `b")

    write("branches-2", 2500, 2500, 2500)
    _, order, against = sentences(render("branches", folder))
    assert "does not reproduce: ours is `branches-2` < `branches-1` < `paper`;" in order


def test_sentences_say_that_there_is_one_seed(folder: Path) -> None:
    for row, missed in zip(TABLES["mixers"].rows[:2], (2000, 1000), strict=True):
        write_run(folder, row, 0, missed)
    table = render("mixers", folder)
    (against,) = sentences(table)
    assert " 2 runs: " in table
    assert against.startswith(
        "DSC against `paper`: 1 of 1 difference real, from one seed, which it may be due to."
        " Higher: `mixer-bidirectional` +0.0585 "
    )
    assert against.endswith("Not run: `mixer-ss2d`.")


def test_a_plugged_in_layer_is_compared_with_the_network_without_it(folder: Path) -> None:
    rows = {row.preset: row for row in TABLES["plug"].rows}
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
    (row,) = TABLES["leaks"].rows
    learnt = load_split("isic2018", PERMUTATION).parts
    seen = {*learnt["train"], *learnt["validation"]}
    test = load_split("isic2017", PERMUTATION).ids("test")
    missed = np.array([500 if id_ in seen else 2000 for id_ in test])
    for position in range(3):
        write_run(folder, row, position, 1000, audit=missed)
    control = TABLES["main"].rows[0]
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
    *_, seen_said, unseen_said = sentences(render("leaks", folder))
    assert "pictures seen (433): DSC +0.0855 [+0.0855, +0.0855], p = 0.001, real." in seen_said
    assert "pictures unseen (167): DSC +0.0000 " in unseen_said


def test_files_that_do_not_fit_their_name_are_refused(folder: Path) -> None:
    row = TABLES["main"].rows[0]
    other = dataclasses.replace(row, preset="branches-1").runs()[0]
    for bad in (other, row.runs()[1]):  # another network, another seed
        path = write_run(folder, row, 0, 1000, run=bad.to_dict())
        with pytest.raises(InputError, match=r"paper-42\.json is of another run"):
            read_runs(row, folder)
    path.write_text('{"preset": "paper"}')
    with pytest.raises(InputError, match=r"paper-42\.json is no result file \(KeyError\('run'\)\)"):
        read_runs(row, folder)
    path.write_text('{"preset": "pa')
    with pytest.raises(InputError, match="is no result file"):
        read_runs(row, folder)


def test_scores_on_another_list_of_pictures_are_refused(folder: Path) -> None:
    row = TABLES["main"].rows[0]
    score = make_score("isic2017", PERMUTATION, 1000)
    short = score | {name: score[name][1:] for name in ("tp", "fp", "fn")}
    renamed = score | {"split": score["split"] | {"hash": "0" * 12}}
    for bad, said in ((short, "has 599 pictures"), (renamed, "hash 000000000000")):
        write_run(folder, row, 0, 1000, scores=[bad])
        with pytest.raises(InputError, match=said):
            render("main", folder)


def test_an_unknown_table_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'branches'"):
        render("branch", folder)
