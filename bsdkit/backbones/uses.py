"""The frozen models behind features, and what is known of each, for a submission."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from bsdkit.backbones.base import Backbone
from bsdkit.backbones.cards import HUB, Resource
from bsdkit.backbones.registry import backbone_classes
from bsdkit.store.kinds import IMPORTED_EMBEDDING, LANGUAGE_MODEL_PRIOR, kind_of
from bsdkit.text import template_name

__all__ = ["BackboneUse", "backbone_uses", "resource_of"]


def resource_of(name: str, weights: str = "") -> Resource:
    """What is known of a backbone's training.

    Args:
        name: the backbone's name, e.g. ``clap`` or ``hf:facebook/wav2vec2-base``.
        weights: name of the weights, as in a spec; empty for the published ones. Nothing but
            what the backbone is is known of others.
    """
    cls = _class_of(name)
    if cls is not None and cls.card.training_data:
        if weights in ("", cls.card.weights):
            return cls.card.resource(name)
        name = f"{name} with {weights}"
    url = f"{HUB}/{name.removeprefix('hf:')}" if name.startswith("hf:") else ""
    return Resource(name, cls.card.summary if cls is not None else "", url=url)


def _class_of(name: str) -> type[Backbone] | None:
    prefix, colon, _ = name.partition(":")
    return backbone_classes().get(prefix + colon)


@dataclass(frozen=True)
class BackboneUse:
    """A frozen model that a system takes features from.

    Attributes:
        name: the backbone, or the feature where the model is not one of bsdkit's.
        weights: name of its weights.
        features: what is taken from it, e.g. ``clap.audio`` and ``clap.text``.
        kinds: of these features, ``audio``, ``text`` or ``prompt``; empty where unknown.
        sample_rate: Hz; None for text, or unknown.
        text_template: how its text was built; empty where it sees none.
        parameters: number of its parameters; None for unknown.
        is_lower_bound: whether more than these parameters are run, such as a language model
            behind its audio tower.
        gigaflops: 1e9 floating-point operations for ten seconds of audio, or 77 tokens; None
            for unknown.
        resource: what it was trained on.
    """

    name: str
    resource: Resource
    weights: str = ""
    features: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    sample_rate: int | None = None
    text_template: str = ""
    parameters: int | None = None
    is_lower_bound: bool = False
    gigaflops: float | None = None


def backbone_uses(specs: Mapping[str, Mapping[str, object]]) -> tuple[BackboneUse, ...]:
    """The distinct frozen models behind features, each once, in the order of the features.

    Two features are of one model if backbone and weights are the same. An imported feature
    whose name begins with a backbone's (``clap-fusion.audio``) is taken for that backbone's.

    Args:
        specs: the spec of each feature by its name, as in a feature file.
    """
    uses: dict[tuple[str, str], BackboneUse] = {}
    for feature, spec in specs.items():
        use = _use_of(feature, kind_of(spec).source(spec) or spec)
        for one in (use, *_writer(feature, spec)):
            key = one.name, one.weights
            uses[key] = _joined(uses[key], one) if key in uses else one
    return tuple(uses.values())


def _writer(feature: str, spec: Mapping[str, object]) -> tuple[BackboneUse, ...]:
    """The language model that wrote the texts which a feature embeds, if one did."""
    *_, origin = str(spec.get("text_template") or "").split(" | ")
    name, _, model = origin.partition("@")[0].partition(".")
    if template_name(str(spec.get("text_template") or "")) != name or not model:
        return ()
    what = f"language model, {model}, which wrote a {name} of each clip's metadata"
    return (BackboneUse(model, Resource(model, what), features=(feature,), kinds=("text",)),)


def _joined(first: BackboneUse, second: BackboneUse) -> BackboneUse:
    return replace(
        first,
        features=(*first.features, *second.features),
        kinds=tuple(dict.fromkeys((*first.kinds, *second.kinds))),
        sample_rate=first.sample_rate or second.sample_rate,
        text_template=first.text_template or second.text_template,
        is_lower_bound=first.is_lower_bound or second.is_lower_bound,
        gigaflops=second.gigaflops if first.gigaflops is None else first.gigaflops,
    )


def _use_of(feature: str, spec: Mapping[str, object]) -> BackboneUse:
    name, weights = str(spec.get("backbone", "")), str(spec.get("weights", ""))
    kind, origin = str(spec.get("kind", "")), str(spec.get("origin", ""))
    cls = _class_of(name)
    stem, _, output = feature.partition(".")
    if kind_of(spec) is IMPORTED_EMBEDDING and (guessed := _class_of(stem)) is not None:
        name, cls, weights = stem, guessed, guessed.card.weights
        kind = str(cls.outputs.get(output, ""))
    if kind_of(spec) is LANGUAGE_MODEL_PRIOR:
        return BackboneUse(
            name=weights,
            weights=str(spec.get("revision", "")),
            resource=Resource(weights, f"language model, {weights}, on the metadata"),
            features=(feature,),
            kinds=("text",),
            text_template=str(spec.get("text_template") or ""),
        )
    if cls is None:  # imported, or of a plug-in that is not here
        stated = spec.get("parameters")
        return BackboneUse(
            name=feature,
            resource=Resource(feature, origin or f"imported ({name})"),
            features=(feature,),
            kinds=(kind,) if kind else (),
            parameters=stated if isinstance(stated, int) else None,
        )
    card, published = cls.card, cls.card.weights
    is_published = published in ("", weights)
    # what the class states of a language model is its audio tower; a prompt runs all of it
    is_prompt = kind == "prompt"
    # and of an audio-text model the operations of its audio tower
    has_operations = not is_prompt and (kind != "text" or "audio" not in cls.outputs.values())
    rate = spec.get("sample_rate")
    resource = resource_of(name, weights if published else "")
    return BackboneUse(
        name=name,
        weights=weights,
        resource=replace(resource, what=f"{resource.what}; vectors from {origin}")
        if origin
        else resource,
        features=(feature,),
        kinds=(kind,) if kind else (),
        sample_rate=rate if isinstance(rate, int) else None,
        text_template=str(spec.get("text_template") or ""),
        parameters=round(cls.card.parameters * 1e6)
        if cls.card.parameters and is_published
        else None,
        is_lower_bound=is_prompt,
        gigaflops=card.gigaflops if has_operations and is_published else None,
    )
