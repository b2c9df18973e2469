"""Scores that must be chance, beside what they are: data whose labels cannot be learned honestly.

Every problem is made so that an honest score is chance and a leak is not: the sounds tell who
made them, or which recording they are copies of, and never the class. The same models with the
leak left open show that there was something to be found. Exit code 1 if a row is neither at
chance nor refused.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from bsdkit.dataset import Clips, read_dataset
from bsdkit.errors import RecipeError
from bsdkit.metrics import evaluate
from bsdkit.recipe.schema import recipe_from
from bsdkit.report.table import Table, columns
from bsdkit.report.tables import percent
from bsdkit.runs.evaluation import evaluate_run
from bsdkit.runs.fit import fit_recipe
from bsdkit.runs.folder import Run, load_run
from bsdkit.splits import make_split
from bsdkit.store.feature import OK, FeatureRows, feature_path, write_feature
from bsdkit.store.imports import import_probabilities
from bsdkit.store.probabilities import export_probabilities
from bsdkit.store.store import Store

Ints = npt.NDArray[np.int64]

N_GROUPS, N_EACH, N_CLASSES, DIM = 48, 10, 8, 32
N = N_GROUPS * N_EACH
N_PERMUTATIONS = 1000

MEMBERS = {
    "small": {"head": "mlp", "features": "made", "hidden": 64, "epochs": 15},
    "linear": {"head": "linear", "features": "made"},
}
CHAIN = {
    "calibrate": "vector",
    "ensemble": {"method": "weights", "trials": 30},
    "rerank": {},
    "adjust": {},
}


@dataclass(frozen=True)
class Row:
    """One thing that was tried.

    Attributes:
        what: in a few words.
        protocol: the folds.
        score: hF_strict; None where it was refused.
        limit: what one score in a thousand exceeds by chance.
        chance: the mean of those.
        leak: hF_strict with the leak left open; None where there is none to show.
        verdict: ``at chance``, ``refused`` with the reason, or ``NOT AT CHANCE``.
    """

    what: str
    protocol: str
    score: float | None = None
    chance: float = 0.0
    limit: float = 0.0
    leak: float | None = None
    verdict: str = ""

    @property
    def is_honest(self) -> bool:
        """Whether the score is chance, or was refused."""
        return self.verdict.startswith(("at chance", "refused"))


class Laboratory:
    """Stores and runs of made-up clips in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rng = np.random.default_rng(0)
        self._n = 0

    def clips(
        self, classes: Sequence[int], users: Sequence[str], packs: Sequence[str] = ()
    ) -> Clips:
        """A table as Freesound's API gives it, read as a user's is."""
        path = self._next("csv")
        lines = ["id,username,class,pack"]
        for i, (c, user) in enumerate(zip(classes, users, strict=True)):
            lines.append(f"{path.stem}-{i},{user},c{c},{packs[i] if len(packs) else ''}")
        path.write_text("\n".join(lines) + "\n")
        return read_dataset(path, "flat", keep_columns=["pack"] if len(packs) else [])[0]

    def store(self, clips: Clips, X: npt.NDArray[np.floating[Any]]) -> Store:
        """A store of these clips with one feature."""
        store = Store.create(self._next(""), clips)
        spec = {"kind": "audio", "sample_rate": 16000, "made": True}
        n = len(clips)
        rows = FeatureRows(
            clips.ids, clips.sound, np.full(n, OK, np.uint8), np.full(n, "", object),
            X.astype(np.float32),
        )  # fmt: skip
        write_feature(feature_path(store.path, "made", spec), "made", spec, rows, {})
        return store

    def run(self, store: Store, split: str, **changes: Any) -> Run:
        """A fitted recipe."""
        said = {
            "name": self._next("").name, "store": str(store.path), "split": split, "folds": 4,
            "seeds": [0, 1], "members": MEMBERS, "ensemble": {"method": "mean"}, **changes,
        }  # fmt: skip
        return load_run(fit_recipe(recipe_from(said, "truth"), self.folder / "runs").folder)

    def groups(self, n_groups: int = N_GROUPS) -> tuple[Ints, npt.NDArray[np.float64]]:
        """The group [N] of each clip, and sounds [N, DIM] that tell it and nothing else."""
        group = np.arange(N) % n_groups
        centres = 3 * self.rng.standard_normal((n_groups, DIM))
        return group, centres[group] + self.rng.standard_normal((N, DIM))

    def _next(self, suffix: str) -> Path:
        self._n += 1
        return self.folder / (f"m{self._n}.{suffix}" if suffix else f"m{self._n}")


def judged(what: str, run: Run, units: Ints, leak: Run | None = None) -> Row:
    """The row of a run whose labels were drawn by unit."""
    split = run.split
    found = run.out_of_fold()
    rows = found.split.tested
    labels, predicted = run.clips.labels, found.decided
    rng = np.random.default_rng(1)
    by_unit = np.zeros(units.max() + 1, np.int64)
    by_unit[units] = labels
    draws = [
        evaluate(
            rng.permutation(by_unit)[units][rows], predicted[rows], run.clips.taxonomy, warn=False
        )["hF_strict"]
        for _ in range(N_PERMUTATIONS)
    ]
    score, limit = hf_strict(run), float(np.quantile(draws, 0.999))
    verdict = "at chance" if score <= limit else "NOT AT CHANCE"
    return Row(
        what, split, score, float(np.mean(draws)), limit,
        None if leak is None else hf_strict(leak), verdict,
    )  # fmt: skip


def hf_strict(run: Run) -> float:
    """The headline's nested score."""
    scores = run.metrics["protocols"][run.split]["ensemble"]["nested"]
    return float(scores["hF_strict"]["value"])


def refused(what: str, protocol: str, attempt: Callable[[], object]) -> Row:
    """The row of what must be refused."""
    try:
        attempt()
    except RecipeError as error:
        reason = re.sub(r"\S*/", "", re.split("[,:]", str(error))[0])
        return Row(what, protocol, verdict=f"refused: {reason}")
    return Row(what, protocol, verdict="NOT REFUSED")


def truth_rows(folder: Path) -> list[Row]:
    """Everything that is tried."""
    lab, rows = Laboratory(folder), []
    users = [f"u{i % N_GROUPS}" for i in range(N)]

    # 1. labels drawn for each clip, with every step that learns from them
    group, X = lab.groups()
    classes = lab.rng.integers(0, N_CLASSES, N)
    store = lab.store(lab.clips(classes, users), X)
    run = lab.run(store, "stratified", **CHAIN)
    rows.append(judged("labels permuted; calibrated, weighted, reranked", run, np.arange(N)))

    # 2. one class an uploader: a model that knows the uploader knows the class
    by_user = lab.rng.integers(0, N_CLASSES, N_GROUPS)[group]
    store = lab.store(lab.clips(by_user, users), X)
    run, leak = lab.run(store, "group"), lab.run(store, "stratified")
    rows.append(judged("the sound tells the uploader (column username)", run, group, leak))

    # 3. the same with another column, and noisy clips of the tested groups in training
    packs = [f"p{g}" for g in group]
    nobody = [""] * N
    own = lab.store(lab.clips(by_user, nobody, packs), X)
    more = X + lab.rng.standard_normal(X.shape)
    given, soft = (lab.store(lab.clips(by_user, nobody, packs), more) for _ in range(2))
    extra = [
        {"store": str(given.path)},
        {
            "store": str(soft.path),
            "labels": "soft",
            "teachers": ["linear"],
            "share": 0.5,
            "hard": 0.5,
        },
    ]
    taught = {**MEMBERS, "small": {**MEMBERS["small"], "extra": extra}}
    alone = {"method": "mean", "members": ["small"]}
    run = lab.run(own, "group:pack", members=taught, ensemble=alone)
    leak = lab.run(own, "stratified", members=taught, ensemble=alone)
    rows.append(judged("extra clips of the tested packs, given and soft labels", run, group, leak))

    # 4. every sound under two ids of two uploaders
    pair = np.arange(N) // 2
    sounds = lab.rng.standard_normal((N // 2, DIM))[pair]
    twice = lab.clips(lab.rng.integers(0, N_CLASSES, N // 2)[pair], [f"u{i}" for i in range(N)])
    digests = np.array([f"{k:064x}" for k in pair], object)
    known = lab.store(replace(twice, sha256=digests, sound=digests), sounds)
    near = {"near": {"head": "knn", "features": "made", "k": 1}}
    run = lab.run(known, "group", members=near)
    leak = lab.run(lab.store(twice, sounds), "group", members=near)
    rows.append(judged("every sound under two ids", run, pair, leak))

    # 5. members that were trained elsewhere and saw the labels
    dev = lab.store(lab.clips(classes, users), X)
    theirs = make_split("stratified", dev.clips, n_folds=4, seed=7)
    perfect = np.eye(N_CLASSES)[dev.clips.labels]
    for what, fold in (
        ("an imported member of other folds", theirs.fold),
        ("an imported member that was trained on all clips", np.full(N, -1)),
    ):
        store = lab.store(dev.clips, X)
        path = folder / f"import-{len(rows)}.npz"
        export_probabilities(path, list(dev.clips.ids), perfect, dev.clips.taxonomy, fold=fold)
        import_probabilities(store, path, "theirs")
        member = {"theirs": {"imported": "theirs"}}
        rows.append(
            refused(what, "group", lambda s=store, m=member: lab.run(s, "group", members=m))
        )

    # 6. a run scored on its own clips
    seen = lab.run(dev, "group")
    what = "evaluate --on the store it was fitted on"
    rows.append(refused(what, "", lambda: evaluate_run(seen, dev)))
    return rows


def truth_table(rows: Sequence[Row]) -> Table:
    """One row a thing that was tried."""
    heading = ("what is tried", "folds", "hF_strict", "chance", "0.1 % limit", "leak left open",
               "verdict")  # fmt: skip
    table = Table(
        columns(*heading, left=["what is tried", "folds", "verdict"]),
        "labels that cannot be learned honestly",
        notes=[
            "leak left open: the same models with folds that do not know of it, or with sounds "
            "that were not compared",
            "a member imported without folds cannot be checked by anyone; bsdkit fit names it as "
            "unverified out-of-fold",
        ],
    )
    for row in rows:
        figures = ["" if v is None else percent(v, 1) for v in (row.score, row.leak)]
        chance = ["", ""] if row.score is None else [percent(row.chance, 1), percent(row.limit, 1)]
        table.add(row.what, row.protocol, figures[0], *chance, figures[1], row.verdict)
    return table


def main() -> int:
    """Prints the table."""
    with tempfile.TemporaryDirectory(prefix="bsdkit-truth-") as folder:
        rows = truth_rows(Path(folder))
    truth_table(rows).to_rich(Console(width=None if sys.stdout.isatty() else 1000))
    return 0 if all(row.is_honest for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
