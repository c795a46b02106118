"""The tables of the shipped models, from files made up here."""

import json
from pathlib import Path
from typing import Any

import scores


def write(folder: Path, name: str, dsc: float, strata: list[dict[str, Any]] | None = None) -> None:
    limits = {"low": dsc - 0.01, "high": dsc + 0.01}
    content: dict[str, Any] = {
        "images": 400,
        "pooled": {"dsc": dsc + 0.02},
        "per_image": {"dsc": {"mean": dsc, "sd": 0.1}},
        "intervals": {"per_image.dsc": limits, "pooled.dsc": limits},
    }
    if strata:
        content["strata"] = strata
    (folder / f"{name}.json").write_text(json.dumps(content))


def kinds(by: str, *rows: tuple[str, int, float]) -> dict[str, Any]:
    values = {"pooled_dice": 0.8, "mean_dice": 0.7}
    return {
        "by": by,
        "rows": [{"name": name, "images": n, "failed": share, **values} for name, n, share in rows],
    }


def test_a_model_has_a_row_for_each_file(tmp_path: Path) -> None:
    write(tmp_path, "skin-folds-pad-ufes", 0.78, [kinds("size", ("a", 100, 0.3), ("b", 300, 0.02))])
    for name, *_ in scores.SCORED:
        if name != "skin-folds-pad-ufes":
            write(tmp_path, name, 0.92)
    _, _, _, _, _, photos, _, ph2, *_ = scores.models(tmp_path).splitlines()
    # 30 of 100 and 6 of 300 pictures failed: 36 of 400.
    assert photos == (
        "| `skin` | phone photos: PAD-UFES-20, five folds | 400 | 0.7800 [0.7700, 0.7900] | "
        "0.8000 [0.7700, 0.7900] | 9.0% |"
    )
    assert ph2.endswith("| – |")


def test_kinds_of_pictures_have_a_table_each_with_its_note(tmp_path: Path) -> None:
    write(
        tmp_path,
        "skin-folds-pad-ufes",
        0.78,
        [kinds("size", ("< 1 %", 400, 0.1)), kinds("tone", ("dark", 8, 0.25))],
    )
    write(tmp_path, "skin-isic2017", 0.9, [kinds("size", ("> 40 %", 400, 0.1))])
    said = scores.strata(tmp_path)
    assert said.count("Phone photos (PAD-UFES-20, five folds):\n\n| ") == 2
    assert "| < 1 % | 400 | 0.8000 | 0.7000 | 10.0% |" in said
    assert "under a colour cast it is not reliable" in said
    assert said.count("Dermoscopy (ISIC 2017 test):\n\n| ") == 1


def test_what_is_marked_without_a_lesion_is_a_share(tmp_path: Path) -> None:
    path = tmp_path / "bare.json"
    path.write_text(json.dumps({"phone skin": {"pictures": 1000, "marked": 0.134}}))
    assert scores.bare(path).splitlines()[-1] == "| phone skin | 1,000 | 13.4% |"
