"""The weightings that caps and a smallest weight allow."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from bsdkit.errors import RecipeError

__all__ = ["Limits"]

FloatArray = npt.NDArray[np.float64]


class Limits:
    """The weightings that options allow.

    Args:
        caps: the largest share of the weight for members whose names match a pattern; a member
            belongs to the first pattern that it matches.
        min_weight: a member with a smaller share is left out, the lightest first.
        names: the members.

    Raises:
        RecipeError: the caps leave less than the whole weight.
    """

    def __init__(self, caps: Mapping[str, float], min_weight: float, names: Sequence[str]) -> None:
        patterns = list(caps)
        self._group = np.array(
            [
                next((i for i, p in enumerate(patterns) if fnmatch.fnmatchcase(name, p)), -1)
                for name in names
            ]
        )
        self._caps = [caps[p] for p in patterns]
        self._min = min_weight
        for i, pattern in enumerate(patterns):
            if not (self._group == i).any():
                raise RecipeError(
                    f"ensemble.caps names {pattern!r}, which no member matches that an earlier "
                    f"pattern does not; the members are {', '.join(names)}"
                )
        used = sum(self._caps)
        if not self._can_hold(np.ones(len(names), bool)):
            raise RecipeError(
                f"ensemble.caps leave {used:g} of the weight to all members, expected 1 or more"
            )

    def __call__(self, weights: npt.ArrayLike) -> FloatArray:
        """The nearest allowed weights [n_members], adding up to 1.

        The excess of a group over its cap goes to the members outside, in proportion to their
        weights. Of the weights below the smallest the least is then left out (of equals the
        later one) until there is none, or the caps need every member that is left.
        """
        w = np.asarray(weights, np.float64)
        kept = np.ones(len(w), bool)
        w = self._capped(w, kept)
        while True:
            for i in np.lexsort((-np.arange(len(w)), w)):
                rest = kept & (np.arange(len(w)) != i)
                if 0 < w[i] < self._min - 1e-12 and self._can_hold(rest):
                    break
            else:
                return w
            kept = rest
            w = self._capped(np.where(kept, w, 0.0), kept)

    def _can_hold(self, kept: npt.NDArray[np.bool_]) -> bool:
        """Whether these members can share the whole weight."""
        groups = np.unique(self._group[kept])
        if not len(groups) or groups[0] < 0:
            return bool(len(groups))
        return bool(sum(self._caps[i] for i in groups) >= 1 - 1e-12)

    def _capped(self, weights: FloatArray, kept: npt.NDArray[np.bool_]) -> FloatArray:
        """The weights of the members kept, shared out again."""
        total = weights.sum()
        w = weights / total if total > 0 else kept / kept.sum()
        full: set[int] = set()
        while True:
            over = [
                i
                for i, cap in enumerate(self._caps)
                if i not in full and w[self._group == i].sum() > cap + 1e-12
            ]
            if not over:
                return np.asarray(w)
            for i in over:
                inside = self._group == i
                w[inside] *= self._caps[i] / w[inside].sum()
                full.add(i)
            is_free = kept & ~np.isin(self._group, list(full))
            if not is_free.any():  # the caps add up to 1, but for rounding
                return np.asarray(w / w.sum())
            rest = 1 - w[~is_free].sum()
            free = w[is_free].sum()
            w[is_free] = w[is_free] / free * rest if free > 0 else rest / is_free.sum()
