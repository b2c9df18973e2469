"""Class priors and summaries by a language model, as files of a store that runs may resume.

After the CP-JKU submission to DCASE 2026 Task 1 (report and code; see `bsdkit.priors.prompt`).
Rows are filed under the clip's id and the hash of its text, never under a row number; a reply is
kept as it came, beside what was read from it, and a reply that cannot be read is a missing row
with a reason, not zeros.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from bsdkit.errors import CorruptStore, PriorError
from bsdkit.priors.ask import Ask, LLMSettings, Prompt, Reply, SchemaMode
from bsdkit.priors.cost import estimate_tokens, tokens_of_request
from bsdkit.priors.engines.likelihood import CausalScorer, likelihood_prompt, probabilities
from bsdkit.priors.journal import Journal
from bsdkit.priors.parse import PARSER_VERSION, parse_classes, parse_summary
from bsdkit.priors.prompt import CONTENT_VERSION, class_prompt, clip_contents, summary_prompt
from bsdkit.priors.scores import prior_facts
from bsdkit.store.feature import (
    FAILED,
    OK,
    FeatureRows,
    feature_path,
    read_feature,
    write_changed_feature,
)
from bsdkit.store.kinds import (
    LANGUAGE_MODEL_PRIOR,
    PRIOR,
    Spec,
    first_difference,
    kind_of,
    slug,
    spec_hash,
)
from bsdkit.store.store import Store
from bsdkit.store.texts import TextRows, list_texts, write_texts_file
from bsdkit.text import TextTemplate

__all__ = [
    "SUMMARY",
    "LLMReport",
    "Question",
    "Row",
    "Stage",
    "class_question",
    "likelihood_question",
    "score_asks",
    "summary_question",
]

_CLIPS_AT_A_TIME = 256
_MOST_WORDS = 20_000  # an attribute of HDF5 holds 64 kB

SUMMARY = "summary"
"""The first part of the name of texts that sum up a clip's metadata."""


@dataclass(frozen=True)
class Row:
    """What was read from a reply.

    Attributes:
        values: probabilities [n_classes]; None for a text.
        text: the text; empty for probabilities.
        other: share of the probability that went to no class, NaN where unknown.
        reason: why the row is missing; empty where it is not.
        dropped: entries of the reply that were left out, by why.
    """

    values: np.ndarray | None
    text: str = ""
    other: float = float("nan")
    reason: str = ""
    dropped: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """What is asked of which model about every clip.

    Attributes:
        name: of the feature, or of the texts.
        kind: whether class probabilities come of it or texts.
        prompt: the words around a clip's metadata.
        parse: reads a reply.
        spec: every fact that is known before the first reply.
        template: how the metadata are cleaned, and masked.
        parser: version of `parse`, for the spec.
    """

    name: str
    kind: Literal["prior", "summary"]
    prompt: Prompt
    parse: Callable[[Reply], Row]
    spec: Spec
    template: TextTemplate
    parser: int = PARSER_VERSION


def _common(
    prompt: Prompt, settings: LLMSettings, template: TextTemplate, revision: str
) -> dict[str, object]:
    words = json.dumps([prompt.system, prompt.schema_name, prompt.schema], sort_keys=True)
    spec: dict[str, object] = {
        "backbone": LANGUAGE_MODEL_PRIOR.name,
        "engine": "openai",
        "weights": settings.model,
        "prompt": f"{prompt.name} v{prompt.version}",
        "prompt_sha256": hashlib.sha256(words.encode()).hexdigest(),
        "parameters": {
            name: value
            for name, value in dataclasses.asdict(settings).items()
            if name != "model" and value not in (None, "", {})
        },
        "text_template": template.describe(),
        "content_version": CONTENT_VERSION,
        "revision_from": "user" if revision else "server",
    }
    if revision:
        spec["revision"] = revision
    return spec


def class_question(
    store: Store,
    settings: LLMSettings,
    template: TextTemplate,
    *,
    name: str = "",
    revision: str = "",
) -> Question:
    """Which classes a clip may be of, with probabilities.

    Args:
        store: whose taxonomy is asked for.
        settings: the model.
        template: cleans, and masks, the metadata.
        name: of the feature; default ``prior.<model>``.
        revision: of the model, where the server does not say.
    """
    taxonomy = store.clips.taxonomy
    prompt = class_prompt(taxonomy)

    def parse(reply: Reply) -> Row:
        parsed = parse_classes(reply, taxonomy)
        return Row(parsed.row, "", parsed.other, parsed.reason, parsed.dropped)

    spec = {
        **_common(prompt, settings, template, revision),
        **prior_facts(taxonomy),
    }
    name = name or f"{PRIOR}.{slug(settings.model)}"
    return Question(name, "prior", prompt, parse, spec, template)


def likelihood_question(
    store: Store, scorer: CausalScorer, template: TextTemplate, *, name: str = ""
) -> Question:
    """How likely each label is to a model that runs here; see `class_question`.

    Args:
        store: whose taxonomy is asked for.
        scorer: the model; loaded.
        template: cleans, and masks, the metadata.
        name: of the feature; default ``prior.<model>``.
    """
    taxonomy = store.clips.taxonomy
    prompt = likelihood_prompt(taxonomy)
    facts = scorer.spec()

    def parse(reply: Reply) -> Row:
        if reply.finish != "stop":
            return Row(np.zeros(len(taxonomy)), reason=reply.content)
        said = json.loads(reply.content)
        free = said["content_free"]
        scores = np.array([said["log_likelihoods"]])
        return Row(probabilities(scores, None if free is None else np.array(free))[0])

    spec = {
        **_common(prompt, LLMSettings(str(facts.pop("model"))), template, ""),
        "engine": "transformers",
        "revision": facts.pop("revision"),
        "revision_from": "files",
        "parameters": facts,
        **prior_facts(taxonomy),
    }
    name = name or f"{PRIOR}.{slug(scorer.name)}"
    return Question(name, "prior", prompt, parse, spec, template, parser=1)


def score_asks(
    asks: Sequence[Ask],
    question: Question,
    scorer: CausalScorer,
    labels: Sequence[str],
    on_replies: Callable[[list[Reply]], None],
) -> None:
    """Scores clips some at a time, so that a kill costs no more than these.

    Args:
        asks: the clips.
        question: see `likelihood_question`.
        scorer: its model.
        labels: the classes'.
        on_replies: called with the replies of each part; they are kept when this returns.
    """
    for start in range(0, len(asks), _CLIPS_AT_A_TIME):
        part = asks[start : start + _CLIPS_AT_A_TIME]
        found = scorer.score(question.prompt, [ask.content for ask in part], labels)
        free = None if found.content_free is None else found.content_free.tolist()
        on_replies(
            [
                Reply(ask.key, reason, "rejected", scorer.name)
                if reason
                else Reply(
                    ask.key,
                    json.dumps({"log_likelihoods": row.tolist(), "content_free": free}),
                    "stop",
                    scorer.name,
                )
                for ask, reason, row in zip(part, found.reasons, found.log_likelihoods, strict=True)
            ]
        )


def summary_question(
    settings: LLMSettings, template: TextTemplate, *, name: str = "", revision: str = ""
) -> Question:
    """What is heard in a clip, in one or two sentences; see `class_question`."""
    prompt = summary_prompt()

    def parse(reply: Reply) -> Row:
        parsed = parse_summary(reply)
        return Row(None, parsed.text, reason=parsed.reason)

    spec = {**_common(prompt, settings, template, revision), "kind": SUMMARY}
    name = name or f"{SUMMARY}.{slug(settings.model)}"
    return Question(name, "summary", prompt, parse, spec, template)


@dataclass(frozen=True)
class LLMReport:
    """What a store has of a question after asking.

    Attributes:
        name: of the feature or texts.
        path: the file.
        n_clips: clips of the store.
        n_rows: clips with a row that can be used.
        missing: why the others that were answered have none, with counts.
        n_left: clips without an answer yet.
        dropped: entries of replies that were left out, by why.
        other: mean share of the probability that went to no class; NaN where unknown.
        tokens_in: of all replies.
        tokens_out: of all replies.
    """

    name: str
    path: Path
    n_clips: int
    n_rows: int
    missing: Mapping[str, int]
    n_left: int
    dropped: Mapping[str, int]
    other: float
    tokens_in: int
    tokens_out: int

    def lines(self) -> list[str]:
        """The report as lines for the command line."""
        lines = [f"{self.name}: {self.n_rows} of {self.n_clips} clips -> {self.path}"]
        lines += [f"  {n} without: {reason}" for reason, n in sorted(self.missing.items())]
        if self.missing:
            lines.append("  they are asked again with --retry-failed")
        if self.dropped:
            listed = ", ".join(f"{n} {why}" for why, n in sorted(self.dropped.items()))
            lines.append(f"  entries of replies left out: {listed}")
        if not np.isnan(self.other):
            lines.append(f"  of the probability, {100 * self.other:.1f} % went to no class")
        if self.tokens_in:
            lines.append(f"  tokens: {self.tokens_in:,} in, {self.tokens_out:,} out")
        if self.n_left:
            lines.append(f"  {self.n_left} clips are not answered yet: run the same line again")
        return lines


class Stage:
    """A question about the clips of a store, and the answers so far.

    Args:
        store: the clips, and where the file goes.
        question: what is asked.

    Raises:
        PriorError: the store is in a remote place.
    """

    def __init__(self, store: Store, question: Question) -> None:
        self.store, self.question = store, question
        contents = clip_contents(store.clips, template=question.template)
        clips = store.clips.ids
        self.asks = tuple(Ask(str(c), text) for c, text in zip(clips, contents, strict=True))
        digest = spec_hash({**question.spec, "name": question.name})
        self.journal = Journal(store.path / f"{question.name}-{digest[:12]}.replies")

    @cached_property
    def _finished(self) -> tuple[dict[str, Reply], dict[str, str]]:
        """Replies in files that were written before, and what these know of the server."""
        replies: dict[str, Reply] = {}
        facts: dict[str, str] = {}
        for spec, rows in self._files():
            if first_difference(spec, self.question.spec) is not None:
                continue
            facts = {name: str(spec[name]) for name in ("schema", "revision") if name in spec}
            for text in rows:
                reply = Reply(**json.loads(text))
                replies[reply.key] = reply
        return replies, facts

    def _files(self) -> list[tuple[Spec, Sequence[str]]]:
        name = self.question.name
        if self.question.kind == "summary":
            texts = [t for t in list_texts(self.store.path) if t.name == name]
            return [(t.spec, t.rows.replies.tolist()) for t in texts]
        found: list[tuple[Spec, Sequence[str]]] = []
        for info in self.store.infos():
            if info.feature == name and kind_of(info.spec) is LANGUAGE_MODEL_PRIOR:
                rows = read_feature(info.path)
                if rows.checksum() != info.checksum:
                    raise CorruptStore(
                        f"{info.path} does not match its checksum: its replies cannot be trusted; "
                        "bring a copy back, or delete it and ask again"
                    )
                if rows.replies is not None:
                    found.append((info.spec, rows.replies.tolist()))
        return found

    def facts(self) -> dict[str, str]:
        """``schema`` and ``revision`` as the first answer showed them; empty before that."""
        return {k: str(v) for k, v in self.journal.facts().items()} or self._finished[1]

    def replies(self) -> dict[str, Reply]:
        """The replies so far by `Ask.key`."""
        return {**self._finished[0], **self.journal.replies()}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from asking the same; leaves no empty journal behind.

        Raises:
            StoreLocked: another process holds the lock.
        """
        with self.journal.lock():
            try:
                yield
            finally:
                self._tidy()

    def _tidy(self) -> None:
        """Removes a journal with nothing in it."""
        if {path.name for path in self.journal.folder.iterdir()} <= {"lock"}:
            self.journal.remove()

    def todo(self, *, is_failed_again: bool = False) -> list[Ask]:
        """The clips that have no answer.

        Args:
            is_failed_again: whether those count whose answer could not be read.
        """
        replies = self.replies()
        return [
            ask
            for ask in self.asks
            if ask.key not in replies
            or (is_failed_again and self.question.parse(replies[ask.key]).reason)
        ]

    def spent(self) -> tuple[int, int]:
        """Tokens in and out of all replies so far, estimated where the server does not count."""
        replies = self.replies()
        contents = {ask.key: ask.content for ask in self.asks}
        sent = answered = 0
        for key, reply in replies.items():
            # where the server does not count, what was estimated was spent
            content, prompt = contents.get(key, ""), self.question.prompt
            sent += reply.tokens_in or tokens_of_request(content, prompt)
            answered += reply.tokens_out or estimate_tokens(reply.content)
        return sent, answered

    def found(self, schema: SchemaMode, revision: str) -> None:
        """Keeps how the server is asked for JSON, and which model it says has answered."""
        self.journal.set_facts({"schema": schema, "revision": revision})

    def finish(self, provenance: Mapping[str, object]) -> LLMReport:
        """Reads all replies and writes the file, which holds them from then on.

        Replies about clips or metadata that the store has not now stay in the journal.

        Args:
            provenance: what else is to stand beside the spec.

        Raises:
            PriorError: there is no reply at all.
        """
        question, replies = self.question, self.replies()
        answered = [ask for ask in self.asks if ask.key in replies]
        if not answered:
            raise PriorError(f"{question.name}: no clip was answered, so there is nothing to write")
        facts = self.facts()
        spec = {**question.spec, **facts, "parser": question.parser}
        parsed = [question.parse(replies[ask.key]) for ask in answered]
        dropped: Counter[str] = Counter()
        for row in parsed:
            dropped.update(row.dropped)
        of_these = [replies[ask.key] for ask in answered]
        tokens = sum(r.tokens_in for r in of_these), sum(r.tokens_out for r in of_these)
        path = self._write(
            spec,
            answered,
            parsed,
            of_these,
            {**provenance, "system": question.prompt.system[:_MOST_WORDS], "tokens_in": tokens[0],
             "tokens_out": tokens[1], "dropped": dict(dropped)},
        )  # fmt: skip
        n_left = len(self.asks) - len(answered)
        facts_known = self.journal.facts()
        self.journal.clear()
        asked = {ask.key for ask in self.asks}
        left = [reply for key, reply in replies.items() if key not in asked]
        if left:  # of clips, or of texts, that the table has not now and may have again
            self.journal.extend(left)
            self.journal.set_facts(facts_known or dict(facts))
        self.__dict__.pop("_finished", None)
        other = np.array([row.other for row in parsed])
        return LLMReport(
            name=question.name,
            path=path,
            n_clips=len(self.asks),
            n_rows=sum(not row.reason for row in parsed),
            missing=Counter(row.reason.partition(":")[0] for row in parsed if row.reason),
            n_left=n_left,
            dropped=dropped,
            other=float(np.nanmean(other)) if np.isfinite(other).any() else float("nan"),
            tokens_in=tokens[0],
            tokens_out=tokens[1],
        )

    def _write(
        self,
        spec: Spec,
        answered: Sequence[Ask],
        parsed: Sequence[Row],
        replies: Sequence[Reply],
        provenance: Mapping[str, object],
    ) -> Path:
        def strings(values: Sequence[str]) -> np.ndarray:
            column = np.empty(len(values), object)
            # a lone surrogate, which a model may well answer, has no UTF-8
            column[:] = [value.encode(errors="replace").decode() for value in values]
            return column

        ids = strings([ask.clip for ask in answered])
        sources = strings([ask.sha256 for ask in answered])
        state = np.array([FAILED if row.reason else OK for row in parsed], np.uint8)
        reasons = strings([row.reason for row in parsed])
        raw = strings([json.dumps(dataclasses.asdict(reply)) for reply in replies])
        name, store = self.question.name, self.store.path
        if self.question.kind == "summary":
            texts = strings([row.text for row in parsed])
            rows = TextRows(ids, sources, state, reasons, texts, raw)
            return write_texts_file(store, name, spec, rows, provenance)
        values = np.stack([row.values for row in parsed if row.values is not None])
        feature_rows = FeatureRows(
            ids=ids,
            source_sha256=sources,
            state=state,
            reasons=reasons,
            embedding=values.astype(np.float32),
            other=np.array([row.other for row in parsed], np.float32),
            replies=raw,
        )
        path = feature_path(store, name, spec)
        write_changed_feature(path, name, spec, feature_rows, provenance)
        return path
