"""Two levels on one trunk: the family, and the class within its family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bsdkit.errors import HeadError, nearest
from bsdkit.heads.base import FloatArray
from bsdkit.heads.registry import register
from bsdkit.heads.torch_head import TorchHead

__all__ = ["DECODINGS", "TwoLevelHead", "family_first"]

DECODINGS = ("product", "family_first")
"""product: p(family) p(class | family); family_first: the same, within the most probable
family alone."""


class TwoLevel(nn.Module):
    """Linear, GELU, dropout, and from there family logits and class logits.

    Args:
        n_features: width of the concatenated inputs.
        hidden: width of the trunk.
        dropout: rate after the activation.
        families: family number [n_classes] of each class, 0 to n_families - 1.
    """

    members: torch.Tensor
    is_member: torch.Tensor
    place: torch.Tensor

    def __init__(
        self, n_features: int, hidden: int, dropout: float, families: npt.NDArray[np.int64]
    ) -> None:
        super().__init__()
        sizes = np.bincount(families)
        self.hidden = nn.Sequential(nn.Linear(n_features, hidden), nn.GELU())
        self.dropout = nn.Dropout(dropout)
        self.family = nn.Linear(hidden, len(sizes))
        self.classes = nn.Linear(hidden, len(families))
        # A table [n_families, largest family] of the classes in each, filled up with class 0.
        members = np.zeros((len(sizes), int(sizes.max())), np.int64)
        is_member = np.arange(members.shape[1]) < sizes[:, None]
        members[is_member] = np.argsort(families, kind="stable")
        place = np.empty(len(families), np.int64)
        place[members[is_member]] = np.flatnonzero(is_member)
        for name, array in (("members", members), ("is_member", is_member), ("place", place)):
            # They follow from the taxonomy, so they are no part of the fitted state.
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Log-probabilities [batch, n_classes] and trunk [batch, hidden] of [batch, n_features]."""
        hidden = self.hidden(x)
        trunk = self.dropout(hidden)
        table = self.classes(trunk)[..., self.members].masked_fill(~self.is_member, -torch.inf)
        family = self.family(trunk).log_softmax(dim=-1)
        joint = family.unsqueeze(-1) + table.log_softmax(dim=-1)
        return {"logits": joint.flatten(-2)[..., self.place], "embedding": hidden}


def family_first(
    probabilities: npt.NDArray[np.float64], families: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Probabilities [n, n_classes] within each row's most probable family, 0 in the others.

    Args:
        probabilities: rows that sum to 1.
        families: family number [n_classes] of each class.
    """
    member = families[:, None] == np.unique(families)
    best = (probabilities @ member).argmax(axis=1)
    kept = np.where(member.T[best], probabilities, 0.0)
    return np.asarray(kept / kept.sum(axis=1, keepdims=True))


@register("two_level")
@dataclass(kw_only=True, eq=False, repr=False)
class TwoLevelHead(TorchHead):
    """log p(family) + log p(class | family) from one trunk: Linear to `hidden`, GELU, dropout.

    A frozen-feature analogue of the two-stage idea of the GISP@HEU submission to DCASE 2026
    Task 1: the parent first, which then constrains its children. The cross-entropy of the
    joint probability is the sum of both levels' cross-entropies. Where every class is its own
    family, this is a plain perceptron.

    Args:
        hidden: width of the trunk.
        dropout: rate after the activation.
        decoding: ``product`` or ``family_first``. The latter changes predictions only: the
            best epoch is chosen by the product's.
    """

    hidden: int = 512
    dropout: float = 0.3
    decoding: str = "product"

    uses_families: ClassVar[str] = "heads of family and class within the family"
    gives_embedding: ClassVar[bool] = True

    def check(self) -> None:
        """See `Head.check`."""
        super().check()
        if self.decoding not in DECODINGS:
            raise HeadError(f"decoding is {self.decoding!r}: {nearest(self.decoding, DECODINGS)}")

    def build(self, n_features: int, n_classes: int) -> nn.Module:
        """See `TorchHead.build`."""
        return TwoLevel(n_features, self.hidden, self.dropout, self.class_families(n_classes))

    def predict_proba(self, X: FloatArray) -> npt.NDArray[np.float64]:
        """See `Head.predict_proba`; with ``family_first``, 0 for classes of other families."""
        probabilities = super().predict_proba(X)
        if self.decoding == "product":
            return probabilities
        return family_first(probabilities, self.class_families(len(self.classes_)))
