"""Class priors and summaries of a whole store, as the command line makes them."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from bsdkit.backbones.base import Backbone, BackboneOptions, Precision
from bsdkit.backbones.registry import backbone_classes, get_backbone, get_outputs
from bsdkit.dataset import Clips, read_dataset
from bsdkit.device import check_device
from bsdkit.errors import PriorError, nearest
from bsdkit.extract.pipeline import ExtractionSettings, extract
from bsdkit.extract.run import bars, fill_table, find_template, summary_lines, without_stale
from bsdkit.priors.ask import Ask, LLMSettings, Reply, SchemaMode, own_name
from bsdkit.priors.cost import Budget, estimate
from bsdkit.priors.derived import audio_prior
from bsdkit.priors.engines import batch
from bsdkit.priors.engines.audio_language import OUTPUT, with_question
from bsdkit.priors.engines.chat import Outcome, ask_all
from bsdkit.priors.engines.encoder import CLASS_TEXT, TEXT_ENCODER, class_texts, encoder_prior
from bsdkit.priors.engines.likelihood import CausalScorer
from bsdkit.priors.engines.request import Connection
from bsdkit.priors.llm import (
    SUMMARY,
    Question,
    Stage,
    class_question,
    likelihood_question,
    score_asks,
    summary_question,
)
from bsdkit.progress import Progress
from bsdkit.store.feature import OK, read_feature
from bsdkit.store.kinds import PRIOR
from bsdkit.store.store import Store
from bsdkit.taxonomy import Taxonomy
from bsdkit.text import TextTemplate

__all__ = ["ENGINES", "BatchStep", "PriorOptions", "choose_engine", "make_priors", "open_store"]

ENGINES = (TEXT_ENCODER, "openai", "transformers")
"""What can make a prior: a text encoder, a server with OpenAI's interface, a model in here."""

BatchStep = Literal["prepare", "submit", "status", "download", "resume"]


@dataclass(frozen=True)
class PriorOptions:
    """What a user may choose about priors and summaries.

    Attributes:
        engine: one of ENGINES; empty for the one that `model` suggests, see `choose_engine`.
        summaries: texts that sum up the metadata, instead of class probabilities.
        name: of the feature or texts; empty for one made of the model's.
        text: template of the texts, for a text encoder.
        mask_class_words: whether words of class names are cut out of the metadata first.
        class_text: see `class_texts`, for a text encoder.
        device: of a model that runs here.
        precision: number type of such a model's products.
        llm: the model and its parameters.
        revision: of the model, where the server does not say.
        schema: how a server is told to answer in JSON.
        connection: where the server is.
        budget: what may be spent.
        is_dry: whether to print the cost instead of asking.
        is_failed_again: whether clips are asked again whose answer could not be read.
        batch: a step of the batch interface instead of the chat's.
    """

    engine: str = ""
    summaries: bool = False
    name: str = ""
    text: str = "title-tags-description"
    mask_class_words: bool = False
    class_text: str = CLASS_TEXT
    device: str = "cpu"
    precision: Precision = "float32"
    llm: LLMSettings = field(default_factory=lambda: LLMSettings("minilm"))
    revision: str = ""
    schema: Literal["auto"] | SchemaMode = "auto"
    connection: Connection = field(default_factory=Connection)
    budget: Budget = field(default_factory=Budget)
    is_dry: bool = False
    is_failed_again: bool = False
    batch: BatchStep | None = None

    @property
    def model(self) -> str:
        """The model's name."""
        return self.llm.model


def choose_engine(model: str) -> str:
    """The engine that a model's name suggests: a backbone's here, any other a server's."""
    stem = model.partition(":")[0] + ":" if ":" in model else model.partition(".")[0]
    cls = backbone_classes().get(model) or backbone_classes().get(stem)
    if cls is None:
        return "transformers" if (Path(model) / "config.json").is_file() else "openai"
    if "text" in cls.outputs.values() or stem.endswith(":"):
        return TEXT_ENCODER
    return "transformers"


def open_store(
    data: Path | None, store: Path, taxonomy: Taxonomy | str, progress: Progress
) -> tuple[Store, Clips]:
    """The store of a dataset, made where it is not there; or one that is there; and its clips.

    Args:
        data: the dataset; None where the store has its clips table already.
        store: its folder.
        taxonomy: see `read_dataset`.
        progress: where to show what happens.

    Raises:
        DatasetError: the dataset cannot be read.
        StoreError: there is no store, or it holds other clips.
    """
    if data is None:
        opened = Store(store)
        return opened, opened.clips
    clips, filtered = read_dataset(data, taxonomy)
    for line in filtered.lines():
        progress.line(line)
    with progress:
        return fill_table(clips, store, progress)


def make_priors(store: Store, clips: Clips, options: PriorOptions, progress: Progress) -> bool:
    """Makes the class priors, or summaries, of all clips; returns whether every clip has one.

    Args:
        store: where the file goes.
        clips: its clips, for a model that hears them with the paths of their audio.
        options: which, and how.
        progress: where to show what happens.

    Raises:
        PriorError: they cannot be made so; the message says why.
        BsdkitError: see `extract`, `Stage` and `ask_all`.
    """
    engine = options.engine or choose_engine(options.model)
    if not options.engine and engine == "openai":
        _check_server_is_meant(options)
    if engine not in ENGINES:
        raise PriorError(f"unknown engine {engine!r}: {nearest(engine, ENGINES)}")
    if engine != "openai":
        _refuse_server_options(engine, options)
    if options.summaries and engine != "openai":
        raise PriorError(
            f"{options.model} writes no summaries; give a chat model: --engine openai --model "
            "MODEL, and --endpoint URL for a server of your own"
        )
    if options.name:  # before anything is embedded, or paid for
        own_name(options.name, SUMMARY if options.summaries else PRIOR)
    if engine == TEXT_ENCODER:
        return _encoder_prior(store, options, progress)
    if engine == "transformers":
        if options.model in backbone_classes():
            return _heard(store, clips, options, progress)
        return _scored(store, options, progress)
    return _asked(store, options, progress)


def _check_server_is_meant(options: PriorOptions) -> None:
    """A name that is mistyped, or of a model on the hub, must not reach a server by chance."""
    connection = options.connection
    variables = (connection.key_variable, "OPENAI_BASE_URL")
    if not connection.endpoint and not any(os.environ.get(name) for name in variables):
        known = nearest(options.model, [n for n in backbone_classes() if not n.endswith(":")])
        hint = f" ({known})" if known.startswith("did you") else ""
        raise PriorError(
            f"{options.model} is no backbone{hint}, so a server is to answer: give --endpoint URL, "
            f"or a key in {connection.key_variable}; or --engine transformers for a model in here"
        )


def _refuse_server_options(engine: str, options: PriorOptions) -> None:
    """What only a server can do must not be passed over in silence."""
    budget = options.budget
    given = {
        "--endpoint": bool(options.connection.endpoint),
        "--dry-run": options.is_dry,
        "--retry-failed": options.is_failed_again,
        "--batch": options.batch is not None,
        "--budget": budget.money is not None or budget.tokens is not None,
    }
    for name, is_given in given.items():
        if is_given:
            raise PriorError(
                f"{name} is for a model on a server, and {options.model} runs here ({engine}); "
                "give --model with the name that the server knows, or --engine openai"
            )


def _template(store: Store, options: PriorOptions) -> TextTemplate:
    return find_template(
        options.text, store.path, store.clips.taxonomy, is_masked=options.mask_class_words
    )


def _encoder_prior(store: Store, options: PriorOptions, progress: Progress) -> bool:
    texts = class_texts(store.clips.taxonomy, options.class_text)  # refuses before it loads
    template = _template(store, options)
    backbone, output = _text_output(options, template)
    template = without_stale(template, store.path, store.clips, progress)
    _embed_missing(store, backbone, output, template, options.device, progress)
    feature = backbone.feature(output)
    path = encoder_prior(store, feature, backbone, output, texts, options.name)
    rows = read_feature(path)
    n_failed = int((rows.state != OK).sum())
    lacking = f", {n_failed} without a text embedding" if n_failed else ""
    progress.line(f"{path.name.rpartition('-')[0]}: {len(rows)} clips{lacking} -> {path}")
    return not n_failed


def _text_output(options: PriorOptions, template: TextTemplate) -> tuple[Backbone, str]:
    """The backbone, not loaded, and its one text output that are meant."""
    chosen = BackboneOptions(text_template=template.describe())
    (backbone, outputs), *more = get_outputs([options.model], chosen)
    texts = [output for output in outputs if backbone.outputs[output] == "text"]
    if more or len(texts) != 1:
        known = [n for n, c in backbone_classes().items() if "text" in c.outputs.values()]
        raise PriorError(
            f"{options.model} embeds no text; give a text encoder ({', '.join(known)}), or "
            "--engine openai for a language model on a server"
        )
    backbone.wanted = frozenset(texts)
    return backbone, texts[0]


def _embed_missing(
    store: Store,
    backbone: Backbone,
    output: str,
    template: TextTemplate,
    device: str,
    progress: Progress,
) -> None:
    """Embeds the texts of the store's clips, as far as they are not; loads the backbone."""
    check_device(device)
    backbone.require()
    with progress:
        if not backbone.device:
            backbone.load(device)
        reports = extract(
            [(backbone, [output])],
            store.clips,
            store,
            template,
            ExtractionSettings(device=device),
            observer=bars(progress),
        )
    if any(report.n_embedded for report in reports):
        for line in summary_lines(reports):
            progress.line(line)


def _heard(store: Store, clips: Clips, options: PriorOptions, progress: Progress) -> bool:
    template = without_stale(_template(store, options), store.path, clips, progress)
    chosen = BackboneOptions(
        text_template=template.describe(), dtype="float32", precision=options.precision
    )
    chosen = with_question(chosen, clips.taxonomy)
    backbone = get_backbone(options.model, chosen)
    if OUTPUT not in backbone.outputs:
        raise PriorError(
            f"{options.model} answers no questions; give an audio language model such as "
            "qwen2-audio, or a model's folder or hub id"
        )
    backbone.wanted = frozenset({OUTPUT})
    if all(path is None for path in clips.audio):
        raise PriorError(f"{options.model} hears the clips: give their dataset by --data DIR")
    check_device(options.device)
    backbone.require()
    with progress:
        reports = extract(
            [(backbone, [OUTPUT])],
            clips,
            store,
            template,
            ExtractionSettings(device=options.device),
            observer=bars(progress),
        )
    for line in summary_lines(reports):
        progress.line(line)
    path = audio_prior(store, backbone, options.name)
    n_made = int((read_feature(path).state == OK).sum())
    progress.line(f"{path.name.rpartition('-')[0]}: {n_made} of {len(clips)} clips -> {path}")
    return not any(report.failures for report in reports)


def _scored(store: Store, options: PriorOptions, progress: Progress) -> bool:
    check_device(options.device)
    scorer = CausalScorer(
        options.model, revision=options.revision, device=options.device, precision=options.precision
    )
    scorer.load()
    stage = Stage(
        store, likelihood_question(store, scorer, _template(store, options), name=options.name)
    )
    with stage.locked():
        todo = stage.todo()
        bar = progress.bar(stage.question.name)
        with progress:
            bar.start(len(todo), len(stage.asks) - len(todo))

            def keep(replies: list[Reply]) -> None:
                stage.journal.extend(replies)
                bar.advance(len(replies))

            score_asks(todo, stage.question, scorer, store.clips.taxonomy.labels, keep)
        report = stage.finish({"device": options.device})
    for line in report.lines():
        progress.line(line)
    return not report.missing


def _asked(store: Store, options: PriorOptions, progress: Progress) -> bool:
    stage = Stage(store, _question(store, options))
    with stage.locked():
        todo = stage.todo(is_failed_again=options.is_failed_again)
        if stage.journal.n_broken:
            progress.line(
                f"{stage.journal.n_broken} lines of {stage.journal.folder} cannot be read; their "
                "clips are asked again"
            )
        if options.is_dry:
            earlier = stage.replies().values()
            guess = estimate(todo, stage.question.prompt, options.llm, options.budget, earlier)
            n = len(stage.asks)
            progress.line(
                f"{stage.question.name}: {n - len(todo)} of {n} clips are answered; left:"
            )
            for line in guess.lines():
                progress.line(line)
            return True
        if options.is_failed_again and stage.journal.replies():
            stage.finish(_provenance(options))  # so that new replies come after these
        if options.batch is not None and options.budget != Budget(
            None, None, options.budget.price_in, options.budget.price_out
        ):
            raise PriorError("--batch has no budget: see --dry-run for what it will cost at most")
        if options.batch is not None:
            return _batch(stage, todo, options, options.batch, progress)
        waiting = batch.open_keys(stage.journal) & {ask.key for ask in todo}
        if waiting:
            raise PriorError(
                f"{len(waiting)} of these clips are in a batch: bsdkit priors ... --batch resume; "
                f"or remove {stage.journal.folder} to forget it"
            )
        outcome = _ask(stage, todo, options, progress) if todo else None
        if outcome is not None and not stage.replies():
            reason = outcome.stopped or next(iter(outcome.failed.values()), "nothing was asked")
            raise PriorError(f"no clip was answered: {reason}")
        report = stage.finish(_provenance(options))
    for line in report.lines():
        progress.line(line)
    progress.line(f"  asked now: {0 if outcome is None else outcome.n_replies}")
    if outcome is not None and outcome.retries:
        listed = ", ".join(f"{n} after {kind}" for kind, n in sorted(outcome.retries.items()))
        progress.line(f"  tried again: {listed}")
    if outcome is not None and outcome.failed:
        reason = next(iter(outcome.failed.values()))
        progress.line(f"  {len(outcome.failed)} clips got no answer, e.g. {reason}")
    if outcome is not None and outcome.stopped:
        progress.line(f"  stopped: {outcome.stopped}")
    return not report.n_left and not report.missing


def _question(store: Store, options: PriorOptions) -> Question:
    template = _template(store, options)
    if template.texts:
        raise PriorError(f"--text {options.text}: a language model is asked about the metadata")
    if options.summaries:
        return summary_question(options.llm, template, name=options.name, revision=options.revision)
    return class_question(
        store, options.llm, template, name=options.name, revision=options.revision
    )


def _ask(stage: Stage, todo: Sequence[Ask], options: PriorOptions, progress: Progress) -> Outcome:
    facts = stage.facts()
    bar = progress.bar(stage.question.name)
    with progress:
        bar.start(len(todo), len(stage.asks) - len(todo))

        def keep(reply: Reply) -> None:
            stage.journal.append(reply)
            bar.advance(1)

        return ask_all(
            todo,
            stage.question.prompt,
            options.llm,
            options.connection,
            schema=cast(SchemaMode, facts["schema"]) if "schema" in facts else options.schema,
            revision=options.revision,
            reported=facts.get("revision", "") if not options.revision else "",
            is_resumed=bool(stage.replies()),
            budget=options.budget,
            spent=stage.spent(),
            on_reply=keep,
            on_found=stage.found,
        )


def _batch(
    stage: Stage,
    todo: Sequence[Ask],
    options: PriorOptions,
    step: BatchStep,
    progress: Progress,
) -> bool:
    """A step of the batch interface; returns whether every clip has its answer."""
    journal, connection, schema = stage.journal, options.connection, options.schema
    facts = stage.facts()
    if "schema" in facts:
        schema = cast(SchemaMode, facts["schema"])
    brought = None
    words = stage.question.prompt, options.llm
    is_resumed = bool(stage.replies())
    reported = "" if options.revision else facts.get("revision", "")
    if step in ("submit", "status", "download") and not batch.open_keys(journal):
        progress.line("no batch is prepared: --batch prepare, or resume, which does what is next")
    if step == "prepare":
        for path in batch.prepare(journal, todo, *words, schema=schema):
            progress.line(f"prepared {path}")
    elif step == "submit":
        batch.submit(journal, connection)
    elif step == "download":
        brought = batch.download(
            journal, options.llm, connection,
            revision=options.revision, reported=reported, is_resumed=is_resumed,
            on_found=stage.found,
        )  # fmt: skip
    elif step == "resume":
        brought, _ = batch.resume(
            journal, todo, *words, connection,
            schema=schema, revision=options.revision, reported=reported, is_resumed=is_resumed,
            on_found=stage.found,
        )  # fmt: skip
    statuses = batch.status(journal, connection) if step in ("submit", "status", "resume") else []
    for one in statuses:
        problem = f": {one.problem}" if one.problem else ""
        progress.line(
            f"{one.file} {one.batch}: {one.state}, {one.n_completed} of {one.n} answered, "
            f"{one.n_failed} failed{problem}"
        )
    if brought is not None:
        progress.line(
            f"{brought.n_replies} replies downloaded; batches ended without {brought.n_left} others"
        )
    n_left = len(stage.todo())
    if brought is not None and stage.replies():
        report = stage.finish(_provenance(options))
        for line in report.lines():
            progress.line(line)
        return not n_left and not report.missing
    progress.line(f"{stage.question.name}: {n_left} clips are not answered yet")
    return not n_left or step in ("prepare", "submit", "status")


def _provenance(options: PriorOptions) -> dict[str, object]:
    parts = urlsplit(options.connection.endpoint)
    return {
        "endpoint": f"{parts.scheme}://{parts.hostname}" if parts.hostname else "default",
        "openai": importlib.metadata.version("openai") if find_spec("openai") else "",
    }
