"""The command line: each command is a few lines, and heavy imports happen inside it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bsdkit import __version__
from bsdkit.errors import BsdkitError, DatasetError, RecipeError
from bsdkit.location import as_location, is_remote

if TYPE_CHECKING:
    from rich.console import Console

    from bsdkit.challenge import Findings
    from bsdkit.report.leaderboard import Leaderboard

app = typer.Typer(
    name="bsdkit",
    help="Embed once, ablate in seconds: frozen embeddings, CPU-cheap heads, honest scores.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
store_app = typer.Typer(
    help="Look into a store, check it, fill it from elsewhere.", no_args_is_help=True
)
app.add_typer(store_app, name="store")

USER_ERROR, WORK_FAILED, INTERRUPTED = 2, 1, 130
"""Exit codes: what the user can mend; some clips failed; Ctrl-C."""

StoreOption = Annotated[
    Path | None,
    typer.Option(
        "--store", parser=as_location, metavar="PLACE",
        help="Store folder or URL; default cache/NAME of the data.",
    ),
]  # fmt: skip
StoreArgument = Annotated[
    Path, typer.Argument(parser=as_location, metavar="STORE", help="A store folder or its URL.")
]
DataOption = Annotated[
    Path,
    typer.Option(
        "--data", parser=as_location, metavar="PLACE",
        help="BSD folder, folder of class folders, or CSV; or its URL.",
    ),
]  # fmt: skip
TaxonomyOption = Annotated[
    str, typer.Option(help="'bst', 'flat' (labels found are classes), or a CSV.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
RunsOption = Annotated[Path, typer.Option(help="Folder of runs.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Train again what was trained before.")]
MarkdownOption = Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")]
MapOption = Annotated[
    str,
    typer.Option(
        "--map",
        help="Features and stores to use instead of those that a recipe names: NAME=NAME,... or "
        "a .yaml file.",
    ),
]


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else 130
    return Console(stderr=stderr, width=width, highlight=False, markup=False)


def _command(
    parent: typer.Typer, name: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers a command whose expected errors become one line and an exit code."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except BsdkitError as error:
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(USER_ERROR) from None
            except OSError as error:
                where = f" {error.filename}" if error.filename else ""
                typer.echo(f"error: {error.strerror or error}:{where}", err=True)
                raise typer.Exit(USER_ERROR) from None
            except KeyboardInterrupt:
                typer.echo(
                    "interrupted; what was finished is kept, run the same line again", err=True
                )
                raise typer.Exit(INTERRUPTED) from None

        return parent.command(name)(guarded)

    return decorate


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"bsdkit {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the command ``bsdkit``."""
    # Idle OpenMP threads spin by default. Beside any other busy process the working thread
    # then waits for a core at every step: measured five times slower with one neighbour. It
    # must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()


def _default_store(data: Path) -> Path:
    folder = data if is_remote(data) else data.resolve()
    return Path("cache") / (data.stem if data.is_file() else folder.name)


@_command(app, "extract")
def extract_command(
    data: DataOption,
    backbone: Annotated[
        str,
        typer.Option(
            help="One name or several with commas, decoded in one pass; see 'bsdkit backbones'. "
            "passt.logits names one output, efficientat. the nameless one alone."
        ),
    ] = "aisfx,minilm",
    store: StoreOption = None,
    device: DeviceOption = "cpu",
    text: Annotated[
        str, typer.Option(help="Text template of text outputs; or 'summary', see 'bsdkit priors'.")
    ] = "title-tags-description",
    mask_class_words: Annotated[
        bool, typer.Option("--mask-class-words", help="Cut words of class names out of texts.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(help="Weights to use instead of the backbone's own.")
    ] = None,
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(help="Number type in the store.")
    ] = "float16",
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Number type of the model's products; front ends stay in float32."),
    ] = "float32",
    keep_segments: Annotated[
        bool, typer.Option("--keep-segments", help="Store every window's vector too.")
    ] = False,
    compress: Annotated[
        bool, typer.Option("--compress", help="Smaller files without loss, slower to read.")
    ] = False,
    taxonomy: TaxonomyOption = "bst",
    shard: Annotated[
        str, typer.Option(help="Do part i of n, e.g. 2/8; then 'bsdkit store merge'.")
    ] = "",
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="This process, or the workers of a Ray cluster.")
    ] = "local",
    ray_address: Annotated[
        str, typer.Option(help="A running Ray cluster; default: one on this machine.")
    ] = "",
    ray_workers: Annotated[
        int, typer.Option(min=0, help="Ray workers; 0: one a GPU, or one a processor.")
    ] = 0,
    shard_clips: Annotated[
        int, typer.Option(min=1, help="Clips in a shard: what a kill can cost.")
    ] = 128,
    batch_seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Seconds of audio in a batch.")
    ] = None,
    decoders: Annotated[
        int | None, typer.Option(min=1, help="Clips decoded at a time; default: one a processor.")
    ] = None,
) -> None:
    """Embed a dataset with frozen backbones into a store; run again to resume."""
    from bsdkit.backbones.base import BackboneOptions
    from bsdkit.extract import ExtractionSettings, WorkSlice
    from bsdkit.extract.ray_engine import RayEngine
    from bsdkit.recipe.extraction import extract_dataset
    from bsdkit.report.progress import ConsoleProgress

    reports = extract_dataset(
        data,
        store or _default_store(data),
        backbone.split(","),
        taxonomy=taxonomy,
        text_template=text,
        mask_class_words=mask_class_words,
        options=BackboneOptions(weights=weights, dtype=dtype, precision=precision),
        settings=ExtractionSettings(
            device=device,
            shard_clips=shard_clips,
            batch_seconds=batch_seconds,
            n_decoders=decoders,
            keep_segments=keep_segments,
            is_compressed=compress,
            work=WorkSlice.parse(shard) if shard else None,
        ),
        engine=RayEngine(ray_address, ray_workers) if engine == "ray" else None,
        progress=ConsoleProgress(_console(stderr=True)),
    )
    if any(report.failures for report in reports):
        raise typer.Exit(WORK_FAILED)


@_command(app, "priors")
def priors_command(
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            parser=as_location,
            metavar="PLACE",
            help="The dataset; not needed where the store has its clips already.",
        ),
    ] = None,
    store: StoreOption = None,
    model: Annotated[
        str,
        typer.Option(
            help="A text encoder's name (see 'bsdkit backbones'), a model that a "
            "server knows, or one of transformers."
        ),
    ] = "minilm",
    engine: Annotated[
        str,
        typer.Option(
            help="text-encoder (no language model), openai (any server with its interface) or "
            "transformers (in this process); default: what the model's name suggests."
        ),
    ] = "",
    endpoint: Annotated[
        str, typer.Option(help="The server's base URL, e.g. http://localhost:8000/v1.")
    ] = "",
    summaries: Annotated[
        bool, typer.Option("--summaries", help="Write summaries, for 'extract --text summary'.")
    ] = False,
    mask_class_words: Annotated[
        bool,
        typer.Option("--mask-class-words", help="Cut words of class names out of the metadata."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Estimate tokens and cost; ask nothing.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again where no answer could be read.")
    ] = False,
    batch: Annotated[
        Literal["prepare", "submit", "status", "download", "resume"] | None,
        typer.Option(help="A step of the server's batch interface; resume does what is next."),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Stop before this much is spent; needs prices.")
    ] = None,
    budget_tokens: Annotated[
        int | None, typer.Option(min=0, help="Stop before so many tokens, in and out, are used.")
    ] = None,
    price_in: Annotated[
        float | None, typer.Option(min=0, help="Price of a million tokens sent.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(min=0, help="Price of a million tokens answered.")
    ] = None,
    revision: Annotated[
        str, typer.Option(help="The model's revision, where the server does not say.")
    ] = "",
    temperature: Annotated[
        str, typer.Option(help="A number, or none to send none, as models that reason require.")
    ] = "0",
    top_p: Annotated[float | None, typer.Option(min=0, max=1, help="Default: not sent.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Of an answer; default 1024, of a summary 256.")
    ] = None,
    reasoning: Annotated[str, typer.Option(help="low, medium, ...; default: not sent.")] = "",
    body: Annotated[
        str, typer.Option(help="JSON object of further fields, e.g. chat_template_kwargs.")
    ] = "",
    schema: Annotated[
        Literal["auto", "json_schema", "json_object", "none"],
        typer.Option(help="How the server is told to answer in JSON."),
    ] = "auto",
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 8,
    attempts: Annotated[int, typer.Option(min=1, help="Tries of a request.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds of a try.")] = 120.0,
    backoff: Annotated[
        float, typer.Option(min=0, help="Seconds before the second try; then twice as long.")
    ] = 1.0,
    key_variable: Annotated[
        str, typer.Option(help="Environment variable with the server's key.")
    ] = "OPENAI_API_KEY",
    class_text: Annotated[
        str, typer.Option(help="What a text encoder sees of a class.")
    ] = "{name}. {description}",
    text: Annotated[
        str, typer.Option(help="Text template of the metadata.")
    ] = "title-tags-description",
    name: Annotated[str, typer.Option(help="Of the feature; default prior.MODEL.")] = "",
    device: DeviceOption = "cpu",
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Number type of a model in this process."),
    ] = "float32",
    taxonomy: TaxonomyOption = "bst",
) -> None:
    """Write class priors, or summaries, from the clips' metadata; run again to resume."""
    from bsdkit.priors.ask import LLMSettings, read_body, read_temperature
    from bsdkit.priors.chat import Connection
    from bsdkit.priors.cost import Budget
    from bsdkit.recipe.priors import PriorOptions, make_priors, open_store
    from bsdkit.report.progress import ConsoleProgress

    if data is None and store is None:
        raise DatasetError("give --data DIR, or --store STORE of clips that are in one already")
    progress = ConsoleProgress(_console(stderr=True))
    is_whole = make_priors(
        *open_store(data, store or _default_store(data or Path()), taxonomy, progress),
        PriorOptions(
            engine=engine,
            summaries=summaries,
            name=name,
            text=text,
            mask_class_words=mask_class_words,
            class_text=class_text,
            device=device,
            precision=precision,
            llm=LLMSettings(
                model=model,
                temperature=read_temperature(temperature),
                top_p=top_p,
                max_tokens=max_tokens or (256 if summaries else 1024),
                reasoning=reasoning,
                body=read_body(body),
            ),
            revision=revision,
            schema=schema,
            connection=Connection(endpoint, key_variable, concurrency, attempts, timeout, backoff),
            budget=Budget(budget_tokens, budget, price_in, price_out),
            is_dry=dry_run,
            is_failed_again=retry_failed,
            batch=batch,
        ),
        progress,
    )
    if not is_whole:
        raise typer.Exit(WORK_FAILED)


@_command(app, "prior-audit")
def prior_audit_command(store: StoreArgument) -> None:
    """Say how much of each prior's accuracy is owed to class words in the metadata."""
    from bsdkit.priors.audit import audit_priors
    from bsdkit.report.prior_tables import print_prior_audits
    from bsdkit.store.store import Store

    print_prior_audits(_console(), audit_priors(Store(store)), str(store))


@_command(app, "fit")
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
    from bsdkit.recipe.mapping import read_map
    from bsdkit.recipe.run import fit_recipe
    from bsdkit.recipe.schema import load_recipe
    from bsdkit.report.tables import print_fit

    note, console = _console(stderr=True), _console()
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
        result = fit_recipe(
            loaded,
            runs,
            device=device,
            reuse=not fresh,
            on_step=lambda line: note.print(line, style="dim"),
        )
        print_fit(console, result.metrics)
        reused = f", {result.n_reused} reused" if result.n_reused else ""
        console.print(
            f"{result.n_trained} members trained{reused} in {result.seconds:.1f} s; "
            f"run: {result.folder}  report: {result.folder / 'report.html'}"
        )


@_command(app, "compare")
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
    from bsdkit.recipe.leaderboard import compare_runs
    from bsdkit.recipe.report import make_comparison

    board = compare_runs(runs, baseline=baseline, split=split)
    _print_board(board, markdown)
    if page is not None:
        others = [run for run in runs if run.name != board.baseline]
        if len(runs) != 2 or len(others) != 1:
            raise RecipeError(f"--page takes two runs, {len(runs)} are given")
        against = next(run for run in runs if run not in others)
        make_comparison(others[0], against, page, data=data, split=split)
        typer.echo(f"page: {page}")


@_command(app, "report")
def report_command(
    run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/starter.")],
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            parser=as_location,
            metavar="PLACE",
            help="The store that it was fitted on; default the recipe's.",
        ),
    ] = None,
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
    from bsdkit.recipe.report import make_report

    typer.echo(f"report: {make_report(run, store=store, data=data, out=out)}")


@_command(app, "leaderboard")
def leaderboard_command(
    runs: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"),
    baseline: Annotated[
        str, typer.Option(help="Name of the run to compare with; default the first by name.")
    ] = "",
    split: Annotated[str, typer.Option(help="The folds; default the baseline's headline.")] = "",
    markdown: MarkdownOption = False,
) -> None:
    """Print all comparable runs of a folder, the best first."""
    from bsdkit.recipe.leaderboard import compare_runs, find_runs

    found = find_runs(runs)
    _print_board(compare_runs(found, baseline=baseline, split=split, is_strict=False), markdown)


def _print_board(board: Leaderboard, markdown: bool) -> None:
    from bsdkit.report.leaderboard import leaderboard_markdown, print_leaderboard

    if markdown:
        typer.echo(leaderboard_markdown(board))
    else:
        print_leaderboard(_console(), board)


@_command(app, "ablate")
def ablate_command(
    recipe: Annotated[Path, typer.Argument(help="The baseline, e.g. recipes/starter.yaml.")],
    others: Annotated[list[Path] | None, typer.Argument(help="Recipes to compare with it.")] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE,VALUE,... e.g. members.fused.dropout=0,0.3; all combinations."
        ),
    ] = None,
    judge: Annotated[
        str, typer.Option(help="Member to compare, or 'ensemble'; default: what differs.")
    ] = "",
    runs: RunsOption = Path("runs"),
    device: DeviceOption = "cpu",
    fresh: FreshOption = False,
    markdown: MarkdownOption = False,
) -> None:
    """Compare variants of a recipe with it on the same clips; says which clear the noise."""
    from bsdkit.recipe.ablate import ablate, variants_of
    from bsdkit.recipe.schema import load_recipe
    from bsdkit.recipe.vary import combinations, parse_variation
    from bsdkit.report.ablation import ablation_markdown, print_ablation

    note, console = _console(stderr=True), _console()
    baseline = load_recipe(recipe)
    changes = combinations([parse_variation(text) for text in vary]) if vary else []
    variants = variants_of(baseline, changes, [load_recipe(path) for path in others or []])
    result = ablate(
        baseline,
        variants,
        runs,
        judged=judge,
        device=device,
        reuse=not fresh,
        on_step=lambda line: note.print(line, style="dim"),
    )
    if markdown:
        typer.echo(ablation_markdown(result))
    else:
        print_ablation(console, result)
    note.print(
        f"{result.n_trained} members trained, {result.n_reused} reused in {result.seconds:.1f} s",
        style="dim",
    )


@_command(app, "tune")
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
        typer.Option(help="Search again without each fold for an honest score, or not at all."),
    ] = "folds",
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the settings tried.")] = 0,
    runs: RunsOption = Path("runs"),
    device: DeviceOption = "cpu",
) -> None:
    """Search a member's settings, scored on clips that had no say; run again to go on."""
    from bsdkit.recipe.schema import load_recipe
    from bsdkit.recipe.tune import tune
    from bsdkit.report.tune_tables import print_tuning

    note, console = _console(stderr=True), _console()
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
    print_tuning(console, tuning)
    console.print(
        f"{tuning.n_trained} models of a setting and fold trained in {tuning.seconds:.1f} s; "
        f"trials: {tuning.folder / 'trials.csv'}"
    )
    console.print(f"next: bsdkit fit {tuning.folder / 'best.yaml'}")


@_command(app, "label-quality")
def label_quality_command(
    run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/starter.")],
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
    from bsdkit.recipe.artifacts import load_run
    from bsdkit.recipe.predict import out_of_fold, predict_run, training_clips
    from bsdkit.report.label_tables import print_label_quality
    from bsdkit.store.store import Store
    from bsdkit.train.label_quality import label_quality, write_label_issues

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
    print_label_quality(_console(), quality, n_top=top, min_clips=min_clips)
    typer.echo(f"{len(quality.clips)} rows written to {out}")


@_command(app, "predict")
def predict_command(
    run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/starter.")],
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
) -> None:
    """Predict clips that a run has never seen, labelled or not; writes a CSV."""
    from bsdkit.predictions import write_predictions
    from bsdkit.recipe.artifacts import load_run
    from bsdkit.recipe.extraction import extract_for_run
    from bsdkit.recipe.predict import predict_run
    from bsdkit.report.progress import ConsoleProgress
    from bsdkit.store.probabilities import export_probabilities
    from bsdkit.store.store import Store

    if probabilities is not None and probabilities.resolve() == out.resolve():
        raise DatasetError(f"--out and --probabilities are both {out}; give two files")
    loaded = load_run(run)
    if store is None and data is None:
        raise DatasetError("give --store DIR (with embeddings), --data DIR (with sounds), or both")
    if data is not None:
        store = store or _default_store(data)
        extract_for_run(
            loaded,
            data,
            store,
            member=member,
            device=device,
            progress=ConsoleProgress(_console(stderr=True)),
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
            f"not honest; the out-of-fold predictions are in {run / 'predictions.csv'}",
            err=True,
        )
    for clip in prediction.fallback:
        typer.echo(f"fallback to the class shares, no embedding: {clip}", err=True)
    for clip in prediction.partial:
        typer.echo(f"predicted without some member, an embedding is missing: {clip}", err=True)
    if prediction.fallback or prediction.partial:
        raise typer.Exit(WORK_FAILED)


@_command(app, "check")
def check_command(
    run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/starter.")],
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            parser=as_location,
            metavar="PLACE",
            help="The store that it was fitted on; default the recipe's.",
        ),
    ] = None,
) -> None:
    """Predict a run's own clips anew, in processes without labels; must equal what it wrote."""
    from bsdkit.recipe.artifacts import load_run
    from bsdkit.recipe.rehearse import rehearse
    from bsdkit.report.tables import percent
    from bsdkit.store.store import Store

    loaded = load_run(run)
    found = rehearse(loaded, Store(store or loaded.recipe.store))
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
            "imported without folds, so out of fold on their word: "
            + ", ".join(found.on_their_word),
            err=True,
        )


@_command(app, "submit")
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
    from bsdkit.recipe.artifacts import load_run
    from bsdkit.recipe.submit import read_about, submit
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


@_command(app, "validate")
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


@_command(app, "import")
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
) -> None:
    """Bring in class probabilities of models trained elsewhere, to be members like any other."""
    from bsdkit.dataset import inspect_audio, read_dataset
    from bsdkit.store.feature import read_info
    from bsdkit.store.probabilities import import_probabilities
    from bsdkit.store.store import Store

    if name and len(files) > 1:
        raise DatasetError(f"--name is for one file, {len(files)} are given; use --prefix")
    if data is not None:
        clips, report = read_dataset(data, taxonomy)
        typer.echo("\n".join(report.lines()))
        Store.create(store, inspect_audio(clips))
    opened = Store(store)
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


@_command(app, "export")
def export_command(
    run: Annotated[Path, typer.Argument(help="A run folder, e.g. runs/starter.")],
    out: Annotated[Path, typer.Option(help="A .npz, .csv or .csv.gz file.")],
    member: Annotated[str, typer.Option(help="One member instead of the ensemble.")] = "",
) -> None:
    """Write a run's out-of-fold probabilities by clip id, for others to import."""
    from bsdkit.recipe.artifacts import load_run
    from bsdkit.recipe.predict import export_run

    n = export_run(load_run(run), out, member)
    typer.echo(f"{out}: {n} clips, out of fold")


@_command(app, "evaluate")
def evaluate_command(
    predictions: Annotated[
        Path, typer.Argument(help="CSV: sound_id, ground_truth, prediction, prediction_score.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV with sound_id and class, used instead of ground_truth."),
    ] = None,
    taxonomy: TaxonomyOption = "bst",
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object of fractions.")
    ] = False,
    per_class: Annotated[bool, typer.Option(help="Print a row a class.")] = True,
    resamples: Annotated[
        int, typer.Option(min=2, help="Bootstrap draws for the intervals.")
    ] = 2000,
) -> None:
    """Score a prediction file as the organisers do, with intervals."""
    from bsdkit.metrics import bootstrap, evaluate
    from bsdkit.predictions import flat_taxonomy, read_predictions
    from bsdkit.report.tables import print_evaluation
    from bsdkit.taxonomy import load_taxonomy

    is_flat = taxonomy == "flat"
    tree = flat_taxonomy(predictions, labels) if is_flat else load_taxonomy(taxonomy)
    read = read_predictions(predictions, tree, labels)
    scores = evaluate(read.y_true, read.y_pred, tree, warn=False)
    if json_output:
        import json

        typer.echo(json.dumps(scores.to_dict()))
        return
    intervals = bootstrap(read.y_true, read.y_pred, tree, n_resamples=resamples)
    print_evaluation(_console(), scores, intervals, per_class=per_class)


@_command(app, "starter")
def starter_command(
    out: Annotated[Path, typer.Argument(help="Where to build the dataset.")] = Path("data/starter"),
    manifest: Annotated[Path, typer.Option(help="Which sounds; see recipes/starter/.")] = Path(
        "recipes/starter/starter.csv"
    ),
    jobs: Annotated[int | None, typer.Option(help="Processes; default one a core.")] = None,
) -> None:
    """Build the starter dataset: real sounds that Debian packages ship, with BST labels."""
    from bsdkit.report.progress import ConsoleProgress
    from bsdkit.starter import build_starter

    progress = ConsoleProgress(_console(stderr=True))
    with progress:
        report = build_starter(manifest, out, n_jobs=jobs, progress=progress.stage)
    typer.echo(
        f"{out}: {report.n_built} clips built, {report.n_kept} were there, "
        f"{len(report.failures)} failed, {report.seconds:.0f} s"
    )
    for clip, reason in list(report.failures.items())[:5]:
        typer.echo(f"  {clip}: {reason}", err=True)
    for program, command in report.missing_programs.items():
        typer.echo(f"  {program} is missing, so its clips were left out: {command}", err=True)
    if report.failures:
        raise typer.Exit(WORK_FAILED)


@_command(app, "dataset")
def dataset_command(
    data: Annotated[Path, typer.Argument(help="BSD folder, folder of class folders, or CSV.")],
    taxonomy: TaxonomyOption = "bst",
) -> None:
    """Show what reading a dataset keeps and drops, and how its classes are filled."""
    from bsdkit.dataset import read_dataset
    from bsdkit.report.tables import print_dataset

    clips, report = read_dataset(data, taxonomy)
    print_dataset(_console(), clips, report)


@_command(app, "backbones")
def backbones_command() -> None:
    """List the backbones: outputs, licence, and whether each is ready here."""
    from bsdkit.backbones.registry import backbone_classes
    from bsdkit.report.tables import print_backbones

    print_backbones(_console(), backbone_classes())


@_command(app, "doctor")
def doctor_command(device: DeviceOption = "cpu") -> None:
    """Say what is ready here and, for each backbone that is not, what to do."""
    from bsdkit.backbones.registry import backbone_classes
    from bsdkit.device import check_device
    from bsdkit.report.doctor import print_doctor

    check_device(device)
    print_doctor(_console(), backbone_classes(), device)


@_command(app, "heads")
def heads_command() -> None:
    """List the heads and the parameters that a recipe may set."""
    import dataclasses

    from bsdkit.heads.registry import head_classes, head_parameters
    from bsdkit.heads.stack import TrainingOptions

    options = {field.name: field.default for field in dataclasses.fields(TrainingOptions)}

    def shown(parameters: dict[str, Any]) -> str:
        return ", ".join(f"{k}={v!r}" for k, v in parameters.items())

    for name in head_classes():
        parameters = head_parameters(name)
        if options.keys() <= parameters.keys():  # what is as everywhere stands once, below
            parameters = {
                k: v for k, v in parameters.items() if k not in options or v != options[k]
            }
            name += " *"
        typer.echo(f"{name}: {shown(parameters)}")
    typer.echo(f"\n* and: {shown(options)}")
    typer.echo(
        "\nAny member: seeds, validation, confidence (none, linear, shifted, binary), "
        "min_confidence, probabilities; those with * also distill and extra. A member trained "
        "elsewhere is {imported: FEATURE}; see bsdkit import."
    )


@_command(store_app, "ls")
def store_ls(store: StoreArgument) -> None:
    """List the features of a store."""
    from bsdkit.report.tables import print_store
    from bsdkit.store.store import Store
    from bsdkit.store.texts import list_texts

    opened = Store(store)
    print_store(_console(), opened.clips, opened.infos(), list_texts(opened.path))


@_command(store_app, "verify")
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
    from bsdkit.report.tables import print_comparison, print_verification
    from bsdkit.store.store import Store
    from bsdkit.store.texts import list_texts
    from bsdkit.store.verify import compare_stores, verify_store

    if against is not None:
        if not feature:
            raise DatasetError("--against needs --feature NAME; bsdkit store ls shows the names")
        other = against_feature or feature
        print_comparison(_console(), compare_stores(Store(store), Store(against), feature, other))
        return
    opened = Store(store)
    list_texts(opened.path)  # refuses damaged ones
    reports = verify_store(opened)
    print_verification(_console(), reports)
    if not reports:
        raise DatasetError(f"{store} has no feature; embed one with bsdkit extract --store {store}")
    if any(report.faults for report in reports):
        raise typer.Exit(USER_ERROR)
    if any(report.n_missing or report.failures for report in reports):
        raise typer.Exit(WORK_FAILED)


@_command(store_app, "merge")
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


@_command(store_app, "import")
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
) -> None:
    """Bring in embeddings that others computed, such as the organisers' CLAP vectors."""
    from bsdkit.dataset import inspect_audio, read_dataset
    from bsdkit.store.feature import read_info
    from bsdkit.store.importers import import_npy_folder
    from bsdkit.store.store import Store

    if data is not None:
        clips, report = read_dataset(data, taxonomy)
        typer.echo("\n".join(report.lines()))
        Store.create(store, inspect_audio(clips))
    info = read_info(import_npy_folder(Store(store), folder, feature, origin))
    typer.echo(f"{info.path}: {info.n_rows - info.n_failed} clips, {info.n_failed} without a file")
    if info.n_failed:
        raise typer.Exit(WORK_FAILED)
