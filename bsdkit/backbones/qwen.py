"""Audio towers of Qwen's audio language models, and the language model's state for a prompt.

Chu et al., "Qwen2-Audio Technical Report", 2024; Xu et al., "Qwen2.5-Omni Technical Report",
2025; Xu et al., "Qwen3-Omni Technical Report", 2025. The front end is Whisper's with 128 mel
bands (Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022,
section 2.2), computed here on the device.

``encoder`` and ``projector`` need the audio tower alone, so only its tensors are read from the
sharded checkpoint. ``prompt`` reads the whole model: the language model's last hidden state at
the last token of a prompt that holds the clip and the text of its metadata. The clip's states
are put between the tokens of the prompt by hand; no processor is involved, which could take a
prompt for text alone and say so only in a warning.

``prior``, which is there when the options hold a question, reads the language head too: the
log-likelihood of each answer after a prompt that holds the question, the clip and its text.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bsdkit.backbones.answers import answer_log_likelihoods, plain_cache, repeated
from bsdkit.backbones.base import (
    Backbone,
    BackboneOptions,
    BackboneSpec,
    FloatArray,
    IntArray,
    Kind,
    state_digest,
)
from bsdkit.backbones.cards import HUB, ModelCard
from bsdkit.backbones.frontends import mel_triangles
from bsdkit.backbones.qwen_files import ShardedFiles
from bsdkit.backbones.registry import register
from bsdkit.errors import BackboneUnavailable

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Qwen2Audio", "Qwen3Omni", "Qwen25Omni", "log_mel", "published_network"]

SAMPLE_RATE = 16_000
WINDOW_SECONDS = 30.0
WINDOW_SAMPLES = 480_000
FFT, HOP = 400, 160
WINDOW_FRAMES = WINDOW_SAMPLES // HOP
SHORTEST_SECONDS = 1.25
MAX_TEXT_TOKENS = 512
INSTALL = "pip install 'transformers>=5'"

_SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
_TEXT = "The uploader's text about this sound: {text}"
_WORDS = _TEXT + "\nIn one word, this sound is:"
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


def published_network(name: str) -> nn.Module:
    """The audio tower of a published model, with the projector where that stands apart.

    Args:
        name: ``qwen2-audio``, ``qwen2.5-omni`` or ``qwen3-omni``.
    """
    cls = next(cls for cls in (Qwen2Audio, Qwen25Omni, Qwen3Omni) if cls.name == name)
    import transformers

    config = getattr(transformers, cls.config_class).from_dict(cls.published)
    return cls.build_parts(config)


def _card(
    hub: str, gigabytes: int, parameters: float, gigaflops: float, released: str
) -> ModelCard:
    """The card of a model; size and operations are the audio tower's."""
    return ModelCard(
        summary="audio tower of a language model",
        licence="Apache-2.0",
        fetches=f"the shards of {hub} that hold its audio tower, for `prompt` all "
        f"({gigabytes} GB), from the Hugging Face hub",
        hub=hub,
        parameters=parameters,
        gigaflops=gigaflops,
        training_data="speech, sound and music; sources not published",
        released=released,
        url=f"{HUB}/{hub}",
    )


class _Qwen(Backbone):
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

    prompt: ClassVar[str]
    """The words around ``{audio}``, the clip, and ``{text}``."""

    question_prompt: ClassVar[str]
    """The words around ``{question}``, ``{audio}`` and ``{text}``; an answer follows."""

    answer_form: ClassVar[tuple[str, str]]
    """What stands before and after an answer. The end is a token of its own, and counts: else
    an answer would never be less likely than a longer one that begins with it."""

    markers: ClassVar[tuple[str, str, str]]
    """Tokens that begin a clip, stand for it and end it; each must be one token."""

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

    def _check_tokenizer(self, tokenizer: Any, audio_token: int) -> None:
        """Raises BackboneUnavailable unless the markers are tokens of it.

        Offline, transformers makes an empty tokenizer of a missing one and says nothing.
        """
        ends = [self.answer_form[1]] if self.options.question is not None else []
        for marker in [*self.markers, *ends]:
            ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
            is_clip = marker == self.markers[1]
            if len(ids) != 1 or (is_clip and ids[0] != audio_token):
                raise self.files.unavailable(
                    f"its tokenizer makes {list(ids)} of {marker.strip() or 'a newline'}, expected "
                    f"{[audio_token] if is_clip else 'one token'}: its files are missing or "
                    "another model's"
                )

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

    def _described_prompt(self, output: str) -> str:
        """All words that are not a clip's."""
        if output == "prompt":
            return self.prompt
        assert self.options.question is not None
        before, after = self.answer_form
        answers = "{" + "|".join(self.options.question.answers) + "}"
        return "{audio}".join(self._around_clip()) + before + answers + after

    def _around_clip(self) -> tuple[str, str]:
        """What stands before and after the clip in `question_prompt`, with the question."""
        assert self.options.question is not None
        before, _, after = self.question_prompt.partition("{audio}")
        return before.replace("{question}", _defused(self.options.question.words)), after

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
        """States [n, d_model] before and [n, dim] after the projector, by window.

        A window has as many as its real samples fill, so the lengths differ.
        """
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

    def embed_prompts(
        self, audio: FloatArray, valid: IntArray, texts: Sequence[str]
    ) -> dict[str, FloatArray]:
        """See `Backbone.embed_prompts`."""
        if self._language_model is None:
            raise BackboneUnavailable(
                f"{self.name} was loaded without its language model: add 'prompt' to `wanted` "
                "before `load`"
            )
        with self.forward():
            states = [projected for _, projected in self._states(audio, valid)]
            made = {}
            if "prompt" in (self.wanted or {"prompt"}):
                made["prompt"] = self._last_states(states, texts)
            if self._language_head is not None:
                made["prior"] = self._answer_scores(states, texts)
            return {output: rows.float().cpu().numpy() for output, rows in made.items()}

    def _embedded_prompts(
        self, before: str, after: str, states: list[torch.Tensor], texts: Sequence[str]
    ) -> list[torch.Tensor]:
        """Token embeddings and a clip's states in place [n, hidden], by prompt.

        Args:
            before: what stands before a clip.
            after: what follows it, with ``{text}``.
            states: of the clips, after the projector.
            texts: of the clips.
        """
        import torch

        words, _, end = after.partition("{text}")
        rows = []
        head, middle, tail = (self._embedded(self._ids(part)) for part in (before, words, end))
        for clip, text in zip(states, texts, strict=True):
            ids = self._ids(_defused(text))[:MAX_TEXT_TOKENS]
            clip = clip.to(head.dtype)
            rows.append(torch.cat([head, clip, middle, self._embedded(ids), tail]))
        return rows

    def _last_states(self, states: list[torch.Tensor], texts: Sequence[str]) -> torch.Tensor:
        """The language model's state [batch, hidden] at the last token of `prompt`."""
        import torch

        before, _, after = self.prompt.partition("{audio}")
        rows = self._embedded_prompts(before, after, states, texts)
        # what follows the last token of a row is not seen by it: attention looks back only
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        hidden = self._language_model(inputs_embeds=padded, use_cache=False).last_hidden_state
        last = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
        vectors: torch.Tensor = hidden[torch.arange(len(rows), device=hidden.device), last]
        return vectors

    def _answer_scores(self, states: list[torch.Tensor], texts: Sequence[str]) -> torch.Tensor:
        """Log-likelihoods [batch, n_answers] after `question_prompt`.

        The question, which stands before the clip, goes through the model once and stays in a
        cache.
        """
        import torch

        before, after = self._around_clip()
        question = self._embedded(self._ids(before))[None]
        n_question = question.shape[1]
        if self._question_cache is None:
            cache = self._empty_cache()
            positions = torch.arange(n_question, device=self.device)[None]
            self._run(question, torch.ones_like(positions), positions, cache)
            self._question_cache = cache  # whole: the pass may have run out of memory
        rows = self._embedded_prompts("", after, states, texts)
        # All but the last token, padded; then that token, which stands at one place in all.
        body = torch.nn.utils.rnn.pad_sequence([row[:-1] for row in rows], batch_first=True)
        n_body = torch.tensor([len(row) - 1 for row in rows], device=self.device)
        places = torch.arange(body.shape[1], device=self.device)
        mask = torch.nn.functional.pad((places < n_body[:, None]).long(), (n_question, 0), value=1)
        cache = repeated(self._question_cache, len(rows))
        self._run(body, mask, (n_question + places).expand(len(rows), -1), cache)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        last = torch.stack([row[-1:] for row in rows])
        positions = n_question + n_body
        hidden = self._run(last, mask, positions[:, None], cache)
        return answer_log_likelihoods(
            lambda ids, mask, positions, cache: self._language_head(
                self._run(self._language_model.get_input_embeddings()(ids), mask, positions, cache)
            ),
            self._answer_ids(),
            self._language_head(hidden)[:, 0],
            cache,
            mask,
            positions + 1,
        )

    def _answer_ids(self) -> list[list[int]]:
        """Tokens of each answer with its end, split as answers are that stand alone."""
        assert self.options.question is not None
        before, end = self.answer_form
        return [
            self._ids(before + _defused(answer)) + self._ids(end)
            for answer in self.options.question.answers
        ]

    def _empty_cache(self) -> Any:
        config = self._language_model.config
        cache = plain_cache(config, int(config.max_position_embeddings))
        if cache is None:
            raise self.files.unavailable("its language model has no cache that can be cropped")
        return cache

    def _run(
        self, embedded: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """The language model's states [batch, n, hidden]; see `Step`."""
        states: torch.Tensor = self._language_model(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return states

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _embedded(self, ids: list[int]) -> torch.Tensor:
        """Token embeddings [n, hidden]."""
        import torch

        table = self._language_model.get_input_embeddings()
        embedded: torch.Tensor = table(torch.tensor(ids, dtype=torch.long, device=self.device))
        return embedded


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


def _defused(text: str) -> str:
    """The text with nothing in it that is a token of the model's own."""
    return text.replace("<|", "< |")


@register("qwen2-audio")
class Qwen2Audio(_Qwen):
    """Qwen2-Audio 7B, the model that is not tuned for chat.

    Its tower takes 3000 mel frames whatever the clip's length; padding is kept from
    attention and from the mean.
    """

    card = _card("Qwen/Qwen2-Audio-7B", 17, 642.2, 2281.6, "2024")
    model_types = ("qwen2_audio",)
    config_class = "Qwen2AudioConfig"
    model_class = "Qwen2AudioForConditionalGeneration"
    tower_class = ("transformers.models.qwen2_audio.modeling_qwen2_audio", "Qwen2AudioEncoder")
    published: ClassVar[dict[str, Any]] = {
        "audio_config": {"model_type": "qwen2_audio_encoder", "d_model": 1280,
                         "encoder_layers": 32, "encoder_attention_heads": 20,
                         "encoder_ffn_dim": 5120},
        "text_config": {"model_type": "qwen2", "hidden_size": 4096},
    }  # fmt: skip
    encoder_point = "audio tower, after average pooling by 2 and the final layer norm"
    projector_point = "multi-modal projector (width of the language model)"
    prompt = "<|audio_bos|>{audio}<|audio_eos|>" + _WORDS
    question_prompt = "{question}\n\n<|audio_bos|>{audio}<|audio_eos|>" + _TEXT + "\nLabel:"
    answer_form = (" ", "\n")
    markers = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")
    least_frames = 3

    @classmethod
    def build_parts(cls, config: Any) -> nn.Module:
        """The audio tower and the projector; see `_Qwen.build_parts`."""
        from torch import nn

        parts = super().build_parts(config)
        width = config.audio_config.d_model
        parts.multi_modal_projector = nn.Module()
        parts.multi_modal_projector.linear = nn.Linear(width, config.text_config.hidden_size)
        return parts

    def _projector_width(self) -> int:
        if self.device:
            return int(self._projector.linear.out_features)
        return int(self._config.text_config.hidden_size)

    def _shortest_seconds(self) -> float | None:
        return None

    def _least_samples(self) -> int:
        return WINDOW_SAMPLES

    def _run_tower(
        self, mel: torch.Tensor, n_frames: list[int]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        lengths = torch.tensor([halved(n) for n in n_frames], device=mel.device)
        positions = torch.arange(halved(WINDOW_FRAMES), device=mel.device)
        mask = (positions < lengths[:, None])[:, None, None, :]  # [batch, 1, 1, 1500]
        states = self._tower(mel, attention_mask=mask).last_hidden_state
        projected = self._projector.linear(states)
        n_states = [halved(n) // 2 for n in n_frames]
        return [(states[i, :n], projected[i, :n]) for i, n in enumerate(n_states)]


class _Omni(_Qwen):
    """What the two Omni models share: windows of any length, side by side in one sequence."""

    answer_form = ("", "<|im_end|>")
    question_prompt = (
        "<|im_start|>system\n{question}<|im_end|>\n"
        "<|im_start|>user\n<|audio_bos|>{audio}<|audio_eos|>" + _TEXT + "<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    prompt = (
        _SYSTEM + "<|im_start|>user\n<|audio_bos|>{audio}<|audio_eos|>" + _WORDS + "<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    markers = ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>")

    def _n_states(self, n_frames: int) -> int:
        """States of a window with that many mel frames."""
        raise NotImplementedError

    def _run_tower(
        self, mel: torch.Tensor, n_frames: list[int]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        import torch

        # A window is cut into chunks that are padded to the longest one of the call, and the
        # convolutions see that padding. Windows with a whole chunk have the same longest one
        # alone or together; shorter ones only beside others of their own length.
        chunk = 2 * int(self._tower.config.n_window)
        groups: dict[int, list[int]] = defaultdict(list)
        for row, n in enumerate(n_frames):
            groups[min(n, chunk)].append(row)
        result: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for rows in groups.values():
            packed = torch.cat([mel[row, :, : n_frames[row]] for row in rows], dim=1)
            lengths = torch.tensor([n_frames[row] for row in rows], device=mel.device)
            before, after = self._run_packed(packed, lengths)
            sizes = [self._n_states(n_frames[row]) for row in rows]
            pairs = zip(torch.split(before, sizes), torch.split(after, sizes), strict=True)
            result.update(zip(rows, pairs, strict=True))
        return [result[row] for row in range(len(n_frames))]

    def _run_packed(
        self, packed: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """States [n, d_model] after ``ln_post`` and [n, output_dim] at the end of the tower.

        Args:
            packed: log-mel [mels, frames] of all windows, one after the other.
            lengths: frames of each.
        """
        normed: list[torch.Tensor] = []
        hook = self._tower.ln_post.register_forward_hook(
            lambda module, inputs, output: normed.append(output)
        )
        try:
            states = self._tower(packed, feature_lens=lengths).last_hidden_state
        finally:
            hook.remove()
        return normed[0], states


@register("qwen2.5-omni")
class Qwen25Omni(_Omni):
    """The thinker of Qwen2.5-Omni 7B; attention within chunks of two seconds."""

    card = _card("Qwen/Qwen2.5-Omni-7B", 22, 639.6, 645.5, "2025-03")
    model_types = ("qwen2_5_omni", "qwen2_5_omni_thinker")
    config_class = "Qwen2_5OmniThinkerConfig"
    model_class = "Qwen2_5OmniThinkerForConditionalGeneration"
    tower_class = (
        "transformers.models.qwen2_5_omni.modeling_qwen2_5_omni",
        "Qwen2_5OmniAudioEncoder",
    )
    published: ClassVar[dict[str, Any]] = {
        "audio_config": {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20,
                         "encoder_ffn_dim": 5120, "output_dim": 3584, "n_window": 100},
    }  # fmt: skip
    encoder_point = "audio tower, after average pooling by 2 and ln_post, before proj"
    projector_point = "audio tower, after proj (width of the language model)"
    least_frames = 3

    def _n_states(self, n_frames: int) -> int:
        return halved(n_frames) // 2


@register("qwen3-omni")
class Qwen3Omni(_Omni):
    """The thinker of Qwen3-Omni 30B-A3B; convolutions within chunks of one second."""

    card = _card("Qwen/Qwen3-Omni-30B-A3B-Instruct", 70, 647.9, 211.2, "2025-09")
    model_types = ("qwen3_omni_moe", "qwen3_omni_moe_thinker")
    config_class = "Qwen3OmniMoeThinkerConfig"
    model_class = "Qwen3OmniMoeThinkerForConditionalGeneration"
    tower_class = (
        "transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe",
        "Qwen3OmniMoeAudioEncoder",
    )
    published: ClassVar[dict[str, Any]] = {
        "audio_config": {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20,
                         "encoder_ffn_dim": 5120, "output_dim": 2048, "n_window": 50,
                         "n_window_infer": 800, "downsample_hidden_size": 480},
    }  # fmt: skip
    encoder_point = "audio tower, after ln_post, before proj1"
    projector_point = "audio tower, after proj2 (width of the language model)"
    prompt = (
        "<|im_start|>user\n<|audio_start|>{audio}<|audio_end|>" + _WORDS + "<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    question_prompt = (
        "<|im_start|>system\n{question}<|im_end|>\n"
        "<|im_start|>user\n<|audio_start|>{audio}<|audio_end|>" + _TEXT + "<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    markers = ("<|audio_start|>", "<|audio_pad|>", "<|audio_end|>")
    least_frames = 1

    def _n_states(self, n_frames: int) -> int:
        chunk = 2 * int(self._tower.config.n_window)
        return n_frames // chunk * halved(chunk, 3) + halved(n_frames % chunk, 3)
