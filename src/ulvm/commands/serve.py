"""``ulvm serve``."""

from __future__ import annotations

import click


@click.command()
@click.option("--port", default=8765, show_default=True, help="Of this machine; 0 takes any.")
@click.option("--open/--no-open", "open_browser", default=True, help="Show it in the browser.")
@click.option("--api", "is_api", is_flag=True, help="Answer programs, over HTTP, not people.")
@click.option("--host", help="With --api: 0.0.0.0 opens it to the network; else this machine.")
@click.option("--model", help="With --api: as for ulvm predict.")
@click.option("--workers", type=click.IntRange(1), help="With --api: pictures at the same time.")
@click.option("--queue", type=click.IntRange(0), help="With --api: how many may wait; else 32.")
@click.option("--megabytes", type=click.IntRange(1), help="With --api: of a request; else 32.")
@click.option("--megapixels", type=click.IntRange(1), help="With --api: of a picture; else 64.")
@click.option("--seconds", type=click.FloatRange(0.1), help="With --api: of a request; else 30.")
def serve(
    port: int,
    open_browser: bool,
    is_api: bool,
    host: str | None,
    model: str | None,
    **limits: float | None,
) -> None:
    """Open the page that outlines pictures and the camera's video in the browser.

    It is served to this machine only, and pictures do not leave the browser. With --api, programs
    send pictures to /segment and get figures or masks back; /docs says how.
    """
    given = {name: value for name, value in limits.items() if value is not None}
    if is_api:
        _serve_api(host or "127.0.0.1", port, model, given)
        return
    if host or model or given:
        raise click.UsageError("--host, --model and the limits need --api.")
    from ulvm.serve import serve as run_server

    run_server(port, open_browser=open_browser)


def _serve_api(host: str, port: int, model: str | None, given: dict[str, float]) -> None:
    from ulvm.errors import InputError, install_extra
    from ulvm.segmenter import load

    try:
        from ulvm.use.api import LOCAL, Limits, serve_api
    except ModuleNotFoundError as error:
        raise InputError(
            f"--api needs the package {error.name}, which is not installed",
            "",
            install_extra("api"),
        ) from error
    if host not in LOCAL:
        click.echo("Note: whoever reaches this machine can send pictures.", err=True)
    address = f"[{host}]" if ":" in host.strip("[]") and host[0] != "[" else host
    scales = {"megabytes": ("bytes", 1_000_000), "megapixels": ("pixels", 1_000_000)}
    named = {}
    for name, value in given.items():
        field, scale = scales.get(name, (name, 1))
        named[field] = value * scale
    serve_api(
        load(model),
        host,
        port,
        Limits(**named),  # type: ignore[arg-type]  # click has made them whole numbers
        started=lambda port: click.echo(f"http://{address}:{port}/docs (stop with Ctrl+C)"),
    )
