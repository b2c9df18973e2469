"""Weighted means of member probabilities, and the searches for their weights.

All searches maximise hF_strict through a `WeightScorer`, which scores a weighting in a fraction
of a millisecond. What they find is *tuned* on the clips that they are given; `bsdkit.combine.chain`
gives them the clips of other folds only.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass as options
from threadpoolctl import threadpool_limits

from bsdkit.combine.limits import Limits
from bsdkit.combine.objective import Objective, WeightScorer, average, normalised
from bsdkit.errors import RecipeError
from bsdkit.registry import Registry

__all__ = [
    "METHODS",
    "Ensemble",
    "EnsembleOptions",
    "Method",
    "Problem",
    "Space",
    "check_options",
    "combine",
    "fit_ensemble",
    "register",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Find = Callable[["Problem"], FloatArray]


@dataclass(frozen=True)
class Weighting:
    """A way to weigh members.

    Attributes:
        label: in the words of a submission.
        find: the weights [n_members] of a problem, which add up to 1.
        learns: whether they come from labels; such a method is not asked about one member.
    """

    label: str
    find: Find
    learns: bool = True


METHODS: Registry[Weighting] = Registry("ensemble method")
Method = Annotated[str, AfterValidator(METHODS.known)]
Space = Literal["probabilities", "logits"]


def register(name: str, label: str, *, learns: bool = True) -> Callable[[Find], Find]:
    """A decorator that makes a function known as an ensemble method; see `Weighting`."""

    def decorate(find: Find) -> Find:
        METHODS.add(name, Weighting(label, find, learns))
        return find

    return decorate


MOST_SUBSETS = 100_000
"""Subsets that `subsets` tries at most."""

_FLOOR = 1e-6
"""Probabilities are clipped here before a logarithm, so that no member alone can veto a class."""

_CANDIDATES = 4
"""Points that TPE draws for a trial; most of a trial is Optuna's time, which grows with them."""

_STUDY = 100
"""Trials of one TPE study. Its time grows with its history, so a long search is a chain of
studies, each of which knows the best of those before."""


@options(frozen=True, config=ConfigDict(extra="forbid"))
class EnsembleOptions:
    """How members are to be averaged.

    Attributes:
        method: one of METHODS.
        space: ``probabilities`` (their mean), or ``logits`` (their geometric mean, normalised).
        trials: weightings that ``weights`` tries.
        rounds: members that ``greedy`` adds at most, with replacement.
        largest: members in a subset at most.
        best: how many members are averaged at most, those of the best scores of their own; 0 for
            all. Caps hold for the members that are left; where they leave these less than the
            whole weight, all are raised in proportion.
        caps: the largest share of the weight for members whose names match a pattern, such as
            ``{"*-audio": 0.4}``; a member belongs to the first pattern that it matches.
        min_weight: a member with a smaller share is left out, the lightest first.
        seed: of ``weights``.
        members: which; None for all.
        weights: by member, for ``frozen``.
        file: JSON or YAML with weights by member, for ``frozen``, such as the ensemble.json of a
            run on other clips.

    Raises:
        ValueError: options that do not go together.
    """

    method: Method = "weights"
    space: Space = "probabilities"
    trials: int = Field(default=100, ge=1)
    rounds: int = Field(default=50, ge=1)
    largest: int = Field(default=3, ge=1)
    best: int = Field(default=0, ge=0)
    caps: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default_factory=dict)
    min_weight: float = Field(default=0.0, ge=0, lt=1)
    seed: int = 0
    members: Annotated[list[str], Field(min_length=1)] | None = None
    weights: dict[str, float] | None = None
    file: str | None = None

    def __post_init__(self) -> None:
        given = self.file is not None or self.weights is not None
        if self.method == "frozen" and (self.file is None) == (self.weights is None):
            raise ValueError(
                "method: frozen needs weights: {member: share} or file: with such lines"
            )
        if self.method != "frozen" and given:
            raise ValueError("weights and file are for method: frozen")
        if self.method == "frozen" and (self.caps or self.min_weight):
            raise ValueError("caps and min_weight change weights, those of frozen are given")
        if self.method == "frozen" and self.best:
            raise ValueError("best chooses members, those of frozen are given")

    @property
    def learns(self) -> bool:
        """Whether the weights come from labels."""
        return METHODS[self.method].learns or self.best > 0


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


@dataclass(frozen=True)
class Problem:
    """What an ensemble method is asked.

    Attributes:
        options: how.
        probabilities: [n_members, n_clips, n_classes].
        labels: class positions [n_clips].
        objective: what a search maximises.
        names: the members.
        limits: the weightings that are allowed.
        on_trial: called with 1 after each trial of a long search.
    """

    options: EnsembleOptions
    probabilities: FloatArray
    labels: IntArray
    objective: Objective
    names: Sequence[str]
    limits: Limits
    on_trial: Callable[[int], None] | None = None

    @property
    def scores(self) -> FloatArray:
        """What is averaged [n_members, n_clips, n_classes]: probabilities or their logarithms."""
        if self.options.space == "probabilities":
            return self.probabilities
        return _logarithm(self.probabilities)

    @contextmanager
    def scorer(self) -> Iterator[WeightScorer]:
        """Scores weightings by the objective."""
        is_log = self.options.space == "logits"
        scorer = WeightScorer(self.scores, self.labels, self.objective, is_log=is_log)
        with threadpool_limits(limits=1, user_api="blas"):  # the products are too small to share
            yield scorer


def fit_ensemble(
    options: EnsembleOptions,
    probabilities: FloatArray,
    labels: IntArray,
    objective: Objective,
    *,
    names: Sequence[str] | None = None,
    on_trial: Callable[[int], None] | None = None,
) -> Ensemble:
    """The ensemble of these members on these clips; of equal scores the earlier one wins.

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
    if 0 < options.best < n_members:
        kept = _leading(options, probabilities, labels, objective)
        chosen = [names[i] for i in kept]
        first = {next((p for p in options.caps if fnmatch.fnmatchcase(c, p)), "") for c in chosen}
        caps = {pattern: cap for pattern, cap in options.caps.items() if pattern in first}
        room = sum(caps.values())
        if "" not in first and room < 1:
            caps = {pattern: cap / room for pattern, cap in caps.items()}
        fewer = replace(options, best=0, caps=caps)
        found = fit_ensemble(
            fewer, probabilities[kept], labels, objective, names=chosen, on_trial=on_trial
        )
        w = np.zeros(n_members)
        w[kept] = found.weights
        return Ensemble(options.method, tuple(w.tolist()), options.space)
    limits = Limits(options.caps, options.min_weight, names)
    method = METHODS[options.method]
    if n_members == 1 and method.learns:
        weights = limits(np.ones(1))
    else:
        weights = method.find(
            Problem(options, probabilities, labels, objective, names, limits, on_trial)
        )
    return Ensemble(options.method, tuple(weights.tolist()), options.space)


def _leading(
    options: EnsembleOptions, probabilities: FloatArray, labels: IntArray, objective: Objective
) -> IntArray:
    """Positions of the `best` members of the best scores of their own; of equals the earlier."""
    scores = [WeightScorer(p[None], labels, objective).score(np.ones(1)) for p in probabilities]
    order = np.argsort(-np.array(scores), kind="stable")
    return np.sort(order[: options.best])


def check_options(options: EnsembleOptions, names: Sequence[str]) -> None:
    """Refuses caps and frozen weights that cannot be used with these members.

    Raises:
        RecipeError: see `fit_ensemble`.
    """
    Limits(options.caps, options.min_weight, names)
    if options.method == "frozen":
        _frozen(options.weights or {}, names)


@register("mean", "equal weights", learns=False)
def _equal(problem: Problem) -> FloatArray:
    return problem.limits(np.ones(len(problem.names)))


@register("frozen", "given weights", learns=False)
def _given(problem: Problem) -> FloatArray:
    return _frozen(problem.options.weights or {}, problem.names)


def _frozen(weights: Mapping[str, float], names: Sequence[str]) -> FloatArray:
    unknown = [name for name in weights if name not in names]
    if unknown:
        raise RecipeError(
            f"the frozen weights name {unknown[0]!r}, which is no member of this ensemble: "
            f"{', '.join(names)}"
        )
    w = np.array([weights.get(name, 0.0) for name in names])
    if not (np.isfinite(w) & (w >= 0)).all() or not w.sum() > 0:
        raise RecipeError(
            "frozen weights must be finite and not negative, nor all zero; found "
            + ", ".join(f"{name} {value:g}" for name, value in zip(names, w, strict=True))
        )
    return np.asarray(w / w.sum())


@register("weights", "weights searched by TPE")
def _by_tpe(problem: Problem) -> FloatArray:
    """The best weighting of Optuna's TPE sampler, without members that add nothing.

    Bergstra et al., NIPS 2011; multivariate, seeded, on the simplex: a weight is the logarithm
    of a uniform number, so that the weightings are spread evenly. The plain mean and each member
    alone are tried first. A member that can be left out without loss is: weight that changes
    nothing here is a risk elsewhere.
    """
    with problem.scorer() as scorer:
        w = _searched(scorer, problem.limits, problem.options, problem.on_trial)
        return _without_idle(scorer, problem.limits, w)


def _searched(
    scorer: WeightScorer,
    limits: Limits,
    options: EnsembleOptions,
    on_trial: Callable[[int], None] | None,
) -> FloatArray:
    """The best weighting of TPE's trials."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    n = scorer.n_members
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
            score = scorer.score(w)
            study.tell(trial, score)
            if score > best:
                best, best_weights = score, w
            if on_trial:
                on_trial(1)
        ranked = sorted(study.get_trials(deepcopy=False), key=lambda t: (-(t.value or 0), t.number))
        known = ranked[: _STUDY // 4]
    return best_weights


def _without_idle(scorer: WeightScorer, limits: Limits, weights: FloatArray) -> FloatArray:
    """The weights without the members whose going loses nothing, the lightest first."""
    best = scorer.score(weights)
    for i in np.argsort(weights, kind="stable"):
        if weights[i] <= 0 or np.count_nonzero(weights) == 1:
            continue
        rest = weights.copy()
        rest[i] = 0.0
        rest = limits(rest)
        score = scorer.score(rest)
        if rest[i] == 0 and score >= best:
            best, weights = score, rest
    return weights


@register("greedy", "forward selection with replacement")
def _greedy(problem: Problem) -> FloatArray:
    """The best round of forward selection (Caruana et al., ICML 2004, section 2).

    From nothing, the member that helps most is added, again and again.
    """
    limits, n = problem.limits, len(problem.names)
    counts = np.zeros(n)
    best, best_weights = -1.0, np.full(n, 1.0 / n)
    with problem.scorer() as scorer:
        for _ in range(problem.options.rounds):
            tried = [limits(counts + np.eye(n)[i]) for i in range(n)]
            scores = [scorer.score(w) for w in tried]
            chosen = int(np.argmax(scores))
            counts[chosen] += 1
            if scores[chosen] > best:
                best, best_weights = scores[chosen], tried[chosen]
    return best_weights


@register("subsets", "the best equal-weighted subset")
def _best_subset(problem: Problem) -> FloatArray:
    """Of at most `largest` members; the smaller and then the earlier one of equals."""
    n, largest = len(problem.names), problem.options.largest
    sizes = range(1, min(largest, n) + 1)
    n_subsets = sum(math.comb(n, size) for size in sizes)
    if n_subsets > MOST_SUBSETS:
        raise RecipeError(
            f"{n} members have {n_subsets:,} subsets of up to {largest}, more than "
            f"{MOST_SUBSETS:,}; write a smaller ensemble.largest, or method: greedy"
        )
    best, best_weights = -1.0, np.full(n, 1.0 / n)
    with problem.scorer() as scorer:
        for size in sizes:
            for chosen in itertools.combinations(range(n), size):
                w = np.zeros(n)
                w[list(chosen)] = 1.0
                w = problem.limits(w)
                score = scorer.score(w)
                if score > best:
                    best, best_weights = score, w
    return best_weights


@register("stacking", "convex weights of least log loss")
def _stacked(problem: Problem) -> FloatArray:
    """Convex weights [n_members] of least log loss, clips counted as the objective counts them.

    Breiman, Machine Learning 1996, stacked regressions under the constraints of its section 3;
    van der Laan et al. 2007.
    A member counts, where it has no prediction, as the plain mean of the others: what is left
    is a convex problem, for sequential quadratic programming (Kraft, DFVLR-FB 88-28, 1988).
    """
    from scipy.optimize import minimize

    probabilities, labels, scores = problem.probabilities, problem.labels, problem.scores
    n_members, n, n_classes = probabilities.shape
    importance = problem.objective.scale(labels)[labels]
    importance = importance / importance.sum()
    is_there = ~np.isnan(probabilities[:, :, 0])
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
        of_probabilities if problem.options.space == "probabilities" else of_logits,
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
    return problem.limits(w / w.sum())
