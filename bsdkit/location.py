"""Folders and files that may lie elsewhere: ``s3://``, ``gs://`` or any URL that fsspec reads.

A location is a `pathlib.Path`, or the object of universal-pathlib that behaves as one. Code
that only lists, reads and writes need not know which; what a remote place cannot do (a lock,
a rename, a second descriptor) asks `is_remote`.
"""

from __future__ import annotations

from pathlib import Path, PurePath

from bsdkit.errors import DatasetError

__all__ = ["as_location", "is_remote"]


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
