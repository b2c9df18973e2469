"""Whatever a recipe calls by name is written in one place: nothing else knows the names."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import yaml

from bsdkit.api import fit
from bsdkit.challenge.submit import submit
from bsdkit.combine import calibrate, decode, ensemble
from bsdkit.errors import RecipeError
from bsdkit.heads import registry as heads
from bsdkit.heads.linear import LinearHead
from bsdkit.recipe.schema import recipe_from
from bsdkit.runs.folder import load_run
from bsdkit.store import Store
from tests.conftest import ROOT
from tests.runs.test_whole_chain import part_of_store

NAME = "a_dummy"


@pytest.fixture
def dummies(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head, a calibration, an ensemble method and a decoder that nobody else knows."""
    monkeypatch.setattr(heads, "_classes", dict(heads.head_classes()))
    for place in (calibrate.CALIBRATIONS, ensemble.METHODS, decode.DECODERS):
        monkeypatch.delitem(place, NAME, raising=False)
        monkeypatch.setitem(place, NAME, None)  # is taken out again, whatever stands there then
        del place[NAME]

    @heads.register(NAME)
    class Dummy(LinearHead):
        cost: ClassVar[float] = 1.0
        uses_families: ClassVar[str] = "a dummy of families"

    @calibrate.register(NAME)
    class Sharper(calibrate.Calibration):
        parameters: ClassVar[tuple[str, ...]] = ("power",)

        @staticmethod
        def fit(p, labels, taxonomy):  # type: ignore[no-untyped-def]
            return {"power": [2.0]}

        @staticmethod
        def apply(p, parameters):  # type: ignore[no-untyped-def]
            powers = p ** parameters["power"][0]
            return powers / powers.sum(axis=1, keepdims=True)

    @ensemble.register(NAME, "the last member alone")
    def last(problem: ensemble.Problem) -> np.ndarray:
        return np.eye(len(problem.names))[-1]

    @decode.register(NAME, "the least probable class")
    def least(probabilities, taxonomy):  # type: ignore[no-untyped-def]
        return probabilities.argmin(axis=1)


def test_a_new_name_is_written_in_one_place(dummies: None, tmp_path: Path) -> None:
    every = np.arange(len(Store(ROOT / "cache/starter").clips))
    for name, rows in (("dev", every[every % 6 == 0]), ("eval", every[every % 40 == 1])):
        part_of_store(ROOT / "cache/starter", tmp_path / name, rows)
    said = {
        "name": "dummies",
        "store": str(tmp_path / "dev"),
        "split": "group",
        "folds": 2,
        "members": {name: {"head": NAME, "features": "minilm", "C": c}
                    for name, c in (("a", 0.1), ("b", 0.01))},
        "calibrate": NAME,
        "ensemble": {"method": NAME},
        "decode": NAME,
    }  # fmt: skip
    folder = fit(recipe_from(said, "a test"), tmp_path / "runs").folder
    assert NAME in (folder / "report.html").read_text()
    run = load_run(folder)
    assert run.weights == {"a": 0.0, "b": 1.0}
    submitted = submit([run], Store(tmp_path / "eval"), tmp_path, "Doe_Uni_task1")
    (meta,) = submitted.folder.rglob("*.meta.yaml")
    described = yaml.safe_load(meta.read_text())["system"]["description"]
    assert f"{NAME} calibration of each member" in described["ensemble_method"]
    assert "the last member alone" in described["ensemble_method"]
    for words in ("a dummy of families", "the least probable class"):
        assert words in described["hierarchical_setting"]


@pytest.mark.parametrize("place", [calibrate.CALIBRATIONS, ensemble.METHODS, decode.DECODERS])
def test_a_name_is_registered_once_and_looked_up_with_the_nearest(place: dict) -> None:  # type: ignore[type-arg]
    first = next(iter(place))
    with pytest.raises(ValueError, match="registered twice"):
        place.add(first, place[first])  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=f"is not known; did you mean '{first}'"):
        place[first + "x"]
