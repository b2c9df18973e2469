"""Which endings of file names promise sound."""

from __future__ import annotations

import functools

__all__ = ["MEDIA_SUFFIXES", "audio_suffixes"]

# the usual ending first; a format without a line here ends in its own name
_ENDINGS = {
    "WAV": (".wav", ".wave", ".bwf"),
    "WAVEX": (),
    "RF64": (".rf64",),
    "FLAC": (".flac",),
    "OGG": (".ogg", ".oga", ".opus"),
    "MP3": (".mp3", ".mp2"),
    "AIFF": (".aiff", ".aif", ".aifc"),
    "CAF": (".caf",),
    "AU": (".au", ".snd"),
    "NIST": (".nist", ".sph"),
    "SVX": (".svx", ".8svx", ".iff"),
    "IRCAM": (".sf", ".ircam"),
    "RAW": (),  # no header: rate and number type are anyone's guess
    "MAT4": (),  # matrices, of which few are sounds
    "MAT5": (),
    "MPC2K": (".snd",),
}

MEDIA_SUFFIXES = tuple(
    ".m4a .m4b .mp4 .m4v .aac .ac3 .wma .wmv .asf .webm .weba .mkv .mka .amr .3gp .3g2 .mov .avi "
    ".flv .ape .wv .tta .mpc .spx .ra .rm .dts .dsf .dff .mpg .mpeg .mpga .ts .eac3 .qt".split()
)
"""Other files with sound, which libsndfile does not read and the extra ``media`` does."""


@functools.cache
def audio_suffixes() -> tuple[str, ...]:
    """The endings of the files that the installed libsndfile reads, the most usual first.

    Examples:
        >>> audio_suffixes()[:2], ".raw" in audio_suffixes()
        (('.wav', '.wave'), False)
    """
    import soundfile

    readable = soundfile.available_formats()
    known = [name for name in _ENDINGS if name in readable]
    others = sorted(set(readable) - set(_ENDINGS))
    endings = [end for name in known for end in _ENDINGS[name]]
    return tuple(dict.fromkeys([*endings, *(f".{name.lower()}" for name in others)]))
