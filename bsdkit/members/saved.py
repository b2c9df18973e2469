"""Members on disk: weights, out-of-fold probabilities, and reuse of those already trained."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.dataset import Clips
from bsdkit.errors import CorruptStore, StoreError
from bsdkit.heads.registry import get_head_class, key_settings
from bsdkit.members.member import MemberModel, MemberResult
from bsdkit.members.plan import MemberPlan
from bsdkit.recipe.teaching import Distillation, ExtraPlan
from bsdkit.splits import Split
from bsdkit.store.files import atomic_h5, open_h5

__all__ = [
    "copy_models",
    "load_member",
    "load_models",
    "load_pairs",
    "member_key",
    "save_member",
    "save_pairs",
]


_NEW_EXTRA = frozenset(
    {"labels_map", "targets", "hard", "hard_at_least", "subset_seed", "with_development"}
)
"""Options of extra clips that are younger than keys: at their defaults they are no part of one, so
that members that were trained before they existed are found. Those of heads: see `added`."""

TRAINING_VERSION = 1
"""Of what training gives. It rises with every change of `bsdkit.members`, of the training stack, of
`bsdkit.metrics` or `bsdkit.splits` that moves a member's probabilities; golden scores show such a
change. Moving code does not."""


def member_key(
    plan: MemberPlan,
    feature_checksums: list[str],
    clips: Clips,
    split: Split,
    device: str,
    *,
    context: Sequence[str] = (),
    folds: Sequence[int] | None = None,
) -> str:
    """A hash of everything that a member's probabilities depend on.

    Args:
        plan: the member; its name does not count.
        feature_checksums: checksums of its feature files.
        clips: the clips table, for ids, labels, and taxonomy.
        split: the folds, and the groups that inner validation keeps apart too.
        device: where it is trained.
        context: keys of its teachers and a digest of its extra clips.
        folds: the folds it is trained for; None for all.
    """
    packages = ("numpy", "torch", "scikit-learn", "lightgbm")
    versions = {name: importlib.metadata.version(name) for name in packages}
    facts = {
        "head": plan.head,
        # a default that a recipe spells out is the same setting
        "settings": key_settings(plan.head, plan.settings),
        "seeds": plan.used_seeds,
        "validation": plan.validation if plan.uses_validation else 0,
        "confidence": [plan.confidence, plan.min_confidence, clips.confidence.tolist()]
        if plan.confidence != "none" or plan.min_confidence > 0
        else None,
        # teachers are known by what they learned from (context), not by their names
        "distillation": plan.distillation and _fields(plan.distillation),
        "extra": _extra(plan.extra),
        "context": list(context),
        "folds": None if folds is None else list(folds),
        "features": feature_checksums,
        "split": split.digest(clips),
        "labels": clips.labels.tolist(),
        "taxonomy": [[c.label, c.family] for c in clips.taxonomy.classes],
        "groups": None if split.grouping is None else split.grouping.numbers.tolist(),
        "device": device.partition(":")[0],
        "code": [TRAINING_VERSION, get_head_class(plan.head).version],
        "versions": versions,
    }
    if plan.logit_adjustment:  # where there is none, a key is that of earlier versions
        facts["logit_adjustment"] = float(plan.logit_adjustment)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]


def _extra(plans: Sequence[ExtraPlan]) -> Any:
    """What plans say of extra clips; the contents of a map of labels are part of the context."""
    found = []
    for plan in plans:
        said = {**_fields(plan), "share": plan.shares, "labels_map": None}
        plain = {field.name: field.default for field in dataclasses.fields(ExtraPlan)}
        found.append({k: v for k, v in said.items() if k not in _NEW_EXTRA or v != plain[k]})
    return found if len(found) > 1 else found[0] if found else None


def _fields(plan: Distillation | ExtraPlan) -> dict[str, Any]:
    """What a plan says beside who teaches."""
    fields = dataclasses.fields(plan)
    return {field.name: getattr(plan, field.name) for field in fields} | {"teachers": None}


def save_member(folder: Path, result: MemberResult) -> None:
    """Writes a member's models and probabilities; the folder appears whole or not at all.

    A folder that is there already stays: it was written by another process with the same key.

    Raises:
        StoreError: the disk is full.
    """
    from safetensors.numpy import save_file

    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        tensors = {
            f"fold{m.fold}.seed{m.seed}.{name}": np.ascontiguousarray(array)
            for m in result.models
            for name, array in m.state.items()
        }
        save_file(tensors, temporary / "weights.safetensors")
        models: list[dict[str, Any]] = [{**_described(m), **m.history} for m in result.models]
        described = {"models": models, "faults": list(result.faults)}
        (temporary / "models.json").write_text(json.dumps(described, indent=1) + "\n")
        with atomic_h5(temporary / "oof.h5") as file:
            file.create_dataset("probabilities", data=result.probabilities)
        try:
            temporary.rename(folder)
        except OSError as error:
            if not folder.is_dir():
                raise StoreError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _described(model: MemberModel) -> dict[str, Any]:
    """What a model's entry says beside its history."""
    entry = {"fold": model.fold, "seed": model.seed, "classes": model.classes.tolist()}
    if model.train_counts is not None:
        entry["train_counts"] = model.train_counts.tolist()
    return entry


def load_member(folder: Path) -> MemberResult:
    """The member that `save_member` wrote.

    Raises:
        CorruptStore: a file is missing or damaged.
    """
    models, faults = _load_models(folder)
    with open_h5(folder / "oof.h5") as file:
        probabilities = file["probabilities"][()]
    return MemberResult(probabilities, models, faults)


def load_models(folder: Path) -> tuple[MemberModel, ...]:
    """The models of the member that `save_member` wrote, without their probabilities.

    Raises:
        CorruptStore: a file is missing or damaged.
    """
    return _load_models(folder)[0]


def copy_models(source: Path, target: Path, fold: int) -> None:
    """Copies the models of one fold of the member that `save_member` wrote, and nothing else.

    Raises:
        CorruptStore: a file is missing or damaged.
    """
    from safetensors.numpy import save_file

    prefix = f"fold{fold}."
    models = [model for model in _load_models(source)[0] if model.fold == fold]
    tensors = {
        f"{prefix}seed{m.seed}.{name}": np.ascontiguousarray(array)
        for m in models
        for name, array in m.state.items()
    }
    target.mkdir(parents=True)
    save_file(tensors, target / "weights.safetensors")
    described = [_described(m) for m in models]
    (target / "models.json").write_text(json.dumps({"models": described, "faults": []}) + "\n")


def _load_models(folder: Path) -> tuple[tuple[MemberModel, ...], tuple[str, ...]]:
    from safetensors.numpy import load_file

    try:
        tensors = load_file(folder / "weights.safetensors")
        described = json.loads((folder / "models.json").read_text())
    except Exception as error:  # safetensors raises its own class on a damaged header
        raise CorruptStore(
            f"{folder} is not a whole member ({error}); delete it and run bsdkit fit again"
        ) from None
    models = []
    for entry in described["models"]:
        prefix = f"fold{entry['fold']}.seed{entry['seed']}."
        state = {n.removeprefix(prefix): a for n, a in tensors.items() if n.startswith(prefix)}
        known = ("fold", "seed", "classes", "train_counts")
        history = {k: v for k, v in entry.items() if k not in known}
        classes = np.array(entry["classes"], np.int64)
        counts = np.array(entry["train_counts"], np.int64) if "train_counts" in entry else None
        models.append(MemberModel(entry["fold"], entry["seed"], classes, state, history, counts))
    return tuple(models), tuple(described["faults"])


def save_pairs(path: Path, probabilities: npt.NDArray[np.float64]) -> None:
    """Writes what a member says of development clips to the students of each fold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_h5(path) as file:
        file.create_dataset("probabilities", data=probabilities)


def load_pairs(path: Path) -> npt.NDArray[np.float64]:
    """What `save_pairs` wrote."""
    with open_h5(path) as file:
        return np.asarray(file["probabilities"][()])
