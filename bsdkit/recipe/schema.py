"""What a recipe may say. A recipe is data: an unknown key is refused with the nearest valid one."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bsdkit.combine.calibrate import CalibrationMethod
from bsdkit.combine.decode import Decoding
from bsdkit.combine.ensemble import Method, Space
from bsdkit.errors import HeadError, RecipeError, nearest
from bsdkit.heads.registry import get_head_class, head_parameters, make_head
from bsdkit.heads.torch_head import TorchHead
from bsdkit.heads.training.options import TrainingOptions
from bsdkit.members.plan import IMPORTED
from bsdkit.recipe.map import NameMap, apply_map
from bsdkit.splits import OFFICIAL_SEED, PROTOCOLS

__all__ = [
    "AdjustRecipe",
    "EnsembleRecipe",
    "MemberRecipe",
    "Recipe",
    "RerankRecipe",
    "TuneRecipe",
    "load_recipe",
    "recipe_from",
]


# Names become folders, so they may not lead out of one.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


def as_number(value: Any) -> Any:
    """A number that YAML 1.1 reads as a word, such as 1e-3; anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+", value):
        return float(value)
    return value


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


class _Taught(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("teachers", mode="before", check_fields=False)
    @classmethod
    def _one_teacher(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value


class DistillRecipe(_Taught):
    """Teachers of the development clips; see `bsdkit.members.plan.Distillation`."""

    teachers: list[str] = Field(min_length=1)
    soft: float = Field(0.5, ge=0)
    hard: float = Field(0.0, ge=0)
    temperature: float = Field(1.0, gt=0)


class ExtraRecipe(_Taught):
    """Clips of another store to train on; see `bsdkit.members.plan.ExtraPlan`."""

    store: str
    labels: Literal["given", "agreement", "soft"] = "given"
    teachers: list[str] = []
    weight: float = Field(1.0, gt=0)
    at_least: int = Field(2, ge=1)
    temperature: float = Field(1.0, gt=0)
    share: float | tuple[float, float] = 1.0
    subset: Literal["all", "random", "confident"] = "all"
    fraction: float = Field(1.0, gt=0, le=1)
    stage: Literal["together", "before"] = "together"
    constant_steps: bool = True
    pretrain: dict[str, Any] = {}

    @field_validator("pretrain", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        return {k: as_number(v) for k, v in value.items()} if isinstance(value, dict) else value

    @property
    def shares(self) -> tuple[float, float]:
        """Between which the teachers' share is drawn."""
        return (self.share, self.share) if isinstance(self.share, float) else self.share

    @model_validator(mode="after")
    def _consistent(self) -> ExtraRecipe:
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
        if self.pretrain and self.stage != "before":
            raise ValueError("pretrain is for stage: before")
        return self


class MemberRecipe(BaseModel):
    """One member: a head, its features, and any parameter of the head beside them.

    Or ``imported``, and nothing else: a feature of the store that holds the out-of-fold
    probabilities of models trained elsewhere.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    head: str
    features: list[str] = Field(min_length=1)
    imported: str | None = None
    seeds: list[int] | None = Field(None, min_length=1)
    validation: float | None = Field(None, ge=0, lt=1)
    confidence: Literal["none", "linear", "shifted", "binary"] = "none"
    min_confidence: float = Field(0.0, ge=0, le=5)
    distill: DistillRecipe | None = None
    extra: ExtraRecipe | None = None
    probabilities: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if isinstance(data.get("imported"), str):
            data = {"head": IMPORTED, "features": [data["imported"]], **data}
        return {k: as_number(v) for k, v in data.items()}

    @field_validator("features", "probabilities", mode="before")
    @classmethod
    def _one_feature(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @property
    def settings(self) -> dict[str, Any]:
        """Parameters of the head."""
        return dict(self.model_extra or {})

    @property
    def teachers(self) -> list[str]:
        """Members that must be trained before it."""
        found = [*(self.distill.teachers if self.distill else [])]
        return [*found, *(self.extra.teachers if self.extra else []), *self.probabilities]

    @model_validator(mode="after")
    def _known_parameters(self) -> MemberRecipe:
        fields = set(type(self).model_fields)
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
        _check_settings(self.head, self.settings, fields)
        if self._pretraining:
            known = {option.name for option in dataclasses.fields(TrainingOptions)}
            for key in self._pretraining:
                if key not in known:
                    raise ValueError(f"extra.pretrain takes no {key!r}: {nearest(key, known)}")
            _check_settings(self.head, self._pretraining, set())
        # widths are not known before a store is opened; everything else can be refused now
        widths = (1,) * (len(self.features) + len(self.probabilities))
        for settings in (self.settings, {**self.settings, **self._pretraining}):
            make_head(self.head, settings, blocks=widths).check()
        return self

    @property
    def _pretraining(self) -> dict[str, Any]:
        return self.extra.pretrain if self.extra else {}


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


class EnsembleRecipe(BaseModel):
    """How members are averaged; see `bsdkit.combine.ensemble.EnsembleOptions`.

    Attributes:
        members: which; None for all.
        file: JSON or YAML with weights by member, for ``frozen``, such as the ensemble.json of a
            run on other clips.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = "weights"
    space: Space = "probabilities"
    trials: int = Field(default=100, ge=1)
    rounds: int = Field(default=50, ge=1)
    largest: int = Field(default=3, ge=1)
    caps: dict[str, Annotated[float, Field(gt=0, le=1)]] = {}
    min_weight: float = Field(default=0.0, ge=0, lt=1)
    seed: int = 0
    members: list[str] | None = Field(default=None, min_length=1)
    weights: dict[str, float] | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _frozen_weights(self) -> EnsembleRecipe:
        given = self.file is not None or self.weights is not None
        if self.method == "frozen" and (self.file is None) == (self.weights is None):
            raise ValueError(
                "method: frozen needs weights: {member: share} or file: with such lines"
            )
        if self.method != "frozen" and given:
            raise ValueError("weights and file are for method: frozen")
        if self.method == "frozen" and (self.caps or self.min_weight):
            raise ValueError("caps and min_weight change weights, those of frozen are given")
        return self


class RerankRecipe(BaseModel):
    """A reranker; see `bsdkit.combine.rerank.RerankOptions`.

    Attributes:
        tau: a number, or ``tune``.
        cross_tau: the same, across families.
        similarity: a feature with one column a class: how near a clip's metadata are to it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    objective: Literal["binary", "lambdarank"] = "binary"
    top: int = Field(3, ge=1)
    diverse: int = Field(3, ge=0)
    tau: float | Literal["tune"] = "tune"
    cross_tau: float | Literal["tune"] = "tune"
    rounds: int = Field(120, ge=1)
    leaves: int = Field(15, ge=2)
    learning_rate: float = Field(0.05, gt=0)
    min_rows: int = Field(40, ge=1)
    balance: float = Field(0.5, ge=0, le=1)
    seed: int = Field(0, ge=0)
    similarity: str | None = None

    @model_validator(mode="after")
    def _cautious(self) -> RerankRecipe:
        for name in ("tau", "cross_tau"):
            value = getattr(self, name)
            if value != "tune" and not value >= 0:
                raise ValueError(f"{name} is {value!r}, expected 0 or more, or tune")
        if (
            self.tau != "tune"
            and self.cross_tau != "tune"
            and float(self.cross_tau) < float(self.tau)
        ):
            raise ValueError(
                f"cross_tau is {self.cross_tau!r}, below tau: {self.tau!r}; leaving the family "
                "must not be easier than staying"
            )
        return self


class AdjustRecipe(BaseModel):
    """Logit adjustment; see `bsdkit.combine.adjust.Adjustment`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tau: float | Literal["tune"] = "tune"


class Recipe(BaseModel):
    """A whole recipe.

    Attributes:
        name: the run's folder below ``runs/``.
        description: for people.
        store: folder of the store.
        split: one protocol or several; the first one is the headline. ``file`` needs
            `split_file`.
        folds: how many, for ``stratified`` and ``group``.
        split_seed: of the folds.
        split_file: a CSV of ids and folds.
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
    store: str
    split: list[str] = Field(default=["official"], min_length=1)
    folds: int = Field(5, ge=2)
    split_seed: int = OFFICIAL_SEED
    split_file: str | None = None
    seeds: list[int] = Field(default=[0, 1, 2], min_length=1)
    validation: float = Field(0.2, ge=0, lt=1)
    members: dict[Name, MemberRecipe] = Field(min_length=1)
    calibrate: CalibrationMethod = "none"
    ensemble: EnsembleRecipe = Field(default_factory=EnsembleRecipe)
    rerank: RerankRecipe | None = None
    adjust: AdjustRecipe | None = None
    target: Literal["balanced"] | dict[str, Annotated[float, Field(ge=0)]] | None = None
    decode: Decoding = "argmax"
    expect: dict[str, dict[str, Any]] = {}
    missing: Literal["refuse", "skip"] = "refuse"
    tune: TuneRecipe | None = None
    mapped: dict[str, str] = {}

    @field_validator("split", mode="before")
    @classmethod
    def _one_split(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("split")
    @classmethod
    def _known_splits(cls, value: list[str]) -> list[str]:
        for protocol in value:
            if protocol not in PROTOCOLS:
                raise ValueError(f"unknown split {protocol!r}: {nearest(protocol, PROTOCOLS)}")
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
            for block in ("distill", "extra"):
                taught = getattr(member_recipe, block)
                if taught is None:
                    continue
                _check_once(f"members.{name}.{block}.teachers", taught.teachers)
                if not issubclass(get_head_class(member_recipe.head), TorchHead):
                    raise ValueError(
                        f"members.{name} has {block}, which the head {member_recipe.head!r} cannot "
                        "learn from; those with a parameter epochs can (bsdkit heads)"
                    )
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
            for teacher in member_recipe.extra.teachers if member_recipe.extra else []:
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
        said = {k: v for k, v in said.items() if v is not None or k not in ("rerank", "adjust")}
        return str(yaml.safe_dump(said, sort_keys=False, width=100))


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which a key may stand once: of two members with one name none may vanish."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


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
    data = _included(path, ())
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


def _included(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """What a file and those that it includes say; their names stay theirs."""
    if path.resolve() in above:
        raise RecipeError(f"{above[-1]} includes {path}, which includes it")
    data = _read_mapping(path)
    others = data.pop("include", [])
    merged: dict[str, Any] = {}
    for other in [others] if isinstance(others, str) else others:
        found = _included(path.parent / str(other), (*above, path.resolve()))
        merged = _joined(merged, {k: v for k, v in found.items() if k != "name"})
    return _joined(merged, data)


def _joined(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    joined = {**below, **above}
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            joined[key] = _joined(below[key], value)
    return joined


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except FileNotFoundError:
        raise RecipeError(f"no recipe {path}; see the folder recipes/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"cannot read the recipe {path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not YAML"
        raise RecipeError(f"{path}{where}: {problem}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path} must hold key: value lines, found {type(data).__name__}")
    return data


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
        raise RecipeError(f"{origin}: {_first_problem(error, data)}") from None
    except HeadError as error:
        raise RecipeError(f"{origin}: {error}") from None


def _first_problem(error: ValidationError, data: dict[str, Any]) -> str:
    """The first complaint of pydantic in one line, with the nearest key for an unknown one."""
    # an unknown key explains a missing one better than the other way round
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    place = [str(part) for part in first["loc"]]
    where = ".".join(place)
    if first["type"] == "extra_forbidden":
        models: dict[str, type[BaseModel]] = {
            "ensemble": EnsembleRecipe,
            "rerank": RerankRecipe,
            "adjust": AdjustRecipe,
            "extra": ExtraRecipe,
            "distill": DistillRecipe,
            "tune": TuneRecipe,
        }
        model = models.get(place[-2], Recipe) if len(place) > 1 else Recipe
        return f"unknown key {where!r}: {nearest(place[-1], model.model_fields)}"
    if first["type"] == "missing":
        found: Any = data
        for part in first["loc"][:-1]:
            found = found[part]
        if "import" in found:
            return f"{where!r} is missing; write imported: for import:"
        close = difflib.get_close_matches(place[-1], list(found), n=1)
        return f"{where!r} is missing" + (f"; is {close[0]!r} meant to be it?" if close else "")
    if first["type"] in ("model_type", "dict_type"):
        return f"{where} is {first['input']!r}, expected parts with names, {where}: {{...}}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}: {message}" if where else message
    return f"{where} is {first['input']!r}: {message}"
