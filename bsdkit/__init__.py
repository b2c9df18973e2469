"""Embed once, ablate in seconds: frozen audio and text embeddings, small heads, honest scores.

``import bsdkit`` is light: each name below is imported when it is first used.

Examples:
    >>> import bsdkit
    >>> taxonomy = bsdkit.load_taxonomy("bst")
    >>> scores = bsdkit.evaluate([0, 1, 2], [0, 1, 1], taxonomy, warn=False)
    >>> round(scores["accuracy"], 3)
    0.667
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bsdkit.version import __version__

if TYPE_CHECKING:
    from bsdkit.api import fit, load_backbone
    from bsdkit.dataset import read_dataset
    from bsdkit.extract import embed
    from bsdkit.extract.run import extract_dataset
    from bsdkit.metrics import evaluate
    from bsdkit.recipe.schema import Recipe, load_recipe
    from bsdkit.runs.folder import load_run
    from bsdkit.store.store import Store
    from bsdkit.taxonomy import load_taxonomy

__all__ = [
    "Recipe",
    "Store",
    "__version__",
    "embed",
    "evaluate",
    "extract_dataset",
    "fit",
    "load_backbone",
    "load_recipe",
    "load_run",
    "load_taxonomy",
    "read_dataset",
]

_HOMES = {
    "Recipe": "recipe.schema",
    "Store": "store.store",
    "embed": "extract",
    "evaluate": "metrics",
    "extract_dataset": "extract.run",
    "fit": "api",
    "load_backbone": "api",
    "load_recipe": "recipe.schema",
    "load_run": "runs.folder",
    "load_taxonomy": "taxonomy",
    "read_dataset": "dataset",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bsdkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"bsdkit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
