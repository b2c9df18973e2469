"""Logit adjustment: probabilities as they would be were the classes as frequent as wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as options

from bsdkit.combine.evidence import Evidence
from bsdkit.combine.objective import Objective, normalised

__all__ = ["TAUS", "AdjustOptions", "Adjustment", "fit_adjustment"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

TAUS = tuple(round(0.05 * i, 2) for i in range(-10, 31))
"""What tuning tries, the nearest to 0 (no adjustment) first among equals."""


@options(frozen=True, config=ConfigDict(extra="forbid"))
class AdjustOptions:
    """How far probabilities are adjusted.

    Attributes:
        tau: see `Adjustment`, or ``tune``.
    """

    tau: float | Literal["tune"] = "tune"


@dataclass(frozen=True)
class Adjustment:
    """``log p - tau (log prior - log target)``, normalised.

    Menon et al., "Long-tail learning via logit adjustment" (ICLR 2021), section 4.1, post-hoc;
    their target is the balanced one.

    Attributes:
        tau: how far; 0 changes nothing, 1 is Bayes' rule for the target's frequencies.
        shift: log prior - log target [n_classes], the prior being the shares of the classes that
            members were trained on.
    """

    tau: float
    shift: tuple[float, ...]

    def apply(self, evidence: Evidence) -> Evidence:
        """The adjusted probabilities of the same clips."""
        if self.tau == 0:
            return evidence
        with np.errstate(divide="ignore"):  # a class without probability stays without
            logits = np.log(evidence.decided) - self.tau * np.array(self.shift)
        return evidence.with_mixed(normalised(logits))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"tau": self.tau, "shift": list(self.shift)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Adjustment:
        """What `to_dict` gave."""
        return cls(data["tau"], tuple(data["shift"]))


def fit_adjustment(
    tau: float | Literal["tune"], evidence: Evidence, labels: IntArray, objective: Objective
) -> Adjustment:
    """The adjustment for a target.

    Args:
        tau: how far; ``tune`` for the one of TAUS with the best objective.
        evidence: n clips, averaged.
        labels: class positions [n]; their shares are the prior.
        objective: with the target; balanced where it has none.
    """
    n = len(objective.taxonomy)
    # half a clip for each class: a class without clips has a prior all the same
    prior = (np.bincount(labels, minlength=n) + 0.5) / (len(labels) + 0.5 * n)
    wanted = np.full(n, 1.0 / n) if objective.target is None else np.array(objective.target)
    target = np.maximum(wanted / wanted.sum(), 1e-6)
    shift = tuple((np.log(prior) - np.log(target)).tolist())
    if tau != "tune":
        return Adjustment(tau, shift)
    best, highest = 0.0, -1.0
    for candidate in sorted(TAUS, key=lambda t: (abs(t), t)):
        decided = Adjustment(candidate, shift).apply(evidence).decided.argmax(axis=1)
        score = objective.of(labels, decided)
        if score > highest:
            best, highest = candidate, score
    return Adjustment(best, shift)
