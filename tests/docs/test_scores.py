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


def test_without_files_the_tables_say_so(tmp_path: Path) -> None:
    assert scores.models(tmp_path).startswith("Not there yet: skin-isic2017.json, ")
    assert scores.strata(tmp_path).count("Not there yet") == 2
    assert scores.bare(tmp_path / "bare.json") == "Not there yet: bare.json."


def test_a_model_has_a_row_for_each_file_and_the_rest_is_named(tmp_path: Path) -> None:
    write(tmp_path, "skin-folds-pad-ufes", 0.78, [kinds("size", ("a", 100, 0.3), ("b", 300, 0.02))])
    write(tmp_path, "isic2017-ph2", 0.92)
    said = scores.models(tmp_path)
    _, _, photos, ph2, *_ = said.splitlines()
    # 30 of 100 and 6 of 300 pictures failed: 36 of 400.
    assert photos == (
        "| `skin` | phone photos: PAD-UFES-20, five folds | 400 | 0.7800 [0.7700, 0.7900] | "
        "0.8000 [0.7700, 0.7900] | 9.0% |"
    )
    assert ph2.endswith("| – |")
    assert "Not there yet: skin-isic2017.json" in said
    assert "isic2017-ph2.json" not in said


def test_kinds_of_pictures_have_a_table_each_with_its_note(tmp_path: Path) -> None:
    write(
        tmp_path,
        "skin-folds-pad-ufes",
        0.78,
        [kinds("size", ("< 1 %", 400, 0.1)), kinds("tone", ("dark", 8, 0.25))],
    )
    said = scores.strata(tmp_path)
    assert said.count("Phone photos (PAD-UFES-20, five folds):\n\n| ") == 2
    assert "| < 1 % | 400 | 0.8000 | 0.7000 | 10.0% |" in said
    assert "under a colour cast it is not reliable" in said
    assert "Not there yet: strata of skin-isic2017.json." in said


def test_what_is_marked_without_a_lesion_is_a_share(tmp_path: Path) -> None:
    path = tmp_path / "bare.json"
    path.write_text(json.dumps({"phone skin": {"pictures": 1000, "marked": 0.134}}))
    assert scores.bare(path).splitlines()[-1] == "| phone skin | 1,000 | 13.4% |"
