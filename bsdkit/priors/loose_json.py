"""JSON as language models write it, found wherever it stands in a text.

Trailing commas are allowed, raw line breaks in strings, percentages and numbers of any length.
What is broken or cut off is passed over whole.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

__all__ = ["Members", "as_number", "json_values"]

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


class Members(list[tuple[str, Any]]):
    """The members of a JSON object; a key may stand there twice."""


def as_number(value: Any) -> float:
    """A number, or NaN where it is none; text may hold one, also as a percentage."""
    if isinstance(value, float):
        return value
    if not isinstance(value, str):
        return math.nan
    text = value.strip()
    if not _WHOLE_NUMBER.fullmatch(text):
        return math.nan
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def json_values(text: str) -> tuple[list[tuple[int, Any]], bool]:
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
            wanted = _KEY if isinstance(stack[-1], Members) else _ITEM
        elif kind == ":":
            wanted = _VALUE
        elif kind == "{":
            stack.append(Members())
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
            is_object = isinstance(holder, Members)
            holder.append((keys.pop(), value) if is_object else value)
            wanted = ",}" if is_object else ",]"


def _scalar(token: str) -> Any:
    """The string, number or constant that a token stands for."""
    if token.startswith('"'):
        return _unquoted(token)
    if token in _CONSTANTS:
        return _CONSTANTS[token]
    return as_number(token)  # NaN for Infinity too: neither is JSON


def _unquoted(token: str) -> str:
    """The text of a JSON string; as it stands where an escape in it is wrong."""
    if "\\" not in token:
        return token[1:-1]
    try:
        return str(json.loads(token, strict=False))
    except ValueError:
        return token[1:-1]
