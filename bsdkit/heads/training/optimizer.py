"""Adam and AdamW on stacked parameters, by torch's fused kernels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["StackedAdam", "clip_gradients"]

_BETAS, _EPSILON = (0.9, 0.999), 1e-8


def _is_transposed(tensor: torch.Tensor) -> bool:
    """Whether a stack of matrices lies in memory transposed."""
    return tensor.dim() == 3 and not tensor.is_contiguous() and tensor.mT.is_contiguous()


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous view of a parameter: itself, or its transpose where that is the layout."""
    return tensor.mT if _is_transposed(tensor) else tensor


class StackedAdam:
    """Adam or AdamW on stacked parameters, with a count of steps and a rate for each replica.

    Kingma and Ba, ICLR 2015; Loshchilov and Hutter, ICLR 2019. The fused kernel makes one pass
    over the memory. It walks its tensors element by element, so parameters and gradients must
    share a layout; the gradient of a weight comes transposed, and rather than copy it at every
    step, the parameter is laid out like it once. Neighbours in the stack that share epoch
    length, rate and decay share a call.

    Args:
        parameters: stacked parameters; the list is changed in place when a layout changes.
        decoupled: AdamW's weight decay, or Adam's as part of the gradient.
        n_steps: steps in an epoch [replicas], in descending order.
        decay: weight decay [replicas].
        rates: learning rates [replicas] that stay in proportion to each other.
        independent: whether the rates do not, so that every replica needs a call of its own.
    """

    def __init__(
        self,
        parameters: list[torch.Tensor],
        *,
        decoupled: bool,
        n_steps: npt.NDArray[np.int64],
        decay: Sequence[float],
        rates: Sequence[float],
        independent: bool,
    ) -> None:
        self._parameters = parameters
        self._kernel = torch._fused_adamw_ if decoupled else torch._fused_adam_
        self._decay = list(decay)
        kinds = [
            (int(n), d, r, i if independent else 0)
            for i, (n, d, r) in enumerate(zip(n_steps, decay, rates, strict=True))
        ]
        self._kinds = kinds
        self._counts = [0] * len(kinds)
        self._group()
        self._means: list[torch.Tensor] = []
        self._squares: list[torch.Tensor] = []

    def _group(self) -> None:
        kinds = self._kinds
        edges = [i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]]
        bounds = [0, *edges, len(kinds)]
        self._groups = [slice(a, b) for a, b in itertools.pairwise(bounds)]
        self._steps = [
            [torch.tensor(float(self._counts[g.start]), device=p.device) for p in self._parameters]
            for g in self._groups
        ]

    def keep(self, which: Sequence[int]) -> None:
        """Goes on with these replicas alone; the parameters have been cut already."""
        self._kinds = [self._kinds[i] for i in which]
        self._decay = [self._decay[i] for i in which]
        self._counts = [self._counts[i] for i in which]
        index = list(which)
        for kept in (self._means, self._squares):
            for i, tensor in enumerate(kept):
                kept[i] = tensor[index]
        self._group()

    def _lay_out(self, gradients: Sequence[torch.Tensor]) -> None:
        for i, gradient in enumerate(gradients):
            if _is_transposed(gradient):
                self._parameters[i] = self._parameters[i].mT.contiguous().mT
            self._means.append(torch.zeros_like(_flat(self._parameters[i])))
            self._squares.append(torch.zeros_like(_flat(self._parameters[i])))

    def step(
        self, gradients: Sequence[torch.Tensor], n_active: int, rates: npt.NDArray[np.float64]
    ) -> None:
        """Updates the first `n_active` replicas by their gradients [n_active, ...] and rates."""
        if not self._means:
            self._lay_out(gradients)
        flat_parameters, flat_gradients = [], []
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            flat_parameters.append(_flat(parameter))
            like = gradient.mT if _is_transposed(parameter) else gradient
            flat_gradients.append(like.contiguous())
        for i in range(n_active):
            self._counts[i] += 1
        for group, steps in zip(self._groups, self._steps, strict=True):
            if group.start >= n_active:
                break
            torch._foreach_add_(steps, 1)
            self._kernel(
                [p[group] for p in flat_parameters],
                [g[group] for g in flat_gradients],
                [m[group] for m in self._means],
                [v[group] for v in self._squares],
                [],
                steps,
                lr=float(rates[group.start]),
                beta1=_BETAS[0],
                beta2=_BETAS[1],
                weight_decay=self._decay[group.start],
                eps=_EPSILON,
                amsgrad=False,
                maximize=False,
            )


def clip_gradients(
    gradients: Sequence[torch.Tensor], largest: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Gradients [replicas, ...] scaled so that the norm of each replica's is at most `largest`."""
    squares = torch.stack([g.reshape(len(g), -1).square().sum(1) for g in gradients]).sum(0)
    scale = (largest / squares.sqrt().clamp_min(1e-12)).clamp_max(1.0)
    return tuple(g * scale.view(-1, *[1] * (g.dim() - 1)) for g in gradients)
