"""Asking through a batch API: files of requests that are answered within a day.

The files, and what the server has made of them, lie in the folder of the journal: ``batches.json``
and ``batch-000.jsonl``, ... Each step may be killed and run again. Nothing is submitted twice: a
batch carries the sha256 of its file, and the server's batches are looked through before one is
made. Two processes must not do this at once: hold `Journal.lock`.

Source: OpenAI's reference of ``/v1/files`` and ``/v1/batches``.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

from bsdkit.errors import PriorError
from bsdkit.priors.ask import Ask, LLMSettings, Prompt, SchemaMode
from bsdkit.priors.engines.batch_answers import Downloaded, Reader
from bsdkit.priors.engines.request import (
    Access,
    Connection,
    Known,
    Unreadable,
    quoted,
    read_object,
    request_fields,
)
from bsdkit.priors.journal import BATCHES, Journal

__all__ = [
    "MOST_BYTES",
    "MOST_REQUESTS",
    "BatchStatus",
    "download",
    "prepare",
    "resume",
    "status",
    "submit",
]

MOST_REQUESTS = 50_000
"""Requests of a file: as many as the server takes."""
MOST_BYTES = 180_000_000
"""Bytes of a file: the server takes 200 MB."""

_TAG = "bsdkit"
_ENDPOINT = "/v1/chat/completions"
_READS_OF_A_FILE = 3  # of which some lines cannot be read; then they are counted
_ENDED = ("completed", "failed", "expired", "cancelled")

_State = list[dict[str, Any]]


@dataclass(frozen=True)
class BatchStatus:
    """How far a batch is.

    Attributes:
        file: name of its file of requests.
        batch: the server's id of it; empty where it is not submitted.
        state: ``prepared``, or what the server says last: ``in_progress``, ``completed``, ...
        n: requests.
        n_completed: requests that are answered.
        n_failed: requests that ended in an error.
        is_downloaded: whether its answers are in the journal.
        problem: why it failed as a whole, in the server's words.
    """

    file: str
    batch: str
    state: str
    n: int
    n_completed: int
    n_failed: int
    is_downloaded: bool
    problem: str


def prepare(
    journal: Journal,
    asks: Sequence[Ask],
    prompt: Prompt,
    settings: LLMSettings,
    *,
    schema: Literal["auto"] | SchemaMode = "auto",
) -> list[Path]:
    """Writes the files of requests for clips that have no reply and are in no open batch.

    Args:
        journal: where they are written.
        asks: all clips.
        prompt: the words around each.
        settings: the model.
        schema: how the server is told to answer in JSON; ``auto``: by a schema, as nothing is
            tried out here.

    Returns:
        The new files, at most `MOST_REQUESTS` requests and `MOST_BYTES` bytes each.

    Raises:
        PriorError: they cannot be written.
    """
    mode: SchemaMode = "json_schema" if schema == "auto" else schema
    state = _state(journal)
    taken = set(journal.replies())
    for entry in state:
        if not entry["is_downloaded"]:
            taken |= set(entry["keys"])
    missing: dict[str, Ask] = {}
    for ask in asks:
        if ask.key not in taken:
            missing.setdefault(ask.key, ask)
    paths = []
    for lines in _parts(missing.values(), prompt, settings, mode):
        name = f"batch-{len(state):03d}.jsonl"
        data = b"".join(lines.values())
        paths.append(journal.write_file(name, data))
        state.append(
            {
                "file": name,
                "sha256": hashlib.sha256(data).hexdigest(),
                # tells a batch of this file from one that was made, and read, of the same requests
                "token": secrets.token_hex(16),
                "keys": list(lines),
                "schema": mode,
                "model": settings.model,
                "input": "",
                "batch": "",
                "state": "prepared",
                "n_completed": 0,
                "n_failed": 0,
                "problem": "",
                "is_downloaded": False,
            }
        )
        _keep(journal, state)
    return paths


def submit(journal: Journal, connection: Connection) -> list[BatchStatus]:
    """Uploads and submits the prepared files that are not submitted.

    A batch of the server that carries the file's token, and that this journal does not know, was
    submitted by a run that was killed before it could note so: it is taken over.

    Args:
        journal: where `prepare` has written.
        connection: where the server is.

    Raises:
        PriorError: the server cannot be reached or does not take it, or a file was changed.
    """
    state = _state(journal)
    if all(entry["batch"] for entry in state):
        return _statuses(state)
    with _Service(connection, _model(state)) as service:
        for entry in state:
            if not entry["batch"]:
                _submit(journal, state, entry, service)
    return _statuses(state)


def status(journal: Journal, connection: Connection) -> list[BatchStatus]:
    """How far each batch is, in the order of their files; only open ones are asked after.

    Args:
        journal: of the batches.
        connection: where the server is.

    Raises:
        PriorError: the server cannot be reached, or does not know a batch.
    """
    state = _state(journal)
    if any(map(_is_open, state)):
        with _Service(connection, _model(state)) as service:
            for entry in filter(_is_open, state):
                _look(journal, state, entry, service)
    return _statuses(state)


def download(
    journal: Journal,
    settings: LLMSettings,
    connection: Connection,
    **known: Unpack[Known],
) -> Downloaded:
    """Puts the answers of ended batches into the journal, also of those that ended halfway.

    What the server rejects for good is a reply, see `Reply.finish`; what failed for another
    reason, such as a rate limit or the end of the day, is left for the next `prepare`.

    Args:
        journal: of the batches.
        settings: the model.
        connection: where the server is.
        known: what is known of the model.

    Raises:
        PriorError: the server cannot be reached; it refuses a parameter, or every request while
            no answer is known, here or as `reported`; another model answers than before.
    """
    state = _state(journal)
    total = Downloaded()
    if not any(map(_is_open, state)):
        return total
    reader = Reader(journal, settings, known)
    with _Service(connection, _model(state)) as service:
        reader.words = service.access.words
        for entry in filter(_is_open, state):
            batch = _look(journal, state, entry, service)
            if entry["state"] not in _ENDED:
                continue
            one = reader.read(entry, service.lines(batch))
            entry["is_downloaded"] = True
            _keep(journal, state)
            if reader.problem is not None:
                raise reader.problem
            total = Downloaded(
                *(getattr(total, name) + getattr(one, name) for name in Downloaded.__match_args__)
            )
    return total


def resume(
    journal: Journal,
    asks: Sequence[Ask],
    prompt: Prompt,
    settings: LLMSettings,
    connection: Connection,
    *,
    schema: Literal["auto"] | SchemaMode = "auto",
    **known: Unpack[Known],
) -> tuple[Downloaded, list[BatchStatus]]:
    """Does what is to be done next: `download`, then `prepare` and `submit` what is missing.

    The arguments are theirs.

    Returns:
        What was downloaded, and how far each batch is. All is done when every ask has its reply.

    Raises:
        PriorError: see there.
    """
    brought = download(journal, settings, connection, **known)
    prepare(journal, asks, prompt, settings, schema=schema)
    return brought, submit(journal, connection)


def open_keys(journal: Journal) -> set[str]:
    """Keys of the clips that are in batches whose answers were not downloaded."""
    entries = [entry for entry in _state(journal) if not entry["is_downloaded"]]
    return {key for entry in entries for key in entry["keys"]}


def _state(journal: Journal) -> _State:
    entries = journal.read_json(BATCHES).get("batches", [])
    return list(entries)


def _model(state: _State) -> str:
    return str(state[0]["model"])


def _keep(journal: Journal, state: _State) -> None:
    journal.write_json(BATCHES, {"batches": state})


def _is_open(entry: dict[str, Any]) -> bool:
    return bool(entry["batch"]) and not entry["is_downloaded"]


def _statuses(state: _State) -> list[BatchStatus]:
    same = [name for name in BatchStatus.__match_args__ if name != "n"]
    return [
        BatchStatus(n=len(entry["keys"]), **{name: entry[name] for name in same}) for entry in state
    ]


def _parts(
    asks: Iterable[Ask], prompt: Prompt, settings: LLMSettings, schema: SchemaMode
) -> Iterator[dict[str, bytes]]:
    """The lines of each file, by key."""
    lines: dict[str, bytes] = {}
    size = 0
    for ask in asks:
        body = request_fields(ask, prompt, settings, schema, "max_completion_tokens")
        request = {
            "custom_id": ask.key,
            "method": "POST",
            "url": _ENDPOINT,
            "body": {**body, **settings.body},
        }
        line = json.dumps(request).encode() + b"\n"
        if lines and (len(lines) >= MOST_REQUESTS or size + len(line) > MOST_BYTES):
            yield lines
            lines, size = {}, 0
        lines[ask.key] = line
        size += len(line)
    if lines:
        yield lines


def _submit(journal: Journal, state: _State, entry: dict[str, Any], service: _Service) -> None:
    path = journal.folder / entry["file"]
    try:
        data = path.read_bytes()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise PriorError(
            f"{path} is not as it was prepared; remove {journal.folder / BATCHES} and prepare again"
        )
    known = {other["batch"] for other in state}

    def make() -> None:
        # each try looks first: the one before may have arrived without our hearing of it
        for batch in service.client.batches.list(limit=100):
            is_ours = (batch.metadata or {}).get(_TAG) == entry["token"]
            if is_ours and batch.id not in known:
                _note(entry, batch)
                return
        if not entry["input"]:
            name = f"{_TAG}-{entry['sha256'][:16]}.jsonl"
            file = service.client.files.create(file=(name, data), purpose="batch")
            entry["input"] = file.id
            _keep(journal, state)
        batch = service.client.batches.create(
            input_file_id=entry["input"],
            endpoint=_ENDPOINT,
            completion_window="24h",
            metadata={_TAG: entry["token"]},
        )
        _note(entry, batch)

    service.call(make)
    _keep(journal, state)


def _look(journal: Journal, state: _State, entry: dict[str, Any], service: _Service) -> Any:
    def ask() -> Any:
        batch = service.client.batches.retrieve(entry["batch"])
        _note(entry, batch)
        return batch

    batch = service.call(ask)
    _keep(journal, state)
    return batch


def _note(entry: dict[str, Any], batch: Any) -> None:
    entry["batch"] = batch.id
    entry["state"] = str(batch.status)
    counts = batch.request_counts
    if counts is not None:
        entry["n_completed"], entry["n_failed"] = counts.completed, counts.failed
    errors = (batch.errors.data or []) if batch.errors is not None else []
    entry["problem"] = " ".join(str(errors[0].message).split())[:500] if errors else ""


class _Service:
    """A server, each of whose calls is tried until it answers."""

    def __init__(self, connection: Connection, model: str) -> None:
        self.access = Access(connection, model)
        self.client = self.access.client("OpenAI")

    def __enter__(self) -> _Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    def call(self, function: Callable[[], Any]) -> Any:
        def readable() -> Any:
            try:
                return function()
            except (ValueError, AttributeError):
                # a body that is no JSON: the client fails to parse it, or gives it as text
                raise Unreadable from None

        access = self.access
        try:
            return access.tenacity.Retrying(**access.patience)(readable)
        except access.openai.APIError as error:
            if getattr(error, "status_code", None) != 404:
                raise access.fatal(error) from None
            raise PriorError(
                f"{access.shown} answers 404: it has no batch API, or not this batch or file; "
                f"ask without batches{quoted(access.said(error))}"
            ) from None
        except Unreadable:
            raise PriorError(
                f"{access.shown} answers with what is no JSON; is it the base URL of an API? Give "
                "--endpoint"
            ) from None

    def lines(self, batch: Any) -> list[bytes]:
        """The lines of a batch's answers, then of its errors."""
        files = [name for name in (batch.output_file_id, batch.error_file_id) if name]
        return [line for name in files for line in self._lines_of(name)]

    def _lines_of(self, name: str) -> list[bytes]:
        def read() -> list[bytes]:
            data = bytes(self.call(lambda: self.client.files.content(name).content))
            return [line for line in data.split(b"\n") if line.strip()]

        tenacity = self.access.tenacity
        again = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda lines: None in map(read_object, lines)),
            stop=tenacity.stop_after_attempt(_READS_OF_A_FILE),
            wait=self.access.patience["wait"],
            retry_error_callback=lambda state: state.outcome.result(),
        )
        lines: list[bytes] = again(read)
        return lines
