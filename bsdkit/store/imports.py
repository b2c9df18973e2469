"""What others computed, brought into a store: embeddings, and class probabilities.

A file of probabilities becomes a feature file with one column a class, so that a recipe can
name it as a member beside the heads it trains.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from bsdkit.errors import CorruptStore, IncompleteStore, StoreError
from bsdkit.store.feature import (
    FAILED,
    FORMAT,
    OK,
    FeatureRows,
    feature_path,
    read_info,
    write_feature,
)
from bsdkit.store.files import open_h5, read_strings
from bsdkit.store.kinds import IMPORTED_EMBEDDING, IMPORTED_PROBABILITIES, kind_of
from bsdkit.store.probabilities import Form, read_probabilities
from bsdkit.store.store import Store

__all__ = ["import_npy_folder", "import_probabilities", "read_folds"]

_NAME = re.compile(r"[\w.+-]+")


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
    spec = {"backbone": IMPORTED_EMBEDDING.name, "origin": origin, "dim": dim, "dtype": "float32"}
    path = feature_path(store.path, feature, spec)
    write_feature(path, feature, spec, rows, {"imported_from": folder.name})
    return path


def import_probabilities(
    store: Store,
    path: Path,
    name: str,
    *,
    origin: str = "",
    parameters: float | None = None,
    form: Form | None = None,
    missing: Literal["refuse", "skip"] = "refuse",
    extra: Literal["refuse", "ignore"] = "refuse",
) -> Path:
    """Writes the probabilities of a file into a store as the feature `name`; see `read_folds`.

    They are kept as float32 (24 significant bits, so a probability to one part in 10^7; below
    1e-38 to fewer), in the order of the store's taxonomy, with the folds of the file. An
    earlier import with the same name and the same spec is replaced.

    The spec is the origin, the form, the classes and the parameters, not the file: the
    evaluation set's file of the same models has the same spec. The file's name and sha256
    stand in the provenance; the source_sha256 of a row is that of its float64 probabilities.

    Args:
        store: the store; its clips are those that must have a row, its taxonomy the classes.
        path: the file, see `read_probabilities`.
        name: the feature's name, e.g. ``published.baseline-audio``.
        origin: where the probabilities come from, in words; part of the spec.
        parameters: millions of parameters of the models, for the record; part of the spec.
        form: what the file must hold; None for whatever it holds.
        missing: what to do with clips of the store without a row: refuse the file, or
            ``skip`` them, as failed rows with the reason.
        extra: what to do with rows of clips that the store lacks: refuse the file, or
            ``ignore`` them.

    Returns:
        The feature file.

    Raises:
        DatasetError: the file is refused, see `read_probabilities`.
        IncompleteStore: clips of the store have no row, or with ``skip`` none has one.
        StoreError: there are rows of other clips, the file has another form, the name cannot
            be used, or the feature cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise StoreError(f"feature name {name!r}: expected letters, digits and . _ + - alone")
    if parameters is not None and not (math.isfinite(parameters) and parameters >= 0):
        raise StoreError(f"parameters: {parameters} million; expected a number of at least 0")
    for other in map(read_info, sorted(store.path.glob(f"{name}-*.h5"))):
        if other.feature == name and kind_of(other.spec) is not IMPORTED_PROBABILITIES:
            raise StoreError(
                f"{store.path} has a feature {name!r} of {other.spec.get('backbone')}; give the "
                "probabilities another name (--name)"
            )
    clips = store.clips
    found = read_probabilities(path, clips.taxonomy)
    if form is not None and form != found.form:
        raise StoreError(f"{path} has the form {found.form!r}, expected {form!r}")
    index = {clip: i for i, clip in enumerate(found.ids)}
    places = np.array([index.get(clip, -1) for clip in clips.ids], np.int64)
    has_row = places >= 0
    known = set(clips.ids)
    absent = clips.ids[~has_row].tolist() if missing == "refuse" or not has_row.any() else []
    strangers = [clip for clip in found.ids if clip not in known] if extra == "refuse" else []
    if absent or strangers:
        faults = []
        if absent:
            hint = "--missing skip imports the others" if has_row.any() else "are the ids the same?"
            faults.append(
                f"no row for {len(absent)} of the {len(clips)} clips of {store.path}, "
                f"{_first_five(absent)} ({hint})"
            )
        if strangers:
            faults.append(
                f"rows of {len(strangers)} clips that are not in {store.path}, "
                f"{_first_five(strangers)} (--extra ignore leaves them out)"
            )
        error = IncompleteStore if absent else StoreError
        raise error(f"{path} has {' and '.join(faults)}")
    probabilities = np.where(has_row[:, None], found.probabilities[places], 0.0)
    digests, reasons = np.empty(len(clips), object), np.empty(len(clips), object)
    digests[:] = [
        hashlib.sha256(row.astype("<f8").tobytes()).hexdigest() if ok else ""
        for row, ok in zip(probabilities, has_row, strict=True)
    ]
    reasons[:] = ["" if ok else f"no row in {path.name}" for ok in has_row]
    rows = FeatureRows(
        clips.ids,
        digests,
        np.where(has_row, OK, FAILED).astype(np.uint8),
        reasons,
        probabilities.astype(np.float32),
        fold=None if found.fold is None else np.where(has_row, found.fold[places], -1),
    )
    spec: dict[str, object] = {
        "backbone": IMPORTED_PROBABILITIES.name,
        "origin": origin,
        "form": found.form,
        "classes": list(clips.taxonomy.labels),
        "dim": len(clips.taxonomy),
        "dtype": "float32",
    }
    if parameters is not None:
        spec["parameters"] = float(parameters)
    feature = feature_path(store.path, name, spec)
    provenance = {"imported_from": path.name, "imported_sha256": found.sha256}
    write_feature(feature, name, spec, rows, provenance)
    return feature


def _first_five(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


def read_folds(path: Path) -> dict[str, int] | None:
    """The fold of each clip that has a row in a feature file; None where it has no folds.

    Raises:
        CorruptStore: it is no feature file or was truncated.
    """
    with open_h5(path) as file:
        if file.attrs.get("format") != FORMAT:
            raise CorruptStore(f"{path} is an HDF5 file but no feature file of bsdkit")
        if "fold" not in file:
            return None
        is_ok = file["state"][()] == OK
        ids, folds = read_strings(file, "row")[is_ok], file["fold"][()][is_ok]
    return dict(zip(ids.tolist(), folds.tolist(), strict=True))
