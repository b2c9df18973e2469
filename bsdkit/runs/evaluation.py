"""A finished run on a second labelled store, of which nothing was ever selected or learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bsdkit.combine.decode import decode
from bsdkit.combine.ensemble import combine
from bsdkit.dataset import Clips
from bsdkit.errors import BsdkitError, RecipeError, nearest
from bsdkit.metrics import bootstrap, evaluate
from bsdkit.runs.folder import Run
from bsdkit.runs.near import audio_feature, near_copies
from bsdkit.runs.predict import (
    chain_probabilities,
    member_probabilities,
    needed_features,
    training_clips,
    with_inputs,
)
from bsdkit.store.store import Store

__all__ = ["TestAudit", "evaluate_run"]

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class TestAudit:
    """What a test store has in common with the clips that a run was trained on.

    Attributes:
        n_clips: clips of the store.
        n_unlabelled: clips without a label, which are not scored.
        n_trained_on: clips that the run was trained on, by id, which are not scored.
        n_equal: other clips whose file or sound is one of training, which are not scored.
        n_unread: clips on either side whose sound is not known, so not compared.
        n_uploader_known: scored clips of a known uploader.
        n_uploaders: their uploaders.
        n_shared_uploaders: those of them who are in training too.
        n_of_shared_uploaders: scored clips of these.
        n_near: scored clips that are nearly the same as a training clip in an audio feature;
            None where that was not looked for.
        near_in: that feature; or why it was not looked for.
    """

    __test__ = False  # pytest takes it for a class of tests

    n_clips: int
    n_unlabelled: int
    n_trained_on: int
    n_equal: int
    n_unread: int
    n_uploader_known: int
    n_uploaders: int
    n_shared_uploaders: int
    n_of_shared_uploaders: int
    n_near: int | None
    near_in: str


def evaluate_run(run: Run, store: Store) -> dict[str, Any]:
    """Scores of a run, and of each of its members, on a labelled store that it never saw.

    Clips that the run was trained on, and copies of those, are left out and counted.

    Args:
        run: the run; each member is the mean of its models of all folds and seeds.
        store: with the features of all members that did not diverge.

    Returns:
        As JSON holds it: ``store``, ``n_tested``, ``n_without_prediction``, ``unseen`` (classes
        that no training clip has), ``audit`` (see `TestAudit`), and under ``scores``, by member
        and last under the empty name for the ensemble, the intervals of every score,
        ``never_predicted`` and ``per_class``.

    Raises:
        RecipeError: the store has no labelled clip that the run was not trained on, or labels
            that are no classes of the run's.
        StoreError: it lacks a feature or has another spec of it.
    """
    clips = store.clips
    labels = _labels(run, store)
    trained = training_clips(run)
    is_trained, is_equal = _known(clips, trained)
    rows = np.flatnonzero((labels >= 0) & ~is_trained & ~is_equal)
    if not len(rows):
        raise RecipeError(
            f"{store.path} has no clip to score: of {len(clips)}, {int((labels < 0).sum())} have "
            f"no label, {int(is_trained.sum())} were trained on and {int(is_equal.sum())} are "
            "copies of those; the out-of-fold score of a run's own clips is printed by bsdkit fit"
        )
    scores, taxonomy = {}, run.clips.taxonomy
    classes, is_fallback = _classes(run, store)
    for name, predicted in classes.items():
        pooled = evaluate(labels[rows], predicted[rows], taxonomy, warn=False)
        intervals = bootstrap(labels[rows], predicted[rows], taxonomy)
        scores[name] = {
            **{metric: vars(interval) for metric, interval in intervals.items()},
            "never_predicted": list(pooled.never_predicted),
            "per_class": pooled.to_dict()["per_class"],
        }
    unseen = np.setdiff1d(labels[rows], run.clips.labels)
    return {
        "store": str(store.path),
        "n_tested": len(rows),
        "n_without_prediction": int(is_fallback[rows].sum()),
        "unseen": [taxonomy.labels[c] for c in unseen],
        "audit": asdict(_audit(run, store, rows, labels, trained, is_trained, is_equal)),
        "scores": scores,
    }


def _classes(run: Run, store: Store) -> tuple[dict[str, IntArray], BoolArray]:
    """Predicted classes [n] by member, those of the ensemble last, and who has its fallback.

    They are those of `predict_run`, with the features and the members' predictions made once.
    """
    specs = {name: fact["spec"] for name, fact in run.facts["features"].items()}
    wanted = needed_features(run, every=True)
    features = store.features(wanted, {name: specs[name] for name in wanted})
    said = member_probabilities(run, with_inputs(run, run.names), features)
    found = {name: combine(said[name][None], [1.0], run.prior).argmax(axis=1) for name in run.names}
    counting = {name: said[name] for name in run.counting}
    probabilities, is_fallback = chain_probabilities(run, counting, features)
    found[""] = decode(probabilities, run.recipe.decode, run.clips.taxonomy)
    return found, is_fallback


def _labels(run: Run, store: Store) -> IntArray:
    """The store's labels [n] as class positions of the run; -1 where a clip has none."""
    own, theirs = run.clips.taxonomy, store.clips.taxonomy
    if own == theirs:
        return store.clips.labels
    used = {theirs.labels[c] for c in np.unique(store.clips.labels) if c >= 0}
    other = sorted(used - set(own.labels))
    if other:
        raise RecipeError(
            f"{store.path} has {len(other)} classes that {run.folder} does not have, e.g. "
            f"{other[0]!r}: {nearest(other[0], own.labels)}"
        )
    return own.encode(theirs.decode(store.clips.labels))


def _known(clips: Clips, trained: Sequence[Clips]) -> tuple[BoolArray, BoolArray]:
    """[n] whether a clip was trained on by its id, and [n] whether only its sound was."""
    sound_of: dict[str, set[str]] = {}
    sounds: set[str] = set()
    for table in trained:
        for clip, *digests in zip(table.ids, table.sha256, table.sound, strict=True):
            sound_of.setdefault(str(clip), set()).update(d for d in digests if d)
        sounds |= {*table.sha256.tolist(), *table.sound.tolist()}
    sounds.discard("")
    is_trained, is_equal = np.zeros(len(clips), bool), np.zeros(len(clips), bool)
    for i, (clip, *digests) in enumerate(zip(clips.ids, clips.sha256, clips.sound, strict=True)):
        own = {d for d in digests if d}
        theirs = sound_of.get(str(clip))
        # two data sets may both have a clip called 1
        is_trained[i] = theirs is not None and (not own or not theirs or bool(own & theirs))
        is_equal[i] = not is_trained[i] and bool(own & sounds)
    return is_trained, is_equal


def _audit(
    run: Run,
    store: Store,
    rows: IntArray,
    labels: IntArray,
    trained: Sequence[Clips],
    is_trained: BoolArray,
    is_equal: BoolArray,
) -> TestAudit:
    clips = store.clips
    uploader = clips.uploader[rows].astype(str)
    theirs = np.unique(np.concatenate([table.uploader.astype(str) for table in trained]))
    known = uploader != ""
    is_shared = known & np.isin(uploader, theirs)
    n_near, near_in = _near(run, store, rows)
    unread = [int((table.sound == "").sum()) for table in (clips, *trained)]
    return TestAudit(
        n_clips=len(clips),
        n_unlabelled=int((labels < 0).sum()),
        n_trained_on=int(is_trained.sum()),
        n_equal=int(is_equal.sum()),
        n_unread=sum(unread),
        n_uploader_known=int(known.sum()),
        n_uploaders=len(np.unique(uploader[known])),
        n_shared_uploaders=len(np.unique(uploader[is_shared])),
        n_of_shared_uploaders=int(is_shared.sum()),
        n_near=n_near,
        near_in=near_in,
    )


def _near(run: Run, store: Store, rows: IntArray) -> tuple[int | None, str]:
    """Scored clips that an audio feature can hardly tell from a training clip, and which."""
    specs = {name: run.facts["features"][name]["spec"] for name in needed_features(run)}
    name = audio_feature(specs)
    if not name:
        return None, "the run has no embedding"
    try:
        own = Store(run.recipe.store).features([name], {name: specs[name]})
        other = store.features([name], {name: specs[name]})
    except BsdkitError as error:
        return None, str(error)
    X = np.concatenate([own.arrays[name], other.arrays[name][rows]])
    is_there = ~np.concatenate([own.is_missing[:, 0], other.is_missing[rows, 0]])
    side = np.repeat([0, 1], [len(X) - len(rows), len(rows)])
    found = near_copies(X, is_there, side, np.zeros(len(X), np.int64))
    return sum(i >= len(X) - len(rows) for i in found.rows), name
