"""Compiles the engine with clang's sanitizers and runs it; fuzzes the reader of weights
and the resampling.

    python tests/engine/sanitize.py            # address, undefined, thread, memory
    python tests/engine/sanitize.py --fuzz 1000000 --target resample

Needs clang with its runtime libraries, and torch for the networks that are tried.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ulvm.engine import build
from ulvm.models import find_weights
from ulvm.nn.checkpoint import save_weights
from ulvm.nn.networks import build_network
from ulvm.spec import ModelSpec, RunSpec

HERE = Path(__file__).parent
BUNDLED = find_weights()
ADDRESS, THREAD, UNSET = "address,undefined", "thread", "memory"
FUZZER = "fuzzer,address,undefined"
# What driver_run does wrong when told so, for each to report.
MISUSE = {ADDRESS: "short", THREAD: "race", UNSET: "unset"}
FLAGS = ["-std=gnu11", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all", "-w"]
# Optimising network.c takes clang minutes with the address sanitizer.
OPTIMISED = {ADDRESS: "-O0", THREAD: "-O0", UNSET: "-O0", FUZZER: "-O1"}
DICTIONARY = """
"__metadata__" "ulvm" "dtype" "F32" "shape" "data_offsets" "\\\\u0041" "{" "}" "[" "]" ":" ","
"format" "run" "model" "network" "in_channels" "classes" "widths" "encoder" "decoder" "conv" "pvm"
"branches" "d_state" "d_conv" "expand" "mixer" "mamba" "bridge" "both" "spatial" "channel" "none"
"init" "paper" "true" "null" "NaN" "1e9" "-1" "9007199254740993" "18446744073709551616"
"""
SPECS = {
    "smallest": ModelSpec(
        **{"widths": (4,) * 6, "encoder": ("conv",) * 6, "decoder": ("conv",) * 5},
        **{"in_channels": 1, "bridge": "none"},
    ),
    "all-pvm": ModelSpec(
        **{"widths": (4, 8, 4, 8, 12, 8), "encoder": ("pvm",) * 6, "decoder": ("pvm",) * 5},
        **{"in_channels": 2, "branches": 2, "d_state": 3, "d_conv": 2, "expand": 1, "classes": 2},
    ),
    "odd-widths": ModelSpec(widths=(12, 20, 28, 36, 44, 52), bridge="spatial", d_state=5, expand=3),
}


@functools.cache
def compiler(sanitizer: str) -> str | None:
    """clang, else gcc, whichever links this sanitizer; None if neither does."""
    body = "#include <stddef.h>\n#include <stdint.h>\n"
    if "fuzzer" in sanitizer:
        body += "int LLVMFuzzerTestOneInput(const uint8_t *input, size_t bytes) {"
        body += " return input && bytes ? 0 : 0; }"
    else:
        body += "int main(void) { return 0; }"
    for name in ("clang", "gcc"):
        if shutil.which(name) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "program"
            made = subprocess.run(
                [name, f"-fsanitize={sanitizer}", "-x", "c", "-", "-o", program],
                input=body,
                text=True,
                capture_output=True,
                check=False,
            )
            if not made.returncode:
                ran = subprocess.run([program, "-runs=1"], capture_output=True, check=False)
                if not ran.returncode:
                    return name
    return None


def compile_program(
    sources: Sequence[Path], program: Path, sanitizer: str, flags: Sequence[str] = ()
) -> Path:
    """One program of these sources, with the headers of the engine."""
    name = compiler(sanitizer)
    assert name is not None, f"no compiler here has the sanitizers {sanitizer}"
    words = [name, *FLAGS, OPTIMISED[sanitizer], f"-fsanitize={sanitizer}", *flags]
    subprocess.run([*words, f"-I{build.ENGINE}", *sources, "-o", program], check=True)
    return program


def compile_engine(folder: Path, sanitizer: str) -> Path:
    """``driver_run`` with the whole engine, at all levels of this processor's architecture."""
    machine = build.this_platform().partition("-")[0]
    jobs: list[tuple[Path, str, list[str]]] = []
    for level, flags in build.LEVELS[machine].items():
        march = [
            flag.replace("-mcpu=x86_64", "-march=x86-64").replace("_v", "-v") for flag in flags
        ]
        jobs.append((build.ENGINE / build.NETWORK, level, [*march, f"-DLEVEL={level}"]))
    others = [path for path in sorted(build.ENGINE.glob("*.c")) if path.name != build.NETWORK]
    jobs += [(path, path.stem, []) for path in [*others, HERE / "driver_run.c"]]

    def compile_one(job: tuple[Path, str, list[str]]) -> Path:
        source, name, flags = job
        return compile_program([source], folder / f"{name}.o", sanitizer, [*flags, "-c"])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    return compile_program(
        [*objects], folder / "driver_run", sanitizer, ["-Wl,--as-needed", "-pthread", "-lm"]
    )


def run_engine(program: Path, words: Sequence[object], level: str = "") -> tuple[int, str]:
    """The exit code of ``driver_run`` and what it printed; the best level if none is named."""
    done = subprocess.run(
        [program, *map(str, words)],
        env=os.environ | {"ULVM_LEVEL": level},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    return done.returncode, done.stdout


def save_networks(folder: Path) -> list[Path]:
    """Weights files of the small networks in ``SPECS``."""
    made = []
    for name, spec in SPECS.items():
        torch.manual_seed(0)
        made.append(folder / f"{name}.safetensors")
        save_weights(
            made[-1], build_network(spec), RunSpec(model=spec), {"note": 'é\n"', "score": math.nan}
        )
    return made


def fuzz(folder: Path, runs: int, target: str = "weights") -> subprocess.CompletedProcess[str]:
    """libFuzzer on ``weights.c`` or ``resample.c``, the same cases for the same number of them."""
    sources = [HERE / f"fuzz_{target}.c", build.ENGINE / f"{target}.c"]
    if target != "weights":  # it has what fails in sentences
        sources.append(build.ENGINE / "weights.c")
    program = compile_program(sources, folder / "fuzz", FUZZER, ["-lm"])
    seeds = folder / "seeds"
    seeds.mkdir()
    for path in save_networks(folder)[:2] if target == "weights" else ():
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        (seeds / f"{path.stem}-file").write_bytes(content)
        (seeds / f"{path.stem}-split").write_bytes(content[8:end] + b"\n" + content[end:])
        text = json.loads(content[8:end])["__metadata__"]["ulvm"]
        (seeds / f"{path.stem}-spec").write_text(json.dumps({"__metadata__": {"ulvm": text}}))
    words = DICTIONARY.split()
    (folder / "dictionary").write_text("".join(f"{word}\n" for word in words))
    return subprocess.run(
        [
            *(program, f"-runs={runs}", "-seed=1", "-max_len=40000", "-timeout=20"),
            *("-rss_limit_mb=2000", "-print_final_stats=1", f"-dict={folder / 'dictionary'}"),
            *(f"-artifact_prefix={folder}/", seeds),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def main() -> None:
    """Say what was found; exit with 1 if anything was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--fuzz", type=int, metavar="RUNS", help="fuzz a target instead, so many cases"
    )
    parser.add_argument("--target", choices=["weights", "resample"], default="weights")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.fuzz:
            if compiler(FUZZER) is None:
                sys.exit("Error: No clang with libFuzzer is installed. Install clang.")
            done = fuzz(folder, options.fuzz, options.target)
            print(done.stdout[-3000:])
            sys.exit(done.returncode != 0)
        files = [BUNDLED, *save_networks(folder)]
        for sanitizer, misuse in MISUSE.items():
            if compiler(sanitizer) is None:
                sys.exit(f"Error: No clang with the {sanitizer} sanitizers is installed.")
            (folder / sanitizer).mkdir()
            program = compile_engine(folder / sanitizer, sanitizer)
            first = next(iter(build.LEVELS[build.this_platform().partition("-")[0]]))
            for level in (first, ""):
                code, printed = run_engine(program, files, level)
                print(f"{sanitizer}:\n{printed}")
                if code:
                    sys.exit(1)
            if not run_engine(program, [misuse, BUNDLED])[0]:
                sys.exit(f"Error: The {sanitizer} sanitizers report no misuse.")


if __name__ == "__main__":
    main()
