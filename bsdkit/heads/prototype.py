"""Nearest class mean: one prototype a class, the cosine to it as the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from bsdkit.heads.base import FloatArray
from bsdkit.heads.normalize import column_statistics
from bsdkit.heads.plain import PlainHead
from bsdkit.heads.registry import register
from bsdkit.stats import softmax

__all__ = ["PrototypeHead", "unit_rows"]


def unit_rows(X: FloatArray) -> npt.NDArray[np.float64]:
    """Rows scaled to length 1; a row of zeros stays one."""
    wide = np.asarray(X, np.float64)
    length = np.sqrt(np.square(wide).sum(axis=1, keepdims=True))
    return np.asarray(wide / np.where(length > 0, length, 1.0))


@register("prototype")
class PrototypeHead(PlainHead):
    """Softmax over the cosines to the class means of centred, normalised features.

    Snell et al., "Prototypical Networks for Few-shot Learning", NeurIPS 2017, on frozen
    features. The mean of all rows is taken away first: embeddings of one encoder point into
    a narrow cone, in which all cosines are alike.

    Args:
        blocks: width of each input, in the order of the concatenated features; None for one.
        normalize: ``none``, ``l2``, ``layer`` or ``standardize``, one for all inputs or one an
            input (see `bsdkit.heads.normalize`); of several inputs, ``none`` lets the one on
            the largest scale decide, the others weigh them evenly.
        temperature: what the cosines are divided by; smaller is more decided.
        random_state: unused; every fit is the same.
    """

    def __init__(
        self,
        blocks: tuple[int, ...] | None = None,
        normalize: str | Sequence[str] = "none",
        temperature: float = 0.1,
        random_state: int = 0,
    ) -> None:
        self.blocks = blocks
        self.normalize = normalize
        self.temperature = temperature
        self.random_state = random_state

    def check(self) -> None:
        """See `Head.check`."""
        super().check()
        self._require(temperature=(self.temperature > 0, "more than 0"))

    def fit(
        self, X: FloatArray, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
    ) -> Self:
        """See `Head.fit`."""
        X, positions, weight = self._check_fit_inputs(X, y, sample_weight)
        weights = np.ones(len(X)) if weight is None else weight.astype(np.float64)
        self.mean_ = np.average(X.astype(np.float64), axis=0, weights=weights)
        # the mean is taken away of every input, whether or not it is scaled
        self.scale_ = column_statistics(X, *self._inputs(), weights)[1]
        rows = unit_rows((X - self.mean_) / self.scale_) * weights[:, None]
        sums = np.zeros((len(self.classes_), X.shape[1]))
        np.add.at(sums, positions, rows)
        self.prototypes_ = unit_rows(sums)
        return self

    def predict_proba(self, X: FloatArray) -> npt.NDArray[np.float64]:
        """See `Head.predict_proba`."""
        unit = unit_rows((self._check_predict_inputs(X) - self.mean_) / self.scale_)
        # the number of threads would decide the last bits
        with threadpool_limits(limits=1, user_api="blas"):
            cosines = unit @ self.prototypes_.T
        return softmax(cosines / self.temperature)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """See `Head.state`."""
        return {"mean": self.mean_, "scale": self.scale_, "prototypes": self.prototypes_}

    def load_state(
        self, state: Mapping[str, npt.NDArray[Any]], classes: npt.NDArray[Any], n_features: int
    ) -> Self:
        """See `Head.load_state`."""
        self._restore(classes, n_features)
        self.mean_ = np.asarray(state["mean"], np.float64)
        self.scale_ = np.asarray(state["scale"], np.float32)
        self.prototypes_ = np.asarray(state["prototypes"], np.float64)
        return self
