"""MPEG audio (MP3) by its frames: how much there is, and in which pieces it decodes whole.

A decoder takes the length from the Xing header in the first frame, or guesses it from the
first frame's bit rate and the size of the file, and stops there. Counting the frames tells
how much there is; a Xing header with that count makes the decoder go on to the end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from bsdkit.sounds.layout import Data, Layout, without_id3

__all__ = ["mpeg_layout"]

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_KBITS = {
    (True, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_TOLERANCE = 0.1
"""Seconds: a decoder drops its own delay, and frames whose bits began before a cut."""


@dataclass(frozen=True)
class _Frame:
    kind: tuple[int, int, int, bool]  # version, layer, rate, whether mono
    n_bytes: int
    n_samples: int

    @property
    def side(self) -> int:
        """Bytes between a frame's start and its Xing tag."""
        version, _, _, is_mono = self.kind
        return 4 + ((17 if is_mono else 32) if version == 3 else (9 if is_mono else 17))


@dataclass
class _Piece:
    kind: tuple[int, int, int, bool]
    n_samples: int  # a channel, in a frame
    head: bytes = b""  # the frame that holds the Xing header
    promised: int = 0
    trimmed: int = 0
    n_frames: int = 0
    runs: list[list[int]] = field(default_factory=list)

    def add(self, start: int, end: int) -> None:
        self.n_frames += 1
        if self.runs and self.runs[-1][1] == start:
            self.runs[-1][1] = end
        else:
            self.runs.append([start, end])

    def samples(self, n_frames: int) -> int:
        return max(0, n_frames * self.n_samples - self.trimmed)

    def file(self, data: Data) -> bytes:
        """The piece as a file whose Xing header counts all its frames."""
        body = b"".join(data[start:end] for start, end in self.runs)
        if self.kind[1] != 1:  # layers I and II have no such header
            return body
        head = bytearray(self.head or _xing_frame(self.kind))
        at = _Frame(self.kind, 0, 0).side
        flags = struct.unpack_from(">I", head, at + 4)[0]
        if flags & 3 == 3:  # a decoder complains of other sizes
            struct.pack_into(">I", head, at + 12, len(head) + len(body))
        if flags & 1:
            struct.pack_into(">I", head, at + 8, max(self.n_frames, self.promised))
        return bytes(head) + body


def _frame(data: Data, at: int) -> _Frame | None:
    """The frame whose header stands there; None where none does."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    second, third, fourth = data[at + 1], data[at + 2], data[at + 3]
    version, layer = second >> 3 & 3, second >> 1 & 3
    bits, rate_index, padding = third >> 4, third >> 2 & 3, third >> 1 & 1
    if version == 1 or layer == 0 or bits in (0, 15) or rate_index == 3 or fourth & 3 == 2:
        return None
    rate = _RATES[version][rate_index]
    bit_rate = 1000 * _KBITS[version == 3, layer][bits - 1]
    kind = (version, layer, rate, fourth >> 6 == 3)
    if layer == 3:  # the number of layer I
        return _Frame(kind, (12 * bit_rate // rate + padding) * 4, 384)
    n_samples = 576 if layer == 1 and version != 3 else 1152
    return _Frame(kind, n_samples // 8 * bit_rate // rate + padding, n_samples)


def _is_start(data: Data, at: int, frame: _Frame, end: int) -> bool:
    """Whether two more frames follow, or the end: any three bytes may look like a header."""
    for _ in range(2):
        at += frame.n_bytes
        if at >= end:
            return at == end
        following = _frame(data, at)
        if following is None or following.kind[:3] != frame.kind[:3]:
            return False
        frame = following
    return True


def _xing_frame(kind: tuple[int, int, int, bool]) -> bytes:
    """A frame without sound whose Xing header has room for two counts."""
    version, _, rate, is_mono = kind
    header = bytes(
        [0xFF, 0xE3 | version << 3, 9 << 4 | _RATES[version].index(rate) << 2, is_mono * 0xC0]
    )
    frame = _frame(header, 0)
    assert frame is not None
    content = bytes(frame.side - 4) + b"Xing" + struct.pack(">III", 3, 0, 0)
    return (header + content).ljust(frame.n_bytes, b"\0")


def _begin(data: Data, at: int, frame: _Frame) -> _Piece | None:
    """A new piece if a Xing, Info or VBRI header stands in the frame."""
    tag, vbri = at + frame.side, at + 36
    content = data[at : at + frame.n_bytes]
    if data[tag : tag + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(data[tag + 4 : tag + 8], "big")
        promised = int.from_bytes(data[tag + 8 : tag + 12], "big") if flags & 1 else 0
        lame = tag + 8 + 4 * (flags & 1) + 2 * (flags & 2) + 25 * (flags & 4) + (flags >> 1 & 4)
        delays = int.from_bytes(data[lame + 21 : lame + 24], "big")
        trimmed = (delays >> 12) + (delays & 0xFFF) if data[lame : lame + 1].isalpha() else 0
        return _Piece(frame.kind, frame.n_samples, content, promised, trimmed)
    if data[vbri : vbri + 4] == b"VBRI":
        promised = int.from_bytes(data[vbri + 14 : vbri + 18], "big")
        return _Piece(frame.kind, frame.n_samples, promised=promised)
    return None


def _end_of_frames(data: Data) -> int:
    """Where the tags at the end of the file begin."""
    end = len(data)
    if data[max(0, end - 128) : end - 125] == b"TAG":
        end -= 128
    if data[max(0, end - 9) : end] == b"LYRICS200" and data[end - 15 : end - 9].isdigit():
        end -= int(data[end - 15 : end - 9]) + 15
    if end >= 32 and data[end - 32 : end - 24] == b"APETAGEX":
        size, _, flags = struct.unpack("<III", data[end - 20 : end - 8])
        end -= size + (32 if flags & 1 << 31 else 0)
    return max(end, 0)


def mpeg_layout(data: Data, n_guessed: int) -> Layout | None:
    """What MPEG audio holds; None where no frame is found (free format, or no MPEG audio).

    Bytes between frames that are no tag are audio that was damaged, unless a header counts the
    frames; before the first frame they are not. A piece ends where a new Xing header, another
    rate or another number of channels begins.

    Args:
        data: the file, or the contents of a WAV file's data chunk.
        n_guessed: samples a channel at which libsndfile will stop.
    """
    at, end = without_id3(data), _end_of_frames(data)
    pieces: list[_Piece] = []
    n_junk, is_synced, is_cut = 0, False, False
    while at + 4 <= end:
        frame = _frame(data, at)
        if frame is None or not (is_synced or _is_start(data, at, frame, end)):
            tag = without_id3(data, at) - at
            if not tag and data[at : at + 3] == b"TAG":
                tag = 128
            following = at + tag if tag else data.find(b"\xff", at + 1)
            following = end if following < 0 else min(following, end)
            n_junk += following - at if pieces and not tag else 0
            at, is_synced = following, False
            continue
        is_synced = True
        if at + frame.n_bytes > end:
            is_cut = True
            break
        begun = _begin(data, at, frame)
        if begun is not None:
            pieces.append(begun)
        if not pieces or pieces[-1].kind != frame.kind:
            pieces.append(_Piece(frame.kind, frame.n_samples))
        if begun is None or not begun.head:
            pieces[-1].add(at, at + frame.n_bytes)
        at += frame.n_bytes
    pieces = [piece for piece in pieces if piece.n_frames]
    if not pieces:
        return None
    rate = pieces[0].kind[2]
    held = sum(piece.samples(piece.n_frames) * rate // piece.kind[2] for piece in pieces)
    n_frames = sum(
        piece.samples(max(piece.n_frames, piece.promised)) * rate // piece.kind[2]
        for piece in pieces
    )
    n_bytes = sum(end - start for piece in pieces for start, end in piece.runs)
    if all(piece.promised for piece in pieces):  # then a header tells what is missing
        n_missing, is_cut = 0, False
    else:
        n_missing = n_junk
    is_cut_short = n_frames - held > _TOLERANCE * rate
    is_direct = len(pieces) == 1 and not n_junk and not is_cut_short and held <= n_guessed
    return Layout(
        () if is_direct else tuple(piece.file(data) for piece in pieces),
        n_frames,
        n_bytes / (n_bytes + n_missing),
        "its last frame is cut" if is_cut else "",
        _TOLERANCE,
    )
