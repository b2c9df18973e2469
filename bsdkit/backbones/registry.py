"""Backbones by name: one file each in this folder, and entry points of other packages."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import pkgutil
from collections.abc import Callable
from dataclasses import replace

import bsdkit.backbones
from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.errors import UnknownBackbone, nearest

__all__ = ["backbone_classes", "get_backbone", "register"]

ENTRY_POINT_GROUP = "bsdkit.backbones"
_INFRASTRUCTURE = {"base", "checkpoint", "frontends", "registry"}

_log = logging.getLogger(__name__)
_classes: dict[str, type[Backbone]] = {}


def register(name: str) -> Callable[[type[Backbone]], type[Backbone]]:
    """A class decorator that makes a backbone known under a name.

    A name that ends in a colon takes an argument: ``hf:`` answers to ``hf:<model id>``.
    """

    def decorate(cls: type[Backbone]) -> type[Backbone]:
        cls.name = name
        _classes[name] = cls
        return cls

    return decorate


@functools.cache
def _scan() -> None:
    for module in pkgutil.iter_modules(bsdkit.backbones.__path__):
        if module.name not in _INFRASTRUCTURE:
            importlib.import_module(f"bsdkit.backbones.{module.name}")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            entry.load()
        except Exception as error:  # a broken plug-in must not take the others down
            _log.warning("backbone plug-in %s does not load: %s", entry.name, error)


def backbone_classes() -> dict[str, type[Backbone]]:
    """All registered backbones by name, sorted."""
    _scan()
    return dict(sorted(_classes.items()))


def get_backbone(name: str, options: BackboneOptions | None = None) -> Backbone:
    """A backbone, not loaded.

    Args:
        name: a registered name, or ``hear:<module>``, ``hf:<model id or folder>``.
        options: what the user chose.

    Raises:
        UnknownBackbone: there is none of that name; the message names the nearest.
    """
    classes = backbone_classes()
    options = options or BackboneOptions()
    prefix, colon, argument = name.partition(":")
    if colon and prefix + ":" in classes:
        if not argument:
            raise UnknownBackbone(f"{name!r} needs something after the colon, e.g. {name}MODEL")
        return classes[prefix + ":"](replace(options, argument=argument))
    if name not in classes:
        raise UnknownBackbone(f"unknown backbone {name!r}: {nearest(name, classes)}")
    return classes[name](options)
