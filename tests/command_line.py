"""A command of ulvm, run in this process."""

from typing import Any

from click.testing import CliRunner, Result

from ulvm.cli import main


def run(*words: object, **options: Any) -> Result:
    """What it said and how it ended; the options are ``CliRunner.invoke``'s."""
    return CliRunner().invoke(main, [str(word) for word in words], **options)
