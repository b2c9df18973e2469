"""Statistics that several rooms need: softmax, intervals of shares, principal axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Z_95", "principal_axes", "softmax", "wilson_interval"]

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

_SPARE_AXES = 10

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


def principal_axes(
    X: Float32Array, n_axes: int, *, n_iterations: int = 12
) -> tuple[FloatArray, FloatArray]:
    """Principal axes [dim, k] by falling variance, and the share of variance [k] of each.

    By subspace iteration from a fixed start (Halko, Martinsson and Tropp, SIAM Review 2011,
    algorithm 4.4): the axes are orthonormal to the last bit whether or not the smaller ones have
    converged. The sign of an axis is chosen so that its largest entry is positive: the same data
    give the same map. k is at most n_axes, dim and n.

    Args:
        X: embeddings [n, dim].
        n_axes: how many axes.
        n_iterations: how far the axes converge.
    """
    centred = X - X.mean(axis=0)
    n, dim = centred.shape
    axes = np.random.default_rng(0).standard_normal((dim, min(n_axes + _SPARE_AXES, dim, n)))
    for _ in range(n_iterations):
        image = centred @ axes.astype(np.float32)
        axes, _ = np.linalg.qr((centred.T @ image).astype(np.float64))
    image = (centred @ axes.astype(np.float32)).astype(np.float64)
    values, turn = np.linalg.eigh(image.T @ image)
    order = np.argsort(-values, kind="stable")[:n_axes]
    axes = axes @ turn[:, order]
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    total = max(float(np.square(centred, dtype=np.float64).sum()), 1e-300)
    return axes * np.where(largest < 0, -1.0, 1.0), np.maximum(values[order], 0) / total
