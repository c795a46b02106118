"""How well a result's own quality tells good masks from bad ones: tables, and a figure.

From ``results/quality/quality.json`` and ``test.json``, which ``bench/quality.py`` writes. Run
alone, it draws ``docs/figures/risk-coverage.*``.
"""

from __future__ import annotations

from typing import Any

from documents import FIGURES, RESULTS, read, table

FITTED = RESULTS / "quality" / "quality.json"
TEST = RESULTS / "quality" / "test.json"
NAMES = {
    "isic2017": "ISIC 2017, out of fold",
    "pad-ufes": "PAD-UFES (phones), out of fold",
    "ham10000": "HAM10000, every third",
    "dark drawn": "drawn dark skin, five networks",
    "ph2": "PH2, the model itself",
}


def sets() -> dict[str, dict[str, Any]]:
    """Every scored set of pictures with a lesion, by its title."""
    test = read(TEST)
    found = {**read(FITTED)["lesions"], "ph2": test["ph2"]}
    return {title: found[name] for name, title in NAMES.items()}


def lesions() -> str:
    """On pictures of lesions: failures found, and what calibration is left."""
    head = ["pictures", "n", "Dice below .5", "AUC for those", "in the worst tenth, fifth"]
    head += ["Spearman with Dice", "mean error of quality", "warned", "Dice without these"]
    head += ["pixel error, raw → by temperature", "a picture"]
    rows = []
    for title, one in sets().items():
        pixels = one["pixels"]
        rows.append(
            [
                title,
                str(one["pictures"]),
                str(one["failures"]),
                f"{one['auc']:.3f}",
                f"{100 * one['worst_tenth']:.0f} %, {100 * one['worst_fifth']:.0f} %",
                f"{one['spearman']:.2f}",
                f"{one['mean_error']:.3f}",
                f"{100 * one['warned']:.1f} %",
                f"{one['dice']:.3f} → {one['dice_unwarned']:.3f}",
                f"{pixels['raw']:.3f} → {pixels['by_temperature']:.3f}",
                f"{pixels['by_temperature_per_picture']:.3f}",
            ]
        )
    return table(head, rows)


def free() -> str:
    """On pictures without a lesion: how many are marked, and how many of them silently."""
    head = ["pictures", "n", "more than 1 % marked", "warned", "marked without a warning"]
    rows = [
        [name, str(one["pictures"])]
        + [f"{100 * one[key]:.1f} %" for key in ("marked", "warned", "marked_unwarned")]
        for name, one in read(FITTED)["lesion-free"].items()
    ]
    return table(head, rows)


def describe() -> str:
    """The figure in words."""
    parts = []
    for title, one in sets().items():
        half = one["dice_covered"][one["coverage"].index(0.5)]
        parts.append(
            f"{title}: {half:.3f} for the better half, {one['dice_covered'][-1]:.3f} for all"
        )
    return "Mean Dice of the pictures with the highest quality, by their share. " + "; ".join(parts)


def main() -> None:
    """Draw the curves."""
    import matplotlib
    from matplotlib.figure import Figure

    from figures import BLUE, GREY, ORANGE, PURPLE, STYLE, VERMILION, save

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 4.4), layout="constrained")
        axes = figure.add_subplot()
        colours = (BLUE, VERMILION, PURPLE, GREY, ORANGE)
        for (title, one), colour in zip(sets().items(), colours, strict=True):
            shares = [100 * share for share in one["coverage"]]
            axes.plot(shares, one["dice_covered"], color=colour, label=title)
        axes.set_xlabel("% of the pictures kept, those of highest quality first")
        axes.set_ylabel("their mean Dice")
        axes.legend(frameon=False, loc="lower left")
        save(figure, describe(), FIGURES / "risk-coverage")
    print("docs/figures/risk-coverage.png, .svg")


if __name__ == "__main__":
    main()
