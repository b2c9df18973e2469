"""``failures-<feature>.csv``: every clip of a feature that failed, is partial or needs a word."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

from bsdkit.csvfile import write_whole
from bsdkit.errors import DatasetError, StoreError
from bsdkit.location import is_remote
from bsdkit.store.feature import FAILED, PARTIAL, FeatureRows

__all__ = ["failures_path", "printable", "write_failures"]

_STATES = {FAILED: "failed", PARTIAL: "partial"}


def failures_path(store: Path, feature: str, part: str = "") -> Path:
    """Where a feature's failures stand, or those of one part of the work (``2/8``)."""
    of_part = f".{part.replace('/', '-of-')}" if part else ""
    return store / f"failures-{feature}{of_part}.csv"


def write_failures(path: Path, rows: FeatureRows, paths: Mapping[str, str]) -> bool:
    """Writes the rows with a reason as CSV (id, path, state, reason), whole or not at all.

    A file of an earlier run is replaced, or removed where there is nothing to say.

    Args:
        path: see `failures_path`.
        rows: of the feature.
        paths: audio file by clip id, where it is known.

    Returns:
        Whether the file was written.

    Raises:
        StoreError: it cannot be written.
    """
    lines = [
        (str(clip), paths.get(clip, ""), _STATES.get(state, "ok"), str(reason))
        for clip, state, reason in zip(rows.ids, rows.state, rows.reasons, strict=True)
        if reason
    ]
    try:
        if not lines:
            path.unlink(missing_ok=True)
            return False
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("id", "path", "state", "reason"))
        writer.writerows([printable(field) for field in line] for line in lines)
        data = text.getvalue().encode()
        if is_remote(path):
            path.write_bytes(data)
        else:
            write_whole(path, data)
    except (OSError, DatasetError) as error:
        raise StoreError(f"cannot write {path}: {error}") from None
    return True


def printable(text: str) -> str:
    r"""A text in which bytes of a file name that are not UTF-8 are escaped.

    Examples:
        >>> printable("caf\udce9.wav")
        'caf\\xe9.wav'
    """
    try:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a pair of UTF-16, which no file system gives
        return text.encode("utf-8", "backslashreplace").decode()
