"""A perceptron with one hidden layer: Linear, GELU, dropout, Linear."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bsdkit.heads.registry import register
from bsdkit.heads.torch_head import TorchHead

__all__ = ["MLPHead"]


class Perceptron(nn.Module):
    """Linear, GELU, dropout, Linear.

    Args:
        n_features: width of the concatenated inputs.
        hidden: width of the hidden layer.
        dropout: rate after the activation.
        input_dropout: rate on the inputs.
        n_classes: outputs.
    """

    def __init__(
        self, n_features: int, hidden: int, dropout: float, input_dropout: float, n_classes: int
    ) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Dropout(input_dropout), nn.Linear(n_features, hidden), nn.GELU()
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, n_classes))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [batch, n_classes] and hidden layer [batch, hidden] of [batch, n_features]."""
        hidden = self.hidden(x)
        return {"logits": self.classifier(hidden), "embedding": hidden}


@register("mlp")
@dataclass(kw_only=True, eq=False, repr=False)
class MLPHead(TorchHead):
    """Linear to `hidden`, GELU, dropout, Linear to the classes, on layer-normalised inputs.

    The defaults are those of Lin's submission to DCASE 2026 Task 1 (report, section 3):
    hidden 512, dropout 0.3, label smoothing 0.1, AdamW at 1e-3 with a cosine schedule. With
    hidden 1024, dropout and input_dropout 0.1 it is the head of the CP-JKU submission.

    Args:
        hidden: width of the hidden layer.
        dropout: rate after the activation.
        input_dropout: rate on the inputs.
    """

    hidden: int = 512
    dropout: float = 0.3
    input_dropout: float = 0.0

    may_differ: ClassVar[frozenset[str]] = frozenset({"dropout", "input_dropout"})
    gives_embedding: ClassVar[bool] = True

    def build(self, n_features: int, n_classes: int) -> nn.Module:
        """See `TorchHead.build`."""
        return Perceptron(n_features, self.hidden, self.dropout, self.input_dropout, n_classes)
