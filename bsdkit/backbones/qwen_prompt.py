"""The language model's state, and its likelihood of answers, after a prompt that holds a clip.

The clip's states are put between the tokens of the prompt by hand; no processor is involved,
which could take a prompt for text alone and say so only in a warning.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from bsdkit.backbones.answers import answer_log_likelihoods, plain_cache, repeated
from bsdkit.backbones.base import Backbone, FloatArray, IntArray
from bsdkit.backbones.qwen_files import ShardedFiles
from bsdkit.errors import BackboneUnavailable

if TYPE_CHECKING:
    import torch

__all__ = ["MAX_TEXT_TOKENS", "Prompting"]

MAX_TEXT_TOKENS = 512


class Prompting(Backbone):
    """An audio language model that reads prompts with a clip in them."""

    prompt: ClassVar[str]
    """The words around ``{audio}``, the clip, and ``{text}``."""

    question_prompt: ClassVar[str]
    """The words around ``{question}``, ``{audio}`` and ``{text}``; an answer follows."""

    answer_form: ClassVar[tuple[str, str]]
    """What stands before and after an answer. The end is a token of its own, and counts: else
    an answer would never be less likely than a longer one that begins with it."""

    markers: ClassVar[tuple[str, str, str]]
    """Tokens that begin a clip, stand for it and end it; each must be one token."""

    files: ShardedFiles
    _tokenizer: Any
    _language_model: Any
    _language_head: Any
    _question_cache: Any

    @abstractmethod
    def _states(
        self, audio: FloatArray, valid: IntArray
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """States [n, d_model] before and [n, dim] after the projector, by window.

        A window has as many as its real samples fill, so the lengths differ.
        """

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


def _defused(text: str) -> str:
    """The text with nothing in it that is a token of the model's own."""
    return text.replace("<|", "< |")
