"""The sides that `make bench` compares agree, and its rows work. Nothing here is timed."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from measure import Sizes, made_up_labels, made_up_predictions
from official_metrics import hierarchical_f, macro_scores
from run import ROWS, main
from weights import SearchSizes, made_up_members, usual_hierarchical_f, weight_rows

from bsdkit.metrics import Scorer, evaluate
from bsdkit.taxonomy import BST

TINY = Sizes(
    n_clips=460,
    dim=8,
    n_folds=2,
    n_seeds=1,
    epochs=1,
    n_workers=0,
    n_rounds=1,
    n_short_rounds=1,
)
TINY_SEARCH = SearchSizes(n_members=4, n_trials=12, n_greedy_rounds=2, n_usual=2)


@pytest.mark.parametrize("never_predicted", [(), ("fx-a",), ("m-sp", "ss-i")])
def test_scores_equal_those_of_the_official_structure(never_predicted: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    y_true = made_up_labels(1500, rng)
    y_pred = made_up_predictions(y_true, rng)
    for label in never_predicted:
        y_pred[y_pred == BST.index(label)] = BST.index("fx-o")
    pairs = list(zip(BST.decode(y_pred), BST.decode(y_true), strict=True))
    scores = evaluate(y_true, y_pred, BST, warn=False)
    assert scores.never_predicted == never_predicted
    assert [scores["hP"], scores["hR"], scores["hF"]] == pytest.approx(
        macro_scores(pairs), abs=1e-9
    )
    if not never_predicted:
        strict = Scorer(BST).hF_strict_of(y_true, y_pred)
        assert strict == pytest.approx(hierarchical_f(pairs), abs=1e-9)
        assert usual_hierarchical_f(y_true, y_pred) == pytest.approx(strict, abs=1e-9)


def test_made_up_members_agree_as_published_ones_do() -> None:
    rng = np.random.default_rng(0)
    labels = made_up_labels(3000, rng)
    members = made_up_members(labels, 40, rng)
    assert members.sum(axis=2) == pytest.approx(1)
    first = members.argmax(axis=2)
    accuracy = (first == labels).mean(axis=1)
    assert accuracy.min() > 0.65 and 0.75 < np.median(accuracy) < 0.8
    assert 0.35 < (first == first[0]).all(axis=0).mean() < 0.45


def test_all_rows_on_a_small_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROWS, 4, functools.partial(weight_rows, search=TINY_SEARCH))
    file = tmp_path / "bench.json"
    main(["--json", str(file)], TINY)
    figures = json.loads(file.read_text(encoding="utf-8"))
    assert [row["row"] for row in figures["rows"]] == [1] * 2 + [2] * 2 + [3] * 4 + [4] * 8
    assert all(row["ratio"] > 0 for row in figures["rows"])
    assert "at least" in capsys.readouterr().out


def test_unknown_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--rows", "1,nine"], TINY)
    assert f"expected numbers of {', '.join(map(str, ROWS))}" in capsys.readouterr().err
