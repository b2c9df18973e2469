"""Read one file out of the archives in which games keep their sounds.

Four kinds, told apart by the ending of the name:

    .pk3 .wz .zip   zip archives (Quake III engines, Warzone 2100)
    .rcc            Qt's binary resources (KDE games)
    .cat            OpenTTD's sound sets
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from bsdkit.errors import nearest

__all__ = ["ContainerError", "read_member"]

_RCC_COMPRESSED = 1
_RCC_DIRECTORY = 2
_RCC_ZSTANDARD = 4
# OpenTTD sets the highest bit of an offset to mark the newer of two formats.
_CAT_OFFSET_BITS = 0x7FFFFFFF


class ContainerError(ValueError):
    """An archive that cannot be read, or that lacks a member."""


def read_member(container: Path, member: str) -> bytes:
    """The contents of one member of an archive.

    Args:
        container: The archive; the ending of its name says what kind it is.
        member: The member's name: a path inside the archive, or for .cat the number of the
            sound with two digits, "_" and its name, as in "07_crash.wav".

    Raises:
        ContainerError: The archive is damaged or of an unknown kind, or has no such member.
    """
    reader = _READERS.get(container.suffix.lower())
    if reader is None:
        raise ContainerError(f"{container.name} is no known archive: {', '.join(_READERS)}")
    try:
        return reader(container, member)
    except (struct.error, IndexError, UnicodeDecodeError, zlib.error, zipfile.BadZipFile) as error:
        raise ContainerError(f"{container.name} is damaged: {error}") from error


def _read_zip(container: Path, member: str) -> bytes:
    """The member of a zip archive."""
    with zipfile.ZipFile(container) as archive:
        names = archive.namelist()
        if member not in names:
            raise _no_member(container, member, names)
        return archive.read(member)


def _read_rcc(container: Path, member: str) -> bytes:
    """The member of a Qt resource file, at its path from the root."""
    blob = container.read_bytes()
    if blob[:4] != b"qres":
        raise ContainerError(f"{container.name} is damaged: it does not begin with 'qres'")
    version, tree, payload, names = struct.unpack_from(">4I", blob, 4)
    # Since version 2 every node ends with the time at which its file was changed.
    node_size = 14 if version < 2 else 22

    def name_at(offset: int) -> str:
        (length,) = struct.unpack_from(">H", blob, names + offset)
        begin = names + offset + 6  # past the length and a hash of the name
        return blob[begin : begin + 2 * length].decode("utf-16-be")

    # path -> (flags, place of the contents); the root is node 0 and has no name.
    files: dict[str, tuple[int, int]] = {}
    pending = [(0, "")]
    # A tree cannot have more nodes than fit in the file; a damaged one could have a circle.
    for _ in range(len(blob) // node_size + 1):
        if not pending:
            break
        index, parent = pending.pop()
        begin = tree + index * node_size
        name_offset, flags = struct.unpack_from(">IH", blob, begin)
        path = parent + (name_at(name_offset) if index else "")
        if flags & _RCC_DIRECTORY:
            count, first = struct.unpack_from(">2I", blob, begin + 6)
            if count > len(blob):
                raise ContainerError(f"{container.name} is damaged: a folder of {count} files")
            prefix = f"{path}/" if index else ""
            pending.extend((child, prefix) for child in range(first, first + count))
        else:
            # Six bytes of name and flags, then two of country and two of language.
            (offset,) = struct.unpack_from(">I", blob, begin + 10)
            files[path] = (flags, payload + offset)
    if member not in files:
        raise _no_member(container, member, list(files))
    flags, begin = files[member]
    (length,) = struct.unpack_from(">I", blob, begin)
    contents = blob[begin + 4 : begin + 4 + length]
    if len(contents) < length:
        raise ContainerError(f"{container.name} is damaged: it ends within {member}")
    if flags & _RCC_ZSTANDARD:
        raise ContainerError(f"{container.name}: {member} is compressed with Zstandard, not zlib")
    # Compressed contents begin with their length when unpacked.
    return zlib.decompress(contents[4:]) if flags & _RCC_COMPRESSED else contents


def _read_cat(container: Path, member: str) -> bytes:
    """The RIFF file of one sound of an OpenTTD sound set."""
    blob = container.read_bytes()
    (first,) = struct.unpack_from("<I", blob, 0)
    # The index of (offset, size) pairs ends where the first sound begins.
    count = (first & _CAT_OFFSET_BITS) // 8
    places: dict[str, int] = {}
    for index in range(count):
        (offset,) = struct.unpack_from("<I", blob, 8 * index)
        offset &= _CAT_OFFSET_BITS
        end = offset + 1 + blob[offset]
        if end > len(blob):
            raise ContainerError(f"{container.name} is damaged: it ends within sound {index}")
        name = blob[offset + 1 : end].split(b"\0")[0].decode("latin-1")
        places[f"{index:02d}_{name.replace('/', '_')}"] = end
    if member not in places:
        raise _no_member(container, member, list(places))
    begin = places[member]
    magic, size = struct.unpack_from("<4sI", blob, begin)
    if magic != b"RIFF":
        raise ContainerError(f"{container.name} is damaged: {member} is no RIFF file")
    return blob[begin : begin + 8 + size]


def _no_member(container: Path, member: str, names: list[str]) -> ContainerError:
    """The error that says which member is missing, and which one may have been meant."""
    if len(names) > 10 and nearest(member, names).startswith("known"):
        return ContainerError(f"{container.name} has no {member!r} among {len(names)} files")
    return ContainerError(f"{container.name} has no {member!r}; {nearest(member, names)}")


_READERS: dict[str, Callable[[Path, str], bytes]] = {
    ".pk3": _read_zip,
    ".wz": _read_zip,
    ".zip": _read_zip,
    ".rcc": _read_rcc,
    ".cat": _read_cat,
}
