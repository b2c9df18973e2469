"""From members to scores under one split: the ensemble, nested, and everything that is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.combine.ensemble import Ensemble, combine, fit_ensemble
from bsdkit.combine.nested import nested_probabilities
from bsdkit.dataset import Clips
from bsdkit.errors import RecipeError
from bsdkit.metrics import bootstrap, compare, evaluate, spread
from bsdkit.recipe.results import ProtocolResult
from bsdkit.recipe.schema import Recipe
from bsdkit.splits import Split, shared_groups
from bsdkit.taxonomy import Taxonomy
from bsdkit.train.member import MemberResult

__all__ = ["Combined", "class_shares", "combine_members", "score_protocol"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Combined:
    """What the members of an ensemble give together.

    Attributes:
        names: the members, without those that diverged.
        left_out: why, by member that diverged.
        ensemble: fitted on all tested clips.
        of_folds: fitted for each fold on the other folds.
        nested: probabilities [n_clips, n_classes] of each clip by its fold's ensemble.
        in_sample: the same by the ensemble that was fitted on it.
        plain_mean: of the members, all weights equal.
        is_empty: [n_clips] whether no member could see a clip.
        fallback: what such a clip gets [n_clips, n_classes].
    """

    names: tuple[str, ...]
    left_out: dict[str, list[str]]
    ensemble: Ensemble
    of_folds: tuple[Ensemble, ...]
    nested: FloatArray
    in_sample: FloatArray
    plain_mean: FloatArray
    is_empty: npt.NDArray[np.bool_]
    fallback: FloatArray


def class_shares(clips: Clips, split: Split) -> FloatArray:
    """Class shares [n_clips, n_classes] of what each clip's own fold trained on.

    They are what a clip without any feature gets.
    """
    n = len(clips.taxonomy)
    shares = np.tile(np.bincount(clips.labels, minlength=n) / len(clips), (len(clips), 1))
    for train, test in split:
        shares[test] = np.bincount(clips.labels[train], minlength=n) / len(train)
    return shares


def combine_members(
    recipe: Recipe, clips: Clips, split: Split, members: dict[str, MemberResult]
) -> Combined:
    """The ensemble of a recipe, fitted nested and on all clips.

    Raises:
        RecipeError: every member diverged, or weights cannot be learned.
    """
    labels, rows, settings = clips.labels, split.tested, recipe.ensemble
    if settings.method == "weights" and len(np.unique(split.fold[rows])) < 2:
        raise RecipeError(
            f"split {split.name!r} tests one fold only, so no other fold can teach the weights; "
            "write ensemble: {method: mean}"
        )
    left_out = {name: list(m.faults) for name, m in members.items() if m.faults}
    names = [name for name in recipe.ensemble_members if name not in left_out]
    if not names:
        name, faults = next(iter(left_out.items()))
        raise RecipeError(
            f"no member is left under split {split.name!r}: {name} diverged, {faults[0]}; "
            "lower its learning_rate"
        )
    fallback = class_shares(clips, split)
    stack = np.stack([members[name].mean for name in names])
    is_empty = np.asarray(np.isnan(stack[:, :, 0]).all(axis=0))
    stack[:, is_empty] = fallback[is_empty]

    def fit(probabilities: FloatArray, y: IntArray) -> Ensemble:
        return fit_ensemble(
            settings.method,
            probabilities,
            y,
            clips.taxonomy,
            n_trials=settings.trials,
            seed=settings.seed,
        )

    def apply(ensemble: Ensemble, probabilities: FloatArray) -> FloatArray:
        return combine(probabilities, ensemble.weights)

    ensemble = fit(stack[:, rows], labels[rows])
    nested, fitted = nested_probabilities(stack, labels, split, fit, apply)
    in_sample = np.full_like(nested, np.nan)
    in_sample[rows] = apply(ensemble, stack[:, rows])
    return Combined(
        names=tuple(names),
        left_out=left_out,
        ensemble=ensemble,
        of_folds=tuple(fitted),
        nested=nested,
        in_sample=in_sample,
        plain_mean=combine(stack, np.ones(len(stack))),
        is_empty=is_empty,
        fallback=fallback,
    )


def score_protocol(
    recipe: Recipe, clips: Clips, split: Split, members: dict[str, MemberResult]
) -> ProtocolResult:
    """Every score of a recipe under one split.

    Raises:
        RecipeError: see `combine_members`.
    """
    taxonomy, labels, rows = clips.taxonomy, clips.labels, split.tested
    combined = combine_members(recipe, clips, split, members)
    fallback, nested, in_sample = combined.fallback, combined.nested, combined.in_sample
    plain_mean = combined.plain_mean

    scored: dict[str, Any] = {}
    for name, result in members.items():
        if name in combined.left_out:
            continue
        one = combine(result.mean[None], [1.0], fallback)
        scored[name] = _scores(one, labels, split, taxonomy)
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
    nested_scores = _scores(nested, labels, split, taxonomy)
    in_sample_scores = _scores(in_sample, labels, split, taxonomy)
    baselines = {"plain mean": plain_mean, best: combine(members[best].mean[None], [1.0], fallback)}
    comparisons = {
        name: vars(compare(labels[rows], nested[rows].argmax(1), other[rows].argmax(1), taxonomy))
        for name, other in baselines.items()
        if not np.array_equal(other[rows], nested[rows])
    }
    metrics = {
        "split": split.name,
        "n_folds": split.n_folds,
        "n_tested": len(rows),
        "n_shared_uploaders": len(shared_groups(split, clips.groups)),
        "unseen": [[k, taxonomy.labels[c]] for k, c in split.unseen(labels)],
        "n_without_prediction": int(combined.is_empty[rows].sum()),
        "members": scored,
        "left_out": combined.left_out,
        "best_member": best,
        "plain_mean": _scores(plain_mean, labels, split, taxonomy),
        "ensemble": {
            "method": recipe.ensemble.method,
            "members": list(combined.names),
            "weights": list(combined.ensemble.weights),
            "weights_of_folds": [list(e.weights) for e in combined.of_folds],
            "nested": nested_scores,
            "in_sample": in_sample_scores,
            "optimism": in_sample_scores["hF_strict"]["value"]
            - nested_scores["hF_strict"]["value"],
            "against": comparisons,
        },
    }
    prior = np.bincount(labels, minlength=len(taxonomy)) / len(labels)
    return ProtocolResult(split, members, combined.ensemble, nested, in_sample, prior, metrics)


def _scores(
    probabilities: FloatArray, labels: IntArray, split: Split, taxonomy: Taxonomy
) -> dict[str, Any]:
    """Pooled scores with intervals, the spread of hF over folds, and the classes."""
    rows = split.tested
    predicted = probabilities.argmax(axis=1)
    pooled = evaluate(labels[rows], predicted[rows], taxonomy, warn=False)
    intervals = bootstrap(labels[rows], predicted[rows], taxonomy)
    folds = [
        evaluate(labels[test], predicted[test], taxonomy, warn=False)
        for _, test in split
        if len(test)
    ]
    described: dict[str, Any] = {name: vars(interval) for name, interval in intervals.items()}
    described["folds"] = {
        name: vars(spread(fold[name] for fold in folds)) for name in ("hF", "hF_strict", "hA")
    }
    described["never_predicted"] = list(pooled.never_predicted)
    described["per_class"] = pooled.to_dict()["per_class"]
    described["confusion"] = pooled.confusion.tolist()
    return described
