"""The head on class priors: what calibration finds, and what a missing prior means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from bsdkit.errors import HeadError
from bsdkit.heads.prior import PriorHead

N_CLASSES = 6
FAMILIES = (0, 0, 1, 1, 2, 2)


def clips(n: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [n, 6] that are right, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    p = softmax(1.5 * rng.normal(size=(n, N_CLASSES)), axis=1)
    y = (p.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return p, y


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_prior_of_a_wrong_temperature_is_put_right(temperature: float) -> None:
    p, y = clips()
    q = softmax(temperature * np.log(p), axis=1)
    head = PriorHead(families=FAMILIES, floor=1e-9, penalty=None).fit(q, y)
    np.testing.assert_allclose(np.diag(head.coef_), 1 / temperature, rtol=0.03)
    assert (head.coef_ == np.diag(np.diag(head.coef_))).all()
    np.testing.assert_allclose(head.intercept_ - head.intercept_.mean(), 0, atol=0.07)
    assert np.abs(head.predict_proba(q) - p).mean() < 0.01


def test_a_class_that_a_model_takes_for_another_is_learned() -> None:
    p, y = clips(4000)
    confused = p[:, [1, 0, 2, 3, 4, 5]]  # the columns of two classes are swapped
    truth = (p[2000:].argmax(axis=1) == y[2000:]).mean()
    plain = PriorHead(families=FAMILIES, penalty=None).fit(confused[:2000], y[:2000])
    free = PriorHead(families=FAMILIES).fit(confused[:2000], y[:2000])
    assert (plain.predict(confused[2000:]) == y[2000:]).mean() < truth - 0.1
    assert (free.predict(confused[2000:]) == y[2000:]).mean() > truth - 0.02
    strong = PriorHead(families=FAMILIES, penalty=1e9).fit(confused[:2000], y[:2000])
    np.testing.assert_allclose(
        strong.predict_proba(confused), plain.predict_proba(confused), atol=0.01
    )


def test_columns_are_those_of_the_classes_that_are_there() -> None:
    p, y = clips(3000)
    kept = y != 2  # no clip of this class in the training rows
    head = PriorHead(families=FAMILIES, penalty=None).fit(p[kept], y[kept])
    assert head.classes_.tolist() == [0, 1, 3, 4, 5]
    assert set(zip(*np.nonzero(head.coef_), strict=True)) == {
        (0, 0), (1, 1), (2, 3), (3, 4), (4, 5)
    }  # fmt: skip
    two = PriorHead(blocks=(6, 6), families=FAMILIES, penalty=None)
    both = two.fit(np.concatenate([p, p[::-1]], axis=1), y)
    assert both.coef_.shape == (6, 12) and abs(both.coef_[0, 6]) < 0.1 < both.coef_[0, 0]


def test_without_a_prior_the_bias_speaks() -> None:
    p, y = clips(3000)
    y = np.where(np.random.default_rng(1).random(3000) < 0.5, 4, y)
    head = PriorHead(families=FAMILIES).fit(p, y)
    said = head.predict_proba(np.zeros((2, N_CLASSES)))
    assert (said[0] == softmax(head.intercept_)).all() and said[0].argmax() == 4


def test_what_is_no_prior_is_refused() -> None:
    p, y = clips(100)
    with pytest.raises(HeadError, match="6 classes: give it a feature that bsdkit priors made"):
        PriorHead(blocks=(6, 4), families=FAMILIES).fit(np.ones((100, 10)), y)
    with pytest.raises(HeadError, match="Negative values"):
        PriorHead(families=FAMILIES).fit(-p, y)
    for wrong in ({"floor": 0.0}, {"penalty": 0.0}):
        with pytest.raises(HeadError, match=f"{next(iter(wrong))} is 0.0, expected more than 0"):
            PriorHead(**wrong).fit(p, y)
