"""The meta information of a submitted system: what it is, what it costs, how well it did.

The layout is that of the task's meta files: ``submission`` (label, name, authors), ``system``
(description, complexity, external datasets) and ``results`` (scores on the development sets,
overall and by class). What the layout has no field for (members, external resources, how the
scores were obtained) stands in fields of its own, which readers of the rest pass over.

``total_parameters`` counts the frozen backbones too: the trained parameters of all models, and
the parameters of every distinct backbone once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from bsdkit.backbones.cards import Resource
from bsdkit.backbones.uses import BackboneUse
from bsdkit.csvfile import write_whole
from bsdkit.taxonomy import BST, Taxonomy

__all__ = [
    "TO_FILL",
    "Affiliation",
    "Author",
    "ExternalDataset",
    "Member",
    "ParameterCount",
    "System",
    "describe",
    "macs",
    "total_parameters",
    "write_metadata",
]

TO_FILL = "TO FILL"
"""Stands where only a person knows what belongs there; `check_metadata` refuses it."""

DEVELOPMENT = "bsd10k-v1.2"
"""The development set's name in the meta file; its scores are required."""

NOISY = "bsd35k-cs"
"""The name of the larger, crowd-labelled set; its scores may be null."""

SCORES = ("hP", "hR", "hF")
"""What the meta file says of a development set and of each class."""

_DECIMALS = 6


@dataclass(frozen=True)
class Affiliation:
    """Where an author works."""

    institute: str = TO_FILL
    abbreviation: str = TO_FILL
    location: str = TO_FILL
    department: str = ""


@dataclass(frozen=True)
class Author:
    """An author of a system; `corresponding` is true of one of them."""

    lastname: str = TO_FILL
    firstname: str = TO_FILL
    email: str = TO_FILL
    affiliation: Affiliation = field(default_factory=Affiliation)
    corresponding: bool = False


@dataclass(frozen=True)
class Member:
    """A member of the ensemble.

    Attributes:
        name: as in the recipe.
        head: name of the head, or of the foreign system.
        features: what it sees.
        parameters: numbers that training found, over all folds and seeds; None for unknown,
            as of a member whose probabilities were imported.
        weight: its share in the ensemble.
    """

    name: str
    head: str
    features: tuple[str, ...] = ()
    parameters: int | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class ExternalDataset:
    """Sounds beyond the development sets that heads were trained on; minutes may be unknown."""

    name: str
    url: str = TO_FILL
    total_audio_length: float | None = None


@dataclass(frozen=True)
class System:
    """Everything that a meta file says of a system.

    Attributes:
        label: ``<LastName>_<Institute>_task1_<1 to 4>``.
        name: what result tables call it.
        abbreviation: the same in ten characters.
        authors: in order; one is the corresponding author.
        members: those that count in the ensemble.
        backbones: the frozen models behind their features, see `backbone_uses`.
        scores: on BSD10k, as `bsdkit.metrics.Scores.to_dict` gives them; a score may also be a
            mapping with its ``value``.
        protocol: how these scores were obtained: folds, nested or not, seeds.
        ensemble: how members become one prediction.
        decision: how a prediction becomes a class.
        fallback: what a clip gets that no member could see.
        augmentation: of data, in training; empty for none.
        hierarchy: what is made of the families; empty for nothing.
        source_code: its address; empty for none.
        datasets: external data sets that heads were trained on.
        resources: external resources that are no backbone, such as a language model that
            wrote priors.
        rerank_parameters: numbers that a step after the members found, such as a reranker's trees.
    """

    label: str
    name: str
    abbreviation: str
    members: tuple[Member, ...]
    backbones: tuple[BackboneUse, ...]
    scores: Mapping[str, object]
    authors: tuple[Author, ...] = (Author(corresponding=True),)
    protocol: str = ""
    ensemble: str = ""
    decision: str = ""
    fallback: str = ""
    augmentation: str = ""
    hierarchy: str = ""
    source_code: str = ""
    datasets: tuple[ExternalDataset, ...] = ()
    resources: tuple[Resource, ...] = ()
    rerank_parameters: int = 0


@dataclass(frozen=True)
class ParameterCount:
    """The parameters of a system.

    Attributes:
        total: those that are known.
        unknown: what is not counted, or not wholly; then `total` is a lower bound.
    """

    total: int
    unknown: tuple[str, ...]


def total_parameters(system: System) -> ParameterCount:
    """Trained parameters of all members, and those of each distinct backbone once."""
    backbones = _distinct(system.backbones)
    unknown = [f"member {m.name}" for m in system.members if m.parameters is None]
    unknown += [b.resource.name for b in backbones if b.parameters is None or b.is_lower_bound]
    counted = [m.parameters for m in system.members] + [b.parameters for b in backbones]
    total = system.rerank_parameters + sum(filter(None, counted))
    return ParameterCount(total, tuple(unknown))


def macs(system: System) -> int | None:
    """Multiply-accumulates of the distinct backbones for a clip of ten seconds, or None.

    They are half the floating-point operations that the backbones state, for a text those of
    77 tokens. An audio-text model states those of its audio tower; heads add about one a
    parameter. None where a backbone states nothing, or only for a part of what is run.
    """
    backbones = _distinct(system.backbones)
    known = [b.gigaflops for b in backbones if b.gigaflops is not None and not b.is_lower_bound]
    return round(sum(known) / 2 * 1e9) if known and len(known) == len(backbones) else None


def _distinct(backbones: Iterable[BackboneUse]) -> list[BackboneUse]:
    return list({(use.name, use.weights): use for use in backbones}.values())


def write_metadata(path: Path, system: System, taxonomy: Taxonomy = BST) -> None:
    """Writes a meta file; it appears whole, and the same system gives the same bytes.

    Args:
        path: ``<label>.meta.yaml``.
        system: what to write.
        taxonomy: the classes, each of which gets its scores, or null where there are none.

    Raises:
        DatasetError: the file cannot be written.
    """
    lines = [f"# {note}" for note in _notes(system)]
    for section, content in describe(system, taxonomy).items():
        body = yaml.safe_dump(
            {section: content}, sort_keys=False, allow_unicode=True, width=1 << 30
        )
        lines += ["", *body.splitlines()] if lines else body.splitlines()
    write_whole(path, ("\n".join(lines) + "\n").encode(), with_folders=True)


def describe(system: System, taxonomy: Taxonomy = BST) -> dict[str, dict[str, object]]:
    """The content of a meta file, as YAML types."""
    count = total_parameters(system)
    complexity: dict[str, object] = {"total_parameters": count.total, "MACS": macs(system)}
    if count.unknown:
        complexity["not_counted"] = list(count.unknown)
    clean = {
        "overall": _three(system.scores),
        "class_wise": _class_wise(system.scores, taxonomy),
    }
    return {
        "submission": {
            "label": system.label,
            "name": system.name,
            "abbreviation": system.abbreviation,
            "authors": [_author(author) for author in system.authors],
        },
        "system": {
            "source_code": system.source_code or None,
            "description": _description(system),
            "complexity": complexity,
            "external_datasets": [vars(dataset).copy() for dataset in system.datasets] or None,
            "external_resources": [_resource(r) for r in _resources(system)] or None,
            "members": [
                {**vars(member), "features": list(member.features)} for member in system.members
            ],
        },
        "results": {
            "protocol": system.protocol or None,
            "development_datasets": {DEVELOPMENT: clean, NOISY: {"overall": _three({})}},
        },
    }


def _author(author: Author) -> dict[str, object]:
    affiliation = {k: v for k, v in vars(author.affiliation).items() if v or k != "department"}
    entry: dict[str, object] = {
        "lastname": author.lastname,
        "firstname": author.firstname,
        "email": author.email,
    }
    if author.corresponding:
        entry["corresponding"] = True
    return {**entry, "affiliation": affiliation}


def _description(system: System) -> dict[str, object]:
    rates = {b.name: b.sample_rate for b in system.backbones if b.sample_rate}
    audio = [b for b in system.backbones if set(b.kinds) != {"text"}]
    text = [b for b in system.backbones if {"text", "prompt"} & set(b.kinds)]
    heads = ", ".join(dict.fromkeys(member.head for member in system.members))
    external = [f"frozen pre-trained {resource.name}" for resource in _resources(system)]
    external += [f"{dataset.name} in training" for dataset in system.datasets]
    return {
        "input_sampling_rate": ", ".join(f"{rate / 1000:g} kHz ({n})" for n, rate in rates.items())
        or ("unknown" if audio else "none (text only)"),
        "audio_representation": ", ".join(_model(b) for b in audio) or "none (text only)",
        "text_representation": ", ".join(
            _model(b) + (f" of {b.text_template}" if b.text_template else "") for b in text
        )
        or None,
        "data_augmentation": system.augmentation or None,
        "machine_learning_method": f"{heads} on frozen embeddings",
        "external_data_usage": ", ".join(external) or None,
        "hierarchical_setting": system.hierarchy or None,
        "ensemble_method_subsystem_count": len(system.members),
        "ensemble_method": system.ensemble or None,
        "decision_making": system.decision or None,
        "fallback": system.fallback or None,
    }


def _model(use: BackboneUse) -> str:
    return f"{use.name} ({use.weights})" if use.weights else use.name


def _resources(system: System) -> list[Resource]:
    used = [use.resource for use in _distinct(system.backbones)]
    return list(dict.fromkeys([*used, *system.resources]))


def _resource(resource: Resource) -> dict[str, object]:
    def stated(value: bool | None) -> bool | str:
        return "unknown" if value is None else value

    return {
        "name": resource.name,
        "description": resource.what or None,
        "training_data": resource.training_data or "unknown",
        "released": resource.released or "unknown",
        "predates_cut_off": stated(resource.predates_cut_off),
        "has_freesound": stated(resource.has_freesound),
        "url": resource.url or None,
    }


def _number(value: object) -> float | None:
    """A score, given as such or as a mapping with its ``value``, as it is written."""
    if isinstance(value, Mapping):
        value = value.get("value")
    return round(float(value), _DECIMALS) if isinstance(value, int | float) else None


def _three(scores: Mapping[str, object]) -> dict[str, float | None]:
    return {name: _number(scores.get(name)) for name in SCORES}


def _class_wise(
    scores: Mapping[str, object], taxonomy: Taxonomy
) -> dict[str, dict[str, float | None]]:
    given = scores.get("per_class")
    classes: Mapping[str, object] = given if isinstance(given, Mapping) else {}
    found = {}
    for label in taxonomy.labels:
        one = classes.get(label)
        found[label] = _three(one if isinstance(one, Mapping) else {})
    return found


def _notes(system: System) -> list[str]:
    """What a reader of the numbers must know, one comment line each."""
    notes = []
    unknown = total_parameters(system).unknown
    if unknown:
        notes.append(f"total_parameters is a lower bound; not counted: {', '.join(unknown)}")
    if macs(system) is not None:
        notes.append(
            "MACS: frozen encoders on a clip of 10 s; text towers of audio-text models and heads "
            "are not counted"
        )
    never = system.scores.get("never_predicted")
    strict = _number(system.scores.get("hF_strict"))
    if isinstance(never, list | tuple) and never:
        notes.append(
            f"never predicted, so not in the mean of hF: {', '.join(map(str, never))}"
            + (f"; with them as 0 it is {strict}" if strict is not None else "")
        )
    return notes
