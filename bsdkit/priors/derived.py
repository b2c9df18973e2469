"""Priors that are made of a feature: of embedded texts, or of what an audio language model says."""

from __future__ import annotations

from pathlib import Path

from bsdkit.backbones.base import Backbone
from bsdkit.errors import PriorError
from bsdkit.priors.engines.audio_language import OUTPUT
from bsdkit.priors.engines.encoder import encoder_prior
from bsdkit.priors.scores import prior_facts, prior_of_scores
from bsdkit.store.feature import read_feature
from bsdkit.store.kinds import AUDIO_LANGUAGE_PRIOR, PRIOR, TEXT_ENCODER_PRIOR, Spec, kind_of, slug
from bsdkit.store.store import Store

__all__ = ["audio_prior", "make_prior"]

VERSION = 1


def audio_prior(store: Store, backbone: Backbone, name: str = "") -> Path:
    """Writes the prior of an audio language model's answers; returns its file.

    Args:
        store: with the answers' log-likelihoods as the feature that `backbone` made.
        backbone: with a question about the classes, see `bsdkit.priors.engines.audio_language`.
        name: of the prior; default ``prior.<backbone>``.

    Raises:
        IncompleteStore: the store lacks the feature.
    """
    source = backbone.spec(OUTPUT).to_dict()
    rows = read_feature(store.info(backbone.feature(OUTPUT), source).path)
    taxonomy = store.clips.taxonomy
    spec = {
        "backbone": AUDIO_LANGUAGE_PRIOR.name,
        **prior_facts(taxonomy),
        "weights": source["weights"],
        "text_template": source.get("text_template"),
        "encoder": source,
        "version": VERSION,
    }
    name = name or f"{PRIOR}.{slug(backbone.name)}"
    return prior_of_scores(store, name, spec, rows, rows.embedding.astype(float), {})


def make_prior(store: Store, spec: Spec, backbone: Backbone, device: str, name: str) -> Path:
    """Writes a prior like one that was made before, for the clips of another store.

    Args:
        store: with the feature that it comes from.
        spec: of the one before.
        backbone: of that feature; loaded here where need be.
        device: where to load it.
        name: of the prior.

    Raises:
        IncompleteStore: the store lacks the feature.
        PriorError: a prior of this spec comes from no feature.
        StaleStore: the prior as it is made now has another spec.
    """
    kind = kind_of(spec)
    if kind is TEXT_ENCODER_PRIOR:
        if not backbone.device:
            backbone.prepare(device)
        encoder = spec["encoder"]
        texts = spec["class_texts"]
        assert isinstance(encoder, dict) and isinstance(texts, list)
        output = str(encoder["output"])
        path = encoder_prior(
            store, backbone.feature(output), backbone, output, list(map(str, texts)), name
        )
    elif kind is AUDIO_LANGUAGE_PRIOR:
        path = audio_prior(store, backbone, name)
    else:
        raise PriorError(f"{name} comes from no feature: {spec['backbone']}")
    store.info(name, spec)
    return path
