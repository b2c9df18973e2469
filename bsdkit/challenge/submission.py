"""A whole submission: up to four systems, each with its output and its meta file.

A package holds ``task1/<label>/<label>.output.csv`` and ``<label>.meta.yaml`` for each system,
and the technical report beside the folders of the systems.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bsdkit.challenge.findings import Findings
from bsdkit.challenge.meta_check import check_metadata
from bsdkit.challenge.output import examine_output
from bsdkit.errors import DatasetError
from bsdkit.taxonomy import Taxonomy

__all__ = ["MOST_SYSTEMS", "SystemFiles", "check_submission", "system_files"]

MOST_SYSTEMS = 4
"""Systems that a team may submit."""

_LABEL = re.compile(r"([A-Za-z][A-Za-z-]*)_([A-Za-z0-9-]+)_task1_([1-9]\d*)", re.ASCII)
_FORM = "<LastName>_<Institute>_task1_<1 to 4>"
_OUTPUT, _META = ".output.csv", ".meta.yaml"


@dataclass(frozen=True)
class SystemFiles:
    """Where the two files of a system belong."""

    output: Path
    meta: Path


def system_files(folder: Path, label: str) -> SystemFiles:
    """Where a system's output and meta file belong.

    Args:
        folder: the folder ``task1`` of the package.
        label: the system's label.

    Raises:
        DatasetError: the label is not well formed.
    """
    fault = _label_fault(label)
    if fault:
        raise DatasetError(fault)
    return SystemFiles(folder / label / (label + _OUTPUT), folder / label / (label + _META))


def _label_fault(label: str) -> str:
    """What is wrong with a label; empty for nothing."""
    match = _LABEL.fullmatch(label)
    if match is None:
        return f"label {label!r} is not well formed; expected {_FORM}"
    if int(match[3]) > MOST_SYSTEMS:
        return f"label {label!r} ends in {match[3]}; expected a number from 1 to {MOST_SYSTEMS}"
    return ""


def check_submission(folder: Path, ids: Sequence[str], taxonomy: Taxonomy) -> Findings:
    """Everything that is wrong with a submission, one line each.

    Args:
        folder: the folder ``task1`` of the package, or the one that holds it.
        ids: the evaluation ids.
        taxonomy: the classes.
    """
    found = Findings()
    if folder.name != "task1" and (folder / "task1").is_dir():
        folder = folder / "task1"
    if not folder.is_dir():
        found.problem(folder, 0, "no such folder; expected one folder a system in it")
        return found
    systems = sorted(path for path in folder.iterdir() if path.is_dir())
    _check_loose_files(folder, found)
    if not systems:
        found.problem(folder, 0, f"no system; expected a folder {_FORM} with its two files")
    if len(systems) > MOST_SYSTEMS:
        found.problem(folder, 0, f"{len(systems)} systems, at most {MOST_SYSTEMS} are allowed")
    teams: dict[str, str] = {}
    predicted: dict[str, dict[str, str]] = {}
    for system in systems:
        label = system.name
        fault = _label_fault(label)
        if fault:
            found.problem(system, 0, fault)
        else:
            teams.setdefault(label.rpartition("_")[0], label)
        _check_names(system, found)
        output, meta = system / (label + _OUTPUT), system / (label + _META)
        if output.is_file():
            findings, predicted[label] = examine_output(output, ids, taxonomy)
            found.extend(findings)
        if meta.is_file():
            found.extend(check_metadata(meta, label, taxonomy))
    if len(teams) > 1:
        found.problem(
            folder, 0, f"labels of several teams: {', '.join(teams)}; expected the same before _1"
        )
    for i, (label, classes) in enumerate(predicted.items()):
        for other in list(predicted)[:i]:
            if classes and classes == predicted[other]:
                found.warning(folder, 0, f"{label} predicts the same classes as {other}")
    return found


def _check_loose_files(folder: Path, found: Findings) -> None:
    """Files beside the folders of the systems: the technical report alone belongs there."""
    loose = sorted(path for path in folder.iterdir() if path.is_file())
    for path in loose:
        if path.name.endswith((_OUTPUT, _META)):
            label = path.name.partition(".")[0]
            found.problem(path, 0, f"beside the systems; expected in the folder {label}")
        elif path.suffix != ".pdf":
            found.warning(path, 0, "not part of a submission; delete it before packing")
    if not any(path.suffix == ".pdf" for path in loose):
        found.warning(folder, 0, "no technical report (a .pdf beside the systems)")


def _check_names(system: Path, found: Findings) -> None:
    """Both files are there, under the folder's own name."""
    names = sorted(path.name for path in system.iterdir())
    in_place = set()
    for ending in (_OUTPUT, _META):
        wanted = system.name + ending
        other = next((name for name in names if name.endswith(ending)), None)
        if wanted not in names:
            found.problem(system, 0, f"no {wanted}" + (f"; rename {other}" if other else ""))
        in_place.add(wanted if wanted in names else other)
    for name in names:
        if name not in in_place:
            found.warning(system / name, 0, "not part of a submission; delete it before packing")
