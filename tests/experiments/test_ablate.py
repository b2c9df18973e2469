"""Variants against a baseline, on a handful of the starter's real embeddings."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bsdkit.api import fit
from bsdkit.errors import (
    CorruptStore,
    HeadError,
    RecipeError,
    StaleStore,
    StoreError,
)
from bsdkit.experiments.ablate import ablate, variants_of
from bsdkit.experiments.ablation_table import ablation_table
from bsdkit.members.trainer import MemberTrainer, member_plan
from bsdkit.metrics import compare, evaluate
from bsdkit.recipe.schema import Recipe, recipe_from
from bsdkit.recipe.vary import changed, combinations, parse_variation, value_at
from bsdkit.store.store import Store
from tests.conftest import ROOT, bsdkit_here
from tests.runs.test_whole_chain import part_of_store

SMALL = {"hidden": 16, "epochs": 3, "batch_size": 64, "learning_rate": 0.01}


def recipe(**changes: object) -> Recipe:
    data: dict[str, object] = {
        "name": "base",
        "store": str(ROOT / "cache/starter"),
        "split": "group",
        "folds": 3,
        "seeds": [0, 1],
        "validation": 0,
        "members": {
            "a": {"head": "mlp", "features": ["aisfx"], **SMALL},
            "b": {"head": "mlp", "features": ["minilm"], **SMALL},
        },
        "ensemble": {"method": "mean"},
    }
    return recipe_from({**data, **changes}, "test")


def test_keys_and_values() -> None:
    r = recipe()
    assert value_at(r, "members.a.hidden") == 16 and value_at(r, "members.a.dropout") == 0.3
    both = combinations([parse_variation("x=1,2"), parse_variation("y=a,[b, c]")])
    assert both == [{"x": 1, "y": "a"}, {"x": 1, "y": ["b", "c"]}, {"x": 2, "y": "a"},
                    {"x": 2, "y": ["b", "c"]}]  # fmt: skip
    assert parse_variation("x=1e-3,2").values == (0.001, 2)
    other = changed(r, {"members.a.dropout": 0.5, "seeds": [3]})
    assert other.members["a"].settings["dropout"] == 0.5 and other.seeds == [3]
    assert other.members["b"] == r.members["b"]
    for wrong, said in (
        ({"members.a.droput": 0.1}, "did you mean 'dropout'"),
        ({"members.c.dropout": 0.1}, "no 'c' in members: known: a, b"),
        ({"members.a.dropout": 2}, "dropout is 2, expected 0 to below 1"),
        ({"members.a.dropout.x": 2}, "has no parts"),
    ):
        with pytest.raises(RecipeError, match=said):
            changed(r, wrong)
    with pytest.raises(RecipeError, match="is not KEY=VALUE"):
        parse_variation("members.a.dropout")
    with pytest.raises(RecipeError, match="twice"):
        combinations([parse_variation("x=1"), parse_variation("x=2")])


def test_variants_against_the_baseline(tmp_path: Path) -> None:
    r = recipe()
    changes = combinations([parse_variation("members.a.learning_rate=0.01,0.0001,1e30")])
    variants = variants_of(r, changes)
    found = ablate(r, variants, tmp_path)
    assert found.judged == "a"
    same, slow, broken = found.variants if len(found.variants) == 3 else (None, *found.variants)
    assert same is None, "a variant that is the recipe itself is left out"
    assert slow.verdict == "loss" and slow.difference is not None and slow.difference.high < 0
    assert broken.verdict == "diverged" and "fold 0, seed 0" in broken.fault
    # the same numbers as by hand
    bench = MemberTrainer(r, tmp_path)
    task = bench.task("group")
    plans = {"a": member_plan("a", r), "s": member_plan("a", variants["learning_rate=0.0001"])}
    oof = {k: v.mean.argmax(1) for k, v in bench.train(plans, task).items()}
    assert bench.n_trained == 0
    by_hand = compare(task.labels, oof["s"], oof["a"], task.taxonomy, n_resamples=4000)
    assert slow.difference.difference == by_hand.difference
    assert slow.difference.low < by_hand.low < by_hand.high < slow.difference.high
    assert slow.difference.p_adjusted == slow.difference.p_value  # it is the only one
    strict = evaluate(task.labels, oof["a"], task.taxonomy, warn=False)["hF_strict"]
    assert found.baseline.value == strict
    again = ablate(r, variants, tmp_path)
    assert again.n_trained == 0 and again.variants == found.variants
    table = ablation_table(found).to_markdown(is_bare=True).splitlines()
    assert len(table) == 5 and table[3].endswith("| loss |") and table[4].endswith("| diverged |")


def test_variants_of_the_ensemble_and_whole_recipes(tmp_path: Path) -> None:
    r = recipe()
    alone = recipe(name="alone", ensemble={"method": "mean", "members": ["b"]})
    found = ablate(r, variants_of(r, [], [alone, r]), tmp_path)
    assert found.judged == "ensemble" and [v.name for v in found.variants] == ["alone"]
    assert found.n_trained == 2  # the members are the same
    assert found.variants[0].seeds is not None and found.variants[0].seeds.n == 2
    for other, said in (
        (recipe(name="o", folds=4), "has folds: 4, base has 3"),
        (recipe(name="o", split="stratified"), "scored on stratified folds"),
        (recipe(name="o", store="elsewhere"), "has store: elsewhere"),
    ):
        with pytest.raises(RecipeError, match=said):
            variants_of(r, [], [other])
    for change in ({"folds": 4}, {"split": ["stratified"]}, {"split_seed": 9}, {"missing": "skip"}):
        with pytest.raises(RecipeError, match="compared on the same|first splits must be the same"):
            variants_of(r, [change])
    with pytest.raises(RecipeError, match="no variant that differs"):
        variants_of(r, [{"members.a.hidden": 16}])
    dropped = variants_of(r, [{"members.a.dropout": 0.5}])
    with pytest.raises(RecipeError, match="'b' does not depend on anything that varies"):
        ablate(r, dropped, tmp_path, judged="b")
    with pytest.raises(RecipeError, match="1 and . seeds"):
        ablate(r, {"x": recipe(seeds=[0])}, tmp_path)
    with pytest.raises(RecipeError, match="no variant that differs"):
        variants_of(r, [{"members.a.dropout": 0.3}])  # the head's own default
    with pytest.raises(RecipeError, match="there is no member 'c'"):
        ablate(r, {"x": alone}, tmp_path, judged="c")


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(recipe(seeds=[0]).to_yaml())
    runs = ("--runs", tmp_path / "runs")
    result = bsdkit_here("ablate", path, "--vary", "members.b.dropout=0,0.3", *runs)
    assert result.returncode == 0, result.stderr
    assert "member b, group folds, 1998 clips" in result.stdout and "dropout=0" in result.stdout
    wrong = bsdkit_here("ablate", path, "--vary", "members.b.dropot=0", *runs)
    assert wrong.returncode == 2 and "did you mean 'dropout'" in wrong.stderr


def test_a_member_that_diverges_is_left_out_by_name(tmp_path: Path) -> None:
    r = changed(recipe(), {"members.a.learning_rate": 1e30})
    fitted = fit(r, tmp_path)
    metrics = fitted.metrics["protocols"]["group"]
    assert list(metrics["left_out"]) == ["a"] and metrics["ensemble"]["members"] == ["b"]
    assert json.loads((fitted.folder / "ensemble.json").read_text())["members"] == ["b"]
    assert "diverged" in (fitted.folder / "report.html").read_text()
    result = bsdkit_here(
        "predict", fitted.folder, "--store", r.store, "--out", tmp_path / "out.csv"
    )
    assert result.returncode == 0 and len((tmp_path / "out.csv").read_text().splitlines()) == 1999
    alone = changed(r, {"ensemble.members": ["a"]})
    with pytest.raises(RecipeError, match="no member is left .*: a diverged, fold 0, seed 0"):
        fit(alone, tmp_path)


TAUGHT = {
    "s": {"head": "mlp", "features": ["aisfx"], **SMALL, "distill": {"teachers": ["b"]}},
    "n": {
        "head": "mlp", "features": ["aisfx"], **SMALL, "normalize": "standardize",
        "extra": {"store": str(ROOT / "cache/starter-noisy"), "labels": "soft", "teachers": ["b"],
                  "stage": "before", "pretrain": {"epochs": 1}},
    },
    "p": {"head": "prior_mix", "features": ["aisfx"], **SMALL, "probabilities": "b"},
}  # fmt: skip


def test_taught_members_are_kept_predict_and_know_what_they_depend_on(tmp_path: Path) -> None:
    base = recipe(seeds=[0])
    members = {"b": base.members["b"].model_dump(), **TAUGHT}
    few = {}
    for name in ("starter", "starter-noisy"):
        source = ROOT / "cache" / name
        rows = np.arange(0, len(Store(source).clips), 3)
        few[name] = str(part_of_store(source, tmp_path / name, rows))
    whole = recipe(seeds=[0], members=members)
    r = changed(whole, {"store": few["starter"], "members.n.extra.store": few["starter-noisy"]})
    first = fit(r, tmp_path)
    assert first.n_trained == 4 and fit(r, tmp_path).n_reused == 4
    # another teacher is another student
    other = changed(r, {"members.b.hidden": 8})
    assert fit(other, tmp_path).n_trained == 4
    renamed = json.loads(json.dumps(r.model_dump()).replace('"b"', '"teacher"'))
    assert fit(recipe_from(renamed, "test"), tmp_path).n_trained == 0
    out = tmp_path / "out.csv"
    noisy = few["starter-noisy"]
    result = bsdkit_here("predict", first.folder, "--store", noisy, "--out", out)
    assert result.returncode == 0, result.stderr
    assert len(out.read_text().splitlines()) == len(Store(noisy).clips) + 1


def test_processes_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bsdkit.members.jobs._LARGE", 0.0)
    monkeypatch.setattr("bsdkit.members.jobs._REPLICAS_IN_A_STACK", 4)
    net = {"head": "mlp", "features": ["aisfx"], **SMALL, "epochs": 4, "hidden": 32}
    trees = {"head": "gbdt", "features": ["minilm"], "n_estimators": 8}
    r = recipe(members={"a": net, "g": trees})
    plans = {name: member_plan(name, r) for name in r.members}
    results = []
    for n_jobs in (1, 2):
        bench = MemberTrainer(r, tmp_path / str(n_jobs), n_jobs=n_jobs)
        results.append(bench.train(plans, bench.task("group")))
    for name in plans:
        one, two = results[0][name].probabilities, results[1][name].probabilities
        assert np.array_equal(one, two, equal_nan=True)


def test_order_and_names_of_classes_and_clips_change_nothing() -> None:
    from bsdkit.members import Inputs, MemberPlan, Task, train_members
    from bsdkit.splits import Split
    from bsdkit.taxonomy import Taxonomy

    rng = np.random.default_rng(0)
    n = 120
    labels = np.arange(n) % 4
    X = (rng.standard_normal((4, 10))[labels] * 2 + rng.standard_normal((n, 10))).astype(np.float32)
    X[:, 3] = 7.0  # a constant feature
    labels[:2], fold = 4, np.arange(n) // 4 % 3  # a class with two clips
    tree = Taxonomy.flat(list("abcde"))
    order, names = rng.permutation(n), rng.permutation(5)
    renamed = Taxonomy.flat([list("abcde")[i] for i in names])
    position = np.argsort(names)
    for head, settings in (
        ("linear", {"tol": 1e-9, "max_iter": 2000}), ("knn", {"k": 5}), ("prototype", {}),
        ("mlp", {**SMALL, "normalize": "standardize"}),
    ):  # fmt: skip
        p = MemberPlan("m", head, settings, ("x",), (0,), 0.0)

        def train(X: np.ndarray, y: np.ndarray, fold: np.ndarray, tree: Taxonomy, p=p):  # type: ignore[no-untyped-def]
            task = Task(y, tree, Split("s", fold, 3, 0))
            inputs = {("x",): Inputs(X, (10,), np.ones(len(X), bool))}
            return train_members([p], inputs, task)["m"].mean

        plain = train(X, labels, fold, tree)
        assert np.isfinite(plain).all()
        if head == "mlp":  # its batches follow the order of the clips; the classes are free
            first = (plain.argmax(1) == labels).mean()
            again = train(X[order], labels[order], fold[order], tree)
            assert abs((again.argmax(1) == labels[order]).mean() - first) < 0.1
            continue
        shuffled = train(X[order], labels[order], fold[order], tree)
        np.testing.assert_allclose(shuffled, plain[order], atol=1e-5)
        other = train(X, position[labels], fold, renamed)
        np.testing.assert_allclose(other[:, position], plain, atol=1e-5)


def test_stores_that_do_not_match_have_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = recipe(seeds=[0])
    extra = {"store": str(tmp_path / "none")}
    members = {"a": {**base.members["a"].model_dump(exclude_none=True), "extra": extra}}
    members["a"].pop("probabilities")
    with pytest.raises(StoreError, match="none"):
        fit(recipe(members=members), tmp_path)
    masked = {"head": "mlp", "features": ["minilm@masked"], **SMALL}
    masked["extra"] = {"store": str(ROOT / "cache/starter-noisy")}
    with pytest.raises(StaleStore, match="has no 'minilm@masked', only minilm@"):
        fit(recipe(members={"a": masked}), tmp_path)
    arrays = Store(base.store).features(["aisfx"])
    broken = arrays.arrays["aisfx"].copy()
    broken[7, 3] = np.nan
    monkeypatch.setattr(Store, "features", lambda *_: replace(arrays, arrays={"aisfx": broken}))
    with pytest.raises(CorruptStore, match="aisfx holds NaN or infinity in 1 clips, e.g."):
        fit(recipe(members={"a": {"head": "mlp", "features": ["aisfx"], **SMALL}}), tmp_path)
    monkeypatch.undo()
    spec = dict(Store(ROOT / "cache/starter-noisy").info("aisfx").spec)
    wrong = {**spec, "hop": 1}
    with pytest.raises(StaleStore):
        Store(ROOT / "cache/starter-noisy").features(["aisfx"], {"aisfx": wrong})


def test_a_killed_training_process_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from bsdkit.members.jobs import run_units

    class Killed:
        operations = 1.0

        def parts(self, n_jobs: int) -> list[Killed]:
            return [self]

        def run(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("bsdkit.members.jobs._LARGE", 0.0)
    with pytest.raises(HeadError, match="training process was killed, .* run the same line"):
        run_units([Killed(), Killed()], n_jobs=2)  # type: ignore[list-item]
