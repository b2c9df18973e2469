"""Every error that bsdkit raises on purpose, in one tree.

    BsdkitError
    |-- TaxonomyError (ValueError)      a taxonomy file that cannot be used
    |   `-- UnknownClass (KeyError)     a label that the taxonomy does not have
    |-- DatasetError (ValueError)       metadata or labels that cannot be read
    |   `-- SplitError                  folds that cannot be made
    |-- AudioError                      a sound file that cannot be decoded
    |   |-- MissingAudio                it is not there
    |   |-- EmptyAudio                  it holds no samples
    |   `-- PartialAudio                only a part of it can be decoded
    |-- StarterError                    the starter sounds cannot be built here
    |-- StoreError                      a store that cannot be read or written
    |   |-- StaleStore                  a feature of another spec than was expected
    |   |-- IncompleteStore             a feature that misses rows or is missing itself
    |   |-- CorruptStore                a file whose contents do not match its checksum
    |   `-- StoreLocked                 another process is writing this feature
    |-- BackboneError                   a backbone that cannot be used
    |   |-- UnknownBackbone (KeyError)  no backbone has this name
    |   |-- BackboneUnavailable         its package or its weights are missing
    |   `-- ImprecisePrecision          its vectors below float32 are not those in float32
    |-- PriorError                      class priors or summaries that cannot be made
    |-- DeviceError                     a device that torch cannot use
    |-- HeadError (ValueError)          a head that cannot be made or fitted
    `-- RecipeError (ValueError)        a recipe that cannot be run

The command line prints the message of any of them as one line and exits with
code 2. A message says what was found, what was expected, and what to type next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "AudioError",
    "BackboneError",
    "BackboneUnavailable",
    "BsdkitError",
    "CorruptStore",
    "DatasetError",
    "DeviceError",
    "EmptyAudio",
    "HeadError",
    "ImprecisePrecision",
    "IncompleteStore",
    "MissingAudio",
    "PartialAudio",
    "PriorError",
    "RecipeError",
    "SplitError",
    "StaleStore",
    "StarterError",
    "StoreError",
    "StoreLocked",
    "TaxonomyError",
    "UnknownBackbone",
    "UnknownClass",
    "nearest",
]


class BsdkitError(Exception):
    """The root of all errors that bsdkit raises on purpose."""

    def __str__(self) -> str:
        # KeyError would show the repr of its argument; a message is for reading.
        return str(self.args[0]) if self.args else self.__class__.__name__


class TaxonomyError(BsdkitError, ValueError):
    """A taxonomy that cannot be used."""


class UnknownClass(TaxonomyError, KeyError):
    """A label that the taxonomy does not have."""


class DatasetError(BsdkitError, ValueError):
    """Metadata or labels that cannot be read."""


class SplitError(DatasetError):
    """Folds that cannot be made from these clips."""


class AudioError(BsdkitError):
    """A sound file that cannot be decoded."""


class MissingAudio(AudioError):
    """A sound file that is not there."""


class EmptyAudio(AudioError):
    """A sound file without samples."""


class PartialAudio(AudioError):
    """A sound file of which only a part can be decoded."""


class StarterError(BsdkitError):
    """The starter sounds cannot be built on this machine."""


class StoreError(BsdkitError):
    """A store that cannot be read or written."""


class StaleStore(StoreError):
    """A feature that was embedded with another spec than the one expected."""


class IncompleteStore(StoreError):
    """A store that lacks a feature, or a feature that lacks rows."""


class CorruptStore(StoreError):
    """A file whose contents do not match its own checksum."""


class StoreLocked(StoreError):
    """Another process is writing the same feature."""


class BackboneError(BsdkitError):
    """A backbone that cannot be used."""


class UnknownBackbone(BackboneError, KeyError):
    """No backbone is registered under this name."""


class BackboneUnavailable(BackboneError):
    """The package or the weights of a backbone are missing."""


class ImprecisePrecision(BackboneError):
    """A number type in which a backbone's vectors are not what they are in float32."""


class PriorError(BsdkitError):
    """Class priors or summaries that cannot be made from the metadata."""


class DeviceError(BsdkitError):
    """A device that torch cannot use here."""


class HeadError(BsdkitError, ValueError):
    """A head that cannot be made or fitted."""


class RecipeError(BsdkitError, ValueError):
    """A recipe that cannot be run."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """A clause that names the most similar choices, or all of them, for an error message.

    Examples:
        >>> nearest("hed", ["head", "features"])
        "did you mean 'head'?"
        >>> nearest("zzz", ["head", "features"])
        'known: features, head'
    """
    names = sorted({str(choice) for choice in choices})
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return "known: " + ", ".join(names) if names else "none is known"
