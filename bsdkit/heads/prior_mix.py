"""A class prior beside the embeddings, turned into a mixture of learned class embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bsdkit.errors import HeadError
from bsdkit.heads.base import added
from bsdkit.heads.mlp import Perceptron
from bsdkit.heads.registry import register
from bsdkit.heads.torch_head import TorchHead

__all__ = ["PriorMixHead"]

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

_ALONE = 512
_PERTURBATIONS = ("prior_swap", "prior_drop", "prior_add", "prior_move")


class PriorMixture(nn.Module):
    """A perceptron on [h; q E]: the other inputs h, and class embeddings E mixed by the prior q.

    With `fusion_hidden`, W f([h; q E]) + b with a network f of two layers and nothing but
    dropout between it and the classifier.

    Args:
        blocks: width of each input; features are their concatenation.
        prior: which of them is q, counted from 0.
        mix_dim: width of a class embedding.
        hidden: width of the layer under the classifier.
        dropout: rate after the activation, and under the classifier.
        input_dropout: rate on [h; q E].
        n_classes: outputs.
        fusion_hidden: width of f's first layer, `hidden` being that of its second; 0 for one
            layer with an activation.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        prior: int,
        mix_dim: int,
        hidden: int,
        dropout: float,
        input_dropout: float,
        n_classes: int,
        fusion_hidden: int = 0,
    ) -> None:
        super().__init__()
        self.blocks, self.prior = blocks, prior
        self.class_embeddings = nn.Parameter(torch.randn(blocks[prior], mix_dim))
        n_features = sum(blocks) - blocks[prior] + mix_dim
        self.perceptron = Perceptron(
            fusion_hidden or n_features, hidden, dropout, input_dropout, n_classes
        )
        if fusion_hidden:
            self.perceptron.hidden = nn.Sequential(
                nn.Dropout(input_dropout),
                nn.Linear(n_features, fusion_hidden),
                nn.GELU(),
                nn.Dropout(dropout),
                self.perceptron.hidden[1],
            )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [batch, n_classes] and hidden layer [batch, hidden] of [batch, sum(blocks)]."""
        inputs = list(torch.split(x, list(self.blocks), dim=-1))
        mixed = inputs.pop(self.prior) @ self.class_embeddings
        output: dict[str, torch.Tensor] = self.perceptron(torch.cat([*inputs, mixed], dim=-1))
        return output


def _pick(candidates: BoolArray, drawn: FloatArray) -> npt.NDArray[np.int64]:
    """One of the candidates [n, n_classes] of each row, by a uniform number [n]."""
    place = (drawn * candidates.sum(axis=1)).astype(np.int64)
    return np.asarray((candidates.cumsum(axis=1) > place[:, None]).argmax(axis=1))


def _pick_two(candidates: BoolArray, drawn: FloatArray) -> tuple[npt.NDArray[np.int64], ...]:
    """Two different ones of each row, by uniform numbers [n, 2]."""
    first = _pick(candidates, drawn[:, 0])
    others = candidates.copy()
    others[np.arange(len(first)), first] = False
    return first, _pick(others, drawn[:, 1])


@register("prior_mix")
@dataclass(kw_only=True, eq=False, repr=False)
class PriorMixHead(TorchHead):
    """The CP-JKU submission's way to use an LLM's class probabilities beside embeddings.

    CP-JKU, DCASE 2026 Task 1 (report and code): the prior q becomes m = q E, with E one
    learned embedding a class that starts from N(0, 1), and a perceptron sees [h; m]: dropout,
    Linear to `hidden`, GELU, dropout, Linear. A row of zeros, the mark of an LLM's answer that
    could not be read, gives m = 0. By default m is as wide as h, and the hidden layer and both
    dropout rates are those of their published code. The report's f has two layers (equation 4),
    as has their code of 15 June 2026 (commit 81c7b5e): dropout, Linear from 2D to
    2D, GELU, dropout, Linear to D, dropout, Linear, with D the width of h: `fusion_hidden` 2D,
    `hidden` D.

    The four `prior_` options disturb q in training, row by row and in this order, as that code
    can (since commit c2c3297; off by default there too). Afterwards q is scaled to the sum
    that it had. A class counts as named where its probability is above 0; a row of zeros stays.

    q may have any width, usually one column a class in the taxonomy's order. It is taken as it
    is: `normalize` does not touch it, and nothing checks that it sums to 1. Augmentation treats
    it like any input; `modality_dropout` shows the head rows without a prior.

    Args:
        prior_input: which input is q, counted from 0; -1 is the last.
        mix_dim: width of a class embedding; 0 for that of the other inputs together, or 512
            where q is the only input.
        hidden: width of the hidden layer.
        dropout: rate after the activation.
        input_dropout: rate on [h; m].
        fusion_hidden: width of the first layer of a two-layer f; 0 for one layer.
        prior_swap: probability that two named classes of more than two exchange their values.
        prior_drop: probability that one named class of more than two is set to 0.
        prior_add: probability that a class that is not named gets the mean of those that are.
        prior_move: probability that `prior_move_share` of one named class goes to another.
        prior_move_share: see `prior_move`.
    """

    prior_input: int = -1
    mix_dim: int = 0
    hidden: int = 1024
    dropout: float = 0.1
    input_dropout: float = 0.1
    fusion_hidden: int = added(0)
    prior_swap: float = added(0.0, augments=True)
    prior_drop: float = added(0.0, augments=True)
    prior_add: float = added(0.0, augments=True)
    prior_move: float = added(0.0, augments=True)
    prior_move_share: float = added(0.1)

    may_differ: ClassVar[frozenset[str]] = frozenset(
        {"dropout", "input_dropout", *_PERTURBATIONS, "prior_move_share"}
    )
    gives_embedding: ClassVar[bool] = True

    def check(self) -> None:
        """See `Head.check`."""
        super().check()
        if not 0 <= self.input_dropout < 1:
            raise HeadError(f"input_dropout is {self.input_dropout!r}, expected 0 to below 1")
        for name in ("mix_dim", "fusion_hidden"):
            if getattr(self, name) < 0:
                raise HeadError(f"{name} is {getattr(self, name)!r}, expected 0 or more")
        for name in (*_PERTURBATIONS, "prior_move_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise HeadError(f"{name} is {getattr(self, name)!r}, expected 0 to 1")

    def inputs(self, n_features: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Width and normalisation of each input; the prior's is ``none``.

        Raises:
            HeadError: there is no input `prior_input`, or see `TorchHead.inputs`.
        """
        blocks, kinds = super().inputs(n_features)
        prior = self._prior(len(blocks))
        return blocks, tuple("none" if i == prior else kind for i, kind in enumerate(kinds))

    def build(self, n_features: int, n_classes: int) -> nn.Module:
        """See `TorchHead.build`."""
        blocks, _ = self.inputs(n_features)
        prior = self._prior(len(blocks))
        mix_dim = self.mix_dim or (n_features - blocks[prior]) or _ALONE
        return PriorMixture(
            blocks, prior, mix_dim, self.hidden, self.dropout, self.input_dropout, n_classes,
            self.fusion_hidden,
        )  # fmt: skip

    @property
    def perturbs(self) -> bool:
        """See `TrainingOptions.perturbs`."""
        return any(getattr(self, name) for name in _PERTURBATIONS)

    def perturb(
        self, X: npt.NDArray[np.float32], draw: Callable[[int], FloatArray]
    ) -> npt.NDArray[np.float32]:
        """See `TrainingOptions.perturb`; the order of the steps is the authors'."""
        blocks, _ = self.inputs(X.shape[1])
        prior = self._prior(len(blocks))
        columns = slice(sum(blocks[:prior]), sum(blocks[: prior + 1]))
        q = X[:, columns].astype(np.float64)
        before = q.sum(axis=1, keepdims=True)
        if self.prior_swap:
            drawn = draw(3)
            a, b = _pick_two(q > 0, drawn[:, 1:])
            is_on = (drawn[:, 0] < self.prior_swap) & ((q > 0).sum(axis=1) > 2)
            i = np.flatnonzero(is_on)
            q[i, a[i]], q[i, b[i]] = q[i, b[i]], q[i, a[i]]
        if self.prior_drop:
            drawn = draw(2)
            is_on = (drawn[:, 0] < self.prior_drop) & ((q > 0).sum(axis=1) > 2)
            i = np.flatnonzero(is_on)
            q[i, _pick(q > 0, drawn[:, 1])[i]] = 0
        if self.prior_add:
            drawn = draw(2)
            n_named = (q > 0).sum(axis=1)
            is_on = (drawn[:, 0] < self.prior_add) & (n_named > 0) & (n_named < q.shape[1])
            i = np.flatnonzero(is_on)
            q[i, _pick(q <= 0, drawn[:, 1])[i]] = q[i].sum(axis=1) / n_named[i]
        if self.prior_move:
            drawn = draw(3)
            a, b = _pick_two(q > 0, drawn[:, 1:])
            is_on = (drawn[:, 0] < self.prior_move) & ((q > 0).sum(axis=1) > 1)
            i = np.flatnonzero(is_on)
            moved = self.prior_move_share * q[i, a[i]]
            q[i, a[i]] -= moved
            q[i, b[i]] += moved
        after = q.sum(axis=1, keepdims=True)
        X = X.copy()
        X[:, columns] = np.where(after > 0, q * before / np.where(after > 0, after, 1), q)
        return X

    def _prior(self, n_blocks: int) -> int:
        if not -n_blocks <= self.prior_input < n_blocks:
            raise HeadError(
                f"prior_input is {self.prior_input!r} of {n_blocks} inputs, expected "
                f"{-n_blocks} to {n_blocks - 1}"
            )
        return self.prior_input % n_blocks
