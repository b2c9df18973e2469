"""Learning-rate schedules: what the rate is multiplied by in each epoch and step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from bsdkit.heads.training.options import TrainingOptions

__all__ = ["SCHEDULES", "rate_factor", "warmed_up"]

SCHEDULES = ("cosine", "constant", "linear", "step", "plateau")
"""What `TrainingOptions.schedule` may be; ``plateau`` follows the validation score instead."""


def rate_factor(options: TrainingOptions, epoch: float) -> float:
    """What the learning rate is multiplied by in an epoch, counted from 0."""
    if options.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * epoch / options.epochs))
    if options.schedule == "linear":
        return 1 - epoch / options.epochs
    if options.schedule == "step":
        return float(options.step_factor ** (epoch // options.step_epochs))
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
