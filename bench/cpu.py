"""Times our model and its peers on this machine's CPU, interleaved in one run.

Ours, the paper's and the bundled one, run in the engine, at each instruction set that this
processor has, and as graphs in ONNX Runtime, as the peers do; one picture of 256×256 each. Weights
are random, since time does not depend on them. All convert from uint8 and do their min–max. Writes
``results/speed/cpu.json``, prints the medians. Run it on an idle machine.

With ``--presets``, times the networks of the tables of REPRODUCE.md instead, on one thread, with
fresh weights, in the engine or, where it doesn't run them, in ONNX Runtime; writes
``results/speed/presets.json``, which the tables' column of times reads. Rounds are many and short,
for where neighbours share the cores, the fastest is what the network takes.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from measure import LOAD_BEFORE, RESULTS, SIZE, command_line, provenance, time_block, write_result
from ulvm import segmenter
from ulvm.engine import Engine
from ulvm.errors import InputError
from ulvm.nn.checkpoint import save_weights
from ulvm.nn.export import build_onnx
from ulvm.nn.model import PictureToProbability, UltraLightVMUNet
from ulvm.nn.networks import build_network
from ulvm.nn.peers import PEERS, count_parameters
from ulvm.onnx import onnxruntime
from ulvm.presets import find_preset
from ulvm.reproduce.experiments import EXPERIMENTS
from ulvm.spec import ModelSpec, RunSpec

LEVELS = ("avx512", "avx2", "sse2", "neon")
TIMED_PEERS = ("unext-s", "lb-unet", "malunet", "ege-unet", "unext", "unet")
TOLERANCE = 1e-3  # largest difference of probability between torch and a graph, random weights
ROUNDS = ("rounds", 40, "of all models")
IMAGE_RGB = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
FEED = {"image_rgb": IMAGE_RGB}
IDLE = 0.5  # load average above which the machine is busy with something else
REST = 0.05  # seconds before each block: the threads of ONNX Runtime spin after their last run
WARM_UP = 5  # untimed runs before each block


@dataclass(frozen=True)
class Entry:
    """A network to time.

    Args:
        name: Its row in the table.
        parameters: Count.
        content: The ONNX file, or for the engine the safetensors file.
        level: The engine's instruction set; None for ONNX Runtime.
    """

    name: str
    parameters: int
    content: bytes
    level: str | None = None


def engine_entries(name: str, spec: ModelSpec) -> list[Entry]:
    """A network in the engine, at each instruction set that this processor has."""
    content = random_weights(spec)
    parameters = count_parameters(UltraLightVMUNet(spec))
    entries = []
    for level in LEVELS:
        entry = Entry(f"{name}, engine, {level}", parameters, content, level)
        with contextlib.suppress(InputError):
            open_engine(entry, 1)
            entries.append(entry)
    return entries


def random_weights(spec: ModelSpec) -> bytes:
    """A safetensors file with fresh weights."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_weights(path, UltraLightVMUNet(spec), RunSpec(model=spec), {})
        return path.read_bytes()


def open_engine(entry: Entry, threads: int) -> Engine:
    """The engine at the entry's instruction set."""
    os.environ["ULVM_LEVEL"] = entry.level or ""
    try:
        return Engine(entry.content, threads=threads)
    finally:
        del os.environ["ULVM_LEVEL"]


def preset_entry(name: str) -> Entry:
    """A preset with fresh weights: in the engine, or as ``network_entry``."""
    preset = find_preset(name)
    spec = preset.run.model
    if spec.network == ModelSpec.network and spec.mixer == ModelSpec.mixer:
        content = random_weights(spec)
        return Entry(name, preset.parameters, content, Engine(content).level)
    return network_entry(name, preset.run)


def network_entry(name: str, run: RunSpec) -> Entry:
    """A network with fresh weights as the package exports it for ONNX Runtime.

    The graph is compared with torch on this picture only: ``ulvm export`` asks for agreement on
    extreme ones too, where some peers' norms lose digits in ONNX Runtime.
    """
    torch.manual_seed(0)
    network = build_network(run.model)
    picture = torch.from_numpy(IMAGE_RGB)
    settle(network, picture.permute(0, 3, 1, 2).float())
    module = PictureToProbability(network).eval()
    entry = Entry(name, count_parameters(network), build_onnx(module, run, {}))
    (found,) = onnxruntime.InferenceSession(entry.content).run(None, FEED)
    with torch.no_grad():
        difference = float(np.abs(found - module(picture).numpy()).max())
    assert difference <= TOLERANCE, f"{name} differs from torch by {difference:.1e}"
    return entry


def settle(network: torch.nn.Module, image: torch.Tensor) -> None:
    """Give batch norms the statistics of one picture, so that activations keep their size."""
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
    with torch.no_grad():
        network.train()(image)


def build_peers() -> list[Entry]:
    """The paper's network, the bundled one, and the peers they are timed beside."""
    paper, bundled = find_preset("paper").run, segmenter.load().spec
    names = {"UltraLight VM-UNet": paper, "bundled `skin`, PVM layers at the bottom": bundled}
    entries = []
    for name, run in names.items():
        entries += engine_entries(name, run.model)
    for name, run in names.items():
        entries.append(network_entry(f"{name}, ONNX Runtime", run))
    for name in TIMED_PEERS:
        print(f"building {name}", file=sys.stderr)
        entries.append(network_entry(PEERS[name].title, RunSpec(model=ModelSpec(network=name))))
    return entries


def build_presets(names: list[str]) -> list[Entry]:
    """These presets, or all of REPRODUCE.md's tables; as many at a time as there are cores."""
    names = names or [row.preset for each in EXPERIMENTS.values() for row in each.rows]
    entries = []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        mp_context=spawn, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for entry in pool.map(preset_entry, dict.fromkeys(names)):
            print(f"built {entry.name}", file=sys.stderr)
            entries.append(entry)
    return entries


def time_rounds(
    runs: list[Callable[[], object]], rounds: int, repeats: int, seconds: float
) -> list[list[list[float]]]:
    """Milliseconds of each run in each round, as [run][round][repeat]; one block after another."""
    times: list[list[list[float]]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, blocks in zip(runs, times, strict=True):
            time.sleep(REST)
            time_block(run, WARM_UP, seconds)
            blocks.append(time_block(run, repeats, seconds))
    return times


def summarise(blocks: list[list[float]]) -> dict[str, float | int]:
    """Least and median of all, and the range of the medians of the rounds."""
    medians = [statistics.median(block) for block in blocks]
    everything = [duration for block in blocks for duration in block]
    return {
        "n": len(everything),
        "minimum_ms": round(min(everything), 3),
        "median_ms": round(statistics.median(everything), 3),
        "lowest_round_ms": round(min(medians), 3),
        "highest_round_ms": round(max(medians), 3),
    }


def measure(
    entries: list[Entry], threads: list[int], rounds: int, repeats: int, seconds: float
) -> list[dict[str, Any]]:
    """One row per entry, with a summary for each number of threads."""
    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "parameters": entry.parameters,
            "bytes": len(entry.content),
            "sha256": hashlib.sha256(entry.content).hexdigest(),
            "level": entry.level,
            "nodes": entry.level is None and len(onnx.load_from_string(entry.content).graph.node),
            "threads": {},
        }
        for entry in entries
    ]
    for count in threads:
        runs = [runner(entry, count) for entry in entries]
        times = time_rounds(runs, rounds, repeats, seconds)
        for row, blocks in zip(rows, times, strict=True):
            row["threads"][str(count)] = summarise(blocks)
    return rows


def runner(entry: Entry, threads: int) -> Callable[[], object]:
    """A call that runs the entry's network once on so many threads."""
    if entry.level:
        engine = open_engine(entry, threads)
        return lambda: engine(IMAGE_RGB)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        entry.content, options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, FEED)


def main() -> None:
    """Build, time, write, print."""
    parser = command_line(__doc__, "cpu.json", ROUNDS, ("repeats", 30, "runs of a model a round"))
    parser.add_argument("--presets", nargs="*", help="time these presets; if none, all")
    parser.add_argument(
        "--seconds", type=float, help="a round of a model at most; 0.1, --presets: 0.7"
    )
    parser.add_argument("--threads", type=int, nargs="+", help="1 and 2; with --presets 1")
    parser.set_defaults(out=None)
    options = parser.parse_args()
    presets, rounds = options.presets, options.rounds
    if presets is None:
        default_threads, default_seconds, name, runtimes = [1, 2], 0.1, "cpu.json", ""
    else:
        default_threads, default_seconds, name = [1], 0.7, "presets.json"
        runtimes = "engine, other networks and mixers in ONNX Runtime; "
    threads, seconds = options.threads or default_threads, options.seconds or default_seconds
    where = provenance(options.commit, "onnxruntime", "onnx")
    if max(threads) > where["machine"]["cores"]:
        sys.exit(f"{max(threads)} threads asked for, there are {where['machine']['cores']} cores")
    if LOAD_BEFORE > IDLE:
        print(f"the machine is busy (load {LOAD_BEFORE}); times will be too long", file=sys.stderr)
    entries = build_peers() if presets is None else build_presets(presets)
    result: dict[str, Any] = {
        "what": f"{runtimes}CPU, batch 1, {SIZE}×{SIZE}, {rounds} interleaved rounds of "
        f"{options.repeats} runs or {seconds:g} s",
        **where,
        "threads": threads,
        "models": measure(entries, threads, rounds, options.repeats, seconds),
    }
    write_result(options.out or RESULTS / name, result)
    for row in result["models"]:
        times = (f"{at['median_ms']:8.2f} ms" for at in row["threads"].values())
        print(f"{row['name']:45}" + "".join(times))


if __name__ == "__main__":
    main()
