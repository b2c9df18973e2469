"""Error analysis on plain arrays: ambiguity, lost credit, near-duplicates, a map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsdkit.metrics import FAMILY_CREDIT_PRF, confusion_matrix
from bsdkit.stats import Z_95
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "NEAR_COSINE",
    "Ambiguity",
    "ConfusedPair",
    "LostCredit",
    "NearDuplicates",
    "ambiguity",
    "lost_credit",
    "near_duplicates",
    "principal_axes",
]

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

NEAR_COSINE = 0.999
"""Two embeddings above this cosine are taken for copies of one sound."""

_BLOCK = 1024
_SPARE_AXES = 10


@dataclass(frozen=True)
class Ambiguity:
    """Errors beside the annotators' confidence in their labels.

    Attributes:
        n_clips: clips with a confidence.
        confidence: mean confidence [n_classes] of the clips of each class; NaN where unknown.
        accuracy: share of right predictions [n_classes] among the same clips.
        counts: the number of these clips [n_classes].
        r: Pearson correlation of the two over classes; NaN where one of them does not vary.
        r_low: lower end of its 95 % interval (Fisher's z).
        r_high: upper end.
        right: mean confidence of the clips predicted right; NaN without any.
        wrong: the same of those predicted wrong.
        gap_error: standard error of right minus wrong (Welch).
    """

    n_clips: int
    confidence: FloatArray
    accuracy: FloatArray
    counts: IntArray
    r: float
    r_low: float
    r_high: float
    right: float
    wrong: float
    gap_error: float


def ambiguity(
    y_true: IntArray, y_pred: IntArray, confidence: npt.NDArray[np.floating], n_classes: int
) -> Ambiguity | None:
    """How errors go with the annotators' confidence, or None where no clip has one.

    Args:
        y_true: class positions [n_clips].
        y_pred: class positions [n_clips].
        confidence: annotators' confidence [n_clips]; NaN where unknown.
        n_classes: the number of classes.
    """
    known = np.isfinite(confidence)
    if not known.any():
        return None
    y, is_right = y_true[known], (y_true == y_pred)[known]
    said = confidence[known].astype(np.float64)
    counts = np.bincount(y, minlength=n_classes)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(y, said, minlength=n_classes) / counts
        accuracy = np.bincount(y, is_right, minlength=n_classes) / counts
    r, low, high = _pearson(mean[counts > 0], accuracy[counts > 0])
    groups = said[is_right], said[~is_right]
    right, wrong = (float(g.mean()) if len(g) else np.nan for g in groups)
    errors = [g.var(ddof=1) / len(g) if len(g) > 1 else np.nan for g in groups]
    return Ambiguity(
        n_clips=int(known.sum()),
        confidence=mean,
        accuracy=accuracy,
        counts=counts.astype(np.int64),
        r=r,
        r_low=low,
        r_high=high,
        right=right,
        wrong=wrong,
        gap_error=float(np.sqrt(sum(errors))),
    )


def _pearson(x: FloatArray, y: FloatArray) -> tuple[float, float, float]:
    """Pearson's r and its 95 % interval by Fisher's z; NaN where they cannot be had."""
    nothing = float("nan")
    if len(x) < 3 or np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:
        return nothing, nothing, nothing
    r = float(np.corrcoef(x, y)[0, 1])
    if len(x) == 3 or abs(r) >= 1:
        return r, nothing, nothing
    z, half = np.arctanh(r), Z_95 / np.sqrt(len(x) - 3)
    return r, float(np.tanh(z - half)), float(np.tanh(z + half))


@dataclass(frozen=True)
class ConfusedPair:
    """Two classes and how often each is taken for the other.

    Attributes:
        first: class position.
        second: class position.
        n_first: clips of the first predicted as the second.
        n_second: clips of the second predicted as the first.
        confidence: mean annotators' confidence of these clips; NaN where unknown.
    """

    first: int
    second: int
    n_first: int
    n_second: int
    confidence: float


@dataclass(frozen=True)
class LostCredit:
    """Where the credit of hR is lost.

    A clip loses 1 where even the family is wrong, and 1 - 0.375 where only the class is.

    Attributes:
        n_across: clips predicted in a wrong family.
        n_within: clips predicted as a wrong class of the right family.
        across: credit lost to wrong families.
        within: credit lost to wrong classes of the right family.
        pairs: the most confused pairs of classes, most clips first.
    """

    n_across: int
    n_within: int
    across: float
    within: float
    pairs: tuple[ConfusedPair, ...]

    @property
    def share_across(self) -> float:
        """Share of the lost credit that is lost to wrong families; NaN where none is lost."""
        lost = self.across + self.within
        return self.across / lost if lost else float("nan")


def lost_credit(
    y_true: IntArray,
    y_pred: IntArray,
    confidence: npt.NDArray[np.floating],
    taxonomy: Taxonomy,
    *,
    n_pairs: int = 15,
) -> LostCredit:
    """Where credit is lost, and the most confused pairs of classes.

    Args:
        y_true: class positions [n_clips].
        y_pred: class positions [n_clips].
        confidence: annotators' confidence [n_clips]; NaN where unknown.
        taxonomy: the classes.
        n_pairs: the most pairs to name.
    """
    n = len(taxonomy)
    counts = confusion_matrix(y_true, y_pred, n)
    is_family = taxonomy.family_of[:, None] == taxonomy.family_of[None, :]
    n_across = int(counts[~is_family].sum())
    n_within = int(counts[is_family].sum() - np.trace(counts))
    both = np.triu(counts + counts.T, 1)
    pairs = []
    for cell in np.argsort(-both.ravel(), kind="stable")[:n_pairs]:
        i, j = divmod(int(cell), n)
        if not both[i, j]:
            break
        clips = ((y_true == i) & (y_pred == j)) | ((y_true == j) & (y_pred == i))
        said = confidence[clips & np.isfinite(confidence)]
        mean = float(said.mean()) if len(said) else float("nan")
        pairs.append(ConfusedPair(i, j, int(counts[i, j]), int(counts[j, i]), mean))
    return LostCredit(
        n_across, n_within, float(n_across), n_within * (1 - FAMILY_CREDIT_PRF), tuple(pairs)
    )


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


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of clips that different folds test and whose embeddings are nearly the same.

    Attributes:
        n_pairs: how many pairs.
        n_clips: how many clips stand in one.
        n_same_label: pairs of one class.
        examples: (row, row, cosine) of some pairs, nearest first.
    """

    n_pairs: int
    n_clips: int
    n_same_label: int
    examples: tuple[tuple[int, int, float], ...]


def near_duplicates(
    X: Float32Array,
    folds: IntArray,
    labels: IntArray,
    axes: FloatArray,
    *,
    cosine: float = NEAR_COSINE,
    n_examples: int = 30,
) -> NearDuplicates:
    """Pairs of rows in different folds with a cosine above a limit.

    Two unit vectors at cosine c are sqrt(2 - 2 c) apart, and no projection on orthonormal axes
    sets them further apart. So blocks are screened in a few dimensions, which loses no pair, and
    only what is left is compared in all of them. Rows of zeros are near nothing.

    Args:
        X: embeddings [n, dim].
        folds: the fold [n] of each row.
        labels: class positions [n].
        axes: orthonormal axes [dim, k]; those of `principal_axes` screen best.
        cosine: the limit.
        n_examples: the most pairs to name.
    """
    length = np.linalg.norm(X, axis=1, keepdims=True)
    unit = np.divide(X, length, out=np.zeros_like(X), where=length > 0)
    sieve = (unit @ axes).astype(np.float32)
    half, ones = np.square(sieve).sum(axis=1, keepdims=True) / 2, np.ones((len(X), 1), np.float32)
    left, right = np.hstack([sieve, -half, ones]), np.hstack([sieve, ones, -half])
    limit = cosine - 1 - 1e-4  # minus half the squared distance, with room for rounding
    n_pairs = n_same = 0
    in_pair = np.zeros(len(X), bool)
    best: list[tuple[float, int, int]] = []
    for start in range(0, len(X), _BLOCK):
        near = left[start : start + _BLOCK] @ right[start:].T > limit
        np.fill_diagonal(near, False)
        these, those = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if not len(these):
            continue
        exact = unit[start + these] @ unit[start + those].T
        is_pair = (exact > cosine) & (these[:, None] < those[None, :])
        is_pair &= folds[start + these, None] != folds[None, start + those]
        i, j = np.nonzero(is_pair)
        first, second = start + these[i], start + those[j]
        n_pairs += len(i)
        n_same += int((labels[first] == labels[second]).sum())
        in_pair[first] = in_pair[second] = True
        found = exact[i, j]
        nearest = np.argsort(-found, kind="stable")[:n_examples]
        best += [(float(found[k]), int(first[k]), int(second[k])) for k in nearest]
        best = sorted(best, key=lambda pair: (-pair[0], pair[1:]))[:n_examples]
    examples = tuple((a, b, min(value, 1.0)) for value, a, b in best)
    return NearDuplicates(n_pairs, int(in_pair.sum()), n_same, examples)
