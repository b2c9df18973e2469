"""A class prior as a classifier of its own: calibrated, and corrected where it errs by habit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

from bsdkit.errors import HeadError
from bsdkit.heads.base import FloatArray
from bsdkit.heads.plain import PlainHead
from bsdkit.heads.registry import register
from bsdkit.stats import softmax

__all__ = ["PriorHead"]


@register("prior")
class PriorHead(PlainHead):
    """Class probabilities from class priors q, by as little change to them as the clips ask for.

    The logits are a log q + W log q + b: one slope a for each prior, a matrix W that moves
    probability between classes, a bias b for each class. W is drawn to 0 by `penalty`; where
    that is None, W is 0 and what is left is temperature scaling (Guo et al., "On Calibration of
    Modern Neural Networks", ICML 2017, section 4.2) with a bias. With W it is Dirichlet
    calibration (Kull et al., "Beyond temperature scaling", NeurIPS 2019, section 3), drawn to
    the identity as a whole instead of by its off-diagonal entries.

    A row of zeros, the mark of a clip without a prior, has log q = 0 and so the bias alone, which
    is close to the class shares. Probabilities below `floor` count as `floor`.

    Args:
        blocks: width of each prior; None for one. Each has one column a class, in the order of
            the taxonomy's classes.
        families: family number of each class of the taxonomy; only their number counts. None
            where the columns are those of the classes in the labels, if there are as many.
        floor: see above.
        penalty: strength of the L2 penalty on W, in clips; None for no W.
        random_state: unused; every fit is the same.
    """

    takes_families: ClassVar[bool] = True

    normalize: str = "none"

    def __init__(
        self,
        blocks: tuple[int, ...] | None = None,
        families: tuple[int, ...] | None = None,
        floor: float = 1e-3,
        penalty: float | None = 30.0,
        random_state: int = 0,
    ) -> None:
        self.blocks = blocks
        self.families = families
        self.floor = floor
        self.penalty = penalty
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.positive_only = True
        return tags

    def check(self) -> None:
        """See `Head.check`."""
        self._require(
            floor=(0 < self.floor < 1, "more than 0 and below 1"),
            penalty=(self.penalty is None or self.penalty > 0, "more than 0, or null"),
        )

    def fit(
        self, X: FloatArray, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
    ) -> Self:
        """See `Head.fit`.

        Raises:
            HeadError: an input has another number of columns than there are classes.
        """
        X, positions, weight = self._check_fit_inputs(X, y, sample_weight)
        n, n_classes = len(X), len(self.classes_)
        weights = np.ones(n) if weight is None else weight.astype(np.float64)
        strength = (self.penalty or 0.0) / weights.sum()
        weights = weights / weights.sum()
        columns = self._own_columns()
        logs = self._logs(X)
        own = [logs[:, places] for places in columns]
        truth = np.zeros((n, n_classes))
        truth[np.arange(n), positions] = 1
        shares = np.maximum(weights @ truth, 1e-12)
        n_slopes = len(own)
        n_free = 0 if self.penalty is None else n_classes * logs.shape[1]

        def unpack(
            theta: npt.NDArray[np.float64],
        ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
            slopes, bias = theta[:n_slopes], theta[n_slopes : n_slopes + n_classes]
            free = theta[n_slopes + n_classes :]
            W = free.reshape(n_classes, -1) if n_free else np.zeros((n_classes, logs.shape[1]))
            return slopes, bias, W

        def loss(theta: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
            slopes, bias, W = unpack(theta)
            scores = logs @ W.T + bias
            for slope, prior in zip(slopes, own, strict=True):
                scores += slope * prior
            top = scores.max(axis=1, keepdims=True)
            powers = np.exp(scores - top)
            sums = powers.sum(axis=1, keepdims=True)
            told = (scores - top - np.log(sums))[np.arange(n), positions]
            error = (powers / sums - truth) * weights[:, None]
            gradient = [
                np.array([float((error * prior).sum()) for prior in own]),
                error.sum(axis=0),
            ]
            value = -float(weights @ told)
            if n_free:
                gradient.append((error.T @ logs + strength * W).reshape(-1))
                value += 0.5 * strength * float((W * W).sum())
            return value, np.concatenate(gradient)

        start = np.concatenate([np.ones(n_slopes), np.log(shares), np.zeros(n_free)])
        with threadpool_limits(limits=1, user_api="blas"):  # as in LinearHead
            found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
        self.n_iter_ = int(found.nit)
        slopes, bias, W = unpack(np.asarray(found.x, np.float64))
        self.coef_ = np.ascontiguousarray(W)
        for slope, places in zip(slopes, columns, strict=True):
            self.coef_[np.arange(n_classes), places] += slope
        self.intercept_ = bias
        return self

    def _logs(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Centred logarithms of each prior [n, dim]; 0 where a clip has no prior."""
        if len(X) and X.min() < 0:
            # scikit-learn's words, which its checks look for
            raise HeadError(
                "Negative values in data passed to X: head 'prior' takes class probabilities, "
                "such as bsdkit priors writes"
            )
        q = X.astype(np.float64)
        parts = []
        start = 0
        for width in self._inputs()[0]:
            part = np.log(np.maximum(q[:, start : start + width], self.floor))
            parts.append(part - part.mean(axis=1, keepdims=True))
            start += width
        return np.concatenate(parts, axis=1)

    def _own_columns(self) -> list[npt.NDArray[np.int64]]:
        """For each prior, where the columns [n_classes] of the classes in the labels stand."""
        found = []
        start = 0
        for i, width in enumerate(self._inputs()[0]):
            if self.families is not None and width != len(self.families):
                raise HeadError(
                    f"input {i + 1} of head 'prior' has {width} columns, expected one for each of "
                    f"the {len(self.families)} classes: give it a feature that bsdkit priors made"
                )
            if self.families is not None:
                found.append(start + np.asarray(self.classes_, np.int64))
            elif width == len(self.classes_):
                found.append(start + np.arange(width))
            start += width
        return found

    def predict_proba(self, X: FloatArray) -> npt.NDArray[np.float64]:
        """See `Head.predict_proba`."""
        logs = self._logs(self._check_predict_inputs(X))
        with threadpool_limits(limits=1, user_api="blas"):
            scores = logs @ self.coef_.T + self.intercept_
        return softmax(scores)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """See `Head.state`."""
        return {"coef": self.coef_, "intercept": self.intercept_}

    def load_state(
        self, state: Mapping[str, npt.NDArray[Any]], classes: npt.NDArray[Any], n_features: int
    ) -> Self:
        """See `Head.load_state`."""
        self._restore(classes, n_features)
        self.coef_, self.intercept_ = np.asarray(state["coef"]), np.asarray(state["intercept"])
        return self
