"""What crosses a fold: groups, equal sounds and near-copies; and what of it is not known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.dataset import Clips
from bsdkit.dataset.groups import GroupKey, copies, numbered
from bsdkit.splits import Split, shared_groups
from bsdkit.stats import principal_axes

__all__ = [
    "NEAR_COSINE",
    "NearDuplicates",
    "SplitAudit",
    "audit_split",
    "near_duplicates",
    "said_of",
]

Float32Array = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

NEAR_COSINE = 0.999
"""Two embeddings above this cosine are taken for copies of one sound."""

_BLOCK = 1024
_SIEVE_AXES = 24


@dataclass(frozen=True)
class GroupAudit:
    """Groups by one column beside the folds.

    Attributes:
        name: the column, with its pattern.
        is_kept_apart: whether the folds were made to keep it apart.
        n_known: clips of which it is known.
        n_shared: its known values with clips on two sides of some fold.
    """

    name: str
    is_kept_apart: bool
    n_known: int
    n_shared: int

    def said(self, n_clips: int) -> str:
        """What may be said in a few words: disjoint, shared, or known for how many clips."""
        if not self.n_known:
            return f"{self.name} not known of any clip"
        parts = []
        if self.n_shared:
            many = f"{self.name}s" if self.name.isalpha() else f"groups by {self.name}"
            many = self.name if self.n_shared == 1 and self.name.isalpha() else many
            parts.append(f"{self.n_shared} {many} on two sides")
        elif self.n_known == n_clips:
            parts.append(f"no {self.name} on two sides")
        if self.n_known < n_clips:
            others = "; the others are each their own group" if self.is_kept_apart else ""
            parts.append(f"{self.name} known for {self.n_known} of {n_clips} clips{others}")
        return ", ".join(parts)


@dataclass(frozen=True)
class SplitAudit:
    """What crosses the folds of a split.

    Attributes:
        n_clips: clips of the table.
        groups: by the columns that the folds keep apart, and by uploader.
        n_equal: clips that have an equal sound under another id.
        n_copies: tested clips whose sound a training clip of their fold has too.
        n_unread: clips whose sound is not known, so that nobody can say whether it is a copy.
    """

    n_clips: int
    groups: tuple[GroupAudit, ...]
    n_equal: int
    n_copies: int
    n_unread: int

    @property
    def claims(self) -> list[str]:
        """What may be said of the split, each a few words; nothing that is not known."""
        said = [group.said(self.n_clips) for group in self.groups]
        if self.n_copies:
            said.append(f"{self.n_copies} tested clips have the sound of a training clip")
        elif self.n_equal:
            said.append(f"{self.n_equal} clips with an equal sound stand on one side")
        if self.n_unread:
            said.append(f"the sounds of {self.n_unread} clips are not known")
        return said

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, the claims in words with it."""
        return {**asdict(self), "claims": self.claims}


def audit_split(split: Split, clips: Clips) -> SplitAudit:
    """What crosses the folds of a split, as far as the clips table knows."""
    keys = [key for key, _ in split.group_values]
    audits = []
    for key in [*keys, *(k for k in [GroupKey("uploader")] if k not in keys)]:
        values = key.values(clips)
        n_known = int((values != "").sum())
        n_shared = len(shared_groups(split, numbered(values)))
        audits.append(GroupAudit(str(key), key in keys, n_known, n_shared))
    is_equal = copies(clips)
    sounds = numbered(clips.sound)
    crossing = [np.isin(sounds[test], sounds[train]).sum() for train, test in split]
    n_unread = int((clips.sound == "").sum())
    return SplitAudit(len(clips), tuple(audits), int(is_equal.sum()), int(sum(crossing)), n_unread)


def said_of(protocol: Mapping[str, Any]) -> list[str]:
    """The claims in a run's metrics of one split.

    A run of an earlier version counted shared uploaders alone, an unknown one as unshared.
    """
    if "leakage" in protocol:
        return list(protocol["leakage"]["claims"])
    n_shared = protocol["n_shared_uploaders"]
    return [f"{n_shared or 'no known'} uploaders on two sides"]


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of clips that different folds test and whose embeddings are nearly the same.

    Attributes:
        n_pairs: how many pairs.
        rows: those that stand in one, ascending.
        n_same_label: pairs of one class.
        examples: (row, row, cosine) of some pairs, nearest first.
    """

    n_pairs: int
    rows: tuple[int, ...]
    n_same_label: int
    examples: tuple[tuple[int, int, float], ...]

    @property
    def n_clips(self) -> int:
        """How many clips stand in a pair."""
        return len(self.rows)


def near_duplicates(
    X: Float32Array,
    folds: IntArray,
    labels: IntArray,
    *,
    cosine: float = NEAR_COSINE,
    n_examples: int = 30,
) -> NearDuplicates:
    """Pairs of rows in different folds with a cosine above a limit.

    Two unit vectors at cosine c are sqrt(2 - 2 c) apart, and no projection on orthonormal axes
    sets them further apart. So blocks are screened in a few dimensions, which loses no pair, and
    only what is left is compared in all of them. Rows of zeros are near nothing.

    Args:
        X: embeddings [n, dim].
        folds: the fold [n] of each row.
        labels: class positions [n].
        cosine: the limit.
        n_examples: the most pairs to name.
    """
    length = np.linalg.norm(X, axis=1, keepdims=True)
    if not length.any():
        return NearDuplicates(0, (), 0, ())
    unit = np.divide(X, length, out=np.zeros_like(X), where=length > 0)
    axes, _ = principal_axes(X[length[:, 0] > 0], _SIEVE_AXES, n_iterations=3)
    sieve = (unit @ axes).astype(np.float32)
    half, ones = np.square(sieve).sum(axis=1, keepdims=True) / 2, np.ones((len(X), 1), np.float32)
    left, right = np.hstack([sieve, -half, ones]), np.hstack([sieve, ones, -half])
    limit = cosine - 1 - 1e-4  # minus half the squared distance, with room for rounding
    n_pairs = n_same = 0
    in_pair = np.zeros(len(X), bool)
    best: list[tuple[float, int, int]] = []
    for start in range(0, len(X), _BLOCK):
        near = left[start : start + _BLOCK] @ right[start:].T > limit
        np.fill_diagonal(near, False)
        these, those = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
        if not len(these):
            continue
        exact = unit[start + these] @ unit[start + those].T
        is_pair = (exact > cosine) & (these[:, None] < those[None, :])
        is_pair &= folds[start + these, None] != folds[None, start + those]
        i, j = np.nonzero(is_pair)
        first, second = start + these[i], start + those[j]
        n_pairs += len(i)
        n_same += int((labels[first] == labels[second]).sum())
        in_pair[first] = in_pair[second] = True
        found = exact[i, j]
        nearest = np.argsort(-found, kind="stable")[:n_examples]
        best += [(float(found[k]), int(first[k]), int(second[k])) for k in nearest]
        best = sorted(best, key=lambda pair: (-pair[0], pair[1:]))[:n_examples]
    examples = tuple((a, b, min(value, 1.0)) for value, a, b in best)
    return NearDuplicates(n_pairs, tuple(np.flatnonzero(in_pair).tolist()), n_same, examples)
