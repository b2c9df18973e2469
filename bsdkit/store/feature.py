"""One feature file: the embeddings of all clips by one spec, immutable once written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from bsdkit.errors import CorruptStore
from bsdkit.location import readable
from bsdkit.store.files import (
    atomic_h5,
    open_h5,
    read_strings,
    read_texts,
    write_strings,
    write_texts,
)
from bsdkit.store.kinds import Spec, spec_hash
from bsdkit.version import __version__

__all__ = [
    "FAILED",
    "OK",
    "PARTIAL",
    "PARTIAL_FILE",
    "FeatureInfo",
    "FeatureRows",
    "feature_path",
    "read_embedding",
    "read_feature",
    "read_info",
    "write_changed_feature",
    "write_feature",
]

FORMAT = "bsdkit-feature-1"
OK, FAILED, PARTIAL = 0, 1, 2
"""Values of a row's state: of the whole clip, without an embedding, or of a part of the clip
where whoever extracted wanted that. Whatever is not FAILED has an embedding to use."""
PARTIAL_FILE = "partial file"
"""How the reason begins of a clip that failed because only a part of it can be decoded."""

_CHUNK_ROWS = 256


@dataclass(frozen=True)
class FeatureRows:
    """Embeddings of some clips, in any order.

    Attributes:
        ids: clip ids [n].
        source_sha256: hex digests [n] of what was embedded: the audio file or the text.
        state: OK, FAILED or PARTIAL [n].
        reasons: why a clip failed or is partial, or what is odd about one that is whole [n];
            mostly empty.
        embedding: [n, dim], float16 or float32; zeros where a clip failed.
        segments: window-level embeddings [m, dim], or None.
        offsets: [n + 1] rows of `segments`: clip i has offsets[i] to offsets[i + 1].
        fold: fold numbers [n], for imported out-of-fold probabilities: the fold whose models
            gave the row. None for everything else.
        other: the share of a class prior [n] that went to no class, NaN where unknown; None for
            everything else.
        replies: the replies [n] of the language model that the rows were read from, unchanged;
            None for everything else.
    """

    ids: npt.NDArray[np.object_]
    source_sha256: npt.NDArray[np.object_]
    state: npt.NDArray[np.uint8]
    reasons: npt.NDArray[np.object_]
    embedding: npt.NDArray[np.floating]
    segments: npt.NDArray[np.floating] | None = None
    offsets: npt.NDArray[np.int64] | None = None
    fold: npt.NDArray[np.int64] | None = None
    other: npt.NDArray[np.float32] | None = None
    replies: npt.NDArray[np.object_] | None = None

    def __len__(self) -> int:
        """The number of clips."""
        return len(self.ids)

    def take(self, rows: npt.NDArray[np.int64]) -> FeatureRows:
        """The rows of that position, in that order."""
        segments = offsets = None
        if self.segments is not None and self.offsets is not None:
            parts = [self.segments[self.offsets[i] : self.offsets[i + 1]] for i in rows]
            offsets = np.zeros(len(rows) + 1, np.int64)
            np.cumsum([len(part) for part in parts], out=offsets[1:])
            segments = np.concatenate(parts) if parts else self.segments[:0]
        return FeatureRows(
            self.ids[rows],
            self.source_sha256[rows],
            self.state[rows],
            self.reasons[rows],
            self.embedding[rows],
            segments,
            offsets,
            None if self.fold is None else self.fold[rows],
            None if self.other is None else self.other[rows],
            None if self.replies is None else self.replies[rows],
        )

    @staticmethod
    def concatenate(parts: Sequence[FeatureRows]) -> FeatureRows:
        """All rows of the parts, in order."""
        segments = offsets = None
        if parts[0].segments is not None:
            segments = np.concatenate([p.segments for p in parts if p.segments is not None])
            lengths = [np.diff(p.offsets) for p in parts if p.offsets is not None]
            offsets = np.zeros(sum(map(len, lengths)) + 1, np.int64)
            np.cumsum(np.concatenate(lengths), out=offsets[1:])

        def column(name: str) -> npt.NDArray[Any] | None:
            found = [getattr(p, name) for p in parts]
            return None if any(c is None for c in found) else np.concatenate(found)

        return FeatureRows(
            np.concatenate([p.ids for p in parts]),
            np.concatenate([p.source_sha256 for p in parts]),
            np.concatenate([p.state for p in parts]),
            np.concatenate([p.reasons for p in parts]),
            np.concatenate([p.embedding for p in parts]),
            segments,
            offsets,
            column("fold"),
            column("other"),
            column("replies"),
        )

    def checksum(self) -> str:
        """The sha256 of all columns but the reasons."""
        digest = hashlib.sha256()
        for strings in (self.ids, self.source_sha256):
            digest.update("\n".join(strings.tolist()).encode(errors="surrogateescape"))
        digest.update(np.ascontiguousarray(self.state).data)
        digest.update(np.ascontiguousarray(self.embedding).data)
        if self.segments is not None and self.offsets is not None:
            digest.update(np.ascontiguousarray(self.segments).data)
            digest.update(np.ascontiguousarray(self.offsets).data)
        for column in (self.fold, self.other):
            if column is not None:
                digest.update(np.ascontiguousarray(column).data)
        if self.replies is not None:
            for reply in self.replies:
                digest.update(hashlib.sha256(str(reply).encode()).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class FeatureInfo:
    """What a feature file says of itself.

    Attributes:
        path: the file.
        feature: its name, e.g. ``clap.audio``.
        spec: every fact that changes the numbers.
        spec_hash: the sha256 of the spec.
        n_rows: rows, failed ones included.
        n_failed: rows that failed.
        dim: length of an embedding.
        dtype: number type on disk.
        checksum: the sha256 of the contents when they were written.
        provenance: library versions, device and seconds of the extraction.
        n_partial: rows of clips of which only a part could be decoded.
    """

    path: Path
    feature: str
    spec: Mapping[str, object]
    spec_hash: str
    n_rows: int
    n_failed: int
    dim: int
    dtype: str
    checksum: str
    provenance: Mapping[str, object] = field(default_factory=dict)
    n_partial: int = 0


def feature_path(folder: Path, feature: str, spec: Spec) -> Path:
    """Where a store keeps a feature of that spec: ``<feature>-<12 hex digits>.h5``."""
    return folder / f"{feature}-{spec_hash(spec)[:12]}.h5"


def write_feature(
    path: Path,
    feature: str,
    spec: Spec,
    rows: FeatureRows,
    provenance: Mapping[str, object],
    *,
    is_compressed: bool = False,
) -> None:
    """Writes a feature file in one piece; it replaces `path` only when it is whole.

    Args:
        path: the file.
        feature: the feature's name.
        spec: the spec of the embeddings.
        rows: the embeddings.
        provenance: library versions, device, seconds; kept beside the spec, not in it.
        is_compressed: whether to apply shuffle and gzip (smaller, slower to read).

    Raises:
        StoreError: the disk is full or the folder cannot be written.
    """
    with atomic_h5(path) as file:
        file.attrs["format"] = FORMAT
        file.attrs["feature"] = feature
        file.attrs["spec"] = json.dumps(dict(spec), sort_keys=True, ensure_ascii=False)
        file.attrs["spec_hash"] = spec_hash(spec)
        file.attrs["bsdkit_version"] = __version__
        file.attrs["provenance"] = json.dumps(dict(provenance), sort_keys=True)
        file.attrs["checksum"] = rows.checksum()
        write_strings(file, "row", rows.ids.tolist(), is_compressed=is_compressed)
        write_strings(
            file, "source_sha256", rows.source_sha256.tolist(), is_compressed=is_compressed
        )
        # a reason may name a file, whose name may be anything
        write_texts(file, "reason", [readable(str(reason)) for reason in rows.reasons])
        file.create_dataset("state", data=rows.state)
        _write_matrix(file, "embedding", rows.embedding, is_compressed)
        if rows.segments is not None:
            _write_matrix(file, "segments", rows.segments, is_compressed)
            file.create_dataset("offsets", data=rows.offsets)
        if rows.fold is not None:
            file.create_dataset("fold", data=rows.fold)
        if rows.other is not None:
            file.create_dataset("other", data=rows.other)
        if rows.replies is not None:
            write_texts(file, "reply", rows.replies.tolist())


def write_changed_feature(
    path: Path, feature: str, spec: Spec, rows: FeatureRows, provenance: Mapping[str, object]
) -> None:
    """What `write_feature` does, unless the file is there with the same rows already.

    Raises:
        CorruptStore: the file there cannot be read.
        StoreError: the disk is full or the folder cannot be written.
    """
    if not path.is_file() or read_feature(path).checksum() != rows.checksum():
        write_feature(path, feature, spec, rows, provenance)


def _write_matrix(
    file: h5py.File, name: str, matrix: npt.NDArray[np.floating], is_compressed: bool
) -> None:
    # contiguous, which is read straight into an array; a filter needs chunks
    chunks = (min(max(len(matrix), 1), _CHUNK_ROWS), matrix.shape[1])
    filters = {"compression": "gzip", "shuffle": True, "chunks": chunks} if is_compressed else {}
    file.create_dataset(name, data=matrix, **filters)


def _read_matrix(dataset: h5py.Dataset) -> npt.NDArray[Any]:
    matrix = np.empty(dataset.shape, dataset.dtype)
    if matrix.size:
        dataset.read_direct(matrix)  # into place: dataset[()] zeroes the memory first
    return matrix


def read_info(path: Path) -> FeatureInfo:
    """What a feature file says of itself, without its numbers.

    Raises:
        CorruptStore: it is no feature file.
    """
    with open_h5(path) as file:
        try:
            if file.attrs["format"] != FORMAT:
                raise KeyError(f"format {file.attrs['format']!r}")
            spec = json.loads(file.attrs["spec"])
            n, dim = file["embedding"].shape
            state = file["state"][()]
            return FeatureInfo(
                path=path,
                feature=str(file.attrs["feature"]),
                spec=spec,
                spec_hash=str(file.attrs["spec_hash"]),
                n_rows=n,
                n_failed=int(np.count_nonzero(state == FAILED)),
                n_partial=int(np.count_nonzero(state == PARTIAL)),
                dim=dim,
                dtype=str(file["embedding"].dtype),
                checksum=str(file.attrs["checksum"]),
                provenance={
                    **json.loads(file.attrs["provenance"]),
                    "bsdkit": str(file.attrs["bsdkit_version"]),
                },
            )
        except KeyError as error:
            raise CorruptStore(
                f"{path} is an HDF5 file but no feature file of bsdkit (lacks {error})"
            ) from None


def read_embedding(
    path: Path,
) -> tuple[npt.NDArray[np.bytes_], npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """The ids [n] as UTF-8, the states [n] and the embeddings [n, dim] of a feature file.

    What heads need, and nothing that costs time: no digests, no reasons, no strings decoded.

    Raises:
        CorruptStore: it is no feature file or was truncated.
    """
    with open_h5(path) as file:
        if file.attrs.get("format") != FORMAT:
            raise CorruptStore(f"{path} is an HDF5 file but no feature file of bsdkit")
        return file["row"][()], file["state"][()], _read_matrix(file["embedding"])


def read_feature(path: Path, *, with_segments: bool = False) -> FeatureRows:
    """All rows of a feature file, in the file's order and number type.

    Raises:
        CorruptStore: it is no feature file or was truncated.
    """
    with open_h5(path) as file:
        if file.attrs.get("format") != FORMAT:
            raise CorruptStore(f"{path} is an HDF5 file but no feature file of bsdkit")
        has_segments = with_segments and "segments" in file
        return FeatureRows(
            ids=read_strings(file, "row"),
            source_sha256=read_strings(file, "source_sha256"),
            state=file["state"][()],
            reasons=read_texts(file, "reason"),
            embedding=_read_matrix(file["embedding"]),
            segments=_read_matrix(file["segments"]) if has_segments else None,
            offsets=file["offsets"][()] if has_segments else None,
            fold=file["fold"][()] if "fold" in file else None,
            other=file["other"][()] if "other" in file else None,
            replies=read_texts(file, "reply") if "reply" in file else None,
        )
