"""Specs as plain dictionaries: their canonical form, their hash, and what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

__all__ = ["PRIOR", "Spec", "canonical", "first_difference", "is_prior", "spec_hash"]

Spec = Mapping[str, object]
"""Every fact that changes an embedding's numbers, as JSON types."""

PRIOR = "prior"
"""The ``kind`` in the spec of class probabilities from metadata or a language model, and the first
part of such a feature's name. A clip without a row has no prior, which heads see as zeros."""


def is_prior(spec: Spec) -> bool:
    """Whether a feature of that spec is a class prior."""
    return spec.get("kind") == PRIOR


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
