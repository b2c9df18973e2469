"""HDF5 files that appear whole or not at all, and read at the speed of the disk.

A file is composed in memory, written under a temporary name, flushed, fsynced and renamed.
A process killed at any instant therefore leaves either the old file, the new one, or a
temporary file that nothing reads. Files are never reopened for writing. In a remote place
the file is put in one piece instead, which object stores do whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
from filelock import lock_descriptor

from bsdkit.errors import CorruptStore, StoreError, StoreLocked
from bsdkit.location import is_remote

__all__ = [
    "atomic_h5",
    "file_lock",
    "open_h5",
    "read_strings",
    "read_texts",
    "remove_tree",
    "replace_folder",
    "write_strings",
    "write_texts",
]

_CORE_BLOCK = 1 << 24  # bytes by which the in-memory file grows; small steps copy it often


def _write_all(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_h5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file open for writing that replaces `path` when the block ends without error.

    Raises:
        StoreError: the disk is full or the folder cannot be written; `path` is untouched.
    """
    with h5py.File(
        str(path), "w", driver="core", backing_store=False, block_size=_CORE_BLOCK
    ) as file:
        yield file
        file.flush()
        image = file.id.get_file_image()
    if is_remote(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror or error}") from None
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_all(temporary, image)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreError(
                f"the disk is full: {path} needs {len(image) / 1e6:.1f} MB; what was finished "
                "before is kept. Free some space and run the same line again"
            ) from None
        raise StoreError(f"cannot write {path}: {error.strerror}") from None


def replace_folder(new: Path, folder: Path) -> None:
    """Puts a finished folder in another's place; the old one goes only after that.

    Raises:
        StoreError: the folder cannot be moved.
    """
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise StoreError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def open_h5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file open for reading.

    Raises:
        CorruptStore: it is no HDF5 file, or a truncated one.
        StoreError: it is not there or cannot be read.
    """
    try:
        file = h5py.File(io.BytesIO(path.read_bytes()) if is_remote(path) else path, "r")
    except FileNotFoundError:
        raise StoreError(f"no such file: {path}") from None
    except OSError as error:
        raise CorruptStore(
            f"{path} is not a readable HDF5 file ({path.stat().st_size} bytes): {error}; "
            "delete it and run bsdkit extract again"
        ) from None
    with file:
        yield file


@contextlib.contextmanager
def file_lock(path: Path, purpose: str, *, is_shared: bool = False) -> Iterator[None]:
    """Holds a lock file; the system releases it however the process ends.

    In a remote place nothing is locked: there is no lock that survives its holder, and two
    that write the same shard write the same bytes.

    Args:
        path: the lock file.
        purpose: what it guards, for the message.
        is_shared: whether others may hold it too, as long as they share it.

    Raises:
        StoreLocked: another process holds it.
    """
    if is_remote(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        if not _lock(file.fileno(), is_shared=is_shared):
            try:
                file.seek(0)
                holder = file.read().strip()
            except OSError:  # Windows does not let others read what is locked
                holder = ""
            raise StoreLocked(
                f"{purpose}: locked by {holder or 'another process'}; wait for it to end, then "
                "run this again"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def _lock(descriptor: int, *, is_shared: bool) -> bool:
    """Locks an open file until it is closed; False where another holds the lock.

    Windows has exclusive locks only: there, holders that would share exclude each other.
    """
    if not is_shared or sys.platform == "win32":
        return lock_descriptor(descriptor, blocking=False)
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_tree(folder: Path) -> None:
    """Removes a folder with all that is in it, if it is there."""
    if not is_remote(folder):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.fs.rm(folder.path, recursive=True)  # type: ignore[attr-defined]


def write_strings(
    group: h5py.Group, name: str, values: Sequence[str], *, is_compressed: bool = False
) -> None:
    """Writes short strings [n] as fixed-width UTF-8, which reads as one block.

    Bytes of a file's name that are not UTF-8 stay what they are.
    """
    encoded = [value.encode(errors="surrogateescape") for value in values]
    width = max([1, *map(len, encoded)])
    filters = {"compression": "gzip"} if is_compressed and encoded else {}
    dataset = group.create_dataset(name, data=np.array(encoded, f"S{width}"), **filters)
    dataset.attrs["encoding"] = "utf-8"


def read_strings(group: h5py.Group, name: str) -> npt.NDArray[np.object_]:
    """Strings [n] that `write_strings` wrote."""
    raw = group[name][()]
    values = np.empty(len(raw), object)
    values[:] = [value.decode(errors="surrogateescape") for value in raw.tolist()]
    return values


def write_texts(group: h5py.Group, name: str, values: Sequence[str]) -> None:
    """Writes long texts [n] as one compressed UTF-8 block and offsets [n + 1]."""
    encoded = [value.encode(errors="surrogateescape") for value in values]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    block = np.frombuffer(b"".join(encoded), np.uint8)
    texts = group.create_group(name)
    texts.create_dataset("offsets", data=offsets)
    filters = {"compression": "gzip", "chunks": (min(len(block), 1 << 20),)} if len(block) else {}
    texts.create_dataset("utf8", data=block, **filters)


def read_texts(group: h5py.Group, name: str) -> npt.NDArray[np.object_]:
    """Texts [n] that `write_texts` wrote."""
    block = group[name]["utf8"][()].tobytes()
    offsets = group[name]["offsets"][()].tolist()
    values = np.empty(len(offsets) - 1, object)
    values[:] = [
        block[start:end].decode(errors="surrogateescape")
        for start, end in itertools.pairwise(offsets)
    ]
    return values
