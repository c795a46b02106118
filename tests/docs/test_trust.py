"""The document on quality says what the result files say."""

import pytest

import trust
from documents import FIGURES, ROOT, read


def test_every_scored_set_has_a_row_with_its_own_figures() -> None:
    rows = trust.lesions().splitlines()[2:]
    assert len(rows) == len(trust.NAMES)
    for row, (title, one) in zip(rows, trust.sets().items(), strict=True):
        assert row.startswith(
            f"| {title} | {one['pictures']} | {one['failures']} | {one['auc']:.3f} |"
        )


def test_coverage_ends_with_all_pictures_and_begins_with_better_ones() -> None:
    for one in trust.sets().values():
        assert one["coverage"][-1] == 1
        assert one["dice_covered"][-1] == pytest.approx(one["dice"], abs=1e-4)
        assert one["dice_covered"][0] > one["dice_covered"][-1]


def test_the_goal_for_pictures_without_a_lesion_is_held_by_every_kind() -> None:
    for name, one in read(trust.FITTED)["lesion-free"].items():
        assert one["warned"] >= 0.95, name


def test_the_figure_says_what_it_shows_and_is_of_these_results() -> None:
    image = pytest.importorskip("PIL.Image")
    with image.open(FIGURES / "risk-coverage.png") as figure:
        assert figure.info["Description"] == trust.describe()
    assert "risk-coverage" in (ROOT / "docs" / "quality.md").read_text()
