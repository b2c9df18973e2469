from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bsdkit.dataset import Clips, read_dataset
from bsdkit.dataset.groups import GroupKey, group_clips
from bsdkit.errors import CorruptStore, HeadError
from bsdkit.members import Inputs, MemberPlan, Task, predict_member, train_members
from bsdkit.members.member import MemberModel, _abnormal
from bsdkit.members.saved import copy_models, load_member, load_models, member_key, save_member
from bsdkit.splits import Split
from bsdkit.taxonomy import Taxonomy

TREE = Taxonomy.flat(["a", "b", "c", "rare"])


def problem(n: int = 150) -> tuple[np.ndarray, np.ndarray, Split]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    labels[:4] = 3
    centres = rng.standard_normal((4, 12)) * 3
    X = (centres[labels] + rng.standard_normal((n, 12))).astype(np.float32)
    fold = np.arange(n) // 3 % 5
    fold[:4] = 0  # the rare class is tested by fold 0 alone, so nobody has seen it there
    fold[-6:] = -1  # trained on, never tested
    return X, labels, Split("test", fold, 5, 0)


def plan(head: str, **settings: object) -> MemberPlan:
    return MemberPlan("m", head, settings, ("x",), (0, 1), 0.0)


PLANS = [plan("linear"), plan("mlp", hidden=16, epochs=15, learning_rate=0.01)]


def train(p: MemberPlan, present: np.ndarray | None = None):  # type: ignore[no-untyped-def]
    X, labels, split = problem()
    return train_on(p, X, labels, split, present)


def train_on(  # type: ignore[no-untyped-def]
    p: MemberPlan,
    X: np.ndarray,
    labels: np.ndarray,
    split: Split,
    present: np.ndarray | None = None,
):
    present = np.ones(len(X), bool) if present is None else present
    inputs = {p.features: Inputs(X, (X.shape[1],), present)}
    return train_members([p], inputs, Task(labels, TREE, split))[p.name]


@pytest.mark.parametrize("p", PLANS, ids=lambda p: p.head)
def test_every_tested_clip_is_predicted_once_by_models_that_did_not_see_it(p: MemberPlan) -> None:
    X, labels, split = problem()
    result = train(p)
    assert result.probabilities.shape == (len(p.used_seeds), 150, 4)
    tested = split.fold >= 0
    assert np.isfinite(result.mean[tested]).all() and np.isnan(result.mean[~tested]).all()
    np.testing.assert_allclose(result.mean[tested].sum(axis=1), 1, atol=1e-9)
    assert {(m.fold, m.seed) for m in result.models} == {
        (k, s) for k in range(5) for s in p.used_seeds
    }
    common = tested & (labels != 3)
    assert (result.mean[common].argmax(1) == labels[common]).mean() > 0.9
    # a fold's predictions do not depend on its own labels
    X, labels, split = problem()
    scrambled = labels.copy()
    test = split.test(2)
    scrambled[test] = np.roll(labels[test], 1)
    other = train_on(p, X, scrambled, split)
    assert (other.mean[test] == result.mean[test]).all()
    assert not np.array_equal(other.mean[split.test(1)], result.mean[split.test(1)])


@pytest.mark.parametrize("p", PLANS, ids=lambda p: p.head)
def test_clips_without_features_are_left_out(p: MemberPlan) -> None:
    present = np.ones(150, bool)
    present[[10, 20, 30]] = False
    result = train(p, present)
    assert np.isnan(result.mean[[10, 20, 30]]).all()
    assert np.isfinite(result.mean[[11, 21, 31]]).all()


@pytest.mark.parametrize("p", PLANS, ids=lambda p: p.head)
def test_a_saved_member_is_the_same_member(p: MemberPlan, tmp_path: Path) -> None:
    result = train(p)
    save_member(tmp_path / "member", result)
    loaded = load_member(tmp_path / "member")
    assert np.array_equal(loaded.probabilities, result.probabilities, equal_nan=True)
    X = problem()[0]
    expected = predict_member(p, result.models, Inputs(X, (12,), np.ones(150, bool)), TREE)
    assert (
        predict_member(p, loaded.models, Inputs(X, (12,), np.ones(150, bool)), TREE) == expected
    ).all()
    assert [p.name for p in tmp_path.iterdir()] == ["member"]
    weights = tmp_path / "member" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(CorruptStore, match="delete it and run bsdkit fit again"):
        load_member(tmp_path / "member")


@pytest.mark.parametrize("p", PLANS, ids=lambda p: p.head)
def test_a_member_is_adjusted_by_what_its_own_fold_trained_on(
    p: MemberPlan, tmp_path: Path
) -> None:
    X, labels, split = problem()
    shifted = replace(p, logit_adjustment=0.5)
    plain, result = train(p), train(shifted)
    for s, (before, after) in enumerate(
        zip(plain.probabilities, result.probabilities, strict=True)
    ):
        for k in range(5):
            test = split.test(k)
            shares = np.bincount(labels[split.fold != k], minlength=4) / (split.fold != k).sum()
            # nobody trains on the rare class where fold 0 is tested: half a clip stands for it
            shares = np.maximum(shares, 0.5 / (split.fold != k).sum())
            expected = before[test] / shares**0.5
            expected /= expected.sum(axis=1, keepdims=True)
            np.testing.assert_allclose(after[test], expected, atol=1e-12, err_msg=f"{s} {k}")
    save_member(tmp_path / "member", result)
    loaded = load_member(tmp_path / "member")
    everything = Inputs(X, (12,), np.ones(150, bool))
    found = predict_member(shifted, loaded.models, everything, TREE)
    assert (found == predict_member(shifted, result.models, everything, TREE)).all()
    mean = 0.0
    for one in plain.models:
        said = predict_member(p, (one,), everything, TREE)
        counts = np.bincount(labels[split.fold != one.fold], minlength=4)
        said = said / (np.maximum(counts, 0.5) / counts.sum()) ** 0.5
        mean = mean + said / said.sum(axis=1, keepdims=True) / len(plain.models)
    np.testing.assert_allclose(found, mean, atol=1e-12)
    copy_models(tmp_path / "member", tmp_path / "fold", 2)
    (of_fold, *_) = load_models(tmp_path / "fold")
    assert of_fold.train_counts is not None
    assert of_fold.train_counts.tolist() == np.bincount(labels[split.fold != 2]).tolist()
    save_member(tmp_path / "plain", plain)
    assert "train_counts" not in (tmp_path / "plain" / "models.json").read_text()


def test_validation_chooses_an_epoch_without_the_test_clips() -> None:
    p = MemberPlan("m", "mlp", {"hidden": 16, "epochs": 15}, ("x",), (0,), 0.2)
    result = train(p)
    for model in result.models:
        scores = model.history["validation_hF_strict"]
        assert len(scores) == 15
        assert model.history["best_epoch"] == int(np.argmax(scores)) + 1


def test_key_says_what_matters_and_nothing_else(tmp_path: Path) -> None:
    table = tmp_path / "clips.csv"
    table.write_text("id,class,uploader\n" + "".join(f"{i},c{i % 3},u{i % 4}\n" for i in range(20)))
    clips = read_dataset(table, "flat")[0]
    folds = Split("s", np.arange(20) % 5, 5, 0)

    def key(p: MemberPlan, checksum: str = "c", clips: Clips = clips, split: Split = folds) -> str:
        return member_key(p, [checksum], clips, split, "cpu")

    def grouped(clips: Clips = clips) -> Split:
        return replace(folds, grouping=group_clips(clips, GroupKey.parse("uploader")))

    base = plan("mlp", hidden=16)
    assert key(base) == key(MemberPlan("renamed", "mlp", {"hidden": 16}, ("x",), (0, 1), 0.0))
    others = [
        key(plan("mlp", hidden=17)),
        key(plan("gmu", hidden=16)),
        key(MemberPlan("m", "mlp", {"hidden": 16}, ("x",), (0, 2), 0.0)),
        key(MemberPlan("m", "mlp", {"hidden": 16}, ("x",), (0, 1), 0.2)),
        key(base, checksum="d"),
        key(base, split=Split("s", np.arange(20) % 4, 4, 0)),
        key(base, clips=replace(clips, labels=(clips.labels + 1) % 3)),
        key(base, split=grouped()),
        key(replace(base, logit_adjustment=0.5)),
        key(plan("mlp", hidden=16, view_noise=0.1, passes=5)),
    ]
    assert len({key(base), *others}) == 11
    assert key(base) == key(plan("mlp", hidden=16, block_dropout=[], view_noise=0, passes=0))
    renamed = Split("another name", folds.fold, 5, 3)
    assert key(base, split=renamed) == key(base)
    assert key(base, clips=replace(clips, title=clips.title + "x")) == key(base)
    other_uploaders = replace(clips, uploader=np.sort(clips.uploader))
    assert key(base, clips=other_uploaders) == key(base)
    assert key(base, split=grouped(other_uploaders)) != key(base, split=grouped())
    # a head without randomness trains one seed, and validation means nothing to it
    linear = MemberPlan("m", "linear", {}, ("x",), (0, 1), 0.2)
    assert key(linear) == key(MemberPlan("m", "linear", {}, ("x",), (0, 9), 0.0))


def test_a_fold_with_one_class_is_named() -> None:
    X, labels, split = problem()
    labels = np.where(split.fold == 1, 1, 0)
    with pytest.raises(HeadError, match=r"fold 1 of split 'test' has \d+ clips of 1 class"):
        train_on(PLANS[0], X, labels, split)


def test_a_model_that_learned_nothing_where_the_others_did_is_named() -> None:
    def model(fold: int, score: float, losses: list[float]) -> MemberModel:
        history = {"losses": losses, "validation_hF_strict": [0.1, score]}
        return MemberModel(fold, 0, np.arange(4), {}, history)

    good = [model(k, 0.8, [1.4, 0.3]) for k in range(4)]
    assert _abnormal(good) == [] and _abnormal([]) == []
    (line,) = _abnormal([*good, model(4, 0.2, [1.4, 1.39])])
    assert line.startswith("fold 4, seed 0: validation score 0.200, half of its models reach 0.8")
    # a hard fold is no fault: the model learned, or all of them are as weak
    assert _abnormal([*good, model(4, 0.2, [1.4, 0.4])]) == []
    assert _abnormal([model(k, 0.01 * k, [1.4, 1.39]) for k in range(5)]) == []
