"""What a new clips table changes in a store: whose clips they are, and what it takes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bsdkit.dataset import Clips

__all__ = ["OTHER_SHARE", "TableChange", "compare_tables"]

OTHER_SHARE = 0.2
"""A table is of another dataset if more than this share of a store's clips is gone or is other."""

_TEXTS = ("title", "tags", "description", "uploader")
_LOSABLE = (*_TEXTS, "licence")


@dataclass(frozen=True)
class TableChange:
    """How a new clips table differs from the one of a store.

    Attributes:
        n_old: clips in the store.
        n_new: clips in the new table.
        gone: ids that the new table lacks.
        others: ids that both have, of clips with other sounds or, where a sound is unknown,
            other texts.
        n_same: clips of both whose sounds or, where unknown, texts are known to be equal.
        lost: what clips of both had and have no more, with the number of clips.
        columns: kept columns that the new table lacks.
    """

    n_old: int
    n_new: int
    gone: tuple[str, ...]
    others: tuple[str, ...]
    n_same: int
    lost: dict[str, int]
    columns: tuple[str, ...]

    @property
    def is_other(self) -> bool:
        """Whether the new table is of another dataset; a part of the same one is not."""
        n_common = self.n_old - len(self.gone)
        if len(self.others) > OTHER_SHARE * n_common:
            return True
        is_part = self.n_new == n_common and self.n_same >= (1 - OTHER_SHARE) * n_common
        return len(self.gone) > OTHER_SHARE * self.n_old and not is_part

    def refusal(self, store: Path) -> str:
        """Why the new table must not replace the store's; empty where it may."""
        choices = "give --store OTHER, or --replace to put these in its place"
        if self.is_other:
            n_common = self.n_old - len(self.gone)
            return (
                f"{store} holds {self.n_old} clips of another dataset: {len(self.gone)} of their "
                f"ids are not among these {self.n_new}, and {len(self.others)} of the {n_common} "
                f"in common have other sounds or texts (more than {OTHER_SHARE:.0%}); {choices}"
            )
        if n_lost := self.lost.get("label", 0):
            return (
                f"{store} holds labels of {n_lost} clips that have none in this dataset; they "
                f"would be lost, so {choices}"
            )
        return ""

    def lines(self, store: Path) -> list[str]:
        """What is taken out of the store's table, with counts."""
        lines = []
        if self.gone:
            lines.append(f"{len(self.gone)} of {self.n_old} clips, e.g. {self.gone[0]}")
        lines += [f"the {name} of {n} clips" for name, n in self.lost.items()]
        lines += [f"the column {name}" for name in self.columns]
        if self.is_other and self.others:
            lines.append("all features and texts, which are of other clips")
        return [f"taken out of {store}: {line}" for line in lines]


def compare_tables(old: Clips, new: Clips) -> TableChange:
    """How a new clips table differs from the one of a store."""
    index = {clip: i for i, clip in enumerate(new.ids.tolist())}
    pairs = [(i, index[clip]) for i, clip in enumerate(old.ids.tolist()) if clip in index]
    same = [_is_same(old, i, new, j) for i, j in pairs]
    lost = {
        name: sum(bool(getattr(old, name)[i]) and not getattr(new, name)[j] for i, j in pairs)
        for name in _LOSABLE
    }
    lost["label"] = sum(bool(old.labels[i] >= 0 > new.labels[j]) for i, j in pairs)
    return TableChange(
        n_old=len(old),
        n_new=len(new),
        gone=tuple(clip for clip in old.ids.tolist() if clip not in index),
        others=tuple(
            str(old.ids[i]) for (i, _), is_same in zip(pairs, same, strict=True) if is_same is False
        ),
        n_same=same.count(True),
        lost={name: n for name, n in lost.items() if n},
        columns=tuple(name for name in old.columns if name not in new.columns),
    )


def _is_same(old: Clips, i: int, new: Clips, j: int) -> bool | None:
    """Whether two rows are of one clip; None where nothing that is known of both says so."""
    if old.sha256[i] and new.sha256[j]:
        return bool(old.sha256[i] == new.sha256[j])
    texts = [(getattr(old, name)[i], getattr(new, name)[j]) for name in _TEXTS]
    known = [a == b for a, b in texts if a and b]
    return all(known) if known else None
