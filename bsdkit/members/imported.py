"""Members that were trained elsewhere: their probabilities, and whether they may be used here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
import numpy.typing as npt

from bsdkit.errors import RecipeError
from bsdkit.members.member import MemberResult
from bsdkit.members.plan import Inputs
from bsdkit.splits import Split
from bsdkit.store.feature import FeatureInfo
from bsdkit.store.imports import read_folds
from bsdkit.store.kinds import kind_of
from bsdkit.store.store import Features
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "check_classes",
    "check_folds",
    "check_imported",
    "folds_of",
    "imported_member",
    "imported_probabilities",
    "similarity_of",
]


def check_folds(info: FeatureInfo, ids: Iterable[str], split: Split) -> None:
    """Refuses imported probabilities whose own folds are known and cross the split's.

    A model of theirs that met clips of one of our folds would bring these clips' labels into the
    probabilities of that fold's other clips. Features that are nobody's probabilities pass.

    Raises:
        RecipeError: see above.
    """
    theirs = folds_of(info)
    if theirs is None:
        return
    seen = [str(c) for c, k in zip(ids, split.fold, strict=True) if k >= 0 and theirs.get(c, 0) < 0]
    if seen:
        raise RecipeError(
            f"{info.feature} has fold -1 for {len(seen)} clips that are tested, e.g. {seen[0]}: "
            "its models were trained on them, so what they say of them is worth nothing here"
        )
    pairs = {
        (theirs[clip], int(k))
        for clip, k in zip(ids, split.fold, strict=True)
        if clip in theirs and k >= 0
    }
    if len(pairs) > len({k for _, k in pairs}):
        raise RecipeError(
            f"{info.feature} was made on other folds than the {split.name} ones: its models met "
            "clips that these folds test together; write the split that it was made on, such as "
            "split: file with its folds"
        )


def folds_of(info: FeatureInfo) -> dict[str, int] | None:
    """The fold of each clip under which imported probabilities were made; None if unknown."""
    return read_folds(info.path) if kind_of(info.spec).is_trained_elsewhere else None


def check_imported(info: FeatureInfo) -> None:
    """Refuses a feature that holds no class probabilities.

    Raises:
        RecipeError: see above.
    """
    if not kind_of(info.spec).is_probabilities:
        raise RecipeError(
            f"{info.feature} holds embeddings, not class probabilities; give the member a head and "
            f"features: {info.feature}, or bring probabilities in with bsdkit import"
        )


def check_classes(info: FeatureInfo, taxonomy: Taxonomy) -> None:
    """Refuses class probabilities of other classes, or in another order; others pass.

    Raises:
        RecipeError: see above.
    """
    if "classes" not in info.spec:
        return
    found = list(map(str, cast(list[object], info.spec["classes"])))
    if found != list(taxonomy.labels):
        again = kind_of(info.spec).again
        raise RecipeError(
            f"{info.feature} has the classes {', '.join(found[:3])}, ... ({len(found)}), the store "
            f"{', '.join(taxonomy.labels[:3])}, ... ({len(taxonomy)}); {again} again"
        )


def imported_probabilities(inputs: Inputs) -> npt.NDArray[np.float64]:
    """Probabilities [n_clips, n_classes] that were imported; NaN in rows without any."""
    p = inputs.X.astype(np.float64)
    p = p / np.maximum(p.sum(axis=1, keepdims=True), 1e-12)
    return np.asarray(np.where(inputs.is_present[:, None], p, np.nan))


def imported_member(inputs: Inputs, split: Split) -> MemberResult:
    """A member of a single seed and without models, made of imported probabilities."""
    p = imported_probabilities(inputs)
    p[split.fold < 0] = np.nan
    return MemberResult(p[None], ())


def similarity_of(feature: str, features: Features, n_classes: int) -> npt.NDArray[np.float64]:
    """A feature with a column a class, NaN in missing rows; see `MemberTrainer.similarity`."""
    values = features.arrays[feature]
    if values.shape[1] != n_classes:
        raise RecipeError(
            f"rerank.similarity: {feature} has {values.shape[1]} columns, expected one for each of "
            f"the {n_classes} classes"
        )
    is_missing = features.is_missing[:, list(features.arrays).index(feature)]
    return np.where(is_missing[:, None], np.nan, values.astype(np.float64))
