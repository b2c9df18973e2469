"""Asking a server that speaks OpenAI's chat completions, until every clip has its answer.

A 429 makes every worker wait. The first request goes alone: it is a real one, and finds out how
the server is told to answer in JSON.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Unpack

from bsdkit.errors import PriorError
from bsdkit.priors.ask import Ask, LLMSettings, Prompt, Reply, SchemaMode
from bsdkit.priors.cost import Budget, Spending
from bsdkit.priors.engines.request import (
    REFUSED_FOR_GOOD,
    Access,
    Connection,
    Known,
    Revision,
    Unreadable,
    parameter_problem,
    quoted,
    read_answer,
    read_object,
    request_fields,
)

if TYPE_CHECKING:
    import tenacity

__all__ = ["Outcome", "ask_all"]

_NO_LIMIT = Budget()
_TRIES_TO_CONNECT = 3  # of the first request: a server that is not there is mostly a wrong URL
_REJECTED_AT_FIRST = 5  # requests; then the request is wrong, not the clips
_FAILED_IN_A_ROW = 4  # requests; then the server is gone, not unlucky
_LADDER: tuple[SchemaMode, ...] = ("json_schema", "json_object", "none")
_SCHEMA_STATUS = (400, 422, 500, 501)
_SCHEMA_WORDS = re.compile(r"response_format|json_schema|json_object|schema|grammar|guided", re.I)
_LENGTH_WORDS = re.compile(r"context.?length|maximum context|too (large|long|many)|exceed", re.I)


@dataclass(frozen=True)
class Outcome:
    """How asking went.

    Attributes:
        n_asked: clips that were asked.
        n_replies: of these, clips with a reply.
        retries: tries that were repeated, by kind: a status such as ``429``, ``timeout``,
            ``broken connection`` or ``unreadable body``.
        failed: why a clip got no answer after all tries, by `Ask.key`; ask it again.
        stopped: why it ended early; empty where it did not.
        schema: how the server was told to answer in JSON.
        revision: the model that answered, as given or as the server says.
    """

    n_asked: int
    n_replies: int
    retries: Mapping[str, int]
    failed: Mapping[str, str]
    stopped: str
    schema: SchemaMode
    revision: str


def ask_all(
    asks: Sequence[Ask],
    prompt: Prompt,
    settings: LLMSettings,
    connection: Connection,
    *,
    schema: Literal["auto"] | SchemaMode = "auto",
    budget: Budget = _NO_LIMIT,
    spent: tuple[int, int] = (0, 0),
    on_reply: Callable[[Reply], None],
    **known: Unpack[Known],
) -> Outcome:
    """Asks a server about clips; returns when each has its reply or has failed.

    Args:
        asks: the clips; of equal keys the first counts.
        prompt: the words around each.
        settings: the model.
        connection: where the server is.
        schema: how the server is told to answer in JSON; ``auto`` tries a schema, then JSON in
            general, then the prompt alone, with the first request.
        budget: what may be spent. A request is sent only if it, those on their way and what was
            spent fit, each counted as the longest so far (the first as its estimate and
            `LLMSettings.max_tokens`). Tries without an answer are not counted: no server says
            what they cost.
        spent: tokens in and out that earlier runs have spent of it.
        on_reply: called with each reply as it comes; it is kept when this returns.
        known: what is known of the model.

    Raises:
        PriorError: the package ``openai`` is missing; the server is not there, knows neither
            the key nor the model, or refuses a parameter or the first five clips; another
            model answers than before; a budget in money has no prices.
        KeyboardInterrupt: as it came; replies on their way are dropped.
    """
    if budget.money is not None and budget.cost(0, 0) is None:
        raise PriorError("a budget in money needs both prices: give --price-in and --price-out")
    if connection.concurrency < 1 or connection.attempts < 1 or connection.timeout <= 0:
        raise PriorError("concurrency and attempts are at least 1, and the timeout is above 0 s")
    unique: dict[str, Ask] = {}
    for ask in asks:
        unique.setdefault(ask.key, ask)
    run = _Run(
        asks=deque(unique.values()),
        prompt=prompt,
        settings=settings,
        connection=connection,
        schema="json_schema" if schema == "auto" else schema,
        is_auto=schema == "auto",
        revision=Revision(settings.model, known),
        spending=Spending(budget, prompt, settings, *spent),
        on_reply=on_reply,
    )
    if run.asks:
        access = Access(connection, settings.model)
        asyncio.run(run.whole(access))
    return Outcome(
        n_asked=run.n_asked,
        n_replies=run.n_replies,
        retries=dict(run.retries),
        failed=run.failed,
        stopped=run.stopped,
        schema=run.schema,
        revision=run.revision.value,
    )


@dataclass
class _Run:
    """What the workers of one `ask_all` share; all of them live on one thread."""

    asks: deque[Ask]  # still to be sent
    prompt: Prompt
    settings: LLMSettings
    connection: Connection
    schema: SchemaMode
    is_auto: bool  # whether the schema mode may be changed to what the server takes
    revision: Revision
    spending: Spending
    on_reply: Callable[[Reply], None]
    limit: str = "max_completion_tokens"
    is_probing: bool = True  # until the first answer
    paused_until: float = 0.0
    in_flight: int = 0
    n_asked: int = 0
    n_replies: int = 0
    n_failed_in_a_row: int = 0
    stopped: str = ""
    retries: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    one_ended: asyncio.Event = field(default_factory=asyncio.Event)
    access: Access = field(init=False)
    client: Any = None

    async def whole(self, access: Access) -> None:
        self.access = access
        async with access.client("AsyncOpenAI") as self.client:
            await self._probe()
            n = min(self.connection.concurrency, len(self.asks))
            workers = [asyncio.create_task(self._work()) for _ in range(n)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _probe(self) -> None:
        """Asks one clip after the other until one is answered.

        Raises:
            PriorError: none is, but each is rejected: then it is not for the clips.
        """
        rejected: list[Reply] = []
        while self.is_probing and await self._has_room():
            reply = await self._asked(self.asks.popleft())
            if reply is None:
                continue
            if reply.finish != "rejected":
                self.is_probing = False
                self._keep([*rejected, reply])
                return
            rejected.append(reply)
            if len(rejected) == _REJECTED_AT_FIRST:
                if self.revision.is_new:
                    raise self._all_rejected(rejected)
                self.is_probing = False  # the request is good: it was answered before
        if self.revision.is_new and rejected and not self.failed and not self.stopped:
            raise self._all_rejected(rejected)
        if not self.revision.is_new:
            self._keep(rejected)

    def _all_rejected(self, rejected: Sequence[Reply]) -> PriorError:
        number = "every request" if len(rejected) > 1 else "the request"
        return PriorError(
            f"{self.access.shown} rejects {number} ({len(rejected)} sent): {rejected[0].content}"
        )

    def _keep(self, replies: Sequence[Reply]) -> None:
        for reply in replies:
            self.n_replies += 1
            self.on_reply(reply)

    async def _work(self) -> None:
        while await self._has_room():
            reply = await self._asked(self.asks.popleft())
            if reply is not None:
                self._keep([reply])

    async def _has_room(self) -> bool:
        """Whether another request may be sent; waits while those on their way decide it."""
        while self.asks and not self.stopped:
            problem = self.spending.problem(self.in_flight + 1, self.asks[0].content)
            if not problem:
                return True
            if not self.in_flight:
                self.stopped = problem
                return False
            self.one_ended.clear()
            await self.one_ended.wait()
        return False

    async def _asked(self, ask: Ask) -> Reply | None:
        """The reply to an ask, or None where it failed or the run is to stop."""
        self.n_asked += 1
        self.in_flight += 1
        try:
            reply = await self._tried(ask)
        finally:
            self.in_flight -= 1
            self.one_ended.set()
        if reply is not None:
            self.n_failed_in_a_row = 0
        elif ask.key in self.failed:
            self.n_failed_in_a_row += 1
            n_workers = 1 if self.is_probing else self.connection.concurrency
            most = max(_FAILED_IN_A_ROW, n_workers)
            if self.n_failed_in_a_row >= most and not self.stopped:
                self.stopped = (
                    f"{self.n_failed_in_a_row} clips in a row got no answer from "
                    f"{self.access.shown} ({self.failed[ask.key]})"
                )
        return reply

    async def _tried(self, ask: Ask) -> Reply | None:
        def is_over(state: tenacity.RetryCallState) -> bool:
            error = state.outcome.exception() if state.outcome is not None else None
            return state.attempt_number >= _TRIES_TO_CONNECT and self._finds_nobody(error)

        tenacity, patience = self.access.tenacity, self.access.patience
        patience["stop"] = tenacity.stop_any(patience["stop"], is_over)
        tries = tenacity.AsyncRetrying(
            **patience, sleep=asyncio.sleep, before_sleep=self._before_sleep
        )
        try:
            reply: Reply | None = await tries(self._adapted, ask)
        except (TimeoutError, Unreadable, self.access.openai.APIError) as error:
            return self._without_reply(ask, error, tries.statistics["attempt_number"])
        if reply is not None:
            self._accept(ask, reply)
        return reply

    def _before_sleep(self, state: tenacity.RetryCallState) -> None:
        """Counts what will be tried again; after a 429 nobody asks for as long."""
        assert state.outcome is not None and state.next_action is not None
        kind = self.access.kind(state.outcome.exception() or Unreadable())
        self.retries[kind] += 1
        if kind == "429":
            self.paused_until = max(self.paused_until, time.monotonic() + state.next_action.sleep)

    def _finds_nobody(self, error: BaseException | None) -> bool:
        """Whether it is the very first clip, and no server is there."""
        cause = getattr(error, "__cause__", None)
        return self.n_asked == 1 and type(cause).__name__ == "ConnectError"

    def _without_reply(self, ask: Ask, error: Exception, n_tries: int) -> Reply | None:
        """What becomes of a clip whose last try ended in an error.

        Raises:
            PriorError: it ends the run.
        """
        access = self.access
        if self._finds_nobody(error):
            raise PriorError(
                f"no server at {access.shown} ({error.__cause__}); start it, or give another "
                "--endpoint"
            ) from None
        if access.is_quota(error):
            self.stopped = f"the account has no quota left ({access.reason(error)})"
        elif getattr(error, "status_code", None) in REFUSED_FOR_GOOD:
            return Reply(ask.key, access.said(error) or access.reason(error), "rejected")
        elif access.is_worth_a_retry(error):
            self.failed[ask.key] = f"{access.reason(error)} ({n_tries} tries)"
        else:
            raise access.fatal(error) from None
        return None

    async def _adapted(self, ask: Ask) -> Reply | None:
        """One try, after which the request may have been changed to what the server takes."""
        while True:
            while (left := self.paused_until - time.monotonic()) > 0:
                await asyncio.sleep(left + self.access.jitter())
            if self.stopped:
                return None
            try:
                return await self._sent(ask)
            except self.access.openai.APIError as error:
                if not self._adapts_to(error):
                    raise

    async def _sent(self, ask: Ask) -> Reply:
        fields = request_fields(ask, self.prompt, self.settings, self.schema, self.limit)
        completions = self.client.chat.completions.with_raw_response
        # the client's own timeout is one between two bytes, which a slow drip never reaches
        async with asyncio.timeout(self.connection.timeout):
            answer = await completions.create(**fields, extra_body=dict(self.settings.body) or None)
        data: bytes = answer.http_response.content
        body = read_object(data)
        reply = read_answer(ask.key, body)
        if reply is None:
            said = (
                data[:200].decode("utf-8", "replace") if body is None else self.access.words(body)
            )
            raise Unreadable(said)
        return reply

    def _adapts_to(self, error: Exception) -> bool:
        """Whether the request was changed to what the server can take.

        Raises:
            PriorError: it refuses a parameter that only the user can change.
        """
        status = getattr(error, "status_code", None)
        if not self.is_probing or status not in _SCHEMA_STATUS:
            return False
        said = self.access.said(error)
        param = str(getattr(error, "param", None) or "")
        named = f"{param} {said}"
        # a clip that is too long is also told so by the name of a parameter
        if status in REFUSED_FOR_GOOD and not _LENGTH_WORDS.search(said):
            if "max_completion_tokens" in named and self.limit == "max_completion_tokens":
                self.limit = "max_tokens"
                return True
            problem = parameter_problem(said, param, self.settings)
            if problem:
                raise PriorError(problem) from None
        if self.schema == "none" or not _SCHEMA_WORDS.search(named):
            return False
        if not self.is_auto:
            raise PriorError(
                f"{self.access.shown} takes no {self.schema}; give --schema auto{quoted(said)}"
            ) from None
        self.schema = _LADDER[_LADDER.index(self.schema) + 1]
        return True

    def _accept(self, ask: Ask, reply: Reply) -> None:
        """Counts an answer, and says what the first one has shown."""
        self.revision.check(reply)
        self.spending.add(ask.content, reply)
        self.revision.tell(self.schema)
