"""Verdicts: they count clips and training, are opposites when swapped, and hold their level."""

from __future__ import annotations

import numpy as np
import pytest

from bsdkit.metrics import compare
from bsdkit.stats import softmax
from bsdkit.taxonomy import Taxonomy
from bsdkit.verdicts import ONE_SEED, System, compare_systems, judge

TREE = Taxonomy.flat(["a", "b", "c", "d"])


def trained(
    rng: np.random.Generator, labels: np.ndarray, base: np.ndarray, n_seeds: int, noise: float
) -> System:
    """A system whose seeds share what is hard about the clips and differ by noise of their own."""
    logits = base + noise * rng.standard_normal((n_seeds, *base.shape))
    return System(softmax(logits).mean(axis=0).argmax(axis=1), logits.argmax(axis=2))


def problem(rng: np.random.Generator, n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) % 4
    return labels, 1.2 * np.eye(4)[labels] + rng.standard_normal((n, 4))


def test_nothing_random_is_the_plain_bootstrap() -> None:
    labels, base = problem(np.random.default_rng(0))
    a, b = base.argmax(1), np.where(np.arange(240) % 7 == 0, labels, base.argmax(1))
    plain = compare(labels, a, b, TREE)
    found = compare_systems(labels, System(a), System(b), TREE)
    assert (found.difference, found.low, found.high) == (plain.difference, plain.low, plain.high)
    assert found.training_error == 0 and judge({"x": found})["x"].verdict == plain.verdict


def test_swapping_the_sides_is_the_exact_opposite() -> None:
    rng = np.random.default_rng(1)
    labels, base = problem(rng)
    a, b = trained(rng, labels, base, 3, 0.5), trained(rng, labels, base, 4, 0.5)
    ab, ba = (compare_systems(labels, *pair, TREE) for pair in ((a, b), (b, a)))
    assert (ab.difference, ab.low, ab.high) == (-ba.difference, -ba.high, -ba.low)
    assert ab.p_value == ba.p_value and ab.training_error == ba.training_error


def test_one_seed_gets_no_verdict() -> None:
    rng = np.random.default_rng(2)
    labels, base = problem(rng)
    perfect = System(labels, labels[None])  # however large the difference
    other = trained(rng, labels, base, 3, 0.5)
    found = judge({"x": compare_systems(labels, perfect, other, TREE)})["x"]
    assert found.verdict == ONE_SEED and found.training_error is None
    assert judge({"x": compare_systems(labels, System(labels), other, TREE)})["x"].verdict == "gain"


@pytest.mark.parametrize("share_seeds", [False, True])
def test_another_training_of_the_same_system_is_within_noise(share_seeds: bool) -> None:
    """Under 5 % of 200 pairs of the same system are told apart; by clips alone far more are."""
    rng = np.random.default_rng(3)
    n_ours = n_clips_alone = 0
    for _ in range(200):
        labels, base = problem(rng, 160)
        a, b = (trained(rng, labels, base, 3, 1.0) for _ in range(2))
        found = compare_systems(labels, a, b, TREE, share_seeds=share_seeds, n_resamples=400)
        n_ours += judge({"x": found})["x"].verdict != "within noise"
        alone = compare(labels, a.seeds[0], b.seeds[0], TREE, n_resamples=400)
        n_clips_alone += alone.verdict != "within noise"
    assert n_ours <= 10, n_ours
    assert n_clips_alone >= n_ours


def test_seed_noise_widens_the_interval_and_more_seeds_narrow_it() -> None:
    rng = np.random.default_rng(4)
    labels, base = problem(rng, 2000)
    better = base + 0.5 * np.eye(4)[labels]
    errors, widths = [], []
    for n_seeds in (3, 30):
        a, b = (trained(rng, labels, x, n_seeds, 1.0) for x in (better, base))
        found = judge({"x": compare_systems(labels, a, b, TREE)})["x"]
        clips_alone = compare(labels, a.classes, b.classes, TREE)
        assert found.low < clips_alone.low and found.high > clips_alone.high
        assert found.verdict == "gain"
        errors.append(found.training_error)
        widths.append(found.high - found.low)
    assert errors[0] > 2 * errors[1] and widths[0] > widths[1]


def test_many_comparisons_are_adjusted_together() -> None:
    labels, base = problem(np.random.default_rng(5))
    wrong = np.flatnonzero(base.argmax(1) != labels)
    b = base.argmax(1)
    a = b.copy()
    a[wrong[:6]] = labels[wrong[:6]]
    found = compare_systems(labels, System(a), System(b), TREE)
    assert judge({"x": found})["x"].verdict == "gain"
    many = judge({f"{i}": found for i in range(500)})
    assert {c.verdict for c in many.values()} == {"within noise"}
    assert all(c.p_adjusted > c.p_value for c in many.values())
