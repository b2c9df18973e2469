"""What a backbone is: a frozen spec, a way to load it, and arrays in, arrays out."""

from __future__ import annotations

import contextlib
import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from bsdkit.audio import Padding
from bsdkit.backbones.cards import ModelCard
from bsdkit.errors import BackboneUnavailable, ImprecisePrecision, UnknownBackbone, nearest

if TYPE_CHECKING:
    import torch

__all__ = [
    "PRECISION_TOLERANCE",
    "Backbone",
    "BackboneOptions",
    "BackboneSpec",
    "FloatArray",
    "IntArray",
    "Kind",
    "Precision",
    "Question",
    "state_digest",
]

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
Kind = Literal["audio", "text", "prompt"]
"""What an output embeds: the sound, the text of its metadata, or both in one prompt."""

Precision = Literal["float32", "bfloat16", "float16"]

PRECISION_TOLERANCE = 0.1
"""How far a vector below float32 may be from the float32 one, as a share of its length. In bfloat16
on a CPU EfficientAT mn04 differs by 0.056, small networks of the other architectures by less."""


@dataclass(frozen=True)
class BackboneSpec:
    """Every fact that changes an embedding's numbers; the store hashes it.

    Library versions and the device stand beside the spec in a feature file, not in it.

    Attributes:
        backbone: the backbone's name.
        output: which of its outputs; empty where there is one.
        kind: whether it embeds audio, text, or a prompt with both.
        dim: length of an embedding.
        weights: name of the weights.
        weights_sha256: hex digest of the weight file, or of the loaded parameters.
        version: raised whenever our code would give other numbers from the same weights.
        layer: where in the network the embedding is read.
        pooling: how frames or tokens, and then windows, become one vector.
        normalize: ``none`` or ``l2``, applied to the clip's vector.
        dtype: number type in the store.
        compute_dtype: number type of the forward pass.
        sample_rate: Hz (audio).
        gain: what happens to the waveform's level before the model (audio).
        window_seconds: length of a window (audio).
        hop_seconds: from the start of one window to the next (audio).
        padding: how a window is completed (audio).
        shortest_seconds: a clip shorter than half a window is padded only to the next of a
            half, a quarter, ... of a window, never below this; None for always a whole one.
        long_audio: what the model does with a long window, where it does something of its own.
        prompt: the words around the clip and its text (prompt).
        text_template: how the text was built, in full (text, prompt).
        max_tokens: where the tokenizer cuts (text).
    """

    backbone: str
    output: str
    kind: Kind
    dim: int
    weights: str
    weights_sha256: str
    version: int
    layer: str
    pooling: str
    normalize: Literal["none", "l2"] = "none"
    dtype: Literal["float16", "float32"] = "float16"
    compute_dtype: str = "float32"
    sample_rate: int | None = None
    gain: str | None = None
    window_seconds: float | None = None
    hop_seconds: float | None = None
    padding: Padding | None = None
    shortest_seconds: float | None = None
    long_audio: str | None = None
    prompt: str | None = None
    text_template: str | None = None
    max_tokens: int | None = None

    def to_dict(self) -> dict[str, object]:
        """The spec as JSON types, without the fields that do not apply."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def window_samples(self) -> int:
        """Samples in a window."""
        assert self.window_seconds is not None and self.sample_rate is not None
        return round(self.window_seconds * self.sample_rate)

    @property
    def hop_samples(self) -> int:
        """Samples from the start of one window to the next."""
        assert self.hop_seconds is not None and self.sample_rate is not None
        return round(self.hop_seconds * self.sample_rate)


@dataclass(frozen=True)
class Question:
    """A question about any clip, for outputs that say how likely each answer is.

    Attributes:
        words: the question, with nothing of a clip in it.
        answers: all answers, in the order of the output's columns.
    """

    words: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class BackboneOptions:
    """What a user may choose about a backbone.

    Attributes:
        argument: what follows the colon of ``hear:<module>`` or ``hf:<model>``.
        weights: a weight file or folder instead of the backbone's own.
        text_template: description of the text template, for text outputs.
        dtype: number type in the store.
        precision: number type of the model's matrix products; front ends stay in float32.
        question: what is asked about each clip, for backbones that can answer; None for nothing.
    """

    argument: str = ""
    weights: Path | None = None
    text_template: str = ""
    dtype: Literal["float16", "float32"] = "float16"
    precision: Precision = "float32"
    question: Question | None = None


class Backbone(ABC):
    """A frozen encoder of audio, of text, or of both.

    A subclass lives in one file of `bsdkit.backbones` under ``@register("name")``, or comes
    from another package by the entry point group ``bsdkit.backbones``. Its module imports
    nothing heavy; `load` does.

    Args:
        options: what the user chose.
    """

    name: ClassVar[str]
    """Set by `register`."""

    outputs: ClassVar[Mapping[str, Kind]]
    """Kind of each output by name; the name is empty where there is only one."""

    card: ClassVar[ModelCard]
    """What is known of the model: licence, weights, size, training."""

    extra_outputs: ClassVar[frozenset[str]] = frozenset()
    """Outputs that are made only when asked for by name, such as ``qwen2-audio.prompt``."""

    needs_load_for_spec: bool = False
    """Whether the spec (dimension, digest of the weights) is known only after `load`."""

    def __init__(self, options: BackboneOptions | None = None) -> None:
        self.options = options or BackboneOptions()
        self.device = ""
        self.wanted: frozenset[str] = frozenset()
        """Outputs that will be asked for, set before `load`, which need not bring in what only
        others need; empty for all but the extra ones."""

    @abstractmethod
    def missing(self) -> str:
        """What keeps the backbone from loading and the command that mends it; empty if ready.

        Looks, without importing anything heavy.
        """

    @abstractmethod
    def spec(self, output: str) -> BackboneSpec:
        """The spec of one output."""

    @abstractmethod
    def load(self, device: str) -> None:
        """Brings in the heavy imports and the weights, in eval mode, on that device.

        Raises:
            BackboneUnavailable: a package or the weights are missing, or are not the ones
                that were expected; the message says what to type.
        """

    precision_difference: float | None = None
    """How far the precision that was chosen is from float32 here, see `prepare`."""

    def prepare(self, device: str) -> None:
        """Loads the backbone, and tries a precision below float32 on one noise or text.

        Processors and libraries differ in what they compute below float32, and what is wrong is
        silent: so the same input is embedded both ways, on that device, once. The largest relative
        difference of an output goes into `precision_difference`, which extraction writes beside
        the spec. (It differs between machines, so the spec itself cannot hold it.)

        Raises:
            BackboneUnavailable: see `load`.
            ImprecisePrecision: they differ by more than `PRECISION_TOLERANCE`; the backbone
                then counts as not loaded.
        """
        self.load(device)
        if self.options.precision == "float32":
            return
        chosen = self.options
        found = self._try_precision()
        self.options = replace(chosen, precision="float32")
        try:
            expected = self._try_precision()
        finally:
            self.options = chosen
        differences = [
            float(np.linalg.norm(found[name] - vectors))
            / max(float(np.linalg.norm(vectors)), 1e-12)
            for name, vectors in expected.items()
        ]
        self.precision_difference = max(differences, default=None)
        if not all(difference <= PRECISION_TOLERANCE for difference in differences):  # NaN, too
            self.device = ""
            raise ImprecisePrecision(
                f"{self.identity} in {chosen.precision} on {device} differs from float32 by "
                f"{max(differences):.2g} of the length of its vectors, at most "
                f"{PRECISION_TOLERANCE} is accepted; use --precision float32"
            )

    def _try_precision(self) -> dict[str, FloatArray]:
        """Vectors of one fixed noise, by output; of one text where no audio is embedded."""
        audio = [name for name, kind in self.outputs.items() if kind == "audio"]
        if audio:
            spec = self.spec(audio[0])
            n = min(spec.window_samples, 2 * (spec.sample_rate or 16_000))
            noise = 0.1 * np.random.default_rng(0).standard_normal((1, n))
            return self.embed(noise.astype(np.float32), np.array([n]))
        if "text" in self.outputs.values():
            return self.embed_texts(["rain on a tin roof, a dog barks twice"])
        return {}

    def embed(self, audio: FloatArray, valid: IntArray) -> dict[str, FloatArray]:
        """Embeddings [batch, dim] of windows, by audio output.

        Args:
            audio: mono windows [batch, samples] in [-1, 1] at the spec's rate, at most
                `window_samples` long; all windows of a batch have the same length.
            valid: real samples [batch] in each window; the rest is padding.
        """
        raise NotImplementedError(f"{self.name} does not embed audio")

    def embed_texts(self, texts: Sequence[str]) -> dict[str, FloatArray]:
        """Embeddings [n, dim] of texts, by text output."""
        raise NotImplementedError(f"{self.name} does not embed text")

    def embed_prompts(
        self, audio: FloatArray, valid: IntArray, texts: Sequence[str]
    ) -> dict[str, FloatArray]:
        """Embeddings [batch, dim] of windows with the text of their clips, by prompt output.

        Args:
            audio: see `embed`.
            valid: see `embed`.
            texts: the text of the clip that each window is of.
        """
        raise NotImplementedError(f"{self.name} does not embed prompts")

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Inference mode, with matrix products in the precision that was chosen.

        Front ends belong before it, under `torch.inference_mode` alone: half precision
        breaks their logarithms.
        """
        import torch

        with torch.inference_mode():
            if self.options.precision == "float32":
                yield
            else:
                dtype = getattr(torch, self.options.precision)
                with torch.autocast(self.device.partition(":")[0], dtype=dtype):
                    yield

    def feature(self, output: str) -> str:
        """The feature name of an output: ``clap.audio``; the backbone's name if it has one."""
        stem = re.sub(r"[^A-Za-z0-9_]+", "-", self.identity).strip("-")
        return f"{stem}.{output}" if output else stem

    @property
    def identity(self) -> str:
        """The name with what follows its colon."""
        return self.name + self.options.argument

    def weight_state(self) -> str:
        """Where the weights are, or what `load` will fetch; empty where only loading tells."""
        return f"fetches {self.card.fetches} at first use" if self.card.fetches else ""

    def require(self) -> None:
        """Raises BackboneUnavailable if something is missing."""
        reason = self.missing()
        if reason:
            raise BackboneUnavailable(f"{self.identity} is not ready: {reason}")

    def output_named(self, output: str) -> str:
        """The output itself.

        Raises:
            UnknownBackbone: the backbone has no such output.
        """
        if output not in self.outputs:
            names = {f"{self.identity}.{known}" for known in self.outputs}
            raise UnknownBackbone(
                f"{self.identity} has no output {output!r}: "
                f"{nearest(f'{self.identity}.{output}', names)}"
            )
        return output


def state_digest(model: torch.nn.Module) -> str:
    """The sha256 of a model's parameters and buffers: names, shapes and numbers."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        if array.dtype is torch.bfloat16:
            array = array.view(torch.int16)
        digest.update(f"{name} {tuple(array.shape)} {tensor.dtype}".encode())
        digest.update(array.numpy().tobytes())
    return digest.hexdigest()
