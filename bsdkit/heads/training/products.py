"""The linear layer of a stack of replicas, each product on its own through oneDNN.

torch computes a stack of products by one call of MKL, which leaves half of an AMD processor
unused (see `bsdkit.onednn`); one call a replica of the other library is faster in spite of
the calls, unless the products are tiny. A replica's numbers do not depend on its neighbours.
"""

from __future__ import annotations

from typing import Any

import torch

from bsdkit.onednn import linear

__all__ = ["StackedLinear"]

_SMALL_PRODUCT = 2e6
"""Multiply-adds of a product below which the stack as one call is faster (measured)."""


class StackedLinear(torch.autograd.Function):
    """x W^T + b for one network, or under `torch.vmap` for a stack of them.

    Shapes: x [(replicas,) batch, n_in], weight [(replicas,) n_out, n_in], bias
    [(replicas,) n_out]; the output is [(replicas,) batch, n_out].
    """

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The output; a stack has one more axis in front."""
        if x.dim() == 2:
            return linear(x, weight, bias)
        if _is_small(x, weight):
            return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
        out = x.new_empty(*x.shape[:2], weight.shape[1])
        for i in range(len(x)):
            out[i] = linear(x[i], weight[i], bias[i])
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: torch.Tensor) -> None:
        """Keeps what the gradients need."""
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        if x.dim() == 2:
            x, weight, gradient = x[None], weight[None], gradient[None]
            return tuple(None if g is None else g[0] for g in _gradients(ctx, x, weight, gradient))
        return _gradients(ctx, x, weight, gradient)

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[torch.Tensor, int]:
        """The same for the whole stack."""
        stacked = [
            value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)
            for value, dim in zip((x, weight, bias), in_dims, strict=True)
        ]
        # oneDNN multiplies a slice of wider rows by its slow reference code
        stacked[0] = stacked[0].contiguous()
        return StackedLinear.apply(*stacked), 0  # type: ignore[no-untyped-call]


def _is_small(x: torch.Tensor, weight: torch.Tensor) -> bool:
    return x.shape[1] * x.shape[2] * weight.shape[1] < _SMALL_PRODUCT


def _gradients(
    ctx: Any, x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """Gradients of stacks of x, weight and bias, those that are asked for."""
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad
    of_x = of_weight = None
    if _is_small(x, weight):
        of_x = gradient @ weight if wants_x else None
        of_weight = gradient.mT @ x if wants_weight else None
    else:
        if wants_x:
            of_x = torch.empty_like(x)
            for i in range(len(x)):
                of_x[i] = linear(gradient[i], weight[i].t(), None)
        if wants_weight:
            of_weight = weight.new_empty(weight.shape)
            for i in range(len(x)):
                of_weight[i] = linear(gradient[i].t().contiguous(), x[i].t(), None)
    return of_x, of_weight, gradient.sum(1) if wants_bias else None
