"""Writes the tables of the documents from result files, or with ``--check`` says which are old.

A table stands between ``<!-- table:NAME -->`` and ``<!-- end:table -->``.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import claims
from ulvm.metrics import Confusion, dice
from ulvm.report import render
from ulvm.results import TITLES, Runs, compare, read_runs
from ulvm.splits import load_split
from ulvm.tables import PERMUTATION
from ulvm.tables import TABLES as REPRODUCED

ROOT = Path(__file__).resolve().parents[1]
RUN_RESULTS = ROOT / "results" / "runs"
BENCH_RESULTS = ROOT / "bench" / "results"
CPU_RESULT = BENCH_RESULTS / "cpu.json"
PREDICT_RESULT = BENCH_RESULTS / "predict.json"
AREAS_RESULT = ROOT / "results" / "areas.json"
FIGURES = ROOT / "docs" / "figures"
DOCUMENTS = ("README.md", "REPRODUCE.md", "src/ulvm/weights/MODEL_CARD.md")


def read_result(path: str) -> dict[str, Any]:
    """A result file below ``results/``."""
    result: dict[str, Any] = json.loads((ROOT / "results" / path).read_text())
    return result


def bundled() -> str:
    """Scores of the bundled model, and of its twin trained on the sorted split."""
    rows = [
        "| trained on | scored on | n | pooled DSC | IoU | SE | SP | ACC | DSC per image "
        "| IoU, < .65 as 0 | HD95, median px |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in ("paper-permutation", "paper-permutation-ph2", "sorted", "sorted-ph2"):
        scores = read_result(f"bundled/{name}.json")
        pooled, per_image = scores["pooled"], scores["per_image"]
        trained = name.removesuffix("-ph2")
        split = scores["split"]
        cells = [
            f"ISIC 2017 `{trained}`",
            f"{scores['dataset']} `{split['name']}` {split['part']} ({split['hash']})",
            str(scores["images"]),
            f"{pooled['dsc']:.4f} {interval(scores, 'pooled.dsc')}",
            *(f"{pooled[key]:.4f}" for key in ("iou", "se", "sp", "acc")),
            f"{per_image['dsc']['mean']:.4f} ± {per_image['dsc']['sd']:.4f} "
            f"{interval(scores, 'per_image.dsc')}",
            f"{per_image['thresholded_jaccard']['mean']:.4f}",
            f"{scores['boundary']['hd95_median_px']:.1f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def published() -> str:
    """The paper's figure for each score beside ours."""
    rows = [
        "| claim (pooled DSC) | published | ours, one seed | inside our interval |",
        "|---|---|---|---|",
    ]
    for claim, figure, name in (
        ("ISIC 2017, split of the paper's sizes, permuted", 0.9091, "paper-permutation"),
        ("the same, ids in order", 0.9091, "sorted"),
        ("PH2, trained on ISIC 2017", 0.9265, "paper-permutation-ph2"),
    ):
        scores = read_result(f"bundled/{name}.json")
        limits = scores["intervals"]["pooled.dsc"]
        inside = "yes" if limits["low"] <= figure <= limits["high"] else "no"
        ours = f"{scores['pooled']['dsc']:.4f} {interval(scores, 'pooled.dsc')}"
        rows.append(f"| {claim} | {figure:.4f} | {ours} | {inside} |")
    return "\n".join(rows)


def interval(scores: dict[str, Any], name: str) -> str:
    """A bootstrap interval as text."""
    limits = scores["intervals"][name]
    return f"[{limits['low']:.4f}, {limits['high']:.4f}]"


# The authors' model file with the kernels of mamba_ssm 2.3.2 and causal_conv1d compiled for sm_90.
AUTHORS_STEP_MS = {"8": 69.2, "64": 96.5}
AUTHORS_INFERENCE_MS = {"1": 11.8, "64": 12.7}
AUTHORS_SCHEDULE_S = 45 * 60
AUTHORS_EPOCHS = 250
AUTHORS = (
    "The authors' figures: their model file with the kernels of mamba_ssm 2.3.2 and "
    "causal_conv1d, PyTorch 2.11, H100 80GB, float32, medians of 30 synchronised repetitions on "
    "data already on the GPU; 45 minutes are 39,000 steps of 69.2 ms, without loading data and "
    "without validation."
)
STEP_GOAL_MS = {"8": 1.5, "64": 6}
INFERENCE_GOAL_MS = {"1": 0.25}
SCHEDULE_GOAL_S = {"cold": 120, "warm": 60}
FASTEST_GOAL = 80_000  # images a second at the batch size below
FASTEST_BATCH = "256"
AGREEING = 0.999  # pooled Dice between the masks of a lower precision and those of float32
MEMORY_GOAL_GIB = 2


def cpu(path: Path = CPU_RESULT) -> str:
    """Times of the model and its peers, the least and the median, multiples of ours."""
    result = json.loads(path.read_text())
    columns = [f"{count} thread{'s' * (count > 1)}, ms" for count in result["threads"]]
    rows = [
        "| " + " | ".join(["model", "parameters", *columns]) + " |",
        "|---" * (2 + len(columns)) + "|",
    ]
    ours = result["models"][0]["threads"]
    for row in result["models"]:
        cells = [row["name"], f"{row['parameters']:,}"]
        for count, at in row["threads"].items():
            multiple = at["median_ms"] / ours[count]["median_ms"]
            cells.append(
                f"{at['minimum_ms']:.2f} / {at['median_ms']:.2f}, {multiple:.2f} × the first"
            )
        rows.append("| " + " | ".join(cells) + " |")
    versions, where = result["versions"], result["machine"]
    rows += [
        "",
        f"{result['what']}; minimum / median; multiples are of the median; "
        f"{where['processor']}, {where['cores']} cores, ONNX Runtime {versions['onnxruntime']}, "
        f"{result['date']}.",
    ]
    return "\n".join(rows)


def predict(path: Path = PREDICT_RESULT) -> str:
    """Times of the command ``ulvm predict`` and the memory of its process."""
    result = json.loads(path.read_text())
    photo, where, versions = result["photo"], result["machine"], result["versions"]
    low, high = photo["quartiles_s"]
    rows = [
        "| from the shell to the files | time | memory |",
        "|---|---|---|",
        f"| one photo of {megapixels(photo)} megapixels ({photo['bytes'] / 1e6:.1f} MB of JPEG) "
        f"| {photo['median_s']:.3f} s ({low:.3f}–{high:.3f}) | {photo['peak_mb']} MB |",
    ]
    rows += [
        f"| {row['pictures']:,} pictures of {megapixels(row)} megapixel, masks "
        f"| {row['pictures_per_second']:.0f} pictures/s | {row['peak_mb']} MB |"
        for row in result["folders"]
    ]
    rows += [
        f"| one picture of 256×256, from Python | – | {result['one_picture_peak_mb']} MB |",
        "",
        f"{result['what']}; the photo {photo['runs']} times, median and quartiles; "
        f"{where['processor']}, {where['cores']} cores, {where['level']}, "
        f"Pillow {versions['pillow']}, {result['date']}.",
    ]
    return "\n".join(rows)


def megapixels(row: dict[str, Any]) -> str:
    """Of a size, rounded."""
    height, width = row["size_hw"]
    return f"{height * width / 1e6:.0f}"


def browser(folder: Path = BENCH_RESULTS) -> str:
    """Frames a second over a camera, the time and the weight of a first visit."""
    result = json.loads((folder / "browser.json").read_text())
    runs, visits = result["runs"], result["visits"]
    lowest = min(run["range"][0] for run in runs)
    highest = max(run["range"][1] for run in runs)
    milliseconds = statistics.median(run["inference_ms"] for run in runs)
    outline = statistics.median(visit["outline"] for visit in visits) / 1e3
    (network,) = (file for file in result["files"] if file["name"].endswith(".safetensors"))
    return (
        f"Over a camera of 60 frames/s {result['frames_per_second']:.0f} frames/s (median of "
        f"{len(runs)} runs, second by second {lowest}–{highest}; the network takes "
        f"{milliseconds:.0f} ms, on one thread) in headless Chromium "
        f"{result['versions']['chromium'].split('.')[0]} without a GPU, on "
        f"{result['machine']['threads']} cores of an {result['machine']['processor']}. A first "
        f"visit shows its first outline after {outline:.2f} s (median of {len(visits)}) and loads "
        f"{result['bytes'] / 1e3:.0f} kB, {result['gzip_bytes'] / 1e3:.0f} kB where the host "
        f"compresses, {network['bytes'] / 1e3:.0f} kB of it the network "
        f"([browser.json](bench/results/browser.json), {result['date']})."
    )


def targets(folder: Path = BENCH_RESULTS) -> str:
    """How far each runtime is from torch."""
    result = json.loads((folder / "targets.json").read_text())
    rows = [
        "| target | run here by | kB | largest difference of probability | differing mask pixels |",
        "|---|---|---|---|---|",
    ]
    rows += [
        f"| `{name}` | {row['runtime']} | {row['bytes'] / 1e3:,.0f} "
        f"| {row['largest_difference']:.1e} | {row['differing_pixels']} |"
        for name, row in result["targets"].items()
    ]
    dates = sorted({row["date"] for row in result["targets"].values()})
    source = f"[targets.json](bench/results/targets.json), {' and '.join(dates)}"
    return "\n".join([*rows, "", f"The bundled model on 13 probe pictures; {source}."])


def gpu(folder: Path = BENCH_RESULTS) -> str:
    """Training and inference on a GPU beside the authors' figures; files not there are left out."""
    rows = []
    places = []
    for name, make_rows in (
        ("train_step", train_step_rows),
        ("inference", inference_rows),
        ("schedule", schedule_rows),
    ):
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        rows += make_rows(result)
        of = result["versions"]
        places.append(
            f"[{name}.json](bench/results/{name}.json): {result['machine']['gpu']}, "
            f"torch {of['torch']}, triton {of['triton']}, {result['date']}"
        )
    if not rows:
        return "Not measured yet."
    head = [
        "| on one GPU, pictures of 256×256 | authors | plain torch | ours, median (quartiles) "
        "| authors / ours | goal |",
        "|---|---|---|---|---|---|",
    ]
    lines = head + ["| " + " | ".join(cells) + " |" for cells in rows]
    ours = (
        "Ours: CUDA graphs on data already on the GPU, every replay waited for, interleaved with "
        "plain torch in the same run; the schedule is the wall time of the whole command. "
    )
    return "\n".join([*lines, "", ours + AUTHORS + " Sources: " + "; ".join(places) + "."])


def train_cpu(folder: Path = BENCH_RESULTS) -> str:
    """Speed of training on a CPU."""
    result = json.loads((folder / "train_cpu.json").read_text())
    rate, machine = result["images_per_second"], result["machine"]
    return (
        f"On a CPU, {machine['threads']} threads of an {machine['processor']}, torch "
        f"{result['versions']['torch']}: {rate} images/s ({result['median_ms']:.0f} ms a step of "
        f"batch 8, quartiles {result['q1_ms']:.0f}–{result['q3_ms']:.0f}; "
        f"[train_cpu.json](bench/results/train_cpu.json), {result['date']}), so that 50 epochs of "
        f"ISIC 2017 take {50 * 1250 / rate / 60:.0f} minutes."
    )


def train_step_rows(result: dict[str, Any]) -> list[list[str]]:
    """Time of a training step, its memory and whether it repeats bit for bit."""
    rows = []
    for batch, row in result["batches"].items():
        ours, plain = row["ours"], row["plain"]
        theirs, goal = AUTHORS_STEP_MS.get(batch), STEP_GOAL_MS.get(batch)
        rows.append(time_row(f"training step, batch {batch}, float32", theirs, plain, ours, goal))
        rows.append(
            [
                f"memory of it, state and activations ({ours['kernels']} kernels)",
                "–",
                f"{plain['peak_mib'] / 1024:.2f} GiB",
                f"{ours['peak_mib'] / 1024:.2f} GiB",
                "–",
                verdict(f"< {MEMORY_GOAL_GIB} GiB", ours["peak_mib"] < 1024 * MEMORY_GOAL_GIB)
                if batch == "64"
                else "–",
            ]
        )
    same = all(row["same_bits"] for row in result["batches"].values())
    words = "yes" if same else "no"
    rows.append(["the same seed gives the same bits", "–", "–", words, "–", verdict("yes", same)])
    return rows


def inference_rows(result: dict[str, Any]) -> list[list[str]]:
    """Time per batch in float32, and the rate in the fastest precision whose masks agree."""
    rows = []
    for batch, row in result["batches"].items():
        theirs, goal = AUTHORS_INFERENCE_MS.get(batch), INFERENCE_GOAL_MS.get(batch)
        plain = row["float32, plain torch"]
        name = f"inference, batch {batch}, float32"
        rows.append(time_row(name, theirs, plain, row["float32"], goal))
    if FASTEST_BATCH in result["batches"]:
        row = result["batches"][FASTEST_BATCH]
        agreement = (result["agreement"] or {"precisions": {}})["precisions"]
        agreeing = [name for name, at in agreement.items() if at["pooled_dice"] >= AGREEING]
        name = max(["float32", *agreeing], key=lambda each: row[each]["images_per_second"])
        rate = row[name]["images_per_second"]
        dice = ""
        if name in agreement:
            at = agreement[name]
            dice = f", Dice {at['pooled_dice']:.5f} pooled, ≥ {at['lowest_dice']:.5f} per image"
        rows.append(
            [
                f"the same, batch {FASTEST_BATCH}, fastest precision that agrees: {name}{dice}",
                "–",
                f"{row['float32, plain torch']['images_per_second']:,} images/s",
                f"{rate:,} images/s",
                "–",
                verdict(f"≥ {FASTEST_GOAL:,} images/s", rate >= FASTEST_GOAL),
            ]
        )
    return rows


def schedule_rows(result: dict[str, Any]) -> list[list[str]]:
    """Wall time of the whole recipe, compiling and with the kernels of the run before."""
    rows = []
    complete = result["epochs"] == AUTHORS_EPOCHS
    for name, words in (("cold", "compiling the kernels"), ("warm", "kernels cached")):
        run = result["runs"][name]
        wall, goal = run["wall_s"], SCHEDULE_GOAL_S[name]
        rows.append(
            [
                f"`ulvm train paper`, ISIC 2017, {result['epochs']} epochs, {words}",
                "about 45 min" if complete else "–",
                "–",
                f"{wall:.1f} s (start-up {run['start_up_s']:.1f} s)",
                f"{AUTHORS_SCHEDULE_S / wall:.0f}" if complete else "–",
                verdict(f"≤ {goal} s", wall <= goal) if complete else "–",
            ]
        )
    return rows


def time_row(
    name: str,
    authors_ms: float | None,
    plain: dict[str, Any],
    ours: dict[str, Any],
    goal_ms: float | None,
) -> list[str]:
    """Cells of one timing: name, authors, plain torch, ours, ratio, goal."""
    median = ours["median_ms"]
    return [
        name,
        f"{authors_ms} ms" if authors_ms else "–",
        f"{plain['median_ms']:.2f} ms",
        f"{median:.3f} ms ({ours['q1_ms']:.3f}–{ours['q3_ms']:.3f})",
        f"{authors_ms / median:.1f}" if authors_ms else "–",
        verdict(f"≤ {goal_ms:g} ms", median <= goal_ms) if goal_ms else "–",
    ]


def verdict(goal: str, reached: bool) -> str:
    """A goal and whether it is reached."""
    return f"{goal}: {'reached' if reached else 'missed'}"


def areas(path: Path = AREAS_RESULT) -> str:
    """Lesion area in the parts of every split, and how it changes in id order."""
    rows = [
        "| mean lesion area ± sd, % of the frame (pictures) | train | validation | test |",
        "|---|---|---|---|",
    ]
    said = []
    for dataset, measured in json.loads(path.read_text()).items():
        for name, split in measured["splits"].items():
            cells = [f"{TITLES[dataset]} `{name}` ({split['hash']})"]
            for part in ("train", "validation", "test"):
                found = split["parts"].get(part)
                cells.append(
                    f"{100 * found['mean']:.1f} ± {100 * found['sd']:.1f} ({found['n']:,})"
                    if found
                    else "–"
                )
            rows.append("| " + " | ".join(cells) + " |")
        bins = [100 * mean for mean in measured["bins"]]
        means = {
            name: [f"{100 * found['mean']:.1f}" for found in split["parts"].values()]
            for name, split in measured["splits"].items()
        }
        train, validation, test = means["sorted"]
        said.append(
            f"- {TITLES[dataset]}: lesions of {measured['bin']} pictures next to each other in id "
            f"order cover {min(bins):.1f} to {max(bins):.1f} % on average. `sorted` trains on "
            f"{train} %, chooses the epoch on {validation} % and tests on {test} %; "
            f"`{PERMUTATION}` on {' / '.join(means[PERMUTATION])} %."
        )
    return "\n".join([*rows, "", *said])


def quintiles(results_dir: Path = RUN_RESULTS) -> str:
    """How much of the gap between the two splits' scores is due to the area of lesions."""
    rows = [
        f"| trained and tested on | lesion area, % of the frame | n `{PERMUTATION}` | DSC "
        "| DSC per image | n `sorted` | DSC | DSC per image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    said = []
    for dataset in ("isic2017", "isic2018"):
        permuted, in_order = (
            read_runs(row, results_dir)
            for name in (PERMUTATION, "sorted")
            for row in REPRODUCED["main"].rows
            if (row.dataset, row.split) == (dataset, name)
        )
        if not (permuted.files and in_order.files):
            said.append(f"- {TITLES[dataset]}: not run on both splits.")
            continue
        counts = [runs.counts[dataset] for runs in (permuted, in_order)]
        bounds = np.quantile(lesion_area(counts[0]), [0.2, 0.4, 0.6, 0.8])
        groups = [np.digitize(lesion_area(each), bounds) for each in counts]
        edges = ["0", *(f"{100 * bound:.1f}" for bound in bounds), "100"]
        for group in range(5):
            cells = [TITLES[dataset], f"{edges[group]}–{edges[group + 1]}"]
            for each, of in zip(counts, groups, strict=True):
                chosen = np.flatnonzero(of == group)
                scores = mean_scores(each.select(chosen), np.ones(len(chosen)))
                cells += [str(len(chosen)), *(f"{score:.4f}" for score in scores)]
            rows.append("| " + " | ".join(cells) + " |")
        sizes = [np.bincount(of, minlength=5) for of in groups]
        mix = (sizes[1] / sizes[0])[groups[0]]
        ours, theirs = (mean_scores(each, np.ones(each.images)) for each in counts)
        reweighted = mean_scores(counts[0], mix)
        said += [
            f"- {TITLES[dataset]}, {name}: `sorted` has {b:.4f} (seeds: {in_order.seeds}), "
            f"`{PERMUTATION}` {a:.4f} (seeds: {permuted.seeds}), a gap of "
            f"{b - a:+z.4f}. With its quintiles in the mix of `sorted`, `{PERMUTATION}` would have "
            f"{c:.4f}: the area of lesions explains {c - a:+z.4f}, and {b - c:+z.4f} remains."
            for name, a, b, c in zip(
                ("pooled DSC", "DSC per image"), ours, theirs, reweighted, strict=True
            )
        ]
        said.append(same_pictures(permuted, in_order))
    caption = f"`paper`, mean over seeds; bounds are the quintiles of `{PERMUTATION}`'s test part."
    return "\n".join([*rows, "", caption, "", *said])


def lesion_area(counts: Confusion) -> np.ndarray[Any, Any]:
    """Share of each picture that its true mask covers, (images,)."""
    pixels = counts.tp[0] + counts.fn[0] + counts.fp[0] + counts.tn[0]
    return (counts.tp[0] + counts.fn[0]) / pixels


def mean_scores(counts: Confusion, weights: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Pooled Dice and Dice per image of weighted pictures, mean over seeds."""
    tp, fp, fn = (count @ weights for count in (counts.tp, counts.fp, counts.fn))
    pooled = 2 * tp / (2 * tp + fp + fn)
    return float(pooled.mean()), float((dice(counts) @ weights / weights.sum()).mean())


def same_pictures(permuted: Runs, in_order: Runs) -> str:
    """A sentence on the pictures that both test parts hold, so that only the training differs."""
    dataset = permuted.row.dataset
    tests = [load_split(dataset, runs.row.split).ids("test") for runs in (permuted, in_order)]
    shared = sorted({*tests[0]} & {*tests[1]})
    places = [np.array([test.index(id_) for id_ in shared]) for test in tests]
    found = compare(
        in_order.counts[dataset].select(places[1]), permuted.counts[dataset].select(places[0])
    )
    meaning = (
        "what a split trains and chooses on makes a difference too"
        if found.is_real
        else "a difference due to what a split trains and chooses on is not shown"
    )
    return (
        f"- {TITLES[dataset]}, the {len(shared)} pictures in both test parts: the runs of `sorted` "
        f"against those of `{PERMUTATION}` {found.in_words}; {meaning}."
    )


def figure(name: str, folder: Path = FIGURES) -> str:
    """A figure with the description that is inside its file, once it has been drawn."""
    path = folder / f"{name}.png"
    if not path.exists():
        return "Not drawn yet, for lack of results; `make docs` says of which."
    with Image.open(path) as image:
        return f"![{image.info['Description']}](docs/figures/{path.name})"


TABLES: dict[str, Callable[[], str]] = {
    "bundled": bundled,
    "claims": partial(claims.render, RUN_RESULTS),
    "published": published,
    "cpu": cpu,
    "predict": predict,
    "gpu": gpu,
    "train-cpu": train_cpu,
    "browser": browser,
    "targets": targets,
    "areas": areas,
    "quintiles": quintiles,
    **{
        f"figure:{name}": partial(figure, name)
        for name in ("dice-parameters", "dice-milliseconds", "areas", "drawn-pictures")
    },
    **{f"reproduce:{name}": partial(render, name, RUN_RESULTS) for name in REPRODUCED},
}


def fill(text: str) -> str:
    """The text with every table in it made anew."""

    def replace(match: re.Match[str]) -> str:
        name = match["name"]
        return f"<!-- table:{name} -->\n{TABLES[name]()}\n<!-- end:table -->"

    table = r"<!-- table:(?P<name>[\w:-]+) -->\n.*?<!-- end:table -->"
    return re.sub(table, replace, text, flags=re.S)


def main() -> None:
    """Write the documents, or check them."""
    old = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text()
        if fill(text) != text:
            old.append(name)
            if "--check" not in sys.argv:
                (ROOT / name).write_text(fill(text))
    print("out of date: " + ", ".join(old) if old else "all tables are up to date")
    if old and "--check" in sys.argv:
        sys.exit(1)


if __name__ == "__main__":
    main()
