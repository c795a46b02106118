"""What the autograd functions share: their arrays, and gradients in their parameters' shapes."""

from __future__ import annotations

from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

_Pointers = TypeVar("_Pointers", bound=tuple[Any, ...])


def scratch(like: Tensor, *shape: int) -> Tensor:
    """Unwritten float32 memory where another tensor is."""
    return like.new_empty(shape, dtype=torch.float32)


def keep(ctx: Any, p: tuple[Any, ...]) -> None:
    """Save some pointers for backward: tensors, tuples of tensors, or None."""
    ctx.counts = [len(each) if isinstance(each, tuple) else None for each in p]
    fields = [each if isinstance(each, tuple) else (each,) for each in p]
    ctx.save_for_backward(*(array for field in fields for array in field))


def kept(ctx: Any, kind: type[_Pointers]) -> _Pointers:
    """The pointers that ``keep`` saved."""
    arrays = iter(ctx.saved_tensors)
    fields = (next(arrays) if n is None else tuple(islice(arrays, n)) for n in ctx.counts)
    return kind(*fields)


def split_as(total: Tensor, *parameters: Tensor) -> list[Tensor]:
    """Gradients one after the other in one vector → each in its parameter's shape and type."""
    parts = total.split([each.numel() for each in parameters])
    return [part.view_as(each).to(each.dtype) for part, each in zip(parts, parameters, strict=True)]
