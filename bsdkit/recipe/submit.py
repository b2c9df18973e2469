"""From runs to a submission: predictions for the evaluation clips, and what the systems are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from bsdkit.challenge.submission import MOST_SYSTEMS
from bsdkit.errors import DatasetError, RecipeError, nearest
from bsdkit.recipe.artifacts import Run
from bsdkit.recipe.predict import needed_features, predict_run, with_inputs
from bsdkit.report.tables import chain_title
from bsdkit.store.probabilities import IMPORTED_PROBABILITIES
from bsdkit.store.store import Store

__all__ = ["About", "Submission", "read_about", "submit"]


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
    """

    folder: Path
    findings: Findings
    fallback: Mapping[str, tuple[str, ...]]
    partial: Mapping[str, tuple[str, ...]]
    trained_on: Mapping[str, int]


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
        rest = {k: str(v) for k, v in person.items() if k in fields[:3]}
        affiliation = Affiliation(**{k: str(v) for k, v in place.items()})
        authors.append(Author(**rest, affiliation=affiliation, corresponding=is_corresponding))
    if not any(author.corresponding for author in authors):
        first = authors[0]
        authors[0] = Author(first.lastname, first.firstname, first.email, first.affiliation, True)
    return About(tuple(authors), str(data.get("source_code") or ""))


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
    about = about or About()
    ids = tuple(store.clips.ids) if ids_file is None else read_ids(ids_file)
    folder = out if out.name == "task1" else out / "task1"
    fallback, partial, trained_on = {}, {}, {}
    for number, run in enumerate(runs, 1):
        name = f"{label}_{number}"
        files = system_files(folder, name)
        files.output.parent.mkdir(parents=True, exist_ok=True)
        prediction = predict_run(run, store)
        position = {str(clip): i for i, clip in enumerate(prediction.ids)}
        missing = [clip for clip in ids if clip not in position]
        extra = [clip for clip in position if clip not in set(ids)]
        if missing or extra:
            raise DatasetError(
                f"{ids_file} has {len(ids)} ids; {store.path} lacks {len(missing)} of them"
                + (f" ({', '.join(missing[:3])})" if missing else "")
                + (f" and has {len(extra)} others ({', '.join(extra[:3])})" if extra else "")
                + "; embed the whole evaluation set with bsdkit extract"
            )
        order = [position[clip] for clip in ids]
        write_output(
            files.output,
            ids,
            [prediction.labels[i] for i in order],
            [float(prediction.scores[i]) for i in order],
        )
        write_metadata(files.meta, describe_system(run, name, about), run.clips.taxonomy)
        fallback[name], partial[name] = prediction.fallback, prediction.partial
        trained_on[name] = len(prediction.trained_on)
    findings = check_submission(folder, ids, runs[0].clips.taxonomy)
    return Submission(folder, findings, fallback, partial, trained_on)


def describe_system(run: Run, label: str, about: About) -> System:
    """What a meta file says of a run: members, backbones, sizes, development scores."""
    recipe, protocol = run.recipe, run.metrics["protocols"][run.split]
    specs = {f: run.facts["features"][f]["spec"] for f in needed_features(run)}
    theirs = {f: s for f, s in specs.items() if s.get("backbone") == IMPORTED_PROBABILITIES}
    members = []
    for name in with_inputs(run, run.counting):
        member = recipe.members[name]
        weight = float(run.weights.get(name, 0.0))
        if member.imported:
            stated = theirs[member.imported].get("parameters")
            count = None if stated is None else round(float(str(stated)) * 1e6)
            members.append(Member(name, "trained elsewhere", (), count, weight))
            continue
        count = sum(int(a.size) for model in run.models(name) for a in model.state.values())
        members.append(Member(name, member.head, tuple(member.features), count, weight))
    extra = {m.extra.store for m in recipe.members.values() if m.extra is not None}
    ensemble = protocol["ensemble"]
    uploaders = protocol["n_shared_uploaders"]
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
            "members is learned on the other folds; "
            + (
                "no uploader on two sides"
                if not uploaders
                else f"{uploaders} uploaders cross folds"
            )
        ),
        ensemble=chain_title(ensemble),
        decision=_decision(recipe.decode),
        fallback=run.facts["fallback"],
        hierarchy="class chosen by its family too" if recipe.decode != "argmax" else "",
        augmentation=", ".join(_augmentations(run)),
        datasets=tuple(ExternalDataset(Path(place).name) for place in sorted(extra)),
        resources=tuple(
            Resource(feature, str(spec.get("origin") or "models trained elsewhere"))
            for feature, spec in theirs.items()
        ),
    )


def _decision(decoding: str) -> str:
    return {
        "argmax": "the most probable class",
        "family-first": "the most probable class of the most probable family",
        "expected-hF": "the class of the highest expected credit",
    }[decoding]


def _augmentations(run: Run) -> list[str]:
    """Options of the counting members that change their training inputs."""
    names = ("mixup", "cutmix", "noise", "mask", "modality_dropout", "same_class_swap")
    return sorted(
        {
            option.replace("_", " ")
            for name in run.counting
            for option, value in run.recipe.members[name].settings.items()
            if value and option.startswith(names)
        }
    )
