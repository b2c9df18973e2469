"""Commands that read finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bsdkit.cli.app import FittedStoreOption, MarkdownOption, RunArgument, app, command, show
from bsdkit.errors import RecipeError
from bsdkit.location import as_location

if TYPE_CHECKING:
    from bsdkit.experiments.leaderboard_table import Leaderboard


@command(app, "report")
def report_command(
    run: RunArgument,
    store: FittedStoreOption = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", parser=as_location, metavar="PLACE", help="The dataset, to play its sounds."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The HTML file; default report.html in the run's folder.")
    ] = None,
) -> None:
    """Write the page of a run again, with sounds that play, or a UMAP where umap is installed."""
    from bsdkit.report.page.collect import make_report

    typer.echo(f"report: {make_report(run, store=store, data=data, out=out)}")


@command(app, "compare")
def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, e.g. runs/*.")],
    baseline: Annotated[
        str, typer.Option(help="Name of the run to compare with; default the first.")
    ] = "",
    split: Annotated[str, typer.Option(help="The folds; default the baseline's headline.")] = "",
    markdown: MarkdownOption = False,
    page: Annotated[
        Path | None, typer.Option(help="Write two runs side by side as one HTML file.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option("--data", parser=as_location, help="The dataset, to play sounds in the page."),
    ] = None,
) -> None:
    """Print runs on the same clips side by side, with paired differences and verdicts."""
    from bsdkit.experiments.leaderboard import compare_runs
    from bsdkit.report.page.collect import make_comparison

    board = compare_runs(runs, baseline=baseline, split=split)
    _print_board(board, markdown)
    if page is not None:
        others = [run for run in runs if run.name != board.baseline]
        if len(runs) != 2 or len(others) != 1:
            raise RecipeError(f"--page takes two runs, {len(runs)} are given")
        against = next(run for run in runs if run not in others)
        make_comparison(others[0], against, page, data=data, split=split)
        typer.echo(f"page: {page}")


@command(app, "leaderboard")
def leaderboard_command(
    runs: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"),
    baseline: Annotated[
        str, typer.Option(help="Name of the run to compare with; default the first by name.")
    ] = "",
    split: Annotated[str, typer.Option(help="The folds; default the baseline's headline.")] = "",
    markdown: MarkdownOption = False,
) -> None:
    """Print all comparable runs of a folder, the best first."""
    from bsdkit.experiments.leaderboard import compare_runs, find_runs

    found = find_runs(runs)
    _print_board(compare_runs(found, baseline=baseline, split=split, is_strict=False), markdown)


def _print_board(board: Leaderboard, markdown: bool) -> None:
    from bsdkit.experiments.leaderboard_table import leaderboard_table

    table = leaderboard_table(board)
    if markdown:
        typer.echo(table.to_markdown())
    else:
        show(table)


@command(app, "label-quality")
def label_quality_command(
    run: RunArgument,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            parser=as_location,
            metavar="PLACE",
            help="A labelled store with the run's features; default the run's own clips.",
        ),
    ] = None,
    member: Annotated[str, typer.Option(help="Judge by one member instead of the ensemble.")] = "",
    out: Annotated[Path, typer.Option(help="Where to write one row a clip.")] = Path(
        "label_issues.csv"
    ),
    method: Annotated[
        Literal["off-diagonal", "noise-rate"],
        typer.Option(help="Fewer and surer issues, or as many as the estimate asks for."),
    ] = "off-diagonal",
    rank_by: Annotated[
        Literal["margin", "self-confidence"], typer.Option(help="What orders the issues.")
    ] = "margin",
    top: Annotated[int, typer.Option(min=0, help="Issues shown.")] = 20,
    min_clips: Annotated[
        int, typer.Option(min=1, help="Clips that an uploader needs to be shown.")
    ] = 5,
) -> None:
    """Say which labels are likely wrong, by models that did not see the clips; writes a CSV."""
    from bsdkit.experiments.label_quality import label_quality, write_label_issues
    from bsdkit.experiments.label_table import label_quality_tables
    from bsdkit.runs.folder import load_run
    from bsdkit.runs.predict import out_of_fold, predict_run, training_clips
    from bsdkit.store.store import Store

    loaded = load_run(run)
    if store is None:
        quality = label_quality(
            loaded.clips, out_of_fold(loaded, member), method=method, rank_by=rank_by
        )
    else:
        opened = Store(store)
        quality = label_quality(
            opened.clips,
            predict_run(loaded, opened, member).seen,
            trained_on=training_clips(loaded, member),
            method=method,
            rank_by=rank_by,
        )
    if loaded.recipe.adjust is not None and not member:
        typer.echo(
            "judged by probabilities that are shifted to other class frequencies (adjust); "
            "--member NAME judges by one member's own",
            err=True,
        )
    write_label_issues(out, quality)
    show(*label_quality_tables(quality, n_top=top, min_clips=min_clips))
    typer.echo(f"{len(quality.clips)} rows written to {out}")
