"""Extra clips: what each option does to the target, the weight and the rows of a batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bsdkit.dataset import Clips
from bsdkit.errors import HeadError, RecipeError
from bsdkit.heads.training import TrainingOptions
from bsdkit.heads.training.engine import _Stack
from bsdkit.heads.training.losses import Losses
from bsdkit.members import MemberPlan, Task, saved
from bsdkit.members.extras import class_positions, read_labels_map, said_of_unknown
from bsdkit.members.fitting import fit_with_teachers
from bsdkit.members.jobs import StackUnit, run_units
from bsdkit.members.plan import ExtraClips
from bsdkit.members.teachers import ExtraTargets, TeacherTargets, extra_targets
from bsdkit.members.trainer import MemberTrainer, member_plan
from bsdkit.recipe.map import NameMap, apply_map
from bsdkit.recipe.schema import Recipe, recipe_from
from bsdkit.recipe.teaching import ExtraPlan
from bsdkit.recipe.vary import changed, value_at
from bsdkit.taxonomy import Taxonomy, TaxonomyClass
from tests.conftest import make_clips
from tests.members.test_teachers import extra_clips, plan, problem
from tests.truth import Laboratory, N, judged

# Classes of one family are no neighbours, and one class is a family of its own.
TREE = Taxonomy("tree", [TaxonomyClass("a", "x"), TaxonomyClass("b", "y"), TaxonomyClass("c", "x")])
FAMILY = np.array([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
SOFT = ExtraPlan("s", labels="soft", teachers=("t", "u"), share=0.3, weight=0.4)


def opinions(n_teachers: int = 2, n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(3), size=(n_teachers, 5, n))


def task_of_families() -> tuple[Any, Task]:
    inputs, task = problem()
    return inputs, replace(task, taxonomy=TREE)


def targets(use: ExtraPlan, seed: int = 0, clips: ExtraClips | None = None) -> ExtraTargets:
    _, task = task_of_families()
    held_out = [task.split.test(k) for k in range(5)]
    said = opinions() if use.teachers else None
    return extra_targets(plan(), use, clips or extra_clips(), task, held_out, said, seed)


def target_of(found: ExtraTargets, k: int, i: int) -> np.ndarray:
    """The whole target of a clip for the student of a fold, in float64."""
    share = float(found.soft_share[k, i])
    return (1 - share) * np.eye(3)[found.labels[i]] + share * found.soft[k, i].astype(float)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_hard_term_stands_beside_the_soft_one_where_the_teachers_are_sure(share: float) -> None:
    said, clips = opinions(), extra_clips()
    use = replace(SOFT, share=share, hard=0.5, hard_at_least=0.6, temperature=2.0)
    found, plain = targets(use), targets(replace(use, hard=0.0, hard_at_least=0.0))
    log_p = np.log(np.random.default_rng(1).dirichlet(np.ones(3)))
    n_hard = 0
    for k in range(5):
        for i in np.flatnonzero(plain.weight[k]):
            q = np.exp(np.log(said[:, k, i]).mean(axis=0) / 2.0)
            q /= q.sum()
            best = int(q.argmax())
            soft = -((1 - share) * log_p[clips.labels[i]] + share * (q * log_p).sum())
            is_hard = said[:, k, i, best].mean() >= 0.6
            expected = 0.4 * (soft - 0.5 * is_hard * log_p[best])
            loss = -float(found.weight[k, i]) * (target_of(found, k, i) * log_p).sum()
            assert loss == pytest.approx(expected, rel=1e-5)
            assert found.weight[k, i] == pytest.approx(0.4 * (1.5 if is_hard else 1.0))
            n_hard += is_hard
    assert 0 < n_hard < (plain.weight > 0).sum()
    assert ((found.weight > 0) == (plain.weight > 0)).all()


def test_family_targets_are_even_within_the_family() -> None:
    clips = extra_clips(wrong=0.2)
    clips = replace(clips, labels=np.where(np.arange(60) == 30, -1, clips.labels))
    given = targets(ExtraPlan("s", targets="family"), clips=clips)
    for i in np.flatnonzero(given.weight[0]):
        np.testing.assert_array_equal(target_of(given, 0, i), FAMILY[clips.labels[i]])
    assert not given.weight[:, 30].any()
    for use in (SOFT, replace(SOFT, hard=0.5), replace(SOFT, labels="agreement")):
        whole, spread = targets(use, clips=clips), targets(replace(use, targets="family"), 0, clips)
        assert (whole.weight == spread.weight).all()
        for i in range(60):
            expected = target_of(whole, 2, i) @ FAMILY
            np.testing.assert_allclose(target_of(spread, 2, i), expected, atol=1e-6)


def test_the_family_alone_is_what_a_stage_without_the_class_loss_learns() -> None:
    """By hand: cross-entropy between families, whichever class of one is the label."""
    option = TrainingOptions(child_weight=0.0, parent_weight=2.0)
    losses = Losses([option], TREE.family_of, "cpu")
    logits = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    y, weight = torch.tensor([[0, 2, 1, 2]]), torch.tensor([[1.0, 0.5, 2.0, 0.0]])
    spread = torch.tensor(FAMILY, dtype=torch.float32)[y]
    loss = losses({"logits": logits}, spread, y, weight)
    p = logits[0].double().softmax(-1).numpy()
    of_family = [p[0, [0, 2]].sum(), p[1, [0, 2]].sum(), p[2, 1]]
    expected = -2.0 * (np.array([1.0, 0.5, 2.0]) * np.log(of_family)).sum() / 3.5
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # one label of the family is as good as another
    swapped = losses({"logits": logits}, torch.eye(3)[torch.tensor([[2, 0, 1, 0]])], y, weight)
    assert swapped.item() == pytest.approx(loss.item(), rel=1e-5)
    with pytest.raises(HeadError, match="child_weight is 0 and no other loss is on; write parent"):
        TrainingOptions(child_weight=0.0).check_options()
    TrainingOptions(child_weight=0.0, hf_weight=1.0).check_options()


def first_units(member: MemberPlan, clips: list[ExtraClips], said: TeacherTargets) -> Any:
    """The steps of a member's training, and the first stack that they ask for."""
    inputs, task = task_of_families()
    steps = fit_with_teachers(member, inputs, task, range(5), clips, said)
    _, (unit,) = next(steps)
    return steps, unit


def test_each_store_keeps_its_own_targets_weights_and_rows() -> None:
    first, second = extra_clips(60), extra_clips(45, wrong=0.4)
    uses = (replace(SOFT, hard=0.5), ExtraPlan("w", weight=0.1, targets="family"))
    said = TeacherTargets(extra=(opinions(), None))
    member = plan(extra=uses)
    _, unit = first_units(member, [first, second], said)
    _, task = task_of_families()
    held_out = [task.split.test(k) for k in range(5)]
    for s, seed in enumerate(member.seeds):
        own = [
            extra_targets(member, use, clips, task, held_out, heard, seed, place)
            for place, (use, clips, heard) in enumerate(
                zip(uses, (first, second), said.extra, strict=True)
            )
        ]
        for k in range(5):
            view, data = s * 5 + k, unit.data
            assert (data.weight[view, :90] == 1).all() and (data.soft_share[view, :90] == 0).all()
            for found, rows in ((own[0], slice(90, 150)), (own[1], slice(150, 195))):
                assert (data.weight[view, rows] == found.weight[k]).all()
                assert (data.soft[view, rows] == found.soft[k]).all()
                assert (data.soft_share[view, rows] == found.soft_share[k]).all()
                assert (data.y[rows] == found.labels).all()
            (replica,) = [
                r for r in unit.replicas if r.view == view and r.seed == seed * 1_000_003 + k
            ]
            used = np.concatenate([found.weight[k] > 0 for found in own])
            assert replica.fit_rows.tolist() == [
                *np.flatnonzero(task.split.fold != k), *(90 + np.flatnonzero(used))
            ]  # fmt: skip
            # copies, and clips of the uploaders of the fold, are in none of the stores
            tested = {f"u{i // 6}" for i in held_out[k]}
            for clips, found in zip((first, second), own, strict=True):
                is_free = ~np.isin(clips.table.uploader, list(tested)) & ~clips.is_copy
                assert ((found.weight[k] > 0) == is_free).all()
    assert np.isclose(np.unique(unit.data.weight[:, 150:]), [0, 0.1]).all()


def test_stages_follow_one_another_and_start_where_the_last_one_ended() -> None:
    clips = [extra_clips(60), extra_clips(45), extra_clips(30), extra_clips(33)]
    coarse = {"child_weight": 0.0, "parent_weight": 1.0, "epochs": 2}
    uses = (
        ExtraPlan("p", stage="before", targets="family", pretrain=coarse),
        ExtraPlan("q", stage="before", targets="family", pretrain=dict(coarse)),
        ExtraPlan("r", stage="before", pretrain={"epochs": 3}, with_development=True),
        ExtraPlan("t"),
    )
    member = plan(extra=uses, seeds=(0,))
    steps, unit = first_units(member, clips, TeacherTargets())
    seen: list[StackUnit] = [unit]
    models = None
    with pytest.raises(StopIteration):
        while True:
            models = run_units([seen[-1]], n_jobs=1)
            _, (unit,) = steps.send(models)
            seen.append(unit)
            for replica, model in zip(unit.replicas, models[0], strict=True):
                assert replica.initial is not None
                assert all((replica.initial[n].numpy() == a).all() for n, a in model.state.items())
    assert [unit.heads[0].settings.get("epochs") for unit in seen] == [2, 3, 12]
    assert [unit.heads[0].settings.get("child_weight", 1.0) for unit in seen] == [0.0, 1.0, 1.0]
    edges = [0, 90, 150, 195, 225, 258]  # own, p, q, r, t
    stores = [{int(i) for i in np.digitize(unit.replicas[0].fit_rows, edges[1:])} for unit in seen]
    assert stores == [{1, 2}, {0, 3}, {0, 4}]


def test_losses_that_need_a_class_take_the_label_of_a_family_target() -> None:
    _, unit = first_units(
        plan(extra=(ExtraPlan("s", targets="family"),)), [extra_clips()], TeacherTargets()
    )
    stack = _Stack([unit.heads[0].make()], unit.data, [unit.replicas[0]], None, "cpu")
    np.testing.assert_array_equal(stack._classes(0), unit.data.y)
    _, _, y, _ = stack._inputs(np.array([[91, 92, 95, 100]]), np.array([4]))
    assert y[0].tolist() == unit.data.y[[91, 92, 95, 100]].tolist()


def test_a_random_subset_with_a_seed_is_the_same_for_every_model() -> None:
    use = ExtraPlan("s", subset="random", fraction=0.5, subset_seed=7)
    whole = targets(ExtraPlan("s")).weight > 0
    found = [targets(use, seed).weight for seed in (0, 1)]
    assert (found[0] == found[1]).all()
    other = targets(replace(use, subset_seed=8)).weight
    assert not (other == found[0]).all()
    order = np.random.default_rng(7).random(60)
    for k in range(5):
        kept = found[0][k] > 0
        assert kept.sum() == round(0.5 * whole[k].sum())
        assert order[kept].max() <= order[whole[k] & ~kept].min()


def test_stores_of_one_member_are_drawn_from_apart() -> None:
    _, task = problem()
    use = ExtraPlan("s", subset="random", fraction=0.5)
    held_out = [task.split.test(k) for k in range(5)]
    drawn = [
        extra_targets(plan(), use, extra_clips(), task, held_out, None, 0, place).weight
        for place in (0, 1)
    ]
    assert not (drawn[0] == drawn[1]).all()


def recipe(extra: Any, **changes: Any) -> Recipe:
    said = {
        "name": "r", "store": "here",
        "members": {
            "t": {"head": "linear", "features": "x"},
            "m": {"head": "mlp", "features": "x", "extra": extra, **changes},
        },
    }  # fmt: skip
    return recipe_from(said, "test")


def test_a_list_of_one_is_the_mapping() -> None:
    alone = {"store": "s", "labels": "soft", "teachers": "t", "weight": 0.3}
    one, many = recipe(alone), recipe([alone])
    assert one == many and one.to_yaml() == many.to_yaml()
    assert member_plan("m", one) == member_plan("m", many)
    assert recipe_from(one.model_dump(mode="json"), "again") == one
    written = one.model_dump(mode="json")["members"]
    assert written["m"]["extra"]["store"] == "s" and written["t"]["extra"] is None
    two = recipe([alone, {"store": "w"}])
    assert recipe_from(two.model_dump(mode="json"), "again") == two
    assert two.members["m"].teachers == ["t"]
    assert value_at(two, "members.m.extra.1.weight") == 1.0
    assert changed(two, {"members.m.extra.1.weight": 0.5}).members["m"].extra[1].weight == 0.5
    data = {"name": "r", "members": {"m": {"extra": [{"store": "a/b"}, {"store": "c/d"}]}}}
    moved = apply_map(data, NameMap(stores={"c/d": "e/f"}))
    assert [one["store"] for one in moved["members"]["m"]["extra"]] == ["a/b", "e/f"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([{"store": "s"}, {"labels": "soft"}], "'members.m.extra.1.store' is missing"),
        ([{"store": "s"}, {"store": "s", "wieght": 1}], "key 'members.m.extra.1.wieght': .*weight"),
        ([{"store": "s", "labels": "soft", "teachers": ["v"]}], "names the teacher 'v'"),
        ("s", "members.m.extra is 's', expected parts with names"),
        ({"store": "s", "hard": 0.5}, "hard is 0.5 with labels: given; write labels: soft"),
        (
            {"store": "s", "labels": "soft", "teachers": "t", "hard_at_least": 0.5},
            "hard_at_least is 0.5 and hard is 0; write hard: 0.1 too",
        ),
        ({"store": "s", "with_development": True}, "with_development is for stage: before"),
        ({"store": "s", "subset_seed": 1}, "subset_seed is for subset: random; subset is all"),
        ({"store": "s", "targets": "families"}, "members.m.extra.targets is 'families'"),
        (
            {"store": "s", "stage": "before", "pretrain": {"child_weight": 0.0}},
            "members.m: child_weight is 0 and no other loss is on",
        ),
    ],
)
def test_a_mistake_names_the_store_and_what_to_write(extra: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        recipe(extra)
    assert "\n" not in str(caught.value)


OLD_EXTRA = {
    "store", "labels", "teachers", "weight", "at_least", "temperature", "share", "subset",
    "fraction", "stage", "constant_steps", "pretrain",
}  # fmt: skip


def test_a_new_option_changes_a_key_and_its_default_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, task = problem()
    facts: list[dict[str, Any]] = []
    dumps = json.dumps
    monkeypatch.setattr(
        saved.json,
        "dumps",
        lambda said, **kw: (facts.extend([said] * ("extra" in said)), dumps(said, **kw))[1],
    )

    def key(*uses: ExtraPlan, **settings: Any) -> str:
        clips = make_clips(task.labels, [""] * 90)
        member = plan(extra=uses, settings={**plan().settings, **settings})
        return saved.member_key(member, ["f"], clips, task.split, "cpu")

    plain = key(SOFT)
    assert set(facts[0]["extra"]) == OLD_EXTRA and "child_weight" not in facts[0]["settings"]
    assert key(SOFT, child_weight=1.0) == plain and facts[0] == facts[1]
    key()
    assert facts[2]["extra"] is None
    # the contents of a map count, by the labels that they give, and not its place
    assert key(replace(SOFT, labels_map="m.csv")) == plain
    random = replace(SOFT, subset="random", fraction=0.5)
    keys = {
        plain, key(SOFT, child_weight=0.5), key(replace(SOFT, targets="family")),
        key(replace(SOFT, hard=0.1)), key(replace(SOFT, hard=0.1, hard_at_least=0.5)),
        key(random), key(replace(random, subset_seed=0)), key(SOFT, SOFT),
    }  # fmt: skip
    assert len(keys) == 8


def labelled(labels: list[str]) -> Clips:
    taxonomy = Taxonomy.flat(sorted(set(labels)))
    table = make_clips(taxonomy.encode(labels), [""] * len(labels))
    return replace(table, taxonomy=taxonomy)


def test_labels_of_another_taxonomy_are_mapped_and_the_others_named(tmp_path: Path) -> None:
    clips = labelled(["dog", "cat", "dog", "a", "saw", "dog", "saw", "cat", "cat", "cat"])
    path = tmp_path / "map.csv"
    path.write_text("label,class\ndog,b\nsaw,c\nother,a\n")
    positions, unknown = class_positions(clips, TREE, path)
    assert positions.tolist() == [1, -1, 1, -1, 2, 1, 2, -1, -1, -1]
    assert said_of_unknown(unknown) == "5 clips have no class here: cat (4), a (1)"
    positions, unknown = class_positions(clips, TREE)
    assert positions.tolist() == [-1, -1, -1, 0, *[-1] * 6] and set(unknown) == {
        "cat",
        "dog",
        "saw",
    }
    many = {f"l{i}": 20 - i for i in range(13)}
    assert said_of_unknown(many).endswith("l9 (11), 3 more (27)")
    for text, message in (
        ("label,class\ndog,bb\n", "label 'dog' stands for 'bb', which is no class: did you mean"),
        ("label,class\nrat,b\n", "names none of the store's 4 labels, e.g. 'a'; write a line"),
        ("label,class\ndog,a\ndog,b\n", "line 3: label 'dog' stands twice"),
        ("name,class\ndog,a\n", "has the columns name, class; expected label,class"),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError, match=message):
            class_positions(clips, TREE, path)
    with pytest.raises(RecipeError, match="cannot read the map of labels"):
        read_labels_map(tmp_path / "none.csv")


def test_permuted_labels_of_copies_and_tested_groups_in_any_store_are_chance(
    tmp_path: Path,
) -> None:
    """One class a pack, drawn: who hears a tested pack's class in any store scores above chance."""
    lab = Laboratory(tmp_path)
    group, X = lab.groups()
    classes = lab.rng.integers(0, 8, group.max() + 1)[group]
    packs, nobody = [f"p{g}" for g in group], [""] * N
    digests = np.array([f"{i:064x}" for i in range(N)], object)
    own = lab.clips(classes, nobody, packs)
    store = lab.store(replace(own, sha256=digests, sound=digests), X)
    lines = "".join(f"c{c},c{(c + 3) % 8}\n" for c in range(8))
    (tmp_path / "map.csv").write_text("label,class\n" + lines)
    # half of the second store are copies of clips of a pack that it does not know
    fresh = np.arange(N) % 2 == 1
    theirs = lab.clips(np.where(fresh, lab.rng.integers(0, 8, N), classes), nobody, nobody)
    noise = 3 * lab.rng.standard_normal(X.shape)
    half = np.where(fresh[:, None], noise, X)
    mixed = np.where(fresh, "", digests).astype(object)

    def run(known_packs: list[str], sounds: Any) -> Any:
        # the first store has other labels, which the map turns back
        named = lab.clips((classes - 3) % 8, nobody, known_packs)
        first = lab.store(named, X + lab.rng.standard_normal(X.shape))
        second = lab.store(replace(theirs, sha256=sounds, sound=sounds), half)
        extra = [
            {"store": str(first.path), "labels_map": str(tmp_path / "map.csv")},
            {"store": str(second.path), "subset": "random", "fraction": 0.9, "subset_seed": 1},
        ]
        settings = {"head": "mlp", "features": "made", "hidden": 64, "epochs": 15}
        members = {"small": {**settings, "extra": extra}}
        return lab.run(store, "group:pack", members=members, seeds=[0])

    unknown = np.full(N, "", object)
    for leak in (run(nobody, mixed), run(packs, unknown)):
        row = judged("extra", run(packs, mixed), group, leak)
        assert row.verdict == "at chance" and row.leak is not None, row
        assert row.leak > row.limit, row


def test_a_map_is_said_once_and_its_contents_make_the_key(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path)
    _, X = lab.groups()
    users = [f"u{i % 48}" for i in range(N)]
    own = lab.store(lab.clips(lab.rng.integers(0, 3, N), users), X)
    other = lab.store(lab.clips(np.arange(N) % 4 + 2, [""] * N), X)
    path, said = tmp_path / "map.csv", []
    keys = []
    for text in ("c3,c0\nc4,c1\n", "c3,c1\nc4,c1\n"):
        path.write_text("label,class\n" + text)
        extra = {"store": str(other.path), "labels_map": str(path)}
        said_recipe = {
            "name": "r", "store": str(own.path), "split": "group", "folds": 3,
            "members": {"m": {"head": "mlp", "features": "made", "extra": [extra, extra]}},
        }  # fmt: skip
        wanted = recipe_from(said_recipe, "test")
        trainer = MemberTrainer(wanted, tmp_path / "runs", on_step=said.append)
        member = member_plan("m", wanted)
        trainer.inputs(member)
        keys.append(trainer._key(member, trainer.task("group"), {}, None))
    assert keys[0] != keys[1]
    line = f"extra store {other.path}: 240 clips have no class here: c2 (120), c5 (120); they are "
    assert said == [line + "left unlabelled"] * 2
