"""Normalisation of a head's inputs: row by row, or by what the fitting rows show.

A head sees its features concatenated, as blocks side by side; each block is normalised by
itself, so that one on a large scale does not drown the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bsdkit.errors import HeadError, nearest

__all__ = [
    "NORMALIZATIONS",
    "column_statistics",
    "normalize_rows",
    "resolve_blocks",
    "resolve_kinds",
]

NORMALIZATIONS = ("layer", "l2", "standardize", "none")
"""layer: mean 0 and variance 1 over the numbers of a row (Ba et al., "Layer Normalization",
2016, without gain and shift, which a linear layer that follows has anyway); l2: length 1;
standardize: mean 0 and variance 1 over the fitting rows, column by column; none."""

_NARROW = 8
_EPSILON = 1e-5


def resolve_blocks(blocks: Sequence[int] | None, n_features: int) -> tuple[int, ...]:
    """Widths of the inputs whose concatenation has n_features columns; None is one input.

    Raises:
        HeadError: they do not add up.
    """
    widths = tuple(blocks) if blocks is not None else (n_features,)
    if sum(widths) != n_features:
        raise HeadError(f"blocks {widths} add up to {sum(widths)}; X has {n_features} features")
    return widths


def resolve_kinds(normalize: str | Sequence[str], n_blocks: int) -> tuple[str, ...]:
    """The normalisation of each block: one name for all, or one name a block.

    Raises:
        HeadError: an unknown name, or another number of names than blocks.
    """
    kinds = (normalize,) * n_blocks if isinstance(normalize, str) else tuple(normalize)
    for kind in kinds:
        if kind not in NORMALIZATIONS:
            raise HeadError(f"normalize is {kind!r}: {nearest(str(kind), NORMALIZATIONS)}")
    if len(kinds) != n_blocks:
        raise HeadError(
            f"normalize names {len(kinds)} kinds for {n_blocks} inputs; write one for all, or "
            "one an input"
        )
    return kinds


def normalize_rows(
    X: npt.NDArray[np.float32], blocks: Sequence[int], kinds: Sequence[str]
) -> npt.NDArray[np.float32]:
    """X [n, sum(blocks)] with the ``layer`` and ``l2`` blocks normalised; the others as they are.

    A ``layer`` block of fewer than eight numbers is passed on: taking mean and scale from it
    would leave little (of two numbers, only which one is larger). A row of zeros stays one.
    """
    if all(kind in ("standardize", "none") for kind in kinds):
        return X
    result = np.array(X, np.float32)
    start = 0
    for width, kind in zip(blocks, kinds, strict=True):
        part = result[:, start : start + width]
        start += width
        if kind == "layer" and width >= _NARROW:
            part -= part.mean(axis=1, keepdims=True)
            part /= np.sqrt(np.square(part).mean(axis=1, keepdims=True) + _EPSILON)
        elif kind == "l2":
            length = np.sqrt(np.square(part).sum(axis=1, keepdims=True))
            part /= np.where(length > 0, length, 1)
    return result


def column_statistics(
    X: npt.NDArray[np.float32],
    blocks: Sequence[int],
    kinds: Sequence[str],
    sample_weight: npt.NDArray[np.floating] | None = None,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and scale [dim] that standardise the ``standardize`` blocks; 0 and 1 elsewhere.

    A column that is constant over the rows gets the scale 1.

    Args:
        X: the fitting rows [n, dim].
        blocks: width of each input.
        kinds: normalisation of each.
        sample_weight: weights [n] of the rows.
    """
    mean, scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
    start = 0
    for width, kind in zip(blocks, kinds, strict=True):
        if kind == "standardize":
            part = X[:, start : start + width].astype(np.float64)
            centre = np.average(part, axis=0, weights=sample_weight)
            spread = np.sqrt(np.average(np.square(part - centre), axis=0, weights=sample_weight))
            mean[start : start + width] = centre
            # what is left of a constant column is rounding, not spread
            is_constant = spread <= 1e-7 * np.maximum(np.abs(centre), 1e-30)
            scale[start : start + width] = np.where(is_constant, 1.0, spread)
        start += width
    return mean.astype(np.float32), scale.astype(np.float32)
