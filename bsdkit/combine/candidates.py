"""The few classes that a clip may be, and what is known of each.

Candidates and features are functions of an `Evidence`, which has no labels, ids or folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsdkit.combine.decode import family_sums
from bsdkit.combine.evidence import Evidence
from bsdkit.taxonomy import Taxonomy

__all__ = ["Candidates", "candidates_of", "diverse_members", "features_of"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

_FLOOR = 1e-6


@dataclass(frozen=True)
class Candidates:
    """Classes that clips may be, as pairs in clip order.

    Attributes:
        clip: positions [n_pairs], ascending.
        label: class positions [n_pairs], ascending within a clip.
        n_clips: the number of clips.
    """

    clip: IntArray
    label: IntArray
    n_clips: int


def diverse_members(evidence: Evidence, n: int) -> tuple[int, ...]:
    """The n members whose first classes differ most from the ensemble's and from each other's."""
    first = np.nan_to_num(evidence.members).argmax(axis=2)
    first[np.isnan(evidence.members[:, :, 0])] = -1  # no prediction disagrees with nothing
    chosen: list[int] = []
    against = [evidence.decided.argmax(axis=1)]
    for _ in range(min(n, len(first))):
        distance = [
            min(int(((f != other) & (f >= 0) & (other >= 0)).sum()) for other in against)
            if i not in chosen
            else -1
            for i, f in enumerate(first)
        ]
        chosen.append(int(np.argmax(distance)))
        against.append(first[chosen[-1]])
    return tuple(chosen)


def candidates_of(evidence: Evidence, top: int, diverse: tuple[int, ...]) -> Candidates:
    """The top classes of the ensemble, and the first class of each diverse member.

    Args:
        evidence: n clips.
        top: how many of the ensemble's ranking.
        diverse: positions of members.
    """
    mixed = evidence.decided
    order = np.argsort(-mixed, axis=1, kind="stable")
    is_candidate = np.zeros(mixed.shape, bool)
    np.put_along_axis(is_candidate, order[:, :top], True, axis=1)
    for i in diverse:
        member = evidence.members[i]
        there = np.flatnonzero(~np.isnan(member[:, 0]))
        is_candidate[there, member[there].argmax(axis=1)] = True
    clip, label = np.nonzero(is_candidate)
    return Candidates(clip, label, len(mixed))


def _entropy(p: FloatArray) -> FloatArray:
    return np.asarray(-(p * np.log(np.maximum(p, 1e-12))).sum(axis=-1))


def _total(values: FloatArray) -> FloatArray:
    """Sum over the first axis, one after the other: numpy may add up a single row otherwise."""
    result = np.zeros(values.shape[1:])
    for value in values:
        result += value
    return result


def _ranks(p: FloatArray) -> FloatArray:
    """Rank [.., n_classes] of each class in its row, the largest first; 0 for it."""
    order = np.argsort(-p, axis=-1, kind="stable")
    ranks = np.empty(p.shape)
    np.put_along_axis(
        ranks, order, np.broadcast_to(np.arange(p.shape[-1], dtype=float), p.shape), axis=-1
    )
    return ranks


def _beside(p: FloatArray) -> FloatArray:
    """How far each class leads the best of the others, [n, n_classes]; negative if it trails."""
    two = np.sort(p, axis=1)[:, ::-1][:, : min(2, p.shape[1])]
    best, second = two[:, :1], two[:, -1:]
    return np.asarray(np.where(p >= best, p - second, p - best))


def features_of(
    evidence: Evidence, candidates: Candidates, taxonomy: Taxonomy
) -> dict[str, FloatArray]:
    """Features by name, each [n_pairs]; those of members [n_pairs, n_members].

    They are: the ensemble's probability, its rank, its lead, its share of the family; the mean,
    spread and extremes over members, their votes and ranks; the family's probability, rank and
    votes; the clip's entropies, margins and agreement; the similarity of its metadata; which
    class and family it is. Each pair's features depend on its own clip only.
    """
    mixed, clip, label = evidence.decided, candidates.clip, candidates.label
    families = taxonomy.family_of
    there = ~np.isnan(evidence.members[:, :, 0])
    n_there = np.maximum(there.sum(axis=0), 1)[:, None]
    members = np.nan_to_num(evidence.members)
    mean = _total(members) / n_there
    spread = np.sqrt(np.maximum(_total(members**2) / n_there - mean**2, 0.0))
    member_ranks = _ranks(members)
    votes = ((member_ranks < 1) & there[:, :, None]).sum(axis=0) / n_there
    top3 = ((member_ranks < 3) & there[:, :, None]).sum(axis=0) / n_there
    mean_rank = (member_ranks * there[:, :, None]).sum(axis=0) / n_there
    by_family = family_sums(mixed, taxonomy)
    family = families[label]
    first = mixed.argmax(axis=1)
    two = np.sort(mixed, axis=1)[:, ::-1]
    of_class: dict[str, FloatArray] = {
        "probability": mixed,
        "logit": np.log(np.maximum(mixed, _FLOOR)),
        "rank": _ranks(mixed),
        "lead": _beside(mixed),
        "member_mean": mean,
        "member_spread": spread,
        "member_highest": members.max(axis=0),
        "member_lowest": np.where(there[:, :, None], members, 1.0).min(axis=0),
        "votes": votes,
        "top3_votes": top3,
        "mean_rank": mean_rank,
    }
    if evidence.similarity is not None:
        similarity = evidence.similarity
        is_known = ~np.isnan(similarity).any(axis=1, keepdims=True)
        of_class["similarity"] = np.where(is_known, similarity, np.nan)
        of_class["similarity_rank"] = np.where(is_known, _ranks(similarity), np.nan)
        of_class["similarity_lead"] = np.where(is_known, _beside(similarity), np.nan)
    of_family = {
        "family_probability": by_family,
        "family_rank": _ranks(by_family),
        "family_lead": _beside(by_family),
        "family_votes": family_sums(votes, taxonomy),
    }
    of_clip = {
        "entropy": _entropy(mixed),
        "family_entropy": _entropy(by_family),
        "member_entropy": _total(_entropy(members) * there) / n_there[:, 0],
        "first_probability": two[:, 0],
        "margin": two[:, 0] - two[:, min(1, two.shape[1] - 1)],
        "agreement": votes.max(axis=1),
        "n_first_classes": (votes > 0).sum(axis=1).astype(float),
        "first": first.astype(float),
    }
    found = {name: values[clip, label] for name, values in of_class.items()}
    found |= {name: values[clip, family] for name, values in of_family.items()}
    found |= {name: values[clip] for name, values in of_clip.items()}
    found["within_family"] = mixed[clip, label] / np.maximum(by_family[clip, family], 1e-12)
    found["is_first"] = (label == first[clip]).astype(float)
    found["same_family"] = (family == families[first[clip]]).astype(float)
    found["class"] = label.astype(float)
    found["family"] = family.astype(float)
    found["members"] = evidence.members[:, clip, label].T  # NaN is LightGBM's missing value
    return found
