"""HATR, the network of the official baseline of DCASE 2026 Task 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from bsdkit.errors import HeadError
from bsdkit.heads.registry import register
from bsdkit.heads.torch_head import TorchHead

__all__ = ["HATRHead", "HATRNetwork"]

_NARROWEST = 16  # the last hidden layer is a sixteenth of an encoder's


def _layer(n_in: int, n_out: int, dropout: float) -> list[nn.Module]:
    return [nn.Linear(n_in, n_out), nn.LeakyReLU(), nn.Dropout(dropout)]


class _Residual(nn.Module):
    """Two normalised layers, width to twice that and back, beside the identity."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.BatchNorm1d(2 * width),
            nn.LeakyReLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
            nn.BatchNorm1d(width),
        )
        self.activation = nn.LeakyReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated: torch.Tensor = self.activation(x + self.layers(x))
        return activated


class _Fusion(nn.Module):
    """Sum of the encoded inputs [batch, width], weighted by a softmax over the inputs."""

    def __init__(self, n_inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.Linear(n_inputs * width, width), nn.Tanh(), nn.Linear(width, n_inputs)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, encoded: Sequence[torch.Tensor]) -> torch.Tensor:
        share = self.attention(torch.cat(tuple(encoded), dim=-1)).softmax(dim=-1)
        stacked = torch.stack(tuple(encoded), dim=-2)
        fused: torch.Tensor = self.dropout((share.unsqueeze(-1) * stacked).sum(dim=-2))
        return fused


class HATRNetwork(nn.Module):
    """A residual encoder for each input, attention over them, a residual classifier.

    Batch normalisation, Linear to `hidden`, three residual blocks, Linear to a half and a
    quarter of `hidden` and batch normalisation encode an input. The encoded inputs, weighted by
    a softmax, are summed; a single input has nothing to weigh. Three layers to an eighth of
    `hidden` and two residual blocks give the embedding, two more layers the logits. Weights are
    drawn by Xavier's uniform rule (Glorot and Bengio, AISTATS 2010, equation 16).

    Args:
        blocks: width of each input; features are their concatenation.
        hidden: width of the encoders.
        dropout: rate in the encoders, the fusion and the projector; half of it towards the
            embedding, a quarter in the classifier.
        n_classes: outputs.
    """

    def __init__(
        self, blocks: tuple[int, ...], hidden: int, dropout: float, n_classes: int
    ) -> None:
        super().__init__()
        self.blocks = blocks
        width = hidden // 4
        self.encoders = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm1d(n_in),
                *_layer(n_in, hidden, dropout),
                *(_Residual(hidden, dropout) for _ in range(3)),
                *_layer(hidden, hidden // 2, dropout),
                nn.Linear(hidden // 2, width),
                nn.BatchNorm1d(width),
            )
            for n_in in blocks
        )
        self.fusion = _Fusion(len(blocks), width, dropout) if len(blocks) > 1 else None
        self.projector = nn.Sequential(
            *_layer(width, 2 * width, dropout),
            *_layer(2 * width, width, dropout),
            *_layer(width, width // 2, dropout / 2),
            *(_Residual(width // 2, dropout / 2) for _ in range(2)),
        )
        self.classifier = nn.Sequential(
            *_layer(width // 2, width // 4, dropout / 4), nn.Linear(width // 4, n_classes)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [batch, n_classes], embedding [batch, hidden / 8] of [batch, sum(blocks)]."""
        inputs = torch.split(x, list(self.blocks), dim=-1)
        encoded = [encode(part) for encode, part in zip(self.encoders, inputs, strict=True)]
        embedding = self.projector(encoded[0] if self.fusion is None else self.fusion(encoded))
        return {"logits": self.classifier(embedding), "embedding": embedding}


@register("hatr")
@dataclass(kw_only=True, eq=False, repr=False)
class HATRHead(TorchHead):
    """The network of the organisers' baseline and its training, for any number of inputs.

    MTG/dcase2026_task1_baseline: Adam, batches of 64 that are all full, a rate halved every 20
    epochs, noise and masks on the raw embeddings, the epoch of best validation accuracy. The
    baseline's encoders are as wide as their input, 512 in CLAP; here they are `hidden` wide
    whatever the input. Its masks zero 1 to 358 of 512 dimensions; here each dimension of a clip
    is zeroed independently, at a rate drawn from 0 to `mask`.

    Args:
        hidden: width of the encoders; all further widths are shares of it.
        dropout: rate in the encoders; see `HATRNetwork` for the later layers.
    """

    hidden: int = 512
    dropout: float = 0.1
    normalize: str | Sequence[str] = "none"
    epochs: int = 100
    drop_last: bool = True
    optimizer: str = "adam"
    weight_decay: float = 1e-5
    schedule: str = "step"
    selection: str = "accuracy"
    patience: int = 15
    label_smoothing: float = 0.01
    noise: float = 1e-4
    mask: float = 0.7

    gives_embedding: ClassVar[bool] = True

    def check(self) -> None:
        """See `Head.check`."""
        super().check()
        if self.hidden < _NARROWEST:
            raise HeadError(f"hidden is {self.hidden!r}, expected {_NARROWEST} or more")

    def build(self, n_features: int, n_classes: int) -> nn.Module:
        """See `TorchHead.build`."""
        blocks, _ = self.inputs(n_features)
        return HATRNetwork(blocks, self.hidden, self.dropout, n_classes)
