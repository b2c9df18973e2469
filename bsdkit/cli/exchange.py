"""Commands that carry probabilities in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bsdkit.cli.app import (
    KeepColumnsOption,
    ReplaceOption,
    RunArgument,
    TaxonomyOption,
    app,
    command,
    console,
    split_names,
)
from bsdkit.errors import DatasetError
from bsdkit.location import as_location


@command(app, "import")
def import_command(
    files: Annotated[
        list[Path], typer.Argument(help="CSV, CSV.GZ or NPZ files of class probabilities by clip.")
    ],
    store: Annotated[
        Path, typer.Option("--store", parser=as_location, metavar="PLACE", help="Store to fill.")
    ],
    name: Annotated[
        str, typer.Option(help="The feature's name; default the file's, after --prefix.")
    ] = "",
    prefix: Annotated[str, typer.Option(help="Put before the files' names, e.g. published.")] = "",
    origin: Annotated[str, typer.Option(help="Whose models they are; part of the spec.")] = "",
    parameters: Annotated[
        float | None, typer.Option(min=0, help="Million parameters of the models.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", parser=as_location, help="The dataset, where the store is new."),
    ] = None,
    missing: Annotated[
        Literal["refuse", "skip"], typer.Option(help="Clips of the store without a row.")
    ] = "refuse",
    extra: Annotated[
        Literal["refuse", "ignore"], typer.Option(help="Rows of clips that the store lacks.")
    ] = "refuse",
    taxonomy: TaxonomyOption = "bst",
    keep_columns: KeepColumnsOption = "",
    replace: ReplaceOption = False,
) -> None:
    """Bring in class probabilities of models trained elsewhere, to be members like any other."""
    from bsdkit.cli.progress import ConsoleProgress
    from bsdkit.store.feature import read_info
    from bsdkit.store.fill import open_store
    from bsdkit.store.imports import import_probabilities

    if name and len(files) > 1:
        raise DatasetError(f"--name is for one file, {len(files)} are given; use --prefix")
    opened, _ = open_store(
        data,
        store,
        taxonomy,
        ConsoleProgress(console()),
        keep_columns=split_names(keep_columns),
        is_replacing=replace,
    )
    for file in files:
        stem = file.name.removesuffix(".gz").rpartition(".")[0] or file.name
        path = import_probabilities(
            opened,
            file,
            name or prefix + stem,
            origin=origin,
            parameters=parameters,
            missing=missing,
            extra=extra,
        )
        info = read_info(path)
        lacking = f", {info.n_failed} without a row" if info.n_failed else ""
        typer.echo(f"{info.feature}: {info.n_rows} clips{lacking} ({info.spec['form']})")


@command(app, "export")
def export_command(
    run: RunArgument,
    out: Annotated[Path, typer.Option(help="A .npz, .csv or .csv.gz file.")],
    member: Annotated[str, typer.Option(help="One member instead of the ensemble.")] = "",
) -> None:
    """Write a run's out-of-fold probabilities by clip id, for others to import."""
    from bsdkit.runs.folder import load_run
    from bsdkit.runs.predict import export_run

    n = export_run(load_run(run), out, member)
    typer.echo(f"{out}: {n} clips, out of fold")
