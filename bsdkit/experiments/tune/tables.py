"""What a search for settings found, and its tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from bsdkit.metrics import Comparison, Interval
from bsdkit.report.table import Table, columns
from bsdkit.report.tables import difference, percent, shown_interval
from bsdkit.verdicts import RULE

__all__ = ["StudyRecord", "TrialRecord", "Tuning", "tuning_tables"]


@dataclass(frozen=True)
class TrialRecord:
    """One setting that was tried.

    Attributes:
        number: from 0, in the order of their beginning.
        state: ``complete``; ``pruned``: given up after some folds; ``failed``: a model diverged
            or the setting was refused.
        n_folds: folds that were judged.
        score: pooled hF_strict of those folds' clips; None where no fold was judged.
        settings: by key.
        reason: why it failed.
    """

    number: int
    state: str
    n_folds: int
    score: float | None
    settings: Mapping[str, Any]
    reason: str = ""


@dataclass(frozen=True)
class StudyRecord:
    """One search.

    Attributes:
        name: ``all``, or the fold whose clips it never saw.
        trials: by number.
        best: the complete trial of the highest score, the first of equals.
    """

    name: str
    trials: tuple[TrialRecord, ...]
    best: TrialRecord


@dataclass(frozen=True)
class Tuning:
    """The outcome of `tune`.

    Attributes:
        member: whose settings were searched.
        split: under which folds.
        n_clips: how many clips were tested.
        before: the searched settings as the recipe has them.
        best: the settings found on all folds.
        in_sample: hF_strict of `best`, on the clips that chose it.
        nested: hF_strict of clips predicted with settings chosen without their fold; None where
            that was not asked for.
        untuned: hF_strict of the member as the recipe has it, on the same clips; None where it
            diverged.
        difference: nested minus untuned, by a paired bootstrap over clips.
        studies: that on all folds first, then one a fold.
        importance: share of the score's variance that a key explains in the first study.
        faults: chosen settings that diverged on the fold that they were chosen for.
        folder: where best.yaml and trials.csv lie.
        n_trained: members trained now, one a setting and fold.
        n_reused: members trained before.
        seconds: wall-clock seconds.
    """

    member: str
    split: str
    n_clips: int
    before: Mapping[str, Any]
    best: Mapping[str, Any]
    in_sample: float
    nested: Interval | None
    untuned: Interval | None
    difference: Comparison | None
    studies: tuple[StudyRecord, ...]
    importance: Mapping[str, float]
    faults: tuple[str, ...]
    folder: Path
    n_trained: int
    n_reused: int
    seconds: float

    @property
    def optimism(self) -> float | None:
        """In-sample minus nested hF_strict."""
        return None if self.nested is None else self.in_sample - self.nested.value


def tuning_tables(tuning: Tuning) -> list[Table]:
    """The best setting, its score on clips that did not choose it, and what the search cost."""
    folds = [study for study in tuning.studies if study.name != "all"]
    left = ("key", "best without each fold")
    heading = ["key", "recipe", "best"]
    heading += ["best without each fold"] if folds else []
    heading += ["importance, in %"] if tuning.importance else []
    settings = Table(columns(*heading, left=left), f"settings of {tuning.member}")
    for key in sorted(tuning.best, key=lambda key: -tuning.importance.get(key, 0)):
        row: list[str | Text] = [
            key,
            _shown(tuning.before[key]),
            Text(_shown(tuning.best[key]), "bold"),
        ]
        if folds:
            row.append("  ".join(_shown(study.best.settings[key]) for study in folds))
        if tuning.importance:
            row.append(percent(tuning.importance.get(key, 0), 0))
        settings.add(*row)

    scores = Table(
        columns("", "hF_strict", "95 % interval", left=[""]),
        f"hF_strict, {tuning.split} folds ({tuning.n_clips} clips)",
        notes=_remarks(tuning),
    )
    if tuning.untuned:
        scores.add("as the recipe has it", *_scored(tuning.untuned))
    if tuning.nested:
        scores.add("tuned, nested", *_scored(tuning.nested), style="bold")
    scores.add("tuned on the clips it is scored on", percent(tuning.in_sample), style="dim")
    return [settings, scores]


def _remarks(tuning: Tuning) -> list[str]:
    lines = []
    if tuning.nested is None or tuning.optimism is None:
        lines.append(
            "the score is in-sample: the setting was chosen on the clips that it is scored on, so "
            "it is no estimate for other clips; leave out --nested none to get one"
        )
    else:
        lines.append(f"optimism of tuning: {percent(tuning.optimism)} points")
        d = tuning.difference
        if d is not None:
            lines.append(f"tuned, nested, against the recipe: {difference(vars(d))}, {d.verdict}")
            lines.append(RULE)
    if tuning.untuned is None:
        lines.append("the member diverges as the recipe has it, so there is nothing to compare")
    lines += [f"scored by class shares, {fault}" for fault in tuning.faults]
    trials = [trial for study in tuning.studies for trial in study.trials]
    states = Counter(trial.state for trial in trials)
    counts = ", ".join(f"{states[s]} {s}" for s in ("complete", "pruned", "failed") if states[s])
    n = len(tuning.studies)
    lines.append(f"{len(trials)} trials in {n} {'study' if n == 1 else 'studies'}: {counts}")
    reasons = Counter(trial.reason for trial in trials if trial.reason)
    lines += [f"  failed, {n}: {reason}" for reason, n in reasons.most_common(3)]
    return lines


def _scored(interval: Interval) -> tuple[str, str]:
    return percent(interval.value), shown_interval(vars(interval))


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
