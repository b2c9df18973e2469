"""Candidates, their features, and the rule by which they override the ensemble."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bsdkit.combine import rerank
from bsdkit.combine.candidates import candidates_of, diverse_members, features_of
from bsdkit.combine.ensemble import combine
from bsdkit.combine.evidence import Evidence
from bsdkit.combine.objective import Objective
from bsdkit.combine.rerank import (
    MARGINS,
    NEVER,
    Reranker,
    RerankOptions,
    fit_reranker,
)
from bsdkit.taxonomy import BST, Taxonomy, TaxonomyClass

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SMALL = Taxonomy("small", [TaxonomyClass(f"{f}{i}", f) for f in "abc" for i in range(3)])
QUICK = RerankOptions(rounds=12, min_rows=5, leaves=7)


def clips(
    n: int = 240, n_members: int = 9, seed: int = 0, taxonomy: Taxonomy = SMALL
) -> tuple[Evidence, IntArray, IntArray]:
    """Evidence whose mean ignores the best member, with labels and folds; rows are missing."""
    rng = np.random.default_rng(seed)
    n_classes = len(taxonomy)
    labels = rng.permutation(np.arange(n) % n_classes)
    logits = 1.2 * rng.standard_normal((n_members, n, n_classes))
    logits[:, np.arange(n), labels] += 0.9
    logits[0, np.arange(n), labels] += 3.0
    p = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    p[rng.random((n_members, n)) < 0.05] = np.nan
    p[1:, 0] = np.nan  # a clip of one member, which has no weight
    similarity = rng.standard_normal((n, n_classes))
    similarity[rng.random(n) < 0.2] = np.nan
    weights = np.ones(n_members)
    weights[0] = 0.0
    mixed = combine(p, weights, np.full(n_classes, 1 / n_classes))
    return Evidence(p, mixed, similarity), labels, np.arange(n) % 4


def features(evidence: Evidence, taxonomy: Taxonomy = SMALL) -> dict[str, FloatArray]:
    """Features of the usual candidates, a pair's clip and class first."""
    candidates = candidates_of(evidence, 3, (0, 2))
    pairs = {"pair_clip": candidates.clip, "pair_label": candidates.label}
    return {**pairs, **features_of(evidence, candidates, taxonomy)}  # type: ignore[dict-item]


def test_what_features_are_made_of_has_no_labels_ids_or_folds() -> None:
    assert {f.name for f in dataclasses.fields(Evidence)} == {"members", "mixed", "similarity"}
    makers: list[Callable[..., Any]] = [diverse_members, candidates_of, features_of, Reranker.apply]
    for maker in makers:
        assert not {"labels", "ids", "fold", "folds", "y"} & set(
            inspect.signature(maker).parameters
        )


def test_the_labels_and_folds_of_a_fit_reach_no_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    evidence, labels, fold = clips()
    seen: list[tuple[Any, ...]] = []
    make = rerank.features_of

    def watched(evidence: Evidence, candidates: Any, taxonomy: Taxonomy) -> dict[str, FloatArray]:
        found = make(evidence, candidates, taxonomy)
        seen.append((candidates.clip, candidates.label, *found.values()))
        return found

    monkeypatch.setattr(rerank, "features_of", watched)
    shuffled = np.random.default_rng(1).permutation(len(labels))
    one = fit_reranker(QUICK, evidence, labels, fold, Objective(SMALL))
    other = fit_reranker(QUICK, evidence, labels[shuffled], fold[shuffled], Objective(SMALL))
    assert len(seen) == 2 and one.model != other.model and one.diverse == other.diverse
    for a, b in zip(*seen, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("has_similarity", [True, False])
def test_features_depend_on_their_own_clip_only(has_similarity: bool) -> None:
    evidence, _, _ = clips(60)
    if not has_similarity:
        evidence = Evidence(evidence.members, evidence.mixed)
    whole = features(evidence)
    assert ("similarity" in whole) == has_similarity
    shuffled = np.random.default_rng(2).permutation(60)
    for rows in (shuffled, shuffled[:9], *np.arange(60)[:, None]):
        part = features(evidence.rows(rows))
        places = np.concatenate([np.flatnonzero(whole["pair_clip"] == i) for i in rows])
        for name, values in part.items():
            if name != "pair_clip":
                np.testing.assert_array_equal(values, whole[name][places], err_msg=name)


def test_features_against_loops() -> None:
    evidence, _, _ = clips(40)
    found = features(evidence)
    mixed = evidence.decided
    for pair, (i, c) in enumerate(zip(found["pair_clip"], found["pair_label"], strict=True)):
        there = [m[i] for m in evidence.members if not np.isnan(m[i, 0])]
        same = [k for k in range(9) if k // 3 == c // 3]
        family_sums = [mixed[i, 3 * f : 3 * f + 3].sum() for f in range(3)]
        expected = {
            "probability": mixed[i, c],
            "lead": mixed[i, c] - max(mixed[i, k] for k in range(9) if k != c),
            "member_mean": np.mean([p[c] for p in there]),
            "member_spread": np.std([p[c] for p in there]),
            "member_highest": max(p[c] for p in there),
            "member_lowest": min(p[c] for p in there),
            "votes": np.mean([p.argmax() == c for p in there]),
            "top3_votes": np.mean([(p > p[c]).sum() < 3 for p in there]),
            "family_votes": np.mean([p.argmax() in same for p in there]),
            "family_probability": mixed[i, same].sum(),
            "family_rank": sum(s > family_sums[c // 3] + 1e-12 for s in family_sums),
            "member_entropy": np.mean([-(p * np.log(p)).sum() for p in there]),
            "n_first_classes": len({int(p.argmax()) for p in there}),
        }
        if i == 0:  # a clip without weight: uniform, so ranks are ties
            del expected["family_rank"]
        for name, value in expected.items():
            assert found[name][pair] == pytest.approx(value, abs=1e-9), name
        is_known = not np.isnan(evidence.similarity[i, 0])  # type: ignore[index]
        for name in ("similarity", "similarity_rank", "similarity_lead"):
            assert np.isfinite(found[name][pair]) == is_known


def test_candidates_are_the_top_classes_and_those_of_diverse_members() -> None:
    evidence, _, _ = clips(80)
    for top, diverse in ((1, ()), (3, (0, 4)), (9, ())):
        found = candidates_of(evidence, top, diverse)
        for i in range(80):
            expected = set(np.argsort(-evidence.decided[i], kind="stable")[:top].tolist())
            rows = [evidence.members[m, i] for m in diverse]
            expected |= {int(p.argmax()) for p in rows if not np.isnan(p[0])}
            assert found.label[found.clip == i].tolist() == sorted(expected)
    # who has no prediction disagrees with nothing
    few = evidence.members.copy()
    few[5, 3:] = np.nan
    assert diverse_members(Evidence(few, evidence.mixed), 9)[-1] == 5
    first = evidence.decided.argmax(axis=1)
    disagree = [
        sum(p.argmax() != c for p, c in zip(m, first, strict=True) if not np.isnan(p[0]))
        for m in evidence.members
    ]
    assert diverse_members(evidence, 1) == (disagree.index(max(disagree)),)
    assert sorted(diverse_members(evidence, 99)) == list(range(9))


def rule(margin: FloatArray, best: IntArray, mixed: FloatArray, tau: float, cross: float) -> Any:
    """What the override rule makes of rows."""
    first = mixed.argmax(axis=1)
    return first, rerank._override(mixed, first, best, margin, tau, cross, SMALL)


def test_the_override_rule() -> None:
    rng = np.random.default_rng(3)
    mixed = np.concatenate([rng.dirichlet(np.ones(9), 300), rng.integers(1, 3, (300, 9)) / 13.0])
    mixed /= mixed.sum(axis=1, keepdims=True)
    best, margin = rng.integers(0, 9, 600), rng.uniform(0, 1, 600)
    for tau, cross in ((0.2, 0.6), (0.0, NEVER), (0.5, 0.1)):  # the last: crossing is never easier
        first, result = rule(margin, best, mixed, tau, cross)
        is_inside = SMALL.family_of[first] == SMALL.family_of[best]
        takes = (margin > np.where(is_inside, tau, max(tau, cross))) & (best != first)
        assert takes.any() and (~takes & (best != first)).any()
        np.testing.assert_array_equal(result.argmax(axis=1), np.where(takes, best, first))
        np.testing.assert_array_equal(result[~takes], mixed[~takes])
        np.testing.assert_allclose(result.sum(axis=1), 1)
        assert (result >= 0).all()
    assert rule(margin, best, mixed, NEVER, NEVER)[1].tobytes() == mixed.tobytes()


@pytest.mark.parametrize("objective", ["binary", "lambdarank"])
def test_a_fitted_reranker_is_repeatable_and_reads_back_the_same(objective: Any) -> None:
    evidence, labels, fold = clips()
    options = dataclasses.replace(QUICK, objective=objective)
    found = fit_reranker(options, evidence, labels, fold, Objective(SMALL))
    assert found == fit_reranker(options, evidence, labels, fold, Objective(SMALL))
    result = found.apply(evidence).decided
    read = Reranker.from_dict(json.loads(json.dumps(found.to_dict())), SMALL)
    assert read.apply(evidence).decided.tobytes() == result.tobytes()
    np.testing.assert_allclose(result.sum(axis=1), 1)
    assert (result.argmax(axis=1) != evidence.decided.argmax(axis=1)).any()
    for i in range(0, 240, 24):
        alone = read.apply(evidence.rows(np.array([i]))).decided
        np.testing.assert_array_equal(alone[0], result[i])
    assert len(found.apply(evidence.rows(np.arange(0)))) == 0


@pytest.mark.parametrize(
    ("tau", "cross_tau"), [(None, None), (0.1, None), (None, 0.3), (NEVER, None), (0.05, 0.4)]
)
def test_margins_are_tuned_or_kept(tau: float | None, cross_tau: float | None) -> None:
    evidence, labels, fold = clips(seed=4)
    options = dataclasses.replace(
        QUICK,
        tau="tune" if tau is None else tau,
        cross_tau="tune" if cross_tau is None else cross_tau,
    )
    found = fit_reranker(options, evidence, labels, fold, Objective(SMALL))
    assert tau in (None, found.tau) and found.cross_tau >= found.tau
    assert found.cross_tau in (cross_tau, found.tau) if cross_tau is not None else True
    assert {found.tau, found.cross_tau} <= {*MARGINS, NEVER, tau, cross_tau}
    result = found.apply(evidence).decided
    if tau == NEVER:
        assert result.tobytes() == evidence.decided.tobytes()
    candidates = candidates_of(evidence, found.top, found.diverse)
    table = np.full(result.shape, -np.inf)
    table[candidates.clip, candidates.label] = found.scores(evidence, candidates)
    first, now = evidence.decided.argmax(axis=1), result.argmax(axis=1)
    rows = np.flatnonzero(first != now)
    lead = table[rows, now[rows]] - table[rows, first[rows]]
    crosses = SMALL.family_of[first[rows]] != SMALL.family_of[now[rows]]
    assert (lead > found.tau).all() and (lead[crosses] > found.cross_tau).all()


def test_margins_are_tuned_on_clips_that_the_booster_did_not_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evidence, labels, fold = clips()
    unseen: list[set[int]] = []
    make = rerank._boosted

    def watched(*arguments: Any) -> Any:
        candidates, used = arguments[3], arguments[5]
        unseen.append(set(candidates.clip[~used].tolist()))
        assert not unseen[-1] & set(candidates.clip[used].tolist())
        return make(*arguments)

    monkeypatch.setattr(rerank, "_boosted", watched)
    fit_reranker(QUICK, evidence, labels, fold, Objective(SMALL))
    assert unseen == [set(np.flatnonzero(fold == k).tolist()) for k in range(4)] + [set()]


@pytest.mark.parametrize("objective", ["binary", "lambdarank"])
def test_it_learns_that_a_member_without_weight_is_right(objective: Any) -> None:
    evidence, labels, fold = clips(600, n_members=4, seed=5, taxonomy=BST)
    options = dataclasses.replace(QUICK, objective=objective, rounds=30)
    score = Objective(BST).of
    result = np.empty(600, np.int64)
    for k in range(4):
        train, test = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
        found = fit_reranker(
            options, evidence.rows(train), labels[train], fold[train], Objective(BST)
        )
        result[test] = found.apply(evidence.rows(test)).decided.argmax(axis=1)
    before = score(labels, evidence.decided.argmax(axis=1))
    assert score(labels, result) > before + 0.1, (before, score(labels, result))


def test_only_a_sure_candidate_of_another_family_overrides() -> None:
    evidence, labels, fold = clips(seed=2)
    options = dataclasses.replace(QUICK, tau=0.0, cross_tau=0.0)
    freely = fit_reranker(options, evidence, labels, fold, Objective(SMALL))
    careful = dataclasses.replace(freely, cross_confidence=0.4)
    assert careful == fit_reranker(
        dataclasses.replace(options, cross_confidence=0.4),
        evidence, labels, fold, Objective(SMALL),
    )  # fmt: skip
    assert Reranker.from_dict(json.loads(json.dumps(careful.to_dict())), SMALL) == careful
    before = evidence.decided.argmax(axis=1)
    free, kept = (r.apply(evidence).decided.argmax(axis=1) for r in (freely, careful))
    candidates = candidates_of(evidence, freely.top, freely.diverse)
    scores = np.full(evidence.decided.shape, -np.inf)
    scores[candidates.clip, candidates.label] = freely.scores(evidence, candidates)
    crosses = SMALL.family_of[free] != SMALL.family_of[before]
    is_sure = scores[np.arange(len(free)), free] >= 0.4
    assert (crosses & is_sure).any() and (crosses & ~is_sure).any()
    np.testing.assert_array_equal(kept, np.where(crosses & ~is_sure, before, free))
    with pytest.raises(ValueError, match="cross_confidence is a probability"):
        RerankOptions(objective="lambdarank", cross_confidence=0.5)
