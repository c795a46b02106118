"""The engine against torch in float64 and ONNX Runtime, at each level that this processor has."""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
import pickle
import platform
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine import aarch64
from ulvm import engine as module
from ulvm import segmenter, synthetic
from ulvm.engine import Engine, EngineError, build, resize_mask, resize_probability
from ulvm.errors import InputError
from ulvm.models import find_weights
from ulvm.nn.checkpoint import load_weights, save_weights
from ulvm.nn.export import probe_images
from ulvm.nn.model import probability_of_logits
from ulvm.nn.networks import build_network
from ulvm.spec import ModelSpec, RunSpec

WEIGHTS = find_weights()
TOLERANCE = 1e-4
SIZES_HW = [(32, 32), (96, 160)]
LARGE_SIZES_HW = [(256, 256), (288, 288)]  # of the first two
PVM_AT_THE_BOTTOM: dict[str, Any] = {
    "widths": (8, 16, 24, 32, 40, 48),
    "encoder": ("conv",) * 5 + ("pvm",),
    "decoder": ("pvm", "pvm", "conv", "conv", "conv"),
    "bridge": "none",
}
SPECS = {
    "paper": ModelSpec(),
    "pvm-at-the-bottom": ModelSpec(**PVM_AT_THE_BOTTOM),
    "convolutions": ModelSpec(encoder=("conv",) * 6, decoder=("conv",) * 5, bridge="none"),
    "half-widths": ModelSpec(widths=(4, 8, 12, 16, 24, 32)),
    "odd-widths": ModelSpec(widths=(12, 20, 28, 36, 44, 52)),
    "falling-widths": ModelSpec(widths=(32, 24, 16, 12, 8, 4)),
    "three-classes": ModelSpec(classes=3),
    "spatial-bridge": ModelSpec(bridge="spatial"),
    "channel-bridge": ModelSpec(bridge="channel"),
    "one-branch": ModelSpec(branches=1),
    "eight-branches": ModelSpec(branches=8),
    "mamba-8-2-1": ModelSpec(d_state=8, d_conv=2, expand=1),
    "mamba-5-3-3": ModelSpec(d_state=5, d_conv=3, expand=3),
    "mamba-32-1-2": ModelSpec(d_state=32, d_conv=1),
    "all-pvm": ModelSpec(
        in_channels=4, encoder=("pvm",) * 6, decoder=("pvm",) * 5, branches=2, classes=2
    ),
    "one-channel": ModelSpec(in_channels=1),
}
ARCHITECTURE = {"AMD64": "x86_64", "arm64": "aarch64", "ARM64": "aarch64"}.get(
    platform.machine(), platform.machine()
)
LEVELS = list(build.LEVELS.get(ARCHITECTURE, {}))
# What Linux says of a processor that has the level.
FLAGS = {
    "sse2": {"sse2"},
    "avx2": {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"},
    "avx512": {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"},
}
# Runs each network on each picture, by one thread and by two, and keeps the results.
RUN = """
import sys, numpy as np
from pathlib import Path
from ulvm.engine import Engine
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    print(path.stem, file=sys.stderr, flush=True)  # the last one is to blame for a crash
    pictures = np.load(path.with_suffix(".npz"))
    for threads in (1, 2):
        engine = Engine(path.read_bytes(), threads=threads)
        np.savez(
            Path(sys.argv[2]) / f"{path.stem}-{threads}.npz",
            **{name: engine(pictures[name]) for name in pictures},
        )
print(engine.level)
"""


def save_random(path: Path, spec: ModelSpec, seed: int) -> nn.Module:
    """A network whose every tensor, norms too, is random."""
    torch.manual_seed(seed)
    network = build_network(spec).eval()
    with torch.no_grad():
        for name, value in network.named_parameters():
            if "norm" in name:
                value.copy_(torch.randn_like(value))
            elif value.ndim == 1 and "scan" not in name:
                value.add_(0.3 * torch.randn_like(value))
    save_weights(path, network, RunSpec(model=spec), {})
    return network


def expected(network: nn.Module, images: np.ndarray) -> np.ndarray:
    """Probability by torch in float64."""
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).double().contiguous()
    low, high = planes.amin((1, 2, 3), keepdim=True), planes.amax((1, 2, 3), keepdim=True)
    with torch.no_grad():
        logits = network.double()((planes - low) * (255 / (high - low).clamp_min(1e-3)))
        found: np.ndarray = probability_of_logits(logits).numpy()
    return found


@dataclasses.dataclass
class Cases:
    folder: Path
    expected: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """Networks, pictures and what torch makes of them."""
    folder = tmp_path_factory.mktemp("cases")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # small work, which threads slow down on a busy machine
    random = np.random.default_rng(0)
    wanted: dict[str, np.ndarray] = {}
    for seed, (name, spec) in enumerate(SPECS.items()):
        network = save_random(folder / f"{name}.safetensors", spec, seed)
        pictures = {}
        for height, width in SIZES_HW + LARGE_SIZES_HW * (seed < 2):
            batch = random.integers(0, 256, (2, height, width, spec.in_channels), dtype=np.uint8)
            batch[1] = np.resize(
                synthetic.draw_lesion(seed, (height, width)).image_rgb, batch[1].shape
            )
            pictures[f"{height}x{width}"] = batch
            wanted[f"{name}-{height}x{width}"] = expected(network, batch)
        np.savez(folder / f"{name}.npz", **pictures)
    network, _, _ = load_weights(WEIGHTS)
    shutil.copy(WEIGHTS, folder / "bundled.safetensors")
    probes = {f"probe{i}": batch for i, batch in enumerate(probe_images(256, 3))}
    np.savez(folder / "bundled.npz", **probes)
    wanted |= {f"bundled-{name}": expected(network, batch) for name, batch in probes.items()}
    torch.set_num_threads(threads)
    return Cases(folder, wanted)


def run_level(folder: Path, out: Path, level: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, folder, out],
        env=os.environ | {"ULVM_LEVEL": level},
        capture_output=True,
        text=True,
        check=False,
    )


def processor_has(level: str) -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return level == LEVELS[0]
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    below = LEVELS[: LEVELS.index(level) + 1]
    return all(FLAGS.get(name, set()) <= set(line.split()) for name in below)


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_gives_what_torch_gives(level: str, cases: Cases, tmp_path: Path) -> None:
    done = run_level(cases.folder, tmp_path, level)
    if not processor_has(level):
        assert f"This processor has no ULVM_LEVEL={level}" in done.stderr
        pytest.skip(f"this processor has no {level}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == level
    differences = {}
    for path in cases.folder.glob("*.safetensors"):
        one, two = (np.load(tmp_path / f"{path.stem}-{threads}.npz") for threads in (1, 2))
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])  # bit by bit
            wanted = cases.expected[f"{path.stem}-{name}"]
            assert one[name].shape == wanted.shape
            assert one[name].min() >= 0
            assert one[name].max() <= 1
            differences[f"{path.stem}-{name}"] = np.abs(one[name] - wanted).max()
    assert {name: each for name, each in differences.items() if not each <= TOLERANCE} == {}


@pytest.mark.parametrize("level", LEVELS)
def test_masks_are_onnx_runtimes_but_for_rounding(level: str, cases: Cases, tmp_path: Path) -> None:
    if not processor_has(level):
        pytest.skip(f"this processor has no {level}")
    folder = tmp_path / "bundled"
    folder.mkdir()
    for ending in ("safetensors", "npz"):
        shutil.copy(cases.folder / f"bundled.{ending}", folder)
    done = run_level(folder, tmp_path, level)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "bundled-1.npz")
    other = segmenter.load(engine="onnx")
    pictures = np.load(folder / "bundled.npz")
    for name in pictures:
        theirs = other.probability(pictures[name])
        assert np.abs(found[name] - theirs).max() <= TOLERANCE
        clear = np.abs(theirs - 0.5) > TOLERANCE  # elsewhere rounding decides
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(found[name][clear] >= 0.5, theirs[clear] >= 0.5)


def test_an_unknown_level_is_refused(cases: Cases, tmp_path: Path) -> None:
    done = run_level(cases.folder, tmp_path, "avx1024")
    assert done.returncode == 1
    assert "This processor has no ULVM_LEVEL=avx1024" in done.stderr


# On another processor


@aarch64.needs_qemu
def test_aarch64_gives_what_torch_gives(cases: Cases, tmp_path: Path) -> None:
    program = tmp_path / "run_once"
    objects = build.compile_objects(aarch64.PLATFORM, tmp_path)
    source = Path(__file__).with_name("run_once.c")
    aarch64.link(program, f"-I{build.ENGINE}", source, *objects)
    for name in ("bundled", "all-pvm", "odd-widths", "mamba-5-3-3", "three-classes"):
        pictures = np.load(cases.folder / f"{name}.npz")
        picture = "probe1" if name == "bundled" else "32x32"
        image = pictures[picture][1]
        (tmp_path / "image").write_bytes(image.tobytes())
        done = subprocess.run(
            [
                *(*aarch64.RUN, program, cases.folder / f"{name}.safetensors"),
                *(tmp_path / "image", *map(str, image.shape[:2])),
                *("1" if name == "bundled" else "2", tmp_path / "probability"),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "neon"
        wanted = cases.expected[f"{name}-{picture}"][1]
        found = np.fromfile(tmp_path / "probability", np.float32).reshape(wanted.shape)
        assert np.abs(found - wanted).max() <= TOLERANCE, name


# The binding


@pytest.fixture(scope="module")
def weights() -> bytes:
    return WEIGHTS.read_bytes()


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)


def test_what_an_engine_says_of_itself(weights: bytes) -> None:
    engine = Engine(weights)
    assert (engine.in_channels, engine.classes) == (3, 1)
    assert engine.level in LEVELS


def test_pictures_in_any_memory_order(weights: bytes, pictures: np.ndarray) -> None:
    engine = Engine(weights)
    found = engine(pictures)
    assert found.shape == (3, 1, 64, 96)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(engine(np.asfortranarray(pictures)), found)
    np.testing.assert_array_equal(engine(pictures[1:2])[0], found[1])
    assert engine(pictures[:0]).shape == (0, 1, 64, 96)
    drawn = synthetic.draw_lesion(3, (256, 256)).image_rgb[None]  # noise is the same in any order
    assert np.abs(engine(drawn[..., ::-1]) - engine(drawn)).max() > 1e-3


def test_threads_share_one_engine(weights: bytes, pictures: np.ndarray) -> None:
    engine = Engine(weights, threads=2)
    wanted = engine(pictures)
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(5):
            if not np.array_equal(engine(pictures[number : number + 1])[0], wanted[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(index % 3,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_other_threads_go_on_while_c_runs(weights: bytes) -> None:
    """A thread of Python counts while a large picture is worked on."""
    engine, counted, done = Engine(weights), [0], threading.Event()
    large = np.zeros((1, 2048, 2048, 3), np.uint8)

    def count() -> None:
        while not done.is_set():
            counted[0] += 1
            done.wait(0.0005)

    thread = threading.Thread(target=count)
    thread.start()
    before = counted[0]
    engine(large)
    during = counted[0] - before
    done.set()
    thread.join()
    assert during > 5


def test_copies_and_pickles(weights: bytes, pictures: np.ndarray) -> None:
    engine = Engine(weights, threads=2)
    wanted = engine(pictures)
    for other in (copy.copy(engine), copy.deepcopy(engine), pickle.loads(pickle.dumps(engine))):
        np.testing.assert_array_equal(other(pictures), wanted)


FORK = """
import os, sys, threading
import numpy as np
from ulvm.engine import Engine
engine = Engine(open(sys.argv[1], "rb").read(), threads=int(sys.argv[2]))
pictures = np.zeros((1, 256, 256, 3), np.uint8)
pictures[:, ::3] = 200
wanted = engine(pictures)
busy = threading.Thread(target=lambda: [engine(pictures) for _ in range(200)])
busy.start()  # holds the lock at the moment of some of the forks
for _ in range(10):
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(engine(pictures), wanted) else 1)
    assert os.waitpid(child, 0)[1] == 0
busy.join()
assert np.array_equal(engine(pictures), wanted)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_forked_child_opens_it_anew(threads: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, WEIGHTS, threads],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_memory_and_threads_go_with_the_engine(weights: bytes, pictures: np.ndarray) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("reads /proc")

    def count_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    def resident_kilobytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4

    Engine(weights, threads=2)(pictures)
    gc.collect()
    threads, memory = count_threads(), resident_kilobytes()
    for _ in range(200):
        Engine(weights, threads=2)(pictures)
    gc.collect()
    assert count_threads() == threads
    assert resident_kilobytes() - memory < 20_000  # of some 600 kB each


def test_refused_weights_and_pictures(weights: bytes, pictures: np.ndarray) -> None:
    for damaged in (b"", b"no weights at all", weights[:1000], weights + b"\0"):
        with pytest.raises(EngineError) as caught:
            Engine(damaged)
        assert isinstance(caught.value, InputError)
        assert 20 < len(str(caught.value)) < 252
        again = pickle.loads(pickle.dumps(caught.value))
        assert (str(again), again.code) == (str(caught.value), caught.value.code)
    for threads in (0, 17):
        with pytest.raises(EngineError, match=f"threads={threads}"):
            Engine(weights, threads=threads)
    engine = Engine(weights)
    for wrong in (pictures[0], pictures.astype(np.float32), pictures[..., :2]):
        with pytest.raises(InputError, match=r"It must be uint8 \(batch, height, width, 3\)"):
            engine(wrong)
    with pytest.raises(EngineError, match="multiples of 32"):
        engine(pictures[:, :33])


def test_networks_that_only_onnx_runtime_runs(tmp_path: Path) -> None:
    for spec in (ModelSpec(mixer="bidirectional"), ModelSpec(network="malunet")):
        save_weights(tmp_path / "w.safetensors", build_network(spec), RunSpec(model=spec), {})
        with pytest.raises(EngineError) as caught:
            Engine((tmp_path / "w.safetensors").read_bytes())
        assert caught.value.code == module.UNSUPPORTED
        assert "ONNX" in str(caught.value)


SCAN = "decoder.0.mixer.scan.dt_proj.bias"


@pytest.mark.parametrize("level", [each for each in LEVELS if processor_has(each)])
@pytest.mark.parametrize("name", ["encoder.0.weight", "encoder_norms.1.weight", SCAN, ""])
def test_output_that_is_not_finite_is_refused(
    name: str, level: str, tmp_path: Path, pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that are finite, of a network whose result is not: clamps made a mask of it."""
    network, run, _ = load_weights(WEIGHTS)
    with torch.no_grad():
        for each, value in network.named_parameters():
            if each.startswith(name):
                value.fill_(1e18)
    save_weights(tmp_path / "w.safetensors", network, run, {})
    monkeypatch.setenv("ULVM_LEVEL", level)
    with pytest.raises(EngineError, match="finite"):
        Engine((tmp_path / "w.safetensors").read_bytes())(pictures)


def test_a_missing_or_foreign_library_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "__file__", str(tmp_path / "__init__.py"))
    load = module._library.__wrapped__
    with pytest.raises(InputError, match="is missing from this installation of ulvm"):
        load()
    (tmp_path / module.LIBRARY).write_bytes(b"of another machine")
    with pytest.raises(InputError, match="cannot be loaded"):
        load()


@pytest.mark.parametrize("size_hw", [(64, 64), (1, 1), (700, 900), (20, 33), (1, 5000), (5000, 3)])
def test_mask_is_the_resized_probability_at_the_threshold(size_hw: tuple[int, int]) -> None:
    probability = np.random.default_rng(2).random((64, 64), np.float32)
    for threshold in (0.1, 0.5, 0.9):
        mask, area = resize_mask(probability, size_hw, threshold)
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(
            mask, resize_probability(probability, size_hw) >= np.float32(threshold)
        )
        assert area == np.count_nonzero(mask)
    turned = resize_probability(np.asfortranarray(probability), size_hw)
    np.testing.assert_array_equal(turned, resize_probability(probability, size_hw))
