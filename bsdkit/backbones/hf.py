"""Any audio or text encoder of transformers: ``hf:<model id or folder>``.

Text models: the mean of the last hidden state over the attention mask, or what a
sentence-transformers model says in its ``modules.json`` (Reimers and Gurevych, "Sentence-BERT",
EMNLP 2019): mean, first token or maximum, and length 1.

Audio models: the model's own feature extractor on the real samples alone, then the mean over
the frames that hold real samples; encoder-decoders (Whisper) give their encoder's states. In
AST a frame is a column of patches. Windows are as long as the feature extractor pads to (30 s
for Whisper), else ten seconds.
"""

from __future__ import annotations

import bisect
import hashlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from bsdkit.backbones.base import (
    Backbone,
    BackboneOptions,
    BackboneSpec,
    FloatArray,
    IntArray,
    Kind,
    state_digest,
)
from bsdkit.backbones.cards import ModelCard
from bsdkit.backbones.registry import register
from bsdkit.errors import BackboneUnavailable
from bsdkit.onednn import keep_grouped_exact, speed_up

if TYPE_CHECKING:
    import torch

__all__ = ["HuggingFace"]

WINDOW_SECONDS = 10.0
SHORTEST_SECONDS = 1.25
MAX_TOKENS = 512
AST_FRAME, AST_HOP = 400, 160
TWO_FRAMES = 560  # samples of two frames of 25 ms every 10 ms at 16 kHz
"""Samples at 16 kHz in a frame of AST's front end, and from one frame to the next."""

_FIRST_POSITION = {"roberta": 2, "xlm-roberta": 2, "camembert": 2, "mpnet": 2, "longformer": 2}
"""What these models add to the position of a token, which their tables must leave room for."""

_POOLING = {"mean": "mean of tokens", "cls": "first token", "max": "maximum of tokens"}

_DECISIVE_FILES = (
    "config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt",
)  # fmt: skip


@dataclass(frozen=True)
class _Sentences:
    """What a sentence-transformers model says of itself.

    Attributes:
        folder: where in the model its transformer is; empty for the top.
        pooling: how tokens become one vector.
        is_normalized: whether that is scaled to length 1.
        max_tokens: where texts are cut; None for wherever the transformer cuts.
        is_lower: whether texts are made lower case.
        prefix: what every text begins with.
    """

    folder: str = ""
    pooling: Literal["mean", "cls", "max"] = "mean"
    is_normalized: bool = False
    max_tokens: int | None = None
    is_lower: bool = False
    prefix: str = ""


@register("hf:")
class HuggingFace(Backbone):
    """An encoder by its id on the Hugging Face hub, or a folder that holds one.

    A model with an audio feature extractor embeds audio; any other embeds text.
    """

    outputs: ClassVar[dict[str, Kind]] = {"": "audio"}
    card = ModelCard(
        summary="any audio or text encoder in transformers",
        licence="the model's own",
        fetches="the model that it is given, from the Hugging Face hub",
    )
    needs_load_for_spec = True

    def __init__(self, options: BackboneOptions | None = None) -> None:
        super().__init__(options)
        self._problem = ""
        if self.options.argument and self.options.weights is None and not self.missing():
            self._resolve()

    def missing(self) -> str:
        """See `Backbone.missing`."""
        if importlib.util.find_spec("transformers") is None:
            return "it needs transformers: pip install transformers"
        name = self.options.argument
        # what looks like a path is no model id; the hub need not be asked
        if name.startswith(("/", ".", "~")) and not Path(name).expanduser().is_dir():
            return f"no folder {name}"
        return self._problem

    @property
    def identity(self) -> str:
        """The name for specs and messages: of a folder its own name, never where it lies."""
        folder = Path(self.options.argument).expanduser()
        return f"hf:{folder.resolve().name}" if folder.is_dir() else f"hf:{self.options.argument}"

    def _resolve(self) -> None:
        """Whether there is such a model, and which kind of input it takes."""
        try:
            if self._file("config.json") is None:
                where = "folder" if Path(self.options.argument).is_dir() else "model on the hub"
                self._problem = f"{where} {self.options.argument} has no config.json"
                return
            kind: Kind = "audio" if self._has_audio_config() else "text"
        except Exception as error:  # no network, no such model, a name the hub refuses
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._problem = (
                f"no folder and no model {self.options.argument} from the hub: "
                f"{type(error).__name__}: {first_line}"
            )
            return
        self.outputs = {"": kind}  # type: ignore[misc]

    def _file(self, name: str) -> Path | None:
        """A file of the model, or None if it has none of that name; the hub is asked last.

        Raises:
            Exception: the hub cannot be asked, or has no such model.
        """
        folder = Path(self.options.argument).expanduser()
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        from huggingface_hub import hf_hub_download, try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        cached = try_to_load_from_cache(self.options.argument, name)
        if isinstance(cached, str):
            return Path(cached)
        if cached is not None:  # the hub was asked before, and has none
            return None
        try:
            return Path(hf_hub_download(self.options.argument, name))
        except LocalEntryNotFoundError:
            if name == "config.json":
                raise
            return None  # offline, what is not in the cache beside config.json is taken for absent
        except EntryNotFoundError:
            return None

    def _json(self, name: str) -> Any:
        path = self._file(name)
        return None if path is None else json.loads(path.read_text())

    def _has_audio_config(self) -> bool:
        config = self._json("preprocessor_config.json") or {}
        # transformers 5 may keep the extractor inside the processor's file
        config = config or (self._json("processor_config.json") or {}).get("feature_extractor", {})
        return "sampling_rate" in config

    def _sentences(self) -> _Sentences:
        """How texts become vectors.

        Raises:
            BackboneUnavailable: sentence-transformers would do something that is not done here.
        """
        modules = self._json("modules.json")
        if modules is None:
            return _Sentences()
        places = {str(m["type"]).rpartition(".")[2]: str(m.get("path", "")) for m in modules}
        strange = sorted(places.keys() - {"Transformer", "Pooling", "Normalize"})
        if strange or len(places) != len(modules) or "Transformer" not in places:
            raise self._unusable(
                f"its modules.json has {', '.join(strange) or 'no single Transformer'}, expected "
                "Transformer, Pooling and perhaps Normalize"
            )
        pooling = self._json(f"{places['Pooling']}/config.json") if "Pooling" in places else {}
        chosen = [mode for mode in _pooling_modes(pooling or {}) if mode]
        if chosen not in (["mean"], ["cls"], ["max"]):
            raise self._unusable(f"it pools by {' and '.join(chosen)}, expected mean, cls or max")
        facts = self._json("config_sentence_transformers.json") or {}
        prefix = (facts.get("prompts") or {}).get(facts.get("default_prompt_name") or "", "")
        if prefix and not (pooling or {}).get("include_prompt", True):
            raise self._unusable("it leaves its prompt out of the pooling, which is not done here")
        folder = places["Transformer"].strip("/")
        inside = self._json("/".join(filter(None, [folder, "sentence_bert_config.json"]))) or {}
        length = inside.get("max_seq_length")
        return _Sentences(
            folder,
            chosen[0],
            "Normalize" in places,
            int(length) if length else None,
            bool(inside.get("do_lower_case")),
            str(prefix),
        )

    def _unusable(self, problem: str) -> BackboneUnavailable:
        return BackboneUnavailable(
            f"{self.identity} cannot be used: {problem}; give another model, or embed with "
            "sentence-transformers and import the vectors (bsdkit store import)"
        )

    def load(self, device: str) -> None:
        """See `Backbone.load`."""
        if self.options.weights is not None:
            raise BackboneUnavailable("hf: takes its model as hf:FOLDER, not by --weights")
        self.require()
        import transformers

        name = self.options.argument
        if Path(name).expanduser().is_dir():
            name = str(Path(name).expanduser())
        self._is_audio = self.outputs[""] == "audio"
        self._text = _Sentences() if self._is_audio else self._sentences()
        place = {"subfolder": self._text.folder} if self._text.folder else {}
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        try:
            self._model: Any = transformers.AutoModel.from_pretrained(name, **place)
            if self._is_audio:
                self._extractor = transformers.AutoFeatureExtractor.from_pretrained(name)
            else:
                self._tokenizer = transformers.AutoTokenizer.from_pretrained(name, **place)
        except Exception as error:
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise BackboneUnavailable(
                f"{self.identity} cannot be loaded: {first_line}; give a model id that the hub "
                "has (and a network), or a folder with config.json and model.safetensors"
            ) from None
        if hasattr(self._model, "get_encoder") and self._model.config.is_encoder_decoder:
            self._model = self._model.get_encoder()
        # some checkpoints come in half precision; the spec says which is computed in
        self._model = self._model.float().eval().requires_grad_(False).to(device)
        if device == "cpu":
            speed_up(self._model)
            if self.options.precision != "float32":
                keep_grouped_exact(self._model)
        if self._is_audio:
            self._is_waveform = isinstance(self._extractor, transformers.Wav2Vec2FeatureExtractor)
            self._is_patches = self._model.config.model_type == "audio-spectrogram-transformer"
            self._least_samples = self._least()
        self._sha256 = self._digest()
        self.device = device
        self._probe()

    def _probe(self) -> None:
        """Raises BackboneUnavailable unless the model takes what it will be given."""
        import numpy as np

        try:
            if self._is_audio:
                n = round(self._window_seconds() * float(self._extractor.sampling_rate))
                audio = np.zeros((2, n), np.float32)
                audio[1] = 0.1 * np.sin(np.arange(n))
                vectors = self.embed(audio, np.array([n // 2, n]))[""]
            else:
                if self._tokenizer.pad_token is None:
                    self._tokenizer.pad_token = self._tokenizer.eos_token
                vectors = self.embed_texts(["a", "a longer text"])[""]
        except Exception as error:  # transformers has many models, each with its own ways
            first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            hint = " (--backbone clap is made for it)" if self._model_type() == "clap" else ""
            raise self._unusable(f"{type(error).__name__}: {first_line}{hint}") from None
        if not np.isfinite(vectors).all():
            raise self._unusable("it gives NaN for a window that is half silence")

    def _model_type(self) -> str:
        return str(getattr(self._model.config, "model_type", ""))

    def _least(self) -> int:
        """Samples that give the model one frame."""
        import torch

        if self._is_patches:
            return AST_FRAME
        if not (self._is_waveform and self._has_frames()):
            takes_mask = "attention_mask" in self._extractor.model_input_names
            return TWO_FRAMES if takes_mask and not self._is_waveform else 1

        def frames(n: int) -> int:
            return int(self._model._get_feat_extract_output_lengths(torch.tensor(n)))

        return bisect.bisect_left(range(int(self._extractor.sampling_rate)), 1, key=frames)

    def _has_frames(self) -> bool:
        """Whether the model says how many frames it makes of an input."""
        return hasattr(self._model, "_get_feat_extract_output_lengths")

    def spec(self, output: str) -> BackboneSpec:
        """See `Backbone.spec`."""
        is_audio = self.outputs[self.output_named(output)] == "audio"
        pooling = _POOLING[self._text.pooling]
        if is_audio:
            frames = "mean of tokens"
            if self._is_patches:
                frames = "mean of patches that begin in real samples"
            elif self._is_waveform or self._has_frames():
                frames = "mean of frames with real samples"
            pooling = f"{frames}; windows by mean weighted by samples"
        elif self._text.is_lower:
            pooling += "; text in lower case"
        return BackboneSpec(
            backbone=self.identity,
            output=output,
            kind="audio" if is_audio else "text",
            dim=self._dim(),
            weights=self.identity.rpartition("/")[2].removeprefix("hf:"),
            weights_sha256=self._sha256,
            # in version 1 the extractor saw padding too, and lengths were shares of the window;
            # before 3 (audio) and 2 (text) the digest left the configuration out
            version=3 if is_audio else 2,
            layer="last hidden state",
            pooling=pooling,
            normalize="l2" if self._text.is_normalized else "none",
            dtype=self.options.dtype,
            compute_dtype=self.options.precision,
            sample_rate=int(self._extractor.sampling_rate) if is_audio else None,
            gain="the feature extractor's" if is_audio else None,
            window_seconds=self._window_seconds() if is_audio else None,
            hop_seconds=self._window_seconds() if is_audio else None,
            padding="zeros" if is_audio else None,
            shortest_seconds=SHORTEST_SECONDS if is_audio and self._is_waveform else None,
            prompt=self._text.prefix or None,
            text_template=None if is_audio else self.options.text_template,
            max_tokens=None if is_audio else self._max_tokens(),
        )

    def _digest(self) -> str:
        """Hex digest of the weights, and of the files that say what is done with them."""
        digest = hashlib.sha256(state_digest(self._model).encode())
        for name in _DECISIVE_FILES:
            path = self._file(f"{self._text.folder}/{name}" if self._text.folder else name)
            if path is None:
                continue
            content = path.read_bytes()
            if name == "config.json":  # what an export writes of itself changes no number
                facts = json.loads(content)
                for idle in ("_name_or_path", "transformers_version"):
                    facts.pop(idle, None)
                content = json.dumps(facts, sort_keys=True).encode()
            digest.update(f"{name} {len(content)} ".encode() + content)
        return digest.hexdigest()

    def _dim(self) -> int:
        """Length of an embedding.

        Raises:
            BackboneUnavailable: the config does not say.
        """
        config = self._model.config
        names = ["hidden_size", "d_model"]
        if getattr(config, "add_adapter", False):
            names.insert(0, "output_hidden_size")
        for name in names:
            if getattr(config, name, None):
                return int(getattr(config, name))
        raise BackboneUnavailable(f"{self.identity}: its config names no hidden_size or d_model")

    def _max_tokens(self) -> int:
        config = self._model.config
        positions = getattr(config, "max_position_embeddings", None)
        limits = [self._text.max_tokens or MAX_TOKENS, self._tokenizer.model_max_length]
        if positions and positions > 0:
            limits.append(positions - _FIRST_POSITION.get(config.model_type, 0))
        return int(min(limits))

    def _window_seconds(self) -> float:
        if self._is_patches:  # the extractor cuts what does not fit into its spectrogram
            n = AST_FRAME + AST_HOP * (int(self._extractor.max_length) - 1)
            return min(WINDOW_SECONDS, n / float(self._extractor.sampling_rate))
        n_samples = getattr(self._extractor, "n_samples", None)
        if not n_samples:
            return WINDOW_SECONDS
        return float(n_samples / self._extractor.sampling_rate)

    def embed(self, audio: FloatArray, valid: IntArray) -> dict[str, FloatArray]:
        """See `Backbone.embed`."""
        inputs, lengths = self._inputs(audio, valid)
        with self.forward():
            hidden = self._model(**inputs).last_hidden_state.float()
            if self._is_patches:
                hidden = self._columns(hidden)
            return {"": _mean_of_first(hidden, self._n_frames(lengths, hidden.shape[1]))}

    def _inputs(
        self, audio: FloatArray, valid: IntArray
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """What the model takes, and how much of each row is real, in the unit of its frames.

        That unit is samples where the model takes waveforms, else frames of the extractor;
        None where nothing is known about them.
        """
        import torch

        rate = self._extractor.sampling_rate
        lengths = [max(int(n), self._least_samples) for n in valid]
        rows = [_row(samples, n) for samples, n in zip(audio, lengths, strict=True)]
        n_real = torch.tensor(lengths, device=self.device)
        if self._is_waveform:
            inputs = self._extractor(
                rows,
                sampling_rate=rate,
                padding="max_length",
                max_length=max(audio.shape[1], max(lengths)),
                return_attention_mask=True,  # levels are those of the real samples
                return_tensors="pt",
            ).to(self.device)
            # models trained without a mask must not get one
            if not self._extractor.return_attention_mask:
                del inputs["attention_mask"]
            return dict(inputs), n_real
        if self._is_patches:
            step = AST_HOP * int(self._model.config.time_stride)
            inputs = self._extractor(rows, sampling_rate=rate, return_tensors="pt")
            return dict(inputs.to(self.device)), -(-n_real // step)
        hop = getattr(self._extractor, "hop_length", None)
        is_masked = "attention_mask" in self._extractor.model_input_names
        # what is padded to one length, or masked, needs no padding of ours
        is_cut = is_masked or getattr(self._extractor, "n_samples", None) is not None
        inputs = self._extractor(
            rows if is_cut else list(audio), sampling_rate=rate, return_tensors="pt"
        ).to(self.device)
        if is_masked and "attention_mask" in inputs:
            return dict(inputs), inputs["attention_mask"].sum(1)
        return dict(inputs), -(-n_real // int(hop)) if hop and self._has_frames() else None

    def _n_frames(self, lengths: torch.Tensor | None, n_frames: int) -> torch.Tensor:
        """Frames with real samples [batch], or [1] with all; at least one."""
        import torch

        if lengths is None:
            return torch.tensor([n_frames], device=self.device)
        if not self._is_patches and self._has_frames():
            lengths = self._model._get_feat_extract_output_lengths(lengths)
        result: torch.Tensor = lengths.long().clamp(1, n_frames)
        return result

    def _columns(self, hidden: torch.Tensor) -> torch.Tensor:
        """AST's patches [batch, columns, hidden], averaged over frequency.

        Two tokens of no patch come first, then the patches, column by column within a row of
        equal frequency.
        """
        config = self._model.config
        n_rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        patches = hidden[:, 2:].reshape(len(hidden), n_rows, -1, hidden.shape[2])
        columns: torch.Tensor = patches.mean(dim=1)
        return columns

    def embed_texts(self, texts: Sequence[str]) -> dict[str, FloatArray]:
        """See `Backbone.embed_texts`; not yet scaled to length 1 where the spec says so."""
        prepared = [self._text.prefix + text for text in texts]
        if self._text.is_lower:
            prepared = [text.lower() for text in prepared]
        inputs = self._tokenizer(
            prepared,
            padding=True,
            truncation=True,
            max_length=self._max_tokens(),
            return_tensors="pt",
        ).to(self.device)
        with self.forward():
            hidden = self._model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"].unsqueeze(-1)
            if self._text.pooling == "cls":
                # the first real one, wherever the tokenizer pads
                pooled = hidden.gather(
                    1, mask.argmax(1, keepdim=True).expand(-1, -1, hidden.shape[2])
                )[:, 0]
            elif self._text.pooling == "max":
                pooled = hidden.masked_fill(mask == 0, -1e9).amax(1)
            else:
                pooled = (hidden * mask).sum(1) / mask.sum(1)
            return {"": pooled.cpu().numpy()}


def _pooling_modes(config: dict[str, Any]) -> list[Any]:
    """The pooling modes that a config of sentence-transformers turns on; mean by default."""
    named = config.get("pooling_mode")
    if named:
        return [named] if isinstance(named, str) else list(named)
    flags = {key: is_on for key, is_on in config.items() if key.startswith("pooling_mode_")}
    if not flags:
        return ["mean"]
    names = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
    on = [key.removeprefix("pooling_mode_") for key, is_on in flags.items() if is_on]
    return [names.get(key, key) for key in on]


def _row(samples: FloatArray, length: int) -> FloatArray:
    """The first samples of a window, with zeros after its end."""
    import numpy as np

    return np.pad(samples[:length], (0, max(0, length - len(samples))))


def _mean_of_first(hidden: torch.Tensor, n: torch.Tensor) -> FloatArray:
    """The mean [batch, dim] of the first ``n`` [batch] frames of hidden [batch, frames, dim]."""
    import torch

    mask = torch.arange(hidden.shape[1], device=hidden.device) < n[:, None]
    weight = mask.unsqueeze(-1).float()
    mean: FloatArray = ((hidden * weight).sum(1) / weight.sum(1)).cpu().numpy()
    return mean
