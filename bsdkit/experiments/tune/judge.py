"""Scores one setting by the folds of a study, and trains what that takes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.errors import HeadError, RecipeError
from bsdkit.experiments.tune.study import StudyPlan
from bsdkit.members.member import MemberResult
from bsdkit.members.plan import MemberPlan, Task
from bsdkit.members.trainer import MemberTrainer, member_plan
from bsdkit.metrics import Scorer
from bsdkit.recipe.schema import Recipe
from bsdkit.recipe.vary import changed
from bsdkit.runs.scoring import class_shares, member_system
from bsdkit.splits import Split
from bsdkit.verdicts import System

__all__ = [
    "Judge",
    "check_nestable",
    "predicted_by",
    "train_member",
    "with_teachers",
]

IntArray = npt.NDArray[np.int64]


def with_teachers(recipe: Recipe, member: str) -> dict[str, MemberPlan]:
    """The plans of a member and of those that teach it, by name."""
    plans: dict[str, MemberPlan] = {}
    waiting = [member]
    while waiting:
        name = waiting.pop()
        if name not in plans:
            plans[name] = member_plan(name, recipe)
            waiting += plans[name].teachers
    return plans


def check_nestable(recipe: Recipe, member: str, split: Split) -> None:
    """Refuses a nested score that would be optimistic.

    Raises:
        RecipeError: there are fewer than three folds, or a teacher has seen the labels that a
            study must not meet.
    """
    if split.n_folds < 3:
        raise RecipeError(
            f"a nested score takes 3 folds at least; split {split.name!r} has {split.n_folds}: "
            "write more folds, or say --nested none"
        )
    for name, plan in with_teachers(recipe, member).items():
        if plan.distillation is not None or plan.probabilities:
            raise RecipeError(
                f"member {name!r} learns from teachers that were trained on every fold but two, so "
                "a study cannot be kept from its fold's labels; say --nested none, or tune the "
                "member without distill or probabilities"
            )


def train_member(
    trainer: MemberTrainer,
    recipe: Recipe,
    member: str,
    task: Task,
    folds: Sequence[int] | None = None,
) -> MemberResult:
    """A member trained after those that teach it, for some folds or, by default, for all.

    Raises:
        HeadError: it or a teacher cannot be trained, or a teacher diverged.
        StoreError: a feature or an extra store is missing, stale or incomplete.
    """
    plans = with_teachers(recipe, member)
    if any(one.teachers for plan in plans.values() for one in plan.extra):
        folds = None  # these teachers label extra clips for the students of all folds at once
    return trainer.train(plans, task, folds=folds)[member]


def predicted_by(
    trainer: MemberTrainer, recipe: Recipe, member: str, result: MemberResult, task: Task
) -> System:
    """What a member predicts; a clip without features gets its training clips' commonest class."""
    return member_system(recipe, member, result, class_shares(trainer.store.clips, task.split))


class Judge:
    """Scores settings by the folds of one study.

    Args:
        plan: which study.

    Attributes:
        trainer: what it trains on.
        folds: those that it may meet.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan
        self.trainer = MemberTrainer(plan.recipe, plan.folder, device=plan.device, n_jobs=1)
        self._task = self.trainer.task(plan.recipe.split[0])
        self.folds = [j for j in range(self._task.split.n_folds) if j != plan.held_out]
        self._scorer = Scorer(self._task.taxonomy)

    def scores(
        self, settings: Mapping[str, Any], *, is_common: bool
    ) -> Iterator[tuple[int, float]]:
        """(folds judged, pooled hF_strict of their clips) after 1, 2, 4, ... and all folds.

        Args:
            settings: by whole key.
            is_common: whether other studies try them too, so that models are worth keeping.

        Raises:
            HeadError: a model diverged or cannot be fitted.
            RecipeError: no recipe may have these settings together.
        """
        recipe = changed(self._plan.recipe, settings, "")
        # teachers serve every trial, so what a member with teachers leaves is kept too
        is_kept = is_common or bool(recipe.members[self._plan.member].teachers)
        rows, predicted = [], []
        for n, j in enumerate(self.folds, 1):
            test = self._task.split.test(j)
            rows.append(test)
            predicted.append(self._predictions(recipe, j, is_kept)[test])
            if n & (n - 1) == 0 or n == len(self.folds):
                labels = self._task.labels[np.concatenate(rows)]
                yield n, self._scorer.hF_strict_of(labels, np.concatenate(predicted))

    def _predictions(self, recipe: Recipe, j: int, is_kept: bool) -> IntArray:
        """Classes [n_clips] by models that judge fold j."""
        plan, task = self._plan, self._task_of(j)
        scratch = plan.folder / ".members" / f"scratch-{os.getpid()}"
        self.trainer.runs = plan.folder if is_kept else scratch
        folds = [j] if plan.held_out is None else None
        try:
            result = train_member(self.trainer, recipe, plan.member, task, folds)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if result.faults:
            raise HeadError(f"diverged in {result.faults[0]}")
        return predicted_by(self.trainer, recipe, plan.member, result, task).classes

    def _task_of(self, j: int) -> Task:
        """The task whose models judge fold j: without j, and without the fold held out."""
        held_out, split = self._plan.held_out, self._task.split
        if held_out is None:
            return self._task
        # tested together, they are trained on by nobody; both studies use the same models
        fold = np.where(np.isin(split.fold, [j, held_out]), 0, -1)
        a, b = sorted([j, held_out])
        name = f"{split.name} without folds {a} and {b}"
        return replace(self._task, split=replace(split, name=name, fold=fold, n_folds=1))
