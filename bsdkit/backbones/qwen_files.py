"""The files of a checkpoint in safetensors shards, of which only some tensors are read."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsdkit.errors import BackboneUnavailable

if TYPE_CHECKING:
    import torch

__all__ = ["ShardedFiles"]

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"


class ShardedFiles:
    """A folder, or a model of the Hugging Face hub whose files are fetched one at a time.

    Args:
        model: its id on the hub.
        folder: a folder with its files instead.
        user: name of the backbone, for messages.
    """

    def __init__(self, model: str, folder: Path | None, user: str) -> None:
        self.model = model
        self.folder = folder
        self.user = user

    def unavailable(self, problem: object) -> BackboneUnavailable:
        """An error that says the problem in one line, and what to do."""
        lines = str(problem).strip().splitlines() or [type(problem).__name__]
        return BackboneUnavailable(
            f"{self.user} cannot use {self.folder or self.model}: {lines[0]}; with a network "
            f"{self.model} comes from the Hugging Face hub, without one fetch it elsewhere and "
            "give its folder with --weights"
        )

    def find(self, name: str) -> Path | None:
        """A file, fetched if need be; None where there is none of that name.

        Raises:
            BackboneUnavailable: the hub cannot be asked.
        """
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download(self.model, name))
        except LocalEntryNotFoundError as error:  # the hub did not answer: not the same as "none"
            raise self.unavailable(error) from None
        except EntryNotFoundError:
            return None
        except Exception as error:
            raise self.unavailable(error) from None

    @cached_property
    def shards(self) -> dict[str, str]:
        """File name by tensor name.

        Raises:
            BackboneUnavailable: there are neither shards nor a single file.
        """
        index = self.find(_INDEX)
        if index is not None:
            weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
            return weight_map
        path = self.find(_SINGLE)
        if path is None:
            raise self.unavailable(f"it holds neither {_INDEX} nor {_SINGLE}")
        with self._opened(path) as file:
            return dict.fromkeys(file.keys(), _SINGLE)

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except SafetensorError as error:
            raise self.unavailable(f"{path.name} is not whole ({error}), fetch it again") from None

    def tensors(self, name_of: Callable[[str], str | None]) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors as the files have them, in order of name, one at a time.

        Args:
            name_of: the name that a key of the files is given, or None to leave it out; a
                shard without any is never opened, nor fetched.
        """
        keys = {name: key for key in self.shards if (name := name_of(key)) is not None}
        with contextlib.ExitStack() as stack:
            files: dict[str, Any] = {}
            for name, key in sorted(keys.items()):
                shard = self.shards[key]
                if shard not in files:
                    path = self.find(shard)
                    if path is None:
                        raise self.unavailable(f"{shard}, which its index names, is not there")
                    files[shard] = stack.enter_context(self._opened(path))
                if key not in files[shard].keys():
                    raise self.unavailable(f"{shard} holds no {key}, which its index says it does")
                yield name, files[shard].get_tensor(key)

    def digest(self, name_of: Callable[[str], str | None]) -> str:
        """The sha256 of tensors: names, shapes, and numbers in the type that the files have."""
        import torch

        digest = hashlib.sha256()
        for name, tensor in self.tensors(name_of):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()
