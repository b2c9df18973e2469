"""TabPFN: a transformer, trained on made-up tables, that reads the training rows as context."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from bsdkit.errors import HeadError
from bsdkit.heads.base import FloatArray
from bsdkit.heads.plain import ReducedHead
from bsdkit.heads.registry import register

__all__ = ["TabPFNHead"]

_WEIGHTS_FILE = "tabpfn-v2-classifier-finetuned-zk73skhh.ckpt"
_WEIGHTS_URL = f"https://huggingface.co/Prior-Labs/TabPFN-v2-clf/resolve/main/{_WEIGHTS_FILE}"


@register("tabpfn")
class TabPFNHead(ReducedHead):
    """TabPFN v2 on principal components; families first, then classes, where there are many.

    Hollmann et al., "Accurate predictions on small data with a tabular foundation model",
    Nature 2025. It takes 10 classes at the most. Where the training rows have more, one
    model tells the families apart and one for each family its classes: the probability of a
    class is that of its family times its own within it. The package and its weights are
    not part of bsdkit; the weights of version 2 are free to use with attribution (Prior Labs
    License), those of later versions are not for commercial use. Fitting only keeps the
    training rows, so that a run with it is as large as its reduced features.

    Args:
        blocks: width of each input, in the order of the concatenated features; None for one.
        normalize: ``l2``, ``layer``, ``standardize`` or ``none``, one for all inputs or one an
            input (see `bsdkit.heads.normalize`); None: ``l2`` for the inputs that are reduced.
        max_width: inputs wider than this are reduced.
        n_components: principal components that an input is reduced to.
        n_estimators: forward passes, over permuted columns and classes, that are averaged.
        weights: ``v2``, which the package downloads when first used, or the path of a file.
        max_classes: classes that the weights take at the most.
        ignore_limits: whether to go beyond the numbers of rows and columns that the package
            allows (1,000 rows on a CPU, for time; 10,000 rows and 500 columns elsewhere).
        device: ``auto``, ``cpu`` or ``cuda``.
        families: the family's number of each label, labels being 0, 1, ...; None: no families.
        random_state: seed of the permutations.
    """

    is_stochastic: ClassVar[bool] = True
    takes_families: ClassVar[bool] = True

    def __init__(
        self,
        blocks: tuple[int, ...] | None = None,
        normalize: str | Sequence[str] | None = None,
        max_width: int = 64,
        n_components: int = 32,
        n_estimators: int = 4,
        weights: str = "v2",
        max_classes: int = 10,
        ignore_limits: bool = False,
        device: str = "auto",
        families: tuple[int, ...] | None = None,
        random_state: int = 0,
    ) -> None:
        self.blocks = blocks
        self.normalize = normalize
        self.max_width = max_width
        self.n_components = n_components
        self.n_estimators = n_estimators
        self.weights = weights
        self.max_classes = max_classes
        self.ignore_limits = ignore_limits
        self.device = device
        self.families = families
        self.random_state = random_state

    def check(self) -> None:
        """See `Head.check`."""
        super().check()
        self._require(
            n_estimators=(self.n_estimators >= 1, "1 or more"),
            max_classes=(self.max_classes >= 2, "2 or more"),
        )

    def fit(
        self, X: FloatArray, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
    ) -> Self:
        """See `Head.fit`; rows of weight zero are left out, other weights must be equal.

        Raises:
            HeadError: the package or the weights are missing, weights that differ, or more
                classes than it takes.
        """
        X, positions, weight = self._check_fit_inputs(X, y, sample_weight)
        if weight is not None:
            is_there = weight > 0
            X, positions, weight = X[is_there], positions[is_there], weight[is_there]
            if weight.min() != weight.max():
                raise HeadError(
                    f"head 'tabpfn' knows no clip weights; found {float(weight.min()):g} to "
                    f"{float(weight.max()):g}, expected equal ones: take another head, or drop them"
                )
        self._fit_reductions(X, np.ones(len(X)))
        self.rows_ = self._reduce(X).astype(np.float32)
        self.positions_ = positions
        self._fit_models()
        return self

    def predict_proba(self, X: FloatArray) -> npt.NDArray[np.float64]:
        """See `Head.predict_proba`."""
        rows = self._reduce(self._check_predict_inputs(X)).astype(np.float32)
        of_groups = self._predict_model(self._top, rows, len(self._groups))
        probabilities = np.zeros((len(rows), len(self.classes_)))
        for i, (group, model) in enumerate(zip(self._groups, self._within, strict=True)):
            within = self._predict_model(model, rows, len(group))
            probabilities[:, group] = of_groups[:, i : i + 1] * within
        return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """See `Head.state`: the reductions and the reduced training rows."""
        return {"rows": self.rows_, "positions": self.positions_, **self._reduction_state()}

    def load_state(
        self, state: Mapping[str, npt.NDArray[Any]], classes: npt.NDArray[Any], n_features: int
    ) -> Self:
        """See `Head.load_state`."""
        self._restore(classes, n_features)
        self._load_reductions(state)
        self.rows_ = np.asarray(state["rows"], np.float32)
        self.positions_ = np.asarray(state["positions"], np.int64)
        self._fit_models()
        return self

    def _fit_models(self) -> None:
        """One model over the groups of classes, and one within each."""
        self._groups = self._group_classes()
        group_of = np.empty(len(self.classes_), np.int64)
        within = np.empty(len(self.classes_), np.int64)
        for i, group in enumerate(self._groups):
            group_of[group], within[group] = i, np.arange(len(group))
        self._top = self._fit_model(self.rows_, group_of[self.positions_])
        self._within = []
        for i in range(len(self._groups)):
            is_in = group_of[self.positions_] == i
            self._within.append(self._fit_model(self.rows_[is_in], within[self.positions_[is_in]]))

    def _group_classes(self) -> list[npt.NDArray[np.int64]]:
        """Positions of the classes, family by family; all in one where they are few enough."""
        n_classes = len(self.classes_)
        if n_classes <= self.max_classes:
            return [np.arange(n_classes)]
        if self.families is None:
            raise HeadError(
                f"head 'tabpfn' takes at most {self.max_classes} classes; the training rows have "
                f"{n_classes}: give it a taxonomy with families, or take another head"
            )
        labels = self.classes_
        if not (
            np.issubdtype(labels.dtype, np.integer)
            and 0 <= labels.min()
            and labels.max() < len(self.families)
        ):
            raise HeadError(
                f"families names the family of {len(self.families)} labels, expected labels 0 to "
                f"{len(self.families) - 1}; found {labels.min()!r} to {labels.max()!r}"
            )
        numbers = np.asarray(self.families)[labels]
        groups = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
        largest = max(len(groups), *(len(group) for group in groups))
        if largest > self.max_classes:
            raise HeadError(
                f"head 'tabpfn' takes at most {self.max_classes} families, and classes in each; "
                f"the training rows have {len(groups)} families of up to "
                f"{max(len(group) for group in groups)} classes: take another head"
            )
        return groups

    def _fit_model(self, rows: npt.NDArray[np.float32], positions: npt.NDArray[np.int64]) -> Any:
        """A fitted TabPFN classifier, or the only class's position where there is one only."""
        if len(np.unique(positions)) < 2:
            return int(positions[0]) if len(positions) else 0
        try:
            tabpfn = importlib.import_module("tabpfn")
        except ImportError as error:
            raise HeadError(
                f"head 'tabpfn' needs the package tabpfn ({error}): pip install 'bsdkit[tabpfn]'"
            ) from None
        arguments = {
            "n_estimators": self.n_estimators,
            "device": self.device,
            "ignore_pretraining_limits": self.ignore_limits,
            # in half precision a clip's probabilities would depend on its batch, by 1e-4
            "inference_precision": importlib.import_module("torch").float32,
            "random_state": self.random_state,
        }
        if self.weights == "v2":
            version = importlib.import_module("tabpfn.constants").ModelVersion.V2
            classifier = tabpfn.TabPFNClassifier.create_default_for_version(version, **arguments)
        else:
            # the package would try to download what is not there
            if not Path(self.weights).is_file():
                raise HeadError(
                    f"head 'tabpfn' has no weights at {self.weights}: "
                    f"curl -L -o {self.weights} {_WEIGHTS_URL}"
                )
            classifier = tabpfn.TabPFNClassifier(model_path=self.weights, **arguments)
        try:
            return classifier.fit(rows, positions)
        except Exception as error:  # it has many kinds, and changes them
            lines = str(error).strip().splitlines() or [type(error).__name__]
            remedy = f"curl -L -O {_WEIGHTS_URL} and set weights: {_WEIGHTS_FILE}"
            if "ignore_pretraining_limits" in str(error):
                remedy = "set ignore_limits: true, or device: cuda where there is a GPU"
            raise HeadError(
                f"head 'tabpfn' on {len(rows)} rows x {rows.shape[1]} columns: {lines[0]}; {remedy}"
            ) from None

    def _predict_model(
        self, model: Any, rows: npt.NDArray[np.float32], n_classes: int
    ) -> npt.NDArray[np.float64]:
        """Probabilities [n, n_classes]; 0 for classes without rows."""
        probabilities = np.zeros((len(rows), n_classes))
        if isinstance(model, int):
            probabilities[:, model] = 1
        else:
            probabilities[:, model.classes_] = model.predict_proba(rows)
        return probabilities
