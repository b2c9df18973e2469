"""What every head, loss and way of using noisy labels gives on the starter sounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bsdkit.experiments.ablate import ablate, variants_of
from bsdkit.recipe.schema import load_recipe
from tests.conftest import ROOT

FOLDER = ROOT / "recipes/ablations"
GOLDEN = json.loads((ROOT / "tests/golden/ablations.json").read_text())
TOLERANCE = 0.015
"""Other processors round differently, and ten epochs of training amplify it."""


def test_every_recipe_has_a_golden_score() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(GOLDEN)


def check(names: list[str], runs: Path) -> None:
    base = load_recipe(FOLDER / "base.yaml")
    others = [load_recipe(FOLDER / f"{name}.yaml") for name in names]
    found = ablate(base, variants_of(base, [], others), runs)
    scores = {one.name: one.score.value for one in found.variants if one.score}
    scores["base"] = found.baseline.value
    wrong = {n: (s, GOLDEN[n]) for n, s in scores.items() if abs(s - GOLDEN[n]) > TOLERANCE}
    assert scores.keys() == {"base", *names} and not wrong


@pytest.mark.slow
def test_golden_scores_of_all(tmp_path: Path) -> None:
    check([name for name in GOLDEN if name != "base"], tmp_path)
