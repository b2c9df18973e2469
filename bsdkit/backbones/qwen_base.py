"""What backbones of Qwen's audio language models share: files, front end, pooling.

The front end is Whisper's with 128 mel bands (Radford et al., "Robust Speech Recognition via
Large-Scale Weak Supervision", 2022, section 2.2), computed here on the device. Of the sharded
checkpoint only the tensors are read that the wanted outputs depend on.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bsdkit.backbones.base import (
    BackboneOptions,
    BackboneSpec,
    FloatArray,
    IntArray,
    Kind,
    state_digest,
)
from bsdkit.backbones.frontends import mel_triangles
from bsdkit.backbones.qwen_files import ShardedFiles
from bsdkit.backbones.qwen_prompt import MAX_TEXT_TOKENS, Prompting

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["WINDOW_FRAMES", "WINDOW_SAMPLES", "QwenBackbone", "halved", "log_mel"]

SAMPLE_RATE = 16_000
WINDOW_SECONDS = 30.0
WINDOW_SAMPLES = 480_000
FFT, HOP = 400, 160
WINDOW_FRAMES = WINDOW_SAMPLES // HOP
SHORTEST_SECONDS = 1.25
INSTALL = "pip install 'transformers>=5'"

# beside the audio tower and the language model in a checkpoint; no output depends on them
_UNUSED = {"talker", "token2wav", "code2wav", "visual"}
_HEAD = "lm_head"


def log_mel(audio: torch.Tensor, filters: torch.Tensor) -> torch.Tensor:
    """Whisper's log-mel [batch, mels, frames] of waveforms [batch, samples] at 16 kHz.

    Frame t is centred on sample 160 t; there are ``samples // 160``. The range is cut to eight
    decades below the row's maximum.

    Args:
        audio: waveforms, padded with zeros to 30 s, or by 400 samples at least.
        filters: mel filters [mels, 201].
    """
    import torch

    window = torch.hann_window(FFT, device=audio.device, dtype=audio.dtype)
    spectrum = torch.stft(
        audio, FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True
    )
    power = filters @ spectrum[..., :-1].abs().square()
    decades = power.clamp_min(1e-10).log10()
    loudest = decades.amax(dim=(1, 2), keepdim=True)
    return (torch.maximum(decades, loudest - 8) + 4) / 4


def halved(n: int, times: int = 1) -> int:
    """Frames that are left of ``n`` after convolutions of kernel 3, stride 2, padding 1."""
    for _ in range(times):
        n = (n + 1) // 2
    return n


class QwenBackbone(Prompting):
    """What the three models share: files, front end, pooling, the prompt."""

    outputs: ClassVar[dict[str, Kind]] = {
        "encoder": "audio",
        "projector": "audio",
        "prompt": "prompt",
    }
    extra_outputs = frozenset({"prompt"})

    model_types: ClassVar[tuple[str, ...]]
    """What config.json may call it."""

    config_class: ClassVar[str]
    model_class: ClassVar[str]
    """Names in transformers, of the model without its speech output."""

    tower_class: ClassVar[tuple[str, str]]
    """Module and name of the audio tower."""

    published: ClassVar[dict[str, Any]]
    """The parts of the published config.json that shape the audio tower and projector."""

    encoder_point: ClassVar[str]
    projector_point: ClassVar[str]
    """Where in the network the two audio outputs are read."""

    least_frames: ClassVar[int]
    """Mel frames that give one state."""

    def __init__(self, options: BackboneOptions | None = None) -> None:
        super().__init__(options)
        self.files = ShardedFiles(self.card.hub, self.options.weights, self.name)
        self._is_from_files = False
        self._digests: dict[str, str] = {}
        if self.options.question is not None:
            self.outputs = {**self.outputs, "prior": "prompt"}  # type: ignore[misc]
            self.extra_outputs = self.extra_outputs | {"prior"}  # type: ignore[misc]

    def missing(self) -> str:
        """See `Backbone.missing`; what the hub has is not missing."""
        if importlib.util.find_spec("transformers") is None:
            return f"it needs transformers: {INSTALL}"
        version = importlib.metadata.version("transformers")
        if int(version.partition(".")[0]) < 5:
            return f"it needs transformers 5, found {version}: {INSTALL}"
        folder = self.options.weights
        if folder is not None and not (folder / "config.json").is_file():
            return f"{folder} holds no config.json: give a folder with the files of {self.card.hub}"
        return ""

    @cached_property
    def _config(self) -> Any:
        """The config as transformers reads it, which fills in what config.json leaves out."""
        self.require()
        path = self.files.find("config.json")
        if path is None:
            raise self.files.unavailable("it holds no config.json")
        facts = json.loads(path.read_text())
        found = facts.get("model_type")
        if found not in self.model_types:
            raise self.files.unavailable(
                f"config.json is of a {found!r} model, expected {self.model_types[0]!r}"
            )
        import transformers

        return getattr(transformers, self.config_class).from_dict(
            facts.get("thinker_config", facts)
        )

    @classmethod
    def build_parts(cls, config: Any) -> nn.Module:
        """The audio tower by its config, with random weights; ``state_dict`` as in checkpoints."""
        from torch import nn

        module, name = cls.tower_class
        parts = nn.Module()
        parts.audio_tower = getattr(importlib.import_module(module), name)(config.audio_config)
        return parts

    def _digest(self, output: str) -> str:
        """Hex digest of the tensors that an output depends on; the same on every device."""
        part = output if output in ("prompt", "prior") else "tower"
        if part in self._digests:
            return self._digests[part]
        if self.device and not self._is_from_files:
            modules = [self._tower, self._projector]
            modules += [self._language_model] if part != "tower" else []
            modules += [self._language_head] if part == "prior" else []
            joined = "".join(state_digest(module) for module in modules if module is not None)
            self._digests[part] = hashlib.sha256(joined.encode()).hexdigest()
        else:
            name_of = {"tower": _tower_name, "prompt": _used_name, "prior": _name_with_head}
            self._digests[part] = self.files.digest(name_of[part])
        return self._digests[part]

    def prepare(self, device: str) -> None:
        """See `Backbone.prepare`; weights held in half precision have no float32 beside them."""
        if device.startswith("cpu"):
            super().prepare(device)
        else:
            self.load(device)

    def load(self, device: str) -> None:
        """See `Backbone.load`."""
        config = self._config  # says what is missing
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        # Half precision on a GPU is held in half the memory; elsewhere autocast needs float32.
        is_half = self.options.precision != "float32" and not device.startswith("cpu")
        dtype = getattr(torch, self.options.precision) if is_half else torch.float32
        if self.wanted & {"prompt", "prior"}:
            model, tokenizer = self._load_all(config, dtype)
            self.attach(model.model, tokenizer, device, model.lm_head)
        else:
            self.attach(self._load_tower(config, dtype), None, device)
        self._is_from_files = True

    def _load_tower(self, config: Any, dtype: torch.dtype) -> nn.Module:
        """The audio tower and projector, from their own tensors alone.

        Raises:
            BackboneUnavailable: the files hold others; the message names the first.
        """
        import torch

        state = dict(self.files.tensors(_tower_name))
        with torch.device("meta"):
            parts = self.build_parts(config)
        expected = {name: tuple(tensor.shape) for name, tensor in parts.state_dict().items()}
        for name in sorted(expected.keys() | state.keys()):
            found = tuple(state[name].shape) if name in state else None
            if found != expected.get(name):
                raise self.files.unavailable(
                    f"{name} is {found or 'not there'}, expected {expected.get(name, 'none')}"
                )
        module, name = self.tower_class
        prefix = "audio_tower."
        # transformers also restores the constants that no checkpoint holds
        parts.audio_tower = getattr(importlib.import_module(module), name).from_pretrained(
            None,
            config=config.audio_config,
            state_dict={k.removeprefix(prefix): v for k, v in state.items() if prefix in k},
            dtype=dtype,
        )
        rest = {k: v.to(dtype) for k, v in state.items() if prefix not in k}
        parts.load_state_dict(rest, strict=False, assign=True)
        return parts

    def _load_all(self, config: Any, dtype: torch.dtype) -> tuple[Any, Any]:
        """The whole model without its speech output, and its tokenizer.

        Raises:
            BackboneUnavailable: it cannot be loaded, or a tensor is missing.
        """
        import transformers

        source = str(self.options.weights or self.card.hub)
        try:
            model, report = getattr(transformers, self.model_class).from_pretrained(
                source, config=config, dtype=dtype, output_loading_info=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(source)
        except Exception as error:
            raise self.files.unavailable(error) from None
        name_of = _name_with_head if "prior" in self.wanted else _used_name
        lacking = sorted(
            name
            for name in [*report["missing_keys"], *(k[0] for k in report["mismatched_keys"])]
            if name_of(name)
        )
        if lacking:
            raise self.files.unavailable(f"{lacking[0]} is not there or of another shape")
        return model, tokenizer

    def attach(self, model: Any, tokenizer: Any, device: str, language_head: Any = None) -> None:
        """Takes a model as it is.

        Args:
            model: has ``audio_tower``, for Qwen2-Audio ``multi_modal_projector``, and for
                prompts ``language_model``; the rest of it is not kept.
            tokenizer: the language model's, or None without prompts.
            device: where to run.
            language_head: maps the language model's states to logits; only ``prior`` needs it.
        """
        import torch

        def taken(module: Any) -> Any:
            return None if module is None else module.eval().requires_grad_(False).to(device)

        def take(name: str) -> Any:
            return taken(getattr(model, name, None))

        self._tower, self._projector = take("audio_tower"), take("multi_modal_projector")
        self._language_model: Any = None
        self._language_head: Any = None
        self._question_cache: Any = None
        if tokenizer is not None:
            self._check_tokenizer(tokenizer, int(model.config.audio_token_id))
            self._language_model = take("language_model")
            if self.options.question is not None and "prior" in (self.wanted or {"prior"}):
                self._language_head = taken(language_head)
        self._tokenizer = tokenizer
        filters = mel_triangles(
            int(self._tower.config.num_mel_bins), FFT, SAMPLE_RATE, 0.0, 8000.0,
            scale="slaney", norm="slaney",
        )  # fmt: skip
        self._filters = torch.tensor(filters, dtype=torch.float32, device=device)
        self._is_from_files = False
        self._digests = {}
        self.device = device

    def _width(self, output: str) -> int:
        """Length of an embedding, from the network or config.json."""
        if output == "prior":
            assert self.options.question is not None
            return len(self.options.question.answers)
        if output == "prompt":
            if self.device and self._language_model is not None:
                return int(self._language_model.config.hidden_size)
            return int(self._config.text_config.hidden_size)
        if output == "encoder":
            config = self._tower.config if self.device else self._config.audio_config
            return int(config.d_model)
        return self._projector_width()

    def _projector_width(self) -> int:
        config = self._tower.config if self.device else self._config.audio_config
        return int(config.output_dim)

    def spec(self, output: str) -> BackboneSpec:
        """See `Backbone.spec`."""
        kind = self.outputs[self.output_named(output)]
        is_prompt = kind == "prompt"
        points = {
            "encoder": self.encoder_point,
            "projector": self.projector_point,
            "prompt": "language model, after its last layer and norm",
            "prior": "language head, log-likelihood of each answer and its end",
        }
        pooling = {"prompt": "last token", "prior": "sum over an answer's tokens"}.get(
            output, "mean of states with real samples"
        )
        return BackboneSpec(
            backbone=self.name,
            output=output,
            kind=kind,
            dim=self._width(output),
            weights=Path(os.path.abspath(self.options.weights)).name
            if self.options.weights
            else self.card.hub,
            weights_sha256=self._digest(output),
            version=1,
            layer=points[output],
            pooling=f"{pooling}; windows by mean weighted by samples",
            # float16 has steps of 1/64 at -20, a usual log-likelihood
            dtype="float32" if output == "prior" else self.options.dtype,
            compute_dtype=self.options.precision,
            sample_rate=SAMPLE_RATE,
            gain="none",
            window_seconds=WINDOW_SECONDS,
            hop_seconds=WINDOW_SECONDS,
            padding="zeros",
            shortest_seconds=self._shortest_seconds(),
            prompt=self._described_prompt(output) if is_prompt else None,
            text_template=self.options.text_template if is_prompt else None,
            max_tokens=MAX_TEXT_TOKENS if is_prompt else None,
        )

    def _shortest_seconds(self) -> float | None:
        return SHORTEST_SECONDS

    def embed(self, audio: FloatArray, valid: IntArray) -> dict[str, FloatArray]:
        """See `Backbone.embed`."""
        import torch

        rows = self._states(audio, valid)
        return {
            "encoder": torch.stack([row.float().mean(0) for row, _ in rows]).cpu().numpy(),
            "projector": torch.stack([row.float().mean(0) for _, row in rows]).cpu().numpy(),
        }

    def _states(
        self, audio: FloatArray, valid: IntArray
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        # all frames that see a sample count for the row's maximum, not only those centred on one
        n_padded = min(WINDOW_SAMPLES, audio.shape[1] + 2 * FFT)
        with torch.inference_mode():
            waveform = torch.from_numpy(audio).to(self.device)
            waveform = torch.nn.functional.pad(
                waveform, (0, max(n_padded, self._least_samples()) - audio.shape[1])
            )
            mel = log_mel(waveform, self._filters)
        # frames are centred on samples 0, 160, ...: those centred on a real one
        n_frames = [max(self.least_frames, -(-int(n) // HOP)) for n in valid]
        with self.forward():
            return self._run_tower(mel, n_frames)

    def _least_samples(self) -> int:
        return 0

    def _run_tower(
        self, mel: torch.Tensor, n_frames: list[int]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """See `_states`; log-mel [batch, mels, frames] of which each row has its own number."""
        raise NotImplementedError


def _tower_name(key: str) -> str | None:
    """A tensor's name in the audio tower or projector, whatever stands before that in the file."""
    for part in ("audio_tower.", "multi_modal_projector."):
        if part in key:
            return part + key.partition(part)[2]
    return None


def _name_with_head(key: str) -> str | None:
    """A tensor's name, unless no output depends on it."""
    return None if _UNUSED & set(key.split(".")) else _tower_name(key) or key


def _used_name(key: str) -> str | None:
    """A tensor's name, unless ``prompt`` does not depend on it."""
    return None if _HEAD in key.split(".") else _name_with_head(key)
