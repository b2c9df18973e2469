"""Gated residual blocks on each input, and attention over the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bsdkit.errors import HeadError
from bsdkit.heads.registry import register
from bsdkit.heads.torch_head import TorchHead

__all__ = ["HAFHead"]


class GatedResidual(nn.Module):
    """LayerNorm(x + value * sigmoid(gate)), value and gate being maps of ELU(W x + b).

    Lim et al., "Temporal Fusion Transformers", International Journal of Forecasting 2021,
    section 4.1, equations 2 to 5, without context and without the linear map between ELU and
    gate, which the two maps of the gate can absorb.

    Args:
        width: of input and output.
        dropout: rate after the ELU.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            nn.Linear(width, width), nn.ELU(), nn.Dropout(dropout), nn.Linear(width, 2 * width)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, width] of [batch, width]."""
        normed: torch.Tensor = self.norm(x + nn.functional.glu(self.maps(x), dim=-1))
        return normed


class AttentionFusion(nn.Module):
    """Projects and gates every input, and takes their mean by attention, then classifies.

    The attention is that of Yang et al., "Hierarchical Attention Networks for Document
    Classification", NAACL 2016, section 2.2, with inputs in the place of words: the weight of
    an input is the softmax over inputs of c . tanh(W h + b). W, b and c are shared, so that
    the inputs' order has no meaning.

    Args:
        blocks: width of each input; features are their concatenation.
        hidden: width of the projected inputs.
        dropout: rate in the gated blocks and before the classifier.
        n_blocks: gated residual blocks an input.
        n_classes: outputs.
    """

    def __init__(
        self, blocks: tuple[int, ...], hidden: int, dropout: float, n_blocks: int, n_classes: int
    ) -> None:
        super().__init__()
        self.blocks = blocks
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, hidden),
                *(GatedResidual(hidden, dropout) for _ in range(n_blocks)),
            )
            for width in blocks
        )
        self.attention = nn.Sequential(
            nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False)
        )
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, n_classes))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [batch, n_classes] and fused vector [batch, hidden] of [batch, sum(blocks)]."""
        inputs = torch.split(x, list(self.blocks), dim=-1)
        branches = [branch(part) for branch, part in zip(self.branches, inputs, strict=True)]
        # One product an input: a stack's linear layers take [batch, width] alone.
        scores = torch.cat([self.attention(branch) for branch in branches], dim=-1)
        weights = scores.softmax(dim=-1).unsqueeze(-1)
        fused = (weights * torch.stack(branches, dim=-2)).sum(dim=-2)
        return {"logits": self.classifier(fused), "embedding": fused}


@register("haf")
@dataclass(kw_only=True, eq=False, repr=False)
class HAFHead(TorchHead):
    """Per input a projection and gated residual blocks, then attention over the inputs.

    After the CQUPT submission to DCASE 2026 Task 1 (HAF-CLAP), whose report names these parts
    and gives no exact widths. The form of the block and of the attention, every width and the
    number of blocks are ours; any number of inputs will do, though with one the attention
    has nothing to weigh.

    Args:
        hidden: width of the projected inputs.
        dropout: rate in the gated blocks and before the classifier.
        n_blocks: gated residual blocks an input; 0 for the projection alone.
    """

    hidden: int = 512
    dropout: float = 0.3
    n_blocks: int = 1

    gives_embedding: ClassVar[bool] = True

    def check(self) -> None:
        """See `Head.check`."""
        super().check()
        if self.n_blocks < 0:
            raise HeadError(f"n_blocks is {self.n_blocks!r}, expected 0 or more")

    def build(self, n_features: int, n_classes: int) -> nn.Module:
        """See `TorchHead.build`."""
        blocks, _ = self.inputs(n_features)
        return AttentionFusion(blocks, self.hidden, self.dropout, self.n_blocks, n_classes)
