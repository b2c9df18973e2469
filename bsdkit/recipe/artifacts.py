"""The run folder: what one `fit` leaves behind, and how it is read again."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from bsdkit.dataset import Clips
from bsdkit.errors import RecipeError
from bsdkit.predictions import write_predictions
from bsdkit.recipe.results import ProtocolResult
from bsdkit.recipe.schema import Recipe
from bsdkit.report.page import write_page
from bsdkit.store.clips_table import read_clips, write_clips
from bsdkit.store.files import atomic_h5, replace_folder, write_strings
from bsdkit.train.member import MemberResult
from bsdkit.train.saved import load_member, save_member

__all__ = ["Run", "load_run", "write_run"]


def write_run(
    runs: Path,
    recipe: Recipe,
    clips: Clips,
    results: dict[str, ProtocolResult],
    metrics: dict[str, Any],
    facts: dict[str, Any],
) -> Path:
    """Writes ``runs/<name>/``; it appears whole, and an older run is replaced only then.

    Files: recipe.yaml (resolved), run.json (versions, features, folds), metrics.json,
    ensemble.json, clips.h5, oof.h5 (probabilities), predictions.csv (the headline's nested
    predictions in the official columns), members/<split>/<member>/, report.html.
    """
    folder = runs / recipe.name
    temporary = runs / f".{recipe.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        (temporary / "recipe.yaml").write_text(recipe.to_yaml())
        _write_json(temporary / "run.json", facts)
        _write_json(temporary / "metrics.json", metrics)
        headline = results[recipe.split[0]]
        _write_json(
            temporary / "ensemble.json",
            {
                "split": recipe.split[0],
                "members": headline.metrics["ensemble"]["members"],
                "weights": list(headline.ensemble.weights),
                "prior": headline.prior.tolist(),
            },
        )
        write_clips(temporary / "clips.h5", clips)
        with atomic_h5(temporary / "oof.h5") as file:
            write_strings(file, "id", clips.ids.tolist())
            for protocol, result in results.items():
                group = file.create_group(protocol)
                group.create_dataset("fold", data=result.split.fold)
                group.create_dataset("ensemble_nested", data=result.nested)
                for name, member in result.members.items():
                    group.create_dataset(f"members/{name}", data=member.mean)
        for protocol, result in results.items():
            for name, member in result.members.items():
                save_member(temporary / "members" / protocol / name, member)
        rows = headline.split.tested
        write_predictions(
            temporary / "predictions.csv",
            clips.ids[rows],
            clips.taxonomy.decode(headline.nested[rows].argmax(axis=1)),
            headline.nested[rows].max(axis=1),
            clips.taxonomy.decode(clips.labels[rows]),
        )
        write_page(temporary / "report.html", recipe.name, metrics, facts, clips.taxonomy)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, sort_keys=False) + "\n")


@dataclass(frozen=True)
class Run:
    """A finished run on disk.

    Attributes:
        folder: where it lies.
        recipe: its resolved recipe.
        facts: what stands in run.json.
        metrics: what stands in metrics.json.
        clips: the clips it was trained on, with their taxonomy.
        split: the split whose models predict new clips.
        weights: ensemble weight by member.
        prior: class shares [n_classes] of the training clips.
    """

    folder: Path
    recipe: Recipe
    facts: dict[str, Any]
    metrics: dict[str, Any]
    clips: Clips
    split: str
    weights: dict[str, float]
    prior: npt.NDArray[np.float64]

    def member(self, name: str) -> MemberResult:
        """The models of one member."""
        return load_member(self.folder / "members" / self.split / name)


def load_run(folder: Path | str) -> Run:
    """The run in a folder.

    Raises:
        RecipeError: the folder is not a whole run.
    """
    folder = Path(folder)
    try:
        recipe = Recipe.model_validate(yaml.safe_load((folder / "recipe.yaml").read_text()))
        facts = json.loads((folder / "run.json").read_text())
        metrics = json.loads((folder / "metrics.json").read_text())
        ensemble = json.loads((folder / "ensemble.json").read_text())
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{folder} is not a run ({error}); make one with bsdkit fit RECIPE.yaml"
        ) from None
    return Run(
        folder=folder,
        recipe=recipe,
        facts=facts,
        metrics=metrics,
        clips=read_clips(folder / "clips.h5"),
        split=ensemble["split"],
        weights=dict(zip(ensemble["members"], ensemble["weights"], strict=True)),
        prior=np.array(ensemble["prior"]),
    )
