"""What is asked of a language model about a clip, how, and what it answered."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from bsdkit.errors import PriorError

__all__ = [
    "Ask",
    "LLMSettings",
    "Prompt",
    "Reply",
    "SchemaMode",
    "own_name",
    "read_body",
    "read_temperature",
]

SchemaMode = Literal["json_schema", "json_object", "none"]
"""How a server is told to answer in JSON: by a schema, in general, or by the prompt alone."""

_KEY_DIGITS = 32


def own_name(name: str, kind: str) -> str:
    """The name of a prior or of summaries, if it can be one.

    Args:
        name: what it is to be called.
        kind: its first part, which says what it is.

    Raises:
        PriorError: it begins otherwise, or has signs that recipes and files cannot hold.
    """
    if not re.fullmatch(rf"{kind}\.[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?", name):
        raise PriorError(
            f"--name {name}: expected {kind}. and letters, digits, dots, - or _, e.g. {kind}.mine"
        )
    return name


@dataclass(frozen=True)
class Prompt:
    """The words around a clip's metadata.

    Attributes:
        name: ``class-prior`` or ``summary``.
        version: raised whenever the same taxonomy would give other words.
        system: the system message; the same for every clip.
        schema_name: the name under which a server is told the schema.
        schema: JSON schema of the answer.
    """

    name: str
    version: int
    system: str
    schema_name: str
    schema: Mapping[str, Any]

    def messages(self, content: str) -> list[dict[str, str]]:
        """The chat messages of a clip.

        Args:
            content: what `Ask.content` says.
        """
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": content},
        ]


@dataclass(frozen=True)
class Ask:
    """A question about one clip. Neither its label nor its uploader is in it.

    Attributes:
        clip: the clip's id; it does not travel.
        content: the user message: the clip's metadata as JSON.
    """

    clip: str
    content: str

    @property
    def sha256(self) -> str:
        """Hex digest of the content."""
        return hashlib.sha256(self.content.encode()).hexdigest()

    @property
    def key(self) -> str:
        """What replies are filed under: 32 hex digits of the clip id and the content."""
        joined = f"{self.clip}\n{self.sha256}"
        return hashlib.sha256(joined.encode()).hexdigest()[:_KEY_DIGITS]


@dataclass(frozen=True)
class LLMSettings:
    """Which model answers, and how; all of it changes the numbers.

    Attributes:
        model: the name that the server knows it by.
        temperature: None to send none, as models that reason require.
        top_p: None to send none.
        max_tokens: tokens of an answer, its reasoning among them.
        reasoning: ``low``, ``medium``, ...; empty to send none.
        body: further fields of the request, such as ``chat_template_kwargs``.
    """

    model: str
    temperature: float | None = 0.0
    top_p: float | None = None
    max_tokens: int = 1024
    reasoning: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)


def read_temperature(text: str) -> float | None:
    """The temperature that a command line names: a number from 0, or ``none``.

    Raises:
        PriorError: it is neither.
    """
    if text.strip().lower() == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise PriorError(f"--temperature {text}: expected a number from 0, or none")
    return value


def read_body(text: str) -> dict[str, Any]:
    """The further fields of a request that a command line names as a JSON object.

    Raises:
        PriorError: it is no JSON object.
    """
    try:
        value = json.loads(text) if text.strip() else {}
    except ValueError as error:
        raise PriorError(f"--body {text}: {error}") from None
    if not isinstance(value, dict):
        raise PriorError(f'--body {text}: expected a JSON object such as {{"top_k": 20}}')
    return value


@dataclass(frozen=True)
class Reply:
    """What a model answered, as it came.

    Attributes:
        key: see `Ask.key`.
        content: the text of the answer, unchanged; empty where there is none.
        finish: why it ended: ``stop``, ``length`` (cut at `max_tokens`), ``content_filter``,
            ``refusal`` (the server says that the model refused), or ``rejected`` (the server
            will never answer this request; `content` has its words).
        model: the model that the server says has answered.
        tokens_in: tokens of the request, as the server counts them; 0 where it does not say.
        tokens_out: tokens of the answer, its reasoning among them.
    """

    key: str
    content: str
    finish: str
    model: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
