"""What a recipe calls by name, each with its own words, declared where it is defined."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic_core import PydanticCustomError

from bsdkit.errors import RecipeError, nearest

__all__ = ["Registry"]

T = TypeVar("T")


class Registry(dict[str, T]):
    """Entries by name, in the order in which they were registered.

    Whatever lists, validates or describes the names reads the registry, so a new entry is
    written in one place.

    Args:
        kind: what an error calls an entry, such as ``calibration``.

    Raises:
        RecipeError: a name is looked up that is not registered; the message names the nearest.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def __missing__(self, name: str) -> T:
        raise RecipeError(f"{self.kind} {name!r} is not known; {nearest(str(name), self)}")

    def add(self, name: str, entry: T) -> None:
        """Registers an entry.

        Raises:
            ValueError: the name is taken.
        """
        if name in self:
            raise ValueError(f"{self.kind} {name!r} is registered twice; choose another name")
        self[name] = entry

    def known(self, name: str) -> str:
        """The name, for a field of a recipe that may hold registered names alone.

        Raises:
            PydanticCustomError: it is not registered; the message names the nearest.
        """
        if name not in self:
            said: dict[str, Any] = {"choices": nearest(name, self)}
            raise PydanticCustomError("unknown_name", "{choices}", said)
        return name
