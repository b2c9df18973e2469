"""Tables of label quality."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np

from bsdkit.experiments.label_quality import (
    ClassNoise,
    GroupNoise,
    LabelQuality,
    class_noise,
    confidence_noise,
    uploader_noise,
)
from bsdkit.report.table import Table, columns
from bsdkit.report.tables import percent, shown_interval

__all__ = ["label_quality_tables"]


def label_quality_tables(
    quality: LabelQuality, *, n_top: int = 20, min_clips: int = 5, n_uploaders: int = 15
) -> list[Table]:
    """The estimated share of wrong labels, its classes and uploaders, and the issues.

    Args:
        quality: what `label_quality` found.
        n_top: issues shown, the clearest first; 0 for none.
        min_clips: judged clips that an uploader needs to be shown.
        n_uploaders: uploaders shown, those with most issues first.
    """
    tables = [_class_table(class_noise(quality))]
    tables[0].lead += [*_summary(quality), ""]
    uploaders = uploader_noise(quality, min_clips)
    shown = [group for group in uploaders[:n_uploaders] if group.n_issues]
    if shown:
        title = f"uploaders of {min_clips} clips or more ({len(shown)} of {len(uploaders)} shown)"
        tables.append(_group_table(title, "uploader", shown))
    levels = confidence_noise(quality)
    if levels:
        tables.append(_group_table("annotators' confidence, 1 to 5", "confidence", levels))
    if n_top and len(quality.issues):
        tables.append(_issue_table(quality, n_top))
    elif n_top:
        tables[-1].notes.append("no label is an issue")
    return tables


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
    return lines


def _class_table(classes: Sequence[ClassNoise]) -> Table:
    heading = ("class", "clips", "estimated wrong", "in %", "issues", "truly most often",
               "of the wrong, in %", "in the family, in %")  # fmt: skip
    table = Table(columns(*heading, left=["class"]), "labels by class")
    for c in classes:
        table.add(
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
        table.add(
            "all", str(n_clips), f"{total:.1f}", percent(total / n_clips, 1),
            str(sum(c.n_issues for c in classes)), "", "", percent(near / total, 0), rule=True,
        )  # fmt: skip
    return table


def _group_table(title: str, heading: str, groups: Sequence[GroupNoise]) -> Table:
    table = Table(
        columns(heading, "clips", "issues", "in %", "95 % interval", left=[heading]), title
    )
    for group in groups:
        counts = str(group.n_clips), str(group.n_issues)
        table.add(group.name, *counts, percent(group.share, 1), shown_interval(vars(group)))
    return table


def _issue_table(quality: LabelQuality, n_top: int) -> Table:
    n_shown = min(n_top, len(quality.issues))
    words = ("id", "title", "uploader", "label", "suggested")
    table = Table(
        columns(*words, "p(label)", "p(suggested)", "margin", left=words),
        f"issues ({n_shown} of {len(quality.issues)} shown)",
    )
    clips, labels = quality.clips, quality.clips.taxonomy.labels
    for row in islice(quality.issues, n_shown):
        suggested = int(quality.suggested[row])
        table.add(
            clips.ids[row],
            clips.title[row],
            clips.uploader[row],
            labels[int(clips.labels[row])],
            labels[suggested],
            f"{quality.self_confidence[row]:.3f}",
            f"{quality.probabilities[row, suggested]:.3f}",
            f"{np.round(quality.margin[row], 3):+.3f}",
        )
    return table
