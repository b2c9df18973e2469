"""A second opinion on the few classes that a clip may be: LightGBM over candidates.

The ensemble and some members who disagree with it name a clip's candidates. A booster that
knows how the members rank them, how sure they are and how far they agree scores each one, and
overrides the ensemble where another candidate is ahead by a margin: by more if that leaves the
ensemble's family. (The candidate reranker and its conservative rule follow the XJTLU system of
DCASE 2026 Task 1; the ranking objective is LambdaRank, Burges, MSR-TR-2010-82.)

Candidates and features are functions of an `Evidence`, which has no labels, ids or folds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as options

from bsdkit.combine.decode import family_sums
from bsdkit.combine.evidence import Evidence
from bsdkit.combine.folds import inner_folds
from bsdkit.combine.objective import Objective
from bsdkit.errors import RecipeError
from bsdkit.metrics import FAMILY_CREDIT_PRF
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "Candidates",
    "RerankOptions",
    "Reranker",
    "candidates_of",
    "features_of",
    "fit_reranker",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MARGINS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8)
"""Margins that tuning tries; the last resort is to override nothing."""

NEVER = 1e9
"""A margin that nothing clears."""

_FLOOR = 1e-6

_NUDGE = 1e-9
"""Probability that an overriding class gets where the swap leaves it level with another one."""


@options(frozen=True, config=ConfigDict(extra="forbid"))
class RerankOptions:
    """How candidates are reranked.

    Attributes:
        objective: ``binary`` (is it the class) or ``lambdarank`` (which is better; the right
            family is worth something).
        top: classes of the ensemble's ranking that are candidates.
        diverse: members whose first class is one too: those that disagree most.
        tau: the margin by which a candidate must lead, or ``tune``.
        cross_tau: the same, across families; at least `tau`.
        rounds: trees.
        leaves: of a tree.
        learning_rate: of the booster.
        min_rows: candidates in a leaf at least.
        balance: how far rare classes count more: clips are weighted by share ** -balance.
        seed: of the booster.
        similarity: a feature with one column a class: how near a clip's metadata are to it.

    Raises:
        ValueError: a margin is negative, or leaving the family is easier than staying.
    """

    objective: Literal["binary", "lambdarank"] = "binary"
    top: int = Field(default=3, ge=1)
    diverse: int = Field(default=3, ge=0)
    tau: float | Literal["tune"] = "tune"
    cross_tau: float | Literal["tune"] = "tune"
    rounds: int = Field(default=120, ge=1)
    leaves: int = Field(default=15, ge=2)
    learning_rate: float = Field(default=0.05, gt=0)
    min_rows: int = Field(default=40, ge=1)
    balance: float = Field(default=0.5, ge=0, le=1)
    seed: int = Field(default=0, ge=0)
    similarity: str | None = None

    def __post_init__(self) -> None:
        for name in ("tau", "cross_tau"):
            value = getattr(self, name)
            if value != "tune" and not value >= 0:
                raise ValueError(f"{name} is {value!r}, expected 0 or more, or tune")
        if self.tau != "tune" and self.cross_tau != "tune" and self.cross_tau < self.tau:
            raise ValueError(
                f"cross_tau is {self.cross_tau!r}, below tau: {self.tau!r}; leaving the family "
                "must not be easier than staying"
            )


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


def _table(features: Mapping[str, FloatArray]) -> tuple[FloatArray, list[str]]:
    """The features as one matrix [n_pairs, n_features], and the names of its columns."""
    columns, names = [], []
    for name, values in features.items():
        block = values[:, None] if values.ndim == 1 else values
        columns.append(block)
        names += [name] if values.ndim == 1 else [f"{name}_{i}" for i in range(block.shape[1])]
    return np.concatenate(columns, axis=1), names


@dataclass(frozen=True)
class Reranker:
    """A fitted reranker.

    Attributes:
        taxonomy: the classes.
        top: see `RerankOptions`.
        diverse: positions of the members whose first class is a candidate.
        tau: the margin within the family.
        cross_tau: the margin across families.
        model: LightGBM's own text.
    """

    taxonomy: Taxonomy
    top: int
    diverse: tuple[int, ...]
    tau: float
    cross_tau: float
    model: str

    def apply(self, evidence: Evidence) -> Evidence:
        """The same clips, with the first class and an overriding one in each other's place."""
        if not len(evidence):
            return evidence
        candidates = candidates_of(evidence, self.top, self.diverse)
        scores = self.scores(evidence, candidates)
        first, best, margin = _duel(evidence.decided, candidates, scores)
        return evidence.with_mixed(
            _override(
                evidence.decided, first, best, margin, self.tau, self.cross_tau, self.taxonomy
            )
        )

    def scores(self, evidence: Evidence, candidates: Candidates) -> FloatArray:
        """The booster's score of each candidate [n_pairs], in probability for ``binary``."""
        import lightgbm

        booster = lightgbm.Booster(model_str=self.model)
        table, _ = _table(features_of(evidence, candidates, self.taxonomy))
        return np.asarray(booster.predict(table, num_threads=1), np.float64)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "top": self.top,
            "diverse": list(self.diverse),
            "tau": self.tau,
            "cross_tau": self.cross_tau,
            "model": self.model,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], taxonomy: Taxonomy) -> Reranker:
        """What `to_dict` gave."""
        return cls(
            taxonomy,
            data["top"],
            tuple(data["diverse"]),
            data["tau"],
            data["cross_tau"],
            data["model"],
        )


def _duel(
    mixed: FloatArray, candidates: Candidates, scores: FloatArray
) -> tuple[IntArray, IntArray, FloatArray]:
    """Each clip's first class, the best-scored candidate [n_clips], and how far that one leads."""
    table = np.full(mixed.shape, -np.inf)
    table[candidates.clip, candidates.label] = scores
    first, best = mixed.argmax(axis=1), table.argmax(axis=1)
    rows = np.arange(len(mixed))
    return first, best, table[rows, best] - table[rows, first]


def _override(
    mixed: FloatArray,
    first: IntArray,
    best: IntArray,
    margin: FloatArray,
    tau: float,
    cross_tau: float,
    taxonomy: Taxonomy,
) -> FloatArray:
    families = taxonomy.family_of
    needed = np.where(families[first] == families[best], tau, max(tau, cross_tau))
    rows = np.flatnonzero((best != first) & (margin > needed))
    result = mixed.copy()
    result[rows, first[rows]] = mixed[rows, best[rows]]
    result[rows, best[rows]] = mixed[rows, first[rows]]
    tied = rows[result[rows].argmax(axis=1) != best[rows]]  # a class before it is as probable
    result[tied] *= 1 - _NUDGE
    result[tied, best[tied]] += _NUDGE
    return result


def fit_reranker(
    options: RerankOptions,
    evidence: Evidence,
    labels: IntArray,
    fold: IntArray,
    objective: Objective,
) -> Reranker:
    """The reranker of these clips.

    Margins that are to be tuned are chosen on candidates scored by boosters that did not see
    their clips: those of the other folds.

    Args:
        options: how.
        evidence: n clips, averaged as new ones will be.
        labels: class positions [n].
        fold: which clips are held out together [n].
        objective: what the margins maximise.
    """
    taxonomy = objective.taxonomy
    diverse = diverse_members(evidence, options.diverse)
    candidates = candidates_of(evidence, options.top, diverse)
    table, names = _table(features_of(evidence, candidates, taxonomy))
    tau = None if options.tau == "tune" else options.tau
    cross_tau = None if options.cross_tau == "tune" else options.cross_tau
    if tau is None or cross_tau is None:
        scores = np.empty(len(table))
        for part in inner_folds(fold, labels):
            is_held = np.isin(candidates.clip, part)
            model = _boosted(options, table, names, candidates, labels, ~is_held, taxonomy)
            scores[is_held] = model.predict(table[is_held], num_threads=1)
        tau, cross_tau = _tuned_margins(
            evidence.decided, candidates, scores, labels, objective, tau, cross_tau
        )
    everything = np.ones(len(table), bool)
    model = _boosted(options, table, names, candidates, labels, everything, taxonomy)
    return Reranker(taxonomy, options.top, diverse, tau, cross_tau, model.model_to_string())


def _tuned_margins(
    mixed: FloatArray,
    candidates: Candidates,
    scores: FloatArray,
    labels: IntArray,
    objective: Objective,
    tau: float | None,
    cross_tau: float | None,
) -> tuple[float, float]:
    """The margins of the best objective; of equals the most cautious ones."""
    first, best, margin = _duel(mixed, candidates, scores)
    chosen, highest = (NEVER, NEVER), -1.0
    for t in sorted((*MARGINS, NEVER) if tau is None else (tau,), reverse=True):
        for c in sorted((*MARGINS, NEVER) if cross_tau is None else (cross_tau,), reverse=True):
            if c < t and cross_tau is None:
                continue
            taken = _override(mixed, first, best, margin, t, c, objective.taxonomy).argmax(axis=1)
            score = objective.of(labels, taken)
            if score > highest:
                chosen, highest = (t, max(t, c)), score
    return chosen


def _boosted(
    options: RerankOptions,
    table: FloatArray,
    names: list[str],
    candidates: Candidates,
    labels: IntArray,
    used: npt.NDArray[np.bool_],
    taxonomy: Taxonomy,
) -> Any:
    """A booster of the pairs that are used. One thread and fixed bins: the same model each time."""
    import lightgbm

    clip, label = candidates.clip[used], candidates.label[used]
    true = labels[clip]
    share = np.bincount(true, minlength=len(taxonomy)) / len(true)
    weight = np.maximum(share, 1e-12)[true] ** -options.balance
    if options.objective == "binary":
        target = (label == true).astype(int)
        group = None
    else:  # levels of relevance, whose gains are the credits of hF
        same_family = taxonomy.family_of[label] == taxonomy.family_of[true]
        target = np.where(label == true, 2, np.where(same_family, 1, 0))
        group = np.bincount(clip, minlength=candidates.n_clips)
        group = group[group > 0]
    data = lightgbm.Dataset(
        table[used],
        target,
        weight=weight / weight.mean(),
        group=group,
        feature_name=names,
        params={"verbose": -1},
    )
    settings: dict[str, Any] = {
        "objective": options.objective,
        "num_leaves": options.leaves,
        "learning_rate": options.learning_rate,
        "min_data_in_leaf": options.min_rows,
        "feature_fraction": 0.7,
        "lambda_l2": 1.0,
        "seed": options.seed,
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
        "verbose": -1,
    }
    if options.objective == "lambdarank":
        settings["label_gain"] = [0, FAMILY_CREDIT_PRF, 1]
    try:
        return lightgbm.train(settings, data, num_boost_round=options.rounds)
    except lightgbm.basic.LightGBMError as error:
        raise RecipeError(
            f"a reranker cannot be learned from {len(np.unique(clip))} clips ({error}); leave "
            "rerank out"
        ) from None
