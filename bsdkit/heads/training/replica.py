"""What goes into a stack and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Replica", "TrainedReplica", "TrainingData"]

IntArray = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TrainingData:
    """The rows that all replicas of a stack draw from, in memory once.

    A replica names a *view* of them: its weights and soft targets may differ from those of
    another fold, so that what a teacher says of a clip never comes from one that saw it.

    Attributes:
        X: features [n, dim], normalised row by row where the head wants that.
        y: class positions [n].
        n_classes: outputs of the network.
        weight: weights [n_views, n] in the loss; None for ones.
        soft: class probabilities [n_views, n, n_classes] of soft targets; None for none.
        soft_share: [n_views, n] the soft target's share of the target; 0 where there is none.
    """

    X: Float32Array
    y: IntArray
    n_classes: int
    weight: Float32Array | None = None
    soft: Float32Array | None = None
    soft_share: Float32Array | None = None


@dataclass(frozen=True)
class Replica:
    """One network of a stack.

    Attributes:
        fit_rows: rows that it trains on.
        validation_rows: rows on which its best epoch is chosen; empty to keep the last.
        seed: of its initial weights, batches, dropout and augmentation.
        head: which of the stack's heads it is; they may differ in what stacks allow.
        view: which view of the data it trains on.
        initial: parameters and buffers to start from, instead of fresh ones.
        n_steps: steps in an epoch; fewer rows are then gone through several times, more of
            them in part. None to see each row once.
    """

    fit_rows: IntArray
    validation_rows: IntArray
    seed: int
    head: int = 0
    view: int = 0
    initial: Mapping[str, torch.Tensor] | None = None
    n_steps: int | None = None


@dataclass(frozen=True)
class TrainedReplica:
    """A trained network.

    Attributes:
        state: its parameters and buffers by name.
        best_epoch: the epoch kept, from 1.
        losses: mean training loss [epochs].
        validation_scores: score [epochs] on the validation rows; empty without any.
        fault: why it is not to be used; empty if it is.
    """

    state: dict[str, torch.Tensor]
    best_epoch: int
    losses: tuple[float, ...]
    validation_scores: tuple[float, ...] = field(default=())
    fault: str = ""
