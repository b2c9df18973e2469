"""From class probabilities to one class: three ways to decide."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from bsdkit.metrics import FAMILY_CREDIT_PRF
from bsdkit.taxonomy import Taxonomy

__all__ = ["Decoding", "decode", "family_sums"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Decoding = Literal["argmax", "family_first", "expected_hF"]


def decode(probabilities: FloatArray, how: Decoding, taxonomy: Taxonomy) -> IntArray:
    """Class positions [n_clips] of class probabilities [n_clips, n_classes].

    - ``argmax``: the most probable class.
    - ``family_first``: the most probable class of the most probable family.
    - ``expected_hF``: the class of the highest expected credit, which is its probability plus
      0.375 times that of its siblings: the Bayes decision under the credit of hF (Berger,
      "Statistical Decision Theory" 1985, section 4.4).

    Of equals the first one wins.
    """
    if how == "argmax":
        return np.asarray(probabilities.argmax(axis=1))
    by_family = family_sums(probabilities, taxonomy)
    if how == "expected_hF":
        siblings = by_family[:, taxonomy.family_of] - probabilities
        return np.asarray((probabilities + FAMILY_CREDIT_PRF * siblings).argmax(axis=1))
    is_in = taxonomy.family_of[None, :] == by_family.argmax(axis=1)[:, None]
    return np.asarray(np.where(is_in, probabilities, -1.0).argmax(axis=1))


def family_sums(values: FloatArray, taxonomy: Taxonomy) -> FloatArray:
    """Sums [n_clips, n_families] of values [n_clips, n_classes] over the classes of each family.

    They are added class by class: a row's sums are the same in any company, to the last bit.
    """
    result = np.zeros((len(values), len(taxonomy.families)))
    for c, family in enumerate(taxonomy.family_of):
        result[:, family] += values[:, c]
    return result
