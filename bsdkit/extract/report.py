"""What an extraction did, and where its time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bsdkit.audio import CANCELLED, CANCELLED_DB, SCALED
from bsdkit.store.feature import FAILED, PARTIAL, PARTIAL_FILE, FeatureRows

__all__ = ["ExtractionReport", "Stages", "summary_lines"]

_SHOWN_FAILURES = 3
_BUSY_SHARE = 0.85
_NOTICES = {
    SCALED: "exceed full scale and were scaled by their peak",
    CANCELLED: f"lose more than {CANCELLED_DB} dB when their channels are mixed",
}


@dataclass
class Stages:
    """Where the time of one pass over a dataset went; the stages overlap.

    Attributes:
        seconds: wall-clock seconds of the pass.
        decode: seconds of work of all decoders together.
        n_decoders: how many there were.
        wait: seconds in which nothing was left to batch because decoding was behind.
        model: seconds in which a model was at work.
        model_by_backbone: the same by backbone.
        write: seconds of writing shards and merging them.
        n_clips: clips that were embedded or failed.
        audio_seconds: seconds of audio decoded.
    """

    seconds: float = 0.0
    decode: float = 0.0
    n_decoders: int = 1
    wait: float = 0.0
    model: float = 0.0
    model_by_backbone: dict[str, float] = field(default_factory=dict)
    write: float = 0.0
    n_clips: int = 0
    audio_seconds: float = 0.0

    @property
    def bottleneck(self) -> str:
        """The stage that the others waited for: ``model``, ``decode`` or ``write``."""
        if self.model >= _BUSY_SHARE * self.seconds:
            return "model"
        shares = {
            "model": self.model,
            "decode": max(self.wait, self.decode / max(self.n_decoders, 1)),
            "write": self.write,
        }
        return max(shares, key=lambda name: shares[name])


@dataclass
class ExtractionReport:
    """What one extraction did to one feature.

    Attributes:
        feature: the feature's name.
        path: its file; with a shard of the work only, what the file will be.
        n_clips: clips of the table.
        n_kept: clips whose rows were there already, from before or from an interrupted run.
        n_embedded: clips embedded now.
        n_left: clips left to other shards of the work.
        failures: reason by clip id, of every clip without an embedding.
        partial: what was decoded by clip id, of every clip that was embedded in part.
        notices: what is odd by clip id, of every clip whose sound had to be changed.
        failures_file: where all of these stand, by clip; None where there are none.
        silent: ids of clips that are digital silence; they are embedded all the same.
        stages: where the time went; shared by the features of one pass.
    """

    feature: str
    path: Path
    n_clips: int
    n_kept: int = 0
    n_embedded: int = 0
    n_left: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    partial: dict[str, str] = field(default_factory=dict)
    notices: dict[str, str] = field(default_factory=dict)
    failures_file: Path | None = None
    silent: list[str] = field(default_factory=list)
    stages: Stages = field(default_factory=Stages)

    def add(self, rows: FeatureRows, known: Container[object]) -> None:
        """Takes down what rows say of the clips that are known."""
        kinds = {FAILED: self.failures, PARTIAL: self.partial}
        for clip, state, reason in zip(rows.ids, rows.state, rows.reasons, strict=True):
            if clip in known and reason:
                kinds.get(int(state), self.notices)[clip] = reason

    @property
    def reasons(self) -> dict[str, int]:
        """Number of failed clips by kind of failure, most frequent first."""
        kinds = Counter(reason.split(":")[0] for reason in self.failures.values())
        return dict(kinds.most_common())


def summary_lines(reports: Sequence[ExtractionReport]) -> list[str]:
    """What a pass did, in a few lines: counts and failures by feature, where the time went."""
    lines = []
    for report in reports:
        left = f", {report.n_left} left to other shards" if report.n_left else ""
        lines.append(
            f"{report.feature}: {report.n_embedded} embedded, {report.n_kept} already there, "
            f"{len(report.failures)} failed"
            + (f", {len(report.partial)} in part" if report.partial else "")
            + left
            + (f" -> {report.path}" if report.path.is_file() else "")
        )
        if report.silent:
            lines.append(
                f"  {len(report.silent)} clips are digital silence (embedded all the same), "
                f"e.g. {report.silent[0]}"
            )
        if report.partial:
            clip, reason = next(iter(report.partial.items()))
            lines.append(
                f"  {len(report.partial)} clips are embedded in part, e.g. {clip}: {reason}"
            )
        odd = {**report.partial, **report.notices}
        for mark, what in _NOTICES.items():
            clips = [clip for clip, reason in odd.items() if mark in reason]
            if clips:
                lines.append(f"  {len(clips)} clips {what}, e.g. {clips[0]}")
        for kind, n in report.reasons.items():
            way_out = "; --partial embed embeds what is there" if kind == PARTIAL_FILE else ""
            lines.append(f"  failed, {kind}: {n}{way_out}")
            of_kind = [(c, r) for c, r in report.failures.items() if r.split(":")[0] == kind]
            lines += [
                f"    {clip}: {reason.partition(': ')[2]}"
                for clip, reason in of_kind[:_SHOWN_FAILURES]
            ]
        if report.failures_file:
            lines.append(f"  all of these, clip by clip: {report.failures_file}")
    waiting = [report for report in reports if not report.path.is_file()]
    if waiting:
        lines.append(
            "when all parts are done, each with the same --shard-clips: bsdkit store merge "
            f"{waiting[0].path.parent}"
        )
    stages = reports[0].stages
    if any(report.n_embedded for report in reports):
        lines += _stage_lines(stages, max(report.n_embedded for report in reports))
    return lines


def _stage_lines(stages: Stages, n_embedded: int) -> list[str]:
    wall = max(stages.seconds, 1e-9)
    audio = f", {stages.audio_seconds / wall:.0f} s of audio a second" if stages.n_clips else ""
    models = ", ".join(
        f"{name} {seconds:.1f} s" for name, seconds in stages.model_by_backbone.items()
    )
    decoders = f" by {stages.n_decoders} decoders" if stages.n_decoders > 1 else ""
    return [
        f"{wall:.1f} s, {n_embedded / wall:.1f} clips a second{audio}",
        f"  stages, which overlap: decode {stages.decode:.1f} s{decoders}, model "
        f"{stages.model:.1f} s ({models}), write {stages.write:.1f} s; "
        f"the bottleneck was the {stages.bottleneck}",
    ]
