"""Which endings of file names promise sound."""

from __future__ import annotations

import soundfile

from bsdkit.audio import MEDIA_SUFFIXES, audio_suffixes


def test_what_libsndfile_reads_is_sound() -> None:
    usual = {".wav", ".wave", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc"}
    assert usual | {".w64", ".rf64", ".caf", ".au", ".snd"} <= set(audio_suffixes())
    assert len(audio_suffixes()) >= len(soundfile.available_formats()) - 4
    assert ".raw" not in audio_suffixes()  # without a header anything is sound
    assert {".m4a", ".mp4", ".aac", ".wma", ".webm", ".mkv", ".amr"} <= set(MEDIA_SUFFIXES)
    assert not set(MEDIA_SUFFIXES) & set(audio_suffixes())
    assert all(end == end.lower() and end[0] == "." for end in audio_suffixes() + MEDIA_SUFFIXES)
