"""A run on a second labelled store: scored there, selected on nothing, and what the two share."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from bsdkit.api import fit
from bsdkit.errors import RecipeError, StoreError
from bsdkit.metrics import evaluate
from bsdkit.recipe.schema import Recipe, recipe_from
from bsdkit.report.tables import fit_tables
from bsdkit.runs.evaluation import evaluate_run
from bsdkit.runs.folder import load_run
from bsdkit.runs.predict import predict_run
from bsdkit.store.clips import write_clips
from bsdkit.store.store import Store
from tests.conftest import ROOT, bsdkit_here
from tests.runs.test_whole_chain import part_of_store

STARTER = ROOT / "cache/starter"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A development store, and a test store of which ten clips were developed on."""
    folder = tmp_path_factory.mktemp("evaluation")
    every = np.arange(len(Store(STARTER).clips))
    part_of_store(STARTER, folder / "dev", every[every % 4 == 0])
    part_of_store(STARTER, folder / "eval", np.r_[every[every % 16 == 1], every[::4][:10]])
    return folder


def recipe(place: Path, **changes: object) -> Recipe:
    said = {
        "name": "tested",
        "store": str(place / "dev"),
        "split": "group",
        "folds": 2,
        "members": {
            "audio": {"head": "linear", "features": "aisfx"},
            "text": {"head": "linear", "features": "minilm"},
        },
        "ensemble": {"method": "mean"},
        **changes,
    }
    return recipe_from(said, "a test")


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    return fit(recipe(place, test=str(place / "eval")), place / "runs").folder


def test_a_fit_scores_its_test_store_as_evaluate_does(place: Path, folder: Path) -> None:
    run, store = load_run(folder), Store(place / "eval")
    found = evaluate_run(run, store)
    assert json.loads(json.dumps(found)) == run.metrics["test"]
    assert found["n_tested"] == 125 and found["audit"]["n_trained_on"] == 10
    rows = np.arange(125)
    for name, scores in found["scores"].items():
        said = predict_run(run, store, name)
        predicted = run.clips.taxonomy.encode(said.labels)
        labels, taxonomy = store.clips.labels, run.clips.taxonomy
        expected = evaluate(labels[rows], predicted[rows], taxonomy, warn=False)
        assert scores["hF_strict"]["value"] == expected["hF_strict"], name
        assert scores["hF_strict"]["low"] < expected["hF_strict"] < scores["hF_strict"]["high"]
    uploaders, theirs = set(store.clips.uploader[rows]), set(run.clips.uploader)
    assert found["audit"]["n_shared_uploaders"] == len(uploaders & theirs)
    table = fit_tables(run.metrics)[-1]
    assert "125 clips that the run never saw" in table.title and len(table.rows) == 3
    assert any("10 trained on" in note for note in table.notes)
    assert "125 clips that the run never saw" in (folder / "report.html").read_text()


def test_nothing_else_of_a_run_depends_on_its_test_store(place: Path, folder: Path) -> None:
    without = fit(recipe(place, name="untested"), place / "runs")
    tested, untested = (
        json.loads((place / "runs" / name / "metrics.json").read_text())
        for name in ("tested", "untested")
    )
    assert "test" not in untested
    tested.pop("test")
    assert tested == untested and without.n_trained == 0


def test_copies_and_clips_of_other_classes_are_counted(place: Path, folder: Path) -> None:
    run, store = load_run(folder), Store(place / "eval")
    clips = store.clips
    renamed = clips.ids.copy()
    renamed[-5:] = [f"copy {i}" for i in range(5)]  # trained on, under other names
    unlabelled = clips.labels.copy()
    unlabelled[:7] = -1
    other = place / "copies"
    shutil.copytree(store.path, other)
    # rows of features are found by their ids
    for path in other.glob("*-*.h5"):
        with h5py.File(path, "r+") as file:
            file["row"][-5:] = renamed[-5:].astype("S")
    write_clips(other / "clips.h5", replace(clips, ids=renamed, labels=unlabelled))
    found = evaluate_run(run, Store(other))
    audit = found["audit"]
    assert (audit["n_trained_on"], audit["n_equal"], audit["n_unlabelled"]) == (5, 5, 7)
    assert found["n_tested"] == 125 - 7
    # the same ids with other sounds are other clips
    sounds = np.array([f"{i:064x}" for i in range(len(clips))], object)
    write_clips(other / "clips.h5", replace(clips, ids=renamed, sha256=sounds, sound=sounds))
    audit = evaluate_run(run, Store(other))["audit"]
    assert audit["n_trained_on"] == audit["n_equal"] == 0 and audit["n_near"] == 10


def test_what_cannot_be_scored_is_one_line(place: Path, folder: Path) -> None:
    for test, message in (("nowhere", "no store at"), ("bare", "has no feature 'aisfx'")):
        (place / "bare").mkdir(exist_ok=True)
        write_clips(place / "bare" / "clips.h5", Store(place / "eval").clips)
        with pytest.raises(StoreError, match=message):
            fit(recipe(place, name="late", test=str(place / test)), place / "late")
    assert not list((place / "late").glob(".members/*")), "nothing was trained before"
    with pytest.raises(RecipeError, match="has no clip to score: of 500, 0 have no label, 500"):
        evaluate_run(load_run(folder), Store(place / "dev"))
    shown = bsdkit_here("evaluate", folder, "--on", place / "eval")
    assert shown.returncode == 0 and "125 clips that the run never saw" in shown.stdout
    said = json.loads(bsdkit_here("evaluate", folder, "--on", place / "eval", "--json").stdout)
    assert said["n_tested"] == 125
    wrong = bsdkit_here("evaluate", folder)
    assert wrong.returncode == 2 and "say --on STORE" in wrong.stderr
