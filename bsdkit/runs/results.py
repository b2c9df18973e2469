"""What a recipe gives under one split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.combine.chain import Nested
from bsdkit.members.member import MemberResult
from bsdkit.splits import Split
from bsdkit.verdicts import System

__all__ = ["OutOfFold", "ProtocolResult", "ids_digest"]

FloatArray = npt.NDArray[np.float64]


def ids_digest(ids: Iterable[str]) -> str:
    """A hash of clip ids, in whatever order: what weights were fitted on."""
    return hashlib.sha256("\n".join(sorted(map(str, ids))).encode()).hexdigest()


@dataclass(frozen=True)
class ProtocolResult:
    """What a recipe gives under one split.

    Attributes:
        split: the folds.
        members: results by member name.
        names: the members of the ensemble, in the order of its weights.
        chains: the steps after the members, fitted on all clips and for each fold on the others.
        nested: probabilities [n_clips, n_classes], each clip by its fold's chain.
        decided: the classes, decoded as the recipe says, and those of each training seed.
        is_empty: [n_clips] whether a clip has its fold's class shares, because no member
            could see it.
        prior: class shares [n_classes]; what a clip without any feature gets.
        priors: the same by fold, of what it trained on.
        metrics: every score, as it stands in metrics.json.
    """

    split: Split
    members: dict[str, MemberResult]
    names: tuple[str, ...]
    chains: Nested
    nested: FloatArray
    decided: System
    is_empty: npt.NDArray[np.bool_]
    prior: FloatArray
    priors: tuple[FloatArray, ...]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class OutOfFold:
    """What a finished run says of its own clips under one split, by models that did not see them.

    Attributes:
        split: the folds.
        probabilities: of the nested ensemble [n_clips, n_classes].
        decided: class positions [n_clips], decoded as the recipe says.
        seeds: those by the models of each training seed alone [n_seeds, n_clips]; None if nothing
            in the members is random. A run of an earlier version has one row.
        is_fallback: [n_clips] whether a clip has its fold's class shares, because no member
            could see it.
    """

    split: Split
    probabilities: FloatArray
    decided: npt.NDArray[np.int64]
    seeds: npt.NDArray[np.int64] | None
    is_fallback: npt.NDArray[np.bool_]

    @property
    def tested(self) -> System:
        """The classes of the clips that a fold tests, in their order, and by seed."""
        return System(self.decided, self.seeds).rows(self.split.tested)

    @property
    def seen(self) -> FloatArray:
        """Probabilities [n_clips, n_classes]; NaN in the rows of the fallback."""
        return np.where(self.is_fallback[:, None], np.nan, self.probabilities)
