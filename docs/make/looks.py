"""What the pictures look like that the shipped models have seen: ``src/ulvm/weights/looks.json``.

With it ``ulvm eval`` knows them under other names. 120 bits a picture don't show it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ulvm import datasets
from ulvm.files import write_atomically
from ulvm.provenance import SHIPPED_LOOKS, SHIPPED_SPLIT, ids_of_shipped

DATASETS = ("isic2017", "pad-ufes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in DATASETS:
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"folder of {name}")
    folders = vars(parser.parse_args())
    found = {"split": SHIPPED_SPLIT}
    for name in DATASETS:
        decoded = datasets.decode(name, folders[name.replace("-", "_")], size=256)
        found[name] = "".join(decoded.looks(ids_of_shipped(name)))
    write_atomically(SHIPPED_LOOKS, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
