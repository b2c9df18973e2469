"""What a recipe may say. A recipe is data: an unknown key is refused with the nearest valid one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from bsdkit.combine.adjust import AdjustOptions
from bsdkit.combine.calibrate import CalibrationMethod
from bsdkit.combine.decode import Decoding
from bsdkit.combine.ensemble import EnsembleOptions
from bsdkit.combine.rerank import RerankOptions
from bsdkit.errors import HeadError, RecipeError, nearest
from bsdkit.heads.registry import get_head_class, head_parameters, make_head
from bsdkit.recipe.map import NameMap, apply_map
from bsdkit.recipe.problems import first_problem
from bsdkit.recipe.reading import read_including
from bsdkit.recipe.teaching import (
    IMPORTED,
    Distillation,
    ExtraPlan,
    ExtraPlans,
    as_number,
    one_or_many,
)
from bsdkit.splits import OFFICIAL_SEED, check_protocol

__all__ = [
    "MemberRecipe",
    "Provenance",
    "Recipe",
    "TuneRecipe",
    "load_recipe",
    "recipe_from",
]


OneOrMany = Annotated[list[str], BeforeValidator(one_or_many)]
# Names become folders, so they may not lead out of one.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def _check_once(key: str, names: Sequence[str]) -> None:
    for name in names:
        if list(names).count(name) > 1:
            raise ValueError(f"{key} names {name!r} twice")


def _check_settings(head: str, settings: Mapping[str, Any], fields: set[str]) -> None:
    """Refuses settings that a head does not have, or of another type than its default."""
    known = head_parameters(head)
    for key, value in settings.items():
        if key not in known:
            raise ValueError(f"head {head!r} takes no {key!r}: {nearest(key, {*known, *fields})}")
        default = known[key]
        is_number = isinstance(default, int | float) and not isinstance(default, bool)
        if is_number and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{key} is {value!r}, expected a number such as {default}")
        if isinstance(default, bool) != isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}, expected one such as {default!r}")
        if isinstance(default, int) and not isinstance(value, int):
            raise ValueError(f"{key} is {value!r}, expected a whole number such as {default}")


class MemberRecipe(BaseModel):
    """One member: a head, its features, and any parameter of the head beside them.

    Or ``imported``, and nothing else: a feature of the store that holds the out-of-fold
    probabilities of models trained elsewhere.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    head: str
    features: OneOrMany = Field(min_length=1)
    imported: str | None = None
    seeds: list[int] | None = Field(None, min_length=1)
    validation: float | None = Field(None, ge=0, lt=1)
    confidence: Literal["none", "linear", "shifted", "binary"] = "none"
    min_confidence: float = Field(0.0, ge=0, le=5)
    distill: Distillation | None = None
    extra: ExtraPlans = ()
    probabilities: OneOrMany = []
    logit_adjustment: float = Field(0.0, ge=-4, le=4)

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if isinstance(data.get("imported"), str):
            data = {"head": IMPORTED, "features": [data["imported"]], **data}
        return {k: as_number(v) for k, v in data.items()}

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters of the head."""
        return dict(self.model_extra or {})

    @property
    def teachers(self) -> list[str]:
        """Members that must be trained before it."""
        return [*(t for _, plan in self.taught for t in plan.teachers), *self.probabilities]

    @property
    def taught(self) -> list[tuple[str, Distillation | ExtraPlan]]:
        """Plans that may have teachers, each with the key that it stands under."""
        own = [("distill", self.distill)] if self.distill else []
        return [*own, *(("extra", plan) for plan in self.extra)]

    @field_serializer("extra", mode="wrap")
    def _as_written(self, value: Any, written: SerializerFunctionWrapHandler) -> Any:
        """One store as a mapping alone, as recipes with one have always been written."""
        said = written(value)
        return said if len(said) > 1 else said[0] if said else None

    @model_validator(mode="after")
    def _imported_alone(self) -> MemberRecipe:
        if self.imported is not None or self.head == IMPORTED:
            plain = MemberRecipe.model_construct(
                head=IMPORTED, features=[self.imported], imported=self.imported
            )
            if self.imported is None or self != plain:
                raise ValueError(
                    "an imported member is {imported: FEATURE} and nothing else: its models were "
                    "trained elsewhere"
                )
        return self

    def check_head(self) -> None:
        """Refuses what its head does not take; imports that head alone.

        Raises:
            ValueError: a parameter that is unknown or of another type than its default.
            HeadError: an unknown head, or a parameter out of range.
        """
        _check_settings(self.head, self.settings, set(type(self).model_fields))
        stages = [dict(plan.pretrain) for plan in self.extra if plan.pretrain]
        for pretraining in stages:
            from bsdkit.heads.training.options import TrainingOptions

            known = {option.name for option in dataclasses.fields(TrainingOptions)}
            for key in pretraining:
                if key not in known:
                    raise ValueError(f"extra.pretrain takes no {key!r}: {nearest(key, known)}")
            _check_settings(self.head, pretraining, set())
        # widths are not known before a store is opened; everything else can be refused now
        widths = (1,) * (len(self.features) + len(self.probabilities))
        for stage in ({}, *stages):
            make_head(self.head, {**self.settings, **stage}, blocks=widths).check()


class TuneRecipe(BaseModel):
    """What `bsdkit tune` searches.

    Attributes:
        member: whose settings; None for the one that the keys name.
        trials: settings tried in each study.
        search: by key, ``{low: .., high: .., log: ..}`` or a list of choices.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    member: Name | None = None
    trials: int = Field(default=100, ge=1)
    search: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("search"), dict):
            return data
        read = {
            key: {k: as_number(v) for k, v in space.items()}
            if isinstance(space, dict)
            else [as_number(v) for v in space]
            if isinstance(space, list)
            else space
            for key, space in data["search"].items()
        }
        return {**data, "search": read}

    @field_validator("search")
    @classmethod
    def _ranges_or_choices(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, space in value.items():
            if isinstance(space, list):
                continue
            if not isinstance(space, dict) or not {"low", "high"} <= set(space):
                raise ValueError(f"{key} is {space!r}, expected {{low: .., high: ..}} or a list")
            for part in set(space) - {"low", "high", "log"}:
                choices = nearest(part, ("low", "high", "log"))
                raise ValueError(f"unknown key {part!r} of {key}: {choices}")
            for part, kind in (("low", "a number"), ("high", "a number"), ("log", "true or false")):
                found = space.get(part, False)
                if isinstance(found, bool) != (part == "log") or not isinstance(found, int | float):
                    raise ValueError(f"{key}.{part} is {found!r}, expected {kind}")
        return value


class Provenance(BaseModel):
    """How a part of a recipe stands to the same part of a published system.

    Attributes:
        state: ``exact``: as the report says; ``counterpart``: something else in its place;
            ``absent``: the system has it, the recipe does not.
        section: where the report says so, or where it was looked in and is silent.
        note: what the part is, and what is different or unstated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: Literal["exact", "counterpart", "absent"]
    section: str = Field(min_length=1)
    note: str = Field(min_length=1)


class Recipe(BaseModel):
    """A whole recipe.

    Attributes:
        name: the run's folder below ``runs/``.
        description: for people.
        provenance: for a recipe of a published system, how it stands to the original, by part;
            for people too, it changes no number.
        store: folder of the store.
        split: one protocol or several, see `bsdkit.splits.make_split`; the first one is the
            headline. ``file`` needs `split_file`.
        folds: how many, for all but ``official`` and ``file``.
        split_seed: of the folds.
        split_file: a CSV of ids and folds.
        test: a second labelled store that the finished run is scored on; nothing is selected or
            learned on it.
        seeds: models a fold.
        validation: share of the training rows that chooses the best epoch.
        members: by name.
        calibrate: how each member is calibrated before.
        ensemble: how they are averaged.
        rerank: how a booster overrides the ensemble; None for not at all.
        adjust: how far probabilities are shifted to the target's class frequencies.
        target: class frequencies of the clips to be predicted: ``balanced``, or shares by class.
            Whatever is tuned is tuned for them, and a score for them stands beside the others;
            None for those of the store.
        decode: how a class is chosen.
        expect: fields of a feature's spec that must hold, by feature.
        missing: ``refuse`` a store that lacks rows of a feature, or ``skip`` those clips in
            the members that need it.
        tune: what `bsdkit tune` searches.
        mapped: names that others stand for here, see `bsdkit.recipe.map`; written by `--map`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    description: str = ""
    provenance: dict[str, Provenance] = {}
    store: str
    split: OneOrMany = Field(default=["official"], min_length=1)
    folds: int = Field(5, ge=2)
    split_seed: int = OFFICIAL_SEED
    split_file: str | None = None
    test: str | None = None
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    validation: float = Field(0.2, ge=0, lt=1)
    members: dict[Name, MemberRecipe] = Field(min_length=1)
    calibrate: CalibrationMethod = "none"
    ensemble: EnsembleOptions = Field(default_factory=EnsembleOptions)
    rerank: RerankOptions | None = None
    adjust: AdjustOptions | None = None
    target: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0)]] | None = None
    decode: Decoding = "argmax"
    expect: dict[str, dict[str, Any]] = {}
    missing: Literal["refuse", "skip"] = "refuse"
    tune: TuneRecipe | None = None
    mapped: dict[str, str] = {}

    @field_validator("split")
    @classmethod
    def _known_splits(cls, value: list[str]) -> list[str]:
        for protocol in value:
            check_protocol(protocol)
        if len(set(value)) != len(value):
            raise ValueError("a split stands twice")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for member in self.ensemble.members or []:
            if member not in self.members:
                raise ValueError(
                    f"ensemble.members names {member!r}: {nearest(member, self.members)}"
                )
        for name, member_recipe in self.members.items():
            if name in member_recipe.teachers:
                raise ValueError(f"members.{name} is named as its own teacher or input")
            for field in ("features", "probabilities"):
                _check_once(f"members.{name}.{field}", getattr(member_recipe, field))
            for block, taught in member_recipe.taught:
                _check_once(f"members.{name}.{block}.teachers", taught.teachers)
            for teacher in member_recipe.teachers:
                others = [other for other in self.members if other != name]
                if teacher not in others:
                    raise ValueError(
                        f"members.{name} names the teacher {teacher!r}: {nearest(teacher, others)}"
                    )
                if self.members[teacher].imported:
                    raise ValueError(
                        f"members.{name} has the teacher {teacher!r}, which is imported; teaching "
                        "needs models trained without two folds, and those are elsewhere"
                    )
            for teacher in (t for plan in member_recipe.extra for t in plan.teachers):
                if self.members[teacher].probabilities:
                    raise ValueError(
                        f"members.{name} has the teacher {teacher!r}, whose inputs include "
                        "probabilities; such a member cannot judge clips of another store"
                    )
            share = (
                self.validation if member_recipe.validation is None else member_recipe.validation
            )
            settings = member_recipe.settings
            needs = [
                key
                for key, is_on in (
                    ("patience", bool(settings.get("patience"))),
                    ("schedule: plateau", settings.get("schedule") == "plateau"),
                )
                if is_on
            ]
            if needs and not share:
                raise ValueError(
                    f"members.{name} has {needs[0]}, which needs validation clips; write "
                    "validation: 0.2"
                )
        if self.tune and self.tune.member and self.tune.member not in self.members:
            choices = nearest(self.tune.member, self.members)
            raise ValueError(f"tune.member names {self.tune.member!r}: {choices}")
        if "file" in self.split and not self.split_file:
            raise ValueError("split: file needs split_file: a CSV with the columns sound_id,fold")
        seeds = [self.seeds, *(m.seeds for m in self.members.values() if m.seeds)]
        if any(len(set(s)) != len(s) for s in seeds):
            raise ValueError("a seed stands twice")
        if any(seed < 0 for s in seeds for seed in s):
            raise ValueError("a seed is negative, expected 0 or more")
        return self

    @model_validator(mode="after")
    def _heads_take_it(self) -> Recipe:
        """Heads come last: what can be refused without them is refused before they are imported."""
        for name, member in self.members.items():
            if member.head == IMPORTED:
                continue
            try:
                member.check_head()
            except ValueError as error:
                raise ValueError(f"members.{name}: {error}") from None
            for block, _ in member.taught:
                if not get_head_class(member.head).is_torch:
                    raise ValueError(
                        f"members.{name} has {block}, which the head {member.head!r} cannot "
                        "learn from; those with a parameter epochs can (bsdkit heads)"
                    )
        return self

    @property
    def ensemble_members(self) -> list[str]:
        """Names of the members that are averaged."""
        return list(self.ensemble.members or self.members)

    @property
    def features(self) -> list[str]:
        """All features that some member needs, in the order of their first use."""
        return list(dict.fromkeys(f for m in self.members.values() for f in m.features))

    @property
    def similarity(self) -> str | None:
        """The feature that tells the reranker how near a clip's metadata are to each class."""
        return self.rerank.similarity if self.rerank else None

    def to_yaml(self) -> str:
        """The recipe with every default written out."""
        said = self.model_dump(mode="json")
        said = {
            k: v for k, v in said.items() if v is not None or k not in ("rerank", "adjust", "test")
        }
        return str(yaml.safe_dump(said, sort_keys=False, width=100))


_PARTS = {
    "ensemble": EnsembleOptions,
    "rerank": RerankOptions,
    "adjust": AdjustOptions,
    "extra": ExtraPlan,
    "distill": Distillation,
    "provenance": Provenance,
    "tune": TuneRecipe,
}


def load_recipe(
    path: Path | str, names: NameMap | None = None, splits: Sequence[str] = ()
) -> Recipe:
    """The recipe in a YAML file; its name defaults to the file's.

    ``include: OTHER.yaml`` (or a list) takes what other files say, from this file's folder: a
    key that both have is this file's, and mappings are joined key by key.

    Args:
        path: the file.
        names: what stands for the features and stores that it names, see `apply_map`.
        splits: the splits that are wanted; empty for those that it names.

    Raises:
        RecipeError: it cannot be read or says something that no recipe may say; the message
            names the place, and for an unknown key the nearest valid one.
    """
    path = Path(path)
    data = read_including(path)
    for key in ("rerank", "adjust"):
        if key in data and data[key] is None:
            raise RecipeError(
                f"{path}: {key} has nothing after it; write {key}: {{}} for its defaults, or take "
                "the line out"
            )
    data = {"name": path.stem, **data}
    if names is not None:
        data = apply_map(data, names)
    if splits:
        data["split"] = list(splits)
    return recipe_from(data, str(path))


def recipe_from(data: dict[str, Any], origin: str) -> Recipe:
    """The recipe that a mapping says.

    Args:
        data: as a YAML file holds it.
        origin: what an error names as its place.

    Raises:
        RecipeError: see `load_recipe`.
    """
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {first_problem(error, data, _PARTS, Recipe)}") from None
    except HeadError as error:
        raise RecipeError(f"{origin}: {error}") from None
