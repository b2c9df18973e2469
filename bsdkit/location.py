"""Folders and files that may lie elsewhere: ``s3://``, ``gs://`` or any URL that fsspec reads.

A location is a `pathlib.Path`, or the object of universal-pathlib that behaves as one. Code
that only lists, reads and writes need not know which; what a remote place cannot do (a lock,
a rename, a second descriptor) asks `is_remote`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePath

from bsdkit.errors import DatasetError

__all__ = ["as_location", "is_remote", "readable"]

# Control characters, and those that turn the direction of what is written after them.
_UNREADABLE = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def readable(name: str) -> str:
    r"""A name that can be printed and stored: bytes that are no UTF-8 and controls are escaped.

    Examples:
        >>> readable("caf\udce9 \n"), readable("café")
        ('caf\\xe9 \\n', 'café')
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return _UNREADABLE.sub(lambda m: m[0].encode("unicode_escape").decode(), name)


def as_location(place: Path | str) -> Path:
    """The folder or file that a path or a URL names.

    Raises:
        DatasetError: a URL, and the package that reaches its kind is not installed.
    """
    text = str(place)
    if isinstance(place, PurePath) or "://" not in text:
        return Path(place)
    if text.startswith(("file://", "local://")):
        return Path(text.partition("://")[2])
    protocol = text.partition("://")[0]
    package = {
        "http": "requests aiohttp",
        "https": "requests aiohttp",
        "s3": "s3fs",
        "gs": "gcsfs",
        "gcs": "gcsfs",
        "az": "adlfs",
        "abfs": "adlfs",
    }
    needed = package.get(protocol, "fsspec")
    try:
        from upath import UPath

        location = UPath(text)
        _ = location.fs  # brings in the file system's own package
    except (ImportError, ValueError) as error:
        raise DatasetError(
            f"{text} cannot be reached: {error}; pip install universal-pathlib {needed}"
        ) from None
    found: Path = location
    return found


def is_remote(place: Path) -> bool:
    """Whether a location is not on this machine's file systems."""
    return not isinstance(place, PurePath)
