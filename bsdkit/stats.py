"""Statistics that several rooms need: softmax, the normal quantile, an interval of a share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Z_95", "softmax", "wilson_interval"]

FloatArray = npt.NDArray[np.float64]

Z_95 = 1.959963984540054
"""The 97.5th percentile of the standard normal distribution: two-sided 95 %."""


def softmax(scores: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Probabilities [..., n_classes] of scores, over the last axis."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def wilson_interval(n_hits: npt.ArrayLike, n: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """The 95 % score intervals of shares (E. B. Wilson, JASA 22, 1927): their two ends.

    Args:
        n_hits: counts [...].
        n: of how many each, at least 1.

    Examples:
        >>> [round(float(end), 4) for end in wilson_interval(3, 10)]
        [0.1078, 0.6032]
    """
    hits, of = np.asarray(n_hits), np.asarray(n)
    centre = hits + Z_95**2 / 2
    half = Z_95 * np.sqrt(hits * (of - hits) / of + Z_95**2 / 4)
    total = of + Z_95**2
    return np.maximum((centre - half) / total, 0.0), np.minimum((centre + half) / total, 1.0)
