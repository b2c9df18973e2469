"""What searches maximise, and how they score thousands of weightings of the same members."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsdkit.metrics import Scorer
from bsdkit.taxonomy import Taxonomy

__all__ = ["Objective", "WeightScorer", "average", "normalised"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_ROUNDING = 1e-9
"""Scores whose weighted means differ by more than this have the same order however they round."""


@dataclass(frozen=True)
class Objective:
    """hF_strict, as it would be were the classes as frequent as in a target.

    Clips of a class count as much as makes the class's share the target's; without a target
    each clip counts once. hF averages classes, so its recalls do not hang on the shares, but
    its precisions do.

    Attributes:
        taxonomy: the classes.
        target: shares [n_classes] of the classes in the clips that are to be predicted; None
            for those of the clips at hand.
    """

    taxonomy: Taxonomy
    target: Sequence[float] | None = None

    def scale(self, labels: IntArray) -> FloatArray:
        """How much a clip of each class counts [n_classes]; 1 on average over the clips."""
        n = len(self.taxonomy)
        if self.target is None:
            return np.ones(n)
        counts = np.bincount(labels, minlength=n)
        target = np.where(counts > 0, np.asarray(self.target, np.float64), 0.0)
        if not target.sum():
            return np.ones(n)
        return np.asarray(target / target.sum() * len(labels) / np.maximum(counts, 1))

    def of(self, labels: IntArray, predicted: IntArray) -> float:
        """The score of predictions [n_clips] for labels [n_clips], as class positions."""
        scorer = Scorer(self.taxonomy)
        if self.target is None:
            return scorer.hF_strict_of(labels, predicted)
        n = len(self.taxonomy)
        counts = np.bincount(labels * n + predicted, minlength=n * n).reshape(n, n)
        return scorer.hF_strict_of_counts(counts * self.scale(labels)[:, None])


def average(scores: FloatArray, weights: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Weighted mean [n_clips, n_classes] of scores, and the weight [n_clips] behind each row.

    A member whose row is NaN takes no part in it. A row without weight is 0. A row depends on
    that row alone, to the last bit.

    Args:
        scores: [n_members, n_clips, n_classes].
        weights: [n_members], not negative.
    """
    mixed, total = np.zeros(scores.shape[1:]), np.zeros(scores.shape[1])
    # added member by member: a product of matrices, or a sum over a single row, may round
    # differently by how many rows there are
    for weight, member in zip(np.asarray(weights, np.float64), scores, strict=True):
        if weight > 0:
            is_there = ~np.isnan(member[:, 0])
            mixed += weight * np.where(is_there[:, None], member, 0.0)
            total += weight * is_there
    mixed /= np.where(total > 0, total, 1.0)[:, None]
    return mixed, total


def normalised(logits: FloatArray) -> FloatArray:
    """Softmax of rows [n_clips, n_classes]."""
    grown = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


class WeightScorer:
    """The clips and classes on which the weights of members can make a difference.

    With weights that are not negative, a class that every member puts below another one cannot
    win, so a clip on whose first class all members agree is settled, and on the others only a few
    classes are left to add up. What is settled is counted once; a weighting then costs a product
    with a matrix of the rest. Clips where that product leaves two classes within rounding are
    averaged as `combine` does it, so the winner is always that of `combine` and ``argmax``:
    of equals the first class, and the first class of all where no member with weight has a
    prediction.

    Args:
        scores: [n_members, n_clips, n_classes], probabilities or their logarithms; NaN rows (no
            prediction) take no part.
        labels: class positions [n_clips].
        objective: what is scored.
        is_log: whether scores are logarithms, whose mean `combine` makes probabilities of.
    """

    def __init__(
        self,
        scores: FloatArray,
        labels: IntArray,
        objective: Objective,
        *,
        is_log: bool = False,
    ) -> None:
        self.n_members, n = scores.shape[0], scores.shape[2]
        self.n_classes = n
        self._is_log = is_log
        self._all_scores = scores
        self._scorer = Scorer(objective.taxonomy)
        self._scale = objective.scale(labels)[:, None] if objective.target is not None else None
        is_missing = np.isnan(scores[:, :, 0])
        if is_missing.any():
            scores = np.where(is_missing[:, :, None], 0.0, scores)
        first = np.stack([member.argmax(axis=1) for member in scores])
        is_settled = (first == first[0]).all(axis=0) & ~is_missing.any(axis=0)
        agreed = np.flatnonzero(is_settled)
        rivals = _not_beaten(scores, is_missing, agreed, first[0, agreed])
        is_settled[agreed[rivals.sum(axis=1) > 1]] = False
        is_settled |= is_missing.all(axis=0)  # `first` is 0 there, as of `combine`
        cells = labels[is_settled] * n + first[0, is_settled]
        self._settled = np.bincount(cells, minlength=n * n)
        self._open = np.flatnonzero(~is_settled)
        self._row_cells = labels[self._open] * n

        # left is what no member's first class beats, nor the first of what is left then
        leads = np.zeros((len(self._open), n), bool)
        leads[np.arange(len(self._open)), first[:, self._open]] = True
        clip, leader = np.nonzero(leads)
        starts = np.flatnonzero(np.diff(clip, prepend=-1))
        left = _not_beaten(scores, is_missing, self._open[clip], leader)
        left = np.logical_and.reduceat(left, starts, axis=0) if len(starts) else leads
        rest = left & ~leads
        some = np.flatnonzero(rest.any(axis=1))
        left[some] &= _not_beaten(scores, is_missing, self._open[some], rest[some].argmax(axis=1))
        self._clip, self._class = np.nonzero(left)
        self._starts = np.flatnonzero(np.diff(self._clip, prepend=-1))
        self._scores = np.stack(  # [n_pairs, n_members]
            [member[self._open[self._clip], self._class] for member in scores], axis=1
        )
        is_missing = is_missing[:, self._open]
        self._partial = np.flatnonzero(is_missing.any(axis=0))
        self._is_missing = is_missing[:, self._partial].T  # [n_partial, n_members]

    def counts(self, weights: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Counts [n_classes, n_classes] of clips by true and winning class, weights [n_members]."""
        n = self.n_classes
        w = np.asarray(weights, np.float64)
        cells = self._settled
        if len(self._open):
            added = self._scores @ w
            enough = np.maximum.reduceat(added, self._starts) - _ROUNDING * w.sum()
            close = np.flatnonzero(added >= enough[self._clip])
            clip = self._clip[close]
            is_first = np.diff(clip, prepend=-1) > 0
            winner = self._class[close[is_first]]
            if len(close) > len(winner):
                rows = np.unique(clip[~is_first])
                winner[rows] = self._averaged(rows, w).argmax(axis=1)
            if len(self._partial) and not w.all():
                winner[self._partial[self._is_missing[:, w > 0].all(axis=1)]] = 0
            cells = cells + np.bincount(self._row_cells + winner, minlength=n * n)
        return cells.reshape(n, n)

    def _averaged(self, rows: IntArray, w: FloatArray) -> FloatArray:
        """What `combine` gives for some of the clips that are not settled."""
        has_weight = np.flatnonzero(w > 0)
        mixed, _ = average(self._all_scores[np.ix_(has_weight, self._open[rows])], w[has_weight])
        return normalised(mixed) if self._is_log else mixed

    def score(self, weights: npt.ArrayLike) -> float:
        """The objective of a weighting [n_members]."""
        counts = self.counts(weights)
        return self._scorer.hF_strict_of_counts(
            counts if self._scale is None else counts * self._scale
        )


def _not_beaten(
    scores: FloatArray,
    is_missing: npt.NDArray[np.bool_],
    rows: IntArray,
    by: IntArray,
) -> npt.NDArray[np.bool_]:
    """Classes [n_rows, n_classes] that some member does not put below a given one of the row.

    Of equals the first class wins, so a later one is beaten without being lower. An earlier one
    must be lower by more than a weighted mean can round away.

    Args:
        scores: [n_members, n_clips, n_classes].
        is_missing: [n_members, n_clips].
        rows: clips [n_rows].
        by: class positions [n_rows].
    """
    at = np.arange(len(rows))
    is_earlier = np.arange(scores.shape[2]) < by[:, None]
    found = np.zeros((len(rows), scores.shape[2]), bool)
    for member, lacks in zip(scores, is_missing, strict=True):
        part = member[rows]
        lead = part[at, by][:, None] - part
        found |= np.where(is_earlier, lead <= _ROUNDING, lead < 0) & ~lacks[rows, None]
    found[at, by] = True
    return found
