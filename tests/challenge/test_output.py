"""System outputs: what the task allows, and what is refused with its line."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bsdkit.challenge import check_output, read_ids, write_output
from bsdkit.errors import DatasetError
from bsdkit.taxonomy import BST

IDS = ("a1", "b2", "c3", "d4")
HEADER = "id,predicted_bst_second_level_class,prediction_score"
ROWS = ("a1,fx-a,0.500000", "b2,m-sp,0.250000", "c3,ss-u,1.000000", "d4,is-k,0.000000")


def text(*rows: str, header: str = HEADER, end: str = "\n") -> bytes:
    return (end.join([header, *rows]) + end).encode()


def checked(tmp_path: Path, data: bytes) -> tuple[list[str], list[str]]:
    """Problems and warnings, without the folder in front."""
    path = tmp_path / "x.output.csv"
    path.write_bytes(data)
    found = check_output(path, IDS, BST)
    assert found.is_ready == (not found.problems)
    cut = f"{tmp_path}/"
    return [p.removeprefix(cut) for p in found.problems], [
        w.removeprefix(cut) for w in found.warnings
    ]


def test_bytes_of_an_output(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.output.csv"
    for _ in range(2):
        write_output(path, IDS, ["fx-a", "m-sp", "ss-u", "is-k"], [0.5, 0.25, 1 + 2e-16, -1e-17])
        assert path.read_bytes() == text(*ROWS)
    assert [p.name for p in path.parent.iterdir()] == ["x.output.csv"]
    assert check_output(path, IDS, BST).is_ready


@pytest.mark.parametrize(
    ("ids", "scores", "message"),
    [
        (["a", "a"], [0.1, 0.2], "id 'a' stands twice"),
        (["a", "b"], [0.1, math.nan], "the score of clip 'b' is nan, expected 0 to 1"),
        (["a", "b"], [87.0, 0.2], "the score of clip 'a' is 87.0, expected 0 to 1"),
        (["a", "b"], [0.1], "2 ids, 2 classes and 1 scores"),
    ],
)
def test_no_broken_output_is_written(
    tmp_path: Path, ids: list[str], scores: list[float], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        write_output(tmp_path / "x.csv", ids, ["fx-a", "fx-v"], scores)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data",
    [
        text(*reversed(ROWS)),
        text(*ROWS, end="\r\n"),
        text(*ROWS[:3], "", "d4,is-k,1e-3"),
        text(*ROWS).rstrip(b"\n"),
        text('"a1",fx-a,.5', *ROWS[1:]),
    ],
)
def test_good_outputs_pass(tmp_path: Path, data: bytes) -> None:
    assert checked(tmp_path, data) == ([], [])


BROKEN: list[tuple[bytes, str]] = [
    # the file
    (b"", "x.output.csv: the file is empty; expected the header .*"),
    (b"\n \n", "x.output.csv: the file is empty; expected the header .*"),
    (b"\xef\xbb\xbf" + text(*ROWS), "x.output.csv line 1: begins with a byte order mark; .*"),
    (b"PK\x03\x04\xff\xff\x00", r"x.output.csv line 1: not a CSV: no UTF-8 text; .*"),
    (text("a1,\0,0.5"), "x.output.csv line 2: not a CSV: no UTF-8 text; .*"),
    (
        text('a1,"fx-a,0.5', *ROWS[1:]),
        r"x.output.csv line 2: broken quoting \(.*\); expected fields without quotation marks",
    ),
    # the columns
    (
        text(*(r.replace(",", ";") for r in ROWS), header=HEADER.replace(",", ";")),
        "x.output.csv line 1: columns are separated by ';', expected ','",
    ),
    (
        text(*ROWS[1:], header=ROWS[0]),
        f"x.output.csv line 1: no header but a row; expected the first line {HEADER}",
    ),
    (
        text(*(r.rpartition(",")[0] for r in ROWS), header=HEADER.rpartition(",")[0]),
        f"x.output.csv line 1: no column 'prediction_score'; expected {HEADER}",
    ),
    (
        text(*(r + ",1" for r in ROWS), header=HEADER + ",fold"),
        f"x.output.csv line 1: the column 'fold' is one too many; expected {HEADER}",
    ),
    (
        text(*(r + ",1" for r in ROWS), header=HEADER + ",id"),
        f"x.output.csv line 1: the column 'id' stands twice; expected {HEADER}",
    ),
    (
        text(*ROWS, header=HEADER.replace("id,", "id, ")),
        "x.output.csv line 1: spaces around the column ' predicted.*'; expected none",
    ),
    (
        text(
            *(",".join(reversed(r.split(","))) for r in ROWS),
            header=",".join(HEADER.split(",")[::-1]),
        ),
        f"x.output.csv line 1: the columns are prediction_score,.*,id; expected the order {HEADER}",
    ),
    # the ids
    (
        text(*ROWS[1:3]),
        "x.output.csv: 2 of 4 ids are missing, the first is 'a1'; expected one row .*",
    ),
    (
        text(*ROWS, "e5,m-m,0.5"),
        "x.output.csv line 6: id 'e5' is no evaluation id; expected one such as 'a1'",
    ),
    (
        text(*ROWS, "b2.wav,m-m,0.5"),
        "x.output.csv line 6: id 'b2.wav' is no evaluation id; expected 'b2', without the .*",
    ),
    (
        text(*ROWS, ROWS[1]),
        "x.output.csv line 6: id 'b2' stands already on line 3; expected it once",
    ),
    (text(*ROWS, ",m-m,0.5"), "x.output.csv line 6: empty id; expected an evaluation id"),
    (
        text(*ROWS[:3], " d4,is-k,0.1"),
        "x.output.csv line 5: spaces around ' d4' in id; expected none",
    ),
    # the fields
    (text(*ROWS[:3], "d4,is-k"), "x.output.csv line 5: 2 fields, expected 3"),
    (
        text(*ROWS[:3], "d4,is-k,0,5"),
        "x.output.csv line 5: 4 fields, expected 3; the decimal mark is a point",
    ),
]
CLASSES = [
    ("", "empty class; expected a second-level class"),
    ("fx", "class 'fx' is a family; expected one of its classes fx-o, fx-v, .*, fx-el"),
    ("101", "class '101' is a code; expected its label 'm-sp'"),
    ("FX-A", "class 'FX-A' is not written as a label; expected 'fx-a'"),
    ("Animals", "class 'Animals' is not written as a label; expected 'fx-a'"),
    ("fx-ell", r"class 'fx-ell' is not in the taxonomy; did you mean 'fx-el'\?"),
]
SCORES = [
    ("", "empty score; expected a number from 0 to 1"),
    ("high", "score 'high' is not a number; expected one from 0 to 1"),
    ("0_5", "score '0_5' is not a number; expected one from 0 to 1"),
    ('"0,5"', "score '0,5' is not a number; expected one from 0 to 1; the decimal mark is a point"),
    ("NaN", "score 'NaN' is not finite; expected a number from 0 to 1"),
    ("-inf", "score '-inf' is not finite; expected a number from 0 to 1"),
    ("87.3", r"score 87.3 is outside \[0, 1\]; divide percentages by 100"),
    ("-0.1", r"score -0.1 is outside \[0, 1\]"),
    ("1e999", r"score 1e999 is outside \[0, 1\]"),
]
BROKEN += [(text(*ROWS[:3], f"d4,{c},0.1"), f"x.output.csv line 5: {m}") for c, m in CLASSES]
BROKEN += [(text(*ROWS[:3], f"d4,is-k,{s}"), f"x.output.csv line 5: {m}") for s, m in SCORES]


@pytest.mark.parametrize(("data", "line"), BROKEN, ids=[m[13:60] for _, m in BROKEN])
def test_each_fault_is_one_line(tmp_path: Path, data: bytes, line: str) -> None:
    problems, warnings = checked(tmp_path, data)
    assert len(problems) == 1 and re.fullmatch(line, problems[0]), problems
    assert not warnings


def test_all_faults_are_found_at_once(tmp_path: Path) -> None:
    problems, _ = checked(tmp_path, text("a1,fx,2", "a1,m-m, 0.5", "z9,m-m,0.5"))
    assert [p.partition(":")[0] + re.sub(r".*: (\w+).*", r" \1", p) for p in problems] == [
        "x.output.csv line 2 class",
        "x.output.csv line 2 score",
        "x.output.csv line 3 spaces",
        "x.output.csv line 3 id",
        "x.output.csv line 4 id",
        "x.output.csv 3",
    ]


def test_a_fault_in_every_line_does_not_fill_the_screen(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    ids = [f"i{n}" for n in range(100)]
    path.write_bytes(text(*(f"{clip},fx-a,{n + 2}" for n, clip in enumerate(ids))))
    problems = check_output(path, ids, BST).problems
    assert len(problems) == 21 and problems[-1] == f"{path}: illegal score: 80 more lines"


def test_one_class_or_one_score_is_only_strange(tmp_path: Path) -> None:
    problems, warnings = checked(tmp_path, text(*(f"{clip},fx-a,1" for clip in IDS)))
    assert problems == []
    assert warnings == [
        "x.output.csv: all 4 scores are 1",
        "x.output.csv: all 4 clips are predicted as 'fx-a'",
    ]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), n=st.integers(2, 12))
def test_rows_in_any_order_but_each_id_once(tmp_path: Path, data: st.DataObject, n: int) -> None:
    ids = [f"clip{i}" for i in range(n)]
    path = tmp_path / "x.csv"
    rows = [f"{clip},{BST.labels[i]},{i / 20}" for i, clip in enumerate(ids)]
    shuffled = data.draw(st.permutations(rows))
    path.write_bytes(text(*shuffled))
    assert check_output(path, ids, BST).is_ready
    at = data.draw(st.integers(0, n - 1))
    path.write_bytes(text(*shuffled[:at], *shuffled[at + 1 :]))
    clip = shuffled[at].partition(",")[0]
    (problem,) = check_output(path, ids, BST).problems
    assert problem.startswith(f"{path}: 1 of {n} ids are missing, the first is {clip!r};")
    again = data.draw(st.integers(0, n))
    twice = [*shuffled[:again], shuffled[at], *shuffled[again:]]
    path.write_bytes(text(*twice))
    (problem,) = check_output(path, ids, BST).problems
    first, second = (i + 2 for i, row in enumerate(twice) if row == shuffled[at])
    assert problem.startswith(f"{path} line {second}: id {clip!r} stands already on line {first};")


def test_evaluation_ids(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_text('title,anonymous_id\n"a, b",x1\nc,x0\n')
    assert read_ids(path) == ("x1", "x0")
    for content, message in [
        ("title\na\n", "expected anonymous_id"),
        ("anonymous_id\n", "has no rows"),
        ("anonymous_id\na\na\n", "line 3: id 'a' stands already on line 2"),
    ]:
        path.write_text(content)
        with pytest.raises(DatasetError, match=message):
            read_ids(path)
