"""The clips of one shard through a model: windows in fixed batches, rows out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.audio import Findings, WindowCutter, window_lengths
from bsdkit.backbones.base import BackboneSpec
from bsdkit.errors import AudioError, BackboneError
from bsdkit.extract.plan import Job
from bsdkit.store.failures import printable
from bsdkit.store.feature import FAILED, OK, PARTIAL, PARTIAL_FILE, FeatureRows

__all__ = ["Batch", "ShardBuilder", "embed_texts", "pinned_buffer"]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

_TEXT_BATCH = 64


@dataclass
class Batch:
    """Windows of one length that go through the model together.

    Attributes:
        audio: [n, samples].
        valid: real samples [n].
        rows: the row of the shard [n] that each window is of.
    """

    audio: FloatArray
    valid: IntArray
    rows: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)


class ShardBuilder:
    """Takes the sounds of a shard's clips in order, gives batches, collects their vectors.

    Which windows share a batch depends on the shard alone. Windows of different padded
    lengths wait in batches of their own.

    Args:
        job: what the shard is of.
        positions: the shard's clips [n].
        batch_seconds: seconds of audio in a batch.
        limits: the most windows of each length that fitted into memory; shared by the shards
            of a job, and lowered when memory runs out.
        new_buffer: makes an empty float32 array of a shape, where the device can fetch it.
    """

    def __init__(
        self,
        job: Job,
        positions: IntArray,
        batch_seconds: float,
        *,
        limits: dict[int, int] | None = None,
        new_buffer: Callable[[tuple[int, int]], FloatArray] | None = None,
    ) -> None:
        spec = job.spec
        self.job, self.positions = job, positions
        self.reasons = [""] * len(positions)
        self.findings = [Findings() for _ in positions]
        self.silent: list[str] = []
        self._new_buffer = new_buffer or (lambda shape: np.empty(shape, np.float32))
        shortest = (
            None if spec.shortest_seconds is None else round(spec.shortest_seconds * job.rate)
        )
        self._lengths = window_lengths(spec.window_samples, shortest)
        self._capacity = {} if limits is None else limits
        for length in self._lengths:
            self._capacity.setdefault(length, max(1, round(batch_seconds * job.rate / length)))
        self._open: dict[int, Batch] = {}
        self._total = {o: np.zeros((len(positions), s.dim)) for o, s in job.specs.items()}
        self._weight = np.zeros(len(positions))
        self._segments: dict[str, list[list[FloatArray]]] = {
            output: [[] for _ in positions] for output in job.specs
        }

    def begin(self, row: int) -> None:
        """Starts on the clip of that row of the shard."""
        spec = self.job.spec
        self._row, self._is_silent = row, True
        self._cutter = WindowCutter(
            spec.window_samples, spec.hop_samples, spec.padding or "zeros", self._lengths
        )

    def push(self, block: Mapping[int, FloatArray]) -> Iterator[Batch]:
        """The batches that more samples of the clip complete, given by rate."""
        samples = block[self.job.rate]
        self._is_silent = self._is_silent and not samples.any()
        for window, n_valid in self._cutter.push(samples):
            yield from self._add(self._row, window, n_valid)

    def end(self, findings: Findings) -> Iterator[Batch]:
        """The batches that the clip's last window completes; and what is odd about the clip."""
        self.findings[self._row] = findings
        if self._is_silent:
            self.silent.append(str(self.job.sources.ids[self.positions[self._row]]))
        for window, n_valid in self._cutter.finish():
            yield from self._add(self._row, window, n_valid)

    def fail(self, error: AudioError) -> None:
        """Ends the clip without a vector."""
        self.reasons[self._row] = printable(f"{_kind(error)}: {error}")

    def _add(self, row: int, window: FloatArray, n_valid: int) -> Iterator[Batch]:
        length = len(window)
        batch = self._open.get(length)
        if batch is None:
            capacity = self._capacity[length]
            batch = Batch(self._new_buffer((capacity, length)), np.zeros(capacity, np.int64))
            self._open[length] = batch
        batch.audio[len(batch)] = window
        batch.valid[len(batch)] = n_valid
        batch.rows.append(row)
        if len(batch) >= self._capacity[length]:
            yield self._close(length)

    def rest(self) -> Iterator[Batch]:
        """The batches that are not full, when all clips were pushed."""
        for length in sorted(self._open):
            yield self._close(length)

    def _close(self, length: int) -> Batch:
        batch = self._open.pop(length)
        return Batch(batch.audio[: len(batch)], batch.valid[: len(batch)], batch.rows)

    def run(self, batch: Batch) -> None:
        """Puts a batch through the model and adds its vectors to their clips.

        Raises:
            BackboneError: the model's answer has another shape than its spec says, or there
                is not memory enough for a single window.
        """
        vectors = self._embed(batch)
        for i, row in enumerate(batch.rows):
            self._weight[row] += batch.valid[i]
        for output, spec in self.job.specs.items():
            found = vectors[output]
            _check_shape(self.job, spec, found, len(batch))
            for vector, row, n_valid in zip(found, batch.rows, batch.valid, strict=True):
                self._total[output][row] += vector.astype(np.float64) * n_valid
                if self.job.keep_segments:
                    self._segments[output][row].append(vector)

    def _embed(self, batch: Batch) -> dict[str, FloatArray]:
        """The model's vectors; a part of the batch at a time where memory runs out."""
        length = batch.audio.shape[1]
        parts: list[dict[str, FloatArray]] = []
        first = 0
        while first < len(batch):
            last = min(len(batch), first + self._capacity[length])
            try:
                parts.append(self._forward(batch, first, last))
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                if last - first == 1:
                    raise BackboneError(
                        f"{self.job.backbone.identity} runs out of memory with one window of "
                        f"{length / self.job.rate:.1f} s on {self.job.backbone.device}; "
                        "say --precision bfloat16, free the device, or take a larger one"
                    ) from None
                _free_memory(self.job.backbone.device)
                for longer in self._lengths:
                    if longer >= length:
                        self._capacity[longer] = min(self._capacity[longer], (last - first) // 2)
            else:
                first = last
        if len(parts) == 1:
            return parts[0]
        return {output: np.concatenate([part[output] for part in parts]) for output in parts[0]}

    def _forward(self, batch: Batch, first: int, last: int) -> dict[str, FloatArray]:
        audio, valid = batch.audio[first:last], batch.valid[first:last]
        if self.job.spec.kind == "audio":
            return self.job.backbone.embed(audio, valid)
        texts = [str(self.job.sources.texts[self.positions[row]]) for row in batch.rows[first:last]]
        return self.job.backbone.embed_prompts(audio, valid, texts)

    def finish(self) -> dict[str, FeatureRows]:
        """The shard's rows by output, when every batch has run."""
        rows = {}
        for output, spec in self.job.specs.items():
            vectors = self._total[output] / np.maximum(self._weight, 1)[:, None]
            segments = self._segments[output] if self.job.keep_segments else None
            rows[output] = _rows(
                self.job, spec, self.positions, vectors.astype(np.float32),
                self.reasons, segments, self.findings,
            )  # fmt: skip
        return rows


def embed_texts(job: Job, positions: IntArray) -> dict[str, FeatureRows]:
    """Rows of one shard of texts by output, in batches of similar length."""
    texts = [str(job.sources.texts[position]) for position in positions]
    vectors = {o: np.zeros((len(texts), s.dim), np.float32) for o, s in job.specs.items()}
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    start, size = 0, _TEXT_BATCH
    while start < len(order):
        batch = order[start : start + size]
        try:
            embedded = job.backbone.embed_texts([texts[i] for i in batch])
        except RuntimeError as error:
            if not _is_out_of_memory(error) or len(batch) == 1:
                raise
            _free_memory(job.backbone.device)
            size = len(batch) // 2
            continue
        start += len(batch)
        for output, spec in job.specs.items():
            _check_shape(job, spec, embedded[output], len(batch))
            vectors[output][batch] = embedded[output]
    reasons = [""] * len(texts)
    return {
        output: _rows(job, spec, positions, vectors[output], reasons, None)
        for output, spec in job.specs.items()
    }


def _check_shape(job: Job, spec: BackboneSpec, vectors: FloatArray, n: int) -> None:
    if vectors.shape != (n, spec.dim):
        raise BackboneError(
            f"{job.backbone.identity} returned {vectors.shape} for {n} inputs; its spec "
            f"says ({n}, {spec.dim})"
        )


def _rows(
    job: Job,
    spec: BackboneSpec,
    positions: IntArray,
    vectors: FloatArray,
    reasons: list[str],
    segments: list[list[FloatArray]] | None,
    findings: Sequence[Findings] = (),
) -> FeatureRows:
    """Feature rows of vectors [n, dim]: normalised, failures marked, in the store's dtype."""
    reasons = list(reasons)
    if spec.normalize == "l2":
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / np.maximum(length, 1e-12)
    with np.errstate(over="ignore"):
        stored = vectors.astype(spec.dtype)
    for row in range(len(positions)):
        if not reasons[row] and not np.isfinite(vectors[row]).all():
            reasons[row] = "not finite: the model returned NaN or infinity"
        elif not reasons[row] and not np.isfinite(stored[row]).all():
            largest = float(np.abs(vectors[row]).max())
            reasons[row] = f"too large for {spec.dtype}: {largest:.3g}"
    state = np.array([FAILED if reason else OK for reason in reasons], np.uint8)
    stored[state == FAILED] = 0
    reasons_array = np.empty(len(positions), object)
    reasons_array[:] = reasons
    for row, found in enumerate(findings):
        if not reasons[row]:
            state[row] = PARTIAL if found.partial else OK
            reasons_array[row] = "; ".join(filter(None, (found.partial, found.notices)))
    flat = offsets = None
    if segments is not None:
        kept = [[] if reason else parts for parts, reason in zip(segments, reasons, strict=True)]
        offsets = np.zeros(len(kept) + 1, np.int64)
        np.cumsum([len(parts) for parts in kept], out=offsets[1:])
        flat = np.zeros((int(offsets[-1]), spec.dim), spec.dtype)
        for parts, first in zip(kept, offsets[:-1], strict=True):
            for i, vector in enumerate(parts):
                flat[first + i] = vector
    return FeatureRows(
        job.sources.ids[positions], job.sources.sha256[positions], state, reasons_array, stored,
        flat, offsets,
    )  # fmt: skip


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        "out of memory" in text or "not enough memory" in text or "allocate memory" in text
    )


def _free_memory(device: str) -> None:
    import torch

    if device.startswith("cuda"):
        torch.cuda.empty_cache()


def _kind(error: AudioError) -> str:
    kinds = {"MissingAudio": "missing file", "EmptyAudio": "empty file"}
    return {**kinds, "PartialAudio": PARTIAL_FILE}.get(type(error).__name__, "undecodable file")


def pinned_buffer(shape: tuple[int, int]) -> Any:
    """An empty float32 array in page-locked memory, from which a GPU copies at full speed."""
    import torch

    return torch.empty(shape, dtype=torch.float32, pin_memory=True).numpy()
