"""``ulvm serve``."""

from __future__ import annotations

import click


@click.command()
@click.option("--port", default=8765, show_default=True, help="Of this machine; 0 takes any.")
@click.option("--open/--no-open", "open_browser", default=True, help="Show it in the browser.")
def serve(port: int, open_browser: bool) -> None:
    """Open the page that outlines pictures and the camera's video in the browser.

    It is served to this machine only, and pictures do not leave the browser.
    """
    from ulvm.serve import serve as run_server

    run_server(port, open_browser=open_browser)
