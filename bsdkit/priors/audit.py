"""How much of a prior's accuracy is that uploaders had named the class in their metadata."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bsdkit.errors import PriorError
from bsdkit.metrics import Comparison, Interval, bootstrap, compare
from bsdkit.store.feature import FeatureInfo
from bsdkit.store.kinds import PRIOR, first_difference, kind_of
from bsdkit.store.store import Store
from bsdkit.text import TEMPLATES, build_texts, named_classes, template_name

__all__ = ["LeakageGroup", "PriorAudit", "audit_priors"]

_BY_ITSELF = ("text_template", "encoder", "schema", "revision")
"""Parts of a spec that differ, or may, between a prior and that of masked metadata."""


@dataclass(frozen=True)
class LeakageGroup:
    """Clips whose metadata name, or do not name, their class.

    Attributes:
        name: which clips.
        n_clips: with a label and a prior of both kinds.
        accuracy: share whose most probable class under the prior is theirs.
        masked: the same under the prior of masked metadata; None without one.
        difference: accuracy of the prior over that of the masked one, paired; None without.
    """

    name: str
    n_clips: int
    accuracy: Interval
    masked: Interval | None
    difference: Comparison | None


@dataclass(frozen=True)
class PriorAudit:
    """What a prior owes to class words.

    Attributes:
        feature: the prior's name.
        n_missing: clips without a prior.
        n_masked_missing: clips without a prior of masked metadata; 0 where there is none.
        hF_strict: of its most probable classes, on all labelled clips with a prior.
        masked: the same of masked metadata; None without it.
        difference: of the two, paired; None without it.
        groups: accuracy by what the metadata name.
    """

    feature: str
    n_missing: int
    n_masked_missing: int
    hF_strict: Interval  # noqa: N815
    masked: Interval | None
    difference: Comparison | None
    groups: tuple[LeakageGroup, ...]

    @property
    def owed(self) -> float | None:
        """Share of the prior's accuracy that is gone when class words are masked."""
        everyone = self.groups[-1]
        if everyone.masked is None or not everyone.accuracy.value:
            return None
        return 1 - everyone.masked.value / everyone.accuracy.value


def audit_priors(store: Store) -> list[PriorAudit]:
    """An audit of each prior in a store that was made from unmasked metadata.

    A prior and its masked kind are compared by their most probable classes on the same clips,
    those that have a label and both priors. Nothing is fitted, so no clip's label has a say.

    Raises:
        PriorError: the store has no such prior, or no labels; or a prior has other classes.
    """
    clips = store.clips
    if not (clips.labels >= 0).any():
        raise PriorError(f"{store.path} has no labels to judge priors by")
    infos = [info for info in store.infos() if kind_of(info.spec).is_prior]
    plain = [info for info in infos if _template(info) != "masked"]
    if not plain:
        raise PriorError(
            f"{store.path} has no {PRIOR}; make one with bsdkit priors --store {store.path}"
        )
    for info in infos:
        if info.spec.get("classes") != list(clips.taxonomy.labels):
            raise PriorError(
                f"{info.feature} has other classes than {store.path}: run bsdkit priors again, or "
                f"delete {info.path}"
            )
    texts = build_texts(clips, next(iter(TEMPLATES.values())))
    named = named_classes(texts, clips.taxonomy)
    return [_audit(store, info, _masked_of(info, infos), named) for info in plain]


def _template(info: FeatureInfo) -> str:
    return template_name(str(info.spec.get("text_template", "")))


def _masked_of(info: FeatureInfo, infos: list[FeatureInfo]) -> FeatureInfo | None:
    """The prior of the same model that was made from masked metadata, if it is there."""
    facts = {k: v for k, v in info.spec.items() if k not in _BY_ITSELF}
    own = str(info.spec.get("text_template", ""))
    return next(
        (
            other
            for other in infos
            if other.feature == info.feature
            and str(other.spec.get("text_template", "")).startswith(own + " | masks ")
            and first_difference(other.spec, facts) is None
        ),
        None,
    )


def _audit(
    store: Store,
    info: FeatureInfo,
    other: FeatureInfo | None,
    named: npt.NDArray[np.bool_],
) -> PriorAudit:
    clips, taxonomy = store.clips, store.clips.taxonomy
    best, is_there = _best(store, info)
    again, is_masked_there = (best, is_there) if other is None else _best(store, other)
    rows = np.flatnonzero((clips.labels >= 0) & is_there & is_masked_there)
    if not len(rows):
        raise PriorError(f"{info.feature}: no labelled clip has it")
    names_own = named[np.arange(len(clips)), np.maximum(clips.labels, 0)]
    names_any = np.asarray(named.any(axis=1))
    groups: dict[str, npt.NDArray[np.bool_]] = {
        "name their own class": names_own,
        "name another class only": names_any & ~names_own,
        "name no class": ~names_any,
        "all": np.ones(len(clips), bool),
    }

    def scores(chosen: npt.NDArray[np.int64], metric: str) -> tuple[
        Interval, Interval | None, Comparison | None
    ]:  # fmt: skip
        truth = clips.labels[chosen]
        ours = bootstrap(truth, best[chosen], taxonomy)[metric]
        if other is None:
            return ours, None, None
        theirs = bootstrap(truth, again[chosen], taxonomy)[metric]
        return ours, theirs, compare(truth, best[chosen], again[chosen], taxonomy, metric=metric)

    return PriorAudit(
        f"{info.feature}@{info.spec_hash[:12]}" if _is_ambiguous(store, info) else info.feature,
        int((~is_there).sum()),
        0 if other is None else int((~is_masked_there).sum()),
        *scores(rows, "hF_strict"),
        tuple(
            LeakageGroup(name, len(chosen), *scores(chosen, "accuracy"))
            for name, is_in in groups.items()
            if len(chosen := rows[is_in[rows]])
        ),
    )


def _best(store: Store, info: FeatureInfo) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The most probable class [n_clips] of each clip, and whether it has a prior."""
    name = f"{info.feature}@{info.spec_hash}"
    features = store.features([name])
    return features.arrays[name].argmax(axis=1), ~features.is_missing[:, 0]


def _is_ambiguous(store: Store, info: FeatureInfo) -> bool:
    usual = [i for i in store.infos() if i.feature == info.feature and _template(i) != "masked"]
    return len(usual) > 1
