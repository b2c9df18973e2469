"""Learning-rate schedules: what the rate is multiplied by in each epoch and step."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["SCHEDULES", "rate_factor", "warmed_up"]

SCHEDULES = ("cosine", "constant", "linear", "step", "plateau")
"""What `TrainingOptions.schedule` may be; ``plateau`` follows the validation score instead."""


def rate_factor(
    schedule: str, epoch: float, *, epochs: int, step_epochs: int, step_factor: float
) -> float:
    """What the learning rate is multiplied by in an epoch, counted from 0.

    Args:
        schedule: one of `SCHEDULES`.
        epoch: counted from 0.
        epochs: of the whole training.
        step_epochs: of ``step``: epochs after which the rate is multiplied.
        step_factor: of ``step``: by what.
    """
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / epochs))
    if schedule == "linear":
        return 1 - epoch / epochs
    if schedule == "step":
        return float(step_factor ** (epoch // step_epochs))
    return 1.0


def warmed_up(
    rates: npt.NDArray[np.float64],
    warmup_epochs: float,
    epoch: int,
    step: int,
    n_steps: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Rates [n_replicas] of a step, lower during the warm-up.

    Args:
        rates: of the epoch [n_replicas].
        warmup_epochs: over which they rise from 0, step by step.
        epoch: counted from 0.
        step: within the epoch, counted from 0.
        n_steps: steps of an epoch [n_replicas].
    """
    if epoch >= warmup_epochs:
        return rates
    return rates * np.minimum((epoch + (step + 1) / n_steps) / warmup_epochs, 1)
