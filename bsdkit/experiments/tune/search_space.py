"""What a search may propose: ranges and choices by key, read and checked against a recipe."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
import yaml

from bsdkit.errors import RecipeError, nearest
from bsdkit.members.trainer import member_plan
from bsdkit.recipe.schema import Recipe
from bsdkit.recipe.teaching import as_number
from bsdkit.recipe.vary import changed, value_at

__all__ = ["Choices", "Range", "Space", "as_json", "parse_search", "search_space"]

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*\.\.\s*({_NUMBER})\s*(:log)?\s*")


@dataclass(frozen=True)
class Range:
    """Numbers between two ends, both included.

    Attributes:
        low: lower end.
        high: upper end.
        is_log: whether they are spread evenly over the logarithm.
        is_whole: whether only whole numbers are tried.
    """

    low: float
    high: float
    is_log: bool = False
    is_whole: bool = False

    def ends(self) -> list[Any]:
        """Values to check before the search."""
        kind = int if self.is_whole else float
        return [kind(self.low), kind(self.high)]

    def stored(self, value: Any) -> Any:
        """A number as the storage has it; None for one outside the range."""
        return value if self.low <= value <= self.high else None

    def suggest(self, trial: optuna.Trial, key: str) -> Any:
        """The sampler's proposal."""
        suggest = trial.suggest_int if self.is_whole else trial.suggest_float
        return suggest(key, *self.ends(), log=self.is_log)

    def value(self, stored: Any) -> Any:
        """The value that `stored` stands for."""
        return stored


@dataclass(frozen=True)
class Choices:
    """Values without an order.

    Attributes:
        values: what a recipe may hold: numbers, words, lists.
    """

    values: tuple[Any, ...]

    @property
    def _texts(self) -> list[str]:
        # a storage holds scalars only, and takes 1 and 1.0 and true for the same
        return [as_json(value) for value in self.values]

    def ends(self) -> list[Any]:
        """Values to check before the search."""
        return list(self.values)

    def stored(self, value: Any) -> Any:
        """A value as the storage has it; None for one that is no choice."""
        text = as_json(value)
        return text if text in self._texts else None

    def suggest(self, trial: optuna.Trial, key: str) -> Any:
        """The sampler's proposal."""
        return self.value(trial.suggest_categorical(key, self._texts))

    def value(self, stored: Any) -> Any:
        """The value that `stored` stands for."""
        return self.values[self._texts.index(stored)]


Space = Range | Choices

_TORCH_SPACE: dict[str, Space] = {
    "learning_rate": Range(1e-4, 1e-2, is_log=True),
    "weight_decay": Range(1e-5, 1e-1, is_log=True),
    "dropout": Range(0.0, 0.6),
    "input_dropout": Range(0.0, 0.4),
    "hidden": Range(64, 1024, is_log=True),
    "label_smoothing": Range(0.0, 0.2),
    "mixup": Range(0.0, 0.4),
}
_PLAIN_SPACE: dict[str, Space] = {
    "C": Range(1e-4, 10.0, is_log=True),
    "k": Range(3, 60, is_log=True),
    "temperature": Range(0.01, 0.5, is_log=True),
    "smoothing": Range(0.0, 0.5),
    "learning_rate": Range(0.02, 0.3, is_log=True),
    "n_estimators": Range(50, 300),
    "num_leaves": Range(4, 63, is_log=True),
    "reg_lambda": Range(0.01, 10.0, is_log=True),
    "colsample_bytree": Range(0.1, 1.0),
}


def as_json(value: Any) -> str:
    """A value as one line of JSON."""
    return json.dumps(value, default=str)


def parse_search(text: str) -> tuple[str, Space]:
    """The key and the space that ``KEY=LOW..HIGH``, ``KEY=LOW..HIGH:log`` or ``KEY=A,B,C`` says.

    Choices are YAML values; one that holds commas stands in brackets.

    Raises:
        RecipeError: it is neither.

    Examples:
        >>> parse_search("learning_rate=1e-4..1e-2:log")
        ('learning_rate', Range(low=0.0001, high=0.01, is_log=True, is_whole=False))
        >>> parse_search("members.a.features=[x, y],[x]")
        ('members.a.features', Choices(values=(['x', 'y'], ['x'])))
    """
    key, _, said = text.partition("=")
    key = key.strip()
    values = None
    if key and (found := _RANGE.fullmatch(said)):
        low, high = (float(n) if set(n) & set(".eE") else int(n) for n in found.groups()[:2])
        return key, _range(key, low, high, is_log=found[3] is not None)
    if key and ".." not in said:
        with contextlib.suppress(yaml.YAMLError):
            values = yaml.safe_load(f"[{said}]")
    if not values:
        raise RecipeError(
            f"--search {text!r} is not KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=VALUE,VALUE; for "
            "example dropout=0..0.6"
        )
    return key, _choices(key, values)


def _range(key: str, low: float, high: float, *, is_log: bool) -> Range:
    if not low < high:
        raise RecipeError(
            f"search: {key} has the range {low}..{high}, expected the lower end first"
        )
    if is_log and low <= 0:
        raise RecipeError(
            f"search: {key} has the range {low}..{high}:log; a logarithm needs ends above 0"
        )
    return Range(low, high, is_log)


def _choices(key: str, values: Sequence[Any]) -> Choices:
    choices = tuple(as_number(value) for value in values)
    texts = [as_json(value) for value in choices]
    for value, text in zip(choices, texts, strict=True):
        if texts.count(text) > 1:
            raise RecipeError(f"search: {key} has the choice {value!r} twice")
    if not texts:
        raise RecipeError(f"search: {key} has no choices")
    return Choices(choices)


def search_space(
    recipe: Recipe, member: str = "", search: Sequence[str] = ()
) -> tuple[str, dict[str, Space]]:
    """The member whose settings are searched, and the spaces by whole dotted key.

    Args:
        recipe: its block ``tune`` says what the others leave open.
        member: whose settings; by default the one that the keys name, or the only one.
        search: see `parse_search`; they replace the recipe's spaces of the same keys. Without
            any here or there, common settings of the head.

    Raises:
        RecipeError: an unknown member or key, or a space that no recipe may have.
    """
    asked: dict[str, Space] = {}
    for text in search:
        key, space = parse_search(text)
        if key in asked:
            raise RecipeError(f"--search names {key} twice")
        asked[key] = space
    said: dict[str, Space] = {}
    for key, value in (recipe.tune.search if recipe.tune else {}).items():
        if isinstance(value, list):
            said[key] = _choices(key, value)
        else:
            said[key] = _range(key, value["low"], value["high"], is_log=value.get("log", False))
    spaces = [*said.items(), *asked.items()]
    owners = {key: key.split(".")[1] for key, _ in spaces if re.match(r"members\.[^.]+\.", key)}
    member = _member(recipe, member, set(owners.values()))
    if recipe.members[member].imported:
        raise RecipeError(f"member {member!r} is imported, so it has no settings to tune here")
    for key, owner in owners.items():
        if owner != member:
            raise RecipeError(f"{key} is a setting of {owner!r}, but {member!r} is to be tuned")
    if not spaces:
        return member, _default_space(recipe, member)
    # a key may stand short in one place and whole in the other
    whole = {key if key in owners else f"members.{member}.{key}": space for key, space in spaces}
    return member, {key: _checked(recipe, key, space) for key, space in whole.items()}


def _member(recipe: Recipe, member: str, named: Collection[str]) -> str:
    member = member or (recipe.tune and recipe.tune.member) or ""
    if not member:
        candidates = sorted(named or recipe.members)
        if len(candidates) != 1:
            raise RecipeError(
                "the settings of one member are searched at a time; say --member with one of: "
                + ", ".join(candidates)
            )
        member = candidates[0]
    if member not in recipe.members:
        raise RecipeError(f"there is no member {member!r}: {nearest(member, recipe.members)}")
    return member


def _checked(recipe: Recipe, key: str, space: Space) -> Space:
    """The space, of whole numbers where the setting is one."""
    default = value_at(recipe, key)
    if isinstance(space, Range):
        if isinstance(default, bool) or not isinstance(default, int | float):
            raise RecipeError(
                f"search: {key} is {default!r}, which has no range; list choices: {key}=A,B"
            )
        if isinstance(default, int):
            if not (isinstance(space.low, int) and isinstance(space.high, int)):
                raise RecipeError(
                    f"search: {key} has the range {space.low}..{space.high}, expected whole "
                    f"numbers such as {default}"
                )
            space = replace(space, is_whole=True)
    for value in space.ends():
        changed(recipe, {key: value}, "search:")
    return space


def _default_space(recipe: Recipe, member: str) -> dict[str, Space]:
    plan = member_plan(member, recipe)
    found: dict[str, Space] = {}
    for name, space in (_TORCH_SPACE if plan.is_torch else _PLAIN_SPACE).items():
        key = f"members.{member}.{name}"
        # a head may lack a setting, or another setting may exclude it
        with contextlib.suppress(RecipeError):
            found[key] = _checked(recipe, key, space)
    if not found:
        raise RecipeError(
            f"head {plan.head!r} of {member!r} has no settings that are usually tuned; say which: "
            "--search KEY=LOW..HIGH"
        )
    return found
