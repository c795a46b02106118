"""Counts every preset's parameters and multiply-accumulates for one picture of 256×256.

Writes ``results/complexity.json``, which the tables of REPRODUCE.md read; ``ulvm inspect PRESET``
tells the same stage by stage, and how it is counted.
"""

from __future__ import annotations

import json
import sys

from documents import COMPLEXITY
from ulvm.files import write_atomically
from ulvm.nn.complexity import inspect_model
from ulvm.presets import PRESETS


def measure(preset: str) -> dict[str, int]:
    """Parameters, all multiply-accumulates and those that the paper's way of counting sees."""
    totals = inspect_model(PRESETS[preset].run.model).totals()
    return {name: totals[name] for name in ("parameters", "macs", "paper_macs")}


def main() -> None:
    """Run each network once on the CPU and write."""
    result = {}
    for preset in PRESETS:
        print(preset, file=sys.stderr)
        result[preset] = measure(preset)
    write_atomically(COMPLEXITY, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
