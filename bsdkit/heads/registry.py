"""Heads by name: one file each in this folder, and entry points of other packages."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import logging
import pkgutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import bsdkit.heads
from bsdkit.errors import HeadError, nearest

if TYPE_CHECKING:
    from bsdkit.heads.base import Head

__all__ = [
    "get_head_class",
    "head_classes",
    "head_parameters",
    "key_settings",
    "make_head",
    "register",
]

ENTRY_POINT_GROUP = "bsdkit.heads"
_INFRASTRUCTURE = {
    "base", "class_weights", "normalize", "plain", "registry", "torch_head", "training",
}  # fmt: skip


_log = logging.getLogger(__name__)
_classes: dict[str, type[Head]] = {}


def register(name: str) -> Callable[[type[Head]], type[Head]]:
    """A class decorator that makes a head known under a name."""

    def decorate(cls: type[Head]) -> type[Head]:
        cls.name = name
        _classes[name] = cls
        return cls

    return decorate


@functools.cache
def _files() -> frozenset[str]:
    """Heads of this folder: a head's file has its name, so that it is found without the others."""
    modules = pkgutil.iter_modules(bsdkit.heads.__path__)
    return frozenset(module.name for module in modules) - _INFRASTRUCTURE


@functools.cache
def _load_plugins() -> None:
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except Exception as error:  # a broken plug-in must not take the others down
            _log.warning("head plug-in %s does not load: %s", entry.name, error)


def head_classes() -> dict[str, type[Head]]:
    """All registered heads by name, sorted."""
    for name in _files():
        importlib.import_module(f"bsdkit.heads.{name}")
    _load_plugins()
    return dict(sorted(_classes.items()))


def get_head_class(name: str) -> type[Head]:
    """The head of that name; of the heads of this folder only its own file is imported.

    Raises:
        HeadError: there is none; the message names the nearest.
    """
    if name not in _classes and name in _files():
        importlib.import_module(f"bsdkit.heads.{name}")
    elif name not in _classes:
        _load_plugins()
    if name not in _classes:
        raise HeadError(f"unknown head {name!r}: {nearest(name, _files() | set(_classes))}")
    return _classes[name]


def head_parameters(name: str) -> dict[str, Any]:
    """What a recipe may set of a head: its parameters with their defaults."""
    signature = inspect.signature(get_head_class(name).__init__)
    hidden = {"self", "blocks", "families", "random_state"}
    return {k: p.default for k, p in signature.parameters.items() if k not in hidden}


def key_settings(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a member's key holds: these settings, and defaults for the rest.

    An option that was added later (`bsdkit.heads.base.added`) is there where it is on.
    """
    cls, known = get_head_class(name), head_parameters(name)
    fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
    later = {field.name for field in fields if field.metadata.get("added")}
    given = {**known, **{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}}
    return {k: v for k, v in given.items() if k not in later or v != known[k]}


def make_head(
    name: str,
    settings: Mapping[str, Any],
    *,
    blocks: tuple[int, ...],
    families: tuple[int, ...] | None = None,
    random_state: int = 0,
) -> Head:
    """A head with these settings, not fitted.

    Args:
        name: a registered name.
        settings: parameters by name.
        blocks: width of each input, for heads that take several.
        families: family number of each class, for heads that know families.
        random_state: the seed.

    Raises:
        HeadError: an unknown head or parameter; the message names the nearest.
    """
    known = head_parameters(name)
    for key in settings:
        if key not in known:
            raise HeadError(f"head {name!r} has no parameter {key!r}: {nearest(key, known)}")
    cls = get_head_class(name)
    arguments: dict[str, Any] = {**settings, "random_state": random_state}
    if cls.takes_blocks:
        arguments["blocks"] = blocks
    if cls.takes_families:
        arguments["families"] = families
    return cls(**arguments)
