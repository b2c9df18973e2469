"""The system output of DCASE 2026 Task 1: one predicted class and its score a clip, as CSV.

The columns are ``id,predicted_bst_second_level_class,prediction_score``: every evaluation id
once, in any order; a second-level class; a score in [0, 1].
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from bsdkit.challenge.findings import Findings
from bsdkit.csvfile import lines_of_ids, read_csv_rows, write_csv_rows
from bsdkit.dataset import ID_COLUMNS
from bsdkit.errors import DatasetError, nearest
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "COLUMNS",
    "check_output",
    "examine_output",
    "read_ids",
    "write_output",
]

COLUMNS = ("id", "predicted_bst_second_level_class", "prediction_score")
"""The columns of a system output, in order."""

_ID, _CLASS, _SCORE = COLUMNS
_HEADER = ",".join(COLUMNS)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_NOT_FINITE = ("nan", "inf", "infinity")


def read_ids(path: Path) -> tuple[str, ...]:
    """The clip ids in a CSV, such as the metadata of the evaluation set (``anonymous_id``).

    Raises:
        DatasetError: the file cannot be read, has no column of ids or no row, or an id is empty
            or stands twice; the message names the line.
    """
    header, rows = read_csv_rows(path, DatasetError, "the evaluation ids")
    column = next((name for name in ("anonymous_id", *ID_COLUMNS) if name in header), None)
    if column is None:
        raise DatasetError(
            f"{path} has the columns {', '.join(header) or 'none'}; expected anonymous_id"
        )
    position = header.index(column)
    lines = lines_of_ids(path, [(line, f[position].strip()) for line, f in rows], column)
    if not lines:
        raise DatasetError(f"{path} has no rows; expected one for each evaluation clip")
    return tuple(lines)


def write_output(
    path: Path, ids: Iterable[str], labels: Iterable[str], scores: Iterable[float]
) -> None:
    r"""Writes a system output; it appears whole, and the same arguments give the same bytes.

    Scores have 6 decimals, lines end in ``\n``. Whether all ids are there and the labels are
    classes is for `check_output`.

    Args:
        path: the CSV file.
        ids: clip ids [n].
        labels: predicted classes [n].
        scores: probabilities [n] of the predicted classes.

    Raises:
        DatasetError: the lengths differ, an id stands twice, a score is not in [0, 1], or the
            file cannot be written.
    """
    rows = _rows([str(i) for i in ids], [str(c) for c in labels], [float(s) for s in scores])
    write_csv_rows(path, [COLUMNS, *rows], with_folders=True)


def _rows(ids: list[str], labels: list[str], scores: list[float]) -> list[tuple[str, str, str]]:
    if not len(ids) == len(labels) == len(scores):
        raise DatasetError(
            f"{len(ids)} ids, {len(labels)} classes and {len(scores)} scores; expected as many "
            "of each"
        )
    seen: set[str] = set()
    rows = []
    for clip, label, score in zip(ids, labels, scores, strict=True):
        if clip in seen:
            raise DatasetError(f"id {clip!r} stands twice among the predictions; expected once")
        seen.add(clip)
        written = f"{score:.6f}"
        # as written: a mean of probabilities may be 1 + 2e-16
        if not 0 <= float(written) <= 1:
            raise DatasetError(f"the score of clip {clip!r} is {score}, expected 0 to 1")
        rows.append((clip, label, written.removeprefix("-")))
    return rows


def check_output(path: Path, ids: Sequence[str], taxonomy: Taxonomy) -> Findings:
    """Everything that is wrong with a system output, one line each.

    Args:
        path: the CSV file.
        ids: the evaluation ids, each of which it must hold once.
        taxonomy: the classes that may be predicted.
    """
    return examine_output(path, ids, taxonomy)[0]


def examine_output(
    path: Path, ids: Sequence[str], taxonomy: Taxonomy
) -> tuple[Findings, dict[str, str]]:
    """What `check_output` finds, and the predicted class by id as far as it can be read."""
    found = Findings()
    text = _read_text(path, found)
    if text is None:
        return found, {}
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[tuple[int, list[str]]] = []
    start, broken = 1, ""
    try:
        for fields in reader:
            if fields:  # readers of CSV skip empty lines
                rows.append((start, fields))
            start = reader.line_num + 1
    except csv.Error as error:
        broken = str(error)
    expected = dict.fromkeys(ids)
    positions = _columns(path, rows[0], expected, found) if rows else None
    labels: dict[str, str] = {}
    if positions is not None:
        labels = _examine_rows(
            path, rows[1:], positions, len(rows[0][1]), expected, taxonomy, found
        )
    if broken:
        found.problem(
            path, start, f"broken quoting ({broken}); expected fields without quotation marks"
        )
    elif positions is not None and _ID in positions:
        missing = [clip for clip in expected if clip not in labels]
        if missing:
            found.problem(
                path,
                0,
                f"{len(missing)} of {len(expected)} ids are missing, the first is {missing[0]!r}; "
                "expected one row for each evaluation id",
            )
    found.close(path)
    return found, labels


def _read_text(path: Path, found: Findings) -> str | None:
    """The file's text without a byte order mark, or None where there is nothing to go on."""
    try:
        data = path.read_bytes()
    except OSError as error:
        found.problem(path, 0, f"cannot be read: {error.strerror}")
        return None
    if data.startswith(b"\xef\xbb\xbf"):
        found.problem(path, 1, "begins with a byte order mark; expected UTF-8 without one")
        data = data[3:]
    if not data.strip():
        found.problem(path, 0, f"the file is empty; expected the header {_HEADER} and the rows")
        return None
    try:
        text = data.decode()
        wrong = text.find("\0")
        line = text.count("\n", 0, wrong) + 1
    except UnicodeDecodeError as error:
        wrong, line = error.start, data.count(b"\n", 0, error.start) + 1
    if wrong >= 0:
        found.problem(path, line, "not a CSV: no UTF-8 text; export it as CSV (UTF-8)")
        return None
    return text


def _columns(
    path: Path, header: tuple[int, list[str]], expected: dict[str, None], found: Findings
) -> dict[str, int] | None:
    """The position of each known column, or None where rows cannot be read by columns."""
    line, fields = header
    if len(fields) == 1:
        separator = next((s for s in ";\t|" if s in fields[0]), None)
        if separator is not None:
            found.problem(path, line, f"columns are separated by {separator!r}, expected ','")
            return None
    names = [name.strip() for name in fields]
    if any(name in expected for name in names):
        found.problem(path, line, f"no header but a row; expected the first line {_HEADER}")
        return None
    for name in fields:
        if name != name.strip():
            found.problem(path, line, f"spaces around the column {name!r}; expected none")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        found.problem(path, line, f"the column {twice!r} stands twice; expected {_HEADER}")
        return None
    missing = [name for name in COLUMNS if name not in names]
    extra = [name for name in names if name not in COLUMNS]
    for name in missing:
        found.problem(path, line, f"no column {name!r}; expected {_HEADER}")
    for name in extra:
        found.problem(path, line, f"the column {name!r} is one too many; expected {_HEADER}")
    if not missing and not extra and tuple(names) != COLUMNS:
        found.problem(
            path, line, f"the columns are {','.join(names)}; expected the order {_HEADER}"
        )
    positions = {name: names.index(name) for name in COLUMNS if name in names}
    return positions or None


def _examine_rows(
    path: Path,
    rows: Iterable[tuple[int, list[str]]],
    positions: dict[str, int],
    width: int,
    expected: dict[str, None],
    taxonomy: Taxonomy,
    found: Findings,
) -> dict[str, str]:
    """Checks every row; the class by id, of rows that name an id."""
    labels: dict[str, str] = {}
    lines: dict[str, int] = {}
    scores: list[float] = []

    def say(line: int, kind: str, text: str) -> None:
        if found.allows(path, kind):
            found.problem(path, line, text)

    for line, fields in rows:
        values = {}
        for name, position in positions.items():
            given = fields[position] if position < len(fields) else ""
            values[name] = given.strip()
            if given != given.strip():
                say(line, "spaces", f"spaces around {given!r} in {name}; expected none")
        clip, label = values.get(_ID, ""), values.get(_CLASS, "")
        if len(fields) != width:
            hint = "; the decimal mark is a point" if len(fields) == width + 1 else ""
            say(line, "fields", f"{len(fields)} fields, expected {width}{hint}")
        if _ID in positions:
            if not clip:
                say(line, "empty id", "empty id; expected an evaluation id")
            elif clip in lines:
                say(
                    line,
                    "id twice",
                    f"id {clip!r} stands already on line {lines[clip]}; expected it once",
                )
            else:
                lines[clip] = line
                labels[clip] = label
                if clip not in expected and found.allows(path, "unknown id"):
                    found.problem(path, line, _unknown_id(clip, expected))
        if len(fields) != width:
            continue
        if _CLASS in positions and label not in taxonomy.labels:
            say(line, "illegal class", _illegal_class(label, taxonomy))
        if _SCORE in positions:
            fault = _score_fault(values[_SCORE])
            if fault:
                say(line, "illegal score", fault)
            else:
                scores.append(float(values[_SCORE]))
    if len(scores) > 1 and len(set(scores)) == 1:
        found.warning(path, 0, f"all {len(scores)} scores are {scores[0]:g}")
    if len(labels) > 1 and len(set(labels.values())) == 1:
        only = next(iter(labels.values()))
        found.warning(path, 0, f"all {len(labels)} clips are predicted as {only!r}")
    return labels


def _unknown_id(clip: str, expected: dict[str, None]) -> str:
    stem = clip.rpartition(".")[0]
    if stem in expected:
        return f"id {clip!r} is no evaluation id; expected {stem!r}, without the file ending"
    close = difflib.get_close_matches(clip, expected, n=1, cutoff=0.8)
    advice = (
        f"did you mean {close[0]!r}?"
        if close
        else f"expected one such as {next(iter(expected), '')!r}"
    )
    return f"id {clip!r} is no evaluation id; {advice}"


def _illegal_class(label: str, taxonomy: Taxonomy) -> str:
    if not label:
        return "empty class; expected a second-level class"
    inside = [c.label for c in taxonomy.classes if c.family == label]
    if inside:
        return f"class {label!r} is a family; expected one of its classes {', '.join(inside)}"
    for c in taxonomy.classes:
        if label == str(c.code):
            return f"class {label!r} is a code; expected its label {c.label!r}"
        if label.casefold() in (c.label.casefold(), c.name.casefold()):
            return f"class {label!r} is not written as a label; expected {c.label!r}"
    return f"class {label!r} is not in the taxonomy; {nearest(label.lower(), taxonomy.labels)}"


def _score_fault(text: str) -> str:
    """What is wrong with a score; empty for nothing."""
    if not text:
        return "empty score; expected a number from 0 to 1"
    if text.lower().lstrip("+-") in _NOT_FINITE:
        return f"score {text!r} is not finite; expected a number from 0 to 1"
    if not _NUMBER.fullmatch(text):
        point = "; the decimal mark is a point" if _NUMBER.fullmatch(text.replace(",", ".")) else ""
        return f"score {text!r} is not a number; expected one from 0 to 1{point}"
    score = float(text)
    if 0 <= score <= 1:
        return ""
    hint = "; divide percentages by 100" if 1 < score <= 100 and math.isfinite(score) else ""
    return f"score {text} is outside [0, 1]{hint}"
