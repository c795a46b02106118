"""What the timing scripts of ``bench/`` have written, as tables and sentences of the documents.

Each function takes the folder of the result files.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from documents import SPEED, read, table
from ulvm.reproduce.report import NOTHING

FASTEST_BATCH = "256"
AGREEING = 0.999  # pooled Dice between the masks of a lower precision and those of float32


def link(name: str, root: str = "") -> str:
    """A result file for readers of a document that lies elsewhere than in the root."""
    return f"[{name}.json]({root}results/speed/{name}.json)"


def cpu(folder: Path = SPEED) -> str:
    """Times of the model and its peers, the least and the median, multiples of ours."""
    result = read(folder / "cpu.json")
    head = ["model", "parameters"]
    head += [f"{count} thread{'s' * (count > 1)}, ms" for count in result["threads"]]
    rows = []
    ours = result["models"][0]["threads"]
    for row in result["models"]:
        cells = [row["name"], f"{row['parameters']:,}"]
        for count, at in row["threads"].items():
            multiple = at["median_ms"] / ours[count]["median_ms"]
            cells.append(
                f"{at['minimum_ms']:.2f} / {at['median_ms']:.2f}, {multiple:.2f} × the first"
            )
        rows.append(cells)
    versions, where = result["versions"], result["machine"]
    caption = (
        f"{result['what']}; minimum / median; multiples are of the median; "
        f"{where['processor']}, {where['cores']} cores, ONNX Runtime {versions['onnxruntime']}, "
        f"{result['date']}."
    )
    return table(head, rows, caption)


def predict(folder: Path = SPEED) -> str:
    """Times of the command ``ulvm predict`` and the memory of its process."""
    result = read(folder / "predict.json")
    photo, where, versions = result["photo"], result["machine"], result["versions"]
    low, high = photo["quartiles_s"]
    one = f"one photo of {megapixels(photo)} megapixels ({photo['bytes'] / 1e6:.1f} MB of JPEG)"
    rows = [
        [one, f"{photo['median_s']:.3f} s ({low:.3f}–{high:.3f})", f"{photo['peak_mb']} MB"],
        *(
            [
                f"{row['pictures']:,} pictures of {megapixels(row)} megapixel, masks",
                f"{row['pictures_per_second']:.0f} pictures/s",
                f"{row['peak_mb']} MB",
            ]
            for row in result["folders"]
        ),
        ["one picture of 256×256, from Python", NOTHING, f"{result['one_picture_peak_mb']} MB"],
    ]
    caption = (
        f"{result['what']}; the photo {photo['runs']} times, median and quartiles; "
        f"{where['processor']}, {where['cores']} cores, {where['level']}, "
        f"Pillow {versions['pillow']}, {result['date']}."
    )
    head = ["from the shell to the files", "time", "memory"]
    return table(head, rows, caption)


def megapixels(row: dict[str, Any]) -> str:
    """Of a size, rounded."""
    height, width = row["size_hw"]
    return f"{height * width / 1e6:.0f}"


def browser(folder: Path = SPEED) -> str:
    """Frames a second over a camera, the time and the weight of a first visit."""
    result = read(folder / "browser.json")
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
        f"({link('browser')}, {result['date']})."
    )


def api(folder: Path = SPEED) -> str:
    """How long the server for programs took under load."""
    result = read(folder / "api.json")
    where = result["machine"]
    lost = sum(result["lost_or_wrong"].values())
    return (
        f"{result['requests']} requests with pictures of {megapixels(result)} megapixel, "
        f"{result['clients']} at the same time: {lost or 'none'} lost or wrong, median "
        f"{result['median_ms'] / 1e3:.2f} s, p99 {result['p99_ms'] / 1e3:.2f} s, "
        f"{result['per_second']:.0f} a second, {result['server_cpu_ms_a_request']:.0f} ms of a "
        f"processor each ({where['cores']} cores of an {where['processor']}{busy(where)}; "
        f"{link('api', '../../')}, {result['date']})."
    )


def finetune(folder: Path = SPEED) -> str:
    """What forty drawn pictures of another look taught the bundled model, and how fast."""
    result = read(folder / "finetune.json")
    counts, before, after = result["pictures"], result["before"], result["after"]
    load = f", busy with other work: load {result['load']:.0f}" if result["load"] > 2 else ""
    return (
        f"`skin` on {counts['train'] + counts['val']} drawn pictures in negative and violet, "
        f"{counts['val']} of them for validation: Dice on {counts['test']} others "
        f"{before['per_image']:.3f} before, {after['per_image']:.3f} after "
        f"[{after['interval']['low']:.3f}, {after['interval']['high']:.3f}], "
        f"{result['epochs']} epochs in {result['seconds'] / 60:.0f} minutes "
        f"({result['threads']} threads of an {result['processor']}{load}; "
        f"{link('finetune', '../../')}, {result['date']}). Drawn pictures are not photographs."
    )


def many_pictures(folder: Path = SPEED) -> str:
    """How fast pictures went over a Ray cluster, and that none was lost."""
    result = read(folder / "many_pictures.json")
    where, on_ray = result["machine"], result["ray"]
    return (
        f"{result['pictures']:,} drawn pictures on a local cluster of two processes, one of them "
        f"killed meanwhile: each picture has one row and one mask. "
        f"{on_ray['per_cpu_second']:.0f} pictures for a processor's second, "
        f"{100 * result['rate_beside_alone']:.0f} % of what one process without Ray does "
        f"({where['cores']} cores of an {where['processor']}{busy(where)}; "
        f"{link('many_pictures', '../../')}, {result['date']})."
    )


def busy(where: dict[str, Any]) -> str:
    """That other programs ran too, where they did."""
    load = where["load_average_before"]
    return f", busy with other work: load {load:.0f}" if load > 0.5 else ""


def targets(folder: Path = SPEED) -> str:
    """How far each runtime is from torch."""
    measured = read(folder / "targets.json")["targets"]
    head = "target, run here by, kB, largest difference of probability, differing mask pixels"
    rows = [
        [
            f"`{name}`",
            row["runtime"],
            f"{row['bytes'] / 1e3:,.0f}",
            f"{row['largest_difference']:.1e}",
            str(row["differing_pixels"]),
        ]
        for name, row in measured.items()
    ]
    dates = " and ".join(sorted({row["date"] for row in measured.values()}))
    caption = (
        "On 13 probe pictures, with the weights that shipped on that day; "
        f"{link('targets')}, {dates}."
    )
    return table(head.split(", "), rows, caption)


def train_cpu(folder: Path = SPEED) -> str:
    """Speed of training on a CPU."""
    result = read(folder / "train_cpu.json")
    rate, machine = result["images_per_second"], result["machine"]
    return (
        f"On a CPU, {machine['threads']} threads of an {machine['processor']}, torch "
        f"{result['versions']['torch']}: {rate} images/s ({result['median_ms']:.0f} ms a step of "
        f"batch 8, quartiles {result['q1_ms']:.0f}–{result['q3_ms']:.0f}; "
        f"{link('train_cpu')}, {result['date']}), so that 50 epochs of "
        f"ISIC 2017 take {50 * 1250 / rate / 60:.0f} minutes."
    )


def two_gpus(folder: Path = SPEED) -> str:
    """Images a second that one GPU and two train."""
    result = read(folder / "two_gpus.json")
    one, two = (result["gpus"][count]["images_per_second"] for count in ("1", "2"))
    return (
        f"Two GPUs share each batch of 16 (`torchrun`): {two:,} images/s, where one trains "
        f"{one:,} ({result['machine']['gpu']}, {link('two_gpus')}, {result['date']})."
    )


def gpu(folder: Path = SPEED) -> str:
    """Training and inference on a GPU beside the authors' figures."""
    authors = read(SPEED / "authors.json")
    rows, places = [], []
    for name, make_rows in (
        ("train_step", train_step_rows),
        ("inference", inference_rows),
        ("schedule", schedule_rows),
    ):
        result = read(folder / f"{name}.json")
        rows += make_rows(result, authors)
        of = result["versions"]
        places.append(
            f"{link(name)}: {result['machine']['gpu']}, "
            f"torch {of['torch']}, triton {of['triton']}, {result['date']}"
        )
    head = ["on one GPU, pictures of 256×256", "authors", "plain torch", "ours, median (quartiles)"]
    caption = (
        "Ours: CUDA graphs on data already on the GPU, every replay waited for, interleaved with "
        "plain torch in the same run; the schedule is the wall time of the whole command. "
        f"The authors' figures: {authors['what']}. Sources: {'; '.join(places)}."
    )
    return table([*head, "authors / ours"], rows, caption)


def train_step_rows(result: dict[str, Any], authors: dict[str, Any]) -> list[list[str]]:
    """Time of a training step, its memory and whether it repeats bit for bit."""
    rows = []
    for batch, row in result["batches"].items():
        ours, plain = row["ours"], row["plain"]
        theirs = authors["step_ms"].get(batch)
        rows.append(time_row(f"training step, batch {batch}, float32", theirs, plain, ours))
        rows.append(
            [
                f"memory of it, state and activations ({ours['kernels']} kernels)",
                NOTHING,
                f"{plain['peak_mib'] / 1024:.2f} GiB",
                f"{ours['peak_mib'] / 1024:.2f} GiB",
                NOTHING,
            ]
        )
    same = all(row["same_bits"] for row in result["batches"].values())
    cells = [NOTHING, NOTHING, "yes" if same else "no", NOTHING]
    return [*rows, ["the same seed gives the same bits", *cells]]


def inference_rows(result: dict[str, Any], authors: dict[str, Any]) -> list[list[str]]:
    """Time per batch in float32, and the rate in the fastest precision whose masks agree."""
    rows = []
    for batch, row in result["batches"].items():
        name, theirs = f"inference, batch {batch}, float32", authors["inference_ms"].get(batch)
        rows.append(time_row(name, theirs, row["float32, plain torch"], row["float32"]))
    if FASTEST_BATCH not in result["batches"]:
        return rows
    row = result["batches"][FASTEST_BATCH]
    agreement = (result["agreement"] or {"precisions": {}})["precisions"]
    agreeing = [name for name, at in agreement.items() if at["pooled_dice"] >= AGREEING]
    name = max(["float32", *agreeing], key=lambda each: row[each]["images_per_second"])
    rate = row[name]["images_per_second"]
    words = f"the same, batch {FASTEST_BATCH}, fastest precision that agrees: {name}"
    if name in agreement:
        at = agreement[name]
        words += f", Dice {at['pooled_dice']:.5f} pooled, ≥ {at['lowest_dice']:.5f} per image"
    plain = f"{row['float32, plain torch']['images_per_second']:,} images/s"
    return [*rows, [words, NOTHING, plain, f"{rate:,} images/s", NOTHING]]


def schedule_rows(result: dict[str, Any], authors: dict[str, Any]) -> list[list[str]]:
    """Wall time of the whole recipe, compiling and with the kernels of the run before."""
    rows = []
    complete = result["epochs"] == authors["epochs"]
    for name, words in (("cold", "compiling the kernels"), ("warm", "kernels cached")):
        run = result["runs"][name]
        theirs, wall = authors["schedule_s"], run["wall_s"]
        rows.append(
            [
                f"`ulvm train paper`, ISIC 2017, {result['epochs']} epochs, {words}",
                f"about {theirs / 60:.0f} min" if complete else NOTHING,
                NOTHING,
                f"{wall:.1f} s (start-up {run['start_up_s']:.1f} s)",
                f"{theirs / wall:.0f}" if complete else NOTHING,
            ]
        )
    return rows


def time_row(
    name: str, authors_ms: float | None, plain: dict[str, Any], ours: dict[str, Any]
) -> list[str]:
    """Cells of one timing: name, authors, plain torch, ours, ratio."""
    median = ours["median_ms"]
    return [
        name,
        f"{authors_ms} ms" if authors_ms else NOTHING,
        f"{plain['median_ms']:.2f} ms",
        f"{median:.3f} ms ({ours['q1_ms']:.3f}–{ours['q3_ms']:.3f})",
        f"{authors_ms / median:.1f}" if authors_ms else NOTHING,
    ]
