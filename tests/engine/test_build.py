"""The engine's build: the same bytes each time, nothing imported, only its functions exported."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ulvm
from ulvm.engine import LIBRARY, build

ENGINE = Path(ulvm.__file__).parent / "engine"
ROOT = Path(__file__).parents[2]
WHEEL_BYTES = 1_700_000

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed"
)


def run_build(path: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, path, *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the sources under another path."""
    shutil.copytree(
        ENGINE, tmp_path / "elsewhere" / "engine", ignore=shutil.ignore_patterns("libulvm.*", "__*")
    )
    return tmp_path / "elsewhere" / "engine"


def test_every_target_and_this_machine_have_a_name() -> None:
    assert build.this_platform() in build.PLATFORMS
    assert build.PLATFORMS[build.this_platform()].library == LIBRARY
    tags = [each.tag for each in build.PLATFORMS.values()]
    assert len(set(tags)) == len(tags) == 8


def test_exported_functions_are_the_headers() -> None:
    functions = build.exported_functions()
    assert {"ulvm_open", "ulvm_run", "ulvm_close", "ulvm_resize_rows"} <= set(functions)
    assert len(functions) == (ENGINE / "ulvm.h").read_text().count("\nULVM_API")


@needs_compiler
def test_the_same_sources_give_the_same_bytes_anywhere(copy: Path, tmp_path: Path) -> None:
    # An empty one, so that the compiler works again; the C library's own objects are elsewhere.
    own = {"ZIG_LOCAL_CACHE_DIR": str(tmp_path / "cache")}
    own["ZIG_GLOBAL_CACHE_DIR"] = os.environ.get("ZIG_GLOBAL_CACHE_DIR", str(ROOT / "build/zig"))
    words = ["--platform", "aarch64-linux-gnu", "--out"]  # of one instruction set, so soon done
    for out, script, variables in (
        ("one", ENGINE / "build.py", {}),
        ("two", copy / "build.py", own),
    ):
        done = run_build(script, *words, str(tmp_path / out), **variables)
        assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / out / "libulvm.so").read_bytes() for out in ("one", "two"))
    assert one == two
    for path in (str(ENGINE), str(tmp_path), str(Path.home())):
        assert path.encode() not in one
    # As fresh as the sources: nothing is compiled again until one of them changes.
    library = tmp_path / "two" / "libulvm.so"
    before = library.stat().st_mtime_ns
    assert build.is_fresh(library)
    assert run_build(copy / "build.py", *words, str(library.parent), **own).returncode == 0
    assert library.stat().st_mtime_ns == before
    later = before + 10**9
    os.utime(copy / "engine.c", ns=(later, later))
    (copy / "network.c").write_text("not C\n")
    done = run_build(copy / "build.py", *words, str(library.parent), **own)
    assert done.returncode == 1
    assert "network.c:1" in done.stderr
    assert "Traceback" not in done.stderr
    assert library.stat().st_mtime_ns == before  # what was there stays
    assert [path.name for path in library.parent.iterdir()] == [library.name]


@needs_compiler
@pytest.mark.parametrize("name", build.PLATFORMS)
def test_compiles_for_every_platform_without_a_warning(name: str, tmp_path: Path) -> None:
    # The wheels that are built below are optimised; clang warns before it optimises.
    platform = build.PLATFORMS[name]
    quick = platform._replace(flags=(*platform.flags, "-O0", "-Wno-unused-command-line-argument"))
    made = build.compile_objects(quick, tmp_path)
    assert len(made) == len(build.PLATFORMS[name].levels) + len(list(ENGINE.glob("*.c"))) - 1


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")
def test_the_library_exports_its_functions_only() -> None:
    listed = subprocess.run(
        ["nm", "--dynamic", "--defined-only", ENGINE / LIBRARY],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line.split()[-1] for line in listed.stdout.splitlines()}
    assert names - {"_init", "_fini"} == set(build.exported_functions())


@needs_compiler
def test_the_pages_modules_import_nothing_and_export_the_functions(tmp_path: Path) -> None:
    for page in build.WASM_PLATFORMS.values():
        content = build.build(page, tmp_path).read_bytes()
        assert content.startswith(b"\0asm")
        for name in [*build.exported_functions(), "malloc", "free", "_initialize", "memory"]:
            assert name.encode() in content
    with pytest.raises(build.BuildError, match=r"imports env .*hello"):
        # A module that imports the function env.hello.
        build._require_no_imports(
            b"\0asm\1\0\0\0" + b"\1\4\1\x60\0\0" + b"\2\x0d\1\3env\5hello\0\0"
        )


def test_a_missing_compiler_is_one_sentence(copy: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", copy / "build.py", "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines() == [
        "Error: The compiler is missing, for ziglang is not installed. Run pip install ziglang."
    ]


def test_another_machines_library_needs_a_folder() -> None:
    other = next(name for name in build.PLATFORMS if name != build.this_platform())
    done = run_build(ENGINE / "build.py", "--platform", other)
    assert done.returncode == 2
    assert "name a folder with --out" in done.stderr


def check_bill(archive: zipfile.ZipFile) -> None:
    """The bill of materials says what is compiled in and needed: true hashes, every package."""
    (place,) = (name for name in archive.namelist() if ".dist-info/sboms/" in name)
    assert place.endswith("/ultralight-vm-unet.cdx.json")
    bill = json.loads(archive.read(place))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    files = {each["name"]: each for each in bill["components"] if each["type"] == "file"}
    assert {"ulvm/engine/libulvm.so", "ulvm/web/engine.wasm"} < set(files)
    for name, file in files.items():
        assert file["hashes"][0]["content"] == hashlib.sha256(archive.read(name)).hexdigest()
    packages = {each["name"] for each in bill["components"] if each["type"] == "library"}
    assert packages == {"numpy", "pillow", "click"}
    assert len(bill["dependencies"][0]["dependsOn"]) == len(packages)


WHEEL = "import hatchling.build, sys; print(hatchling.build.build_wheel(sys.argv[1]))"
WHEELS = ["x86_64-linux-gnu", "aarch64-linux-musl"]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Each wheel, packed twice, from a copy of what is committed: no library of this machine gets
    in."""
    folder = tmp_path_factory.mktemp("wheels")
    tree = folder / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("this is no clone")
    needed = ("src/", "hatch_build.py", "pyproject", "README", "LICENSE", ".git")
    for word in filter(None, listed.stdout.decode().split("\0")):
        if word.startswith(needed) and (ROOT / word).is_file():
            (tree / word).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / word, tree / word)
    (tree / "src/ulvm/engine/libulvm.so").write_bytes(b"of another platform")
    made: dict[str, list[Path]] = {name: [] for name in WHEELS}
    for number in range(2):
        for name in WHEELS:
            variables = os.environ | {"ULVM_PLATFORM": name}
            variables.setdefault("ZIG_GLOBAL_CACHE_DIR", str(ROOT / "build" / "zig"))
            out = folder / f"{number}"
            done = subprocess.run(
                [sys.executable, "-c", WHEEL, out],
                cwd=tree,
                env=variables,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            made[name].append(out / done.stdout.split()[-1])
    return made


@needs_compiler
@pytest.mark.skipif(
    importlib.util.find_spec("hatchling") is None, reason="hatchling is not installed"
)
@pytest.mark.parametrize("name", WHEELS)
def test_wheel_holds_what_runs_and_is_the_same_twice(
    name: str, wheels: dict[str, list[Path]], tmp_path: Path
) -> None:
    wheel, again = wheels[name]
    assert wheel.read_bytes() == again.read_bytes()
    assert wheel.stat().st_size <= WHEEL_BYTES
    assert wheel.name.endswith(f"-py3-none-{build.PLATFORMS[name].tag}.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        library = archive.read("ulvm/engine/libulvm.so")
        check_bill(archive)
        # Compiled here, in another folder, they have the same bytes.
        assert build.build(build.PLATFORMS[name], tmp_path).read_bytes() == library
        assert str(Path.home()).encode() not in library
        assert str(wheel.parent.parent).encode() not in library
        for page in build.WASM_PLATFORMS.values():
            module = build.build(page, tmp_path).read_bytes()
            assert module == archive.read(f"ulvm/web/{page.library}")
    assert len(set(names)) == len(names)
    assert library.startswith(b"\x7fELF")
    assert library[18] == {"x86_64": 62, "aarch64": 183}[name.partition("-")[0]]  # e_machine
    assert {
        "ulvm/engine/ulvm.h",
        "ulvm/engine/network.c",
        "ulvm/weights/skin.safetensors",
        "ulvm/web/index.html",
        "ulvm/web/engine.wasm",
        "ulvm/web/engine-relaxed.wasm",
    } <= set(names)
    unwanted = (".onnx", ".pyc", ".o", ".a", ".dll", ".dylib")
    assert [each for each in names if each.endswith(unwanted) or "/test" in each] == []
