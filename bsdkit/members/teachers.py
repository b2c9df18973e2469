"""Targets from teachers, and clips of other stores whose labels are of another quality.

What a teacher says for the student of a fold comes from models that saw neither the clip nor
any clip of that fold: for extra clips from the teachers' models of the same fold, for
development clips from models trained without the clip's fold and the student's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsdkit.errors import HeadError
from bsdkit.members.plan import ExtraClips, MemberPlan, Task
from bsdkit.recipe.teaching import Distillation, ExtraPlan
from bsdkit.stats import softmax

__all__ = [
    "ExtraTargets",
    "TeacherTargets",
    "distilled_targets",
    "extra_targets",
    "mean_of_teachers",
    "training_waves",
]

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

_LEAST = 1e-9


@dataclass(frozen=True)
class TeacherTargets:
    """What the teachers of one member say.

    Attributes:
        clips: probabilities [n_teachers, n_folds, n_clips, n_classes] of the development clips
            for the student of each fold; NaN where no model is ignorant of the clip.
        extra: the same [n_teachers, n_folds, n_extra, n_classes] of the extra clips of each
            store; None for one without teachers.
        inputs: like `clips`, for the members whose probabilities are inputs; in the student's
            own fold they are those out of fold.
    """

    clips: FloatArray | None = None
    extra: tuple[FloatArray | None, ...] = ()
    inputs: FloatArray | None = None


@dataclass(frozen=True)
class ExtraTargets:
    """How the student of each fold uses each extra clip.

    Attributes:
        labels: hard class positions [n_extra], 0 where unknown.
        soft: class probabilities [n_folds, n_extra, n_classes].
        soft_share: [n_folds, n_extra] the teachers' share of the target.
        weight: [n_folds, n_extra], 0 for clips that are left out.
        n_rows: [n_folds] clips that could be used before a subset was taken.
    """

    labels: IntArray
    soft: Float32Array
    soft_share: Float32Array
    weight: Float32Array
    n_rows: IntArray


def mean_of_teachers(opinions: FloatArray, temperature: float) -> FloatArray:
    """Softmax of the mean log-probabilities over the first axis, divided by a temperature."""
    logits = np.log(np.maximum(opinions, _LEAST)).mean(axis=0) / temperature
    return softmax(logits)


def distilled_targets(
    plan: Distillation, opinions: FloatArray
) -> tuple[Float32Array, Float32Array, float]:
    """Soft targets [n_folds, n_clips, n_classes], their share, and what the loss is scaled by.

    Args:
        plan: the terms.
        opinions: see `TeacherTargets`.
    """
    is_known = ~np.isnan(opinions).any(axis=(0, 3))  # [n_folds, n_clips]
    known = np.where(np.isnan(opinions), 1.0, opinions)
    mean = mean_of_teachers(known, plan.temperature)
    best = np.eye(mean.shape[-1])[mean.argmax(axis=-1)]
    terms = plan.soft + plan.hard
    soft = (plan.soft * mean + plan.hard * best) / max(terms, _LEAST)
    share = np.where(is_known, terms / (1 + terms), 0.0)
    return soft.astype(np.float32), share.astype(np.float32), 1 + terms


def extra_targets(
    member: MemberPlan,
    plan: ExtraPlan,
    clips: ExtraClips,
    task: Task,
    held_out: Sequence[IntArray],
    opinions: FloatArray | None,
    seed: int,
    place: int = 0,
) -> ExtraTargets:
    """How the student of each fold uses each extra clip.

    Args:
        member: the student.
        plan: how it uses them.
        clips: the extra clips.
        task: the folds; with groups, extra clips of an uploader that a fold tests or validates
            on are left out there.
        held_out: rows [n_folds][...] that each fold tests or validates on.
        opinions: see `TeacherTargets`, of this store; None without teachers.
        seed: of the random subset and of a drawn share.
        place: of the store among those of the member.

    Raises:
        HeadError: no clip is left for some fold.
    """
    n, n_folds, n_classes = len(clips.labels), task.split.n_folds, len(task.taxonomy)
    # stores of one member are drawn from apart
    rng = np.random.default_rng([seed, 0x6E6F6973, *[place] * (place > 0)])
    usable = np.tile(clips.inputs.is_present & ~clips.is_copy, (n_folds, 1))
    for group_key, values in task.split.group_values:
        theirs = group_key.values(clips.table).astype(str)
        for k, rows in enumerate(held_out):
            tested = np.unique(values[rows].astype(str))
            usable[k] &= ~np.isin(theirs, tested[tested != ""])
    soft = np.zeros((n_folds, n, n_classes), np.float32)
    share = np.zeros((n_folds, n), np.float32)
    scale = np.ones((n_folds, n))
    sureness = np.ones((n_folds, n))
    has_label = clips.labels >= 0
    if plan.labels == "given":
        usable &= has_label
    else:
        assert opinions is not None
        usable &= ~np.isnan(opinions).any(axis=(0, 3))
        opinions = np.where(np.isnan(opinions), 1.0, opinions)
        mean = mean_of_teachers(opinions, plan.temperature)
        sureness = mean.max(axis=-1)
        if plan.labels == "agreement":
            votes = np.eye(n_classes)[opinions.argmax(axis=-1)].sum(axis=0)
            usable &= votes.max(axis=-1) >= plan.at_least
            soft[:] = np.eye(n_classes)[votes.argmax(axis=-1)]
            share[:] = 1.0
        else:
            soft[:] = mean
            low, high = plan.shares
            share[:] = rng.uniform(low, high)
            share[:, ~has_label] = 1.0
            if plan.hard:
                soft, share, scale = _with_hard(plan, opinions, soft, share)
    labels = np.where(has_label, clips.labels, 0)
    if plan.targets == "family":
        whole = (1 - share)[..., None] * np.eye(n_classes)[labels] + share[..., None] * soft
        soft[:] = whole @ _within_families(task.taxonomy.family_of)
        share[:] = 1.0
    n_rows = usable.sum(axis=1)
    for k in range(n_folds):
        if not len(held_out[k]):  # a fold that is not trained for
            continue
        if not usable[k].any():
            raise HeadError(
                f"member {member.name!r}: none of the {n} clips of {plan.store} is left to train "
                f"on for fold {k} ({int(clips.is_copy.sum())} are copies of development clips)"
            )
        if plan.subset != "all" and plan.fraction < 1:
            rows = np.flatnonzero(usable[k])
            if plan.subset == "confident":
                key = -sureness[k, rows]
            elif plan.subset_seed is None:
                key = rng.random(len(rows))
            else:  # one order of all clips, whatever the fold and the seed
                key = np.random.default_rng(plan.subset_seed).random(n)[rows]
            kept = rows[np.argsort(key, kind="stable")[: max(1, round(plan.fraction * len(rows)))]]
            usable[k] = np.isin(np.arange(n), kept)
    weight = np.where(usable, plan.weight * scale, 0.0).astype(np.float32)
    return ExtraTargets(labels, soft, share, weight, n_rows)


def _with_hard(
    plan: ExtraPlan, opinions: FloatArray, soft: Float32Array, share: Float32Array
) -> tuple[Float32Array, Float32Array, FloatArray]:
    """Soft targets, their share, and the scale [n_folds, n_extra] of the loss, with a hard term.

    The target (1 - s) label + s q and h times the best class add up to (1 + h) times one target,
    of which the teachers have (s + h) / (1 + h).
    """
    mean = mean_of_teachers(opinions, plan.temperature)
    best = mean.argmax(axis=-1)
    probability = np.take_along_axis(opinions.mean(axis=0), best[..., None], axis=-1)[..., 0]
    hard = np.where(probability >= plan.hard_at_least, plan.hard, 0.0)
    terms = share + hard
    one_hot = np.eye(mean.shape[-1])[best]
    both = share[..., None] * soft.astype(np.float64) + hard[..., None] * one_hot
    both /= np.maximum(terms, _LEAST)[..., None]
    return both.astype(np.float32), (terms / (1 + hard)).astype(np.float32), 1 + hard


def _within_families(family_of: IntArray) -> FloatArray:
    """A matrix [n_classes, n_classes] that spreads a family's share evenly over its classes."""
    same = family_of[:, None] == family_of[None, :]
    return np.asarray(same / same.sum(axis=1, keepdims=True))


def training_waves(plans: Mapping[str, MemberPlan]) -> list[list[str]]:
    """Names of the members in waves: each after the members that teach it.

    Raises:
        HeadError: members teach each other in a circle.
    """
    waves: list[list[str]] = []
    done: set[str] = set()
    left = dict(plans)
    while left:
        wave = [name for name, plan in left.items() if done.issuperset(plan.teachers)]
        if not wave:
            raise HeadError(f"members teach each other in a circle: {', '.join(sorted(left))}")
        waves.append(wave)
        done.update(wave)
        left = {name: plan for name, plan in left.items() if name not in done}
    return waves
