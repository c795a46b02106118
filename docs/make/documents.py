"""What the scripts of this folder share: where things are, result files, Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
RUNS = RESULTS / "runs"
SPEED = RESULTS / "speed"
TIMES = SPEED / "presets.json"
AREAS = RESULTS / "areas.json"
COMPLEXITY = RESULTS / "complexity.json"
FIGURES = ROOT / "docs" / "figures"


def read(path: Path) -> dict[str, Any]:
    """The content of a result file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *more: str) -> str:
    """A Markdown table, and after an empty line what is said of it."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join([*lines, *([""] if more else []), *more])
