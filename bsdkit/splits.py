"""Folds: who is tested when, made from the clips table and from nothing else.

Folds never depend on which clips happen to have an embedding: a backbone that fails on a
few clips would otherwise be scored on other folds than its rivals.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.csvfile import read_csv_rows, whole_number
from bsdkit.dataset import ID_COLUMNS, Clips
from bsdkit.dataset.groups import Grouping, GroupKey, column_values, copies, group_clips, numbered
from bsdkit.errors import SplitError, nearest

__all__ = [
    "OFFICIAL_SEED",
    "PROTOCOLS",
    "Split",
    "check_protocol",
    "inner_validation",
    "make_split",
    "shared_groups",
]

IntArray = npt.NDArray[np.int64]

OFFICIAL_SEED = 1821
"""Seed of the organisers' folds: StratifiedKFold(5, shuffle=True) in metadata order."""

PROTOCOLS = ("official", "stratified", "group", "group:COLUMN", "time:COLUMN", "file")
"""What `make_split` can make; ``file`` reads the folds from a CSV of ids. ``group`` keeps uploaders
apart, ``group:COLUMN`` those of another column (see `GroupKey.parse`), and ``time:COLUMN`` trains
on what is earlier than all that it tests."""


@dataclass(frozen=True)
class Split:
    """Which fold tests each clip.

    Attributes:
        name: what the report calls it.
        fold: test fold [n_clips] of each clip; -1 for a clip that is only trained on.
        n_folds: the number of folds.
        seed: what the folds were drawn with.
        grouping: the clips that no fold takes apart, which whatever is set aside within the
            training clips must not take apart either; None where the folds know no groups.
    """

    name: str
    fold: IntArray
    n_folds: int
    seed: int
    grouping: Grouping | None = None

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

    @property
    def group_values(self) -> list[tuple[GroupKey, npt.NDArray[np.object_]]]:
        """(key, its value [n_clips], empty where unknown) of what is kept apart."""
        g = self.grouping
        return [] if g is None else [(key, g.values[str(key)]) for key in g.keys]

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


def check_protocol(protocol: str) -> None:
    """Refuses what `make_split` cannot make.

    Raises:
        SplitError: no such protocol, or no column or pattern where one is expected.
    """
    kind, colon, argument = protocol.partition(":")
    if not colon and kind in PROTOCOLS:
        return
    if kind == "group" and colon:
        GroupKey.parse(argument)
        return
    if kind == "time" and argument.strip():
        return
    raise SplitError(f"unknown split {protocol!r}: {nearest(protocol, PROTOCOLS)}")


def make_split(
    protocol: str,
    clips: Clips,
    *,
    n_folds: int = 5,
    seed: int = OFFICIAL_SEED,
    path: Path | str | None = None,
) -> Split:
    """Folds of labelled clips.

    Clips with equal sounds stand on one side of every fold that is made here; ``official`` and
    ``file`` are others' folds and stay as they are.

    Args:
        protocol: ``official`` (the organisers' five development folds), ``stratified``
            (the same with other folds or seed), ``group`` (stratified as far as possible
            with no uploader on two sides), ``group:COLUMN`` (the same by another column or
            several, see `GroupKey.parse`), ``time:COLUMN`` (one fold: the latest 1/n_folds of
            the clips, trained on all that are earlier), or ``file``.
        clips: the clips table.
        n_folds: how many folds; ``official`` takes 5.
        seed: of the shuffle; ``official`` takes 1821.
        path: for ``file``: a CSV with an id column and ``fold``.

    Raises:
        SplitError: clips without labels, a class with fewer clips than folds, fewer groups
            than folds, a column that the clips do not have, or a file whose ids are not those
            of the table.
    """
    check_protocol(protocol)
    kind, _, argument = protocol.partition(":")
    if kind == "file":
        if path is None:
            raise SplitError("split 'file' needs the path of a CSV with the columns id,fold")
        return _split_from_file(Path(path), clips)
    if kind == "time":
        return _split_by_time(argument.strip(), clips, n_folds)
    if kind == "official":
        n_folds, seed = 5, OFFICIAL_SEED
    _check_splittable(clips, n_folds)
    # scikit-learn takes half a second to import; reading a store or a help text should not.
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    grouping = None
    if kind == "group":
        grouping = group_clips(clips, GroupKey.parse(argument or "uploader"))
    elif kind == "stratified" and copies(clips).any():
        grouping = group_clips(clips, ())
    if grouping is not None:
        n_groups = len(np.unique(grouping.numbers))
        if n_groups < n_folds:
            raise SplitError(
                f"{n_groups} groups by {grouping.name} cannot be spread over {n_folds} folds; "
                "use fewer folds or split: stratified"
            )
        maker = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # rare classes have fewer groups than folds; `Split.unseen` reports them
            warnings.simplefilter("ignore", UserWarning)
            parts = list(maker.split(np.zeros(len(clips)), clips.labels, grouping.numbers))
    else:
        maker = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        parts = list(maker.split(np.zeros(len(clips)), clips.labels))
    fold = np.full(len(clips), -1, np.int64)
    for k, (_, test) in enumerate(parts):
        fold[test] = k
    return Split(protocol, fold, n_folds, seed, grouping)


def _split_by_time(column: str, clips: Clips, n_folds: int) -> Split:
    """One fold: the latest clips, of whose time and sounds no training clip is."""
    _check_labelled(clips)
    times = _times(clips, column)
    order = np.sort(times)
    first = order[min(len(order) - 1, len(order) - max(1, len(order) // n_folds))]
    is_test = times >= first
    if is_test.all():
        raise SplitError(
            f"time:{column}: no clip is earlier than the {int(is_test.sum())} latest ones, so none "
            "is left to train on"
        )
    # a sound that was there before is no news
    known = set(clips.sound[~is_test].tolist()) - {""}
    is_test &= ~np.isin(clips.sound.astype(str), np.array(sorted(known), str))
    if not is_test.any():
        raise SplitError(f"time:{column}: every later clip has the sound of an earlier one")
    fold = np.where(is_test, 0, -1).astype(np.int64)
    return Split(f"time:{column}", fold, 1, 0, group_clips(clips, ()))


def _times(clips: Clips, column: str) -> npt.NDArray[np.float64]:
    """When each clip was made, [n_clips], in any unit.

    Raises:
        SplitError: there is no such column, or a value is unknown or no time.
    """
    texts = column_values(clips, column)
    times = np.full(len(texts), np.nan)
    for i, text in enumerate(texts.tolist()):
        try:
            times[i] = float(text)
        except ValueError:
            try:
                moment = datetime.fromisoformat(text)
            except ValueError:
                continue
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            times[i] = moment.timestamp()
    wrong = np.flatnonzero(~np.isfinite(times))
    if len(wrong):
        raise SplitError(
            f"time:{column} is not known for {len(wrong)} of {len(clips)} clips, e.g. "
            f"{clips.ids[wrong[0]]} has {texts[wrong[0]]!r}; expected a number or a date such as "
            "2024-03-01T12:00:00; leave these clips out or give them one"
        )
    return times


def kept_apart(split: Split, clips: Clips) -> Grouping | None:
    """The groups that others' folds keep apart, found by looking; None if there are none.

    A column counts if some of its values stand for several clips and none crosses a fold.
    """
    keys = []
    for name in ("uploader", *clips.columns):
        values = column_values(clips, name)
        known = values[values != ""]
        is_apart = not len(shared_groups(split, numbered(values)))
        if len(set(known.tolist())) < len(known) and is_apart:
            keys.append(GroupKey(name))
    return group_clips(clips, keys) if keys else None


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
    split = Split(path.stem, fold, len(used), 0)
    return replace(split, grouping=kept_apart(split, clips))


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
                f"{n_groups} groups with at most {n_most} clips of a class are too few to put "
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
