"""requirements/*.txt are what pyproject.toml asks for, every package with its hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

packaging = pytest.importorskip("packaging.requirements", reason="packaging is not installed")

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
GROUPS: dict[str, list[Any]] = PROJECT["dependency-groups"]
RUN: list[str] = PROJECT["project"]["dependencies"]
BUILD = [*RUN, *GROUPS["build"], *PROJECT["build-system"]["requires"]]
TEST = [*BUILD, *(word for word in GROUPS["dev"] if isinstance(word, str))]
TEST += [word for name in ("eval", "onnx", "train", "tensorboard") for word in EXTRAS[name]]
ASKED = {"run": RUN, "build": BUILD, "test": TEST}
HASHES = r"(    --hash=sha256:[0-9a-f]{64}.*\n)+"
ENTRY = re.compile(rf"^[a-z0-9-]+==\S+( ;.*)? \\\n{HASHES}", re.MULTILINE)


def unmet(asked: list[str], lock: str) -> list[str]:
    """Requirements that the lock lacks, or of which it has another version."""
    torch = (ROOT / "requirements" / "torch.txt").read_text()
    pinned = re.findall(r"^([a-z0-9-]+)==([^ \n]+)", lock + torch, re.MULTILINE)
    parsed = [packaging.Requirement(word) for word in asked]
    return [
        str(each)
        for each in parsed
        if each.name != PROJECT["project"]["name"]
        if not any(each.name == name and version in each.specifier for name, version in pinned)
    ]


@pytest.mark.parametrize("name", ASKED)
def test_the_lock_is_what_the_project_asks_for(name: str) -> None:
    """Where this fails, run make lock."""
    lock = (ROOT / "requirements" / f"{name}.txt").read_text()
    assert unmet(ASKED[name], lock) == []
    rest = ENTRY.sub("", lock).splitlines()  # what is no package with hashes
    assert [line for line in rest if line and not line.startswith("#")] == []
    assert "://" not in lock


def test_another_version_and_a_missing_package_are_noticed() -> None:
    lock = "numpy==2.0.1 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    asked = ["numpy>=2", "numpy>=2.1", "click>=8", "torch>=2.7"]
    assert unmet(asked, lock) == ["numpy>=2.1", "click>=8"]
    assert ENTRY.sub("", lock) == ""
    assert ENTRY.sub("", "numpy==2.0.1\n") != ""
