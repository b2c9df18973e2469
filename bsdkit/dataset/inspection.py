"""What the audio files of a clips table are: their digests, seconds, and which sounds are equal."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bsdkit.dataset.clips import Clips, strings
from bsdkit.location import is_remote

__all__ = ["inspect_audio"]


@dataclass(frozen=True)
class _File:
    """What an audio file is made of; `length` is (samples, their rate), None where unknown."""

    sha256: str = ""
    seconds: float = math.nan
    length: tuple[int, int] | None = None


def _inspect(path: Path | None) -> _File:
    if path is None:
        return _File()
    source: Path | io.BytesIO = path
    try:
        if is_remote(path):
            source = io.BytesIO(path.read_bytes())
            digest = hashlib.sha256(source.getbuffer()).hexdigest()
        else:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return _File()
    length = _length(source)
    return _File(digest, length[0] / length[1] if length else math.nan, length)


def _length(source: Path | io.BytesIO) -> tuple[int, int] | None:
    """(samples, their rate in Hz) by the header; None where it cannot be decoded."""
    import soundfile

    try:
        # as bytes: a name need not be UTF-8
        info = soundfile.info(os.fsencode(source) if isinstance(source, Path) else source)
    except (soundfile.SoundFileError, RuntimeError, OSError, TypeError):  # TypeError: .raw
        return None
    return (info.frames, info.samplerate) if info.samplerate > 0 else None


def _sound_digest(path: Path) -> str:
    """The sha256 of the samples, mixed to one channel, and their rate; empty if undecodable."""
    import soundfile

    try:
        source = io.BytesIO(path.read_bytes()) if is_remote(path) else os.fsencode(path)
        with soundfile.SoundFile(source) as file:
            digest = hashlib.sha256(str(file.samplerate).encode())
            for block in file.blocks(1 << 20, dtype="float32", always_2d=True):
                digest.update(block.mean(axis=1).tobytes())
        return digest.hexdigest()
    except (soundfile.SoundFileError, RuntimeError, OSError, TypeError):
        return ""


def inspect_audio(
    clips: Clips, *, n_threads: int = 2, progress: Callable[[int], None] | None = None
) -> Clips:
    """The same clips with the digests and, from its header, the seconds of each audio file.

    A file that cannot be read keeps an empty digest; one that cannot be decoded, NaN seconds.
    Two files can only hold the same samples if they are equally long: those alone are decoded
    to compare them; the digest of any other file stands for its sound.

    Args:
        clips: a clips table with audio paths.
        n_threads: files read at a time.
        progress: called with the number of files done.
    """
    files = []
    with ThreadPoolExecutor(n_threads) as pool:
        for file in pool.map(_inspect, clips.audio):
            files.append(file)
            if progress:
                progress(len(files))
        # one file under two ids is known to be equal without decoding it
        path_of = {f.sha256: p for f, p in zip(files, clips.audio, strict=True) if f.length and p}
        length_of = {file.sha256: file.length for file in files}
        n_of_length = Counter(length_of[digest] for digest in path_of)
        alike = [digest for digest in path_of if n_of_length[length_of[digest]] > 1]
        sounds = pool.map(_sound_digest, [path_of[digest] for digest in alike])
        sound_of = dict(zip(alike, sounds, strict=True))
    seconds = [
        # without a file, what the metadata say is all there is
        float(clips.duration[i]) if clips.audio[i] is None else file.seconds
        for i, file in enumerate(files)
    ]
    return replace(
        clips,
        sha256=strings(file.sha256 for file in files),
        sound=strings(sound_of.get(file.sha256) or file.sha256 for file in files),
        duration=np.array(seconds, np.float32),
    )
