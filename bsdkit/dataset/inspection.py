"""What the audio files of a clips table are: their digests, seconds, and which sounds are equal."""

from __future__ import annotations

import hashlib
import io
import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bsdkit.audio import audio_seconds
from bsdkit.dataset.clips import Clips, strings
from bsdkit.location import is_remote
from bsdkit.sounds.reader import opened

__all__ = ["inspect_audio"]


@dataclass(frozen=True)
class _File:
    """The digest of an audio file and the seconds of its sound; NaN where unknown."""

    sha256: str = ""
    seconds: float = math.nan


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
    return _File(digest, audio_seconds(source))


def _sound_digest(path: Path) -> str:
    """The sha256 of the samples, mixed to one channel, and their rate; empty if undecodable."""
    try:
        with opened(path) as sound:
            digest = hashlib.sha256(str(sound.rate).encode())
            for block in sound.blocks(1 << 20):
                digest.update(block.mean(axis=1).tobytes())
        return digest.hexdigest()
    except Exception:  # whatever the file is: why it cannot be decoded is for extraction to say
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
        path_of = {f.sha256: p for f, p in zip(files, clips.audio, strict=True) if f.seconds > 0}
        length_of = {file.sha256: file.seconds for file in files}
        n_of_length = Counter(length_of.values())
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
