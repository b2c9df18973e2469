"""Runs side by side: their scores on the same clips under the same folds, against one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.combine.rerank import Reranker
from bsdkit.errors import CorruptStore, RecipeError, nearest
from bsdkit.metrics import bootstrap, compare, holm
from bsdkit.recipe.artifacts import Run, load_run
from bsdkit.recipe.predict import with_inputs
from bsdkit.recipe.submit import parameters_of, trees_in
from bsdkit.report.leaderboard import Entry, Leaderboard
from bsdkit.store.files import open_h5

__all__ = ["compare_runs", "find_runs"]

IntArray = npt.NDArray[np.int64]


def find_runs(folder: Path) -> list[Path]:
    """The run folders in a folder of runs, by name.

    Raises:
        RecipeError: there are none.
    """
    found = sorted(path.parent for path in folder.glob("*/metrics.json"))
    found = [path for path in found if not path.name.startswith(".")]
    if not found:
        raise RecipeError(f"{folder} holds no runs; make one with bsdkit fit RECIPE.yaml")
    return found


def compare_runs(
    folders: Sequence[Path], *, baseline: str = "", split: str = "", is_strict: bool = True
) -> Leaderboard:
    """Compares runs by their nested predictions.

    Args:
        folders: the runs.
        baseline: name of the one that the others are compared with; empty for the first.
        split: under which folds; empty for the baseline's headline.
        is_strict: whether a run on other clips or folds is an error; else it is left out.

    Raises:
        RecipeError: a folder is no run, there is no such baseline, or see `is_strict`.
    """
    runs = {folder: load_run(folder) for folder in folders}
    named = {run.folder.name: run for run in runs.values()}
    if baseline and baseline not in named:
        raise RecipeError(f"no run {baseline!r} among these: {nearest(baseline, named)}")
    first = named[baseline] if baseline else next(iter(runs.values()))
    split = split or first.split
    truth, ours, digest = _decided(first, split)
    taxonomy = first.clips.taxonomy
    left_out: dict[str, str] = {}
    decided: dict[str, IntArray] = {}
    for folder, run in runs.items():
        try:
            _, theirs, other = _decided(run, split)
            if other != digest:
                raise RecipeError(
                    f"{folder} has other clips, labels or folds than {first.folder}: fit both on "
                    f"the same store, with split: {split}"
                )
            decided[run.folder.name] = theirs
        except RecipeError as error:
            if is_strict:
                raise
            left_out[str(folder)] = str(error)
    against = {
        name: compare(truth, theirs, ours, taxonomy)
        for name, theirs in decided.items()
        if name != first.folder.name and not np.array_equal(theirs, ours)
    }
    corrected = holm({name: c.p_value for name, c in against.items()})
    entries = []
    for name, theirs in decided.items():
        run = named[name]
        scores = bootstrap(truth, theirs, taxonomy)
        entries.append(
            Entry(
                name=name,
                description=run.recipe.description,
                hF=scores["hF"],
                hF_strict=scores["hF_strict"],
                hA=scores["hA"],
                optimism=run.metrics["protocols"][split]["ensemble"]["optimism"],
                against=against.get(name),
                p_value=corrected.get(name),
                seconds=float(run.facts["seconds"]),
                parameters=_parameters(run),
                is_mapped=bool(run.recipe.mapped),
            )
        )
    entries.sort(key=lambda entry: -entry.hF_strict.value)
    return Leaderboard(tuple(entries), first.folder.name, split, len(truth), left_out)


def _decided(run: Run, split: str) -> tuple[IntArray, IntArray, tuple[bytes, ...]]:
    """True and predicted classes [n] of the tested clips, and what makes two runs comparable."""
    if split not in run.metrics["protocols"]:
        raise RecipeError(
            f"{run.folder} was not scored under {split!r} folds, only under "
            f"{', '.join(run.metrics['protocols'])}; fit it with --split {split}"
        )
    path = run.folder / "oof.h5"
    with open_h5(path) as file:
        try:
            decided = np.asarray(file[split]["decided"][()], np.int64)
            fold = np.asarray(file[split]["fold"][()], np.int64)
        except KeyError:
            raise CorruptStore(f"{path} lacks {split!r} folds; run bsdkit fit again") from None
    tested = fold >= 0
    labels = np.asarray(run.clips.labels, np.int64)
    ids = "\n".join(map(str, run.clips.ids)).encode()
    same = (ids, labels.tobytes(), fold.tobytes(), repr(run.clips.taxonomy.labels).encode())
    return labels[tested], decided[tested], same


def _parameters(run: Run) -> int:
    """Numbers in the models of the members that count, and in the reranker's trees."""
    names = with_inputs(run, run.counting)
    trained = [name for name in names if not run.recipe.members[name].imported]
    heads = sum(
        parameters_of(array)
        for name in trained
        for model in run.models(name)
        for array in model.state.values()
    )
    return heads + sum(
        trees_in(step.model) for step in run.chain.steps if isinstance(step, Reranker)
    )
