"""Datasets: the clips table, the layouts on disk that are read, and what a file is made of."""

from bsdkit.dataset.clips import Clips
from bsdkit.dataset.columns import ID_COLUMNS
from bsdkit.dataset.folders import AUDIO_SUFFIXES, audio_suffixes
from bsdkit.dataset.inspection import inspect_audio
from bsdkit.dataset.reading import read_dataset
from bsdkit.dataset.report import FilterReport

__all__ = [
    "AUDIO_SUFFIXES",
    "ID_COLUMNS",
    "Clips",
    "FilterReport",
    "audio_suffixes",
    "inspect_audio",
    "read_dataset",
]
