"""Dropout and batch normalisation whose randomness and memory belong to one replica.

Inside a stack a module's forward pass is mapped over the replicas, so a layer may neither
draw from torch's global stream nor write to its buffers. These take their masks from outside
and leave the statistics of a batch for the trainer to collect.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import nn

from bsdkit.heads.training.products import StackedLinear
from bsdkit.onednn import is_faster

__all__ = [
    "BatchStatistics",
    "DropoutMasks",
    "as_stackable",
    "dropout_rates",
    "sample_subnetworks",
]


class _Dropout(nn.Module):
    """Dropout by a mask that the trainer draws from each replica's own stream."""

    mask: torch.Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.is_sampling = False
        self.register_buffer("mask", torch.ones(()), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.mask if self.training or self.is_sampling else x


class _BatchNorm(nn.Module):
    """Batch normalisation over the real rows of a batch [rows, features].

    Ioffe and Szegedy, ICML 2015. Rows that only fill a shorter batch up have weight 0 in
    ``rows``. The batch's mean and variance are left in ``batch``.
    """

    rows: torch.Tensor
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, like: nn.BatchNorm1d) -> None:
        super().__init__()
        self.eps, self.momentum = like.eps, like.momentum or 0.1
        self.weight, self.bias = like.weight, like.bias
        self.register_buffer("running_mean", like.running_mean)
        self.register_buffer("running_var", like.running_var)
        # not used; with it the state of a stack is that of the plain module, name by name
        self.register_buffer("num_batches_tracked", like.num_batches_tracked)
        self.register_buffer("rows", torch.ones(()), persistent=False)
        self.batch: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            share = self.rows.unsqueeze(-1)
            n = self.rows.sum()
            mean = (x * share).sum(0) / n
            var = ((x - mean).square() * share).sum(0) / n
            self.batch = (mean.detach(), (var * n / (n - 1).clamp_min(1)).detach())
        else:
            mean, var = self.running_mean, self.running_var
        return (x - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias


class _Linear(nn.Module):
    """A linear layer whose stack is multiplied replica by replica, through oneDNN."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype is not torch.float32:  # predictions are made in double, which oneDNN has not
            return nn.functional.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, x.shape[-1])
        product: torch.Tensor = StackedLinear.apply(rows, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return product.view(*x.shape[:-1], -1)


def as_stackable(module: nn.Module, device: str = "cpu") -> nn.Module:
    """A copy of a module with its layers replaced by ours where a stack needs that.

    Those are nn.Dropout and nn.BatchNorm1d and, on processors where it is faster, nn.Linear.
    """
    is_one_dnn = device == "cpu" and is_faster()
    module = copy.deepcopy(module)
    for name, child in list(module.named_modules()):
        ours: nn.Module | None = None
        if type(child) is nn.Dropout:
            ours = _Dropout(child.p)
        elif type(child) is nn.BatchNorm1d:
            ours = _BatchNorm(child)
        elif type(child) is nn.Linear and child.bias is not None and is_one_dnn:
            ours = _Linear(child)
        if ours is not None and not name:
            return ours
        if ours is not None:
            parent_name, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent_name), leaf, ours)
    return module


def dropout_rates(module: nn.Module) -> dict[str, float]:
    """Rate of every nn.Dropout by name."""
    return {n: child.p for n, child in module.named_modules() if type(child) is nn.Dropout}


class BatchStatistics:
    """The batch normalisation layers of a stackable module, and what they saw last."""

    def __init__(self, module: nn.Module) -> None:
        self.layers = {n: m for n, m in module.named_modules() if isinstance(m, _BatchNorm)}

    def rows(self, real: torch.Tensor) -> dict[str, torch.Tensor]:
        """The buffers that say which rows [replicas, batch] are real."""
        return {f"{name}.rows": real for name in self.layers}

    def collect(self) -> dict[str, torch.Tensor]:
        """Mean and variance of the last batch by the name of the buffer that they update."""
        found = {}
        for name, layer in self.layers.items():
            if layer.batch is not None:
                found[f"{name}.running_mean"], found[f"{name}.running_var"] = layer.batch
                layer.batch = None
        return found

    def momentum(self, buffer: str) -> float:
        """The weight of a batch in a running statistic."""
        return self.layers[buffer.rpartition(".")[0]].momentum


class DropoutMasks:
    """Dropout masks of all replicas, each from its own stream and with its own rates.

    Random bits are taken 16 at a time, which draws a mask several times faster than one
    float each; the dropout rate is exact to 1/65536.

    Args:
        module: a stackable module.
        example: one row of input.
        streams: one a replica.
        rates: dropout rates by layer, one mapping a replica.
    """

    def __init__(
        self,
        module: nn.Module,
        example: torch.Tensor,
        streams: Sequence[np.random.SFC64],
        rates: Sequence[dict[str, float]],
    ) -> None:
        self.streams = list(streams)
        self.rates = list(rates)
        self._layers = {
            name: child
            for name, child in module.named_modules()
            if isinstance(child, _Dropout) and any(rate[name] > 0 for rate in rates)
        }
        self._shapes: dict[str, torch.Size] = {}
        hooks = [
            layer.register_forward_pre_hook(
                lambda _, inputs, name=name: self._shapes.update({name: inputs[0].shape[1:]})
            )
            for name, layer in self._layers.items()
        ]
        with torch.no_grad():
            module.eval()(example)
        for hook in hooks:
            hook.remove()

    def draw(self, n_replicas: int, n_rows: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Masks [n_replicas, n_rows, ...] by the name of their buffer.

        Every call takes the same number of bits from a replica's stream if `n_rows` is the
        same, whatever the other replicas are.
        """
        masks = {}
        for name in self._layers:
            per_row = math.prod(self._shapes[name])
            keep = np.ones((n_replicas, n_rows * per_row), bool)
            scale = np.ones(n_replicas, np.float32)
            for i in range(n_replicas):
                rate = self.rates[i][name]
                if rate > 0:
                    bits = self.streams[i].random_raw(-(-n_rows * per_row // 4)).view(np.uint16)
                    np.greater_equal(bits[: n_rows * per_row], round(rate * 65536), out=keep[i])
                    scale[i] = 1 / (1 - rate)
            mask = torch.from_numpy(keep).to(device, torch.float32)
            mask *= torch.from_numpy(scale).to(device).unsqueeze(1)
            masks[f"{name}.mask"] = mask.view(n_replicas, n_rows, *self._shapes[name])
        return masks

    def keep(self, which: Sequence[int]) -> None:
        """Goes on with these replicas alone."""
        self.streams = [self.streams[i] for i in which]
        self.rates = [self.rates[i] for i in which]


def sample_subnetworks(
    module: nn.Module, example: torch.Tensor, n: int, seed: int
) -> Iterator[None]:
    """Sets the dropout masks of a stackable module to one draw for all rows, n times over.

    Yields after each; a row's prediction does not depend on what else is predicted.
    """
    rates = {name: m.p for name, m in module.named_modules() if isinstance(m, _Dropout)}
    masks = DropoutMasks(module, example, [np.random.SFC64(seed)], [rates])
    for _ in range(n):
        drawn = masks.draw(1, 1, example.device)
        for name, layer in module.named_modules():
            if isinstance(layer, _Dropout) and f"{name}.mask" in drawn:
                layer.mask, layer.is_sampling = drawn[f"{name}.mask"].squeeze(0), True
        yield
