"""Build a dataset folder from a manifest: fetch, unpack, render, decode, write metadata.

A clip whose WAV file is there is kept, so a build that was interrupted goes on where it stopped
and a finished one has nothing to do.
"""

from __future__ import annotations

import csv
import logging
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from bsdkit.errors import StarterError
from recipes.starter.builder.decode import Samples, join_files, read_file, to_samples, write_clip
from recipes.starter.builder.manifest import (
    WRITTEN_COLUMNS,
    Clip,
    Joined,
    Note,
    PackageFile,
    Shipped,
    Speech,
    Tune,
    read_manifest,
)
from recipes.starter.builder.packages import (
    PackageError,
    PackageStore,
    default_cache,
    partial_name,
    remove_leftovers,
)
from recipes.starter.builder.render import missing_program, render_notes, render_speech, render_tune

__all__ = ["BuildReport", "build_starter"]

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Takes the stage, how much of it is done, and how much there is to do."""

_NOTES_PER_CALL = 60
_CLIPS_PER_CALL = 16
_WAV_HEADER_BYTES = 44


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        n_rows: Rows of the manifest.
        n_kept: Clips that were there already.
        n_built: Clips that were made.
        failures: One line of reason for each sound_id that could not be made.
        missing_programs: The command that installs each program that rendered rows lacked.
        seconds: How long it took.
    """

    n_rows: int
    n_kept: int
    n_built: int
    failures: dict[str, str]
    missing_programs: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class _Task:
    """Clips that one call in another process makes.

    `clips` are rendered together; only those in `wanted` are written.
    """

    clips: tuple[Clip, ...]
    wanted: frozenset[str]
    unpacked: Path
    audio: Path


def build_starter(
    manifest: Path,
    out: Path,
    *,
    name: str | None = None,
    cache: Path | None = None,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """What was kept, made and not made of the clips of a manifest.

    Writes audio/<sound_id>.wav (44.1 kHz, mono, 16 bit) and metadata/<name>_metadata.csv below
    `out`, and metadata/<name>_failed.csv when clips could not be made.

    Args:
        manifest: A CSV file as `recipes.starter.builder.manifest` describes it.
        out: The dataset folder, which need not exist yet.
        name: The name of the metadata; by default that of the manifest without its ending.
        cache: The folder for packages; by default $BSDKIT_CACHE or ~/.cache/bsdkit.
        n_jobs: How many processes to use; by default one for each processor.
        progress: Called with a stage (fetch, unpack, render, decode), the number done and the
            number to do, beginning with none done; stages without anything to do are left out.

    Raises:
        StarterError: The manifest cannot be used, or nothing can be fetched on this machine.
    """
    began = time.perf_counter()
    report_progress = progress or _no_progress
    clips = read_manifest(manifest)
    name = name or manifest.stem
    if Path(name).name != name:
        raise StarterError(f"name is {name!r}, expected the beginning of a file name such as demo")
    if n_jobs is not None and n_jobs < 1:
        raise StarterError(f"n_jobs is {n_jobs}, expected 1 or more")
    jobs = n_jobs or os.cpu_count() or 1
    store = PackageStore(cache or default_cache())
    audio, metadata = out / "audio", out / "metadata"

    there = _finished(audio)
    todo = [clip for clip in clips if clip.sound_id not in there]
    n_kept = len(clips) - len(todo)

    failures, missing_programs = _without_program(todo)
    todo = [clip for clip in todo if clip.sound_id not in failures]
    # Packages come before the folders, so that a machine without apt is left as it was.
    unavailable = _provide_files(store, todo, _versions(clips), jobs, report_progress)
    for folder in (audio, metadata):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StarterError(f"cannot make the folder {folder}: {error.strerror}") from error
    for clip in todo:
        reasons = [unavailable[file] for file in clip.files if file in unavailable]
        if reasons:
            failures[clip.sound_id] = reasons[0]
    wanted = {clip.sound_id for clip in todo if clip.sound_id not in failures}
    if wanted:
        remove_leftovers(audio, ".*.part")
        failures |= _make_clips(clips, wanted, store.unpacked, audio, jobs, report_progress)

    made = [clip for clip in clips if clip.sound_id not in failures]
    _write_table(
        metadata / f"{name}_metadata.csv", WRITTEN_COLUMNS, (clip.metadata for clip in made)
    )
    failed = [clip for clip in clips if clip.sound_id in failures]
    failed_table = metadata / f"{name}_failed.csv"
    if failed:
        _write_table(
            failed_table,
            ("sound_id", "package", "path_in_package", "render", "reason"),
            (
                (clip.sound_id, clip.package, clip.path, clip.render, failures[clip.sound_id])
                for clip in failed
            ),
        )
    else:
        failed_table.unlink(missing_ok=True)
    return BuildReport(
        n_rows=len(clips),
        n_kept=n_kept,
        n_built=len(made) - n_kept,
        failures={clip.sound_id: failures[clip.sound_id] for clip in failed},
        missing_programs=missing_programs,
        seconds=time.perf_counter() - began,
    )


def _no_progress(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


def _finished(audio: Path) -> set[str]:
    """The sound_ids whose WAV files are there."""
    try:
        with os.scandir(audio) as entries:
            # A machine that lost its power can leave a file of this name without contents.
            return {
                entry.name.removesuffix(".wav")
                for entry in entries
                if entry.name.endswith(".wav") and entry.stat().st_size > _WAV_HEADER_BYTES
            }
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise StarterError(f"cannot read the folder {audio}: {error.strerror}") from error


def _without_program(clips: Iterable[Clip]) -> tuple[dict[str, str], dict[str, str]]:
    """The clips that cannot be rendered, with reasons, and the commands that would help."""
    failures: dict[str, str] = {}
    commands: dict[str, str] = {}
    for clip in clips:
        lack = missing_program(clip.recipe)
        if lack is not None:
            program, command = lack
            failures[clip.sound_id] = f"{program} is not installed: {command}"
            commands[program] = command
    return failures, commands


def _versions(clips: Iterable[Clip]) -> dict[str, str]:
    """The version of each package that the manifest pins."""
    return {clip.package: clip.version for clip in clips if clip.version}


def _provide_files(
    store: PackageStore,
    clips: Iterable[Clip],
    versions: dict[str, str],
    jobs: int,
    progress: Progress,
) -> dict[PackageFile, str]:
    """Unpack all files that the clips need; gives those that could not be, with reasons."""
    files: defaultdict[tuple[str, str], set[PackageFile]] = defaultdict(set)
    for clip in clips:
        for file in clip.files:
            files[file.package, file.path].add(file)
    paths: defaultdict[str, set[str]] = defaultdict(set)
    for package, path in files:
        paths[package].add(path)
    lacking = {package: store.missing(package, paths[package]) for package in sorted(paths)}
    lacking = {package: wanted for package, wanted in lacking.items() if wanted}
    if not lacking:
        return {}

    debs = {package: store.find(package, versions.get(package)) for package in lacking}
    to_fetch = [package for package, deb in debs.items() if deb is None]
    store.require_tools(fetch=bool(to_fetch))
    unavailable: dict[PackageFile, str] = {}

    def give_up(package: str, wanted: Iterable[str], reason: str) -> None:
        for path in wanted:
            unavailable.update(dict.fromkeys(files[package, path], reason))

    for done, package in enumerate(to_fetch):
        progress("fetch", done, len(to_fetch))
        try:
            debs[package] = store.fetch(package, versions.get(package))
        except PackageError as error:
            give_up(package, lacking[package], _one_line(error))
    if to_fetch:
        progress("fetch", len(to_fetch), len(to_fetch))

    # Threads are enough here: dpkg-deb decompresses in a process of its own.
    with ThreadPoolExecutor(jobs) as pool:
        packages = {
            pool.submit(store.unpack, package, deb, lacking[package]): (package, deb)
            for package, deb in debs.items()
            if deb is not None
        }
        if packages:
            progress("unpack", 0, len(packages))
        try:
            for done, future in enumerate(as_completed(packages), start=1):
                package, deb = packages[future]
                try:
                    for path in future.result():
                        give_up(package, [path], f"{deb.name} has no file {path}")
                except (PackageError, OSError) as error:
                    give_up(package, store.missing(package, lacking[package]), _one_line(error))
                progress("unpack", done, len(packages))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return unavailable


def _make_clips(
    clips: Sequence[Clip],
    wanted: set[str],
    unpacked: Path,
    audio: Path,
    jobs: int,
    progress: Progress,
) -> dict[str, str]:
    """Make the wanted clips in several processes; gives those that failed, with reasons."""
    rendered = [*_note_groups(clips), *((clip,) for clip in clips if _is_rendered_alone(clip))]
    decoded = [clip for clip in clips if isinstance(clip.recipe, Shipped | Joined)]
    decoded = [clip for clip in decoded if clip.sound_id in wanted]
    stages = {
        "render": rendered,
        "decode": [
            tuple(decoded[first : first + _CLIPS_PER_CALL])
            for first in range(0, len(decoded), _CLIPS_PER_CALL)
        ],
    }
    failures: dict[str, str] = {}
    for stage, groups in stages.items():
        tasks = [
            _Task(group, frozenset(needed), unpacked, audio)
            for group in groups
            if (needed := {clip.sound_id for clip in group} & wanted)
        ]
        total = sum(len(task.wanted) for task in tasks)
        done = 0
        if tasks:
            progress(stage, done, total)
        for task, reasons in _run(tasks, jobs):
            failures |= reasons
            done += len(task.wanted)
            progress(stage, done, total)
    return failures


def _note_groups(clips: Sequence[Clip]) -> Iterator[tuple[Clip, ...]]:
    """The notes of each sound font in groups for one call each.

    The groups follow from the manifest alone, whatever is there already: a note can differ in
    its last bit with the notes that are rendered before it.
    """
    fonts: defaultdict[PackageFile, list[Clip]] = defaultdict(list)
    for clip in clips:
        if isinstance(clip.recipe, Note):
            fonts[clip.recipe.font].append(clip)
    for group in fonts.values():
        for first in range(0, len(group), _NOTES_PER_CALL):
            yield tuple(group[first : first + _NOTES_PER_CALL])


def _is_rendered_alone(clip: Clip) -> bool:
    """Whether a program is called for this clip only."""
    return isinstance(clip.recipe, Tune | Speech)


def _run(tasks: Sequence[_Task], jobs: int) -> Iterator[tuple[_Task, dict[str, str]]]:
    """Each task with its failures, in the order in which they end."""
    if jobs == 1 or len(tasks) < 2:
        for task in tasks:
            yield task, _run_task(task)
        return
    # The workers only decode and call programs; forking spares each of them the imports of
    # the program that calls, and needs no guard in a script.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context) as pool:
        futures: dict[Future[dict[str, str]], _Task] = {}
        try:
            futures = {pool.submit(_run_task, task): task for task in tasks}
            for future in as_completed(futures):
                task = futures[future]
                try:
                    failures = future.result()
                except BrokenProcessPool:
                    reason = "a worker process was killed; try again with fewer jobs"
                    failures = dict.fromkeys(task.wanted, reason)
                yield task, failures
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _run_task(task: _Task) -> dict[str, str]:
    """Make the clips of a task; gives those that failed, with reasons."""
    failures: dict[str, str] = {}
    notes = [clip.recipe for clip in task.clips if isinstance(clip.recipe, Note)]
    rendered: dict[str, Samples] = {}
    if notes:
        font = notes[0].font
        try:
            samples = render_notes(task.unpacked / font.package / font.path, notes)
        # Whatever goes wrong with one clip must not cost the others.
        except Exception as error:
            logger.debug("notes of %s", font.path, exc_info=True)
            return dict.fromkeys(task.wanted, _one_line(error))
        rendered = dict(zip((clip.sound_id for clip in task.clips), samples, strict=True))
    for clip in task.clips:
        if clip.sound_id not in task.wanted:
            continue
        try:
            made = rendered[clip.sound_id] if notes else _samples(clip, task.unpacked)
            write_clip(made, clip.duration, task.audio / f"{clip.sound_id}.wav")
        except Exception as error:
            logger.debug("clip %s", clip.sound_id, exc_info=True)
            failures[clip.sound_id] = _one_line(error)
    return failures


def _samples(clip: Clip, unpacked: Path) -> Samples:
    """The samples of a clip that is made by itself, [n], at least as long as it should be."""
    match clip.recipe:
        case Shipped(file):
            return read_file(unpacked, file, clip.start, clip.duration)
        case Joined(files):
            return join_files(unpacked, files)[to_samples(clip.start) :]
        case Tune() as tune:
            return render_tune(tune, unpacked, clip.start, clip.duration)
        case Speech() as speech:
            return render_speech(speech)
        case Note():
            raise AssertionError("notes are rendered together")


def _one_line(error: BaseException) -> str:
    """What an error says, in one line, with its kind when that is not bsdkit's own."""
    text = " ".join(str(error).split())
    own = type(error).__module__.startswith("bsdkit.")
    return text if own and text else f"{type(error).__name__}: {text}"


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file, which appears only when it is whole."""
    partial = partial_name(path)
    try:
        with partial.open("w", encoding="utf-8", newline="") as sink:
            writer = csv.writer(sink, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
