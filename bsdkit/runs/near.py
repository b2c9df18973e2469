"""Near-copies across folds: clips that a model may have met under another name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from bsdkit.leakage import NearDuplicates, near_duplicates
from bsdkit.store.kinds import Spec, kind_of

__all__ = ["audio_feature", "near_copies"]


def audio_feature(specs: Mapping[str, Spec]) -> str:
    """The first audio embedding among features, or the first embedding; empty without any."""
    names = [name for name, spec in specs.items() if kind_of(spec).is_embedding]
    # the imported do not say what they are made from, but by their names
    names.sort(key=lambda n: specs[n].get("kind") != "audio" and not n.endswith(".audio"))
    return names[0] if names else ""


def near_copies(
    X: npt.NDArray[np.float32],
    is_there: npt.NDArray[np.bool_],
    fold: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
) -> NearDuplicates:
    """Pairs of clips on two sides of a fold whose embeddings are nearly the same.

    Args:
        X: embeddings [n_clips, dim].
        is_there: [n_clips] whether a clip has one.
        fold: of each clip [n_clips]; those that are only trained on are a fold of their own.
        labels: class positions [n_clips].
    """
    return near_duplicates(np.where(is_there[:, None], X, np.float32(0)), fold, labels)
