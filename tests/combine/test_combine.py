"""Averages of members, the searches for their weights, adjustment and decoding."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsdkit.combine.adjust import TAUS, Adjustment, fit_adjustment
from bsdkit.combine.decode import decode
from bsdkit.combine.ensemble import (
    Ensemble,
    EnsembleOptions,
    Method,
    Space,
    combine,
    fit_ensemble,
)
from bsdkit.combine.evidence import Evidence
from bsdkit.combine.limits import Limits
from bsdkit.combine.objective import Objective, WeightScorer
from bsdkit.errors import RecipeError
from bsdkit.metrics import Scorer
from bsdkit.taxonomy import BST, Taxonomy

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SPACES: tuple[Space, ...] = ("probabilities", "logits")
FLAT = Taxonomy.flat(["a", "b", "c", "d"])
ONE = Taxonomy.flat(["only"])


def members(
    n: int = 230, n_members: int = 4, seed: int = 0, skill: float = 1.0
) -> tuple[FloatArray, IntArray]:
    """Members of growing skill on labels of all 23 classes, some more frequent."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(23), rng.choice(23, n - 23, p=np.arange(1, 24) / 276)])
    logits = 1.5 * rng.standard_normal((n_members, n, 23))
    for i in range(n_members):
        logits[i, np.arange(n), labels] += skill + 0.5 * i
    return np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True), labels


def rough_members(
    rng: np.random.Generator, n_members: int, n: int, n_classes: int, kind: str
) -> FloatArray:
    """Members full of ties."""
    if kind == "eighths":
        p = rng.integers(0, 9, (n_members, n, n_classes)) / 8.0
    elif kind == "top-1":  # as official files have it: the first class, completed evenly
        top = rng.integers(0, n_classes, (n_members, n))
        p = np.zeros((n_members, n, n_classes))
        share = rng.uniform(1 / n_classes, 1, (n_members, n)).round(4)[:, :, None]
        p += (1 - share) / max(n_classes - 1, 1)
        np.put_along_axis(p, top[:, :, None], share, axis=2)
    else:
        p = rng.dirichlet(np.ones(n_classes), (n_members, n)).round(1)
    p[rng.random((n_members, n)) < 0.1] = np.nan
    return np.asarray(p)


@pytest.mark.parametrize("space", SPACES)
def test_combining_against_a_loop(space: Space) -> None:
    probabilities, _ = members(40)
    probabilities[1, 3:9] = probabilities[0, 5] = probabilities[:, 7] = np.nan
    weights, fallback = [1.0, 0.0, 2.0, 0.5], np.arange(23) / 253
    for given_fallback in (None, fallback):
        mixed = combine(probabilities, weights, given_fallback, space=space)
        for i in range(40):
            row, total = np.zeros(23), 0.0
            for w, p in zip(weights, probabilities[:, i], strict=True):
                if w and not np.isnan(p[0]):
                    row += w * (p if space == "probabilities" else np.log(np.maximum(p, 1e-6)))
                    total += w
            if not total:
                expected = np.full(23, np.nan) if given_fallback is None else fallback
            else:
                expected = row / total
                if space == "logits":  # the normalised geometric mean
                    expected = np.exp(expected) / np.exp(expected).sum()
            np.testing.assert_allclose(mixed[i], expected, atol=1e-12)
    # a member without weight gives nothing, even where it is the only one
    alone = combine(probabilities, [0, 1, 0, 0], space=space)
    assert np.isnan(alone[3:9]).all() and np.isfinite(alone[9:]).all()


@pytest.mark.parametrize("space", SPACES)
def test_a_row_is_combined_the_same_in_any_company(space: Space) -> None:
    probabilities, _ = members(50, n_members=19)
    probabilities[3, 10:20] = np.nan
    weights = np.random.default_rng(1).dirichlet(np.ones(19))
    mixed = combine(probabilities, weights, space=space)
    shuffled = np.random.default_rng(2).permutation(50)
    evidence = Evidence(probabilities)
    for rows in (shuffled, shuffled[:7], *np.arange(50)[:, None]):
        part = combine(evidence.rows(rows).members, weights, space=space)
        np.testing.assert_array_equal(part, mixed[rows])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_members=st.integers(1, 9),
    taxonomy=st.sampled_from([BST, FLAT, ONE]),
    kind=st.sampled_from(["eighths", "top-1", "tenths"]),
    has_target=st.booleans(),
)
def test_a_contest_scores_what_combining_and_argmax_give(
    seed: int, n_members: int, taxonomy: Taxonomy, kind: str, has_target: bool
) -> None:
    rng = np.random.default_rng(seed)
    n_classes = len(taxonomy)
    p = rough_members(rng, n_members, 60, n_classes, kind)
    labels = rng.integers(0, n_classes, 60)
    target = tuple(rng.dirichlet(np.ones(n_classes)).tolist()) if has_target else None
    objective = Objective(taxonomy, target)
    for space in SPACES:
        scores = p if space == "probabilities" else np.log(np.maximum(p, 1e-6))
        scorer = WeightScorer(scores, labels, objective, is_log=space == "logits")
        weightings = [
            np.ones(n_members),
            np.eye(n_members)[rng.integers(n_members)],
            rng.integers(0, 3, n_members) + np.eye(n_members)[0],
            rng.dirichlet(np.ones(n_members)),
            rng.dirichlet(np.ones(n_members)) * (rng.random(n_members) < 0.6) + 1e-300,
            10.0 ** rng.uniform(-14, 0, n_members),
        ]
        for w in weightings:
            predicted = combine(p, w, space=space).argmax(axis=1)
            assert scorer.score(w) == objective.of(labels, predicted), (space, w.tolist())


def test_a_target_counts_clips_as_if_they_were_repeated() -> None:
    _, labels = members(120)
    predicted = np.random.default_rng(3).permutation(labels)
    predicted[::2] = labels[::2]
    repeats = np.random.default_rng(4).integers(0, 5, 23)
    times = repeats[labels]
    target = np.bincount(np.repeat(labels, times), minlength=23) / times.sum()
    repeated = Scorer(BST).hF_strict_of(np.repeat(labels, times), np.repeat(predicted, times))
    objective = Objective(BST, tuple(target.tolist()))
    assert objective.of(labels, predicted) == pytest.approx(repeated, abs=1e-12)
    assert objective.scale(labels)[labels].mean() == pytest.approx(1)
    assert Objective(BST).of(labels, predicted) != pytest.approx(repeated, abs=1e-3)


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0, 7.0]), min_size=7, max_size=7),
    caps=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)),
    min_weight=st.floats(0, 0.9),
    has_free=st.booleans(),
)
def test_caps_and_the_smallest_weight_hold(
    weights: list[float], caps: tuple[float, float], min_weight: float, has_free: bool
) -> None:
    names = ["a-1", "a-2", "a-3", "b-1", "b-2", "c-1" if has_free else "b-3", "a-4"]
    options = EnsembleOptions(caps={"a-*": caps[0], "?-*": 1.0, "b-*": caps[1]})
    with pytest.raises(RecipeError, match=r"names 'b-\*', which no member matches that an earl"):
        Limits(options.caps, options.min_weight, names)  # a member belongs to its first pattern
    options = EnsembleOptions(caps={"a-*": caps[0], "b-*": caps[1]}, min_weight=min_weight)
    if not has_free and sum(caps) < 1 - 1e-12:
        with pytest.raises(RecipeError, match="ensemble.caps leave .* of the weight"):
            Limits(options.caps, options.min_weight, names)
        return
    w = Limits(options.caps, options.min_weight, names)(weights)
    assert w.sum() == pytest.approx(1) and (w >= 0).all()
    is_a, is_b = (np.array([name[0] == letter for name in names]) for letter in "ab")
    assert w[is_a].sum() <= caps[0] + 1e-9 and w[is_b].sum() <= caps[1] + 1e-9
    for light in np.flatnonzero((w > 0) & (w < min_weight - 1e-9)):  # the caps need it
        rest = {names[i][0] for i in np.flatnonzero(w) if i != light}
        assert "c" not in rest and sum({"a": caps[0], "b": caps[1]}[g] for g in rest) < 1
    free = Limits({}, 0.0, names)(weights)
    if sum(weights):
        np.testing.assert_allclose(free, np.array(weights) / sum(weights))


def test_refusals_are_one_line(tmp_path: Path) -> None:
    p, labels = members(60)
    names = ["a", "b", "c", "d"]
    refused = {
        "caps names 'x\\*', which no member .* are a, b, c, d": EnsembleOptions(caps={"x*": 0.5}),
        "caps leave 0.5 of the weight to all members": EnsembleOptions(caps={"*": 0.5}),
        "name 'e', which is no member .*: a, b, c, d": EnsembleOptions("frozen", weights={"e": 1}),
        "must be finite and not negative.* b -1": EnsembleOptions("frozen", weights={"b": -1}),
        "nor all zero; found a 0, b 0, c 0, d 0": EnsembleOptions("frozen", weights={}),
        "must be finite.* a inf": EnsembleOptions("frozen", weights={"a": float("inf")}),
    }
    for message, options in refused.items():
        with pytest.raises(RecipeError, match=message) as error:
            fit_ensemble(options, p, labels, Objective(BST), names=names)
        assert "\n" not in str(error.value)
    many = np.tile(p[:1, :23], (80, 1, 1))
    with pytest.raises(RecipeError, match=r"80 members have 1,666,\d+ subsets .* method: greedy"):
        fit_ensemble(EnsembleOptions("subsets", largest=4), many, labels[:23], Objective(BST))
    frozen = EnsembleOptions("frozen", weights={"d": 3, "b": 1})
    found = fit_ensemble(frozen, p, labels, Objective(BST), names=names)
    assert found == Ensemble("frozen", (0.0, 0.25, 0.0, 0.75)) and not frozen.learns
    assert Ensemble.from_dict(found.to_dict()) == found


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("method", ["mean", "weights", "greedy", "subsets", "stacking"])
def test_searches_are_repeatable_and_keep_what_they_promise(method: Method, space: Space) -> None:
    p, labels = members(seed=1)
    p[2, ::7] = np.nan
    objective = Objective(BST, tuple([1 / 23] * 23))
    options = EnsembleOptions(method, space, trials=30, rounds=6, largest=2, seed=3)
    found = fit_ensemble(options, p, labels, objective)
    assert found == fit_ensemble(options, p, labels, objective)
    assert sum(found.weights) == pytest.approx(1) and min(found.weights) >= 0

    def score(weights: npt.ArrayLike) -> float:
        return objective.of(labels, combine(p, weights, space=space).argmax(axis=1))

    best, singles = score(found.weights), [score(w) for w in np.eye(4)]
    if method in ("weights", "greedy", "subsets"):
        assert best >= max(singles)
    if method == "weights":
        assert best >= score(np.ones(4))
    if method in ("weights", "greedy"):
        alone = EnsembleOptions(method, space, trials=1, rounds=1)
        assert score(fit_ensemble(alone, p, labels, objective).weights) >= max(singles)


def test_greedy_and_subsets_against_plain_loops() -> None:
    p, labels = members(120, n_members=5, seed=2, skill=0.5)
    objective = Objective(BST)

    def score(chosen: list[int]) -> float:
        mixed = sum(p[i] for i in chosen) / len(chosen)
        return objective.of(labels, np.asarray(mixed).argmax(axis=1))

    bag: list[int] = []
    bags = []
    for _ in range(12):
        bag = max(([*bag, i] for i in range(5)), key=score)
        bags.append(bag)
    slow = max(bags, key=score)
    found = fit_ensemble(EnsembleOptions("greedy", rounds=12), p, labels, objective)
    np.testing.assert_allclose(found.weights, np.bincount(slow, minlength=5) / len(slow))
    assert len(set(slow)) > 1

    subsets = [list(s) for k in (1, 2, 3) for s in itertools.combinations(range(5), k)]
    slow = max(subsets, key=score)
    found = fit_ensemble(EnsembleOptions("subsets", largest=3), p, labels, objective)
    np.testing.assert_allclose(found.weights, np.bincount(slow, minlength=5) / len(slow))
    found = fit_ensemble(EnsembleOptions("subsets", largest=1), p, labels, objective)
    assert int(np.argmax(found.weights)) == max(range(5), key=lambda i: score([i]))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("has_target", [False, True])
def test_no_point_of_the_simplex_has_less_log_loss_than_stacking(
    space: Space, has_target: bool
) -> None:
    p, labels = members(300, n_members=6, seed=3)
    p[5] = p[4]  # two that are the same: many best points, one least loss
    objective = Objective(BST, tuple([1 / 23] * 23) if has_target else None)
    importance = objective.scale(labels)[labels]

    def loss(weights: npt.ArrayLike) -> float:
        true = combine(p, weights, space=space)[np.arange(300), labels]
        return float(-(importance * np.log(true)).mean())

    found = fit_ensemble(EnsembleOptions("stacking", space), p, labels, objective)
    w = np.array(found.weights)
    least, rng = loss(w), np.random.default_rng(5)
    others = [*np.eye(6), *rng.dirichlet(np.ones(6), 150), *rng.dirichlet(np.full(6, 0.1), 150)]
    others += [0.99 * w + 0.01 * other for other in others]  # near it too, where a slope would show
    assert all(loss(other) > least - 1e-7 for other in others)
    assert loss(np.ones(6)) > least + 1e-3


@pytest.mark.parametrize("method", ["weights", "stacking", "greedy", "subsets"])
def test_a_member_that_knows_nothing_gets_no_weight(method: Method) -> None:
    p, labels = members(seed=4)
    p = np.concatenate([p[:2], np.full_like(p[:1], 1 / 23), p[2:]])
    options = EnsembleOptions(method, trials=40, rounds=10)
    assert fit_ensemble(options, p, labels, Objective(BST)).weights[2] == 0


def test_a_missing_row_is_no_fault_of_a_stacked_member() -> None:
    p, labels = members(400, n_members=3, seed=6)
    complete = fit_ensemble(EnsembleOptions("stacking"), p, labels, Objective(BST))
    p[2, np.random.default_rng(0).random(400) < 0.3] = np.nan  # the best one, at random
    part = fit_ensemble(EnsembleOptions("stacking"), p, labels, Objective(BST))
    assert abs(part.weights[2] - complete.weights[2]) < 0.15
    assert part.weights[2] == max(part.weights)


def test_adjustment_is_the_formula() -> None:
    p, labels = members(300, seed=7)
    mixed = p.mean(axis=0)
    mixed[0] = np.eye(23)[4]  # certainty stays certain
    evidence = Evidence(p, mixed)
    target = np.random.default_rng(1).dirichlet(np.ones(23))
    for wanted in (None, tuple(target.tolist())):
        objective = Objective(BST, wanted)
        adjustment = fit_adjustment(0.7, evidence, labels, objective)
        prior = (np.bincount(labels, minlength=23) + 0.5) / (300 + 11.5)
        goal = np.full(23, 1 / 23) if wanted is None else target
        expected = mixed * (goal / prior) ** 0.7
        expected /= expected.sum(axis=1, keepdims=True)
        adjusted = adjustment.apply(evidence)
        np.testing.assert_allclose(adjusted.decided, expected, atol=1e-12)
        assert adjusted.members is evidence.members
        for rows in (np.array([17]), np.array([8, 0, 299])):
            part = adjustment.apply(evidence.rows(rows)).decided
            np.testing.assert_array_equal(part, adjusted.decided[rows])
        assert Adjustment.from_dict(adjustment.to_dict()) == adjustment

        def score(tau: float, objective: Objective = objective) -> float:
            fitted = fit_adjustment(tau, evidence, labels, objective)
            return objective.of(labels, fitted.apply(evidence).decided.argmax(axis=1))

        tuned = fit_adjustment("tune", evidence, labels, objective)
        assert score(tuned.tau) == max(map(score, TAUS)) >= score(0.0)
    assert fit_adjustment(0.0, evidence, labels, Objective(BST)).apply(evidence) is evidence
    # so far that every other class underflows, and a class without clips
    far = fit_adjustment(500.0, Evidence(p, mixed), labels % 20, Objective(BST)).apply(evidence)
    np.testing.assert_allclose(far.decided.sum(axis=1), 1)
    # classes that were predicted as often as they were seen: nothing to gain, so 0
    certain = Evidence(p, np.eye(23)[labels])
    assert fit_adjustment("tune", certain, labels, Objective(BST)).tau == 0


@pytest.mark.parametrize("taxonomy", [BST, FLAT, ONE])
def test_decoding_against_loops(taxonomy: Taxonomy) -> None:
    rng = np.random.default_rng(8)
    n = len(taxonomy)
    p = rng.dirichlet(np.full(n, 0.5), 200)
    p[100:] = rng.integers(1, 5, (100, n)) / 8  # ties, exact in binary
    credit = taxonomy.credit(0.375)
    found = {how: decode(p, how, taxonomy) for how in ("argmax", "family_first", "expected_hF")}
    for i, row in enumerate(p):
        assert found["argmax"][i] == np.flatnonzero(row == row.max())[0]
        families = [row[taxonomy.family_of == f].sum() for f in range(len(taxonomy.families))]
        family = families.index(max(families))
        inside = [c for c in range(n) if taxonomy.family_of[c] == family]
        assert found["family_first"][i] == max(inside, key=lambda c: row[c])
        expected = [sum(row[true] * credit[true, c] for true in range(n)) for c in range(n)]
        assert expected[found["expected_hF"][i]] == pytest.approx(max(expected), abs=1e-12)
        if i >= 100:
            assert found["expected_hF"][i] == expected.index(max(expected))
    for how, whole in found.items():
        assert [decode(row[None], how, taxonomy)[0] for row in p] == whole.tolist()
    if taxonomy is BST:
        assert len({tuple(v) for v in found.values()}) == 3  # they do differ
    else:
        assert (found["expected_hF"] == found["argmax"]).all()


def test_a_file_of_weights_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    from bsdkit.recipe.schema import Recipe
    from bsdkit.runs.scoring import chain_steps

    file = tmp_path / "ensemble.json"

    def steps() -> object:
        member = {"head": "linear", "features": "x"}
        said = {"members": {"a": member, "b": member}, "name": "r", "store": "s"}
        frozen = {"method": "frozen", "file": str(file)}
        recipe = Recipe.model_validate({**said, "ensemble": frozen})
        return chain_steps(recipe, ("a", "b"))[0].options.weights  # type: ignore[attr-defined]

    for text in (None, "[1, 2]", "a: [", "a: many", '{"members": ["a"], "weights": [1, 2]}', "5"):
        if text is not None:
            file.write_text(text)
        with pytest.raises(RecipeError, match=f"ensemble.file {file}: .*; expected member: ") as e:
            steps()
        assert "\n" not in str(e.value)
    for text in (
        '{"split": "x", "members": ["a", "b"], "weights": [0.25, 0.75]}',
        "a: 0.25\nb: .75",
    ):
        file.write_text(text)
        assert steps() == {"a": 0.25, "b": 0.75}


def test_the_best_members_alone_are_weighed() -> None:
    p, labels = members(n_members=6)
    p = p[[5, 0, 4, 1, 3, 2]]  # of growing skill before
    names = ["a-1", "b-1", "a-2", "b-2", "c-1", "b-3"]
    options = EnsembleOptions("mean", best=3, caps={"a-*": 0.5, "b-*": 0.1, "c-1": 0.5})
    found = fit_ensemble(options, p, labels, Objective(BST), names=names)
    # the three of most skill are a-1, a-2 and c-1; the cap on b has nothing left to hold
    np.testing.assert_allclose(found.weights, [0.25, 0, 0.25, 0, 0.5, 0])
    assert options.learns and not EnsembleOptions("mean").learns
    # caps that the three cannot keep are raised in proportion: 0.3 and 0.1 to 3 and 1 quarters
    low = EnsembleOptions("mean", best=3, caps={"a-*": 0.3, "b-*": 0.5, "c-1": 0.1})
    found = fit_ensemble(low, p, labels, Objective(BST), names=names)
    np.testing.assert_allclose(found.weights, [0.375, 0, 0.375, 0, 0.25, 0])
    weighed = EnsembleOptions("weights", best=2, trials=20)
    assert np.count_nonzero(fit_ensemble(weighed, p, labels, Objective(BST)).weights) <= 2
    everyone = EnsembleOptions("mean", best=9)
    assert fit_ensemble(everyone, p, labels, Objective(BST)).weights == (1 / 6,) * 6
    with pytest.raises(ValueError, match="best chooses members"):
        EnsembleOptions("frozen", best=2, weights={"a": 1.0})
