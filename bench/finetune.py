"""Fine-tune ``skin`` on forty drawn pictures of another look, as docs/use/finetune.md says.

    python bench/finetune.py [--work DIR]

The look is that of drawn pictures in negative and violet: lesions are bright and skin is dark, as
in no picture that the model was trained with. Runs the page's three commands on the CPU and writes
``results/speed/finetune.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from measure import LOAD_BEFORE, command_line, today, write_result
from ulvm import synthetic
from ulvm.provenance import processor, versions

COUNTS = {"train": 30, "val": 10, "test": 100}
SEED = 19
SIZE_HW = (300, 400)
TINT = (0.55, 0.35, 1.0)  # of the negative's red, green and blue


def draw(folder: Path) -> None:
    """Write the pictures and masks into train/, val/ and test/."""
    for number, (part, count) in enumerate(COUNTS.items()):
        synthetic.write_dataset(folder / part, count, seed=SEED + number, size_hw=SIZE_HW)
        for path in (folder / part / "images").iterdir():
            negative = 255 - np.asarray(Image.open(path).convert("L"), np.float32)
            Image.fromarray(np.rint(negative[..., None] * TINT).astype(np.uint8)).save(path)
            for side in ("images", "masks"):  # a name is in one part
                file = folder / part / side / path.name
                file.rename(file.with_name(f"{part}_{path.name}"))


def run(*words: str | Path) -> float:
    """Run a command of ulvm; its seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "ulvm", *map(str, words)], check=True)
    return time.perf_counter() - started


def score(model: str | Path, mine: Path, out: Path) -> dict[str, Any]:
    """Dice of a model on the test part."""
    run("eval", model, "--dataset", "folder", "--data", mine, "--split", "folders", "--out", out)
    scores = json.loads((out / "scores.json").read_text())
    return {
        "pooled": scores["pooled"]["dsc"],
        "per_image": scores["per_image"]["dsc"]["mean"],
        "interval": scores["intervals"]["per_image.dsc"],
    }


def measure(work: Path) -> dict[str, Any]:
    """Draw, score, train, score."""
    os.environ["ULVM_CACHE"] = str(work / "cache")
    mine, tuned = work / "mine", work / "run"
    draw(mine)
    before = score("skin", mine, work / "before")
    words = ("train", "tune", "--from", "skin", "--dataset", "folder", "--data", mine)
    seconds = run(*words, "--out", tuned, "--device", "cpu")
    stored = json.loads((tuned / "run.json").read_text())
    return {
        "pictures": COUNTS,
        "before": before,
        "after": score(tuned, mine, work / "after"),
        "seconds": round(seconds, 1),
        "epochs": stored["epochs_done"],
        "best_epoch": stored["best"]["epoch"],
        "threads": stored["machine"]["threads"],
        "processor": processor(),
        "load": LOAD_BEFORE,
        "versions": versions(),
        "date": today(),
    }


def main() -> None:
    """Measure and write."""
    parser = command_line(__doc__, "finetune.json")
    parser.add_argument("--work", type=Path, help="an empty folder; else one that is removed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_result(given.out, measure(given.work or Path(folder)))


if __name__ == "__main__":
    main()
