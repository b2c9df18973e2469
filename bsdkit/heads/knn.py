"""Nearest neighbours by cosine, whose votes count the more the nearer they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from bsdkit.heads.base import FloatArray
from bsdkit.heads.normalize import column_statistics
from bsdkit.heads.plain import PlainHead
from bsdkit.heads.prototype import unit_rows
from bsdkit.heads.registry import register

__all__ = ["KNNHead"]

_BLOCK_ROWS = 1024


@register("knn")
class KNNHead(PlainHead):
    """Votes of the k nearest training rows, each weighing exp(cosine / temperature).

    The weighted vote of Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", CVPR 2018, section 3.4, which self-supervised encoders are compared by.
    Features are centred on the mean of the training rows and scaled to length 1. Its fitted
    state is those rows, so a run with it is as large as its features.

    Args:
        blocks: width of each input, in the order of the concatenated features; None for one.
        normalize: ``none``, ``l2``, ``layer`` or ``standardize``, one for all inputs or one an
            input (see `bsdkit.heads.normalize`); of several inputs, ``none`` lets the one on
            the largest scale decide, the others weigh them evenly.
        k: neighbours that vote.
        temperature: what the cosines are divided by.
        smoothing: votes that every class has from the start, shared evenly; no class is
            impossible.
        random_state: unused; every fit is the same.
    """

    def __init__(
        self,
        blocks: tuple[int, ...] | None = None,
        normalize: str | Sequence[str] = "none",
        k: int = 20,
        temperature: float = 0.1,
        smoothing: float = 0.1,
        random_state: int = 0,
    ) -> None:
        self.blocks = blocks
        self.normalize = normalize
        self.k = k
        self.temperature = temperature
        self.smoothing = smoothing
        self.random_state = random_state

    def check(self) -> None:
        """See `Head.check`."""
        super().check()
        self._require(
            k=(self.k >= 1, "1 or more"),
            temperature=(self.temperature > 0, "more than 0"),
            smoothing=(self.smoothing >= 0, "0 or more"),
        )

    def fit(
        self, X: FloatArray, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
    ) -> Self:
        """See `Head.fit`; rows of weight zero are no neighbours."""
        X, positions, weight = self._check_fit_inputs(X, y, sample_weight)
        weights = np.ones(len(X)) if weight is None else weight.astype(np.float64)
        self.mean_ = np.average(X.astype(np.float64), axis=0, weights=weights)
        # the mean is taken away of every input, whether or not it is scaled
        self.scale_ = column_statistics(X, *self._inputs(), weights)[1]
        is_there = weights > 0
        self.rows_ = unit_rows((X[is_there] - self.mean_) / self.scale_).astype(np.float32)
        self.positions_ = positions[is_there]
        self.weights_ = weights[is_there]
        return self

    def predict_proba(self, X: FloatArray) -> npt.NDArray[np.float64]:
        """See `Head.predict_proba`."""
        X = self._check_predict_inputs(X)
        unit = unit_rows((X - self.mean_) / self.scale_)
        rows = self.rows_.astype(np.float64)  # so that processors agree on who is near
        n_classes, k = len(self.classes_), min(self.k, len(self.rows_))
        votes = np.full((len(unit), n_classes), self.smoothing / n_classes)
        for start in range(0, len(unit), _BLOCK_ROWS):  # bounds the memory of the cosines
            with threadpool_limits(limits=1, user_api="blas"):  # their number decides last bits
                cosines = unit[start : start + _BLOCK_ROWS] @ rows.T
            # a stable order: of rows that are equally near the first ones vote
            nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
            near = np.take_along_axis(cosines, nearest, axis=1)
            strength = np.exp((near - near[:, :1]) / self.temperature)
            strength *= self.weights_[nearest]
            block = votes[start : start + _BLOCK_ROWS]
            np.add.at(block, (np.arange(len(block))[:, None], self.positions_[nearest]), strength)
        return np.asarray(votes / votes.sum(axis=1, keepdims=True))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """See `Head.state`."""
        return {
            "mean": self.mean_,
            "scale": self.scale_,
            "rows": self.rows_,
            "positions": self.positions_,
            "weights": self.weights_,
        }

    def load_state(
        self, state: Mapping[str, npt.NDArray[Any]], classes: npt.NDArray[Any], n_features: int
    ) -> Self:
        """See `Head.load_state`."""
        self._restore(classes, n_features)
        self.mean_, self.scale_ = np.asarray(state["mean"]), np.asarray(state["scale"])
        self.rows_ = np.asarray(state["rows"])
        self.positions_, self.weights_ = np.asarray(state["positions"]), state["weights"]
        return self
