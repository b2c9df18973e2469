"""`make truth`, and that it would notice a leak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.truth import Laboratory, judged, truth_rows


@pytest.mark.slow
def test_every_row_is_at_chance_or_refused(tmp_path: Path) -> None:
    rows = truth_rows(tmp_path)
    assert len(rows) >= 7
    for row in rows:
        assert row.is_honest, row
        if row.leak is not None:
            assert row.leak > row.limit + 0.2, row  # there was something to find


def test_a_leak_is_not_taken_for_chance(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path)
    group, X = lab.groups()
    classes = lab.rng.integers(0, 8, 48)[group]
    store = lab.store(lab.clips(classes, [f"u{g}" for g in group]), X)
    members = {"linear": {"head": "linear", "features": "made"}}
    row = judged("", lab.run(store, "stratified", members=members), group)
    assert row.verdict == "NOT AT CHANCE" and not row.is_honest
    row = judged("", lab.run(store, "group", members=members), group)
    assert row.is_honest and row.chance == pytest.approx(1 / 8, abs=0.05)
    assert np.isfinite(row.limit)
