"""Runs side by side: their scores on the same clips under the same folds, against one of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.challenge.submit import parameters_of, trees_in
from bsdkit.combine.rerank import Reranker
from bsdkit.errors import BsdkitError, RecipeError, nearest
from bsdkit.experiments.leaderboard_table import Entry, Leaderboard
from bsdkit.metrics import bootstrap
from bsdkit.runs.folder import Run, load_run
from bsdkit.runs.predict import with_inputs
from bsdkit.verdicts import System, compare_systems, judge

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
    left_out: dict[str, str] = {}
    runs: dict[str, Run] = {}
    for folder in folders:
        name = folder.resolve().name
        if name in runs:
            raise RecipeError(
                f"two runs are called {name!r}: {runs[name].folder} and {folder}; rename a folder"
            )
        try:
            runs[name] = load_run(folder)
        except BsdkitError as error:
            if is_strict:
                raise
            left_out[str(folder)] = str(error)
    if not runs or (baseline and baseline not in runs):
        known = nearest(baseline, runs) if runs else next(iter(left_out.values()))
        raise RecipeError(f"no run {baseline!r} among these: {known}")
    first = baseline or next(iter(runs))
    split = split or runs[first].split
    truth, ours, digest = _decided(runs[first], split)
    taxonomy = runs[first].clips.taxonomy
    decided: dict[str, System] = {}
    parameters: dict[str, int | None] = {}
    for name, run in runs.items():
        try:
            _, theirs, other = _decided(run, split)
            if other != digest:
                raise RecipeError(
                    f"{run.folder} has other clips, labels, classes or folds than "
                    f"{runs[first].folder}: fit both on the same store, with split: {split}"
                )
            parameters[name] = _parameters(run)
            decided[name] = theirs
        except BsdkitError as error:
            if is_strict:
                raise
            left_out[str(run.folder)] = str(error)
    against = judge(
        {
            name: compare_systems(truth, theirs, ours, taxonomy)
            for name, theirs in decided.items()
            if name != first and not np.array_equal(theirs.classes, ours.classes)
        }
    )
    entries = []
    for name, theirs in decided.items():
        run = runs[name]
        scores = bootstrap(truth, theirs.classes, taxonomy)
        entries.append(
            Entry(
                name=name,
                description=run.recipe.description,
                hF=scores["hF"],
                hF_strict=scores["hF_strict"],
                hA=scores["hA"],
                optimism=run.metrics["protocols"][split]["ensemble"]["optimism"],
                against=against.get(name),
                seconds=float(run.facts.get("seconds", float("nan"))),
                parameters=parameters[name],
                is_mapped=bool(run.recipe.mapped),
            )
        )
    entries.sort(key=lambda entry: -entry.hF_strict.value)
    return Leaderboard(tuple(entries), first, split, len(truth), left_out)


def _decided(run: Run, split: str) -> tuple[IntArray, System, tuple[bytes, ...]]:
    """True and predicted classes [n] of the tested clips, and what makes two runs comparable."""
    if split not in run.metrics["protocols"]:
        raise RecipeError(
            f"{run.folder} was not scored under {split!r} folds, only under "
            f"{', '.join(run.metrics['protocols'])}; fit it with --split {split}"
        )
    found = run.out_of_fold(split)
    fold, tested = found.split.fold, found.split.tested
    labels = np.asarray(run.clips.labels, np.int64)
    ids = "\n".join(map(str, run.clips.ids)).encode()
    same = (ids, labels.tobytes(), fold.tobytes(), repr(run.clips.taxonomy.classes).encode())
    return labels[tested], found.tested, same


def _parameters(run: Run) -> int | None:
    """Numbers in the models of the members that count, equal models once, and in the reranker.

    None where models that were trained elsewhere count, of which nothing is known.
    """
    names = with_inputs(run, run.counting)
    if any(run.recipe.members[name].imported for name in names):
        return None
    sizes: dict[str, int] = {}
    for name in names:
        for model in run.models(name):
            digest = hashlib.sha256()
            for key, array in sorted(model.state.items()):
                digest.update(key.encode() + np.ascontiguousarray(array).tobytes())
            sizes[digest.hexdigest()] = sum(parameters_of(a) for a in model.state.values())
    trees = [trees_in(step.model) for step in run.chain.steps if isinstance(step, Reranker)]
    return sum(sizes.values()) + sum(trees)
