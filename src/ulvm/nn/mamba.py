"""Mamba on tokens: one direction, two directions, and the four of a plane.

Source: Gu & Dao 2023, "Mamba", arXiv 2312.00752; each class names what it adds.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ulvm.errors import InputError
from ulvm.nn.scan import selective_scan


class SelectiveScan(nn.Module):
    """The state space part of Mamba: input-dependent B, C and step size, then the scan.

    Args:
        inner: Width of the sequence.
        d_state: Size of the state per channel.
        dt_rank: Rank of the step size's projection.

    Source: Gu & Dao 2023, arXiv 2312.00752, algorithm 2.
    """

    def __init__(self, inner: int, d_state: int, dt_rank: int) -> None:
        super().__init__()
        self.d_state = d_state
        self.dt_rank = dt_rank
        self.x_proj = nn.Linear(inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner)
        self.A_log = nn.Parameter(torch.empty(inner, d_state))
        self.D = nn.Parameter(torch.empty(inner))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set A and D, which both projections don't have."""
        self.A_log.copy_(torch.arange(1.0, self.d_state + 1).log().expand_as(self.A_log))
        nn.init.ones_(self.D)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, inner) → (batch, length, inner)."""
        x = x.contiguous()  # once, not in each operation that reads it
        rank, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.softplus(self.dt_proj(rank))  # (batch, length, inner)
        return self.recur(x, delta, -torch.exp(self.A_log), B, C, self.D)

    def recur(self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        """``selective_scan`` of these."""
        return selective_scan(x, delta, A, B, C, D)


class CausalConv(nn.Conv1d):
    """Depthwise convolution over the length that never looks ahead.

    Source: Mamba's ``conv1d``, followed there and here by SiLU.
    """

    def __init__(self, inner: int, width: int) -> None:
        super().__init__(inner, inner, width, groups=inner, padding=width - 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, inner) → (batch, length, inner)."""
        y = super().forward(x.transpose(1, 2))[..., : x.shape[1]]  # (batch, inner, length)
        return F.silu(y.transpose(1, 2))


class Mamba(nn.Module):
    """One Mamba block on tokens, with the gate and both projections.

    Args:
        channels: Width of the tokens.
        d_state, d_conv, expand: As in the source; dt_rank is ceil(channels / 16).

    Source: Gu & Dao 2023, arXiv 2312.00752, figure 3.
    """

    def __init__(self, channels: int, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__()
        inner = expand * channels
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = CausalConv(inner, d_conv)
        self.scan = SelectiveScan(inner, d_state, math.ceil(channels / 16))
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor, size_hw: tuple[int, int] | None = None) -> Tensor:
        """(batch, length, channels) → the same; ``size_hw`` is not needed here."""
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)  # (batch, length, inner) each
        return self.out_proj(self.scan(self.conv(x)) * F.silu(gate))


class BidirectionalMamba(Mamba):
    """Mamba run forwards and backwards with weights of their own, one gate for both.

    Source: Zhu et al. 2024, "Vision Mamba" (Vim), arXiv 2401.09417, algorithm 1.
    """

    def __init__(self, channels: int, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__(channels, d_state, d_conv, expand)
        inner = expand * channels
        self.conv_backwards = CausalConv(inner, d_conv)
        self.scan_backwards = SelectiveScan(inner, d_state, math.ceil(channels / 16))

    def forward(self, tokens: Tensor, size_hw: tuple[int, int] | None = None) -> Tensor:
        """(batch, length, channels) → the same; ``size_hw`` is not needed here."""
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)
        y = self.scan(self.conv(x))
        y = y + self.scan_backwards(self.conv_backwards(x.flip(1))).flip(1)
        return self.out_proj(y * F.silu(gate))


class SS2DMamba(nn.Module):
    """Mamba with a 3×3 depthwise convolution and scans along rows and columns, both ways.

    Source: Liu et al. 2024, "VMamba", arXiv 2401.10166 (SS2D), as in VM-UNet's VSS block.
    """

    DIRECTIONS = 4

    def __init__(self, channels: int, d_state: int, d_conv: int, expand: int) -> None:
        super().__init__()
        inner = expand * channels
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        # d_conv is the width of a sequence's convolution; the source fixes 3×3 in the plane.
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.scans = nn.ModuleList(
            SelectiveScan(inner, d_state, math.ceil(channels / 16)) for _ in range(self.DIRECTIONS)
        )
        self.norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, tokens: Tensor, size_hw: tuple[int, int] | None = None) -> Tensor:
        """(batch, height · width, channels) in row order → the same."""
        if size_hw is None:
            raise InputError(
                "the ss2d mixer got tokens without their height and width",
                "it scans along rows and columns",
                "pass size_hw=(height, width) to forward_tokens",
            )
        x, gate = self.in_proj(tokens).chunk(2, dim=-1)
        plane = x.transpose(1, 2).unflatten(2, size_hw)  # (batch, inner, height, width)
        plane = F.silu(self.conv(plane))
        # By rows and by columns, (batch, height · width, inner); contiguous once for both ways.
        rows, columns = (
            plane.permute(axes).flatten(1, 2).contiguous() for axes in ((0, 2, 3, 1), (0, 3, 2, 1))
        )
        across, back, down, up = self.scans
        y_rows = across(rows) + back(rows.flip(1)).flip(1)
        y_columns = down(columns) + up(columns.flip(1)).flip(1)
        height, width = size_hw
        y_columns = y_columns.unflatten(1, (width, height)).transpose(1, 2).flatten(1, 2)
        return self.out_proj(self.norm(y_rows + y_columns) * F.silu(gate))


MIXERS = {"mamba": Mamba, "bidirectional": BidirectionalMamba, "ss2d": SS2DMamba}
