"""What newcomers try ends in a result or in a sentence that leads on: words, paths, terminals."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import ulvm
from command_line import run
from ulvm import synthetic
from ulvm.errors import InputError, install_extra
from ulvm.models import RUN_WEIGHTS

PACKAGE = Path(ulvm.__file__).parent


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(synthetic.draw_lesion(2, (90, 140)).image_rgb).save(path)
    return path


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    synthetic.write_dataset(tmp_path / "drawn", 6, seed=5, size_hw=(96, 96))
    return tmp_path / "drawn"


# Commands one after the other; form feeds between what they say.
IN_A_ROW = """
import json, sys
from ulvm.cli import main
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as end:
        print(end.code, "\\f", file=sys.stderr)
        print("\\f")
"""


def run_with_encoding(encoding: str, folder: Path, *commands: tuple[object, ...]) -> list[bytes]:
    """What each command says on stdout; the last one alone fails."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_ROW, json.dumps(commands, default=str)],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": encoding, "ULVM_CACHE": str(folder / "cache")},
        capture_output=True,
        check=False,
    )
    problems = done.stderr.decode("ascii", "replace")
    assert "Traceback" not in problems
    ends = [said.splitlines()[-1].strip() for said in problems.split("\f")[:-1]]
    assert ends == ["0"] * (len(commands) - 1) + ["1"], problems
    return done.stdout.split(b"\f")[: len(commands)]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp932", "utf-8"])
def test_characters_that_a_terminal_lacks_end_no_command(
    encoding: str, photo: Path, drawn: Path
) -> None:
    """As on Windows with a log file: → is in none of these but the last, × and – not in all."""
    where = ("--dataset", "folder", "--data", drawn)
    said = run_with_encoding(
        encoding,
        photo.parent,
        ("predict", photo, "--out", "masks"),
        ("demo", "--out", "demo"),
        ("data", "check", *where),
        ("eval", "bundled", *where, "--out", "scores"),
        ("presets",),
        ("predict", "→.jpg"),
    )
    assert all(each.strip() for each in said[:-1])
    if encoding == "cp1252":
        assert b" ms ? masks" in said[0]
        assert b"\x96" in said[0]
    elif encoding == "utf-8":
        assert " ms → masks" in said[0].decode()


@pytest.mark.parametrize("address", ["https://example.org/a.jpg", "s3://bucket/a.png"])
def test_addresses_are_told_from_paths(
    address: str, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = f"{address} is an address. Only files are read. Download it first."
    assert said in run("predict", address).output
    assert said.lower() in run("predict", photo, "--model", address).output.lower()
    with pytest.raises(InputError, match="Download it first"):
        ulvm.read_image(address)


def test_a_picture_name_for_the_output_folder_is_refused(photo: Path) -> None:
    out = photo.with_name("result.png")
    result = run("predict", photo, "--out", out)
    assert result.exit_code == 1
    assert f"--out {out} is the name of a picture. It must be a folder." in result.output
    assert not out.exists()
    out.mkdir()  # whoever has such a folder may use it
    assert run("predict", photo, "--out", out).exit_code == 0


def test_a_missing_run_names_the_files_that_were_looked_for(photo: Path) -> None:
    result = run("predict", photo, "--model", "runs/x")
    assert f"Model not found: runs/x, nor {Path('runs/x', RUN_WEIGHTS)}." in result.output


def test_the_bundled_model_is_a_word_wherever_a_model_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from ulvm.nn.checkpoint import load_weights

    network, spec, _ = load_weights("bundled")
    assert sum(each.numel() for each in network.parameters()) == 46_644
    assert spec == ulvm.load().spec
    # Compiling takes seconds, and tests/engine/test_export.py does it.
    monkeypatch.setattr(
        "ulvm.engine.export._compile_and_run",
        lambda name, contents, images, folder: (ulvm.load().probability(images), ""),
    )
    result = run("export", "bundled", "--target", "c", "--out", tmp_path / "lesion.c")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "lesion.c").exists()


def test_demo_ends_with_a_next_step_that_can_be_typed(photo: Path) -> None:
    """`make demo` runs a ulvm that is not on the path."""
    environment = {**os.environ, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(PACKAGE.parent)}
    if shutil.which("ulvm", path=environment["PATH"]):
        pytest.skip("ulvm is on the path")
    program = photo.with_name("a program") / "ulvm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom ulvm.cli import main\nmain()\n")
    program.chmod(0o755)
    for words in ([program], [sys.executable, "-m", "ulvm"]):
        done = subprocess.run(
            [*words, "demo"],
            cwd=photo.parent,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        last = done.stdout.splitlines()[-1]
        (command,) = re.findall(r"Next, with a picture of yours: (.*)", last)
        command = command.replace("photo.jpg", "photo.png").replace("python ", f"{sys.executable} ")
        subprocess.run(shlex.split(command), cwd=photo.parent, env=environment, check=True)
        shutil.rmtree(photo.parent / "ulvm-output")


def on_a_terminal(*words: object) -> str:
    """What the command writes to a terminal."""
    pty = pytest.importorskip("pty", reason="terminals of this kind are Unix's")
    reading, writing = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "ulvm", *map(str, words)], stdout=writing, stderr=writing
    ) as process:
        os.close(writing)
        written = b""
        while True:
            try:
                piece = os.read(reading, 65536)
            except OSError:  # Linux's word for the end
                break
            if not piece:
                break
            written += piece
    os.close(reading)
    assert process.returncode in (0, 1)
    return written.decode().replace("\r\n", "\n")


def screen(written: str) -> list[str]:
    """What is seen in the end: after a return, letters replace those of the same line."""
    lines = []
    for line in written.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown.rstrip())
    return lines


def test_bar_and_lines_do_not_collide(drawn: Path, tmp_path: Path) -> None:
    (drawn / "images" / "drawn_0003.png").write_bytes(b"no picture")
    written = on_a_terminal("predict", drawn / "images", "--out", tmp_path / "out")
    assert "1/6" in written
    lines = screen(written)
    told = [line for line in lines if "drawn_000" in line]
    assert len(told) == 6
    for line in told:
        assert re.fullmatch(r"(Error: )?/\S*drawn_000\d\.png(:| is) .*", line), line
    bars = [line for line in lines if "[#" in line]
    assert bars == [f"pictures [{'#' * 30}] 6/6"]


def test_a_single_picture_gets_no_bar(photo: Path) -> None:
    assert "[" not in on_a_terminal("predict", photo, "--out", photo.with_name("out"))


def test_texts_recommend_only_what_the_readme_says_can_be_installed() -> None:
    """The package is not on the index yet; all texts take the words from one place."""
    assert install_extra("onnx") == "run pip install '.[onnx]' in the clone of ulvm"
    for path in PACKAGE.rglob("*.py"):
        assert not re.search(r"pip install '?ultralight", path.read_text()), path


def test_a_full_disk_under_the_output_is_a_sentence(photo: Path) -> None:
    """As of `ulvm predict … > log.txt` where there is no room; one that stops reading is quiet."""
    if not Path("/dev/full").exists():
        pytest.skip("no such device here")
    for words in (("predict", photo, "--out", "masks"), ("predict", photo, "--json"), ("presets",)):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [sys.executable, "-m", "ulvm", *map(str, words)],
                cwd=photo.parent,
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
            )
        said = done.stderr.decode().splitlines()
        assert said[0] == (
            "Error: What the command prints cannot be written (No space left on device). "
            "Make room there and try again."
        )
        assert "Traceback" not in done.stderr.decode()


def test_a_model_is_not_written_over(tmp_path: Path) -> None:
    weights = tmp_path / "run" / RUN_WEIGHTS
    weights.parent.mkdir()
    shutil.copy(PACKAGE / "weights" / "skin.safetensors", weights)
    content = weights.read_bytes()
    for target in ([], ["--target", "c"], ["--target", "monai"]):
        done = run("export", weights.parent, "--out", weights, *target)
        assert done.exit_code == 1
        assert "is the model itself. Name another file." in done.output
    assert weights.read_bytes() == content
