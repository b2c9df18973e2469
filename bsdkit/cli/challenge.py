"""Commands for a DCASE submission."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bsdkit.cli.app import USER_ERROR, WORK_FAILED, TaxonomyOption, app, command
from bsdkit.location import as_location

if TYPE_CHECKING:
    from bsdkit.challenge import Findings


@command(app, "submit")
def submit_command(
    runs: Annotated[list[Path], typer.Argument(help="One to four run folders, one a system.")],
    store: Annotated[
        Path,
        typer.Option(
            "--store", parser=as_location, metavar="PLACE", help="The evaluation clips' features."
        ),
    ],
    label: Annotated[str, typer.Option(help="LastName_Institute_task1, without the number.")],
    ids: Annotated[
        Path | None,
        typer.Option(help="The organisers' CSV of evaluation ids; default: the store's clips."),
    ] = None,
    about: Annotated[
        Path | None, typer.Option(help="YAML with authors: and source_code:, for the meta files.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write the folder task1/.")] = Path(
        "submission"
    ),
) -> None:
    """Write the official files of up to four systems, and check all that can be checked."""
    from bsdkit.challenge.submit import read_about, submit
    from bsdkit.runs.folder import load_run
    from bsdkit.store.store import Store

    result = submit(
        [load_run(run) for run in runs],
        Store(store),
        out,
        label,
        ids_file=ids,
        about=read_about(about) if about else None,
    )
    for name in result.fallback:
        typer.echo(f"{name}: {result.folder / name}")
        if result.trained_on[name]:
            typer.echo(
                f"warning: {name}: {result.trained_on[name]} of these clips were trained on",
                err=True,
            )
        if result.developed_on[name]:
            typer.echo(f"warning: {name}: {result.developed_on[name]}", err=True)
        for clip in result.fallback[name]:
            typer.echo(f"{name}: fallback to the class shares, no embedding: {clip}", err=True)
        for clip in result.partial[name]:
            typer.echo(f"{name}: predicted without some member: {clip}", err=True)
    _print_findings(result.findings)
    if any(result.fallback.values()) or any(result.partial.values()):
        raise typer.Exit(WORK_FAILED)


@command(app, "validate")
def validate_command(
    submission: Annotated[Path, typer.Argument(help="A submission's folder.")],
    ids: Annotated[Path, typer.Option(help="The organisers' CSV of evaluation ids.")],
    taxonomy: TaxonomyOption = "bst",
) -> None:
    """Check a submission's files: ids, classes, scores, labels, meta information."""
    from bsdkit.challenge import check_submission, read_ids
    from bsdkit.taxonomy import load_taxonomy

    _print_findings(check_submission(submission, read_ids(ids), load_taxonomy(taxonomy)))


def _print_findings(findings: Findings) -> None:
    for line in findings.warnings:
        typer.echo(f"warning: {line}", err=True)
    for line in findings.problems:
        typer.echo(f"error: {line}", err=True)
    if not findings.is_ready:
        raise typer.Exit(USER_ERROR)
    typer.echo("the submission passes every check")
