"""What every engine of a server shares: the address and key, requests, answers, errors, tries.

Source: OpenAI's reference of chat completions. The client of the package ``openai`` sends each
request once; tries are repeated by ``tenacity``, since they are counted and since an answer
whose body is cut off or no JSON is no answer.
"""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Required, TypedDict
from urllib.parse import urlsplit

from bsdkit.errors import PriorError
from bsdkit.priors.ask import Ask, LLMSettings, Prompt, Reply, SchemaMode

if TYPE_CHECKING:
    import tenacity

__all__ = [
    "REFUSED_FOR_GOOD",
    "Access",
    "Connection",
    "Known",
    "Revision",
    "Unreadable",
    "parameter_problem",
    "quoted",
    "read_answer",
    "read_object",
    "request_fields",
    "retry_after",
]

REFUSED_FOR_GOOD = (400, 413, 422)
"""Statuses of a request that no further try will mend."""

_LONGEST_WORDS = 500
_DEFAULT_ENDPOINT = "https://api.openai.com/v1"
_LONGEST_BACKOFF = 60.0
_LONGEST_RETRY_AFTER = 300.0


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


class Known(TypedDict, total=False):
    """What the caller knows of the model, and how it learns more.

    Attributes:
        revision: what the caller calls the model's version; then the model that the server
            reports is not looked at. Empty: what the first answer reports.
        reported: the model that earlier answers report, where there are any and no `revision`
            was given; an answer of another one ends the run. Where it is empty, a server that
            rejects all of the first five clips ends it too.
        is_resumed: whether there are earlier answers, so that the request is known to be right.
        on_found: called with how to ask for JSON and the revision, once, before the first
            answer is kept.
    """

    revision: str
    reported: str
    is_resumed: bool
    on_found: Required[Callable[[SchemaMode, str], None]]


class Revision:
    """The model behind a name, which must not change between answers.

    Args:
        model: the name that is asked for.
        known: what the caller knows.

    Attributes:
        value: the model as the caller calls it or as the last answer reports it; may be empty.
        is_new: whether no answer is known from an earlier run.
    """

    def __init__(self, model: str, known: Known) -> None:
        self._model = model
        self._is_named = bool(known.get("revision"))
        self.value = known.get("revision") or known.get("reported", "")
        self.is_new = not (known.get("reported") or known.get("is_resumed"))
        self._on_found: Callable[[SchemaMode, str], None] | None = known["on_found"]

    def check(self, reply: Reply) -> None:
        """Compares the model of an answer with that of those before.

        Raises:
            PriorError: it is another one.
        """
        if self._is_named or not reply.model:
            return
        if self.value and reply.model != self.value:
            raise PriorError(
                f"the model behind {self._model!r} was {self.value!r} and now is "
                f"{reply.model!r}; the answers so far are kept: give --revision "
                f"{reply.model!r} for a prior of its own"
            )
        self.value = reply.model

    def tell(self, schema: SchemaMode) -> None:
        """Calls `on_found`, the first time only."""
        if self._on_found is not None:
            self._on_found(schema, self.value)
            self._on_found = None


class Unreadable(Exception):
    """A body that is no answer."""


class Access:
    """The address and the key of a server, and the errors that name them without the key.

    Args:
        connection: where the server is.
        model: for messages.

    Raises:
        PriorError: a package of the extra ``llm`` is missing, the endpoint is no URL, or there
            is no usable key.
    """

    def __init__(self, connection: Connection, model: str) -> None:
        try:
            import openai
            import tenacity
        except ImportError:
            raise PriorError("asking a server needs: pip install 'bsdkit[llm]'") from None
        self.openai = openai
        self.tenacity = tenacity
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
        self._backoff = tenacity.wait_exponential(
            multiplier=connection.backoff, max=_LONGEST_BACKOFF
        ) + tenacity.wait_random(0, min(1.0, connection.backoff))

    def client(self, kind: str) -> Any:
        """A client that tries once: ``OpenAI`` or ``AsyncOpenAI``."""
        return getattr(self.openai, kind)(
            api_key=self._key or "none",
            base_url=self.url,
            timeout=self.connection.timeout,
            max_retries=0,
        )

    @property
    def patience(self) -> dict[str, Any]:
        """Arguments of tenacity: which errors are tried again, how often and after how long."""
        return {
            "retry": self.tenacity.retry_if_exception(self.is_worth_a_retry),
            "stop": self.tenacity.stop_after_attempt(self.connection.attempts),
            "wait": self._seconds_to_wait,
            "reraise": True,
        }

    def _seconds_to_wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds before the next try: what the server asks for, else more after each try."""
        error = state.outcome.exception() if state.outcome is not None else None
        response = getattr(error, "response", None)
        wanted = None if response is None else retry_after(response.headers)
        return float(self._backoff(state)) if wanted is None else wanted + self.jitter()

    def jitter(self) -> float:
        """Seconds by which workers that wait for the same instant are set apart."""
        return random.uniform(0.0, min(1.0, self.connection.backoff))

    def tidy(self, words: str) -> str:
        """Words of the server as one line of at most 500 characters, without the key."""
        if self._key:
            words = words.replace(self._key, "***")
        return " ".join(words.split())[:_LONGEST_WORDS]

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

    def kind(self, error: BaseException) -> str:
        """``timeout``, ``broken connection``, ``unreadable body``, or the status of an answer."""
        if isinstance(error, Unreadable):
            return "unreadable body"
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
        if kind == "unreadable body":
            return f"{kind}: {self.tidy(str(error))[:80]}"
        return self.tidy(f"{kind}: {self.said(error)}").rstrip(": ")

    def said(self, error: Exception) -> str:
        """What the server says with an error."""
        return self.words(getattr(error, "body", None))

    def is_worth_a_retry(self, error: BaseException) -> bool:
        """Whether the same request may be answered later."""
        status = getattr(error, "status_code", None)
        if isinstance(status, int) and not self.is_quota(error):
            return status in (408, 409, 429) or status >= 500
        return isinstance(error, (TimeoutError, Unreadable, self.openai.APIConnectionError))

    def is_quota(self, error: BaseException) -> bool:
        """Whether the account has nothing left to spend."""
        status = getattr(error, "status_code", None)
        code = "insufficient_quota"
        named = code in (getattr(error, "code", None), getattr(error, "type", None))
        return status == 402 or (status == 429 and named)

    def fatal(self, error: Exception) -> PriorError:
        """The error of the product for one that ends the run."""
        status = getattr(error, "status_code", None)
        said = quoted(self.said(error))
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


def read_object(data: bytes) -> dict[str, Any] | None:
    """The JSON object in these bytes; None where they are none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


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
    if isinstance(content, list):  # parts, as some servers answer; reasoning may be one
        parts = [part for part in content if isinstance(part, dict)]
        texts = [p.get("text") for p in parts if p.get("type", "text") in ("text", "output_text")]
        content = "".join(text for text in texts if isinstance(text, str))
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
