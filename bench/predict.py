"""Times the command ``ulvm predict``: one large photo, a folder of pictures, and memory.

Each run is a new process, timed from its start to its exit; pictures are drawn. Writes
``results/speed/predict.json``. Run it on an idle machine.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from measure import command_line, provenance, write_result
from ulvm.segmenter import load
from ulvm.synthetic import draw_lesion

PHOTO_HW = (3024, 4032)  # 12 megapixels
PICTURE_HW = (866, 1155)  # 1 megapixel
NOISE = 6.0  # grey levels, so that a file is as large as a camera's
QUALITY = 92
DRAWN = 20  # different pictures in the folder; the others are links to them
ONE_PICTURE = "import numpy, ulvm; ulvm.load()(numpy.zeros((256, 256, 3), numpy.uint8))"


def draw_jpeg(path: Path, seed: int, size_hw: tuple[int, int]) -> None:
    """A drawn lesion with a camera's noise."""
    height, width = size_hw
    small = Image.fromarray(draw_lesion(seed, (768, 1024)).image_rgb)
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(seed).normal(0, NOISE, smooth.shape)
    noisy = (smooth + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(path, quality=QUALITY)


def time_process(*arguments: str) -> float:
    """Seconds from start to exit of this Python with the arguments."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def peak_memory(*arguments: str) -> int:
    """MB of memory in use at most by this Python with the arguments."""
    # Not what the system reports at the end: that counts the parent's memory in.
    kilobytes = 0
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                kilobytes = int(found[1])
            time.sleep(0.002)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} failed")
    return round(kilobytes / 1000)


def command(source: Path, out_dir: Path) -> list[str]:
    """The command on a file or folder; masks only."""
    return ["-m", "ulvm", "predict", str(source), "--out", str(out_dir)]


def measure_photo(folder: Path, runs: int) -> dict[str, Any]:
    """From the shell to the mask file of one photo."""
    photo = folder / "photo.jpg"
    draw_jpeg(photo, 0, PHOTO_HW)
    words = command(photo, folder / "out")
    peak_mb = peak_memory(*words)  # after it all files are in the system's cache
    seconds = [time_process(*words) for _ in range(runs)]
    low, _, high = statistics.quantiles(seconds, n=4)
    return {
        "size_hw": list(PHOTO_HW),
        "bytes": photo.stat().st_size,
        "runs": runs,
        "median_s": round(statistics.median(seconds), 3),
        "quartiles_s": [round(low, 3), round(high, 3)],
        "range_s": [round(min(seconds), 3), round(max(seconds), 3)],
        "peak_mb": peak_mb,
    }


def measure_folder(folder: Path, counts: list[int]) -> list[dict[str, Any]]:
    """Pictures a second, start-up included, over folders of several sizes."""
    drawn = folder / "drawn"
    drawn.mkdir()
    for seed in range(DRAWN):
        draw_jpeg(drawn / f"{seed}.jpg", seed, PICTURE_HW)
    rows = []
    for count in counts:
        pictures = folder / f"pictures-{count}"
        pictures.mkdir()
        for index in range(count):
            (pictures / f"{index:05}.jpg").hardlink_to(drawn / f"{index % DRAWN}.jpg")
        words = command(pictures, folder / f"out-{count}")
        seconds = time_process(*words)
        rows.append(
            {
                "pictures": count,
                "size_hw": list(PICTURE_HW),
                "seconds": round(seconds, 1),
                "pictures_per_second": round(count / seconds, 1),
                "peak_mb": peak_memory(*words),
            }
        )
    return rows


def main() -> None:
    """Draw, time, write, print."""
    numbers = ("runs", 15, "of the photo"), ("pictures", [200, 2000], "in each folder")
    options = command_line(__doc__, "predict.json", *numbers).parse_args()
    where = provenance(options.commit, "pillow")
    where["machine"]["level"] = load().network.level
    with tempfile.TemporaryDirectory() as temporary:
        result: dict[str, Any] = {
            "what": "wall time of `ulvm predict`, a new process each, masks without overlays, "
            "drawn JPEG pictures",
            **where,
            "photo": measure_photo(Path(temporary), options.runs),
            "folders": measure_folder(Path(temporary), options.pictures),
            "one_picture_peak_mb": peak_memory("-c", ONE_PICTURE),
        }
    write_result(options.out, result)
    print(f"{result['photo']['median_s']:.3f} s for the photo; {options.out}")


if __name__ == "__main__":
    main()
