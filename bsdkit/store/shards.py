"""Shards of a feature while it is being embedded: finished ones survive anything.

A feature is written as ``.parts/<feature>-<spec12>/part-00012.h5``, each one a small
feature file that appears whole. The merge makes the final file the same way, reads it
back, and only then removes the shards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.errors import CorruptStore
from bsdkit.store.feature import FeatureRows, feature_path, read_feature, read_info, write_feature
from bsdkit.store.files import file_lock, remove_tree
from bsdkit.store.kinds import Spec, spec_hash

__all__ = ["ShardFolder", "locked"]


class ShardFolder:
    """The finished shards of one feature.

    Args:
        store: the store's folder.
        feature: the feature's name.
        spec: its spec.
    """

    def __init__(self, store: Path, feature: str, spec: Spec) -> None:
        self.feature = feature
        self.spec = spec
        self.final = feature_path(store, feature, spec)
        self.folder = store / ".parts" / self.final.stem

    @property
    def lock(self) -> Path:
        """The file to lock while writing shards or merging; see `locked`."""
        return self.folder / "lock"

    def shard(self, number: int) -> Path:
        """The path of a shard."""
        return self.folder / f"part-{number:05d}.h5"

    def clean(self) -> None:
        """Removes the temporary files of a process that was killed."""
        leftovers = [*self.folder.glob(".*.tmp")]
        leftovers += self.final.parent.glob(f".{self.final.name}.*.tmp")
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)

    def finished(self) -> list[FeatureRows]:
        """The rows of every shard that is whole; one that is not is removed.

        A shard counts only if its contents match its checksum and its spec is ours.
        """
        shards = []
        for path in sorted(self.folder.glob("part-*.h5")):
            try:
                info, rows = read_info(path), read_feature(path, with_segments=True)
                is_good = info.checksum == rows.checksum()
            except CorruptStore:
                is_good = False
            if is_good and info.spec_hash == spec_hash(self.spec):
                shards.append(rows)
            else:
                path.unlink()
        return shards

    def write(self, number: int, rows: FeatureRows, provenance: Mapping[str, object]) -> None:
        """Writes one shard; it appears whole or not at all."""
        write_feature(self.shard(number), self.feature, self.spec, rows, provenance)

    def merge(
        self,
        parts: Sequence[FeatureRows],
        order: npt.NDArray[np.object_],
        provenance: Mapping[str, object],
        *,
        is_compressed: bool = False,
    ) -> FeatureRows:
        """Makes the final file of these parts and removes the shards.

        Args:
            parts: rows; where a clip stands in several, the last one counts.
            order: clip ids; the final rows follow it, and rows of other clips are left out.
            provenance: see `write_feature`.
            is_compressed: see `write_feature`.

        Returns:
            The rows of the final file.

        Raises:
            StoreError: the disk is full; the shards are kept.
            CorruptStore: the file does not read back as it was written; the shards are kept.
        """
        rows = FeatureRows.concatenate(parts)
        index = {clip: i for i, clip in enumerate(rows.ids)}
        rows = rows.take(np.array([index[clip] for clip in order if clip in index], np.int64))
        write_feature(
            self.final, self.feature, self.spec, rows, provenance, is_compressed=is_compressed
        )
        if read_feature(self.final, with_segments=True).checksum() != rows.checksum():
            self.final.unlink()
            raise CorruptStore(
                f"{self.final} does not read back as it was written: the disk may be failing; "
                "the shards are kept, run the same line again"
            )
        self.discard()
        return rows

    def discard(self) -> None:
        """Removes the shards, and their folder once no lock file is needed."""
        for path in self.folder.glob("part-*.h5"):
            path.unlink()

    def remove_folder(self) -> None:
        """Removes the folder of a finished feature."""
        remove_tree(self.folder)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


@contextlib.contextmanager
def locked(store: Path, features: Sequence[tuple[str, Spec]], part: str | None) -> Iterator[None]:
    """Holds the right to write shards of these features.

    Args:
        store: the store's folder.
        features: name and spec of each.
        part: the part of the work, ``2/8``, which others may do the rest of at the same time;
            None for all of it, and the merge.

    Raises:
        StoreLocked: another process is doing the same part, or all of it.
    """
    with contextlib.ExitStack() as stack:
        for feature, spec in features:
            folder = ShardFolder(store, feature, spec)
            purpose = f"{folder.final} is being extracted"
            stack.enter_context(file_lock(folder.lock, purpose, is_shared=part is not None))
            if part is None:
                folder.clean()
            else:
                lock = folder.lock.with_name(f"lock-{part.replace('/', '-of-')}")
                stack.enter_context(file_lock(lock, f"part {part} of {purpose}"))
        yield
