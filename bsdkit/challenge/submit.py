"""From runs to a submission: predictions for the evaluation clips, and what the systems are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from bsdkit.challenge import (
    Affiliation,
    Author,
    ExternalDataset,
    Findings,
    Member,
    Resource,
    System,
    backbone_uses,
    check_submission,
    read_ids,
    system_files,
    write_metadata,
    write_output,
)
from bsdkit.challenge.metadata import DEVELOPMENT
from bsdkit.challenge.submission import MOST_SYSTEMS
from bsdkit.combine.calibrate import CALIBRATIONS
from bsdkit.combine.decode import DECODERS
from bsdkit.combine.ensemble import METHODS
from bsdkit.combine.rerank import Reranker
from bsdkit.errors import DatasetError, RecipeError, nearest
from bsdkit.heads.registry import get_head_class, head_parameters
from bsdkit.heads.training.options import TrainingOptions
from bsdkit.leakage import said_of
from bsdkit.runs.folder import Run
from bsdkit.runs.predict import needed_features, predict_run, with_inputs
from bsdkit.store.kinds import kind_of
from bsdkit.store.store import Store
from bsdkit.taxonomy import BST

__all__ = ["About", "Submission", "read_about", "submit"]


BSD10K_CLIPS = 10_956
"""Clips of BSD10k-v1.2 after the task's filter."""


@dataclass(frozen=True)
class About:
    """What only people know of a submission.

    Attributes:
        authors: in order; the first is the corresponding author unless another says so.
        source_code: an address, or empty.
    """

    authors: tuple[Author, ...] = (Author(corresponding=True),)
    source_code: str = ""


@dataclass(frozen=True)
class Submission:
    """What `submit` wrote.

    Attributes:
        folder: ``task1`` of the package.
        findings: of its validator.
        fallback: by label, ids of clips that no member could see.
        partial: by label, ids of clips that some member could not see.
        trained_on: by label, how many of the clips the run was trained on.
        developed_on: by label, a warning where the development scores are not BSD10k's.
    """

    folder: Path
    findings: Findings
    fallback: Mapping[str, tuple[str, ...]]
    partial: Mapping[str, tuple[str, ...]]
    trained_on: Mapping[str, int]
    developed_on: Mapping[str, str]


def read_about(path: Path) -> About:
    """The authors in a YAML file: ``authors: [{lastname, firstname, email, affiliation: {..}}]``.

    Raises:
        DatasetError: the file cannot be read or says something unknown.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "not YAML"
        raise DatasetError(f"cannot read {path}: {reason}") from None
    if not isinstance(data, dict):
        raise DatasetError(f"{path} must hold authors: and may hold source_code:")
    _known(path, "", data, ("authors", "source_code"))
    people = data.get("authors") or []
    if not isinstance(people, list) or not all(isinstance(p, dict) for p in people) or not people:
        raise DatasetError(f"{path}: authors must be a list of lastname, firstname, email, ..")
    authors = []
    for person in people:
        fields = ("lastname", "firstname", "email", "affiliation", "corresponding")
        _known(path, "authors.", person, fields)
        place = person.get("affiliation") or {}
        places = ("institute", "abbreviation", "location", "department")
        if not isinstance(place, dict):
            raise DatasetError(f"{path}: affiliation is {place!r}, expected {', '.join(places)}")
        _known(path, "affiliation.", place, places)
        is_corresponding = bool(person.get("corresponding", False))
        rest = _texts(path, {k: person[k] for k in fields[:3] if k in person})
        affiliation = Affiliation(**_texts(path, place))
        authors.append(Author(**rest, affiliation=affiliation, corresponding=is_corresponding))
    if not any(author.corresponding for author in authors):
        first = authors[0]
        authors[0] = Author(first.lastname, first.firstname, first.email, first.affiliation, True)
    return About(tuple(authors), str(data.get("source_code") or ""))


def _texts(path: Path, data: Mapping[str, Any]) -> dict[str, str]:
    """What is said, without what is left empty."""
    for key, value in data.items():
        if not isinstance(value, str | int | None):
            raise DatasetError(f"{path}: {key} is {value!r}, expected a text")
    return {key: str(value) for key, value in data.items() if value not in (None, "")}


def _known(path: Path, where: str, data: Mapping[str, Any], fields: Sequence[str]) -> None:
    for key in data:
        if key not in fields:
            raise DatasetError(f"{path}: unknown key {where}{key}: {nearest(str(key), fields)}")


def submit(
    runs: Sequence[Run],
    store: Store,
    out: Path,
    label: str,
    *,
    ids_file: Path | None = None,
    about: About | None = None,
) -> Submission:
    """Writes the outputs and meta files of up to four systems, and checks all of it.

    Args:
        runs: one a system, in the order of their numbers.
        store: the evaluation clips' features.
        out: where ``task1/<label>_<number>/`` is made.
        label: ``<LastName>_<Institute>_task1``, without the number.
        ids_file: the organisers' list of ids; by default the store's own clips are taken for
            complete.
        about: authors and such; without it the meta files say what is to be filled in.

    Raises:
        RecipeError: too many runs, or classes that are not the task's.
        DatasetError: a label that is not well formed, or a clip that the list has not.
        StoreError: see `predict_run`.
    """
    if not 1 <= len(runs) <= MOST_SYSTEMS:
        raise RecipeError(f"{len(runs)} runs given; a team may submit 1 to {MOST_SYSTEMS} systems")
    for run in runs:
        if run.clips.taxonomy != BST:
            raise RecipeError(
                f"{run.folder} predicts {run.clips.taxonomy.labels[0]}, ..., expected the classes "
                f"of the task, {BST.labels[0]}, ..."
            )
    about = about or About()
    ids = tuple(store.clips.ids) if ids_file is None else read_ids(ids_file)
    folder = out if out.name == "task1" else out / "task1"
    wanted = set(ids)
    names = [f"{label}_{number}" for number in range(1, len(runs) + 1)]
    files = {name: system_files(folder, name) for name in names}
    predictions = {}
    for name, run in zip(names, runs, strict=True):  # all of it, before anything is written
        prediction = predictions[name] = predict_run(run, store)
        known = set(prediction.ids.astype(str))
        missing = [clip for clip in ids if clip not in known]
        extra = sorted(known - wanted)
        if missing or extra:
            raise DatasetError(
                f"{ids_file} has {len(ids)} ids; {store.path} lacks {len(missing)} of them"
                + (f" ({', '.join(missing[:3])})" if missing else "")
                + (
                    f" and has {len(extra)} others ({', '.join(sorted(extra)[:3])})"
                    if extra
                    else ""
                )
                + "; embed the whole evaluation set with bsdkit extract"
            )
    developed_on = {}
    for name, run in zip(names, runs, strict=True):
        prediction = predictions[name]
        position = {str(clip): i for i, clip in enumerate(prediction.ids)}
        order = [position[clip] for clip in ids]
        write_output(
            files[name].output,
            ids,
            [prediction.labels[i] for i in order],
            [float(prediction.scores[i]) for i in order],
        )
        write_metadata(files[name].meta, describe_system(run, name, about), BST)
        developed_on[name] = ""
        if len(run.clips) != BSD10K_CLIPS:
            developed_on[name] = (
                f"the meta file gives scores on {len(run.clips)} clips of {run.recipe.store} as "
                f"those on {DEVELOPMENT}, which has {BSD10K_CLIPS}"
            )
    findings = check_submission(folder, ids, BST)
    return Submission(
        folder,
        findings,
        {name: p.fallback for name, p in predictions.items()},
        {name: p.partial for name, p in predictions.items()},
        {name: len(p.trained_on) for name, p in predictions.items()},
        developed_on,
    )


def describe_system(run: Run, label: str, about: About) -> System:
    """What a meta file says of a run: members, backbones, sizes, development scores."""
    recipe, protocol = run.recipe, run.metrics["protocols"][run.split]
    specs = {f: run.facts["features"][f]["spec"] for f in needed_features(run)}
    theirs = {f: s for f, s in specs.items() if kind_of(s).is_trained_elsewhere}
    members = []
    for name in with_inputs(run, run.counting):
        member = recipe.members[name]
        weight = float(run.weights.get(name, 0.0))
        if member.imported:
            stated = theirs.get(member.imported, {}).get("parameters")
            count = None if stated is None else round(float(str(stated)) * 1e6)
            members.append(Member(name, "trained elsewhere", (), count, weight))
            continue
        count = sum(parameters_of(a) for model in run.models(name) for a in model.state.values())
        members.append(Member(name, member.head, tuple(member.features), count, weight))
    extra = {e.store for m in recipe.members.values() for e in m.extra}
    ensemble = protocol["ensemble"]
    return System(
        label=label,
        name=recipe.description or recipe.name,
        abbreviation=recipe.name[:10],
        authors=about.authors,
        source_code=about.source_code,
        members=tuple(members),
        backbones=backbone_uses({f: s for f, s in specs.items() if f not in theirs}),
        scores=ensemble["nested"],
        protocol=(
            f"{protocol['n_folds']} {run.split} folds, out of fold; what is learned after the "
            "members is learned on the other folds; " + "; ".join(said_of(protocol))
        ),
        ensemble=_steps(run),
        rerank_parameters=sum(
            trees_in(step.model) for step in run.chain.steps if isinstance(step, Reranker)
        ),
        decision=DECODERS[recipe.decode].label,
        fallback=run.facts["fallback"],
        hierarchy="; ".join(_hierarchy(run)),
        augmentation=", ".join(_augmentations(run)),
        datasets=tuple(ExternalDataset(Path(place).name) for place in sorted(extra)),
        resources=tuple(
            Resource(feature, str(spec.get("origin") or "models trained elsewhere"))
            for feature, spec in theirs.items()
        ),
    )


def _settings(run: Run) -> dict[str, dict[str, Any]]:
    """Parameters of the heads of all members that count, defaults included."""
    members = {name: run.recipe.members[name] for name in with_inputs(run, run.counting)}
    return {
        name: {**head_parameters(member.head), **member.settings}
        for name, member in members.items()
        if not member.imported
    }


def _augmentations(run: Run) -> list[str]:
    """Options of members that change their training inputs, where they are on."""
    settings = _settings(run)
    return [
        name.replace("_", " ")
        for name, option in _options(run, settings).items()
        if option.metadata.get("augments") and any(one.get(name) for one in settings.values())
    ]


def _options(run: Run, members: Iterable[str]) -> dict[str, dataclasses.Field[Any]]:
    """Options of the torch heads of these members by name, those of all of them first."""
    heads = [get_head_class(run.recipe.members[name].head) for name in members]
    kinds: list[Any] = [TrainingOptions, *(head for head in heads if head.is_torch)]
    return {option.name: option for kind in kinds for option in dataclasses.fields(kind)}


def _hierarchy(run: Run) -> list[str]:
    """What in a run makes something of the families."""
    recipe, settings = run.recipe, _settings(run)
    found: list[str] = []
    heads = dict.fromkeys(recipe.members[name].head for name in settings)
    found += filter(None, dict.fromkeys(get_head_class(head).uses_families for head in heads))
    extra = [plan for name in settings for plan in recipe.members[name].extra]
    stages = [*settings.values(), *(plan.pretrain for plan in extra)]
    for name, option in _options(run, settings).items():
        words = option.metadata.get("uses_families")
        if words and any(one.get(name) for one in stages):
            found.append(words)
    if any(plan.targets == "family" for plan in extra):
        found.append("extra clips that teach their family alone")
    if CALIBRATIONS[recipe.calibrate].uses_families:
        found.append(CALIBRATIONS[recipe.calibrate].uses_families)
    if recipe.rerank is not None:
        found.append("a reranker that leaves a family only by a larger margin")
    if DECODERS[recipe.decode].uses_families:
        found.append(DECODERS[recipe.decode].label)
    return found


def _steps(run: Run) -> str:
    """The steps after the members, in words."""
    recipe = run.recipe
    shifted = [
        name for name in with_inputs(run, run.counting) if recipe.members[name].logit_adjustment
    ]
    steps = [f"logit adjustment of {', '.join(shifted)}"] * bool(shifted)
    steps += [f"{recipe.calibrate} calibration of each member"] * (recipe.calibrate != "none")
    steps.append(f"mean of {recipe.ensemble.space}, {METHODS[recipe.ensemble.method].label}")
    if recipe.rerank is not None:
        steps.append(f"LightGBM reranker of the first classes ({recipe.rerank.objective})")
    if recipe.adjust is not None:
        steps.append("logit adjustment")
    return ", then ".join(steps)


def parameters_of(array: npt.NDArray[Any]) -> int:
    """Numbers in an array of a head's state; of a booster's text, what its trees hold."""
    if array.dtype == np.uint8:
        return trees_in(array.tobytes().decode(errors="replace"))
    return int(array.size)


def trees_in(model: str) -> int:
    """Split features, thresholds and leaf values of all trees in LightGBM's text."""
    return sum(3 * int(n) - 2 for n in re.findall(r"^num_leaves=(\d+)$", model, re.MULTILINE))
