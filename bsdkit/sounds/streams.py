"""Ogg and FLAC: streams that follow one another, and the samples that their last parts count."""

from __future__ import annotations

import struct

from bsdkit.sounds.layout import Data, Layout, without_id3

__all__ = ["flac_layout", "ogg_layout"]

_TOLERANCE = 0.1
"""Seconds: lossy streams begin and end with samples that some decoders drop."""
_MOST_FLAC = (1 << 36) - 1
"""Samples: the most that a FLAC header can say, and nobody means."""
_LARGEST_FRAME = 1 << 18
"""Bytes: hardly a FLAC frame is larger."""


def ogg_layout(data: Data) -> Layout | None:
    """What an Ogg file holds; None where it is none.

    A chained file (a stream that begins when another has ended) is cut into its streams: the
    decoder stops after the first.
    """
    at = without_id3(data)
    if data[at : at + 4] != b"OggS":
        return None
    starts, is_ended, is_cut, had_sound = [], False, False, True
    while at + 27 <= len(data):
        if data[at : at + 4] != b"OggS":
            at = data.find(b"OggS", at + 1)
            if at < 0:
                break
            continue
        flags, n_segments = data[at + 5], data[at + 26]
        is_begin = bool(flags & 2)
        if is_begin and had_sound:  # several streams that belong together begin at once
            starts.append(at)
            is_ended = False
        had_sound = not is_begin
        is_ended = is_ended or bool(flags & 4)
        at += 27 + n_segments + sum(data[at + 27 : at + 27 + n_segments])
        is_cut = at > len(data)
    doubt = "" if is_ended and not is_cut else "the end of its Ogg stream is missing"
    ends = [*starts[1:], len(data)]
    pieces = tuple(data[a:b] for a, b in zip(starts, ends, strict=True)) if starts[1:] else ()
    return Layout(pieces, doubt=doubt, tolerance=_TOLERANCE)


def flac_layout(data: Data) -> Layout | None:
    """What a FLAC file holds; None where it is none.

    Where the last frame counts other samples than the header announces, the header is
    corrected: it may know no length (written into a pipe) or a wrong one.
    """
    begin = without_id3(data)
    if data[begin : begin + 4] != b"fLaC":
        return None
    starts = [begin]
    for mark in (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22"):
        at = begin
        while (at := data.find(mark, at + 4)) >= 0:
            starts.append(at)
    starts.sort()
    pieces, n_frames, doubt, is_changed = [], 0, "", len(starts) > 1
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        (packed,) = struct.unpack(">Q", data[start + 18 : start + 26].ljust(8, b"\0"))
        announced = packed & _MOST_FLAC
        found, is_whole = _flac_end(data, start, end, announced)
        if found > announced or announced in (0, _MOST_FLAC):
            announced, is_changed = found, True
            doubt = doubt if is_whole else "its last FLAC frame is cut"
        if is_changed:
            piece = bytearray(data[start:end])
            piece[18:26] = struct.pack(">Q", packed & ~_MOST_FLAC | announced)
            pieces.append(bytes(piece))
        n_frames += announced
    return Layout(tuple(pieces) if is_changed else (), n_frames, doubt=doubt)


def _flac_end(data: Data, start: int, end: int, announced: int) -> tuple[int, bool]:
    """The samples that the last frame counts (0: none was found), and whether it is whole.

    The search goes backwards from the end, and ends early at what the header announces.
    """
    at = start + 4
    while at + 4 <= end:  # to the first frame
        is_last, size = data[at] & 0x80, int.from_bytes(data[at + 1 : at + 4], "big")
        at += 4 + size
        if is_last:
            break
    first, smallest = at, max(16, int.from_bytes(data[start + 8 : start + 10], "big"))
    head = data[first : first + 4]
    if len(head) < 4 or head[0] != 0xFF:
        return 0, True
    window_at = max(first, end - _LARGEST_FRAME)
    window = data[window_at:end]
    at = len(window)
    while (at := window.rfind(head[:2], 0, at)) >= 0:
        counted = _flac_frame(window, at, head, smallest)
        if counted:
            is_used = counted > announced or announced == _MOST_FLAC
            return counted, not is_used or _crc(window[at:], 16, 0x8005) == 0
    return 0, True


def _flac_frame(data: bytes, at: int, head: bytes, block: int) -> int:
    """The samples up to the end of the frame that begins there; 0 where none does.

    Args:
        data: part of a file.
        at: where a frame may begin.
        head: the first four bytes of another frame of the file.
        block: samples in each frame but the last, where all have the same number.
    """
    # rate, channels' number (not how they are coupled) and bits are the same in every frame
    if at + 6 > len(data) or data[at + 2] & 15 != head[2] & 15 or (data[at + 3] ^ head[3]) & 15:
        return 0
    size_code, rate_code = data[at + 2] >> 4, data[at + 2] & 15
    lead = data[at + 4]
    n_more = 0 if lead < 0x80 else 8 - (lead ^ 0xFF).bit_length() - 1
    if size_code == 0 or n_more < 0 or 0x80 <= lead < 0xC0:
        return 0
    number = lead & (0x7F if not n_more else 0x3F >> n_more)
    place = at + 5
    for byte in data[place : place + n_more]:
        number = number << 6 | byte & 0x3F
    place += n_more
    if size_code in (6, 7):
        n = size_code - 5
        size = int.from_bytes(data[place : place + n], "big") + 1
        place += n
    elif size_code == 1:
        size = 192
    else:
        size = 576 << size_code - 2 if size_code < 8 else 256 << size_code - 8
    place += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if place >= len(data) or _crc(data[at : place + 1], 8, 0x07) != 0:
        return 0
    is_variable = data[at + 1] & 1
    return (number if is_variable else number * block) + size


def _crc(data: bytes, n_bits: int, polynomial: int) -> int:
    """The checksum of bytes, the highest bit first; 0 where they end with their own."""
    value, top = 0, 1 << n_bits - 1
    for byte in data:
        value ^= byte << n_bits - 8
        for _ in range(8):
            value = (value << 1 ^ polynomial) & (2 * top - 1) if value & top else value << 1
    return value
