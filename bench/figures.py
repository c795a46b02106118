"""Draws Dice against parameters and against CPU time for every network with a result.

Writes ``docs/figures/*.png`` and ``*.svg`` from ``results/runs/`` and ``bench/results/cpu.json``;
the same results give the same bytes.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from ulvm.files import write_atomically
from ulvm.presets import PRESETS
from ulvm.results import PUBLISHED, Estimate, estimate, read_runs
from ulvm.tables import ONE, TABLES, Row

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "runs"
CPU_RESULT = ROOT / "bench" / "results" / "cpu.json"
FIGURES = ROOT / "docs" / "figures"

# Okabe and Ito's colours, which people with any colour vision tell apart, grey for the yellow.
BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
BLUE, VERMILION, PURPLE, GREY = "#0072b2", "#d55e00", "#cc79a7", "#808080"
# Preset → name, which is also its row in cpu.json; colour and marker.
NETWORKS = {
    "paper": ("UltraLight VM-UNet", VERMILION, "o"),
    "ege-unet": ("EGE-UNet", BLUE, "s"),
    "lb-unet": ("LB-UNet", GREEN, "^"),
    "malunet": ("MALUNet", PURPLE, "D"),
    "lightm-unet": ("LightM-UNet", SKY, "v"),
    "unext": ("UNeXt", ORANGE, "P"),
    "unet": ("U-Net, 16 channels", GREY, "X"),
    "vm-unet": ("VM-UNet", BLACK, "p"),
}
STYLE = {
    "font.size": 11,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "ulvm",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SIZE_INCHES = (7, 4.4)  # 700 pixels wide at 100 a inch
PNG_DPI = 200
MARKER_SIZE = 7


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
    """A point, at its parameters, for each network that has been run."""
    rows = {row.preset: row for name in ("plug", "peers") for row in TABLES[name].rows}
    points = []
    for preset in NETWORKS:
        runs = read_runs(rows.get(preset, Row(preset=preset, seeds=ONE)), results_dir)
        if runs.files:
            printed = PUBLISHED.get((preset, "isic2017", "isic2017"), {})
            points.append(
                Point(
                    preset=preset,
                    x=PRESETS[preset].parameters,
                    found=estimate(runs.counts["isic2017"])["pooled.dsc"],
                    published=printed.get("dsc"),
                )
            )
    return points


def put_at_times(points: Sequence[Point], cpu: dict[str, Any]) -> list[Point]:
    """The points of timed networks at their milliseconds on one thread."""
    times = {row["name"]: row["threads"]["1"]["median_ms"] for row in cpu["models"]}
    names = {point: NETWORKS[point.preset][0] for point in points}
    return [
        dataclasses.replace(point, x=times[name]) for point, name in names.items() if name in times
    ]


def draw(points: Sequence[Point], x_label: str) -> Figure:
    """Dice with its interval over x on a logarithmic axis; published Dice as hollow points."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for point in points:
        name, colour, marker = NETWORKS[point.preset]
        interval = point.found.interval
        axes.plot([point.x] * 2, [interval.low, interval.high], color=colour, linewidth=1.5)
        look: dict[str, Any] = {"marker": marker, "color": colour, "markersize": MARKER_SIZE}
        look |= {"linestyle": "none", "zorder": 3}  # above every network's interval
        axes.plot(point.x, point.found.mean, label=name, **look)
        if point.published is not None:
            axes.plot(point.x, point.published, mfc="white", **look)
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


def save(figure: Figure, stem: Path) -> None:
    """Write the PNG and the SVG, without dates."""
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, dpi=PNG_DPI, metadata=metadata)
        write_atomically(stem.with_suffix(f".{ending}"), buffer.getvalue())


def draw_all(results_dir: Path, cpu_result: Path, out_dir: Path) -> list[Path]:
    """Draw both figures.

    Args:
        results_dir: Holds ``dataset/split/preset-seed.json``.
        cpu_result: What ``bench/cpu.py`` wrote.
        out_dir: Gets ``dice-parameters`` and ``dice-milliseconds``, each as PNG and SVG.

    Returns:
        The figures without ending; one without any network is not drawn.
    """
    points = read_points(results_dir)
    cpu = json.loads(cpu_result.read_text())
    drawn = []
    for name, chosen, x_label in (
        ("dice-parameters", points, "parameters"),
        (
            "dice-milliseconds",
            put_at_times(points, cpu),
            "ms a picture, ONNX Runtime, one CPU thread",
        ),
    ):
        if chosen:
            with matplotlib.rc_context(STYLE):
                save(draw(chosen, x_label), out_dir / name)
            drawn.append(out_dir / name)
    return drawn


def main() -> None:
    """Draw, and say what was drawn."""
    for path in draw_all(RESULTS, CPU_RESULT, FIGURES):
        print(f"{path.relative_to(ROOT)}.png, .svg")


if __name__ == "__main__":
    main()
