"""Whether a meta file has what the task asks for, with the line of whatever is wrong.

Required is what the meta files of the task's entries have in common; fields beyond those are
allowed. A field that may be null must still be there, so that nothing is left out by oversight.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from bsdkit.backbones.cards import is_known_to_be_allowed
from bsdkit.challenge.findings import Findings
from bsdkit.challenge.metadata import DEVELOPMENT, SCORES, TO_FILL
from bsdkit.errors import nearest
from bsdkit.taxonomy import Taxonomy

__all__ = ["check_metadata"]

_ABBREVIATION_CHARACTERS = 10

Place = tuple[str | int, ...]
"""Where something stands: keys of mappings and positions in lists, from the top."""


class _Meta:
    """A parsed meta file, its lines by place, and where findings go."""

    def __init__(self, path: Path, found: Findings) -> None:
        self.path, self.found = path, found
        self.lines: dict[Place, int] = {}
        self.data: object = None

    def line(self, place: Place) -> int:
        """The line of a place, or of the nearest one around it that is there."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place, 1)

    def problem(self, place: Place, text: str) -> None:
        self.found.problem(self.path, self.line(place), text)

    def warning(self, place: Place, text: str) -> None:
        self.found.warning(self.path, self.line(place), text)

    def has(self, place: Place) -> bool:
        return place in self.lines

    def at(self, place: Place) -> object:
        """What stands at a place; None where nothing does."""
        value = self.data
        for key in place:
            if isinstance(value, Mapping) and key in value:
                value = value[key]
            elif isinstance(value, list) and isinstance(key, int) and key < len(value):
                value = value[key]
            else:
                return None
        return value

    def required(self, place: Place) -> object:
        """What stands at a place where something must; None once that is said."""
        value = self.at(place)
        if not self.has(place):
            self.problem(place, f"no field {_name(place)}")
        elif value is None or value == "":
            self.problem(place, f"{_name(place)} is empty")
        return None if value == "" else value

    def required_text(self, place: Place) -> str:
        """The text at a place where some must be; empty once that is said, or to be filled."""
        value = self.required(place)
        if value is not None and not isinstance(value, str):
            self.problem(place, f"{_name(place)} is {value!r}, expected text; put it in quotes")
        return value if isinstance(value, str) and TO_FILL not in value else ""


def _name(place: Place) -> str:
    """A place as it is written: ``submission.authors[0].email``."""
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in place]
    return "".join(parts).removeprefix(".")


def check_metadata(path: Path, label: str, taxonomy: Taxonomy) -> Findings:
    """Everything that is wrong with a meta file, one line each.

    Args:
        path: the meta file.
        label: the label that its name and folder carry.
        taxonomy: the classes, each of which needs its scores.
    """
    found = Findings()
    meta = _read_meta(path, found)
    if meta is None:
        return found
    for place, value in _leaves(meta.data):
        if isinstance(value, str) and TO_FILL in value:
            meta.problem(place, f"{_name(place)} is {value!r}; write what belongs there")
    _check_submission_part(meta, label)
    _check_system_part(meta)
    _check_results_part(meta, taxonomy)
    return found


def _read_meta(path: Path, found: Findings) -> _Meta | None:
    meta = _Meta(path, found)
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if root is not None:
            _note_lines(root, (), meta)
        meta.data = yaml.safe_load(text)
    except OSError as error:
        found.problem(path, 0, f"cannot be read: {error.strerror}")
        return None
    except UnicodeDecodeError as error:
        found.problem(path, 0, f"not UTF-8 text: byte {error.start} cannot be read")
        return None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).partition("\n")[0]
        found.problem(path, mark.line + 1 if mark else 0, f"not YAML: {reason}")
        return None
    if not isinstance(meta.data, dict):
        found.problem(path, 1, "not a meta file; expected submission, system and results")
        return None
    return meta


def _note_lines(node: yaml.Node, place: Place, meta: _Meta) -> None:
    """Notes the line of every place; a key that stands twice is a problem."""
    meta.lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _note_lines(item, (*place, i), meta)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*place, str(key.value))
            if inner in meta.lines:
                meta.found.problem(
                    meta.path, key.start_mark.line + 1, f"{_name(inner)} stands twice"
                )
            meta.lines[inner] = key.start_mark.line + 1
            _note_lines(value, inner, meta)


def _leaves(value: object, place: Place = ()) -> Iterator[tuple[Place, object]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, (*place, str(key)))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _leaves(inner, (*place, i))
    else:
        yield place, value


def _check_submission_part(meta: _Meta, label: str) -> None:
    stated = meta.required_text(("submission", "label"))
    if stated and stated != label:
        meta.problem(
            ("submission", "label"),
            f"submission.label is {stated!r}, the file is named after {label!r}",
        )
    meta.required_text(("submission", "name"))
    short = meta.required_text(("submission", "abbreviation"))
    if len(short) > _ABBREVIATION_CHARACTERS:
        meta.problem(
            ("submission", "abbreviation"),
            f"submission.abbreviation has {len(short)} characters, at most "
            f"{_ABBREVIATION_CHARACTERS} are allowed",
        )
    place = ("submission", "authors")
    authors = meta.required(place)
    if authors is None:
        return
    if not isinstance(authors, list) or not authors:
        meta.problem(place, "submission.authors is no list; expected one entry an author")
        return
    for i in range(len(authors)):
        _check_author(meta, (*place, i))
    corresponding = [i for i in range(len(authors)) if meta.at((*place, i, "corresponding"))]
    if len(corresponding) != 1:
        meta.problem(
            place, f"{len(corresponding)} corresponding authors; write corresponding: true for one"
        )
        return
    lastname = meta.at((*place, corresponding[0], "lastname"))
    if isinstance(lastname, str) and TO_FILL not in lastname:
        first = label.partition("_")[0]
        if _plain(lastname) != _plain(first):
            meta.warning(
                (*place, corresponding[0], "lastname"),
                f"the corresponding author is {lastname!r}, the label begins with {first!r}",
            )


def _plain(name: str) -> str:
    """The ASCII letters of a name in lower case, accents dropped."""
    ascii_only = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z]", "", ascii_only)


def _check_author(meta: _Meta, place: Place) -> None:
    for name in ("lastname", "firstname"):
        meta.required_text((*place, name))
    email = meta.required_text((*place, "email"))
    if email and not re.fullmatch(r"[^@\s]+@[^@\s]+", email):
        meta.problem((*place, "email"), f"{_name((*place, 'email'))} is {email!r}, no address")
    affiliation = meta.required((*place, "affiliation"))
    if affiliation is None:
        return
    # some authors have several
    several = range(len(affiliation)) if isinstance(affiliation, list) else []
    for inner in [(*place, "affiliation", i) for i in several] or [(*place, "affiliation")]:
        for name in ("abbreviation", "institute", "location"):
            meta.required_text((*inner, name))


def _check_system_part(meta: _Meta) -> None:
    description = ("system", "description")
    for name in ("audio_representation", "machine_learning_method"):
        meta.required_text((*description, name))
    meta.required((*description, "input_sampling_rate"))
    may_be_null = (
        ("system", "source_code"),
        (*description, "text_representation"),
        (*description, "data_augmentation"),
        (*description, "external_data_usage"),
        (*description, "hierarchical_setting"),
    )
    for place in may_be_null:
        if not meta.has(place):
            meta.problem(place, f"no field {_name(place)}; write null for none")
    place = ("system", "complexity", "total_parameters")
    total = meta.required(place)
    if total is not None and (isinstance(total, bool) or not isinstance(total, int) or total < 1):
        meta.problem(place, f"{_name(place)} is {total!r}, expected a whole number above 0")
    missing = meta.at(("system", "complexity", "not_counted"))
    if isinstance(missing, list) and missing:
        meta.warning(
            place,
            f"{_name(place)} is a lower bound; state the parameters of "
            f"{', '.join(map(str, missing))}",
        )
    resources = meta.at(("system", "external_resources"))
    for i in range(len(resources) if isinstance(resources, list) else 0):
        _check_resource(meta, ("system", "external_resources", i))


def _check_resource(meta: _Meta, place: Place) -> None:
    known = (meta.at((*place, fact)) for fact in ("predates_cut_off", "has_freesound"))
    if is_known_to_be_allowed(*known):
        return
    meta.warning(
        place,
        f"{meta.at((*place, 'name'))} is not known to be without Freesound sounds from "
        "2025-04-01 on; find out, and state training_data, released and predates_cut_off or "
        "has_freesound",
    )


def _check_results_part(meta: _Meta, taxonomy: Taxonomy) -> None:
    datasets = ("results", "development_datasets")
    place = (*datasets, DEVELOPMENT)
    if not meta.has(place):
        meta.problem(place, f"no field {_name(place)}; its scores are required")
        return
    for name in SCORES:
        meta.required((*place, "overall", name))
    given = meta.at((*place, "class_wise"))
    if not isinstance(given, Mapping):
        meta.problem(place, f"no scores by class in {_name((*place, 'class_wise'))}")
        given = {}
    else:
        for label in taxonomy.labels:
            for name in SCORES:
                inner = (*place, "class_wise", label, name)
                if not meta.has(inner):
                    meta.problem(inner, f"no field {_name(inner)}")
                elif meta.at(inner) is None:
                    meta.warning(inner, f"{_name(inner)} is empty")
    for label in given:
        if label not in taxonomy.labels:
            meta.problem(
                (*place, "class_wise", str(label)),
                f"class_wise has the class {label!r}; {nearest(str(label), taxonomy.labels)}",
            )
    for leaf, value in _leaves(meta.at(datasets), datasets):
        if leaf[-1] not in SCORES or value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            meta.problem(leaf, f"{_name(leaf)} is {value!r}, expected a number from 0 to 1")
        elif not 0 <= value <= 1:
            hint = "; divide percentages by 100" if 1 < value <= 100 else ""
            meta.problem(leaf, f"{_name(leaf)} is {value}, expected 0 to 1{hint}")
