"""What the steps after the members may see of clips: probabilities, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

__all__ = ["Evidence"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """Member probabilities of some clips, without labels, ids or folds.

    Every fitted step maps one of these to another. A step cannot use what it is not given:
    whoever computes features from an `Evidence` cannot reach the answer, or learn a clip by
    heart.

    Attributes:
        members: [n_members, n_clips, n_classes]; NaN in the rows of clips that a member has no
            prediction for.
        mixed: what the steps so far make of them [n_clips, n_classes]; None before the members
            are averaged. No NaN.
        similarity: how near a clip's metadata are to each class [n_clips, n_classes], from a
            text encoder or a language model; None where there is none, NaN in rows without it.
    """

    members: FloatArray
    mixed: FloatArray | None = None
    similarity: FloatArray | None = None

    def __len__(self) -> int:
        """The number of clips."""
        return int(self.members.shape[1])

    def rows(self, index: npt.NDArray[np.integer]) -> Evidence:
        """The same of some clips, in that order."""
        return Evidence(
            self.members[:, index],
            None if self.mixed is None else self.mixed[index],
            None if self.similarity is None else self.similarity[index],
        )

    def with_mixed(self, mixed: FloatArray) -> Evidence:
        """The same members, averaged or decided otherwise."""
        return replace(self, mixed=mixed)

    @property
    def decided(self) -> FloatArray:
        """`mixed`, once there is one.

        Raises:
            ValueError: the members were not averaged yet.
        """
        if self.mixed is None:
            raise ValueError("the members were not averaged yet; an ensemble must come before")
        return self.mixed
