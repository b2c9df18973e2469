"""Dev-as-eval: a run's whole inference on its own clips, in a process that has no labels.

The development clips and the run are copied without their labels and without what the run said
of them. A fresh process then predicts each clip with the models, and the steps after them, that
did not see it. Its predictions must be those that the run wrote, and only after it is gone are
labels read, to score them.
"""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.combine.decode import decode
from bsdkit.csvfile import read_csv_rows
from bsdkit.dataset import Clips
from bsdkit.errors import BsdkitError, RecipeError
from bsdkit.metrics import evaluate
from bsdkit.predictions import write_predictions
from bsdkit.recipe.artifacts import Run, load_run
from bsdkit.recipe.predict import chain_probabilities, member_probabilities, with_inputs
from bsdkit.store.clips_table import write_clips
from bsdkit.store.store import Features, Store

__all__ = ["Rehearsal", "copy_without_labels", "predict_held_out", "rehearse"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_FOLDS, _OUTPUT, _STORE, _RUN = "folds.csv", "output.csv", "store", "run"


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal found.

    Attributes:
        n_clips: clips predicted.
        differing: ids of clips whose class or score is not the one that the run wrote.
        hF: of the rehearsed predictions, the organisers' score.
        hF_strict: the same, a class that is never predicted counting 0.
        claimed: hF_strict that the run's metrics.json states.
    """

    n_clips: int
    differing: tuple[str, ...]
    hF: float  # noqa: N815
    hF_strict: float  # noqa: N815
    claimed: float

    @property
    def is_equal(self) -> bool:
        """Whether every prediction is the run's, and so is the score."""
        return not self.differing and self.hF_strict == self.claimed


def rehearse(run: Run, store: Store) -> Rehearsal:
    """Predicts a run's own clips as if they were new, and compares.

    Args:
        run: whose clips.
        store: with their features; its labels are not copied.

    Raises:
        RecipeError: the store has other clips than the run, or inference failed.
    """
    ids, fold, labels = run.clips.ids, run.folds(), run.clips.labels
    if store.clips.ids.tolist() != ids.tolist():
        raise RecipeError(
            f"{store.path} has {len(store.clips)} clips, the run was fitted on {len(ids)}, "
            "or in another order; give the store that it was fitted on (--store)"
        )
    tested = np.flatnonzero(fold >= 0)
    with tempfile.TemporaryDirectory(prefix="bsdkit-check-") as folder:
        bench = Path(folder)
        copy_without_labels(run, store, fold, bench)
        _predict_in_fresh_process(bench)
        rehearsed = _read_rows(bench / _OUTPUT)
    written = _read_rows(run.folder / "predictions.csv")
    differing = tuple(str(i) for i in ids[tested] if rehearsed.get(i) != written.get(i))
    missing = [str(i) for i in ids[tested] if i not in rehearsed]
    if missing:
        raise RecipeError(f"the rehearsal predicted nothing for {len(missing)} clips: {missing[0]}")
    taxonomy = run.clips.taxonomy
    predicted = taxonomy.encode([rehearsed[i][0] for i in ids[tested]])
    scores = evaluate(labels[tested], predicted, taxonomy, warn=False)
    claimed = run.metrics["protocols"][run.split]["ensemble"]["nested"]["hF_strict"]["value"]
    return Rehearsal(len(tested), differing, scores["hF"], scores["hF_strict"], claimed)


def _read_rows(path: Path) -> dict[str, tuple[str, str]]:
    """(class, score as written) by clip id."""
    header, rows = read_csv_rows(path)
    columns = [header.index(n) for n in ("sound_id", "prediction", "prediction_score")]
    found = {}
    for _, fields in rows:
        clip, label, score = (fields[i] for i in columns)
        found[clip] = (label, score)
    return found


def _unlabelled(clips: Clips) -> Clips:
    """The same clips without labels, and without what people knew of them beside the sound."""
    n = len(clips)
    return replace(
        clips,
        labels=np.full(n, -1, np.int64),
        confidence=np.full(n, np.nan, np.float32),
        uploader=np.full(n, "", object),
    )


def copy_without_labels(run: Run, store: Store, fold: IntArray, bench: Path) -> None:
    """The run and the store with nothing in them that tells a label or an earlier prediction."""
    copy = bench / _RUN
    copy.mkdir()
    for name in ("recipe.yaml", "run.json", "ensemble.json", "chain.json"):
        shutil.copy(run.folder / name, copy / name)
    (copy / "metrics.json").write_text("{}\n")
    write_clips(copy / "clips.h5", _unlabelled(run.clips))
    for member in run.with_models():
        source = run.folder / "members" / run.split / member
        target = copy / "members" / run.split / member
        target.mkdir(parents=True)
        for name in ("weights.safetensors", "models.json"):
            os.symlink((source / name).resolve(), target / name)
    (bench / _STORE).mkdir()
    write_clips(bench / _STORE / "clips.h5", _unlabelled(store.clips))
    for path in store.feature_files():
        os.symlink(path.resolve(), bench / _STORE / path.name)
    with (bench / _FOLDS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sound_id", "fold"])
        writer.writerows(zip(run.clips.ids, fold.tolist(), strict=True))


def _predict_in_fresh_process(bench: Path) -> None:
    command = [sys.executable, "-m", "bsdkit.recipe.rehearse", str(bench)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RecipeError(f"inference failed in the fresh process: {lines[-1]}")


def predict_held_out(run: Run, store: Store, fold: IntArray) -> tuple[IntArray, FloatArray]:
    """Class positions [n_clips] and their probabilities by what did not see each clip.

    Args:
        run: its models and steps.
        store: the features of the run's clips.
        fold: test fold of each clip [n_clips]; clips of fold -1 are class -1.
    """
    names = with_inputs(run, run.names)
    wanted = [f for name in names for f in run.recipe.members[name].features]
    if run.recipe.similarity:
        wanted.append(run.recipe.similarity)
    wanted = list(dict.fromkeys(wanted))
    expect = {f: run.facts["features"][f]["spec"] for f in wanted}
    features = store.features(wanted, expect)
    classes = np.full(len(fold), -1, np.int64)
    scores = np.full(len(fold), np.nan)
    for k, (chain, prior) in enumerate(run.chains_of_folds):
        rows = np.flatnonzero(fold == k)
        if not len(rows):
            continue
        part = _rows_of(features, rows)
        said = member_probabilities(run, names, part, fold=k)
        probabilities, _ = chain_probabilities(run, chain, prior, said, part)
        best = decode(probabilities, run.recipe.decode, run.clips.taxonomy)
        classes[rows], scores[rows] = best, probabilities[np.arange(len(rows)), best]
    return classes, scores


def _rows_of(features: Features, rows: IntArray) -> Features:
    return replace(
        features,
        arrays={name: array[rows] for name, array in features.arrays.items()},
        is_missing=features.is_missing[rows],
    )


def _main(bench: Path) -> None:
    run, store = load_run(bench / _RUN), Store(bench / _STORE)
    labelled = int((store.clips.labels >= 0).sum() + (run.clips.labels >= 0).sum())
    if labelled:
        raise RecipeError(f"{labelled} labels reached the process that must not have any")
    _, rows = read_csv_rows(bench / _FOLDS)
    fold_of = {fields[0]: int(fields[1]) for _, fields in rows}
    fold = np.array([fold_of[clip] for clip in store.clips.ids], np.int64)
    classes, scores = predict_held_out(run, store, fold)
    tested = np.flatnonzero(fold >= 0)
    write_predictions(
        bench / _OUTPUT,
        store.clips.ids[tested],
        run.clips.taxonomy.decode(classes[tested]),
        scores[tested],
    )


if __name__ == "__main__":
    try:
        _main(Path(sys.argv[1]))
    except BsdkitError as error:
        sys.exit(f"error: {error}")
