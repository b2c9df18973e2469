"""What is wrong with a recipe, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from bsdkit.errors import nearest

__all__ = ["first_problem"]


def first_problem(
    error: ValidationError, data: Mapping[str, Any], parts: Mapping[str, Any], whole: Any
) -> str:
    """The first complaint of pydantic in one line, with the nearest key for an unknown one.

    Args:
        error: the complaints.
        data: what was read.
        parts: models of the blocks with keys of their own, by name.
        whole: the model of everything else.
    """
    # an unknown key explains a missing one better than the other way round
    unknown = ("extra_forbidden", "unexpected_keyword_argument")  # of a model, of a dataclass
    problems = sorted(error.errors(), key=lambda problem: problem["type"] not in unknown)
    first = problems[0]
    place, holder = _place(first["loc"], data)
    where = ".".join(place)
    if first["type"] in unknown:
        blocks = [part for part in place[:-1] if part in parts]
        model = parts[blocks[-1]] if blocks else whole
        return f"unknown key {where!r}: {nearest(place[-1], model.__pydantic_fields__)}"
    if first["type"] == "missing":
        if "import" in holder:
            return f"{where!r} is missing; write imported: for import:"
        close = difflib.get_close_matches(place[-1], list(holder), n=1)
        return f"{where!r} is missing" + (f"; is {close[0]!r} meant to be it?" if close else "")
    if first["type"] in ("model_type", "dict_type", "dataclass_type"):
        return f"{where} is {first['input']!r}, expected parts with names, {where}: {{...}}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where} is {first['input']!r}: {message}"


def _place(loc: Sequence[int | str], data: Any) -> tuple[list[str], Any]:
    """Names and positions down to a complaint, as they were written, and what holds the last.

    What stands alone for a list of one has no position there.
    """
    place, found, holder = [], data, data
    for part in loc:
        if isinstance(part, int) and not isinstance(found, list):
            continue
        place.append(str(part))
        holder, found = found, _within(found, part)
    return place, holder


def _within(found: Any, part: int | str) -> Any:
    try:
        return found[part]
    except (KeyError, IndexError, TypeError):
        return None
