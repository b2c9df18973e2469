"""WAV, AIFF, W64, CAF and AU: the audio that their headers announce and that is there."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bsdkit.sounds.layout import Data, Layout, without_id3

__all__ = ["AudioChunk", "audio_chunks", "chunk_layout"]

_TAGS = (b"TAG", b"ID3", b"APE", b"LYR")
_TOLERANCE = 0.01
"""Seconds: writers that count their own header miss the size by some bytes."""
_ODD_SHARE = 0.01
_UNKNOWN_64 = 1 << 62


@dataclass(frozen=True)
class AudioChunk:
    """The audio of one file, which other files may follow in the same bytes.

    Attributes:
        begin: where its file begins.
        end: where its file ends.
        start: where the audio begins.
        size: bytes of audio by the header; None where it says that it does not know.
        size_at: where the size is written.
        size_format: how, see `struct`.
        counted: bytes that are no audio but counted in what is written.
        n_behind: bytes behind the audio that are neither a chunk nor a tag nor zeros.
    """

    begin: int
    end: int
    start: int
    size: int | None
    size_at: int
    size_format: str
    counted: int = 0
    n_behind: int = 0

    @property
    def is_unfinished(self) -> bool:
        """Whether the size was never written (the recorder lost power)."""
        return self.size == 0 and self.n_behind > 0

    @property
    def n_held(self) -> int:
        """Bytes of audio that are there."""
        left = max(0, self.end - self.start)
        return left if self.size is None or self.is_unfinished else min(self.size, left)

    @property
    def n_announced(self) -> int:
        """Bytes of audio that are announced or lie behind them; some odd bytes are no audio."""
        if self.size is None or self.is_unfinished:
            return self.n_held
        return self.size + (self.n_behind if self.n_behind > self.size * _ODD_SHARE else 0)

    def file(self, data: Data) -> bytes:
        """The chunk's file, with the size that is there where none or too much was written."""
        content = bytearray(data[self.begin : self.end])
        is_known = self.size is not None or self.size_format == ">q"
        if is_known and (self.is_unfinished or self.size is None or self.size > self.n_held):
            size = self.n_held + self.counted
            if self.size_format.endswith("I"):
                size = min(size, 0xFFFFFFFF)
            struct.pack_into(self.size_format, content, self.size_at - self.begin, size)
        return bytes(content)


_Found = tuple[AudioChunk | None, int]
"""The audio of a file, and where that file ends."""


def chunk_layout(data: Data) -> Layout | None:
    """What a file's audio chunks hold; None where it has none."""
    chunks = audio_chunks(data)
    if not chunks:
        return None
    n_held = sum(chunk.n_held for chunk in chunks)
    share = n_held / max(1, sum(chunk.n_announced for chunk in chunks)) if n_held else 1.0
    first = chunks[0]
    # libsndfile opens no CAF that is cut or of unknown length
    is_odd_caf = first.size_format == ">q" and first.size != first.n_held
    is_direct = len(chunks) == 1 and not first.is_unfinished and not is_odd_caf
    pieces = () if is_direct else tuple(chunk.file(data) for chunk in chunks)
    return Layout(pieces, share=share, tolerance=_TOLERANCE)


def audio_chunks(data: Data) -> list[AudioChunk]:
    """The audio of every file that stands in these bytes, mostly of one."""
    begin = without_id3(data)
    chunks = []
    while reader := _READERS.get(data[begin : begin + 4]):
        chunk, begin = reader(data, begin)
        chunks += [chunk] if chunk else []
    return chunks


def _numbers(layout: str, data: Data, at: int) -> tuple[int, ...]:
    """Numbers that are written there; the file goes on with zeros."""
    n = struct.calcsize(layout)
    return struct.unpack(layout, data[at : at + n].ljust(n, b"\0"))


def _riff(data: Data, begin: int) -> _Found:
    """The audio of a RIFF or AIFF file, and where that file ends."""
    magic, form = data[begin : begin + 4], data[begin + 8 : begin + 12]
    order = ">I" if magic in (b"RIFX", b"FORM") else "<I"
    wanted, counted = (b"SSND", 8) if magic == b"FORM" else (b"data", 0)
    found: tuple[int, int | None, int, str, int] | None = None
    at, end, n_behind, size, ds64 = begin + 12, len(data), 0, 0, 0
    while at + 8 <= len(data):
        name = data[at : at + 4]
        if not _is_name(name) and size & 1 and _is_name(data[at - 1 : at + 3]):
            at -= 1  # the chunk before has an odd length and no byte to fill it
            name = data[at : at + 4]
        if name == magic and data[at + 8 : at + 12] == form:
            end = at
            break
        if not _is_name(name):
            if name[:3] not in _TAGS and any(data[at : at + 4096]):
                n_behind = len(data) - at
            break
        (size,) = _numbers(order, data, at + 4)
        if name == b"ds64":
            ds64 = at + 16
        elif name == wanted and found is None:
            known: int | None = size - counted if size >= counted else 0
            size_at, size_format = at + 4, order
            if magic == b"RF64" and size == 0xFFFFFFFF and ds64:
                (size,) = _numbers("<Q", data, ds64)
                known, size_at, size_format = size, ds64, "<Q"
                is_unknown = size >= _UNKNOWN_64
            else:  # what programs write into a pipe
                is_unknown = size >= 0xFFFF0000 or 0x7FFF0000 <= size <= 0x80000000
            found = (at + 8 + counted, None if is_unknown else known, size_at, size_format, counted)
            if is_unknown:
                end = _next_file(data, at + 8, magic, form)
                break
        at += 8 + size + (size & 1)
    if found is None:
        return None, end
    start, known, size_at, size_format, counted = found
    return AudioChunk(begin, end, start, known, size_at, size_format, counted, n_behind), end


def _next_file(data: Data, at: int, magic: bytes, form: bytes) -> int:
    """Where another file of that kind begins; the end of the bytes where none does."""
    while (at := data.find(magic, at)) >= 0:
        if data[at + 8 : at + 12] == form:
            return at
        at += 4
    return len(data)


def _au(data: Data, begin: int) -> _Found:
    """The audio of an AU file, which nothing but zeros, tags and other files should follow."""
    magic = data[begin : begin + 4]
    order = ">" if magic == b".snd" else "<"
    offset, size = _numbers(order + "II", data, begin + 4)
    start, end, n_behind = begin + offset, len(data), 0
    known = None if size == 0xFFFFFFFF else size
    if known is not None:
        behind = data[start + known : start + known + 4096]
        if behind[:4] == magic and start + known > begin:
            end = start + known
        elif behind[:3] not in _TAGS and any(behind):
            n_behind = len(data) - start - known
    return AudioChunk(begin, end, start, known, begin + 8, order + "I", 0, n_behind), end


def _caf(data: Data, begin: int) -> _Found:
    at, end = begin + 8, len(data)
    while at + 12 <= len(data):
        (size,) = _numbers(">q", data, at + 4)
        if data[at : at + 4] == b"data":
            known = None if size < 0 else max(0, size - 4)
            following = at + 12 + max(0, size)
            if known is not None and data[following : following + 4] == b"caff":
                end = following
            return AudioChunk(begin, end, at + 16, known, at + 4, ">q", 4), end
        at += 12 + max(0, size)
    return None, end


def _w64(data: Data, begin: int) -> _Found:
    at, end = begin + 40, len(data)
    while at + 24 <= len(data):
        (size,) = _numbers("<Q", data, at + 16)
        if data[at : at + 4] == b"data":
            known = None if size >= _UNKNOWN_64 else max(0, size - 24)
            return AudioChunk(begin, end, at + 24, known, at + 16, "<Q", 24), end
        at += max(24, size + 7 & ~7)
    return None, end


def _is_name(name: bytes) -> bool:
    """Whether these bytes may be the name of a chunk."""
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


_READERS = {
    b"RIFF": _riff, b"RIFX": _riff, b"RF64": _riff, b"FORM": _riff, b"riff": _w64,
    b"caff": _caf, b".snd": _au, b"dns.": _au,
}  # fmt: skip
