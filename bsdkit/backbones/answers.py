"""How likely given answers are to a language model after prompts that are in its cache."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["Step", "answer_log_likelihoods", "plain_cache", "repeated"]


class Step(Protocol):
    """A language model's forward pass on what follows a cache, which it extends."""

    def __call__(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """Logits [batch, n, vocabulary].

        Args:
            ids: tokens [batch, n].
            mask: 1 for real tokens, 0 for padding [batch, cached + n].
            positions: of the tokens in their sequences [batch, n].
            cache: of transformers.
        """


def plain_cache(config: Any, longest: int) -> Any:
    """An empty cache that can be cropped to any length, or None where the model has no such.

    Padding lies within sequences here, so a window over the last keys would count it; a window
    as wide as the whole sequence cuts nothing, and then keeps nothing apart either.

    Args:
        config: the model's.
        longest: tokens of the longest sequence, its padding among them.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    for layer in DynamicCache(config=config).layers:
        is_wide = type(layer) is DynamicSlidingWindowLayer and layer.sliding_window >= longest
        if type(layer) is not DynamicLayer and not is_wide:
            return None
    return DynamicCache()


def repeated(cache: Any, n: int) -> Any:
    """A copy of the cache of one sequence for a batch of n."""
    copied = copy.deepcopy(cache)
    copied.batch_repeat_interleave(n)
    return copied


def answer_log_likelihoods(
    step: Step,
    answers: Sequence[Sequence[int]],
    logits: torch.Tensor,
    cache: Any,
    mask: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Log-likelihoods [batch, n_answers] in float64: sums over the tokens of each answer.

    The cache is left as it was.

    Args:
        step: the model.
        answers: tokens of each answer, one at least.
        logits: of what follows each prompt [batch, vocabulary].
        cache: holds the prompts, padded within.
        mask: 1 for real tokens of the cache [batch, cached].
        positions: of the first token after each prompt [batch].
    """
    import torch

    first = logits.float().log_softmax(-1)
    columns = []
    for answer in answers:
        total = first[:, answer[0]].double()
        n = len(answer) - 1
        if n:
            tokens = torch.tensor(answer, device=mask.device).expand(len(mask), n + 1)
            after = step(
                tokens[:, :-1],
                torch.cat([mask, mask.new_ones(len(mask), n)], dim=1),
                positions[:, None] + torch.arange(n, device=mask.device),
                cache,
            ).float()
            chosen = after.gather(-1, tokens[:, 1:, None])[..., 0] - after.logsumexp(-1)
            total = total + chosen.double().sum(1)
            cache.crop(-n)
        columns.append(total)
    return torch.stack(columns, dim=1)
