"""What a recipe says of one member, and what its training looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.dataset import Clips
from bsdkit.heads.registry import get_head_class
from bsdkit.recipe.teaching import IMPORTED, Distillation, ExtraPlan
from bsdkit.splits import Split
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "ExtraClips",
    "ExtraKey",
    "Features",
    "Inputs",
    "MemberPlan",
    "Task",
]

IntArray = npt.NDArray[np.int64]

Features = tuple[str, ...]
"""Names of the features that a member takes, in order."""

ExtraKey = tuple[str, str | None, Features]
"""Which extra clips: their store, the map of its labels if any, and features."""


@dataclass(frozen=True)
class MemberPlan:
    """What a recipe says of one member.

    Attributes:
        name: what the recipe calls it.
        head: name of the head, or IMPORTED.
        settings: parameters of the head that differ from its defaults.
        features: names of its inputs, concatenated in this order.
        seeds: one model a fold for each; a head without randomness takes the first.
        validation: share of a fold's training rows on which the best epoch is chosen; 0 to
            train on all of them and keep the last epoch.
        confidence: how annotation confidence c (1 to 5) weighs a training clip: ``none``;
            ``linear``, c / 5; ``shifted``, (c - 1) / 4; ``binary``, 1 from 3 on, else 0.3.
        min_confidence: training clips of less are left out; clips that are scored never are.
        distillation: teachers of the development clips, if any.
        extra: clips of other stores.
        probabilities: members whose class probabilities are inputs too, after the features.
        logit_adjustment: tau of `bsdkit.members.weights.adjusted`; 0 for none.
    """

    name: str
    head: str
    settings: Mapping[str, Any]
    features: tuple[str, ...]
    seeds: tuple[int, ...]
    validation: float
    confidence: str = "none"
    min_confidence: float = 0.0
    distillation: Distillation | None = None
    extra: tuple[ExtraPlan, ...] = ()
    probabilities: tuple[str, ...] = ()
    logit_adjustment: float = 0.0

    @property
    def is_imported(self) -> bool:
        """Whether its one feature is somebody else's out-of-fold probabilities."""
        return self.head == IMPORTED

    @property
    def used_seeds(self) -> tuple[int, ...]:
        """The seeds that make a difference to this head."""
        if self.is_imported:
            return self.seeds[:1]
        return self.seeds if get_head_class(self.head).is_stochastic else self.seeds[:1]

    @property
    def is_torch(self) -> bool:
        """Whether its head is trained in stacks."""
        return not self.is_imported and get_head_class(self.head).is_torch

    @property
    def uses_validation(self) -> bool:
        """Whether rows are put aside to choose an epoch."""
        return self.validation > 0 and self.is_torch

    @property
    def teachers(self) -> tuple[str, ...]:
        """Members that must be trained before it."""
        distilled = self.distillation.teachers if self.distillation else ()
        of_extra = (name for plan in self.extra for name in plan.teachers)
        return tuple(dict.fromkeys((*distilled, *of_extra, *self.probabilities)))

    def extra_key(self, extra: ExtraPlan) -> ExtraKey:
        """Which extra clips a plan names, with this member's features."""
        return extra.store, extra.labels_map, self.features


@dataclass(frozen=True)
class Inputs:
    """A member's features of all clips of a table.

    Attributes:
        X: [n_clips, dim], concatenated.
        blocks: width of each feature; they add up to dim.
        is_present: [n_clips] whether a clip has all of them; the others are neither trained on
            nor predicted.
    """

    X: npt.NDArray[np.float32]
    blocks: tuple[int, ...]
    is_present: npt.NDArray[np.bool_]

    def with_probabilities(self, said: npt.NDArray[np.float64]) -> Inputs:
        """The inputs with class probabilities [n_members, n_clips, n_classes] behind them.

        Clips for which a member has none (NaN) are not present.
        """
        columns = np.concatenate(list(said), axis=1).astype(np.float32)
        is_known = ~np.isnan(columns).any(axis=1)
        return Inputs(
            np.concatenate([self.X, np.nan_to_num(columns)], axis=1),
            (*self.blocks, *(said.shape[2],) * len(said)),
            self.is_present & is_known,
        )


@dataclass(frozen=True)
class ExtraClips:
    """Clips of another store that members may train on beside the development clips.

    Attributes:
        inputs: their features.
        labels: class positions [n], -1 where unknown.
        table: their metadata, of which clips of a group that a fold tests are known.
        is_copy: [n] whether a development clip has the same id or sound; those are not used.
    """

    inputs: Inputs
    labels: IntArray
    table: Clips
    is_copy: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Task:
    """What all members of a recipe are trained for under one split.

    Attributes:
        labels: class positions [n_clips].
        taxonomy: the classes.
        split: the folds.
        confidence: annotation confidence [n_clips], NaN where unknown; None where there is none.
        device: where torch heads train.
        n_jobs: processes that may train side by side.
    """

    labels: IntArray
    taxonomy: Taxonomy
    split: Split
    confidence: npt.NDArray[np.float32] | None = None
    device: str = "cpu"
    n_jobs: int = 1

    @property
    def groups(self) -> IntArray | None:
        """Group numbers [n_clips] that inner validation keeps apart too, or None."""
        return None if self.split.grouping is None else self.split.grouping.numbers
