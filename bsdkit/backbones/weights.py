"""Weight files: where they are kept, and how they are fetched, checked and read.

A file is looked for under ``BSDKIT_WEIGHTS`` (default ``~/.cache/bsdkit/weights``), fetched
from its authors' address where they give one, and never used by half: it is downloaded under
another name, resumed where the server allows it, checked, and only then renamed. (pooch does
not resume; huggingface_hub does, but only files of the hub, and most of these are elsewhere.)
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from bsdkit.errors import BackboneUnavailable

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "WeightFile",
    "check_sha256",
    "fetch",
    "file_sha256",
    "fill",
    "read_state",
    "shape_of",
    "weights_folder",
]

_BLOCK = 1 << 20
_TRIES = 3
_TIMEOUT_SECONDS = 30


def weights_folder() -> Path:
    """Where weight files are kept."""
    given = os.environ.get("BSDKIT_WEIGHTS")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "bsdkit" / "weights"


@dataclass(frozen=True)
class WeightFile:
    """A published weight file.

    Attributes:
        name: its file name.
        url: a direct link; empty where there is none.
        sha256: its hex digest; empty where nobody has published one.
        page: where a person finds it, where there is no direct link, and what to do there.
    """

    name: str
    url: str = ""
    sha256: str = ""
    page: str = ""

    @property
    def path(self) -> Path:
        """Where it is kept."""
        return weights_folder() / self.name

    def instructions(self) -> str:
        """What to do by hand to have it."""
        digest = f"sha256 {self.sha256}" if self.sha256 else "no sha256 is published"
        return f"fetch {self.url or self.page} and put it at {self.path} ({digest})"


def fetch(file: WeightFile, progress: Callable[[int, int], None] | None = None) -> Path:
    """The path of a weight file, downloaded if it is not there.

    A download that ends early is resumed, or started again if the server cannot resume; what
    is on disk under the file's own name is always whole.

    Args:
        file: which one.
        progress: called with the bytes at hand and the bytes in all (0 if not known).

    Raises:
        BackboneUnavailable: no network, no such page, or not the expected file.
    """
    path = file.path
    if path.is_file():
        return path
    if not file.url:
        raise BackboneUnavailable(f"{file.name} has no direct link: {file.instructions()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(path.name + ".lock")):  # waits for another process's download
        return path if path.is_file() else _fetch(file, progress)


def _fetch(file: WeightFile, progress: Callable[[int, int], None] | None) -> Path:
    path = file.path
    part = path.with_name(path.name + ".part")
    problem = ""
    for _ in range(_TRIES):
        try:
            _download(file, part, progress)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 416:
                part.unlink(missing_ok=True)  # what we have is not a beginning of what they have
            problem = str(getattr(error, "reason", error)) or type(error).__name__
            continue
        if file.sha256 and file_sha256(part) != file.sha256:
            problem = f"what came has sha256 {file_sha256(part)[:16]}..., not the expected one"
            part.unlink()
            continue
        os.replace(part, path)
        _validator(part).unlink(missing_ok=True)
        return path
    raise BackboneUnavailable(
        f"{file.name} cannot be fetched from {file.url}: {problem}; {file.instructions()}"
    )


def _validator(part: Path) -> Path:
    """Where the server's mark of the version that a partial file is of is kept."""
    return part.with_name(part.name + "-version")


def _download(file: WeightFile, part: Path, progress: Callable[[int, int], None] | None) -> None:
    """Completes a partial file, or starts it again where it cannot be resumed with safety.

    Raises:
        OSError: the connection failed or ended before the announced length.
    """
    validator = _validator(part)
    version = validator.read_text() if validator.is_file() else ""
    done = part.stat().st_size if part.is_file() else 0
    if not file.sha256 and not version:
        done = 0  # nothing would tell if the rest is of another version than the beginning
    request = urllib.request.Request(file.url, headers={"User-Agent": "bsdkit"})
    if done:
        request.add_header("Range", f"bytes={done}-")
        if version:
            request.add_header("If-Range", version)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        if response.status != 206:
            done = 0
            found = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
            validator.write_text("" if found.startswith("W/") else found)
        length = int(response.headers.get("Content-Length") or 0)
        if not length and not file.sha256:
            raise OSError("the server does not say how long the file is, and no sha256 is known")
        total = done + length if length else 0
        with part.open("ab" if done else "wb") as out:
            while block := response.read(_BLOCK):
                out.write(block)
                done += len(block)
                if progress:
                    progress(done, total)
            out.flush()
            os.fsync(out.fileno())
    if total and done != total:
        raise OSError(f"the connection ended after {done} of {total} bytes")


def file_sha256(path: Path) -> str:
    """The sha256 hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raises BackboneUnavailable unless the file has the expected sha256 hex digest."""
    found = file_sha256(path)
    if found != expected:
        raise BackboneUnavailable(
            f"{path} is not {what}: its sha256 is {found[:16]}..., expected {expected[:16]}...; "
            "the download may be cut short or a web page saved by mistake; delete it and fetch it "
            "again"
        )


def read_state(path: Path, what: str) -> dict[str, Any]:
    """What a weight file holds: a state dict, or the dictionary around one.

    Pickles are read with torch's restricted unpickler, so a file cannot run code.

    Args:
        path: a .safetensors, .pt, .pth or .ckpt file.
        what: what it should be, for messages.

    Raises:
        BackboneUnavailable: it is no such file.
    """
    import torch

    with path.open("rb") as file:
        beginning = file.read(512).lstrip().lower()
    if beginning.startswith((b"<!doctype", b"<html")):
        raise BackboneUnavailable(
            f"{path} is a web page, not {what}: the link's page was saved instead of the file; "
            "delete it and fetch the file itself"
        )
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except Exception as error:  # safetensors has an error class of its own
            raise BackboneUnavailable(f"{path} is not {what}: {error}") from None
    try:
        with torch.serialization.safe_globals(_harmless_globals()):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways; torch's advice is no help
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise BackboneUnavailable(
                f"{path} holds a {refused[1]}, which is not read because it could run code; if "
                "you trust its source, save its tensors alone (torch.load with "
                "weights_only=False, then torch.save of the state dict) and give that file"
            ) from None
        size = path.stat().st_size
        raise BackboneUnavailable(
            f"{path} is not {what}: {type(error).__name__} while reading its {size} bytes; it may "
            "be cut short or another file; delete it and fetch it again"
        ) from None
    if isinstance(loaded, tuple | list) and loaded and isinstance(loaded[0], Mapping):
        loaded = loaded[0]
    if not isinstance(loaded, Mapping):
        raise BackboneUnavailable(f"{path} is not {what}: it holds a {type(loaded).__name__}")
    return dict(loaded)


def _harmless_globals() -> list[Any]:
    """What training scripts leave in checkpoints beside tensors: numpy scalars, namespaces.

    numpy moved the constructor of its scalars after many of them were saved, so the old name
    is mapped to the new function.
    """
    import argparse
    import codecs
    import collections
    import pathlib

    import numpy as np
    from numpy._core import multiarray

    codes = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "b1", "U1", "S1")
    dtypes = {type(np.dtype(code)) for code in codes}
    numpy_parts = []
    for part in (multiarray.scalar, multiarray._reconstruct):
        numpy_parts += [part, (part, f"numpy.core.multiarray.{part.__name__}")]
    harmless = [np.dtype, np.ndarray, *dtypes, codecs.encode, argparse.Namespace]
    return [*numpy_parts, *harmless, collections.defaultdict, pathlib.PosixPath]


def shape_of(state: Mapping[str, Any], name: str, n_dimensions: int) -> tuple[int, ...]:
    """The shape of a tensor of a weight file.

    Raises:
        ValueError: there is none of that name, it has not so many dimensions, or is empty.
    """
    shape = getattr(state.get(name), "shape", None)
    if shape is None:
        raise ValueError(f"tensor {name} is missing")
    if len(shape) != n_dimensions or 0 in shape:
        raise ValueError(f"tensor {name} is {tuple(shape)}, expected {n_dimensions} dimensions")
    return tuple(shape)


def fill(network: nn.Module, state: Mapping[str, Any]) -> None:
    """Puts the tensors of a weight file into a network, all of them and no others.

    A network made on torch's meta device gets the tensors themselves; another one copies.

    Raises:
        ValueError: they differ; the message names the first tensor that does.
    """
    own = network.state_dict()
    for name, tensor in own.items():
        expected, found = tuple(tensor.shape), getattr(state.get(name), "shape", None)
        if found is None:
            raise ValueError(f"tensor {name} {expected} is missing")
        if tuple(found) != expected:
            raise ValueError(f"tensor {name} is {tuple(found)}, expected {expected}")
    for name in state:
        if name not in own:
            raise ValueError(f"tensor {name} has no place in the network")
    # some checkpoints come in half precision; the precision of a spec is not theirs
    cast = {name: state[name].to(tensor.dtype) for name, tensor in own.items()}
    network.load_state_dict(cast, assign=any(tensor.is_meta for tensor in own.values()))
