"""The stage that embeds: sound files or texts in, one immutable feature file out."""

from bsdkit.extract.embed import embed
from bsdkit.extract.pipeline import ExtractionSettings, extract
from bsdkit.extract.plan import WorkSlice
from bsdkit.extract.report import ExtractionReport, Stages

__all__ = [
    "ExtractionReport",
    "ExtractionSettings",
    "Stages",
    "WorkSlice",
    "embed",
    "extract",
]
