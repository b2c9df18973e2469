from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsdkit.dataset import read_dataset
from bsdkit.errors import RecipeError
from bsdkit.experiments.tune import Choices, Range, parse_search, tune
from bsdkit.experiments.tune.tables import Tuning
from bsdkit.members.trainer import MemberTrainer
from bsdkit.recipe import Recipe, load_recipe
from bsdkit.recipe.schema import recipe_from
from bsdkit.store import FeatureRows, Store
from bsdkit.store.feature import feature_path, write_feature

N_CLASSES, N_FOLDS, N_OF_FOLD, N_TRAIN_ONLY = 4, 4, 24, 40


def numbers() -> tuple[np.ndarray, np.ndarray]:
    """Labels and folds: five folds, and clips that are only trained on."""
    fold = np.repeat([*range(N_FOLDS), -1], [N_OF_FOLD] * N_FOLDS + [N_TRAIN_ONLY])
    return np.arange(len(fold)) % N_CLASSES, fold


def noisy(labels: np.ndarray, spread: float = 2.0) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.eye(N_CLASSES, 6)[labels] * 2 + spread * rng.standard_normal((len(labels), 6))


def recipe_on(
    folder: Path, features: dict[str, np.ndarray], labels: np.ndarray, **changes: Any
) -> Recipe:
    """A recipe for a store of these features, with its folds in a file."""
    folder.mkdir(parents=True, exist_ok=True)
    fold = numbers()[1]
    ids = [f"clip{i}" for i in range(len(labels))]
    lines = [f"{clip},c{label},u{i}" for i, (clip, label) in enumerate(zip(ids, labels))]  # noqa: B905
    (folder / "clips.csv").write_text("\n".join(["id,class,uploader", *lines]))
    (folder / "folds.csv").write_text(
        "\n".join(["id,fold", *(f"{clip},{k}" for clip, k in zip(ids, fold, strict=True))])
    )
    store = Store.create(folder / "store", read_dataset(folder / "clips.csv", "flat")[0])
    for name, values in features.items():
        texts = np.array(ids, object)
        state = np.zeros(len(ids), np.uint8)
        blank, nothing = (np.array([text] * len(ids), object) for text in ("f" * 64, ""))
        spec = {"backbone": name, "dim": values.shape[1]}
        rows = FeatureRows(texts, blank, state, nothing, values.astype("float32"))
        write_feature(feature_path(store.path, name, spec), name, spec, rows, {"device": "cpu"})
    data = {
        "name": "r",
        "store": str(folder / "store"),
        "split": "file",
        "split_file": str(folder / "folds.csv"),
        "seeds": [0],
        "validation": 0,
        "members": {
            "near": {"head": "knn", "features": next(iter(features)), "k": 5},
            "net": {
                "head": "mlp", "features": next(iter(features)), "hidden": 4, "epochs": 2,
                "learning_rate": 0.01,
            },
        },
    }  # fmt: skip
    return recipe_from({**data, **changes}, "test")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    labels = numbers()[0]
    return recipe_on(tmp_path / "data", {"x": noisy(labels)}, labels)


NEAR = ("members.near.k=1..40:log", "members.near.smoothing=0..0.5")


def facts(tuning: Tuning) -> tuple[Any, ...]:
    return (tuning.best, tuning.in_sample, tuning.nested, tuning.untuned, tuning.studies)


def test_what_a_study_chooses_ignores_its_folds_labels_and_clips(tmp_path: Path) -> None:
    k, (labels, fold) = 2, numbers()
    X = noisy(labels)
    shuffled, other = labels.copy(), X.copy()
    shuffled[fold == k] = np.random.default_rng(1).permutation(labels[fold == k])
    other[fold == k] = 7.0
    given = tune(
        recipe_on(tmp_path / "a", {"x": X}, labels), tmp_path / "runs", search=NEAR, trials=3
    )
    changed = tune(
        recipe_on(tmp_path / "b", {"x": other}, shuffled), tmp_path / "runs2", search=NEAR, trials=3
    )
    assert [s.name for s in given.studies] == ["all", *(f"fold {j}" for j in range(N_FOLDS))]
    assert given.studies[1 + k] == changed.studies[1 + k]
    for i in {0, 1, 2, 4}:  # the others do meet the fold
        assert given.studies[i].trials != changed.studies[i].trials
    assert given.nested != changed.nested


def test_a_setting_that_is_right_on_one_fold_only_does_not_raise_the_nested_score(
    tmp_path: Path,
) -> None:
    labels, fold = numbers()
    rng = np.random.default_rng(3)
    features = {"blank": rng.standard_normal((len(labels), N_CLASSES))}
    for k in range(N_FOLDS):
        # the clips that are only trained on teach what helps in fold k and nowhere else
        is_told = (fold == k) | (fold == -1)
        told = np.where(is_told[:, None], 20 * np.eye(N_CLASSES)[labels], 0)
        features[f"tells{k}"] = told + rng.standard_normal((len(labels), N_CLASSES))
    recipe = recipe_on(tmp_path / "data", features, labels)
    choices = "features=" + ",".join(f"[tells{k}]" for k in range(N_FOLDS))
    found = tune(recipe, tmp_path / "runs", member="near", search=[choices], trials=9)
    assert found.nested and found.untuned and found.difference
    assert found.in_sample > 0.35
    for k, study in enumerate(found.studies[1:]):
        assert study.best.settings["features"] != [f"tells{k}"]
        assert study.best.score is not None and study.best.score > 0.35
    assert found.nested.value < 0.3 and found.optimism and found.optimism > 0.1
    assert found.difference.verdict != "gain"


@pytest.mark.parametrize(
    ("member", "search"),
    [
        ("near", NEAR),
        pytest.param("net", ("dropout=0..0.5", "hidden=2..8"), marks=pytest.mark.slow),
    ],
)
def test_the_same_again_and_resumed_after_an_interruption(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str, search: Any
) -> None:
    def run(runs: str, trials: int) -> Tuning:
        return tune(
            recipe, tmp_path / runs, member=member, search=search, trials=trials, nested=False
        )

    whole = run("whole", 14)
    (study,) = whole.studies
    assert [t.number for t in study.trials] == list(range(14))
    assert study.trials[0].settings == whole.before  # the recipe's own setting comes first
    # settings are given up after 1, 2 or 4 folds, and only whole ones are chosen
    assert {t.n_folds for t in study.trials if t.state == "pruned"} >= {1}
    assert {t.n_folds for t in study.trials if t.state == "complete"} == {N_FOLDS}
    assert study.best.score == max(t.score or 0 for t in study.trials if t.state == "complete")

    assert len(run("parts", 3).studies[0].trials) == 3
    train, calls = MemberTrainer.train, iter(range(0))

    def interrupted(self: MemberTrainer, *args: Any, **kwargs: Any) -> Any:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    monkeypatch.setattr(MemberTrainer, "train", interrupted)
    for n_calls in (1, 2, 3):  # between two trials and amid one, before and after a rung
        calls = iter(range(n_calls))
        with pytest.raises(KeyboardInterrupt):
            run("parts", 14)
    monkeypatch.undo()
    resumed = run("parts", 14)
    assert facts(resumed) == facts(whole)
    assert resumed.n_trained < whole.n_trained
    again = run("parts", 14)
    assert facts(again) == facts(whole) and again.n_trained == 0
    assert run("parts", 3).studies[0].trials == study.trials[:3]
    # another space is another study
    assert len(tune(recipe, tmp_path / "parts", member=member, search=search[:1], trials=2,
                    nested=False).studies[0].trials) == 2  # fmt: skip


@pytest.mark.slow
def test_several_processes_find_what_one_finds(recipe: Recipe, tmp_path: Path) -> None:
    def run(runs: str, workers: int, nested: bool = True) -> Tuning:
        return tune(recipe, tmp_path / runs, search=NEAR, trials=6, workers=workers, nested=nested)

    assert facts(run("one", 1)) == facts(run("three", 3))
    shared = run("shared", 2, nested=False).studies[0].trials
    assert [t.number for t in shared] == list(range(6))


def test_what_is_left_behind(recipe: Recipe, tmp_path: Path) -> None:
    found = tune(recipe, tmp_path / "runs", search=NEAR, trials=3)
    assert found.folder == tmp_path / "runs" / "r.tune"
    best = load_recipe(found.folder / "best.yaml")
    assert best.name == "r-tuned" and best.members["net"] == recipe.members["net"]
    assert best.members["near"].settings == {**recipe.members["near"].settings, **found.best}
    with (found.folder / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * (N_FOLDS + 1)
    of_all = [row for row in rows if row["study"] == "all" and row["state"] == "complete"]
    assert max(float(row["hF_strict"]) for row in of_all) == found.in_sample
    kept = {p.name for p in found.folder.iterdir() if not p.name.startswith(".lock")}
    assert kept == {"best.yaml", "studies.log", "trials.csv"}  # no models of settings given up


def test_settings_that_fail_are_told_and_not_chosen(recipe: Recipe, tmp_path: Path) -> None:
    found = tune(
        recipe, tmp_path / "runs", member="net", nested=False, trials=8,
        search=["mixup=0,0.2", "cutmix=0,0.2", "learning_rate=1e-2,1e30"],
    )  # fmt: skip
    trials = found.studies[0].trials
    failed = [t for t in trials if t.state == "failed"]
    assert {t.score for t in failed} == {None}
    assert any("both on" in t.reason for t in failed)
    assert any("diverged" in t.reason for t in failed)
    assert not (found.best["mixup"] and found.best["cutmix"])
    assert found.best["learning_rate"] == 0.01


def test_the_recipe_says_what_the_call_leaves_open(recipe: Recipe, tmp_path: Path) -> None:
    said = {
        "member": "near",
        "trials": 2,
        "search": {"k": {"low": 2, "high": 9}, "smoothing": [0.1]},
    }
    own = recipe_from({**recipe.model_dump(), "tune": said}, "test")
    found = tune(own, tmp_path / "runs", nested=False, search=["smoothing=0.2,0.3"])
    assert len(found.studies[0].trials) == 2 and set(found.best) == {"k", "smoothing"}
    assert found.best["smoothing"] in (0.2, 0.3) and isinstance(found.best["k"], int)
    usual = tune(recipe, tmp_path / "runs", member="near", nested=False, trials=1)
    assert set(usual.best) == {"k", "temperature", "smoothing"}


@pytest.mark.parametrize(
    ("search", "member", "message"),
    [
        (["members.near.kk=1..4"], "", "no 'kk' in members.near: did you mean 'k'"),
        (["k=1..4"], "", "say --member with one of: near, net"),
        (["k=1..4"], "nera", "no member 'nera': did you mean 'near'"),
        (["members.net.hidden=1..4"], "near", "setting of 'net', but 'near' is to be tuned"),
        (["k=4..1"], "near", "range 4..1, expected the lower end first"),
        (["smoothing=0..1:log"], "near", "logarithm needs ends above 0"),
        (["k=1..4.5"], "near", "range 1..4.5, expected whole numbers such as"),
        (["normalize=1..2"], "near", "list choices"),
        (["dropout=0..1.5"], "net", "dropout is 1.5, expected 0 to below 1"),
        (["k=1,many"], "near", "k is 'many', expected a number"),
        (["k=1,1"], "near", "the choice 1 twice"),
        (["k=1..2", "k=1..3"], "near", "names k twice"),
        (["k"], "near", "is not KEY=LOW..HIGH"),
        (["k=1..x"], "near", "is not KEY=LOW..HIGH"),
    ],
)
def test_a_mistake_is_one_line(
    recipe: Recipe, tmp_path: Path, search: list[str], member: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        tune(recipe, tmp_path / "runs", member=member, search=search, trials=1)
    assert "\n" not in str(caught.value) and "--vary" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_tuned_honestly(recipe: Recipe, tmp_path: Path) -> None:
    two = recipe_from({**recipe.model_dump(), "split": "stratified", "folds": 2}, "test")
    with pytest.raises(RecipeError, match="3 folds at least; split 'stratified' has 2"):
        tune(two, tmp_path / "runs", search=NEAR, trials=1)
    members = recipe.model_dump()["members"]
    members["net"]["distill"] = {"teachers": ["near"]}
    taught = recipe_from({**recipe.model_dump(), "members": members}, "test")
    with pytest.raises(RecipeError, match="cannot be kept from its fold's labels"):
        tune(taught, tmp_path / "runs", member="net", search=["dropout=0..0.5"], trials=1)
    with pytest.raises(RecipeError, match="none of 1 settings could be judged .* diverged in fold"):
        tune(recipe, tmp_path / "runs", member="net", search=["learning_rate=1e29,1e30"], trials=1)


@pytest.mark.parametrize(
    ("text", "key", "space"),
    [
        ("hidden=64..512:log", "hidden", Range(64, 512, is_log=True)),
        ("a = -1 .. 2", "a", Range(-1, 2)),
        ("a=.1..1.", "a", Range(0.1, 1.0)),
        ("a=1e-3,0.1", "a", Choices((1e-3, 0.1))),
        ("loss=focal,cross_entropy", "loss", Choices(("focal", "cross_entropy"))),
        ("b=true,false", "b", Choices((True, False))),
    ],
)
def test_a_space_is_read_as_written(text: str, key: str, space: Range | Choices) -> None:
    assert parse_search(text) == (key, space)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("{trails: 3}", "unknown key 'tune.trails': did you mean 'trials'"),
        ("{member: aa}", "tune.member names 'aa': did you mean 'a'"),
        ("{search: {dropout: {low: 0}}}", "expected {low: .., high: ..} or a list"),
        ("{search: {dropout: {low: 0, high: 1, logs: true}}}", "did you mean 'log'"),
        ("{search: {dropout: {low: 0, high: much}}}", "dropout.high is 'much', expected a number"),
    ],
)
def test_a_mistake_in_the_block_tune(tmp_path: Path, block: str, message: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(f"store: s\nmembers: {{a: {{head: mlp, features: x}}}}\ntune: {block}\n")
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)
