"""Every kernel of a training step is accepted by the real compiler, which needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys

SCRIPT = """
import torch
import triton
from triton.backends.compiler import GPUTarget

class Driver:  # of a GPU that is not there
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
triton.runtime.driver.set_active(Driver())
torch.cuda.current_device = lambda: 0
torch.cuda.set_device = lambda device: None

from ulvm.nn import augment, loss, model
from ulvm.nn.fused import compile, layers
from ulvm.spec import ModelSpec
for module in (model, augment, loss):
    module.kernels_for = lambda tensor: layers

{change}
compiled = []
real = triton.JITFunction.run
def run(self, *args, **options):
    compiled.append(self.__name__)
    return real(self, *args, **options)
triton.JITFunction.run = run

network = model.UltraLightVMUNet(ModelSpec(widths=(8, 8, 8, 8, 8, 24)))
pictures = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
part = augment.Part(pictures, pictures[:, 0].contiguous())
with compile.compiling_ahead():
    draws = augment.draw("paper", 2, 3, torch.Generator())
    images, masks = augment.augment(part, torch.arange(2), draws)
    loss.segmentation_loss(network(images), masks).backward()
print(*sorted(set(compiled)))
"""


def compile_all(change: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT.replace("{change}", change)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_kernels_compile_for_a_gpu() -> None:
    done = compile_all()
    assert done.returncode == 0, done.stderr[-2000:]
    kernels = done.stdout.split()
    for expected in ("_scan_backward_kernel", "_gather_kernel", "convolve_back", "_sum_kernel"):
        assert expected in kernels


def test_what_the_compiler_refuses_is_noticed() -> None:
    # The interpreter takes ranges of any size, the compiler powers of two.
    done = compile_all("layers.pvm.padded = lambda size: 16 if size <= 16 else size - 1")
    assert done.returncode != 0
    assert "power of 2" in done.stderr
