"""What a member may learn from beside its own clips: teachers, and the clips of another store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

__all__ = ["IMPORTED", "Distillation", "ExtraPlan", "ExtraPlans", "as_number", "one_or_many"]

IMPORTED = "imported"
"""What stands for the head of a member that was trained elsewhere."""


def as_number(value: Any) -> Any:
    """A number that YAML 1.1 reads as a word, such as 1e-3, also in a list; all else as it is."""
    if isinstance(value, list):
        return [as_number(part) for part in value]
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value):
        return float(value)
    return value


def one_or_many(value: Any) -> Any:
    """A list for a name that stands alone."""
    return [value] if isinstance(value, str) else value


def _stores(value: Any) -> Any:
    """A list for a mapping that stands alone; empty for nothing."""
    if value is None:
        return []
    return value if isinstance(value, list | tuple) else [value]


def _numbers(value: Any) -> Any:
    return {k: as_number(v) for k, v in value.items()} if isinstance(value, dict) else value


Teachers = Annotated[tuple[str, ...], BeforeValidator(one_or_many)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Distillation:
    """Targets of the development clips that teachers provide.

    A clip's loss is cross-entropy with its label, plus `soft` times cross-entropy with the
    teachers' probabilities, plus `hard` times cross-entropy with their most probable class:
    the clean term dominates while soft + hard < 1.

    Attributes:
        teachers: members of the recipe.
        soft: weight of the soft term.
        hard: weight of the hard term.
        temperature: what the mean log-probabilities are divided by before the softmax.
    """

    teachers: Annotated[Teachers, Field(min_length=1)]
    soft: Annotated[float, Field(ge=0)] = 0.5
    hard: Annotated[float, Field(ge=0)] = 0.0
    temperature: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ExtraPlan:
    """How a member uses clips of another store, whose labels are of another quality.

    Attributes:
        store: where they are.
        labels: ``given``: the store's own; ``agreement``: the class that at least `at_least`
            teachers name, clips without one left out; ``soft``: the softmax of the teachers'
            mean log-probabilities, mixed with the given label.
        labels_map: a CSV with the columns ``label`` and ``class``, for a store with labels of its
            own: the class that each of them stands for. Clips whose label it does not name have
            none.
        targets: ``class``; ``family``: each family's share of the target is spread evenly over
            its classes, so that the clip teaches the family alone.
        teachers: members of the recipe; none for ``given``.
        weight: of a clip in the loss, where a development clip has 1.
        at_least: see `labels`.
        temperature: see `Distillation`.
        share: the teachers' share of a ``soft`` target; two numbers to draw it between them
            for each seed.
        hard: weight of a second term, beside the ``soft`` target's one: the cross-entropy with
            the teachers' best class.
        hard_at_least: the teachers' mean probability of that class, below which a clip lacks
            the hard term.
        subset: ``all``; ``random``; ``confident``: those of which the teachers are surest.
        fraction: how many of them to use.
        subset_seed: of a ``random`` subset that is the same for all models; None to draw one for
            each fold and seed.
        stage: ``together`` with the development clips; ``before`` them: pretraining on the
            extra clips alone, then fine-tuning on the development clips. Stores that come before
            with the same `pretrain` are one stage, others follow one another.
        with_development: whether the stage ``before`` trains on the fold's development clips too.
        constant_steps: whether fewer clips are repeated, so that an epoch has as many steps as
            with all of them.
        pretrain: settings of the head that differ in the stage ``before``.

    Raises:
        ValueError: options that do not go together.
    """

    store: str
    labels: Literal["given", "agreement", "soft"] = "given"
    teachers: Teachers = ()
    weight: Annotated[float, Field(gt=0)] = 1.0
    labels_map: str | None = None
    targets: Literal["class", "family"] = "class"
    at_least: Annotated[int, Field(ge=1)] = 2
    temperature: Annotated[float, Field(gt=0)] = 1.0
    share: float | tuple[float, float] = 1.0
    hard: Annotated[float, Field(ge=0)] = 0.0
    hard_at_least: Annotated[float, Field(ge=0, le=1)] = 0.0
    subset: Literal["all", "random", "confident"] = "all"
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    subset_seed: Annotated[int, Field(ge=0)] | None = None
    stage: Literal["together", "before"] = "together"
    with_development: bool = False
    constant_steps: bool = True
    pretrain: Annotated[Mapping[str, Any], BeforeValidator(_numbers)] = Field(default_factory=dict)

    @property
    def shares(self) -> tuple[float, float]:
        """Between which the teachers' share is drawn."""
        return (self.share, self.share) if isinstance(self.share, float) else self.share

    def __post_init__(self) -> None:
        if not 0 <= self.shares[0] <= self.shares[1] <= 1:
            raise ValueError(f"share is {self.share!r}, expected 0 to 1, the lower number first")
        if self.labels == "given" and self.teachers:
            raise ValueError("labels: given needs no teachers; write labels: agreement or soft")
        if self.labels != "given" and not self.teachers:
            raise ValueError(f"labels: {self.labels} needs teachers: names of other members")
        if self.labels == "agreement" and self.at_least > len(self.teachers):
            raise ValueError(
                f"at_least is {self.at_least}; there are {len(self.teachers)} teachers to agree"
            )
        if self.subset == "confident" and self.labels == "given":
            raise ValueError("subset: confident needs teachers who are; write subset: random")
        if self.subset == "all" and self.fraction < 1:
            raise ValueError(
                f"fraction is {self.fraction!r} of subset: all; write subset: random or confident"
            )
        if self.hard and self.labels != "soft":
            raise ValueError(
                f"hard is {self.hard!r} with labels: {self.labels}; write labels: soft"
            )
        if self.hard_at_least and not self.hard:
            raise ValueError(
                f"hard_at_least is {self.hard_at_least!r} and hard is 0; write hard: 0.1 too"
            )
        if self.subset_seed is not None and self.subset != "random":
            raise ValueError(f"subset_seed is for subset: random; subset is {self.subset}")
        for name in ("pretrain", "with_development"):
            if getattr(self, name) and self.stage != "before":
                raise ValueError(f"{name} is for stage: before")


ExtraPlans = Annotated[tuple[ExtraPlan, ...], BeforeValidator(_stores)]
"""Extra clips of one store, which a recipe may write as a mapping alone, or of several."""
