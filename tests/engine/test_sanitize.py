"""The whole engine under clang's sanitizers: addresses, undefined behaviour, threads.

`make sanitize` also looks for memory that is read before it was written.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import sanitize
from ulvm.engine import build

LEVELS = [next(iter(build.LEVELS[build.this_platform().partition("-")[0]])), ""]  # "": the best


@pytest.fixture(scope="module", params=[sanitize.ADDRESS, sanitize.THREAD])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The sanitizers, and ``driver_run`` with them."""
    if sanitize.compiler(request.param) != "clang":
        pytest.skip(f"no clang with the {request.param} sanitizers is installed")
    return request.param, sanitize.compile_engine(tmp_path_factory.mktemp("engine"), request.param)


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_reported(level: str, engine: tuple[str, Path], tmp_path: Path) -> None:
    files = [sanitize.BUNDLED, *sanitize.save_networks(tmp_path)]
    code, printed = sanitize.run_engine(engine[1], files, level)
    assert code == 0, printed[:4000]
    assert [line.split()[1] for line in printed.splitlines()] == [str(file) for file in files]
    assert all(line.startswith(level) for line in printed.splitlines())


def test_misuse_is_reported(engine: tuple[str, Path]) -> None:
    """A result a byte short is seen by one of them, an engine used by two at once by the other."""
    sanitizers, program = engine
    code, printed = sanitize.run_engine(program, [sanitize.MISUSE[sanitizers], sanitize.BUNDLED])
    assert code != 0
    assert "heap-buffer-overflow" in printed or "data race" in printed
