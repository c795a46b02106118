"""Every kernel of a training step is accepted by the real compiler, which needs no GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

RunCompiler = Callable[[str], subprocess.CompletedProcess[str]]

# Of a GPU that is not there.
DRIVER = """
import torch
import triton
from triton.backends.compiler import GPUTarget

class Driver:
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
triton.runtime.driver.set_active(Driver())
"""

TRAINING_STEP = """
torch.cuda.current_device = lambda: 0
torch.cuda.set_device = lambda device: None

from ulvm.nn import augment, loss, model
from ulvm.nn.kernels import compile, modules
from ulvm.spec import ModelSpec
for module in (modules, augment, loss):
    module.usable = lambda tensor: True

{change}
compiled = []
real = triton.JITFunction.run
def run(self, *args, **options):
    compiled.append(self.__name__)
    return real(self, *args, **options)
triton.JITFunction.run = run

network = model.UltraLightVMUNet(ModelSpec(widths=(8, 8, 8, 8, 8, 24)))
layer = model.PVMLayer(8, 8, mixer="bidirectional")
modules.swap(network)
modules.swap(layer)
pictures = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
part = augment.Part(pictures, pictures[:, 0].contiguous())
with compile.compiling_ahead():
    draws = augment.draw("paper", 2, 3, torch.Generator())
    images, masks = augment.augment(part, torch.arange(2), draws)
    loss.segmentation_loss(network(images), masks).backward()
    layer(torch.zeros(2, 8, 8, 8)).sum().backward()
print(*sorted(set(compiled)))
"""


def test_kernels_compile_for_a_gpu(run_compiler: RunCompiler) -> None:
    done = run_compiler(DRIVER + TRAINING_STEP.replace("{change}", ""))
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = done.stdout.split()
    for expected in (
        "scan_back_kernel",
        "_gather_kernel",
        "convolve_back",
        "_sum_kernel",
        "_norm_back_kernel",
        "_causal_back_kernel",
        "ends_kernel",
    ):
        assert expected in kernels


def test_what_the_compiler_refuses_is_noticed(run_compiler: RunCompiler) -> None:
    # The interpreter takes ranges of any size, the compiler powers of two.
    change = "modules.pvm.padded = lambda size: 16 if size <= 16 else size - 1"
    done = run_compiler(DRIVER + TRAINING_STEP.replace("{change}", change))
    assert done.returncode != 0
    assert "power of 2" in done.stderr


SHARED_MEMORY = """
from ulvm.nn.kernels import conv, pvm

some = torch.zeros(16)
p = pvm.Pointers(*[some] * len(pvm.Pointers._fields))
w = pvm.Weights(*[some] * len(pvm.Weights._fields))
for channels, out, branches in [(64, 48, 4), (64, 48, 2), (128, 128, 4)]:
    inner = 2 * channels // branches
    rank = -(-inner // 32)
    shapes = [(channels,), (channels,), (), (inner, 1, 4), (), (), (inner, rank), (), (inner, 16)]
    shapes += [(inner,), (), (), (), (out,)]
    sizes = pvm.sizes_of(pvm.Weights(*map(torch.zeros, shapes)), branches)
    for kernel in (pvm._mix_back_kernel, pvm._tokens_back_kernel):
        options = {"S": sizes, "num_warps": sizes.warps, "grid": (1,), "warmup": True}
        compiled = kernel.run(p, w, 64, 16, 4, 1e-5, **options)
        print(compiled.metadata.shared, sizes.shared_bytes)

p = conv.Pointers(*[some] * len(conv.Pointers._fields))
sizes = conv.window_sizes(32, 16, 16, conv.row_of(16))
options = {"S": sizes, "T": conv.WINDOWS, "num_warps": 4, "grid": (1,), "warmup": True}
compiled = conv.convolve_pixels.run(p, 1, 8, 8, **options)
print(compiled.metadata.shared, conv.shared_bytes(32, 16))
"""


def test_shared_memory_of_a_wide_layer_is_not_underrated(run_compiler: RunCompiler) -> None:
    done = run_compiler(DRIVER + SHARED_MEMORY)
    assert done.returncode == 0, done.stderr[-2000:]
    pairs = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    assert len(pairs) == 7
    for needed, rated in pairs:
        assert 0.1 * rated < needed <= rated


def test_what_the_compiler_imports_late_is_there_before_threads_are() -> None:
    """Two threads that import it first at once can wait for each other (seen once in 100 runs)."""
    late = "triton.experimental.gluon.language"
    script = f"""
import importlib.util, sys
import triton
assert {late!r} not in sys.modules
import ulvm.nn.kernels.compile
assert {late!r} in sys.modules or not importlib.util.find_spec("triton.experimental.gluon")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
