"""From class probabilities to one class: ways to decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator

from bsdkit.metrics import FAMILY_CREDIT_PRF
from bsdkit.registry import Registry
from bsdkit.taxonomy import Taxonomy

__all__ = ["DECODERS", "Decoder", "Decoding", "decode", "family_sums", "register"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Decide = Callable[[FloatArray, Taxonomy], IntArray]


@dataclass(frozen=True)
class Decoder:
    """A way to decide.

    Attributes:
        label: what it chooses, in the words of a submission.
        decide: class positions [n_clips] of probabilities [n_clips, n_classes]; of equals the
            first one, and each row by itself.
        uses_families: whether it makes something of the taxonomy's families.
    """

    label: str
    decide: Decide
    uses_families: bool = True


DECODERS: Registry[Decoder] = Registry("decoder")
Decoding = Annotated[str, AfterValidator(DECODERS.known)]


def register(name: str, label: str, *, uses_families: bool = True) -> Callable[[Decide], Decide]:
    """A decorator that makes a function known as a decoder; see `Decoder`."""

    def decorate(decide: Decide) -> Decide:
        DECODERS.add(name, Decoder(label, decide, uses_families))
        return decide

    return decorate


def decode(probabilities: FloatArray, how: Decoding, taxonomy: Taxonomy) -> IntArray:
    """Class positions [n_clips] of class probabilities [n_clips, n_classes].

    Args:
        probabilities: [n_clips, n_classes].
        how: a name of DECODERS.
        taxonomy: the classes and their families.

    Raises:
        RecipeError: there is no such decoder.
    """
    return DECODERS[how].decide(probabilities, taxonomy)


@register("argmax", "the most probable class", uses_families=False)
def _most_probable(probabilities: FloatArray, taxonomy: Taxonomy) -> IntArray:
    return np.asarray(probabilities.argmax(axis=1))


@register("family_first", "the most probable class of the most probable family")
def _family_first(probabilities: FloatArray, taxonomy: Taxonomy) -> IntArray:
    by_family = family_sums(probabilities, taxonomy)
    is_in = taxonomy.family_of[None, :] == by_family.argmax(axis=1)[:, None]
    return np.asarray(np.where(is_in, probabilities, -1.0).argmax(axis=1))


@register("expected_hF", "the class of the highest expected credit")
def _expected_credit(probabilities: FloatArray, taxonomy: Taxonomy) -> IntArray:
    """The Bayes decision under the credit of hF (Berger 1985, section 4.4).

    A class's expected credit is its probability plus 0.375 times that of its siblings.
    """
    by_family = family_sums(probabilities, taxonomy)
    siblings = by_family[:, taxonomy.family_of] - probabilities
    return np.asarray((probabilities + FAMILY_CREDIT_PRF * siblings).argmax(axis=1))


def family_sums(values: FloatArray, taxonomy: Taxonomy) -> FloatArray:
    """Sums [n_clips, n_families] of values [n_clips, n_classes] over the classes of each family.

    They are added class by class: a row's sums are the same in any company, to the last bit.
    """
    result = np.zeros((len(values), len(taxonomy.families)))
    for c, family in enumerate(taxonomy.family_of):
        result[:, family] += values[:, c]
    return result
