"""Backbones by name: one file each in this folder, and entry points of other packages."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import replace

import bsdkit.backbones
from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.errors import UnknownBackbone, nearest

__all__ = ["backbone_classes", "get_backbone", "get_outputs", "register"]

ENTRY_POINT_GROUP = "bsdkit.backbones"

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


def get_outputs(
    names: Sequence[str], options: BackboneOptions | None = None
) -> list[tuple[Backbone, list[str]]]:
    """Backbones, not loaded, each with the outputs that the names ask for.

    Args:
        names: backbones, for all outputs that cost nothing extra; or features such as
            ``passt.logits``, for that output alone.
        options: what the user chose.

    Raises:
        UnknownBackbone: there is no such backbone or output.
    """
    wanted: dict[str, tuple[Backbone, list[str]]] = {}
    for name in names:
        stem, dot, output = name.rpartition(".")
        is_feature = bool(dot) and name not in backbone_classes() and ":" not in name
        is_feature = is_feature and stem in backbone_classes()
        backbone = get_backbone(stem if is_feature else name, options)
        outputs = (
            [backbone.output_named(output)]
            if is_feature
            else [o for o in backbone.outputs if o not in backbone.extra_outputs]
        )
        known, so_far = wanted.setdefault(backbone.identity, (backbone, []))
        so_far += [output for output in outputs if output not in so_far]
        known.wanted = frozenset(so_far)
    return list(wanted.values())
