"""Weighted means of member probabilities, and the searches for their weights.

All searches maximise hF_strict through a `WeightScorer`, which scores a weighting in a fraction
of a millisecond. What they find is *tuned* on the clips that they are given; `bsdkit.combine.chain`
gives them the clips of other folds only.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from bsdkit.combine.objective import Objective, WeightScorer, average, normalised
from bsdkit.errors import RecipeError

__all__ = [
    "METHODS",
    "Ensemble",
    "EnsembleOptions",
    "Limits",
    "Method",
    "Space",
    "check_options",
    "combine",
    "fit_ensemble",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Method = Literal["mean", "weights", "greedy", "subsets", "stacking", "frozen"]
Space = Literal["probabilities", "logits"]

METHODS: tuple[Method, ...] = ("mean", "weights", "greedy", "subsets", "stacking", "frozen")
"""All weights equal; found by TPE; forward selection; the best subset; least log loss; given."""

MOST_SUBSETS = 100_000
"""Subsets that `subsets` tries at most."""

_FLOOR = 1e-6
"""Probabilities are clipped here before a logarithm, so that no member alone can veto a class."""

_CANDIDATES = 4
"""Points that TPE draws for a trial; most of a trial is Optuna's time, which grows with them."""

_STUDY = 100
"""Trials of one TPE study. Its time grows with its history, so a long search is a chain of
studies, each of which knows the best of those before."""


@dataclass(frozen=True)
class EnsembleOptions:
    """How members are to be averaged.

    Attributes:
        method: one of METHODS.
        space: ``probabilities`` (their mean), or ``logits`` (their geometric mean, normalised).
        trials: weightings that ``weights`` tries.
        rounds: members that ``greedy`` adds at most, with replacement.
        largest: members in a subset at most.
        caps: the largest share of the weight for members whose names match a pattern, such as
            ``{"*-audio": 0.4}``; a member belongs to the first pattern that it matches.
        min_weight: a member with a smaller share is left out, the lightest first.
        seed: of ``weights``.
        frozen: weights by member, for ``frozen``.
    """

    method: Method = "weights"
    space: Space = "probabilities"
    trials: int = 200
    rounds: int = 50
    largest: int = 3
    caps: Mapping[str, float] = field(default_factory=dict)
    min_weight: float = 0.0
    seed: int = 0
    frozen: Mapping[str, float] = field(default_factory=dict)

    @property
    def learns(self) -> bool:
        """Whether the weights come from labels."""
        return self.method not in ("mean", "frozen")


@dataclass(frozen=True)
class Ensemble:
    """How members are averaged.

    Attributes:
        method: how the weights were found; see METHODS.
        weights: one a member, not negative, adding up to 1.
        space: what is averaged.
    """

    method: Method
    weights: tuple[float, ...]
    space: Space = "probabilities"

    def apply(self, probabilities: FloatArray, fallback: npt.ArrayLike | None = None) -> FloatArray:
        """`combine` with these weights."""
        return combine(probabilities, self.weights, fallback, space=self.space)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"method": self.method, "space": self.space, "weights": list(self.weights)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ensemble:
        """What `to_dict` gave."""
        return cls(data["method"], tuple(data["weights"]), data["space"])


def combine(
    probabilities: FloatArray,
    weights: npt.ArrayLike,
    fallback: npt.ArrayLike | None = None,
    *,
    space: Space = "probabilities",
) -> FloatArray:
    """Weighted mean [n_clips, n_classes] of member probabilities.

    A member whose row is NaN has no prediction for that clip; the others share its weight.
    Where no member with weight has one, the row is the fallback, or NaN without one. A row
    depends on that row alone, to the last bit.

    Args:
        probabilities: [n_members, n_clips, n_classes].
        weights: [n_members].
        fallback: class probabilities [n_classes], or [n_clips, n_classes].
        space: ``logits`` for the normalised geometric mean, of probabilities of at least 1e-6.
    """
    scores = probabilities if space == "probabilities" else _logarithm(probabilities)
    mixed, total = average(scores, weights)
    if space == "logits":
        mixed = normalised(mixed)
    empty = np.full(probabilities.shape[2], np.nan) if fallback is None else np.asarray(fallback)
    return np.where(total[:, None] > 0, mixed, empty)


def _logarithm(probabilities: FloatArray) -> FloatArray:
    return np.asarray(np.log(np.maximum(probabilities, _FLOOR)))


class Limits:
    """The weightings that options allow.

    Args:
        options: for caps and the smallest weight.
        names: the members.

    Raises:
        RecipeError: the caps leave less than the whole weight.
    """

    def __init__(self, options: EnsembleOptions, names: Sequence[str]) -> None:
        patterns = list(options.caps)
        self._group = np.array(
            [
                next((i for i, p in enumerate(patterns) if fnmatch.fnmatchcase(name, p)), -1)
                for name in names
            ]
        )
        self._caps = [options.caps[p] for p in patterns]
        self._min = options.min_weight
        for i, pattern in enumerate(patterns):
            if not (self._group == i).any():
                raise RecipeError(
                    f"ensemble.caps names {pattern!r}, which no member matches that an earlier "
                    f"pattern does not; the members are {', '.join(names)}"
                )
        used = sum(self._caps)
        if not self._can_hold(np.ones(len(names), bool)):
            raise RecipeError(
                f"ensemble.caps leave {used:g} of the weight to all members, expected 1 or more"
            )

    def __call__(self, weights: npt.ArrayLike) -> FloatArray:
        """The nearest allowed weights [n_members], adding up to 1.

        The excess of a group over its cap goes to the members outside, in proportion to their
        weights. Of the weights below the smallest the least is then left out (of equals the
        later one) until there is none, or the caps need every member that is left.
        """
        w = np.asarray(weights, np.float64)
        kept = np.ones(len(w), bool)
        w = self._capped(w, kept)
        while True:
            for i in np.lexsort((-np.arange(len(w)), w)):
                rest = kept & (np.arange(len(w)) != i)
                if 0 < w[i] < self._min - 1e-12 and self._can_hold(rest):
                    break
            else:
                return w
            kept = rest
            w = self._capped(np.where(kept, w, 0.0), kept)

    def _can_hold(self, kept: npt.NDArray[np.bool_]) -> bool:
        """Whether these members can share the whole weight."""
        groups = np.unique(self._group[kept])
        if not len(groups) or groups[0] < 0:
            return bool(len(groups))
        return bool(sum(self._caps[i] for i in groups) >= 1 - 1e-12)

    def _capped(self, weights: FloatArray, kept: npt.NDArray[np.bool_]) -> FloatArray:
        """The weights of the members kept, shared anew."""
        total = weights.sum()
        w = weights / total if total > 0 else kept / kept.sum()
        full: set[int] = set()
        while True:
            over = [
                i
                for i, cap in enumerate(self._caps)
                if i not in full and w[self._group == i].sum() > cap + 1e-12
            ]
            if not over:
                return np.asarray(w)
            for i in over:
                inside = self._group == i
                w[inside] *= self._caps[i] / w[inside].sum()
                full.add(i)
            is_free = kept & ~np.isin(self._group, list(full))
            if not is_free.any():  # the caps add up to 1, but for rounding
                return np.asarray(w / w.sum())
            rest = 1 - w[~is_free].sum()
            free = w[is_free].sum()
            w[is_free] = w[is_free] / free * rest if free > 0 else rest / is_free.sum()


def fit_ensemble(
    options: EnsembleOptions,
    probabilities: FloatArray,
    labels: IntArray,
    objective: Objective,
    *,
    names: Sequence[str] | None = None,
    on_trial: Callable[[int], None] | None = None,
) -> Ensemble:
    """The ensemble of these members on these clips.

    - ``mean``: all weights equal.
    - ``weights``: Optuna's TPE sampler (Bergstra et al., NIPS 2011; multivariate), seeded and in
      one thread, on the simplex: a weight is the logarithm of a uniform number, so that the
      weightings are spread evenly. The plain mean and each member alone are tried first.
    - ``greedy``: forward selection with replacement (Caruana et al., ICML 2004, section 2): from
      nothing, the member that helps most is added, again and again; the best of all rounds stays.
    - ``subsets``: the best equal-weighted subset of at most `largest` members, the smaller and
      then the earlier one of equals.
    - ``stacking``: convex weights of least log loss (Breiman, Machine Learning 1996, stacked
      regressions under the constraints of its section 3; van der Laan et al. 2007), a problem
      with one minimum.
    - ``frozen``: the given weights.

    Of equal scores the earlier one wins. After ``weights``, a member that can be left out without
    loss is: weight that changes nothing here is a risk elsewhere.

    Args:
        options: how.
        probabilities: [n_members, n_clips, n_classes].
        labels: class positions [n_clips].
        objective: what a search maximises.
        names: the members, for caps and frozen weights; numbers without them.
        on_trial: called with 1 after each trial of ``weights``.

    Raises:
        RecipeError: caps that cannot be kept, frozen weights of unknown members, or more than
            MOST_SUBSETS subsets.
    """
    n_members = len(probabilities)
    names = [str(i) for i in range(n_members)] if names is None else list(names)
    limits = Limits(options, names)
    if options.method == "frozen":
        return Ensemble("frozen", _frozen(options, names), options.space)
    if options.method == "mean" or n_members == 1:
        return Ensemble(options.method, tuple(limits(np.ones(n_members)).tolist()), options.space)
    if options.method == "stacking":
        w = limits(_stacked(probabilities, labels, objective, options.space))
        return Ensemble("stacking", tuple(w.tolist()), options.space)
    scores = probabilities if options.space == "probabilities" else _logarithm(probabilities)
    contest = WeightScorer(scores, labels, objective, is_log=options.space == "logits")
    with threadpool_limits(limits=1, user_api="blas"):  # the products are too small to share
        if options.method == "greedy":
            w = _greedy(contest, limits, options.rounds)
        elif options.method == "subsets":
            w = _best_subset(contest, limits, options.largest)
        else:
            w = _without_idle(contest, limits, _searched(contest, limits, options, on_trial))
    return Ensemble(options.method, tuple(w.tolist()), options.space)


def check_options(options: EnsembleOptions, names: Sequence[str]) -> None:
    """Refuses caps and frozen weights that cannot be used with these members.

    Raises:
        RecipeError: see `fit_ensemble`.
    """
    Limits(options, names)
    if options.method == "frozen":
        _frozen(options, names)


def _frozen(options: EnsembleOptions, names: Sequence[str]) -> tuple[float, ...]:
    unknown = [name for name in options.frozen if name not in names]
    if unknown:
        raise RecipeError(
            f"the frozen weights name {unknown[0]!r}, which is no member of this ensemble: "
            f"{', '.join(names)}"
        )
    w = np.array([options.frozen.get(name, 0.0) for name in names])
    if not (np.isfinite(w) & (w >= 0)).all() or not w.sum() > 0:
        raise RecipeError(
            "frozen weights must be finite and not negative, nor all zero; found "
            + ", ".join(f"{name} {value:g}" for name, value in zip(names, w, strict=True))
        )
    return tuple((w / w.sum()).tolist())


def _searched(
    contest: WeightScorer,
    limits: Limits,
    options: EnsembleOptions,
    on_trial: Callable[[int], None] | None,
) -> FloatArray:
    """The best weighting of TPE's trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    n = contest.n_members
    space: dict[str, Any] = {
        f"weight_{i}": optuna.distributions.FloatDistribution(0.0, 1.0) for i in range(n)
    }
    queue = [-np.expm1(-n * w) for w in (np.full(n, 1 / n), *np.eye(n))]
    n_trials = max(options.trials, len(queue))
    best, best_weights = -1.0, np.full(n, 1.0 / n)
    known: list[optuna.trial.FrozenTrial] = []
    for first in range(0, n_trials, _STUDY):
        sampler = optuna.samplers.TPESampler(
            seed=options.seed + first,
            multivariate=True,
            n_startup_trials=20,
            n_ei_candidates=_CANDIDATES,
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.add_trials(known)
        for number in range(first, min(first + _STUDY, n_trials)):
            if number < len(queue):
                study.enqueue_trial(dict(zip(space, queue[number].tolist(), strict=True)))
            trial = study.ask(space)
            drawn = np.array(list(trial.params.values()))  # a copy each time it is asked for
            w = limits(-np.log1p(-drawn * (1 - 1e-9)))
            score = contest.score(w)
            study.tell(trial, score)
            if score > best:
                best, best_weights = score, w
            if on_trial:
                on_trial(1)
        ranked = sorted(study.get_trials(deepcopy=False), key=lambda t: (-(t.value or 0), t.number))
        known = ranked[: _STUDY // 4]
    return best_weights


def _without_idle(contest: WeightScorer, limits: Limits, weights: FloatArray) -> FloatArray:
    """The weights without the members whose going loses nothing, the lightest first."""
    best = contest.score(weights)
    for i in np.argsort(weights, kind="stable"):
        if weights[i] <= 0 or np.count_nonzero(weights) == 1:
            continue
        rest = weights.copy()
        rest[i] = 0.0
        rest = limits(rest)
        score = contest.score(rest)
        if rest[i] == 0 and score >= best:
            best, weights = score, rest
    return weights


def _greedy(contest: WeightScorer, limits: Limits, rounds: int) -> FloatArray:
    n = contest.n_members
    counts = np.zeros(n)
    best, best_weights = -1.0, np.full(n, 1.0 / n)
    for _ in range(rounds):
        tried = [limits(counts + np.eye(n)[i]) for i in range(n)]
        scores = [contest.score(w) for w in tried]
        chosen = int(np.argmax(scores))
        counts[chosen] += 1
        if scores[chosen] > best:
            best, best_weights = scores[chosen], tried[chosen]
    return best_weights


def _best_subset(contest: WeightScorer, limits: Limits, largest: int) -> FloatArray:
    n = contest.n_members
    sizes = range(1, min(largest, n) + 1)
    n_subsets = sum(math.comb(n, size) for size in sizes)
    if n_subsets > MOST_SUBSETS:
        raise RecipeError(
            f"{n} members have {n_subsets:,} subsets of up to {largest}, more than "
            f"{MOST_SUBSETS:,}; write a smaller ensemble.largest, or method: greedy"
        )
    best, best_weights = -1.0, np.full(n, 1.0 / n)
    for size in sizes:
        for chosen in itertools.combinations(range(n), size):
            w = np.zeros(n)
            w[list(chosen)] = 1.0
            w = limits(w)
            score = contest.score(w)
            if score > best:
                best, best_weights = score, w
    return best_weights


def _stacked(
    probabilities: FloatArray, labels: IntArray, objective: Objective, space: Space
) -> FloatArray:
    """Convex weights [n_members] of least log loss, clips counted as the objective counts them.

    A member counts, where it has no prediction, as the plain mean of the others: what is left
    is a convex problem, for sequential quadratic programming (Kraft, DFVLR-FB 88-28, 1988).
    """
    from scipy.optimize import minimize

    n_members, n, n_classes = probabilities.shape
    importance = objective.scale(labels)[labels]
    importance = importance / importance.sum()
    is_there = ~np.isnan(probabilities[:, :, 0])
    scores = probabilities if space == "probabilities" else _logarithm(probabilities)
    if not is_there.all():
        others, total = average(scores, np.ones(n_members))
        others[total == 0] = 1.0 / n_classes
        scores = np.where(is_there[:, :, None], scores, others)
    true = np.ascontiguousarray(scores[:, np.arange(n), labels])

    # einsum without BLAS: its bits do not hang on the number of threads
    def of_probabilities(w: FloatArray) -> tuple[float, FloatArray]:
        mixed = np.maximum(np.einsum("m,mn->n", w, true), 1e-12)
        return -float((importance * np.log(mixed)).sum()), -np.einsum(
            "mn,n->m", true, importance / mixed
        )

    def of_logits(w: FloatArray) -> tuple[float, FloatArray]:
        p = normalised(np.einsum("m,mnc->nc", w, scores))
        loss = -float((importance * np.log(np.maximum(p[np.arange(n), labels], 1e-300))).sum())
        p *= importance[:, None]
        return loss, np.einsum("mnc,nc->m", scores, p) - np.einsum("mn,n->m", true, importance)

    found = minimize(
        of_probabilities if space == "probabilities" else of_logits,
        np.full(n_members, 1.0 / n_members),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * n_members,
        constraints={
            "type": "eq",
            "fun": lambda w: w.sum() - 1,
            "jac": lambda w: np.ones(n_members),
        },
        options={"ftol": 1e-9, "maxiter": 200},
    )
    w = np.where(found.x > 1e-5, found.x, 0.0)  # what is left of a weight that ran into its bound
    return np.asarray(w / w.sum())
