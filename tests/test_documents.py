"""What the documents show runs, and their tables are those of the result files."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import click
import pytest

from ulvm.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("src/ulvm/weights/*.md"), *ROOT.glob("docs/**/*.md")]
)
WORDS = 900  # of README.md, tables, figures and code included


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.S | re.M)


def console_lines(text: str) -> list[str]:
    """Commands after a prompt, without their comments."""
    lines = "".join(blocks("console", text)).splitlines()
    return [line[2:].split("  #")[0].strip() for line in lines if line.startswith("$ ")]


COMMANDS = [
    (page, command)
    for page in PAGES
    for line in console_lines(page.read_text())
    for command in line.split(" && ")
]
FOREIGN = ("curl", "cvat-cli", "napari", "nvidia-cuda-mps-control")  # programs of others


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """A folder with a photo and some photos, as the README supposes."""
    examples = resources.files("ulvm") / "examples"
    with resources.as_file(examples) as folder:
        shutil.copy(folder / "light-skin.jpg", tmp_path / "photo.jpg")
        (tmp_path / "photos").mkdir()
        shutil.copy(folder / "grey.png", tmp_path / "photos")
    return tmp_path


def run(command: list[str], folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "ULVM_CACHE": str(folder / "cache")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", range(len(blocks("bash"))))
def test_commands_of_the_readme_run(number: int, desk: Path) -> None:
    pytest.importorskip("torch")
    run(["bash", "-euo", "pipefail", "-c", blocks("bash")[number]], desk)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_of_the_readme_runs(number: int, desk: Path) -> None:
    pytest.importorskip("torch")
    run([sys.executable, "-W", "error", "-c", blocks("python")[number]], desk)


def test_the_readme_has_commands_to_run() -> None:
    assert len(blocks("bash")) >= 2
    assert len(blocks("python")) >= 2


def check_command(line: str) -> None:
    """That a command which needs data, a network or an hour exists as it is written."""
    name, *words = shlex.split(re.sub(r"^([A-Z_]+=\S+ )+", "", line.replace("SEED", "42")))
    if name == "ulvm":
        command: click.Command = main
        context = click.Context(main, info_name="ulvm")
        while isinstance(command, click.Group):
            word, *words = words
            found = command.get_command(context, word)
            assert found, f"no command {word}"
            command = found
        command.make_context(command.name, words, parent=context).close()
    elif name == "make":
        assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.M)
    elif name.startswith("python") and words[0] == "-m":
        assert importlib.util.find_spec(words[1])
    elif name.startswith("python"):
        script, *options = words
        assert all(option in (ROOT / script).read_text() for option in options)
    elif name == "pip":
        for extra in re.findall(r"(?:\.|ultralight-vm-unet)\[([\w-]+)\]", line):
            assert f"\n{extra} = " in (ROOT / "pyproject.toml").read_text(), extra
    else:
        assert name in FOREIGN, f"nothing checks {name}"


@pytest.mark.parametrize(
    ("page", "line"), COMMANDS, ids=[f"{page.stem}: {line}" for page, line in COMMANDS]
)
def test_commands_of_the_documents_exist(
    page: Path, line: str, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("DIR", "runs/paper", "again"):
        (desk / folder).mkdir(parents=True)
    monkeypatch.chdir(desk)
    check_command(line)


@pytest.mark.parametrize(
    "line",
    [
        *("ulvm predikt photo.jpg", "ulvm train paper --datum DIR", "make nothing", "python -m no"),
        *("python bench/cpu.py --nothing", "pip install '.[nothing]'", "rm photo"),
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        check_command(line)


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= WORDS


def test_tables_are_those_of_the_result_files() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make" / "tables.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def anchors(text: str) -> set[str]:
    """What a browser finds after ``#`` in a document: its headings, as repositories show them."""
    heads = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_local_links_of_the_documents_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, place = target.partition("#")
        found = page.parent / path if path else page
        assert found.exists(), target
        if place:
            assert place in anchors(found.read_text()), target
