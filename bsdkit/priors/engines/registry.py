"""The engines that make priors: one row here and one file in this folder each."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bsdkit.dataset import Clips
    from bsdkit.priors.options import Made, PriorOptions
    from bsdkit.progress import Progress
    from bsdkit.store.store import Store

__all__ = ["ENGINES", "Engine"]


@dataclass(frozen=True)
class Engine:
    """Something that makes priors.

    Attributes:
        name: what ``--engine`` calls it.
        help: what it is, in a few words.
        needs_server: whether a server answers, which may write summaries, and costs money.
        file: its file in this folder, with a function ``make`` of the arguments of `make`. It is
            imported when the engine is used, so that its packages are not needed before.
    """

    name: str
    help: str
    needs_server: bool
    file: str

    def make(self, store: Store, clips: Clips, options: PriorOptions, progress: Progress) -> Made:
        """Makes the priors, or summaries, of all clips.

        Args:
            store: where the file goes.
            clips: its clips, for a model that hears them with the paths of their audio.
            options: which, and how.
            progress: told how far it is.

        Raises:
            BsdkitError: they cannot be made so; the message says why.
        """
        made: Made = import_module(f"bsdkit.priors.engines.{self.file}").make(
            store, clips, options, progress
        )
        return made


_ROWS = (
    Engine("text-encoder", "no language model", False, "encoder"),
    Engine("openai", "any server with its interface", True, "server"),
    Engine("transformers", "in this process", False, "local"),
)
ENGINES = {engine.name: engine for engine in _ROWS}
"""By name."""
