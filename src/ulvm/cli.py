"""The command ``ulvm``: its list of commands, and mistakes in sentences."""

from __future__ import annotations

import contextlib
import errno
import io
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import click

from ulvm.commands import data, evaluate, export, inspect, predict, reproduce, serve, train
from ulvm.errors import InputError, PictureWarning, RunWarning, install_extra
from ulvm.files import unwritable
from ulvm.version import __version__


class _Group(click.Group):
    """Shows the caller's mistakes in sentences instead of a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """A character that the terminal or the log file can't hold becomes a question mark."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="replace")
        return super().main(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        interrupts: list[int] = []
        try:
            with _noted(interrupts), warnings.catch_warnings():
                warnings.showwarning = _show_warning
                warnings.filterwarnings("ignore", module=r"PIL\.")  # on metadata that nobody needs
                # Pillow opens DICOM files, so ours of these would be taken for its own.
                warnings.filterwarnings("default", category=PictureWarning)
                return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(130)
        except InputError as problem:
            raise click.ClickException(str(problem)) from None
        except OSError as problem:
            if problem.errno == errno.EPIPE:  # the reader has left: click ends quietly
                raise
            place = problem.filename or "what the command prints"
            raise click.ClickException(str(unwritable(place, problem))) from None
        except ModuleNotFoundError as problem:
            raise click.ClickException(
                f"This command needs the package {problem.name}, which is not installed. "
                f"{install_extra('train').capitalize()}."
            ) from None
        except Exception as problem:
            said = isinstance(problem, click.ClickException | click.exceptions.Exit | click.Abort)
            if said or not interrupts:
                raise
            click.echo("Stopped.", err=True)
            ctx.exit(130)


@contextlib.contextmanager
def _noted(interrupts: list[int]) -> Iterator[None]:
    """Note each Ctrl-C: in the middle of torch's import it becomes an error of another kind."""

    def note(number: int, frame: Any) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """What the caller should know, as a sentence; what is for programmers, as ever."""
    if issubclass(category, PictureWarning | RunWarning):
        click.echo(f"Note: {message}.", err=True)
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ulvm")
def main() -> None:
    """Outline skin lesions with UltraLight VM-UNet.

    Not a medical device: for research and education, not for diagnosis.
    """


for _command in (
    predict.predict,
    predict.demo,
    serve.serve,
    data.data,
    train.train,
    evaluate.evaluate,
    reproduce.reproduce,
    export.export,
    inspect.inspect,
    inspect.presets,
):
    main.add_command(_command)
