"""Loading a causal language model of transformers, and how it is asked and answers.

How a label follows its prompt. With a chat template, the prompt is all that the template
writes before an assistant's answer in a finished conversation, and the end is what it writes
after one, such as ``<|im_end|>``; a thinking model's empty thoughts are thus part of the prompt.
Without, the prompt ends in ``Label:``, the label follows after a space, and a newline ends it.
A label is split into tokens after the words that precede it in every prompt, so its tokens are
the same for all clips.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsdkit.backbones.base import Precision
from bsdkit.errors import BackboneUnavailable

__all__ = ["CONTENT_FREE", "PLAIN", "CausalModel"]

CONTENT_FREE = "{}"
"""The metadata of a clip of which nothing is known."""

INSTALL = "pip install 'transformers>=5'"

_ANSWER = "ANSWER"
# some templates write today's date, and the numbers would change every day
_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
PLAIN = "{system}\n\nMetadata: {content}\nLabel:"
"""A prompt where the model has no chat template."""


@dataclass(frozen=True)
class _Form:
    """How one model is asked and answers.

    Attributes:
        anchor: the last words of every prompt, after the clip's metadata.
        before: what stands between a prompt and a label, to be split together with it.
        end: what ends an answer, of which the first token counts.
        has_system: whether the template knows system messages.
    """

    anchor: str
    before: str
    end: str
    has_system: bool


class CausalModel:
    """A causal language model and its tokenizer.

    Args:
        model: a folder, or an id on the Hugging Face hub.
        revision: branch, tag or commit on the hub; empty for its newest.
        device: where to run.
        precision: number type of the model.
    """

    def __init__(self, model: str | Path, revision: str, device: str, precision: Precision) -> None:
        self.source = str(model)
        self.revision = revision
        self.device = device
        self.precision: Precision = precision
        self._model: Any = None
        self._digest = ""

    @property
    def name(self) -> str:
        """The model's id on the hub; of a folder its own name, never where it lies."""
        folder = Path(self.source).expanduser()
        return Path(os.path.abspath(folder)).name if folder.is_dir() else self.source

    def missing(self) -> str:
        """What keeps the model from loading and the command that mends it; empty if ready."""
        if importlib.util.find_spec("transformers") is None:
            return f"it needs transformers: {INSTALL}"
        version = importlib.metadata.version("transformers")
        if int(version.partition(".")[0]) < 5:
            return f"it needs transformers 5, found {version}: {INSTALL}"
        folder = Path(self.source).expanduser()
        # what looks like a path is no model id; the hub need not be asked
        if self.source.startswith(("/", ".", "~")) and not folder.is_dir():
            return f"no folder {self.source}"
        if folder.is_dir() and not (folder / "config.json").is_file():
            return f"{self.source} holds no config.json: give the folder of a model"
        return ""

    def load(self) -> None:
        """Reads the model and its tokenizer.

        Raises:
            BackboneUnavailable: transformers or the model is missing, or it is no causal
                language model in safetensors that transformers knows.
        """
        reason = self.missing()
        if reason:
            raise BackboneUnavailable(f"{self.source} is not ready: {reason}")
        import torch
        import transformers

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each try
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        folder = Path(self.source).expanduser()
        source = str(folder) if folder.is_dir() else self.source
        choice = {"revision": self.revision or None, "trust_remote_code": False}
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, **choice)
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                source,
                dtype=getattr(torch, self.precision),
                use_safetensors=True,
                output_loading_info=True,
                **choice,
            )
        except Exception as error:  # no network, no such model, code of its own, a broken file
            raise self._unusable(error) from None
        lacking = sorted([*report["missing_keys"], *(k[0] for k in report["mismatched_keys"])])
        if lacking:
            raise self._unusable(f"{lacking[0]} is not there or of another shape")
        self.attach(model, tokenizer)

    def attach(self, model: Any, tokenizer: Any) -> None:
        """Takes a model and its tokenizer as they are.

        Raises:
            BackboneUnavailable: the tokenizer's chat template cannot be used.
        """
        self._model = model.eval().requires_grad_(False).to(self.device)
        self._tokenizer = tokenizer
        self._digest = ""
        self._template = str(tokenizer.get_chat_template()) if tokenizer.chat_template else ""
        self._form = self._template_form() if self._template else _plain_form()
        self._end = self._end_token()
        takes = inspect.signature(model.forward).parameters
        self._takes_cache = {"past_key_values", "position_ids"} <= takes.keys()
        self._takes_kept = "logits_to_keep" in takes
        config = model.config.get_text_config()
        self._limit = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        starts = list(tokenizer("x")["input_ids"])[:1]
        self._begins = starts if starts == [tokenizer.bos_token_id] else []

    def _unusable(self, problem: object) -> BackboneUnavailable:
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        return BackboneUnavailable(
            f"{self.source} cannot be used: {lines[0]}; expected a causal language model in "
            "safetensors that transformers knows: give its folder, or its id where there is a "
            "network"
        )

    def _render(self, system: str, content: str, has_system: bool) -> tuple[str, str]:
        """What a finished conversation has before and after its answer."""
        if has_system:
            asked = [
                {"role": "system", "content": system},
                {"role": "user", "content": content},
            ]
        else:
            asked = [{"role": "user", "content": f"{system}\n\n{content}"}]
        text = self._tokenizer.apply_chat_template(
            [*asked, {"role": "assistant", "content": _ANSWER}],
            tokenize=False,
            chat_template=_DATE + self._template,
        )
        before, found, after = text.rpartition(_ANSWER)
        if not found:
            raise self._unusable("its chat template does not show the assistant's answer")
        return before, after

    def _template_form(self) -> _Form:
        """How the chat template asks, learnt from a conversation without content."""
        try:
            has_system = True
            before, after = self._render("SYSTEM", CONTENT_FREE, has_system)
            if "SYSTEM" not in before:
                raise ValueError("the template leaves the system message out")
        except BackboneUnavailable:
            raise
        except Exception:  # whatever a template raises when it knows no system message
            has_system = False
            try:
                before, after = self._render("SYSTEM", CONTENT_FREE, has_system)
            except BackboneUnavailable:
                raise
            except Exception as error:
                raise self._unusable(f"its chat template fails: {error}") from None
        prompt = before.rstrip(" ")
        anchor = prompt.rpartition(CONTENT_FREE)[2]
        return _Form(anchor, before[len(prompt) :], after.strip(), has_system)

    def _ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _end_token(self) -> int:
        """The token that ends an answer; that of the text's end where the form has none."""
        if self._template:
            ids = self._ids(self._form.end)[:1]
        else:
            ids = [i for i in self._ids("x\n")[-1:] if not self._tokenizer.decode([i]).strip()]
        if not ids and self._tokenizer.eos_token_id is None:
            raise self._unusable("neither its chat template nor its tokenizer ends an answer")
        return int(ids[0] if ids else self._tokenizer.eos_token_id)


def _plain_form() -> _Form:
    return _Form(PLAIN.rpartition("}")[2], " ", "\n", True)
