"""The selective scan's kernels against its loop in float64: values and all gradients."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kernel_errors import assert_sees_each_error, difference, errors
from ulvm.nn import scan as plain
from ulvm.nn.kernels import modules, scan
from ulvm.nn.mamba import SelectiveScan

RunCompiler = Callable[[str], subprocess.CompletedProcess[str]]

NAMES = ("y", "x", "delta", "A", "B", "C", "D")
TOLERANCE = 2e-6

oracle = partial(plain.selective_scan, backend="reference")


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "choose_chunk", lambda *_: 16)


def draw_operands(batch: int, length: int, inner: int, state: int) -> list[Tensor]:
    """x, delta, A, B, C, D as a Mamba has them."""
    torch.manual_seed(0)
    return [
        torch.randn(batch, length, inner),
        F.softplus(torch.randn(batch, length, inner) - 2),
        -torch.arange(1.0, state + 1) * torch.randn(inner, state).exp(),
        torch.randn(batch, length, state),
        torch.randn(batch, length, state),
        torch.randn(inner),
    ]


def gradients(operands: list[Tensor]) -> list[Tensor]:
    """Output, then the gradient of each operand."""
    leaves = [operand.detach().requires_grad_() for operand in operands]
    y = scan.scan(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]


@pytest.mark.parametrize(
    ("batch", "length", "inner", "state"),
    [
        (1, 1, 1, 1),
        (2, 20, 48, 16),  # two programs for the inner channels, two chunks
        (1, 70, 20, 5),  # five chunks; nothing a power of two
        (3, 33, 1, 64),
        (1, 17, 33, 1),
        (2, 32, 16, 16),  # everything full
    ],
)
def test_values_and_gradients(batch: int, length: int, inner: int, state: int, device: str) -> None:
    operands = [each.to(device) for each in draw_operands(batch, length, inner, state)]
    for name, error in zip(NAMES, errors(scan.scan, oracle, operands), strict=True):
        assert error <= TOLERANCE, name


def test_chunks_as_long_as_chosen(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.undo()
    operands = draw_operands(1, 300, 2, 4)
    result = scan.scan(*(operand.to(device) for operand in operands))
    expected = oracle(*(each.double() for each in operands))
    assert difference(result.cpu(), expected) <= TOLERANCE


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(kind: torch.dtype, device: str) -> None:
    # As under autocast: softplus and A stay float32.
    x, delta, A, B, C, D = (each.to(device) for each in draw_operands(2, 20, 20, 16))
    operands = [x.to(kind), delta, A, B.to(kind), C.to(kind), D]
    assert max(errors(scan.scan, oracle, operands)) <= torch.finfo(kind).eps


def test_without_a_gradient_the_same_and_no_states(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = [each.to(device).requires_grad_() for each in draw_operands(1, 40, 4, 4)]
    expected = scan.scan(*operands)
    kept = []
    kernel = scan.scan_kernel

    class Spy:
        def __getitem__(self, grid: Any) -> Any:
            def run(pointers: scan.Pointers, *args: Any, **options: Any) -> None:
                kept.append(0 if pointers.kept is None else pointers.kept.numel())
                kernel[grid](pointers, *args, **options)

            return run

    monkeypatch.setattr(scan, "scan_kernel", Spy())
    with torch.no_grad():
        assert torch.equal(scan.scan(*operands), expected)
    scan.scan(*operands)
    assert kept == [0, 10 * 4 * 4]  # ten times in 40 steps, 4 × 4


def test_the_same_bits_twice(device: str) -> None:
    operands = [operand.to(device) for operand in draw_operands(1, 20, 40, 5)]
    for first, second in zip(gradients(operands), gradients(operands), strict=True):
        assert torch.equal(first, second)


def use_kernels(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Take the kernels on the CPU too; the lengths that they get are noted."""
    lengths = []

    def spy(x: Tensor, *others: Tensor) -> Tensor:
        lengths.append(x.shape[1])
        return scan.scan(x, *others)

    monkeypatch.setattr(modules, "scan", spy)
    monkeypatch.setattr(modules, "usable", lambda _: True)
    return lengths


def fast(state: int) -> Callable[..., Tensor]:
    """The recurrence of a module with the kernels put in."""
    module = SelectiveScan(6, state, 1)
    modules.swap(module)
    return module.recur


def test_the_module_takes_views(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = use_kernels(monkeypatch)
    x, delta, A, B, C, D = (each.to(device) for each in draw_operands(2, 20, 6, 5))
    B, C = torch.cat([B, C], 2).split(5, 2)  # as a projection's
    views = [x.mT.contiguous().mT.flip(1), delta, A, B, C, D]
    assert not any(view.is_contiguous() for view in (views[0], B, C))
    assert max(errors(fast(5), oracle, views)) <= TOLERANCE
    assert lengths == [20]


def test_what_runs_in_plain_torch(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = use_kernels(monkeypatch)
    operands = draw_operands(1, 3, 2, 65)  # more than the largest state
    fast(65)(*(each.to(device) for each in operands))
    assert lengths == []
    fast(64)(*(each.to(device) for each in draw_operands(1, 3, 2, 64)))
    assert lengths == [3]


def test_comparison_notices_one_wrong_step(device: str) -> None:
    def one_wrong(x: Tensor, delta: Tensor, *others: Tensor) -> Tensor:
        error = torch.ones_like(delta)
        error[0, 20, 0] += 1e-3
        return scan.scan(x, delta * error, *others)

    operands = [operand.to(device) for operand in draw_operands(1, 40, 4, 4)]
    assert max(errors(one_wrong, oracle, operands)) > 2 * TOLERANCE


def test_comparison_sees_each_wrong_result(device: str) -> None:
    operands = [operand.to(device) for operand in draw_operands(1, 20, 4, 4)]
    assert_sees_each_error(scan.scan, oracle, operands, TOLERANCE)


@pytest.mark.parametrize("back", [False, True])
def test_comparison_notices_a_forgotten_carry(
    back: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scan.ends_kernel

    class Forgets:
        def __getitem__(self, grid: Any) -> Any:
            def launch(p: Any, *args: Any, BACK: bool, **options: Any) -> None:
                real[grid](p, *args, BACK=BACK, **options)
                if back == BACK:
                    p.states.zero_()
                    p.spans.zero_()

            return launch

    monkeypatch.setattr(scan, "ends_kernel", Forgets())
    operands = [operand.to(device) for operand in draw_operands(1, 40, 4, 4)]
    assert max(errors(scan.scan, oracle, operands)) > 2 * TOLERANCE


@pytest.mark.parametrize(
    ("walks", "length", "steps"),
    [(48, 4096, 128), (192 * 2, 64, 16), (1, 65536, 256), (8 * 64, 65536, 1024), (1, 1, 16)],
)
def test_chunks_leave_enough_programs(
    walks: int, length: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert scan.choose_chunk(walks, length, 2112) == steps


SPILLS = """
import pathlib, re, subprocess, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from ulvm.nn.kernels import scan

class Driver:  # of a GPU that is not there
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
triton.runtime.driver.set_active(Driver())

tool = pathlib.Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
some = torch.zeros(16)
p = scan.Pointers(*[some] * len(scan.Pointers._fields))
for name, back in [("ends", False), ("scan", None), ("ends", True), ("scan_back", None)]:
    sizes = scan.Sizes(192, 16, 192, 16, LANES=16, E_ROW=192, N_ROW=16, EVEN=True, LONG=True)
    options = {"num_warps": 1} | ({"maxnreg": scan.REGISTERS} if "back" in name else {})
    options |= {} if back is None else {"BACK": back}
    kernel = getattr(scan, f"{name}_kernel")
    compiled = kernel.run(p, 64, 16, S=sizes, grid=(1, 1, 1), warmup=True, **options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        used = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    print(*re.search(r"REG:(\\d+) STACK:(\\d+)", used.stdout).groups())
"""


def test_an_h100_holds_the_states_in_registers(run_compiler: RunCompiler) -> None:
    done = run_compiler(SPILLS)
    assert done.returncode == 0, done.stderr[-2000:]
    used = [[int(word) for word in line.split()] for line in done.stdout.splitlines()]
    assert len(used) == 4
    for registers, spilled in used:
        assert registers > 16  # 8 states and as many rates
        assert spilled == 0
