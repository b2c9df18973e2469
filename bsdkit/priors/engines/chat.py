"""Asking a server that speaks OpenAI's chat completions, until every clip has its answer.

The client of the package ``openai`` sends; tries are repeated here instead of by it, since they
are counted, since a 429 makes every worker wait, and since an answer whose body is cut off or
no JSON is no answer. The first request goes alone: it is a real one, and finds out how the
server is told to answer in JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import os
import random
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from bsdkit.errors import PriorError
from bsdkit.priors.ask import Ask, LLMSettings, Prompt, Reply, SchemaMode
from bsdkit.priors.cost import Budget, estimate_tokens, tokens_of_request

__all__ = ["Access", "Budget", "Connection", "Outcome", "ask_all"]

LONGEST_WORDS = 500
REFUSED_FOR_GOOD = (400, 413, 422)

_NO_LIMIT = Budget()
_DEFAULT_ENDPOINT = "https://api.openai.com/v1"
_LONGEST_BACKOFF = 60.0
_LONGEST_RETRY_AFTER = 300.0
_TRIES_TO_CONNECT = 3  # of the first request: a server that is not there is mostly a wrong URL
_REJECTED_AT_FIRST = 5  # requests; then the request is wrong, not the clips
_FAILED_IN_A_ROW = 4  # requests; then the server is gone, not unlucky
_LADDER: tuple[SchemaMode, ...] = ("json_schema", "json_object", "none")
_SCHEMA_STATUS = (400, 422, 500, 501)
_SCHEMA_WORDS = re.compile(r"response_format|json_schema|json_object|schema|grammar|guided", re.I)
_LENGTH_WORDS = re.compile(r"context.?length|maximum context|too (large|long|many)|exceed", re.I)


@dataclass(frozen=True)
class Connection:
    """Where a server is, and how patiently it is asked; none of it changes an answer.

    Attributes:
        endpoint: base URL, which mostly ends in ``/v1``; empty: OPENAI_BASE_URL, else OpenAI's.
        key_variable: the environment variable with the key. It may be unset where an endpoint
            is given, as servers on one's own machine need no key.
        concurrency: requests at the same time.
        attempts: tries of a request before it counts as failed.
        timeout: seconds of a try, from connecting to the last byte.
        backoff: seconds before the second try; doubles with jitter, up to 60. A Retry-After of
            the server wins, up to 300.
    """

    endpoint: str = ""
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    attempts: int = 8
    timeout: float = 120.0
    backoff: float = 1.0


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


class Access:
    """The address and the key of a server, and the errors that name them without the key.

    Args:
        connection: where the server is.
        model: for messages.

    Raises:
        PriorError: the package ``openai`` is missing, the endpoint is no URL, or there is no
            usable key.
    """

    def __init__(self, connection: Connection, model: str) -> None:
        try:
            import openai
        except ImportError:
            raise PriorError("asking a server needs: pip install 'bsdkit[llm]'") from None
        self.openai = openai
        self.connection = connection
        self.model = model
        given = connection.endpoint or os.environ.get("OPENAI_BASE_URL", "").strip()
        self.url = given or _DEFAULT_ENDPOINT
        try:
            parts = urlsplit(self.url)
            port = f":{parts.port}" if parts.port else ""
        except ValueError:
            raise PriorError(
                "the endpoint is no URL; expected one such as http://localhost:8000/v1"
            ) from None
        # an URL may hold a password or a key
        self.shown = f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            rest = self.url.rpartition("@")[2].partition("?")[0]
            raise PriorError(
                f"the endpoint {rest!r} is no URL; expected one such as http://localhost:8000/v1"
            )
        self._key = os.environ.get(connection.key_variable, "").strip()
        if not self._key and not given:
            raise PriorError(
                f"the environment variable {connection.key_variable} is not set; put the key of "
                "the account in it, or name a server with --endpoint"
            )
        if not (self._key.isascii() and self._key.isprintable()) or " " in self._key:
            raise PriorError(
                f"the environment variable {connection.key_variable} holds no key: there is a "
                "space, a line break or a letter beyond ASCII in it"
            )
        self._random = random.Random(0)

    @property
    def _options(self) -> dict[str, Any]:
        return {
            "api_key": self._key or "none",
            "base_url": self.url,
            "timeout": self.connection.timeout,
            "max_retries": 0,
        }

    def asynchronous(self) -> Any:
        """An ``openai.AsyncOpenAI`` that tries once."""
        return self.openai.AsyncOpenAI(**self._options)

    def synchronous(self) -> Any:
        """An ``openai.OpenAI`` that tries once."""
        return self.openai.OpenAI(**self._options)

    def tidy(self, words: str) -> str:
        """Words of the server as one line of at most 500 characters, without the key."""
        if self._key:
            words = words.replace(self._key, "***")
        return " ".join(words.split())[:LONGEST_WORDS]

    def words(self, body: object) -> str:
        """What an error's body says."""
        if isinstance(body, dict):
            inner = body.get("error", body)
            if isinstance(inner, dict):
                said = inner.get("message") or inner.get("detail") or inner
            else:
                said = inner
            body = said if isinstance(said, str) else json.dumps(said)
        return self.tidy(body if isinstance(body, str) else "")

    def kind(self, error: Exception) -> str:
        """``timeout``, ``broken connection``, or the status of an answer."""
        if isinstance(error, (TimeoutError, self.openai.APITimeoutError)):
            return "timeout"
        return str(getattr(error, "status_code", "broken connection"))

    def reason(self, error: Exception) -> str:
        """Why a try had no answer, in a few words."""
        kind = self.kind(error)
        if kind == "timeout":
            return f"no answer in {self.connection.timeout:g} s"
        if kind == "broken connection":
            return self.tidy(f"{kind}: {error.__cause__ or error}")
        return self.tidy(f"{kind}: {self.words(getattr(error, 'body', None))}").rstrip(": ")

    def is_worth_a_retry(self, error: Exception) -> bool:
        """Whether the same request may be answered later."""
        status = getattr(error, "status_code", None)
        if isinstance(status, int):
            return status in (408, 409, 429) or status >= 500
        return isinstance(error, (TimeoutError, self.openai.APIConnectionError))

    def is_quota(self, error: Exception) -> bool:
        """Whether the account has nothing left to spend."""
        status = getattr(error, "status_code", None)
        code = "insufficient_quota"
        named = code in (getattr(error, "code", None), getattr(error, "type", None))
        return status == 402 or (status == 429 and named)

    def fatal(self, error: Exception) -> PriorError:
        """The error of the product for one that ends the run."""
        status = getattr(error, "status_code", None)
        said = quoted(self.words(getattr(error, "body", None)))
        variable = self.connection.key_variable
        if status in (401, 403):
            state = "is not accepted" if self._key else "is not set"
            return PriorError(
                f"{self.shown} answers {status}: the key in the environment variable {variable} "
                f"{state}; put a valid one in it{said}"
            )
        if status == 404:
            return PriorError(
                f"{self.shown} answers 404: it has no model {self.model!r}, or the endpoint is "
                f"wrong (a base URL mostly ends in /v1); give --model or --endpoint{said}"
            )
        if status is None:
            return PriorError(f"no answer from {self.shown}: {self.reason(error)}")
        return PriorError(f"{self.shown} answers {self.reason(error)}")

    def seconds_to_wait(self, n_tries: int, error: Exception | None) -> float:
        """Seconds before the next try.

        Args:
            n_tries: tries so far, from 1.
            error: of the last one.
        """
        response = getattr(error, "response", None)
        if response is not None:
            wanted = retry_after(response.headers)
            if wanted is not None:
                return wanted
        longest = min(_LONGEST_BACKOFF, self.connection.backoff * 2.0 ** (n_tries - 1))
        return longest * self._random.uniform(0.5, 1.0)

    def jitter(self) -> float:
        """Seconds by which workers that wait for the same instant are set apart."""
        return self._random.uniform(0.0, min(1.0, self.connection.backoff))


def quoted(words: str) -> str:
    """Words of the server in brackets, with a space before; empty where there are none."""
    return f" ({words})" if words else ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, at most 300; None where it does not say."""
    with contextlib.suppress(TypeError, ValueError):
        return (
            _within(float(headers["retry-after-ms"]) / 1000)
            if headers.get("retry-after-ms")
            else _within(float(headers.get("retry-after", "")))
        )
    with contextlib.suppress(TypeError, ValueError):
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return _within(date.timestamp() - time.time())
    return None


def _within(seconds: float) -> float:
    if seconds != seconds:
        raise ValueError("not a number")
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER)


def request_fields(
    ask: Ask, prompt: Prompt, settings: LLMSettings, schema: SchemaMode, limit: str
) -> dict[str, Any]:
    """The fields of a request, but for those of `LLMSettings.body`.

    Args:
        ask: the clip.
        prompt: the words around it.
        settings: the model.
        schema: how it is told to answer in JSON.
        limit: the field for `LLMSettings.max_tokens`.
    """
    fields: dict[str, Any] = {
        "model": settings.model,
        "messages": prompt.messages(ask.content),
        limit: settings.max_tokens,
    }
    if settings.temperature is not None:
        fields["temperature"] = settings.temperature
    if settings.top_p is not None:
        fields["top_p"] = settings.top_p
    if settings.reasoning:
        fields["reasoning_effort"] = settings.reasoning
    if schema == "json_schema":
        fields["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": prompt.schema_name,
                "strict": True,
                "schema": dict(prompt.schema),
            },
        }
    elif schema == "json_object":
        fields["response_format"] = {"type": "json_object"}
    return fields


def read_answer(key: str, body: object) -> Reply | None:
    """The reply in the body of a chat completion; None where it is none.

    Args:
        key: see `Ask.key`.
        body: the parsed JSON.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(choices, list) or not choices:
        return None
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict) or choice.get("finish_reason") == "error":
        return None
    content = message.get("content")
    if isinstance(content, list):  # parts, as some servers answer
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    finish = choice.get("finish_reason")
    finish = finish if finish in ("length", "content_filter") else "stop"
    refusal = message.get("refusal")
    if isinstance(refusal, str) and refusal:
        content, finish = refusal, "refusal"
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    model = body.get("model")
    return Reply(
        key=key,
        content=content if isinstance(content, str) else "",
        finish=finish,
        model=model if isinstance(model, str) else "",
        tokens_in=_count(usage.get("prompt_tokens")),
        tokens_out=_count(usage.get("completion_tokens")),
    )


def _count(value: object) -> int:
    return max(0, value) if isinstance(value, int) else 0


def parameter_problem(words: str, param: str, settings: LLMSettings) -> str:
    """What to type where a server refuses a parameter of the request; empty where it is none.

    Args:
        words: the server's.
        param: the parameter that it names apart, if it does.
        settings: only what they send is looked for.
    """
    sent = {
        "temperature": (settings.temperature is not None, "give --temperature none"),
        "top_p": (settings.top_p is not None, "give --top-p none"),
        "reasoning_effort": (bool(settings.reasoning), "leave --reasoning out"),
    }
    for name, (is_sent, advice) in sent.items():
        if is_sent and (param == name or (not param and name in words)):
            return f"this model takes no {name} as sent; {advice}{quoted(words)}"
    return ""


def another_model(model: str, before: str, now: str) -> PriorError:
    """The error for a model that changed behind its name."""
    return PriorError(
        f"the model behind {model!r} was {before!r} and now is {now!r}; the answers so far are "
        f"kept: give --revision {now!r} for a prior of its own"
    )


def ask_all(
    asks: Sequence[Ask],
    prompt: Prompt,
    settings: LLMSettings,
    connection: Connection,
    *,
    schema: Literal["auto"] | SchemaMode = "auto",
    revision: str = "",
    reported: str = "",
    is_resumed: bool = False,
    budget: Budget = _NO_LIMIT,
    spent: tuple[int, int] = (0, 0),
    on_reply: Callable[[Reply], None],
    on_found: Callable[[SchemaMode, str], None],
) -> Outcome:
    """Asks a server about clips; returns when each has its reply or has failed.

    Args:
        asks: the clips; of equal keys the first counts.
        prompt: the words around each.
        settings: the model.
        connection: where the server is.
        schema: how the server is told to answer in JSON; ``auto`` tries a schema, then JSON in
            general, then the prompt alone, with the first request.
        revision: what the caller calls the model's version; then the model that the server
            reports is not looked at. Empty: what the first answer reports.
        reported: the model that earlier answers report, where there are any and no `revision`
            was given; an answer of another one ends the run. Where it is empty, a server that
            rejects all of the first five clips ends it too.
        is_resumed: whether there are earlier answers, so that the request is known to be right.
        budget: what may be spent. A request is sent only if it, those on their way and what was
            spent fit, each counted as the longest so far (the first as its estimate and
            `LLMSettings.max_tokens`). Tries without an answer are not counted: no server says
            what they cost.
        spent: tokens in and out that earlier runs have spent of it.
        on_reply: called with each reply as it comes; it is kept when this returns.
        on_found: called with how to ask for JSON and the revision, once, before the first
            `on_reply` of an answer.

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
        is_new=not (reported or is_resumed),
        is_named=bool(revision),
        revision=revision or reported,
        budget=budget,
        spent_in=spent[0],
        spent_out=spent[1],
        on_reply=on_reply,
        on_found=on_found,
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
        revision=run.revision,
    )


class _Unreadable(Exception):
    """A body that is no chat completion."""


@dataclass
class _Run:
    """What the workers of one `ask_all` share; all of them live on one thread."""

    asks: deque[Ask]  # still to be sent
    prompt: Prompt
    settings: LLMSettings
    connection: Connection
    schema: SchemaMode
    is_auto: bool  # whether the schema mode may be changed to what the server takes
    is_new: bool  # whether no answer is known from an earlier run
    is_named: bool  # whether the caller has named the revision
    revision: str
    budget: Budget
    spent_in: int
    spent_out: int
    on_reply: Callable[[Reply], None]
    on_found: Callable[[SchemaMode, str], None]
    limit: str = "max_completion_tokens"
    is_probing: bool = True  # until the first answer
    is_found: bool = False  # whether `on_found` was called
    longest: tuple[int, int] = (0, 0)  # tokens in, tokens out
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
        async with access.asynchronous() as self.client:
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
                if self.is_new:
                    raise self._all_rejected(rejected)
                self.is_probing = False  # the request is good: it was answered before
        if self.is_new and rejected and not self.failed and not self.stopped:
            raise self._all_rejected(rejected)
        if not self.is_new:
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
            problem = self._over_budget()
            if not problem:
                return True
            if not self.in_flight:
                self.stopped = problem
                return False
            self.one_ended.clear()
            await self.one_ended.wait()
        return False

    def _over_budget(self) -> str:
        budget = self.budget
        if budget.tokens is None and budget.money is None:
            return ""
        each_in, each_out = self.longest
        if not each_out:
            each_in = tokens_of_request(self.asks[0].content, self.prompt)
            each_out = self.settings.max_tokens
        n = self.in_flight + 1
        tokens_in, tokens_out = self.spent_in + n * each_in, self.spent_out + n * each_out
        if budget.tokens is not None and tokens_in + tokens_out > budget.tokens:
            used = self.spent_in + self.spent_out
            return (
                f"the budget of {budget.tokens} tokens is spent: {used} are used, "
                f"and the next request may take {each_in + each_out}"
            )
        cost = budget.cost(tokens_in, tokens_out)
        if budget.money is not None and cost is not None and cost > budget.money:
            used_money = budget.cost(self.spent_in, self.spent_out)
            return f"the budget of {budget.money:g} is spent: {used_money:.4g} is used"
        return ""

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
            most = _FAILED_IN_A_ROW if self.is_probing else self._most_in_a_row
            if self.n_failed_in_a_row >= most and not self.stopped:
                self.stopped = (
                    f"{self.n_failed_in_a_row} clips in a row got no answer from "
                    f"{self.access.shown} ({self.failed[ask.key]})"
                )
        return reply

    @property
    def _most_in_a_row(self) -> int:
        return max(_FAILED_IN_A_ROW, self.connection.concurrency)

    async def _tried(self, ask: Ask) -> Reply | None:
        n_tries = 0
        while True:
            await self._wait_for_pause()
            if n_tries and self.stopped:
                return None
            n_tries += 1
            problem: Exception
            try:
                reply = await self._sent(ask)
            except (TimeoutError, self.access.openai.APIError) as error:
                if self._adapts_to(error):
                    n_tries -= 1
                    continue
                if self.access.is_quota(error):
                    self.stopped = f"the account has no quota left ({self.access.reason(error)})"
                    return None
                if getattr(error, "status_code", None) in REFUSED_FOR_GOOD:
                    return self._rejected(ask, error)
                if not self.access.is_worth_a_retry(error):
                    raise self.access.fatal(error) from None
                problem, kind = error, self.access.kind(error)
                reason = self.access.reason(error)
            except _Unreadable as error:
                problem, kind = error, "unreadable body"
                reason = f"unreadable body: {self.access.tidy(str(error))[:80]}"
            else:
                self._accept(ask, reply)
                return reply
            self._give_up_on_nobody(n_tries, problem)
            if n_tries >= self.connection.attempts:
                self.failed[ask.key] = f"{reason} ({n_tries} tries)"
                return None
            self.retries[kind] += 1
            seconds = self.access.seconds_to_wait(n_tries, problem)
            if kind == "429":
                self.paused_until = max(self.paused_until, time.monotonic() + seconds)
            else:
                await asyncio.sleep(seconds)

    async def _wait_for_pause(self) -> None:
        while (left := self.paused_until - time.monotonic()) > 0:
            await asyncio.sleep(left + self.access.jitter())

    async def _sent(self, ask: Ask) -> Reply:
        fields = request_fields(ask, self.prompt, self.settings, self.schema, self.limit)
        completions = self.client.chat.completions.with_raw_response
        # the client's own timeout is one between two bytes, which a slow drip never reaches
        async with asyncio.timeout(self.connection.timeout):
            answer = await completions.create(**fields, extra_body=dict(self.settings.body) or None)
        data: bytes = answer.http_response.content
        try:
            body = json.loads(data)
        except (ValueError, RecursionError):
            raise _Unreadable(data[:200].decode("utf-8", "replace")) from None
        reply = read_answer(ask.key, body)
        if reply is None:
            raise _Unreadable(self.access.words(body))
        return reply

    def _give_up_on_nobody(self, n_tries: int, problem: Exception) -> None:
        """Ends the run where its very first requests find no server."""
        cause = type(problem.__cause__).__name__
        n_most = min(_TRIES_TO_CONNECT, self.connection.attempts)
        if self.n_asked == 1 and cause == "ConnectError" and n_tries >= n_most:
            raise PriorError(
                f"no server at {self.access.shown} ({problem.__cause__}); start it, or give "
                "another --endpoint"
            ) from None

    def _adapts_to(self, error: Exception) -> bool:
        """Whether the request was changed to what the server can take.

        Raises:
            PriorError: it refuses a parameter that only the user can change.
        """
        status = getattr(error, "status_code", None)
        if not self.is_probing or status not in _SCHEMA_STATUS:
            return False
        said = self.access.words(getattr(error, "body", None))
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

    def _rejected(self, ask: Ask, error: Exception) -> Reply:
        said = self.access.words(getattr(error, "body", None))
        return Reply(ask.key, said or self.access.reason(error), "rejected")

    def _accept(self, ask: Ask, reply: Reply) -> None:
        """Counts an answer, and says what the first one has shown."""
        if not self.is_named and reply.model:
            if self.revision and reply.model != self.revision:
                raise another_model(self.settings.model, self.revision, reply.model)
            self.revision = reply.model
        tokens_in = reply.tokens_in or tokens_of_request(ask.content, self.prompt)
        tokens_out = reply.tokens_out or estimate_tokens(reply.content)
        self.spent_in += tokens_in
        self.spent_out += tokens_out
        self.longest = (max(self.longest[0], tokens_in), max(self.longest[1], tokens_out))
        if not self.is_found:
            self.is_found = True
            self.on_found(self.schema, self.revision)
