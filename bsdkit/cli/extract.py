"""Commands of the GPU stage: embeddings and class priors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from bsdkit.cli.app import (
    WORK_FAILED,
    DataOption,
    DeviceOption,
    KeepColumnsOption,
    ReplaceOption,
    StoreArgument,
    StoreOption,
    TaxonomyOption,
    app,
    command,
    console,
    default_store,
    show,
    split_names,
)
from bsdkit.errors import DatasetError
from bsdkit.location import as_location
from bsdkit.priors.engines.registry import ENGINES


@command(app, "extract")
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
    partial: Annotated[
        Literal["fail", "embed"],
        typer.Option(help="What becomes of a clip that can be decoded only in part."),
    ] = "fail",
    taxonomy: TaxonomyOption = "bst",
    keep_columns: KeepColumnsOption = "",
    replace: ReplaceOption = False,
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
    from bsdkit.cli.progress import ConsoleProgress
    from bsdkit.extract import ExtractionSettings, WorkSlice
    from bsdkit.extract.ray import RayEngine
    from bsdkit.extract.report import summary_lines
    from bsdkit.extract.run import extract_dataset

    progress = ConsoleProgress(console(stderr=True))
    reports = extract_dataset(
        data,
        store or default_store(data),
        backbone.split(","),
        taxonomy=taxonomy,
        text_template=text,
        mask_class_words=mask_class_words,
        keep_columns=split_names(keep_columns),
        is_replacing=replace,
        options=BackboneOptions(weights=weights, dtype=dtype, precision=precision),
        settings=ExtractionSettings(
            device=device,
            shard_clips=shard_clips,
            batch_seconds=batch_seconds,
            n_decoders=decoders,
            keep_segments=keep_segments,
            is_compressed=compress,
            work=WorkSlice.parse(shard) if shard else None,
            partial=partial,
        ),
        engine=RayEngine(ray_address, ray_workers) if engine == "ray" else None,
        progress=progress,
    )
    for line in summary_lines(reports):
        progress.line(line)
    if any(report.failures for report in reports):
        raise typer.Exit(WORK_FAILED)


@command(app, "priors")
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
            help=", ".join(f"{e.name} ({e.help})" for e in ENGINES.values())
            + "; default: what the model's name suggests."
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
    keep_columns: KeepColumnsOption = "",
    replace: ReplaceOption = False,
) -> None:
    """Write class priors, or summaries, from the clips' metadata; run again to resume."""
    from bsdkit.cli.progress import ConsoleProgress
    from bsdkit.priors.ask import LLMSettings, read_body, read_temperature
    from bsdkit.priors.cost import Budget
    from bsdkit.priors.engines.request import Connection
    from bsdkit.priors.options import PriorOptions
    from bsdkit.priors.run import make_priors
    from bsdkit.store.fill import open_store

    if data is None and store is None:
        raise DatasetError("give --data DIR, or --store STORE of clips that are in one already")
    progress = ConsoleProgress(console(stderr=True))
    made = make_priors(
        *open_store(
            data,
            store or default_store(data or Path()),
            taxonomy,
            progress,
            keep_columns=split_names(keep_columns),
            is_replacing=replace,
        ),
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
    for line in made.lines:
        progress.line(line)
    if not made.is_whole:
        raise typer.Exit(WORK_FAILED)


@command(app, "prior-audit")
def prior_audit_command(store: StoreArgument) -> None:
    """Say how much of each prior's accuracy is owed to class words in the metadata."""
    from bsdkit.priors.audit import audit_priors
    from bsdkit.report.tables import prior_audit_tables
    from bsdkit.store.store import Store

    show(*prior_audit_tables(audit_priors(Store(store)), str(store)))
