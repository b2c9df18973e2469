"""Tables of label quality for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsdkit.experiments.label_quality import (
    ClassNoise,
    GroupNoise,
    LabelQuality,
    class_noise,
    confidence_noise,
    uploader_noise,
)
from bsdkit.report.tables import percent

__all__ = ["print_label_quality"]


def print_label_quality(
    console: Console,
    quality: LabelQuality,
    *,
    n_top: int = 20,
    min_clips: int = 5,
    n_uploaders: int = 15,
) -> None:
    """Prints the estimated share of wrong labels, its classes and uploaders, and the issues.

    Args:
        console: where to print.
        quality: what `label_quality` found.
        n_top: issues shown, the clearest first; 0 for none.
        min_clips: judged clips that an uploader needs to be shown.
        n_uploaders: uploaders shown, those with most issues first.
    """
    console.print("\n".join(_summary(quality)), highlight=False)
    _print_classes(console, class_noise(quality))
    uploaders = uploader_noise(quality, min_clips)
    shown = [group for group in uploaders[:n_uploaders] if group.n_issues]
    if shown:
        title = f"uploaders of {min_clips} clips or more ({len(shown)} of {len(uploaders)} shown)"
        _print_groups(console, title, "uploader", shown)
    levels = confidence_noise(quality)
    if levels:
        _print_groups(console, "annotators' confidence, 1 to 5", "confidence", levels)
    if n_top:
        _print_issues(console, quality, n_top)


def _summary(quality: LabelQuality) -> list[str]:
    n, n_issues = quality.n_judged, len(quality.issues)
    estimate = quality.estimate
    n_unsure = int((estimate.confident < 0).sum())
    lines = [f"{n} of {len(quality.clips)} clips judged"]
    lines += [f"  left out, {reason}: {count}" for reason, count in quality.left_out.items()]
    if quality.n_shared_uploaders:
        lines.append(
            f"  uploader known to the models: {quality.n_shared_uploaders}; their probabilities "
            "may follow the uploader rather than the sound"
        )
    lines += [
        f"estimated share of wrong labels: {percent(estimate.share_wrong)} % "
        f"({n * estimate.share_wrong:.0f} clips); confident errors of the models count as such",
        f"issues: {n_issues} ({percent(n_issues / n)} %); the models agree with "
        f"{percent(quality.agreement)} % of the labels and reach no threshold in {n_unsure} clips",
    ]
    labels = quality.clips.taxonomy.labels
    weak = np.flatnonzero(estimate.thresholds < 1 / len(labels))
    if len(weak):
        lines.append(
            f"thresholds below chance: {', '.join(labels[c] for c in weak)}; the models seldom "
            "believe these labels, so nearly any clip reaches them and too many wrong labels "
            "are put down to them"
        )
    lines[-1] += "\n"
    return lines


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in left:
        table.add_column(column)
    for column in right:
        table.add_column(column, justify="right")
    return table


def _print_classes(console: Console, classes: Sequence[ClassNoise]) -> None:
    table = _table(
        "labels by class",
        ["class"],
        ["clips", "estimated wrong", "in %", "issues", "truly most often", "of the wrong, in %",
         "in the family, in %"],
    )  # fmt: skip
    for c in classes:
        table.add_row(
            c.label,
            str(c.n_clips),
            f"{c.n_wrong:.1f}",
            percent(c.n_wrong / c.n_clips, 1),
            str(c.n_issues),
            c.true_label,
            percent(c.true_share, 0) if c.true_label else "",
            percent(c.within_family, 0) if c.true_label else "",
        )
    total = sum(c.n_wrong for c in classes)
    if total:
        n_clips = sum(c.n_clips for c in classes)
        near = sum(c.n_wrong * c.within_family for c in classes if c.true_label)
        table.add_section()
        table.add_row(
            "all", str(n_clips), f"{total:.1f}", percent(total / n_clips, 1),
            str(sum(c.n_issues for c in classes)), "", "", percent(near / total, 0),
        )  # fmt: skip
    console.print(table)


def _print_groups(console: Console, title: str, heading: str, groups: Sequence[GroupNoise]) -> None:
    table = _table(title, [heading], ["clips", "issues", "in %", "95 % interval"])
    for group in groups:
        table.add_row(
            Text(group.name),
            str(group.n_clips),
            str(group.n_issues),
            percent(group.share, 1),
            f"[{percent(group.low, 1)}, {percent(group.high, 1)}]",
        )
    console.print(table)


def _print_issues(console: Console, quality: LabelQuality, n_top: int) -> None:
    if not len(quality.issues):
        console.print("no label is an issue")
        return
    n_shown = min(n_top, len(quality.issues))
    table = _table(
        f"issues ({n_shown} of {len(quality.issues)} shown)",
        ["id", "title", "uploader", "label", "suggested"],
        ["p(label)", "p(suggested)", "margin"],
    )
    clips, labels = quality.clips, quality.clips.taxonomy.labels
    for row in islice(quality.issues, n_shown):
        suggested = int(quality.suggested[row])
        table.add_row(
            Text(clips.ids[row]),
            Text(clips.title[row]),
            Text(clips.uploader[row]),
            labels[int(clips.labels[row])],
            labels[suggested],
            f"{quality.self_confidence[row]:.3f}",
            f"{quality.probabilities[row, suggested]:.3f}",
            f"{np.round(quality.margin[row], 3):+.3f}",
        )
    console.print(table)
