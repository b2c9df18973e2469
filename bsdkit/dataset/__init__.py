"""Datasets: the clips table, the layouts on disk that are read, and what a file is made of."""

from bsdkit.dataset.clips import Clips
from bsdkit.dataset.inspection import inspect_audio
from bsdkit.dataset.reading import AUDIO_SUFFIXES, ID_COLUMNS, FilterReport, read_dataset

__all__ = [
    "AUDIO_SUFFIXES",
    "ID_COLUMNS",
    "Clips",
    "FilterReport",
    "inspect_audio",
    "read_dataset",
]
