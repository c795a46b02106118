"""A network as one C file: it agrees with torch wherever it is compiled, and its test can fail."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from engine import aarch64
from ulvm import cli, models
from ulvm.engine import EngineError, build, export
from ulvm.errors import InputError
from ulvm.nn.checkpoint import load_probability, save_weights
from ulvm.nn.networks import build_network
from ulvm.spec import DataSpec, ModelSpec, RunSpec

# -Og is compiled fastest, for optimised code is tested by each export itself. Without zig's checks
# of undefined behaviour, which want a library; test_sanitize.py has clang's.
FLAGS = ["-std=c11", "-Og", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-fno-sanitize=all"]
SMALL = RunSpec(
    model=ModelSpec(
        in_channels=1,
        classes=3,
        widths=(4, 8, 8, 12, 16, 8),
        encoder=("conv",) * 4 + ("pvm",) * 2,
        decoder=("pvm",) + ("conv",) * 4,
        d_state=5,
        bridge="channel",
        init="mamba",
    ),
    data=DataSpec(image_size=32),
)


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the bundled network as lesion.c and so on, by the command."""
    folder = tmp_path_factory.mktemp("bundled")
    words = ["export", "bundled", "--target", "c", "--out", str(folder / "lesion.c")]
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 0, result.output
    assert re.search(r"differs from torch by \d\.\de-0[56] at most", result.output)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file: random, of one channel and three classes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("small") / "weights.safetensors"
    save_weights(path, build_network(SMALL.model), SMALL, {})
    return path


@pytest.fixture(scope="module")
def exported(small: Path) -> Path:
    """The same as a C file beside it."""
    reference, _ = load_probability(small, double=True)
    done = export.export(small, small.parent / "other_net.c", reference)
    assert 0 < done["largest_difference"] <= export.TOLERANCE
    return small.parent


def compile_program(folder: Path, *words: str, out: str = "program") -> Path:
    """Compile the sources among the words, each alone, and link them with the objects there."""
    sources = [word for word in words if word.endswith(".c")]
    objects = [word for word in words if word.endswith(".o")]
    flags = [word for word in words if word not in (*sources, *objects)]
    for source in sources:
        objects.append(f"{out}-{source}.o")
        compile_and_wait(folder, [*FLAGS, *flags, "-c", source, "-o", objects[-1]])
    # As optimised code: for other code zig would first compile libraries of its own once more.
    compile_and_wait(folder, ["-O3", *flags, *objects, "-o", out, "-lm"])
    return folder / out


def compile_and_wait(folder: Path, words: list[str]) -> None:
    done = subprocess.run(
        [*export.find_compiler(), *words], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)


def test_what_is_written(bundled: Path) -> None:
    names = ["lesion.c", "lesion.h", "lesion_main.c", "lesion_test.h"]
    assert sorted(path.name for path in bundled.iterdir()) == names
    text = (bundled / "lesion.c").read_text()
    assert models.BUNDLED[models.DEFAULT].sha256 in text
    assert not re.search(r"\b(?:getenv|fopen|cpuid|ulvm_|ULVM_)", text)
    main = (bundled / "lesion_main.c").read_text()
    assert len(main[main.index("int main") :].splitlines()) < 25
    header = (bundled / "lesion.h").read_text()
    assert "lesion_engine *lesion_open(int threads, lesion_error *error);" in header
    assert "LESION_SIZE = 256, LESION_CHANNELS = 3, LESION_CLASSES = 1" in header
    assert not re.search("ulvm_|ULVM_", header)


@pytest.mark.parametrize("words", [["-U__SSE2__"], ["-DLESION_THREADS"]])
def test_without_vectors_and_with_threads(bundled: Path, tmp_path: Path, words: list[str]) -> None:
    pytest.importorskip("ziglang", reason="ziglang is not installed")
    if build.this_platform().partition("-")[0] != "x86_64":
        pytest.skip("the flags are those of x86-64")
    shutil.copytree(bundled, tmp_path, dirs_exist_ok=True)
    if "-DLESION_THREADS" in words:
        main = (tmp_path / "lesion_main.c").read_text()
        (tmp_path / "lesion_main.c").write_text(main.replace("lesion_open(1,", "lesion_open(2,"))
    # The engine's target and processor, whose parts of the C library are compiled already.
    words = ["-target", build.PLATFORMS[build.this_platform()].triple, "-mcpu=x86_64", *words]
    done = run(compile_program(tmp_path, *words, "lesion.c", "lesion_main.c"))
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("plain," if "-U__SSE2__" in words else "sse2,")


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_other_compilers(bundled: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    monkeypatch.setattr(export, "find_compiler", lambda: [path])
    done = run(compile_program(bundled, "-O2", "lesion.c", "lesion_main.c", out=name))
    assert done.returncode == 0, done.stdout
    fast = run(path, "-ffast-math", "-c", bundled / "lesion.c", "-o", bundled / "fast.o")
    assert fast.returncode != 0
    assert "-ffast-math would give wrong results here" in fast.stderr
    for made in (*bundled.glob("*.o"), bundled / name):
        made.unlink()


@aarch64.needs_qemu
def test_aarch64(bundled: Path, tmp_path: Path) -> None:
    sources = [bundled / name for name in ("lesion.c", "lesion_main.c")]
    aarch64.link(tmp_path / "program", *FLAGS, *sources)
    done = run(*aarch64.RUN, tmp_path / "program")
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("neon, largest difference ")


TWO = """
#include <stdio.h>
#include "lesion.h"
#include "other_net.h"
int main(void) {
  lesion_error error;
  other_net_error other_error;
  lesion_engine *lesion = lesion_open(1, &error);
  other_net_engine *other = other_net_open(1, &other_error);
  if (!lesion || !other) return 1;
  printf("%d %d\\n", lesion_classes(lesion), other_net_classes(other));
  printf("%s\\n", lesion_open(2, &error) ? "" : error.sentence);
  return 0;
}
"""


def test_two_networks_share_a_program(bundled: Path, exported: Path, tmp_path: Path) -> None:
    for folder in (bundled, exported):
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "two.c").write_text(TWO)
    done = run(compile_program(tmp_path, "two.c", "lesion.c", "other_net.c"))
    assert done.stdout.splitlines() == [
        "1 3",
        "This build has no threads, and 2 were asked for. Use 1.",
    ]


COUNT = """
#include <stdio.h>
#include <stdlib.h>
#include "lesion.h"
static size_t held, most;
void *counted_calloc(size_t count, size_t size) {
  size_t *block = calloc(1, count * size + 64);
  held += *block = count * size;
  if (held > most) most = held;
  return block + 8;
}
void *counted_malloc(size_t bytes) { return counted_calloc(1, bytes); }
void counted_free(void *memory) {
  if (!memory) return;
  held -= ((size_t *)memory)[-8];
  free((size_t *)memory - 8);
}
int main(void) {
  static uint8_t picture[128 * 128 * 3];
  static float probability[128 * 128];
  lesion_error error;
  lesion_engine *engine = lesion_open(1, &error);
  size_t said = lesion_memory(engine, 128, 128);
  if (lesion_run(engine, picture, 128, 128, probability, &error)) return 1;
  if (lesion_memory(engine, 128, 2147483647) || lesion_memory(engine, 0, -32)) return 1;
  if (lesion_memory(NULL, 128, 128) || lesion_classes(NULL) || *lesion_level(NULL)) return 1;
  lesion_close(engine);
  printf("%zu %zu %zu\\n", most, said, held);
  return 0;
}
"""


def test_memory_is_what_it_says(bundled: Path, tmp_path: Path) -> None:
    shutil.copytree(bundled, tmp_path, dirs_exist_ok=True)
    (tmp_path / "count.c").write_text(COUNT)
    renamed = [f"-D{name}=counted_{name}" for name in ("malloc", "calloc", "free")]
    compile_and_wait(tmp_path, [*FLAGS, *renamed, "-c", "lesion.c", "-o", "lesion.o"])
    done = run(compile_program(tmp_path, "count.c", "lesion.o"))
    most, said, left = map(int, done.stdout.split())
    assert 0.98 * said < most <= said
    assert left == 0


@pytest.mark.parametrize(
    ("word", "expected"), [("0x41200000", "largest difference"), ("0x7fc00000", "is not finite")]
)
def test_a_damaged_weight_fails_the_test_picture(
    bundled: Path, tmp_path: Path, word: str, expected: str
) -> None:
    """Meta-test: the program that comes with the file tells another network from this one."""
    shutil.copytree(bundled, tmp_path, dirs_exist_ok=True)
    weights = models.find_weights().read_bytes()
    length = int.from_bytes(weights[:8], "little")
    header = json.loads(weights[8 : 8 + length])
    at = (8 + length + header["head.bias"]["data_offsets"][0]) // 4
    text = (tmp_path / "lesion.c").read_text()
    start = text.index("weights[] = {")
    place = list(re.finditer("0x[0-9a-f]{8}", text[start:]))[at].span()
    changed = text[: start + place[0]] + word + text[start + place[1] :]
    (tmp_path / "lesion.c").write_text(changed)
    done = run(compile_program(tmp_path, "lesion.c", "lesion_main.c"))
    assert done.returncode == 1
    assert expected in done.stdout


@pytest.mark.parametrize(
    ("error", "said"), [(2e-4, r"differ by 2\.0e-04 "), (np.nan, "differ by nan ")]
)
def test_another_probability_is_refused_and_nothing_written(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float, said: str
) -> None:
    answer, _ = load_probability(small)
    monkeypatch.setattr(
        export,
        "_compile_and_run",
        lambda name, contents, images, folder: (answer(images) + np.float32(error), ""),
    )
    with pytest.raises(InputError, match=f"{said}.*Nothing was written"):
        export.export(small, tmp_path / "net.c", answer)
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_is_quoted(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [sys.executable, "-c", "raise SystemExit('no such instruction')"]
    monkeypatch.setattr(export, "find_compiler", lambda: words)
    with pytest.raises(InputError, match=r"status 1.*last words: no such instruction"):
        export.export(small, tmp_path / "net.c")
    assert list(tmp_path.iterdir()) == []


def test_networks_that_the_engine_does_not_run(tmp_path: Path) -> None:
    run = dataclasses.replace(SMALL, model=ModelSpec(mixer="bidirectional"))
    save_weights(tmp_path / "w.safetensors", build_network(run.model), run, {})
    with pytest.raises(EngineError, match="The engine does not run mixer=bidirectional"):
        export.export(tmp_path / "w.safetensors", tmp_path / "net.c")


@pytest.mark.parametrize("name", ["lesion", "lesion.h", "Lesion.c", "my-net.c", "1.c", ".c"])
def test_the_name_must_be_one_of_c(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"end in \.c"):
        export.export(None, tmp_path / name)


def test_no_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(export.shutil, "which", lambda _: None)
    with pytest.raises(InputError, match=r"Run pip install ziglang==0\.17\.1"):
        export.find_compiler()


BLOCKED = """
import sys
for name in ("torch", "onnx", "onnxruntime", "safetensors", "scipy"):
    sys.modules[name] = None
from ulvm.engine import export
export._FLAGS = [flag.replace("-O3", "-O1") for flag in export._FLAGS]  # compiled faster
print(export.export(sys.argv[1], sys.argv[2])["largest_difference"])
"""


def test_torch_is_not_needed(small: Path, tmp_path: Path) -> None:
    """Compared with the engine of this installation, whose bits may be another level's."""
    done = run(sys.executable, "-c", BLOCKED, small, tmp_path / "net.c")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= export.TOLERANCE
    assert len(list(tmp_path.iterdir())) == 4
