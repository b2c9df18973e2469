"""Class probabilities and summaries out of what a language model answered.

The rules for probabilities are those of the CP-JKU submission to DCASE 2026 Task 1 (report and
code): labels that the taxonomy does not have, what is no number and what is not above 0 are
dropped; so is `OTHER`; the rest is scaled to sum to 1; and where nothing is left the row is
zeros, the mark of a missing prior. Beyond them, each drop is counted and each missing row says
why.

A reply is searched for JSON wherever it stands outside of the model's reasoning: in a code fence,
between other words. The last whole answer counts, and none where another one differs: which of
them the model means is not known. What is cut off is not used, not even its whole entries: the
classes that come first would get the mass of those that are missing.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.priors.ask import Reply
from bsdkit.priors.loose_json import Members, as_number, json_values
from bsdkit.priors.prompt import OTHER, cut_text, fold_label
from bsdkit.priors.reasoning import cut_reasoning, without_tokens
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "MAX_SUMMARY_CHARACTERS",
    "PARSER_VERSION",
    "ParsedClasses",
    "ParsedSummary",
    "parse_classes",
    "parse_summary",
]

PARSER_VERSION = 2
"""Raised whenever the same reply would give another row or summary."""

MAX_SUMMARY_CHARACTERS = 1000
"""Where a summary is cut, at the end of a sentence or else of a word."""

_MAX_EXCERPT = 120
_NO_ANSWER = {
    "refusal": "refused",
    "content_filter": "stopped by the content filter",
    "rejected": "rejected by the server",
}
_TWO = "two different answers"
_OTHER_POSITION = -1

# What may stand before the JSON of an answer that ran on until it was cut off.
_LEAD = re.compile(r"\s*(?:```\w*\s*)?")
_REFUSAL = re.compile(
    r"\W*(?:i(?:['\u2019]?m| am) (?:sorry|unable)|sorry|i can(?:not|['\u2019]?t)|as an ai)\b",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\w")
_SENTENCE_END = re.compile(r"[.!?](?= )")


@dataclass(frozen=True, eq=False)
class ParsedClasses:
    """The class probabilities in a reply.

    Attributes:
        row: probabilities [n_classes] in the taxonomy's order that sum to 1; all zeros where
            there are none.
        other: the share of `OTHER` in all probability given, 1 where no class has any; NaN
            where nothing has.
        reason: why the row is missing; empty where it is not.
        dropped: entries left out, by why: ``unknown label``, ``not a number``, ``not positive``,
            ``duplicate label`` (the first one counts), ``duplicate key`` (the same),
            ``not an object``.
        mended: entries that were taken although they were not as asked for, by why:
            ``name for label``.
    """

    row: npt.NDArray[np.float64]
    other: float
    reason: str
    dropped: Mapping[str, int]
    mended: Mapping[str, int]


@dataclass(frozen=True)
class ParsedSummary:
    """The summary in a reply.

    Attributes:
        text: one line; empty where there is none.
        reason: why it is missing; empty where it is not.
    """

    text: str
    reason: str


def parse_classes(reply: Reply, taxonomy: Taxonomy) -> ParsedClasses:
    """The class probabilities in a reply, whatever it holds; nothing is raised.

    The last JSON value with a usable class counts: ``{"classes": [...]}``, its list alone, a
    list of pairs of label and probability, or an object with a probability for each label. Two
    that give the classes other shares make the row a missing one.
    Labels may differ in case and kind of dash; a class's name does for its label if no other
    class could be meant. Numbers may stand in quotes and as percentages.
    """
    reading = _read(reply)
    dropped: Counter[str] = Counter()
    mended: Counter[str] = Counter()
    labels = _labels_of(taxonomy)
    answers: list[tuple[float, npt.NDArray[np.float64], _Found]] = []
    for value in reading.values:
        found = _Found()
        for label, probability in _entries(value, found):
            found.take(labels, label, probability)
        share, row = found.shares(len(taxonomy))
        if not math.isnan(share):
            answers.append((share, row, found))
        dropped += found.dropped
        mended += found.mended
    other, row, found = answers[-1] if answers else (math.nan, np.zeros(len(taxonomy)), _Found())
    reason = reading.otherwise or "no class with a positive probability"
    differing = [r for o, r, _ in answers if not np.allclose([o, *r], [other, *row], atol=1e-9)]
    if differing:
        first, last = (_in_words(r, taxonomy) for r in (differing[0], row))
        reason, other, row = f"{_TWO}: {first}, then {last}", math.nan, np.zeros(len(taxonomy))
    elif row.any():
        reason, dropped, mended = "", found.dropped, found.mended
    row.setflags(write=False)
    return ParsedClasses(row, other, reason, dropped, mended)


def _in_words(row: npt.NDArray[np.float64], taxonomy: Taxonomy) -> str:
    return f"{taxonomy.labels[row.argmax()]} {row.max():.2f}" if row.any() else OTHER


def parse_summary(reply: Reply) -> ParsedSummary:
    """The summary in a reply, as one line of text; nothing is raised.

    The last JSON object with a ``summary`` that has a letter counts; another text in another one
    makes the summary a missing one. A reply that ended by itself and has no JSON at all is the
    summary, unless it begins as refusals do.
    """
    reading = _read(reply)
    reason = reading.otherwise or "no summary in the JSON"
    found = [
        [text for key, text in value if key == "summary" and isinstance(text, str)]
        for value in reading.values
        if isinstance(value, Members)
    ]
    if reading.is_plain:
        text = without_tokens(reading.text)
        if _REFUSAL.match(text):
            return ParsedSummary("", f"refused: {cut_text(_one_line(text), _MAX_EXCERPT)}")
        found.append([text])
    # a key may stand there twice, and the example of the prompt is three dots
    lines = [next((x for x in map(_one_line, texts) if _LETTER.search(x)), "") for texts in found]
    lines = [line for line in lines if line]
    differing = [line for line in lines if line != lines[-1]]
    if differing:
        first, last = (cut_text(line, _MAX_EXCERPT) for line in (differing[0], lines[-1]))
        return ParsedSummary("", f"{_TWO}: {first}, then {last}")
    if lines:
        return ParsedSummary(_cut_sentence(lines[-1], MAX_SUMMARY_CHARACTERS), "")
    return ParsedSummary("", "empty summary" if any(found) else reason)


@dataclass
class _Found:
    """What one JSON value says of the classes.

    Attributes:
        mass: by class position, or `_OTHER_POSITION`, a finite number above 0.
        dropped: see `ParsedClasses`.
        mended: see `ParsedClasses`.
    """

    mass: dict[int, float] = field(default_factory=dict)
    dropped: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)

    def take(self, labels: _Labels, label: Any, probability: Any) -> None:
        """Takes or drops an entry."""
        position, is_name = labels.find(label)
        number = as_number(probability)
        if position is None:
            self.dropped["unknown label"] += 1
        elif not math.isfinite(number):
            self.dropped["not a number"] += 1
        elif number <= 0:
            self.dropped["not positive"] += 1
        elif position in self.mass:
            # A sum would reward a model that runs in circles.
            self.dropped["duplicate label"] += 1
        else:
            self.mass[position] = number
            if is_name:
                self.mended["name for label"] += 1

    def shares(self, n_classes: int) -> tuple[float, npt.NDArray[np.float64]]:
        """The share of `OTHER`, NaN where there is no mass, and the row, zeros without a class."""
        row = np.zeros(n_classes)
        if not self.mass:
            return math.nan, row
        # by the largest first: a sum of huge numbers would be infinite
        largest = max(self.mass.values())
        total = sum(number / largest for number in self.mass.values())
        share = self.mass.pop(_OTHER_POSITION, 0.0) / largest / total
        if self.mass:
            row[list(self.mass)] = list(self.mass.values())
            row /= row.max()
            row /= row.sum()
        return share, row


@dataclass(frozen=True)
class _Labels:
    """What a class may be called, by how it is written and folded."""

    exact: Mapping[str, int]
    folded: Mapping[str, int]
    names: Mapping[str, int]

    def find(self, label: Any) -> tuple[int | None, bool]:
        """The position of a class, None where there is none, and whether its name was given."""
        if not isinstance(label, str):
            return None, False
        if label in self.exact:
            return self.exact[label], False
        folded = fold_label(label)
        if folded in self.folded:
            return self.folded[folded], False
        return self.names.get(folded), folded in self.names


def _labels_of(taxonomy: Taxonomy) -> _Labels:
    # taxonomies are equal whatever their classes are named
    return _make_labels(taxonomy.labels, tuple(leaf.name for leaf in taxonomy.classes))


@functools.lru_cache(maxsize=8)
def _make_labels(labels: tuple[str, ...], names: tuple[str, ...]) -> _Labels:
    exact = {label: position for position, label in enumerate(labels)}
    n_folded = Counter(map(fold_label, labels))
    # two labels that differ in case alone are told apart by it or not at all
    folded = {fold_label(x): i for x, i in exact.items() if n_folded[fold_label(x)] == 1}
    if OTHER not in n_folded:
        folded[OTHER] = _OTHER_POSITION
    n_names = Counter(map(fold_label, names))
    by_name = {
        name: position
        for position, name in enumerate(map(fold_label, names))
        if name and n_names[name] == 1 and name not in n_folded
    }
    return _Labels(exact, folded, by_name)


def _member(members: Members, key: str, found: _Found) -> Any:
    """The first value of a key; None where it is missing."""
    values = [value for name, value in members if name == key]
    if len(values) > 1:
        found.dropped["duplicate key"] += len(values) - 1
    return values[0] if values else None


def _entries(value: Any, found: _Found) -> Iterator[tuple[Any, Any]]:
    """Label and probability of each entry of a JSON value."""
    if isinstance(value, Members) and any(
        key == "classes" and isinstance(inner, list) for key, inner in value
    ):
        value = _member(value, "classes", found)
    if isinstance(value, Members):
        yield from value
        return
    for entry in value if isinstance(value, list) else ():
        if isinstance(entry, Members):
            if any(key == "label" for key, _ in entry):
                label = _member(entry, "label", found)
                yield label, _member(entry, "probability", found)
            else:
                yield from entry
        elif isinstance(entry, list) and len(entry) == 2:
            yield entry[0], entry[1]
        else:
            found.dropped["not an object"] += 1


@dataclass(frozen=True)
class _Reading:
    """What a reply holds.

    Attributes:
        values: JSON objects and arrays, in order.
        otherwise: why none of them can be used; empty if they are whole.
        text: the reply without its reasoning.
        is_plain: whether the reply ended by itself and has words but no JSON.
    """

    values: list[Any]
    otherwise: str
    text: str = ""
    is_plain: bool = False


def _read(reply: Reply) -> _Reading:
    if reply.finish in _NO_ANSWER:
        words = cut_text(_one_line(reply.content), _MAX_EXCERPT)
        what = _NO_ANSWER[reply.finish]
        return _Reading([], f"{what}: {words}" if words else what)
    is_cut = reply.finish == "length"
    text, mark = cut_reasoning(reply.content)
    values, is_broken = json_values(text)
    if is_cut:
        # A whole answer may stand before words without end. Anywhere else it may be a draft.
        lead = _LEAD.match(text)
        values = values if lead and values and values[0][0] == lead.end() else []
        otherwise = "cut off at max_tokens"
    elif mark:
        otherwise = f"cut off within {mark}"
    elif not text.strip():
        otherwise = "empty reply"
    elif is_broken:
        otherwise = "broken or cut-off JSON in the reply"
    else:
        otherwise = "" if values else "no JSON in the reply"
    is_plain = otherwise == "no JSON in the reply" and reply.finish == "stop"
    return _Reading([value for _, value in values], otherwise, text, is_plain)


def _one_line(text: str) -> str:
    """The text with every run of spaces and of what cannot be printed made one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _cut_sentence(text: str, limit: int) -> str:
    """The first sentences of a text, `limit` characters at most; else its first words."""
    if len(text) <= limit:
        return text
    ends = [found.end() for found in _SENTENCE_END.finditer(text, 0, limit + 1)]
    return text[: ends[-1]] if ends and ends[-1] > limit // 2 else cut_text(text, limit)
