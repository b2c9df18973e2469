"""What an ablation found, and its table."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from bsdkit.metrics import Comparison, Interval, Spread
from bsdkit.report.table import Table, columns
from bsdkit.report.tables import percent, shown_interval

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
        difference: variant minus baseline, by a paired bootstrap over clips.
        seed_differences: of the same seeds' hF_strict, variant minus baseline.
        p_value: of the difference, adjusted for all variants (Holm).
        verdict: ``gain`` or ``loss`` where the adjusted p is below 0.05 and the difference is
            more than twice the standard error of `seed_differences`; else ``within noise``.
            ``diverged`` where a model did.
        fault: the first model's, if it diverged.
        in_sample: hF_strict of steps tuned on the clips that they are scored on; None where no
            step learns.
    """

    name: str
    score: Interval | None
    seeds: Spread | None
    difference: Comparison | None
    seed_differences: Spread | None
    p_value: float
    verdict: str
    fault: str = ""
    in_sample: float | None = None


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
        assert one.seed_differences is not None
        d = one.difference
        rows.append(
            (
                one.name,
                percent(one.score.value),
                shown_interval(vars(one.score)),
                *_tuned(one.score, one.in_sample),
                _spread(one.seeds),
                f"{_signed(d.difference)} [{_signed(d.low)}, {_signed(d.high)}]",
                f"{_signed(one.seed_differences.mean)} {_spread(one.seed_differences)}".strip(),
                f"{one.p_value:.3f}" if one.p_value >= 0.001 else "< 0.001",
                one.verdict,
            )
        )
    kept = [i for i in range(len(_COLUMNS)) if any(row[i] for row in rows[1:])]
    if not any(row[_SEEDS] for row in rows[1:]):
        kept = [i for i in kept if _COLUMNS[i] != "seed by seed"]
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
    "seed by seed", "p (Holm)", "verdict",
)  # fmt: skip
_SEEDS = _COLUMNS.index("seeds")


def ablation_table(ablation: Ablation) -> Table:
    """One row a variant, the baseline first."""
    what = ablation.judged if ablation.judged == ENSEMBLE else f"member {ablation.judged}"
    aim = ", at the target's class frequencies" if ablation.is_at_target else ""
    heading, *rows = _rows(ablation)
    table = Table(
        columns(*heading, left=["variant", "verdict"], no_wrap=True),
        f"{what}, {ablation.split} folds, {ablation.n_clips} clips out of fold{aim}",
    )
    styles = {"gain": "green", "loss": "red"}
    for row in rows:
        table.add(*row, style=styles.get(row[-1], ""))
    verdicts = Counter(one.verdict for one in ablation.variants)
    order = ("gain", "loss", "within noise", "diverged")
    counts = ", ".join(f"{verdicts[v]} {v}" for v in order if verdicts[v])
    table.notes.append(f"{len(ablation.variants)} compared: {counts}")
    table.notes += [f"{one.name} diverged: {one.fault}" for one in ablation.variants if one.fault]
    return table
