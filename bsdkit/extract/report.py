"""What an extraction did, and where its time went."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ExtractionReport", "Stages"]

_BUSY_SHARE = 0.85


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
    silent: list[str] = field(default_factory=list)
    stages: Stages = field(default_factory=Stages)

    @property
    def reasons(self) -> dict[str, int]:
        """Number of failed clips by kind of failure, most frequent first."""
        kinds = Counter(reason.split(":")[0] for reason in self.failures.values())
        return dict(kinds.most_common())
