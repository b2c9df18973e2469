"""Error analysis on plain arrays: ambiguity, lost credit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsdkit.metrics import FAMILY_CREDIT_PRF, confusion_matrix
from bsdkit.stats import Z_95
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "Ambiguity",
    "ConfusedPair",
    "LostCredit",
    "ambiguity",
    "lost_credit",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


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
