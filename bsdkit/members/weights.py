"""Weights of training clips by confidence, and of classes by how often they were trained on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bsdkit.errors import HeadError
from bsdkit.members.plan import MemberPlan, Task

__all__ = ["CONFIDENCE_WEIGHTS", "adjusted", "clip_weights", "is_confident"]

CONFIDENCE_WEIGHTS = ("none", "linear", "shifted", "binary")


def clip_weights(plan: MemberPlan, task: Task) -> npt.NDArray[np.float32] | None:
    """Weight [n_clips] of each clip in the loss, None for ones; unknown confidence weighs 1.

    Raises:
        HeadError: no clip has a confidence.
    """
    if plan.confidence == "none":
        return None
    c = _confidence(plan, task)
    weight = {
        "linear": c / 5,
        "shifted": (c - 1) / 4,
        "binary": np.where(c >= 3, 1.0, 0.3),
    }[plan.confidence]
    return np.where(np.isnan(c), 1.0, weight).astype(np.float32)


def is_confident(plan: MemberPlan, task: Task) -> npt.NDArray[np.bool_]:
    """Which clips [n_clips] may be trained on: those of unknown confidence may."""
    if plan.min_confidence <= 0:
        return np.ones(len(task.labels), bool)
    c = _confidence(plan, task)
    return np.asarray(np.isnan(c) | (c >= plan.min_confidence))


def adjusted(
    probabilities: npt.NDArray[np.float64], counts: npt.NDArray[np.int64], tau: float
) -> npt.NDArray[np.float64]:
    """Probabilities [n, n_classes] divided by training shares to the power tau, normalised.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, section 4.1, as Lin's
    submission to DCASE 2026 Task 1 uses it (tau 0.5): log p - tau log share. A class without
    clips counts as half a clip, so that it has a share.

    Args:
        probabilities: of one model.
        counts: clips of each class [n_classes] that this model trained on.
        tau: how far; 1 is Bayes' rule for equally frequent classes.
    """
    shares = np.maximum(counts, 0.5) / counts.sum()
    raised = probabilities * (shares / shares.max()) ** -tau
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _confidence(plan: MemberPlan, task: Task) -> npt.NDArray[np.float64]:
    if task.confidence is None or np.isnan(task.confidence).all():
        raise HeadError(
            f"member {plan.name!r} weighs or filters by confidence, but no clip has one; "
            "the dataset needs a column confidence (1 to 5)"
        )
    return task.confidence.astype(np.float64)
