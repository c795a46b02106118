"""Compiles the engine for any of its platforms, from any of them: Python and ziglang are enough.

    python src/ulvm/engine/build.py            # this machine's library, beside this file
    python src/ulvm/engine/build.py --wasm     # the page's, in src/ulvm/web/
    python src/ulvm/engine/build.py --platform aarch64-linux-gnu --out DIR

Imports nothing of ulvm, for hatch_build.py runs it before there is a package. The same sources and
the same ziglang give the same bytes, on any machine.
"""

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from platform import machine as machine_name
from typing import NamedTuple

ENGINE = Path(__file__).resolve().parent
WEB = ENGINE.parent / "web"
ROOT = ENGINE.parents[2]  # of a clone
NETWORK = "network.c"  # compiled once a level; the other sources once
HEADER = "ulvm.h"  # what the library exports

# -fno-sanitize: zig would put in traps for what C leaves undefined.
FLAGS = (
    *("-std=gnu11", "-O3", "-fno-math-errno", "-ffp-contract=fast"),
    *("-fvisibility=hidden", "-ffunction-sections", "-fno-stack-protector", "-fno-sanitize=all"),
    *("-g0", "-fno-ident", "-Wall", "-Wextra", "-Werror"),
)

# Instruction sets that network.c is compiled for, and how; engine.c chooses one at run time.
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "sse2": ("-mcpu=x86_64",),
        "avx2": ("-mcpu=x86_64_v3",),
        "avx512": ("-mcpu=x86_64_v4",),
    },
    "aarch64": {"neon": ()},
    "wasm32": {"wasm": ()},
}


class Platform(NamedTuple):
    """One platform.

    Args:
        triple: As zig names it.
        library: Name of the file.
        tag: Of the wheel.
        flags: Of the compiler.
        link: Of the linker.
    """

    triple: str
    library: str
    tag: str
    flags: tuple[str, ...] = ("-fPIC",)
    link: tuple[str, ...] = ("-shared", "-s", "-lm")

    @property
    def levels(self) -> dict[str, tuple[str, ...]]:
        """Flags by the name of the level."""
        return LEVELS[self.triple.partition("-")[0]]


_LINUX = ("-shared", "-s", "-lm", "-lpthread", "-Wl,--gc-sections", "-Wl,-z,defs")
_MACOS = ("-shared", "-s", "-Wl,-dead_strip", "-Wl,-install_name,@rpath/libulvm.dylib")
_WINDOWS = ("-shared", "-s", "-Wl,--gc-sections")
_WASM_FLAGS = ("-msimd128", "-mexec-model=reactor")
_WASM_LINK = ("-mexec-model=reactor", "-s", "-lm", "-Wl,--gc-sections")

PLATFORMS = {
    "x86_64-linux-gnu": Platform(
        "x86_64-linux-gnu.2.17", "libulvm.so", "manylinux_2_17_x86_64", link=_LINUX
    ),
    "aarch64-linux-gnu": Platform(
        "aarch64-linux-gnu.2.17", "libulvm.so", "manylinux_2_17_aarch64", link=_LINUX
    ),
    "x86_64-linux-musl": Platform(
        "x86_64-linux-musl", "libulvm.so", "musllinux_1_2_x86_64", link=_LINUX
    ),
    "aarch64-linux-musl": Platform(
        "aarch64-linux-musl", "libulvm.so", "musllinux_1_2_aarch64", link=_LINUX
    ),
    "x86_64-macos": Platform(
        "x86_64-macos.11.0", "libulvm.dylib", "macosx_11_0_x86_64", link=_MACOS
    ),
    "aarch64-macos": Platform(
        "aarch64-macos.11.0", "libulvm.dylib", "macosx_11_0_arm64", link=_MACOS
    ),
    "x86_64-windows": Platform("x86_64-windows-gnu", "libulvm.dll", "win_amd64", (), _WINDOWS),
    "aarch64-windows": Platform("aarch64-windows-gnu", "libulvm.dll", "win_arm64", (), _WINDOWS),
}
# Relaxed SIMD has a fused multiply-add; the page takes it where the browser knows it.
WASM_PLATFORMS = {
    "wasm": Platform("wasm32-wasi", "engine.wasm", "", _WASM_FLAGS, _WASM_LINK),
    "wasm-relaxed": Platform(
        "wasm32-wasi", "engine-relaxed.wasm", "", (*_WASM_FLAGS, "-mrelaxed-simd"), _WASM_LINK
    ),
}


class BuildError(RuntimeError):
    """The engine could not be compiled; the message says why and what to do."""


def this_platform() -> str:
    """The key in ``PLATFORMS`` of the machine and the C library that this Python runs on.

    Raises:
        BuildError: There is none.
    """
    system = sysconfig.get_platform()  # such as linux-x86_64, macosx-11.0-universal2, win-amd64
    machine = system.partition("-")[2] if system.startswith("win") else machine_name()
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine.lower(), machine)
    if system.startswith("win"):
        name = f"{machine}-windows"
    elif system.startswith("macosx"):
        name = f"{machine}-macos"
    else:
        libc = "musl" if "musl" in (sysconfig.get_config_var("HOST_GNU_TYPE") or "") else "gnu"
        name = f"{machine}-{sys.platform}-{libc}"
    if name not in PLATFORMS:
        raise BuildError(
            f"The engine has no build for {system}. Accepted are {', '.join(PLATFORMS)}."
        )
    return name


def exported_functions() -> list[str]:
    """The functions of the public header."""
    text = (ENGINE / HEADER).read_text("utf-8")
    return re.findall(r"^ULVM_API [^;(]*?(\w+)\(", text, re.MULTILINE)


def is_fresh(output: Path) -> bool:
    """Whether it is newer than every source, header and this file."""
    sources = [Path(__file__), *ENGINE.glob("*.[ch]")]
    return output.is_file() and all(
        source.stat().st_mtime_ns < output.stat().st_mtime_ns for source in sources
    )


def build(platform: Platform, out: Path) -> Path:
    """Compile and link one platform, unless the library there is newer than the sources.

    Args:
        platform: One of ``PLATFORMS`` or ``WASM_PLATFORMS``.
        out: Folder for the library; it is made.

    Returns:
        The library.

    Raises:
        BuildError: ziglang is missing, or the compiler reported an error.
    """
    library = out / platform.library
    if is_fresh(library):
        return library
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".build-") as folder:
        made = Path(folder) / platform.library
        exports: list[str] = []
        if platform.triple.startswith("wasm"):
            names = [*exported_functions(), "malloc", "free"]
            exports = [f"-Wl,--export={name}" for name in names]
        zig(
            *("-target", platform.triple, *platform.link, *exports),
            *map(str, compile_objects(platform, Path(folder))),
            *("-o", str(made)),
        )
        if platform.triple.startswith("wasm"):
            _require_no_imports(made.read_bytes())
        made.replace(library)
    return library


def compile_objects(platform: Platform, folder: Path, extra: Sequence[str] = ()) -> list[Path]:
    """The engine's object files, and those of the sources in ``extra``, in ``folder``."""
    jobs = [
        (NETWORK, folder / f"network-{level}.o", (*flags, f"-DLEVEL={level}"))
        for level, flags in platform.levels.items()
    ]
    jobs += [
        (source, folder / Path(source).with_suffix(".o").name, ())
        for source in (*(path.name for path in sorted(ENGINE.glob("*.c"))), *extra)
        if Path(source).name != NETWORK
    ]

    def compile_one(job: tuple[str, Path, Iterable[str]]) -> Path:
        source, made, flags = job
        common = ("-target", platform.triple, *FLAGS, *platform.flags)
        zig(*common, *flags, "-c", source, "-o", str(made))
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, jobs))


def zig(*arguments: str) -> None:
    """Run the pinned C compiler in the engine's folder, so that no path of this machine gets in.

    Raises:
        BuildError: It is not installed, or failed.
    """
    if importlib.util.find_spec("ziglang") is None:
        raise BuildError(
            "The compiler is missing, for ziglang is not installed. Run pip install ziglang."
        )
    environment = dict(os.environ)
    if (ROOT / "pyproject.toml").is_file():  # the home folder may be missing or read-only
        for name in ("ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR"):
            environment.setdefault(name, str(ROOT / "build" / "zig"))
    done = subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", *arguments],
        cwd=ENGINE,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise BuildError(f"The C compiler failed.\n{done.stderr.strip()}")


def _require_no_imports(module: bytes) -> None:
    """The page gives the module nothing, so it must ask for nothing."""
    place = 8  # after the magic number and the version
    while place < len(module):
        kind, (size, place) = module[place], _leb128(module, place + 1)
        if kind == 2 and module[place]:  # the section of imports, and their number
            names = re.findall(rb"[ -~]{3,}", module[place : place + size])
            raise BuildError(
                f"The WebAssembly module imports {b' '.join(names).decode()}. Remove what needs it."
            )
        place += size


def _leb128(content: bytes, place: int) -> tuple[int, int]:
    """A number of WebAssembly's, and the place after it."""
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def main() -> None:
    """Build what the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--platform", choices=PLATFORMS, help="else this machine's")
    parser.add_argument("--out", type=Path, help="folder; else where ulvm looks for it")
    parser.add_argument("--wasm", action="store_true", help="the page's modules instead")
    options = parser.parse_args()
    try:
        if options.wasm:
            made = [build(platform, options.out or WEB) for platform in WASM_PLATFORMS.values()]
        elif options.platform and not options.out and options.platform != this_platform():
            parser.error(f"{options.platform} is not this machine: name a folder with --out")
        else:
            made = [build(PLATFORMS[options.platform or this_platform()], options.out or ENGINE)]
    except BuildError as error:
        sys.exit(f"Error: {error}")
    for library in made:
        print(f"{library}: {library.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
