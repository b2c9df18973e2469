"""Changes to a recipe by dotted keys: ``members.fused.dropout=0,0.3,0.5``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from bsdkit.errors import RecipeError, nearest
from bsdkit.heads.registry import head_parameters
from bsdkit.recipe.schema import MemberRecipe, Recipe, recipe_from
from bsdkit.recipe.teaching import as_number

__all__ = ["Variation", "changed", "combinations", "parse_variation", "value_at"]


@dataclass(frozen=True)
class Variation:
    """A key of a recipe and the values that it takes in turn."""

    key: str
    values: tuple[Any, ...]


def parse_variation(text: str) -> Variation:
    """The variation that ``KEY=VALUE,VALUE,...`` says; values are YAML.

    A value that holds commas stands in brackets: ``members.a.features=[x,y],[x]``.

    Raises:
        RecipeError: there is no key or no value.

    Examples:
        >>> parse_variation("members.fused.dropout=0,0.3")
        Variation(key='members.fused.dropout', values=(0, 0.3))
        >>> parse_variation("members.a.features=[x, y],[x]").values
        (['x', 'y'], ['x'])
    """
    key, equals, listed = text.partition("=")
    try:
        values = yaml.safe_load(f"[{listed}]")
    except yaml.YAMLError:
        values = None
    if not equals or not key.strip() or not values:
        raise RecipeError(
            f"--vary {text!r} is not KEY=VALUE,VALUE,...; for example members.fused.dropout=0,0.3"
        )
    return Variation(key.strip(), tuple(as_number(value) for value in values))


def combinations(variations: Sequence[Variation]) -> list[dict[str, Any]]:
    """Every combination of the variations' values, the last key changing fastest.

    Raises:
        RecipeError: a key stands twice.
    """
    keys = [variation.key for variation in variations]
    for key in keys:
        if keys.count(key) > 1:
            raise RecipeError(f"--vary names {key} twice; list all its values in one")
    chosen = itertools.product(*(variation.values for variation in variations))
    return [dict(zip(keys, values, strict=True)) for values in chosen]


def value_at(recipe: Recipe, key: str) -> Any:
    """The value of a dotted key of a recipe, the head's default where the recipe is silent.

    Raises:
        RecipeError: there is no such key; the message names the nearest.
    """
    path = key.split(".")
    node: Any = recipe.model_dump(mode="python")
    for i, part in enumerate(path):
        at = ".".join(path[:i])
        if node is None:
            raise RecipeError(f"{key}: the recipe has no {at}; write {at}: {{}} in it first")
        if isinstance(node, list | tuple) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]  # e.g. the second store of a member's extra clips
            continue
        if not isinstance(node, Mapping):
            raise RecipeError(f"{key}: {at or 'the recipe'} has no parts")
        known = list(node)
        if i == 2 and path[0] == "members":
            if node["imported"]:
                raise RecipeError(f"{key}: member {path[1]!r} is imported, it has no settings here")
            defaults = head_parameters(node["head"])
            node, known = {**defaults, **node}, [*known, *defaults]
        if part not in node:
            raise RecipeError(f"no {part!r} in {at or 'the recipe'}: {nearest(part, known)}")
        node = node[part]
    return node


def changed(recipe: Recipe, changes: Mapping[str, Any], origin: str = "--vary") -> Recipe:
    """The recipe with the values of some dotted keys replaced.

    Args:
        recipe: the recipe.
        changes: values by dotted key.
        origin: what an error names as the place of the changes.

    Raises:
        RecipeError: there is no such key, or a value that no recipe may have.
    """
    data = recipe.model_dump(mode="python")
    for name, member in data["members"].items():
        # what a member leaves to the recipe must stay left to it
        for field, info in MemberRecipe.model_fields.items():
            if not info.is_required() and member[field] == info.get_default():
                del data["members"][name][field]
    for key, value in changes.items():
        value_at(recipe, key)
        path = key.split(".")
        node = data
        for part in path[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else node[int(part)]
        node[path[-1]] = value
    shown = ", ".join(f"{key}={value}" for key, value in changes.items())
    return recipe_from(data, f"{origin} {shown}".strip())
