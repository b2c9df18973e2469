"""Class probabilities and summaries out of what a language model answered.

The rules for probabilities are those of the CP-JKU submission to DCASE 2026 Task 1 (report and
code): labels that the taxonomy does not have, what is no number and what is not above 0 are
dropped; so is `OTHER`; the rest is scaled to sum to 1; and where nothing is left the row is
zeros, the mark of a missing prior. Beyond them, each drop is counted and each missing row says
why.

A reply is searched for JSON wherever it stands: in a code fence, between other words, after
reasoning in ``<think>`` tags. Trailing commas are allowed. What is cut off is not used, not even
its whole entries: the classes that come first would get the mass of those that are missing.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.priors.ask import Reply
from bsdkit.priors.prompt import OTHER, cut_text, fold_label
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "MAX_SUMMARY_CHARACTERS",
    "PARSER_VERSION",
    "ParsedClasses",
    "ParsedSummary",
    "parse_classes",
    "parse_summary",
]

PARSER_VERSION = 1
"""Raised whenever the same reply would give another row or summary."""

MAX_SUMMARY_CHARACTERS = 1000
"""Where a summary is cut, at the end of a sentence or else of a word."""

_MAX_EXCERPT = 120
_NO_ANSWER = {
    "refusal": "refused",
    "content_filter": "stopped by the content filter",
    "rejected": "rejected by the server",
}
_OTHER_POSITION = -1

_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?(?:\s?%)?"
_WHOLE_NUMBER = re.compile(_NUMBER)
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_TOKEN = re.compile(
    rf"\s*+([\[\]{{}},:]|{_STRING}|{_NUMBER}|true|false|null|[-+]?(?:NaN|Infinity))", re.DOTALL
)
# Kinds of tokens, and those that may come next; a closing bracket may follow a comma.
_MARKS = '[]{},:"'
_SCALAR = "0"
_VALUE = '[{"0'
_ITEM = '[{"0]'
_KEY = '"}'
_CONSTANTS = {"true": True, "false": False, "null": None}
_OPENING = re.compile(r"[\[{]")
_BRACKET = re.compile(rf"{_STRING}|\\.|[\[\]{{}}]", re.DOTALL)
# What may stand before the JSON of an answer that ran on until it was cut off.
_LEAD = re.compile(r"\s*(?:```\w*\s*)?")
_REFUSAL = re.compile(
    r"\W*(?:i(?:['\u2019]?m| am) (?:sorry|unable)|sorry|i can(?:not|['\u2019]?t)|as an ai)\b",
    re.IGNORECASE,
)
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

    The first JSON value with a usable class counts: ``{"classes": [...]}``, its list alone, a
    list of pairs of label and probability, or an object with a probability for each label.
    Labels may differ in case and kind of dash; a class's name does for its label if no other
    class could be meant. Numbers may stand in quotes and as percentages.
    """
    reading = _read(reply)
    dropped: Counter[str] = Counter()
    mended: Counter[str] = Counter()
    labels = _labels_of(taxonomy)
    other = math.nan
    for value in reading.values:
        found = _Found()
        for label, probability in _entries(value, found):
            found.take(labels, label, probability)
        share, row = found.shares(len(taxonomy))
        if row is not None:
            return ParsedClasses(row, share, "", found.dropped, found.mended)
        other = share if math.isnan(other) else other
        dropped += found.dropped
        mended += found.mended
    empty = np.zeros(len(taxonomy))
    empty.setflags(write=False)
    reason = reading.otherwise or "no class with a positive probability"
    return ParsedClasses(empty, other, reason, dropped, mended)


def parse_summary(reply: Reply) -> ParsedSummary:
    """The summary in a reply, as one line of text; nothing is raised.

    The first JSON object with a ``summary`` that is not empty counts. A reply that ended by
    itself and has no JSON at all is the summary, unless it begins as refusals do.
    """
    reading = _read(reply)
    reason = reading.otherwise or "no summary in the JSON"
    texts = [
        text
        for value in reading.values
        if isinstance(value, _Object)
        for key, text in value
        if key == "summary" and isinstance(text, str)
    ]
    if reading.is_plain:
        if _REFUSAL.match(reading.text):
            words = cut_text(_one_line(reading.text), _MAX_EXCERPT)
            return ParsedSummary("", f"refused: {words}")
        texts.append(reading.text)
    for text in texts:
        line = _one_line(text)
        if line:
            return ParsedSummary(_cut_sentence(line, MAX_SUMMARY_CHARACTERS), "")
    return ParsedSummary("", "empty summary" if texts else reason)


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
        number = _number(probability)
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

    def shares(self, n_classes: int) -> tuple[float, npt.NDArray[np.float64] | None]:
        """The share of `OTHER`, NaN where there is no mass, and the row, None without a class."""
        if not self.mass:
            return math.nan, None
        # by the largest first: a sum of huge numbers would be infinite
        largest = max(self.mass.values())
        total = sum(number / largest for number in self.mass.values())
        share = self.mass.pop(_OTHER_POSITION, 0.0) / largest / total
        if not self.mass:
            return share, None
        row = np.zeros(n_classes)
        row[list(self.mass)] = list(self.mass.values())
        row /= row.max()
        row /= row.sum()
        row.setflags(write=False)
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


class _Object(list[tuple[str, Any]]):
    """The members of a JSON object; a key may stand there twice."""


def _member(members: _Object, key: str, found: _Found) -> Any:
    """The first value of a key; None where it is missing."""
    values = [value for name, value in members if name == key]
    if len(values) > 1:
        found.dropped["duplicate key"] += len(values) - 1
    return values[0] if values else None


def _entries(value: Any, found: _Found) -> Iterator[tuple[Any, Any]]:
    """Label and probability of each entry of a JSON value."""
    if isinstance(value, _Object) and any(
        key == "classes" and isinstance(inner, list) for key, inner in value
    ):
        value = _member(value, "classes", found)
    if isinstance(value, _Object):
        yield from value
        return
    for entry in value if isinstance(value, list) else ():
        if isinstance(entry, _Object):
            if any(key == "label" for key, _ in entry):
                label = _member(entry, "label", found)
                yield label, _member(entry, "probability", found)
            else:
                yield from entry
        elif isinstance(entry, list) and len(entry) == 2:
            yield entry[0], entry[1]
        else:
            found.dropped["not an object"] += 1


def _number(value: Any) -> float:
    """A number, or NaN where it is none; text may hold one, also as a percentage."""
    if isinstance(value, float):
        return value
    if not isinstance(value, str):
        return math.nan
    text = value.strip()
    if not _WHOLE_NUMBER.fullmatch(text):
        return math.nan
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


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
    # some chat templates open the reasoning in the request, so that only its end is in the reply
    text, is_thinking, _ = reply.content.rpartition("</think>")[2].partition("<think>")
    values, is_broken = _json_values(text)
    if is_cut:
        # A whole answer may stand before words without end. Anywhere else it may be a draft.
        lead = _LEAD.match(text)
        values = [found for found in values[:1] if lead and found[0] == lead.end()]
        otherwise = "cut off at max_tokens"
    elif is_thinking:
        otherwise = "cut off within <think>"
    elif not text.strip():
        otherwise = "empty reply"
    elif is_broken:
        otherwise = "broken or cut-off JSON in the reply"
    else:
        otherwise = "" if values else "no JSON in the reply"
    is_plain = otherwise == "no JSON in the reply" and reply.finish == "stop"
    return _Reading([value for _, value in values], otherwise, text, is_plain)


def _json_values(text: str) -> tuple[list[tuple[int, Any]], bool]:
    """Where each JSON object or array starts, and what it is; and whether one is broken.

    One inside another is not looked at, also if the outer one is broken.
    """
    values = []
    is_broken = False
    opening = _OPENING.search(text)
    while opening:
        start = opening.start()
        try:
            value, end = _decode(text, start)
            values.append((start, value))
        except _NotJson as error:
            end = error.position
            if error.has_begun:
                is_broken = True
                end = _closing(text, start)
        opening = _OPENING.search(text, end)
    return values, is_broken


class _NotJson(Exception):
    """What stands at `position` is not JSON; `has_begun` if more than brackets precedes it."""

    def __init__(self, position: int, has_begun: bool) -> None:
        super().__init__(position)
        self.position = position
        self.has_begun = has_begun


def _closing(text: str, start: int) -> int:
    """The end of the brackets that open at `start`; of the text where they stay open."""
    depth = 0
    for found in _BRACKET.finditer(text, start):
        if found[0] in ("[", "{"):
            depth += 1
        elif found[0] in ("]", "}"):
            depth -= 1
            if not depth:
                return found.end()
    return len(text)


def _decode(text: str, start: int) -> tuple[Any, int]:
    """The JSON object or array at `start`, and where it ends; every number is a float.

    The standard library's reader recurses, refuses trailing commas and numbers of many digits.

    Raises:
        _NotJson: it is none, or it does not end.
    """
    stack: list[list[Any]] = []
    keys: list[str] = []
    wanted = "[{"
    has_begun = False
    position = start
    while True:
        found = _TOKEN.match(text, position)
        if found is None:
            raise _NotJson(position, has_begun)
        token = found[1]
        kind = token[0] if token[0] in _MARKS else _SCALAR
        if kind not in wanted:
            raise _NotJson(position, has_begun)
        position = found.end()
        if kind == ",":
            wanted = _KEY if isinstance(stack[-1], _Object) else _ITEM
        elif kind == ":":
            wanted = _VALUE
        elif kind == "{":
            stack.append(_Object())
            wanted = _KEY
        elif kind == "[":
            stack.append([])
            wanted = _ITEM
        elif wanted == _KEY and kind == '"':
            keys.append(_unquoted(token))
            has_begun = True
            wanted = ":"
        else:
            if kind in "]}":
                value: Any = stack.pop()
                if not stack:
                    return value, position
            else:
                value = _scalar(token)
                has_begun = True
            holder = stack[-1]
            is_object = isinstance(holder, _Object)
            holder.append((keys.pop(), value) if is_object else value)
            wanted = ",}" if is_object else ",]"


def _scalar(token: str) -> Any:
    """The string, number or constant that a token stands for."""
    if token.startswith('"'):
        return _unquoted(token)
    if token in _CONSTANTS:
        return _CONSTANTS[token]
    return _number(token)  # NaN for Infinity too: neither is JSON


def _unquoted(token: str) -> str:
    """The text of a JSON string; as it stands where an escape in it is wrong."""
    if "\\" not in token:
        return token[1:-1]
    try:
        return str(json.loads(token, strict=False))
    except ValueError:
        return token[1:-1]


def _one_line(text: str) -> str:
    """The text with every run of spaces and of what cannot be printed made one space."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _cut_sentence(text: str, limit: int) -> str:
    """The first sentences of a text, `limit` characters at most; else its first words."""
    if len(text) <= limit:
        return text
    ends = [found.end() for found in _SENTENCE_END.finditer(text, 0, limit + 1)]
    return text[: ends[-1]] if ends and ends[-1] > limit // 2 else cut_text(text, limit)
