from __future__ import annotations

from pathlib import Path

import pytest

from bsdkit.errors import RecipeError
from bsdkit.experiments.ablate import variants_of
from bsdkit.recipe import load_recipe
from tests.conftest import ROOT

GOOD = """
store: cache/starter
members:
  a: {head: mlp, features: aisfx, hidden: 64}
  b: {head: linear, features: [aisfx, minilm]}
"""


def load(folder: Path, text: str):  # type: ignore[no-untyped-def]
    path = folder / "some.yaml"
    path.write_text(text)
    return load_recipe(path)


def test_defaults_are_written_out(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD)
    assert recipe.name == "some" and recipe.split == ["official"] and recipe.folds == 5
    assert recipe.members["a"].settings == {"hidden": 64}
    assert recipe.features == ["aisfx", "minilm"]
    assert load(tmp_path, recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("store:", "stor: x\nstore:"), "unknown key 'stor': did you mean 'store'"),
        (("hidden", "hiden"), "takes no 'hiden': did you mean 'hidden'"),
        (("head: mlp", "head: mpl"), "unknown head 'mpl': did you mean 'mlp'"),
        (("head: mlp", "hed: mlp"), "'members.a.head' is missing; is 'hed' meant to be it"),
        (("  a:", "  ../../a:"), "is '../../a'"),
        (("hidden: 64", "hidden: many"), "hidden is 'many', expected a number"),
        (("hidden: 64", "hidden: 6.5"), "hidden is 6.5, expected a whole number"),
        (
            ("members:", "ensemble: {metod: mean}\nmembers:"),
            "unknown key 'ensemble.metod'.*'method'",
        ),
        (("members:", "ensemble: {method: vote}\nmembers:"), "ensemble.method is 'vote'"),
        (("members:", "ensemble: {members: [aa]}\nmembers:"), "names 'aa': did you mean 'a'"),
        (("members:", "split: grup\nmembers:"), "unknown split 'grup': did you mean 'group'"),
        (("members:", "split: [group, group]\nmembers:"), "a split stands twice"),
        (("members:", "split: file\nmembers:"), "needs split_file"),
        (("members:", "seeds: [1, 1]\nmembers:"), "a seed stands twice"),
        (("members:", "folds: 1\nmembers:"), "folds is 1"),
        (("members:", "name: ../evil\nmembers:"), "name is '../evil'"),
        (("features: aisfx", "features: []"), "features"),
        (("hidden: 64", "dropout: 1.5"), "dropout is 1.5, expected 0 to below 1"),
        (("hidden: 64", "schedule: cosin"), "schedule is 'cosin': did you mean 'cosine'"),
        (("hidden: 64", "drop_last: 1"), "drop_last is 1, expected one such as False"),
        (("hidden: 64", "distill: {teachers: [bb]}"), "names the teacher 'bb': did you mean 'b'"),
        (("hidden: 64", "distill: {teachers: [a]}"), "members.a is named as its own teacher"),
        (("hidden: 64", "distill: {teachers: [b, b]}"), "distill.teachers names 'b' twice"),
        (("features: [aisfx, minilm]", "features: [minilm, minilm]"), "names 'minilm' twice"),
        (
            (
                "head: linear, features: [aisfx, minilm]",
                "head: knn, features: x, extra: {store: y}",
            ),
            "members.b has extra, which the head 'knn' cannot learn from",
        ),
        (("  b:", "  a:"), "the key 'a' stands twice"),
        (("hidden: 64", "probabilities: c"), "names the teacher 'c'"),
        (("hidden: 64", "extra: {labels: soft}"), "'members.a.extra.store' is missing"),
        (("hidden: 64", "extra: {store: x, labels: soft}"), "needs teachers"),
        (("hidden: 64", "extra: {store: x, lables: soft}"), "unknown key.*'labels'"),
        (("hidden: 64", "extra: {store: x, teachers: [b]}"), "given needs no teachers"),
        (
            ("hidden: 64", "extra: {store: x, labels: agreement, teachers: [b]}"),
            "at_least is 2; there are 1 teachers",
        ),
        (("hidden: 64", "extra: {store: x, share: [0.9, 0.2]}"), "the lower number first"),
        (("hidden: 64", "extra: {store: x, pretrain: {epochs: 3}}"), "pretrain is for stage"),
        (
            ("hidden: 64", "extra: {store: x, stage: before, pretrain: {epoch: 3}}"),
            "pretrain takes no 'epoch': did you mean 'epochs'",
        ),
        (
            ("hidden: 64", "extra: {store: x, stage: before, pretrain: {hidden: 8}}"),
            "pretrain takes no 'hidden'",
        ),
        (
            ("hidden: 64", "extra: {store: x, stage: before, pretrain: {epochs: 2.5}}"),
            "epochs is 2.5, expected a whole number",
        ),
        (("hidden: 64", "extra: {store: x, fraction: 0.5}"), "fraction is 0.5 of subset: all"),
        (("hidden: 64", "validation: 0, patience: 3"), "patience, which needs validation clips"),
        (("hidden: 64", "input_dropout: 1.0"), "input_dropout is 1.0"),
        (("hidden: 64", "same_class_swap: 0.2, swap_input: 3"), "swap_input is 3; there are 1"),
        (("members:", "seeds: [-1]\nmembers:"), "a seed is negative"),
        (("head: mlp", "head: {mlp"), "line"),
    ],
)
def test_a_mistake_is_one_line_with_the_nearest(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load(tmp_path, GOOD.replace(*change, 1))
    assert "\n" not in str(caught.value) and "some.yaml" in str(caught.value)


def test_numbers_that_yaml_reads_as_words_are_numbers(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD.replace("hidden: 64", "learning_rate: 1e-3, weight_decay: 1E-4"))
    assert recipe.members["a"].settings == {"learning_rate": 0.001, "weight_decay": 0.0001}
    more = "block_dropout: [1e-1], logit_adjustment: 5e-1"
    member = load(tmp_path, GOOD.replace("hidden: 64", more)).members["a"]
    assert member.settings == {"block_dropout": [0.1]} and member.logit_adjustment == 0.5


def test_one_value_may_stand_for_a_list_of_one(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD.replace("hidden: 64", "distill: {teachers: b}, probabilities: b"))
    assert recipe.members["a"].distill is not None
    assert recipe.members["a"].distill.teachers == ("b",)
    assert recipe.members["a"].probabilities == ["b"]
    tuned = load(tmp_path, GOOD + "tune: {search: {dropout: {low: 1e-2, high: 0.5}}}\n")
    assert tuned.tune is not None and tuned.tune.search["dropout"]["low"] == 0.01


def test_what_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe .*none.yaml"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="must hold key: value lines"):
        load(tmp_path, "- a\n- b\n")


WHOLE = [
    path
    for path in sorted((ROOT / "recipes").rglob("*.yaml"))
    if path.parent.name != "fragments" and not path.name.endswith(".map.yaml")
]


@pytest.mark.parametrize("path", WHOLE, ids=lambda p: p.name)
def test_every_recipe_of_the_repository_loads(path: Path) -> None:
    assert load_recipe(path).members


def test_provenance_is_carried_and_changes_no_number(tmp_path: Path) -> None:
    part = "provenance: {head: {state: exact, section: '3.1', note: as there}}\n"
    plain, told = load(tmp_path, GOOD), load(tmp_path, part + GOOD)
    assert told.provenance["head"].section == "3.1"
    assert load(tmp_path, told.to_yaml()) == told
    with pytest.raises(RecipeError, match="no variant that differs"):
        variants_of(plain, [], [told])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("{state: near, section: '1', note: x}", "state"),
        ("{state: exact, note: x}", "'provenance.head.section' is missing"),
        ("{state: exact, section: '1', note: ''}", "provenance.head.note"),
        (
            "{state: exact, sektion: '1', note: x}",
            "unknown key 'provenance.head.sektion': did you mean 'section'",
        ),
    ],
)
def test_provenance_is_checked(part: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, f"provenance: {{head: {part}}}\n{GOOD}")
