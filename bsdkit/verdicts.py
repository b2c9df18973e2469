"""Whether one system is better than another: the one rule of every table and page.

Two things are left to chance: which clips were at hand, and how training went. An interval that
counts the first alone calls a new seed a gain. So systems are compared with what each of their
training seeds predicts alone, and where there is one seed only, no verdict is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bsdkit.metrics import (
    Comparison,
    Scorer,
    confusion_matrix,
    holm,
    interval_of_draws,
    paired_draws,
)
from bsdkit.stats import Z_95
from bsdkit.taxonomy import Taxonomy

__all__ = ["ONE_SEED", "RULE", "System", "compare_systems", "judge"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

LEVEL = 0.05

ONE_SEED = "one seed: training noise unknown"
"""The verdict on systems of which one was trained once."""

RULE = (
    "gain, loss: p below 0.05 in a paired bootstrap over clips and over training seeds, adjusted "
    "for the comparisons of this table (Holm)"
)
"""What stands under every table with verdicts."""


@dataclass(frozen=True)
class System:
    """What a system predicts.

    Attributes:
        classes: class positions [n_clips].
        seeds: those by the models of each training seed alone [n_seeds, n_clips]. A single row
            says nothing of the noise of training; None: nothing in its training is random.
    """

    classes: IntArray
    seeds: IntArray | None = None

    def rows(self, index: IntArray) -> System:
        """The same of some clips, in that order."""
        return System(self.classes[index], None if self.seeds is None else self.seeds[:, index])

    @property
    def is_noise_known(self) -> bool:
        """Whether it can be said how much another training would change it."""
        return self.seeds is None or len(self.seeds) > 1


def compare_systems(
    labels: IntArray,
    a: System,
    b: System,
    taxonomy: Taxonomy,
    *,
    metric: str = "hF_strict",
    share_seeds: bool = False,
    n_resamples: int = 2000,
    class_weight: npt.ArrayLike | None = None,
) -> Comparison:
    """System A minus system B on the same clips, with an interval over clips and training.

    The interval is that of a paired bootstrap over clips, in each draw of which the seeds of both
    sides are drawn again too (Bouthillier et al., "Accounting for variance in machine learning
    benchmarks", MLSys 2021, on why both count). A mean over n seeds moves as much as the scores of
    single seeds do, divided by sqrt(n); drawing n of n with replacement shows sqrt((n - 1) / n) of
    that, and few seeds make the estimate itself uncertain: draws are stretched by the inverse and
    by Student's t quantile over the normal one (degrees of freedom by Welch and Satterthwaite).

    The comparison carries no verdict until `judge` has adjusted it for the others beside it.

    Args:
        labels: true class positions [n_clips].
        a: one system.
        b: the system that it is compared with.
        taxonomy: the classes and their families.
        metric: a name of METRICS.
        share_seeds: whether the i-th seeds of both are the same training, so that what is
            compared is their difference seed by seed.
        n_resamples: how many draws.
        class_weight: see `bootstrap`.
    """
    # One order of the pair for the draws, so that (a, b) and (b, a) are exact opposites.
    if b.classes.astype(np.int64).tobytes() < a.classes.astype(np.int64).tobytes():
        c = compare_systems(
            labels, b, a, taxonomy, metric=metric, share_seeds=share_seeds,
            n_resamples=n_resamples, class_weight=class_weight,
        )  # fmt: skip
        return replace(c, difference=-c.difference, low=-c.high, high=-c.low)
    difference, draws = paired_draws(
        labels, a.classes, b.classes, taxonomy,
        metric=metric, n_resamples=n_resamples, class_weight=class_weight,
    )  # fmt: skip
    error = None
    if a.is_noise_known and b.is_noise_known:
        sides = [
            _scores_of_seeds(labels, system.seeds, taxonomy, metric, class_weight)
            for system in (a, b)
        ]
        if share_seeds and all(len(side) == len(sides[0]) for side in sides):
            sides = [sides[0] - sides[1]]
        error, of_seeds = _training_draws(sides, n_resamples)
        draws = draws + of_seeds
    low, high, p_value = interval_of_draws(draws)
    return Comparison(metric, difference, low, high, p_value, "", training_error=error)


def judge(comparisons: Mapping[str, Comparison]) -> dict[str, Comparison]:
    """The comparisons of one table with p values adjusted for each other, and their verdicts.

    A verdict is ``gain``, ``loss`` or ``within noise`` by `RULE`, or `ONE_SEED`.
    """
    adjusted = holm({name: c.p_value for name, c in comparisons.items()})
    return {
        name: replace(c, p_adjusted=adjusted[name], verdict=_verdict(c, adjusted[name]))
        for name, c in comparisons.items()
    }


def _verdict(comparison: Comparison, p_adjusted: float) -> str:
    if comparison.training_error is None:
        return ONE_SEED
    if p_adjusted >= LEVEL:
        return "within noise"
    return "gain" if comparison.difference > 0 else "loss"


def _scores_of_seeds(
    labels: IntArray,
    seeds: IntArray | None,
    taxonomy: Taxonomy,
    metric: str,
    class_weight: npt.ArrayLike | None,
) -> FloatArray:
    """The score of each seed alone [n_seeds]; none where nothing is random."""
    if seeds is None:
        return np.zeros(0)
    n = len(taxonomy)
    weight = np.ones(n) if class_weight is None else np.asarray(class_weight, np.float64)
    counts = np.stack([confusion_matrix(labels, one, n) for one in seeds])
    return np.asarray(Scorer(taxonomy).all(counts * weight[:, None])[metric])


def _training_draws(sides: list[FloatArray], n_resamples: int) -> tuple[float, FloatArray]:
    """The standard error that training adds to a difference, and draws of its deviation."""
    rng = np.random.default_rng(1)
    draws = np.zeros(n_resamples)
    variances, freedom = [], 0.0
    for sign, scores in zip((1, -1), sides, strict=False):
        n = len(scores)
        if n < 2:
            continue
        deviations = scores - scores.mean()
        drawn = deviations[rng.integers(0, n, (n_resamples, n))].mean(axis=1)
        draws += sign * drawn * np.sqrt(n / (n - 1))
        variances.append(float(scores.var(ddof=1)) / n)
        freedom += variances[-1] ** 2 / (n - 1)
    total = sum(variances)
    if total <= 0:
        return 0.0, draws
    from scipy.stats import t

    return float(np.sqrt(total)), draws * (float(t.ppf(0.975, total**2 / freedom)) / Z_95)
