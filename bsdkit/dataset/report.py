"""What reading a dataset kept, dropped, and did not use."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass

from bsdkit.location import readable
from bsdkit.taxonomy import Taxonomy

__all__ = ["LABELS_OF_ONES_OWN", "FilterReport", "alike_classes"]

LABELS_OF_ONES_OWN = "for labels of your own give --taxonomy flat or a CSV with class,family rows"


@dataclass(frozen=True)
class FilterReport:
    """What reading a dataset kept and dropped.

    Attributes:
        source: the metadata file or folder.
        n_rows: rows read.
        dropped: (clip id, label, reason) of each row left out.
        notes: what else was not used, or was read otherwise than it stands there.
        unread: the columns that nothing reads, each with a hint where one is known.
    """

    source: str
    n_rows: int
    dropped: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report as lines of text: rows, kept, and the count of each reason."""
        n_kept = self.n_rows - len(self.dropped)
        lines = [f"{self.source}: {self.n_rows} rows, {n_kept} kept, {len(self.dropped)} dropped"]
        reasons = Counter((label, reason) for _, label, reason in self.dropped)
        lines += [
            f"  dropped {n} of {label!r}: {reason}"
            for (label, reason), n in sorted(reasons.items())
        ]
        lines += [f"  {note}" for note in self.notes]
        if self.unread:
            n = len(self.unread)
            what = "column" if n == 1 else "columns"
            lines.append(f"  {n} {what} not read: {', '.join(self.unread)}")
        return [readable(line) for line in lines]


def alike_classes(taxonomy: Taxonomy) -> list[str]:
    """A note of classes whose names differ by case or blanks alone."""
    forms: dict[str, list[str]] = {}
    for label in taxonomy.labels:
        form = unicodedata.normalize("NFC", " ".join(label.casefold().split()))
        forms.setdefault(form, []).append(label)
    return [
        f"classes that differ by case or blanks alone: {', '.join(map(repr, labels))}"
        for labels in forms.values()
        if len(labels) > 1
    ]
