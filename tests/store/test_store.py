from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from bsdkit.dataset import Clips, read_dataset
from bsdkit.errors import (
    CorruptStore,
    IncompleteStore,
    StaleStore,
    StoreError,
    StoreLocked,
)
from bsdkit.store import FAILED, OK, FeatureRows, Store
from bsdkit.store.feature import feature_path, read_feature, read_info, write_feature
from bsdkit.store.files import atomic_h5, file_lock, open_h5
from bsdkit.store.imports import import_npy_folder
from bsdkit.store.verify import compare_stores, verify_store

SPEC = {"backbone": "x", "window_seconds": 2.0, "dim": 8}


def strings(values: list[str]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def make_clips(folder: Path, n: int = 30) -> Clips:
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["id,class,uploader,title,tags,description,license,confidence"]
    lines += [
        f'{100 + i},fx-a,someone {i % 4},"Ünïcode, {i}",a;b,"two\nlines ""quoted""",CC0,{i % 5 + 1}'
        for i in range(n)
    ]
    (folder / "clips.csv").write_text("\n".join(lines))
    return read_dataset(folder / "clips.csv")[0]


def make_rows(ids: list[str], dim: int = 8, dtype: str = "float16", seed: int = 0) -> FeatureRows:
    rng = np.random.default_rng(seed)
    return FeatureRows(
        strings(ids),
        strings(["f" * 64] * len(ids)),
        np.zeros(len(ids), np.uint8),
        strings([""] * len(ids)),
        rng.standard_normal((len(ids), dim)).astype(dtype),
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.create(tmp_path / "store", make_clips(tmp_path))


def put(store: Store, rows: FeatureRows, spec: dict[str, object] = SPEC, name: str = "x") -> Path:
    path = feature_path(store.path, name, spec)
    write_feature(path, name, spec, rows, {"device": "cpu"})
    return path


def test_clips_table_survives_unchanged(store: Store, tmp_path: Path) -> None:
    clips, read = make_clips(tmp_path), store.clips
    for column in ("ids", "uploader", "licence", "title", "tags", "description", "sha256"):
        assert getattr(read, column).tolist() == getattr(clips, column).tolist()
    assert read.labels.tolist() == clips.labels.tolist()
    assert read.confidence.tolist() == clips.confidence.tolist()
    assert read.taxonomy == clips.taxonomy


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("n", [1, 255, 256, 257, 1000])
def test_rows_come_back_bit_for_bit(tmp_path: Path, dtype: str, n: int) -> None:
    rows = make_rows([f"clip {i}" for i in range(n)], dim=5, dtype=dtype)
    for compressed in (False, True):
        path = tmp_path / f"x-{compressed}.h5"
        write_feature(path, "x", SPEC, rows, {}, is_compressed=compressed)
        read = read_feature(path)
        assert read.embedding.dtype == np.dtype(dtype)
        assert read.embedding.tobytes() == rows.embedding.tobytes()
        assert read.ids.tolist() == rows.ids.tolist()
        assert read.checksum() == read_info(path).checksum == rows.checksum()
        with h5py.File(path) as file:
            assert np.array_equal(file["embedding"][()], read.embedding)


def test_chunked_arrays_of_older_stores_are_read(tmp_path: Path) -> None:
    rows = make_rows([str(i) for i in range(700)])
    write_feature(tmp_path / "x.h5", "x", SPEC, rows, {})
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        assert file["embedding"].chunks is None
        del file["embedding"]
        file.create_dataset("embedding", data=rows.embedding, chunks=(256, 8), maxshape=(None, 8))
    assert np.array_equal(read_feature(tmp_path / "x.h5").embedding, rows.embedding)


def test_segments_and_take(tmp_path: Path) -> None:
    rows = make_rows(["a", "b", "c"])
    segments = np.arange(12, dtype=np.float32).reshape(6, 2)
    rows = replace(rows, segments=segments, offsets=np.array([0, 1, 4, 6]))
    write_feature(tmp_path / "s.h5", "x", SPEC, rows, {})
    read = read_feature(tmp_path / "s.h5", with_segments=True).take(np.array([2, 1]))
    assert read.ids.tolist() == ["c", "b"] and read.offsets is not None
    assert read.offsets.tolist() == [0, 2, 5]
    assert read.segments is not None and read.segments[:, 0].tolist() == [8, 10, 2, 4, 6]
    both = FeatureRows.concatenate([read, read])
    assert both.offsets is not None and both.offsets.tolist() == [0, 2, 5, 7, 10]


def test_features_follow_the_clips_table_whatever_the_file_order(store: Store) -> None:
    ids = store.clips.ids.tolist()
    shuffled = [ids[i] for i in np.random.default_rng(1).permutation(len(ids))] + ["stranger"]
    rows = make_rows(shuffled)
    rows.state[shuffled.index(ids[3])] = FAILED
    kept = np.array([i for i, clip in enumerate(shuffled) if clip != ids[7]])
    put(store, rows.take(kept))
    features = store.features(["x"])
    assert features.arrays["x"].dtype == np.float32
    assert np.flatnonzero(features.is_missing[:, 0]).tolist() == [3, 7]
    for i, clip in enumerate(ids):
        expected = 0 if i in (3, 7) else rows.embedding[shuffled.index(clip)].astype(np.float32)
        assert (features.arrays["x"][i] == expected).all()


def test_another_spec_is_refused_and_the_first_difference_named(store: Store) -> None:
    put(store, make_rows(store.clips.ids.tolist()))
    assert store.info("x", {"dim": 8}).n_rows == 30
    expected = {**SPEC, "window_seconds": 10.0, "zeta": 1}
    with pytest.raises(StaleStore, match=r"window_seconds = 2.0, expected 10.0.*bsdkit extract"):
        store.features(["x"], {"x": expected})
    other = {**SPEC, "window_seconds": 5.0}
    put(store, make_rows(store.clips.ids.tolist(), seed=1), other)
    with pytest.raises(StaleStore, match=r"2 specs of 'x' \(window_seconds.*name one: x@"):
        store.info("x")
    name = f"x@{store.info('x', other).spec_hash[:6]}"
    assert store.info(name).spec == other
    with pytest.raises(IncompleteStore, match="has no feature 'xx': did you mean 'x'"):
        store.info("xx")


def test_a_store_of_other_clips_is_not_overwritten(store: Store, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("id,class\nz1,fx-a\nz2,fx-v\n")
    with pytest.raises(StoreError, match="another dataset"):
        Store.create(store.path, read_dataset(tmp_path / "other.csv")[0])
    assert len(Store(store.path).clips) == 30
    with pytest.raises(StoreError, match="no store at"):
        Store(tmp_path / "nowhere")


@pytest.mark.parametrize("cut", [0, 100, 0.5, 0.99])
def test_a_truncated_file_is_named(store: Store, cut: float) -> None:
    path = put(store, make_rows(store.clips.ids.tolist(), dim=512))
    data = path.read_bytes()
    path.write_bytes(data[: int(cut if cut > 1 else len(data) * cut)])
    with pytest.raises(CorruptStore, match=path.name):
        read_feature(path)
    (store.path / "y-0123.h5").write_bytes(b"<html>not found</html>")
    with pytest.raises(CorruptStore, match=r"y-0123|" + path.name):
        store.infos()


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write_feature(path, "x", SPEC, make_rows(["a"]), {})
    before = path.read_bytes()
    with pytest.raises(RuntimeError), atomic_h5(path) as file:
        file.create_dataset("half", data=np.zeros(10))
        raise RuntimeError("killed")
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]


def test_only_one_writer_at_a_time(tmp_path: Path) -> None:
    with file_lock(tmp_path / "lock", "first"):
        # flock is by open file, so a second one in this process behaves like another process
        with pytest.raises(StoreLocked, match=r"second: locked by process \d+; wait"):
            with file_lock(tmp_path / "lock", "second"):
                pass
    with file_lock(tmp_path / "lock", "third"):
        pass


def test_verify_finds_what_is_wrong(store: Store) -> None:
    ids = store.clips.ids.tolist()
    good = make_rows(ids, dtype="float32")
    put(store, good, {"case": "good"}, "good")
    nan = replace(good, embedding=good.embedding.copy())
    nan.embedding[4, 2] = np.nan
    put(store, nan, {"case": "nan"}, "nan")
    same = np.tile(good.embedding[:1], (30, 1)) * np.linspace(1, 2, 30, dtype=np.float32)[:, None]
    put(store, replace(good, embedding=same), {"case": "same"}, "same")
    partial = make_rows(ids[:20], dtype="float32")
    partial.embedding[1] = partial.embedding[0]
    partial.state[5], partial.reasons[5] = FAILED, "empty file: a.wav"
    put(store, partial, {"case": "partial"}, "partial")
    tampered = put(store, good, {"case": "tampered"}, "tampered")
    with h5py.File(tampered, "r+") as file:
        file["embedding"][3, 3] += 1
    reports = {r.feature.split("@")[0]: r for r in verify_store(store)}
    assert reports["good"].faults == () and reports["good"].n_missing == 0
    assert "1 rows hold NaN" in reports["nan"].faults[0]
    assert "nearly the same" in reports["same"].faults[0]
    assert "checksum" in reports["tampered"].faults[0]
    found = reports["partial"]
    assert (found.n_missing, found.n_duplicates) == (10, 1)
    assert found.failures == {"empty file: a.wav": 1} and found.first_missing[0] == ids[20]


def test_import_of_one_npy_a_clip(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "npy"
    folder.mkdir()
    ids = store.clips.ids.tolist()
    for i, clip in enumerate(ids[:-2]):
        np.save(folder / f"{clip}.npy", np.full((1, 6), i, np.float32))
    np.save(folder / "stranger.npy", np.zeros(3))
    path = import_npy_folder(store, folder, "clap-fusion.audio", "the organisers'")
    info = read_info(path)
    assert (info.n_rows, info.n_failed, info.dim, info.dtype) == (30, 2, 6, "float32")
    features = store.features(["clap-fusion.audio"])
    assert features.is_missing[:, 0].tolist() == [False] * 28 + [True] * 2
    assert features.arrays["clap-fusion.audio"][5].tolist() == [5.0] * 6
    np.save(folder / f"{ids[3]}.npy", np.zeros(7))
    with pytest.raises(StoreError, match=rf"{ids[3]}.npy has 7 numbers, the first file has 6"):
        import_npy_folder(store, folder, "a", "b")
    (folder / f"{ids[3]}.npy").write_bytes(b"<html>")
    with pytest.raises(StoreError, match="is no .npy file"):
        import_npy_folder(store, folder, "a", "b")
    with pytest.raises(IncompleteStore, match="holds no <clip id>.npy for any"):
        import_npy_folder(store, tmp_path, "a", "b")


def test_states_are_what_the_format_says() -> None:
    assert (OK, FAILED) == (0, 1)


def test_open_h5_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no such file"), open_h5(tmp_path / "no.h5"):
        pass


def test_two_stores_are_compared_by_clip_and_duration(tmp_path: Path) -> None:
    seconds = [0.0, 0.5, 1.0, 9.0, 10.0, 10.5, 100.0, np.nan, np.nan]
    clips = make_clips(tmp_path, len(seconds))
    clips = replace(clips, duration=np.array(seconds, np.float32))
    ids = clips.ids.tolist()
    ours, theirs = Store.create(tmp_path / "a", clips), Store.create(tmp_path / "b", clips)
    rows = make_rows(ids, dim=2, dtype="float32")
    rows.embedding[:] = [3, 0]
    rows.state[2] = FAILED
    put(ours, rows, name="x")
    cosines = np.array([1.0, 0.5, 1.0, 0.995, 0.8, -1.0, 0.0, 0.25, 1.0])
    other = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1).astype(np.float32) * 7
    # in another order, and without the clip of 10 seconds
    order = [8, 3, 1, 0, 2, 6, 5, 7]
    put(theirs, replace(make_rows([ids[i] for i in order], 2), embedding=other[order]), name="y")
    table = compare_stores(ours, theirs, "x", "y")
    assert [(row.low, row.high) for row in table[:3]] == [(0, 1), (1, 5), (5, 10)]
    first, _, to_ten, to_twenty = table[:4]
    assert (first.n, first.n_missing, first.n_missing_against) == (2, 1, 0)
    assert (first.mean, first.minimum, first.share_above) == pytest.approx((0.75, 0.5, 0.5))
    assert first.percentile_5 == pytest.approx(0.525)
    assert (to_ten.n, to_ten.n_missing, to_ten.n_missing_against) == (1, 0, 1)
    assert to_ten.mean == pytest.approx(0.995, abs=1e-6) and to_ten.share_above == 1
    assert to_twenty.n == 1 and to_twenty.minimum == pytest.approx(-1)
    assert table[1].n == 0 and np.isnan(table[1].mean)
    assert table[-2].high == np.inf and table[-2].mean == pytest.approx(0)
    assert np.isnan(table[-1].low) and table[-1].n == 2
    assert sum(row.n + row.n_missing + row.n_missing_against for row in table) == len(ids)
    same = compare_stores(ours, ours, "x", "x", bins=(0, np.inf))
    assert same[0].n == 6 and same[0].minimum == pytest.approx(1)


def test_vectors_of_other_lengths_are_not_compared(store: Store) -> None:
    ids = store.clips.ids.tolist()
    put(store, make_rows(ids, 8), name="x")
    put(store, make_rows(ids, 6), name="y")
    with pytest.raises(StoreError, match="x of .* has 8 numbers a clip, y of .* has 6"):
        compare_stores(store, store, "x", "y")
    with pytest.raises(IncompleteStore, match="no feature 'z'"):
        compare_stores(store, store, "x", "z")
