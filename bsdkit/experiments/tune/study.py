"""A study: what it proposes, where its trials lie, and what they found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from bsdkit.errors import RecipeError
from bsdkit.experiments.tune.search_space import Space
from bsdkit.experiments.tune.tables import StudyRecord, TrialRecord
from bsdkit.recipe.schema import Recipe
from bsdkit.recipe.vary import value_at

__all__ = ["HALVING", "N_STARTUP", "TRIED", "StudyPlan"]

N_STARTUP = 10
"""Trials drawn at random, the same in all studies, before the sampler learns from them."""

HALVING = 2
"""Of the settings that reach a rung of successive halving, one in so many goes on."""

TRIED = (TrialState.COMPLETE, TrialState.PRUNED)
"""States of a trial that has ended; one that failed is stored as pruned, with its reason."""


@dataclass(frozen=True)
class StudyPlan:
    """One study, as it travels to a worker.

    Attributes:
        recipe: the recipe.
        member: whose settings.
        space: by whole key.
        folder: where the studies lie.
        held_out: the fold that it never meets, if any.
        digest: of what its trials depend on; another digest is another study.
        n_trials: settings tried in all.
        seed: of the proposals, the same for all studies.
        device: where torch heads train.
    """

    recipe: Recipe
    member: str
    space: Mapping[str, Space]
    folder: Path
    held_out: int | None
    digest: str
    n_trials: int
    seed: int
    device: str

    @property
    def name(self) -> str:
        """``all``, or the fold whose clips it never sees."""
        return "all" if self.held_out is None else f"fold {self.held_out}"

    def open(self) -> optuna.Study:
        """The study in the storage, made if need be."""
        own = {key: space.stored(value_at(self.recipe, key)) for key, space in self.space.items()}
        return optuna.create_study(
            study_name=f"{self.name}-{self.digest}",
            storage=JournalStorage(JournalFileBackend(str(self.folder / "studies.log"))),
            direction="maximize",
            load_if_exists=True,
            sampler=_Sampler(
                self.seed,
                0 if self.held_out is None else self.held_out + 1,
                {key: value for key, value in own.items() if value is not None},
            ),
            pruner=optuna.pruners.SuccessiveHalvingPruner(
                min_resource=1, reduction_factor=HALVING, min_early_stopping_rate=0
            ),
        )

    def record(self) -> StudyRecord:
        """What the study found.

        Raises:
            RecipeError: no setting was judged on all its folds.
        """
        # a call with fewer trials finds what it would have found first
        ended = self.open().get_trials(deepcopy=False, states=TRIED)
        trials = tuple(self._record(trial) for trial in ended if trial.number < self.n_trials)
        complete = [trial for trial in trials if trial.state == "complete"]
        if not complete:
            reason = next((trial.reason for trial in trials if trial.reason), "all were pruned")
            raise RecipeError(
                f"study {self.name}: none of {len(trials)} settings could be judged on all "
                f"folds; {reason}"
            )
        best = max(complete, key=lambda trial: (trial.score, -trial.number))
        return StudyRecord(self.name, trials, best)

    def _record(self, trial: optuna.trial.FrozenTrial) -> TrialRecord:
        reason = trial.user_attrs.get("reason", "")
        is_complete = trial.state == TrialState.COMPLETE
        return TrialRecord(
            number=trial.number,
            state="failed" if reason else "complete" if is_complete else "pruned",
            n_folds=trial.user_attrs["n_folds"],
            score=None if reason else trial.value,
            settings={key: one.value(trial.params[key]) for key, one in self.space.items()},
            reason=reason,
        )

    def importance(self) -> dict[str, float]:
        """Share of the variance of complete trials' scores that each key explains, by fANOVA.

        Hutter, Hoos and Leyton-Brown, "An Efficient Approach for Assessing Hyperparameter
        Importance", ICML 2014. Empty where there are too few trials to say.
        """
        complete = self.open().get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        complete = [trial for trial in complete if trial.number < self.n_trials]
        if len(self.space) < 2 or len({trial.value for trial in complete}) < 8:
            return {}
        study = optuna.create_study(direction="maximize")
        study.add_trials(complete)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=self.seed)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
        return {key: float(share) for key, share in found.items()}


class _Sampler(optuna.samplers.BaseSampler):  # type: ignore[misc]
    """Proposals that depend on the seed, the study and the trials before, on nothing else.

    A sampler's random state is lost when a process ends; here each trial, and each key of a random
    one, has a seed of its own, so that a study that was interrupted goes on as it would have.

    Args:
        seed: of all studies.
        study_number: which of them.
        first: what the first trial gets, by key, where it is not drawn.
    """

    def __init__(self, seed: int, study_number: int, first: Mapping[str, Any]) -> None:
        self._seed, self._study_number, self._first = seed, study_number, first
        self._tpe = optuna.samplers.TPESampler()

    def _seed_of(self, *facts: int) -> int:
        return int(np.random.SeedSequence([self._seed, *facts]).generate_state(1)[0])

    def before_trial(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """See optuna."""
        self._tpe = optuna.samplers.TPESampler(
            seed=self._seed_of(trial.number, self._study_number),
            n_startup_trials=N_STARTUP,
            multivariate=True,
            constant_liar=True,  # trials that run elsewhere count as bad: none is tried twice
        )

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, Any]:
        """See optuna."""
        if trial.number < N_STARTUP:
            return {}
        return dict(self._tpe.infer_relative_search_space(study, trial))

    def sample_relative(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, search_space: dict[str, Any]
    ) -> dict[str, Any]:
        """See optuna."""
        return dict(self._tpe.sample_relative(study, trial, search_space))

    def sample_independent(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial, name: str, distribution: Any
    ) -> Any:
        """See optuna."""
        if trial.number == 0 and name in self._first:
            return self._first[name]
        if trial.number >= N_STARTUP:
            return self._tpe.sample_independent(study, trial, name, distribution)
        drawn = optuna.samplers.RandomSampler(self._seed_of(trial.number, *name.encode()))
        return drawn.sample_independent(study, trial, name, distribution)
