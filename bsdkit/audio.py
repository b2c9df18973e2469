"""Sound files to float32 mono, and the one policy that cuts windows for every backbone.

Windows start at 0, hop, 2 hop, ...; none is random. The last one holds what is left of the
clip and is completed as the model was trained. Whoever averages windows weights each by its
real samples.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from bsdkit.errors import AudioError, EmptyAudio, PartialAudio
from bsdkit.location import as_location
from bsdkit.sounds.blocks import in_blocks
from bsdkit.sounds.media import Media
from bsdkit.sounds.reader import OpenSound, opened, undecodable
from bsdkit.sounds.suffixes import MEDIA_SUFFIXES, audio_suffixes

__all__ = [
    "CANCELLED",
    "CANCELLED_DB",
    "MEDIA_SUFFIXES",
    "SCALED",
    "Findings",
    "Padding",
    "Waveform",
    "WindowCutter",
    "audio_seconds",
    "audio_suffixes",
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

_OVER_FULL_SCALE = 1.05
CANCELLED_DB = 12
SCALED, CANCELLED = "exceeds full scale", "its channels cancel"
"""What the notices of `Findings` are told apart by."""


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


@dataclass
class Findings:
    """What is odd about a sound that was decoded all the same.

    Attributes:
        partial: what of its file could not be decoded, e.g. ``1.5 s of 3.0 s decoded``; empty
            where all of it was.
        scaled: how it exceeded full scale; empty where it did not.
        cancelled: how much its channels cancel one another; empty where they do not.
    """

    partial: str = ""
    scaled: str = ""
    cancelled: str = ""

    @property
    def notices(self) -> str:
        """What a reader of the embedding should know; empty where there is nothing."""
        return "; ".join(text for text in (self.scaled, self.cancelled) if text)


def audio_seconds(source: Path | io.BytesIO | Waveform) -> float:
    """The seconds of a sound, by its header or its structure; NaN where they tell none."""
    if isinstance(source, Waveform):
        return len(source.samples) / source.sample_rate
    try:
        with opened(source) as sound:
            return sound.seconds
    except Exception:  # whatever the file is: why it has no length is for `read_audio` to say
        return math.nan


class _Mixer:
    """Channels to one, block by block, with what is odd about them.

    A sound in floating point numbers whose peak exceeds full scale by more than 5 % was meant
    for another scale (the range of int16, a mix that was never levelled): it is divided by its
    peak as a whole. Less than that, and the overshoot of a codec, is clipped.
    """

    def __init__(self, source: Path | Waveform, peak: float) -> None:
        self.source, self.peak = source, peak
        self._is_scaled = _OVER_FULL_SCALE < peak < math.inf
        self._mixed = self._channels = 0.0

    def mono(self, samples: FloatArray) -> FloatArray:
        """The mean of the channels [n, channels], clipped.

        It is clipped before resampling, which overflows on absurd levels, and again after,
        because a resampler overshoots.
        """
        if self._is_scaled:
            samples = samples / np.float32(self.peak)
        mono = samples[:, 0].copy()
        for channel in range(1, samples.shape[1]):  # mean(axis=1) walks the short axis, slowly
            mono += samples[:, channel]
        if samples.shape[1] > 1:
            mono /= np.float32(samples.shape[1])
            self._mixed += float(np.vdot(mono, mono))
            self._channels += float(np.vdot(samples, samples)) / samples.shape[1]
        if not np.isfinite(mono).all():
            raise AudioError(f"{self.source} holds samples that are not finite (NaN or infinity)")
        return np.clip(mono, -1.0, 1.0, out=mono)

    def tell(self, findings: Findings) -> None:
        """Writes down what was found, once all blocks are mixed."""
        if self._is_scaled:
            findings.scaled = f"peak {self.peak:.4g} {SCALED}: scaled by its peak"
        if self._mixed < self._channels * 10 ** (-CANCELLED_DB / 10):
            lost = 10 * math.log10(self._channels / self._mixed) if self._mixed else math.inf
            findings.cancelled = f"{CANCELLED}: mixing them loses {lost:.0f} dB"


def read_audio(path: Path | str, sample_rate: int) -> FloatArray:
    """Samples [n_samples] of a sound file: float32, mean of its channels, in [-1, 1].

    Decoded to the file's real end by libsndfile, or by PyAV where it is installed and libsndfile
    does not read the container, and resampled by soxr at high quality; clipped before and after
    (a codec or the resampler can overshoot). A float file whose peak exceeds 1.05 is scaled by
    its peak instead.

    Args:
        path: a WAV, FLAC, OGG, MP3 or other file that libsndfile reads, or the URL of one.
        sample_rate: wanted rate in Hz.

    Raises:
        MissingAudio: there is no such file.
        EmptyAudio: it has no bytes or no samples.
        PartialAudio: it can be decoded only in part.
        AudioError: it cannot be decoded or holds NaN.
    """
    return read_audio_at(path, [sample_rate])[sample_rate]


def read_audio_at(
    source: Source, sample_rates: Sequence[int], findings: Findings | None = None
) -> dict[int, FloatArray]:
    """The same sound by rate, decoded once; see `read_audio`.

    Args:
        source: the sound.
        sample_rates: wanted rates in Hz.
        findings: gets what is odd about it, and a file that decodes in part is no error then.
    """
    found = Findings() if findings is None else findings
    named = source if isinstance(source, Waveform) else as_location(source)
    with _by_name(named), _opened(named) as sound:
        (samples,) = sound.blocks()
        _check_any(len(samples), named)
        mixer = _Mixer(named, _peak([samples]) if sound.is_float else 0.0)
        mono = mixer.mono(samples)
        sounds = {}
        for rate in dict.fromkeys(sample_rates):
            changed = resample(mono, sound.rate, rate)
            sounds[rate] = mono if changed is mono else np.clip(changed, -1.0, 1.0, out=changed)
        mixer.tell(found)
        found.partial = sound.shortfall
        _check_whole(named, sound.shortfall, findings)
    return sounds


def stream_audio_at(
    source: Source, sample_rates: Sequence[int], findings: Findings | None = None
) -> Iterator[dict[int, FloatArray]]:
    """A sound by rate in blocks of half a minute: a file of hours in constant memory.

    The blocks follow on one another without a seam; resampled as a whole the file gives the
    same samples to rounding. A float file is read twice, for its peak first.

    Args:
        source: the sound.
        sample_rates: wanted rates in Hz.
        findings: gets what is odd about it, once all blocks are taken; see `read_audio_at`.

    Raises:
        AudioError: see `read_audio`; it may come after some blocks.
    """
    found = Findings() if findings is None else findings
    named = source if isinstance(source, Waveform) else as_location(source)
    with _by_name(named), _opened(named) as sound:
        n_block = BLOCK_SECONDS * sound.rate
        mixer = _Mixer(named, _peak(sound.blocks(n_block)) if sound.is_float else 0.0)
        yield from _resampled(sound.blocks(n_block), sound.rate, sample_rates, mixer)
        mixer.tell(found)
        found.partial = sound.shortfall
        _check_whole(named, sound.shortfall, findings)


class _Sliced:
    """A waveform as `bsdkit.sounds.reader.OpenSound` gives a file."""

    def __init__(self, source: Waveform) -> None:
        self._samples, self.rate, self.is_float = source.channels, source.sample_rate, True
        self.shortfall = ""

    def blocks(self, n_block: int = 0) -> Iterator[FloatArray]:
        n_channels = self._samples.shape[1]
        return in_blocks(iter([self._samples]), n_block, n_channels)


@contextlib.contextmanager
def _opened(source: Path | Waveform) -> Iterator[OpenSound | Media | _Sliced]:
    """A file or a waveform, in blocks."""
    if isinstance(source, Waveform):
        yield _Sliced(source)
        return
    with opened(source) as sound:
        yield sound


@contextlib.contextmanager
def _by_name(source: Path | Waveform) -> Iterator[None]:
    """Makes any error the sound's own: one odd file must not end a run.

    Libraries raise whatever they like over a broken file: TypeError, ValueError, MemoryError.
    """
    try:
        yield
    except AudioError:
        raise
    except Exception as error:
        if isinstance(source, Waveform):
            raise AudioError(f"{source} cannot be embedded: {error}") from None
        raise undecodable(source, error) from None


def _check_any(n_samples: int, source: Path | Waveform) -> None:
    if not n_samples:
        size = "" if isinstance(source, Waveform) else f" ({source.stat().st_size} bytes)"
        raise EmptyAudio(f"{source} has no samples{size}")


def _check_whole(source: Path | Waveform, shortfall: str, findings: Findings | None) -> None:
    if shortfall and findings is None:
        raise PartialAudio(f"{source}: {shortfall}")


def _peak(blocks: Iterable[FloatArray]) -> float:
    """The largest level of all samples; NaN where one is NaN."""
    peaks = [float(max(block.max(), -block.min())) for block in blocks if block.size]
    return max(peaks, default=0.0) if not any(map(math.isnan, peaks)) else math.nan


def _resampled(
    blocks: Iterator[FloatArray],
    native_rate: int,
    sample_rates: Sequence[int],
    mixer: _Mixer,
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
        mono = mixer.mono(samples) if len(samples) else np.zeros(0, np.float32)
        block = {}
        for rate in sample_rates:
            stream = streams.get(rate)
            changed = stream.resample_chunk(mono, last=is_last) if stream else mono
            block[rate] = changed if changed is mono else np.clip(changed, -1.0, 1.0)
        yield block
    _check_any(n_read, mixer.source)


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
