"""What changes of a recipe are worth: many variants against one baseline, on the same clips."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.combine.objective import Objective
from bsdkit.device import check_device
from bsdkit.errors import HeadError, RecipeError, nearest
from bsdkit.experiments.ablation_table import ENSEMBLE, Ablation, Judged
from bsdkit.heads.registry import head_parameters
from bsdkit.members.member import MemberResult
from bsdkit.members.plan import MemberPlan, Task
from bsdkit.members.trainer import MemberTrainer, member_plan
from bsdkit.metrics import Interval, Spread, bootstrap, spread
from bsdkit.recipe.schema import Recipe
from bsdkit.recipe.teaching import Distillation
from bsdkit.recipe.vary import changed
from bsdkit.runs.scoring import class_shares, combine_members, member_system, objective_of
from bsdkit.verdicts import System, compare_systems, judge

__all__ = ["ablate", "variants_of"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_RESAMPLES = 4000


def variants_of(
    recipe: Recipe, combinations: Sequence[Mapping[str, Any]], others: Sequence[Recipe] = ()
) -> dict[str, Recipe]:
    """The variants of a recipe by the name that a table shows.

    Args:
        recipe: the baseline.
        combinations: changes by dotted key; those that change nothing are left out.
        others: whole recipes, named after themselves; the baseline itself is left out.

    Raises:
        RecipeError: an unknown key, a value that no recipe may have, or a recipe that cannot be
            compared because it is scored on other clips.
    """
    variants = {}
    prefix = _common_prefix([key for changes in combinations for key in changes])
    for changes in combinations:
        variant = changed(recipe, changes)
        shown = ", ".join(f"{key[len(prefix) :]}={value}" for key, value in changes.items())
        if _resolved(variant) != _resolved(recipe):
            _check_comparable(recipe, variant, shown)
            variants[shown] = variant
    for other in others:
        if _resolved(other) == _resolved(recipe):
            continue
        _check_comparable(recipe, other, f"recipe {other.name}")
        variants[other.name] = other
    if not variants:
        raise RecipeError(
            "there is no variant that differs from the recipe; say --vary KEY=VALUE,VALUE or "
            "name other recipes"
        )
    return variants


def _resolved(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says once defaults are filled in, without what changes no number."""
    said = recipe.model_dump(exclude={"name", "description", "provenance", "tune", "test"})
    for name, member in said["members"].items():
        plan = member_plan(name, recipe)
        if plan.is_imported:
            continue
        said["members"][name] = {**head_parameters(plan.head), **member, "seeds": plan.seeds,
                                 "validation": plan.validation}  # fmt: skip
    return said


def _check_comparable(recipe: Recipe, variant: Recipe, shown: str) -> None:
    """Refuses a variant that is scored on other clips or reads other inputs."""
    for name in ("store", "folds", "split_seed", "split_file", "missing", "expect", "target"):
        mine, theirs = getattr(recipe, name), getattr(variant, name)
        if mine != theirs:
            raise RecipeError(
                f"{shown} has {name}: {theirs}, {recipe.name} has {mine}; they can only be "
                "compared on the same clips, folds, inputs and aims"
            )
    if variant.split[0] != recipe.split[0]:
        raise RecipeError(
            f"{shown} is scored on {variant.split[0]} folds, {recipe.name} on {recipe.split[0]}; "
            "their first splits must be the same"
        )


def ablate(
    recipe: Recipe,
    variants: Mapping[str, Recipe],
    runs: Path,
    *,
    judged: str = "",
    device: str = "cpu",
    reuse: bool = True,
    on_step: Callable[[str], None] | None = None,
) -> Ablation:
    """Trains a recipe and its variants, and compares each with the recipe.

    Members that do not differ are trained once; those that share inputs and shapes are trained
    as one stack. Scores are those of the first split.

    Args:
        recipe: the baseline.
        variants: see `variants_of`.
        runs: folder of all runs, whose trained members are reused.
        judged: the member whose predictions are compared, or `ENSEMBLE`; by default the one
            member in which all variants differ, else the ensemble.
        device: where torch heads train.
        reuse: whether members trained before are taken.
        on_step: called with a line of text before each step.

    Raises:
        RecipeError: the baseline diverged, or there is no such member.
        StoreError: see `MemberTrainer`.
    """
    started = time.perf_counter()
    check_device(device)
    runs.mkdir(parents=True, exist_ok=True)
    judged = judged or _what_differs(recipe, variants)
    if judged != ENSEMBLE and judged not in recipe.members:
        choices = [*recipe.members, ENSEMBLE]
        raise RecipeError(f"there is no member {judged!r}: {nearest(judged, choices)}")
    trainer = MemberTrainer(recipe, runs, device=device, reuse=reuse, on_step=on_step)
    task = trainer.task(recipe.split[0])
    recipes = {"": recipe, **variants}
    if judged != ENSEMBLE and judged in recipe.members:
        _check_it_varies(recipe, variants, judged)
    n_seeds = {len(r.seeds) for r in recipes.values()}
    if len(n_seeds) > 1:
        raise RecipeError(
            f"the recipes have {' and '.join(map(str, sorted(n_seeds)))} seeds; a mean of more "
            "models is better for that alone, so write as many in each"
        )
    plans: dict[str, MemberPlan] = {}
    for i, (label, variant) in enumerate(recipes.items()):
        if judged != ENSEMBLE and judged not in variant.members:
            raise RecipeError(f"variant {label} has no member {judged!r}")
        wanted = variant.ensemble_members if judged == ENSEMBLE else [judged]
        for name in _with_teachers(variant, wanted):
            plans[_key(i, name)] = _renamed(member_plan(name, variant), i)
    try:
        trained = trainer.train(plans, task)
    except HeadError as error:
        labels = ["the baseline", *variants]
        named = re.sub(r"'(\d+):([^']*)'", lambda m: f"{m[2]!r} of {labels[int(m[1])]}", str(error))
        raise HeadError(named) from None
    if on_step:
        on_step("comparing")
    found = []
    for i, variant in enumerate(recipes.values()):
        of_variant = {
            name: trained[_key(i, name)] for name in variant.members if _key(i, name) in trained
        }
        found.append(_predictions(variant, of_variant, trainer, task, judged))
    objective = objective_of(recipe, task.taxonomy)
    return _judge(found, list(variants), trainer, task, judged, started, objective)


def _check_it_varies(recipe: Recipe, variants: Mapping[str, Recipe], judged: str) -> None:
    needed = _with_teachers(recipe, [judged])
    own = {name: _resolved(recipe)["members"][name] for name in needed}
    for variant in variants.values():
        if judged not in variant.members or own != {
            name: _resolved(variant)["members"].get(name) for name in needed
        }:
            return
    raise RecipeError(f"member {judged!r} does not depend on anything that varies")


def _key(i: int, name: str) -> str:
    return f"{i}:{name}"


def _renamed(plan: MemberPlan, i: int) -> MemberPlan:
    """The plan under a name of its own among those of all variants, its teachers too."""
    distillation = plan.distillation
    if isinstance(distillation, Distillation):
        teachers = tuple(_key(i, name) for name in distillation.teachers)
        distillation = replace(distillation, teachers=teachers)
    extra = tuple(
        replace(one, teachers=tuple(_key(i, name) for name in one.teachers)) for one in plan.extra
    )
    return replace(
        plan,
        name=_key(i, plan.name),
        distillation=distillation,
        extra=extra,
        probabilities=tuple(_key(i, name) for name in plan.probabilities),
    )


def _with_teachers(recipe: Recipe, names: Sequence[str]) -> list[str]:
    found: list[str] = []
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found.append(name)
            waiting += recipe.members[name].teachers
    return [name for name in recipe.members if name in found]


def _common_prefix(keys: Sequence[str]) -> str:
    """``members.NAME.``, where all keys share it; the table then leaves it out."""
    prefixes = {key[: key.rfind(".") + 1] for key in keys}
    return prefixes.pop() if len(prefixes) == 1 else ""


def _what_differs(recipe: Recipe, variants: Mapping[str, Recipe]) -> str:
    """The one member in which variants differ from the recipe, or the ensemble."""
    members: set[str] = set()
    for variant in variants.values():
        mine, theirs = _resolved(recipe), _resolved(variant)
        own, other = mine.pop("members"), theirs.pop("members")
        if mine != theirs or own.keys() != other.keys():
            return ENSEMBLE
        members |= {name for name in own if own[name] != other[name]}
    return members.pop() if len(members) == 1 else ENSEMBLE


@dataclass(frozen=True)
class _Predictions:
    """What a variant predicts for the tested clips; or why it does not."""

    system: System | None
    in_sample: IntArray | None = None
    fault: str = ""


def _predictions(
    recipe: Recipe,
    members: dict[str, MemberResult],
    trainer: MemberTrainer,
    task: Task,
    judged: str,
) -> _Predictions:
    clips, rows = trainer.store.clips, task.split.tested
    names = recipe.ensemble_members if judged == ENSEMBLE else [judged]
    faults = [f"{name}, {members[name].faults[0]}" for name in names if members[name].faults]
    if faults:
        return _Predictions(None, fault=faults[0])
    if judged != ENSEMBLE:
        fallback = class_shares(clips, task.split)
        return _Predictions(member_system(recipe, judged, members[judged], fallback).rows(rows))
    feature = recipe.similarity
    combined = combine_members(
        recipe,
        clips,
        task.split,
        members,
        similarity=trainer.similarity(feature, [task.split]) if feature else None,
        n_jobs=trainer.n_jobs,
    )
    tuned = combined.stages[-1].in_sample[rows]
    return _Predictions(combined.decided.rows(rows), tuned if combined.stages[-1].learns else None)


def _judge(
    found: Sequence[_Predictions],
    names: Sequence[str],
    trainer: MemberTrainer,
    task: Task,
    judged: str,
    started: float,
    objective: Objective,
) -> Ablation:
    taxonomy, labels = task.taxonomy, task.labels[task.split.tested]
    weight = None if objective.target is None else objective.scale(labels)

    def of_seeds(system: System) -> Spread:
        by_seed = system.classes[None] if system.seeds is None else system.seeds
        return spread(objective.of(labels, classes) for classes in by_seed)

    def tuned(predictions: _Predictions) -> float | None:
        if predictions.in_sample is None:
            return None
        return objective.of(labels, predictions.in_sample)

    def interval(classes: npt.NDArray[np.int64]) -> Interval:
        return bootstrap(labels, classes, taxonomy, class_weight=weight)["hF_strict"]

    baseline = found[0]
    if baseline.system is None:
        raise RecipeError(f"the recipe itself diverged: {baseline.fault}; lower its learning_rate")
    judged_by = judge(
        {
            name: compare_systems(
                labels, one.system, baseline.system, taxonomy,
                share_seeds=True, n_resamples=_RESAMPLES, class_weight=weight,
            )
            for name, one in zip(names, found[1:], strict=True)
            if one.system is not None
        }
    )  # fmt: skip
    variants = []
    for name, one in zip(names, found[1:], strict=True):
        if one.system is None:
            variants.append(Judged(name, None, None, None, one.fault))
            continue
        variants.append(
            Judged(
                name,
                interval(one.system.classes),
                of_seeds(one.system),
                judged_by[name],
                in_sample=tuned(one),
            )
        )
    return Ablation(
        judged=judged,
        split=task.split.name,
        n_clips=len(labels),
        is_at_target=objective.target is not None,
        baseline=interval(baseline.system.classes),
        baseline_seeds=of_seeds(baseline.system),
        variants=tuple(variants),
        n_trained=trainer.n_trained,
        n_reused=trainer.n_reused,
        seconds=time.perf_counter() - started,
        baseline_in_sample=tuned(baseline),
    )
