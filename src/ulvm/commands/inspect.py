"""``ulvm inspect`` and ``presets``."""

from __future__ import annotations

import json

import click

from ulvm.commands.shared import set_option


@click.command()
@click.argument("preset", default="paper")
@set_option
@click.option("--size", type=int, help="Height and width in pixels; else data.image_size.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def inspect(preset: str, assignments: tuple[str, ...], size: int | None, as_json: bool) -> None:
    """Show shapes, parameters, multiply-accumulates and memory of each stage."""
    from ulvm.nn.complexity import inspect_model
    from ulvm.presets import find_preset

    run = find_preset(preset).run.override(assignments)
    side = run.data.image_size if size is None else size
    complexity = inspect_model(run.model, (side, side))
    click.echo(json.dumps(complexity.to_dict(), indent=2) if as_json else complexity.table())


@click.command()
def presets() -> None:
    """List the runs that train and inspect know."""
    from ulvm.presets import PRESETS
    from ulvm.reproduce.experiments import published_scores

    click.echo(f"{'preset':21}{'parameters':>11}{'published DSC':>15}  what")
    for name, preset in PRESETS.items():
        scores = published_scores(name, "isic2017", "isic2017")
        published = f"{scores['dsc']:.4f}" if scores else ""
        click.echo(f"{name:21}{preset.parameters:>11,}{published:>15}  {preset.note}")
