"""The losses of a stack: each replica's own mixture, computed for all of them together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from bsdkit.heads.training.options import TrainingOptions
from bsdkit.metrics import FAMILY_CREDIT_PRF

__all__ = ["Losses", "as_output"]

_TINY = 1e-12


def as_output(output: torch.Tensor | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a network returned, by name.

    A network returns logits [batch, n_classes], or a mapping with ``logits`` and any of
    ``embedding`` [batch, width], the last hidden layer, for the contrastive loss; ``cosine``
    [batch, n_classes] to the class directions, for ArcFace; ``penalty``, a scalar that is
    added to the loss; ``class_penalty`` [batch, n_classes], of which a row adds that of its
    class.
    """
    return {"logits": output} if isinstance(output, torch.Tensor) else dict(output)


class Losses:
    """The loss of each replica on a batch of its own.

    Args:
        options: one a replica.
        families: family number [n_classes] of each class.
        device: where the batches are.
    """

    def __init__(
        self, options: Sequence[TrainingOptions], families: npt.NDArray[np.int64], device: str
    ) -> None:
        self._device = torch.device(device)
        self.families = torch.tensor(families, device=device)
        same = families[:, None] == families[None, :]
        self._credit = torch.tensor(
            np.where(np.eye(len(families), dtype=bool), 1.0, same * FAMILY_CREDIT_PRF),
            dtype=torch.float32,
            device=device,
        )
        one_hot = np.eye(int(families.max()) + 1, dtype=np.float32)[families]
        self._family_of = torch.from_numpy(one_hot).to(device)  # [n_classes, n_families]
        spread = [_smoothing(families, o.smoothing, o.label_smoothing, same=same) for o in options]
        self._targets = torch.from_numpy(np.stack(spread)).to(device)
        self._set(options)

    def _set(self, options: Sequence[TrainingOptions]) -> None:
        def each(name: str) -> torch.Tensor:
            return torch.tensor([float(getattr(o, name)) for o in options], device=self._device)

        self._options = list(options)
        gamma = [o.focal_gamma if o.loss == "focal" else 0.0 for o in options]
        self._gamma = torch.tensor(gamma, device=self._device)
        self._child = each("child_weight")
        self._parent, self._hf = each("parent_weight"), each("hf_weight")
        self._contrast = each("contrastive_weight")
        self._temperature = each("contrastive_temperature")
        by_family = [o.contrastive_labels == "family" for o in options]
        self._by_family = torch.tensor(by_family, device=self._device)
        self._arc, self._margin = each("arcface_weight"), each("arcface_margin")
        self._scale = each("arcface_scale")
        self._is_on = {
            "focal": any(gamma),
            "child": any(o.child_weight != 1 for o in options),
            "parent": any(o.parent_weight for o in options),
            "hf": any(o.hf_weight for o in options),
            "contrast": any(o.contrastive_weight for o in options),
            "arc": any(o.arcface_weight for o in options),
        }

    def keep(self, which: Sequence[int]) -> None:
        """Goes on with these replicas alone."""
        self._targets = self._targets[list(which)]
        self._set([self._options[i] for i in which])

    def targets(self, y: torch.Tensor) -> torch.Tensor:
        """Smoothed targets [replicas, batch, n_classes] of labels [replicas, batch]."""
        which = torch.arange(len(y), device=self._device).unsqueeze(1)
        return self._targets[which, y]

    def __call__(
        self,
        output: Mapping[str, torch.Tensor],
        targets: torch.Tensor,
        y: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """Loss [replicas]: weighted means over each replica's rows.

        Args:
            output: see `as_output`, with a leading axis of replicas.
            targets: class shares [replicas, batch, n_classes].
            y: the class [replicas, batch] that most of the target is.
            weight: [replicas, batch]; 0 for rows that only fill a batch up.
        """
        n = len(y)
        log_p = functional.log_softmax(output["logits"], dim=-1)
        total = weight.sum(1).clamp_min(_TINY)
        terms = targets * log_p
        p = log_p.exp() if any(self._is_on[k] for k in ("focal", "parent", "hf")) else log_p
        if self._is_on["focal"]:
            terms = terms * (1 - p).clamp_min(_TINY) ** self._gamma[:n, None, None]
        loss = -(terms.sum(-1) * weight).sum(1) / total
        if self._is_on["child"]:
            loss = self._child[:n] * loss
        if self._is_on["parent"]:
            family_p, family_t = p @ self._family_of, targets @ self._family_of
            parent = -(family_t * (family_p + _TINY).log()).sum(-1)
            loss = loss + self._parent[:n] * (parent * weight).sum(1) / total
        if self._is_on["hf"]:
            share = self._hf[:n]
            loss = (1 - share) * loss + share * (1 - self._expected_hf(p, y, weight))
        if self._is_on["contrast"]:
            loss = loss + self._contrast[:n] * self._contrastive(output["embedding"], y, weight)
        if self._is_on["arc"]:
            loss = loss + self._arc[:n] * self._angular(output["cosine"], y, weight, total)
        if "penalty" in output:
            loss = loss + output["penalty"]
        if "class_penalty" in output:
            own = output["class_penalty"].gather(-1, y.unsqueeze(-1)).squeeze(-1)
            loss = loss + (own * weight).sum(1) / total
        return loss

    def _expected_hf(self, p: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """hF_strict [replicas] of confusion counts in which a clip counts by its probabilities."""
        truth = functional.one_hot(y, p.shape[-1]).to(p.dtype) * weight.unsqueeze(-1)
        counts = truth.mT @ p
        earned = counts * self._credit
        true, predicted = counts.sum(-1), counts.sum(-2)
        by_column, by_row = earned.sum(-2), earned.sum(-1)
        f = 2 * by_column * by_row / (by_column * true + by_row * predicted).clamp_min(_TINY)
        occurs = (true > 0).to(p.dtype)
        return (f * occurs).sum(-1) / occurs.sum(-1).clamp_min(1)

    def _contrastive(
        self, embedding: torch.Tensor, y: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Khosla et al., equation 2, over the real rows that have a partner [replicas]."""
        n, size, _ = embedding.shape
        # a floor well above zero: the gradient of a vector of zeros is 1 / eps
        z = functional.normalize(embedding, dim=-1, eps=1e-4)
        cosine = z @ z.mT / self._temperature[:n, None, None]
        label = torch.where(self._by_family[:n, None], self.families[y], y)
        is_real = weight > 0
        other = ~torch.eye(size, dtype=torch.bool, device=z.device) & is_real.unsqueeze(1)
        # a large negative number, not infinity: a batch of one has no other row at all
        log_share = functional.log_softmax(cosine.masked_fill(~other, -1e9), dim=-1)
        partner = other & (label.unsqueeze(1) == label.unsqueeze(2))
        n_partners = partner.sum(-1)
        per_row = -(log_share * partner).sum(-1) / n_partners.clamp_min(1)
        share = weight * (n_partners > 0)
        return (per_row * share).sum(1) / share.sum(1).clamp_min(_TINY)

    def _angular(
        self, cosine: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, total: torch.Tensor
    ) -> torch.Tensor:
        """Deng et al., section 2.1: the angle to the own class grows by a margin [replicas]."""
        n = len(y)
        margin = self._margin[:n, None]
        own = cosine.gather(-1, y.unsqueeze(-1)).squeeze(-1).clamp(-1 + 1e-6, 1 - 1e-6)
        moved = own * margin.cos() - (1 - own.square()).sqrt() * margin.sin()
        scores = cosine.scatter(-1, y.unsqueeze(-1), moved.unsqueeze(-1))
        log_p = functional.log_softmax(scores * self._scale[:n, None, None], dim=-1)
        per_row = -log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1)
        return (per_row * weight).sum(1) / total


def _smoothing(
    families: npt.NDArray[np.int64], over: str, share: float, *, same: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Targets [n_classes, n_classes] of the classes, with a share spread over others.

    Over ``classes``, the share is spread evenly over all of them, the own one included, as
    Szegedy et al. (CVPR 2016, section 7) do; over ``siblings``, over the other classes of the
    family. A class without siblings keeps all of its target.
    """
    n = len(families)
    own = np.eye(n)
    if over == "classes":
        spread = np.full((n, n), 1 / n)
    else:
        siblings = same & ~np.eye(n, dtype=bool)
        n_siblings = siblings.sum(axis=1, keepdims=True)
        spread = np.where(n_siblings > 0, siblings / np.maximum(n_siblings, 1), own)
    return ((1 - share) * own + share * spread).astype(np.float32)
