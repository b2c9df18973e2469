"""The replies of a language model, kept one by one: what was paid for is never lost.

Replies are appended to a file of JSON lines; each is on the disk before the next is asked for,
so that a process killed at any instant loses none that it had appended. Small facts about the
server and the state of batches lie beside it. Keys of an account are in none of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bsdkit.csvfile import write_whole
from bsdkit.errors import DatasetError, PriorError
from bsdkit.location import is_remote
from bsdkit.priors.ask import Reply
from bsdkit.store.files import file_lock, remove_tree

__all__ = ["BATCHES", "Journal"]

BATCHES = "batches.json"
"""The file of a journal that says which batches there are."""


class Journal:
    """The replies to the asks of one prior, in a folder of its own.

    Args:
        folder: made when something is written.

    Attributes:
        folder: as given.
        n_broken: lines that the last `replies` could not read, but for a torn last one.

    Raises:
        PriorError: the folder is in a remote place, where nothing can be appended.
    """

    def __init__(self, folder: Path) -> None:
        if is_remote(folder):
            raise PriorError(
                f"replies cannot be appended in {folder}: ask into a local folder, "
                "then copy the finished store"
            )
        self.folder = folder
        self.n_broken = 0

    @property
    def _file(self) -> Path:
        return self.folder / "replies.jsonl"

    def append(self, reply: Reply) -> None:
        """Adds a reply; it is on the disk when this returns.

        Raises:
            PriorError: it cannot be written, as where the disk is full.
        """
        self.extend([reply])

    def extend(self, replies: Iterable[Reply]) -> None:
        """Adds replies; all are on the disk when this returns.

        Raises:
            PriorError: they cannot be written.
        """
        # ASCII: a lone surrogate, which a model may well answer, has no UTF-8
        lines = [json.dumps(dataclasses.asdict(reply)) + "\n" for reply in replies]
        if not lines:
            return
        data = "".join(lines).encode("ascii")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            is_new = not self._file.exists()
            with self._file.open("a+b", buffering=0) as file:
                end = file.seek(0, os.SEEK_END)
                if end:
                    file.seek(end - 1)
                    if file.read(1) != b"\n":  # torn by a kill or a full disk
                        data = b"\n" + data
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            if is_new:
                folder = os.open(self.folder, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
        except OSError as error:
            raise PriorError(
                f"cannot write {self._file}: {error.strerror}; the replies before are kept, "
                "run this again once it can be written"
            ) from None

    def replies(self) -> dict[str, Reply]:
        """The replies by `Ask.key`, in the order they came; the first of a key counts.

        Raises:
            PriorError: the file cannot be read.
        """
        self.n_broken = 0
        found: dict[str, Reply] = {}
        try:
            lines = self._file.read_bytes().split(b"\n")
        except FileNotFoundError:
            return found
        except OSError as error:
            raise PriorError(f"cannot read {self._file}: {error.strerror}") from None
        for i, line in enumerate(lines):
            if not line.strip():
                continue
            reply = _reply(line)
            if reply is not None:
                found.setdefault(reply.key, reply)
            elif i < len(lines) - 1:
                self.n_broken += 1
        return found

    def facts(self) -> dict[str, Any]:
        """What `set_facts` was given last, or nothing.

        Raises:
            PriorError: the file cannot be read.
        """
        return self.read_json("facts.json")

    def set_facts(self, facts: dict[str, Any]) -> None:
        """Writes what was found out about the server, whole or not at all.

        Raises:
            PriorError: it cannot be written.
        """
        self.write_json("facts.json", facts)

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object of the folder; empty where the file is not there.

        Raises:
            PriorError: it cannot be read.
        """
        path = self.folder / name
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise PriorError(f"cannot read {path}: {error.strerror}") from None
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise PriorError(f"{path} is no JSON object; it was edited: put it right or delete it")
        return value

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Writes a JSON object of the folder, whole or not at all.

        Raises:
            PriorError: it cannot be written.
        """
        self.write_file(name, json.dumps(value, indent=1).encode() + b"\n")

    def write_file(self, name: str, data: bytes) -> Path:
        """Writes a file of the folder, whole or not at all.

        Raises:
            PriorError: it cannot be written.
        """
        path = self.folder / name
        try:
            write_whole(path, data, with_folders=True)
        except DatasetError as error:
            raise PriorError(str(error)) from None
        return path

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the journal: no two processes ask the same clips.

        Raises:
            StoreLocked: another process holds it.
        """
        with file_lock(self.folder / "lock", f"asking into {self.folder}"):
            yield

    def clear(self) -> None:
        """Removes the replies and the facts, and the batches that have ended.

        The lock stays, as whoever calls this holds it; so do batches whose answers are still
        to come, with all files of requests, by whose numbers they are known.

        Raises:
            PriorError: they cannot be removed.
        """
        batches = self.read_json(BATCHES).get("batches", [])
        is_open = any(not batch["is_downloaded"] for batch in batches)
        patterns = ["replies.jsonl", "facts.json", *([] if is_open else [BATCHES, "batch-*.jsonl"])]
        try:
            for pattern in patterns:
                for path in self.folder.glob(pattern):
                    path.unlink()
        except OSError as error:
            raise PriorError(f"cannot clear {self.folder}: {error.strerror}") from None

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        remove_tree(self.folder)


def _reply(line: bytes) -> Reply | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    texts = [value.get(name) for name in ("key", "content", "finish", "model")]
    counts = [value.get(name) for name in ("tokens_in", "tokens_out")]
    if not all(isinstance(text, str) for text in texts):
        return None
    if not all(isinstance(count, int) for count in counts):
        return None
    key, content, finish, model = map(str, texts)
    tokens_in, tokens_out = (int(count or 0) for count in counts)
    return Reply(key, content, finish, model, tokens_in, tokens_out)
