"""Draws Dice against parameters and CPU time for every network with a result; areas by id.

Writes ``docs/figures/*.png`` and ``*.svg`` from ``runs/``, ``speed/presets.json`` and
``areas.json`` of ``results/``; the same results give the same bytes. A figure's description is
inside the PNG, where ``tables.py`` finds it for the documents.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from documents import AREAS, FIGURES, ROOT, RUNS, TIMES, read
from ulvm.files import write_atomically
from ulvm.presets import PRESETS
from ulvm.reproduce.experiments import EXPERIMENTS, PERMUTATION, published_scores
from ulvm.reproduce.results import TITLES, Estimate, estimate, read_runs
from ulvm.spec import ModelSpec

# Okabe and Ito's colours, which people with any colour vision tell apart, grey for the yellow.
BLACK, ORANGE, SKY = "#000000", "#e69f00", "#56b4e9"
BLUE, VERMILION, PURPLE, GREY = "#0072b2", "#d55e00", "#cc79a7", "#808080"
# Preset → name, colour and marker.
NETWORKS = {
    "paper": ("UltraLight VM-UNet", VERMILION, "o"),
    "ege-unet": ("EGE-UNet", BLUE, "s"),
    "malunet": ("MALUNet", PURPLE, "D"),
    "aulunet": ("AULUNet", BLUE, "^"),
    "ultralbm-unet": ("UltraLBM-UNet", PURPLE, "<"),
    "ultralbm-unet-student": ("UltraLBM-UNet-T", PURPLE, ">"),
    "lightm-unet": ("LightM-UNet", SKY, "v"),
    "unext": ("UNeXt", ORANGE, "P"),
    "unext-pvm": ("UNeXt, deep PVM layers", ORANGE, "d"),
    "unet": ("U-Net, 16 channels", GREY, "X"),
    "unet-pvm": ("U-Net, deep PVM layers", GREY, "d"),
    "vm-unet": ("VM-UNet", BLACK, "p"),
}
VARIANTS = tuple(
    dict.fromkeys(
        row.preset
        for experiment in EXPERIMENTS.values()
        for row in experiment.rows
        if row.preset != "paper" and PRESETS[row.preset].run.model.network == ModelSpec.network
    )
)
STYLE = {
    "font.size": 11,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ulvm",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SIZE_INCHES = (7, 4.4)  # 700 pixels wide at 100 a inch
SMALL_INCHES = (4, 4.2)  # its text can be read at 320 pixels
PNG_DPI = 200
MARKER_SIZE = 7
SMALL_MARKER_SIZE = 4
AREA_TOP = 47  # %, above every bin
SHORT = {"validation": "val."}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A network in a figure.

    Args:
        preset: Its key in ``presets.PRESETS``.
        x: Parameters, or milliseconds.
        found: Our pooled Dice on the test part of ISIC 2017, over seeds.
        published: What its paper prints for split sizes like ours, if anything.
    """

    preset: str
    x: float
    found: Estimate
    published: float | None


def read_points(results_dir: Path) -> list[Point]:
    """A point, at its parameters, for each network and each variant of ours that has been run."""
    rows = {
        row.preset: row
        for experiment in reversed(EXPERIMENTS.values())  # the first have most seeds
        for row in experiment.rows
        if (row.dataset, row.split) == ("isic2017", PERMUTATION)
    }
    points = []
    for preset in (*NETWORKS, *VARIANTS):
        runs = read_runs(rows[preset], results_dir)
        if runs.files:
            points.append(
                Point(
                    preset=preset,
                    x=PRESETS[preset].parameters,
                    found=estimate(runs.counts["isic2017"])["pooled.dsc"],
                    published=published_scores(preset, "isic2017", "isic2017").get("dsc"),
                )
            )
    return points


def put_at_times(points: Sequence[Point], timed: dict[str, Any]) -> list[Point]:
    """The points of timed networks at their milliseconds on one thread, in the fastest round."""
    times = {row["name"]: row["threads"]["1"]["lowest_round_ms"] for row in timed["models"]}
    return [
        dataclasses.replace(point, x=times[point.preset])
        for point in points
        if point.preset in times
    ]


def split_variants(points: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """The networks with a name of their own, and the variants of ours."""
    named = [point for point in points if point.preset in NETWORKS]
    return named, [point for point in points if point.preset not in NETWORKS]


def draw(points: Sequence[Point], x_label: str) -> Figure:
    """Dice over x on a logarithmic axis; published Dice as hollow points.

    Networks with a name of their own have their interval, variants of ours are small points.
    """
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    named, variants = split_variants(points)
    for point in named:
        name, colour, marker = NETWORKS[point.preset]
        interval = point.found.interval
        axes.plot([point.x] * 2, [interval.low, interval.high], color=colour, linewidth=1.5)
        look: dict[str, Any] = {"marker": marker, "color": colour, "markersize": MARKER_SIZE}
        look |= {"linestyle": "none", "zorder": 3}  # above every network's interval
        axes.plot(point.x, point.found.mean, label=name, **look)
        if point.published is not None:
            axes.plot(point.x, point.published, mfc="white", **look)
    if variants:
        xs, means = zip(*((point.x, point.found.mean) for point in variants), strict=True)
        look = {"marker": "o", "color": VERMILION, "markersize": SMALL_MARKER_SIZE}
        axes.plot(xs, means, linestyle="none", alpha=0.6, label="its variants", **look)
    axes.plot([], [], "o", color="0.3", mfc="white", label="hollow: published,\non another split")
    axes.margins(x=0.1)
    decades = max(point.x for point in points) > 100 * min(point.x for point in points)
    axes.xaxis.set_major_locator(LogLocator(subs=(1,) if decades else (1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x_label)
    axes.set_ylabel("pooled DSC, ISIC 2017 test part, 95 % interval")
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def describe(points: Sequence[Point], x_label: str) -> str:
    """What the figure shows, in words."""
    named, variants = split_variants(points)
    shown = [
        f"{NETWORKS[point.preset][0]} {point.found.mean:.4f} at {point.x:,.10g}" for point in named
    ]
    if variants:
        means = sorted(point.found.mean for point in variants)
        xs = sorted(point.x for point in variants)
        shown.append(
            f"{len(variants)} variants of ours {means[0]:.4f} to {means[-1]:.4f} at "
            f"{xs[0]:,.10g} to {xs[-1]:,.10g}"
        )
    return f"Pooled DSC on ISIC 2017's test part against {x_label}: {', '.join(shown)}"


def draw_areas(areas: dict[str, Any]) -> Figure:
    """Mean lesion area of consecutive ids, a panel for each data set, with the sorted split."""
    figure = Figure(figsize=SMALL_INCHES, layout="constrained")
    panels = figure.subplots(len(areas), sharey=True)
    for axes, (dataset, measured) in zip(panels, areas.items(), strict=True):
        edges, title = [0], []
        for part, found in measured["splits"]["sorted"]["parts"].items():
            start, end = edges[-1], edges[-1] + found["n"]
            edges.append(end)
            mean = 100 * found["mean"]
            axes.plot([start, end], [mean] * 2, color=VERMILION, linewidth=2)
            axes.axvline(end, color="0.3", linestyle="--", linewidth=1)
            short = SHORT.get(part, part)
            axes.text((start + end) / 2, AREA_TOP, short, ha="center", va="top", fontsize=9)
            title.append(f"{short} {mean:.1f}")
        steps = [*range(0, edges[-1], measured["bin"]), edges[-1]]
        axes.stairs([100 * mean for mean in measured["bins"]], steps, color=BLUE, linewidth=1.5)
        words = f"{TITLES[dataset]}: {', '.join(title)} %"
        axes.set_title(words, loc="left", fontsize="medium")
        axes.set_xlim(0, edges[-1])
        axes.set_ylim(0, AREA_TOP)
    figure.supylabel("mean lesion area, % of the frame", fontsize="medium")
    figure.supxlabel("position in id order", fontsize="medium")
    return figure


def describe_areas(areas: dict[str, Any]) -> str:
    """What the figure shows, in words."""
    told = []
    for dataset, measured in areas.items():
        parts = measured["splits"]["sorted"]["parts"].items()
        means = ", ".join(f"{100 * found['mean']:.1f} % in {part}" for part, found in parts)
        told.append(f"{TITLES[dataset]} {means}")
    return (
        "Mean lesion area by position in id order, which goes up and down in blocks; "
        f"parts of the split sorted: {'; '.join(told)}"
    )


def save(figure: Figure, description: str, stem: Path) -> None:
    """Write the PNG and the SVG, without dates, with what they show in words."""
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        metadata |= {"Description": description}
        figure.savefig(buffer, format=ending, dpi=PNG_DPI, metadata=metadata)
        write_atomically(stem.with_suffix(f".{ending}"), buffer.getvalue())


def draw_all(
    results_dir: Path, times_result: Path, areas_result: Path, out_dir: Path
) -> list[Path]:
    """Draw every figure.

    Args:
        results_dir: Holds ``dataset/split/preset-seed.json``.
        times_result: What ``bench/cpu.py --presets`` wrote.
        areas_result: What ``docs/make/areas.py`` wrote.
        out_dir: Gets ``dice-parameters``, ``dice-milliseconds`` and ``areas``, each as PNG and SVG.

    Returns:
        The figures without ending.
    """
    points, areas = read_points(results_dir), read(areas_result)
    charts = {
        "dice-parameters": (points, "parameters"),
        "dice-milliseconds": (
            put_at_times(points, read(times_result)),
            "ms a picture, one CPU thread",
        ),
    }
    with matplotlib.rc_context(STYLE):
        for name, (chosen, x_label) in charts.items():
            save(draw(chosen, x_label), describe(chosen, x_label), out_dir / name)
        save(draw_areas(areas), describe_areas(areas), out_dir / "areas")
    return [out_dir / name for name in (*charts, "areas")]


def main() -> None:
    """Draw, and say what was drawn."""
    for path in draw_all(RUNS, TIMES, AREAS, FIGURES):
        print(f"{path.relative_to(ROOT)}.png, .svg")


if __name__ == "__main__":
    main()
