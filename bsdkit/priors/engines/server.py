"""Priors and summaries from a server with OpenAI's interface: one by one, or in batches."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal, cast
from urllib.parse import urlsplit

from bsdkit.dataset import Clips
from bsdkit.errors import PriorError
from bsdkit.priors.ask import Ask, Reply, SchemaMode
from bsdkit.priors.cost import estimate
from bsdkit.priors.engines import batch
from bsdkit.priors.engines.chat import Outcome, ask_all
from bsdkit.priors.engines.request import Known
from bsdkit.priors.llm import Question, Stage, class_question, summary_question
from bsdkit.priors.options import BatchStep, Made, PriorOptions
from bsdkit.progress import Progress
from bsdkit.store.store import Store

__all__ = ["make"]


def make(store: Store, clips: Clips, options: PriorOptions, progress: Progress) -> Made:
    """Asks about all clips that have no answer, or does a step of a batch; see `Engine`.

    Raises:
        PriorError: no clip was answered, or the options do not go together; see also `ask_all`.
        StoreLocked: another process asks the same.
    """
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
            title = f"{stage.question.name}: {n - len(todo)} of {n} clips are answered; left:"
            return Made((title, *guess.lines()), True)
        if options.is_failed_again and stage.journal.replies():
            stage.finish(_provenance(options))  # so that new replies come after these
        if options.batch is not None:
            if options.budget.is_limited:
                raise PriorError(
                    "--batch has no budget: see --dry-run for what it will cost at most"
                )
            return _batch(stage, todo, options, options.batch)
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
    lines = [*report.lines(), f"  asked now: {0 if outcome is None else outcome.n_replies}"]
    if outcome is not None and outcome.retries:
        listed = ", ".join(f"{n} after {kind}" for kind, n in sorted(outcome.retries.items()))
        lines.append(f"  tried again: {listed}")
    if outcome is not None and outcome.failed:
        reason = next(iter(outcome.failed.values()))
        lines.append(f"  {len(outcome.failed)} clips got no answer, e.g. {reason}")
    if outcome is not None and outcome.stopped:
        lines.append(f"  stopped: {outcome.stopped}")
    return Made(tuple(lines), not report.n_left and not report.missing)


def _question(store: Store, options: PriorOptions) -> Question:
    template = options.template(store)
    if template.texts:
        raise PriorError(f"--text {options.text}: a language model is asked about the metadata")
    if options.summaries:
        return summary_question(options.llm, template, name=options.name, revision=options.revision)
    return class_question(
        store, options.llm, template, name=options.name, revision=options.revision
    )


def _known(stage: Stage, options: PriorOptions) -> tuple[Literal["auto"] | SchemaMode, Known]:
    """How the server is told to answer in JSON, and what is known of the model."""
    facts = stage.facts()
    schema = cast(SchemaMode, facts["schema"]) if "schema" in facts else options.schema
    return schema, {
        "revision": options.revision,
        "reported": "" if options.revision else facts.get("revision", ""),
        "is_resumed": bool(stage.replies()),
        "on_found": stage.found,
    }


def _ask(stage: Stage, todo: Sequence[Ask], options: PriorOptions, progress: Progress) -> Outcome:
    schema, known = _known(stage, options)
    with progress:
        progress.start(stage.question.name, len(todo), len(stage.asks) - len(todo))

        def keep(reply: Reply) -> None:
            stage.journal.append(reply)
            progress.advance(stage.question.name, 1)

        return ask_all(
            todo,
            stage.question.prompt,
            options.llm,
            options.connection,
            schema=schema,
            budget=options.budget,
            spent=stage.spent(),
            on_reply=keep,
            **known,
        )


def _batch(stage: Stage, todo: Sequence[Ask], options: PriorOptions, step: BatchStep) -> Made:
    """A step of the batch interface."""
    journal, connection = stage.journal, options.connection
    schema, known = _known(stage, options)
    words = stage.question.prompt, options.llm
    lines = []
    brought = None
    if step in ("submit", "status", "download") and not batch.open_keys(journal):
        lines.append("no batch is prepared: --batch prepare, or resume, which does what is next")
    if step == "prepare":
        paths = batch.prepare(journal, todo, *words, schema=schema)
        lines += [f"prepared {path}" for path in paths]
    elif step == "submit":
        batch.submit(journal, connection)
    elif step == "download":
        brought = batch.download(journal, options.llm, connection, **known)
    elif step == "resume":
        brought, _ = batch.resume(journal, todo, *words, connection, schema=schema, **known)
    statuses = batch.status(journal, connection) if step in ("submit", "status", "resume") else []
    for one in statuses:
        problem = f": {one.problem}" if one.problem else ""
        lines.append(
            f"{one.file} {one.batch}: {one.state}, {one.n_completed} of {one.n} answered, "
            f"{one.n_failed} failed{problem}"
        )
    if brought is not None:
        lines.append(
            f"{brought.n_replies} replies downloaded; batches ended without {brought.n_left} others"
        )
    n_left = len(stage.todo())
    if brought is not None and stage.replies():
        report = stage.finish(_provenance(options))
        return Made((*lines, *report.lines()), not n_left and not report.missing)
    lines.append(f"{stage.question.name}: {n_left} clips are not answered yet")
    return Made(tuple(lines), not n_left or step in ("prepare", "submit", "status"))


def _provenance(options: PriorOptions) -> dict[str, object]:
    parts = urlsplit(options.connection.endpoint)
    return {
        "endpoint": f"{parts.scheme}://{parts.hostname}" if parts.hostname else "default",
        "openai": importlib.metadata.version("openai") if find_spec("openai") else "",
    }
