"""Trains members over all folds and seeds and returns their out-of-fold probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.errors import HeadError
from bsdkit.heads.registry import make_head
from bsdkit.members.fitting import (
    FoldRows,
    Part,
    Steps,
    families_of,
    fit_on_probabilities,
    fit_plain,
    fit_with_teachers,
    fold_rows,
    rows_of_folds,
    run_together,
)
from bsdkit.members.jobs import FittedModel
from bsdkit.members.plan import ExtraClips, ExtraKey, Features, Inputs, MemberPlan, Task
from bsdkit.members.teachers import TeacherTargets
from bsdkit.members.weights import adjusted
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "MemberModel",
    "MemberResult",
    "opinions_of",
    "pair_probabilities",
    "predict_member",
    "train_members",
]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MemberModel:
    """One fitted head of a member.

    Attributes:
        fold: the fold that it did not see.
        seed: what it was trained with.
        classes: class positions that its columns stand for.
        state: its arrays by name.
        history: best epoch, training losses and validation scores, where there are any.
        train_counts: clips of each class [n_classes] that it trained on, where its
            probabilities are adjusted by them.
    """

    fold: int
    seed: int
    classes: IntArray
    state: Mapping[str, npt.NDArray[Any]]
    history: Mapping[str, Any] = field(default_factory=dict)
    train_counts: IntArray | None = None


@dataclass(frozen=True)
class MemberResult:
    """What training a member left behind.

    Attributes:
        probabilities: out-of-fold, [n_seeds, n_clips, n_classes]; NaN in the rows of clips
            that no fold tests or whose features are missing.
        models: one a fold and seed.
        faults: why the member is not to be used, one line a model that diverged.
    """

    probabilities: FloatArray
    models: tuple[MemberModel, ...]
    faults: tuple[str, ...] = ()

    @property
    def mean(self) -> FloatArray:
        """Out-of-fold probabilities [n_clips, n_classes], the mean over seeds."""
        return np.asarray(self.probabilities.mean(axis=0))


def train_members(
    plans: Sequence[MemberPlan],
    inputs: Mapping[Features, Inputs],
    task: Task,
    *,
    extras: Mapping[ExtraKey, ExtraClips] | None = None,
    opinions: Mapping[str, TeacherTargets] | None = None,
    folds: Sequence[int] | None = None,
) -> dict[str, MemberResult]:
    """Trains one model a fold and seed of every member, each on the clips of the other folds.

    Members that share inputs and shapes are trained as one stack.

    Args:
        plans: the members; their names differ.
        inputs: features of all clips, by the names of the features.
        task: labels, folds and classes.
        extras: extra clips by store, map of labels and features, for members that use some.
        opinions: what teachers say, for members that have some.
        folds: which folds to train for; None for all.

    Raises:
        HeadError: a fold leaves a single class, or no clip, to train on; a setting is out of
            range.
    """
    which = list(range(task.split.n_folds)) if folds is None else list(folds)
    said = opinions or {}
    plain = [p for p in plans if not p.teachers and not p.extra]
    rows = {p.name: rows_of_folds(p, inputs[p.features], task, which) for p in plain}
    steps: list[Steps] = [fit_plain(plain, inputs, task, rows)]
    for plan in plans:
        own = inputs[plan.features]
        if plan.probabilities:
            steps.append(fit_on_probabilities(plan, own, task, which, said[plan.name]))
        elif plan not in plain:
            extra = [(extras or {})[plan.extra_key(one)] for one in plan.extra]
            heard = said.get(plan.name, TeacherTargets())
            steps.append(fit_with_teachers(plan, own, task, which, extra, heard))
    found: dict[str, MemberResult] = {}
    for of_step in run_together(steps, task):
        for name, parts in of_step.items():
            plan = next(p for p in plans if p.name == name)
            found[name] = _result(plan, task, parts)
    return {plan.name: found[plan.name] for plan in plans}


def pair_probabilities(plan: MemberPlan, inputs: Inputs, task: Task) -> FloatArray:
    """What a member says of the development clips to the student of each fold.

    [n_folds, n_clips, n_classes]: for the student of fold k, a clip of fold j is judged by
    models trained without the folds j and k, which teach both ways. NaN in the student's own
    fold and for clips that no fold tests, whom every model has seen.

    Raises:
        HeadError: there are fewer than three folds.
    """
    split, n_classes = task.split, len(task.taxonomy)
    if split.n_folds < 3:
        raise HeadError(
            f"member {plan.name!r} teaches development clips, which takes 3 folds at least; "
            f"split {split.name!r} has {split.n_folds}"
        )
    pairs = [(j, k) for j in range(split.n_folds) for k in range(j)]
    rows = []
    for i, (j, k) in enumerate(pairs):
        train = np.flatnonzero((split.fold != j) & (split.fold != k))
        named = f"without the folds {k} and {j}"
        rows.append(fold_rows(plan, inputs, task, i, train, train[:0], named))
    steps = fit_plain([plan], {plan.features: inputs}, task, {plan.name: rows})
    fitted = run_together([steps], task)[0][plan.name][0].fitted
    said = np.full((split.n_folds, len(inputs.X), n_classes), np.nan)
    for i, (j, k) in enumerate(pairs):
        models = [
            _model(plan, task, row, s, m) for row, s, m in fitted if row.key == i and not m.fault
        ]
        if not models:
            raise HeadError(f"member {plan.name!r} diverged without the folds {k} and {j}")
        for student, taught in ((k, split.test(j)), (j, split.test(k))):
            present = taught[inputs.is_present[taught]]
            if len(present):
                total = [_predict(plan, m, inputs, present, task.taxonomy) for m in models]
                said[student, present] = np.mean(total, axis=0)
    return said


def opinions_of(
    plan: MemberPlan, result: MemberResult, extra: ExtraClips, task: Task
) -> FloatArray:
    """What a member says of extra clips to the student of each fold, [n_folds, n_extra, C].

    It is the mean over the seeds of its models of the same fold; NaN for clips that lack its
    features.
    """
    n, n_classes = len(extra.labels), len(task.taxonomy)
    said = np.full((task.split.n_folds, n, n_classes), np.nan)
    rows = np.flatnonzero(extra.inputs.is_present)
    for k in range(task.split.n_folds):
        models = [m for m in result.models if m.fold == k]
        if not models:  # a fold that was not asked for
            continue
        total = [_predict(plan, m, extra.inputs, rows, task.taxonomy) for m in models]
        said[k, rows] = np.mean(total, axis=0)
    return said


def predict_member(
    plan: MemberPlan, models: tuple[MemberModel, ...], inputs: Inputs, taxonomy: Taxonomy
) -> FloatArray:
    """Probabilities [n, n_classes] of new clips: the mean over all folds' and seeds' models.

    NaN in the rows of clips that lack the member's features.
    """
    result = np.full((len(inputs.X), len(taxonomy)), np.nan)
    rows = np.flatnonzero(inputs.is_present)
    if len(rows):
        total = np.zeros((len(rows), len(taxonomy)))
        for model in models:
            total += _predict(plan, model, inputs, rows, taxonomy)
        result[rows] = total / len(models)
    return result


def _result(plan: MemberPlan, task: Task, parts: Sequence[Part]) -> MemberResult:
    n_clips, n_classes = len(task.labels), len(task.taxonomy)
    probabilities = np.full((len(plan.used_seeds), n_clips, n_classes), np.nan)
    models, faults = [], []
    for part in parts:
        for row, seed, model in part.fitted:
            models.append(_model(plan, task, row, seed, model))
            if model.fault:
                faults.append(f"fold {row.key}, seed {seed}: {model.fault}")
            elif len(row.test):
                i = plan.used_seeds.index(seed)
                probabilities[i, row.test] = _predict(
                    plan, models[-1], part.inputs, row.test, task.taxonomy
                )
    faults += _abnormal(models)
    return MemberResult(probabilities, tuple(models), tuple(faults))


def _model(
    plan: MemberPlan, task: Task, row: FoldRows, seed: int, fitted: FittedModel
) -> MemberModel:
    counts = None
    if plan.logit_adjustment:
        counts = np.bincount(task.labels[row.fit], minlength=len(task.taxonomy))
    return MemberModel(row.key, seed, fitted.classes, fitted.state, fitted.history, counts)


def _abnormal(models: Sequence[MemberModel]) -> list[str]:
    """Models that learned nothing where most of the member's others did."""
    scores, learned = [], []
    for model in models:
        kept = [v for k, v in model.history.items() if k.startswith("validation_")]
        found: list[float] = kept[0] if kept else []
        losses = model.history.get("losses", [])
        if not found or len(losses) < 2 or not np.isfinite(losses).all():
            return []
        scores.append(max(found))
        learned.append(1 - losses[-1] / losses[0])
    typical, usual = float(np.median(scores or [0])), float(np.median(learned or [0]))
    return [
        f"fold {m.fold}, seed {m.seed}: validation score {score:.3f}, half of its models reach "
        f"{typical:.3f}, and its loss did not fall"
        for m, score, fall in zip(models, scores, learned, strict=True)
        if 0 <= score < 0.5 * typical and fall < 0.1 * usual
    ]


def _predict(
    plan: MemberPlan,
    model: MemberModel,
    inputs: Inputs,
    rows: IntArray,
    taxonomy: Taxonomy,
) -> FloatArray:
    """Probabilities [n_rows, n_classes], adjusted where the plan says so.

    0 for classes that the model never saw.
    """
    head = make_head(
        plan.head,
        plan.settings,
        blocks=inputs.blocks,
        families=families_of(taxonomy),
        random_state=model.seed,
    )
    head.load_state(model.state, model.classes, inputs.X.shape[1])
    probabilities = np.zeros((len(rows), len(taxonomy)))
    probabilities[:, model.classes] = head.predict_proba(inputs.X[rows])
    if plan.logit_adjustment:
        assert model.train_counts is not None
        return adjusted(probabilities, model.train_counts, plan.logit_adjustment)
    return probabilities
