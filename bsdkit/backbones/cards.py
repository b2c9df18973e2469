"""What is known of a model, on one card; each backbone brings its own in its own file.

The task allows external resources unless they were trained on sounds of Freesound from after
1 April 2025, when the evaluation clips began to be uploaded. A model that was public before
that day cannot have been; of a later one it must be known. What is not on a card is unknown,
and the check of a submission says so.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from bsdkit.backbones.weights import WeightFile

__all__ = ["CUT_OFF", "HUB", "ModelCard", "Resource", "is_known_to_be_allowed"]

CUT_OFF = datetime.date(2025, 4, 1)
"""From this day on, training on sounds of Freesound is not allowed."""

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class ModelCard:
    """The facts of a model that no forward pass depends on.

    Attributes:
        summary: what it is, in a few words.
        licence: of the weights.
        fetches: what it downloads the first time it is used, and from where; empty for nothing.
        file: the published weight file, where the weights are one.
        hub: its id on the Hugging Face hub, where it is read from there.
        sha256: hex digest of its weights, where an installed package carries them.
        parameters: millions of them in the published model; None where that depends on the
            backbone's argument.
        gigaflops: 1e9 floating-point operations (two a multiply-add) for ten seconds of audio,
            or for a text of 77 tokens, as torch counts them; None as above.
        training_data: what it was trained on; empty where nothing is known of its training.
        released: see `Resource`. A year stands where the month is not certain: the paper's, by
            which the weights were public.
        has_freesound: see `Resource`.
        url: where it, or the paper on it, is found.
    """

    summary: str
    licence: str
    fetches: str = ""
    file: WeightFile | None = None
    hub: str = ""
    sha256: str = ""
    parameters: float | None = None
    gigaflops: float | None = None
    training_data: str = ""
    released: str = ""
    has_freesound: bool | None = None
    url: str = ""

    @property
    def weights(self) -> str:
        """What a spec calls the published weights; empty where the backbone's name tells them."""
        return self.file.name if self.file is not None else self.hub

    def resource(self, name: str) -> Resource:
        """What a submission states of it under a name."""
        return Resource(
            name, self.summary, self.training_data, self.released, self.has_freesound, self.url
        )


@dataclass(frozen=True)
class Resource:
    """An external resource of a system.

    Attributes:
        name: what it is called here.
        what: what it is, in a few words.
        training_data: what it was trained on; empty for unknown.
        released: the day, month or year by which it was public, as YYYY[-MM[-DD]]; empty for
            unknown.
        has_freesound: whether sounds of Freesound are among the training data; None for
            unknown.
        url: where it, or the paper on it, is found.
    """

    name: str
    what: str = ""
    training_data: str = ""
    released: str = ""
    has_freesound: bool | None = None
    url: str = ""

    @property
    def predates_cut_off(self) -> bool | None:
        """Whether it was public before CUT_OFF; None for unknown.

        Examples:
            >>> [Resource("", released=r).predates_cut_off for r in ("2024", "2025-03-31")]
            [True, True]
            >>> [Resource("", released=r).predates_cut_off for r in ("2025-04-01", "2025", "")]
            [False, None, None]
        """
        if not self.released:
            return None
        known = len(self.released) - len("YYYY")
        if self.released + "-12-31"[known:] < CUT_OFF.isoformat():
            return True
        return False if self.released + "-01-01"[known:] >= CUT_OFF.isoformat() else None

    @property
    def is_allowed(self) -> bool | None:
        """Whether the rule on external resources allows it; None for unknown."""
        return is_known_to_be_allowed(self.predates_cut_off, self.has_freesound) or None


def is_known_to_be_allowed(predates_cut_off: object, has_freesound: object) -> bool:
    """The rule on external resources, of facts that may be unknown: older, or without Freesound."""
    return predates_cut_off is True or has_freesound is False
