"""What a system predicts when it was trained with one seed: how far training itself moves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bsdkit.heads.registry import get_head_class
from bsdkit.members.member import MemberResult
from bsdkit.recipe.schema import Recipe

__all__ = ["member_by_seed", "members_by_seed"]

FloatArray = npt.NDArray[np.float64]


def _is_random(recipe: Recipe, name: str) -> bool:
    """Whether a member would come out otherwise if it, or what it learns from, was trained again.

    Nobody knows it of a member that was trained elsewhere, so it counts as one that would.
    """
    member = recipe.members[name]
    if member.imported or get_head_class(member.head).is_stochastic:
        return True
    return any(_is_random(recipe, teacher) for teacher in member.teachers)


def member_by_seed(recipe: Recipe, name: str, result: MemberResult) -> FloatArray | None:
    """A member's probabilities [n_seeds, n_clips, n_classes]; None if nothing in it is random."""
    return result.probabilities if _is_random(recipe, name) else None


def members_by_seed(
    recipe: Recipe, members: Mapping[str, MemberResult], names: Sequence[str], counting: set[str]
) -> list[FloatArray] | None:
    """For each seed the members' probabilities [n_members, n_clips, n_classes] with it.

    As many seeds as every member that counts was trained with; one that does not count, or in
    which nothing is random, is the same in all.

    Args:
        recipe: of the members.
        members: results by name.
        names: the members, in the order of the first axis.
        counting: those that change a prediction.

    Returns:
        None if nothing is random.
    """
    by_seed = {
        name: said
        for name in names
        if name in counting and (said := member_by_seed(recipe, name, members[name])) is not None
    }
    if not by_seed:
        return None
    means = {name: members[name].mean for name in names}
    return [
        np.stack([by_seed[name][i] if name in by_seed else means[name] for name in names])
        for i in range(min(len(said) for said in by_seed.values()))
    ]
