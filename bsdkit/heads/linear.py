"""Logistic regression on standardised features: the head that any other must beat."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from bsdkit.heads.base import FloatArray
from bsdkit.heads.class_weights import check_kind, weigh_rows
from bsdkit.heads.plain import PlainHead
from bsdkit.heads.registry import register
from bsdkit.stats import softmax

__all__ = ["LinearHead"]


@register("linear")
class LinearHead(PlainHead):
    """Multinomial logistic regression (scikit-learn's, L-BFGS), features standardised.

    Args:
        blocks: width of each input, in the order of the concatenated features; None for one.
        normalize: ``standardize``, ``layer``, ``l2`` or ``none``, one for all inputs or one
            an input (see `bsdkit.heads.normalize`).
        C: inverse strength of the L2 penalty on the weights.
        max_iter: iterations of L-BFGS at the most.
        tol: gradient at which L-BFGS stops.
        class_weight: None, ``balanced``, ``inverse_sqrt`` or ``effective`` (see
            `bsdkit.heads.class_weights`), or weights by label.
        random_state: unused; every fit is the same.
    """

    cost: ClassVar[float] = 1e7

    def __init__(
        self,
        blocks: tuple[int, ...] | None = None,
        normalize: str | Sequence[str] = "standardize",
        C: float = 0.02,
        max_iter: int = 300,
        tol: float = 1e-4,
        class_weight: str | Mapping[Any, float] | None = None,
        random_state: int = 0,
    ) -> None:
        self.blocks = blocks
        self.normalize = normalize
        self.C = C
        self.max_iter = max_iter
        self.tol = tol
        self.class_weight = class_weight
        self.random_state = random_state

    def check(self) -> None:
        """See `Head.check`."""
        super().check()
        self._require(
            C=(self.C > 0, "more than 0"),
            max_iter=(self.max_iter >= 1, "1 or more"),
            tol=(self.tol >= 0, "0 or more"),
        )
        if isinstance(self.class_weight, str):
            check_kind(self.class_weight)

    def fit(
        self, X: FloatArray, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
    ) -> Self:
        """See `Head.fit`."""
        X, positions, weight = self._check_fit_inputs(X, y, sample_weight)
        wide = X.astype(np.float64)
        mean, scale = self._standardization(wide, weight)
        model = LogisticRegression(C=self.C, max_iter=self.max_iter, tol=self.tol)
        weights = weigh_rows(self.class_weight, self.classes_, positions, weight)
        # The products are small: BLAS threads would spin longer than they compute (measured
        # ten times slower on two cores).
        with warnings.catch_warnings(), threadpool_limits(limits=1, user_api="blas"):
            # a loose optimum of a strongly penalised convex problem is good enough
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit((wide - mean) / scale, positions, sample_weight=weights)
        self.n_iter_ = int(np.max(model.n_iter_))
        coef = np.asarray(model.coef_, np.float64)
        intercept = np.asarray(model.intercept_, np.float64)
        if len(self.classes_) == 2:  # scikit-learn keeps one row for two classes
            coef = np.concatenate([-coef / 2, coef / 2])
            intercept = np.concatenate([-intercept / 2, intercept / 2])
        # C order, which files keep: the order decides the last bit of the products
        self.coef_ = np.ascontiguousarray(coef / scale)
        self.intercept_ = intercept - self.coef_ @ mean
        return self

    def _standardization(
        self, X: npt.NDArray[np.float64], sample_weight: npt.NDArray[np.float32] | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Mean and scale [dim] of the inputs to standardise; 0 and 1 elsewhere.

        In float64, which `column_statistics` does not keep: both are folded into coefficients.
        """
        widths, kinds = self._inputs()
        columns = np.repeat(np.array(kinds) == "standardize", widths)
        mean, scale = np.zeros(X.shape[1]), np.ones(X.shape[1])
        if columns.any():
            scaler = StandardScaler().fit(X[:, columns], sample_weight=sample_weight)
            mean[columns], scale[columns] = scaler.mean_, scaler.scale_
        return mean, scale

    def predict_proba(self, X: FloatArray) -> npt.NDArray[np.float64]:
        """See `Head.predict_proba`."""
        X = self._check_predict_inputs(X)
        with threadpool_limits(limits=1, user_api="blas"):
            scores = X.astype(np.float64) @ self.coef_.T + self.intercept_
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
