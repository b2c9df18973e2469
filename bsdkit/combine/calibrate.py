"""Class probabilities that mean what they say: how to fit and apply a calibration.

A calibration is fitted on the out-of-fold probabilities of some clips and applied to those
of others. All of these map one row of probabilities to one row, so a clip's result never
depends on the clips beside it:

    none         the probabilities as they are
    temperature  softmax(log p / T) with one T              (Guo et al., ICML 2017, section 4.2)
    vector       softmax(a log p + b), a and b for each class           (the same, section 4.2)
    family       a temperature for each family, chosen by the family that the row predicts
    isotonic     isotonic regression of each class against the rest, renormalised
                 (Zadrozny and Elkan, KDD 2002, sections 3 and 4)

Temperature and family keep the order of a row's classes (two that differ in the last digit
may become equal), so they change no prediction, only what an ensemble, a threshold or a
reranker makes of it; vector and isotonic may change the predicted class.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

from bsdkit.errors import RecipeError
from bsdkit.registry import Registry
from bsdkit.stats import softmax
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "CALIBRATIONS",
    "LOWEST_PROBABILITY",
    "MIN_FAMILY_CLIPS",
    "TEMPERATURE_RANGE",
    "VECTOR_PULL",
    "Calibration",
    "CalibrationMethod",
    "Calibrator",
    "checked",
    "fit_calibration",
    "register",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Parameters = dict[str, list[Any]]

LOWEST_PROBABILITY = 1e-12
"""A probability below this counts as this wherever a logarithm is taken."""

TEMPERATURE_RANGE = (0.05, 20.0)
"""The temperatures searched: the best T is 0 where every prediction is right, and has no upper
limit where predictions are worse than chance."""

MIN_FAMILY_CLIPS = 50
"""A family that fewer clips are predicted to be in gets the temperature of all clips."""

VECTOR_PULL = 1.0
"""Weight of the sum of (a - 1)^2 / 2 + b^2 / 2 beside the *summed* NLL of vector scaling.

It is a standard normal prior on each a - 1 and b: next to nothing among hundreds of clips
of a class, and a restraint where there are a handful.
"""


class Calibration(ABC):
    """A way to calibrate, under ``@register("name")``; it keeps nothing but its parameters."""

    parameters: ClassVar[tuple[str, ...]] = ()
    """Names of what it fits."""

    per_class: ClassVar[str] = ""
    """The parameter with an entry a class; empty where any number of classes will do."""

    same_length: ClassVar[bool] = True
    """Whether the lists of all parameters are of one length."""

    uses_families: ClassVar[str] = ""
    """What it makes of the taxonomy's families, in the words of a submission."""

    @staticmethod
    @abstractmethod
    def fit(p: FloatArray, labels: IntArray, taxonomy: Taxonomy) -> Parameters:
        """The parameters for probabilities [n, n_classes] without NaN and class positions [n]."""

    @staticmethod
    @abstractmethod
    def apply(p: FloatArray, parameters: Parameters) -> FloatArray:
        """Calibrated probabilities [n, n_classes], a row at a time."""


CALIBRATIONS: Registry[type[Calibration]] = Registry("calibration")
CalibrationMethod = Annotated[str, AfterValidator(CALIBRATIONS.known)]


def register(name: str) -> Callable[[type[Calibration]], type[Calibration]]:
    """A class decorator that makes a calibration known under a name."""

    def decorate(cls: type[Calibration]) -> type[Calibration]:
        CALIBRATIONS.add(name, cls)
        return cls

    return decorate


@dataclass(frozen=True)
class Calibrator:
    """A fitted calibration.

    Attributes:
        method: a name of CALIBRATIONS.
        parameters: what was fitted, as plain numbers in lists. temperature: ``temperature``
            [1]. vector: ``scale`` and ``bias`` [n_classes]. family: ``temperature``
            [n_families] and ``family_of`` [n_classes]. isotonic: the breakpoints ``x`` and
            ``y``, a list for each class.

    Raises:
        RecipeError: the method is unknown, or the parameters are not those of the method.
    """

    method: str
    parameters: Parameters = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind = CALIBRATIONS[self.method]
        names = kind.parameters
        if set(self.parameters) != set(names):
            raise RecipeError(
                f"calibration {self.method!r} has the parameters "
                f"{', '.join(self.parameters) or 'none'}; expected {', '.join(names) or 'none'}; "
                "fit it again"
            )
        if kind.same_length and len({len(self.parameters[name]) for name in names}) > 1:
            raise RecipeError(
                f"calibration {self.method!r} has {' and '.join(names)} of different lengths; "
                "fit it again"
            )

    def apply(self, probabilities: npt.ArrayLike) -> FloatArray:
        """Calibrated probabilities [n, n_classes] of probabilities [n, n_classes].

        Rows add up to 1; a row that holds a NaN becomes all NaN. The arithmetic is numpy's,
        in float64, a row at a time, so any subset of the rows gets the same bits.

        Raises:
            RecipeError: the array has another shape than the one that was fitted on.
        """
        p = np.asarray(probabilities, np.float64)
        n_classes = self._n_classes()
        if p.ndim != 2 or (n_classes and p.shape[1] != n_classes):
            raise RecipeError(
                f"probabilities have the shape {list(p.shape)}; this calibration "
                f"({self.method}) takes [n, {n_classes or 'n_classes'}]; fit one on these classes"
            )
        result = np.full(p.shape, np.nan)
        is_there = ~np.isnan(p).any(axis=1)
        # Indexing by a mask makes a C-ordered copy, in which a sum over a row does not
        # depend on how many rows there are.
        result[is_there] = CALIBRATIONS[self.method].apply(p[is_there], self.parameters)
        return result

    def _n_classes(self) -> int:
        """The number of classes that it was fitted on; 0 where any will do."""
        per_class = CALIBRATIONS[self.method].per_class
        return len(self.parameters[per_class]) if per_class else 0

    def to_dict(self) -> dict[str, object]:
        """The calibrator as plain JSON types."""
        return {"method": self.method, "parameters": copy.deepcopy(self.parameters)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibrator:
        """The calibrator that `to_dict` wrote, to the last bit.

        Raises:
            RecipeError: the method or the parameters are missing or are not known ones.
        """
        missing = [key for key in ("method", "parameters") if key not in data]
        if missing:
            raise RecipeError(
                f"a calibration without {missing[0]!r} ({', '.join(data) or 'empty'}); expected "
                "method and parameters; fit it again"
            )
        return cls(data["method"], copy.deepcopy(dict(data["parameters"])))


def fit_calibration(
    method: CalibrationMethod,
    probabilities: npt.ArrayLike,
    labels: npt.ArrayLike,
    taxonomy: Taxonomy,
) -> Calibrator:
    """The calibration of these probabilities towards these labels.

    Rows with a NaN are left out.

    Args:
        method: a name of CALIBRATIONS.
        probabilities: [n, n_classes], rows that add up to 1 or are NaN.
        labels: class positions [n].
        taxonomy: the classes and their families.

    Raises:
        RecipeError: the method is unknown, the shapes do not agree, there is no row without
            a NaN, or a value is no probability or no class position.
    """
    kind = CALIBRATIONS[method]
    p, y = checked(probabilities, labels, len(taxonomy))
    return Calibrator(method, kind.fit(p, y, taxonomy))


def checked(
    probabilities: npt.ArrayLike, labels: npt.ArrayLike, n_classes: int | None = None
) -> tuple[FloatArray, IntArray]:
    """The probabilities [n, n_classes] and labels [n] of the rows without a NaN.

    Raises:
        RecipeError: see `fit_calibration`.
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1] or p.shape[1] != (n_classes or p.shape[1]):
        raise RecipeError(
            f"probabilities have the shape {list(p.shape)} and labels {list(y.shape)}; expected "
            f"[n, {n_classes or 'n_classes'}] and [n]; pass both for the same clips and classes"
        )
    n = len(p)
    is_there = ~np.isnan(p).any(axis=1)
    p, y = p[is_there], y[is_there]
    if not len(p):
        raise RecipeError(
            f"none of {n} clips has probabilities; expected one row without NaN at least; fit the "
            "members that make them"
        )
    if p.min() < 0 or p.max() > 1 + 1e-6:
        raise RecipeError(
            f"probabilities reach from {p.min():.6g} to {p.max():.6g}; expected 0 to 1; apply a "
            "softmax to logits"
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[1]:
        raise RecipeError(
            f"labels ({y.dtype}) reach from {y.min()} to {y.max()}; expected class positions 0 to "
            f"{p.shape[1] - 1}; leave unlabelled clips (-1) out"
        )
    return p, y.astype(np.int64)


def _log(p: FloatArray) -> FloatArray:
    return np.log(np.maximum(p, LOWEST_PROBABILITY))


def _predicted_family(p: FloatArray, family_of: list[int]) -> IntArray:
    """The family [n] with the largest summed probability; of equals the first."""
    totals = np.zeros((len(p), max(family_of) + 1))
    for c, f in enumerate(family_of):  # column by column: the same order of sums for any n
        totals[:, f] += p[:, c]
    return np.asarray(totals.argmax(axis=1), np.int64)


def _fit_temperature(logits: FloatArray, labels: IntArray) -> float:
    """The temperature within TEMPERATURE_RANGE with the least NLL.

    In 1/T the NLL is convex, so over log T it falls to one minimum and then rises. Where its
    slope changes sign is known to more digits than where its value is least, since the values
    near a minimum hardly differ.
    """
    from scipy.optimize import brentq

    z = np.ascontiguousarray(logits.T)  # [n_classes, n]: sums over classes then vectorise
    z -= z.max(axis=0)
    mean_true = float(z[labels, np.arange(len(labels))].mean())
    e = np.empty_like(z)

    def too_sharp(log_t: float) -> float:
        """The slope of the NLL in 1/T: above 0 where T is too small."""
        np.multiply(z, np.exp(-log_t), out=e)
        np.exp(e, out=e)
        total = e.sum(axis=0)
        np.multiply(e, z, out=e)
        return float((e.sum(axis=0) / total).mean()) - mean_true

    at_one = too_sharp(0.0)
    if at_one == 0:  # also rows that are all uniform, which any temperature suits
        return 1.0
    limit = TEMPERATURE_RANGE[1 if at_one > 0 else 0]
    if too_sharp(float(np.log(limit))) * at_one >= 0:
        return limit
    return float(np.exp(brentq(too_sharp, 0.0, float(np.log(limit)), xtol=1e-10, rtol=1e-10)))


@register("none")
class _Nothing(Calibration):
    """The probabilities as they are."""

    @staticmethod
    def fit(p: FloatArray, labels: IntArray, taxonomy: Taxonomy) -> Parameters:
        """See `Calibration.fit`."""
        return {}

    @staticmethod
    def apply(p: FloatArray, parameters: Parameters) -> FloatArray:
        """See `Calibration.apply`."""
        return p


@register("temperature")
class _Temperature(Calibration):
    """softmax(log p / T), with the T of the least NLL within TEMPERATURE_RANGE."""

    parameters: ClassVar[tuple[str, ...]] = ("temperature",)

    @staticmethod
    def fit(p: FloatArray, labels: IntArray, taxonomy: Taxonomy) -> Parameters:
        """See `Calibration.fit`."""
        return {"temperature": [_fit_temperature(_log(p), labels)]}

    @staticmethod
    def apply(p: FloatArray, parameters: Parameters) -> FloatArray:
        """See `Calibration.apply`."""
        return softmax(_log(p) / np.array(parameters["temperature"], np.float64))


@register("vector")
class _Vector(Calibration):
    """softmax(a log p + b), a and b for each class: the least NLL plus a pull (VECTOR_PULL).

    A class without clips keeps its scale of 1 and bias of 0.
    """

    parameters: ClassVar[tuple[str, ...]] = ("scale", "bias")
    per_class: ClassVar[str] = "scale"

    @staticmethod
    def fit(p: FloatArray, labels: IntArray, taxonomy: Taxonomy) -> Parameters:
        """See `Calibration.fit`."""
        from scipy.optimize import minimize

        logits = _log(p)
        n, n_classes = logits.shape
        z = np.ascontiguousarray(logits.T)
        clips = np.arange(n)
        # The NLL falls for ever as the bias of a class without clips does, and a small pull would
        # hold it back only late; nothing was learned of such a class, so it is held where it is.
        seen = np.flatnonzero(np.bincount(labels, minlength=n_classes))
        identity = np.repeat([1.0, 0.0], len(seen))
        scale, bias = np.ones(n_classes), np.zeros(n_classes)
        e = np.empty_like(z)

        def objective(x: FloatArray) -> tuple[float, FloatArray]:
            scale[seen], bias[seen] = x.reshape(2, -1)
            np.multiply(z, scale[:, None], out=e)
            np.add(e, bias[:, None], out=e)
            np.subtract(e, e.max(axis=0), out=e)
            true = e[labels, clips].sum()
            np.exp(e, out=e)
            total = e.sum(axis=0)
            nll = np.log(total).sum() - true
            np.divide(e, total, out=e)
            e[labels, clips] -= 1
            gradient = np.concatenate([np.einsum("cn,cn->c", e, z)[seen], e.sum(axis=1)[seen]])
            away = x - identity
            value = nll + VECTOR_PULL / 2 * float((away**2).sum())
            return value / n, (gradient + VECTOR_PULL * away) / n

        found = minimize(
            objective,
            identity,
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 500, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-6},
        )
        scale[seen], bias[seen] = found.x.reshape(2, -1)
        return {"scale": scale.tolist(), "bias": bias.tolist()}

    @staticmethod
    def apply(p: FloatArray, parameters: Parameters) -> FloatArray:
        """See `Calibration.apply`."""
        scale, bias = (np.array(parameters[k], np.float64) for k in ("scale", "bias"))
        return softmax(_log(p) * scale + bias)


@register("family")
class _Family(Calibration):
    """A temperature for each family, over the clips predicted as it: none needs a label."""

    parameters: ClassVar[tuple[str, ...]] = ("temperature", "family_of")
    per_class: ClassVar[str] = "family_of"
    same_length: ClassVar[bool] = False
    uses_families: ClassVar[str] = "a temperature for each family"

    @staticmethod
    def fit(p: FloatArray, labels: IntArray, taxonomy: Taxonomy) -> Parameters:
        """See `Calibration.fit`."""
        logits = _log(p)
        shared = _fit_temperature(logits, labels)
        family_of = [int(f) for f in taxonomy.family_of]
        predicted = _predicted_family(p, family_of)
        temperatures = []
        for f in range(len(taxonomy.families)):
            rows = np.flatnonzero(predicted == f)
            enough = len(rows) >= MIN_FAMILY_CLIPS
            temperatures.append(_fit_temperature(logits[rows], labels[rows]) if enough else shared)
        return {"temperature": temperatures, "family_of": family_of}

    @staticmethod
    def apply(p: FloatArray, parameters: Parameters) -> FloatArray:
        """See `Calibration.apply`."""
        temperature = np.array(parameters["temperature"], np.float64)
        families = _predicted_family(p, parameters["family_of"])
        return softmax(_log(p) / temperature[families][:, None])


@register("isotonic")
class _Isotonic(Calibration):
    """The increasing step-and-slope function of each class against the rest, by PAV.

    A class without clips keeps its probabilities, but for the renormalisation.
    """

    parameters: ClassVar[tuple[str, ...]] = ("x", "y")
    per_class: ClassVar[str] = "x"

    @staticmethod
    def fit(p: FloatArray, labels: IntArray, taxonomy: Taxonomy) -> Parameters:
        """See `Calibration.fit`."""
        from sklearn.isotonic import IsotonicRegression

        x, y = [], []
        for c in range(p.shape[1]):
            is_class = labels == c
            if is_class.any():
                fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
                fitted.fit(p[:, c], is_class.astype(np.float64))
                x.append(fitted.X_thresholds_.tolist())
                y.append(fitted.y_thresholds_.tolist())
            else:
                x.append([0.0, 1.0])
                y.append([0.0, 1.0])
        return {"x": x, "y": y}

    @staticmethod
    def apply(p: FloatArray, parameters: Parameters) -> FloatArray:
        """See `Calibration.apply`."""
        x, y = parameters["x"], parameters["y"]
        mapped = np.empty_like(p)
        for c in range(p.shape[1]):
            mapped[:, c] = np.interp(p[:, c], x[c], y[c])
        total = mapped.sum(axis=1, keepdims=True)
        # A row that every class was mapped to 0 for has nothing to renormalise.
        return np.where(total > 0, mapped / np.where(total > 0, total, 1.0), p)
