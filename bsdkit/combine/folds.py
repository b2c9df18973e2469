"""How the clips that a step may learn from are held out from each other in turn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["inner_folds"]

IntArray = npt.NDArray[np.int64]


def inner_folds(fold: IntArray, labels: IntArray, *, n_folds: int = 4) -> list[IntArray]:
    """Rows of the parts that clips fall into, each held out in turn.

    The parts are the folds that the clips belong to. Where they are all of one fold (two folds
    with one held out), they are made of the clips themselves: each class is dealt out in turn.

    Args:
        fold: fold of each clip [n].
        labels: class positions [n].
        n_folds: parts that are made where there is a single fold.
    """
    found = np.unique(fold)
    if len(found) > 1:
        return [np.flatnonzero(fold == k) for k in found]
    order = np.argsort(labels, kind="stable")
    part = np.empty(len(fold), np.int64)
    part[order] = np.arange(len(fold)) % n_folds
    return [np.flatnonzero(part == k) for k in range(n_folds)]
