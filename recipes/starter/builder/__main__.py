"""Builds a dataset of real sounds: ``python -m recipes.starter.builder data/starter``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bsdkit.cli.app import WORK_FAILED, command, console
from bsdkit.cli.progress import ConsoleProgress
from recipes.starter.builder.build import build_starter

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command(app, "build")
def build(
    out: Annotated[Path, typer.Argument(help="Where to build the dataset.")] = Path("data/starter"),
    manifest: Annotated[Path, typer.Option(help="Which sounds.")] = Path(
        "recipes/starter/starter.csv"
    ),
    jobs: Annotated[int | None, typer.Option(help="Processes; default one a core.")] = None,
) -> None:
    """Build the starter dataset: real sounds that Debian packages ship, with BST labels."""
    progress = ConsoleProgress(console(stderr=True))
    with progress:
        report = build_starter(manifest, out, n_jobs=jobs, progress=progress.stage)
    typer.echo(
        f"{out}: {report.n_built} clips built, {report.n_kept} were there, "
        f"{len(report.failures)} failed, {report.seconds:.0f} s"
    )
    for clip, reason in list(report.failures.items())[:5]:
        typer.echo(f"  {clip}: {reason}", err=True)
    for program, install in report.missing_programs.items():
        typer.echo(f"  {program} is missing, so its clips were left out: {install}", err=True)
    if report.failures:
        raise typer.Exit(WORK_FAILED)


if __name__ == "__main__":
    sys.exit(app())
