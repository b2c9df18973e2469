"""The pass over a dataset: decode once, embed with every backbone, write finished shards.

Three stages overlap. Decoders work a bounded time ahead; the calling thread cuts windows and
fills batches; one lane runs the models, another writes shards. The order of the batches
within a shard is fixed, so the bytes that come out do not depend on how stages meet.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from bsdkit.audio import Findings
from bsdkit.backbones.base import Backbone, FloatArray, IntArray
from bsdkit.dataset import Clips
from bsdkit.errors import AudioError, PartialAudio, StoreError
from bsdkit.extract.decode import Decoder, Request
from bsdkit.extract.lane import Lane
from bsdkit.extract.plan import Job, WorkSlice, make_jobs
from bsdkit.extract.report import ExtractionReport, Stages
from bsdkit.extract.shard import Batch, ShardBuilder, embed_texts, pinned_buffer
from bsdkit.progress import Progress
from bsdkit.store.failures import failures_path, write_failures
from bsdkit.store.feature import FAILED, FeatureRows
from bsdkit.store.shards import ShardFolder, locked
from bsdkit.store.store import Store
from bsdkit.text import TextTemplate

__all__ = ["SHARD_CLIPS", "Engine", "ExtractionSettings", "extract", "run_jobs"]

SHARD_CLIPS = 128
"""Clips in a shard: what a kill can cost at the most."""

_BATCH_SECONDS = {"cpu": 20.0, "cuda": 320.0}
"""Seconds of audio in a batch; larger ones fall out of a CPU's caches, and a GPU that cannot
hold them gets smaller ones by itself."""

_MODEL_DEPTH = 2
_WRITE_DEPTH = 4
_LIBRARIES = ("numpy", "h5py", "torch", "transformers", "soundfile", "soxr")


@dataclass(frozen=True)
class ExtractionSettings:
    """How an extraction runs; nothing here changes an embedding.

    Attributes:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        shard_clips: clips in a shard; a kill loses at most one.
        batch_seconds: seconds of audio in a batch; None for what suits the device.
        n_decoders: clips decoded at a time; None for one a processor.
        use_processes: whether decoders are processes; None for: on a GPU machine.
        keep_segments: whether the windows' own vectors are stored beside the clips'.
        is_compressed: whether the finished file is compressed, without loss.
        work: the part of the shards to do; None for all, and the merge.
        partial: what becomes of a clip that can be decoded only in part: it fails, or what is
            there is embedded and its row says so.
    """

    device: str = "cpu"
    shard_clips: int = SHARD_CLIPS
    batch_seconds: float | None = None
    n_decoders: int | None = None
    use_processes: bool | None = None
    keep_segments: bool = False
    is_compressed: bool = False
    work: WorkSlice | None = None
    partial: Literal["fail", "embed"] = "fail"

    @property
    def seconds_a_batch(self) -> float:
        """Seconds of audio in a batch."""
        kind = self.device.partition(":")[0]
        return self.batch_seconds or _BATCH_SECONDS.get(kind, _BATCH_SECONDS["cuda"])

    def decoder(self) -> Decoder:
        """A decoder as these settings want it."""
        is_cpu = self.device == "cpu"
        use_processes = not is_cpu if self.use_processes is None else self.use_processes
        n = self.n_decoders or max(1, (os.cpu_count() or 1) - (0 if is_cpu else 1))
        return Decoder(n, use_processes=use_processes)


WriteShard = Callable[[Job, int, dict[str, FeatureRows], list[str]], None]
"""Called with a job, a shard's number, its rows by output and the ids of its silent clips."""

Engine = Callable[[Sequence[Job], ExtractionSettings, Progress, Stages, WriteShard], None]
"""Embeds the shards that jobs have to do; `run_jobs` does it in this process."""


def extract(
    wanted: Sequence[tuple[Backbone, Sequence[str]]],
    clips: Clips,
    store: Store,
    template: TextTemplate,
    settings: ExtractionSettings | None = None,
    *,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> list[ExtractionReport]:
    """Embeds what a store lacks of some features and returns what was done, feature by feature.

    Every sound file is decoded once, whatever the number of backbones. Kill it at any instant
    and call it again: finished shards are kept, and the embeddings are the same to the last
    bit as those of an uninterrupted run.

    Args:
        wanted: backbones, loaded or not, each with the outputs that are wanted of it.
        clips: the clips with audio paths and digests, in the order of the store's table.
        store: where to write.
        template: how the text of a clip is built, for text outputs.
        settings: how it runs.
        progress: who is told, a stage a backbone; None for nobody.
        engine: what embeds the shards; None for this process.

    Raises:
        BackboneUnavailable: a package or weights are missing.
        StoreLocked: another process is extracting the same feature.
        StoreError: the disk is full, or not one clip could be embedded.
    """
    started = time.perf_counter()
    settings, progress = settings or ExtractionSettings(), progress or Progress()
    stages = Stages()
    for backbone, _ in wanted:
        if backbone.needs_load_for_spec and not backbone.device:
            backbone.prepare(settings.device)
    folders = [
        (backbone.feature(output), backbone.spec(output).to_dict())
        for backbone, outputs in wanted
        for output in outputs
    ]
    with locked(store.path, folders, str(settings.work) if settings.work else None):
        jobs = [
            job
            for backbone, outputs in wanted
            for job in make_jobs(
                backbone,
                outputs,
                clips,
                template,
                store.path,
                shard_size=settings.shard_clips,
                keep_segments=settings.keep_segments,
                work=settings.work,
                with_partial=settings.partial == "embed",
            )
        ]
        reports = {
            (id(job), output): ExtractionReport(
                folder.feature, folder.final, len(clips), stages=stages
            )
            for job in jobs
            for output, folder in job.folders.items()
        }
        for job in jobs:
            if job.shards:
                progress.start(job.label, job.n_todo, len(clips) - job.n_todo - job.n_left)
        provenance = _provenance(settings.device)

        def write(job: Job, number: int, rows: dict[str, FeatureRows], silent: list[str]) -> None:
            clock = time.perf_counter()
            for output, folder in job.folders.items():
                folder.write(number, rows[output], _with_precision(provenance, job.backbone))
                report = reports[id(job), output]
                report.n_embedded += int((rows[output].state != FAILED).sum())
                report.silent += silent
            job.done[number] = rows
            stages.write += time.perf_counter() - clock

        (engine or run_jobs)(jobs, settings, progress, stages, write)
        clock = time.perf_counter()
        for job in jobs:
            for output in job.folders:
                report = reports[id(job), output]
                _finish(job, output, clips, settings, report, provenance, started)
        stages.write += time.perf_counter() - clock
    stages.seconds = time.perf_counter() - started
    order = {feature: i for i, (feature, _) in enumerate(folders)}
    return sorted(reports.values(), key=lambda report: order[report.feature])


def _finish(
    job: Job,
    output: str,
    clips: Clips,
    settings: ExtractionSettings,
    report: ExtractionReport,
    provenance: dict[str, object],
    started: float,
) -> None:
    """Merges kept rows and shards, unless shards are left to others or nothing was embedded."""
    folder, kept = job.folders[output], job.kept[output]
    fresh = [job.done[number][output] for number in sorted(job.done)]
    parts = ([kept] if kept is not None and len(kept) else []) + fresh
    known = set(clips.ids)
    for rows in parts:
        report.add(rows, known)
    _write_failures(job, folder, settings, parts, known, report)
    report.n_left = job.n_left
    report.n_kept = len(clips) - report.n_embedded - len(report.failures) - report.n_left
    if job.work is not None:
        return
    if not job.shards:
        folder.remove_folder()
        return
    if len(report.failures) == len(clips):
        folder.discard()
        example, reason = next(iter(report.failures.items()))
        kinds = ", ".join(f"{n} {kind}" for kind, n in report.reasons.items())
        raise StoreError(
            f"not one of {len(clips)} clips could be embedded with {folder.feature} ({kinds}); "
            f"e.g. {example}: {reason}; all of them: {report.failures_file}"
        )
    seconds = round(time.perf_counter() - started, 3)
    facts = _with_precision(provenance, job.backbone)
    facts |= {"seconds": seconds, "n_embedded": report.n_embedded}
    others = [] if kept is None else [clip for clip in kept.ids if clip not in known]
    order = np.array([*clips.ids, *others], object)
    folder.merge(parts, order, facts, is_compressed=settings.is_compressed)
    folder.remove_folder()


def _write_failures(
    job: Job,
    folder: ShardFolder,
    settings: ExtractionSettings,
    parts: Sequence[FeatureRows],
    known: set[object],
    report: ExtractionReport,
) -> None:
    """Writes every failed, partial or odd clip of this table into a file beside the feature."""
    part = str(settings.work) if settings.work else ""
    path = failures_path(folder.final.parent, folder.feature, part)
    if not parts:
        return
    rows = FeatureRows.concatenate(parts)
    rows = rows.take(np.flatnonzero([clip in known for clip in rows.ids]))
    audio = zip(job.sources.ids, job.sources.audio, strict=True)
    if write_failures(path, rows, {str(clip): str(one or "") for clip, one in audio}):
        report.failures_file = path


def _provenance(device: str) -> dict[str, object]:
    versions: dict[str, object] = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "device": device}


def _with_precision(provenance: dict[str, object], backbone: Backbone) -> dict[str, object]:
    """Provenance with what `Backbone.prepare` measured, where something was."""
    if backbone.precision_difference is None:
        return dict(provenance)
    return {**provenance, "precision_difference": backbone.precision_difference}


def run_jobs(
    jobs: Sequence[Job],
    settings: ExtractionSettings,
    progress: Progress,
    stages: Stages,
    write: WriteShard,
) -> None:
    """Embeds the shards that jobs have to do, in this process; see `extract`."""
    for job in jobs:
        if job.n_todo and not job.backbone.device:
            job.backbone.prepare(settings.device)
    model, writer = Lane("model", _MODEL_DEPTH), Lane("write", _WRITE_DEPTH)
    is_done = False
    try:
        runs = [_Run(job, settings, progress, stages, model, writer, write) for job in jobs]
        for run in runs:
            if run.job.spec.kind == "text":
                run.all_texts()
        _pass_over_audio([r for r in runs if r.job.spec.kind != "text"], settings, stages)
        model.drain()
        writer.drain()
        is_done = True
    finally:
        model.close(finish=is_done)
        writer.close(finish=True)  # a shard that is whole is worth keeping
        stages.model += model.busy_seconds


def _pass_over_audio(runs: Sequence[_Run], settings: ExtractionSettings, stages: Stages) -> None:
    """Decodes every clip that some run needs once, and gives it to all that do."""
    if not runs:
        return
    takers: dict[int, list[_Run]] = {}
    for run in runs:
        for _, shard in run.job.todo():
            for position in shard.tolist():
                takers.setdefault(position, []).append(run)
    requests = (
        Request(
            position,
            runs[0].job.sources.audio[position],
            tuple(dict.fromkeys(run.job.rate for run in takers[position])),
            float(runs[0].job.sources.seconds[position]),
        )
        for position in sorted(takers)
    )
    with settings.decoder() as decoder:
        stages.n_decoders = decoder.n_decoders
        for sound in decoder.decode(requests):
            mine = takers[sound.request.position]
            for run in mine:
                run.begin()
            try:
                for block in sound.blocks():
                    rate, samples = next(iter(block.items()))
                    stages.audio_seconds += len(samples) / rate
                    for run in mine:
                        run.push(block)
                found = sound.findings
                if found.partial and settings.partial == "fail":
                    raise PartialAudio(f"{sound.request.audio}: {found.partial}")
                for run in mine:
                    run.end(found)
            except AudioError as error:
                for run in mine:
                    run.fail(error)
            stages.n_clips += 1
        stages.decode += decoder.busy_seconds
        stages.wait += decoder.wait_seconds


class _Run:
    """One job on its way through the pass: its shards, one after another."""

    def __init__(
        self,
        job: Job,
        settings: ExtractionSettings,
        progress: Progress,
        stages: Stages,
        model: Lane,
        writer: Lane,
        write: WriteShard,
    ) -> None:
        self.job = job
        self._settings = settings
        self._progress = progress
        self._stages = stages
        self._model, self._writer, self._write = model, writer, write
        self._limits: dict[int, int] = {}
        self._steps = self._all_clips()

    def _all_clips(self) -> Iterator[tuple[ShardBuilder, int, int, bool]]:
        """(builder, shard, row, whether it is the shard's last) of every clip, in order."""
        is_gpu = self._settings.device.startswith("cuda")
        for number, shard in self.job.todo():
            builder = ShardBuilder(
                self.job,
                shard,
                self._settings.seconds_a_batch,
                limits=self._limits,
                new_buffer=pinned_buffer if is_gpu else None,
            )
            for row in range(len(shard)):
                yield builder, number, row, row == len(shard) - 1

    def begin(self) -> None:
        self._builder, self._number, row, self._is_last = next(self._steps)
        self._builder.begin(row)

    def push(self, block: Mapping[int, FloatArray]) -> None:
        for batch in self._builder.push(block):
            self._submit(batch)

    def end(self, findings: Findings) -> None:
        for batch in self._builder.end(findings):
            self._submit(batch)
        self._after_clip()

    def fail(self, error: AudioError) -> None:
        self._builder.fail(error)
        self._after_clip()

    def _after_clip(self) -> None:
        self._progress.advance(self.job.label, 1)
        if self._is_last:
            for batch in self._builder.rest():
                self._submit(batch)
            self._model.submit(partial(self._hand_over, self._builder, self._number))

    def _submit(self, batch: Batch) -> None:
        self._model.submit(partial(self._run, self._builder, batch))

    def _run(self, builder: ShardBuilder, batch: Batch) -> None:
        clock = time.perf_counter()
        builder.run(batch)
        self._count(time.perf_counter() - clock)

    def _hand_over(self, builder: ShardBuilder, number: int) -> None:
        rows = builder.finish()
        self._writer.submit(partial(self._write, self.job, number, rows, builder.silent))

    def all_texts(self) -> None:
        """Queues every shard of a text job."""
        for number, shard in self.job.todo():
            self._model.submit(partial(self._run_texts, number, shard))

    def _run_texts(self, number: int, shard: IntArray) -> None:
        clock = time.perf_counter()
        rows = embed_texts(self.job, shard)
        self._count(time.perf_counter() - clock)
        self._progress.advance(self.job.label, len(shard))
        self._writer.submit(partial(self._write, self.job, number, rows, []))

    def _count(self, seconds: float) -> None:
        name = self.job.backbone.identity
        by_backbone = self._stages.model_by_backbone
        by_backbone[name] = by_backbone.get(name, 0.0) + seconds
