"""Trains members over all folds and seeds and returns their out-of-fold probabilities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bsdkit.errors import HeadError, SplitError
from bsdkit.heads.registry import make_head
from bsdkit.heads.stack import Replica, TrainingData
from bsdkit.heads.torch_head import TorchHead
from bsdkit.splits import inner_validation
from bsdkit.taxonomy import Taxonomy
from bsdkit.train.jobs import FittedModel, HeadSpec, PlainUnit, StackUnit, run_units, stack_key
from bsdkit.train.noisy import Opinions, distilled_targets, extra_targets
from bsdkit.train.plan import ExtraClips, Inputs, MemberPlan, Task
from bsdkit.train.weights import clip_weights, is_confident

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
Features = tuple[str, ...]


@dataclass(frozen=True)
class MemberModel:
    """One fitted head of a member.

    Attributes:
        fold: the fold that it did not see.
        seed: what it was trained with.
        classes: class positions that its columns stand for.
        state: its arrays by name.
        history: best epoch, training losses and validation scores, where there are any.
    """

    fold: int
    seed: int
    classes: IntArray
    state: Mapping[str, npt.NDArray[Any]]
    history: Mapping[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True)
class _FoldRows:
    """Rows of one model to fit: for fold k, or for a pair of folds that it must not see."""

    key: int
    fit: IntArray
    validation: IntArray
    test: IntArray


def train_members(
    plans: Sequence[MemberPlan],
    inputs: Mapping[Features, Inputs],
    task: Task,
    *,
    extras: Mapping[tuple[str, Features], ExtraClips] | None = None,
    opinions: Mapping[str, Opinions] | None = None,
    folds: Sequence[int] | None = None,
) -> dict[str, MemberResult]:
    """Trains one model a fold and seed of every member, each on the clips of the other folds.

    Members that share inputs and shapes are trained as one stack.

    Args:
        plans: the members; their names differ.
        inputs: features of all clips, by the names of the features.
        task: labels, folds and classes.
        extras: extra clips by store and features, for members that use some.
        opinions: what teachers say, for members that have some.
        folds: which folds to train for; None for all.

    Raises:
        HeadError: a fold leaves a single class, or no clip, to train on; a setting is out of
            range.
    """
    which = list(range(task.split.n_folds)) if folds is None else list(folds)
    said = opinions or {}
    plain = [p for p in plans if not p.teachers and p.extra is None]
    rows = {p.name: _rows_of_folds(p, inputs[p.features], task, which) for p in plain}
    steps: list[_Steps] = [_fit(plain, inputs, task, rows)]
    for plan in plans:
        own = inputs[plan.features]
        if plan.probabilities:
            steps.append(_fit_on_probabilities(plan, own, task, which, said[plan.name]))
        elif plan not in plain:
            extra = (extras or {})[plan.extra.store, plan.features] if plan.extra else None
            heard = said.get(plan.name, Opinions())
            steps.append(_fit_with_teachers(plan, own, task, which, extra, heard))
    found: dict[str, MemberResult] = {}
    for of_step in _run_together(steps, task):
        for name, parts in of_step.items():
            plan = next(p for p in plans if p.name == name)
            found[name] = _result(plan, task, parts)
    return {plan.name: found[plan.name] for plan in plans}


@dataclass(frozen=True)
class _Part:
    """Models of a member that saw the same inputs, with the rows of each and its seed."""

    inputs: Inputs
    fitted: list[tuple[_FoldRows, int, FittedModel]]


_Units = list[StackUnit | PlainUnit]
_Steps = Generator[tuple[str, _Units], list[list[FittedModel]], dict[str, list[_Part]]]
"""Yields what has to be fitted next, with the names to blame for it, and gets the models."""


def _run_together(steps: Sequence[_Steps], task: Task) -> list[dict[str, list[_Part]]]:
    """Runs what all steps ask for side by side, round by round, until each has its parts."""
    done: dict[int, dict[str, list[_Part]]] = {}
    asked = {i: next(step) for i, step in enumerate(steps)}
    while asked:
        order = list(asked)
        units = [unit for i in order for unit in asked[i][1]]
        names = ", ".join(name for i in order for name in [asked[i][0]] if name)
        models = iter(_guarded(units, names, task))
        for i in order:
            answer = [next(models) for _ in asked[i][1]]
            try:
                asked[i] = steps[i].send(answer)
            except StopIteration as end:
                done[i] = end.value
                del asked[i]
    return [done[i] for i in range(len(steps))]


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
        rows.append(_rows(plan, inputs, task, i, train, train[:0]))
    steps = _fit([plan], {plan.features: inputs}, task, {plan.name: rows})
    fitted = _run_together([steps], task)[0][plan.name][0].fitted
    said = np.full((split.n_folds, len(inputs.X), n_classes), np.nan)
    for i, (j, k) in enumerate(pairs):
        models = [model for row, _, model in fitted if row.key == i and not model.fault]
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


def _rows_of_folds(
    plan: MemberPlan, inputs: Inputs, task: Task, folds: Sequence[int]
) -> list[_FoldRows]:
    found = []
    for k in folds:
        train = np.flatnonzero(task.split.fold != k)
        found.append(_rows(plan, inputs, task, k, train, task.split.test(k)))
    return found


def _rows(
    plan: MemberPlan, inputs: Inputs, task: Task, key: int, train: IntArray, test: IntArray
) -> _FoldRows:
    train = train[inputs.is_present[train]]
    confident = is_confident(plan, task)
    n_classes = len(np.unique(task.labels[train[confident[train]]]))
    if n_classes < 2:
        raise HeadError(
            f"member {plan.name!r}: fold {key} of split {task.split.name!r} has "
            f"{int(confident[train].sum())} clips of {n_classes} class to train on; at least 2 "
            "classes are needed"
        )
    fit, held_out = train, train[:0]
    if plan.uses_validation:
        fit, held_out = inner_validation(train, task.labels, task.groups, fraction=plan.validation)
    return _FoldRows(key, fit[confident[fit]], held_out, test[inputs.is_present[test]])


def _spec(plan: MemberPlan, inputs: Inputs, task: Task) -> HeadSpec:
    return HeadSpec(plan.head, dict(plan.settings), inputs.blocks, _families(task.taxonomy))


def _families(taxonomy: Taxonomy) -> tuple[int, ...]:
    return tuple(taxonomy.family_of.tolist())


def _seed(seed: int, key: int) -> int:
    # the folds of one seed start from different weights, as they would one by one
    return seed * 1_000_003 + key


def _fit(
    plans: Sequence[MemberPlan],
    inputs: Mapping[Features, Inputs],
    task: Task,
    rows: Mapping[str, Sequence[_FoldRows]],
) -> _Steps:
    """Fits members that learn from labels alone."""
    stacks: dict[tuple[Any, ...], list[MemberPlan]] = defaultdict(list)
    units: list[StackUnit | PlainUnit] = []
    owners: list[list[tuple[str, _FoldRows, int]]] = []
    for plan in plans:
        spec = _spec(plan, inputs[plan.features], task)
        key = stack_key(spec)
        if key is not None:
            stacks[(plan.features, *key)].append(plan)
            continue
        X, weight = inputs[plan.features].X, clip_weights(plan, task)
        for row in rows[plan.name]:
            for seed in plan.used_seeds:
                weights = None if weight is None else weight[row.fit]
                units.append(PlainUnit(spec, seed, X[row.fit], task.labels[row.fit], weights))
                owners.append([(plan.name, row, seed)])
    for members in stacks.values():
        own = inputs[members[0].features]
        specs = tuple(_spec(plan, own, task) for plan in members)
        of_member = [clip_weights(plan, task) for plan in members]
        replicas, owner = [], []
        for i, plan in enumerate(members):
            for row in rows[plan.name]:
                for seed in plan.used_seeds:
                    replicas.append(
                        Replica(row.fit, row.validation, _seed(seed, row.key), head=i, view=i)
                    )
                    owner.append((plan.name, row, seed))
        ones = np.ones(len(own.X), np.float32)
        is_weighted = any(w is not None for w in of_member)
        data = TrainingData(
            _prepared(specs[0], own),
            task.labels,
            len(task.taxonomy),
            weight=np.stack([ones if w is None else w for w in of_member]) if is_weighted else None,
        )
        units.append(StackUnit(specs, data, tuple(replicas), task.taxonomy, task.device))
        owners.append(owner)
    models = yield ", ".join(repr(plan.name) for plan in plans), units
    parts = {plan.name: [_Part(inputs[plan.features], [])] for plan in plans}
    for owner, of_unit in zip(owners, models, strict=True):
        for (name, row, seed), model in zip(owner, of_unit, strict=True):
            parts[name][0].fitted.append((row, seed, model))
    return parts


def _fit_on_probabilities(
    plan: MemberPlan, inputs: Inputs, task: Task, folds: Sequence[int], said: Opinions
) -> _Steps:
    """Fits a member with other members' probabilities among its inputs, which differ by fold."""
    if plan.extra is not None or plan.distillation is not None:
        raise HeadError(
            f"member {plan.name!r} takes probabilities of other members, so it can have neither "
            "extra clips nor distill"
        )
    assert said.inputs is not None
    steps = []
    for k in folds:
        own = inputs.with_probabilities(said.inputs[:, k])
        rows = {plan.name: _rows_of_folds(plan, own, task, [k])}
        steps.append(_fit([plan], {plan.features: own}, task, rows))
    asked = [next(step) for step in steps]
    models = iter((yield repr(plan.name), [unit for _, units in asked for unit in units]))
    parts = []
    for step, (_, units) in zip(steps, asked, strict=True):
        try:
            step.send([next(models) for _ in units])
        except StopIteration as end:
            parts += end.value[plan.name]
    return {plan.name: parts}


def _guarded(
    units: Sequence[StackUnit | PlainUnit], names: str, task: Task
) -> list[list[FittedModel]]:
    try:
        return run_units(units, n_jobs=task.n_jobs)
    except SplitError:
        raise
    except ValueError as error:  # a setting out of range, in the words of whoever refused it
        raise HeadError(f"member {names}: {str(error).splitlines()[0]}") from None


def _prepared(spec: HeadSpec, inputs: Inputs) -> npt.NDArray[np.float32]:
    head = spec.make()
    assert isinstance(head, TorchHead)
    return head.prepare(inputs.X)


def _fit_with_teachers(
    plan: MemberPlan,
    inputs: Inputs,
    task: Task,
    folds: Sequence[int],
    extra: ExtraClips | None,
    said: Opinions,
) -> _Steps:
    """Fits a member that learns from teachers or extra clips too."""
    if not plan.is_torch:
        raise HeadError(
            f"member {plan.name!r}: head {plan.head!r} cannot learn from soft targets or in "
            "stages; heads that can are those with a parameter epochs (bsdkit heads)"
        )
    spec = _spec(plan, inputs, task)
    rows = _rows_of_folds(plan, inputs, task, folds)
    n, n_folds, n_classes = len(inputs.X), task.split.n_folds, len(task.taxonomy)
    own = clip_weights(plan, task)
    weight = np.tile(np.ones(n, np.float32) if own is None else own, (n_folds, 1))
    soft = np.zeros((n_folds, n, n_classes), np.float32)
    share = np.zeros((n_folds, n), np.float32)
    if plan.distillation is not None:
        assert said.clips is not None
        soft, share, scale = distilled_targets(plan.distillation, said.clips)
        # extra clips keep their weight against the clean term alone
        weight = weight * np.where(share > 0, np.float32(scale), np.float32(1))
    if extra is None:
        data = TrainingData(_prepared(spec, inputs), task.labels, n_classes, weight, soft, share)
        replicas = [
            Replica(row.fit, row.validation, _seed(seed, row.key), view=row.key)
            for row in rows
            for seed in plan.used_seeds
        ]
        return (yield from _fit_stack(plan, inputs, spec, data, replicas, rows, task))
    assert plan.extra is not None
    held_out = [np.array([], np.int64)] * n_folds
    for row in rows:
        held_out[row.key] = np.concatenate([task.split.test(row.key), row.validation])
    both = Inputs(
        np.concatenate([inputs.X, extra.inputs.X]),
        inputs.blocks,
        np.concatenate([inputs.is_present, extra.inputs.is_present]),
    )
    # the seeds differ in what they draw of the extra clips, so each has views of its own
    targets = [
        extra_targets(plan, plan.extra, extra, task, held_out, said.extra, seed)
        for seed in plan.used_seeds
    ]
    views = [(s, k) for s in range(len(targets)) for k in range(n_folds)]
    data = TrainingData(
        _prepared(spec, both),
        np.concatenate([task.labels, targets[0].labels]),
        n_classes,
        weight=np.stack([np.concatenate([weight[k], targets[s].weight[k]]) for s, k in views]),
        soft=np.stack([np.concatenate([soft[k], targets[s].soft[k]]) for s, k in views]),
        soft_share=np.stack(
            [np.concatenate([share[k], targets[s].soft_share[k]]) for s, k in views]
        ),
    )
    replicas, before = [], []
    for row in rows:
        for s, seed in enumerate(plan.used_seeds):
            view = s * n_folds + row.key
            used = n + np.flatnonzero(targets[s].weight[row.key] > 0)
            blank = Replica(row.fit, row.validation, _seed(seed, row.key), view=view)
            together = np.concatenate([row.fit, used])
            n_all = len(row.fit) + int(targets[s].n_rows[row.key])
            if plan.extra.stage == "before":
                n_before = int(targets[s].n_rows[row.key])
                steps = _constant_steps(plan, spec, len(used), n_before)
                before.append(replace(blank, fit_rows=used, n_steps=steps))
                replicas.append(blank)
            else:
                steps = _constant_steps(plan, spec, len(together), n_all)
                replicas.append(replace(blank, fit_rows=together, n_steps=steps))
    if before:
        pretraining = replace(spec, settings={**spec.settings, **plan.extra.pretrain})
        first = yield from _fit_stack(plan, inputs, pretraining, data, before, rows, task)
        replicas = [
            replace(replica, initial=_as_tensors(model))
            for replica, (_, _, model) in zip(replicas, first[plan.name][0].fitted, strict=True)
        ]
    return (yield from _fit_stack(plan, inputs, spec, data, replicas, rows, task))


def _constant_steps(plan: MemberPlan, spec: HeadSpec, n_used: int, n_all: int) -> int | None:
    assert plan.extra is not None
    if n_used == n_all or not plan.extra.constant_steps:
        return None
    return int(-(-n_all // spec.make().batch_size))


def _as_tensors(model: FittedModel) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in model.state.items()}


def _fit_stack(
    plan: MemberPlan,
    inputs: Inputs,
    spec: HeadSpec,
    data: TrainingData,
    replicas: Sequence[Replica],
    rows: Sequence[_FoldRows],
    task: Task,
) -> _Steps:
    unit = StackUnit((spec,), data, tuple(replicas), task.taxonomy, task.device)
    (models,) = yield repr(plan.name), [unit]
    owners = [(row, seed) for row in rows for seed in plan.used_seeds]
    fitted = [(row, seed, model) for (row, seed), model in zip(owners, models, strict=True)]
    return {plan.name: [_Part(inputs, fitted)]}


def _result(plan: MemberPlan, task: Task, parts: Sequence[_Part]) -> MemberResult:
    n_clips, n_classes = len(task.labels), len(task.taxonomy)
    probabilities = np.full((len(plan.used_seeds), n_clips, n_classes), np.nan)
    models, faults = [], []
    for part in parts:
        for row, seed, model in part.fitted:
            models.append(MemberModel(row.key, seed, model.classes, model.state, model.history))
            if model.fault:
                faults.append(f"fold {row.key}, seed {seed}: {model.fault}")
            elif len(row.test):
                i = plan.used_seeds.index(seed)
                probabilities[i, row.test] = _predict(
                    plan, model, part.inputs, row.test, task.taxonomy
                )
    return MemberResult(probabilities, tuple(models), tuple(faults))


def _predict(
    plan: MemberPlan,
    model: MemberModel | FittedModel,
    inputs: Inputs,
    rows: IntArray,
    taxonomy: Taxonomy,
) -> FloatArray:
    """Probabilities [n_rows, n_classes]; 0 for classes that the model never saw."""
    head = make_head(
        plan.head,
        plan.settings,
        blocks=inputs.blocks,
        families=_families(taxonomy),
        random_state=getattr(model, "seed", 0),
    )
    head.load_state(model.state, model.classes, inputs.X.shape[1])
    probabilities = np.zeros((len(rows), len(taxonomy)))
    probabilities[:, model.classes] = head.predict_proba(inputs.X[rows])
    return probabilities
