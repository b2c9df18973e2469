"""Shipped files as clips, and clips as checked WAV files.

All samples here are float32, mono, [n] at 44.1 kHz.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from recipes.starter.builder.containers import read_member
from recipes.starter.builder.manifest import PackageFile
from recipes.starter.builder.packages import partial_name

__all__ = [
    "SAMPLE_RATE",
    "ClipError",
    "Samples",
    "join_files",
    "read_file",
    "to_mono",
    "to_samples",
    "write_clip",
]

Samples = npt.NDArray[np.float32]

SAMPLE_RATE = 44_100
SILENCE_DBFS = -60.0
LENGTH_TOLERANCE = 0.03  # seconds
_JOINING_GAP = 0.25  # seconds of silence between two files that are played in turn
_PEAK = 0.999  # of full scale, for sounds that would clip


class ClipError(Exception):
    """A clip that was made but cannot be used."""


def to_samples(seconds: float) -> int:
    """The number of samples in a time."""
    return round(seconds * SAMPLE_RATE)


def to_mono(samples: Samples, rate: int) -> Samples:
    """The mean of the channels, at 44.1 kHz, [n].

    Args:
        samples: Samples of all channels, [n, channels].
        rate: Their sample rate in Hz.
    """
    mono: Samples = samples.mean(axis=1)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE)
    return mono.astype(np.float32, copy=False)


def read_file(
    unpacked: Path, file: PackageFile, start: float = 0.0, duration: float | None = None
) -> Samples:
    """A stretch of a shipped file, [n].

    Args:
        unpacked: The folder with one folder of unpacked files for each package.
        file: What to read.
        start: Where to begin, in seconds.
        duration: How much to read at most, in seconds; by default all of it.
    """
    path = unpacked / file.package / file.path
    source = path if file.member is None else io.BytesIO(read_member(path, file.member))
    with soundfile.SoundFile(source) as sound:
        rate = sound.samplerate
        skipped = round(start * rate)
        if skipped:
            try:
                sound.seek(skipped)
            except soundfile.LibsndfileError:
                # Some compressed files cannot be sought in; reading gets there too.
                sound.read(skipped)
        frames = -1 if duration is None else round(duration * rate)
        samples = sound.read(frames, dtype="float32", always_2d=True)
    return to_mono(samples, rate)


def join_files(unpacked: Path, files: Sequence[PackageFile]) -> Samples:
    """All of some shipped files in turn, with a quarter of a second of silence between, [n]."""
    gap = np.zeros(to_samples(_JOINING_GAP), np.float32)
    parts: list[Samples] = []
    for file in files:
        parts += [gap, read_file(unpacked, file)]
    return np.concatenate(parts[1:])


def write_clip(samples: Samples, duration: float, target: Path) -> None:
    """Crop, check and write a clip as 16-bit WAV; `target` appears only when it is whole.

    Args:
        samples: The clip, [n]; louder than full scale means that it is turned down.
        duration: How long it should be, in seconds; what is longer is cut off.
        target: The WAV file.

    Raises:
        ClipError: The clip is silent or too short.
    """
    samples = samples[: to_samples(duration)]
    if not len(samples):
        raise ClipError(f"empty, expected {duration:g} s")
    level = 20 * np.log10(max(float(np.sqrt(np.mean(np.square(samples, dtype=float)))), 1e-9))
    if level < SILENCE_DBFS:
        raise ClipError(f"silent: {level:.0f} dBFS, expected more than {SILENCE_DBFS:.0f}")
    seconds = len(samples) / SAMPLE_RATE
    if abs(seconds - duration) > LENGTH_TOLERANCE:
        raise ClipError(f"{seconds:.3f} s long, the manifest says {duration:g} s")
    peak = float(np.abs(samples).max())
    if peak > 1:
        samples = samples / peak * _PEAK
    partial = partial_name(target)
    try:
        soundfile.write(partial, samples, SAMPLE_RATE, subtype="PCM_16", format="WAV")
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
