"""A finished run on clips: those that it has never seen, and its own out of fold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsdkit.combine.ensemble import combine
from bsdkit.dataset import Clips
from bsdkit.errors import CorruptStore, RecipeError, StoreError, nearest
from bsdkit.recipe.artifacts import Run
from bsdkit.recipe.members import member_inputs, member_plan
from bsdkit.store.files import open_h5
from bsdkit.store.store import Store
from bsdkit.train.member import predict_member

__all__ = ["Prediction", "needed_features", "out_of_fold", "predict_run", "training_clips"]


def _weights(run: Run, member: str) -> dict[str, float]:
    """The members that count, with their weights: one, or those of the ensemble."""
    if not member:
        return {name: weight for name, weight in run.weights.items() if weight > 0}
    if member not in run.recipe.members:
        raise RecipeError(
            f"run {run.folder} has no member {member!r}: {nearest(member, run.recipe.members)}"
        )
    return {member: 1.0}


def _with_inputs(run: Run, names: Iterable[str]) -> list[str]:
    """The members, each after those whose probabilities are among its inputs."""
    found: list[str] = []
    for name in names:
        for other in [*run.recipe.members[name].probabilities, name]:
            if other not in found:
                found.append(other)
    return found


def needed_features(run: Run, member: str = "") -> list[str]:
    """Features of the members that have a weight in a run's ensemble, or of one member.

    Raises:
        RecipeError: the run has no such member.
    """
    members = [run.recipe.members[name] for name in _with_inputs(run, _weights(run, member))]
    return list(dict.fromkeys(feature for member in members for feature in member.features))


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
    names = list(run.weights) if not member else list(_weights(run, member))
    path = run.folder / "oof.h5"
    with open_h5(path) as file:
        try:
            group = file[run.split]
            members = [np.asarray(group[f"members/{name}"], np.float64) for name in names]
            probabilities = np.asarray(group["ensemble_nested"], np.float64)
        except KeyError:
            raise CorruptStore(
                f"{path} lacks what {run.split!r} folds left; run bsdkit fit again"
            ) from None
    if member:
        return members[0]
    is_unseen = np.all([np.isnan(p[:, 0]) for p in members], axis=0)
    return np.where(is_unseen[:, None], np.nan, probabilities)


def training_clips(run: Run, member: str = "") -> list[Clips]:
    """The clips tables that a run's models, or one member's, were trained on.

    They are the run's own and those of the extra stores of the members that count, of their
    teachers, and of the teachers of those.

    Raises:
        RecipeError: the run has no such member.
        StoreError: an extra store is not there any more.
    """
    names = list(_weights(run, member))
    for name in names:  # grows by the teachers
        names += [t for t in run.recipe.members[name].teachers if t not in names]
    extra = [run.recipe.members[name].extra for name in names]
    stores = dict.fromkeys(e.store for e in extra if e is not None)
    return [run.clips, *(Store(store).clips for store in stores)]


def _known_ids(run: Run, member: str) -> npt.NDArray[np.str_]:
    try:
        tables = training_clips(run, member)
    except StoreError:  # an extra store that is gone cannot be asked
        tables = [run.clips]
    return np.concatenate([table.ids.astype(str) for table in tables])


def predict_run(run: Run, store: Store, member: str = "") -> Prediction:
    """Predictions of a run's ensemble, or of one member, for every clip of a store.

    Each member is the mean of its models of all folds and seeds, and members are averaged
    with the weights found on all development clips. The store's features must have the
    specs that the run was trained on.

    Raises:
        RecipeError: the run has no such member.
        StaleStore: a feature has another spec.
        StoreError: the store lacks a feature.
    """
    weights = _weights(run, member)
    names = list(weights)
    wanted = needed_features(run, member)
    expect = {f: run.facts["features"][f]["spec"] for f in wanted}
    features = store.features(wanted, expect)
    of_member: dict[str, npt.NDArray[np.float64]] = {}
    for name in _with_inputs(run, names):
        plan = member_plan(name, run.recipe)
        inputs = member_inputs(plan, features)
        if plan.probabilities:
            said = np.stack([of_member[other] for other in plan.probabilities])
            inputs = inputs.with_probabilities(said)
        of_member[name] = predict_member(plan, run.member(name).models, inputs, run.clips.taxonomy)
    stack = np.stack([of_member[name] for name in names])
    probabilities = combine(stack, list(weights.values()), run.prior)
    is_unseen = np.isnan(stack[:, :, 0])
    ids, best = store.clips.ids, probabilities.argmax(axis=1)
    has_truth = store.clips.is_labelled and store.clips.taxonomy == run.clips.taxonomy
    return Prediction(
        ids=ids,
        labels=[run.clips.taxonomy.labels[c] for c in best],
        scores=probabilities.max(axis=1),
        probabilities=probabilities,
        fallback=tuple(ids[is_unseen.all(axis=0)]),
        partial=tuple(ids[is_unseen.any(axis=0) & ~is_unseen.all(axis=0)]),
        trained_on=tuple(ids[np.isin(ids.astype(str), _known_ids(run, member))]),
        truth=store.clips.taxonomy.decode(store.clips.labels) if has_truth else None,
    )
