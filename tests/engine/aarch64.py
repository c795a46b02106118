"""Programs for aarch64, run here under qemu: with Debian's C library for it where that is installed
(libc6-arm64-cross), else with musl's, which zig compiles first, for a minute."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ulvm.engine import build

_ROOT = Path("/usr/aarch64-linux-gnu")
_HAS_LIBC = (_ROOT / "lib" / "ld-linux-aarch64.so.1").exists()
PLATFORM = build.PLATFORMS["aarch64-linux-gnu" if _HAS_LIBC else "aarch64-linux-musl"]
RUN = ["qemu-aarch64", "-L", str(_ROOT)]

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-aarch64") is None, reason="qemu-user is not installed"
)


def link(program: Path, *words: str | Path) -> None:
    """Make a program of these sources, objects and flags."""
    pytest.importorskip("ziglang", reason="ziglang is not installed")
    kind = ["-target", PLATFORM.triple, *([] if _HAS_LIBC else ["-static"])]
    build.zig(*kind, *map(str, words), "-O3", "-lm", "-o", str(program))
