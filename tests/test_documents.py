"""What the README shows runs, and the tables in the documents are those of the result files."""

import os
import re
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.S | re.M)


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


def test_tables_are_those_of_the_result_files() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make" / "tables.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_local_links_of_the_documents_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), ROOT / "src/ulvm/weights/MODEL_CARD.md"]:
        for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} → {target}"
