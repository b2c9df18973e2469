"""Runs side by side, and their table."""

from __future__ import annotations

from dataclasses import dataclass

from bsdkit.metrics import Comparison, Interval
from bsdkit.report.table import Table, columns
from bsdkit.report.tables import difference, percent, shown_interval, shown_p
from bsdkit.verdicts import RULE

__all__ = ["Entry", "Leaderboard", "leaderboard_table"]

_COLUMNS = ("run", "hF_strict", "95 % interval", "hF", "hA", "optimism", "against", "p (Holm)",
            "verdict", "seconds", "parameters")  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One run of a leaderboard.

    Attributes:
        name: the run's.
        description: its recipe's.
        hF: nested, with its interval.
        hF_strict: the same, a class that is never predicted counting 0.
        hA: the same.
        optimism: how much better, in hF_strict, what was tuned would look on the clips that it
            was tuned on.
        against: hF_strict over the baseline's, paired; None for the baseline, or where nothing
            differs.
        seconds: of its fit; what was trained before is not in it.
        parameters: of the models that count, equal ones once, and of the reranker, frozen
            backbones apart; None where models that were trained elsewhere count.
        is_mapped: whether it ran on other features than its recipe names.
    """

    name: str
    description: str
    hF: Interval  # noqa: N815
    hF_strict: Interval  # noqa: N815
    hA: Interval  # noqa: N815
    optimism: float
    against: Comparison | None
    seconds: float
    parameters: int | None
    is_mapped: bool


@dataclass(frozen=True)
class Leaderboard:
    """Runs on the same clips, the best first.

    Attributes:
        entries: by hF_strict.
        baseline: name of the run that the others are compared with.
        split: the folds.
        n_clips: clips that are scored.
        left_out: why a run is not among the entries, by its folder.
    """

    entries: tuple[Entry, ...]
    baseline: str
    split: str
    n_clips: int
    left_out: dict[str, str]


def _rows(board: Leaderboard) -> list[list[str]]:
    rows = []
    for entry in board.entries:
        score, verdict, against, p = entry.hF_strict, "", "", ""
        if entry.name == board.baseline:
            verdict = "baseline"
        elif entry.against is None:
            verdict = "the same predictions"
        else:
            against = difference(vars(entry.against))
            p, verdict = shown_p(entry.against), entry.against.verdict
        rows.append(
            [
                entry.name,
                percent(score.value),
                shown_interval(vars(score)),
                percent(entry.hF.value),
                percent(entry.hA.value),
                percent(entry.optimism),
                against,
                p,
                verdict,
                f"{entry.seconds:.0f}",
                "" if entry.parameters is None else f"{entry.parameters / 1e6:.2f} M",
            ]
        )
    return rows


def _notes(board: Leaderboard) -> list[str]:
    notes = [
        RULE,
        "seconds are of a run's own fit; members that another had trained are not in them",
    ]
    notes += [f"left out: {reason}" for reason in board.left_out.values()]
    mapped = [entry.name for entry in board.entries if entry.is_mapped]
    if mapped:
        notes.append(
            f"{len(mapped)} of {len(board.entries)} runs are mapped: they have other features, "
            "stores or settings than their recipes name, so these figures are not the originals'"
        )
    return notes


def leaderboard_table(board: Leaderboard) -> Table:
    """Runs, the best first, with paired differences from the baseline."""
    table = Table(
        columns(*_COLUMNS, left=["run", "verdict"]),
        f"{board.split} folds, {board.n_clips} clips, nested, out of fold; differences in "
        f"hF_strict, paired with {board.baseline}",
        notes=_notes(board),
    )
    for row in _rows(board):
        table.add(*row)
    return table
