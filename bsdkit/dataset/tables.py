"""Tables of metadata as other programs write them: encodings, separators, blank rows."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bsdkit.csvfile import check_widths, csv_rows, read_bytes
from bsdkit.dataset.columns import n_known
from bsdkit.errors import DatasetError

__all__ = ["MetadataTable", "read_table"]

_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?(?:\r\n|\r|\n|$)')  # Excel's
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class MetadataTable:
    """The rows of a file of metadata.

    Attributes:
        path: the file.
        header: its columns.
        rows: (line number, fields) of each row that is not blank; as many fields as columns.
        notes: what a reader should know of how it was read.
    """

    path: Path
    header: Sequence[str]
    rows: Sequence[tuple[int, list[str]]]
    notes: tuple[str, ...]


def read_table(path: Path) -> MetadataTable:
    """A table in UTF-8, UTF-16 with a byte order mark or cp1252; with commas, semicolons or tabs.

    The separator is the one by which most columns have known names. Rows whose fields are all
    empty are left out and counted.

    Raises:
        DatasetError: see `read_csv_rows`; or the file holds a NUL byte, which no text does.
    """
    text, notes = _decoded(path)
    first = _SEPARATOR_LINE.match(text)
    n_before = 1 if first else 0
    text = text[first.end() :] if first else text
    if "\0" in text:
        line = len(re.split("\r\n|\r|\n", text.partition("\0")[0])) + n_before
        raise DatasetError(
            f"{path} line {line}: a NUL byte, which no text holds; write the table as CSV in UTF-8"
        )
    separator = first[1] if first else _separator(text)
    if separator != ",":
        notes.append(f"read with {_SEPARATORS.get(separator, repr(separator))} between the fields")
    header, rows = csv_rows(text, path, delimiter=separator)
    rows = [(line + n_before, fields) for line, fields in rows]
    filled = [(line, fields) for line, fields in rows if any(field.strip() for field in fields)]
    if len(filled) < len(rows):
        notes.append(f"{len(rows) - len(filled)} rows without any value are passed over")
    check_widths(header, filled, path)
    return MetadataTable(path, header, filled, tuple(notes))


def _decoded(path: Path) -> tuple[str, list[str]]:
    data = read_bytes(path)
    for mark, encoding in _BOMS.items():
        if data.startswith(mark):
            try:
                return data.decode(encoding), [f"read as {encoding.upper()}"]
            except UnicodeDecodeError as problem:
                raise DatasetError(
                    f"{path} begins as {encoding.upper()} and is not: byte {problem.start} cannot "
                    "be read; write it as UTF-8"
                ) from None
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError as problem:
        try:
            where = f"byte {problem.start} is no UTF-8"
            return data.decode("cp1252"), [f"read as cp1252 (Windows, Western Europe): {where}"]
        except UnicodeDecodeError:
            raise DatasetError(
                f"{path} is not UTF-8 text: byte {problem.start} cannot be read"
            ) from None


def _separator(text: str) -> str:
    line = re.split("[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    counts = {s: n_known([c.strip(' "') for c in line.split(s)]) for s in _SEPARATORS}
    return max(counts, key=lambda separator: counts[separator])  # the comma where equal
