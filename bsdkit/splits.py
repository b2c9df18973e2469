"""Folds: who is tested when, made from the clips table and from nothing else.

Folds never depend on which clips happen to have an embedding: a backbone that fails on a
few clips would otherwise be scored on other folds than its rivals.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.csvfile import read_csv_rows, whole_number
from bsdkit.dataset import ID_COLUMNS, Clips
from bsdkit.errors import SplitError, nearest

__all__ = ["OFFICIAL_SEED", "PROTOCOLS", "Split", "inner_validation", "make_split", "shared_groups"]

IntArray = npt.NDArray[np.int64]

OFFICIAL_SEED = 1821
"""Seed of the organisers' folds: StratifiedKFold(5, shuffle=True) in metadata order."""

PROTOCOLS = ("official", "stratified", "group", "file")
"""What `make_split` can make; ``file`` reads the folds from a CSV of ids."""


@dataclass(frozen=True)
class Split:
    """Which fold tests each clip.

    Attributes:
        name: what the report calls it.
        fold: test fold [n_clips] of each clip; -1 for a clip that is only trained on.
        n_folds: the number of folds.
        seed: what the folds were drawn with.
    """

    name: str
    fold: IntArray
    n_folds: int
    seed: int

    def test(self, k: int) -> IntArray:
        """Rows of the clips that fold k tests, ascending."""
        return np.flatnonzero(self.fold == k)

    def train(self, k: int) -> IntArray:
        """Rows of the clips that fold k may train on, ascending."""
        return np.flatnonzero(self.fold != k)

    def __iter__(self) -> Iterator[tuple[IntArray, IntArray]]:
        """(train rows, test rows) of each fold."""
        return ((self.train(k), self.test(k)) for k in range(self.n_folds))

    @property
    def tested(self) -> IntArray:
        """Rows of all clips that some fold tests, ascending."""
        return np.flatnonzero(self.fold >= 0)

    def digest(self, clips: Clips) -> str:
        """A hash of (clip id, fold) in row order: two splits agree if and only if it does."""
        pairs = [[str(clip), int(k)] for clip, k in zip(clips.ids, self.fold, strict=True)]
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()

    def unseen(self, labels: IntArray) -> list[tuple[int, int]]:
        """(fold, class) pairs where a tested class does not occur in training."""
        return [
            (k, int(c))
            for k, (train, test) in enumerate(self)
            for c in np.setdiff1d(labels[test], labels[train])
        ]


def make_split(
    protocol: str,
    clips: Clips,
    *,
    n_folds: int = 5,
    seed: int = OFFICIAL_SEED,
    path: Path | str | None = None,
) -> Split:
    """Folds of labelled clips.

    Args:
        protocol: ``official`` (the organisers' five development folds), ``stratified``
            (the same with other folds or seed), ``group`` (stratified as far as possible
            with no uploader on two sides), or ``file``.
        clips: the clips table.
        n_folds: how many folds; ``official`` takes 5.
        seed: of the shuffle; ``official`` takes 1821.
        path: for ``file``: a CSV with an id column and ``fold``.

    Raises:
        SplitError: clips without labels, a class with fewer clips than folds, fewer groups
            than folds, or a file whose ids are not those of the table.
    """
    if protocol not in PROTOCOLS:
        raise SplitError(f"unknown split {protocol!r}: {nearest(protocol, PROTOCOLS)}")
    if protocol == "file":
        if path is None:
            raise SplitError("split 'file' needs the path of a CSV with the columns id,fold")
        return _split_from_file(Path(path), clips)
    if protocol == "official":
        n_folds, seed = 5, OFFICIAL_SEED
    _check_splittable(clips, n_folds)
    # scikit-learn takes half a second to import; reading a store or a help text should not.
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    fold = np.full(len(clips), -1, np.int64)
    nothing = np.zeros(len(clips))
    if protocol == "group":
        groups = clips.groups
        n_groups = len(np.unique(groups))
        if n_groups < n_folds:
            raise SplitError(
                f"{n_groups} uploaders cannot be spread over {n_folds} folds; "
                "use fewer folds or split: stratified"
            )
        maker = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # rare classes have fewer uploaders than folds; `Split.unseen` reports them
            warnings.simplefilter("ignore", UserWarning)
            parts = list(maker.split(nothing, clips.labels, groups))
    else:
        maker = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        parts = list(maker.split(nothing, clips.labels))
    for k, (_, test) in enumerate(parts):
        fold[test] = k
    return Split(protocol, fold, n_folds, seed)


def _check_labelled(clips: Clips) -> None:
    if not clips.is_labelled:
        n_missing = int((clips.labels < 0).sum())
        raise SplitError(
            f"{n_missing} of {len(clips)} clips have no label, so they cannot be trained or "
            "scored on; use `bsdkit predict` for unlabelled clips"
        )


def _check_splittable(clips: Clips, n_folds: int) -> None:
    _check_labelled(clips)
    if n_folds < 2:
        raise SplitError(f"folds: {n_folds} cannot test anything; give 2 or more")
    counts = np.bincount(clips.labels, minlength=len(clips.taxonomy))
    rare = [i for i in np.flatnonzero(counts) if counts[i] < n_folds]
    if rare:
        named = ", ".join(f"{clips.taxonomy.labels[i]} ({counts[i]})" for i in rare)
        raise SplitError(
            f"fewer clips than the {n_folds} folds in class {named}; "
            f"use folds: {max(2, int(counts[rare].min()))} at most, or leave the class out"
        )


def _split_from_file(path: Path, clips: Clips) -> Split:
    _check_labelled(clips)
    header, rows = read_csv_rows(path, SplitError, "the folds")
    id_column = next((name for name in ID_COLUMNS if name in header), None)
    if id_column is None or "fold" not in header:
        raise SplitError(
            f"{path} has the columns {', '.join(header) or 'none'}; expected sound_id,fold"
        )
    folds: dict[str, int] = {}
    for line, fields in rows:
        clip, text = fields[header.index(id_column)].strip(), fields[header.index("fold")].strip()
        if clip in folds:
            raise SplitError(f"{path} line {line}: id {clip!r} stands twice")
        number = whole_number(text)
        if number is None:
            raise SplitError(f"{path} line {line}: fold {text!r} is not a whole number")
        folds[clip] = number
    missing = [clip for clip in clips.ids if clip not in folds]
    unknown = set(folds).difference(clips.ids)
    if missing or unknown:
        example = missing[0] if missing else sorted(unknown)[0]
        raise SplitError(
            f"{path} must name every clip of the table once: {len(missing)} ids are missing, "
            f"{len(unknown)} are unknown, e.g. {example!r}"
        )
    used = sorted(set(folds.values()) - {-1})
    if not used or used != list(range(len(used))):
        raise SplitError(f"{path}: folds must be numbered 0, 1, ... without gaps (-1: train only)")
    fold = np.array([folds[clip] for clip in clips.ids], np.int64)
    if len(used) == 1 and (fold == 0).all():
        raise SplitError(
            f"{path}: the only fold tests every clip, so none is left to train on; "
            "use two folds, or -1 for clips to train on"
        )
    return Split(path.stem, fold, len(used), 0)


def inner_validation(
    rows: IntArray,
    labels: IntArray,
    groups: IntArray | None,
    *,
    fraction: float = 0.2,
    seed: int = OFFICIAL_SEED,
) -> tuple[IntArray, IntArray]:
    """(fit rows, validation rows) of one fold's training rows, both ascending.

    Without groups this is the organisers' StratifiedShuffleSplit(1, 0.2, 1821); with groups
    no group stands on both sides. A class with a single clip stays on the fitting side.

    Args:
        rows: row numbers that may be trained on.
        labels: class positions [n_clips].
        groups: group numbers [n_clips], or None.
        fraction: share of the rows to validate on.
        seed: of the shuffle.

    Raises:
        SplitError: too few rows to put any aside.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedShuffleSplit

    rows = np.sort(rows)
    is_held_out = np.zeros(len(rows), bool)
    if groups is not None:
        n_parts = max(2, round(1 / fraction))
        # a group with the only clip of a class must be fitted, or nobody would know the class
        counts = np.bincount(labels[rows])
        rare = np.unique(groups[rows[counts[labels[rows]] == 1]])
        candidates = np.flatnonzero(~np.isin(groups[rows], rare))
        n_groups = len(np.unique(groups[rows[candidates]]))
        n_most = int(np.bincount(labels[rows[candidates]]).max()) if len(candidates) else 0
        if n_groups < n_parts or n_most < n_parts:
            raise SplitError(
                f"{n_groups} uploaders with at most {n_most} clips of a class are too few to put "
                f"{fraction:.0%} of a training fold aside for validation; write validation: 0"
            )
        maker = StratifiedGroupKFold(n_parts, shuffle=True, random_state=seed)
        chosen_rows = rows[candidates]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            parts = maker.split(chosen_rows, labels[chosen_rows], groups[chosen_rows])
            _, held_out = next(iter(parts))
        is_held_out[candidates[held_out]] = True
    else:
        counts = np.bincount(labels[rows])
        candidates = np.flatnonzero(counts[labels[rows]] >= 2)
        n_classes = len(np.unique(labels[rows[candidates]]))
        n_held_out = max(n_classes, int(np.ceil(fraction * len(candidates))))
        if len(candidates) - n_held_out < n_classes or not n_classes:
            raise SplitError(
                f"{len(rows)} training clips are too few to put {fraction:.0%} of them aside; "
                "write validation: 0"
            )
        share = fraction if n_held_out == int(np.ceil(fraction * len(candidates))) else n_held_out
        shuffle = StratifiedShuffleSplit(1, test_size=share, random_state=seed)
        _, held_out = next(shuffle.split(candidates, labels[rows[candidates]]))
        is_held_out[candidates[held_out]] = True
    return rows[~is_held_out], rows[is_held_out]


def shared_groups(split: Split, groups: IntArray) -> IntArray:
    """Group numbers with clips on both sides of some fold, ascending; empty when disjoint."""
    shared = [np.intersect1d(groups[train], groups[test]) for train, test in split]
    return np.unique(np.concatenate(shared)) if shared else np.array([], np.int64)
