"""What a head is: a scikit-learn classifier whose fitted state is a few named arrays."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["Head", "added"]

FloatArray = npt.NDArray[np.floating]


def added(default: Any, **metadata: Any) -> Any:
    """A field of a head for an option that is younger than the keys of trained members.

    At its default it is no part of a key, so that members trained before it are found again: at
    that default it must change no number and draw none.
    """
    return dataclasses.field(default=default, metadata={"added": True, **metadata})


class Head(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier from features [n, dim] to class probabilities [n, n_classes].

    The scikit-learn contract holds strictly: arguments are only stored by ``__init__``,
    fitted state ends in an underscore, ``predict_proba`` is float64 with rows that sum to 1
    and columns in the order of ``classes_``. X is cast to float32 once, at the border.
    A subclass lives in the file ``name.py`` of `bsdkit.heads` under ``@register("name")``.
    """

    name: ClassVar[str]
    """Set by `register`."""

    version: ClassVar[int] = 1
    """Of the numbers that it gives: rises with every change that moves them, so that members
    which were trained before are trained again."""

    is_stochastic: ClassVar[bool] = False
    """Whether `random_state` changes the fit, so that several seeds are worth training."""

    takes_blocks: ClassVar[bool] = False
    """Whether the head has a parameter ``blocks``: the widths of its several inputs."""

    takes_families: ClassVar[bool] = False
    """Whether the head has a parameter ``families``: the family number of each class."""

    is_torch: ClassVar[bool] = False
    """Whether it is a `bsdkit.heads.torch_head.TorchHead`: trained in stacks, with validation
    rows, teachers and extra clips."""

    uses_families: ClassVar[str] = ""
    """What it makes of the taxonomy's families, in the words of a submission; empty for nothing."""

    cost: ClassVar[float] = 1e6
    """Roughly how many operations a fit takes a row; decides whether folds run side by side."""

    def check(self) -> None:
        """Refuses parameters out of range, before anything is fitted.

        Raises:
            HeadError: the first of them, with what was expected.
        """

    @abstractmethod
    def fit(
        self, X: FloatArray, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
    ) -> Self:
        """Fits the head on features X [n, dim] and labels y [n]; returns itself."""

    @abstractmethod
    def predict_proba(self, X: FloatArray) -> npt.NDArray[np.float64]:
        """Class probabilities [n, n_classes], float64, columns in the order of `classes_`."""

    @abstractmethod
    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The fitted arrays by name, for a safetensors file; `classes_` apart."""

    @abstractmethod
    def load_state(
        self, state: Mapping[str, npt.NDArray[Any]], classes: npt.NDArray[Any], n_features: int
    ) -> Self:
        """Restores what `state` gave; returns itself, fitted."""

    def predict(self, X: FloatArray) -> npt.NDArray[Any]:
        """The most probable class [n] of each row."""
        probabilities = self.predict_proba(X)
        return np.asarray(self.classes_[probabilities.argmax(axis=1)])

    def _check_fit(
        self, X: FloatArray, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32] | None]:
        """X as float32, y as positions in `classes_`, weights as float32."""
        X, y = validate_data(self, X, y, dtype=np.float32, order="C")
        check_classification_targets(y)
        self.classes_, positions = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes; the training rows have "
                f"one class only: {self.classes_[0]!r}"
            )
        weight = None
        if sample_weight is not None:
            weight = np.asarray(sample_weight, np.float32)
            if weight.shape != (len(X),):
                raise ValueError(f"sample_weight has shape {weight.shape}, expected ({len(X)},)")
            if not (np.isfinite(weight).all() and (weight >= 0).all() and weight.any()):
                raise ValueError(
                    "sample weights must be finite and not negative, and some must be positive; "
                    f"found {float(weight.min())} to {float(weight.max())}: with all weights zero "
                    "there is nothing to fit"
                )
        return X, positions.astype(np.int64).reshape(-1), weight

    def _check_predict(self, X: FloatArray) -> npt.NDArray[np.float32]:
        """X as float32 with the number of features of the fit."""
        check_is_fitted(self, "classes_")
        return np.asarray(validate_data(self, X, dtype=np.float32, order="C", reset=False))

    def _restore(self, classes: npt.NDArray[Any], n_features: int) -> None:
        self.classes_ = np.asarray(classes)
        self.n_features_in_ = n_features
