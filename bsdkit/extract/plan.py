"""What is to be embedded, in which order, and what need not be.

A plan cuts the clips that are missing into shards of fixed size, in clips-table order. It
depends only on the clips and on the final file, never on which shards are finished; and
batches never span two shards. An interrupted run therefore goes on with exactly the batches
of an uninterrupted one, and one that is spread over processes or machines has them too: all
give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.audio import Waveform
from bsdkit.backbones.base import Backbone, BackboneSpec, Kind
from bsdkit.dataset import Clips
from bsdkit.errors import BackboneError, DatasetError, RecipeError
from bsdkit.store.feature import (
    FAILED,
    OK,
    PARTIAL,
    PARTIAL_FILE,
    FeatureRows,
    read_feature,
    read_info,
)
from bsdkit.store.shards import ShardFolder
from bsdkit.text import TextTemplate, build_texts

__all__ = ["Job", "Sources", "WorkSlice", "in_shards", "make_jobs"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class WorkSlice:
    """One of several equal parts of the work, ``--shard index/of``.

    Attributes:
        index: which, from 1.
        of: how many there are.
    """

    index: int
    of: int

    @classmethod
    def parse(cls, text: str) -> WorkSlice:
        """The part that ``2/8`` names.

        Raises:
            RecipeError: it names none.
        """
        index, _, of = text.partition("/")
        if not (index.isdecimal() and of.isdecimal() and 1 <= int(index) <= int(of)):
            raise RecipeError(f"--shard {text}: expected i/n with i from 1 to n, e.g. 2/8")
        return cls(int(index), int(of))

    def has(self, shard: int) -> bool:
        """Whether a shard belongs to this part."""
        return shard % self.of == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


@dataclass(frozen=True)
class Sources:
    """What is embedded for each clip of the table.

    Attributes:
        ids: clip ids [n].
        audio: the audio file of each clip [n], or its samples; None where a clip has neither.
        seconds: durations [n]; NaN where unknown.
        texts: the text of each clip [n]; empty for outputs that embed sound alone.
        sha256: hex digests [n] of the file's bytes, of the text, or of both; empty where
            there is no file.
    """

    ids: npt.NDArray[np.object_]
    audio: Sequence[Path | Waveform | None]
    seconds: npt.NDArray[np.float32]
    texts: Sequence[str]
    sha256: npt.NDArray[np.object_]


def make_sources(clips: Clips, spec: BackboneSpec, template: TextTemplate) -> Sources:
    """The audio files or texts that a spec embeds.

    Raises:
        DatasetError: an audio backbone, and the dataset has no audio at all.
    """
    if spec.kind != "text" and all(path is None for path in clips.audio):
        raise DatasetError(
            f"{spec.backbone} embeds audio and this dataset names no audio file; expected "
            "audio/<id>.wav beside metadata/, or a CSV with a path column"
        )
    if spec.kind == "audio":
        texts = [""] * len(clips)
        return Sources(clips.ids, clips.audio, clips.duration, texts, clips.sha256)
    texts = build_texts(clips, template)
    digests = np.empty(len(texts), object)
    if spec.kind == "text":
        digests[:] = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        return Sources(clips.ids, [None] * len(clips), clips.duration, texts, digests)
    digests[:] = [
        hashlib.sha256(f"{audio} {text}".encode()).hexdigest() if audio else ""
        for audio, text in zip(clips.sha256, texts, strict=True)
    ]
    return Sources(clips.ids, clips.audio, clips.duration, texts, digests)


@dataclass(frozen=True)
class Job:
    """Outputs of one backbone that are made together, batch by batch.

    Attributes:
        backbone: the backbone.
        specs: spec by output; all with the same windows.
        sources: what is embedded.
        shards: clip positions [<= shard size] of each shard.
        folders: where the shards of each output go; none where they are not stored.
        kept: rows of each output's final file that still hold, or None.
        done: rows by output of shards that were finished before, by shard number.
        work: the part of the shards that is ours; None for all.
        keep_segments: whether the windows' own vectors are kept beside the clips'.
    """

    backbone: Backbone
    specs: Mapping[str, BackboneSpec]
    sources: Sources
    shards: tuple[IntArray, ...]
    folders: Mapping[str, ShardFolder] = field(default_factory=dict)
    kept: Mapping[str, FeatureRows | None] = field(default_factory=dict)
    done: dict[int, dict[str, FeatureRows]] = field(default_factory=dict)
    work: WorkSlice | None = None
    keep_segments: bool = False

    @property
    def spec(self) -> BackboneSpec:
        """The spec of the first output: kind, rate and windows are those of all."""
        return next(iter(self.specs.values()))

    @property
    def label(self) -> str:
        """The features' names."""
        return ", ".join(folder.feature for folder in self.folders.values())

    @property
    def rate(self) -> int:
        """The sample rate in Hz of audio and prompts."""
        assert self.spec.sample_rate is not None
        return self.spec.sample_rate

    def todo(self) -> Iterator[tuple[int, IntArray]]:
        """(number, positions) of the shards that are ours and not finished."""
        for number, shard in enumerate(self.shards):
            if number not in self.done and (self.work is None or self.work.has(number)):
                yield number, shard

    @property
    def n_todo(self) -> int:
        """Clips that are still to be embedded here."""
        return sum(len(shard) for _, shard in self.todo())

    @property
    def n_left(self) -> int:
        """Clips of unfinished shards that belong to other parts of the work."""
        return sum(
            len(shard)
            for number, shard in enumerate(self.shards)
            if number not in self.done and self.work is not None and not self.work.has(number)
        )


def make_jobs(
    backbone: Backbone,
    outputs: Sequence[str],
    clips: Clips,
    template: TextTemplate,
    store: Path,
    *,
    shard_size: int,
    keep_segments: bool = False,
    work: WorkSlice | None = None,
    with_partial: bool = False,
) -> list[Job]:
    """The jobs of a backbone's outputs: those of one kind that lack the same clips share one.

    Rows of clips that decode in part are made again where the last run wanted them otherwise
    (`with_partial`).

    Raises:
        DatasetError: see `make_sources`.
        BackboneError: outputs of one kind have different windows.
    """
    groups: dict[tuple[Kind, bytes], dict[str, FeatureRows | None]] = {}
    todo_of: dict[tuple[Kind, bytes], IntArray] = {}
    specs = {output: backbone.spec(output) for output in outputs}
    sources = {
        spec.kind: make_sources(clips, spec, template)
        for spec in {spec.kind: spec for spec in specs.values()}.values()
    }
    folders = {
        output: ShardFolder(store, backbone.feature(output), spec.to_dict())
        for output, spec in specs.items()
    }
    for output, spec in specs.items():
        wants_segments = keep_segments and spec.kind != "text"
        kept, has_row = _kept(
            folders[output], clips, sources[spec.kind], wants_segments, with_partial
        )
        todo = np.flatnonzero(~has_row)
        key = (spec.kind, todo.tobytes())
        groups.setdefault(key, {})[output] = kept
        todo_of[key] = todo
    jobs = []
    for (kind, todo_bytes), kept_rows in groups.items():
        todo = todo_of[kind, todo_bytes]
        shards = in_shards(todo, shard_size)
        mine = {output: specs[output] for output in kept_rows}
        _check_same_windows(backbone, mine)
        # rows without windows' vectors cannot share a file with rows that have them
        has_segments = any(rows and rows.segments is not None for rows in kept_rows.values())
        done = _done(
            clips,
            sources[kind],
            shards,
            {output: folders[output] for output in mine},
            kind != "text" and (keep_segments or has_segments),
            with_partial,
        )
        jobs.append(
            Job(
                backbone=backbone,
                specs=mine,
                sources=sources[kind],
                folders={output: folders[output] for output in mine},
                kept=kept_rows,
                shards=shards,
                done=done,
                work=work,
                keep_segments=kind != "text" and (keep_segments or has_segments),
            )
        )
    return jobs


def in_shards(positions: IntArray, size: int) -> tuple[IntArray, ...]:
    """Positions [n] in parts of a size, the last one maybe smaller."""
    return tuple(positions[i : i + size] for i in range(0, len(positions), size))


def _check_same_windows(backbone: Backbone, specs: Mapping[str, BackboneSpec]) -> None:
    windows = {
        (s.sample_rate, s.window_seconds, s.hop_seconds, s.padding, s.shortest_seconds)
        for s in specs.values()
    }
    if len(windows) > 1:
        raise BackboneError(
            f"{backbone.identity}: its outputs {', '.join(map(repr, specs))} have different windows"
        )


def _kept(
    folder: ShardFolder, clips: Clips, sources: Sources, keep_segments: bool, with_partial: bool
) -> tuple[FeatureRows | None, npt.NDArray[np.bool_]]:
    """The rows of a final file that still hold, and which clips [n] have one.

    Rows of clips that this table has not are kept behind them: a run over a part of a dataset
    must not cost what was embedded of the rest.
    """
    if not folder.final.is_file():
        return None, np.zeros(len(clips), bool)
    rows = read_feature(folder.final, with_segments=True)
    # what does not match its checksum is embedded again, not given a new checksum
    is_damaged = rows.checksum() != read_info(folder.final).checksum
    if is_damaged or (keep_segments and rows.segments is None):
        return None, np.zeros(len(clips), bool)
    wanted = (OK, PARTIAL) if with_partial else (OK,)
    index = {
        (clip, digest): i
        for i, (clip, digest) in enumerate(zip(rows.ids, rows.source_sha256, strict=True))
        if rows.state[i] in wanted
    }
    keys = zip(clips.ids, sources.sha256, strict=True)
    places = np.array([index.get(key, -1) for key in keys], np.int64)
    has_row = places >= 0
    known = set(clips.ids)
    others = [i for i, clip in enumerate(rows.ids) if clip not in known and rows.state[i] != FAILED]
    return rows.take(np.concatenate([places[has_row], np.array(others, np.int64)])), has_row


def _done(
    clips: Clips,
    sources: Sources,
    shards: Sequence[IntArray],
    folders: Mapping[str, ShardFolder],
    keep_segments: bool,
    with_partial: bool,
) -> dict[int, dict[str, FeatureRows]]:
    """The shards that are finished in every output's folder."""
    by_key: dict[str, dict[tuple[object, ...], FeatureRows]] = {}
    for output, folder in folders.items():
        by_key[output] = {
            (tuple(part.ids), tuple(part.source_sha256)): part
            for part in folder.finished()
            if (part.segments is not None) == keep_segments and _agrees(part, with_partial)
        }
    done = {}
    for number, shard in enumerate(shards):
        key = (tuple(clips.ids[shard]), tuple(sources.sha256[shard]))
        found = {output: parts[key] for output, parts in by_key.items() if key in parts}
        if len(found) == len(folders):
            done[number] = found
    return done


def _agrees(part: FeatureRows, with_partial: bool) -> bool:
    """Whether a shard has clips that decode in part as they are wanted now."""
    if with_partial:
        return not any(str(reason).startswith(PARTIAL_FILE) for reason in part.reasons)
    return not (part.state == PARTIAL).any()
