"""From members to scores under one split: the chain, nested, and everything that is reported."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from bsdkit.combine.chain import Adjust, Average, Calibrate, Nested, Rerank, Step, nested
from bsdkit.combine.decode import decode
from bsdkit.combine.ensemble import check_options, combine
from bsdkit.combine.evidence import Evidence
from bsdkit.combine.objective import Objective
from bsdkit.combine.reliability import reliability
from bsdkit.dataset import Clips
from bsdkit.errors import RecipeError, nearest
from bsdkit.leakage import audit_split
from bsdkit.members.member import MemberResult
from bsdkit.metrics import bootstrap, evaluate, spread
from bsdkit.recipe.schema import Recipe
from bsdkit.runs.results import ProtocolResult, ids_digest
from bsdkit.runs.seeds import member_by_seed, members_by_seed
from bsdkit.splits import Split
from bsdkit.store.clips import read_clips
from bsdkit.taxonomy import Taxonomy
from bsdkit.verdicts import System, compare_systems, judge

__all__ = [
    "Combined",
    "chain_steps",
    "class_shares",
    "combine_members",
    "member_system",
    "objective_of",
    "score_protocol",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Stage:
    """What the chain gives after one of its steps.

    Attributes:
        name: of the step.
        nested: class positions [n_clips], each clip by its fold's chain, and by seed.
        in_sample: the same by the chain that was fitted on all clips.
        learns: whether it, or a step before it, was fitted to labels.
    """

    name: str
    nested: System
    in_sample: IntArray
    learns: bool


@dataclass(frozen=True)
class Combined:
    """What the members of an ensemble give together.

    Attributes:
        names: the members, without those that diverged.
        left_out: why, by member that diverged.
        chains: fitted on all tested clips, and for each fold on the others.
        nested: probabilities [n_clips, n_classes] of each clip by its fold's chain.
        in_sample: the same by the chain that was fitted on it.
        plain_mean: of the members, all weights equal.
        alone: the classes of each member, and by seed.
        together: those of the plain mean.
        stages: after each step, and after decoding where that is not the most probable class.
        is_empty: [n_clips] whether no member that counts could see a clip.
        fallback: what such a clip gets [n_clips, n_classes].
    """

    names: tuple[str, ...]
    left_out: dict[str, list[str]]
    chains: Nested
    nested: FloatArray
    in_sample: FloatArray
    plain_mean: FloatArray
    alone: dict[str, System]
    together: System
    stages: tuple[Stage, ...]
    is_empty: npt.NDArray[np.bool_]
    fallback: FloatArray

    @property
    def decided(self) -> System:
        """The classes that count: nested, decoded as the recipe says."""
        return self.stages[-1].nested


def class_shares(clips: Clips, split: Split) -> FloatArray:
    """Class shares [n_clips, n_classes] of what each clip's own fold trained on.

    They are what a clip without any feature gets.
    """
    n = len(clips.taxonomy)
    shares = np.tile(np.bincount(clips.labels, minlength=n) / len(clips), (len(clips), 1))
    for train, test in split:
        shares[test] = np.bincount(clips.labels[train], minlength=n) / len(train)
    return shares


def objective_of(recipe: Recipe, taxonomy: Taxonomy) -> Objective:
    """What a recipe's searches maximise.

    Raises:
        RecipeError: the target names a class that the taxonomy does not have, or none at all.
    """
    if recipe.target is None:
        return Objective(taxonomy)
    if recipe.target == "balanced":
        return Objective(taxonomy, tuple([1 / len(taxonomy)] * len(taxonomy)))
    for label in recipe.target:
        if label not in taxonomy.labels:
            raise RecipeError(f"target names {label!r}: {nearest(label, taxonomy.labels)}")
    shares = np.array([recipe.target.get(label, 0.0) for label in taxonomy.labels])
    if not shares.sum() > 0:
        raise RecipeError("target gives no class a share; write balanced, or class: share")
    return Objective(taxonomy, tuple((shares / shares.sum()).tolist()))


def chain_steps(recipe: Recipe, names: tuple[str, ...], ids: Iterable[str] = ()) -> list[Step]:
    """The steps after the members, as a recipe says them.

    Args:
        recipe: what it says.
        names: the members that did not diverge.
        ids: of the clips that are scored, on which frozen weights must not have been learned.

    Raises:
        RecipeError: frozen weights or caps that cannot be used.
    """
    e = recipe.ensemble
    frozen = dict(e.weights or {})
    if e.file is not None:
        frozen = _weights_in(Path(e.file), ids)
    # a member that diverged is left out whatever else names it
    gone = [name for name in recipe.ensemble_members if name not in names]
    caps = {
        pattern: cap
        for pattern, cap in e.caps.items()
        if any(fnmatch.fnmatchcase(name, pattern) for name in names)
        or not any(fnmatch.fnmatchcase(name, pattern) for name in gone)
    }
    options = replace(
        e,
        caps=caps,
        weights={name: weight for name, weight in frozen.items() if name not in gone}
        if e.method == "frozen"
        else None,
        file=None,
    )
    check_options(options, names)
    steps: list[Step] = []
    if recipe.calibrate != "none":
        steps.append(Calibrate(recipe.calibrate))
    steps.append(Average(options, names))
    if recipe.rerank is not None:
        steps.append(Rerank(recipe.rerank))
    if recipe.adjust is not None:
        steps.append(Adjust(recipe.adjust))
    return steps


_SEEN = (
    "the weights in {path} were fitted on {n} of these clips, so their score would not be out of "
    "fold; write the method that found them instead (its members are not trained again)"
)


def _weights_in(path: Path, ids: Iterable[str]) -> dict[str, float]:
    """Weights by member: a plain mapping, or the members and weights of a run's ensemble.json."""
    if (path.parent / "clips.h5").is_file():
        known = np.isin(
            np.array(list(ids), str), read_clips(path.parent / "clips.h5").ids.astype(str)
        )
        if known.any():
            raise RecipeError(_SEEN.format(path=path, n=int(known.sum())))
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and {"members", "weights"} <= set(data):
            fitted_on = data.get("clips")
            if fitted_on and fitted_on == ids_digest(ids):
                raise RecipeError(_SEEN.format(path=path, n="all"))
            data = dict(zip(data["members"], data["weights"], strict=True))
        return {str(name): float(weight) for name, weight in data.items()}
    except RecipeError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "not a mapping of members to weights"
        raise RecipeError(
            f"ensemble.file {path}: {reason}; expected member: weight lines, or the "
            "ensemble.json of a run on other clips"
        ) from None


def combine_members(
    recipe: Recipe,
    clips: Clips,
    split: Split,
    members: Mapping[str, MemberResult],
    *,
    similarity: FloatArray | None = None,
    n_jobs: int = 1,
) -> Combined:
    """The steps of a recipe after its members, fitted nested and on all clips.

    Raises:
        RecipeError: every member diverged, or a step cannot be learned.
    """
    left_out = {name: list(m.faults) for name, m in members.items() if m.faults}
    names = tuple(name for name in recipe.ensemble_members if name not in left_out)
    if not names:
        name, faults = next(iter(left_out.items()))
        raise RecipeError(
            f"no member is left under split {split.name!r}: {name} diverged, {faults[0]}; "
            "lower its learning_rate"
        )
    fallback = class_shares(clips, split)
    taxonomy = clips.taxonomy
    evidence = Evidence(np.stack([members[name].mean for name in names]), similarity=similarity)
    steps = chain_steps(recipe, names, clips.ids[split.tested])
    objective = objective_of(recipe, taxonomy)
    chains = nested(
        steps, evidence, clips.labels, split.fold, split.n_folds, objective, n_jobs=n_jobs
    )
    is_empty = np.isnan(chains.stages[-1][:, 0])

    def filled(probabilities: FloatArray) -> FloatArray:
        return np.where(np.isnan(probabilities[:, :1]), fallback, probabilities)

    def classes_after(said: Sequence[FloatArray]) -> list[IntArray]:
        """The classes after each step, and after decoding where that is a step of its own."""
        found = [filled(probabilities).argmax(axis=1) for probabilities in said]
        if recipe.decode != "argmax":
            found.append(decode(filled(said[-1]), recipe.decode, taxonomy))
        return found

    ours, tuned = classes_after(chains.stages), classes_after(chains.in_sample)
    counting = {name for chain in chains.of_folds for name in np.array(names)[chain.counts]}
    by_seed = members_by_seed(recipe, members, names, counting)
    of_seeds = [
        classes_after(chains.of(Evidence(one, similarity=similarity), split.fold))
        for one in by_seed or ()
    ]
    step_names = [step.name for step in steps]
    learns = np.logical_or.accumulate([step.learns for step in steps]).tolist()
    if recipe.decode != "argmax":
        step_names.append(f"decode {recipe.decode}")
        learns.append(learns[-1])
    stages = [
        Stage(
            name,
            System(ours[i], np.stack([one[i] for one in of_seeds]) if of_seeds else None),
            tuned[i],
            learns[i],
        )
        for i, name in enumerate(step_names)
    ]

    all_by_seed = members_by_seed(recipe, members, names, set(names))
    together = System(
        _averaged(evidence.members, fallback),
        np.stack([_averaged(p, fallback) for p in all_by_seed]) if all_by_seed else None,
    )
    return Combined(
        names=names,
        left_out=left_out,
        chains=chains,
        nested=filled(chains.stages[-1]),
        in_sample=filled(chains.in_sample[-1]),
        plain_mean=combine(evidence.members, np.ones(len(names)), fallback),
        alone={name: member_system(recipe, name, members[name], fallback) for name in names},
        together=together,
        stages=tuple(stages),
        is_empty=is_empty,
        fallback=fallback,
    )


def _averaged(members: FloatArray, fallback: FloatArray) -> IntArray:
    """Classes [n_clips] of the plain mean of members [n_members, n_clips, n_classes]."""
    return np.asarray(combine(members, np.ones(len(members)), fallback).argmax(axis=1))


def member_system(recipe: Recipe, name: str, result: MemberResult, fallback: FloatArray) -> System:
    """What one member predicts by itself; for clips that it cannot see, by the fallback."""
    by_seed = member_by_seed(recipe, name, result)
    return System(
        _averaged(result.mean[None], fallback),
        None if by_seed is None else np.stack([_averaged(p[None], fallback) for p in by_seed]),
    )


def score_protocol(
    recipe: Recipe,
    clips: Clips,
    split: Split,
    members: dict[str, MemberResult],
    *,
    similarity: FloatArray | None = None,
    on_their_word: Collection[str] = (),
    n_jobs: int = 1,
) -> ProtocolResult:
    """Every score of a recipe under one split.

    Args:
        recipe: what it says.
        clips: the clips table.
        split: the folds.
        members: results by name.
        similarity: what the reranker may know of the clips' metadata [n_clips, n_classes].
        on_their_word: imported features of which nobody knows the folds.
        n_jobs: processes.

    Raises:
        RecipeError: see `combine_members`.
    """
    taxonomy, labels, rows = clips.taxonomy, clips.labels, split.tested
    combined = combine_members(recipe, clips, split, members, similarity=similarity, n_jobs=n_jobs)
    fallback = combined.fallback
    target = objective_of(recipe, taxonomy)

    def scores(classes: IntArray) -> dict[str, Any]:
        return _scores(classes, labels, split, target)

    scored: dict[str, Any] = {}
    for name, result in members.items():
        if name in combined.left_out:
            continue
        scored[name] = scores(combine(result.mean[None], [1.0], fallback).argmax(axis=1))
        seeds = [
            evaluate(
                labels[rows],
                combine(p[None], [1.0], fallback)[rows].argmax(1),
                taxonomy,
                warn=False,
            )
            for p in result.probabilities
        ]
        scored[name]["seeds"] = vars(spread(s["hF_strict"] for s in seeds))
    best = max(
        (name for name in scored if name in combined.names),
        key=lambda name: scored[name]["hF_strict"]["value"],
    )
    decided, tuned = combined.decided, combined.stages[-1].in_sample
    nested_scores, in_sample_scores = scores(decided.classes), scores(tuned)
    weight = None if target.target is None else target.scale(labels[rows])
    against = judge(
        {
            name: compare_systems(
                labels[rows], decided.rows(rows), other.rows(rows), taxonomy,
                share_seeds=True, class_weight=weight,
            )
            for name, other in {
                "plain mean": combined.together, best: combined.alone[best]
            }.items()
            if not np.array_equal(other.classes[rows], decided.classes[rows])
        }
    )  # fmt: skip
    weights = combined.chains.chain.ensemble.weights
    metrics = {
        "split": split.name,
        "n_folds": split.n_folds,
        "n_tested": len(rows),
        "leakage": audit_split(split, clips).to_dict(),
        "unseen": [[k, taxonomy.labels[c]] for k, c in split.unseen(labels)],
        "n_without_prediction": int(combined.is_empty[rows].sum()),
        "target": None if target.target is None else list(target.target),
        "members": scored,
        "left_out": combined.left_out,
        "on_their_word": list(on_their_word),
        "weights_are_given": recipe.ensemble.method == "frozen",
        "best_member": best,
        "plain_mean": scores(combined.together.classes),
        "steps": _steps(combined, labels, rows, target),
        "reliability": {
            name: reliability(p[rows], labels[rows]).to_dict()
            for name, p in (("plain mean", combined.plain_mean), ("nested", combined.nested))
        },
        "ensemble": {
            "method": recipe.ensemble.method,
            "steps": [stage.name for stage in combined.stages],
            "members": list(combined.names),
            "weights": list(weights),
            "weights_of_folds": [list(c.ensemble.weights) for c in combined.chains.of_folds],
            "nested": nested_scores,
            "in_sample": in_sample_scores,
            "optimism": target.of(labels[rows], tuned[rows])
            - target.of(labels[rows], decided.classes[rows]),
            "against": {name: vars(c) for name, c in against.items()},
        },
    }
    n = len(taxonomy)
    priors = [np.bincount(labels[train], minlength=n) / len(train) for train, _ in split]
    return ProtocolResult(
        split=split,
        members=members,
        names=combined.names,
        chains=combined.chains,
        nested=combined.nested,
        decided=decided,
        is_empty=combined.is_empty,
        prior=np.bincount(labels, minlength=n) / len(labels),
        priors=tuple(priors),
        metrics=metrics,
    )


def _steps(
    combined: Combined, labels: IntArray, rows: IntArray, target: Objective
) -> list[dict[str, Any]]:
    """What each step adds to the one before it, the plain mean first; nested, paired.

    All of it is hF_strict, at the target's class frequencies where there is one: that is what the
    steps were fitted for.
    """
    found, taxonomy = [], target.taxonomy
    weight = None if target.target is None else target.scale(labels[rows])
    befores = [combined.together, *(stage.nested for stage in combined.stages)]
    added = judge(
        {
            stage.name: compare_systems(
                labels[rows], stage.nested.rows(rows), before.rows(rows), taxonomy,
                share_seeds=True, class_weight=weight,
            )
            for stage, before in zip(combined.stages, befores, strict=False)
        }
    )  # fmt: skip
    for stage, before in zip(combined.stages, befores, strict=False):
        here, tuned = stage.nested.classes[rows], stage.in_sample[rows]
        score = bootstrap(labels[rows], here, taxonomy, class_weight=weight)["hF_strict"]
        in_sample = target.of(labels[rows], tuned)
        found.append(
            {
                "step": stage.name,
                "learns": stage.learns,
                "nested": vars(score),
                "in_sample": in_sample,
                "optimism": in_sample - score.value,
                "n_changed": int((here != before.classes[rows]).sum()),
                "added": vars(added[stage.name]),
            }
        )
    return found


def _scores(
    predicted: IntArray, labels: IntArray, split: Split, target: Objective
) -> dict[str, Any]:
    """Pooled scores with intervals, the spread of hF over folds, and the classes."""
    rows, taxonomy = split.tested, target.taxonomy
    pooled = evaluate(labels[rows], predicted[rows], taxonomy, warn=False)
    intervals = bootstrap(labels[rows], predicted[rows], taxonomy)
    folds = [
        evaluate(labels[test], predicted[test], taxonomy, warn=False)
        for _, test in split
        if len(test)
    ]
    described: dict[str, Any] = {name: vars(interval) for name, interval in intervals.items()}
    if target.target is not None:
        scale = target.scale(labels[rows])
        at_target = bootstrap(labels[rows], predicted[rows], taxonomy, class_weight=scale)
        described["at_target"] = vars(at_target["hF_strict"])
    described["folds"] = {
        name: vars(spread(fold[name] for fold in folds)) for name in ("hF", "hF_strict", "hA")
    }
    described["never_predicted"] = list(pooled.never_predicted)
    described["per_class"] = pooled.to_dict()["per_class"]
    described["confusion"] = pooled.confusion.tolist()
    return described
