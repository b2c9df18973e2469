"""Shards that several processes or machines made, joined into one store, with proof.

Each part of an extraction (``--shard 2/8``) leaves shards under ``.parts/`` of its store. The
merge joins the shards of one store or of many, and refuses to write a feature unless every
clip of the table stands in it exactly once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bsdkit.errors import CorruptStore, IncompleteStore, StoreError
from bsdkit.location import as_location
from bsdkit.store.clips import write_clips
from bsdkit.store.failures import failures_path, write_failures
from bsdkit.store.feature import FAILED, FeatureInfo, FeatureRows, read_feature, read_info
from bsdkit.store.kinds import Spec
from bsdkit.store.shards import ShardFolder, locked
from bsdkit.store.store import Store

__all__ = ["MergeReport", "merge_stores"]


@dataclass(frozen=True)
class MergeReport:
    """What became of one feature.

    Attributes:
        path: the merged file.
        feature: its name.
        n_rows: clips in it, each once.
        n_failed: clips in it whose embedding failed.
        n_shards: shards that it was made of.
    """

    path: Path
    feature: str
    n_rows: int
    n_failed: int
    n_shards: int


@dataclass
class _Part:
    info: FeatureInfo
    rows: FeatureRows
    is_shard: bool


def merge_stores(target: Path | str, sources: Sequence[Path | str] = ()) -> list[MergeReport]:
    """Joins the shards of stores into feature files of one store.

    Nothing is written unless all is well; the sources are left as they are.

    Args:
        target: the store that gets the files; its own shards are joined too. Where it is not
            there yet, it gets the clips table of the first source.
        sources: other stores with the same clips.

    Raises:
        StoreError: there is nothing to join, the stores hold different clips, or a clip
            stands in two shards.
        IncompleteStore: a clip is in none.
        CorruptStore: a shard does not match its checksum.
    """
    target = as_location(target)
    places = list(dict.fromkeys([target, *map(as_location, sources)]))
    stores = [
        Store(place) for place in places if place != target or (target / "clips.h5").is_file()
    ]
    clips = stores[0].clips
    for store in stores[1:]:
        if not np.array_equal(store.clips.ids, clips.ids):
            both = set(store.clips.ids) & set(clips.ids)
            raise StoreError(
                f"{store.path} holds {len(store.clips)} clips and {stores[0].path} {len(clips)}, "
                f"{len(both)} of them in common or in another order; only stores of one dataset "
                "can be merged"
            )
    parts: dict[str, list[_Part]] = {}
    for store in stores:
        for stem, found in _parts_of(store).items():
            parts.setdefault(stem, []).extend(found)
    parts = {stem: found for stem, found in parts.items() if _is_to_merge(found, target)}
    if not parts:
        raise StoreError(
            f"{', '.join(map(str, places))}: no shards to merge; make them with "
            "bsdkit extract --shard 1/2 and so on"
        )
    specs: list[tuple[str, Spec]] = [
        (found[0].info.feature, found[0].info.spec) for found in parts.values()
    ]
    reports = []
    with locked(target, specs, None):
        wanted = clips.ids.tolist()
        for found in parts.values():  # all are proven before one is written
            _prove(found, wanted)
        if not (target / "clips.h5").is_file():
            write_clips(target / "clips.h5", clips)
        for found in parts.values():
            info = found[0].info
            folder = ShardFolder(target, info.feature, info.spec)
            ordered = sorted(found, key=lambda part: part.is_shard)  # shards replace older rows
            rows = folder.merge([part.rows for part in ordered], clips.ids, info.provenance)
            folder.remove_folder()
            write_failures(failures_path(target, info.feature), rows, {})
            for of_part in target.glob(f"failures-{info.feature}.*-of-*.csv"):
                of_part.unlink()
            n_shards = sum(part.is_shard for part in found)
            n_failed = int((rows.state == FAILED).sum())
            reports.append(MergeReport(folder.final, info.feature, len(rows), n_failed, n_shards))
    return reports


def _parts_of(store: Store) -> dict[str, list[_Part]]:
    """The finished files and the shards of a store, by the stem of the final file."""
    parts: dict[str, list[_Part]] = {}
    shards = sorted(store.path.glob(".parts/*/part-*.h5"))
    for path in [*store.feature_files(), *shards]:
        is_shard = path.parent != store.path
        info, rows = read_info(path), read_feature(path, with_segments=True)
        if info.checksum != rows.checksum():
            raise CorruptStore(
                f"{path} does not match its checksum; delete it and run its part of the "
                "extraction again"
            )
        stem = path.parent.name if is_shard else path.stem
        parts.setdefault(stem, []).append(_Part(info, rows, is_shard))
    return parts


def _is_to_merge(parts: Sequence[_Part], target: Path) -> bool:
    """Whether a feature has shards, or is finished elsewhere and not in the target."""
    return any(part.is_shard for part in parts) or all(
        part.info.path.parent != target for part in parts
    )


def _prove(parts: list[_Part], wanted: list[str]) -> None:
    """Drops copies of a shard, then shows that every clip has exactly one shard or old row.

    Raises:
        StoreError: a clip stands in two different shards or finished files, or only some of
            them have windows' vectors.
        IncompleteStore: a clip stands in none.
    """
    seen: set[str] = set()
    for part in list(parts):  # the same file may have been copied to two stores
        if part.info.checksum in seen:
            parts.remove(part)
        seen.add(part.info.checksum)
    feature = parts[0].info.feature
    for is_shard in (True, False):
        counts = Counter(
            clip for part in parts if part.is_shard == is_shard for clip in part.rows.ids
        )
        twice = [clip for clip, n in counts.items() if n > 1]
        if twice:
            holders = [p.info.path for p in parts if twice[0] in set(p.rows.ids)]
            raise StoreError(
                f"{feature}: {len(twice)} clips stand twice, e.g. {twice[0]} in "
                f"{' and '.join(map(str, holders))}; delete the one that is wrong"
            )
    in_shards = {clip for part in parts if part.is_shard for clip in part.rows.ids}
    for part in list(parts):  # a finished file of which shards replace every row
        if not part.is_shard and in_shards.issuperset(part.rows.ids):
            parts.remove(part)
    if len({part.rows.segments is not None for part in parts}) > 1:
        raise StoreError(
            f"{feature}: some shards have windows' vectors and some have not; embed all of them "
            "with --keep-segments, or none"
        )
    known = {clip for part in parts for clip in part.rows.ids}
    missing = [clip for clip in wanted if clip not in known]
    if missing:
        raise IncompleteStore(
            f"{feature}: {len(missing)} of {len(wanted)} clips are in no shard, e.g. "
            f"{missing[0]}; run the parts of the extraction that did not finish (their --shard "
            "lines, again), then merge"
        )
