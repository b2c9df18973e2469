from __future__ import annotations

import itertools
import json
import warnings

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.isotonic import IsotonicRegression

from bsdkit.combine.calibrate import (
    CALIBRATIONS,
    MIN_FAMILY_CLIPS,
    VECTOR_PULL,
    CalibrationMethod,
    Calibrator,
    fit_calibration,
)
from bsdkit.combine.reliability import reliability
from bsdkit.errors import RecipeError
from bsdkit.taxonomy import BST, Taxonomy

FAMILIES = np.asarray(BST.family_of)


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def drawn_from(p: np.ndarray, seed: int = 1) -> np.ndarray:
    """Labels drawn from the probabilities themselves, which are then perfectly calibrated."""
    u = np.random.default_rng(seed).random((len(p), 1))
    return np.minimum((p.cumsum(axis=1) < u).sum(axis=1), p.shape[1] - 1)


def calibrated(n: int = 6000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    p = softmax(3 * rng.standard_normal((n, 23)) + rng.standard_normal(23))
    return p, drawn_from(p, seed + 100)


def nll(p: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(np.maximum(p[np.arange(len(labels)), labels], 1e-12)).mean())


def overconfident(n: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    p, labels = calibrated(n, seed)
    return softmax(2.5 * np.log(p)), labels


@pytest.mark.parametrize("planted", [0.4, 1.0, 2.5])
def test_temperature_is_recovered(planted: float) -> None:
    p, labels = calibrated(20_000)
    spoilt = softmax(np.log(p) / planted)
    fitted = fit_calibration("temperature", spoilt, labels, BST)
    assert fitted.parameters["temperature"][0] == pytest.approx(1 / planted, rel=0.03)
    np.testing.assert_allclose(fitted.apply(spoilt), p, atol=0.02)
    # the optimum, to more digits than the data can tell
    here = nll(fitted.apply(spoilt), labels)
    for factor in (0.999, 1.001):
        near = Calibrator("temperature", {"temperature": [here_t(fitted) * factor]})
        assert nll(near.apply(spoilt), labels) > here


def here_t(fitted: Calibrator) -> float:
    return float(fitted.parameters["temperature"][0])


def test_temperature_without_an_optimum_stops_at_the_ends_of_its_range() -> None:
    p, _ = calibrated(300)
    assert here_t(fit_calibration("temperature", p, p.argmax(1), BST)) == 0.05
    assert here_t(fit_calibration("temperature", p, p.argmin(1), BST)) == 20.0
    uniform = np.full((30, 23), 1 / 23)
    assert here_t(fit_calibration("temperature", uniform, np.arange(30) % 23, BST)) == 1.0


@pytest.mark.parametrize("method", ["temperature", "vector", "family"])
@pytest.mark.parametrize("n", [7, 80, 3000])
def test_the_fitted_clips_never_get_less_likely(method: CalibrationMethod, n: int) -> None:
    for seed in range(3):
        for make in (calibrated, overconfident):
            p, labels = make(n, seed)
            p[0, labels[0]] = 0  # sure and wrong
            fitted = fit_calibration(method, p, labels, BST)
            # fitted on log p above 1e-12, which is what a temperature of 1 gives back
            before = Calibrator("temperature", {"temperature": [1.0]}).apply(p)
            assert nll(fitted.apply(p), labels) <= nll(before, labels) + 1e-12


@pytest.mark.parametrize("method", ["none", "temperature", "family"])
def test_temperatures_change_no_prediction(method: CalibrationMethod) -> None:
    p, labels = overconfident()
    p[:50] = 0
    p[:50, 3] = p[:50, 9] = 0.5  # ties stay ties, and the first class wins them
    result = fit_calibration(method, p, labels, BST).apply(p)
    assert (result.argmax(1) == p.argmax(1)).all()


def test_each_family_gets_the_temperature_planted_in_it() -> None:
    rng = np.random.default_rng(0)
    n = 20_000
    family = np.arange(n) % 5
    inside = FAMILIES[None, :] == family[:, None]
    # far from the other families, so that the family predicted is the one meant
    p = softmax(1.5 * rng.standard_normal((n, 23)) + np.where(inside, 0.0, -9.0))
    labels = drawn_from(p)
    planted = np.array([0.5, 0.8, 1.0, 1.6, 2.0])
    spoilt = softmax(np.log(p) / planted[family][:, None])
    fitted = fit_calibration("family", spoilt, labels, BST)
    np.testing.assert_allclose(fitted.parameters["temperature"], 1 / planted, rtol=0.08)
    shared = fit_calibration("temperature", spoilt, labels, BST)
    assert nll(fitted.apply(spoilt), labels) < nll(shared.apply(spoilt), labels)


def test_a_small_family_gets_the_temperature_of_all() -> None:
    p, labels = overconfident()
    sums = np.stack([p[:, FAMILIES == f].sum(1) for f in range(5)], axis=1)
    predicted = sums.argmax(1)
    few = np.flatnonzero(predicted == 2)
    for n_kept in (MIN_FAMILY_CLIPS - 1, MIN_FAMILY_CLIPS):
        rows = np.sort(np.concatenate([np.flatnonzero(predicted != 2), few[:n_kept]]))
        fitted = fit_calibration("family", p[rows], labels[rows], BST)
        shared = here_t(fit_calibration("temperature", p[rows], labels[rows], BST))
        is_shared = [t == shared for t in fitted.parameters["temperature"]]
        assert is_shared == [f == 2 and n_kept < MIN_FAMILY_CLIPS for f in range(5)]


def test_vector_scaling_is_at_its_optimum_and_undoes_a_prior() -> None:
    p, labels = calibrated(8000)
    shift = np.linspace(-1, 1, 23)
    spoilt = softmax(1.7 * np.log(p) + shift)
    fitted = fit_calibration("vector", spoilt, labels, BST)
    theta = np.array([fitted.parameters["scale"], fitted.parameters["bias"]])
    logits, rows = np.log(np.maximum(spoilt, 1e-12)), np.arange(len(p))

    def objective(x: np.ndarray) -> float:
        q = softmax(logits * x[0] + x[1])
        away = ((x[0] - 1) ** 2).sum() + (x[1] ** 2).sum()
        return float(-np.log(q[rows, labels]).sum() + VECTOR_PULL / 2 * away)

    best = objective(theta)
    for i in range(46):
        step = np.zeros(46)
        step[i] = 1e-2
        assert min(objective(theta + d.reshape(2, 23)) for d in (step, -step)) > best
    before = np.abs(spoilt - p).mean()
    assert np.abs(fitted.apply(spoilt) - p).mean() < before / 5


@pytest.mark.parametrize("method", ["vector", "isotonic"])
def test_a_class_without_clips_keeps_what_it_has(method: CalibrationMethod) -> None:
    p, labels = overconfident()
    kept = ~np.isin(labels, [4, 22])
    fitted = fit_calibration(method, p[kept], labels[kept], BST)
    for c in (4, 22):
        if method == "vector":
            assert fitted.parameters["scale"][c] == 1 and fitted.parameters["bias"][c] == 0
        else:
            assert fitted.parameters["x"][c] == fitted.parameters["y"][c] == [0.0, 1.0]
    # one against the other, those two are what they were
    result = fitted.apply(p)
    np.testing.assert_allclose(result[:, 4] * p[:, 22], result[:, 22] * p[:, 4], atol=1e-12)
    assert (result[:, 4] > 0).all()


def test_isotonic_is_one_regression_a_class_renormalised() -> None:
    p, labels = overconfident()
    train, test = np.arange(2000), np.arange(2000, 3000)
    result = fit_calibration("isotonic", p[train], labels[train], BST).apply(p[test])
    reference = np.empty_like(p[test])
    for c in range(23):
        regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        regression.fit(p[train, c], labels[train] == c)
        reference[:, c] = regression.predict(p[test, c])
    reference /= reference.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(result, reference, atol=1e-12)


def test_isotonic_rises_in_every_class_and_leaves_alone_what_it_maps_to_nothing() -> None:
    p, labels = overconfident()
    fitted = fit_calibration("isotonic", p, labels, BST)
    for x, y in zip(fitted.parameters["x"], fitted.parameters["y"], strict=True):
        assert (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
        assert min(y) >= 0 and max(y) <= 1
    two = Taxonomy.flat(["a", "b"])
    sure = np.array([[0.6, 0.4], [0.4, 0.6]] * 10)
    lost = fit_calibration("isotonic", sure, np.array([0, 1] * 10), two)
    nothing = [[0.3, 0.3], [0.6, 0.4]]  # the first row lies below both steps
    np.testing.assert_array_equal(lost.apply(nothing), [[0.3, 0.3], [1.0, 0.0]])


@pytest.mark.parametrize("method", CALIBRATIONS)
def test_a_row_depends_on_itself_alone_and_survives_json(method: CalibrationMethod) -> None:
    p, labels = overconfident(1500)
    p[[3, 700]] = np.nan
    p[9, 5] = np.nan
    p[11] = np.eye(23)[2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit_calibration(method, p, labels, BST)
        result = fitted.apply(p)
    is_there = np.isfinite(result).all(axis=1)
    assert np.isnan(result[[3, 9, 700]]).all() and is_there.sum() == 1497
    np.testing.assert_allclose(result[is_there].sum(axis=1), 1, atol=1e-12)
    assert (result[is_there] >= 0).all()

    # clips without probabilities teach nothing
    assert fit_calibration(method, p[is_there], labels[is_there], BST) == fitted

    again = Calibrator.from_dict(json.loads(json.dumps(fitted.to_dict(), allow_nan=False)))
    assert again == fitted
    rng = np.random.default_rng(0)
    subsets = [np.array([i]) for i in range(40)]
    subsets += [rng.permutation(1500)[:k] for k in (0, 2, 3, 5, 8, 23, 333)]
    for rows in subsets:
        assert again.apply(p[rows]).tobytes() == result[rows].tobytes()
    assert again.apply(np.asfortranarray(p)).tobytes() == result.tobytes()


P, LABELS = overconfident(60)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: fit_calibration("temprature", P, LABELS, BST),  # type: ignore[arg-type]
            "calibration 'temprature' is not known; did you mean 'temperature'?",
        ),
        (
            lambda: fit_calibration("vector", P * np.nan, LABELS, BST),
            "none of 60 clips has probabilities; expected one row without NaN at least; fit the "
            "members that make them",
        ),
        (
            lambda: fit_calibration("vector", P[:, :5], LABELS, BST),
            r"probabilities have the shape \[60, 5\] and labels \[60\]; expected \[n, 23\] and "
            r"\[n\]; pass both for the same clips and classes",
        ),
        (
            lambda: fit_calibration("none", np.where(P > 0.9, 7.5, P), LABELS, BST),
            "to 7.5; expected 0 to 1; apply a softmax to logits",
        ),
        (
            lambda: reliability(P, np.full(60, -1)),
            r"labels \(int64\) reach from -1 to -1; expected class positions 0 to 22; leave "
            r"unlabelled clips \(-1\) out",
        ),
        (
            lambda: fit_calibration("isotonic", P, LABELS, BST).apply(P[:, :5]),
            r"probabilities have the shape \[60, 5\]; this calibration \(isotonic\) takes "
            r"\[n, 23\]; fit one on these classes",
        ),
        (
            lambda: Calibrator.from_dict({"method": "vector", "parameters": {"scale": [1.0]}}),
            "calibration 'vector' has the parameters scale; expected scale, bias; fit it again",
        ),
        (
            lambda: reliability(P, LABELS, n_bins=0),
            "n_bins 0, n_resamples 1000, equal 'width'; expected at least 1",
        ),
    ],
)
def test_faults_in_one_line(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError, match=message) as fault:
        call()
    assert "\n" not in str(fault.value)


def test_calibrated_probabilities_have_next_to_no_error() -> None:
    p, labels = calibrated(20_000)
    found = reliability(p, labels, n_resamples=200)
    assert found.ece.value < 0.012 and found.ece.high < 0.02
    assert sum(b.accuracy_low <= b.confidence <= b.accuracy_high for b in found.bins) >= 13
    assert found.nll == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=0.02)
    assert found.brier == pytest.approx((1 - (p**2).sum(1)).mean(), rel=0.02)


@pytest.mark.parametrize("equal", ["width", "count"])
def test_figures_are_those_of_a_plain_loop(equal) -> None:  # type: ignore[no-untyped-def]
    p, labels = overconfident(500)
    p[:7] = np.nan
    p[7:60] = np.eye(23)[labels[7:60]]  # a confidence of exactly 1, many times over
    found = reliability(p, labels, n_bins=10, n_resamples=50, equal=equal)
    p, labels = p[7:], labels[7:]
    confidence, right = p.max(1), p.argmax(1) == labels
    edges = np.linspace(0, 1, 11)
    if equal == "count":
        edges = np.quantile(confidence, edges)
    error, n_bins = 0.0, 0
    for low, high in itertools.pairwise(edges):
        members = [
            i for i in range(493) if low < confidence[i] <= high or confidence[i] == low == edges[0]
        ]
        if not members:
            continue
        one = found.bins[n_bins]
        accuracy, mean = right[members].mean(), confidence[members].mean()
        error += len(members) / 493 * abs(accuracy - mean)
        wilson = binomtest(int(right[members].sum()), len(members)).proportion_ci(0.95, "wilson")
        assert one.n_clips == len(members)
        assert (one.low, one.high) == pytest.approx((low, high))
        assert (one.confidence, one.accuracy) == pytest.approx((mean, accuracy))
        assert (one.accuracy_low, one.accuracy_high) == pytest.approx(tuple(wilson))
        n_bins += 1
    assert n_bins == len(found.bins) and found.n_clips == 493
    assert found.ece.value == pytest.approx(error, abs=1e-12) and error > 0.1
    truth = np.eye(23)[labels]
    assert found.brier == pytest.approx(((p - truth) ** 2).sum(1).mean())
    assert found.nll == pytest.approx(nll(p, labels))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == {
        **found.to_dict(),
        "bins": [vars(b) for b in found.bins],
    }


def test_interval_is_that_of_drawing_clips() -> None:
    p, labels = overconfident(400)
    found = reliability(p, labels, n_resamples=2000)
    rng = np.random.default_rng(7)
    draws = []
    for _ in range(1200):
        rows = rng.integers(400, size=400)
        draws.append(reliability(p[rows], labels[rows], n_resamples=2).ece.value)
    spread = float(np.std(draws))
    assert found.ece.standard_error == pytest.approx(spread, rel=0.08)
    ends = (found.ece.low, found.ece.high)
    low, high = np.quantile(draws, [0.025, 0.975])
    basic = (2 * found.ece.value - high, 2 * found.ece.value - low)
    assert ends == pytest.approx(basic, abs=0.2 * spread)
    assert found == reliability(p, labels, n_resamples=2000)
    assert found.ece != reliability(p, labels, n_resamples=2000, seed=1).ece


def test_interval_covers_the_error_of_overconfident_probabilities() -> None:
    """Far above the noise; near it chance adds to the error, as documented."""
    p, _ = calibrated(40_000)
    spoilt = softmax(2.5 * np.log(p))
    top = spoilt.argmax(1)
    # what is expected of a bin, with the chance that a label is right instead of a draw of it
    bin_of = np.ceil(spoilt.max(1) * 15)
    gap = p[np.arange(len(p)), top] - spoilt.max(1)
    true = np.abs(np.bincount(bin_of.astype(int), weights=gap)).sum() / len(p)
    covered = 0
    for seed in range(40):
        rows = np.random.default_rng(seed).integers(len(p), size=3000)
        found = reliability(spoilt[rows], drawn_from(p[rows], seed), n_resamples=200)
        covered += found.ece.low <= true <= found.ece.high
    assert covered >= 34  # of 40 at 95 %: fewer happen once in 700
