"""Class probabilities that mean what they say: how to fit, apply and judge a calibration.

A calibration is fitted on the out-of-fold probabilities of some clips and applied to those
of others. All of these map one row of probabilities to one row, so a clip's result never
depends on the clips beside it:

    none         the probabilities as they are
    temperature  softmax(log p / T) with one T              (Guo et al., ICML 2017, section 4.2)
    vector       softmax(a log p + b), a and b for each class           (the same, section 4.2)
    family       a temperature for each family, chosen by the family that the row predicts
    isotonic     isotonic regression of each class against the rest, renormalised
                 (Zadrozny and Elkan, KDD 2002, sections 3 and 4)

Temperature and family keep the order of a row's classes (two that differ in the last digit
may become equal), so they change no prediction, only what an ensemble, a threshold or a
reranker makes of it; vector and isotonic may change the predicted class.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from bsdkit.errors import RecipeError, nearest
from bsdkit.metrics import Interval
from bsdkit.stats import softmax, wilson_interval
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "CALIBRATIONS",
    "LOWEST_PROBABILITY",
    "MIN_FAMILY_CLIPS",
    "TEMPERATURE_RANGE",
    "VECTOR_PULL",
    "CalibrationMethod",
    "Calibrator",
    "Reliability",
    "ReliabilityBin",
    "fit_calibration",
    "reliability",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Parameters = dict[str, list[Any]]
CalibrationMethod = Literal["none", "temperature", "vector", "family", "isotonic"]

CALIBRATIONS: tuple[CalibrationMethod, ...] = get_args(CalibrationMethod)
"""Names of the calibrations."""

LOWEST_PROBABILITY = 1e-12
"""A probability below this counts as this wherever a logarithm is taken."""

TEMPERATURE_RANGE = (0.05, 20.0)
"""The temperatures searched: the best T is 0 where every prediction is right, and has no upper
limit where predictions are worse than chance."""

MIN_FAMILY_CLIPS = 50
"""A family that fewer clips are predicted to be in gets the temperature of all clips."""

VECTOR_PULL = 1.0
"""Weight of the sum of (a - 1)^2 / 2 + b^2 / 2 beside the *summed* NLL of vector scaling.

It is a standard normal prior on each a - 1 and b: next to nothing among hundreds of clips
of a class, and a restraint where there are a handful.
"""

_PARAMETERS: dict[CalibrationMethod, tuple[str, ...]] = {
    "none": (),
    "temperature": ("temperature",),
    "vector": ("scale", "bias"),
    "family": ("temperature", "family_of"),
    "isotonic": ("x", "y"),
}
_RESAMPLES_AT_ONCE = 64  # so that the counts of 10,000 clips stay near the processor


@dataclass(frozen=True)
class Calibrator:
    """A fitted calibration.

    Attributes:
        method: a name of CALIBRATIONS.
        parameters: what was fitted, as plain numbers in lists. temperature: ``temperature``
            [1]. vector: ``scale`` and ``bias`` [n_classes]. family: ``temperature``
            [n_families] and ``family_of`` [n_classes]. isotonic: the breakpoints ``x`` and
            ``y``, a list for each class.

    Raises:
        RecipeError: the method is unknown, or the parameters are not those of the method.
    """

    method: str
    parameters: Parameters = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = _PARAMETERS[_known(self.method)]
        if set(self.parameters) != set(names):
            raise RecipeError(
                f"calibration {self.method!r} has the parameters "
                f"{', '.join(self.parameters) or 'none'}; expected {', '.join(names) or 'none'}; "
                "fit it again"
            )
        lengths = {len(self.parameters[name]) for name in names if self.method != "family"}
        if len(lengths) > 1:
            raise RecipeError(
                f"calibration {self.method!r} has {' and '.join(names)} of different lengths; "
                "fit it again"
            )

    def apply(self, probabilities: npt.ArrayLike) -> FloatArray:
        """Calibrated probabilities [n, n_classes] of probabilities [n, n_classes].

        Rows add up to 1; a row that holds a NaN becomes all NaN. The arithmetic is numpy's,
        in float64, a row at a time, so any subset of the rows gets the same bits.

        Raises:
            RecipeError: the array has another shape than the one that was fitted on.
        """
        p = np.asarray(probabilities, np.float64)
        n_classes = self._n_classes()
        if p.ndim != 2 or (n_classes and p.shape[1] != n_classes):
            raise RecipeError(
                f"probabilities have the shape {list(p.shape)}; this calibration "
                f"({self.method}) takes [n, {n_classes or 'n_classes'}]; fit one on these classes"
            )
        result = np.full(p.shape, np.nan)
        is_there = ~np.isnan(p).any(axis=1)
        # Indexing by a mask makes a C-ordered copy, in which a sum over a row does not
        # depend on how many rows there are.
        result[is_there] = self._apply(p[is_there])
        return result

    def _apply(self, p: FloatArray) -> FloatArray:
        if self.method == "none":
            return p
        if self.method == "isotonic":
            return _apply_isotonic(p, self.parameters["x"], self.parameters["y"])
        logits = _log(p)
        if self.method == "vector":
            scale, bias = (np.array(self.parameters[k], np.float64) for k in ("scale", "bias"))
            return softmax(logits * scale + bias)
        temperature = np.array(self.parameters["temperature"], np.float64)
        if self.method == "family":
            temperature = temperature[_predicted_family(p, self.parameters["family_of"])][:, None]
        return softmax(logits / temperature)

    def _n_classes(self) -> int:
        """The number of classes that it was fitted on; 0 where any will do."""
        per_class = {"vector": "scale", "family": "family_of", "isotonic": "x"}.get(self.method)
        return len(self.parameters[per_class]) if per_class else 0

    def to_dict(self) -> dict[str, object]:
        """The calibrator as plain JSON types."""
        return {"method": self.method, "parameters": copy.deepcopy(self.parameters)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibrator:
        """The calibrator that `to_dict` wrote, to the last bit.

        Raises:
            RecipeError: the method or the parameters are missing or are not known ones.
        """
        missing = [key for key in ("method", "parameters") if key not in data]
        if missing:
            raise RecipeError(
                f"a calibration without {missing[0]!r} ({', '.join(data) or 'empty'}); expected "
                "method and parameters; fit it again"
            )
        return cls(data["method"], copy.deepcopy(dict(data["parameters"])))


def fit_calibration(
    method: CalibrationMethod,
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    taxonomy: Taxonomy,
) -> Calibrator:
    """The calibration of these probabilities towards these labels.

    Rows with a NaN are left out. Temperatures minimise the NLL (mean negative log-likelihood
    of the true class) within TEMPERATURE_RANGE; for ``family``, each over the clips predicted
    as the family, so that no label is needed to apply it. Vector scaling minimises the NLL
    with a small pull towards the identity (VECTOR_PULL). A class without clips keeps its
    scale of 1 and bias of 0 in ``vector``, and its probabilities, but for the
    renormalisation, in ``isotonic``.

    Args:
        method: a name of CALIBRATIONS.
        probabilities: [n, n_classes], rows that add up to 1 or are NaN.
        labels: class positions [n].
        taxonomy: the classes and their families.

    Raises:
        RecipeError: the method is unknown, the shapes do not agree, there is no row without
            a NaN, or a value is no probability or no class position.
    """
    _known(method)
    p, y = _checked(probabilities, labels, len(taxonomy))
    if method == "none":
        return Calibrator("none")
    if method == "isotonic":
        return Calibrator("isotonic", _fit_isotonic(p, y))
    logits = _log(p)
    if method == "vector":
        return Calibrator("vector", _fit_vector(logits, y))
    shared = _fit_temperature(logits, y)
    if method == "temperature":
        return Calibrator("temperature", {"temperature": [shared]})
    family_of = [int(f) for f in taxonomy.family_of]
    predicted = _predicted_family(p, family_of)
    temperatures = []
    for f in range(len(taxonomy.families)):
        rows = np.flatnonzero(predicted == f)
        enough = len(rows) >= MIN_FAMILY_CLIPS
        temperatures.append(_fit_temperature(logits[rows], y[rows]) if enough else shared)
    return Calibrator("family", {"temperature": temperatures, "family_of": family_of})


def _known(method: str) -> CalibrationMethod:
    for name in CALIBRATIONS:
        if name == method:
            return name
    raise RecipeError(f"calibration {method!r} is not known; {nearest(str(method), CALIBRATIONS)}")


def _checked(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, n_classes: int | None = None
) -> tuple[FloatArray, IntArray]:
    """The probabilities [n, n_classes] and labels [n] of the rows without a NaN."""
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1] or p.shape[1] != (n_classes or p.shape[1]):
        raise RecipeError(
            f"probabilities have the shape {list(p.shape)} and labels {list(y.shape)}; expected "
            f"[n, {n_classes or 'n_classes'}] and [n]; pass both for the same clips and classes"
        )
    n = len(p)
    is_there = ~np.isnan(p).any(axis=1)
    p, y = p[is_there], y[is_there]
    if not len(p):
        raise RecipeError(
            f"none of {n} clips has probabilities; expected one row without NaN at least; fit the "
            "members that make them"
        )
    if p.min() < 0 or p.max() > 1 + 1e-6:
        raise RecipeError(
            f"probabilities reach from {p.min():.6g} to {p.max():.6g}; expected 0 to 1; apply a "
            "softmax to logits"
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[1]:
        raise RecipeError(
            f"labels ({y.dtype}) reach from {y.min()} to {y.max()}; expected class positions 0 to "
            f"{p.shape[1] - 1}; leave unlabelled clips (-1) out"
        )
    return p, y.astype(np.int64)


def _log(p: FloatArray) -> FloatArray:
    return np.log(np.maximum(p, LOWEST_PROBABILITY))


def _predicted_family(p: FloatArray, family_of: list[int]) -> IntArray:
    """The family [n] with the largest summed probability; of equals the first."""
    totals = np.zeros((len(p), max(family_of) + 1))
    for c, f in enumerate(family_of):  # column by column: the same order of sums for any n
        totals[:, f] += p[:, c]
    return np.asarray(totals.argmax(axis=1), np.int64)


def _fit_temperature(logits: FloatArray, labels: IntArray) -> float:
    """The temperature within TEMPERATURE_RANGE with the least NLL.

    In 1/T the NLL is convex, so over log T it falls to one minimum and then rises. Where its
    slope changes sign is known to more digits than where its value is least, since the values
    near a minimum hardly differ.
    """
    from scipy.optimize import brentq

    z = np.ascontiguousarray(logits.T)  # [n_classes, n]: sums over classes then vectorise
    z -= z.max(axis=0)
    mean_true = float(z[labels, np.arange(len(labels))].mean())
    e = np.empty_like(z)

    def too_sharp(log_t: float) -> float:
        """The slope of the NLL in 1/T: above 0 where T is too small."""
        np.multiply(z, np.exp(-log_t), out=e)
        np.exp(e, out=e)
        total = e.sum(axis=0)
        np.multiply(e, z, out=e)
        return float((e.sum(axis=0) / total).mean()) - mean_true

    at_one = too_sharp(0.0)
    if at_one == 0:  # also rows that are all uniform, which any temperature suits
        return 1.0
    limit = TEMPERATURE_RANGE[1 if at_one > 0 else 0]
    if too_sharp(float(np.log(limit))) * at_one >= 0:
        return limit
    return float(np.exp(brentq(too_sharp, 0.0, float(np.log(limit)), xtol=1e-10, rtol=1e-10)))


def _fit_vector(logits: FloatArray, labels: IntArray) -> Parameters:
    """Scale and bias of each class with the least NLL plus pull, by L-BFGS."""
    from scipy.optimize import minimize

    n, n_classes = logits.shape
    z = np.ascontiguousarray(logits.T)
    clips = np.arange(n)
    # The NLL falls for ever as the bias of a class without clips does, and a small pull would
    # hold it back only late; nothing was learned of such a class, so it is held where it is.
    seen = np.flatnonzero(np.bincount(labels, minlength=n_classes))
    identity = np.repeat([1.0, 0.0], len(seen))
    scale, bias = np.ones(n_classes), np.zeros(n_classes)
    e = np.empty_like(z)

    def objective(x: FloatArray) -> tuple[float, FloatArray]:
        scale[seen], bias[seen] = x.reshape(2, -1)
        np.multiply(z, scale[:, None], out=e)
        np.add(e, bias[:, None], out=e)
        np.subtract(e, e.max(axis=0), out=e)
        true = e[labels, clips].sum()
        np.exp(e, out=e)
        total = e.sum(axis=0)
        nll = np.log(total).sum() - true
        np.divide(e, total, out=e)
        e[labels, clips] -= 1
        gradient = np.concatenate([np.einsum("cn,cn->c", e, z)[seen], e.sum(axis=1)[seen]])
        away = x - identity
        value = nll + VECTOR_PULL / 2 * float((away**2).sum())
        return value / n, (gradient + VECTOR_PULL * away) / n

    found = minimize(
        objective,
        identity,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 500, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-6},
    )
    scale[seen], bias[seen] = found.x.reshape(2, -1)
    return {"scale": scale.tolist(), "bias": bias.tolist()}


def _fit_isotonic(p: FloatArray, labels: IntArray) -> Parameters:
    """Breakpoints of the increasing step-and-slope function of each class, by PAV."""
    from sklearn.isotonic import IsotonicRegression

    x, y = [], []
    for c in range(p.shape[1]):
        is_class = labels == c
        if is_class.any():
            fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
            fitted.fit(p[:, c], is_class.astype(np.float64))
            x.append(fitted.X_thresholds_.tolist())
            y.append(fitted.y_thresholds_.tolist())
        else:
            x.append([0.0, 1.0])
            y.append([0.0, 1.0])
    return {"x": x, "y": y}


def _apply_isotonic(p: FloatArray, x: list[list[float]], y: list[list[float]]) -> FloatArray:
    mapped = np.empty_like(p)
    for c in range(p.shape[1]):
        mapped[:, c] = np.interp(p[:, c], x[c], y[c])
    total = mapped.sum(axis=1, keepdims=True)
    # A row that every class was mapped to 0 for has nothing to renormalise.
    return np.where(total > 0, mapped / np.where(total > 0, total, 1.0), p)


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
    p, y = _checked(probabilities, labels)
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
        nll=float(-_log(true).mean()),
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
