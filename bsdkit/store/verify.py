"""Whether a store is what it says: checksums, coverage, numbers that cannot be right.

And how near the vectors of two stores are, such as our own and one that others published.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsdkit.errors import CorruptStore, StoreError
from bsdkit.leakage import near_duplicates
from bsdkit.store.feature import FAILED, FeatureInfo, FeatureRows, read_feature, read_info
from bsdkit.store.kinds import kind_of, spec_hash
from bsdkit.store.store import Store

__all__ = ["DURATION_BINS", "DurationRow", "FeatureReport", "compare_stores", "verify_store"]

DURATION_BINS = (0.0, 1.0, 5.0, 10.0, 20.0, 30.0, 60.0, math.inf)
"""Edges in seconds; models that take ten seconds treat what is longer in ways of their own."""

_COLLAPSED_COSINE = 0.999
_NEARLY_EQUAL_COSINE = 0.99


@dataclass(frozen=True)
class FeatureReport:
    """What was found in one feature file.

    Attributes:
        feature: its name with the first digits of its spec's hash.
        n_rows: rows in the file.
        n_missing: clips of the table without a row.
        failures: number of failed rows by reason.
        n_duplicates: rows whose numbers equal those of an earlier row (copies of a sound).
        n_near: rows of an audio embedding that another row is nearly the same as.
        faults: what makes the file unusable; empty when all is well.
        first_missing: the first clips without a row.
        n_partial: rows of clips of which only a part could be decoded.
    """

    feature: str
    n_rows: int
    n_missing: int
    failures: dict[str, int]
    n_duplicates: int
    n_near: int
    faults: tuple[str, ...]
    first_missing: tuple[str, ...]
    n_partial: int = 0


def verify_store(store: Store) -> list[FeatureReport]:
    """One report a feature file, by name."""
    reports = []
    for path in store.feature_files():
        name = path.stem
        try:
            info = read_info(path)
            name = f"{info.feature}@{info.spec_hash[:12]}"
            rows = read_feature(path, with_segments=True)
        except CorruptStore as error:
            reports.append(FeatureReport(name, 0, 0, {}, 0, 0, (str(error),), ()))
            continue
        faults = []
        if rows.checksum() != info.checksum:
            faults.append("its contents do not match its checksum; embed it again")
        if spec_hash(info.spec) != info.spec_hash or info.spec_hash[:12] not in info.path.name:
            faults.append("its spec does not match the hash in its name")
        if not len(rows):
            faults.append("it has no rows")
        if len(set(rows.ids)) != len(rows):
            faults.append("a clip id stands twice")
        faults += _older_than_source(info, rows, store)
        is_ok = rows.state != FAILED
        values = rows.embedding[is_ok].astype(np.float32)
        n_bad = int((~np.isfinite(values)).any(axis=1).sum()) if len(values) else 0
        if n_bad:
            faults.append(f"{n_bad} rows hold NaN or infinity")
        elif len(values) > 2 and not kind_of(info.spec).is_prior:
            lengths = np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
            cosine = float(np.square((values / lengths).mean(axis=0)).sum())
            if cosine > _COLLAPSED_COSINE:
                faults.append(
                    f"all rows are nearly the same (mean cosine {cosine:.4f}): "
                    "the backbone's weights are probably not loaded"
                )
        known = set(rows.ids)
        missing = [clip for clip in store.clips.ids if clip not in known]
        unique = {row.tobytes() for row in rows.embedding[is_ok]}
        reports.append(
            FeatureReport(
                feature=name,
                n_rows=len(rows),
                n_missing=len(missing),
                failures=dict(Counter(rows.reasons[~is_ok])),
                n_duplicates=int(is_ok.sum()) - len(unique),
                n_near=_n_near(values) if info.spec.get("kind") == "audio" and not n_bad else 0,
                faults=tuple(faults),
                first_missing=tuple(missing[:5]),
                n_partial=info.n_partial,
            )
        )
    return reports


def _n_near(values: npt.NDArray[np.float32]) -> int:
    everyone = np.arange(len(values))
    return near_duplicates(values, everyone, np.zeros(len(values), np.int64)).n_clips


def _older_than_source(info: FeatureInfo, rows: FeatureRows, store: Store) -> list[str]:
    """What is wrong with a feature that was made from another one which has changed since."""
    source = kind_of(info.spec).source(info.spec)
    if source is None:
        return []
    for other in store.infos():
        if other.spec != source:
            continue
        found = read_feature(other.path)
        now = dict(zip(found.ids, found.source_sha256, strict=True))
        pairs = zip(rows.ids, rows.source_sha256, strict=True)
        n_old = sum(now.get(clip, digest) != digest for clip, digest in pairs)
        if n_old:
            return [f"{n_old} rows are older than {other.feature}: run bsdkit priors again"]
    return []


@dataclass(frozen=True)
class DurationRow:
    """How near the vectors of two feature files are, for clips of some durations.

    The cosines' statistics are NaN where no clip has both vectors. A vector of zeros has
    cosine 0 with any other.

    Attributes:
        low: clips are longer than this, in seconds; NaN for clips of unknown duration.
        high: and at most this long, in seconds; NaN for clips of unknown duration.
        n: clips with a vector in both files.
        n_missing: clips without a vector in the first file.
        n_missing_against: clips without a vector in the second; a clip may lack both.
        mean: mean cosine.
        percentile_5: cosine that one clip in twenty does not reach.
        minimum: lowest cosine.
        share_above: share of clips with a cosine above 0.99.
    """

    low: float
    high: float
    n: int
    n_missing: int
    n_missing_against: int
    mean: float
    percentile_5: float
    minimum: float
    share_above: float


def compare_stores(
    store: Store,
    against: Store,
    feature: str,
    against_feature: str,
    bins: Sequence[float] = DURATION_BINS,
) -> list[DurationRow]:
    """Cosines between the vectors of two feature files, clip by clip, by duration.

    Clips are matched by id; those that only the second store knows are left out.

    Args:
        store: the store whose clips and durations count.
        against: the other store; may be the same.
        feature: a feature of the first, see `Store.info`.
        against_feature: a feature of the second.
        bins: rising edges in seconds; a clip that is exactly as long as an edge belongs below
            it (one of zero seconds to the first row).

    Returns:
        One row a duration range, and a last one for clips of unknown duration or outside the
        edges if there are any.

    Raises:
        StoreError: the vectors have different lengths; or a feature is missing (see
            `Store.info`).
    """
    ours = store.features([feature])
    theirs = against.features([against_feature])
    ours_matrix, theirs_matrix = ours.arrays[feature], theirs.arrays[against_feature]
    if ours_matrix.shape[1] != theirs_matrix.shape[1]:
        raise StoreError(
            f"{feature} of {store.path} has {ours_matrix.shape[1]} numbers a clip, "
            f"{against_feature} of {against.path} has {theirs_matrix.shape[1]}; only vectors of "
            "one model can be compared"
        )
    index = {clip: i for i, clip in enumerate(against.clips.ids)}
    places = np.array([index.get(clip, -1) for clip in store.clips.ids], np.int64)
    is_missing = ours.is_missing[:, 0]
    is_missing_against = places < 0
    known = ~is_missing_against
    is_missing_against[known] = theirs.is_missing[places[known], 0]
    both = ~is_missing & ~is_missing_against
    cosine = np.full(len(places), np.nan)
    cosine[both] = _cosines(ours_matrix[both], theirs_matrix[places[both]])

    duration = np.asarray(store.clips.duration, np.float64)
    groups = []
    for i, (low, high) in enumerate(itertools.pairwise(bins)):
        is_above = duration >= low if i == 0 else duration > low
        groups.append((float(low), float(high), is_above & (duration <= high)))
    rest = ~np.any([inside for _, _, inside in groups], axis=0)
    if rest.any():
        groups.append((math.nan, math.nan, rest))
    rows = []
    for low, high, inside in groups:
        values = cosine[inside & both]
        has_any = len(values) > 0
        rows.append(
            DurationRow(
                low=low,
                high=high,
                n=len(values),
                n_missing=int((inside & is_missing).sum()),
                n_missing_against=int((inside & is_missing_against).sum()),
                mean=float(values.mean()) if has_any else math.nan,
                percentile_5=float(np.percentile(values, 5)) if has_any else math.nan,
                minimum=float(values.min()) if has_any else math.nan,
                share_above=float((values > _NEARLY_EQUAL_COSINE).mean()) if has_any else math.nan,
            )
        )
    return rows


def _cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Cosine [n] of each row of `a` with the same row of `b`."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(wide_a, axis=1) * np.linalg.norm(wide_b, axis=1)
    return np.asarray((wide_a * wide_b).sum(axis=1) / np.maximum(lengths, 1e-24))
