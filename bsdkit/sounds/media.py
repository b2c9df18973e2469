"""Sound in containers that libsndfile does not read (m4a, mp4, wma, webm), through PyAV."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bsdkit.errors import AudioError
from bsdkit.sounds.blocks import FloatArray, in_blocks
from bsdkit.sounds.suffixes import MEDIA_SUFFIXES

__all__ = ["Media", "is_media", "media_hint"]

_MARKS = (
    (4, b"ftyp"), (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), (0, b"\x1a\x45\xdf\xa3"),
    (0, b"#!AMR"), (0, b"\xff\xf1"), (0, b"\xff\xf9"), (0, b"MAC "), (0, b"wvpk"), (0, b"TTA1"),
    (0, b"caff"),
)  # fmt: skip
_TOLERANCE = 0.1
"""Seconds: containers count a codec's padding, decoders drop it."""


def is_media(path: Path, head: bytes) -> bool:
    """Whether a file that libsndfile does not open is one of these, by content or name."""
    is_marked = any(head[at : at + len(mark)] == mark for at, mark in _MARKS)
    return is_marked or path.suffix.lower() in MEDIA_SUFFIXES


def media_hint(path: Path) -> str:
    """What to type where PyAV is not installed."""
    wav = path.with_suffix(".wav").name
    return (
        "libsndfile does not read this container: pip install 'bsdkit[media]', or "
        f"ffmpeg -i {path.name} {wav if wav != path.name else 'decoded.wav'}"
    )


class Media:
    """An open file; see `bsdkit.sounds.reader.OpenSound`, whose place it takes.

    Args:
        source: an open binary file, which is closed with it.

    Raises:
        ImportError: PyAV is not installed.
        AudioError: it holds no sound that PyAV decodes.
    """

    def __init__(self, source: BinaryIO) -> None:
        import av

        self._errors, self._source = av.FFmpegError, source
        try:
            self._container = av.open(source, metadata_errors="ignore")
        except av.FFmpegError as error:
            source.close()
            raise AudioError(error.strerror or str(error)) from None
        if not self._container.streams.audio:
            self.close()
            raise AudioError("it holds no sound")
        stream = self._container.streams.audio[0]
        self._stream = stream
        self.rate, self.channels = int(stream.rate or 0), int(stream.channels or 0)
        self.is_float = stream.codec_context.name.startswith("pcm_f")
        announced = stream.duration * stream.time_base if stream.duration else math.nan
        if math.isnan(announced) and self._container.duration:
            announced = self._container.duration / av.time_base
        self.seconds = float(announced)
        self.shortfall = ""
        self._is_begun = False

    def close(self) -> None:
        """Closes the file."""
        self._container.close()
        self._source.close()

    def blocks(self, n_block: int = 0) -> Iterator[FloatArray]:
        """See `bsdkit.sounds.reader.OpenSound.blocks`."""
        n_done = 0
        for block in in_blocks(self._parts(), n_block, self.channels):
            n_done += len(block)
            yield block
        found = n_done / self.rate
        if found < self.seconds - _TOLERANCE:
            self.shortfall = f"{found:.1f} s of {self.seconds:.1f} s decoded"

    def _parts(self) -> Iterator[FloatArray]:
        """Samples [n, channels] as they are decoded, until the end or the first fault."""
        import av

        layout = self._stream.codec_context.layout
        resampler = av.AudioResampler(format="flt", layout=layout, rate=self.rate)
        if self._is_begun:
            self._container.seek(0)
        self._is_begun = True
        try:
            for frame in self._container.decode(self._stream):
                for changed in resampler.resample(frame):
                    yield changed.to_ndarray().reshape(-1, self.channels)
        except self._errors as error:
            self.shortfall = f"decoding ended early: {error.strerror or error}"
        for changed in resampler.resample(None):
            yield changed.to_ndarray().reshape(-1, self.channels)
