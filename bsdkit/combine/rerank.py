"""A second opinion on the few classes that a clip may be: LightGBM over candidates.

The ensemble and some members who disagree with it name a clip's candidates. A booster that
knows how the members rank them, how sure they are and how far they agree scores each one, and
overrides the ensemble where another candidate is ahead by a margin: by more if that leaves the
ensemble's family. (The candidate reranker and its conservative rule follow the XJTLU system of
DCASE 2026 Task 1; the ranking objective is LambdaRank, Burges, MSR-TR-2010-82.)

See `bsdkit.combine.candidates` for the candidates and what is known of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as options

from bsdkit.combine.candidates import Candidates, candidates_of, diverse_members, features_of
from bsdkit.combine.evidence import Evidence
from bsdkit.combine.folds import inner_folds
from bsdkit.combine.objective import Objective
from bsdkit.errors import RecipeError
from bsdkit.metrics import FAMILY_CREDIT_PRF
from bsdkit.taxonomy import Taxonomy

__all__ = [
    "RerankOptions",
    "Reranker",
    "fit_reranker",
]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MARGINS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8)
"""Margins that tuning tries; the last resort is to override nothing."""

NEVER = 1e9
"""A margin that nothing clears."""

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
        cross_confidence: the score that a candidate of another family needs besides; a
            probability, so ``binary`` alone has it.
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
    cross_confidence: float = Field(default=0.0, ge=0, le=1)
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
        if self.cross_confidence and self.objective != "binary":
            raise ValueError(
                "cross_confidence is a probability, which objective: binary gives; leave it out"
            )


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
        cross_confidence: see `RerankOptions`.
    """

    taxonomy: Taxonomy
    top: int
    diverse: tuple[int, ...]
    tau: float
    cross_tau: float
    model: str
    cross_confidence: float = 0.0

    def apply(self, evidence: Evidence) -> Evidence:
        """The same clips, with the first class and an overriding one in each other's place."""
        if not len(evidence):
            return evidence
        candidates = candidates_of(evidence, self.top, self.diverse)
        scores = self.scores(evidence, candidates)
        first, best, margin = _duel(
            evidence.decided, candidates, scores, self.taxonomy, self.cross_confidence
        )
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
            "cross_confidence": self.cross_confidence,
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
            data.get("cross_confidence", 0.0),  # runs of before it was there
        )


def _duel(
    mixed: FloatArray,
    candidates: Candidates,
    scores: FloatArray,
    taxonomy: Taxonomy,
    cross_confidence: float,
) -> tuple[IntArray, IntArray, FloatArray]:
    """Each clip's first class, the best-scored candidate [n_clips], and how far that one leads.

    One of another family whose score is too small does not lead.
    """
    table = np.full(mixed.shape, -np.inf)
    table[candidates.clip, candidates.label] = scores
    first, best = mixed.argmax(axis=1), table.argmax(axis=1)
    rows = np.arange(len(mixed))
    margin = table[rows, best] - table[rows, first]
    is_across = taxonomy.family_of[first] != taxonomy.family_of[best]
    margin[is_across & (table[rows, best] < cross_confidence)] = -np.inf
    return first, best, margin


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
            options, evidence.decided, candidates, scores, labels, objective, tau, cross_tau
        )
    everything = np.ones(len(table), bool)
    model = _boosted(options, table, names, candidates, labels, everything, taxonomy)
    text = model.model_to_string()
    return Reranker(taxonomy, options.top, diverse, tau, cross_tau, text, options.cross_confidence)


def _tuned_margins(
    options: RerankOptions,
    mixed: FloatArray,
    candidates: Candidates,
    scores: FloatArray,
    labels: IntArray,
    objective: Objective,
    tau: float | None,
    cross_tau: float | None,
) -> tuple[float, float]:
    """The margins of the best objective; of equals the most cautious ones."""
    first, best, margin = _duel(
        mixed, candidates, scores, objective.taxonomy, options.cross_confidence
    )
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
