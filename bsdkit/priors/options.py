"""What a user may choose about priors and summaries, and what making them has given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bsdkit.backbones.base import Precision
from bsdkit.extract.run import find_template
from bsdkit.priors.ask import LLMSettings, SchemaMode
from bsdkit.priors.cost import Budget
from bsdkit.priors.engines.request import Connection
from bsdkit.store.store import Store
from bsdkit.text import TextTemplate

__all__ = ["CLASS_TEXT", "BatchStep", "Made", "PriorOptions"]

BatchStep = Literal["prepare", "submit", "status", "download", "resume"]

CLASS_TEXT = "{name}. {description}"
"""What a text encoder embeds for a class by default."""


@dataclass(frozen=True)
class Made:
    """What one step has given.

    Attributes:
        lines: what there is to say of it.
        is_whole: whether every clip has its prior or summary, or the step was to make none.
    """

    lines: tuple[str, ...]
    is_whole: bool


@dataclass(frozen=True)
class PriorOptions:
    """What a user may choose about priors and summaries.

    Attributes:
        engine: a name of `bsdkit.priors.engines.registry.ENGINES`; empty for the one that
            `model` suggests, see `bsdkit.priors.run.choose_engine`.
        summaries: texts that sum up the metadata, instead of class probabilities.
        name: of the feature or texts; empty for one made of the model's.
        text: template of the texts, for a text encoder.
        mask_class_words: whether words of class names are cut out of the metadata first.
        class_text: see `class_texts`, for a text encoder.
        device: of a model that runs here.
        precision: number type of such a model's products.
        llm: the model and its parameters.
        revision: of the model, where the server does not say.
        schema: how a server is told to answer in JSON.
        connection: where the server is.
        budget: what may be spent.
        is_dry: whether to estimate the cost instead of asking.
        is_failed_again: whether clips are asked again whose answer could not be read.
        batch: a step of the batch interface instead of the chat's.
    """

    engine: str = ""
    summaries: bool = False
    name: str = ""
    text: str = "title-tags-description"
    mask_class_words: bool = False
    class_text: str = CLASS_TEXT
    device: str = "cpu"
    precision: Precision = "float32"
    llm: LLMSettings = field(default_factory=lambda: LLMSettings("minilm"))
    revision: str = ""
    schema: Literal["auto"] | SchemaMode = "auto"
    connection: Connection = field(default_factory=Connection)
    budget: Budget = field(default_factory=Budget)
    is_dry: bool = False
    is_failed_again: bool = False
    batch: BatchStep | None = None

    @property
    def model(self) -> str:
        """The model's name."""
        return self.llm.model

    def template(self, store: Store) -> TextTemplate:
        """The template of the metadata of a store's clips.

        Raises:
            BsdkitError: see `find_template`.
        """
        return find_template(
            self.text, store.path, store.clips.taxonomy, is_masked=self.mask_class_words
        )
