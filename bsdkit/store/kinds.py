"""Specs as plain dictionaries, and the kinds of features that they are of.

A spec has a canonical form, a hash, and differs from another in a field. Its kind says what may be
done with the feature and which command makes it; nothing else asks a spec what it is of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from bsdkit.text import TEMPLATES, template_name

__all__ = [
    "AUDIO_LANGUAGE_PRIOR",
    "EMBEDDING",
    "FEATURE_KINDS",
    "IMPORTED_EMBEDDING",
    "IMPORTED_PROBABILITIES",
    "LANGUAGE_MODEL_PRIOR",
    "PRIOR",
    "TEXT_ENCODER_PRIOR",
    "FeatureKind",
    "Spec",
    "canonical",
    "first_difference",
    "kind_of",
    "slug",
    "spec_hash",
]

Spec = Mapping[str, object]
"""Every fact that changes an embedding's numbers, as JSON types."""

PRIOR = "prior"
"""The ``kind`` in the spec of class probabilities from metadata or a language model, and the first
part of such a feature's name."""


@dataclass(frozen=True)
class FeatureKind:
    """What may be done with the features of one kind, and how they are made.

    Attributes:
        name: the ``backbone`` in the spec of such features; of embeddings and of priors in
            general, which are told by other fields, a word of its own.
        is_embedding: whether its vectors are places in a space: for maps and near-duplicates.
        is_probabilities: whether it has a column a class, and can be a member without a head.
        is_prior: whether it is said of metadata, or by a language model.
        may_fail: whether a clip may have a failed row without being refused; heads see zeros.
        is_trained_elsewhere: whether models made it that were trained on folds of their own.
        row: what a clip has of it.
        again: what to do where rows are missing or of other classes.
    """

    name: str
    is_embedding: bool = False
    is_probabilities: bool = False
    is_prior: bool = False
    may_fail: bool = False
    is_trained_elsewhere: bool = False
    row: str = "row"
    again: str = "run bsdkit priors"

    def source(self, spec: Spec) -> dict[str, Any] | None:
        """The spec of the feature that one is made from; None where it comes from clips alone."""
        found = spec.get("encoder")
        return found if isinstance(found, dict) else None

    def command(self, feature: str, spec: Spec) -> str:
        """The command line that makes a feature of that spec, but for the store."""
        model = _output_name(source) if (source := self.source(spec)) else spec["weights"]
        words = [f"bsdkit priors --model {model}", *_text_words(spec)]
        return " ".join([*words, f"--name {feature.partition('@')[0]}"])

    def refusal(self, feature: str, spec: Spec, store: str) -> str:
        """Why such a feature is not made for new clips, and what to type; empty if it is.

        Args:
            feature: its name.
            spec: its spec.
            store: of the new clips.
        """
        return ""


@dataclass(frozen=True)
class _Embedding(FeatureKind):
    def command(self, feature: str, spec: Spec) -> str:
        words = [f"bsdkit extract --data DIR --backbone {_output_name(spec)}"]
        for option, field, usual in (
            ("dtype", "dtype", "float16"),
            ("precision", "compute_dtype", "float32"),
        ):
            if spec.get(field, usual) != usual:
                words.append(f"--{option} {spec[field]}")
        return " ".join([*words, *_text_words(spec)])


@dataclass(frozen=True)
class _Heard(FeatureKind):
    def command(self, feature: str, spec: Spec) -> str:
        source = cast(dict[str, Any], self.source(spec))
        words = [f"bsdkit priors --data DIR --model {source['backbone']}", *_text_words(spec)]
        return " ".join([*words, f"--name {feature.partition('@')[0]}"])


@dataclass(frozen=True)
class _Imported(FeatureKind):
    line: str = ""

    def command(self, feature: str, spec: Spec) -> str:
        return self.line

    def refusal(self, feature: str, spec: Spec, store: str) -> str:
        return (
            f"{feature} was imported ({spec['origin']}); import it for these clips too "
            f"({self.command(feature, spec)}), then give --store"
        )


@dataclass(frozen=True)
class _LanguageModel(FeatureKind):
    def command(self, feature: str, spec: Spec) -> str:
        words = ["bsdkit priors", f"--engine {spec['engine']}", f"--model {spec['weights']}"]
        if spec["engine"] == "openai":
            said = cast(dict[str, Any], spec["parameters"])
            words.append(f"--temperature {said.get('temperature', 'none')}")
            for key in ("top_p", "max_tokens", "reasoning"):
                if key in said:
                    words.append(f"--{key.replace('_', '-')} {said[key]}")
            if "body" in said:
                words.append(f"--body '{json.dumps(said['body'])}'")
            if spec["revision_from"] == "user":
                words.append(f"--revision {spec['revision']}")
        words += _text_words(spec)
        name = feature.partition("@")[0]
        if name != f"{PRIOR}.{slug(str(spec['weights']))}":
            words.append(f"--name {name}")
        return " ".join(words)

    def refusal(self, feature: str, spec: Spec, store: str) -> str:
        return (
            f"{feature} is of a language model, which is not asked unasked: "
            f"{self.command(feature, spec)} --store {store}, then give --store {store} alone"
        )


def _text_words(spec: Spec) -> list[str]:
    """The options that choose the text template of a spec."""
    name = template_name(str(spec.get("text_template") or ""))
    if name == "masked":
        return ["--mask-class-words"]
    return [f"--text {name}"] if name and name != next(iter(TEMPLATES)) else []


def _output_name(spec: Spec) -> str:
    """How the command line names a backbone's output."""
    output = spec.get("output")
    return f"{spec['backbone']}.{output}" if output else str(spec["backbone"])


def slug(model: str) -> str:
    """A model's name as a part of a feature's.

    Examples:
        >>> slug("Qwen/Qwen3-8B"), slug("gpt-5.4-mini"), slug("models/my model/")
        ('Qwen3-8B', 'gpt-5.4-mini', 'my-model')
    """
    last = model.rstrip("/").rpartition("/")[2]
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in last)
    return kept.strip("._-") or "model"


EMBEDDING = _Embedding("embedding", is_embedding=True, row="embedding", again="run bsdkit extract")
_prior: dict[str, Any] = {"is_probabilities": True, "is_prior": True, "may_fail": True}
ANY_PRIOR = FeatureKind(PRIOR, **_prior)
TEXT_ENCODER_PRIOR = FeatureKind("text-encoder", **_prior)
AUDIO_LANGUAGE_PRIOR = _Heard("audio-language", **_prior)
LANGUAGE_MODEL_PRIOR = _LanguageModel("llm", **_prior)
IMPORTED_EMBEDDING = _Imported(
    "imported", is_embedding=True, row="embedding", again="import it", line="bsdkit store import"
)
IMPORTED_PROBABILITIES = _Imported(
    "imported-probabilities",
    is_probabilities=True,
    is_trained_elsewhere=True,
    again="import it",
    line="bsdkit import",
)

FEATURE_KINDS: Mapping[str, FeatureKind] = {
    kind.name: kind
    for kind in (
        TEXT_ENCODER_PRIOR,
        AUDIO_LANGUAGE_PRIOR,
        LANGUAGE_MODEL_PRIOR,
        IMPORTED_EMBEDDING,
        IMPORTED_PROBABILITIES,
    )
}
"""The kinds that the ``backbone`` in a spec names; see `kind_of` for the others."""


def kind_of(spec: Spec) -> FeatureKind:
    """The kind of the features of a spec: a named one, another prior, or an embedding."""
    usual = ANY_PRIOR if spec.get("kind") == PRIOR else EMBEDDING
    return FEATURE_KINDS.get(str(spec.get("backbone", "")), usual)


def canonical(spec: Spec) -> str:
    """The spec as JSON with sorted keys and no spaces; equal specs give equal text."""
    return json.dumps(spec, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def spec_hash(spec: Spec) -> str:
    """The sha256 of a spec's canonical form; file names carry its first 12 hex digits."""
    return hashlib.sha256(canonical(spec).encode()).hexdigest()


def first_difference(found: Spec, expected: Spec) -> tuple[str, object, object] | None:
    """(field, found, expected) of the first expected field that differs, by name; else None.

    `expected` may be partial: only the fields that it names are compared.
    """
    for name in sorted(expected):
        if name not in found or canonical({"": found[name]}) != canonical({"": expected[name]}):
            return name, found.get(name, "(absent)"), expected[name]
    return None
