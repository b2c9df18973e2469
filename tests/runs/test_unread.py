"""The first fit on a store says which columns of its metadata were not read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from bsdkit.recipe import load_recipe
from bsdkit.runs.fit import fit_recipe
from bsdkit.store import Store
from bsdkit.store.clips import write_clips
from tests.conftest import ROOT
from tests.runs.test_whole_chain import part_of_store
from tests.test_dataset import write


def test_a_first_fit_says_what_was_not_read(tmp_path: Path) -> None:
    rows = np.arange(0, len(Store(ROOT / "cache/starter").clips), 3)
    part_of_store(ROOT / "cache/starter", tmp_path / "store", rows, features=["minilm"])
    clips = replace(Store(tmp_path / "store").clips, unread=("usrname (did you mean username?)",))
    write_clips(tmp_path / "store" / "clips.h5", clips)
    recipe = load_recipe(
        write(
            tmp_path / "r.yaml",
            f"store: {tmp_path}/store\nsplit: [stratified]\nfolds: 2\n"
            "members: {text: {head: prototype, features: minilm}}\n",
        )
    )
    said: list[list[str]] = []
    for _ in range(2):
        lines: list[str] = []
        fit_recipe(recipe, tmp_path / "runs", on_step=lines.append)
        said.append(lines)
    line = "columns of the metadata that were not read: usrname (did you mean username?)"
    assert said[0].count(line) == 1 and line not in said[1]
