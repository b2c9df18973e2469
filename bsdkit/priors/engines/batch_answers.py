"""What the files of an ended batch hold: answers, errors, and lines that are neither."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bsdkit.errors import PriorError
from bsdkit.priors.ask import LLMSettings, Reply
from bsdkit.priors.engines.request import (
    REFUSED_FOR_GOOD,
    Known,
    Revision,
    parameter_problem,
    read_answer,
    read_object,
)
from bsdkit.priors.journal import Journal

__all__ = ["Downloaded", "Reader"]


@dataclass(frozen=True)
class Downloaded:
    """What a download has brought.

    Attributes:
        n_replies: replies that are new in the journal.
        n_left: clips of ended batches without a reply, for the next `prepare`.
        n_unknown: lines of clips that were not asked in that batch, or asked by no one.
        n_repeated: lines of clips that had a reply already.
        n_unreadable: lines that are no JSON object.
    """

    n_replies: int = 0
    n_left: int = 0
    n_unknown: int = 0
    n_repeated: int = 0
    n_unreadable: int = 0


class Reader:
    """Turns lines of a batch's files into replies.

    Args:
        journal: where the replies go.
        settings: the model.
        known: what is known of the model.

    Attributes:
        words: says what is in the body of an error.
        problem: why no further batch may be read, after what came before it is kept.
    """

    def __init__(self, journal: Journal, settings: LLMSettings, known: Known) -> None:
        self.journal = journal
        self.settings = settings
        self.revision = Revision(settings.model, known)
        replies = journal.replies()
        self.known = set(replies)
        self.words: Callable[[object], str] = str
        self.problem: PriorError | None = None
        self.is_new = self.revision.is_new and all(
            reply.finish == "rejected" for reply in replies.values()
        )

    def read(self, entry: dict[str, Any], lines: Sequence[bytes]) -> Downloaded:
        """Keeps the replies of a batch; all of them are on the disk when this returns.

        Args:
            entry: the batch, as `bsdkit.priors.engines.batch` notes it.
            lines: of its files.

        Raises:
            PriorError: the server rejects every request while no answer is known.
        """
        keys = set(entry["keys"])
        replies: dict[str, Reply] = {}
        n_unknown = n_repeated = n_unreadable = 0
        for line in lines:
            value = read_object(line)
            if value is None:
                n_unreadable += 1
                continue
            key = value.get("custom_id")
            if key not in keys:
                n_unknown += 1
                continue
            reply = self._reply(str(key), value)
            if reply is None:
                continue
            if reply.key in replies or reply.key in self.known:
                n_repeated += 1
                continue
            try:
                self.revision.check(reply)
            except PriorError as error:
                self.problem = error
                break
            replies[reply.key] = reply
        answered = [reply for reply in replies.values() if reply.finish != "rejected"]
        if replies and not answered and self.is_new:
            raise self._all_rejected(next(iter(replies.values())).content, len(replies))
        if answered:
            self.revision.tell(entry["schema"])
        self.journal.extend(replies.values())
        self.known |= set(replies)
        self.is_new = self.is_new and not answered
        n_left = len(keys - self.known)
        return Downloaded(len(replies), n_left, n_unknown, n_repeated, n_unreadable)

    def _reply(self, key: str, value: dict[str, Any]) -> Reply | None:
        response = value.get("response")
        if not isinstance(response, dict):
            return None
        body = response.get("body")
        if response.get("status_code") == 200:
            return read_answer(key, body)
        if response.get("status_code") not in REFUSED_FOR_GOOD:
            return None
        return Reply(key, self.words(body) or f"status {response['status_code']}", "rejected")

    def _all_rejected(self, words: str, n: int) -> PriorError:
        advice = parameter_problem(words, "", self.settings)
        return PriorError(advice or f"the server rejects each of {n} requests: {words}")
