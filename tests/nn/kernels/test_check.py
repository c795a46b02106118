"""The comparison before training, with a network that is wrong on purpose."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from triton.runtime.errors import OutOfResources

from ulvm.nn.kernels import check as checks
from ulvm.nn.kernels import device
from ulvm.nn.kernels.check import use_kernels_if_right


class Network(nn.Module):
    """One convolution, whose 'kernels' weigh their gradient wrongly."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 1)
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.conv(images)
        wrong = logits.detach() + (logits - logits.detach()) * self.factor
        return wrong if usable(images) else logits


def usable(images: Tensor) -> bool:
    return device.enabled and images.dtype != torch.float64


@pytest.fixture(autouse=True)
def enabled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path))
    monkeypatch.setattr(device, "enabled", True)
    monkeypatch.setattr(checks, "usable", usable)
    monkeypatch.setattr(checks, "compiling_ahead", contextlib.nullcontext)


def check(factor: float) -> None:
    torch.manual_seed(0)
    use_kernels_if_right(Network(factor), torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8).round())


@pytest.mark.parametrize("factor", [1.0, 1.001])
def test_right_kernels_stay(factor: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(factor)
    assert device.enabled


@pytest.mark.parametrize("factor", [1.1, 0.0, math.nan])
def test_wrong_kernels_are_switched_off(factor: float) -> None:
    with pytest.warns(UserWarning, match="plain torch is used"):
        check(factor)
    assert not device.enabled


def test_kernels_that_the_chip_refuses_are_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OutOfResources(300_000, 100_000, "shared memory")

    monkeypatch.setattr(checks, "compiling_ahead", refuse)
    with pytest.warns(UserWarning, match=r"do not run .*shared memory.*plain torch is used"):
        check(1.0)
    assert not device.enabled


def test_right_kernels_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    check(1.0)
    monkeypatch.setattr("ulvm.nn.kernels.check._gradients", None)  # would fail if it were called
    check(1.0)


def test_others_wait_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    comparisons = []

    def compare(*_: object) -> bool:
        comparisons.append(threading.get_ident())
        time.sleep(0.2)  # long enough for the other to come in, if it could
        return True

    monkeypatch.setattr("ulvm.nn.kernels.check._are_right", compare)
    both = [threading.Thread(target=check, args=(1.0,)) for _ in range(2)]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert len(comparisons) == 1


def test_wrong_kernels_are_asked_each_time() -> None:
    for _ in range(2):
        device.enabled = True
        with pytest.warns(UserWarning, match="plain torch is used"):
            check(1.1)


def test_right_kernels_stay_where_nothing_can_be_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ULVM_CACHE", str(tmp_path / "file"))
    check(1.0)
    assert device.enabled
