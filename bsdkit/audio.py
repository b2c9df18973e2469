"""Sound files to float32 mono, and the one policy that cuts windows for every backbone.

Windows start at 0, hop, 2 hop, ...; none is random. The last one holds what is left of the
clip and is completed as the model was trained. Whoever averages windows weights each by its
real samples.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bsdkit.errors import AudioError, EmptyAudio, MissingAudio
from bsdkit.location import as_location, is_remote

__all__ = [
    "Padding",
    "Waveform",
    "WindowCutter",
    "audio_seconds",
    "n_windows",
    "read_audio",
    "read_audio_at",
    "resample",
    "stream_audio_at",
    "window_lengths",
]

FloatArray = npt.NDArray[np.float32]

Padding = Literal["zeros", "tile", "reflect"]
"""How a window that the clip does not fill is completed: by silence; by the clip itself as
often as it fits whole, then silence ("repeatpad" of LAION-CLAP); or by the clip mirrored at
its ends. A clip longer than a window has its last window completed by silence in any case."""

BLOCK_SECONDS = 30
"""What is decoded at a time of a file that is streamed."""


@dataclass(frozen=True)
class Waveform:
    """Sound that is decoded already, for whatever takes a sound file.

    Attributes:
        samples: [n_samples] or [n_samples, n_channels], in [-1, 1].
        sample_rate: their rate in Hz.
    """

    samples: npt.NDArray[np.floating[Any]]
    sample_rate: int

    def __str__(self) -> str:
        return f"the array of shape {self.samples.shape}"

    @property
    def channels(self) -> FloatArray:
        """[n_samples, n_channels]."""
        samples = np.asarray(self.samples, np.float32)
        return samples[:, None] if samples.ndim == 1 else samples


Source = Path | str | Waveform
"""Sound as a file, a URL or samples."""


def audio_seconds(source: Path | io.BytesIO | Waveform) -> float:
    """The seconds of a sound, by its header; NaN where it cannot be decoded."""
    if isinstance(source, Waveform):
        return len(source.samples) / source.sample_rate
    import soundfile

    try:
        if isinstance(source, Path) and is_remote(source):
            source = io.BytesIO(source.read_bytes())
        info = soundfile.info(os.fsencode(source) if isinstance(source, Path) else source)
        return float(info.frames / info.samplerate)
    except (soundfile.SoundFileError, RuntimeError, OSError, ZeroDivisionError):
        return math.nan


def _open(path: Path) -> Any:
    """What soundfile can read: the path's name, or the bytes of a remote file."""
    try:
        size = path.stat().st_size
        if not size:
            raise EmptyAudio(f"{path} is empty (0 bytes)")
        # as bytes: a name need not be UTF-8
        return io.BytesIO(path.read_bytes()) if is_remote(path) else os.fsencode(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise MissingAudio(f"no audio file {path}: {reason}") from None


def _undecodable(path: Path, error: Exception) -> AudioError:
    reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
    try:
        size = f"{path.stat().st_size} bytes"
    except OSError:
        size = "gone since"
    return AudioError(f"{path} cannot be decoded ({size}): {reason}")


def _mono(samples: FloatArray, source: Path | Waveform) -> FloatArray:
    """The mean of the channels [n, channels], clipped.

    It is clipped before resampling, which overflows on absurd levels, and again after,
    because a resampler overshoots.
    """
    mono = samples[:, 0].copy()
    for channel in range(1, samples.shape[1]):  # mean(axis=1) walks the short axis, slowly
        mono += samples[:, channel]
    if samples.shape[1] > 1:
        mono /= np.float32(samples.shape[1])
    if not np.isfinite(mono).all():
        raise AudioError(f"{source} holds samples that are not finite (NaN or infinity)")
    return np.clip(mono, -1.0, 1.0, out=mono)


def read_audio(path: Path | str, sample_rate: int) -> FloatArray:
    """Samples [n_samples] of a sound file: float32, mean of its channels, in [-1, 1].

    Decoded by libsndfile and resampled by soxr at high quality; clipped before and after (a
    float file or the resampler can overshoot).

    Args:
        path: a WAV, FLAC, OGG, MP3 or other file that libsndfile reads, or the URL of one.
        sample_rate: wanted rate in Hz.

    Raises:
        MissingAudio: there is no such file.
        EmptyAudio: it has no bytes or no samples.
        AudioError: it cannot be decoded or holds NaN.
    """
    return read_audio_at(path, [sample_rate])[sample_rate]


def read_audio_at(source: Source, sample_rates: Sequence[int]) -> dict[int, FloatArray]:
    """The same sound by rate, decoded once; see `read_audio`."""
    if isinstance(source, Waveform):
        samples, native_rate = source.channels, source.sample_rate
        if not len(samples):
            raise EmptyAudio(f"{source} has no samples")
    else:
        source = as_location(source)
        samples, native_rate = _decoded(source)
    mono = _mono(samples, source)
    sounds = {}
    for rate in dict.fromkeys(sample_rates):
        changed = resample(mono, native_rate, rate)
        sounds[rate] = mono if changed is mono else np.clip(changed, -1.0, 1.0, out=changed)
    return sounds


def _decoded(path: Path) -> tuple[FloatArray, int]:
    """Samples [n_samples, n_channels] of a file, and their rate in Hz."""
    import soundfile

    source = _open(path)
    try:
        samples, native_rate = soundfile.read(source, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError, OSError, TypeError) as error:  # TypeError: .raw
        raise _undecodable(path, error) from None
    if not len(samples):
        raise EmptyAudio(f"{path} has no samples ({path.stat().st_size} bytes)")
    return samples, native_rate


def stream_audio_at(source: Source, sample_rates: Sequence[int]) -> Iterator[dict[int, FloatArray]]:
    """A sound by rate in blocks of half a minute: a file of hours in constant memory.

    The blocks follow on one another without a seam; resampled as a whole the file gives the
    same samples to rounding.

    Raises:
        AudioError: see `read_audio`; it may come after some blocks.
    """
    if isinstance(source, Waveform):
        yield from _resampled(_sliced(source), source.sample_rate, sample_rates, source)
        return
    import soundfile

    path = as_location(source)
    opened = _open(path)
    try:
        with soundfile.SoundFile(opened) as file:
            yield from _resampled(_blocks(file), file.samplerate, sample_rates, path)
    except (soundfile.SoundFileError, RuntimeError, OSError, TypeError) as error:
        raise _undecodable(path, error) from None


def _blocks(file: Any) -> Iterator[FloatArray]:
    """What an open file holds, block by block; the last block is short, maybe empty."""
    n_block = BLOCK_SECONDS * file.samplerate
    is_last = False
    while not is_last:
        samples = file.read(n_block, dtype="float32", always_2d=True)
        is_last = len(samples) < n_block
        yield samples


def _sliced(source: Waveform) -> Iterator[FloatArray]:
    """The same blocks of a waveform."""
    samples, n_block = source.channels, BLOCK_SECONDS * source.sample_rate
    for start in range(0, len(samples) + 1, n_block):
        yield samples[start : start + n_block]


def _resampled(
    blocks: Iterator[FloatArray],
    native_rate: int,
    sample_rates: Sequence[int],
    source: Path | Waveform,
) -> Iterator[dict[int, FloatArray]]:
    """Blocks [n, channels], all but the last of BLOCK_SECONDS, as mono samples by rate."""
    import soxr

    streams = {
        rate: soxr.ResampleStream(native_rate, rate, 1, dtype="float32", quality="HQ")
        for rate in dict.fromkeys(sample_rates)
        if rate != native_rate
    }
    n_read = 0
    for samples in blocks:
        n_read += len(samples)
        is_last = len(samples) < BLOCK_SECONDS * native_rate
        mono = _mono(samples, source) if len(samples) else np.zeros(0, np.float32)
        block = {}
        for rate in sample_rates:
            stream = streams.get(rate)
            changed = stream.resample_chunk(mono, last=is_last) if stream else mono
            block[rate] = changed if changed is mono else np.clip(changed, -1.0, 1.0)
        yield block
    if not n_read:
        raise EmptyAudio(f"{source} has no samples")


def resample(samples: FloatArray, native_rate: int, sample_rate: int) -> FloatArray:
    """Samples [n] at another rate in Hz, by soxr's HQ recipe; never shorter than one sample."""
    if native_rate == sample_rate:
        return samples
    import soxr

    changed = soxr.resample(samples, native_rate, sample_rate, quality="HQ")
    if not len(changed):  # a clip of a few samples at a high rate
        return samples[:1].copy()
    return np.asarray(changed, np.float32)


def n_windows(n_samples: int, window: int, hop: int) -> int:
    """How many windows cover a clip: at fixed hops from its start, until its end is reached."""
    return 1 if n_samples <= window else 1 + math.ceil((n_samples - window) / hop)


def window_lengths(window: int, shortest: int | None) -> list[int]:
    """Lengths in samples to which a window may be padded, ascending: it, a half, a quarter, ...

    Args:
        window: samples in a whole window.
        shortest: no length is below this; None for whole windows alone.
    """
    lengths = [window]
    while shortest is not None and lengths[0] // 2 >= shortest:
        lengths.insert(0, lengths[0] // 2)
    return lengths


class WindowCutter:
    """Cuts the windows of one clip from samples that come whole or block by block.

    Args:
        window: samples in a window.
        hop: samples between the starts of two windows, at most `window`.
        padding: see `Padding`.
        lengths: to which a window may be padded, ascending, the last one `window`; a window
            takes the first that holds its real samples. None: always `window`.
    """

    def __init__(
        self,
        window: int,
        hop: int,
        padding: Padding = "zeros",
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.window, self.hop, self.padding = window, hop, padding
        self.lengths = list(lengths or [window])
        self._rest: FloatArray = np.zeros(0, np.float32)
        self._n_cut = 0

    def push(self, samples: FloatArray) -> Iterator[tuple[FloatArray, int]]:
        """(window, real samples in it) of every window that is full now; copy what you keep."""
        rest = np.concatenate([self._rest, samples]) if len(self._rest) else samples
        start = 0
        while len(rest) - start >= self.window:
            yield rest[start : start + self.window], self.window
            self._n_cut += 1
            start += self.hop
        self._rest = rest[start:]

    def finish(self) -> Iterator[tuple[FloatArray, int]]:
        """The last window, if the full ones do not reach the end of the clip."""
        n = len(self._rest)
        # samples that the last full window has seen already are no news
        if self._n_cut and n <= self.window - self.hop:
            return
        length = next(length for length in self.lengths if length >= n)
        last = np.zeros(length, np.float32)
        last[:n] = self._rest
        if not self._n_cut and 0 < n < length:
            if self.padding == "tile":
                repeated = np.tile(self._rest, length // n)
                last[: len(repeated)] = repeated
            elif self.padding == "reflect":
                last = np.pad(self._rest, (0, length - n), mode="reflect" if n > 1 else "edge")
        yield last, n
