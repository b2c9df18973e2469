"""The rows of a manifest, read and checked.

A manifest is a CSV file with one row per clip. `package` and `path_in_package` name a shipped
file; `!` in the path leads into a game's archive. `render` says how the clip is made of it:

    (empty)                                                  decode the shipped file
    concat:PATH|PATH|...                                     play shipped files in turn
    fluidsynth:FONT_PACKAGE:FONT_PATH:bank=mel|drum:program=N:key=N:vel=N:dur=SECONDS
    midi:FONT_PACKAGE:FONT_PATH:channels=all|N+N+...         play the shipped MIDI file
    espeak-ng:voice=NAME:speed=N:pitch=N:text=TEXT
    flite:voice=NAME:stretch=X:text=TEXT
    festival:voice=NAME:text=TEXT

Everything that can be wrong with a row is found here, before anything is fetched, and is
reported with its line.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from bsdkit.errors import StarterError, nearest

__all__ = [
    "METADATA_COLUMNS",
    "WRITTEN_COLUMNS",
    "Clip",
    "Joined",
    "Note",
    "PackageFile",
    "Recipe",
    "Shipped",
    "Speech",
    "Tune",
    "read_manifest",
]

METADATA_COLUMNS = (
    "sound_id",
    "class",
    "class_idx",
    "class_top",
    "confidence",
    "uploader",
    "license",
    "title",
    "tags",
    "description",
)
WRITTEN_COLUMNS = (*METADATA_COLUMNS, "origin")
"""Of the metadata that is written: those of the manifest, and the package as what sounds share."""

_SOURCE_COLUMNS = (
    "package",
    "version",
    "path_in_package",
    "render",
    "start_s",
    "duration_s",
)

Number = TypeVar("Number", int, float)

_SOUND_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_PACKAGE_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~-]*")
_VOICE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*")


@dataclass(frozen=True)
class PackageFile:
    """One file of a package, or one member of an archive that a package ships."""

    package: str
    path: str
    member: str | None = None


@dataclass(frozen=True)
class Shipped:
    """A recipe: decode one shipped file."""

    file: PackageFile


@dataclass(frozen=True)
class Joined:
    """A recipe: decode shipped files and play them in turn."""

    files: tuple[PackageFile, ...]


@dataclass(frozen=True)
class Note:
    """A recipe: one note of a sound font, held for `hold` seconds."""

    font: PackageFile
    drum: bool
    program: int
    key: int
    velocity: int
    hold: float


@dataclass(frozen=True)
class Tune:
    """A recipe: a MIDI file played with a sound font; no `channels` means all of them."""

    midi: PackageFile
    font: PackageFile
    channels: frozenset[int] | None


@dataclass(frozen=True)
class Speech:
    """A recipe: a sentence spoken by `engine`, with the engine's own settings as text."""

    engine: str
    voice: str
    settings: tuple[tuple[str, str], ...]
    text: str


Recipe = Shipped | Joined | Note | Tune | Speech


@dataclass(frozen=True)
class Clip:
    """One row of a manifest: what to make (times in seconds) and what to write about it."""

    sound_id: str
    package: str
    version: str
    recipe: Recipe
    start: float
    duration: float
    path: str
    render: str
    metadata: tuple[str, ...]

    @property
    def files(self) -> tuple[PackageFile, ...]:
        """All files of packages that the clip is made of."""
        match self.recipe:
            case Shipped(file):
                return (file,)
            case Joined(files):
                return files
            case Note(font=font):
                return (font,)
            case Tune(midi, font):
                return (midi, font)
            case Speech():
                return ()


def read_manifest(path: Path) -> list[Clip]:
    """The clips of a manifest, in its order.

    Args:
        path: A CSV file in UTF-8 with all columns that this module describes.

    Raises:
        StarterError: The file is missing or a row of it cannot be used; the message names the
            line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise StarterError(
            f"no manifest {path}; the project's own are in recipes/starter "
            "(starter.csv, noisy.csv, demo.csv)"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StarterError(f"cannot read the manifest {path}: {error}") from error
    # splitlines() would also split at characters that CSV takes as text, such as U+2028.
    reader = csv.reader(text.split("\n"))
    clips: list[Clip] = []
    lines: dict[str, int] = {}
    try:
        header = [column.strip() for column in next(reader, [])]
        missing = [c for c in (*METADATA_COLUMNS, *_SOURCE_COLUMNS) if c not in header]
        if missing:
            raise StarterError(
                f"{path}, line 1: no column {', '.join(map(repr, missing))}; "
                f"the header has {', '.join(header) or 'nothing'}"
            )
        for fields in reader:
            if not fields:
                continue
            line = reader.line_num
            if len(fields) != len(header):
                raise StarterError(
                    f"{path}, line {line}: {len(fields)} fields, expected {len(header)}"
                )
            try:
                clip = _clip(dict(zip(header, fields, strict=True)))
            except ValueError as error:
                raise StarterError(f"{path}, line {line}: {error}") from None
            if clip.sound_id in lines:
                raise StarterError(
                    f"{path}, line {line}: sound_id {clip.sound_id} is on line "
                    f"{lines[clip.sound_id]} already; every clip needs its own"
                )
            lines[clip.sound_id] = line
            clips.append(clip)
    except csv.Error as error:
        raise StarterError(f"{path}, line {reader.line_num}: {error}") from None
    if not clips:
        raise StarterError(f"{path} has a header but no rows; expected one row per clip")
    return clips


def _clip(row: dict[str, str]) -> Clip:
    """The clip of one row; ValueError says what is wrong with the row."""
    sound_id = _matching(_SOUND_ID, row["sound_id"], "sound_id", "letters, digits, '_', '-', '.'")
    package = _matching(_PACKAGE_NAME, row["package"], "package", "the name of a Debian package")
    version = row["version"]
    if version:
        _matching(_VERSION, version, "version", "the version of a Debian package")
    duration = _number(row["duration_s"], "duration_s")
    if duration == 0:
        raise ValueError("duration_s is 0, expected a positive number of seconds")
    return Clip(
        sound_id=sound_id,
        package=package,
        version=version,
        recipe=_recipe(row["render"], package, row["path_in_package"]),
        start=_number(row["start_s"], "start_s"),
        duration=duration,
        path=row["path_in_package"],
        render=row["render"],
        metadata=(*(row[column] for column in METADATA_COLUMNS), row["package"]),
    )


def _recipe(render: str, package: str, path: str) -> Recipe:
    """The recipe that `render` spells, for the shipped file `path` of `package`."""
    kind, _, rest = render.partition(":")
    match kind:
        case "":
            return Shipped(_package_file(package, path))
        case "concat":
            return Joined(tuple(_package_file(package, part) for part in rest.split("|")))
        case "fluidsynth":
            font, settings = _font_and_settings(rest, ("bank", "program", "key", "vel", "dur"))
            if settings["bank"] not in ("mel", "drum"):
                raise ValueError(f"render: bank={settings['bank']}, expected mel or drum")
            return Note(
                font=font,
                drum=settings["bank"] == "drum",
                program=_midi_number(settings["program"], "program", 127),
                key=_midi_number(settings["key"], "key", 127),
                velocity=_midi_number(settings["vel"], "vel", 127),
                hold=_number(settings["dur"], "render: dur"),
            )
        case "midi":
            font, settings = _font_and_settings(rest, ("channels",))
            channels = None
            if settings["channels"] != "all":
                numbers = settings["channels"].split("+")
                channels = frozenset(_midi_number(n, "channels", 15) for n in numbers)
            return Tune(_package_file(package, path), font, channels)
        case "espeak-ng":
            return _speech(kind, rest, {"speed": "160", "pitch": "50"})
        case "flite":
            return _speech(kind, rest, {"stretch": "1.0"})
        case "festival":
            return _speech(kind, rest, {})
    kinds = ("concat", "fluidsynth", "midi", "espeak-ng", "flite", "festival")
    raise ValueError(f"render begins with {kind!r}; {nearest(kind, kinds)} (or leave it empty)")


def _font_and_settings(rest: str, keys: tuple[str, ...]) -> tuple[PackageFile, dict[str, str]]:
    """The sound font and the settings of FONT_PACKAGE:FONT_PATH:KEY=VALUE:..."""
    package, path, *parts = [*rest.split(":", 2), "", ""][:3]
    _matching(_PACKAGE_NAME, package, "render: sound font package", "the name of a Debian package")
    return _package_file(package, path), _settings(parts[0], dict.fromkeys(keys))


def _speech(engine: str, rest: str, defaults: dict[str, str]) -> Speech:
    """The recipe of voice=NAME:KEY=VALUE:...:text=TEXT, where TEXT may hold colons."""
    head, found, text = rest.partition(":text=")
    if not found or not text.strip():
        raise ValueError(f"render: no text to speak, expected {engine}:voice=NAME:text=TEXT")
    settings = _settings(head, {"voice": None, **defaults})
    # The voice reaches a program's command line, so it must not be able to say anything else.
    voice = _matching(_VOICE_NAME, settings.pop("voice"), "render: voice", "a voice's name")
    for key, value in settings.items():
        _number(value, f"render: {key}")
    return Speech(engine, voice, tuple(settings.items()), text)


def _settings(text: str, defaults: dict[str, str | None] | dict[str, str]) -> dict[str, str]:
    """The KEY=VALUE parts of a recipe; a default of None makes a key obligatory."""
    found: dict[str, str | None] = dict(defaults)
    for part in text.split(":"):
        key, _, value = part.partition("=")
        if key not in found:
            raise ValueError(f"render: unknown setting {part!r}; {nearest(key, found)}")
        found[key] = value
    missing = [key for key, value in found.items() if not value]
    if missing:
        raise ValueError(f"render: no {'=, '.join(missing)}= in it")
    return {key: value for key, value in found.items() if value}


def _package_file(package: str, path: str) -> PackageFile:
    """The file that a path of the manifest names."""
    outer, found, member = path.partition("!")
    pure = PurePosixPath(outer)
    if not outer or pure.is_absolute() or ".." in pure.parts or (found and not member):
        raise ValueError(
            f"path {path!r}, expected a path inside the package such as usr/share/a.ogg "
            "or usr/share/b.pk3!c.wav"
        )
    return PackageFile(package, outer, member if found else None)


def _matching(pattern: re.Pattern[str], text: str, what: str, expected: str) -> str:
    """`text` itself, if it matches the whole pattern."""
    if not pattern.fullmatch(text):
        raise ValueError(f"{what} is {text!r}, expected {expected}")
    return text


def _number(text: str, what: str) -> float:
    """The number that `text` spells, zero or more."""
    number = _converted(float, text)
    if number is None or not math.isfinite(number) or number < 0:
        raise ValueError(f"{what} is {text!r}, expected a number of zero or more")
    return number


def _midi_number(text: str, what: str, largest: int) -> int:
    """The whole number that `text` spells, from 0 to `largest`."""
    number = _converted(int, text)
    if number is None or not 0 <= number <= largest:
        raise ValueError(f"render: {what}={text}, expected a whole number from 0 to {largest}")
    return number


def _converted(convert: Callable[[str], Number], text: str) -> Number | None:
    """What `convert` makes of the text, or None when it refuses."""
    try:
        return convert(text)
    except ValueError:
        return None
