"""Coverage-guided fuzzing of one Python target; `make fuzz` says how.

    python tests/fuzz/run.py picture --cases 1000000 --found DIR

Needs atheris. A finding ends the run, and its bytes lie in DIR.
"""

import argparse
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["ulvm", "PIL", "zipfile"]):
    import zipfile  # noqa: F401

    from PIL import (  # noqa: F401
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    sys.path.insert(0, str(Path(__file__).parent))
    import targets

CORPUS = Path(__file__).parents[1] / "corpus"


def main() -> None:
    """Run it; libFuzzer prints the number of cases at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=targets.TARGETS)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=int, default=0, help="stop then; 0: after the cases")
    parser.add_argument("--found", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    folder = options.found / options.target
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(targets.seeds(options.target)):
        (folder / f"seed-{number}").write_bytes(content)
    words = [f"-runs={options.cases}", f"-max_total_time={options.seconds}", "-timeout=60"]
    words += ["-rss_limit_mb=3000", "-print_final_stats=1", "-max_len=20000"]
    words += [f"-artifact_prefix={folder}/found-", str(folder)]
    if (CORPUS / options.target).is_dir():
        words.append(str(CORPUS / options.target))
    atheris.Setup([sys.argv[0], *words], targets.TARGETS[options.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
