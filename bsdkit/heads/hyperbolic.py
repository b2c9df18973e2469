"""Class prototypes in hyperbolic space, where a tree has room to spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bsdkit.errors import HeadError
from bsdkit.heads.base import added
from bsdkit.heads.registry import register
from bsdkit.heads.torch_head import TorchHead

__all__ = ["HyperbolicHead", "clip_norm", "exponential_map", "poincare_distance"]

_TINY = 1e-12
_LARGEST_RADIUS = 4.0  # 1 - tanh(4)^2 is 1.3e-3: float32 still tells points apart there


def clip_norm(v: torch.Tensor, largest: float) -> torch.Tensor:
    """Vectors [..., dim] shortened to length `largest` where they are longer.

    Guo et al., "Clipped Hyperbolic Classifiers Are Super-Hyperbolic Classifiers", CVPR 2022:
    without it features run to the edge of the ball, where gradients vanish.
    """
    return v * (largest / _length(v)).clamp_max(1.0)


def exponential_map(v: torch.Tensor) -> torch.Tensor:
    """Points [..., dim] of the unit ball that tangent vectors at the origin [..., dim] lead to.

    Ganea et al., "Hyperbolic Neural Networks", NeurIPS 2018, lemma 2 at the origin, for
    curvature -1: tanh(|v|) v / |v|, at distance 2 |v| from the origin.
    """
    length = _length(v)
    return v * (length.tanh() / length)


def poincare_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Distance [...] between points [..., dim] of the unit ball, which broadcast.

    Nickel and Kiela, "Poincare Embeddings for Learning Hierarchical Representations", NeurIPS
    2017, equation 1: arcosh(1 + 2 |x - y|^2 / ((1 - |x|^2)(1 - |y|^2))), written as
    2 arsinh(|x - y| / sqrt(...)), which is exact for near points too.
    """
    room = (1 - x.square().sum(-1)) * (1 - y.square().sum(-1))
    return 2 * (_length(x - y).squeeze(-1) * room.rsqrt()).arcsinh()


def _length(v: torch.Tensor) -> torch.Tensor:
    """Length [..., 1], never quite 0, so that its gradient is finite everywhere."""
    return (v.square().sum(-1, keepdim=True) + _TINY).sqrt()


class PoincareClassifier(nn.Module):
    """A perceptron into the Poincare ball; logits are minus the distances to class prototypes.

    Prototypes are exponential maps of parameters, as Khrulkov et al., "Hyperbolic Image
    Embeddings", CVPR 2020, classify by distances to prototypes in the ball. The penalty is
    ours; see `HyperbolicHead`.

    Args:
        n_features: width of the concatenated inputs.
        hidden: width of the hidden layer.
        dropout: rate after the activation.
        dim: dimensions of the ball.
        radius: largest length of a tangent vector.
        scale: what distances are multiplied by at the start; it is learned.
        families: family number [n_classes] of each class, 0 to n_families - 1.
        hierarchy_weight: of the penalty; 0 for no family prototypes.
        hierarchy_margin: of the penalty, in units of distance.
        with_cosine: whether cosines to class directions are wanted.
        parent_distance: weight of a clip's distance to its family's prototype.
    """

    siblings: torch.Tensor
    families: torch.Tensor

    def __init__(
        self,
        n_features: int,
        hidden: int,
        dropout: float,
        dim: int,
        radius: float,
        scale: float,
        families: npt.NDArray[np.int64],
        hierarchy_weight: float,
        hierarchy_margin: float,
        with_cosine: bool,
        parent_distance: float = 0.0,
    ) -> None:
        super().__init__()
        self.radius, self.scale, self.with_cosine = radius, scale, with_cosine
        self.hierarchy_weight, self.hierarchy_margin = hierarchy_weight, hierarchy_margin
        self.tangent = nn.Sequential(
            nn.Linear(n_features, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, dim)
        )
        # In most dimensions, about half the largest length.
        self.class_vectors = nn.Parameter(torch.randn(len(families), dim) * (radius / 2 / dim**0.5))
        # The scale's logarithm, so that weight decay pulls it to where it started. It is a
        # vector, since a stack's gradients have an axis beside that of the replicas.
        self.log_scale = nn.Parameter(torch.zeros(1))
        sizes = np.bincount(families)
        siblings = np.flatnonzero(sizes[families] > 1)
        self.parent_distance = parent_distance if len(siblings) else 0.0
        self.has_hierarchy = hierarchy_weight > 0 and len(siblings) > 0
        if self.has_hierarchy or self.parent_distance:
            # Only families of several classes have a prototype, and start near the origin.
            numbers = np.unique(families[siblings], return_inverse=True)[1]
            n_families = int(numbers.max()) + 1
            vectors = torch.randn(n_families, dim) * (radius / 4 / dim**0.5)
            self.family_vectors = nn.Parameter(vectors)
            # They follow from the taxonomy, so they are no part of the fitted state.
            self.register_buffer("siblings", torch.from_numpy(siblings), persistent=False)
            self.register_buffer("families", torch.from_numpy(numbers), persistent=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits [batch, n_classes] and tangent vectors [batch, dim] of [batch, n_features].

        Beside them the penalty, where there is a hierarchy; ``class_penalty`` [batch, n_classes],
        the weighted distance to the prototype of each class's family (0 for a class alone in
        its family), where that is wanted; and cosines [batch, n_classes] of tangent vectors and
        class vectors, where they are wanted.
        """
        tangent = self.tangent(x)
        class_vectors = clip_norm(self.class_vectors, self.radius)
        points = exponential_map(clip_norm(tangent, self.radius))
        prototypes = exponential_map(class_vectors)
        distances = poincare_distance(points.unsqueeze(-2), prototypes)
        output = {
            "logits": -self.scale * self.log_scale.exp() * distances,
            "embedding": tangent,
        }
        if self.has_hierarchy:
            output["penalty"] = self.hierarchy_weight * self._penalty(class_vectors, prototypes)
        if self.parent_distance:
            parents = exponential_map(clip_norm(self.family_vectors, self.radius))[self.families]
            far = poincare_distance(points.unsqueeze(-2), parents)
            into = nn.functional.one_hot(self.siblings, len(class_vectors)).to(far.dtype)
            output["class_penalty"] = self.parent_distance * (far @ into)
        if self.with_cosine:
            directions = self.class_vectors / _length(self.class_vectors)
            output["cosine"] = (tangent / _length(tangent)) @ directions.mT
        return output

    def _penalty(self, class_vectors: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        vectors = clip_norm(self.family_vectors, self.radius)
        parents = exponential_map(vectors)[self.families]
        near = poincare_distance(prototypes[self.siblings], parents).mean()
        own = 2 * _length(class_vectors[self.siblings])  # distance to the origin
        above = 2 * _length(vectors)[self.families]
        # Twice, because a class that moves outwards also moves away from its family: at once the
        # shortfall, the two terms would cancel and depth be worth nothing.
        return near + 2 * (self.hierarchy_margin + above - own).clamp_min(0).mean()


@register("hyperbolic")
@dataclass(kw_only=True, eq=False, repr=False)
class HyperbolicHead(TorchHead):
    """Distances to class prototypes in the Poincare ball, families nearer to its centre.

    Linear to `hidden`, GELU, dropout, Linear to `dim`; the result is clipped in length and
    mapped into the ball, and minus its distances to the classes' prototypes, times a learned
    scale, are the logits. The GISP@HEU submission to DCASE 2026 Task 1 names hyperbolic
    embeddings, ArcFace and the contrastive loss without their settings; how they are joined
    here is ours: `arcface_weight` works on the angles at the ball's centre,
    `contrastive_weight` on the vectors before the map.

    The penalty that ties classes to families is ours, after the observation of Nickel and
    Kiela (NeurIPS 2017, section 3) that the general comes to lie near the centre: the mean
    over classes with siblings of d(class, family) + 2 max(0, margin + d(0, family) -
    d(0, class)), d being the distance between prototypes.

    Args:
        hidden: width of the hidden layer.
        dropout: rate after the activation.
        dim: dimensions of the ball.
        radius: largest length of a vector before it is mapped into the ball, up to 4: there
            it lies at distance 2 * radius from the centre.
        scale: what distances are multiplied by at the start; it is learned.
        hierarchy_weight: of the penalty; 0 for none.
        hierarchy_margin: of the penalty: how much nearer to the centre a family is to lie.
        parent_distance: weight of the mean distance between a clip's point and its family's
            prototype, for clips whose class has siblings; 0 for none. GISP@HEU (report, section
            2.3) brings the representation of the family into hyperbolic space so that children
            stay near their parent, and gives no formula; this one is ours.
    """

    hidden: int = 512
    dropout: float = 0.3
    dim: int = 64
    radius: float = 1.0
    scale: float = 4.0
    hierarchy_weight: float = 0.1
    hierarchy_margin: float = 0.5
    parent_distance: float = added(0.0, uses_families="a hyperbolic distance to the family")

    gives_embedding: ClassVar[bool] = True
    gives_cosine: ClassVar[bool] = True

    def check(self) -> None:
        """See `Head.check`."""
        super().check()
        for name, is_right, expected in (
            ("dim", self.dim >= 1, "1 or more"),
            ("radius", 0 < self.radius <= _LARGEST_RADIUS, f"above 0, up to {_LARGEST_RADIUS:g}"),
            ("scale", self.scale > 0, "more than 0"),
            ("hierarchy_weight", self.hierarchy_weight >= 0, "0 or more"),
            ("hierarchy_margin", self.hierarchy_margin >= 0, "0 or more"),
            ("parent_distance", self.parent_distance >= 0, "0 or more"),
        ):
            if not is_right:
                raise HeadError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    def build(self, n_features: int, n_classes: int) -> nn.Module:
        """See `TorchHead.build`."""
        return PoincareClassifier(
            n_features,
            self.hidden,
            self.dropout,
            self.dim,
            self.radius,
            self.scale,
            self.class_families(n_classes),
            self.hierarchy_weight,
            self.hierarchy_margin,
            with_cosine=self.arcface_weight > 0,
            parent_distance=self.parent_distance,
        )
