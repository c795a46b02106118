"""The scan in chunks against the loop, and the loop against a worked example.

Tolerances, as the largest difference over the largest magnitude, for the outputs and for the
gradient of every operand. The oracle is always the loop in float64.

    type      length ≤ 256   length ≤ 4096
    float64   1e-10          1e-10
    float32   2e-6           1e-5
"""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from ulvm.errors import InputError
from ulvm.nn import scan
from ulvm.nn.scan import selective_scan

LENGTHS = (1, 2, 3, 7, 16, 31, 64, 100, 256, 1000, 1024, 4096)
NAMES = ("y", "x", "delta", "A", "B", "C", "D")


def tolerance(dtype: torch.dtype, length: int) -> float:
    if dtype == torch.float64:
        return 1e-10
    return 2e-6 if length <= 256 else 1e-5


def draw_operands(
    batch: int, length: int, inner: int = 3, state: int = 4, seed: int = 0
) -> list[Tensor]:
    """x, delta, A, B, C, D as a Mamba has them, float64 but exact in float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    delta = torch.nn.functional.softplus(normal(batch, length, inner) - 2)
    A = -torch.arange(1.0, state + 1) * normal(inner, state).exp()
    B, C = normal(batch, length, state), normal(batch, length, state)
    operands = [normal(batch, length, inner), delta, A, B, C, normal(inner)]
    return [operand.float().double() for operand in operands]


def run_with_gradients(
    operands: list[Tensor], backend: Any, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Output, then the gradient of each operand for a fixed random weighting of the output."""
    leaves = [operand.to(dtype).requires_grad_() for operand in operands]
    y = selective_scan(*leaves, backend=backend)
    generator = torch.Generator().manual_seed(1)
    weighting = torch.randn(y.shape, generator=generator).to(dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, weighting)]


def largest_difference(results: list[Tensor], oracle: list[Tensor]) -> float:
    """Over all results: largest difference / largest magnitude of the oracle's; NaN if any is."""
    differences = [
        (result - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
        for result, expected in zip(results, oracle, strict=True)
    ]
    return torch.stack(differences).max().item()  # Python's max would lose a NaN


@functools.cache
def oracle_of(length: int) -> tuple[list[Tensor], list[Tensor]]:
    """Operands and the float64 loop's results; batch 1 and 3, small where it is long."""
    operands = draw_operands(3 if length <= 256 else 1, length, inner=2 if length > 2000 else 3)
    return operands, run_with_gradients(operands, "reference")


@pytest.mark.parametrize("backend", ["reference", "parallel"])
def test_worked_example(backend: Any) -> None:
    # A halving of the state at each step: states 1, 2.5, 4.25; then C = 2 and D = 10.
    x = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).reshape(1, 3, 1)
    ones = torch.ones_like(x)
    A = -torch.tensor([[2.0]], dtype=torch.float64).log()
    y = selective_scan(x, ones, A, ones, 2 * ones, torch.tensor([10.0]).double(), backend=backend)
    assert y.flatten().tolist() == pytest.approx([12.0, 25.0, 38.5], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_values_and_gradients_agree_with_the_loop(length: int, dtype: torch.dtype) -> None:
    operands, oracle = oracle_of(length)
    results = run_with_gradients(operands, "parallel", dtype)
    for name, result, expected in zip(NAMES, results, oracle, strict=True):
        difference = largest_difference([result], [expected])
        assert difference < tolerance(dtype, length), name
        assert result.dtype == dtype


@pytest.mark.parametrize(
    ("batch", "length", "inner", "state"),
    [(1, 50, 1, 1), (1, 37, 5, 1), (5, 37, 1, 6), (2, 4, 2, 2), (16, 9, 8, 16)],
)
def test_any_width_and_batch(batch: int, length: int, inner: int, state: int) -> None:
    operands = draw_operands(batch, length, inner, state)
    oracle = run_with_gradients(operands, "reference")
    assert largest_difference(run_with_gradients(operands, "parallel"), oracle) < 1e-10


@pytest.mark.parametrize(("items", "pieces"), [(1, 5), (2, 3), (4, 2), (5, 1)])
def test_a_batch_larger_than_the_cache_runs_in_pieces(
    monkeypatch: pytest.MonkeyPatch, items: int, pieces: int
) -> None:
    operands = draw_operands(5, 20, 3, 4)
    oracle = run_with_gradients(operands, "reference")
    batches = []
    whole = scan._scan_parallel

    def spy(x: Tensor, *others: Tensor) -> Tensor:
        batches.append(len(x))
        return whole(x, *others)

    monkeypatch.setattr(scan, "_scan_parallel", spy)
    monkeypatch.setattr(scan, "_CPU_CACHE", items * 20 * 3 * 4)
    assert largest_difference(run_with_gradients(operands, "parallel"), oracle) < 1e-10
    assert len(batches[1:] or batches) == pieces


@pytest.mark.parametrize("length", LENGTHS)
def test_no_gradient_gives_the_same_values(length: int) -> None:
    operands = draw_operands(2, length)
    oracle = selective_scan(*operands, backend="reference")
    assert largest_difference([selective_scan(*operands)], [oracle]) <= 1e-12
    needing = [operand.requires_grad_() for operand in operands]
    with torch.no_grad():
        assert not selective_scan(*needing).requires_grad


@pytest.mark.parametrize("index", range(6), ids=NAMES[1:])
def test_gradient_of_one_operand_alone(index: int) -> None:
    operands = draw_operands(2, 11)
    oracle = run_with_gradients(operands, "reference")[index + 1]
    operands[index].requires_grad_()
    y = selective_scan(*operands, backend="parallel")
    weighting = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).double()
    (gradient,) = torch.autograd.grad(y, operands[index], weighting)
    assert largest_difference([gradient], [oracle]) < 1e-10


@pytest.mark.parametrize("length", [1, 2, 7, 10])
def test_gradient_agrees_with_finite_differences(length: int) -> None:
    leaves = [operand.requires_grad_() for operand in draw_operands(2, length, 2, 2)]
    assert torch.autograd.gradcheck(functools.partial(selective_scan, backend="parallel"), leaves)


def test_strided_operands() -> None:
    operands = draw_operands(2, 33)
    expected = selective_scan(*operands)
    strided = [operand.mT.contiguous().mT if operand.dim() > 1 else operand for operand in operands]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(selective_scan(*strided), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "parallel"])
def test_one_item_is_independent_of_the_rest_of_its_batch(backend: Any) -> None:
    x, delta, A, B, C, D = [operand.float() for operand in draw_operands(7, 50)]
    together = selective_scan(x, delta, A, B, C, D, backend=backend)
    for i in range(7):
        one = [each[i : i + 1] for each in (x, delta, B, C)]
        alone = selective_scan(one[0], one[1], A, one[2], one[3], D, backend=backend)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "parallel"])
def test_nothing_looks_ahead(backend: Any) -> None:
    operands = draw_operands(1, 40)
    before = selective_scan(*operands, backend=backend)
    for index in (0, 1, 3, 4):  # x, delta, B, C
        operands[index] = operands[index].clone()
        operands[index][:, 25] += 1
    after = selective_scan(*operands, backend=backend)
    assert torch.equal(before[:, :25], after[:, :25])
    assert not torch.isclose(before[:, 25:], after[:, 25:]).all()


def test_decays_that_underflow_stay_finite_and_right() -> None:
    operands = draw_operands(1, 1000)
    operands[1] = operands[1] * 1e3  # exp(delta · A) is 0 in float32 almost everywhere
    operands[1][:, ::50] = 0  # and 1 at some steps
    assert (torch.exp(operands[1].float()[0, :, :, None] * operands[2].float()) == 0).any()
    oracle = run_with_gradients(operands, "reference")
    for dtype in (torch.float32, torch.float64):
        results = run_with_gradients(operands, "parallel", dtype)
        assert all(result.isfinite().all() for result in results)
        assert largest_difference(results, oracle) < tolerance(dtype, 1000)


def test_no_decay_keeps_everything() -> None:
    # delta · A = 0: the state is a running sum, over chunk borders as well.
    x, delta, A, B, C, D = draw_operands(1, 300, inner=1, state=1)
    y = selective_scan(x, delta, 0 * A, B, C, 0 * D)
    torch.testing.assert_close(y, C * (delta * x * B).cumsum(1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "parallel"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_finite_in_its_own_type(dtype: torch.dtype, backend: Any) -> None:
    operands = draw_operands(2, 200)
    results = run_with_gradients(operands, backend, dtype)
    assert all(result.dtype == dtype and result.isfinite().all() for result in results)
    # The recurrence runs in float32: what is lost is the rounding of operands and result.
    rounded = run_with_gradients([operand.to(dtype).double() for operand in operands], "reference")
    assert largest_difference(results[:1], rounded[:1]) < torch.finfo(dtype).eps


@pytest.mark.parametrize("backend", ["reference", "parallel"])
def test_half_precision_accumulates_in_float32(backend: Any) -> None:
    # A running sum of 2⁻⁷: in bfloat16 it would stop growing at 2.
    ones = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    zero = torch.zeros(1, 1, dtype=torch.bfloat16)
    y = selective_scan(ones, ones / 128, zero, ones, ones, zero[0], backend=backend)
    assert y[0, -1].item() == pytest.approx(1000 / 128, rel=2**-8)


def test_bfloat16_x_among_float32_operands() -> None:
    # As under autocast, where A and D stay float32.
    x, *others = [operand.float() for operand in draw_operands(2, 20)]
    assert selective_scan(x.bfloat16(), *others).dtype == torch.bfloat16


def test_the_comparison_detects_a_nan() -> None:
    _, oracle = oracle_of(100)
    holed = [result.clone() for result in oracle]
    holed[3][0, 0] = torch.nan
    assert not largest_difference(holed, oracle) < 1


def test_the_comparison_detects_one_wrong_decay() -> None:
    operands, oracle = oracle_of(100)
    delta = operands[1].clone()
    delta[1, 40, 0] *= 1 + 1e-5
    wrong = [operands[0], delta, *operands[2:]]
    difference = largest_difference(run_with_gradients(wrong, "parallel"), oracle)
    assert difference > 2 * tolerance(torch.float64, 100)


def test_the_comparison_detects_a_forgotten_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    operands, oracle = oracle_of(100)
    forget = lambda decay, last, *_, **__: torch.zeros_like(last)  # noqa: E731
    monkeypatch.setattr(scan, "_carry", forget)
    difference = largest_difference(run_with_gradients(operands, "parallel"), oracle)
    assert difference > tolerance(torch.float32, 100)


@pytest.mark.parametrize("wrong", range(5), ids=("x", "delta", "B", "C", "A"))
def test_the_comparison_detects_one_wrong_gradient(
    wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands, oracle = oracle_of(100)
    right = scan._ChunkedScan.backward

    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        grads = list(right(ctx, grad_y))
        grads[wrong] = grads[wrong] * (1 + 1e-5)
        return tuple(grads)

    monkeypatch.setattr(scan._ChunkedScan, "backward", staticmethod(backward))
    results = run_with_gradients(operands, "parallel")
    pairs = zip(NAMES, results, oracle, strict=True)
    differences = {name: largest_difference([one], [two]) for name, one, two in pairs}
    name = ("x", "delta", "B", "C", "A")[wrong]
    assert differences.pop(name) > 2 * tolerance(torch.float32, 100)
    assert max(differences.values()) < tolerance(torch.float64, 100)


@pytest.mark.parametrize(
    ("index", "shape", "words"),
    [
        (0, (2, 5), r"got x \(2, 5\) and A \(3, 4\)\. .* Reshape them"),
        (0, (2, 0, 3), r"They must be x \(batch, length ≥ 1, inner\)"),
        (0, (2, 6, 3), r"got delta \(2, 5, 3\)\. With this x it must be \(2, 6, 3\)"),
        (1, (2, 5, 1), r"got delta \(2, 5, 1\)"),
        (2, (3,), r"A \(3,\)"),
        (2, (2, 4), r"got A \(2, 4\)\. With this x it must be \(3, 4\)"),
        (3, (2, 5, 1), r"got B \(2, 5, 1\)\. With this x it must be \(2, 5, 4\)"),
        (4, (1, 5, 4), r"got C \(1, 5, 4\)"),
        (5, (1,), r"got D \(1,\)\. With this x it must be \(3,\)"),
    ],
)
def test_wrong_shapes(index: int, shape: tuple[int, ...], words: str) -> None:
    operands = draw_operands(2, 5, 3, 4)
    operands[index] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(InputError, match=words):
        selective_scan(*operands)


def test_unknown_backend() -> None:
    backend: Any = "cuda"
    with pytest.raises(InputError, match=r"no backend 'cuda'\. Choose from reference, parallel"):
        selective_scan(*draw_operands(1, 2), backend=backend)
