"""Recipes on other names than their own, and runs side by side."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from bsdkit.errors import RecipeError
from bsdkit.experiments.leaderboard import compare_runs
from bsdkit.metrics import compare, evaluate
from bsdkit.recipe.map import NameMap, apply_map, read_map
from bsdkit.recipe.schema import load_recipe
from bsdkit.runs.folder import load_run
from bsdkit.store.files import open_h5
from tests.conftest import ROOT, bsdkit_here
from tests.runs.test_whole_chain import part_of_store

FOREIGN = """
store: cache/BSD10k
split: [official, group]
folds: 3
seeds: [0]
validation: 0
members:
  both: {head: prototype, features: [clap.audio, clap.text]}
  more: {head: knn, features: [clap.audio, passt, passt.logits]}
  words: {head: prototype, features: minilm}
ensemble: {method: mean}
expect: {clap.audio: {dtype: float16}, minilm: {dtype: float16}}
"""
MAP = "clap=aisfx,clap.text=minilm,passt=aisfx,cache/BSD10k={store}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three mapped runs on a part of the starter: all members, one of them, and another."""
    folder = tmp_path_factory.mktemp("board")
    part_of_store(ROOT / "cache/starter", folder / "small", np.arange(0, 1998, 3))
    texts = {
        "whole": FOREIGN,
        "again": FOREIGN,
        "alone": FOREIGN.replace("{method: mean}", "{method: mean, members: [more]}"),
    }
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    result = bsdkit_here(
        "fit", *(folder / f"{name}.yaml" for name in texts), "--split", "group",
        "--map", MAP.format(store=folder / "small"), "--runs", folder / "runs",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stdout.split())
    assert said.count("mapped, so these are not the figures of the recipe itself: ") == 3
    assert "aisfx for clap.audio" in said and "3 members trained in" in said
    assert "0 members trained, 3 reused" in said
    return folder


def test_a_map_is_applied_and_kept(place: Path) -> None:
    run = load_run(place / "runs/whole-mapped")
    assert run.recipe.members["both"].features == ["aisfx", "minilm"]
    assert run.recipe.members["more"].features == ["aisfx"]  # three that became one
    assert run.recipe.members["words"].features == ["minilm"] and run.recipe.split == ["group"]
    assert run.recipe.mapped == {
        "cache/BSD10k": str(place / "small"), "clap.audio": "aisfx", "clap.text": "minilm",
        "passt": "aisfx", "passt.logits": "aisfx",
    }  # fmt: skip
    assert run.recipe.expect == {"minilm": {"dtype": "float16"}}
    assert json.loads((run.folder / "metrics.json").read_text())["mapped"] == run.recipe.mapped
    # without a map nothing is changed
    assert load_recipe(place / "whole.yaml").name == "whole"
    data = yaml.safe_load(FOREIGN)
    assert apply_map(data, read_map("beats=aisfx")) == data
    shorter = apply_map(data, NameMap(heads={"knn": {"k": 3}}))
    assert shorter["members"]["more"]["k"] == 3 and shorter["mapped"] == {"knn.k": "3"}
    assert "k" not in data["members"]["more"]


def test_maps_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("features: {clap: aisfx}\nstores: {cache/a/: cache/b}\n")
    names = read_map(str(path))
    assert (
        names.feature("clap.text@masked") == "aisfx@masked" and names.store("cache/a") == "cache/b"
    )
    for text, message in (
        ("featurs: {}\n", "found 'featurs': did you mean 'features'?"),
        ("heads: {hatr: 40}\n", "heads must hold HEAD: {SETTING: VALUE} lines"),
        ("", "found none"),
        ("features: [clap]\n", "features must hold NAME: NAME lines"),
        ("features: {\n", "cannot read the map"),
    ):
        path.write_text(text)
        with pytest.raises(RecipeError, match=re.escape(message)):
            read_map(str(path))
    for text, message in (
        ("clap", "--map clap: expected NAME=NAME"),
        (",", "--map ,: expected NAME=NAME"),
        ("clap=aisfx,clap=minilm", "--map names 'clap' twice"),
    ):
        with pytest.raises(RecipeError, match=message):
            read_map(text)


def test_a_fit_of_several_refuses_what_would_be_lost_or_not_be_meant(place: Path) -> None:
    again = place / "more"
    again.mkdir(exist_ok=True)
    (again / "whole.yaml").write_text(FOREIGN)
    words = ("fit", place / "whole.yaml", "--runs", place / "none")
    same = bsdkit_here(*words, again / "whole.yaml", "--map", MAP.format(store=place / "small"))
    assert same.returncode == 2 and "two recipes are called 'whole-mapped'" in same.stderr
    typo = bsdkit_here(*words, "--map", "clpa=aisfx")
    assert typo.returncode == 2 and "--map clpa=aisfx names nothing" in typo.stderr


def test_a_leaderboard_is_what_the_runs_say(place: Path) -> None:
    folders = [place / "runs" / f"{name}-mapped" for name in ("whole", "again", "alone")]
    board = compare_runs(folders, baseline="alone-mapped")
    assert {entry.name for entry in board.entries} == {path.name for path in folders}
    scores = [entry.hF_strict.value for entry in board.entries]
    assert scores == sorted(scores, reverse=True)
    labels: dict[str, np.ndarray] = {}
    for path in folders:
        run = load_run(path)
        with open_h5(path / "oof.h5") as file:
            labels[path.name] = file["group"]["decided"][()]
        entry = next(e for e in board.entries if e.name == path.name)
        score = evaluate(run.clips.labels, labels[path.name], run.clips.taxonomy, warn=False)
        assert entry.hF_strict.value == score["hF_strict"] and entry.hA.value == score["hA"]
        claimed = run.metrics["protocols"]["group"]["ensemble"]["nested"]["hF_strict"]["value"]
        assert entry.hF_strict.value == claimed and entry.is_mapped and entry.parameters > 0
    by_name = {entry.name: entry for entry in board.entries}
    assert by_name["alone-mapped"].against is None
    expected = compare(run.clips.labels, labels["whole-mapped"], labels["alone-mapped"],
                       run.clips.taxonomy)  # fmt: skip
    whole, again = by_name["whole-mapped"].against, by_name["again-mapped"].against
    assert whole == again and whole.difference == expected.difference
    # two comparisons: the smaller p counts twice
    assert whole.p_adjusted == min(1.0, 2 * whole.p_value) and whole.p_value >= expected.p_value
    same = compare_runs(folders[:2])
    assert [entry.against for entry in same.entries] == [None, None]


def test_the_commands_print_it_and_leave_out_what_cannot_be_compared(place: Path) -> None:
    runs = place / "runs"
    shown = bsdkit_here("compare", runs / "whole-mapped", runs / "alone-mapped")
    assert shown.returncode == 0 and "baseline" in shown.stdout
    assert "2 of 2 runs are mapped" in " ".join(shown.stdout.split())
    result = bsdkit_here(
        "fit", place / "whole.yaml", "--split", "stratified", "--runs", place / "other",
        "--map", MAP.format(store=place / "small"),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    twice = bsdkit_here("compare", runs / "whole-mapped", place / "other/whole-mapped")
    assert twice.returncode == 2 and "two runs are called 'whole-mapped'" in twice.stderr
    (place / "other/whole-mapped").rename(runs / "stratified")
    wrong = bsdkit_here("compare", runs / "whole-mapped", runs / "stratified")
    assert wrong.returncode == 2 and "was not scored under 'group' folds" in wrong.stderr
    (runs / "broken").mkdir()  # of an older version, say
    (runs / "broken/metrics.json").write_text("{}")
    board = bsdkit_here("leaderboard", runs, "--baseline", "alone-mapped", "--markdown")
    assert board.returncode == 0, board.stderr
    assert board.stdout.count("left out: ") == 2 and board.stdout.count("| whole-mapped |") == 1
    typo = bsdkit_here("leaderboard", runs, "--baseline", "aloen-mapped")
    assert typo.returncode == 2 and "did you mean 'alone-mapped'?" in typo.stderr
    for words in (("report", runs / "alone-mapped", "--out"),
                  ("compare", runs / "whole-mapped", runs / "alone-mapped", "--page")):  # fmt: skip
        folder = bsdkit_here(*words, place)
        assert folder.returncode == 2 and "is a folder; give the page's own name" in folder.stderr
    empty = bsdkit_here("leaderboard", place / "none")
    assert empty.returncode == 2 and "holds no runs; make one with bsdkit fit" in empty.stderr
