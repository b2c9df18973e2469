"""Trains the members of recipes, and keeps what was trained for the next time."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.errors import CorruptStore, HeadError, IncompleteStore, RecipeError
from bsdkit.members.extras import class_positions, said_of_unknown
from bsdkit.members.imported import (
    check_classes,
    check_folds,
    check_imported,
    folds_of,
    imported_member,
    similarity_of,
)
from bsdkit.members.member import (
    MemberResult,
    opinions_of,
    pair_probabilities,
    train_members,
)
from bsdkit.members.plan import ExtraClips, ExtraKey, Inputs, MemberPlan, Task
from bsdkit.members.saved import load_member, load_pairs, member_key, save_member, save_pairs
from bsdkit.members.teachers import TeacherTargets, training_waves
from bsdkit.recipe.schema import Recipe
from bsdkit.recipe.teaching import ExtraPlan
from bsdkit.splits import Split, make_split
from bsdkit.store.feature import FeatureInfo
from bsdkit.store.kinds import kind_of
from bsdkit.store.store import Features, Store

__all__ = ["MemberTrainer", "member_inputs", "member_plan"]


def member_plan(name: str, recipe: Recipe) -> MemberPlan:
    """What the trainer needs to know of a recipe's member."""
    member = recipe.members[name]
    return MemberPlan(
        name=name,
        head=member.head,
        settings=member.settings,
        features=tuple(member.features),
        seeds=tuple(member.seeds or recipe.seeds),
        validation=recipe.validation if member.validation is None else member.validation,
        confidence=member.confidence,
        min_confidence=member.min_confidence,
        distillation=member.distill,
        extra=member.extra,
        probabilities=tuple(member.probabilities),
        logit_adjustment=member.logit_adjustment,
    )


def member_inputs(plan: MemberPlan, features: Features) -> Inputs:
    """The member's inputs: its features, concatenated, and which clips have what they need.

    A clip needs every embedding, and priors that were made for it. A prior that was asked for and
    could not be read is zeros; where a member has priors alone, a clip needs one that could.
    """
    parts = [features.arrays[name] for name in plan.features]
    columns = [list(features.arrays).index(name) for name in plan.features]
    X = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    is_there = ~features.is_missing[:, columns]
    may_fail = np.array([kind_of(features.infos[name].spec).may_fail for name in plan.features])
    is_known = is_there | (features.is_failed[:, columns] & may_fail)
    is_present = is_known.all(axis=1) & is_there.any(axis=1)
    return Inputs(X, tuple(p.shape[1] for p in parts), np.asarray(is_present))


def _check_finite(features: Features, store: Store) -> None:
    """Refuses a feature with numbers that no head can learn from."""
    for i, (name, array) in enumerate(features.arrays.items()):
        is_wrong = ~np.isfinite(array).all(axis=1) & ~features.is_missing[:, i]
        if is_wrong.any():
            example = store.clips.ids[np.flatnonzero(is_wrong)[0]]
            raise CorruptStore(
                f"{store.path}: {name} holds NaN or infinity in {int(is_wrong.sum())} clips, e.g. "
                f"{example}; embed them again, or see bsdkit store verify {store.path}"
            )


class MemberTrainer:
    """A store with the members trained on it so far.

    Args:
        recipe: for its store, folds, and what it expects of features; members are asked for
            one call at a time.
        runs: folder of all runs; trained members are kept in its ``.members``.
        device: where torch heads train.
        n_jobs: processes that may train side by side; None for one a processor.
        reuse: whether a member that was trained before with the same inputs, settings, folds
            and code is taken from there.
        on_step: called with a line of text before each step.

    Raises:
        StoreError: the store is missing or has no clips.
    """

    def __init__(
        self,
        recipe: Recipe,
        runs: Path,
        *,
        device: str = "cpu",
        n_jobs: int | None = None,
        reuse: bool = True,
        on_step: Callable[[str], None] | None = None,
    ) -> None:
        self.recipe, self.runs = recipe, runs
        self._device, self._reuse = device, reuse
        self.n_jobs = n_jobs or os.cpu_count() or 1
        self._say = on_step or (lambda line: None)
        self.store = Store(recipe.store)
        if not len(self.store.clips):
            raise IncompleteStore(f"{self.store.path} has no clips")
        self.infos: dict[str, FeatureInfo] = {}
        self.n_missing: dict[str, int] = {}
        self.n_trained = self.n_reused = 0
        self._inputs: dict[tuple[str, ...], Inputs] = {}
        self._new_pairs: set[Path] = set()
        self._extras: dict[ExtraKey, tuple[ExtraClips, str]] = {}

    def task(self, protocol: str) -> Task:
        """Labels, folds and classes under one split.

        Raises:
            SplitError: the folds cannot be made.
        """
        clips, recipe = self.store.clips, self.recipe
        split = make_split(
            protocol, clips, n_folds=recipe.folds, seed=recipe.split_seed, path=recipe.split_file
        )
        return Task(
            labels=clips.labels,
            taxonomy=clips.taxonomy,
            split=split,
            confidence=clips.confidence,
            device=self._device,
            n_jobs=self.n_jobs,
        )

    def inputs(self, plan: MemberPlan) -> Inputs:
        """A member's features of all clips of the store.

        Raises:
            StoreError: a feature is missing, stale, or lacks rows that the recipe does not let
                it lack.
            RecipeError: the feature of an imported member holds no class probabilities.
        """
        if plan.features not in self._inputs:
            expect = {f: e for f, e in self.recipe.expect.items() if f in plan.features}
            features = self.store.features(list(plan.features), expect)
            self._check_missing(plan, features)
            _check_finite(features, self.store)
            self._inputs[plan.features] = member_inputs(plan, features)
            self.infos |= features.infos
            for i, name in enumerate(features.infos):
                self.n_missing[name] = int(features.is_missing[:, i].sum())
        for feature in plan.features:
            check_classes(self.infos[feature], self.store.clips.taxonomy)
        if plan.is_imported:
            check_imported(self.infos[plan.features[0]])
        return self._inputs[plan.features]

    def _check_missing(self, plan: MemberPlan, features: Features) -> None:
        # a reply that cannot be read is an answer too
        kinds = [kind_of(info.spec) for info in features.infos.values()]
        may_fail = np.array([kind.may_fail for kind in kinds])
        is_lacking = features.is_missing & ~(features.is_failed & may_fail)
        n_missing = is_lacking.sum(axis=0)
        if self.recipe.missing == "refuse" and n_missing.any():
            i = int(n_missing.argmax())
            clips = self.store.clips
            example = clips.ids[np.flatnonzero(is_lacking[:, i])[0]]
            kind = kinds[i]
            raise IncompleteStore(
                f"{self.store.path}: {n_missing[i]} of {len(clips)} clips have no "
                f"{plan.features[i]} {kind.row}, e.g. {example}; {kind.again} again, or write "
                "missing: skip in the recipe"
            )

    def train(
        self,
        plans: Mapping[str, MemberPlan],
        task: Task,
        *,
        folds: Sequence[int] | None = None,
    ) -> dict[str, MemberResult]:
        """Out-of-fold probabilities and models of members, trained now or before.

        Args:
            plans: the members by name, their teachers among them.
            task: see `MemberTrainer.task`.
            folds: which folds to train for; None for all.

        Raises:
            HeadError: a member cannot be trained, or a teacher diverged.
            StoreError: a feature or an extra store is missing, stale or incomplete.
        """
        results: dict[str, MemberResult] = {}
        imported: dict[tuple[str, ...], MemberResult] = {}
        keys: dict[str, str] = {}
        for wave in training_waves(plans):
            waiting: list[str] = []
            for name in wave:
                plan = plans[name]
                self.inputs(plan)
                for feature in plan.features:
                    check_folds(self.infos[feature], self.store.clips.ids, task.split)
                if plan.is_imported:  # one array, however many variants name it
                    if plan.features not in imported:
                        imported[plan.features] = imported_member(self.inputs(plan), task.split)
                    results[name] = imported[plan.features]
                    continue
                keys[name] = self._key(plan, task, keys, folds)
                saved = self._folder(keys[name])
                if self._reuse and saved.is_dir():
                    results[name] = load_member(saved)
                    self.n_reused += 1
                elif keys[name] not in [keys[other] for other in waiting]:
                    waiting.append(name)
            if waiting:
                self._train_wave(waiting, plans, task, results, keys, folds)
            for name in wave:  # members that are the same as another under a second name
                if name not in results:
                    results[name] = results[next(w for w in waiting if keys[w] == keys[name])]
        return {name: results[name] for name in plans}

    def on_their_word(self) -> list[str]:
        """Imported features of whose models nobody knows which clips they were trained on."""
        return [
            feature
            for feature, info in self.infos.items()
            if kind_of(info.spec).is_trained_elsewhere and folds_of(info) is None
        ]

    def similarity(self, feature: str, splits: Iterable[Split]) -> npt.NDArray[np.float64]:
        """How near each clip's metadata are to each class, [n_clips, n_classes]; NaN if missing.

        Raises:
            RecipeError: the feature has another number of columns than there are classes, or holds
                probabilities that were made on other folds than one of the splits.
        """
        expect = {f: e for f, e in self.recipe.expect.items() if f == feature}
        features = self.store.features([feature], expect)
        _check_finite(features, self.store)
        self.infos |= features.infos
        self.n_missing[feature] = int(features.is_missing.sum())
        check_classes(features.infos[feature], self.store.clips.taxonomy)
        for split in splits:
            check_folds(features.infos[feature], self.store.clips.ids, split)
        return similarity_of(feature, features, len(self.store.clips.taxonomy))

    def _folder(self, key: str) -> Path:
        return self.runs / ".members" / key

    def _train_wave(
        self,
        names: list[str],
        plans: Mapping[str, MemberPlan],
        task: Task,
        results: dict[str, MemberResult],
        keys: Mapping[str, str],
        folds: Sequence[int] | None,
    ) -> None:
        if len(names) <= 6:
            for name in names:
                plan = plans[name]
                shown = name.partition(":")[2] or name
                self._say(
                    f"training {shown} ({plan.head} on {', '.join(plan.features)}), "
                    f"{task.split.name} folds"
                )
        else:
            self._say(f"training {len(names)} members, {task.split.name} folds")
        wave = [replace(plans[name], name=name) for name in names]
        said = {
            plan.name: self._opinions(plan, plans, task, results) for plan in wave if plan.teachers
        }
        trained = train_members(
            wave,
            self._inputs,
            task,
            extras={key: clips for key, (clips, _) in self._extras.items()},
            opinions=said,
            folds=folds,
        )
        for name, result in trained.items():
            folder = self._folder(keys[name])
            if not self._reuse:
                shutil.rmtree(folder, ignore_errors=True)
            save_member(folder, result)
            results[name] = result
            self.n_trained += 1

    def _opinions(
        self,
        plan: MemberPlan,
        plans: Mapping[str, MemberPlan],
        task: Task,
        results: Mapping[str, MemberResult],
    ) -> TeacherTargets:
        for name in plan.teachers:
            if results[name].faults:
                raise HeadError(
                    f"member {plan.name!r} has the teacher {name!r}, which diverged: "
                    f"{results[name].faults[0]}"
                )
        clips = None
        if plan.distillation is not None:
            clips = np.stack([self._pairs(plans[t], task) for t in plan.distillation.teachers])
        extra = []
        for one in plan.extra:
            said = [
                opinions_of(plans[name], results[name], self._extra(one, plans[name])[0], task)
                for name in one.teachers
            ]
            extra.append(np.stack(said) if said else None)
        inputs = None
        if plan.probabilities:
            inputs = np.stack(
                [self._as_inputs(plans[t], results[t], task) for t in plan.probabilities]
            )
        return TeacherTargets(clips, tuple(extra), inputs)

    def _as_inputs(
        self, plan: MemberPlan, result: MemberResult, task: Task
    ) -> npt.NDArray[np.float64]:
        """A member's probabilities [n_folds, n_clips, n_classes] as inputs of a fold's student."""
        said = self._pairs(plan, task).copy()
        for k, (_, test) in enumerate(task.split):
            said[k, test] = result.mean[test]
        return said

    def _pairs(self, plan: MemberPlan, task: Task) -> npt.NDArray[np.float64]:
        if plan.teachers or plan.extra:
            raise HeadError(
                f"member {plan.name!r} learns from members or extra clips itself, so it cannot "
                "teach development clips or be an input"
            )
        path = self.runs / ".members" / f"{self._key(plan, task, {}, None)}.pairs.h5"
        if path.is_file() and (self._reuse or path in self._new_pairs):
            return load_pairs(path)
        self._new_pairs.add(path)
        self._say(f"training {plan.name} without two folds at a time, to teach with")
        probabilities = pair_probabilities(plan, self.inputs(plan), task)
        save_pairs(path, probabilities)
        return probabilities

    def _key(
        self,
        plan: MemberPlan,
        task: Task,
        keys: Mapping[str, str],
        folds: Sequence[int] | None,
    ) -> str:
        context = []
        if plan.distillation is not None:
            context += [f"clips {keys[name]}" for name in plan.distillation.teachers]
        for one in plan.extra:
            context += [f"extra {keys[name]}" for name in one.teachers]
            context.append(self._extra(one, plan)[1])
        context += [f"input {keys[name]}" for name in plan.probabilities]
        return member_key(
            plan,
            [self.infos[f].checksum for f in plan.features],
            self.store.clips,
            task.split,
            task.device,
            context=context,
            folds=folds,
        )

    def _extra(self, extra: ExtraPlan, plan: MemberPlan) -> tuple[ExtraClips, str]:
        """Clips of another store with a member's features, and a digest of them."""
        place, known = extra.store, plan.extra_key(extra)
        if known in self._extras:
            return self._extras[known]
        self.inputs(plan)
        store = Store(place)
        expect = {f: dict(self.infos[f].spec) for f in plan.features}
        features = store.features(list(plan.features), expect)
        _check_finite(features, store)
        own, other = self.store.clips, store.clips
        labels, unknown = class_positions(other, own.taxonomy, extra.labels_map)
        if unknown and known[:2] not in [key[:2] for key in self._extras]:  # said once
            self._say(f"extra store {place}: {said_of_unknown(unknown)}; they are left unlabelled")
        sounds = set(own.sound.astype(str)) | set(own.sha256.astype(str))
        is_copy = np.isin(other.ids.astype(str), own.ids.astype(str))
        theirs = np.array(sorted(sounds - {""}), str)
        is_copy |= np.isin(other.sha256.astype(str), theirs)
        is_copy |= np.isin(other.sound.astype(str), theirs)
        clips = ExtraClips(member_inputs(plan, features), labels, other, is_copy)
        if not clips.inputs.is_present.any():
            raise RecipeError(f"extra store {place} has no clip with {', '.join(plan.features)}")
        facts = [features.infos[f].checksum for f in plan.features]
        facts += [str(other.ids.tolist()), str(labels.tolist()), str(other.uploader.tolist())]
        facts.append(str(is_copy.tolist()))
        # extra clips are left out by the names of uploaders, of which a key knows the groups
        facts.append(str(own.uploader.tolist()))
        # so are those of other columns; a table without any keeps its key of earlier versions
        facts += [str((k, v.tolist())) for t in (own, other) for k, v in t.columns.items()]
        digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
        self._extras[known] = (clips, digest)
        return self._extras[known]
