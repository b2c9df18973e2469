"""Files, samples or texts to embeddings in memory, by the same pass that fills a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.audio import Waveform, audio_seconds
from bsdkit.backbones.base import Backbone, BackboneSpec, FloatArray
from bsdkit.errors import AudioError, BackboneError
from bsdkit.extract.pipeline import SHARD_CLIPS, ExtractionSettings, run_jobs
from bsdkit.extract.plan import Job, Sources, in_shards
from bsdkit.extract.report import Stages
from bsdkit.location import as_location
from bsdkit.progress import Progress
from bsdkit.store.feature import FAILED, FeatureRows

__all__ = ["embed"]

Input = Path | str | npt.NDArray[np.floating[Any]]


def embed(
    backbone: Backbone,
    inputs: Sequence[Input],
    *,
    output: str = "",
    device: str = "cpu",
    sample_rate: int | None = None,
) -> FloatArray:
    """Embeddings [n, dim] of sounds or texts: to the bit the rows that extraction stores of them.

    Everything is done as by `extract` with default settings (mixing channels, resampling,
    windows, padding, batches, pooling by real samples, normalisation, rounding to the spec's
    dtype), and the rows come back as float32.

    Args:
        backbone: loaded here if it is not.
        inputs: sound files, or arrays [n_samples] or [n_samples, n_channels] in [-1, 1]; texts
            for a text output.
        output: which of the backbone's outputs; empty where it has one without a name.
        device: where to load the backbone; one that is loaded stays where it is.
        sample_rate: of the arrays, in Hz; files have their own.

    Raises:
        BackboneUnavailable: a package or weights are missing.
        UnknownBackbone: the backbone has no such output.
        BackboneError: the output takes other inputs than these, or the model's answer is not finite
            or too large for the spec's dtype.
        AudioError: a file cannot be read, or only in part, or an array is empty or not finite.

    Examples:
        >>> embed(get_backbone("aisfx"), ["door.wav", "rain.flac"]).shape  # doctest: +SKIP
        (2, 512)
    """
    backbone.output_named(output)
    if not backbone.device:
        backbone.require()
        backbone.prepare(device)
    spec = backbone.spec(output)
    sources = _sources(backbone, spec, inputs, sample_rate)
    shards = in_shards(np.arange(len(inputs)), SHARD_CLIPS)
    made: dict[int, FeatureRows] = {}

    def keep(job: Job, number: int, rows: dict[str, FeatureRows], silent: list[str]) -> None:
        made[number] = rows[output]

    run_jobs(
        [Job(backbone, {output: spec}, sources, shards)],
        ExtractionSettings(device=backbone.device, use_processes=False),
        Progress(),
        Stages(),
        keep,
    )
    for rows in made.values():
        for i in np.flatnonzero(rows.state == FAILED)[:1]:
            is_of_model = str(rows.reasons[i]).startswith(("not finite", "too large"))
            error = BackboneError if is_of_model else AudioError
            raise error(f"{rows.ids[i]} has no embedding: {rows.reasons[i]}")
    parts = [made[number].embedding.astype(np.float32) for number in range(len(shards))]
    return np.concatenate(parts) if parts else np.zeros((0, spec.dim), np.float32)


def _sources(
    backbone: Backbone, spec: BackboneSpec, inputs: Sequence[Input], sample_rate: int | None
) -> Sources:
    """What a job embeds.

    Raises:
        BackboneError: the output takes other inputs than these.
    """
    n = len(inputs)
    ids, digests = np.empty(n, object), np.full(n, "", object)
    if spec.kind == "prompt":
        raise BackboneError(
            f"{backbone.feature(spec.output)} embeds sounds together with their metadata; "
            "use bsdkit.extract.extract on a dataset"
        )
    if spec.kind == "text":
        texts = [text for text in inputs if isinstance(text, str)]
        if len(texts) < n:
            raise BackboneError(f"{backbone.feature(spec.output)} embeds texts; give a list of str")
        ids[:] = [f"text {i}" for i in range(n)]
        return Sources(ids, [None] * n, np.full(n, np.nan, np.float32), texts, digests)
    audio: list[Path | Waveform] = []
    for one in inputs:
        if not isinstance(one, np.ndarray):
            audio.append(as_location(one))
        elif sample_rate is None or one.ndim not in (1, 2):
            raise BackboneError(
                f"an array of shape {one.shape} with sample_rate={sample_rate}; expected samples "
                "[n] or [n, channels] and their rate in Hz: embed(..., sample_rate=44100)"
            )
        else:
            audio.append(Waveform(one, sample_rate))
    ids[:] = [f"array {i}" if isinstance(a, Waveform) else str(a) for i, a in enumerate(audio)]
    seconds = np.array([audio_seconds(one) for one in audio], np.float32)
    return Sources(ids, audio, seconds, [""] * n, digests)
