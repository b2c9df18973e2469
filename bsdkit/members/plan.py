"""What a recipe says of one member, and what its training looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.heads.registry import get_head_class
from bsdkit.heads.torch_head import TorchHead
from bsdkit.splits import Split
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "IMPORTED",
    "Distillation",
    "ExtraClips",
    "ExtraPlan",
    "Features",
    "Inputs",
    "MemberPlan",
    "Task",
]

IntArray = npt.NDArray[np.int64]

IMPORTED = "imported"
"""What stands for the head of a member that was trained elsewhere."""

Features = tuple[str, ...]
"""Names of the features that a member takes, in order."""


@dataclass(frozen=True)
class Distillation:
    """Targets of the development clips that teachers provide.

    A clip's loss is cross-entropy with its label, plus `soft` times cross-entropy with the
    teachers' probabilities, plus `hard` times cross-entropy with their most probable class:
    the clean term dominates while soft + hard < 1.

    Attributes:
        teachers: members of the recipe.
        soft: weight of the soft term.
        hard: weight of the hard term.
        temperature: what the mean log-probabilities are divided by before the softmax.
    """

    teachers: tuple[str, ...]
    soft: float = 0.5
    hard: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class ExtraPlan:
    """How a member uses clips of another store, whose labels are of another quality.

    Attributes:
        store: where they are.
        labels: ``given``: the store's own; ``agreement``: the class that at least `at_least`
            teachers name, clips without one left out; ``soft``: the softmax of the teachers'
            mean log-probabilities, mixed with the given label.
        teachers: members of the recipe; none for ``given``.
        weight: of a clip in the loss, where a development clip has 1.
        at_least: see `labels`.
        temperature: see `Distillation`.
        share: the teachers' share of a ``soft`` target; two numbers to draw it between them
            for each seed.
        subset: ``all``; ``random``; ``confident``: those of which the teachers are surest.
        fraction: how many of them to use.
        stage: ``together`` with the development clips; ``before`` them: pretraining on the
            extra clips alone, then fine-tuning on the development clips.
        constant_steps: whether fewer clips are repeated, so that an epoch has as many steps as
            with all of them.
        pretrain: settings of the head that differ in the stage ``before``.
    """

    store: str
    labels: str = "given"
    teachers: tuple[str, ...] = ()
    weight: float = 1.0
    at_least: int = 2
    temperature: float = 1.0
    share: tuple[float, float] = (1.0, 1.0)
    subset: str = "all"
    fraction: float = 1.0
    stage: str = "together"
    constant_steps: bool = True
    pretrain: Mapping[str, Any] = field(default_factory=dict)


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
        extra: clips of another store, if any.
        probabilities: members whose class probabilities are inputs too, after the features.
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
    extra: ExtraPlan | None = None
    probabilities: tuple[str, ...] = ()

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
        return not self.is_imported and issubclass(get_head_class(self.head), TorchHead)

    @property
    def uses_validation(self) -> bool:
        """Whether rows are put aside to choose an epoch."""
        return self.validation > 0 and self.is_torch

    @property
    def teachers(self) -> tuple[str, ...]:
        """Members that must be trained before it."""
        distilled = self.distillation.teachers if self.distillation else ()
        of_extra = self.extra.teachers if self.extra else ()
        return tuple(dict.fromkeys((*distilled, *of_extra, *self.probabilities)))


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
        uploader: [n], empty where unknown.
        is_copy: [n] whether a development clip has the same id or sound; those are not used.
    """

    inputs: Inputs
    labels: IntArray
    uploader: npt.NDArray[np.object_]
    is_copy: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Task:
    """What all members of a recipe are trained for under one split.

    Attributes:
        labels: class positions [n_clips].
        taxonomy: the classes.
        split: the folds.
        groups: group numbers [n_clips] that inner validation keeps apart too, or None.
        uploader: [n_clips] names of those groups, which extra clips must not share with a
            fold's test clips; None with `groups`.
        confidence: annotation confidence [n_clips], NaN where unknown; None where there is none.
        device: where torch heads train.
        n_jobs: processes that may train side by side.
    """

    labels: IntArray
    taxonomy: Taxonomy
    split: Split
    groups: IntArray | None = None
    uploader: npt.NDArray[np.object_] | None = None
    confidence: npt.NDArray[np.float32] | None = None
    device: str = "cpu"
    n_jobs: int = 1
