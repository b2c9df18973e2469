"""Embeddings that others computed, brought into a store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bsdkit.errors import IncompleteStore, StoreError
from bsdkit.store.feature import FAILED, OK, FeatureRows, feature_path, write_feature
from bsdkit.store.store import Store

__all__ = ["import_npy_folder"]


def import_npy_folder(
    store: Store,
    folder: Path,
    feature: str,
    origin: str,
    *,
    progress: Callable[[int], None] | None = None,
) -> Path:
    """The feature file made of a folder with one ``<clip id>.npy`` a clip.

    This is how the organisers ship their CLAP vectors. A clip of the table without a file
    becomes a failed row; files of other clips are left alone.

    Args:
        store: the store whose clips table says which clips are wanted.
        folder: the folder of .npy files, each [dim] or [1, dim].
        feature: the feature's name, e.g. ``clap-fusion.audio``.
        origin: where the vectors come from, in words; it is part of the spec.
        progress: called with the number of clips done.

    Raises:
        IncompleteStore: no clip of the table has a file there.
        StoreError: a file cannot be read, is not finite, or has another length than the rest.
    """
    if not folder.is_dir():
        raise StoreError(f"no folder {folder}; give the folder that holds <clip id>.npy files")
    vectors: dict[int, np.ndarray] = {}
    digests = [""] * len(store.clips)
    dim = 0
    for i, clip in enumerate(store.clips.ids):
        path = folder / f"{clip}.npy"
        if path.is_file():
            data = path.read_bytes()
            try:
                vector = np.load(path, allow_pickle=False).reshape(-1)
            except (ValueError, OSError, EOFError) as error:
                raise StoreError(f"{path} is no .npy file of numbers: {error}") from None
            dim = dim or len(vector)
            if len(vector) != dim or not np.isfinite(vector).all():
                raise StoreError(
                    f"{path} has {len(vector)} numbers"
                    + (f", the first file has {dim}" if len(vector) != dim else ", not all finite")
                )
            vectors[i] = vector.astype(np.float32)
            digests[i] = hashlib.sha256(data).hexdigest()
        if progress:
            progress(i + 1)
    if not vectors:
        raise IncompleteStore(
            f"{folder} holds no <clip id>.npy for any of the {len(store.clips)} clips of "
            f"{store.path}; the first would be {store.clips.ids[0]}.npy"
        )
    n = len(store.clips)
    embedding = np.zeros((n, dim), np.float32)
    for i, vector in vectors.items():
        embedding[i] = vector
    has_vector = np.isin(np.arange(n), list(vectors))
    digests_array, reasons = np.empty(n, object), np.empty(n, object)
    digests_array[:] = digests
    reasons[:] = ["" if ok else "no .npy file for this clip" for ok in has_vector]
    state = np.where(has_vector, OK, FAILED).astype(np.uint8)
    rows = FeatureRows(store.clips.ids, digests_array, state, reasons, embedding)
    spec = {"backbone": "imported", "origin": origin, "dim": dim, "dtype": "float32"}
    path = feature_path(store.path, feature, spec)
    write_feature(path, feature, spec, rows, {"imported_from": folder.name})
    return path
