"""CP-CLAP: PaSST and RoBERTa-large trained together on captions, audio 1024 and text 1024.

The encoder pair of CP-JKU's system for task 1 of DCASE 2026: PaSST with stride 16 (Koutini
et al., Interspeech 2022; see `bsdkit.backbones.passt`) and RoBERTa-large (Liu et al., 2019),
each under a linear projection. Nothing is scaled to length 1. No address of its checkpoint
is known; whoever has it gives it with ``--weights``.

Audio is cut into windows of 10 s, the last one completed with zeros to exactly 320000
samples, which the model sees as silence. The published system averages all windows of a
padded batch where a clip is over 20 s, and so its vectors depend on the batch; here the
windows of a clip are averaged by the samples they hold, and on nothing else. A text is
lower-cased, ASCII punctuation is deleted (not replaced by a space), and it is cut at 64
tokens.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bsdkit.backbones.base import BackboneSpec, FloatArray, IntArray, Kind
from bsdkit.backbones.cards import ModelCard
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.backbones.frontends import PASST_RATE, at_least, passt_filters, passt_log_mel
from bsdkit.backbones.passt import Sizes, sizes_of
from bsdkit.backbones.passt import build_network as build_passt
from bsdkit.backbones.registry import register
from bsdkit.backbones.vit import HEAD_DIM
from bsdkit.backbones.weights import WeightFile, fill, shape_of
from bsdkit.errors import BackboneUnavailable

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["CpClap", "build_network", "prepare_text", "published_network"]

WINDOW_SECONDS = 10.0
WINDOW_SAMPLES = 320_000
DIM = 1024
MAX_TOKENS = 64
TOKENIZER = "FacebookAI/roberta-large"
PADDING_TOKEN = 1

_AUDIO = "audio_embedding_model.model.model."
_TEXT = "text_embedding_model."
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def prepare_text(text: str) -> str:
    """The text as the model was trained on it.

    >>> prepare_text("Rain, rain-drops & THUNDER!")
    'rain raindrops  thunder'
    """
    return text.lower().translate(_WITHOUT_PUNCTUATION)


def build_network(audio: Sizes, text: Mapping[str, int], dim: int) -> nn.Module:
    """Both encoders with their projections; names are those of the checkpoint's keys.

    Args:
        audio: sizes of PaSST.
        text: sizes of RoBERTa, as transformers' RobertaConfig calls them.
        dim: length of both embeddings.
    """
    import torch
    from torch import nn
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        **text,
        num_attention_heads=max(1, text["hidden_size"] // HEAD_DIM),
        layer_norm_eps=1e-5,
        pad_token_id=PADDING_TOKEN,
    )

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tau = nn.Parameter(torch.full((1,), 0.07))  # temperature of training
            passt = nn.ModuleDict({"model": build_passt(audio)})
            self.audio_embedding_model = nn.ModuleDict({"model": passt})
            self.audio_projection = nn.Linear(audio.dim, dim)
            self.text_embedding_model = RobertaModel(config, add_pooling_layer=False)
            self.text_projection = nn.Linear(config.hidden_size, dim)

        def embed_audio(self, mel: torch.Tensor) -> torch.Tensor:
            """Embeddings [batch, dim] of log-mel [batch, 128, frames]."""
            passt: Any = self.audio_embedding_model["model"]
            features, _ = passt["model"](mel)
            embedding: torch.Tensor = self.audio_projection(features)
            return embedding

        def embed_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            """Embeddings [batch, dim] of token numbers and attention mask [batch, tokens]."""
            hidden = self.text_embedding_model(input_ids=ids, attention_mask=mask)
            embedding: torch.Tensor = self.text_projection(hidden.last_hidden_state[:, 0])
            return embedding

    return Network()


def published_network() -> nn.Module:
    """The network with the sizes of PaSST-S and RoBERTa-large, with random weights."""
    text = {
        "vocab_size": 50_265, "hidden_size": 1024, "num_hidden_layers": 24,
        "intermediate_size": 4096, "max_position_embeddings": 514, "type_vocab_size": 1,
    }  # fmt: skip
    return build_network(Sizes(rows=8, columns=62), text, DIM)


def text_sizes_of(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Sizes of RoBERTa that the tensors tell, as transformers' RobertaConfig calls them.

    Raises:
        ValueError: a tensor is missing; the message names it.
    """

    def rows(name: str, n_dimensions: int = 2) -> int:
        return shape_of(state, f"{_TEXT}{name}", n_dimensions)[0]

    layers = 0
    while f"{_TEXT}encoder.layer.{layers}.output.dense.weight" in state:
        layers += 1
    return {
        "vocab_size": rows("embeddings.word_embeddings.weight"),
        "hidden_size": rows("embeddings.LayerNorm.weight", 1),
        "num_hidden_layers": layers,
        "intermediate_size": rows("encoder.layer.0.intermediate.dense.weight"),
        "max_position_embeddings": rows("embeddings.position_embeddings.weight"),
        "type_vocab_size": rows("embeddings.token_type_embeddings.weight"),
    }


@register("cp-clap")
class CpClap(CheckpointBackbone):
    """CP-CLAP with a checkpoint that the user has.

    Attributes:
        tokenizer: of RoBERTa, called as transformers' tokenizers are; `load` finds it beside
            the weights or on the hub, `attach` leaves it to be set.
    """

    outputs: ClassVar[dict[str, Kind]] = {"audio": "audio", "text": "text"}
    card = ModelCard(
        summary="PaSST and RoBERTa-large, your own weights",
        licence="weights not published",
        fetches="the tokenizer of roberta-large from the Hugging Face hub, unless it lies beside",
        file=WeightFile(
            name="clap.ckpt",
            page="it from its authors (https://github.com/OptimusPrimus/dcase2026-task1 uses it "
            "and has no link to it; --weights FILE takes it from anywhere)",
        ),
        parameters=442.27,
        gigaflops=87.91,
    )
    packages: ClassVar[dict[str, str]] = {"transformers": "pip install transformers"}
    tokenizer: Any = None

    def load(self, device: str) -> None:
        """See `Backbone.load`."""
        folder = self.obtain().parent
        super().load(device)
        if not self.wanted or "text" in self.wanted:
            self.tokenizer = self._find_tokenizer(folder)

    def build(self, state: dict[str, Any]) -> nn.Module:
        """See `CheckpointBackbone.build`."""
        if isinstance(state.get("state_dict"), Mapping):
            state = dict(state["state_dict"])
        # torch.compile puts a word of its own into names
        state = {name.replace("_orig_mod.", ""): tensor for name, tensor in state.items()}
        # a constant that transformers once saved
        state.pop(f"{_TEXT}embeddings.position_ids", None)
        # nobody reads RoBERTa's pooler, and some files have it
        pooler = f"{_TEXT}pooler."
        state = {name: value for name, value in state.items() if not name.startswith(pooler)}
        passt = {
            name.removeprefix(_AUDIO): tensor
            for name, tensor in state.items()
            if name.startswith(_AUDIO)
        }
        if not passt:
            raise ValueError(f"it has no tensor whose name begins with {_AUDIO!r}")
        dim = shape_of(state, "audio_projection.weight", 2)[0]
        network = build_network(sizes_of(passt), text_sizes_of(state), dim)
        fill(network, state)
        return network

    def attach(self, network: nn.Module, device: str) -> None:
        """See `CheckpointBackbone.attach`; the tokenizer is set apart from it."""
        import torch

        super().attach(network, device)
        self._filters = torch.tensor(passt_filters(), dtype=torch.float32, device=device)

    def _find_tokenizer(self, folder: Path) -> Any:
        """RoBERTa's tokenizer from a folder with tokenizer.json, or from the hub.

        Raises:
            BackboneUnavailable: there is none, or it is not the one of the weights.
        """
        import transformers

        advice = f"put tokenizer.json of {TOKENIZER} into {folder}"
        transformers.utils.logging.set_verbosity_error()
        try:
            if not (folder / "tokenizer.json").is_file():
                found = transformers.utils.cached_file(TOKENIZER, "tokenizer.json")
                folder = Path(found).parent
            tokenizer = transformers.RobertaTokenizer.from_pretrained(str(folder))
        except Exception as error:
            first_line = str(error).strip().splitlines()[0]
            raise BackboneUnavailable(f"cp-clap has no tokenizer: {first_line}; {advice}") from None
        expected = self.network.get_parameter(f"{_TEXT}embeddings.word_embeddings.weight").shape[0]
        if len(tokenizer) != expected:
            raise BackboneUnavailable(
                f"cp-clap: the tokenizer in {folder} has {len(tokenizer)} tokens, the weights have "
                f"{expected}; {advice}"
            )
        return tokenizer

    def spec(self, output: str) -> BackboneSpec:
        """See `Backbone.spec`."""
        kind = self.outputs[self.output_named(output)]
        is_audio = kind == "audio"
        dim = self.network.get_parameter("audio_projection.bias").shape[0] if self.device else DIM
        return BackboneSpec(
            backbone=self.name,
            output=output,
            kind=kind,
            dim=dim,
            weights=self.weights_name,
            weights_sha256=self.weights_sha256,
            version=1,
            layer="projection",
            pooling=(
                "mean of class and distillation token; windows by mean weighted by samples"
                if is_audio
                else "first token; text in lower case without ASCII punctuation"
            ),
            dtype=self.options.dtype,
            compute_dtype=self.options.precision,
            sample_rate=PASST_RATE if is_audio else None,
            gain="none" if is_audio else None,
            window_seconds=WINDOW_SECONDS if is_audio else None,
            hop_seconds=WINDOW_SECONDS if is_audio else None,
            padding="zeros" if is_audio else None,
            text_template=None if is_audio else self.options.text_template,
            max_tokens=None if is_audio else MAX_TOKENS,
        )

    def embed(self, audio: FloatArray, valid: IntArray) -> dict[str, FloatArray]:
        """See `Backbone.embed`; ``valid`` is not used, for the model sees whole windows."""
        import torch

        with torch.inference_mode():
            waveform = torch.from_numpy(at_least(audio, WINDOW_SAMPLES)).to(self.device)
            mel = passt_log_mel(waveform, self._filters)
        network: Any = self.network
        with self.forward():
            return {"audio": network.embed_audio(mel).float().cpu().numpy()}

    def embed_texts(self, texts: Sequence[str]) -> dict[str, FloatArray]:
        """See `Backbone.embed_texts`."""
        tokens = self.tokenizer(
            [prepare_text(text) for text in texts],
            padding=True,  # the mask makes padding to 64 another way to the same vector
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(self.device)
        network: Any = self.network
        with self.forward():
            vectors = network.embed_text(tokens["input_ids"], tokens["attention_mask"])
            return {"text": vectors.float().cpu().numpy()}
