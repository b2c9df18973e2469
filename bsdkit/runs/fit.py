"""Runs a recipe: trains what is not trained yet, combines, scores, writes the run folder."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.device import check_device
from bsdkit.errors import RecipeError
from bsdkit.members.trainer import MemberTrainer, member_plan
from bsdkit.recipe.schema import Recipe
from bsdkit.runs.evaluation import evaluate_run
from bsdkit.runs.folder import Run, load_run, write_metrics, write_run
from bsdkit.runs.near import audio_feature, near_copies
from bsdkit.runs.results import ProtocolResult
from bsdkit.runs.scoring import chain_steps, objective_of, score_protocol
from bsdkit.store.store import Store
from bsdkit.version import __version__

__all__ = ["FitResult", "fit_recipe"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FitResult:
    """What `fit_recipe` did.

    Attributes:
        folder: the run.
        metrics: what stands in its metrics.json.
        n_trained: members trained now, over all splits.
        n_reused: members that were trained already.
        seconds: wall-clock seconds.
    """

    folder: Path
    metrics: dict[str, Any]
    n_trained: int
    n_reused: int
    seconds: float


def fit_recipe(
    recipe: Recipe,
    runs: Path,
    *,
    device: str = "cpu",
    reuse: bool = True,
    on_step: Callable[[str], None] | None = None,
    write_page: Callable[[Run, Path, Store], None] | None = None,
) -> FitResult:
    """Trains, combines and scores a recipe, and writes ``runs/<name>/``.

    The scores are the same to the last bit each time on one machine. An older run of the
    same name is replaced once the new one is whole.

    Args:
        recipe: the recipe.
        runs: folder of all runs; trained members are kept in its ``.members``.
        device: where torch heads train.
        reuse: whether a member that was trained before with the same inputs, settings, folds
            and code is taken from there.
        on_step: called with a line of text before each step.
        write_page: called with the run, the place of its page and the store before the run is
            put in its place; None for a run without a page.

    Raises:
        StoreError: the store or a feature is missing, stale or incomplete.
        SplitError: the folds cannot be made.
        RecipeError: the recipe asks for what the store cannot give.
    """
    started = time.perf_counter()
    check_device(device)
    runs.mkdir(parents=True, exist_ok=True)
    say = on_step or (lambda line: None)
    for name in recipe.expect:
        if name not in (*recipe.features, recipe.similarity):
            raise RecipeError(f"expect names the feature {name!r}, which no member uses")
    trainer = MemberTrainer(recipe, runs, device=device, reuse=reuse, on_step=on_step)
    clips = trainer.store.clips
    if clips.unread and not (runs / recipe.name).exists():  # once, not at every change
        say(f"columns of the metadata that were not read: {', '.join(clips.unread)}")
    plans = {name: member_plan(name, recipe) for name in recipe.members}
    for plan in plans.values():  # what a store lacks is said before anything else
        trainer.inputs(plan)
    if recipe.test is not None:  # nor is what its test store lacks said after the training
        for name, info in trainer.infos.items():
            Store(recipe.test).info(name, dict(info.spec))
    tasks = {protocol: trainer.task(protocol) for protocol in recipe.split}
    splits = [task.split for task in tasks.values()]
    similarity = trainer.similarity(recipe.similarity, splits) if recipe.similarity else None
    objective_of(recipe, clips.taxonomy)  # and what it says of later steps, too
    chain_steps(recipe, tuple(recipe.ensemble_members), clips.ids)
    results: dict[str, ProtocolResult] = {}
    for protocol in recipe.split:
        task = tasks[protocol]
        members = trainer.train(plans, task)
        say(f"combining and scoring, {protocol} folds")
        results[protocol] = score_protocol(
            recipe,
            trainer.store.clips,
            task.split,
            members,
            similarity=similarity,
            on_their_word=trainer.on_their_word(),
            n_jobs=trainer.n_jobs,
        )
    metrics = {
        "headline": recipe.split[0],
        "n_clips": len(clips),
        "n_classes": len(clips.taxonomy),
        "mapped": recipe.mapped,
        "missing": {name: n for name, n in trainer.n_missing.items() if n},
        "protocols": {
            name: {**result.metrics, "near_copies": _near_copies(trainer, result)}
            for name, result in results.items()
        },
    }
    facts = {
        "bsdkit": __version__,
        "python": platform.python_version(),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("numpy", "torch", "scikit-learn", "optuna", "lightgbm", "h5py")
        },
        "machine": platform.machine(),
        "device": device,
        "cpus": os.cpu_count(),
        "features": {
            name: {
                "spec": dict(info.spec),
                "spec_hash": info.spec_hash,
                "checksum": info.checksum,
                "n_missing": trainer.n_missing[name],
            }
            for name, info in trainer.infos.items()
        },
        "splits": {name: result.split.digest(clips) for name, result in results.items()},
        "fallback": "a clip without any features gets the class shares of its training clips",
        "seconds": round(time.perf_counter() - started, 3),
    }

    def finish(whole: Path) -> None:
        if recipe.test is not None:
            say(f"scoring on {recipe.test}")
            metrics["test"] = evaluate_run(load_run(whole), Store(recipe.test))
            write_metrics(whole, metrics)
        if write_page is not None:
            write_page(load_run(whole), whole / "report.html", trainer.store)

    folder = write_run(
        runs,
        recipe,
        clips,
        results,
        metrics,
        facts,
        finish=finish,
    )
    seconds = time.perf_counter() - started
    return FitResult(folder, metrics, trainer.n_trained, trainer.n_reused, seconds)


def _near_copies(trainer: MemberTrainer, result: ProtocolResult) -> dict[str, Any] | None:
    """Clips of two folds that an audio feature of the recipe can hardly tell apart."""
    name = audio_feature({name: info.spec for name, info in trainer.infos.items()})
    if not name:
        return None
    features = trainer.store.features([name])
    labels = trainer.store.clips.labels
    found = near_copies(
        features.arrays[name], ~features.is_missing[:, 0], result.split.fold, labels
    )
    return {"feature": name, "n_pairs": found.n_pairs, "n_clips": found.n_clips}
