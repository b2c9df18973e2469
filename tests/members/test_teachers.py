from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bsdkit.dataset import read_dataset
from bsdkit.dataset.groups import GroupKey, group_clips
from bsdkit.errors import HeadError
from bsdkit.members import Inputs, MemberPlan, Task, predict_member, train_members
from bsdkit.members.member import opinions_of, pair_probabilities
from bsdkit.members.plan import ExtraClips
from bsdkit.members.teachers import (
    TeacherTargets,
    distilled_targets,
    extra_targets,
    mean_of_teachers,
    training_waves,
)
from bsdkit.members.trainer import MemberTrainer, member_plan
from bsdkit.members.weights import clip_weights, is_confident
from bsdkit.recipe.schema import recipe_from
from bsdkit.recipe.teaching import Distillation, ExtraPlan
from bsdkit.splits import Split
from bsdkit.store.store import Store
from bsdkit.taxonomy import Taxonomy
from tests.conftest import ROOT, make_clips

TREE = Taxonomy.flat(["a", "b", "c"])
FEATURES = ("x",)
CENTRES = np.random.default_rng(5).standard_normal((3, 8)) * 2.0


def sounds(n: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    X = CENTRES[labels] + spread * rng.standard_normal((n, 8))
    return X.astype(np.float32), labels


def problem(n: int = 90) -> tuple[Inputs, Task]:
    X, labels = sounds(n, 0)
    uploader = [f"u{i // 6}" for i in range(n)]
    fold = (np.arange(n) // 6) % 5
    grouping = group_clips(make_clips(labels, uploader), GroupKey.parse("uploader"))
    task = Task(
        labels,
        TREE,
        Split("test", fold, 5, 0, grouping),
        confidence=(np.arange(n) % 5 + 1).astype(np.float32),
    )
    return Inputs(X, (8,), np.ones(n, bool)), task


def extra_clips(n: int = 60, wrong: float = 0.0) -> ExtraClips:
    X, labels = sounds(n, 1)
    given = labels.copy()
    given[: int(wrong * n)] = (labels[: int(wrong * n)] + 1) % 3
    table = make_clips(given, [f"u{i % 20}" for i in range(n)])
    is_copy = np.zeros(n, bool)
    is_copy[:2] = True
    return ExtraClips(Inputs(X, (8,), np.ones(n, bool)), given, table, is_copy)


def plan(name: str = "m", **changes: object) -> MemberPlan:
    settings = {"hidden": 16, "epochs": 12, "learning_rate": 0.02, "batch_size": 16}
    base = MemberPlan(name, "mlp", settings, FEATURES, (0, 1), 0.0)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_pairs_of_folds_teach_without_either() -> None:
    inputs, task = problem()
    said = pair_probabilities(plan(), inputs, task)
    fold = task.split.fold
    for k in range(5):
        assert np.isnan(said[k, fold == k]).all() and np.isfinite(said[k, fold != k]).all()
    # what is said of fold 2 to the student of fold 4 hangs on the labels of neither
    for hidden in (2, 4):
        labels = task.labels.copy()
        labels[fold == hidden] = (labels[fold == hidden] + 1) % 3
        other = pair_probabilities(plan(), inputs, replace(task, labels=labels))
        assert (other[4, fold == 2] == said[4, fold == 2]).all()
        assert (other[2, fold == 4] == said[2, fold == 4]).all()
        assert not np.array_equal(other[4, fold == 1], said[4, fold == 1], equal_nan=True) or (
            hidden == 4
        )
    with pytest.raises(HeadError, match="takes 3 folds at least"):
        pair_probabilities(plan(), inputs, replace(task, split=Split("two", fold % 2, 2, 0)))


def test_opinions_on_extra_clips_come_from_the_same_fold() -> None:
    inputs, task = problem()
    extra = extra_clips()
    result = train_members([plan()], {FEATURES: inputs}, task)["m"]
    said = opinions_of(plan(), result, extra, task)
    assert said.shape == (5, 60, 3) and np.isfinite(said).all()
    labels = task.labels.copy()
    labels[task.split.test(3)] = 0
    other = train_members([plan()], {FEATURES: inputs}, replace(task, labels=labels))["m"]
    again = opinions_of(plan(), other, extra, replace(task, labels=labels))
    assert (again[3] == said[3]).all() and not (again[1] == said[1]).all()


def test_targets_of_extra_clips() -> None:
    _, task = problem()
    extra = extra_clips()
    held_out = [task.split.test(k) for k in range(5)]
    rng = np.random.default_rng(0)
    said = rng.dirichlet(np.ones(3), size=(3, 5, 60))

    def targets(use: ExtraPlan, seed: int = 0):  # type: ignore[no-untyped-def]
        opinions = None if use.labels == "given" else said
        return extra_targets(plan(), use, extra, task, held_out, opinions, seed)

    given = targets(ExtraPlan("s", weight=0.3))
    used = given.weight > 0
    assert set(np.unique(given.weight)) == {0.0, np.float32(0.3)} and not used[:, :2].any()
    for k in range(5):
        ((_, uploader),) = task.split.group_values
        theirs, tested = extra.table.uploader, set(uploader[held_out[k]])
        assert not any(theirs[i] in tested for i in np.flatnonzero(used[k]))
        assert any(theirs[i] in tested for i in np.flatnonzero(~used[k]))
    agreed = targets(ExtraPlan("s", labels="agreement", teachers=("a", "b", "c"), at_least=3))
    votes = said.argmax(-1)
    unanimous = (votes == votes[0]).all(axis=0)
    assert ((agreed.weight > 0) == (used & unanimous)).all()
    assert (agreed.soft.argmax(-1) == votes[0])[unanimous].all() and (agreed.soft_share == 1).all()
    soft = targets(ExtraPlan("s", labels="soft", teachers=("a",), share=(0.2, 0.8)))
    np.testing.assert_allclose(soft.soft, mean_of_teachers(said, 1.0), atol=1e-6)
    assert 0.2 <= soft.soft_share.min() == soft.soft_share.max() <= 0.8
    drawn = {float(targets(ExtraPlan("s", labels="soft", teachers=("a",), share=(0.2, 0.8)), seed)
                   .soft_share[0, 0]) for seed in range(4)}  # fmt: skip
    assert len(drawn) == 4
    use = ExtraPlan("s", labels="soft", teachers=("a",), subset="confident", fraction=0.25)
    surest = targets(use)
    sureness = mean_of_teachers(said, 1.0).max(-1)
    for k in range(5):
        chosen = surest.weight[k] > 0
        assert chosen.sum() == round(0.25 * used[k].sum()) and surest.n_rows[k] == used[k].sum()
        assert sureness[k][chosen].min() >= sureness[k][used[k] & ~chosen].max()
    random = targets(replace(use, subset="random"))
    assert (random.weight > 0).sum() == (surest.weight > 0).sum()
    assert not np.array_equal(random.weight, targets(replace(use, subset="random"), 1).weight)
    with pytest.raises(HeadError, match="none of the 60 clips of s is left"):
        extra_targets(
            plan(),
            ExtraPlan("s"),
            replace(extra, is_copy=np.ones(60, bool)),
            task,
            held_out,
            None,
            0,
        )


def test_mean_of_teachers_is_the_softmax_of_mean_logits() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 7, 5))
    powers = np.exp(logits)
    mean = np.exp(logits.mean(axis=0) / 2)
    # adding a constant to a teacher's logits changes no probability, so neither the mean
    expected = mean / mean.sum(axis=1, keepdims=True)
    shifted = np.log(powers / powers.sum(axis=-1, keepdims=True))
    again = mean_of_teachers(np.exp(shifted), 2.0)
    np.testing.assert_allclose(again, expected, atol=1e-12)


def test_distilled_targets_are_the_sum_of_their_terms() -> None:
    rng = np.random.default_rng(0)
    said = rng.dirichlet(np.ones(3), size=(2, 5, 10))
    said[:, 1, 4] = np.nan
    use = Distillation(("a", "b"), soft=0.4, hard=0.2)
    soft, share, scale = distilled_targets(use, said)
    log_p = np.log(rng.dirichlet(np.ones(3)))
    q = mean_of_teachers(said[:, 0, 0], 1.0)
    expected = -log_p[1] - 0.4 * (q * log_p).sum() - 0.2 * log_p[q.argmax()]
    target = (1 - share[0, 0]) * np.eye(3)[1] + share[0, 0] * soft[0, 0]
    assert scale * -(target * log_p).sum() == pytest.approx(expected, rel=1e-5)
    assert share[1, 4] == 0 and (share > 0).sum() == 49


@pytest.mark.parametrize("stage", ["together", "before"])
def test_extra_clips_help_when_right_and_hurt_when_wrong(stage: str) -> None:
    inputs, task = problem(30)
    hard, _ = sounds(30, 0, spread=4.0)
    inputs = replace(inputs, X=hard)
    scores = {}
    for wrong in (0.0, 1.0):
        extra = extra_clips(240, wrong)
        extra = replace(extra, table=make_clips(extra.labels, ["elsewhere"] * 240))
        student = plan(extra=(ExtraPlan("s", stage=stage),), seeds=(0,))
        result = train_members(
            [student], {FEATURES: inputs}, task, extras={("s", None, FEATURES): extra}
        )["m"]
        scores[wrong] = float((result.mean.argmax(1) == task.labels).mean())
        assert len(result.models) == 5 and not result.faults
    assert scores[0.0] > scores[1.0] + (0.1 if stage == "together" else 0.0)


def test_a_student_learns_what_its_teachers_say() -> None:
    inputs, task = problem()
    student = plan(distillation=Distillation(("t",), soft=50.0), seeds=(0,))
    said = np.zeros((1, 5, 90, 3))
    said[..., 2] = 1.0  # everything is c
    result = train_members(
        [student], {FEATURES: inputs}, task, opinions={"m": TeacherTargets(clips=said)}
    )["m"]
    assert (result.mean.argmax(1) == 2).all()
    clean = train_members([plan(seeds=(0,))], {FEATURES: inputs}, task)["m"]
    assert (clean.mean.argmax(1) == task.labels).mean() > 0.9


def test_confidence_weighs_and_filters_training_clips_only() -> None:
    inputs, task = problem()
    c = task.confidence
    assert c is not None
    np.testing.assert_allclose(clip_weights(plan(confidence="linear"), task), c / 5)
    np.testing.assert_allclose(clip_weights(plan(confidence="shifted"), task), (c - 1) / 4)
    binary = clip_weights(plan(confidence="binary"), task)
    np.testing.assert_allclose(binary, np.where(c >= 3, 1, 0.3).astype(np.float32))
    assert clip_weights(plan(), task) is None
    filtered = plan(min_confidence=4.0)
    assert (is_confident(filtered, task) == (c >= 4)).all()
    result = train_members([filtered], {FEATURES: inputs}, task)["m"]
    assert np.isfinite(result.mean).all()  # every clip is scored, sure or not
    labels = np.where(c >= 4, task.labels, (task.labels + 1) % 3)
    same = train_members([filtered], {FEATURES: inputs}, replace(task, labels=labels))["m"]
    assert (same.mean == result.mean).all()
    unknown = replace(task, confidence=np.full(90, np.nan, np.float32))
    with pytest.raises(HeadError, match="no clip has one"):
        train_members([filtered], {FEATURES: inputs}, unknown)


def test_teachers_come_before_their_students() -> None:
    members = {
        "s": plan("s", distillation=Distillation(("t",))),
        "t": plan("t"),
        "u": plan("u", extra=(ExtraPlan("x", labels="soft", teachers=("s", "t")),)),
    }
    assert training_waves(members) == [["t"], ["s"], ["u"]]
    members["t"] = plan("t", distillation=Distillation(("u",)))
    with pytest.raises(HeadError, match="circle: s, t, u"):
        training_waves(members)


def test_a_head_without_epochs_cannot_have_teachers() -> None:
    inputs, task = problem()
    student = replace(plan(distillation=Distillation(("t",))), head="linear", settings={})
    said = np.full((1, 5, 90, 3), 1 / 3)
    with pytest.raises(HeadError, match="head 'linear' cannot learn from soft targets"):
        train_members(
            [student], {FEATURES: inputs}, task, opinions={"m": TeacherTargets(clips=said)}
        )


def test_probabilities_of_members_are_inputs_that_no_label_of_the_fold_reaches() -> None:
    inputs, task = problem()
    teacher = plan("t", seeds=(0,))
    stacked = plan("s", head="gbdt", settings={"n_estimators": 5}, probabilities=("t",))

    def run(labels: np.ndarray):  # type: ignore[no-untyped-def]
        own = replace(task, labels=labels)
        result = train_members([teacher], {FEATURES: inputs}, own)["t"]
        said = pair_probabilities(teacher, inputs, own)
        for k, (_, test) in enumerate(task.split):
            said[k, test] = result.mean[test]
        given = {"s": TeacherTargets(inputs=said[None])}
        return train_members([stacked], {FEATURES: inputs}, own, opinions=given)["s"]

    result = run(task.labels)
    assert np.isfinite(result.mean).all()
    assert (result.mean.argmax(1) == task.labels).mean() > 0.9
    test = task.split.test(2)
    scrambled = task.labels.copy()
    scrambled[test] = (scrambled[test] + 1) % 3
    assert (run(scrambled).mean[test] == result.mean[test]).all()


def test_folds_from_a_file_that_keep_uploaders_apart_are_kept_so(tmp_path: Path) -> None:
    rows = "".join(f"{i},c{i % 3},u{i // 6}\n" for i in range(90))
    (tmp_path / "clips.csv").write_text("id,class,uploader\n" + rows)
    store = Store.create(tmp_path / "store", read_dataset(tmp_path / "clips.csv", "flat")[0])
    for name, folds in (("apart", [i // 6 % 3 for i in range(90)]), ("mixed", [*range(90)])):
        path = tmp_path / f"{name}.csv"
        text = "".join(f"{i},{fold % 3}\n" for i, fold in enumerate(folds))
        path.write_text("sound_id,fold\n" + text)
        recipe = recipe_from(
            {
                "name": "r", "store": str(store.path), "split": "file", "split_file": str(path),
                "members": {"a": {"head": "linear", "features": "x"}},
            },
            "test",
        )  # fmt: skip
        task = MemberTrainer(recipe, tmp_path / "runs").task("file")
        assert (task.groups is not None) == (name == "apart")


def test_a_member_with_extra_clips_cannot_be_an_input(tmp_path: Path) -> None:
    noisy = {"store": str(ROOT / "cache/starter-noisy")}
    quick = {"features": "aisfx", "head": "mlp", "hidden": 8, "epochs": 1}
    recipe = recipe_from(
        {
            "name": "r", "store": str(ROOT / "cache/starter"), "split": "group", "folds": 3,
            "seeds": [0], "validation": 0,
            "members": {
                "t": {**quick, "extra": noisy},
                "s": {**quick, "probabilities": "t"},
            },
        },
        "test",
    )  # fmt: skip
    bench = MemberTrainer(recipe, tmp_path)
    plans = {name: member_plan(name, recipe) for name in recipe.members}
    with pytest.raises(HeadError, match="'t' learns from members or extra clips itself"):
        bench.train(plans, bench.task("group"))


def test_predictions_with_passes_are_the_same_out_of_fold_and_later() -> None:
    inputs, task = problem()
    settings = {"hidden": 16, "epochs": 4, "passes": 3}
    p = replace(plan(settings=settings), seeds=(5,))
    result = train_members([p], {FEATURES: inputs}, task)["m"]
    for k in range(5):
        test = task.split.test(k)
        own = Inputs(inputs.X[test], inputs.blocks, inputs.is_present[test])
        models = tuple(m for m in result.models if m.fold == k)
        again = predict_member(p, models, own, TREE)
        np.testing.assert_allclose(again, result.mean[test], atol=1e-6)
