"""Fits the models of members: which rows each sees, and what is fitted side by side.

A member's training is a generator of steps: it yields the units that have to be fitted next and
gets their models. So stages that need each other's models follow one another, and what members
ask for in the same round runs together, as one stack where shapes allow it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bsdkit.errors import HeadError, SplitError
from bsdkit.heads.torch_head import TorchHead
from bsdkit.heads.training import Replica, TrainingData
from bsdkit.members.jobs import FittedModel, HeadSpec, PlainUnit, StackUnit, run_units, stack_key
from bsdkit.members.plan import ExtraClips, Features, Inputs, MemberPlan, Task
from bsdkit.members.teachers import (
    ExtraTargets,
    TeacherTargets,
    distilled_targets,
    extra_targets,
)
from bsdkit.members.weights import clip_weights, is_confident
from bsdkit.recipe.teaching import ExtraPlan
from bsdkit.splits import inner_validation
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "FoldRows",
    "Part",
    "Steps",
    "families_of",
    "fit_on_probabilities",
    "fit_plain",
    "fit_with_teachers",
    "fold_rows",
    "rows_of_folds",
    "run_together",
]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FoldRows:
    """Rows of one model.

    Attributes:
        key: the fold, or a number for the pair of folds, that it must not see.
        fit: what it trains on.
        validation: what chooses its epoch; empty for none.
        test: what it predicts.
    """

    key: int
    fit: IntArray
    validation: IntArray
    test: IntArray


@dataclass(frozen=True)
class Part:
    """Models of a member that saw the same inputs, with the rows of each and its seed."""

    inputs: Inputs
    fitted: list[tuple[FoldRows, int, FittedModel]]


_Units = list[StackUnit | PlainUnit]
Steps = Generator[tuple[str, _Units], list[list[FittedModel]], dict[str, list[Part]]]
"""Yields what has to be fitted next, with the names to blame for it, and gets the models."""


def run_together(steps: Sequence[Steps], task: Task) -> list[dict[str, list[Part]]]:
    """Runs what all steps ask for side by side, round by round, until each has its parts."""
    done: dict[int, dict[str, list[Part]]] = {}
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


def rows_of_folds(
    plan: MemberPlan, inputs: Inputs, task: Task, folds: Sequence[int]
) -> list[FoldRows]:
    """What the models of each fold fit, validate and test on."""
    found = []
    for k in folds:
        train = np.flatnonzero(task.split.fold != k)
        found.append(fold_rows(plan, inputs, task, k, train, task.split.test(k)))
    return found


def fold_rows(
    plan: MemberPlan,
    inputs: Inputs,
    task: Task,
    key: int,
    train: IntArray,
    test: IntArray,
    named: str = "",
) -> FoldRows:
    """The rows of one model; only rows that it trains on are chosen by confidence.

    Raises:
        HeadError: there are not two classes to train on.
    """
    train = train[inputs.is_present[train]]
    confident = is_confident(plan, task)
    n_classes = len(np.unique(task.labels[train[confident[train]]]))
    if n_classes < 2:
        raise HeadError(
            f"member {plan.name!r}: {named or f'fold {key}'} of split {task.split.name!r} has "
            f"{int(confident[train].sum())} clips of {n_classes} class to train on; at least 2 "
            "classes are needed"
        )
    fit, held_out = train, train[:0]
    if plan.uses_validation:
        fit, held_out = inner_validation(train, task.labels, task.groups, fraction=plan.validation)
    return FoldRows(key, fit[confident[fit]], held_out, test[inputs.is_present[test]])


def fit_plain(
    plans: Sequence[MemberPlan],
    inputs: Mapping[Features, Inputs],
    task: Task,
    rows: Mapping[str, Sequence[FoldRows]],
) -> Steps:
    """Fits members that learn from labels alone."""
    stacks: dict[tuple[Any, ...], list[MemberPlan]] = defaultdict(list)
    units: list[StackUnit | PlainUnit] = []
    owners: list[list[tuple[str, FoldRows, int]]] = []
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
    parts = {plan.name: [Part(inputs[plan.features], [])] for plan in plans}
    for owner, of_unit in zip(owners, models, strict=True):
        for (name, row, seed), model in zip(owner, of_unit, strict=True):
            parts[name][0].fitted.append((row, seed, model))
    return parts


def fit_on_probabilities(
    plan: MemberPlan, inputs: Inputs, task: Task, folds: Sequence[int], said: TeacherTargets
) -> Steps:
    """Fits a member with other members' probabilities among its inputs, which differ by fold."""
    if plan.extra or plan.distillation is not None:
        raise HeadError(
            f"member {plan.name!r} takes probabilities of other members, so it can have neither "
            "extra clips nor distill"
        )
    assert said.inputs is not None
    n_untested = int((task.split.fold < 0).sum())
    if n_untested:
        raise HeadError(
            f"member {plan.name!r} takes probabilities of other members, and {n_untested} clips of "
            f"split {task.split.name!r} are tested by no fold: every model has seen them"
        )
    steps = []
    for k in folds:
        own = inputs.with_probabilities(said.inputs[:, k])
        rows = {plan.name: rows_of_folds(plan, own, task, [k])}
        steps.append(fit_plain([plan], {plan.features: own}, task, rows))
    asked = [next(step) for step in steps]
    models = iter((yield repr(plan.name), [unit for _, units in asked for unit in units]))
    parts = []
    for step, (_, units) in zip(steps, asked, strict=True):
        try:
            step.send([next(models) for _ in units])
        except StopIteration as end:
            parts += end.value[plan.name]
    return {plan.name: parts}


def fit_with_teachers(
    plan: MemberPlan,
    inputs: Inputs,
    task: Task,
    folds: Sequence[int],
    extra: Sequence[ExtraClips],
    said: TeacherTargets,
) -> Steps:
    """Fits a member that learns from teachers or extra clips too, those of each store in turn."""
    if not plan.is_torch:
        raise HeadError(
            f"member {plan.name!r}: head {plan.head!r} cannot learn from soft targets or in "
            "stages; heads that can are those with a parameter epochs (bsdkit heads)"
        )
    spec = _spec(plan, inputs, task)
    rows = rows_of_folds(plan, inputs, task, folds)
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
    if not extra:
        data = TrainingData(_prepared(spec, inputs), task.labels, n_classes, weight, soft, share)
        replicas = [
            Replica(row.fit, row.validation, _seed(seed, row.key), view=row.key)
            for row in rows
            for seed in plan.used_seeds
        ]
        return (yield from _fit_stack(plan, inputs, spec, data, replicas, rows, task))
    held_out = [np.array([], np.int64)] * n_folds
    for row in rows:
        held_out[row.key] = np.concatenate([task.split.test(row.key), row.validation])
    everything = Inputs(
        np.concatenate([inputs.X, *(clips.inputs.X for clips in extra)]),
        inputs.blocks,
        np.concatenate([inputs.is_present, *(clips.inputs.is_present for clips in extra)]),
    )
    stores = list(zip(plan.extra, extra, said.extra or [None] * len(extra), strict=True))
    # the seeds differ in what they draw of the extra clips, so each has views of its own
    targets = [
        [
            extra_targets(plan, use, clips, task, held_out, heard, seed, place)
            for place, (use, clips, heard) in enumerate(stores)
        ]
        for seed in plan.used_seeds
    ]

    def views(own: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
        """Of own clips [n_folds, n, ...] and extra ones, [n_seeds * n_folds, n + n_extra, ...]."""
        return np.stack(
            [
                np.concatenate([own[k], *(getattr(store, name)[k] for store in of_seed)])
                for of_seed in targets
                for k in range(n_folds)
            ]
        )

    data = TrainingData(
        _prepared(spec, everything),
        np.concatenate([task.labels, *(store.labels for store in targets[0])]),
        n_classes,
        weight=views(weight, "weight"),
        soft=views(soft, "soft"),
        soft_share=views(share, "soft_share"),
    )
    starts = np.cumsum([n, *(len(clips.labels) for clips in extra)])
    first: list[dict[str, torch.Tensor] | None] = [None] * (len(rows) * len(targets))
    *before, last = _stages(plan.extra)
    for settings, places in before:
        stage = replace(spec, settings={**spec.settings, **settings})
        with_own = plan.extra[places[0]].with_development
        replicas = _replicas(plan, stage, rows, targets, places, starts, first, with_own)
        found = yield from _fit_stack(plan, inputs, stage, data, replicas, rows, task)
        first = [_as_tensors(model) for _, _, model in found[plan.name][0].fitted]
    replicas = _replicas(plan, spec, rows, targets, last[1], starts, first, True)
    return (yield from _fit_stack(plan, inputs, spec, data, replicas, rows, task))


def _stages(extra: Sequence[ExtraPlan]) -> list[tuple[Mapping[str, Any], list[int]]]:
    """Settings and places of the stores of each stage; the last has the development clips too."""
    before = [i for i, use in enumerate(extra) if use.stage == "before"]
    grouped = itertools.groupby(
        before, key=lambda i: (dict(extra[i].pretrain), extra[i].with_development)
    )
    together = [i for i, use in enumerate(extra) if use.stage == "together"]
    return [*((settings, list(places)) for (settings, _), places in grouped), ({}, together)]


def _replicas(
    plan: MemberPlan,
    spec: HeadSpec,
    rows: Sequence[FoldRows],
    targets: Sequence[Sequence[ExtraTargets]],
    places: Sequence[int],
    starts: IntArray,
    initial: Sequence[dict[str, torch.Tensor] | None],
    with_own: bool,
) -> list[Replica]:
    """One replica a fold and seed that trains on some stores, and on the fold's own rows or not.

    Args:
        plan: the member.
        spec: its settings in this stage.
        rows: of each fold.
        targets: of each seed and store.
        places: which stores.
        starts: the first row of each store.
        initial: what each replica starts from.
        with_own: whether the development clips are trained on too.
    """
    found = []
    n_folds = len(targets[0][0].n_rows)
    each = itertools.product(rows, enumerate(plan.used_seeds))
    for (row, (s, seed)), begin in zip(each, initial, strict=True):
        own = row.fit if with_own else row.fit[:0]
        used, n_all = [own], len(own)
        for i in places:
            used.append(starts[i] + np.flatnonzero(targets[s][i].weight[row.key] > 0))
            repeated = plan.extra[i].constant_steps
            n_all += int(targets[s][i].n_rows[row.key]) if repeated else len(used[-1])
        fit = np.concatenate(used)
        # fewer clips are gone through again, so that an epoch has as many steps as with all
        n_steps = None if len(fit) == n_all else int(-(-n_all // spec.make().batch_size))
        view = s * n_folds + row.key
        key = _seed(seed, row.key)
        found.append(Replica(fit, row.validation, key, view=view, initial=begin, n_steps=n_steps))
    return found


def _as_tensors(model: FittedModel) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in model.state.items()}


def _fit_stack(
    plan: MemberPlan,
    inputs: Inputs,
    spec: HeadSpec,
    data: TrainingData,
    replicas: Sequence[Replica],
    rows: Sequence[FoldRows],
    task: Task,
) -> Steps:
    unit = StackUnit((spec,), data, tuple(replicas), task.taxonomy, task.device)
    (models,) = yield repr(plan.name), [unit]
    owners = [(row, seed) for row in rows for seed in plan.used_seeds]
    fitted = [(row, seed, model) for (row, seed), model in zip(owners, models, strict=True)]
    return {plan.name: [Part(inputs, fitted)]}


def _guarded(
    units: Sequence[StackUnit | PlainUnit], names: str, task: Task
) -> list[list[FittedModel]]:
    try:
        return run_units(units, n_jobs=task.n_jobs)
    except SplitError:
        raise
    except ValueError as error:  # a setting out of range, in the words of whoever refused it
        raise HeadError(f"member {names}: {str(error).splitlines()[0]}") from None


def _spec(plan: MemberPlan, inputs: Inputs, task: Task) -> HeadSpec:
    return HeadSpec(plan.head, dict(plan.settings), inputs.blocks, families_of(task.taxonomy))


def families_of(taxonomy: Taxonomy) -> tuple[int, ...]:
    """Family number of each class."""
    return tuple(taxonomy.family_of.tolist())


def _seed(seed: int, key: int) -> int:
    # the folds of one seed start from different weights, as they would one by one
    return seed * 1_000_003 + key


def _prepared(spec: HeadSpec, inputs: Inputs) -> npt.NDArray[np.float32]:
    head = spec.make()
    assert isinstance(head, TorchHead)
    return head.prepare(inputs.X)
