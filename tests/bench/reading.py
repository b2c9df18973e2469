"""Row 3: reading a feature of a store against np.load of the same array."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measure import Row, Sizes, alternate, compare, made_up_labels

from bsdkit.dataset import Clips
from bsdkit.store.feature import OK, FeatureRows, feature_path, write_feature
from bsdkit.store.files import open_h5
from bsdkit.store.store import Store
from bsdkit.taxonomy import BST


def made_up_clips(n_clips: int, rng: np.random.Generator) -> Clips:
    """A clips table with texts of the usual length."""

    def texts(words: int) -> npt.NDArray[np.object_]:
        return np.array([f"{i} " + "word " * words for i in range(n_clips)], object)

    ids = np.array([str(100_000 + i) for i in range(n_clips)], object)
    digests = np.array([hashlib.sha256(clip.encode()).hexdigest() for clip in ids], object)
    return Clips(
        ids=ids,
        labels=made_up_labels(n_clips, rng),
        taxonomy=BST,
        confidence=np.full(n_clips, 3, np.float32),
        uploader=np.array([f"uploader {i % 1800}" for i in range(n_clips)], object),
        licence=np.full(n_clips, "CC0", object),
        title=texts(3),
        tags=texts(8),
        description=texts(30),
        duration=np.full(n_clips, 10, np.float32),
        sha256=digests,
        sound=digests,
        audio=[None] * n_clips,
    )


def reading_rows(sizes: Sizes) -> list[Row]:
    """Times the dataset alone and the whole of `Store.features`, for both number types."""
    with tempfile.TemporaryDirectory(prefix="bsdkit-bench-") as folder:
        rows = []
        for dtype in (np.float32, np.float16):
            rows += _reading_rows(sizes, Path(folder) / np.dtype(dtype).name, np.dtype(dtype))
        return rows


def _reading_rows(sizes: Sizes, folder: Path, dtype: np.dtype[np.floating]) -> list[Row]:
    rng = np.random.default_rng(30)
    clips = made_up_clips(sizes.n_clips, rng)
    embedding = rng.standard_normal((sizes.n_clips, sizes.dim), np.float32).astype(dtype)
    store = Store.create(folder / "store", clips)
    name, spec = "clap.audio", {"made up": True, "dtype": dtype.name}
    path = feature_path(store.path, name, spec)
    feature = FeatureRows(
        ids=clips.ids,
        source_sha256=clips.sha256,
        state=np.full(sizes.n_clips, OK, np.uint8),
        reasons=np.full(sizes.n_clips, "", object),
        embedding=embedding,
    )
    write_feature(path, name, spec, feature, {})
    plain = folder / "plain.npy"
    np.save(plain, embedding)

    def dataset() -> npt.NDArray[np.floating]:
        with open_h5(path) as file:
            found = np.empty(file["embedding"].shape, dtype)
            file["embedding"].read_direct(found)
            return found

    def features() -> npt.NDArray[np.float32]:
        return store.features([name]).arrays[name]

    def load() -> npt.NDArray[np.floating]:
        return np.asarray(np.load(plain))

    def load_float32() -> npt.NDArray[np.float32]:
        return np.load(plain).astype(np.float32, copy=False)

    # checks and warms up: afterwards the files are in the page cache and the clips table is read
    if not np.array_equal(dataset(), load()) or not np.array_equal(features(), load_float32()):
        raise AssertionError("the store and np.load give different numbers")
    # two pairs, not four in turn: what is read before decides how much memory is at hand
    seconds = {
        **alternate({"dataset": dataset, "load": load}, sizes.n_short_rounds),
        **alternate({"features": features, "load_float32": load_float32}, sizes.n_short_rounds),
    }
    shape = f"{sizes.n_clips:,} x {sizes.dim:,} {dtype.name}"
    return [
        compare(
            f"reading the embedding, {shape}, against np.load",
            seconds["dataset"],
            seconds["load"],
            "as stored: open the file, read all rows. Warm page cache",
            is_speedup=False,
            target=1.2,
        ),
        compare(
            f"Store.features, {shape}, against np.load(...).astype(float32)",
            seconds["features"],
            seconds["load_float32"],
            "float32 in clips-table order, ids and states checked, with the mask of missing rows; "
            "the clips table is read already",
            is_speedup=False,
            target=1.2,
        ),
    ]
