"""Brings studies to their number of trials, in this process or in several."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import TrialState

from bsdkit.errors import HeadError, RecipeError
from bsdkit.experiments.tune.judge import Judge
from bsdkit.experiments.tune.study import N_STARTUP, TRIED, StudyPlan

__all__ = ["run_studies"]

_SECONDS_BETWEEN_LINES = 20


@dataclass(frozen=True)
class _Share:
    """What one worker does for a study.

    Attributes:
        plan: the study.
        n_trials: how many more trials.
        begun: ids of trials that were begun and not ended, which come first.
    """

    plan: StudyPlan
    n_trials: int
    begun: tuple[int, ...]


def run_studies(
    plans: Sequence[StudyPlan], workers: int, say: Callable[[str], None]
) -> tuple[int, int]:
    """Brings every study to its number of trials; members trained now, and reused.

    Raises:
        HeadError: a worker was killed.
        StoreError: a feature is missing, stale or incomplete.
    """
    shares: list[_Share] = []
    for plan in plans:
        trials = plan.open().get_trials(deepcopy=False)
        n_done = sum(trial.state in TRIED for trial in trials)
        n_left = max(0, plan.n_trials - n_done)
        # what still runs was left by a process that was killed, since nobody else is tuning
        begun = [trial._trial_id for trial in trials if trial.state == TrialState.RUNNING]
        say(f"study {plan.name}: {n_left} trials to do, {n_done} done before")
        n_here = min(max(1, workers // len(plans)), n_left)
        for i in range(n_here):
            n_trials = n_left // n_here + (i < n_left % n_here)
            shares.append(_Share(plan, n_trials, tuple(begun[i::n_here][:n_trials])))
    if workers == 1:
        counts = [_run(share, say) for share in shares]
    else:
        counts = _run_side_by_side(shares, workers, say)
    return sum(n for n, _ in counts), sum(n for _, n in counts)


def _run_side_by_side(
    shares: Sequence[_Share], workers: int, say: Callable[[str], None]
) -> list[tuple[int, int]]:
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    if not shares:
        return []
    n_jobs = min(workers, len(shares))
    found = []
    try:
        for counts in Parallel(n_jobs=n_jobs, backend="loky", return_as="generator_unordered")(
            delayed(_run_in_one_thread)(share) for share in shares
        ):
            found.append(counts)
            say(f"{len(found)} of {len(shares)} parts of the search are done")
    except TerminatedWorkerError:
        raise HeadError(
            "a worker was killed, perhaps out of memory; run the same line again, with fewer "
            "--workers"
        ) from None
    return found


def _run_in_one_thread(share: _Share) -> tuple[int, int]:
    import torch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(1)
    return _run(share, lambda line: None)


def _run(share: _Share, say: Callable[[str], None]) -> tuple[int, int]:
    """Runs a share of a study's trials; members trained and reused."""
    study, judge = share.plan.open(), Judge(share.plan)
    said = time.perf_counter()
    for i in range(share.n_trials):
        begun = optuna.Trial(study, share.begun[i]) if i < len(share.begun) else None
        _run_trial(study, begun or study.ask(), share.plan, judge)
        if time.perf_counter() - said > _SECONDS_BETWEEN_LINES:
            said = time.perf_counter()
            say(f"study {share.plan.name}: {i + 1} of {share.n_trials} trials")
    return judge.trainer.n_trained, judge.trainer.n_reused


def _run_trial(study: optuna.Study, trial: optuna.Trial, plan: StudyPlan, judge: Judge) -> None:
    settings = {key: space.suggest(trial, key) for key, space in plan.space.items()}
    for other in study.get_trials(deepcopy=False, states=TRIED):
        if other.params == trial.params:
            _repeat(study, trial, other)
            return
    n_all = len(judge.folds)
    n_judged, score = 0, math.nan
    try:
        for n_judged, score in judge.scores(settings, is_common=trial.number < N_STARTUP):
            if n_judged < n_all:
                _report(study, trial, score, n_judged)
                if trial.should_prune():
                    break
    except (HeadError, RecipeError) as error:
        # stored as pruned, with NaN: the sampler learns nothing of a trial in optuna's state FAIL
        trial.set_user_attr("reason", str(error))
        _report(study, trial, math.nan, n_judged + 1)
        score = math.nan
    trial.set_user_attr("n_folds", n_judged)
    if n_judged == n_all and math.isfinite(score):
        study.tell(trial, score)
    else:
        study.tell(trial, state=TrialState.PRUNED)


def _report(study: optuna.Study, trial: optuna.Trial, score: float, n_judged: int) -> None:
    known = study.get_trials(deepcopy=False)[trial.number].intermediate_values
    if n_judged not in known:  # else from before an interruption
        trial.report(score, n_judged)


def _repeat(study: optuna.Study, trial: optuna.Trial, other: optuna.trial.FrozenTrial) -> None:
    """Ends a trial as an earlier one of the same settings ended."""
    for step, value in sorted(other.intermediate_values.items()):
        _report(study, trial, value, step)
    for name, value in other.user_attrs.items():
        trial.set_user_attr(name, value)
    # optuna takes no value with a pruned trial: it has the last one reported
    is_complete = other.state == TrialState.COMPLETE
    study.tell(trial, other.value if is_complete else None, other.state)
