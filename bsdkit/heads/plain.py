"""What the heads that are not torch networks share: inputs normalised, and reduced, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.linalg
from threadpoolctl import threadpool_limits

from bsdkit.errors import HeadError
from bsdkit.heads.base import FloatArray, Head
from bsdkit.heads.normalize import (
    column_statistics,
    normalize_rows,
    resolve_blocks,
    resolve_kinds,
)

__all__ = ["PlainHead", "ReducedHead", "principal_components"]


class PlainHead(Head):
    """A head on the concatenation of one or several inputs, each normalised by itself.

    The row-wise normalisations of `bsdkit.heads.normalize` are done here, at fit and at
    predict; what ``standardize`` needs is fitted, and kept, by the head.
    """

    takes_blocks: ClassVar[bool] = True

    blocks: tuple[int, ...] | None
    normalize: str | Sequence[str] | None

    def check(self) -> None:
        """See `Head.check`; a subclass adds its own parameters by `_require`."""
        normalize = "none" if self.normalize is None else self.normalize
        if self.blocks is not None:
            resolve_kinds(normalize, len(self.blocks))
        else:
            resolve_kinds(normalize, 1 if isinstance(normalize, str) else len(normalize))

    def _require(self, **settings: tuple[bool, str]) -> None:
        """Refuses parameters out of range: by name, whether it is right and what is expected."""
        for name, (is_right, expected) in settings.items():
            if not is_right:
                raise HeadError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    def _check_fit_inputs(
        self, X: FloatArray, y: npt.ArrayLike, sample_weight: npt.ArrayLike | None
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.float32] | None]:
        """What `Head._check_fit` gives, rows normalised; checks the parameters first."""
        self.check()
        X, positions, weight = self._check_fit(X, y, sample_weight)
        return normalize_rows(X, *self._inputs()), positions, weight

    def _check_predict_inputs(self, X: FloatArray) -> npt.NDArray[np.float32]:
        """What `Head._check_predict` gives, rows normalised."""
        return normalize_rows(self._check_predict(X), *self._inputs())

    def _inputs(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Width and normalisation of each input."""
        widths = resolve_blocks(self.blocks, self.n_features_in_)
        normalize = self._default_kinds(widths) if self.normalize is None else self.normalize
        return widths, resolve_kinds(normalize, len(widths))

    def _default_kinds(self, widths: tuple[int, ...]) -> str | tuple[str, ...]:
        """What `normalize` None stands for."""
        return "none"


def principal_components(
    X: npt.NDArray[np.float64], n_components: int, sample_weight: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean [dim] and the directions [k, dim] of the largest variance, largest first.

    k is n_components, or less where the rows vary in fewer directions, but 1 at least. The
    entry of a direction that is largest in size is positive, so that its sign is no accident.

    Args:
        X: rows [n, dim].
        n_components: directions at the most.
        sample_weight: weights [n] of the rows.
    """
    dim = X.shape[1]
    mean = np.average(X, axis=0, weights=sample_weight)
    centred = (X - mean) * np.sqrt(sample_weight / sample_weight.sum())[:, None]
    # one thread: the order of the sums, and so the last digits, must not depend on the machine's
    with threadpool_limits(limits=1, user_api="blas"):
        variance, directions = scipy.linalg.eigh(
            centred.T @ centred, subset_by_index=[max(dim - n_components, 0), dim - 1]
        )
    variance, directions = variance[::-1], directions.T[::-1]
    # what lies below is rounding, which trees would take for information
    n_real = max(int((variance > 1e-10 * variance[0]).sum()), 1)
    directions = directions[:n_real]
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(n_real), largest])
    return mean, np.ascontiguousarray(directions * signs[:, None])


class ReducedHead(PlainHead):
    """A head that is at home on few columns: it sees wide inputs by principal components.

    Inputs wider than `max_width` are reduced to `n_components` numbers fitted on the training
    rows; narrower ones, such as class probabilities, are passed on. `normalize` None scales
    the rows of what is reduced to length 1 and leaves the others as they are.
    """

    max_width: int
    n_components: int

    def check(self) -> None:
        """See `Head.check`."""
        super().check()
        self._require(
            max_width=(self.max_width >= 1, "1 or more"),
            n_components=(self.n_components >= 1, "1 or more"),
        )

    def _default_kinds(self, widths: tuple[int, ...]) -> tuple[str, ...]:
        return tuple("l2" if width > self.max_width else "none" for width in widths)

    def _fit_reductions(self, X: npt.NDArray[np.float32], weights: npt.NDArray[np.float64]) -> None:
        """Mean and components of each wide input, by its number, as `reductions_`.

        The scale of a standardised input is folded into its components; a narrow one is left
        on its own, to which such heads are blind.
        """
        widths, kinds = self._inputs()
        scale = column_statistics(X, widths, kinds, weights)[1].astype(np.float64)
        self.reductions_ = {}
        start = 0
        for i, width in enumerate(widths):
            columns = slice(start, start + width)
            start += width
            if width > self.max_width:
                part = X[:, columns] / scale[columns]
                mean, components = principal_components(part, self.n_components, weights)
                self.reductions_[i] = mean * scale[columns], components / scale[columns]

    def _reduce(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """The columns [n, k] that are left: components of wide inputs, narrow ones as is."""
        parts: list[npt.NDArray[np.float64]] = []
        start = 0
        for i, width in enumerate(self._inputs()[0]):
            part = X[:, start : start + width].astype(np.float64)
            start += width
            if i in self.reductions_:
                mean, components = self.reductions_[i]
                # one thread, as in the fit: trees are sensitive to the last digits
                with threadpool_limits(limits=1, user_api="blas"):
                    part = (part - mean) @ components.T
            parts.append(part)
        return np.concatenate(parts, axis=1)

    def _reduction_state(self) -> dict[str, npt.NDArray[Any]]:
        """The reductions as arrays by name."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for i, (mean, components) in self.reductions_.items():
            arrays |= {f"mean_{i}": mean, f"components_{i}": components}
        return arrays

    def _load_reductions(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restores what `_reduction_state` gave."""
        self.reductions_ = {
            i: (np.asarray(state[f"mean_{i}"]), np.asarray(state[f"components_{i}"]))
            for i in range(len(self._inputs()[0]))
            if f"mean_{i}" in state
        }
