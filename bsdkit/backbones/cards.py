"""What the backbones of a system were trained on, as far as it is known.

The task allows external resources unless they were trained on sounds of Freesound from after
1 April 2025, when the evaluation clips began to be uploaded. A model that was public before
that day cannot have been; of a later one it must be known. What is not known here stays
unknown, and the check of a submission says so.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, replace

from bsdkit.backbones.base import Backbone
from bsdkit.backbones.registry import backbone_classes
from bsdkit.store.kinds import IMPORTED_EMBEDDING, LANGUAGE_MODEL_PRIOR, kind_of
from bsdkit.text import template_name

__all__ = [
    "CUT_OFF",
    "BackboneUse",
    "Resource",
    "backbone_uses",
    "is_known_to_be_allowed",
    "resource_of",
]

CUT_OFF = datetime.date(2025, 4, 1)
"""From this day on, training on sounds of Freesound is not allowed."""


@dataclass(frozen=True)
class Resource:
    """An external resource of a system.

    Attributes:
        name: what it is called here.
        what: what it is, in a few words.
        training_data: what it was trained on; empty for unknown.
        released: the day, month or year by which it was public, as YYYY[-MM[-DD]]; empty for
            unknown.
        has_freesound: whether sounds of Freesound are among the training data; None for
            unknown.
        url: where it, or the paper on it, is found.
    """

    name: str
    what: str = ""
    training_data: str = ""
    released: str = ""
    has_freesound: bool | None = None
    url: str = ""

    @property
    def predates_cut_off(self) -> bool | None:
        """Whether it was public before CUT_OFF; None for unknown.

        Examples:
            >>> [Resource("", released=r).predates_cut_off for r in ("2024", "2025-03-31")]
            [True, True]
            >>> [Resource("", released=r).predates_cut_off for r in ("2025-04-01", "2025", "")]
            [False, None, None]
        """
        if not self.released:
            return None
        known = len(self.released) - len("YYYY")
        if self.released + "-12-31"[known:] < CUT_OFF.isoformat():
            return True
        return False if self.released + "-01-01"[known:] >= CUT_OFF.isoformat() else None

    @property
    def is_allowed(self) -> bool | None:
        """Whether the rule on external resources allows it; None for unknown."""
        return is_known_to_be_allowed(self.predates_cut_off, self.has_freesound) or None


def is_known_to_be_allowed(predates_cut_off: object, has_freesound: object) -> bool:
    """The rule on external resources, of facts that may be unknown: older, or without Freesound."""
    return predates_cut_off is True or has_freesound is False


_LAION = "LAION-Audio-630K (with Freesound), AudioSet"
_UNPUBLISHED = "speech, sound and music; sources not published"
_HUB = "https://huggingface.co"

# training data, public by, whether it has sounds of Freesound, where; what is not here is unknown.
# A year stands where the month is not certain: the paper's, by which the weights were public.
_KNOWN: dict[str, tuple[str, str, bool | None, str]] = {
    # Ma and Lerch, ISMIR 2022, section 3
    "aisfx": ("sound-effects libraries", "2022", None, "https://arxiv.org/abs/2208.09096"),
    # Chen et al., ICML 2023
    "beats": ("AudioSet", "2023", False, "https://github.com/microsoft/unilm/tree/master/beats"),
    # Wu et al., ICASSP 2023; the days on which the files were uploaded
    "clap": (_LAION, "2023-02-28", True, f"{_HUB}/lukewys/laion_clap"),
    "clap-fusion": (_LAION, "2023-02-28", True, f"{_HUB}/lukewys/laion_clap"),
    "clap-music": (f"{_LAION}, music", "2023-04-08", True, f"{_HUB}/lukewys/laion_clap"),
    # Schmid et al., ICASSP 2023
    "efficientat": (
        "ImageNet, AudioSet", "2023", False, "https://github.com/fschmid56/EfficientAT",
    ),
    "efficientat-mn10": (
        "ImageNet, AudioSet", "2023", False, "https://github.com/fschmid56/EfficientAT",
    ),
    # Niizumi et al., Interspeech 2024; the name of the weights has the day 240128
    "m2d": (
        "AudioSet, captions of its clips", "2024", None, "https://github.com/nttcslab/m2d",
    ),
    "minilm": (
        "sentence pairs, no audio", "2021", False,
        f"{_HUB}/sentence-transformers/all-MiniLM-L6-v2",
    ),
    # Koutini et al., Interspeech 2022
    "passt": ("ImageNet, AudioSet", "2022", False, "https://github.com/kkoutini/PaSST"),
    # Chu et al., arXiv 2407.10759; Xu et al., arXiv 2503.20215 and 2509.17765
    "qwen2-audio": (_UNPUBLISHED, "2024", None, f"{_HUB}/Qwen/Qwen2-Audio-7B"),
    "qwen2.5-omni": (_UNPUBLISHED, "2025-03", None, f"{_HUB}/Qwen/Qwen2.5-Omni-7B"),
    "qwen3-omni": (_UNPUBLISHED, "2025-09", None, f"{_HUB}/Qwen/Qwen3-Omni-30B-A3B-Instruct"),
}  # fmt: skip


def resource_of(name: str, weights: str = "") -> Resource:
    """What is known of a backbone's training.

    Args:
        name: the backbone's name, e.g. ``clap`` or ``hf:facebook/wav2vec2-base``.
        weights: name of the weights, as in a spec; empty for the published ones. Nothing but
            what the backbone is is known of others.
    """
    cls = _class_of(name)
    what = cls.summary if cls is not None else ""
    if name in _KNOWN and weights in ("", _published_weights(cls)):
        return Resource(name, what, *_KNOWN[name])
    url = f"{_HUB}/{name.removeprefix('hf:')}" if name.startswith("hf:") else ""
    return Resource(f"{name} with {weights}" if name in _KNOWN else name, what, url=url)


def _class_of(name: str) -> type[Backbone] | None:
    prefix, colon, _ = name.partition(":")
    return backbone_classes().get(prefix + colon)


def _published_weights(cls: type[Backbone] | None) -> str:
    """What a spec calls a backbone's own weights; empty where the name alone tells them."""
    weight_file = getattr(cls, "weight_file", None)
    return str(weight_file.name if weight_file is not None else getattr(cls, "model", ""))


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
        name, cls, weights = stem, guessed, _published_weights(guessed)
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
    published = _published_weights(cls)
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
        parameters=round(cls.parameters * 1e6) if cls.parameters and is_published else None,
        is_lower_bound=is_prompt,
        gigaflops=cls.gigaflops if has_operations and is_published else None,
    )
