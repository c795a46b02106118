"""Times ``ulvm serve --api`` under load: every request answered, how long each took.

The server is a process of its own, the clients are threads of this one, each with one connection
kept open. Pictures are drawn. Writes ``results/speed/api.json``, with the machine's load before
the run: figures of a busy machine are upper bounds.
"""

from __future__ import annotations

import http.client
import io
import json
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from measure import command_line, cpu_seconds, provenance, write_result
from ulvm.segmenter import load
from ulvm.synthetic import draw_lesion

PICTURE_HW = (866, 1155)  # 1 megapixel
DRAWN = 10  # different pictures


def draw_pictures() -> tuple[list[bytes], list[int]]:
    """JPEG files, and the lesion's pixels in each as found here."""
    contents, areas = [], []
    segmenter = load()
    for seed in range(DRAWN):
        file = io.BytesIO()
        Image.fromarray(draw_lesion(seed, PICTURE_HW).image_rgb).save(file, "JPEG", quality=90)
        contents.append(file.getvalue())
        areas.append(segmenter(Image.open(file).convert("RGB")).area_pixels)
    return contents, areas


def send(port: int, contents: list[bytes], areas: list[int], requests: int, clients: int) -> Any:
    """Milliseconds of each answer that was right, and how many were not, by what came instead."""
    own = threading.local()

    def one(number: int) -> tuple[str, float]:
        if not hasattr(own, "connection"):
            own.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        start = time.perf_counter()
        try:
            own.connection.request("POST", "/segment", contents[number % DRAWN])
            answer = own.connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            own.connection.close()
            return type(error).__name__, 0.0
        latency_ms = (time.perf_counter() - start) * 1e3
        if answer.status != 200:
            return str(answer.status), latency_ms
        is_right = json.loads(content)["area_pixels"] == areas[number % DRAWN]
        return ("right" if is_right else "wrong"), latency_ms

    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(one, range(requests)))
    times = sorted(latency_ms for kind, latency_ms in answers if kind == "right")
    return times, Counter(kind for kind, _ in answers if kind != "right")


def main() -> None:
    """Start, warm up, load, write, print."""
    numbers = ("requests", 500, "in all"), ("clients", 16, "at the same time")
    options = command_line(__doc__, "api.json", *numbers).parse_args()
    contents, areas = draw_pictures()
    command = [sys.executable, "-m", "ulvm", "serve", "--api", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        port = int(server.stdout.readline().partition("/docs")[0].rpartition(":")[2])
        send(port, contents, areas, 2 * options.clients, options.clients)
        used = cpu_seconds(server.pid)
        start = time.perf_counter()
        times, others = send(port, contents, areas, options.requests, options.clients)
        seconds = time.perf_counter() - start
        used = cpu_seconds(server.pid) - used
        server.terminate()
    percentiles = statistics.quantiles(times, n=100)
    result: dict[str, Any] = {
        "what": "answers of `ulvm serve --api` to POST /segment as JSON, drawn JPEG pictures; "
        "clients on the same machine, each sending its next request when it has its answer",
        **provenance(options.commit, "starlette", "uvicorn"),
        "size_hw": list(PICTURE_HW),
        "requests": options.requests,
        "clients": options.clients,
        "lost_or_wrong": others,
        "seconds": round(seconds, 1),
        "per_second": round(options.requests / seconds, 1),
        "server_cpu_ms_a_request": round(1e3 * used / options.requests, 1),
        "median_ms": round(percentiles[49], 1),
        "p99_ms": round(percentiles[98], 1),
        "longest_ms": round(times[-1], 1),
    }
    write_result(options.out, result)
    print(
        f"{len(times)} of {options.requests} right, {result['per_second']} a second, "
        f"median {result['median_ms']} ms, p99 {result['p99_ms']} ms; {options.out}"
    )
    if others:
        sys.exit(f"lost or wrong: {others}")


if __name__ == "__main__":
    main()
