"""Dev-as-eval: a run's whole inference on its own clips, in processes that have no labels.

For each fold a small run is made of the models and steps that did not see its clips, and a small
store of these clips, with their features and without labels or anything else that people know of
them. A fresh process then runs ``bsdkit predict`` on the two, as on an evaluation set. What it
writes must be what the run wrote, and only then are labels read, to score it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from bsdkit.csvfile import read_csv_rows
from bsdkit.dataset import Clips
from bsdkit.errors import RecipeError
from bsdkit.members.saved import copy_models
from bsdkit.metrics import evaluate
from bsdkit.runs.folder import Run
from bsdkit.runs.predict import needed_features, with_inputs
from bsdkit.store.clips import write_clips
from bsdkit.store.store import Store

__all__ = ["Verification", "copy_for_fold", "verify_run"]

IntArray = npt.NDArray[np.int64]

_DONE = (0, 1)
"""Exit codes of a prediction: whole, or with clips that got the fallback."""


@dataclass(frozen=True)
class Verification:
    """What re-running inference without labels found.

    Attributes:
        n_clips: clips predicted.
        split: under whose folds.
        differing: ids of clips whose class or score is not the one that the run wrote.
        on_their_word: imported features whose models may have seen any clip, for all that the
            store knows.
        hF: of the predicted_again predictions, the organisers' score.
        hF_strict: the same, a class that is never predicted counting 0.
        claimed: hF_strict that the run's metrics.json states.
    """

    n_clips: int
    split: str
    differing: tuple[str, ...]
    on_their_word: tuple[str, ...]
    hF: float  # noqa: N815
    hF_strict: float  # noqa: N815
    claimed: float

    @property
    def is_equal(self) -> bool:
        """Whether every prediction is the run's, and so is the score."""
        return not self.differing and self.hF_strict == self.claimed


def verify_run(run: Run, store: Store, *, n_jobs: int | None = None) -> Verification:
    """Predicts a run's own clips as if they were new, and compares.

    Args:
        run: whose clips; those of its headline split.
        store: with their features; its labels are not copied.
        n_jobs: processes side by side; None for one a processor.

    Raises:
        RecipeError: the store has other clips than the run, or inference failed.
    """
    ids, fold, labels = run.clips.ids, run.out_of_fold().split.fold, run.clips.labels
    if store.clips.ids.tolist() != ids.tolist():
        raise RecipeError(
            f"{store.path} has {len(store.clips)} clips, the run was fitted on {len(ids)}, "
            "or in another order; give the store that it was fitted on (--store)"
        )
    tested = np.flatnonzero(fold >= 0)
    with tempfile.TemporaryDirectory(prefix="bsdkit-check-") as folder:
        bench = Path(folder)
        folds = [int(k) for k in np.unique(fold[tested])]
        for k in folds:
            copy_for_fold(run, store, k, np.flatnonzero(fold == k), bench / str(k))
        with ThreadPoolExecutor(n_jobs or os.cpu_count() or 1) as pool:
            list(pool.map(_predict_in_fresh_process, [bench / str(k) for k in folds]))
        predicted_again: dict[str, tuple[str, str]] = {}
        for k in folds:
            predicted_again |= _read_rows(bench / str(k) / "output.csv")
    written = _read_rows(run.folder / "predictions.csv")
    lost = [str(i) for i in ids[tested] if i not in predicted_again]
    if lost:
        raise RecipeError(f"the rehearsal predicted nothing for {len(lost)} clips: {lost[0]}")
    differing = [str(i) for i in ids[tested] if predicted_again[i] != written.get(i)]
    differing += [clip for clip in written if clip not in predicted_again]
    taxonomy = run.clips.taxonomy
    predicted = taxonomy.encode([predicted_again[i][0] for i in ids[tested]])
    scores = evaluate(labels[tested], predicted, taxonomy, warn=False)
    protocol = run.metrics["protocols"][run.split]
    return Verification(
        n_clips=len(tested),
        split=run.split,
        differing=tuple(differing),
        on_their_word=tuple(protocol.get("on_their_word", ())),
        hF=scores["hF"],
        hF_strict=scores["hF_strict"],
        claimed=protocol["ensemble"]["nested"]["hF_strict"]["value"],
    )


def _read_rows(path: Path) -> dict[str, tuple[str, str]]:
    """(class, score as written) by clip id.

    Raises:
        RecipeError: a column is missing.
    """
    header, rows = read_csv_rows(path)
    wanted = ("sound_id", "prediction", "prediction_score")
    for name in wanted:
        if name not in header:
            raise RecipeError(f"{path} has no column {name}; run bsdkit fit again")
    columns = [header.index(name) for name in wanted]
    return {fields[columns[0]]: (fields[columns[1]], fields[columns[2]]) for _, fields in rows}


def copy_for_fold(run: Run, store: Store, k: int, rows: IntArray, bench: Path) -> None:
    """A run and a store that hold nothing of the labels of one fold's clips.

    The run has the models of that fold and the steps that were fitted for it, the store these
    clips' features. Everything is a copy, so that no link leads back.

    Args:
        run: what was fitted.
        store: the clips' features.
        k: the fold.
        rows: its clips.
        bench: where ``run`` and ``store`` are made.
    """
    clips = _only_ids(store.clips, rows)
    copy = bench / "run"
    copy.mkdir(parents=True)
    (bench / "store").mkdir()
    write_clips(copy / "clips.h5", clips)
    write_clips(bench / "store" / "clips.h5", clips)
    recipe = {**yaml.safe_load((run.folder / "recipe.yaml").read_text()), "store": "removed"}
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    chain = json.loads((run.folder / "chain.json").read_text())
    own = chain["folds"][k]
    written: Mapping[str, Mapping[str, Any]] = {
        "chain.json": {**chain, **own, "folds": []},
        "run.json": {"features": run.facts["features"]},
        "ensemble.json": {"split": run.split},
        "metrics.json": {"protocols": {run.split: {"left_out": {}}}},
    }
    for name, content in written.items():
        (copy / name).write_text(json.dumps(content))
    for name in with_inputs(run, run.names):
        if not run.recipe.members[name].imported:
            place = run.members_folder.relative_to(run.folder) / name
            copy_models(run.folder / place, copy / place, k)
    for feature in needed_features(run, every=True):
        path = store.info(feature, run.facts["features"][feature]["spec"]).path
        shutil.copy(path, bench / "store" / path.name)


def _only_ids(clips: Clips, rows: IntArray) -> Clips:
    """Clips of which nothing is told but their ids."""
    n = len(rows)
    nothing = np.full(n, "", object)
    unknown = np.full(n, np.nan, np.float32)
    return replace(
        clips,
        ids=clips.ids[rows],
        labels=np.full(n, -1, np.int64),
        confidence=unknown,
        duration=unknown,
        uploader=nothing,
        licence=nothing,
        title=nothing,
        tags=nothing,
        description=nothing,
        sha256=nothing,
        sound=nothing,
        columns={},
        audio=[None] * n,
    )


def _predict_in_fresh_process(bench: Path) -> None:
    words = ["predict", "run", "--store", "store", "--out", "output.csv"]
    command = [sys.executable, "-m", "bsdkit", *words]
    done = subprocess.run(command, cwd=bench, capture_output=True, text=True, check=False)
    if done.returncode not in _DONE:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RecipeError(f"fold {bench.name} was not predicted: {lines[-1]}")
