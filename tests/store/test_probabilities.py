"""Probabilities of other people's models: what is read, refused, stored and written."""

from __future__ import annotations

import csv
import gzip
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bsdkit.csvfile import read_csv_rows
from bsdkit.dataset import read_dataset
from bsdkit.errors import BsdkitError, CorruptStore, DatasetError, IncompleteStore, StoreError
from bsdkit.metrics import evaluate
from bsdkit.store import FAILED, OK, FeatureRows, Store
from bsdkit.store.feature import read_feature, read_info, write_feature
from bsdkit.store.imports import import_probabilities, read_folds
from bsdkit.store.merge import merge_stores
from bsdkit.store.probabilities import export_probabilities, read_probabilities
from bsdkit.store.verify import verify_store
from bsdkit.taxonomy import BST, Taxonomy, TaxonomyClass
from tests.conftest import shared

ABC = Taxonomy(
    "abc", [TaxonomyClass("a-x", "a"), TaxonomyClass("a-y", "a"), TaxonomyClass("b", "b")]
)
SUFFIXES = (".csv", ".csv.gz", ".npz")
LAWS = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
FULL = "sound_id,a-x,a-y,b\n"
TOP = "sound_id,prediction,prediction_score\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def random_rows(n: int, n_classes: int, seed: int) -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    rows = rng.dirichlet(np.full(n_classes, rng.choice([0.02, 0.3, 3.0])), n)
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write(tmp_path / "abc.csv", "class,family\na-x,a\na-y,a\nb,b\n")
    write(tmp_path / "clips.csv", "id,class\n7,b\n05,a-x\nsö 9,a-y\n")
    clips, _ = read_dataset(tmp_path / "clips.csv", str(tmp_path / "abc.csv"))
    return Store.create(tmp_path / "store", clips)


@LAWS
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 30),
    suffix=st.sampled_from(SUFFIXES),
    has_fold=st.booleans(),
    is_float32=st.booleans(),
)
def test_what_is_written_reads_back_to_the_bit(
    tmp_path: Path, seed: int, n: int, suffix: str, has_fold: bool, is_float32: bool
) -> None:
    rows = random_rows(n, len(BST), seed)
    if is_float32:  # sums of 1 within float32's rounding only
        rows = rows.astype(np.float32).astype(np.float64)
    ids = [f'clip "{i}", ü' for i in range(n)]
    fold = np.arange(n) % 5 if has_fold else None
    path = tmp_path / f"p{suffix}"
    # the true labels of nobody: they are never looked at
    export_probabilities(path, ids, rows, BST, fold=fold, labels=["nonsense"] * n)
    read = read_probabilities(path, BST)
    assert read.ids == tuple(ids) and read.form == "full"
    assert read.probabilities.tobytes() == rows.tobytes()
    assert (read.fold is None) == (fold is None)
    assert fold is None or (read.fold is not None and read.fold.tolist() == fold.tolist())
    first = path.read_bytes()
    export_probabilities(path, ids, read.probabilities, BST, fold=fold, labels=["nonsense"] * n)
    assert path.read_bytes() == first
    assert suffix != ".csv.gz" or first[4:8] == bytes(4)  # no time stamp
    export_probabilities(path, ids, rows, BST, fold=fold)
    assert read_probabilities(path, BST).probabilities.tobytes() == rows.tobytes()


@LAWS
@given(seed=st.integers(0, 2**32 - 1), suffix=st.sampled_from(SUFFIXES), scale=st.booleans())
def test_order_of_rows_and_columns_is_free(
    tmp_path: Path, seed: int, suffix: str, scale: bool
) -> None:
    rng = np.random.default_rng(seed)
    rows = random_rows(12, len(BST), seed)
    if scale:  # rows that are divided by their sum
        rows = np.round(rows, 5)
    ids = [str(i) for i in range(12)]
    order, columns = rng.permutation(12), rng.permutation(len(BST))
    turned = Taxonomy("turned", [BST.classes[j] for j in columns])

    def written(taxonomy: Taxonomy, of: list[int], values: npt.NDArray[np.float64]) -> Path:
        path = tmp_path / f"p{suffix}"
        labels, names = list(taxonomy.labels), [ids[i] for i in of]
        if suffix == ".npz":
            np.savez(path, ids=np.array(names), classes=np.array(labels), probabilities=values)
            return path
        lines = [",".join(["id", *labels])]
        lines += [",".join([i, *map(repr, v)]) for i, v in zip(names, values.tolist(), strict=True)]
        data = "\n".join(lines).encode()
        path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
        return path

    plain = read_probabilities(written(BST, list(range(12)), rows), BST)
    mixed = read_probabilities(written(turned, order.tolist(), rows[order][:, columns]), BST)
    assert mixed.ids == tuple(ids[i] for i in order)
    assert mixed.probabilities.tobytes() == plain.probabilities[order].tobytes()
    assert np.abs(plain.probabilities.sum(axis=1) - 1).max() < 1e-6


def test_a_top_class_and_its_score_become_a_whole_row(tmp_path: Path) -> None:
    rows = "ground_truth,sound_id,prediction,prediction_score\nwhat,9,a-y,0.5\n,1, b ,1\n,2,b,0.1\n"
    found = read_probabilities(write(tmp_path / "p.csv", rows), ABC)
    assert found.form == "top-1" and found.ids == ("9", "1", "2") and found.fold is None
    expected = [[0.25, 0.5, 0.25], [0, 0, 1], [0.45, 0.45, 0.1]]
    assert np.allclose(found.probabilities, expected, rtol=0, atol=1e-15)
    submission = "id,predicted_bst_second_level_class,prediction_score,fold\n9,a-y,0.5,3\n"
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress(submission.encode()))
    other = read_probabilities(tmp_path / "p.csv.gz", ABC)
    assert other.probabilities.tobytes() == found.probabilities[:1].tobytes()
    assert other.fold is not None and other.fold.tolist() == [3]


def test_a_row_near_one_is_divided_by_its_sum(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.csv", FULL + "1,0.3333,0.3333,0.3333\n2,1.0000001,0,0\n3,0.5,0.5,0\n"
    )
    rows = read_probabilities(path, ABC).probabilities
    assert np.abs(rows.sum(axis=1) - 1).max() < 1e-15 and rows.max() == 1
    assert rows[0].tolist() == [0.3333 / (0.3333 + 0.3333 + 0.3333)] * 3


def test_logits_and_their_classes(tmp_path: Path) -> None:
    logits = np.array([[1e3, 1e3, -1e3], [0.0, np.log(2), np.log(5)]])
    np.savez(
        tmp_path / "p.npz",
        sound_id=np.array([15, 7]),
        classes=np.array([b"b", b"a-x", b"a-y"]),
        logits=logits,
        ground_truth=np.array([{}, {}], object),  # never loaded
    )
    found = read_probabilities(tmp_path / "p.npz", ABC)
    assert found.form == "logits" and found.ids == ("15", "7")
    assert np.allclose(found.probabilities, [[0.5, 0, 0.5], [0.25, 0.625, 0.125]], atol=1e-15)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "p.csv has the columns none; one of sound_id, anonymous_id, id, clip_id is needed"),
        (FULL, "p.csv has no rows; expected one a clip"),
        (
            "sound_id,prediction\n1,b\n",
            "expected one a class (a-x, ...), or prediction and predict",
        ),
        ("id,title\n1,b\n", "p.csv has the columns id, title; expected one a class (a-x, ...)"),
        ("id,a-x,b\n1,0,1\n", "p.csv lacks 1 of 3 classes, the first is 'a-y'; a class that was"),
        (
            "id,a-x,a_y,b\n1,0,0,1\n",
            "p.csv has 'a_y', which is no class of taxonomy 'abc' (did you mean 'a-y'?); rename",
        ),
        ("id,a-x,a-y,b,c\n1,0,0,1,0\n", "p.csv has 'c', which is no class of taxonomy 'abc'"),
        ("id,b,a-x,a-y,b\n1,0,0,1,0\n", "the column 'b' stands twice in the header"),
        (
            FULL + "1,0,0,1\n2,0,1.5,-0.5\n",
            "p.csv line 3: clip '2' has 1.5 for class 'a-y', expect",
        ),
        (
            FULL + "1,0,1,-1e-9\n",
            "p.csv line 2: clip '1' has -1e-09 for class 'b', expected a prob",
        ),
        (FULL + "1,0,nan,1\n", "p.csv line 2: clip '1' has 'nan' for class 'a-y', expected a prob"),
        (FULL + "1,0,,1\n", "p.csv line 2: clip '1' has '' for class 'a-y', expected a probab"),
        (FULL + "1,0,0_1,1\n", "p.csv line 2: clip '1' has '0_1' for class 'a-y'"),
        (FULL + "1,inf,0,1\n", "p.csv line 2: clip '1' has inf for class 'a-x'"),
        (
            FULL + '"x\ny",0,0,1\n8,0.9,0.8,0.1\n9,0.5,0.6,0.1\n',
            "p.csv line 4: the probabilities of clip '8' add up to 1.8, expected 1 within 0.001; "
            "divide rows by their sum first if they are scores",
        ),
        (FULL + "1,0,0,0.9985\n", "the probabilities of clip '1' add up to 0.9985, expected 1"),
        (FULL + "1,0,0,1\n2,0,0,1\n1,0,1,0\n", "p.csv line 4: id '1' stands already on line 2"),
        (FULL + "1,0,0,1\n ,0,0,1\n", "p.csv line 3: empty id"),
        (FULL + "1,0,0\n", "p.csv line 2: 3 fields, the header has 4"),
        ("id,fold,a-x,a-y,b\n1,0,0,0,1\n2,,0,0,1\n", "p.csv line 3: fold '', expected a whole"),
        (f"id,fold,a-x,a-y,b\n1,{2**64},0,0,1\n", "fold '18446744073709551616', expected a whole"),
        (TOP + "1,b,1\n2,a-z,1\n", "p.csv line 3: 'a-z' is not a class of taxonomy 'abc': did you"),
        (
            TOP + "1,b,1\n2,b,1.01\n",
            "p.csv line 3: clip '2' has the prediction_score '1.01', expec",
        ),
        (
            TOP + "1,b,nan\n",
            "p.csv line 2: clip '1' has the prediction_score 'nan', expected a num",
        ),
        (TOP + "1,b,high\n", "p.csv line 2: clip '1' has the prediction_score 'high', expected"),
        (TOP + "1,b,-0.1\n", "p.csv line 2: clip '1' has the prediction_score '-0.1', expected"),
        (TOP + "1,b,1\n1,b,1\n", "p.csv line 3: id '1' stands already on line 2"),
    ],
)
def test_a_csv_that_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "p.csv", text)
    with pytest.raises(DatasetError) as caught:
        read_probabilities(path, ABC)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    if not text:
        return
    packed = tmp_path / "p.csv.gz"  # compressed, it is refused in the same words
    packed.write_bytes(gzip.compress(text.encode()))
    with pytest.raises(DatasetError) as again:
        read_probabilities(packed, ABC)
    assert str(again.value).replace("p.csv.gz", "p.csv") == str(caught.value)


RIGHT = {"ids": ["1", "2"], "classes": ["b", "a-x", "a-y"], "probabilities": np.eye(3)[:2]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": None}, "p.npz holds probabilities, classes; expected the arrays ids, classes and"),
        ({"probabilities": None}, "p.npz holds ids, classes; expected the arrays ids, classes and"),
        ({"classes": None}, "lacks the array classes, and columns in another order than is assume"),
        (
            {"ids": np.array(["1", "2"], object)},
            "p.npz: the array ids holds Python objects, which are never unpickled; save it as text "
            "or numbers, e.g. ids=np.array(ids, str)",
        ),
        ({"classes": ["b", "a-x", "A-y"]}, "'A-y', which is no class of taxonomy 'abc' (did you"),
        ({"classes": ["b", "a-x", "b"]}, "p.npz: the array classes names 'b' twice"),
        (
            {"classes": ["b", "a-x"]},
            "p.npz: probabilities is float64 of shape (2, 3); expected numb",
        ),
        (
            {"classes": ["b", "a-x"], "probabilities": np.eye(2)},
            "p.npz lacks 1 of 3 classes, the first is 'a-y'",
        ),
        ({"ids": ["1", "1"]}, "p.npz row 1: id '1' stands already on row 0"),
        ({"ids": [1.0, 2.0]}, "p.npz: ids is float64 of shape (2,); expected text of shape (n,)"),
        ({"ids": [], "probabilities": np.zeros((0, 3))}, "p.npz: ids is float64 of shape (0,)"),
        ({"ids": np.array([], str), "probabilities": np.zeros((0, 3))}, "p.npz has no rows"),
        (
            {"probabilities": np.eye(3)[:2] * 2},
            "p.npz row 0: clip '1' has 2 for class 'b', expected",
        ),
        (
            {"probabilities": np.eye(3)[:2] / 2},
            "row 0: the probabilities of clip '1' add up to 0.5",
        ),
        (
            {"probabilities": np.array([[1, 0, 0], [0, np.nan, 1]])},
            "p.npz row 1: clip '2' has nan for class 'a-x', expected a probability from 0 to 1; "
            "save logits as the array logits",
        ),
        ({"fold": [0.0, 1.0]}, "p.npz: fold is float64 of shape (2,); expected whole numbers"),
        ({"fold": [0, -2]}, "p.npz: fold reaches from -2 to 0, expected whole numbers from 0"),
        ({"fold": [0]}, "p.npz: fold is int64 of shape (1,); expected whole numbers of shape (2,)"),
        (
            {"probabilities": None, "logits": np.eye(3)[:2]},
            "p.npz: every row of logits adds up to 1, so these are probabilities; save them as",
        ),
        (
            {"probabilities": None, "logits": np.array([[1, 2, 3], [1, np.inf, 0]])},
            "p.npz row 1: the logits of clip '2' are not all finite",
        ),
    ],
)
def test_an_npz_that_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    arrays = {k: np.asarray(v) for k, v in {**RIGHT, **changes}.items() if v is not None}
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(DatasetError) as caught:
        read_probabilities(tmp_path / "p.npz", ABC)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    np.savez(tmp_path / "right.npz", **{k: np.asarray(v) for k, v in RIGHT.items()})
    right = (tmp_path / "right.npz").read_bytes()
    np.save(tmp_path / "lone.npy", np.eye(3))
    packed = gzip.compress((FULL + "1,0,0,1\n" * 99).encode())
    cut, stained = bytearray(right), bytearray(packed)
    cut[len(right) // 3] ^= 255
    stained[len(packed) // 2] ^= 255
    for name, data, message in [
        ("lone.npz", (tmp_path / "lone.npy").read_bytes(), "is no .npz file of arrays; save it"),
        (
            "pickle.npz",
            pickle.dumps({"ids": 1}),
            "is no .npz file of arrays; save it with np.savez",
        ),
        ("short.npz", right[: len(right) // 2], "is no .npz file of arrays"),
        ("cut.npz", bytes(cut), "is no .npz file of arrays"),
        ("plain.csv.gz", FULL.encode(), "is no whole gzip file"),
        ("short.csv.gz", packed[:-9], "is no whole gzip file"),
        ("stained.csv.gz", bytes(stained), "is no whole gzip file"),
        ("p.txt", b"", "files of probabilities end in .csv, .csv.gz, .npz"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DatasetError) as caught:
            read_probabilities(tmp_path / name, ABC)
        assert message in str(caught.value) and "\n" not in str(caught.value), name
    with pytest.raises(DatasetError, match=r"cannot read .*none\.csv: No such file"):
        read_probabilities(tmp_path / "none.csv", ABC)
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress('\ufeffa,b\n"x\ny",1\n3,4'.encode()))
    assert read_csv_rows(tmp_path / "b.csv.gz")[1] == [(2, ["x\ny", "1"]), (4, ["3", "4"])]


def test_what_export_refuses(tmp_path: Path) -> None:
    path, rows = tmp_path / "p.csv", np.eye(3)[:2]
    for ids, values, more, message in [
        (["1"], rows, {}, r"probabilities of shape \(2, 3\); expected \(1, 3\)"),
        (["1", "1"], rows, {}, "row 1: id '1' stands already on row 0"),
        (["1", " 2"], rows, {}, "clip id ' 2' begins or ends with a space"),
        (["1", "2"], rows * 0.9, {}, "row 0: the probabilities of clip '1' add up to 0.9"),
        (["1", "2"], rows, {"fold": np.array([1])}, "1 folds for 2 clips"),
        (["1", "2"], rows, {"labels": ["b"]}, "1 labels for 2 clips"),
    ]:
        with pytest.raises(DatasetError, match=message):
            export_probabilities(path, ids, values, ABC, **more)
    with pytest.raises(DatasetError, match="cannot write"):
        export_probabilities(tmp_path / "no" / "p.csv", ["1", "2"], rows, ABC)
    assert not list(tmp_path.iterdir())


def test_imported_clips_are_found_by_id(store: Store, tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.csv",
        "id,fold,b,a-x,a-y\nsö 9,2,0.1,0.2,0.7\n7,0,0.123456789,0.876543211,0\n05,1,1,0,0\n",
    )
    file = import_probabilities(store, path, "published.one", origin="us", parameters=90.3)
    features = store.features(["published.one"])
    expected = np.array([[0.876543211, 0, 0.123456789], [0, 0, 1], [0.2, 0.7, 0.1]], np.float32)
    assert features.arrays["published.one"].tobytes() == expected.tobytes()
    assert not features.is_missing.any()
    info = read_info(file)
    assert info.spec == {
        "backbone": "imported-probabilities",
        "origin": "us",
        "form": "full",
        "classes": ["a-x", "a-y", "b"],
        "dim": 3,
        "dtype": "float32",
        "parameters": 90.3,
    }
    read = read_probabilities(path, store.clips.taxonomy)
    assert info.provenance["imported_from"] == "p.csv"
    assert info.provenance["imported_sha256"] == read.sha256
    assert read_folds(file) == {"7": 0, "05": 1, "sö 9": 2}
    assert [report.faults for report in verify_store(store)] == [()]
    # a merge carries the folds along
    merged = merge_stores(tmp_path / "other", [store.path])[0].path
    assert read_folds(merged) == read_folds(file)
    assert read_feature(merged).checksum() == info.checksum

    # the same models on the same clips, one number changed: the same file, another checksum
    write(path, path.read_text().replace("0.1,0.2,0.7", "0.1,0.3,0.6"))
    assert import_probabilities(store, path, "published.one", origin="us", parameters=90.3) == file
    again = read_info(file)
    assert again.spec_hash == info.spec_hash and again.checksum != info.checksum
    assert store.features(["published.one"]).arrays["published.one"][2, 0] == np.float32(0.3)
    digests = read_feature(file).source_sha256
    assert len(set(digests)) == 3
    # other folds are another file's contents too
    write(path, path.read_text().replace("05,1,", "05,2,"))
    import_probabilities(store, path, "published.one", origin="us", parameters=90.3)
    assert read_info(file).checksum != again.checksum
    assert read_feature(file).source_sha256.tolist() == digests.tolist()


def test_other_clips_than_the_stores(store: Store, tmp_path: Path) -> None:
    few = write(tmp_path / "few.csv", TOP + "05,b,0.5\n")
    with pytest.raises(IncompleteStore) as caught:
        import_probabilities(store, few, "p")
    assert str(caught.value) == (
        f"{few} has no row for 2 of the 3 clips of {store.path}, 7, sö 9 (--missing skip imports "
        "the others)"
    )
    file = import_probabilities(store, few, "p", missing="skip")
    rows = read_feature(file)
    assert rows.state.tolist() == [FAILED, OK, FAILED]
    assert rows.reasons.tolist() == ["no row in few.csv", "", "no row in few.csv"]
    assert store.features(["p"]).is_missing[:, 0].tolist() == [True, False, True]
    assert store.features(["p"]).arrays["p"].tolist() == [[0, 0, 0], [0.25, 0.25, 0.5], [0, 0, 0]]
    assert read_folds(file) is None
    many = write(
        tmp_path / "many.csv",
        "id,prediction,prediction_score,fold\n"
        + "".join(f"{i},b,0.5,0\n" for i in ["7", "05", "x1", "x2", "x3", "x4", "x5", "x6"]),
    )
    with pytest.raises(IncompleteStore) as caught:
        import_probabilities(store, many, "q")
    assert "no row for 1 of the 3 clips" in str(caught.value)
    assert "and rows of 6 clips that are not in" in str(caught.value)
    assert "x1, x2, x3, x4, x5, ... (--extra ignore leaves them out)" in str(caught.value)
    with pytest.raises(StoreError, match=r"many\.csv has rows of 6 clips that are not in"):
        import_probabilities(store, many, "q", missing="skip")
    file = import_probabilities(store, many, "q", missing="skip", extra="ignore")
    assert read_folds(file) == {"7": 0, "05": 0}
    strange = write(tmp_path / "strange.csv", TOP + "5,b,0.5\n")  # the zero was lost
    with pytest.raises(IncompleteStore, match=r"no row for 3 of the 3 .*are the ids the same"):
        import_probabilities(store, strange, "r", missing="skip", extra="ignore")
    for more, message in [
        ({"name": "a/b"}, "feature name 'a/b': expected letters"),
        ({"form": "full"}, "has the form 'top-1', expected 'full'"),
        ({"parameters": -1.0}, "expected a number of at least 0"),
    ]:
        with pytest.raises(StoreError, match=message):
            import_probabilities(store, few, **{"name": "p", "missing": "skip", **more})


def test_folds_of_other_features(store: Store, tmp_path: Path) -> None:
    with pytest.raises(CorruptStore, match="no feature file of bsdkit"):
        read_folds(store.path / "clips.h5")
    texts = np.array(["1", "2"], object)
    rows = FeatureRows(texts, texts, np.zeros(2, np.uint8), texts, np.ones((2, 1), np.float32))
    write_feature(tmp_path / "x.h5", "x", {"backbone": "x"}, rows, {})
    assert read_folds(tmp_path / "x.h5") is None


def test_published_predictions_of_bsd10k(tmp_path: Path) -> None:
    folder = shared("reference", "bsd10k-oof")
    clips, _ = read_dataset(folder / "labels.csv")
    store = Store.create(tmp_path / "store", clips)
    with (folder / "labels.csv").open(newline="") as file:
        fold = np.array([int(row["fold"]) for row in csv.DictReader(file)])
    systems = sorted(folder.glob("*.csv.gz"))
    names = []
    for path in systems:
        names.append(f"published.{path.name.removesuffix('.csv.gz')}")
        import_probabilities(store, path, names[-1], form="top-1")
    features = store.features(names)
    assert len(systems) == 42 and not features.is_missing.any()
    mean = sum(array.astype(np.float64) for array in features.arrays.values()).argmax(axis=1)
    folds = [evaluate(clips.labels[fold == k], mean[fold == k], BST)["hF"] for k in range(5)]
    assert 100 * np.mean(folds) == pytest.approx(80.17, abs=0.005)


def test_every_refusal_is_an_error_of_bsdkit(store: Store, tmp_path: Path) -> None:
    """Bytes changed anywhere in a file are either refused in one line or read as probabilities."""
    rng = np.random.default_rng(3)
    for suffix in SUFFIXES:
        path = tmp_path / f"whole{suffix}"
        export_probabilities(path, store.clips.ids, random_rows(3, 3, 1), ABC, fold=np.arange(3))
        whole = path.read_bytes()
        n_refused = 0
        for _ in range(150):
            data = bytearray(whole)
            data[rng.integers(len(data))] = rng.integers(256)
            (tmp_path / f"p{suffix}").write_bytes(data)
            try:
                rows = read_probabilities(tmp_path / f"p{suffix}", ABC).probabilities
            except BsdkitError as error:
                assert "\n" not in str(error)
                n_refused += 1
            else:
                assert np.abs(rows.sum(axis=1) - 1).max() < 1e-6
        assert n_refused > 30
