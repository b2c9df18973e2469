"""Folders of sound files: which files are audio, what is passed over, and the file of a clip."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

from bsdkit.location import is_remote
from bsdkit.sounds import suffixes
from bsdkit.sounds.suffixes import MEDIA_SUFFIXES

__all__ = [
    "AUDIO_SUFFIXES",
    "AudioFinder",
    "FolderContents",
    "audio_folders",
    "audio_suffixes",
    "is_split_name",
    "plain_name",
    "read_folder",
]

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif")
"""The usual endings of audio file names, in order of preference for the same stem."""

_LEFTOVERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "thumbs.db"}
_AUDIO_FOLDER = "audio"
_META_FOLDER = re.compile(r"meta|ground.?truth|annotation|label|csv|table", re.IGNORECASE)
_SPLIT = re.compile(
    r"(train(ing)?|test(ing)?|val(id(ation)?)?|dev(elopment)?|eval(uation)?|hold.?out"
    r"|(fold|split|part)[ _-]?\d+)([ _-]?(set|data|split|audio))?",
    re.IGNORECASE,
)


@functools.cache
def audio_suffixes() -> tuple[str, ...]:
    """File name endings that the installed libraries read, the usual ones first."""
    media = MEDIA_SUFFIXES if importlib.util.find_spec("av") else ()
    return tuple(dict.fromkeys((*AUDIO_SUFFIXES, *suffixes.audio_suffixes(), *media)))


def is_split_name(name: str) -> bool:
    """Whether a folder's name is that of a part of a dataset, such as ``train`` or ``fold1``."""
    return _SPLIT.fullmatch(name.strip()) is not None


def plain_name(name: str) -> str:
    """A file's name in one Unicode form; one in bytes that are no UTF-8 is taken as cp1252."""
    try:
        name.encode()
    except UnicodeEncodeError:
        name = os.fsencode(name).decode("cp1252", "replace")
    return unicodedata.normalize("NFC", name)


@dataclass
class FolderContents:
    """What stands below a folder.

    Attributes:
        root: the folder.
        audio: the audio files, sorted.
        others: files that are not read, by their ending, of each folder, by the names that lead
            there from the root; a folder without any is among them.
        passed: what was passed over and how often: hidden files, links that lead nowhere.
        is_deep: whether the folders below it were read too.
    """

    root: Path
    audio: list[Path] = field(default_factory=list)
    others: dict[tuple[str, ...], Counter[str]] = field(default_factory=dict)
    passed: Counter[str] = field(default_factory=Counter)
    is_deep: bool = True

    def notes(self) -> list[str]:
        """What is not read, with its count and what can be done about it."""
        notes = []
        if self.passed:
            notes.append("passed over: " + _listed(self.passed))
        total: Counter[str] = sum(self.others.values(), Counter())
        media = Counter({suffix: n for suffix, n in total.items() if suffix in MEDIA_SUFFIXES})
        if media:
            suffix = media.most_common(1)[0][0]
            notes.append(
                f"{media.total()} sound or film files not read ({_listed(media)}): convert each, "
                f"e.g. ffmpeg -i in{suffix} out.wav"
            )
        if rest := total - media:
            notes.append(f"{rest.total()} files that are no audio ({_listed(rest)})")
        return notes

    def tables(self) -> int:
        """How many tables stand in the folder itself."""
        here = self.others.get((), Counter())
        return sum(here[suffix] for suffix in (".csv", ".tsv", ".xlsx", ".json", ".parquet"))

    def lost_folders(self, depth: int = 1) -> list[str]:
        """The folders so far below the root that hold no audio that is read, and what instead."""
        with_audio = {path.relative_to(self.root).parts[:depth] for path in self.audio}
        lost: dict[tuple[str, ...], Counter[str]] = {}
        for parts, others in self.others.items():
            if len(parts) >= depth and parts[:depth] not in with_audio:
                lost.setdefault(parts[:depth], Counter()).update(others)
        return [
            f"folder {'/'.join(parts)!r} gives no clip: "
            + (f"{n} files, none read ({_listed(others)})" if (n := others.total()) else "empty")
            for parts, others in sorted(lost.items())
        ]


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sorted(counts.items()))


def read_folder(root: Path, *, is_deep: bool = True) -> FolderContents:
    """What stands in a folder and, if `is_deep`, below it; links are followed.

    What programs leave behind is passed over: names that begin with a dot, ``__MACOSX``. So is a
    link to a folder that it stands in.
    """
    found = FolderContents(root, is_deep=is_deep)
    suffixes = set(audio_suffixes())
    for path in _files(root, found):
        suffix = path.suffix.lower()
        if suffix in suffixes:
            found.audio.append(path)
        else:
            others = found.others.setdefault(path.relative_to(root).parts[:-1], Counter())
            others[suffix or "no ending"] += 1
    found.audio.sort()
    return found


def _files(root: Path, found: FolderContents) -> Iterator[Path]:
    if is_remote(root):
        for path in root.rglob("*") if found.is_deep else root.iterdir():
            if any(map(_is_leftover, path.relative_to(root).parts)):
                found.passed["hidden or system files"] += 1
            elif path.is_file():
                yield path
        return
    above: dict[Path, tuple[str, ...]] = {root: (os.path.realpath(root),)}
    folders = [root]
    while folders:
        folder = folders.pop()
        for path in sorted(folder.iterdir()):
            if _is_leftover(path.name):
                found.passed["hidden or system files and folders"] += 1
            elif path.is_dir():
                real = os.path.realpath(path)
                if real in above[folder]:
                    found.passed["links to a folder above them"] += 1
                elif found.is_deep:
                    above[path] = (*above[folder], real)
                    folders.append(path)
                    found.others[path.relative_to(root).parts] = Counter()
            elif path.is_file():
                yield path
            else:
                found.passed["links that lead nowhere"] += 1


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _LEFTOVERS


def audio_folders(root: Path) -> list[Path]:
    """Folders that hold the audio of a table in `root`: ``audio`` and, e.g., ``dev_audio``.

    They are beside the table or, where that is in a folder of tables such as ``metadata``, beside
    this folder.
    """
    if is_remote(root):
        return [root / _AUDIO_FOLDER] if (root / _AUDIO_FOLDER).is_dir() else []
    parents = [root, root.parent] if _META_FOLDER.search(root.absolute().name) else [root]
    found = []
    for parent in parents:
        folders = [f for f in sorted(parent.iterdir()) if f.name.casefold().endswith(_AUDIO_FOLDER)]
        folders.sort(key=lambda f: f.name != _AUDIO_FOLDER)
        found += [f for f in folders if not _is_leftover(f.name) and f.is_dir()]
    return found


@dataclass(frozen=True)
class _Named:
    """Files by one form of their name: those that may be meant, the preferred one first."""

    files: dict[str, list[Path]] = field(default_factory=dict)

    def add(self, name: str, path: Path) -> None:
        self.files.setdefault(name, []).append(path)


class AudioFinder:
    """The audio files that a table's ids and paths mean.

    Args:
        root: the folder that paths are relative to.
        folders: where the audio is.
        contents: what stands in these folders.

    Attributes:
        ways: how often a file was found otherwise than by its whole name, with an example.
        used: the files that were found.
        n_twins: ids for which several files stand there.
    """

    def __init__(self, root: Path, folders: Sequence[Path], contents: Sequence[FolderContents]):
        self.root, self.folders = root, folders
        self.ways: dict[str, list[str]] = {}
        self.used: set[Path] = set()
        self.n_twins = 0
        self._names, self._stems, self._numbers, self._folded = (_Named() for _ in range(4))
        rank = {suffix: i for i, suffix in enumerate(audio_suffixes())}
        for found in contents:
            # the preferred suffix first, then what is least deep
            order = sorted(found.audio, key=lambda f: (rank[f.suffix.lower()], len(f.parts), f))
            for path in order:
                relative = plain_name(path.relative_to(found.root).as_posix())
                stem = plain_name(path.stem)
                for name in dict.fromkeys((relative, plain_name(path.name))):
                    self._names.add(name, path)
                self._stems.add(stem, path)
                self._folded.add(plain_name(path.name).casefold(), path)
                if stem.isdecimal():
                    self._numbers.add(str(int(stem)), path)
        self.files = {path for found in contents for path in found.audio}

    def by_path(self, named: str) -> Path | None:
        """The file of a path in a table, None where there is none."""
        if is_remote(self.root):
            return self.root / named
        turned = PurePosixPath(named.replace("\\", "/"))
        tried = [("", named), ("with / for \\", str(turned))]
        # a path from another machine or folder
        tried += [("below another folder", "/".join(turned.parts[i:])) for i in range(1, 9)]
        for way, name in tried:
            for folder in (self.root, *self.folders):
                if name and _is_file(folder / name):
                    return self._take(folder / name, way, named)
        name, stem = plain_name(turned.name), plain_name(turned.stem)
        for way, key, names in (
            ("by name alone", plain_name(str(turned)), self._names),
            ("by name alone", name, self._names),
            ("whatever the case", name.casefold(), self._folded),
            ("with another ending", stem, self._stems),
        ):
            if key in names.files and (names is not self._folded or len(names.files[key]) == 1):
                return self._choose(names.files[key], way, named)
        return None

    def by_id(self, clip: str, usual: str = "") -> Path | None:
        """The file of a clip by its id, None where there is none or several may be meant.

        Args:
            clip: the id.
            usual: what to note of a file that has the very id as its name.
        """
        name = plain_name(clip)
        whole = name.removesuffix(".0")  # what pandas makes of a column of numbers with a gap
        stem = PurePath(name).stem if PurePath(name).suffix.lower() in audio_suffixes() else name
        for way, key, names in (
            (usual, name, self._stems),
            (usual, name, self._names),
            ("without its ending", stem, self._stems),
            ("without .0", whole, self._stems),
        ):
            if key in names.files:
                return self._choose(names.files[key], way, clip)
        number = str(int(whole)) if whole.isdecimal() and len(whole) < 30 else ""
        files = self._numbers.files.get(number, [])
        if files and len({path.stem for path in files}) == 1:
            return self._choose(files, "by number", clip)
        return None

    def missing(self, clip: str) -> Path | None:
        """The file that a clip without one should have, so that it can be named."""
        if not self.folders:
            return None
        has_ending = PurePath(clip).suffix.lower() in audio_suffixes()
        return self.folders[0] / (clip if has_ending else f"{clip}.wav")

    def notes(self) -> list[str]:
        """How files were found, and which were not used, with their counts."""
        notes = [
            f"{len(names)} audio files found {way}, e.g. {names[0]!r}"
            for way, names in self.ways.items()
        ]
        if self.n_twins:
            notes.append(
                f"{self.n_twins} ids have several audio files: the first of "
                f"{', '.join(AUDIO_SUFFIXES)} is taken, and the one in the fewest folders"
            )
        return notes

    def _choose(self, files: list[Path], way: str, name: str) -> Path:
        self.n_twins += len(files) > 1
        return self._take(files[0], way, name)

    def _take(self, path: Path, way: str, name: str) -> Path:
        if way:
            self.ways.setdefault(way, []).append(name)
        self.used.add(path)
        return path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or holds a NUL
        return False
