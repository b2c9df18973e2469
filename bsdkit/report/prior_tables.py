"""Tables of what priors owe to class words, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bsdkit.metrics import Interval
from bsdkit.priors.audit import PriorAudit
from bsdkit.report.tables import difference, percent

__all__ = ["print_prior_audits"]


def print_prior_audits(console: Console, audits: Sequence[PriorAudit], place: str) -> None:
    """Prints, for each prior, its accuracy with and without class words in the metadata.

    Args:
        console: where to print.
        audits: what `audit_priors` found.
        place: the store, for the command that makes the masked kind.
    """
    for audit in audits:
        table = Table(
            title=f"{audit.feature}: accuracy of its most probable class, nothing fitted",
            title_justify="left",
        )
        for column in ("clips whose metadata", "n", "as it is", "class words masked", "difference"):
            table.add_column(column, justify="left" if column.startswith("clips") else "right")
        for group in audit.groups:
            table.add_row(
                group.name,
                str(group.n_clips),
                _shown(group.accuracy),
                _shown(group.masked),
                difference(vars(group.difference)) if group.difference else "",
            )
        table.add_section()
        table.add_row(
            "hF_strict of all",
            "",
            _shown(audit.hF_strict),
            _shown(audit.masked),
            difference(vars(audit.difference)) if audit.difference else "",
        )
        console.print(table)
        if audit.owed is not None and audit.owed <= 0:
            console.print("nothing of its accuracy is gone when class words are masked")
        elif audit.owed is not None:
            console.print(
                f"of its accuracy, {percent(audit.owed, 1)} % is gone when class words are masked"
            )
        else:
            console.print(
                "nothing to compare with: run the line that made it again with --mask-class-words "
                f"(bsdkit priors --store {place} ... --mask-class-words)"
            )
        if audit.n_missing or audit.n_masked_missing:
            console.print(
                f"without it: {audit.n_missing} clips, of the masked kind {audit.n_masked_missing}"
            )


def _shown(interval: Interval | None) -> str:
    if interval is None:
        return ""
    value, low, high = (percent(v, 1) for v in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"
