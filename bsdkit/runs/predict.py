"""A finished run on clips: those that it has never seen, and its own out of fold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.combine.decode import decode
from bsdkit.combine.ensemble import combine
from bsdkit.combine.evidence import Evidence
from bsdkit.dataset import Clips
from bsdkit.errors import RecipeError, StoreError, nearest
from bsdkit.members.imported import (
    check_classes,
    check_imported,
    imported_probabilities,
    similarity_of,
)
from bsdkit.members.member import predict_member
from bsdkit.members.trainer import member_inputs, member_plan
from bsdkit.runs.folder import Run
from bsdkit.store.probabilities import export_probabilities
from bsdkit.store.store import Features, Store

__all__ = [
    "Prediction",
    "chain_probabilities",
    "export_run",
    "member_probabilities",
    "needed_features",
    "out_of_fold",
    "predict_run",
    "training_clips",
    "with_inputs",
]

FloatArray = npt.NDArray[np.float64]


def _counting(run: Run, member: str) -> list[str]:
    """The members that count: one, or those of the ensemble."""
    if not member:
        return run.counting
    if member not in run.recipe.members:
        raise RecipeError(
            f"run {run.folder} has no member {member!r}: {nearest(member, run.recipe.members)}"
        )
    if member in run.metrics["protocols"][run.split]["left_out"]:
        raise RecipeError(
            f"member {member!r} of run {run.folder} diverged, so it says nothing; lower its "
            "learning_rate and fit again"
        )
    return [member]


def with_inputs(run: Run, names: Iterable[str]) -> list[str]:
    """The members, each after those whose probabilities are among its inputs."""
    found: list[str] = []
    for name in names:
        for other in [*run.recipe.members[name].probabilities, name]:
            if other not in found:
                found.append(other)
    return found


def needed_features(run: Run, member: str = "", *, every: bool = False) -> list[str]:
    """Features of the members that change a run's predictions, or of one member.

    Args:
        run: which run.
        member: a member's name; empty for the ensemble.
        every: whether members without weight in the ensemble count too.

    Raises:
        RecipeError: the run has no such member.
    """
    names = run.names if every and not member else _counting(run, member)
    members = [run.recipe.members[name] for name in with_inputs(run, names)]
    found = [feature for one in members for feature in one.features]
    if run.recipe.similarity and not member:
        found.append(run.recipe.similarity)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Prediction:
    """What a run says of a store's clips.

    Attributes:
        ids: clip ids [n].
        labels: predicted labels [n].
        scores: probability [n] of the predicted label.
        probabilities: [n, n_classes].
        fallback: ids of clips that no member could see; they have the training class shares.
        partial: ids of clips that some member could not see.
        trained_on: ids of clips that the run was trained on, so that no score of them is honest.
        truth: true labels [n] where the store knows them all, else None.
    """

    ids: npt.NDArray[np.object_]
    labels: list[str]
    scores: npt.NDArray[np.float64]
    probabilities: npt.NDArray[np.float64]
    fallback: tuple[str, ...]
    partial: tuple[str, ...]
    trained_on: tuple[str, ...]
    truth: list[str] | None

    @property
    def seen(self) -> npt.NDArray[np.float64]:
        """Probabilities [n, n_classes]; NaN in the rows of the fallback."""
        is_unseen = np.isin(self.ids.astype(str), np.array(self.fallback, str))
        return np.where(is_unseen[:, None], np.nan, self.probabilities)


def out_of_fold(run: Run, member: str = "") -> npt.NDArray[np.float64]:
    """Probabilities [n_clips, n_classes] of a run's own clips by models that did not see them.

    They are those of the headline split: the nested ensemble's, or one member's. Rows of
    clips that no fold tests or no member could see are NaN, without the run's fallback.

    Raises:
        RecipeError: the run has no such member.
        StoreError: the run's oof.h5 is missing or broken.
    """
    if member:
        _counting(run, member)  # refuses one that is not there
        return run.member_out_of_fold(member)
    return run.out_of_fold().seen


def export_run(run: Run, path: Path, member: str = "") -> int:
    """Writes a run's out-of-fold probabilities, with the folds; returns the number of clips.

    Clips without a prediction have no row.

    Raises:
        RecipeError: the run has no such member.
        StoreError: the run's oof.h5 is missing or broken.
        DatasetError: the file cannot be written.
    """
    found = run.out_of_fold()
    probabilities = out_of_fold(run, member) if member else found.seen
    rows = np.flatnonzero(~np.isnan(probabilities[:, 0]))
    if not len(rows):
        raise RecipeError(f"run {run.folder} has no out-of-fold probabilities of any clip")
    export_probabilities(
        path,
        [str(clip) for clip in run.clips.ids[rows]],
        probabilities[rows],
        run.clips.taxonomy,
        fold=found.split.fold[rows],
    )
    return len(rows)


def training_clips(run: Run, member: str = "") -> list[Clips]:
    """The clips tables that a run's models, or one member's, were trained on.

    They are the run's own and those of the extra stores of the members that count, of their
    teachers, and of the teachers of those.

    Raises:
        RecipeError: the run has no such member.
        StoreError: an extra store is not there any more.
    """
    names = _counting(run, member)
    for name in names:  # grows by the teachers
        names += [t for t in run.recipe.members[name].teachers if t not in names]
    stores = dict.fromkeys(e.store for name in names for e in run.recipe.members[name].extra)
    return [run.clips, *(Store(store).clips for store in stores)]


def _known_ids(run: Run, member: str) -> npt.NDArray[np.str_]:
    try:
        tables = training_clips(run, member)
    except StoreError:  # an extra store that is gone cannot be asked
        tables = [run.clips]
    return np.concatenate([table.ids.astype(str) for table in tables])


def member_probabilities(
    run: Run, names: Sequence[str], features: Features
) -> dict[str, FloatArray]:
    """What members say of clips [n, n_classes]; NaN in rows whose features are missing.

    Args:
        run: whose models.
        names: members, each after those whose probabilities it takes.
        features: of the clips.
    """
    said: dict[str, FloatArray] = {}
    for name in names:
        plan = member_plan(name, run.recipe)
        inputs = member_inputs(plan, features)
        if plan.is_imported:
            check_imported(features.infos[plan.features[0]])
            check_classes(features.infos[plan.features[0]], run.clips.taxonomy)
            said[name] = imported_probabilities(inputs)
            continue
        if plan.probabilities:
            others = np.stack([said[other] for other in plan.probabilities])
            inputs = inputs.with_probabilities(others)
        said[name] = predict_member(plan, run.models(name), inputs, run.clips.taxonomy)
    return said


def chain_probabilities(
    run: Run,
    said: Mapping[str, FloatArray],
    features: Features,
) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Probabilities [n, n_classes] after all steps, and which rows no member could see.

    Args:
        run: its steps, and its class shares for a clip that no member could see.
        said: see `member_probabilities`; a member that is not there has no prediction.
        features: for the similarity of metadata, where the reranker asks for it.
    """
    n = len(next(iter(said.values())))
    nothing = np.full((n, len(run.clips.taxonomy)), np.nan)
    similarity = None
    if run.recipe.similarity:
        similarity = similarity_of(run.recipe.similarity, features, len(run.clips.taxonomy))
    evidence = Evidence(
        np.stack([said.get(name, nothing) for name in run.names]), similarity=similarity
    )
    rows = np.flatnonzero(run.chain.seen(evidence))
    result = np.tile(run.prior, (n, 1))
    if len(rows):
        result[rows] = run.chain.apply(evidence.rows(rows))
    return result, ~np.isin(np.arange(n), rows)


def predict_run(run: Run, store: Store, member: str = "") -> Prediction:
    """Predictions of a run, or of one of its members, for every clip of a store.

    Each member is the mean of its models of all folds and seeds; the steps after the members are
    those fitted on all development clips. The store's features must have the specs that the run
    was trained on.

    Raises:
        RecipeError: the run has no such member.
        StaleStore: a feature has another spec.
        StoreError: the store lacks a feature.
    """
    names = _counting(run, member)
    wanted = needed_features(run, member)
    expect = {f: run.facts["features"][f]["spec"] for f in wanted}
    features = store.features(wanted, expect)
    said = member_probabilities(run, with_inputs(run, names), features)
    stack = np.stack([said[name] for name in names])
    taxonomy = run.clips.taxonomy
    if member:
        probabilities = combine(stack, [1.0], run.prior)
        is_fallback = np.isnan(stack[0, :, 0])
        best = probabilities.argmax(axis=1)
    else:
        probabilities, is_fallback = chain_probabilities(run, said, features)
        best = decode(probabilities, run.recipe.decode, taxonomy)
    ids = store.clips.ids
    is_partial = np.isnan(stack[:, :, 0]).any(axis=0) & ~is_fallback
    has_truth = store.clips.is_labelled and store.clips.taxonomy == taxonomy
    return Prediction(
        ids=ids,
        labels=[taxonomy.labels[c] for c in best],
        scores=probabilities[np.arange(len(ids)), best],
        probabilities=probabilities,
        fallback=tuple(ids[is_fallback]),
        partial=tuple(ids[is_partial]),
        trained_on=tuple(ids[np.isin(ids.astype(str), _known_ids(run, member))]),
        truth=taxonomy.decode(store.clips.labels) if has_truth else None,
    )
