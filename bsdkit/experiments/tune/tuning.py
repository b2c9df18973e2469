"""The best settings of a member, with their nested score."""

from __future__ import annotations

import csv
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna

from bsdkit.device import check_device
from bsdkit.errors import RecipeError
from bsdkit.experiments.tune.judge import (
    check_nestable,
    predicted_by,
    train_member,
    with_teachers,
)
from bsdkit.experiments.tune.search_space import Choices, Space, as_json, search_space
from bsdkit.experiments.tune.study import HALVING, N_STARTUP, StudyPlan
from bsdkit.experiments.tune.tables import StudyRecord, TrialRecord, Tuning
from bsdkit.experiments.tune.trials import run_studies
from bsdkit.members.extras import read_labels_map
from bsdkit.members.plan import Task
from bsdkit.members.saved import member_key
from bsdkit.members.trainer import MemberTrainer
from bsdkit.metrics import Interval, bootstrap
from bsdkit.recipe.schema import Recipe
from bsdkit.recipe.vary import changed, value_at
from bsdkit.runs.scoring import class_shares
from bsdkit.store.files import file_lock
from bsdkit.store.store import Store
from bsdkit.verdicts import System, compare_systems, judge

__all__ = ["tune"]

IntArray = npt.NDArray[np.int64]


def tune(
    recipe: Recipe,
    runs: Path,
    *,
    member: str = "",
    search: Sequence[str] = (),
    trials: int | None = None,
    nested: bool = True,
    workers: int = 1,
    seed: int = 0,
    device: str = "cpu",
    on_step: Callable[[str], None] | None = None,
) -> Tuning:
    """The best settings of a recipe's member, with their nested score under its first split.

    Each study tries the recipe's own setting first, where the space holds it, then settings at
    random, the same in all studies, then what the sampler proposes. The trials lie in
    ``runs/<name>.tune/``: called again, a study goes on until it has `trials`; with another
    member, space, seed, store, split or code it starts over. Also written there: best.yaml, the
    recipe with the best settings, and trials.csv.

    The same call gives the same result, also where it was interrupted and called again, as long
    as one process works on each study: with `workers` up to the number of studies, which is one
    more than there are folds, and 1 where not nested. Beyond that, processes share a study and
    each of its proposals depends on which trials happened to end before.

    Args:
        recipe: the recipe; its block ``tune`` says what `search` and `trials` leave open.
        runs: folder of all runs.
        member: whose settings; by default the one that the keys name, or the only one.
        search: see `parse_search`; keys may be short: ``dropout`` for ``members.m.dropout``.
            Without any, and without any in the recipe, common settings of the head.
        trials: settings tried in each study; 100 where the recipe has no number either.
        nested: whether to score nested; without it the score is in-sample.
        workers: processes.
        seed: of the proposals.
        device: where torch heads train.
        on_step: called with a line of text before and after each step.

    Raises:
        RecipeError: an unknown member or key, a space that no recipe may have, or no setting
            that could be judged.
        HeadError: a teacher cannot be trained, or a worker was killed.
        StoreError: a feature is missing, stale or incomplete, or another process is tuning the
            same recipe.
        SplitError: the folds cannot be made.
    """
    started = time.perf_counter()
    check_device(device)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    say = on_step or (lambda line: None)
    member, space = search_space(recipe, member, search)
    if trials is None:
        trials = recipe.tune.trials if recipe.tune else 100
    for what, value, least in (("trials", trials, 1), ("workers", workers, 1), ("seed", seed, 0)):
        if value < least:
            raise RecipeError(f"{what} is {value}, expected {least} or more")
    folder = runs / f"{recipe.name}.tune"
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / ".lock", f"tuning {recipe.name}"):
        trainer = MemberTrainer(recipe, runs, device=device, n_jobs=1)
        task = trainer.task(recipe.split[0])
        if nested:
            check_nestable(recipe, member, task.split)
        digest = _digest(trainer, task, member, space, seed)
        plans = [
            StudyPlan(recipe, member, space, folder, held_out, digest, trials, seed, device)
            for held_out in [None, *range(task.split.n_folds if nested else 0)]
        ]
        n_trained, n_reused = run_studies(plans, workers, say)
        studies = [plan.record() for plan in plans]
        _write_trials(folder / "trials.csv", studies, list(space))
        # these served the studies' common trials, whose scores are stored now
        shutil.rmtree(folder / ".members", ignore_errors=True)

        say("scoring")
        before = after = None
        faults: list[str] = []
        untuned = train_member(trainer, recipe, member, task)
        if not untuned.faults:
            before = predicted_by(trainer, recipe, member, untuned, task)
        if nested:
            after, faults = _nested_predictions(trainer, recipe, member, task, studies[1:])
        tuned = changed(recipe, studies[0].best.settings, "")
        chosen = (
            f"Settings of {member} chosen by bsdkit tune on these clips and folds, so that scores "
            "of this recipe on them are in-sample; the nested score is what tune printed."
        )
        update = {
            "name": f"{recipe.name}-tuned",
            "description": f"{recipe.description} {chosen}".strip(),
            "tune": None,
        }
        (folder / "best.yaml").write_text(
            tuned.model_copy(update=update).to_yaml(), encoding="utf-8"
        )
        labels, taxonomy, rows = task.labels, task.taxonomy, task.split.tested
        difference = None
        if before is not None and after is not None:
            difference = compare_systems(
                labels[rows], after.rows(rows), before.rows(rows), taxonomy, share_seeds=True
            )
            difference = judge({"": difference})[""]

        def interval(predicted: System | None) -> Interval | None:
            if predicted is None:
                return None
            return bootstrap(labels[rows], predicted.classes[rows], taxonomy)["hF_strict"]

        prefix = f"members.{member}."
        records = [_short(study, prefix) for study in studies]
        assert records[0].best.score is not None
        importance = plans[0].importance().items()
        return Tuning(
            member=member,
            split=task.split.name,
            n_clips=len(rows),
            before={key.removeprefix(prefix): value_at(recipe, key) for key in space},
            best=records[0].best.settings,
            in_sample=records[0].best.score,
            nested=interval(after),
            untuned=interval(before),
            difference=difference,
            studies=tuple(records),
            importance={key.removeprefix(prefix): share for key, share in importance},
            faults=tuple(faults),
            folder=folder,
            n_trained=n_trained + trainer.n_trained,
            n_reused=n_reused + trainer.n_reused,
            seconds=time.perf_counter() - started,
        )


def _digest(
    trainer: MemberTrainer, task: Task, member: str, space: Mapping[str, Space], seed: int
) -> str:
    """Of everything that a study's scores and proposals depend on."""
    facts: list[str] = [repr(sorted(space.items())), str(seed), str(N_STARTUP), str(HALVING)]
    recipes = [trainer.recipe]
    for key, one in space.items():
        if isinstance(one, Choices):  # e.g. of features, which the store must have
            recipes += [changed(trainer.recipe, {key: value}, "") for value in one.values]
    for recipe in recipes:
        for name, plan in sorted(with_teachers(recipe, member).items()):
            trainer.inputs(plan)
            context = [name]
            for use in plan.extra:
                extra = Store(use.store)
                context += [extra.info(feature).checksum for feature in plan.features]
                context += [str(extra.clips.ids.tolist()), str(extra.clips.labels.tolist())]
                if use.labels_map is not None:
                    context.append(str(sorted(read_labels_map(use.labels_map).items())))
            facts.append(
                member_key(
                    plan,
                    [trainer.infos[feature].checksum for feature in plan.features],
                    trainer.store.clips,
                    task.split,
                    task.device,
                    context=context,
                )
            )
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _nested_predictions(
    trainer: MemberTrainer, recipe: Recipe, member: str, task: Task, studies: Sequence[StudyRecord]
) -> tuple[System, list[str]]:
    """What the setting that was chosen without each clip's fold predicts, and what diverged."""
    n = len(task.labels)
    commonest = class_shares(trainer.store.clips, task.split).argmax(axis=1)
    found: list[System] = []
    faults = []
    for k, study in enumerate(studies):
        tuned = changed(recipe, study.best.settings, "")
        result = train_member(trainer, tuned, member, task, [k])
        if result.faults:
            faults.append(f"diverged with the setting chosen for it: {result.faults[0]}")
            found.append(System(commonest, commonest[None]))
        else:
            found.append(predicted_by(trainer, tuned, member, result, task))
    known = [len(system.seeds) for system in found if system.seeds is not None]
    seeds = np.full((min(known), n), -1) if known else None
    classes = np.full(n, -1)
    for k, system in enumerate(found):
        test = task.split.test(k)
        classes[test] = system.classes[test]
        if seeds is not None:  # a setting in which nothing is random is the same in all
            own = system.classes[None] if system.seeds is None else system.seeds
            seeds[:, test] = own[: len(seeds), test]
    return System(classes, seeds), faults


def _short(study: StudyRecord, prefix: str) -> StudyRecord:
    """The study with keys as they stand below the member."""

    def short(trial: TrialRecord) -> TrialRecord:
        settings = {key.removeprefix(prefix): v for key, v in trial.settings.items()}
        return replace(trial, settings=settings)

    return StudyRecord(study.name, tuple(map(short, study.trials)), short(study.best))


def _write_trials(path: Path, studies: Sequence[StudyRecord], keys: Sequence[str]) -> None:
    """All trials of all studies; a setting that is no number stands as JSON."""
    header = ["study", "number", "state", "n_folds", "hF_strict", *keys, "reason"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for study in studies:
            for t in study.trials:
                score = "" if t.score is None else repr(t.score)
                values = [as_json(t.settings[key]) for key in keys]
                row = [study.name, t.number, t.state, t.n_folds, score, *values, t.reason]
                writer.writerow(row)
