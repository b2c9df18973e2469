"""The chain: nothing is learned from the clips that it is scored on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bsdkit.combine.adjust import AdjustOptions
from bsdkit.combine.chain import (
    Adjust,
    Average,
    Calibrate,
    Chain,
    Nested,
    Rerank,
    Step,
    nested,
)
from bsdkit.combine.ensemble import EnsembleOptions, Method, combine
from bsdkit.combine.evidence import Evidence
from bsdkit.combine.objective import Objective
from bsdkit.combine.rerank import RerankOptions
from bsdkit.errors import RecipeError
from bsdkit.taxonomy import BST, Taxonomy, TaxonomyClass

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
SMALL = Taxonomy("small", [TaxonomyClass(f"{f}{i}", f) for f in "abc" for i in range(2)])
METHODS: tuple[Method, ...] = ("weights", "greedy", "subsets", "stacking")


def clips(
    n: int = 180, n_folds: int = 3, taxonomy: Taxonomy = SMALL, n_members: int = 4
) -> tuple[Evidence, IntArray, IntArray]:
    """Evidence with missing rows, labels and folds; the members are none too good."""
    rng = np.random.default_rng(n)
    n_classes = len(taxonomy)
    labels = rng.permutation(np.arange(n) % n_classes)
    labels[: n // 6] = 0
    logits = 1.5 * rng.standard_normal((n_members, n, n_classes))
    for i in range(n_members):
        logits[i, np.arange(n), labels] += 0.8 + 0.4 * i
    p = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    p[1, rng.random(n) < 0.1] = np.nan
    return Evidence(p, similarity=rng.random((n, n_classes))), labels, rng.permutation(n) % n_folds


def average(method: Method = "greedy", n_members: int = 4, **settings: Any) -> Average:
    options = EnsembleOptions(method, trials=40, rounds=8, **settings)
    return Average(options, tuple(f"m{i}" for i in range(n_members)))


def full_chain(method: Method = "greedy") -> list[Step]:
    reranker = Rerank(RerankOptions(rounds=6, min_rows=5, leaves=5))
    return [Calibrate("temperature"), average(method), reranker, Adjust(AdjustOptions())]


def same_bits(one: Nested, other: Nested, rows: Any = slice(None)) -> bool:
    """Whether the nested probabilities of rows are the same to the last bit."""
    pairs = zip(one.stages, other.stages, strict=True)
    return all(a[rows].tobytes() == b[rows].tobytes() for a, b in pairs)


def test_lies_about_a_fold_change_nothing_in_its_own_output() -> None:
    evidence, labels, fold = clips()
    fold[:5] = -1  # not tested
    evidence.members[:, 5] = np.nan  # nobody has a prediction
    honest = nested(full_chain(), evidence, labels, fold, 3, Objective(SMALL))
    for stage, tuned in zip(honest.stages, honest.in_sample, strict=True):
        assert np.isnan(stage[:6]).all() and np.isnan(tuned[:6]).all()
        np.testing.assert_allclose(stage[6:].sum(axis=1), 1)
    changed = [(a != b)[6:].any() for a, b in zip(honest.stages, honest.stages[1:], strict=False)]
    assert changed[:2] == [True, True]  # a chain whose steps do something
    for k in range(3):
        mine = fold == k
        lied = np.where(mine, (labels + 1 + np.arange(len(labels)) % 5) % 6, labels)
        other = nested(full_chain(), evidence, lied, fold, 3, Objective(SMALL))
        assert same_bits(honest, other, mine)
        assert json.dumps(honest.of_folds[k].to_dict()) == json.dumps(other.of_folds[k].to_dict())
        assert not same_bits(honest, other, (fold >= 0) & ~mine)  # the others did learn the lies
        assert honest.chain.to_dict() != other.chain.to_dict()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("elsewhere", ["uniform", "random"])
def test_a_member_that_cheats_on_one_fold_adds_nothing_to_the_nested_score(
    elsewhere: str, method: Method
) -> None:
    """It is perfect on fold 2 of 4, elsewhere uniform, or sure of random classes.

    The weights of fold 2 come from folds where it knows nothing. (A reranker, like a plain mean,
    does gain on fold 2: it learns to heed any member that is sure, from folds where that is right.)
    """
    evidence, labels, fold = clips(460, 4, BST)
    mine, rng = fold == 2, np.random.default_rng(7)
    cheat = np.full((460, 23), 1 / 23)
    if elsewhere == "random":
        cheat = np.eye(23)[rng.integers(0, 23, 460)]
    cheat[mine] = np.eye(23)[labels[mine]]
    with_cheat = Evidence(np.concatenate([evidence.members, cheat[None]]))
    score = Objective(BST).of

    def scores(found: Nested) -> tuple[float, float]:
        return (
            score(labels, found.stages[-1].argmax(axis=1)),
            score(labels, found.in_sample[-1].argmax(axis=1)),
        )

    plain = nested([average(method)], evidence, labels, fold, 4, Objective(BST))
    found = nested([average(method, 5)], with_cheat, labels, fold, 4, Objective(BST))
    of_cheat = [chain.ensemble.weights[4] for chain in found.of_folds]
    (honest, tuned), (nested_score, in_sample) = scores(plain), scores(found)
    print(
        f"{elsewhere:8} {method:9} nested {honest:.4f} -> {nested_score:.4f} "
        f"in-sample {tuned:.4f} -> {in_sample:.4f} weights by fold {np.round(of_cheat, 3)}"
    )
    assert nested_score < honest + 0.03
    if elsewhere == "uniform":
        assert of_cheat[2] == 0 and min(np.delete(of_cheat, 2)) > 0.1
        assert in_sample > tuned + 0.08 and nested_score > honest - 0.04
    else:  # the other folds may lose by it: it is right on a third of what teaches them
        assert of_cheat[2] < 0.05


@dataclass
class Memory:
    """Knows by heart the clips that it was fitted on."""

    answers: dict[float, int]

    def apply(self, evidence: Evidence) -> Evidence:
        """Certainty for a clip that it knows, else nothing."""
        mixed = np.full(evidence.members.shape[1:], 1 / len(SMALL))
        for i, key in enumerate(evidence.members[0, :, 0].tolist()):
            if key in self.answers:
                mixed[i] = np.eye(len(SMALL))[self.answers[key]]
        return evidence.with_mixed(mixed)

    def to_dict(self) -> dict[str, Any]:
        """Nothing: it is not kept."""
        return {}


@dataclass
class Memorise:
    """Learns by heart; with `watch`, keeps what it was given to learn from."""

    name: str = "memorise"
    learns: bool = True
    watch: list[Evidence] | None = None
    fitted: list[set[float]] = field(default_factory=list)

    def fit(
        self, evidence: Evidence, labels: IntArray, fold: IntArray, objective: Objective
    ) -> Memory:
        """See `Step`."""
        if self.watch is not None:
            self.watch.append(evidence)
        keys = evidence.members[0, :, 0].tolist()
        self.fitted.append(set(keys))
        return Memory(dict(zip(keys, labels.tolist(), strict=True)))


@pytest.mark.parametrize("n_folds", [2, 3, 5])
def test_a_later_step_learns_from_outputs_that_did_not_see_their_clip(n_folds: int) -> None:
    evidence, labels, fold = clips(n_folds=n_folds)
    evidence = Evidence(np.nan_to_num(evidence.members, nan=1 / 6))
    first, second = Memorise(), Memorise(watch=[])
    steps: list[Step] = [average("mean"), first, second]
    found = nested(steps, evidence, labels, fold, n_folds, Objective(SMALL))
    assert second.watch is not None and len(second.watch) == n_folds + 1
    for given in second.watch:
        np.testing.assert_array_equal(given.decided, 1 / 6)  # never what was learned by heart
    np.testing.assert_array_equal(found.stages[1], 1 / 6)
    np.testing.assert_array_equal(found.in_sample[1], np.eye(6)[labels])
    # by design: no fit for a fold, cross-fits included, met one of its clips
    keys = evidence.members[0, :, 0]
    per_chain = len(first.fitted) // (n_folds + 1)
    inner = 4 if n_folds == 2 else n_folds - 1
    assert len(first.fitted) == n_folds * (inner + 1) + n_folds + 1 and per_chain > 1
    for k in range(n_folds):
        mine = set(keys[fold == k].tolist())
        assert all(
            not mine & seen for seen in first.fitted[k * (inner + 1) : (k + 1) * (inner + 1)]
        )


def test_a_chain_reads_back_from_json_and_jobs_change_no_bit() -> None:
    evidence, labels, fold = clips()
    found = nested(full_chain("stacking"), evidence, labels, fold, 3, Objective(SMALL))
    read = Chain.from_dict(json.loads(json.dumps(found.chain.to_dict())), SMALL)
    assert read.apply(evidence).tobytes() == found.chain.apply(evidence).tobytes()
    assert read.to_dict() == found.chain.to_dict() and read.counts.all()
    result = read.apply(evidence)
    for i in (0, 77, 179):  # a new clip comes alone
        np.testing.assert_array_equal(read.apply(evidence.rows(np.array([i])))[0], result[i])
    with pytest.raises(KeyError, match="vote"):
        Chain.from_dict({"steps": [{"step": "vote"}]}, SMALL)
    other = nested(full_chain("stacking"), evidence, labels, fold, 3, Objective(SMALL), n_jobs=2)
    assert same_bits(found, other)
    assert found.chain.to_dict() == other.chain.to_dict()


def test_one_tested_fold_teaches_nothing() -> None:
    evidence, labels, _ = clips()
    fold = np.where(np.arange(180) < 60, 1, -1)
    for steps, name in (([average("weights")], "ensemble"), (full_chain("mean"), "calibrate")):
        with pytest.raises(RecipeError, match=f"one fold only .* learns here: .*{name}") as error:
            nested(steps, evidence, labels, fold, 3, Objective(SMALL))
        assert "\n" not in str(error.value)
    nobody = Evidence(np.full_like(evidence.members, np.nan))
    with pytest.raises(RecipeError, match="no tested clip has a prediction .* 'ensemble'; "):
        nested([average("weights")], nobody, labels, np.arange(180) % 3, 3, Objective(SMALL))
    steps = [average("mean")]
    found = nested(steps, evidence, labels, fold, 3, Objective(SMALL))
    np.testing.assert_array_equal(found.stages[0][:60], combine(evidence.members, np.ones(4))[:60])
    assert np.isnan(found.stages[0][60:]).all()
    assert np.isnan(nested(steps, nobody, labels, fold, 3, Objective(SMALL)).stages[0]).all()


def test_clips_without_a_member_that_counts_are_nobodys() -> None:
    evidence, labels, fold = clips()
    p = evidence.members.copy()
    p[:3, :10] = np.nan  # the last member alone has them
    p[1, fold != 0] = np.nan  # one fold only: other folds cannot calibrate this one
    frozen = average("frozen", weights={"m0": 1.0, "m1": 1.0})
    found = nested(
        [Calibrate("temperature"), frozen], Evidence(p), labels, fold, 3, Objective(SMALL)
    )
    for stage in (*found.stages, *found.in_sample):
        np.testing.assert_array_equal(np.isnan(stage[:, 0]), np.arange(180) < 10)
    assert found.chain.counts.tolist() == [True, True, False, False]
    # a reranker looks at every member, so it has a word on them
    steps: list[Step] = [frozen, Rerank(RerankOptions(rounds=5, min_rows=5))]
    reranked = nested(steps, Evidence(p), labels, fold, 3, Objective(SMALL))
    assert np.isfinite(reranked.stages[-1]).all() and reranked.chain.counts.all()


def test_two_folds_and_a_fold_without_clips() -> None:
    evidence, labels, fold = clips(n_folds=2)
    fold = 2 * fold  # fold 1 has no clip
    found = nested(full_chain(), evidence, labels, fold, 3, Objective(SMALL))
    assert len(found.of_folds) == 3 and found.of_folds[1] is found.chain
    assert np.isfinite(found.stages[-1]).all()
    for k in (0, 2):
        lied = np.where(fold == k, (labels + 3) % 6, labels)
        other = nested(full_chain(), evidence, lied, fold, 3, Objective(SMALL))
        assert same_bits(found, other, fold == k) and not same_bits(found, other, fold != k)
