"""A trained network as one C file with its weights, compiled and compared before it is written.

The file is this folder's sources, joined: one network, one instruction set, names that begin with
the file's own. Only what must differ between a library and a file to build into an app is below.
"""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ulvm.errors import InputError
from ulvm.files import write_atomically
from ulvm.image import FloatArray, Uint8Array
from ulvm.models import read_weights
from ulvm.segmenter import load_bytes
from ulvm.spec import RunSpec
from ulvm.synthetic import draw_lesion, probe_images
from ulvm.version import __version__

TOLERANCE = 1e-4
TEST_SIZE = 64  # height and width of the test picture

_ENGINE = Path(__file__).parent
_FLAGS = ("-std=c11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-sanitize=all")
# levels.c chooses an instruction set at run time; here the compiler's flags do.
_CHOICE = "levels.c"
_SOURCES = ("network.c", _CHOICE, "engine.c", "weights.c", "threads.c", "resample.c", "mask.c")


def export(
    model: str | Path | None,
    out: str | Path,
    reference: Callable[[Uint8Array], FloatArray] | None = None,
) -> dict[str, Any]:
    """Write ``NAME.c``, ``NAME.h``, ``NAME_test.h`` and ``NAME_main.c``, which runs a test picture.

    Args:
        model: As for ``ulvm.load``, no ONNX file.
        out: ``NAME.c``; functions are called ``NAME_open`` and so on.
        reference: What the compiled file has to agree with: uint8 (batch, height, width,
            channels) → float32 (batch, classes, height, width). By default ulvm's own engine.

    Returns:
        ``files``, written; ``bytes`` of all; ``largest_difference`` of probability from the
        reference; ``said`` by the program that was written, of the test picture.

    Raises:
        InputError: Another ending, no run, a network that the engine doesn't run, no C compiler,
            or the compiled file and the reference differ by more than 1e-4 in probability or in
            any pixel of a mask; then nothing is written.
    """
    out = Path(out)
    name = _c_name(out)
    file, weights = read_weights(model)
    loaded = load_bytes(weights, str(file))  # refuses what the engine doesn't run
    run, reference = loaded.spec, reference or loaded.network
    picture = _draw_picture(TEST_SIZE, run.model.in_channels)
    texts = {
        "lesion.c": join_sources(weights),
        "lesion.h": _write_header(run),
        "lesion_test.h": _write_test(picture, reference(picture[None])[0]),
        "lesion_main.c": _MAIN,
    }
    contents = {
        path.replace("lesion", name): _rename(text, name).encode() for path, text in texts.items()
    }
    images = np.concatenate(list(probe_images(run.data.image_size, run.model.in_channels)))
    expected = reference(images)
    with tempfile.TemporaryDirectory() as folder:
        found, said = _compile_and_run(name, contents, images, Path(folder))
    found = found.reshape(expected.shape)
    difference = float(np.abs(expected - found).max())
    if not difference <= TOLERANCE:  # also where it is not a number
        raise InputError(
            f"the compiled file and its reference differ by {difference:.1e} in probability",
            f"up to {TOLERANCE:.0e} is allowed",
            "nothing was written. Try another compiler: pip install ziglang==0.17.1",
        )
    for path, content in contents.items():
        write_atomically(out.parent / path, content)
    return {
        "files": list(contents),
        "bytes": sum(map(len, contents.values())),
        "largest_difference": difference,
        "said": said,
    }


def join_sources(weights: bytes) -> str:
    """The engine and these weights as one text, in which all but the API is static."""
    parts: dict[str, str] = {}
    for source in _SOURCES:
        _collect(source, parts)
    parts[_CHOICE] = _CHOOSE_LEVEL
    body = "\n".join(f"// ======== {name}\n\n{text}" for name, text in parts.items())
    body = re.sub(r"\bulvm_open\b", "open_file", body)
    body = re.sub(r"^extern .*\n+", "", body, flags=re.M)
    # Two words and a parenthesis from the first column on: a function, or the level's table.
    body = re.sub(r"^(?=(?:const )?\w+ \*?(?!ulvm_)\w+\()", "static ", body, flags=re.M)
    head = _HEAD.format(version=__version__, digest=hashlib.sha256(weights).hexdigest())
    words = np.frombuffer(weights.ljust(-(-len(weights) // 4) * 4, b"\0"), "<u4")
    values = _lines([f"0x{word:08x}" for word in words], 8)
    return "\n".join((head, body, _WEIGHTS.format(values=values, bytes=len(weights))))


def _collect(name: str, parts: dict[str, str]) -> None:
    """Add a source to the parts, after those of its headers that aren't there yet."""
    text = (_ENGINE / name).read_text("utf-8")
    for header in re.findall(r'^#include "(.*)"', text, re.M):
        if header not in (*parts, "ulvm.h"):
            _collect(header, parts)
    text = re.sub(r'^#include ".*"\n+', "", text, flags=re.M)
    guarded = r"^#ifndef (ULVM_\w+_H)\n#define \1\n+(.*)\n#endif\n"
    parts[name] = re.sub(guarded, r"\2", text, flags=re.M | re.S)


def _write_header(run: RunSpec) -> str:
    """ulvm.h without what only a library needs, and with weights that are there already."""
    text = (_ENGINE / "ulvm.h").read_text("utf-8")
    text = re.sub(r"^#if defined\(_WIN32\)\n.*?^#endif\n\n", "", text, flags=re.M | re.S)
    text = text.replace("ULVM_API ", "")
    opening = _OPENING.format(
        size=run.data.image_size,
        channels=run.model.in_channels,
        classes=run.model.classes,
        threshold=np.float32(run.threshold),
    )
    return re.sub(r"(^//.*\n)+^ulvm_engine \*ulvm_open\(.*\n", opening, text, flags=re.M)


def _write_test(picture: Uint8Array, probability: FloatArray) -> str:
    height, width, _ = picture.shape
    return _TEST.format(
        height=height,
        width=width,
        pixels=_lines([f"{value:3}" for value in picture.ravel()], 18),
        values=_lines([f"{value:.8e}f" for value in probability.ravel()], 6),
    )


def _lines(values: Sequence[str], in_a_line: int) -> str:
    """An initialiser's numbers."""
    lines = (values[at : at + in_a_line] for at in range(0, len(values), in_a_line))
    return "\n".join(f"  {', '.join(line)}," for line in lines)


def _rename(text: str, name: str) -> str:
    """The engine's prefix as the templates have it, then the file's own."""
    text = text.replace("ulvm_", "lesion_").replace("ULVM_", "LESION_")
    return text.replace("lesion", name).replace("LESION", name.upper())


def _draw_picture(size: int, channels: int) -> Uint8Array:
    drawn = draw_lesion(7, (size, size)).image_rgb
    return np.resize(drawn, (size, size, channels)) if channels != 3 else drawn


def _c_name(out: Path) -> str:
    name = out.name.removesuffix(".c")
    if name == out.name or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(
            f"the name {out} does not fit C",
            "it must have only small letters, digits and _, and end in .c",
            "choose one such as lesion.c, whose functions are called lesion_open and so on",
        )
    return name


def _compile_and_run(
    name: str, contents: dict[str, bytes], images: Uint8Array, folder: Path
) -> tuple[FloatArray, str]:
    """All numbers that the compiled file gives for the pictures, and what its own program says."""
    for path, content in contents.items():
        (folder / path).write_bytes(content)
    (folder / "probe.c").write_text(_rename(_PROBE, name))
    images.tofile(folder / "images")
    compile_words = [*find_compiler(), *_FLAGS]
    _run([*compile_words, "-c", f"{name}.c", "-o", "network.o"], folder)
    for source, program in ((f"{name}_main.c", "main.exe"), ("probe.c", "probe.exe")):
        _run([*compile_words, source, "network.o", "-o", program, "-lm"], folder)
    said = _run([str(folder / "main.exe")], folder).strip()
    _run([str(folder / "probe.exe"), "images", "probability"], folder)
    return np.fromfile(folder / "probability", np.float32), said


def find_compiler() -> list[str]:
    """The words that run a C compiler: the pinned one if it is installed, else the system's.

    Raises:
        InputError: There is none.
    """
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc"]
    for name in ("cc", "clang", "gcc"):
        if path := shutil.which(name):
            return [path]
    raise InputError(
        "there is no C compiler here to check the file with",
        _COMPILERS,
        "run pip install ziglang==0.17.1",
    )


def _run(words: Sequence[str], folder: Path) -> str:
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        raise InputError(
            f"`{' '.join(words)}` stopped with status {done.returncode}",
            _COMPILERS,
            "nothing was written. Try another compiler, as by pip install ziglang==0.17.1. Its "
            f"last words: {(done.stdout + done.stderr)[-600:].strip()}",
        )
    return done.stdout


_COMPILERS = "the compiler can be clang, gcc 12 or later, or ziglang"

_HEAD = """\
// UltraLight VM-UNet in one file, with its weights: uint8 RGB in, float32 probability out.
//
//   cc -O3 -ffp-contract=fast -fno-math-errno -Wno-psabi lesion_main.c lesion.c -lm
//
// C11 with GCC's vector extensions, libc and libm: clang, or gcc 12 and later. The compiler's flags
// choose the instruction set, such as -march=native; with -DLESION_THREADS threads share a picture.
// Not a medical device: for research and education, not for diagnosis.
//
// Written by `ulvm export --target c`, version {version}, from weights with the SHA-256
// {digest}.
// Copyright (c) 2026 The ulvm maintainers. SPDX-License-Identifier: MIT

#include <float.h>

#include "lesion.h"

#if !defined(__clang__) && (!defined(__GNUC__) || __GNUC__ < 12)
#error "This compiler has no __builtin_shufflevector. Use clang, or gcc 12 or later."
#elif defined(__FAST_MATH__)
#error "-ffast-math would give wrong results here. Use -ffp-contract=fast -fno-math-errno instead."
#elif FLT_EVAL_METHOD == 1 || FLT_EVAL_METHOD == 2
#error "Numbers must be rounded to float at once. On 32-bit x86 use -msse2 -mfpmath=sse."
#endif

#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wpsabi"
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpass-failed"
#else  // gcc doesn't see that some branches are not taken
#pragma GCC diagnostic ignored "-Warray-bounds"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if !defined(LESION_THREADS)
#define LESION_NO_THREADS
#endif

#if defined(__AVX512F__)
#define LEVEL avx512
#elif defined(__AVX2__)
#define LEVEL avx2
#elif defined(__SSE2__)
#define LEVEL sse2
#elif defined(__wasm_simd128__)
#define LEVEL wasm
#elif defined(__ARM_NEON)
#define LEVEL neon
#else
#define LEVEL plain
#endif
"""

_CHOOSE_LEVEL = """\
const Level *choose_level(lesion_error *error) {
  (void)error;
  return &NAME(LEVEL);
}
"""

_WEIGHTS = """\
// ======== weights: a safetensors file, as little-endian words

static const uint32_t weights[] = {{
{values}
}};

lesion_engine *lesion_open(int threads, lesion_error *error) {{
  return open_file(weights, {bytes}, threads, error);
}}

size_t lesion_memory(const lesion_engine *engine, int height, int width) {{
  if (!engine || !is_size(height) || !is_size(width)) return 0;
  Arena packed = {{NULL, 0}};
  pack_network(&engine->model, &packed);
  return sizeof *engine + sizeof weights + packed.used +
         workspace(engine->packed, height, width, engine->threads);
}}
"""

_OPENING = """\
// What the network was trained with: the height and width of a picture, and the probability from
// which on a pixel belongs to the mask.
enum {{ ULVM_SIZE = {size}, ULVM_CHANNELS = {channels}, ULVM_CLASSES = {classes} }};
#define ULVM_THRESHOLD {threshold:.8e}f

// Opens the network, whose weights are in the file. threads: 1 to 16 that share one picture, more
// than 1 where it was compiled with -DULVM_THREADS. Gives NULL and fills in `error` when it can't.
ulvm_engine *ulvm_open(int threads, ulvm_error *error);

// Bytes of memory that it takes with pictures of this size, at most: without the picture, the
// probability, and what malloc adds. 0 for a size that it doesn't run.
size_t ulvm_memory(const ulvm_engine *engine, int height, int width);
"""

_TEST = """\
// A drawn picture, (height, width, channels), and its probability, (classes, height, width).

#include <stdint.h>

enum {{ TEST_HEIGHT = {height}, TEST_WIDTH = {width} }};

static const uint8_t test_picture[] = {{
{pixels}
}};

static const float test_probability[] = {{
{values}
}};
"""

_MAIN = """\
// Compares the network's result for a drawn picture with the expected one.

#include <math.h>
#include <stdio.h>

#include "lesion.h"
#include "lesion_test.h"

int main(void) {
  static float found[sizeof test_probability / sizeof *test_probability];
  lesion_error error;
  lesion_engine *engine = lesion_open(1, &error);
  if (!engine || lesion_run(engine, test_picture, TEST_HEIGHT, TEST_WIDTH, found, &error)) {
    return puts(error.sentence), 1;
  }
  float largest = 0;
  for (size_t i = 0; i < sizeof found / sizeof *found; i++) {
    largest = fmaxf(largest, fabsf(found[i] - test_probability[i]));
  }
  printf("%s, largest difference %.1e\\n", lesion_level(engine), (double)largest);
  for (int size = LESION_SIZE; size >= 64; size /= 2) {
    printf("%d x %d: %.0f kB of memory\\n", size, size, lesion_memory(engine, size, size) / 1e3);
  }
  lesion_close(engine);
  return largest <= 1e-4f ? 0 : 1;
}
"""

_PROBE = """\
// Runs pictures, one after another: probe PICTURES PROBABILITIES.
#include <stdio.h>
#include "lesion.h"

int main(int count, char **words) {
  static uint8_t picture[LESION_SIZE * LESION_SIZE * LESION_CHANNELS];
  static float probability[LESION_SIZE * LESION_SIZE * LESION_CLASSES];
  FILE *in = count == 3 ? fopen(words[1], "rb") : NULL, *out = in ? fopen(words[2], "wb") : NULL;
  lesion_error error = {0};
  lesion_engine *engine = lesion_open(1, &error);
  while (engine && out && fread(picture, sizeof picture, 1, in)) {
    if (lesion_run(engine, picture, LESION_SIZE, LESION_SIZE, probability, &error)) break;
    fwrite(probability, sizeof probability, 1, out);
  }
  return puts(error.sentence), error.code || !out || fclose(out);
}
"""
