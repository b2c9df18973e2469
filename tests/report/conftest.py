"""A small run of made sounds, whose every figure and text the tests of the pages know."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bsdkit.api import fit
from bsdkit.dataset import read_dataset
from bsdkit.recipe.schema import Recipe
from bsdkit.store.imports import import_npy_folder
from bsdkit.store.store import Store
from bsdkit.taxonomy import Taxonomy

CLASSES = {"tone-a": "tone", "tone-b": "tone", "hiss-a": "hiss", "hiss-b": "hiss", "beat": "beat"}
N_CLIPS = 160
EVIL = "</script><script>window.evil=1</script><img src=x onerror=window.evil=2> & \u2028 'q' \"q\""


@dataclass(frozen=True)
class Made:
    """Where the made dataset and its runs lie."""

    data: Path
    store: Path
    run: Path
    other: Path
    elsewhere: Path


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two runs on the same folds of 160 clips, and one on other folds."""
    folder = tmp_path_factory.mktemp("pages")
    data, vectors = folder / "data set", folder / "vectors"  # a space, as URLs dislike
    (data / "audio").mkdir(parents=True)
    vectors.mkdir()
    rng = np.random.default_rng(0)
    labels = list(CLASSES)
    with (folder / "tree.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("class", "family"), *CLASSES.items()])
    rows, centres = [], rng.standard_normal((len(labels), 24))
    for i in range(N_CLIPS):
        label = i % len(labels)
        clip = f"c{i:03d}"
        vector = centres[label] + 1.1 * rng.standard_normal(24)
        if i == 7:
            vector = np.load(vectors / "c002.npy")  # a copy, and of the same class
        np.save(vectors / f"{clip}.npy", vector.astype(np.float32))
        sound = 0.1 * np.sin(2 * np.pi * (220 + 40 * label) * np.arange(1600) / 8000)
        if i != 9:
            soundfile.write(data / "audio" / f"{clip}.wav", sound, 8000)
        title = EVIL if i == 3 else f"sound {i}"
        tags = f"made,number{i % 4}"
        confidence = 1 + (label + i % 3) % 5
        rows.append(
            (clip, f"audio/{clip}.wav", labels[label], title, tags, f"user{i % 23}", confidence)
        )
    with (data / "clips.csv").open("w", newline="") as file:
        head = ("id", "path", "class", "title", "tags", "uploader", "confidence")
        csv.writer(file).writerows([head, *rows])
    clips, _ = read_dataset(data / "clips.csv", Taxonomy.from_csv(folder / "tree.csv"))
    store = Store.create(folder / "store", clips)
    import_npy_folder(store, vectors, "made.audio", "the tests")
    mlp = {"head": "mlp", "features": "made.audio", "hidden": 16, "epochs": 5, "batch_size": 32}
    base = {
        "name": "made",
        "description": "<i>described</i>",
        "store": str(folder / "store"),
        "split": ["group", "stratified"],
        "folds": 3,
        "seeds": [0, 1],
        "members": {"line": {"head": "linear", "features": "made.audio"}, "net": mlp},
        "ensemble": {"method": "weights", "trials": 5},
    }
    runs = folder / "runs"
    recipes = (
        base,
        {**base, "name": "other", "ensemble": {"members": ["net"], "method": "mean"}},
        {**base, "name": "elsewhere", "split": "stratified", "split_seed": 5, "folds": 4},
    )
    found = [fit(Recipe.model_validate(recipe), runs).folder for recipe in recipes]
    return Made(data / "clips.csv", folder / "store", *found)
