"""Notes, tunes and sentences as clips, made by programs for synthesis.

Notes and tunes are written as MIDI files with mido and played by fluidsynth, without reverb and
chorus, so that only the sound font is heard. All samples here are float32, mono, [n] at 44.1 kHz.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from recipes.starter.builder.decode import SAMPLE_RATE, Samples, to_mono, to_samples
from recipes.starter.builder.manifest import Note, Recipe, Speech, Tune

__all__ = ["RenderError", "missing_program", "render_notes", "render_speech", "render_tune"]

# 480 ticks to a beat at MIDI's default of two beats to a second.
_TICKS_PER_BEAT = 480
_TICKS_PER_SECOND = 960

_NOTE_RELEASE = 1.0  # seconds that are kept after a note is let go
_NOTE_SPACING = 0.2  # seconds between the end of a note and the beginning of the next one
_PROGRAM_CHANGE = 0.02  # seconds after the channel was silenced
_NOTE_ON = 0.05
_RUN_IN = 2.0  # seconds of a tune before its clip, so that notes held over are heard
_RUN_OUT = 0.5  # seconds of a tune after its clip

_MELODY_CHANNEL = 0
_DRUM_CHANNEL = 9
_SUSTAIN, _ALL_SOUND_OFF, _ALL_NOTES_OFF = 64, 120, 123

# A note batch takes seconds; a program that takes this long hangs.
_TIME_LIMIT = 300

_INSTALL_COMMANDS = {
    "fluidsynth": "apt-get install fluidsynth",
    "mido": "pip install 'bsdkit[starter]'",
    "espeak-ng": "apt-get install espeak-ng",
    "flite": "apt-get install flite",
    "text2wave": "apt-get install festival festvox-kallpc16k festvox-us-slt-hts",
}


class RenderError(Exception):
    """A program that could not render a clip."""


def missing_program(recipe: Recipe) -> tuple[str, str] | None:
    """The first program that a recipe needs and that is not here, and what installs it."""
    match recipe:
        case Note() | Tune():
            needed = ["fluidsynth", "mido"]
        case Speech(engine="festival"):
            needed = ["text2wave"]
        case Speech(engine=engine):
            needed = [engine]
        case _:
            needed = []
    for program in needed:
        if program == "mido":
            found = importlib.util.find_spec(program) is not None
        else:
            found = shutil.which(program) is not None
        if not found:
            return program, _INSTALL_COMMANDS[program]
    return None


def render_notes(font: Path, notes: Sequence[Note]) -> list[Samples]:
    """Single notes of one sound font, each [n] with a second of release.

    All notes are played in one call of fluidsynth, since reading a large sound font takes far
    longer than playing a note. What is rendered can differ in its last bit with the notes that
    come before, so the same list must be given to get the same samples.
    """
    mido = importlib.import_module("mido")
    events: list[tuple[float, Any]] = []
    begins: list[float] = []
    now = 0.0
    for note in notes:
        channel = _DRUM_CHANNEL if note.drum else _MELODY_CHANNEL
        begin = now + _NOTE_ON
        events += [
            (now, _control(channel, _ALL_SOUND_OFF)),
            (
                now + _PROGRAM_CHANGE,
                mido.Message("program_change", channel=channel, program=note.program),
            ),
            (
                begin,
                mido.Message("note_on", channel=channel, note=note.key, velocity=note.velocity),
            ),
            (begin + note.hold, mido.Message("note_off", channel=channel, note=note.key)),
        ]
        begins.append(begin)
        now += note.hold + _NOTE_RELEASE + _NOTE_SPACING
    end = events[-1][0]
    # fluidsynth plays on for as long as anything sounds, and some notes never fade.
    events += [
        (end + 1, _control(_MELODY_CHANNEL, _ALL_SOUND_OFF)),
        (end + 2, _control(_DRUM_CHANNEL, _ALL_SOUND_OFF)),
    ]
    samples = _play(font, events)
    return [
        samples[to_samples(begin) :][: to_samples(note.hold + _NOTE_RELEASE)]
        for begin, note in zip(begins, notes, strict=True)
    ]


def render_tune(tune: Tune, unpacked: Path, start: float, duration: float) -> Samples:
    """A stretch of a MIDI file played with a sound font, [n], padded with silence to the end.

    Args:
        tune: The MIDI file, the sound font and the channels to play.
        unpacked: The folder with one folder of unpacked files for each package.
        start: Where the stretch begins, in seconds.
        duration: Its length in seconds.
    """
    mido = importlib.import_module("mido")
    # clip: some files hold values out of range, which players take as the nearest legal one.
    source = mido.MidiFile(unpacked / tune.midi.package / tune.midi.path, clip=True)
    run_in = max(0.0, start - _RUN_IN)
    events: list[tuple[float, Any]] = []
    now = last = 0.0
    for message in source:
        now += message.time
        if now > start + duration + _RUN_OUT:
            break
        if message.is_meta or message.type == "sysex":
            continue
        # A message without a channel concerns all of them.
        channel = getattr(message, "channel", None)
        if tune.channels is not None and channel is not None and channel not in tune.channels:
            continue
        # Before the run-in only the controllers and the choice of instruments matter.
        if now < run_in and message.type in ("note_on", "note_off"):
            continue
        last = max(now - run_in, 0.0)
        events.append((last, message))
    end = last + 0.5
    events.append((end, _control(_MELODY_CHANNEL, _ALL_SOUND_OFF)))
    # fluidsynth plays on for as long as anything sounds.
    for channel in range(16):
        for control in (_SUSTAIN, _ALL_SOUND_OFF, _ALL_NOTES_OFF):
            events.append((end, _control(channel, control)))
    samples = _play(unpacked / tune.font.package / tune.font.path, events)
    samples = samples[to_samples(start - run_in) :][: to_samples(duration)]
    return np.pad(samples, (0, to_samples(duration) - len(samples)))


def render_speech(speech: Speech) -> Samples:
    """A sentence spoken by a speech synthesizer, [n]."""
    settings = dict(speech.settings)
    with tempfile.TemporaryDirectory(prefix="bsdkit-") as name:
        folder = Path(name)
        wave = folder / "speech.wav"
        match speech.engine:
            case "espeak-ng":
                command = ["espeak-ng", "-v", speech.voice, "-w", str(wave)]
                command += ["-s", settings["speed"], "-p", settings["pitch"], "--", speech.text]
            case "flite":
                command = ["flite", "-voice", speech.voice, "-o", str(wave)]
                command += ["--setf", f"duration_stretch={settings['stretch']}", "-t", speech.text]
            case "festival":
                text = folder / "text.txt"
                text.write_text(speech.text, encoding="utf-8")
                command = ["text2wave", "-eval", f"(voice_{speech.voice})"]
                command += ["-o", str(wave), str(text)]
            case engine:
                raise ValueError(f"no speech engine {engine!r}")
        return _run_for_samples(command, wave)


def _control(channel: int, control: int) -> Any:
    """The MIDI message that sets a controller of a channel to 0."""
    mido = importlib.import_module("mido")
    return mido.Message("control_change", channel=channel, control=control, value=0)


def _play(font: Path, events: Iterable[tuple[float, Any]]) -> Samples:
    """What a sound font makes of MIDI messages, [n].

    Args:
        font: A sound font in SF2 format.
        events: Times in seconds, in order, and the messages at them.
    """
    mido = importlib.import_module("mido")
    track = mido.MidiTrack()
    ticks = 0
    for seconds, message in events:
        now = round(seconds * _TICKS_PER_SECOND)
        track.append(message.copy(time=now - ticks))
        ticks = now
    track.append(mido.MetaMessage("end_of_track", time=_TICKS_PER_SECOND // 4))
    song = mido.MidiFile(ticks_per_beat=_TICKS_PER_BEAT)
    song.tracks.append(track)
    with tempfile.TemporaryDirectory(prefix="bsdkit-") as name:
        midi, wave = Path(name) / "song.mid", Path(name) / "song.wav"
        song.save(midi)
        # -f: settings in the home folder of whoever runs this must not change the sounds.
        command = ["fluidsynth", "-ni", "-q", "-f", "/dev/null", "-R", "0", "-C", "0", "-g", "0.6"]
        command += ["-r", str(SAMPLE_RATE), "-F", str(wave), str(font), str(midi)]
        return _run_for_samples(command, wave)


def _run_for_samples(command: Sequence[str], wave: Path) -> Samples:
    """What a program writes as a WAV file, [n]."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_TIME_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RenderError(f"{command[0]} did not end within {_TIME_LIMIT} s") from None
    if done.returncode or not wave.is_file():
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RenderError(
            f"{command[0]} ended with {done.returncode}: {said[-1] if said else 'no message'}"
        )
    samples, rate = soundfile.read(wave, dtype="float32", always_2d=True)
    return to_mono(samples, rate)
