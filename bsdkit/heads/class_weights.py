"""Weights of classes by how many clips they have, against unequal class sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.errors import HeadError, nearest

__all__ = ["CLASS_WEIGHTS", "check_kind", "class_weights", "weigh_rows"]

CLASS_WEIGHTS = ("none", "balanced", "inverse_sqrt", "effective")

FloatArray = npt.NDArray[np.float64]


def check_kind(kind: str | None) -> None:
    """Refuses what is no kind of `class_weights`.

    Raises:
        HeadError: it is neither None nor one of `CLASS_WEIGHTS`; the message names the nearest.
    """
    if kind is not None and kind not in CLASS_WEIGHTS:
        raise HeadError(f"class_weight is {kind!r}: {nearest(str(kind), CLASS_WEIGHTS)}")


def class_weights(kind: str | None, counts: npt.ArrayLike, beta: float = 0.999) -> FloatArray:
    """The weight [n_classes] of each class; a class without clips gets 0.

    - ``none`` or None: 1 for every class, with or without clips.
    - ``balanced``: N / (C n_c), N clips in C classes, as scikit-learn does: every class weighs
      the same in all, and the mean over the clips is 1.
    - ``inverse_sqrt``: proportional to 1 / sqrt(n_c), with mean 1 over the classes.
    - ``effective``: proportional to (1 - beta) / (1 - beta^n_c), the inverse of the effective
      number of clips, with mean 1 over the classes (Cui et al., "Class-Balanced Loss Based on
      Effective Number of Samples", CVPR 2019, equation 4).

    N, C and the means are over the classes that have clips.

    Args:
        kind: how the weights follow from the counts.
        counts: clips [n_classes] of each class, or the sums of their weights.
        beta: of ``effective``, at least 0 and below 1; the nearer to 1, the nearer to 1 / n_c.

    Raises:
        HeadError: an unknown kind, beta out of range, or counts that are none.
    """
    sizes = np.asarray(counts, np.float64)
    if sizes.ndim != 1 or not (np.isfinite(sizes).all() and (sizes >= 0).all() and sizes.any()):
        raise HeadError(
            f"class counts are {np.array2string(sizes, threshold=8)}, expected one number of "
            "clips a class, not negative and not all 0"
        )
    check_kind(kind)
    if not 0 <= beta < 1:
        raise HeadError(f"beta is {beta!r}, expected at least 0 and below 1")
    if kind is None or kind == "none":
        return np.ones(len(sizes))
    is_there = sizes > 0
    sizes = sizes[is_there]
    if kind == "balanced":
        present = sizes.sum() / (len(sizes) * sizes)
    else:
        if kind == "inverse_sqrt":
            present = 1 / np.sqrt(sizes)
        else:
            present = (1 - beta) / (1 - np.power(beta, sizes))
        present = present / present.mean()
    weights = np.zeros(len(is_there))
    weights[is_there] = present
    return weights


def weigh_rows(
    class_weight: str | Mapping[Any, float] | None,
    classes: npt.NDArray[Any],
    positions: npt.NDArray[np.int64],
    sample_weight: npt.NDArray[np.floating] | None,
) -> FloatArray | None:
    """The weights [n] of rows times those of their classes; None where all are 1.

    Args:
        class_weight: a kind of `class_weights`, counted with the rows' weights; or, as in
            scikit-learn, weights by label, 1 for labels that it does not name.
        classes: the labels [n_classes].
        positions: positions [n] of the rows' labels in them.
        sample_weight: weights [n] of the rows, or None.

    Raises:
        HeadError: an unknown kind, or weights of labels that do not occur, or below 0.
    """
    rows = None if sample_weight is None else np.asarray(sample_weight, np.float64)
    if class_weight is None or class_weight == "none":
        return rows
    if isinstance(class_weight, Mapping):
        labels = classes.tolist()
        for label, weight in class_weight.items():
            if label not in labels or not (np.isfinite(weight) and weight >= 0):
                raise HeadError(
                    f"class_weight gives {label!r} the weight {weight!r}, expected labels of the "
                    "training rows and weights of 0 or more"
                )
        weights = np.array([class_weight.get(label, 1.0) for label in labels], np.float64)
    else:
        counts = np.bincount(positions, weights=rows, minlength=len(classes))
        weights = class_weights(class_weight, counts)
    return weights[positions] if rows is None else rows * weights[positions]
