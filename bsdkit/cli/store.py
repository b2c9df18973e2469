"""Commands on a store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bsdkit.cli.app import (
    USER_ERROR,
    WORK_FAILED,
    KeepColumnsOption,
    ReplaceOption,
    StoreArgument,
    TaxonomyOption,
    command,
    console,
    show,
    split_names,
    store_app,
)
from bsdkit.errors import DatasetError
from bsdkit.location import as_location


@command(store_app, "ls")
def store_ls(store: StoreArgument) -> None:
    """List the features of a store."""
    from bsdkit.report.tables import store_table
    from bsdkit.store.store import Store
    from bsdkit.store.texts import list_texts

    opened = Store(store)
    show(store_table(opened.clips, opened.infos(), list_texts(opened.path)))


@command(store_app, "verify")
def store_verify(
    store: StoreArgument,
    against: Annotated[
        Path | None,
        typer.Option(
            parser=as_location, metavar="STORE", help="A store whose vectors to compare with."
        ),
    ] = None,
    feature: Annotated[
        str, typer.Option(help="The feature to compare, e.g. clap-fusion.audio.")
    ] = "",
    against_feature: Annotated[
        str, typer.Option(help="Its name in the other store; default the same.")
    ] = "",
) -> None:
    """Check every feature: checksum, missing and failed rows, NaN, copies; or compare two."""
    from bsdkit.report.tables import comparison_table, verification_table
    from bsdkit.store.store import Store
    from bsdkit.store.texts import list_texts
    from bsdkit.store.verify import compare_stores, verify_store

    if against is not None:
        if not feature:
            raise DatasetError("--against needs --feature NAME; bsdkit store ls shows the names")
        other = against_feature or feature
        show(comparison_table(compare_stores(Store(store), Store(against), feature, other)))
        return
    opened = Store(store)
    list_texts(opened.path)  # refuses damaged ones
    reports = verify_store(opened)
    show(verification_table(reports, opened.clips))
    if not reports:
        raise DatasetError(f"{store} has no feature; embed one with bsdkit extract --store {store}")
    if any(report.faults for report in reports):
        raise typer.Exit(USER_ERROR)
    if any(report.n_missing or report.failures for report in reports):
        raise typer.Exit(WORK_FAILED)


@command(store_app, "merge")
def store_merge(
    store: StoreArgument,
    sources: Annotated[
        list[str] | None, typer.Argument(help="Stores of the same clips, on other machines' disks.")
    ] = None,
) -> None:
    """Join the shards of 'extract --shard i/n' into feature files, with proof."""
    from bsdkit.store.merge import merge_stores

    for report in merge_stores(store, sources or []):
        failed = f", {report.n_failed} of them failed" if report.n_failed else ""
        typer.echo(
            f"{report.path}: {report.n_shards} shards, {report.n_rows} clips, each once{failed}"
        )


@command(store_app, "import")
def store_import(
    folder: Annotated[Path, typer.Argument(help="A folder with one <clip id>.npy a clip.")],
    store: Annotated[Path, typer.Option("--store", parser=as_location, help="The store to fill.")],
    feature: Annotated[str, typer.Option(help="Name of the feature, e.g. clap-fusion.audio.")],
    origin: Annotated[str, typer.Option(help="Where the vectors come from; part of the spec.")],
    data: Annotated[
        Path | None,
        typer.Option("--data", parser=as_location, help="The dataset, where the store is new."),
    ] = None,
    taxonomy: TaxonomyOption = "bst",
    keep_columns: KeepColumnsOption = "",
    replace: ReplaceOption = False,
) -> None:
    """Bring in embeddings that others computed, such as the organisers' CLAP vectors."""
    from bsdkit.cli.progress import ConsoleProgress
    from bsdkit.store.feature import read_info
    from bsdkit.store.fill import open_store
    from bsdkit.store.imports import import_npy_folder

    opened, _ = open_store(
        data,
        store,
        taxonomy,
        ConsoleProgress(console()),
        keep_columns=split_names(keep_columns),
        is_replacing=replace,
    )
    info = read_info(import_npy_folder(opened, folder, feature, origin))
    typer.echo(f"{info.path}: {info.n_rows - info.n_failed} clips, {info.n_failed} without a file")
    if info.n_failed:
        raise typer.Exit(WORK_FAILED)
