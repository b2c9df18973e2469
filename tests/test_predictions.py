"""Prediction files: what the organisers' format allows, and what is refused with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bsdkit.errors import DatasetError
from bsdkit.metrics import evaluate
from bsdkit.predictions import read_predictions, write_predictions
from bsdkit.taxonomy import BST

WITH_TRUTH = "sound_id,ground_truth,prediction,prediction_score\n"
SUBMISSION = "id,predicted_bst_second_level_class,prediction_score\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_the_column_of_true_classes(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", WITH_TRUTH + "9,fx-a,fx-v,0.5\n\n1, ss-n ,ss-n,1\n")
    found = read_predictions(path, BST)
    assert found.ids == ("9", "1")
    assert BST.decode(found.y_true) == ["fx-a", "ss-n"]
    assert BST.decode(found.y_pred) == ["fx-v", "ss-n"]


def test_reads_a_submission_against_a_file_of_labels(tmp_path: Path) -> None:
    predictions = write(tmp_path / "p.csv", SUBMISSION + "9,fx-v,0.5\n1,ss-n,1\n")
    # more clips than were predicted, another order, classes that nobody asked about
    labels = write(
        tmp_path / "l.csv",
        "sound_id,class,class_idx,fold\n7,fx-other,499,0\n1,ss-n,501,0\n9,fx-a,405,1\n",
    )
    found = read_predictions(predictions, BST, labels)
    assert found.ids == ("9", "1")
    assert BST.decode(found.y_true) == ["fx-a", "ss-n"]
    assert BST.decode(found.y_pred) == ["fx-v", "ss-n"]
    # a file of labels goes before a column of the predictions
    both = write(tmp_path / "b.csv", WITH_TRUTH + "9,m-m,fx-v,0.5\n")
    assert BST.decode(read_predictions(both, BST, labels).y_true) == ["fx-a", "ss-n"]


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ("", None, "p.csv has the columns none; expected sound_id and prediction"),
        (WITH_TRUTH, None, "p.csv has no rows"),
        ("sound_id,class\n1,fx-a\n", None, "expected sound_id and prediction"),
        ("name,prediction\n1,fx-a\n", None, "expected sound_id and prediction"),
        (SUBMISSION + "1,fx-a,1\n", None, "give the true classes with --labels FILE"),
        (WITH_TRUTH + '1,fx-a,fx-a,1\n2,"fx-a,fx-a,1\n', None, "p.csv line 3: broken quoting"),
        (WITH_TRUTH + "1,fx-a,fx-a\n", None, "p.csv line 2: 3 fields, the header has 4"),
        (
            WITH_TRUTH + "1,fx-a,fx-a,1\n2,m-m,m-m,1\n1,fx-a,fx-v,1\n",
            None,
            "p.csv line 4: id '1' stands already on line 2",
        ),
        (
            WITH_TRUTH + "1,fx-a,fx-a,1\n2,m-m,m-mm,1\n",
            None,
            "p.csv line 3: 'm-mm' is not a class of taxonomy 'bst': did you mean 'm-m'?",
        ),
        (WITH_TRUTH + "1,fx-z,fx-a,1\n", None, "p.csv line 2: 'fx-z' is not a class"),
        (
            WITH_TRUTH + "1,fx-a,fx-a,1\n2,,fx-a,1\n",
            None,
            "p.csv has no class for 1 of 2 predicted clips, e.g. '2'",
        ),
        (
            SUBMISSION + "1,fx-a,1\n2,fx-a,1\n3,fx-a,1\n",
            "id,class\n2,fx-a\n",
            "l.csv has no class for 2 of 3 predicted clips, e.g. '1'",
        ),
        (SUBMISSION + "1,fx-a,1\n", "id,class\n1,fx\n", "l.csv line 2: 'fx' is not a class"),
        (SUBMISSION + "1,fx-a,1\n", "id,name\n1,fx-a\n", "l.csv has the columns id, name"),
        (
            SUBMISSION + "1,fx-a,1\n",
            "id,class\n1,fx-a\n1,fx-v\n",
            "l.csv line 3: id '1' stands already on line 2",
        ),
        (WITH_TRUTH + ",fx-a,fx-a,1\n", None, "p.csv line 2: empty sound_id"),
    ],
)
def test_faults(tmp_path: Path, predictions: str, labels: str | None, message: str) -> None:
    path = write(tmp_path / "p.csv", predictions)
    labels_path = None if labels is None else write(tmp_path / "l.csv", labels)
    with pytest.raises(DatasetError) as caught:
        read_predictions(path, BST, labels_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_labelled_clips_without_a_prediction_are_wrong_or_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", SUBMISSION + "1,fx-a,1\n2,m-m,1\n3,,1\n")
    labels = write(tmp_path / "l.csv", "id,class\n1,fx-a\n2,m-m\n3,m-m\n4,ss-n\n5,fx-other\n6,\n")
    found = read_predictions(path, BST, labels)
    assert found.ids == ("1", "2", "3", "4") and found.uncovered == ("3", "4")
    assert "2 of 4 labelled clips have no prediction, e.g. 3: scored as wrong" in found.notes()[0]
    scores = evaluate(found.y_true, found.y_pred, found.taxonomy, warn=False)
    # fx-a right; m-m one of two right, and what is predicted as m-m is right; ss-n never met
    assert scores["hF_strict"] == pytest.approx((1 + 2 * 0.5 / 1.5 + 0) / 3)
    assert scores["accuracy"] == 0.5 and scores.never_predicted == ("ss-n",)
    only = read_predictions(path, BST, labels, covered_only=True)
    assert only.ids == ("1", "2") and only.taxonomy == BST
    assert "2 of 4 labelled clips have no prediction, e.g. 3: left out" in only.notes()[0]
    empty = write(tmp_path / "e.csv", WITH_TRUTH + "1,fx-a,,1\n")
    with pytest.raises(DatasetError, match="predicts no class for any clip"):
        read_predictions(empty, BST, covered_only=True)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", SUBMISSION + "1,fx-a,1\n")
    with pytest.raises(DatasetError, match=r"cannot read .*nope\.csv: No such file"):
        read_predictions(path, BST, tmp_path / "nope.csv")
    with pytest.raises(DatasetError, match=r"cannot read .*nope\.csv: No such file"):
        read_predictions(tmp_path / "nope.csv", BST)


clip_ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    # ids are stripped when read, and a csv.writer of Python 3.11 does not quote a lone "\r"
    lambda text: text == text.strip() and "\r" not in text
)
rows = st.tuples(
    clip_ids, st.sampled_from(BST.labels), st.sampled_from(BST.labels), st.floats(0, 1)
)


@settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(st.lists(rows, min_size=1, max_size=8, unique_by=lambda row: row[0]))
def test_what_is_written_is_read_again(
    tmp_path: Path, table: list[tuple[str, str, str, float]]
) -> None:
    ids, true, predicted, scores = zip(*table, strict=True)
    path = tmp_path / "p.csv"
    write_predictions(path, ids, predicted, scores, truth=true)
    found = read_predictions(path, BST)
    assert found.ids == ids
    assert BST.decode(found.y_true) == list(true)
    assert BST.decode(found.y_pred) == list(predicted)


def test_written_form_is_the_organisers(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    write_predictions(path, ["7", "8"], ["fx-a", "m-m"], [0.25, 1 / 3])
    assert path.read_bytes() == (
        b"sound_id,prediction,prediction_score\n7,fx-a,0.250000\n8,m-m,0.333333\n"
    )


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "old")
    with pytest.raises(ValueError):
        write_predictions(path, ["7", "8"], ["fx-a"], [0.25, 0.5])
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(DatasetError, match=r"cannot write .*p\.csv: No such file"):
        write_predictions(tmp_path / "nowhere" / "p.csv", ["7"], ["fx-a"], [0.25])


def test_true_labels_must_be_as_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_predictions(tmp_path / "p.csv", ["7"], ["fx-a"], [0.25], truth=["fx-a", "fx-v"])
