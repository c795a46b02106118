"""Where results come from: commits, versions, and pictures that a model has seen."""

import subprocess
from pathlib import Path

import pytest

from ulvm import provenance
from ulvm.errors import InputError
from ulvm.provenance import exclude_seen, git_commit
from ulvm.splits import Split, load_split


def test_pictures_that_a_model_has_seen_are_refused_or_left_out() -> None:
    trained_on = Split(
        "own", "isic2017", {"train": ("a", "b"), "validation": ("c",), "test": ("d",)}
    )
    assert exclude_seen(["d", "e"], trained_on, drop=False) == ["d", "e"]
    with pytest.raises(InputError, match=r"2 of these 3 pictures.*--exclude-seen"):
        exclude_seen(["d", "a", "c"], trained_on, drop=False)
    assert exclude_seen(["d", "a", "c"], trained_on, drop=True) == ["d"]
    with pytest.raises(InputError, match="Choose another part"):
        exclude_seen(["a"], trained_on, drop=True)


def test_the_years_share_what_their_readme_says() -> None:
    """1800 ids of ISIC 2018 are in ISIC 2017's training part: scoring across years must see it."""
    trained_on = load_split("isic2017", "official")
    scored = [*load_split("isic2018", "official").ids("train")]
    assert len(scored) - len(exclude_seen(scored, trained_on, drop=True)) == 1800 + 121


def make_repository(folder: Path) -> str:
    """A repository with a commit; its short name."""
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    done = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=folder, check=True, capture_output=True
    )
    return done.stdout.decode().strip()


def test_the_commit_is_that_of_the_package_and_of_no_repository_around(tmp_path: Path) -> None:
    package = tmp_path / "src" / "ulvm"
    package.mkdir(parents=True)
    commit = make_repository(tmp_path)
    assert git_commit(package) == commit
    for place in ("venv/lib/python3.12/site-packages/ulvm", "inner/src/ulvm"):
        inside = tmp_path / place
        inside.mkdir(parents=True)
        assert git_commit(inside) is None


def test_no_commit_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src" / "ulvm").mkdir(parents=True)
    make_repository(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path / "src" / "ulvm") is None


def test_versions_are_those_installed() -> None:
    numpy = pytest.importorskip("numpy")
    assert provenance.versions("numpy")["numpy"] == numpy.__version__
    assert set(provenance.versions("numpy")) == {"ulvm", "python", "numpy"}
