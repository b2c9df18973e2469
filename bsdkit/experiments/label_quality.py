"""Label quality: which labels are likely wrong, by confident learning.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
Journal of Artificial Intelligence Research 70 (2021), sections 3.1 and 3.2. Given labels and
probabilities from models that did not see the clips:

    t(j)     mean probability of class j over the clips labelled j
    C(i, j)  clips labelled i whose *confident class* is j: of the classes whose probability
             reaches their t, the most probable one
    Q(i, j)  joint share of given label i and true label j: C with each row scaled to the
             number of clips labelled i, divided by the number of clips

The thresholds make up for a model that is surer of some classes than of others. Clips that
reach no threshold are in no cell of C; Q speaks for them through the scaling of the rows.

The estimate takes confident disagreement for a wrong label. A model that errs with confidence,
as one does on uploaders and recordings unlike all that it was trained on, inflates it.

Issues are by default the clips off the diagonal of C: each has evidence of its own, a class
whose threshold it reaches. Pruning by noise rate also takes clips that reach none, to fill the
number that Q asks for; on planted noise it finds more of the wrong labels, but more of what it
lists is right as it was, and its suggestions are worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from bsdkit.csvfile import write_csv_rows
from bsdkit.dataset import Clips
from bsdkit.errors import DatasetError
from bsdkit.stats import wilson_interval

__all__ = [
    "ClassNoise",
    "ConfidentJoint",
    "GroupNoise",
    "LabelQuality",
    "Method",
    "Ranking",
    "class_noise",
    "confidence_noise",
    "confident_joint",
    "find_issues",
    "label_quality",
    "uploader_noise",
    "write_label_issues",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Method = Literal["off-diagonal", "noise-rate"]
Ranking = Literal["margin", "self-confidence"]

# The mean of equal numbers can exceed them in the last digit, and then none would reach it.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class ConfidentJoint:
    """Given against estimated true labels.

    Attributes:
        thresholds: t [n_classes]; infinite for a class that no clip is labelled with, so that
            no clip is ever said to belong to it.
        counts: C [n_classes, n_classes] by given (row) and confident class.
        joint: Q [n_classes, n_classes]; adds up to 1, its rows to the shares of the labels.
        confident: confident class [n] of each clip; -1 where no threshold is reached.
    """

    thresholds: FloatArray
    counts: IntArray
    joint: FloatArray
    confident: IntArray

    @property
    def share_wrong(self) -> float:
        """The estimated share of wrong labels."""
        return float(1 - np.trace(self.joint))


def confident_joint(labels: IntArray, probabilities: FloatArray) -> ConfidentJoint:
    """The confident joint of labels [n] and probabilities [n, n_classes], and its calibration.

    The diagonal of C is at least 1 for a class with clips; without it, a class none of whose
    clips has a confident class would have no row to scale.

    Args:
        labels: given class positions, none of them negative.
        probabilities: of models that did not see the clips; no NaN.

    Raises:
        DatasetError: the shapes differ, there is no clip, or a label or probability is out of
            range.
    """
    _check(labels, probabilities)
    n, n_classes = probabilities.shape
    own = probabilities[np.arange(n), labels]
    n_labelled = np.bincount(labels, minlength=n_classes)
    # Added up in an order of their own, so that the order of the clips changes no digit.
    order = np.lexsort((own, labels))
    total = np.bincount(labels[order], own[order], minlength=n_classes)
    thresholds = np.full(n_classes, np.inf)
    np.divide(total, n_labelled, out=thresholds, where=n_labelled > 0)
    reached = np.where(probabilities >= thresholds - _TOLERANCE, probabilities, -1.0)
    confident = np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)
    is_sure = confident >= 0
    cells = labels[is_sure] * n_classes + confident[is_sure]
    counts = np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)
    diagonal = np.arange(n_classes)
    counts[diagonal, diagonal] = np.maximum(counts[diagonal, diagonal], n_labelled > 0)
    rows = counts.sum(axis=1)
    scale = np.divide(n_labelled, rows, out=np.zeros(n_classes), where=rows > 0)
    return ConfidentJoint(thresholds, counts, counts * scale[:, None] / n, confident)


def _check(labels: IntArray, probabilities: FloatArray) -> None:
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise DatasetError(
            f"labels {list(labels.shape)} and probabilities {list(probabilities.shape)}; "
            "expected [n] and [n, n_classes] with n of at least 1"
        )
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise DatasetError(
            f"labels from {labels.min()} to {labels.max()}; expected class positions from 0 to "
            f"{probabilities.shape[1] - 1}"
        )
    if not (probabilities.min() >= 0 and probabilities.max() <= 1 + _TOLERANCE):
        raise DatasetError(
            f"probabilities from {probabilities.min():g} to {probabilities.max():g}; expected "
            "0 to 1, without NaN"
        )


def find_issues(
    labels: IntArray,
    probabilities: FloatArray,
    joint: ConfidentJoint,
    method: Method = "off-diagonal",
) -> IntArray:
    """The suggested label [n] of each clip: its own, or another where it is an issue.

    ``off-diagonal`` takes the clips off the diagonal of C. ``noise-rate`` takes, for each pair
    of a given label i and another class j, the n Q(i, j) clips labelled i with the largest
    p(j) - p(i); a clip taken for several j gets the most probable. Either way a clip whose
    most probable class is its label is no issue.

    Args:
        labels: given class positions [n].
        probabilities: [n, n_classes].
        joint: what `confident_joint` gave for them.
        method: how issues are chosen.
    """
    rows = np.arange(len(labels))
    suggested = labels.copy()
    if method == "off-diagonal":
        suggested = np.where(joint.confident >= 0, joint.confident, labels)
    else:
        wanted = _rounded_rows(joint.joint * len(labels))
        for i in np.unique(labels):
            members = np.flatnonzero(labels == i)
            own = probabilities[members]
            margins = own - own[:, [i]]
            rank = np.argsort(np.argsort(-margins, axis=0, kind="stable"), axis=0)
            is_taken = rank < wanted[i]
            is_taken[:, i] = False
            best = np.where(is_taken, own, -1.0)
            suggested[members] = np.where(is_taken.any(axis=1), best.argmax(axis=1), i)
    is_agreed = probabilities[rows, labels] >= probabilities.max(axis=1) - _TOLERANCE
    return np.asarray(np.where(is_agreed, labels, suggested))


def _rounded_rows(counts: FloatArray) -> IntArray:
    """Whole numbers with the same row totals: the largest remainders are rounded up."""
    # A total such as 6.999999999 is 7
    floor = np.floor(counts + 1e-9)
    n_up = np.rint(counts.sum(axis=1) - floor.sum(axis=1)).astype(np.int64)
    rank = np.argsort(np.argsort(floor - counts, axis=1, kind="stable"), axis=1)
    return np.asarray(floor + (rank < n_up[:, None]), np.int64)


@dataclass(frozen=True)
class LabelQuality:
    """What confident learning says of a clips table.

    Attributes:
        clips: the clips, also those that were left out.
        probabilities: [n, n_classes]; NaN in the rows of clips without any.
        is_judged: [n] whether a clip was judged.
        left_out: number of clips that were not, by reason.
        n_shared_uploaders: judged clips whose uploader the models were trained on too.
        estimate: the joint of the judged clips, in their order.
        suggested: class positions [n]; the given label where it is no issue or not judged.
        self_confidence: probability [n] of the given label; NaN where not judged.
        margin: normalised margin [n], -1 to 1: probability of the given label less the
            largest other; NaN where not judged.
        issues: rows of the issues, the clearest first.
    """

    clips: Clips
    probabilities: FloatArray
    is_judged: BoolArray
    left_out: dict[str, int]
    n_shared_uploaders: int
    estimate: ConfidentJoint
    suggested: IntArray
    self_confidence: FloatArray
    margin: FloatArray
    issues: IntArray

    @property
    def n_judged(self) -> int:
        """The number of clips judged."""
        return int(self.is_judged.sum())

    @property
    def is_issue(self) -> BoolArray:
        """[n] whether a clip is an issue."""
        return np.asarray(self.suggested != self.clips.labels)

    @property
    def agreement(self) -> float:
        """The share of judged clips whose label is their most probable class."""
        return float((self.margin[self.is_judged] >= 0).mean())


def label_quality(
    clips: Clips,
    probabilities: FloatArray,
    *,
    trained_on: Sequence[Clips] = (),
    method: Method = "off-diagonal",
    rank_by: Ranking = "margin",
) -> LabelQuality:
    """Judges the labels of clips by probabilities of models that did not see them.

    Left out are clips without a label, clips with NaN in their probabilities, and clips that
    share an id or the sha256 of their audio with a clip of `trained_on`.

    Args:
        clips: the clips with the labels to judge.
        probabilities: [n_clips, n_classes].
        trained_on: clips tables that the models were trained on, where the probabilities are
            not out of fold; empty where they are.
        method: see `find_issues`.
        rank_by: what orders the issues, lowest first.

    Raises:
        DatasetError: the classes are not those of the probabilities or of `trained_on`, no
            clip is left, or all that are left have the same label.
    """
    tree = clips.taxonomy
    other = next((known.taxonomy for known in trained_on if known.taxonomy != tree), None)
    if other is not None:
        raise DatasetError(
            f"the clips have taxonomy {tree.name!r} ({len(tree)} classes), the models "
            f"{other.name!r} ({len(other)} classes); extract the clips with the models' --taxonomy"
        )
    if probabilities.shape != (len(clips), len(tree)):
        raise DatasetError(
            f"probabilities {list(probabilities.shape)}; expected [{len(clips)}, {len(tree)}], "
            f"a row a clip and a column a class of {tree.name!r}"
        )
    is_known, is_met = _overlap(clips, trained_on)
    reasons = {
        "unlabelled": clips.labels < 0,
        "trained on (same id or sha256)": is_known,
        "no probabilities": np.isnan(probabilities).any(axis=1),
    }
    is_judged = np.ones(len(clips), bool)
    left_out = {}
    for reason, mask in reasons.items():
        left_out[reason] = int((is_judged & mask).sum())
        is_judged &= ~mask
    left_out = {reason: count for reason, count in left_out.items() if count}
    _check_judged(clips, is_judged, left_out)
    rows = np.flatnonzero(is_judged)
    labels, judged = clips.labels[rows], probabilities[rows]
    estimate = confident_joint(labels, judged)
    suggested = clips.labels.copy()
    suggested[rows] = find_issues(labels, judged, estimate, method)
    self_confidence = np.full(len(clips), np.nan)
    self_confidence[rows] = judged[np.arange(len(rows)), labels]
    others = judged.copy()
    others[np.arange(len(rows)), labels] = -np.inf
    margin = np.full(len(clips), np.nan)
    margin[rows] = self_confidence[rows] - others.max(axis=1)
    issues = np.flatnonzero(suggested != clips.labels)
    key = margin if rank_by == "margin" else self_confidence
    return LabelQuality(
        clips,
        probabilities,
        is_judged,
        left_out,
        int((is_judged & is_met).sum()),
        estimate,
        suggested,
        self_confidence,
        margin,
        issues[np.argsort(key[issues], kind="stable")],
    )


def _overlap(clips: Clips, trained_on: Sequence[Clips]) -> tuple[BoolArray, BoolArray]:
    """[n] whether the models know a clip itself, and [n] whether they met its uploader."""

    def shared(name: Literal["ids", "sha256", "uploader"]) -> BoolArray:
        known = {value for table in trained_on for value in getattr(table, name)} - {""}
        return np.array([value in known for value in getattr(clips, name)], bool)

    return shared("ids") | shared("sha256"), shared("uploader")


def _check_judged(clips: Clips, is_judged: BoolArray, left_out: dict[str, int]) -> None:
    if not is_judged.any():
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        hint = "give a labelled store with the models' features, or a member that did not diverge"
        if any(reason.startswith("trained on") for reason in left_out):
            hint = "leave out --store to judge training clips by out-of-fold probabilities"
        raise DatasetError(f"no clip of {len(clips)} can be judged ({reasons or 'none'}); {hint}")
    found = np.unique(clips.labels[is_judged])
    if len(found) < 2:
        raise DatasetError(
            f"all {int(is_judged.sum())} clips to judge are labelled "
            f"{clips.taxonomy.labels[found[0]]!r}; a wrong label is found by comparing classes, "
            "so give clips of at least 2"
        )


@dataclass(frozen=True)
class ClassNoise:
    """The labels of one class.

    Attributes:
        label: the class.
        n_clips: clips judged that are labelled with it.
        n_wrong: how many of them are estimated to be wrong, n_clips (1 - Q(i, i) / Q(i, .)).
        n_issues: how many of them are issues.
        true_label: the most frequent other class among the wrong ones; empty where none is.
        true_share: its share of the wrong ones.
        within_family: share of the wrong ones whose true class is of the same family; NaN
            where none is wrong.
    """

    label: str
    n_clips: int
    n_wrong: float
    n_issues: int
    true_label: str
    true_share: float
    within_family: float


def class_noise(quality: LabelQuality) -> tuple[ClassNoise, ...]:
    """One entry a class that judged clips are labelled with, in taxonomy order."""
    tree, labels = quality.clips.taxonomy, quality.clips.labels
    n_classes = len(tree)
    n_clips = np.bincount(labels[quality.is_judged], minlength=n_classes)
    n_issues = np.bincount(labels[quality.issues], minlength=n_classes)
    wrong = quality.estimate.joint * quality.n_judged
    np.fill_diagonal(wrong, 0)
    entries = []
    for i in np.flatnonzero(n_clips):
        total, j = float(wrong[i].sum()), int(wrong[i].argmax())
        near = float(wrong[i, tree.family_of == tree.family_of[i]].sum())
        entries.append(
            ClassNoise(
                label=tree.labels[i],
                n_clips=int(n_clips[i]),
                n_wrong=total,
                n_issues=int(n_issues[i]),
                true_label=tree.labels[j] if total > 0 else "",
                true_share=float(wrong[i, j]) / total if total > 0 else math.nan,
                within_family=near / total if total > 0 else math.nan,
            )
        )
    return tuple(entries)


@dataclass(frozen=True)
class GroupNoise:
    """The issues among some clips.

    Attributes:
        name: what the clips share.
        n_clips: clips judged.
        n_issues: issues among them.
        low: lower end of the 95 % interval of the share of issues.
        high: upper end.
    """

    name: str
    n_clips: int
    n_issues: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The share of issues."""
        return self.n_issues / self.n_clips


def _groups(names: Sequence[str], quality: LabelQuality) -> list[GroupNoise]:
    """One entry a name that is not empty, of judged clips, in the order of the names' text."""
    n_clips: dict[str, int] = {}
    n_issues: dict[str, int] = {}
    is_issue = quality.is_issue
    for row in np.flatnonzero(quality.is_judged).tolist():
        if name := names[row]:
            n_clips[name] = n_clips.get(name, 0) + 1
            n_issues[name] = n_issues.get(name, 0) + int(is_issue[row])
    return [
        GroupNoise(name, n, n_issues[name], *map(float, wilson_interval(n_issues[name], n)))
        for name, n in sorted(n_clips.items())
    ]


def uploader_noise(quality: LabelQuality, min_clips: int = 5) -> tuple[GroupNoise, ...]:
    """One entry an uploader of at least `min_clips` judged clips, most issues first."""
    groups = _groups(quality.clips.uploader.tolist(), quality)
    large = [group for group in groups if group.n_clips >= min_clips]
    return tuple(sorted(large, key=lambda group: (-group.n_issues, group.n_clips)))


def confidence_noise(quality: LabelQuality) -> tuple[GroupNoise, ...]:
    """One entry a level of the annotators' confidence, lowest first; none where unknown."""
    names = ["" if math.isnan(c) else f"{c:g}" for c in quality.clips.confidence]
    return tuple(sorted(_groups(names, quality), key=lambda g: float(g.name)))


def write_label_issues(path: Path, quality: LabelQuality) -> None:
    """Writes a CSV with one row a clip, in the order of the clips table; it appears whole.

    Columns: id, uploader, label, suggested (the label itself where it is no issue),
    self_confidence, margin, is_issue (1 or 0). A clip that was not judged has the last four
    empty.

    Raises:
        DatasetError: the file cannot be written.
    """
    clips, tree = quality.clips, quality.clips.taxonomy
    given, suggested = tree.decode(clips.labels), tree.decode(quality.suggested)
    is_issue = quality.is_issue
    rows = [["id", "uploader", "label", "suggested", "self_confidence", "margin", "is_issue"]]
    for row, clip in enumerate(clips.ids):
        judged = ["", "", "", ""]
        if quality.is_judged[row]:
            judged = [
                suggested[row],
                f"{quality.self_confidence[row]:.6f}",
                f"{quality.margin[row]:.6f}",
                str(int(is_issue[row])),
            ]
        rows.append([clip, clips.uploader[row], given[row], *judged])
    write_csv_rows(path, rows)
