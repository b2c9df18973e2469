"""CSV files read strictly, by line and never by guessing, and files that are written whole."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from bsdkit.errors import BsdkitError, DatasetError

__all__ = [
    "check_widths",
    "csv_rows",
    "lines_of_ids",
    "read_bytes",
    "read_csv_rows",
    "whole_number",
    "write_csv_rows",
    "write_whole",
]

_MOST_DIGITS = 30  # Python refuses thousands of them with an error of its own
_LONGEST_FIELD = 1 << 24  # a description may be long; the csv module stops at 128 KiB


def read_csv_rows(
    path: Path, error: type[BsdkitError] = DatasetError, what: str = ""
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the (line number, fields) of each row of a CSV file.

    Args:
        path: the file, UTF-8 with or without a byte order mark; its name ends in ``.gz`` where
            it is compressed with gzip.
        error: what to raise.
        what: what the file is, e.g. ``the folds``, for the message that it cannot be read.

    Raises:
        BsdkitError: of the class `error`: the file cannot be read or decompressed, its
            quoting is broken, a column stands twice, or a row has more or fewer fields than
            the header; the message names the line.
    """
    data = read_bytes(path, error, what)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 text: byte {problem.start} cannot be read") from None
    header, rows = csv_rows(text, path, error)
    check_widths(header, rows, path, error)
    return header, rows


def read_bytes(path: Path, error: type[BsdkitError] = DatasetError, what: str = "") -> bytes:
    """What stands in a file, decompressed where its name ends in ``.gz``.

    Raises:
        BsdkitError: of the class `error`: the file cannot be read or decompressed.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.name.lower().endswith(".gz") else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as problem:
        raise error(f"{path} is no whole gzip file ({problem}); fetch it again") from None
    except OSError as problem:
        named = f"{what} {path}" if what else str(path)
        raise error(f"cannot read {named}: {problem.strerror}") from None


def csv_rows(
    text: str, path: Path, error: type[BsdkitError] = DatasetError, delimiter: str = ","
) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header and the (line number, fields) of each row of CSV text, whatever their number.

    Raises:
        BsdkitError: of the class `error`: its quoting is broken or a column stands twice.
    """
    rows: list[tuple[int, list[str]]] = []
    header: list[str] = []
    line = 1
    try:
        csv.field_size_limit(_LONGEST_FIELD)
        reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
        header = [column.strip() for column in next(reader, [])]
        line = reader.line_num + 1
        for fields in reader:
            if fields:
                rows.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as problem:
        raise error(
            f"{path} line {line}: broken quoting ({problem}); a quote inside a field is "
            'written twice ("") and the field is quoted'
        ) from None
    twice = next((column for column in header if column and header.count(column) > 1), None)
    if twice is not None:
        raise error(f"{path}: the column {twice!r} stands twice in the header")
    return header, rows


def check_widths(
    header: Sequence[str],
    rows: Iterable[tuple[int, Sequence[str]]],
    path: Path,
    error: type[BsdkitError] = DatasetError,
) -> None:
    """Refuses a row with more or fewer fields than the header, by its line.

    Raises:
        BsdkitError: of the class `error`.
    """
    for line, fields in rows:
        if len(fields) != len(header):
            raise error(
                f"{path} line {line}: {len(fields)} fields, the header has {len(header)}; "
                "a field with a comma must be quoted"
            )


def lines_of_ids(path: Path, rows: Iterable[tuple[int, str]], column: str) -> dict[str, int]:
    """The line of each clip id, in the order of the file.

    Args:
        path: the file, for messages.
        rows: (line number, id).
        column: what the file calls the ids, for messages.

    Raises:
        DatasetError: an id is empty or stands twice; the message names the line.
    """
    lines: dict[str, int] = {}
    for line, clip in rows:
        if not clip:
            raise DatasetError(f"{path} line {line}: empty {column}")
        if clip in lines:
            raise DatasetError(
                f"{path} line {line}: id {clip!r} stands already on line {lines[clip]}"
            )
        lines[clip] = line
    return lines


def write_whole(path: Path, data: bytes, *, with_folders: bool = False) -> None:
    """Writes a file that appears whole or not at all.

    Args:
        path: the file.
        data: all of it.
        with_folders: whether the folders above it are made too.

    Raises:
        DatasetError: the file cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if with_folders:
            path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise DatasetError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)


def write_csv_rows(
    path: Path, rows: Iterable[Sequence[object]], *, with_folders: bool = False
) -> None:
    """Writes a CSV file, the header first, with lines that end in a line feed; see `write_whole`.

    Raises:
        DatasetError: the file cannot be written.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_whole(path, text.getvalue().encode(), with_folders=with_folders)


def whole_number(text: str) -> int | None:
    r"""The whole number that a text is, or None if it is none.

    Examples:
        >>> whole_number("-1"), whole_number("1.0"), whole_number("\u00b2"), whole_number("")
        (-1, None, None, None)
    """
    digits = text.removeprefix("-")
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= _MOST_DIGITS
    return int(text) if is_number else None
