"""From members to scores under one split: the chain, nested, and everything that is reported."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Mapping
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
from bsdkit.metrics import bootstrap, compare, evaluate, spread
from bsdkit.recipe.schema import Recipe
from bsdkit.runs.results import ProtocolResult, ids_digest
from bsdkit.splits import Split
from bsdkit.store.clips import read_clips
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "Combined",
    "chain_steps",
    "class_shares",
    "combine_members",
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
        nested: class positions [n_clips], each clip by its fold's chain.
        in_sample: the same by the chain that was fitted on all clips.
        learns: whether it, or a step before it, was fitted to labels.
    """

    name: str
    nested: IntArray
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
    stages: tuple[Stage, ...]
    is_empty: npt.NDArray[np.bool_]
    fallback: FloatArray

    @property
    def decided(self) -> IntArray:
        """The classes [n_clips] that count: nested, decoded as the recipe says."""
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

    stages, learns = [], False
    for step, ours, tuned in zip(steps, chains.stages, chains.in_sample, strict=True):
        learns = learns or step.learns
        best, best_tuned = filled(ours).argmax(axis=1), filled(tuned).argmax(axis=1)
        stages.append(Stage(step.name, best, best_tuned, learns))
    nested_last, in_sample_last = filled(chains.stages[-1]), filled(chains.in_sample[-1])
    if recipe.decode != "argmax":
        stages.append(
            Stage(
                f"decode {recipe.decode}",
                decode(nested_last, recipe.decode, taxonomy),
                decode(in_sample_last, recipe.decode, taxonomy),
                learns,
            )
        )
    return Combined(
        names=names,
        left_out=left_out,
        chains=chains,
        nested=nested_last,
        in_sample=in_sample_last,
        plain_mean=combine(evidence.members, np.ones(len(names)), fallback),
        stages=tuple(stages),
        is_empty=is_empty,
        fallback=fallback,
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
    best = max(scored, key=lambda name: scored[name]["hF_strict"]["value"])
    plain = combined.plain_mean.argmax(axis=1)
    decided, tuned = combined.decided, combined.stages[-1].in_sample
    nested_scores, in_sample_scores = scores(decided), scores(tuned)
    best_alone = combine(members[best].mean[None], [1.0], fallback).argmax(axis=1)
    weight = None if target.target is None else target.scale(labels[rows])
    comparisons = {
        name: vars(compare(labels[rows], decided[rows], other[rows], taxonomy, class_weight=weight))
        for name, other in {"plain mean": plain, best: best_alone}.items()
        if not np.array_equal(other[rows], decided[rows])
    }
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
        "plain_mean": scores(plain),
        "steps": _steps(combined, plain, labels, rows, target),
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
            - target.of(labels[rows], decided[rows]),
            "against": comparisons,
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
    combined: Combined, plain: IntArray, labels: IntArray, rows: IntArray, target: Objective
) -> list[dict[str, Any]]:
    """What each step adds to the one before it, the plain mean first; nested, paired.

    All of it is hF_strict, at the target's class frequencies where there is one: that is what the
    steps were fitted for.
    """
    found, before, taxonomy = [], plain, target.taxonomy
    weight = None if target.target is None else target.scale(labels[rows])
    for stage in combined.stages:
        here, tuned = stage.nested[rows], stage.in_sample[rows]
        score = bootstrap(labels[rows], here, taxonomy, class_weight=weight)["hF_strict"]
        in_sample = target.of(labels[rows], tuned)
        found.append(
            {
                "step": stage.name,
                "learns": stage.learns,
                "nested": vars(score),
                "in_sample": in_sample,
                "optimism": in_sample - score.value,
                "n_changed": int((here != before[rows]).sum()),
                "added": vars(
                    compare(labels[rows], here, before[rows], taxonomy, class_weight=weight)
                ),
            }
        )
        before = stage.nested
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
