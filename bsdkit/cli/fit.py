"""Commands that train: fit, ablate, tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bsdkit.cli.app import (
    DeviceOption,
    FreshOption,
    MapOption,
    MarkdownOption,
    RunsOption,
    app,
    command,
    console,
    show,
)
from bsdkit.errors import RecipeError


@command(app, "fit")
def fit_command(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes, e.g. recipes/starter.yaml.")],
    map_: MapOption = "",
    split: Annotated[
        list[str] | None, typer.Option(help="The splits to use instead of a recipe's.")
    ] = None,
    runs: RunsOption = Path("runs"),
    device: DeviceOption = "cpu",
    fresh: FreshOption = False,
) -> None:
    """Train, combine and score the members of recipes; writes runs/NAME/ for each."""
    from bsdkit.api import fit
    from bsdkit.recipe.map import read_map
    from bsdkit.recipe.schema import load_recipe
    from bsdkit.report.tables import fit_tables

    note, out = console(stderr=True), console()
    names = read_map(map_) if map_ else None
    all_loaded = [load_recipe(path, names, split or ()) for path in recipes]
    for i, loaded in enumerate(all_loaded):
        if loaded.name in [other.name for other in all_loaded[:i]]:
            raise RecipeError(f"two recipes are called {loaded.name!r}; give one another name:")
    if names is not None and not any(loaded.mapped for loaded in all_loaded):
        raise RecipeError(f"--map {map_} names nothing that these recipes use")
    for loaded in all_loaded:
        # a description is where tune says what its settings were chosen on
        if loaded.description or len(all_loaded) > 1:
            note.print(f"{loaded.name}: {loaded.description}", style="dim")
        result = fit(
            loaded,
            runs,
            device=device,
            reuse=not fresh,
            on_step=lambda line: note.print(line, style="dim"),
        )
        show(*fit_tables(result.metrics))
        reused = f", {result.n_reused} reused" if result.n_reused else ""
        out.print(
            f"{result.n_trained} members trained{reused} in {result.seconds:.1f} s; "
            f"run: {result.folder}  report: {result.folder / 'report.html'}"
        )


@command(app, "ablate")
def ablate_command(
    recipe: Annotated[Path, typer.Argument(help="The baseline, e.g. recipes/starter.yaml.")],
    others: Annotated[list[Path] | None, typer.Argument(help="Recipes to compare with it.")] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE,VALUE,... e.g. members.fused.dropout=0,0.3; all combinations."
        ),
    ] = None,
    map_: MapOption = "",
    split: Annotated[
        str, typer.Option(help="The split to compare under; default the baseline's first.")
    ] = "",
    judge: Annotated[
        str, typer.Option(help="Member to compare, or 'ensemble'; default: what differs.")
    ] = "",
    runs: RunsOption = Path("runs"),
    device: DeviceOption = "cpu",
    fresh: FreshOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Compare variants with a recipe, paired by clip; reports which differences are significant."""
    from bsdkit.experiments.ablate import ablate, variants_of
    from bsdkit.experiments.ablation_table import ablation_table
    from bsdkit.recipe.map import read_map
    from bsdkit.recipe.schema import load_recipe
    from bsdkit.recipe.vary import combinations, parse_variation

    note = console(stderr=True)
    names, splits = read_map(map_) if map_ else None, [split] if split else []
    baseline, *loaded = [load_recipe(path, names, splits) for path in [recipe, *(others or [])]]
    changes = combinations([parse_variation(text) for text in vary]) if vary else []
    variants = variants_of(baseline, changes, loaded)
    result = ablate(
        baseline,
        variants,
        runs,
        judged=judge,
        device=device,
        reuse=not fresh,
        on_step=lambda line: note.print(line, style="dim"),
    )
    table = ablation_table(result)
    if markdown:
        typer.echo(table.to_markdown(is_bare=True))
    else:
        show(table)
    note.print(
        f"{result.n_trained} members trained, {result.n_reused} reused in {result.seconds:.1f} s",
        style="dim",
    )


@command(app, "tune")
def tune_command(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/starter.yaml.")],
    trials: Annotated[
        int | None, typer.Option(min=1, help="Settings tried in each study; default 100.")
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=VALUE,VALUE; default: the recipe's, or "
            "common settings of the head."
        ),
    ] = None,
    member: Annotated[
        str, typer.Option(help="Member to tune; default: the one that the keys name.")
    ] = "",
    nested: Annotated[
        Literal["folds", "none"],
        typer.Option(help="Search again without each fold for a nested score, or not at all."),
    ] = "folds",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the settings tried.")] = 0,
    runs: RunsOption = Path("runs"),
    device: DeviceOption = "cpu",
) -> None:
    """Search a member's settings by nested cross-validation; run again to resume."""
    from bsdkit.experiments.tune import tune
    from bsdkit.experiments.tune.tables import tuning_tables
    from bsdkit.recipe.schema import load_recipe

    note, out = console(stderr=True), console()
    tuning = tune(
        load_recipe(recipe),
        runs,
        member=member,
        search=search or (),
        trials=trials,
        nested=nested == "folds",
        workers=workers,
        seed=seed,
        device=device,
        on_step=lambda line: note.print(line, style="dim"),
    )
    show(*tuning_tables(tuning))
    out.print(
        f"{tuning.n_trained} models of a setting and fold trained in {tuning.seconds:.1f} s; "
        f"trials: {tuning.folder / 'trials.csv'}"
    )
    out.print(f"next: bsdkit fit {tuning.folder / 'best.yaml'}")
