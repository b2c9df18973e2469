"""What an ablation found, and its table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bsdkit.metrics import Comparison, Interval, Spread
from bsdkit.report.table import Column, Table
from bsdkit.report.tables import percent, shown_interval, shown_p
from bsdkit.verdicts import ONE_SEED, RULE

__all__ = ["ENSEMBLE", "Ablation", "Judged", "ablation_table"]

ENSEMBLE = "ensemble"
"""What is judged where no member is: the nested ensemble."""


@dataclass(frozen=True)
class Judged:
    """One variant beside the baseline.

    Attributes:
        name: what it is called in the table.
        score: hF_strict of its out-of-fold predictions, seeds averaged, with its interval.
        seeds: of hF_strict over single seeds.
        difference: variant minus baseline, judged beside the other variants.
        fault: the first model's, if it diverged.
        in_sample: hF_strict of steps tuned on the clips that they are scored on; None where no
            step learns.
    """

    name: str
    score: Interval | None
    seeds: Spread | None
    difference: Comparison | None
    fault: str = ""
    in_sample: float | None = None

    @property
    def verdict(self) -> str:
        """``gain``, ``loss``, ``within noise``, that there is one seed, or ``diverged``."""
        return "diverged" if self.difference is None else self.difference.verdict


@dataclass(frozen=True)
class Ablation:
    """The outcome of `ablate`.

    Attributes:
        judged: what was judged: a member's name, or `ENSEMBLE`.
        split: under which folds.
        n_clips: how many clips were tested.
        baseline: the score of the recipe as it stands.
        baseline_seeds: over its single seeds.
        variants: in the order given.
        n_trained: members trained now.
        n_reused: members trained before.
        seconds: wall-clock seconds.
        baseline_in_sample: see `Judged.in_sample`.
        is_at_target: whether scores are those at the recipe's target class frequencies.
    """

    judged: str
    split: str
    n_clips: int
    baseline: Interval
    baseline_seeds: Spread
    variants: tuple[Judged, ...]
    n_trained: int
    n_reused: int
    seconds: float
    baseline_in_sample: float | None = None
    is_at_target: bool = False


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}"


def _rows(ablation: Ablation) -> list[tuple[str, ...]]:
    """The heading and a row a variant, without the columns that would be empty."""
    base = ablation.baseline
    rows: list[tuple[str, ...]] = [
        _COLUMNS,
        ("the recipe as it stands", percent(base.value), shown_interval(vars(base)),
         *_tuned(base, ablation.baseline_in_sample), _spread(ablation.baseline_seeds), "", "", "",
         "")
    ]  # fmt: skip
    for one in ablation.variants:
        if one.score is None or one.difference is None or one.seeds is None:
            rows.append((one.name, *[""] * (len(_COLUMNS) - 2), one.verdict))
            continue
        d = one.difference
        rows.append(
            (
                one.name,
                percent(one.score.value),
                shown_interval(vars(one.score)),
                *_tuned(one.score, one.in_sample),
                _spread(one.seeds),
                f"{_signed(d.difference)} [{_signed(d.low)}, {_signed(d.high)}]",
                "" if d.training_error is None else f"± {percent(d.training_error)}",
                shown_p(d),
                one.verdict,
            )
        )
    kept = [i for i in range(len(_COLUMNS)) if any(row[i] for row in rows[1:])]
    return [tuple(row[i] for i in kept) for row in rows]


def _tuned(nested: Interval, in_sample: float | None) -> tuple[str, str]:
    """The score in sample, and the optimism."""
    if in_sample is None:
        return "", ""
    return percent(in_sample), percent(in_sample - nested.value)


def _spread(found: Spread) -> str:
    return f"± {percent(found.standard_deviation)}" if found.n > 1 else ""


_COLUMNS = (
    "variant", "hF_strict", "95 % interval", "in-sample", "optimism", "seeds", "difference",
    "training s.e.", "p (Holm)", "verdict",
)  # fmt: skip


def ablation_table(ablation: Ablation) -> Table:
    """One row a variant, the baseline first."""
    what = ablation.judged if ablation.judged == ENSEMBLE else f"member {ablation.judged}"
    aim = ", at the target's class frequencies" if ablation.is_at_target else ""
    heading, *rows = _rows(ablation)
    table = Table(
        # a narrow terminal breaks the names of variants before it cuts a figure
        [
            Column(label, is_right=label not in ("variant", "verdict"), no_wrap=label != "variant")
            for label in heading
        ],
        f"{what}, {ablation.split} folds, {ablation.n_clips} clips out of fold{aim}",
    )
    styles = {"gain": "green", "loss": "red"}
    for row in rows:
        table.add(*row, style=styles.get(row[-1], ""))
    verdicts = Counter(one.verdict for one in ablation.variants)
    order = ("gain", "loss", "within noise", ONE_SEED, "diverged")
    counts = ", ".join(f"{verdicts[v]} {v}" for v in order if verdicts[v])
    table.notes += [f"{len(ablation.variants)} compared: {counts}", RULE]
    table.notes += [f"{one.name} diverged: {one.fault}" for one in ablation.variants if one.fault]
    return table
