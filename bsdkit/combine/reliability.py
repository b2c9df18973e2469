"""How far class probabilities can be taken at their word."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bsdkit.combine.calibrate import LOWEST_PROBABILITY, checked
from bsdkit.errors import RecipeError
from bsdkit.metrics import Interval
from bsdkit.stats import wilson_interval

__all__ = ["Reliability", "ReliabilityBin", "reliability"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_RESAMPLES_AT_ONCE = 64  # so that the counts of 10,000 clips stay near the processor


@dataclass(frozen=True)
class ReliabilityBin:
    """The clips whose confidence is above `low` and at most `high`.

    Attributes:
        low: lower edge; the first bin holds it too.
        high: upper edge.
        n_clips: how many, at least 1.
        confidence: mean probability of the predicted class.
        accuracy: share of right predictions.
        accuracy_low: lower end of its 95 % interval (Wilson, JASA 1927).
        accuracy_high: upper end.
    """

    low: float
    high: float
    n_clips: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float


@dataclass(frozen=True)
class Reliability:
    """How far probabilities can be taken at their word.

    Attributes:
        n_clips: clips with probabilities; rows with a NaN are left out.
        equal: what the bins share, ``width`` or ``count``.
        bins: those that hold clips, by rising confidence.
        ece: expected calibration error, with its 95 % interval.
        nll: mean negative log-likelihood of the true class, in nats.
        brier: mean over clips of the squared error summed over classes, 0 to 2 (Brier,
            Monthly Weather Review 1950).
    """

    n_clips: int
    equal: str
    bins: tuple[ReliabilityBin, ...]
    ece: Interval
    nll: float
    brier: float

    def to_dict(self) -> dict[str, object]:
        """The figures as plain JSON types."""
        return {**asdict(self), "bins": [asdict(b) for b in self.bins]}


def reliability(
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    n_bins: int = 15,
    n_resamples: int = 1000,
    seed: int = 0,
    equal: Literal["width", "count"] = "width",
) -> Reliability:
    """Confidence against accuracy of the predicted class, and what the gap adds up to.

    The expected calibration error is the mean over clips of |accuracy - mean confidence| of
    the clip's bin (Naeini et al., AAAI 2015; Guo et al., ICML 2017, section 2). Its interval
    is the basic bootstrap over clips (Davison and Hinkley 1997, section 5.2), with the bins as
    they are. Chance differences within bins add to the error and never subtract (Kumar et al.,
    NeurIPS 2019), in each draw once more than in the clips themselves; the basic interval takes
    that back, the percentile interval would double it. Where the error is hardly more than
    chance, compare log losses instead.

    Args:
        probabilities: [n, n_classes]; rows with a NaN are left out.
        labels: class positions [n].
        n_bins: how many bins; empty ones are not listed.
        n_resamples: bootstrap draws of clips for the interval of the error.
        seed: of the draws; the same seed gives the same interval.
        equal: ``width`` cuts 0 to 1 evenly, ``count`` cuts at quantiles of the confidence;
            clips of the same confidence share a bin.

    Raises:
        RecipeError: see `fit_calibration`; or n_bins, n_resamples or equal is out of range.
    """
    if n_bins < 1 or n_resamples < 2 or equal not in ("width", "count"):
        raise RecipeError(
            f"n_bins {n_bins}, n_resamples {n_resamples}, equal {equal!r}; expected at least 1, "
            "at least 2, and 'width' or 'count'"
        )
    p, y = checked(probabilities, labels)
    n = len(p)
    confidence, is_right = p.max(axis=1), p.argmax(axis=1) == y
    edges = np.arange(n_bins + 1) / n_bins
    if equal == "count":
        edges = np.quantile(confidence, edges)
    bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, n_bins - 1)

    order = np.argsort(bin_of, kind="stable")  # clips of a bin side by side
    occupied, starts = np.unique(bin_of[order], return_index=True)
    counts = np.diff([*starts, n])
    right = np.add.reduceat(is_right[order].astype(np.int64), starts)
    mean_confidence = np.add.reduceat(confidence[order], starts) / counts
    low, high = wilson_interval(right, counts)
    bins = tuple(
        ReliabilityBin(
            low=float(edges[b]),
            high=float(edges[b + 1]),
            n_clips=int(counts[i]),
            confidence=float(mean_confidence[i]),
            accuracy=float(right[i] / counts[i]),
            accuracy_low=float(low[i]),
            accuracy_high=float(high[i]),
        )
        for i, b in enumerate(occupied)
    )

    gap = is_right[order] - confidence[order]
    draws = _resampled_sums(gap, starts, n_resamples, seed)
    errors = np.abs(draws).sum(axis=1) / n
    ece = float(np.abs(np.add.reduceat(gap, starts)).sum() / n)
    low_draw, high_draw = np.quantile(errors, [0.025, 0.975])
    lowest, highest = max(0.0, 2 * ece - high_draw), max(0.0, 2 * ece - low_draw)
    true = p[np.arange(n), y]
    return Reliability(
        n_clips=n,
        equal=equal,
        bins=bins,
        ece=Interval(ece, float(lowest), float(highest), float(errors.std(ddof=1))),
        nll=float(-np.log(np.maximum(true, LOWEST_PROBABILITY)).mean()),
        brier=float(((p**2).sum(axis=1) - 2 * true + 1).mean()),
    )


def _resampled_sums(
    values: FloatArray, starts: npt.NDArray[np.integer], n_resamples: int, seed: int
) -> FloatArray:
    """Sums [n_resamples, n_bins] of values over the bins, of clips drawn with replacement.

    Args:
        values: [n], the clips of a bin side by side.
        starts: where each bin begins.
        n_resamples: how many draws of n clips.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    n = len(values)
    sums = np.empty((n_resamples, len(starts)))
    for first in range(0, n_resamples, _RESAMPLES_AT_ONCE):
        rows = min(_RESAMPLES_AT_ONCE, n_resamples - first)
        drawn = rng.integers(n, size=(rows, n))
        drawn += np.arange(rows)[:, None] * n
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        sums[first : first + rows] = np.add.reduceat(times * values, starts, axis=1)
    return sums
