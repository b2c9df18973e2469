"""Class priors without a language model: metadata compared with descriptions of the classes.

The zero-shot classification of CLIP (Radford et al., "Learning Transferable Visual Models From
Natural Language Supervision", ICML 2021, section 3.1), of texts by texts: a clip's metadata and a
description of each class go through the same text encoder, and the prior is the softmax of scaled
cosines. The scale is fixed here and no label is looked at; a slope on the logarithm of the prior,
which is a temperature on the cosines, is for a head to fit (see `bsdkit.heads.prior`).
"""

from __future__ import annotations

import hashlib
import string
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.registry import backbone_classes, get_outputs
from bsdkit.dataset import Clips
from bsdkit.device import check_device
from bsdkit.errors import PriorError
from bsdkit.extract.pipeline import ExtractionSettings, extract
from bsdkit.extract.report import summary_lines
from bsdkit.extract.run import without_stale
from bsdkit.priors.options import CLASS_TEXT, Made, PriorOptions
from bsdkit.priors.scores import prior_facts, prior_of_scores
from bsdkit.progress import Progress
from bsdkit.store.feature import OK, read_feature
from bsdkit.store.kinds import PRIOR, TEXT_ENCODER_PRIOR, Spec, slug
from bsdkit.store.store import Store
from bsdkit.taxonomy import Taxonomy
from bsdkit.text import TextTemplate

__all__ = [
    "TEXT_ENCODER",
    "class_texts",
    "encoder_prior",
    "encoder_spec",
    "make",
]

TEXT_ENCODER = TEXT_ENCODER_PRIOR.name
"""The engine, and the ``backbone`` in the spec of its priors."""

SCALE = 20.0
"""What cosines are multiplied by: the scale of sentence-transformers' contrastive losses."""

VERSION = 1
_FIELDS = ("label", "name", "family", "family_name", "description")


def class_texts(taxonomy: Taxonomy, pattern: str = CLASS_TEXT) -> list[str]:
    """The text of each class [n_classes].

    Args:
        taxonomy: the classes.
        pattern: words with ``{label}``, ``{name}``, ``{family}``, ``{family_name}`` or
            ``{description}`` in them; what a class lacks is left out, and so are the spaces and
            full stops around it.

    Raises:
        PriorError: the pattern has another field, or two classes get the same text.
    """
    try:
        fields = {name for _, name, _, _ in string.Formatter().parse(pattern) if name is not None}
    except ValueError as error:
        raise PriorError(f"class text {pattern!r}: {error}") from None
    if not fields or not fields <= set(_FIELDS):
        listed = ", ".join(f"{{{name}}}" for name in _FIELDS)
        raise PriorError(f"class text {pattern!r}: expected words with one or more of {listed}")
    try:
        filled = [
            pattern.format(**{name: getattr(c, name) or "" for name in _FIELDS})
            for c in taxonomy.classes
        ]
    except (ValueError, AttributeError, IndexError) as error:
        raise PriorError(f"class text {pattern!r}: {error}") from None
    texts = [" ".join(text.split()).strip(" .").replace(" .", "") for text in filled]
    for i, text in enumerate(texts):
        if text in texts[:i]:
            first = taxonomy.labels[texts.index(text)]
            raise PriorError(
                f"class text {pattern!r} gives {first!r} and {taxonomy.labels[i]!r} the same "
                f"words, {text!r}; add {{name}} or {{description}}"
            )
    return texts


def encoder_spec(text_spec: Spec, taxonomy: Taxonomy, texts: list[str]) -> dict[str, object]:
    """The spec of the prior that compares a text feature with the texts of the classes."""
    return {
        "backbone": TEXT_ENCODER,
        **prior_facts(taxonomy),
        "weights": text_spec["weights"],
        "class_texts": texts,
        "class_texts_sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "scale": SCALE,
        "text_template": text_spec.get("text_template"),
        "encoder": dict(text_spec),
        "version": VERSION,
    }


def encoder_prior(
    store: Store,
    feature: str,
    backbone: Backbone,
    output: str,
    texts: list[str],
    name: str = "",
) -> Path:
    """Writes the prior of a text feature that the store holds; returns its file.

    Args:
        store: with the clips' texts embedded; its taxonomy is that of the prior.
        feature: the text feature.
        backbone: what embedded it; loaded.
        output: the backbone's text output.
        texts: of each class, see `class_texts`.
        name: the prior's name; default ``prior.<feature>``.

    Raises:
        IncompleteStore: the store lacks the feature.
    """
    info = store.info(feature, backbone.spec(output).to_dict())
    taxonomy = store.clips.taxonomy
    started = time.perf_counter()
    of_classes = backbone.embed_texts(texts)[output].astype(np.float64)
    rows = read_feature(info.path)
    cosines = _unit(rows.embedding.astype(np.float64)) @ _unit(of_classes).T
    spec = encoder_spec(info.spec, taxonomy, texts)
    return prior_of_scores(
        store,
        name or f"{PRIOR}.{slug(info.feature)}",
        spec,
        rows,
        SCALE * cosines,
        {"device": backbone.device, "seconds": round(time.perf_counter() - started, 3)},
    )


def _unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


def make(store: Store, clips: Clips, options: PriorOptions, progress: Progress) -> Made:
    """Makes the prior of all clips, and embeds their texts where they are not; see `Engine`."""
    texts = class_texts(store.clips.taxonomy, options.class_text)  # refuses before it loads
    template = options.template(store)
    backbone, output = _text_output(options, template)
    template = without_stale(template, store.path, store.clips, progress)
    lines = _embed_missing(store, backbone, output, template, options.device, progress)
    path = encoder_prior(store, backbone.feature(output), backbone, output, texts, options.name)
    rows = read_feature(path)
    n_failed = int((rows.state != OK).sum())
    lacking = f", {n_failed} without a text embedding" if n_failed else ""
    lines.append(f"{path.name.rpartition('-')[0]}: {len(rows)} clips{lacking} -> {path}")
    return Made(tuple(lines), not n_failed)


def _text_output(options: PriorOptions, template: TextTemplate) -> tuple[Backbone, str]:
    """The backbone, not loaded, and its one text output that are meant."""
    chosen = BackboneOptions(text_template=template.describe())
    (backbone, outputs), *more = get_outputs([options.model], chosen)
    texts = [output for output in outputs if backbone.outputs[output] == "text"]
    if more or len(texts) != 1:
        known = [n for n, c in backbone_classes().items() if "text" in c.outputs.values()]
        raise PriorError(
            f"{options.model} embeds no text; give a text encoder ({', '.join(known)}), or "
            "--engine openai for a language model on a server"
        )
    backbone.wanted = frozenset(texts)
    return backbone, texts[0]


def _embed_missing(
    store: Store,
    backbone: Backbone,
    output: str,
    template: TextTemplate,
    device: str,
    progress: Progress,
) -> list[str]:
    """Embeds the texts of the store's clips, as far as they are not; loads the backbone."""
    check_device(device)
    backbone.require()
    with progress:
        if not backbone.device:
            backbone.prepare(device)
        reports = extract(
            [(backbone, [output])],
            store.clips,
            store,
            template,
            ExtractionSettings(device=device),
            progress=progress,
        )
    return summary_lines(reports) if any(report.n_embedded for report in reports) else []
