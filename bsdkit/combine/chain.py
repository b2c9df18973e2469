"""The steps after the members as one chain, fitted and scored nested in one place.

A chain is a list of steps: calibrate the members, average them, rerank, adjust. Each step is
fitted on what the steps before it give. So that a step meets on its training clips what it will
meet on new ones, the training output of every step that learns is *cross-fitted*: the output
for the clips of one fold comes from a step fitted on the others (the way of stacked
generalisation, Wolpert, Neural Networks 1992).

`nested` then does all of it once for each fold, on the clips of the other folds only. A fitted
chain maps `Evidence` to `Evidence` and never meets a label, so nothing can be learned from the
clips that it is scored on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bsdkit.combine.adjust import Adjustment, AdjustOptions, fit_adjustment
from bsdkit.combine.calibrate import CalibrationMethod, Calibrator, fit_calibration
from bsdkit.combine.ensemble import Ensemble, EnsembleOptions, combine, fit_ensemble
from bsdkit.combine.evidence import Evidence
from bsdkit.combine.folds import inner_folds
from bsdkit.combine.objective import Objective
from bsdkit.combine.rerank import Reranker, RerankOptions, fit_reranker
from bsdkit.errors import RecipeError
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "Adjust",
    "Average",
    "Calibrate",
    "Chain",
    "FittedStep",
    "Nested",
    "Rerank",
    "Step",
    "fit_chain",
    "nested",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_WORTH_PROCESSES = 1_000_000
"""Probabilities from which on folds are fitted side by side; starting processes takes seconds."""


class FittedStep(Protocol):
    """What a step learned."""

    def apply(self, evidence: Evidence) -> Evidence:
        """The evidence after the step; each clip's depends on that clip alone."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        ...


class Step(Protocol):
    """One step of a chain, not fitted yet."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def learns(self) -> bool:
        """Whether it uses labels."""
        ...

    def fit(
        self, evidence: Evidence, labels: IntArray, fold: IntArray, objective: Objective
    ) -> FittedStep:
        """Learns from clips; `fold` says which of them are to be held out together."""
        ...


@dataclass(frozen=True)
class MemberCalibration:
    """A calibrator for each member."""

    calibrators: tuple[Calibrator, ...]

    def apply(self, evidence: Evidence) -> Evidence:
        """The members, calibrated."""
        members = np.stack(
            [c.apply(p) for c, p in zip(self.calibrators, evidence.members, strict=True)]
        )
        return Evidence(members, evidence.mixed, evidence.similarity)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"members": [c.to_dict() for c in self.calibrators]}


@dataclass(frozen=True)
class Calibrate:
    """Calibrates every member by itself."""

    method: CalibrationMethod
    name: str = "calibrate"
    learns: bool = True

    def fit(
        self, evidence: Evidence, labels: IntArray, fold: IntArray, objective: Objective
    ) -> MemberCalibration:
        """See `Step`."""
        return MemberCalibration(
            tuple(
                # a member may have predictions for the clips of other folds only
                Calibrator("none")
                if np.isnan(p[:, 0]).all()
                else fit_calibration(self.method, p, labels, objective.taxonomy)
                for p in evidence.members
            )
        )


@dataclass(frozen=True)
class Averaging:
    """A fitted ensemble as a step."""

    ensemble: Ensemble

    def apply(self, evidence: Evidence) -> Evidence:
        """The members' mean beside the members; even where no member with weight has any."""
        n = evidence.members.shape[2]
        return evidence.with_mixed(self.ensemble.apply(evidence.members, np.full(n, 1.0 / n)))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return self.ensemble.to_dict()


@dataclass(frozen=True)
class Average:
    """Averages the members."""

    options: EnsembleOptions
    names: tuple[str, ...]
    name: str = "ensemble"

    @property
    def learns(self) -> bool:
        """See `Step`."""
        return self.options.learns

    def fit(
        self, evidence: Evidence, labels: IntArray, fold: IntArray, objective: Objective
    ) -> Averaging:
        """See `Step`."""
        return Averaging(
            fit_ensemble(self.options, evidence.members, labels, objective, names=self.names)
        )


@dataclass(frozen=True)
class Rerank:
    """Overrides the ensemble where a booster is sure."""

    options: RerankOptions
    name: str = "rerank"
    learns: bool = True

    def fit(
        self, evidence: Evidence, labels: IntArray, fold: IntArray, objective: Objective
    ) -> Reranker:
        """See `Step`."""
        return fit_reranker(self.options, evidence, labels, fold, objective)


@dataclass(frozen=True)
class Adjust:
    """Shifts the probabilities to other class frequencies."""

    options: AdjustOptions
    name: str = "adjust"
    learns: bool = True

    def fit(
        self, evidence: Evidence, labels: IntArray, fold: IntArray, objective: Objective
    ) -> Adjustment:
        """See `Step`."""
        return fit_adjustment(self.options.tau, evidence, labels, objective)


@dataclass(frozen=True)
class Chain:
    """A fitted chain.

    Attributes:
        kinds: the steps' names.
        steps: what each of them learned.
    """

    kinds: tuple[str, ...]
    steps: tuple[FittedStep, ...]

    def stages(self, evidence: Evidence) -> list[Evidence]:
        """The evidence after each step."""
        found = []
        for step in self.steps:
            evidence = step.apply(evidence)
            found.append(evidence)
        return found

    def apply(self, evidence: Evidence) -> FloatArray:
        """Probabilities [n_clips, n_classes] after the last step."""
        return self.stages(evidence)[-1].decided

    def seen(self, evidence: Evidence) -> npt.NDArray[np.bool_]:
        """Which clips [n_clips] some member that counts has a prediction for."""
        return np.asarray((~np.isnan(evidence.members[self.counts, :, 0])).any(axis=0))

    @property
    def counts(self) -> npt.NDArray[np.bool_]:
        """Which members [n_members] change anything: all for a reranker, else those with weight."""
        weights = np.array(self.ensemble.weights)
        return (weights > 0) | any(isinstance(step, Reranker) for step in self.steps)

    @property
    def ensemble(self) -> Ensemble:
        """The step that averages."""
        return next(step.ensemble for step in self.steps if isinstance(step, Averaging))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "steps": [
                {"step": kind, **step.to_dict()}
                for kind, step in zip(self.kinds, self.steps, strict=True)
            ]
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], taxonomy: Taxonomy) -> Chain:
        """What `to_dict` gave.

        Raises:
            KeyError: a step that this version does not know.
        """
        read: dict[str, Callable[[Mapping[str, Any]], FittedStep]] = {
            "calibrate": lambda d: MemberCalibration(
                tuple(Calibrator.from_dict(c) for c in d["members"])
            ),
            "ensemble": lambda d: Averaging(Ensemble.from_dict(d)),
            "rerank": lambda d: Reranker.from_dict(d, taxonomy),
            "adjust": Adjustment.from_dict,
        }
        steps = data["steps"]
        return cls(
            tuple(step["step"] for step in steps), tuple(read[step["step"]](step) for step in steps)
        )


def fit_chain(
    steps: Sequence[Step],
    evidence: Evidence,
    labels: IntArray,
    fold: IntArray,
    objective: Objective,
) -> Chain:
    """The chain that these clips teach.

    Args:
        steps: in their order.
        evidence: n clips.
        labels: class positions [n].
        fold: fold of each clip [n], for cross-fitting.
        objective: what whatever is searched maximises.
    """
    fitted: list[FittedStep] = []
    for i, step in enumerate(steps):
        fitted.append(step.fit(evidence, labels, fold, objective))
        if not any(later.learns for later in steps[i + 1 :]):
            continue  # nobody will learn from this step's output
        if step.learns:
            evidence = _cross_fitted(step, evidence, labels, fold, objective)
        else:
            evidence = fitted[-1].apply(evidence)
    return Chain(tuple(step.name for step in steps), tuple(fitted))


def _cross_fitted(
    step: Step, evidence: Evidence, labels: IntArray, fold: IntArray, objective: Objective
) -> Evidence:
    """A step's output for its own training clips, each by a step that did not see its fold."""
    everything = np.arange(len(labels))
    members = np.full_like(evidence.members, np.nan)
    mixed: FloatArray | None = None
    for held in inner_folds(fold, labels):
        rest = np.setdiff1d(everything, held)
        learned = step.fit(evidence.rows(rest), labels[rest], fold[rest], objective)
        out = learned.apply(evidence.rows(held))
        members[:, held] = out.members
        if out.mixed is not None:
            mixed = np.full(members.shape[1:], np.nan) if mixed is None else mixed
            mixed[held] = out.mixed
    return Evidence(members, mixed, evidence.similarity)


@dataclass(frozen=True)
class Nested:
    """A chain fitted for each fold on the others, and on all clips.

    Attributes:
        chain: fitted on all clips, for new ones.
        of_folds: fitted for each fold on the clips of the others; of a fold without clips as
            `chain`.
        stages: by step, probabilities [n_clips, n_classes] of each clip by its fold's chain;
            NaN in rows that no fold tests or no member has.
        in_sample: the same by `chain`, which was fitted on them.
    """

    chain: Chain
    of_folds: tuple[Chain, ...]
    stages: tuple[FloatArray, ...]
    in_sample: tuple[FloatArray, ...]

    def of(self, evidence: Evidence, fold: IntArray) -> tuple[FloatArray, ...]:
        """What `stages` would be of other predictions for the same clips; nothing is fitted."""
        usable = (fold >= 0) & ~np.isnan(evidence.members[:, :, 0]).all(axis=0)
        return _by_fold(self.of_folds, evidence, np.where(usable, fold, -1), len(self.stages))


def nested(
    steps: Sequence[Step],
    evidence: Evidence,
    labels: IntArray,
    fold: IntArray,
    n_folds: int,
    objective: Objective,
    *,
    n_jobs: int = 1,
) -> Nested:
    """Fits a chain for every fold on the clips of the other folds, and one on all.

    A clip that no member has a prediction for takes no part, nor does one of a fold whose chain
    gives no weight to the members that have one.

    Args:
        steps: in their order; one of them averages.
        evidence: out-of-fold member probabilities of n clips.
        labels: class positions [n].
        fold: test fold of each clip [n]; -1 for one that is not tested.
        n_folds: the number of folds.
        objective: what whatever is searched maximises.
        n_jobs: processes.

    Raises:
        RecipeError: a step learns, and the clips of one fold are all that there are, or there
            are none.
    """
    usable = (fold >= 0) & ~np.isnan(evidence.members[:, :, 0]).all(axis=0)
    sets = [np.flatnonzero(usable & (fold != k)) for k in range(n_folds)]
    everything = np.flatnonzero(usable)
    learning = [step.name for step in steps if step.learns]
    if learning and not len(everything):
        raise RecipeError(
            f"no tested clip has a prediction of any member, so nothing can teach the step "
            f"{learning[0]!r}; extract the members' features for the tested clips"
        )
    if learning and len(np.unique(fold[everything])) < 2:
        raise RecipeError(
            "one fold only is tested, so no other fold can teach what learns here: "
            f"{', '.join(learning)}; write ensemble: {{method: mean}} and leave out the rest"
        )
    shared = [k for k in range(n_folds) if len(sets[k]) in (0, len(everything))]
    jobs = {k: rows for k, rows in enumerate(sets) if k not in shared}

    def fit(rows: IntArray) -> Chain:
        return fit_chain(steps, evidence.rows(rows), labels[rows], fold[rows], objective)

    n_jobs = n_jobs if evidence.members.size >= _WORTH_PROCESSES else 1
    fitted = dict(zip([*jobs, -1], _run(fit, [*jobs.values(), everything], n_jobs), strict=True))
    of_folds = tuple(fitted.get(k, fitted[-1]) for k in range(n_folds))
    stages = _by_fold(of_folds, evidence, np.where(usable, fold, -1), len(steps))
    in_sample = _by_fold([fitted[-1]], evidence, np.where(usable, 0, -1), len(steps))
    return Nested(fitted[-1], of_folds, stages, in_sample)


def _by_fold(
    chains: Sequence[Chain], evidence: Evidence, place: IntArray, n_steps: int
) -> tuple[FloatArray, ...]:
    """After each step, each clip by the chain at its place [n_clips]; NaN where that is -1."""
    results = tuple(np.full(evidence.members.shape[1:], np.nan) for _ in range(n_steps))
    for k, chain in enumerate(chains):
        rows = np.flatnonzero(place == k)
        rows = rows[chain.seen(evidence.rows(rows))]
        if not len(rows):
            continue
        for result, stage in zip(results, chain.stages(evidence.rows(rows)), strict=True):
            mixed = stage.mixed
            if mixed is None:  # not averaged yet: what the plain mean makes of it
                mixed = combine(stage.members, np.ones(len(stage.members)))
            result[rows] = mixed
    return results


def _run(fit: Callable[[IntArray], Chain], jobs: Sequence[IntArray], n_jobs: int) -> list[Chain]:
    if n_jobs < 2:
        return [fit(rows) for rows in jobs]
    from joblib import Parallel, delayed

    found: list[Chain] = Parallel(n_jobs=n_jobs)(delayed(fit)(rows) for rows in jobs)
    return found
