"""One sound file, decoded to its real end, and what of it could not be."""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bsdkit.errors import AudioError, EmptyAudio, MissingAudio
from bsdkit.location import is_remote
from bsdkit.sounds.blocks import FloatArray, in_blocks
from bsdkit.sounds.chunks import audio_chunks, chunk_layout
from bsdkit.sounds.layout import Data, Layout
from bsdkit.sounds.media import Media, is_media, media_hint
from bsdkit.sounds.mpeg import mpeg_layout
from bsdkit.sounds.streams import flac_layout, ogg_layout

__all__ = ["OpenSound", "opened", "undecodable"]

_RATES = (100, 10_000_000)
_MOST_CHANNELS = 256
"""A header that says otherwise is no sound's: what is in the file would take days or noise."""

_MOST_SAMPLES_A_BYTE = 8192
"""No codec makes more of a byte; a header that promises more is wrong."""
_SURELY_MPEG = 0.5
_MOST_WHOLE = 1 << 26
"""Samples a channel that are read at once: a header may promise more than memory holds."""
_STEP = 1 << 20
_MOST_READ = 1 << 24
"""Bytes of a file that are read to see what is in it; a larger one is mapped."""


class OpenSound:
    """A sound file that libsndfile decodes, whole or piece by piece.

    Attributes:
        rate: in Hz.
        channels: how many.
        is_float: whether its samples are floating point numbers, which have no full scale.
        seconds: how long it is by what its header or its structure says; NaN where neither does.
        shortfall: once all blocks are read, what could not be: ``1.5 s of 3.0 s decoded``.

    Args:
        source: a path as bytes or text, or an open binary file, for soundfile.
        data: its bytes.

    Raises:
        AudioError: its header says what no sound has.
        soundfile.SoundFileError: libsndfile does not open it.
    """

    def __init__(self, source: Any, data: Data) -> None:
        import soundfile

        layout = chunk_layout(data) or ogg_layout(data) or flac_layout(data) or Layout()
        pieces = [io.BytesIO(piece) for piece in layout.pieces] or [source]
        try:
            self.rate, self.channels, frames, subtype = _facts(pieces[0])
        except soundfile.SoundFileError:
            layout = mpeg_layout(data, 0) or Layout()
            if sum(map(len, layout.pieces)) < _SURELY_MPEG * len(data):
                raise
            # libsndfile takes it for MPEG audio only where it begins so, or by its name
            pieces = [io.BytesIO(piece) for piece in layout.pieces]
            self.rate, self.channels, frames, subtype = _facts(pieces[0])
        if subtype.startswith("MPEG") and pieces == [source]:
            chunks = audio_chunks(data)
            audio = data[chunks[0].start :][: chunks[0].n_held] if chunks else data
            layout = mpeg_layout(audio, frames) or Layout()
            pieces = [io.BytesIO(piece) for piece in layout.pieces] or [source]
        low, high = _RATES
        if not low <= self.rate <= high:
            raise AudioError(f"its header says {self.rate} Hz; expected {low} to {high} Hz")
        if self.channels > _MOST_CHANNELS:
            raise AudioError(
                f"its header says {self.channels} channels; expected 1 to {_MOST_CHANNELS}"
            )
        self.is_float = subtype in ("FLOAT", "DOUBLE")
        self.shortfall = ""
        self._pieces, self._layout = pieces, layout
        if layout.n_frames and abs(layout.n_frames - frames) > layout.tolerance * self.rate:
            frames = layout.n_frames
        is_possible = 0 <= frames <= _MOST_SAMPLES_A_BYTE * len(data)
        self.seconds = frames / self.rate if is_possible else math.nan
        if len(pieces) > 1:
            self._open_all()

    def _open_all(self) -> None:
        """Leaves out pieces that do not open, and adds up how long the others are."""
        import soundfile

        pieces, seconds = [], 0.0
        for piece in self._pieces:
            try:
                rate, _, frames, _ = _facts(piece)
            except soundfile.SoundFileError:
                self._layout = replace(self._layout, doubt="a part of the file does not open")
                continue
            pieces.append(piece)
            seconds += frames / rate
        self._pieces = pieces
        if not self._layout.n_frames:
            self.seconds = seconds

    def close(self) -> None:
        """Does nothing: a piece is open only while it is read."""

    def blocks(self, n_block: int = 0) -> Iterator[FloatArray]:
        """Samples [n, channels], all but the last block of `n_block`; the last may be empty.

        Args:
            n_block: samples a channel; 0 for one block with all of them.
        """
        n_done = 0
        for block in in_blocks(self._parts(n_block), n_block, self.channels):
            n_done += len(block)
            yield block
        self.shortfall = self.shortfall or self._shortfall(n_done)

    def _parts(self, n_block: int) -> Iterator[FloatArray]:
        """Samples [n, channels] as they are decoded, piece after piece."""
        for piece in self._pieces:
            with _open(piece) as file:
                parts = _decoded(file, piece, n_block)
                if (file.samplerate, file.channels) != (self.rate, self.channels):
                    parts = _like(parts, file.samplerate, self.rate, self.channels)
                yield from parts

    def _shortfall(self, n_done: int) -> str:
        """What of the file was not decoded, when `n_done` samples a channel were."""
        layout, found = self._layout, n_done / self.rate
        whole = max(layout.n_frames / self.rate, found / layout.share)
        if not math.isnan(self.seconds) and not layout.n_frames:
            whole = max(whole, self.seconds)
        if found < whole - layout.tolerance:
            digits = 1 if f"{found:.1f}" != f"{whole:.1f}" else 3
            return f"{found:.{digits}f} s of {whole:.{digits}f} s decoded"
        return f"{found:.1f} s of unknown length decoded: {layout.doubt}" if layout.doubt else ""


def _open(piece: Any) -> Any:
    """A piece as soundfile opens it, at its beginning."""
    import soundfile

    if isinstance(piece, io.BytesIO):
        piece.seek(0)
    return soundfile.SoundFile(piece)


def _facts(piece: Any) -> tuple[int, int, int, str]:
    """Rate, channels, samples a channel by the header, and number type."""
    with _open(piece) as file:
        return int(file.samplerate), int(file.channels), int(file.frames), str(file.subtype)


def _decoded(file: Any, piece: Any, n_block: int) -> Iterator[FloatArray]:
    """What an open piece holds up to its end or the first fault; see `OpenSound.blocks`."""
    import soundfile

    if not n_block and file.seekable():  # as soundfile.read does: some MP3 differ in the last bit
        file.seek(0)
    n_done, n_read = 0, 1
    n_step = n_block or min(file.frames + 1, _MOST_WHOLE)
    while n_read:
        try:
            samples = file.read(n_step, dtype="float32", always_2d=True)
            n_read = len(samples) // n_step  # none is left behind a short one
        except soundfile.SoundFileError:
            samples = _up_to_fault(piece, n_done, min(n_step, file.frames - n_done))
            n_read = 0
        n_done += len(samples)
        yield samples


def _like(
    parts: Iterator[FloatArray], rate: int, wanted_rate: int, n_channels: int
) -> Iterator[FloatArray]:
    """Parts of a piece that has another rate or number of channels than the first one."""
    import soxr

    stream = soxr.ResampleStream(rate, wanted_rate, 1, dtype="float32", quality="HQ")
    for part in parts:
        mono = part.mean(axis=1) if len(part) else np.zeros(0, np.float32)
        yield np.repeat(stream.resample_chunk(mono)[:, None], n_channels, axis=1)
    rest = stream.resample_chunk(np.zeros(0, np.float32), last=True)
    yield np.repeat(rest[:, None], n_channels, axis=1)


def _up_to_fault(piece: Any, n_done: int, n: int) -> FloatArray:
    """What libsndfile decodes behind `n_done` samples before it gives up: [at most n, channels].

    soundfile raises and keeps the samples; in an array of NaN one sees how many they are.
    """
    import soundfile

    with _open(piece) as file:
        while n_done > 0:
            n_done -= len(file.read(min(n_done, _STEP), dtype="float32", always_2d=True))
        samples = np.full((max(0, n), file.channels), np.nan, np.float32)
        with contextlib.suppress(soundfile.SoundFileError):
            file.read(out=samples)
    is_filled = ~np.isnan(samples).all(axis=1)
    return samples[: len(samples) if is_filled.all() else int(np.argmin(is_filled))]


@contextlib.contextmanager
def opened(source: Path | io.BytesIO) -> Iterator[OpenSound | Media]:
    """A sound file open for decoding, by its content whatever its name.

    Raises:
        MissingAudio: there is no such file.
        EmptyAudio: it has no bytes.
        AudioError: neither libsndfile nor PyAV, where it is installed, decodes it.
    """
    import soundfile

    if isinstance(source, io.BytesIO):
        yield OpenSound(source, source.getvalue())
        return
    with _bytes_of(source) as data:
        # a name that ends in .raw makes soundfile ask for a rate
        is_in_memory = is_remote(source) or source.suffix.lower() == ".raw"
        try:
            sound: OpenSound | Media = OpenSound(
                io.BytesIO(data[:]) if is_in_memory else _place(source), data
            )
        except soundfile.SoundFileError as error:
            sound = _media(source, data, error)
        except AudioError as error:
            raise undecodable(source, error) from None
    try:
        yield sound
    finally:
        sound.close()


def _place(path: Path) -> bytes | str:
    """A path as soundfile takes it, whatever bytes are in its name."""
    return os.fsencode(path) if os.name == "posix" else str(path)


@contextlib.contextmanager
def _bytes_of(path: Path) -> Iterator[Data]:
    """The bytes of a file: read, or mapped where it is large.

    What is mapped is gone with the process where the disk fails or the file shrinks.
    """
    try:
        size = path.stat().st_size
        if not size:
            raise EmptyAudio(f"{path} is empty (0 bytes)")
        is_file = is_remote(path) or path.is_file()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MissingAudio(f"no audio file {path}: {reason}") from None
    if not is_file:
        raise undecodable(path, "it is no file but a folder or a device")
    try:
        if size <= _MOST_READ or is_remote(path):
            yield path.read_bytes()
            return
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except OSError as error:
        raise undecodable(path, error.strerror or type(error).__name__) from None


def _media(path: Path, data: Data, error: Exception) -> Media:
    """The file opened by PyAV.

    Raises:
        AudioError: PyAV is not installed or does not decode it either.
    """
    try:
        return Media(io.BytesIO(data) if isinstance(data, bytes) else path.open("rb"))
    except ImportError:
        is_other = is_media(path, data[:64])
        raise undecodable(path, media_hint(path) if is_other else error) from None
    except AudioError as other:
        raise undecodable(path, other if is_media(path, data[:64]) else error) from None


def undecodable(path: Path, reason: Exception | str) -> AudioError:
    """The error that names a file and why it cannot be decoded."""
    text = str(getattr(reason, "error_string", reason)).strip().rstrip(".")
    try:
        size = f"{path.stat().st_size} bytes"
    except OSError:
        size = "gone since"
    return AudioError(f"{path} cannot be decoded ({size}): {text or type(reason).__name__}")
