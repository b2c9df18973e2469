"""A class prior beside the embeddings, turned into a mixture of learned class embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bsdkit.errors import HeadError
from bsdkit.heads.mlp import Perceptron
from bsdkit.heads.registry import register
from bsdkit.heads.torch_head import TorchHead

__all__ = ["PriorMixHead"]

_ALONE = 512


class PriorMixture(nn.Module):
    """A perceptron on [h; q E]: the other inputs h, and class embeddings E mixed by the prior q.

    Args:
        blocks: width of each input; features are their concatenation.
        prior: which of them is q, counted from 0.
        mix_dim: width of a class embedding.
        hidden: width of the hidden layer.
        dropout: rate after the activation.
        input_dropout: rate on [h; q E].
        n_classes: outputs.
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
    ) -> None:
        super().__init__()
        self.blocks, self.prior = blocks, prior
        self.class_embeddings = nn.Parameter(torch.randn(blocks[prior], mix_dim))
        n_features = sum(blocks) - blocks[prior] + mix_dim
        self.perceptron = Perceptron(n_features, hidden, dropout, input_dropout, n_classes)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [batch, n_classes] and hidden layer [batch, hidden] of [batch, sum(blocks)]."""
        inputs = list(torch.split(x, list(self.blocks), dim=-1))
        mixed = inputs.pop(self.prior) @ self.class_embeddings
        output: dict[str, torch.Tensor] = self.perceptron(torch.cat([*inputs, mixed], dim=-1))
        return output


@register("prior_mix")
@dataclass(kw_only=True, eq=False, repr=False)
class PriorMixHead(TorchHead):
    """The CP-JKU submission's way to use an LLM's class probabilities beside embeddings.

    CP-JKU, DCASE 2026 Task 1 (report and code): the prior q becomes m = q E, with E one
    learned embedding a class that starts from N(0, 1), and a perceptron sees [h; m]: dropout,
    Linear to `hidden`, GELU, dropout, Linear. A row of zeros, the mark of an LLM's answer that
    could not be read, gives m = 0. By default m is as wide as h, and the hidden layer and both
    dropout rates are theirs.

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
    """

    prior_input: int = -1
    mix_dim: int = 0
    hidden: int = 1024
    dropout: float = 0.1
    input_dropout: float = 0.1

    may_differ: ClassVar[frozenset[str]] = frozenset({"dropout", "input_dropout"})
    gives_embedding: ClassVar[bool] = True

    def check(self) -> None:
        """See `Head.check`."""
        super().check()
        if not 0 <= self.input_dropout < 1:
            raise HeadError(f"input_dropout is {self.input_dropout!r}, expected 0 to below 1")
        if self.mix_dim < 0:
            raise HeadError(f"mix_dim is {self.mix_dim!r}, expected 0 or more")

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
            blocks, prior, mix_dim, self.hidden, self.dropout, self.input_dropout, n_classes
        )

    def _prior(self, n_blocks: int) -> int:
        if not -n_blocks <= self.prior_input < n_blocks:
            raise HeadError(
                f"prior_input is {self.prior_input!r} of {n_blocks} inputs, expected "
                f"{-n_blocks} to {n_blocks - 1}"
            )
        return self.prior_input % n_blocks
