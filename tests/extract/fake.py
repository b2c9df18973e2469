"""A backbone that needs no weights: a seeded projection of log energies. For tests alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch

from bsdkit.backbones.base import (
    Backbone,
    BackboneOptions,
    BackboneSpec,
    FloatArray,
    IntArray,
    Kind,
)
from bsdkit.backbones.cards import ModelCard

RATE, WINDOW = 8000, 4000


class FakeBackbone(Backbone):
    """Windows of half a second at 8 kHz to 6 numbers; remembers every batch it was given."""

    name = "fake"
    outputs: ClassVar[dict[str, Kind]] = {
        "audio": "audio", "level": "audio", "text": "text", "prompt": "prompt",
    }  # fmt: skip
    extra_outputs = frozenset({"prompt"})
    card = ModelCard(summary="a test's", licence="none")

    def __init__(
        self, options: BackboneOptions | None = None, *, version: int = 1, rate: int = RATE,
        shortest_seconds: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__(options)
        self.version, self.rate, self.shortest_seconds = version, rate, shortest_seconds
        self.lengths: list[int] = []
        self.most_windows: int | None = None
        self.batches: list[int] = []
        self.fail_after: int | None = None
        self.fail_slowly = 0.0
        self.poison: float | None = None
        self._projection = np.random.default_rng(0).standard_normal((10, 6)).astype(np.float32)

    def missing(self) -> str:
        return ""

    def spec(self, output: str) -> BackboneSpec:
        kind = self.outputs[output]
        is_audio = kind != "text"
        return BackboneSpec(
            backbone="fake",
            output=output,
            kind=kind,
            dim=1 if output == "level" else 6,
            weights="seed 0",
            weights_sha256="",
            version=self.version,
            layer="only",
            pooling="mean",
            dtype=self.options.dtype,
            sample_rate=self.rate if is_audio else None,
            window_seconds=WINDOW / RATE if is_audio else None,
            hop_seconds=WINDOW / 2 / RATE if is_audio else None,
            padding="zeros" if is_audio else None,
            shortest_seconds=self.shortest_seconds if is_audio else None,
            text_template=None if kind == "audio" else self.options.text_template,
        )

    def load(self, device: str) -> None:
        self.device = device

    def embed(self, audio: FloatArray, valid: IntArray) -> dict[str, FloatArray]:
        self.batches.append(len(audio))
        self.lengths.append(audio.shape[1])
        if self.most_windows is not None and len(audio) > self.most_windows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if self.fail_after is not None and len(self.batches) > self.fail_after:
            time.sleep(self.fail_slowly)
            raise KeyboardInterrupt
        energy = np.log(np.square(audio.reshape(len(audio), 10, -1)).mean(axis=2) + 1e-6)
        vectors = energy @ self._projection
        if self.poison is not None:
            vectors[np.isclose(np.abs(audio).max(axis=1), self.poison, atol=1e-3)] = np.nan
        return {"audio": vectors, "level": np.abs(audio).max(axis=1, keepdims=True)}

    def embed_prompts(
        self, audio: FloatArray, valid: IntArray, texts: Sequence[str]
    ) -> dict[str, FloatArray]:
        return {"prompt": self.embed(audio, valid)["audio"] + self.embed_texts(texts)["text"]}

    def embed_texts(self, texts: Sequence[str]) -> dict[str, FloatArray]:
        self.batches.append(len(texts))
        counts = [[text.lower().count(c) for c in "abcdefghij"] for text in texts]
        return {"text": np.array(counts, np.float32) @ self._projection}
