"""What the pages show, as plain arrays: made from a run by those who know runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.combine.reliability import Reliability
from bsdkit.leakage import NearDuplicates
from bsdkit.metrics import Comparison
from bsdkit.report.page.analysis import Ambiguity, LostCredit
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "ClipColumns",
    "ComparisonData",
    "Curves",
    "FeatureCoverage",
    "PageData",
    "Predictions",
    "Projection",
    "UploaderAudit",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Strings = npt.NDArray[np.object_]


@dataclass(frozen=True)
class ClipColumns:
    """The tested clips, in the order of the clips table.

    Attributes:
        ids: clip ids [n].
        titles: titles [n].
        tags: comma-separated tags [n].
        uploaders: who uploaded each clip [n]; empty where unknown.
        labels: true class positions [n].
        folds: the fold [n] that tests each clip.
        audio: URLs [n] of the sounds, relative to the page, or None where there is none.
    """

    ids: Strings
    titles: Strings
    tags: Strings
    uploaders: Strings
    labels: IntArray
    folds: IntArray
    audio: tuple[str | None, ...]


@dataclass(frozen=True)
class Predictions:
    """What a run says of the clips of `ClipColumns`.

    Attributes:
        name: of the run.
        decided: class positions [n], out of fold.
        probabilities: [n, n_classes], out of fold.
    """

    name: str
    decided: IntArray
    probabilities: FloatArray


@dataclass(frozen=True)
class Projection:
    """A map of the clips.

    Attributes:
        method: ``PCA`` or ``UMAP``.
        points: coordinates [n, 2]; NaN for clips without an embedding.
        explained: shares of the variance along the two axes, where the method has them.
    """

    method: str
    points: FloatArray
    explained: tuple[float, ...] = ()


@dataclass(frozen=True)
class FeatureCoverage:
    """How much of the clips a feature covers.

    Attributes:
        name: as the recipe calls it.
        spec: every fact that changes its numbers.
        spec_hash: the sha256 of the spec.
        checksum: the sha256 of its contents.
        n_missing: clips of the run without a row, failed ones included.
        n_failed: rows that failed; None where the store was not available.
        failures: number of failed rows by reason.
    """

    name: str
    spec: Mapping[str, Any]
    spec_hash: str
    checksum: str
    n_missing: int
    n_failed: int | None = None
    failures: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class UploaderAudit:
    """Uploaders with clips on both sides of some fold.

    Attributes:
        split: which folds.
        n_uploaders: known uploaders of all clips.
        n_shared: those on two sides.
        n_clips: tested clips of these.
        largest: (uploader, clips) of the largest of these.
    """

    split: str
    n_uploaders: int
    n_shared: int
    n_clips: int
    largest: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Curves:
    """How a member's models learned.

    Attributes:
        member: its name.
        losses: training loss [n_models, n_epochs]; NaN after a model stopped.
        scores: validation score of the same shape; of no epochs where nothing was put aside.
        metric: what the validation score is.
        best_epochs: the epoch [n_models] that each model was taken from, from 1.
    """

    member: str
    losses: FloatArray
    scores: FloatArray
    metric: str
    best_epochs: IntArray


@dataclass(frozen=True)
class PageData:
    """What the page of a run shows.

    Attributes:
        name: the run's.
        description: the recipe's.
        taxonomy: the classes.
        metrics: what stands in metrics.json.
        facts: what stands in run.json.
        clips: the clips that the headline split tests.
        predictions: what the run says of them.
        reliability: of the nested probabilities, in ten bins.
        lost: where credit is lost.
        ambiguity: against the annotators' confidence; None where there is none.
        features: coverage of each feature.
        fallback: ids of tested clips that no member could see.
        n_untested: clips that no fold of the headline split tests.
        uploaders: one audit a split.
        duplicates: near-duplicates across the headline's folds; None without a store.
        duplicates_in: the feature that they were looked for in.
        curves: one a torch member, of the headline split.
        mapped: features that the maps were made from.
        projections: maps; none without a store.
        notes: what could not be shown, and why.
    """

    name: str
    description: str
    taxonomy: Taxonomy
    metrics: Mapping[str, Any]
    facts: Mapping[str, Any]
    clips: ClipColumns
    predictions: Predictions
    reliability: Reliability | None
    lost: LostCredit
    ambiguity: Ambiguity | None
    features: tuple[FeatureCoverage, ...]
    fallback: tuple[str, ...]
    n_untested: int
    uploaders: tuple[UploaderAudit, ...]
    duplicates: NearDuplicates | None
    duplicates_in: str
    curves: tuple[Curves, ...]
    mapped: tuple[str, ...]
    projections: tuple[Projection, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComparisonData:
    """What the page of two runs on the same clips shows.

    Attributes:
        taxonomy: the classes.
        splits: what each run calls the folds that both have.
        clips: the clips that these test.
        a: what the first run says of them.
        b: what the second run says.
        compared: the first run minus the second, paired, by score.
        confusions: counts [n_classes, n_classes] of each run by true (row) and predicted class.
    """

    taxonomy: Taxonomy
    splits: tuple[str, str]
    clips: ClipColumns
    a: Predictions
    b: Predictions
    compared: tuple[Comparison, ...]
    confusions: tuple[IntArray, IntArray]
