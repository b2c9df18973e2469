"""Commands that apply a run, verify it, or score predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bsdkit.cli.app import (
    WORK_FAILED,
    DeviceOption,
    FittedStoreOption,
    ReplaceOption,
    RunArgument,
    TaxonomyOption,
    app,
    command,
    console,
    default_store,
    show,
)
from bsdkit.errors import DatasetError
from bsdkit.location import as_location


@command(app, "predict")
def predict_command(
    run: RunArgument,
    store: Annotated[
        Path | None,
        typer.Option("--store", parser=as_location, help="A store with the run's features."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", parser=as_location, help="A dataset; its features are embedded first."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write the predictions.")] = Path("output.csv"),
    probabilities: Annotated[
        Path | None,
        typer.Option(help="Write the probabilities of all classes too: .npz, .csv or .csv.gz."),
    ] = None,
    member: Annotated[str, typer.Option(help="One member instead of the ensemble.")] = "",
    device: DeviceOption = "cpu",
    replace: ReplaceOption = False,
) -> None:
    """Predict clips that a run has never seen, labelled or not; writes a CSV."""
    from bsdkit.cli.progress import ConsoleProgress
    from bsdkit.predictions import write_predictions
    from bsdkit.runs.embed import extract_for_run
    from bsdkit.runs.folder import load_run
    from bsdkit.runs.predict import predict_run
    from bsdkit.store.probabilities import export_probabilities
    from bsdkit.store.store import Store

    if probabilities is not None and probabilities.resolve() == out.resolve():
        raise DatasetError(f"--out and --probabilities are both {out}; give two files")
    loaded = load_run(run)
    if store is None and data is None:
        raise DatasetError("give --store DIR (with embeddings), --data DIR (with sounds), or both")
    if data is not None:
        store = store or default_store(data)
        extract_for_run(
            loaded,
            data,
            store,
            member=member,
            device=device,
            progress=ConsoleProgress(console(stderr=True)),
            is_replacing=replace,
        )
    assert store is not None
    prediction = predict_run(loaded, Store(store), member)
    if probabilities is not None:
        taxonomy = loaded.clips.taxonomy
        export_probabilities(probabilities, prediction.ids, prediction.probabilities, taxonomy)
    write_predictions(out, prediction.ids, prediction.labels, prediction.scores, prediction.truth)
    typer.echo(f"{len(prediction.ids)} predictions written to {out}")
    if prediction.trained_on:
        typer.echo(
            f"{len(prediction.trained_on)} of these clips were trained on, so scores of them are "
            f"optimistic; the out-of-fold predictions are in {run / 'predictions.csv'}",
            err=True,
        )
    for clip in prediction.fallback:
        typer.echo(f"fallback to the class shares, no embedding: {clip}", err=True)
    for clip in prediction.partial:
        typer.echo(f"predicted without some member, an embedding is missing: {clip}", err=True)
    if prediction.fallback or prediction.partial:
        raise typer.Exit(WORK_FAILED)


@command(app, "check")
def check_command(
    run: RunArgument,
    store: FittedStoreOption = None,
) -> None:
    """Re-run inference without labels and verify predictions.csv."""
    from bsdkit.report.tables import percent
    from bsdkit.runs.folder import load_run
    from bsdkit.runs.verify import verify_run
    from bsdkit.store.store import Store

    loaded = load_run(run)
    found = verify_run(loaded, Store(store or loaded.recipe.store))
    typer.echo(
        f"{found.n_clips} clips of the {found.split} folds predicted without labels, each by "
        f"models and steps that did not see it: hF {percent(found.hF)}, "
        f"hF_strict {percent(found.hF_strict)}"
    )
    if not found.is_equal:
        typer.echo(
            f"error: {len(found.differing)} predictions differ from {run / 'predictions.csv'}"
            + (f", e.g. {', '.join(found.differing[:3])}" if found.differing else "")
            + f"; the run claims hF_strict {percent(found.claimed)}; was the store changed since?",
            err=True,
        )
        raise typer.Exit(WORK_FAILED)
    typer.echo(f"equal to {run / 'predictions.csv'} and to the score in metrics.json")
    if found.on_their_word:
        typer.echo(
            "imported without folds, so unverified out-of-fold: " + ", ".join(found.on_their_word),
            err=True,
        )


@command(app, "evaluate")
def evaluate_command(
    predictions: Annotated[
        Path,
        typer.Argument(
            help="CSV: sound_id, ground_truth, prediction, prediction_score; or a run folder."
        ),
    ],
    on: Annotated[
        Path | None,
        typer.Option(
            "--on",
            parser=as_location,
            metavar="STORE",
            help="With a run: a labelled store that it never saw.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV with sound_id and class, used instead of ground_truth."),
    ] = None,
    taxonomy: TaxonomyOption = "bst",
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object of fractions.")
    ] = False,
    covered_only: Annotated[
        bool,
        typer.Option(
            "--covered-only", help="Leave labelled clips without a prediction out of the score."
        ),
    ] = False,
    per_class: Annotated[bool, typer.Option(help="Print a row a class.")] = True,
    resamples: Annotated[
        int, typer.Option(min=2, help="Bootstrap draws for the intervals.")
    ] = 2000,
) -> None:
    """Score a prediction file as the organisers do, or a run on a store that it never saw."""
    if on is not None or predictions.is_dir():
        _evaluate_run(predictions, on, json_output)
        return
    from bsdkit.metrics import bootstrap, evaluate
    from bsdkit.predictions import flat_taxonomy, read_predictions
    from bsdkit.report.tables import evaluation_tables
    from bsdkit.taxonomy import load_taxonomy

    is_flat = taxonomy == "flat"
    tree = flat_taxonomy(predictions, labels) if is_flat else load_taxonomy(taxonomy)
    read = read_predictions(predictions, tree, labels, covered_only=covered_only)
    scores = evaluate(read.y_true, read.y_pred, read.taxonomy, warn=False)
    if json_output:
        import json

        typer.echo(json.dumps({**scores.to_dict(), "n_uncovered": len(read.uncovered)}))
        return
    intervals = bootstrap(read.y_true, read.y_pred, read.taxonomy, n_resamples=resamples)
    tables = evaluation_tables(scores, intervals, per_class=per_class)
    tables[0].notes += read.notes()
    show(*tables)


def _evaluate_run(folder: Path, on: Path | None, json_output: bool) -> None:
    from bsdkit.report.tables import chain_title, test_table
    from bsdkit.runs.evaluation import evaluate_run
    from bsdkit.runs.folder import load_run
    from bsdkit.store.store import Store

    if on is None:
        raise DatasetError(
            f"{folder} is a folder: say --on STORE to score a run on a labelled store, or give "
            f"the file {folder / 'predictions.csv'}"
        )
    run = load_run(folder)
    found = evaluate_run(run, Store(on))
    if json_output:
        import json

        typer.echo(json.dumps(found))
        return
    show(test_table(found, chain_title(run.metrics["protocols"][run.split]["ensemble"])))
