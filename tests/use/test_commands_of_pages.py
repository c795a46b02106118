"""The extras and the options that the pages of docs/use name exist."""

import re
import tomllib
from pathlib import Path

from click.testing import CliRunner

from ulvm.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "use").glob("*.md"))


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        extra
        for path in PAGES
        for extras in re.findall(r"'\.\[([\w,-]+)\]'", path.read_text())
        for extra in extras.split(",")
    }
    assert named <= set(project["optional-dependencies"])
    assert "api" in named


def test_options_exist() -> None:
    for path in PAGES:
        for command, rest in re.findall(r"\bulvm (serve|predict)\b([^`\n#|]*)", path.read_text()):
            shown = CliRunner().invoke(main, [command, "--help"]).output
            for option in re.findall(r"--[\w-]+", rest):
                assert option in shown, f"{path.name}: {command} {option}"
