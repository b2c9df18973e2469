"""Hierarchical scores of class predictions, their intervals, and paired comparisons.

The measures of DCASE 2026 Task 1, on a two-level taxonomy. A clip earns a *credit*: 1 for
the exact class, less for another class of the right family, 0 otherwise. With c a class:

    hP(c)  mean credit of the clips predicted as c     (family credit 0.75 x 1/2 = 0.375)
    hR(c)  mean credit of the clips that are c         (the same)
    hF(c)  2 hP hR / (hP + hR), 0 where both are 0
    hA(c)  mean credit of the clips that are c, with a family credit of 0.5

each averaged over the classes that occur in the ground truth. The weighted precision and
recall are Kiritchenko, Matwin and Famili (ACL-ISMB Workshop 2005) over the path from family
to class, with the task's factor lambda = 0.75 on a prediction that has only the family right.

The organisers' evaluation has a quirk: the precision of a class that is never predicted
divides by zero, and the class silently drops out of the means of hP, hR and hF. `hF` here
is that number, to the last digit; `hF_strict` counts such a class as 0. Whatever is
optimised must use `hF_strict`, or a search can win by never predicting a rare class.

Everything is computed from the confusion matrix, so that a search can score thousands of
prediction vectors, and a bootstrap can draw confusion matrices instead of clips.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsdkit.taxonomy import Taxonomy

__all__ = [
    "FAMILY_CREDIT_ACCURACY",
    "FAMILY_CREDIT_PRF",
    "METRICS",
    "Comparison",
    "Interval",
    "NeverPredictedWarning",
    "Scorer",
    "Scores",
    "Spread",
    "bootstrap",
    "compare",
    "confusion_matrix",
    "evaluate",
    "holm",
    "spread",
]

IntArray = npt.NDArray[np.integer]
Counts = npt.NDArray[np.integer] | npt.NDArray[np.floating]
FloatArray = npt.NDArray[np.float64]

FAMILY_CREDIT_PRF = 0.75 * 1 / 2
"""Credit of the right family in hP, hR and hF: lambda = 0.75 times one of two levels."""

FAMILY_CREDIT_ACCURACY = 0.5
"""Credit of the right family in hA."""

METRICS = (
    "hF",
    "hF_strict",
    "hP",
    "hR",
    "hA",
    "accuracy",
    "top_accuracy",
    "macro_accuracy",
    "macro_top_accuracy",
    "cross_family_error",
)
"""Names of the scores, in the order in which tables show them. All are fractions."""


class NeverPredictedWarning(UserWarning):
    """A class of the ground truth is never predicted, so hF and hF_strict differ."""


def confusion_matrix(y_true: IntArray, y_pred: IntArray, n_classes: int) -> npt.NDArray[np.int64]:
    """Counts [n_classes, n_classes] of clips by true class (row) and predicted class (column).

    Args:
        y_true: class positions [n_clips].
        y_pred: class positions [n_clips].
        n_classes: the number of classes.

    Raises:
        ValueError: the lengths differ, there is no clip, or a position is out of range.
    """
    y_true, y_pred = np.asarray(y_true), np.asarray(y_pred)
    if y_true.ndim != 1 or y_true.shape != y_pred.shape:
        raise ValueError(
            f"y_true has shape {y_true.shape} and y_pred {y_pred.shape}; both must be [n_clips]"
        )
    if y_true.size == 0:
        raise ValueError("there is no clip to score; y_true and y_pred are empty")
    lowest = min(int(y_true.min()), int(y_pred.min()))
    highest = max(int(y_true.max()), int(y_pred.max()))
    if lowest < 0 or highest >= n_classes:
        raise ValueError(
            f"class positions reach from {lowest} to {highest}; expected 0 to {n_classes - 1} "
            "(-1 marks unlabelled clips, which cannot be scored)"
        )
    cells = y_true.astype(np.int64) * n_classes + y_pred
    return np.bincount(cells, minlength=n_classes * n_classes).reshape(n_classes, n_classes)


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """The quotient, with 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def _masked_mean(values: FloatArray, mask: npt.NDArray[np.bool_]) -> FloatArray:
    """Mean over the last axis of the values that the mask keeps, 0 where it keeps none."""
    return _ratio(np.where(mask, values, 0.0).sum(-1), mask.sum(-1).astype(np.float64))


class Scorer:
    """Scores of confusion matrices on one taxonomy, for searches that score many.

    All methods take counts [..., n_classes, n_classes] (true, predicted); leading axes are
    independent matrices. Counts may be weights, e.g. to re-weight classes to another prior.

    Args:
        taxonomy: the classes and their families.
    """

    def __init__(self, taxonomy: Taxonomy) -> None:
        self.taxonomy = taxonomy
        self._credit = taxonomy.credit(FAMILY_CREDIT_PRF)
        self._credit_accuracy = taxonomy.credit(FAMILY_CREDIT_ACCURACY)
        self._same_family = taxonomy.credit(1.0)

    def precision_recall_f(self, counts: Counts) -> tuple[FloatArray, ...]:
        """hP, hR and hF of each class, [..., n_classes] each; 0 where nothing was predicted."""
        counts = np.asarray(counts, np.float64)
        earned = counts * self._credit
        precision = _ratio(earned.sum(-2), counts.sum(-2))
        recall = _ratio(earned.sum(-1), counts.sum(-1))
        f = _ratio(2 * precision * recall, precision + recall)
        return precision, recall, f

    def hF_strict(self, counts: Counts) -> FloatArray:  # noqa: N802
        """hF_strict [...]: the mean of hF over the classes that occur, never predicted = 0."""
        return _masked_mean(self.precision_recall_f(counts)[2], counts.sum(-1) > 0)

    def hF_strict_of(self, y_true: IntArray, y_pred: IntArray) -> float:  # noqa: N802
        """hF_strict of one prediction vector [n_clips]; inputs are trusted, not checked.

        The fast path of searches: a bincount and some arithmetic on the counts.
        """
        n = len(self.taxonomy)
        cells = np.asarray(y_true, np.int64) * n + y_pred
        return self.hF_strict_of_counts(np.bincount(cells, minlength=n * n).reshape(n, n))

    def hF_strict_of_counts(self, counts: Counts) -> float:  # noqa: N802
        """`hF_strict` of one matrix of counts or weights [n_classes, n_classes], in less time."""
        earned = counts * self._credit
        true, predicted = counts.sum(1), counts.sum(0)
        # 2PR/(P+R) with P = e_c/p and R = e_r/t, written without its two divisions by zero
        by_column, by_row = earned.sum(0), earned.sum(1)
        denominator = by_column * true + by_row * predicted
        f = 2 * by_column * by_row / np.where(denominator > 0, denominator, 1.0)
        return float(f[true > 0].mean())

    def of(self, metric: str) -> Callable[[IntArray, IntArray], float]:
        """The function from (true, predicted) positions [n_clips] to a score of METRICS."""
        if metric == "hF_strict":
            return self.hF_strict_of
        n = len(self.taxonomy)
        return lambda y_true, y_pred: float(self.all(confusion_matrix(y_true, y_pred, n))[metric])

    def all(self, counts: Counts) -> dict[str, FloatArray]:
        """Every score of METRICS, [...] each."""
        counts = np.asarray(counts, np.float64)
        precision, recall, f = self.precision_recall_f(counts)
        true, predicted = counts.sum(-1), counts.sum(-2)
        occurs = true > 0
        scored = occurs & (predicted > 0)
        exact = np.diagonal(counts, axis1=-2, axis2=-1)
        top = (counts * self._same_family).sum(-1)
        total = true.sum(-1)
        top_accuracy = _ratio(top.sum(-1), total)
        return {
            "hF": _masked_mean(f, scored),
            "hF_strict": _masked_mean(f, occurs),
            "hP": _masked_mean(precision, scored),
            "hR": _masked_mean(recall, scored),
            "hA": _masked_mean(_ratio((counts * self._credit_accuracy).sum(-1), true), occurs),
            "accuracy": _ratio(exact.sum(-1), total),
            "top_accuracy": top_accuracy,
            "macro_accuracy": _masked_mean(_ratio(exact, true), occurs),
            "macro_top_accuracy": _masked_mean(_ratio(top, true), occurs),
            "cross_family_error": 1.0 - top_accuracy,
        }


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class; `confused_with` is the most frequent wrong prediction."""

    label: str
    n_clips: int
    n_predicted: int
    hP: float  # noqa: N815
    hR: float  # noqa: N815
    hF: float  # noqa: N815
    accuracy: float
    confused_with: str


@dataclass(frozen=True)
class Scores:
    """Scores of one set of predictions.

    Attributes:
        values: the scores named in METRICS, as fractions.
        per_class: one entry a class that occurs in the ground truth, in taxonomy order.
        never_predicted: classes of the ground truth that no clip was predicted as; `hF`
            leaves them out as the organisers' code does, `hF_strict` counts them as 0.
        confusion: counts [n_classes, n_classes] by true (row) and predicted class.
    """

    values: dict[str, float]
    per_class: tuple[ClassScores, ...]
    never_predicted: tuple[str, ...]
    confusion: npt.NDArray[np.int64]

    def __getitem__(self, name: str) -> float:
        """The score of that name."""
        return self.values[name]

    @property
    def n_clips(self) -> int:
        """The number of clips scored."""
        return int(self.confusion.sum())

    def to_dict(self) -> dict[str, object]:
        """The scores as plain JSON types."""
        return {
            **self.values,
            "n_clips": self.n_clips,
            "never_predicted": list(self.never_predicted),
            "per_class": {
                c.label: {k: v for k, v in vars(c).items() if k != "label"} for c in self.per_class
            },
        }


def evaluate(
    y_true: IntArray, y_pred: IntArray, taxonomy: Taxonomy, *, warn: bool = True
) -> Scores:
    """Scores of predictions [n_clips] against labels [n_clips], as class positions.

    Args:
        y_true: true class positions.
        y_pred: predicted class positions.
        taxonomy: the classes and their families.
        warn: whether a class that is never predicted raises a NeverPredictedWarning.

    Raises:
        ValueError: see `confusion_matrix`.

    Examples:
        >>> from bsdkit.taxonomy import BST
        >>> y_true = BST.encode(["m-sp", "m-si", "fx-a", "fx-v"])
        >>> y_pred = BST.encode(["m-sp", "m-sp", "fx-a", "fx-a"])
        >>> scores = evaluate(y_true, y_pred, BST, warn=False)
        >>> round(scores["hF"], 4), round(scores["hF_strict"], 4), scores.never_predicted
        (0.8148, 0.4074, ('m-si', 'fx-v'))
    """
    counts = confusion_matrix(y_true, y_pred, len(taxonomy))
    scorer = Scorer(taxonomy)
    values = {name: float(value) for name, value in scorer.all(counts).items()}
    precision, recall, f = scorer.precision_recall_f(counts)
    true, predicted = counts.sum(1), counts.sum(0)
    per_class = []
    for i in np.flatnonzero(true):
        wrong = counts[i].copy()
        wrong[i] = 0
        worst = int(wrong.argmax())
        per_class.append(
            ClassScores(
                label=taxonomy.labels[i],
                n_clips=int(true[i]),
                n_predicted=int(predicted[i]),
                hP=float(precision[i]),
                hR=float(recall[i]),
                hF=float(f[i]),
                accuracy=float(counts[i, i] / true[i]),
                confused_with=taxonomy.labels[worst] if wrong[worst] else "",
            )
        )
    never = tuple(taxonomy.labels[i] for i in np.flatnonzero((true > 0) & (predicted == 0)))
    if never and warn:
        warnings.warn(
            f"never predicted: {', '.join(never)}; hF leaves such a class out of its mean, as the "
            f"organisers' code does ({values['hF']:.4f}); hF_strict counts it as 0 "
            f"({values['hF_strict']:.4f})",
            NeverPredictedWarning,
            stacklevel=2,
        )
    return Scores(values, tuple(per_class), never, counts)


@dataclass(frozen=True)
class Interval:
    """A score with its bootstrap interval: the 2.5 and 97.5 percentiles unless said otherwise."""

    value: float
    low: float
    high: float
    standard_error: float


def _resampled_cells(
    cells: npt.NDArray[np.int64], n_resamples: int, seed: int
) -> Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """(class, occupied cells [k], bootstrap counts [n_resamples, k]) of each class that occurs.

    Drawing the n_c clips of a class with replacement and counting them by cell is a
    multinomial draw of n_c over that class's cells, so no clip need be touched.

    Args:
        cells: counts [n_classes, n_cells] of clips by true class and whatever else.
        n_resamples: how many draws.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    for c, row in enumerate(cells):
        n, occupied = int(row.sum()), np.flatnonzero(row)
        if n:
            yield c, occupied, rng.multinomial(n, row[occupied] / n, size=n_resamples)


def bootstrap(
    y_true: IntArray,
    y_pred: IntArray,
    taxonomy: Taxonomy,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    class_weight: npt.ArrayLike | None = None,
) -> dict[str, Interval]:
    """An interval for every score, by a percentile bootstrap over clips, stratified by class.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3. The clips
    of each class are drawn with replacement, so that class counts stay as they are.

    Args:
        y_true: true class positions [n_clips].
        y_pred: predicted class positions [n_clips].
        taxonomy: the classes and their families.
        n_resamples: how many draws.
        level: the interval's coverage.
        seed: of the draws; the same seed gives the same interval.
        class_weight: how much a clip of each class counts [n_classes], for the scores that there
            would be with other class frequencies; None for one each.
    """
    counts = confusion_matrix(y_true, y_pred, len(taxonomy))
    scorer = Scorer(taxonomy)
    weight = np.ones(len(taxonomy)) if class_weight is None else np.asarray(class_weight)
    values = scorer.all(counts * weight[:, None])
    resampled = np.zeros((n_resamples, *counts.shape), np.int64)
    for c, occupied, drawn in _resampled_cells(counts, n_resamples, seed):
        resampled[:, c, occupied] = drawn
    draws = scorer.all(resampled * weight[:, None])
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {}
    for name, value in values.items():
        low, high = np.quantile(draws[name], tails)
        error = float(draws[name].std(ddof=1))
        intervals[name] = Interval(float(value), float(low), float(high), error)
    return intervals


@dataclass(frozen=True)
class Comparison:
    """System A minus system B on the same clips, by a paired bootstrap.

    Attributes:
        metric: which score.
        difference: A minus B, as a fraction.
        low: lower end of the difference's interval.
        high: upper end.
        p_value: two-sided share of draws on the other side of zero.
        verdict: ``gain``, ``loss`` or ``within noise``: whether the interval clears zero; by the
            rule of `bsdkit.verdicts` where training is counted too.
        training_error: the standard error that another training would add to the difference;
            None where it was not counted.
        p_adjusted: the p value adjusted for the comparisons beside it; None where it was not.
    """

    metric: str
    difference: float
    low: float
    high: float
    p_value: float
    verdict: str
    training_error: float | None = None
    p_adjusted: float | None = None


def compare(
    y_true: IntArray,
    y_pred_a: IntArray,
    y_pred_b: IntArray,
    taxonomy: Taxonomy,
    *,
    metric: str = "hF_strict",
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
    class_weight: npt.ArrayLike | None = None,
) -> Comparison:
    """Whether system A differs from B by more than the noise, both on the same clips.

    A paired bootstrap stratified by class: each draw takes the same clips for both systems.
    (The default metric is the strict one: hF itself can rise because a class is given up.)

    Args:
        y_true: true class positions [n_clips].
        y_pred_a: predictions [n_clips] of A.
        y_pred_b: predictions [n_clips] of B.
        taxonomy: the classes and their families.
        metric: a name of METRICS.
        n_resamples: how many draws.
        level: coverage of the interval that must clear zero.
        seed: of the draws.
        class_weight: see `bootstrap`.

    Raises:
        ValueError: the lengths differ or the metric is unknown.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    # One order of the pair for the draws, so that (a, b) and (b, a) are exact opposites.
    if np.asarray(y_pred_b, np.int64).tobytes() < np.asarray(y_pred_a, np.int64).tobytes():
        swapped = compare(
            y_true, y_pred_b, y_pred_a, taxonomy,
            metric=metric, n_resamples=n_resamples, level=level, seed=seed,
            class_weight=class_weight,
        )  # fmt: skip
        opposite = {"gain": "loss", "loss": "gain"}.get(swapped.verdict, swapped.verdict)
        return Comparison(
            metric, -swapped.difference, -swapped.high, -swapped.low, swapped.p_value, opposite
        )
    difference, draws = paired_draws(
        y_true, y_pred_a, y_pred_b, taxonomy,
        metric=metric, n_resamples=n_resamples, seed=seed, class_weight=class_weight,
    )  # fmt: skip
    low, high, p_value = interval_of_draws(draws, level)
    verdict = "gain" if low > 0 else "loss" if high < 0 else "within noise"
    return Comparison(metric, difference, low, high, p_value, verdict)


def interval_of_draws(draws: FloatArray, level: float = 0.95) -> tuple[float, float, float]:
    """(low, high) of the middle share of draws, and twice the smaller share beyond zero, the p."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    below = (1 + np.count_nonzero(draws <= 0)) / (len(draws) + 1)
    above = (1 + np.count_nonzero(draws >= 0)) / (len(draws) + 1)
    return float(low), float(high), float(min(1.0, 2 * min(below, above)))


def paired_draws(
    y_true: IntArray,
    y_pred_a: IntArray,
    y_pred_b: IntArray,
    taxonomy: Taxonomy,
    *,
    metric: str = "hF_strict",
    n_resamples: int = 2000,
    seed: int = 0,
    class_weight: npt.ArrayLike | None = None,
) -> tuple[float, FloatArray]:
    """A minus B on the clips, and on each bootstrap sample of them [n_resamples]; see `compare`."""
    n = len(taxonomy)
    counts_a = confusion_matrix(y_true, y_pred_a, n)
    counts_b = confusion_matrix(y_true, y_pred_b, n)
    joint = np.zeros((n, n, n), np.int64)
    np.add.at(joint, (np.asarray(y_true), np.asarray(y_pred_a), np.asarray(y_pred_b)), 1)
    draws_a = np.zeros((n_resamples, n, n))
    draws_b = np.zeros((n_resamples, n, n))
    one_hot = np.eye(n)
    for c, occupied, drawn in _resampled_cells(joint.reshape(n, n * n), n_resamples, seed):
        draws_a[:, c] = drawn @ one_hot[occupied // n]
        draws_b[:, c] = drawn @ one_hot[occupied % n]
    scorer = Scorer(taxonomy)
    weight = np.ones(n) if class_weight is None else np.asarray(class_weight)

    def score(counts: Counts) -> FloatArray:
        counts = counts * weight[:, None]
        if metric == "hF_strict":  # alone, it takes a third of the time of all
            return scorer.hF_strict(counts)
        return scorer.all(counts)[metric]

    return float(score(counts_a) - score(counts_b)), score(draws_a) - score(draws_b)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """P values adjusted for having made all these comparisons (Holm, Scand. J. Stat. 1979).

    Examples:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1 in the denominator) of n figures."""

    mean: float
    standard_deviation: float
    n: int


def spread(values: Iterable[float] | Sequence[float]) -> Spread:
    """Mean, sample standard deviation (0 for a single figure) and n, over folds or seeds."""
    figures = np.asarray(list(values), np.float64)
    deviation = float(figures.std(ddof=1)) if len(figures) > 1 else 0.0
    return Spread(float(figures.mean()), deviation, len(figures))
