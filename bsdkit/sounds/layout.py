"""What the bytes of a sound file say of its length, beside what its header announces.

libsndfile believes headers: it stops where they say, although more follows (joined MP3, a
chained Ogg, a recorder that lost power), and says nothing where they promise more than is
there (half a download).
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

__all__ = ["Data", "Layout", "without_id3"]

Data = bytes | mmap.mmap
"""The bytes of a file, read or mapped."""


@dataclass(frozen=True)
class Layout:
    """What was found in a file.

    Attributes:
        pieces: files that follow one another in this one, each as libsndfile decodes it to its
            end; empty where it decodes the file as it is.
        n_frames: samples a channel that the file announces or holds, whichever is more; 0 where
            its header alone knows.
        share: of the announced bytes of audio, the share that can be decoded.
        doubt: why the file is not whole although nothing says how much is missing; or empty.
        tolerance: seconds by which what decodes may fall short of `n_frames`.
    """

    pieces: tuple[bytes, ...] = ()
    n_frames: int = 0
    share: float = 1.0
    doubt: str = ""
    tolerance: float = 0.0


def without_id3(data: Data, start: int = 0) -> int:
    """Where the content begins: behind the ID3v2 tags that stand at `start`, if any do."""
    while data[start : start + 3] == b"ID3" and start + 10 <= len(data):
        size = 0
        for byte in data[start + 6 : start + 10]:
            size = size << 7 | byte & 0x7F
        has_footer = data[start + 5] & 0x10
        start += 10 + size + (10 if has_footer else 0)
    return start
