"""A gated multimodal unit: learns, clip by clip and dimension by dimension, what to trust."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bsdkit.errors import HeadError
from bsdkit.heads.base import added
from bsdkit.heads.registry import register
from bsdkit.heads.torch_head import TorchHead

__all__ = ["GMUHead"]


class GatedUnit(nn.Module):
    """Gated fusion of several inputs, then a classifier.

    Arevalo et al., "Gated Multimodal Units for Information Fusion", ICLR 2017 workshop,
    section 3.1, in the form of Lin's submission to DCASE 2026 Task 1: a perceptron over all
    inputs gives a gate for every hidden dimension; z = sum_i gate_i * W_i x_i, where the gates
    of a dimension sum to 1 (for two inputs: g and 1 - g with g a sigmoid, which is the softmax
    of two). GELU, dropout and a linear layer follow; or, with `classifier_hidden`, the head of
    Lin's other members (report, section 3.1), which z feeds as it is: LayerNorm, Linear, GELU,
    dropout, Linear.

    Args:
        blocks: width of each input; features are their concatenation.
        hidden: width of z and of the gate's hidden layer.
        dropout: rate after the activations.
        n_classes: outputs.
        classifier_hidden: width of the classifier's hidden layer; 0 for none.
    """

    def __init__(
        self,
        blocks: tuple[int, ...],
        hidden: int,
        dropout: float,
        n_classes: int,
        classifier_hidden: int = 0,
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.hidden = hidden
        self.projections = nn.ModuleList(nn.Linear(width, hidden) for width in blocks)
        self.gate = nn.Sequential(
            nn.Linear(sum(blocks), hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden * len(blocks)),
        )
        self.activation: nn.Module = nn.GELU()
        if classifier_hidden:
            self.activation = nn.Sequential(
                nn.LayerNorm(hidden), nn.Linear(hidden, classifier_hidden), nn.GELU()
            )
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(classifier_hidden or hidden, n_classes)
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [batch, n_classes] and the layer below them of [batch, sum(blocks)].

        That layer, ``embedding``, is [batch, hidden], or [batch, classifier_hidden].
        """
        inputs = torch.split(x, list(self.blocks), dim=-1)
        gates = self.gate(x).unflatten(-1, (len(self.blocks), self.hidden)).softmax(dim=-2)
        projected = torch.stack(
            [projection(part) for projection, part in zip(self.projections, inputs, strict=True)],
            dim=-2,
        )
        fused = self.activation((gates * projected).sum(dim=-2))
        return {"logits": self.classifier(fused), "embedding": fused}


@register("gmu")
@dataclass(kw_only=True, eq=False, repr=False)
class GMUHead(TorchHead):
    """A gated multimodal unit over two or more inputs; with one input it has nothing to gate.

    Args:
        hidden: width of the fused vector.
        dropout: rate after the activations.
        classifier_hidden: width of a hidden layer in the classifier, see `GatedUnit`; 0 for a
            linear classifier. Lin's is 512.
    """

    hidden: int = 512
    dropout: float = 0.3
    classifier_hidden: int = added(0)

    gives_embedding: ClassVar[bool] = True

    def check(self) -> None:
        """See `Head.check`."""
        super().check()
        if self.classifier_hidden < 0:
            raise HeadError(f"classifier_hidden is {self.classifier_hidden!r}, expected 0 or more")

    def build(self, n_features: int, n_classes: int) -> nn.Module:
        """See `TorchHead.build`."""
        blocks, _ = self.inputs(n_features)
        return GatedUnit(blocks, self.hidden, self.dropout, n_classes, self.classifier_hidden)
