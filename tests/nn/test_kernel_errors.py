"""Meta-tests: the comparison sees an error of a value alone and of a gradient alone, and NaN."""

import math

import pytest
import torch
from torch import Tensor

from kernel_errors import assert_sees_each_error, errors, planted


def pair(x: Tensor, weight: Tensor) -> list[Tensor]:
    """Two values; each input has a gradient of both."""
    return [(x * weight).sin(), x.exp() + weight.sum()]


@pytest.fixture
def inputs() -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, 4), torch.randn(4)]


def test_the_same_function_has_no_error(inputs: list[Tensor]) -> None:
    assert max(errors(pair, pair, inputs)) < 1e-6


@pytest.mark.parametrize("share", [1e-2, -1e-4, math.nan, math.inf])
@pytest.mark.parametrize("place", range(4))
def test_one_wrong_result_shows_there_alone(place: int, share: float, inputs: list[Tensor]) -> None:
    found = errors(planted(pair, place, values=2, share=share), pair, inputs)
    expected = abs(share) if math.isfinite(share) else math.inf
    assert found.pop(place) == pytest.approx(expected, rel=0.02)
    assert max(found) < 1e-6


def test_the_meta_test_of_others_can_fail(inputs: list[Tensor]) -> None:
    assert_sees_each_error(pair, pair, inputs, 1e-5, values=2)
    with pytest.raises(AssertionError):  # an error of 1 % would pass
        assert_sees_each_error(pair, pair, inputs, 0.1, values=2)
    with pytest.raises(AssertionError):  # another place is wrong too
        assert_sees_each_error(planted(pair, 3, values=2), pair, inputs, 1e-5, values=2)


def test_other_types_than_asked_are_refused(inputs: list[Tensor]) -> None:
    with pytest.raises(AssertionError):
        errors(lambda *each: pair(*each)[0].half(), lambda *each: pair(*each)[0], inputs)
