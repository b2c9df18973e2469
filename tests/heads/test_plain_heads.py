from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
from safetensors.numpy import load, save
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.estimator_checks import parametrize_with_checks

from bsdkit.errors import HeadError
from bsdkit.heads.class_weights import class_weights, weigh_rows
from bsdkit.heads.gbdt import GBDTHead
from bsdkit.heads.knn import KNNHead
from bsdkit.heads.linear import LinearHead
from bsdkit.heads.plain import PlainHead, principal_components
from bsdkit.heads.prototype import PrototypeHead
from bsdkit.heads.tabpfn import TabPFNHead

BLOCKS = (24, 6)  # with max_width 8 one is reduced, one passed on
HEADS = {
    "linear": (LinearHead, {"C": 0.1, "tol": 1e-10, "max_iter": 1000}),
    "knn": (KNNHead, {"k": 7}),
    "prototype": (PrototypeHead, {}),
    # without what is drawn at random: draws follow the order of rows and classes
    "gbdt": (
        GBDTHead,
        {
            "max_width": 8,
            "n_components": 5,
            "n_estimators": 15,
            "learning_rate": 0.3,
            "extra_trees": False,
            "colsample_bytree": 1.0,
        },
    ),
}


def make(name: str, **changes: object) -> PlainHead:
    cls, settings = HEADS[name]
    return cls(**{"blocks": BLOCKS, **settings, **changes})


def clips(n: int = 160, n_classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    centres = rng.normal(size=(n_classes, sum(BLOCKS)))
    X = 0.7 * centres[y] + rng.normal(size=(n, sum(BLOCKS)))
    return X.astype(np.float32), y


@pytest.mark.parametrize("name", HEADS)
def test_the_order_of_clips_does_not_matter(name: str) -> None:
    X, y = clips()
    order = np.random.default_rng(1).permutation(len(X))
    expected = make(name).fit(X, y).predict_proba(X)
    shuffled = make(name).fit(X[order], y[order]).predict_proba(X)
    np.testing.assert_allclose(shuffled, expected, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_renamed_labels_move_their_columns(name: str) -> None:
    X, y = clips()
    rename = np.array([20, 5, 11, 7])  # sorted: 5, 7, 11, 20
    expected = make(name).fit(X, y).predict_proba(X)
    head = make(name).fit(X, rename[y])
    assert head.classes_.tolist() == [5, 7, 11, 20]
    np.testing.assert_allclose(head.predict_proba(X), expected[:, [1, 3, 2, 0]], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "normalize"),
    # unscaled, a constant column is a second intercept to the linear head
    [
        (name, kind)
        for name in HEADS
        for kind in ("none", "standardize")
        if name + kind != "linearnone"
    ],
)
def test_a_constant_feature_tells_nothing(name: str, normalize: str) -> None:
    X, y = clips()
    X[:, [3, 26]] = 0
    expected = make(name, normalize=normalize).fit(X, y).predict_proba(X)
    X[:, [3, 26]] = 1234.1  # not a float32: its mean is not the column to the last bit
    probabilities = make(name, normalize=normalize).fit(X, y).predict_proba(X)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_a_class_of_two_clips_is_learnt(name: str) -> None:
    X, y = clips()
    X[:2] += 4
    y = y.copy()
    y[:2] = 4
    settings = {"k": 2} if name == "knn" else {"min_child_weight": 0.1} if name == "gbdt" else {}
    head = make(name, **settings).fit(X, y)
    probabilities = head.predict_proba(X)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    assert (head.predict(X[:2]) == 4).all() and probabilities[2:, 4].mean() < 0.1


@pytest.mark.parametrize("normalize", ["standardize", ("layer", "none"), ["l2", "standardize"]])
@pytest.mark.parametrize("name", HEADS)
def test_the_state_gives_the_same_bits(name: str, normalize: object) -> None:
    X, y = clips()
    labels = np.array(["d", "b", "a", "c"])[y]
    settings = {"normalize": normalize, "random_state": 5}
    if name == "gbdt":
        settings |= {"extra_trees": True, "colsample_bytree": 0.5}
    head = make(name, **settings).fit(X[:120], labels[:120])
    restored = make(name, **settings).load_state(
        load(save(head.state())), head.classes_, X.shape[1]
    )
    assert (restored.predict_proba(X) == head.predict_proba(X)).all()
    assert (restored.predict(X) == head.predict(X)).all()


@pytest.mark.parametrize("name", HEADS)
def test_standardize_is_fitted_on_weighted_rows(name: str) -> None:
    X, y = clips()
    head = make(name, normalize="standardize").fit(X[:120], y[:120])
    expected = head.predict_proba(X)
    # each column on a scale of its own; powers of two, so that nothing is rounded
    units = np.exp2(np.arange(X.shape[1]) % 7 - 3).astype(np.float32)
    scaled = make(name, normalize="standardize").fit(X[:120] * units, y[:120])
    np.testing.assert_allclose(scaled.predict_proba(X * units), expected, atol=1e-6)
    outliers = X.copy()
    outliers[120:] *= 1e4
    weight = np.arange(160) < 120
    weighted = make(name, normalize="standardize").fit(outliers, y, sample_weight=weight)
    np.testing.assert_allclose(weighted.predict_proba(X), expected, atol=1e-6)
    # new rows are measured by the fitting rows, not by themselves
    np.testing.assert_allclose(head.predict_proba(X[:1]), expected[:1], rtol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_inputs_of_length_one_have_no_scale(name: str) -> None:
    X, y = clips()
    loud = X.copy()
    loud[:, :24] *= np.exp2(np.arange(160) % 5)[:, None]
    settings = {"normalize": ("l2", "none")}
    expected = make(name, **settings).fit(X, y).predict_proba(X)
    probabilities = make(name, **settings).fit(loud, y).predict_proba(loud)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    other = make(name, normalize="none").fit(loud, y).predict_proba(loud)
    assert abs(other - expected).max() > 0.01


def test_linear_is_scikit_learns_pipeline() -> None:
    X, y = clips()
    X[:, 3] = 0.1
    weight = np.random.default_rng(2).uniform(0, 2, len(X)).astype(np.float32)
    wide = X.astype(np.float64)
    for class_weight in (None, "balanced"):
        pipeline = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.02, max_iter=300, class_weight=class_weight)
        )
        pipeline.fit(
            wide, y, standardscaler__sample_weight=weight, logisticregression__sample_weight=weight
        )
        head = LinearHead(class_weight=class_weight).fit(X, y, sample_weight=weight)
        np.testing.assert_allclose(
            head.predict_proba(X), pipeline.predict_proba(wide), rtol=0, atol=1e-9
        )
        assert head.n_iter_ == pipeline[-1].n_iter_.max()


def test_class_weights_by_their_definitions() -> None:
    counts = np.array([500, 3, 40, 0, 1])
    y = np.repeat(np.arange(5), counts)
    there = counts > 0
    reference = compute_class_weight("balanced", classes=np.unique(y), y=y)
    balanced = class_weights("balanced", counts)
    np.testing.assert_allclose(balanced[there], reference)
    assert balanced @ counts == pytest.approx(counts.sum())
    root = class_weights("inverse_sqrt", counts)
    assert root[1] / root[0] == pytest.approx(np.sqrt(500 / 3))
    effective = class_weights("effective", counts)
    assert effective[1] / effective[0] == pytest.approx((1 - 0.999**500) / (1 - 0.999**3))
    for weights in (root, effective):
        assert weights[there].mean() == pytest.approx(1)
    assert balanced[3] == root[3] == effective[3] == 0
    np.testing.assert_allclose(class_weights("effective", counts, beta=0), there)
    nearly = class_weights("effective", counts, beta=1 - 1e-9)
    np.testing.assert_allclose(nearly[there] * counts[there], nearly[4], rtol=1e-5)
    for kind in (None, "none"):
        assert class_weights(kind, counts).tolist() == [1.0] * 5


def test_weights_of_rows_count_in_class_weights() -> None:
    y = np.array([0, 0, 0, 1, 1, 2])
    weight = np.array([1, 0, 2, 0.5, 0.5, 0])
    rows = weigh_rows("balanced", np.arange(3), y, weight)
    assert rows is not None
    # the classes that have weight share it evenly
    assert np.bincount(y, weights=rows).tolist() == pytest.approx([2, 2, 0])
    by_label = weigh_rows({"b": 3.0}, np.array(["a", "b", "c"]), y, None)
    assert by_label is not None and by_label.tolist() == [1, 1, 1, 3, 3, 1]
    assert weigh_rows(None, np.arange(3), y, None) is None


def test_weighted_components_are_those_of_repeated_rows() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 6)) * [9, 5, 3, 1, 1, 0] + 100
    times = rng.integers(0, 4, 40)
    mean, components = principal_components(X, 4, times.astype(np.float64))
    repeated = np.repeat(X, times, axis=0)
    _, _, directions = np.linalg.svd(repeated - repeated.mean(axis=0))
    np.testing.assert_allclose(mean, repeated.mean(axis=0))
    np.testing.assert_allclose(np.abs(components), np.abs(directions[:4]), atol=1e-8)
    assert (components[np.arange(4), np.abs(components).argmax(axis=1)] > 0).all()
    # five columns vary, and three rows vary in two directions
    assert principal_components(X, 6, np.ones(40))[1].shape == (5, 6)
    assert principal_components(X[:3], 6, np.ones(3))[1].shape == (2, 6)


def test_trees_ignore_clips_of_no_weight_and_heed_the_seed() -> None:
    X, y = clips()
    weight = (np.arange(160) % 3 > 0) * 1.0
    settings = {"max_width": 8, "n_estimators": 10, "blocks": BLOCKS}
    weighted = GBDTHead(**settings).fit(X, y, sample_weight=weight)
    alone = GBDTHead(**settings).fit(X[weight > 0], y[weight > 0])
    assert (weighted.predict_proba(X) == alone.predict_proba(X)).all()
    other = GBDTHead(**settings, random_state=1).fit(X[weight > 0], y[weight > 0])
    assert abs(other.predict_proba(X) - alone.predict_proba(X)).max() > 0.01
    plain = [make("gbdt", random_state=seed).fit(X, y).predict_proba(X) for seed in (0, 1)]
    assert (plain[0] == plain[1]).all()
    is_rare = (y == 0) & (np.arange(160) > 20)

    def share_of_rare(**settings: object) -> float:
        head = make("gbdt", max_width=24, **settings).fit(X[~is_rare], y[~is_rare])
        return float(head.predict_proba(X)[is_rare, 0].mean())

    assert share_of_rare(class_weight="balanced") > share_of_rare() + 0.05


def test_the_optional_and_the_slow_are_imported_when_needed() -> None:
    code = (
        "import sys, bsdkit.heads.gbdt, bsdkit.heads.tabpfn; "
        "assert not {'lightgbm', 'tabpfn', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


class StandIn(GaussianNB):
    """The part of tabpfn.TabPFNClassifier that the head uses, and one limit of it."""

    @classmethod
    def create_default_for_version(cls, version: str, **arguments: object) -> StandIn:
        assert version == "v2" and set(arguments) == {
            "n_estimators", "device", "ignore_pretraining_limits", "inference_precision",
            "random_state",
        }  # fmt: skip
        return cls()

    def fit(self, X: np.ndarray, y: np.ndarray) -> StandIn:
        if len(X) > 1000:
            raise RuntimeError("Too many rows.\nSet ignore_pretraining_limits=True.")
        assert len(np.unique(y)) <= 10 and X.dtype == np.float32
        super().fit(X.astype(np.float64), y)
        return self


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package, constants = types.ModuleType("tabpfn"), types.ModuleType("tabpfn.constants")
    package.TabPFNClassifier = StandIn  # type: ignore[attr-defined]
    constants.ModelVersion = types.SimpleNamespace(V2="v2")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tabpfn", package)
    monkeypatch.setitem(sys.modules, "tabpfn.constants", constants)
    return


NO_WEIGHTS = dict.fromkeys(
    ("check_sample_weight_equivalence_on_dense_data", "check_sample_weights_not_overwritten"),
    "TabPFN knows no weights",
)


@pytest.mark.usefixtures("stand_in")
@parametrize_with_checks([TabPFNHead()], expected_failed_checks=lambda head: NO_WEIGHTS)
def test_tabpfn_keeps_the_scikit_learn_contract(estimator, check) -> None:  # type: ignore[no-untyped-def]
    check(estimator)


@pytest.mark.usefixtures("stand_in")
def test_tabpfn_goes_by_families_where_classes_are_many() -> None:
    X, y = clips(n=240, n_classes=12)
    families = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2, 0, 3, 3])
    y[y == 11] = 10  # the last family has one class left, the label 11 no clips
    head = TabPFNHead(families=tuple(families), max_width=99).fit(X, y)
    probabilities = head.predict_proba(X)
    assert probabilities.shape == (240, 11)
    by_family = StandIn().fit(X, families[y]).predict_proba(X)
    for family in range(3):
        members = np.flatnonzero(families == family)
        is_in = families[y] == family
        within = StandIn().fit(X[is_in], y[is_in]).predict_proba(X)
        np.testing.assert_allclose(
            probabilities[:, members], by_family[:, [family]] * within, atol=1e-12
        )
    np.testing.assert_allclose(probabilities[:, 10], by_family[:, 3], atol=1e-12)
    again = TabPFNHead(families=tuple(families), max_width=99)
    again.load_state(load(save(head.state())), head.classes_, X.shape[1])
    assert (again.predict_proba(X) == probabilities).all()
    few = TabPFNHead(families=tuple(families), max_width=99).fit(X[y < 9], y[y < 9])
    np.testing.assert_allclose(
        few.predict_proba(X), StandIn().fit(X[y < 9], y[y < 9]).predict_proba(X), atol=1e-12
    )


@pytest.mark.usefixtures("stand_in")
def test_tabpfn_says_what_it_cannot_take(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = clips(n=1200, n_classes=12)
    with pytest.raises(HeadError, match="at most 10 classes; the training rows have 12"):
        TabPFNHead().fit(X, y)
    with pytest.raises(HeadError, match="expected labels 0 to 4; found"):
        TabPFNHead(families=(0, 0, 1, 1, 2)).fit(X, y)
    with pytest.raises(HeadError, match="have 1 families of up to 12 classes"):
        TabPFNHead(families=(0,) * 12).fit(X, y)
    with pytest.raises(HeadError, match=r"^[^\n]*Too many rows\.; set ignore_limits: true[^\n]*$"):
        TabPFNHead(families=(0, 1, 2) * 4).fit(X, y)
    with pytest.raises(HeadError, match="no clip weights; found 1 to 2"):
        TabPFNHead().fit(X[:9], y[:9], sample_weight=[0] + [1] * 4 + [2] * 4)
    with pytest.raises(HeadError, match=r"no weights at here\.ckpt: curl -L -o here\.ckpt https"):
        TabPFNHead(weights="here.ckpt").fit(X[:9], y[:9])
    monkeypatch.setitem(sys.modules, "tabpfn", None)
    with pytest.raises(HeadError, match=r"pip install 'bsdkit\[tabpfn\]'"):
        TabPFNHead().fit(X[:9], y[:9])


@pytest.mark.parametrize(
    ("head", "line"),
    [
        (KNNHead(normalize="l1"), "normalize is 'l1'"),
        (LinearHead(blocks=(24, 6), normalize=["l2"]), "names 1 kinds for 2 inputs"),
        (PrototypeHead(blocks=(24, 7)), "add up to 31; X has 30"),
        (KNNHead(k=0), "k is 0, expected 1 or more"),
        (PrototypeHead(temperature=0.0), "temperature is 0.0, expected more than 0"),
        (LinearHead(C=0.0), "C is 0.0, expected more than 0"),
        (LinearHead(class_weight="ballanced"), "did you mean 'balanced'"),
        (GBDTHead(class_weight={7: 1.0}), "expected labels of the training rows"),
        (GBDTHead(num_leaves=1), "num_leaves is 1, expected 2 to 131072"),
        (GBDTHead(colsample_bytree=0.0), "colsample_bytree is 0.0, expected more than 0"),
        (GBDTHead(n_components=0), "n_components is 0, expected 1 or more"),
        (TabPFNHead(max_classes=1), "max_classes is 1, expected 2 or more"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(head: PlainHead, line: str) -> None:
    with pytest.raises(HeadError) as refusal:
        head.fit(*clips())
    assert line in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("inverse", [1, 2]), "class_weight is 'inverse'"),
        (("effective", [1, 2], 1.0), "beta is 1.0, expected at least 0 and below 1"),
        (("balanced", [0, 0]), "not all 0"),
        (("balanced", [[1, 2]]), "expected one number of clips a class"),
        (("none", [3, -1]), "not negative"),
    ],
)
def test_wrong_class_weights_are_refused(arguments: tuple[object, ...], line: str) -> None:
    with pytest.raises(HeadError, match=line):
        class_weights(*arguments)  # type: ignore[arg-type]
