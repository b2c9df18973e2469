"""Class priors and summaries of a whole store, as the command line makes them."""

from __future__ import annotations

import os
from pathlib import Path

from bsdkit.backbones.registry import backbone_classes
from bsdkit.dataset import Clips
from bsdkit.errors import PriorError, nearest
from bsdkit.priors.ask import own_name
from bsdkit.priors.engines.encoder import TEXT_ENCODER
from bsdkit.priors.engines.registry import ENGINES
from bsdkit.priors.llm import SUMMARY
from bsdkit.priors.options import Made, PriorOptions
from bsdkit.progress import Progress
from bsdkit.store.kinds import PRIOR
from bsdkit.store.store import Store

__all__ = ["choose_engine", "make_priors"]


def choose_engine(model: str) -> str:
    """The engine that a model's name suggests: a backbone's here, any other a server's."""
    stem = model.partition(":")[0] + ":" if ":" in model else model.partition(".")[0]
    cls = backbone_classes().get(model) or backbone_classes().get(stem)
    if cls is None:
        return "transformers" if (Path(model) / "config.json").is_file() else "openai"
    if "text" in cls.outputs.values() or stem.endswith(":"):
        return TEXT_ENCODER
    return "transformers"


def make_priors(store: Store, clips: Clips, options: PriorOptions, progress: Progress) -> Made:
    """Makes the class priors, or summaries, of all clips.

    Args:
        store: where the file goes.
        clips: its clips, for a model that hears them with the paths of their audio.
        options: which, and how.
        progress: where to show what happens.

    Raises:
        PriorError: they cannot be made so; the message says why.
        BsdkitError: see `extract`, `Stage` and `ask_all`.
    """
    name = options.engine or choose_engine(options.model)
    if name not in ENGINES:
        raise PriorError(f"unknown engine {name!r}: {nearest(name, ENGINES)}")
    engine = ENGINES[name]
    if not options.engine and engine.needs_server:
        _check_server_is_meant(options)
    if not engine.needs_server:
        _refuse_server_options(name, options)
    if options.summaries and not engine.needs_server:
        raise PriorError(
            f"{options.model} writes no summaries; give a chat model: --engine openai --model "
            "MODEL, and --endpoint URL for a server of your own"
        )
    if options.name:  # before anything is embedded, or paid for
        own_name(options.name, SUMMARY if options.summaries else PRIOR)
    return engine.make(store, clips, options, progress)


def _check_server_is_meant(options: PriorOptions) -> None:
    """A name that is mistyped, or of a model on the hub, must not reach a server by chance."""
    connection = options.connection
    variables = (connection.key_variable, "OPENAI_BASE_URL")
    if not connection.endpoint and not any(os.environ.get(name) for name in variables):
        known = nearest(options.model, [n for n in backbone_classes() if not n.endswith(":")])
        hint = f" ({known})" if known.startswith("did you") else ""
        raise PriorError(
            f"{options.model} is no backbone{hint}, so a server is to answer: give --endpoint URL, "
            f"or a key in {connection.key_variable}; or --engine transformers for a model in here"
        )


def _refuse_server_options(engine: str, options: PriorOptions) -> None:
    """What only a server can do must not be passed over in silence."""
    given = {
        "--endpoint": bool(options.connection.endpoint),
        "--dry-run": options.is_dry,
        "--retry-failed": options.is_failed_again,
        "--batch": options.batch is not None,
        "--budget": options.budget.is_limited,
    }
    for name, is_given in given.items():
        if is_given:
            raise PriorError(
                f"{name} is for a model on a server, and {options.model} runs here ({engine}); "
                "give --model with the name that the server knows, or --engine openai"
            )
