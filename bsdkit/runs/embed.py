"""New clips embedded for a run: the features that it needs, with the specs that it had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.backbones.registry import get_backbone
from bsdkit.device import check_device
from bsdkit.errors import RecipeError, StaleStore
from bsdkit.extract.pipeline import ExtractionSettings, extract
from bsdkit.extract.report import summary_lines
from bsdkit.extract.run import described_template
from bsdkit.priors.derived import make_prior
from bsdkit.priors.engines.audio_language import OUTPUT, with_question
from bsdkit.progress import Progress
from bsdkit.runs.folder import Run
from bsdkit.runs.predict import needed_features
from bsdkit.store.fill import fill_store
from bsdkit.store.kinds import first_difference, kind_of
from bsdkit.store.store import Store
from bsdkit.taxonomy import Taxonomy
from bsdkit.text import TextTemplate

__all__ = ["extract_for_run"]


def extract_for_run(
    run: Run,
    data: Path,
    store: Path,
    *,
    member: str = "",
    device: str,
    progress: Progress,
    is_replacing: bool = False,
) -> None:
    """Embeds what a run, or one member of it, needs of a dataset, with the specs that it had.

    Raises:
        StaleStore: the backbone as it is now has another spec than the run's features.
        RecipeError: a feature was imported, so nothing here can make it.
    """
    check_device(device)
    opened, clips = fill_store(data, store, run.clips.taxonomy, progress, is_replacing=is_replacing)
    with progress:
        specs = _specs_to_embed(run, member, store)
        # a store that was filled with clips in part keeps them
        is_partly = any(info.n_partial for info in opened.infos())
        settings = ExtractionSettings(device=device, partial="embed" if is_partly else "fail")
        for template, wanted in _backbones_of(specs, device, run.clips.taxonomy):
            reports = extract(
                wanted,
                clips,
                opened,
                template,
                settings,
                progress=progress,
            )
            for line in summary_lines(reports):
                progress.line(line)
            _make_priors(run, member, opened, wanted, device, progress)


def _make_priors(
    run: Run,
    member: str,
    store: Store,
    made: Sequence[tuple[Backbone, list[str]]],
    device: str,
    progress: Progress,
) -> None:
    """Makes those of a run's priors that come from features which were embedded just now."""
    for feature, spec in _specs_of(run, member).items():
        source = kind_of(spec).source(spec)
        if source is None:
            continue
        for backbone, outputs in made:
            if source["output"] not in outputs or source["backbone"] != backbone.name:
                continue
            if backbone.spec(source["output"]).to_dict() != source:
                continue
            path = make_prior(store, spec, backbone, device, feature.partition("@")[0])
            progress.line(f"{feature}: made from {backbone.feature(source['output'])} -> {path}")


def _specs_of(run: Run, member: str) -> dict[str, dict[str, Any]]:
    return {f: run.facts["features"][f]["spec"] for f in needed_features(run, member)}


def _specs_to_embed(run: Run, member: str, store: Path) -> dict[str, dict[str, Any]]:
    """The specs of what has to be embedded for a run's features, by feature.

    Raises:
        RecipeError: a feature came from elsewhere, or from a language model that must be asked.
    """
    specs: dict[str, dict[str, Any]] = {}
    for feature, spec in _specs_of(run, member).items():
        kind = kind_of(spec)
        if reason := kind.refusal(feature, spec, str(store)):
            raise RecipeError(reason)
        if source := kind.source(spec):
            specs.setdefault(f"of {feature}", source)
        else:
            specs[feature] = spec
    # what a prior comes from may be an input of its own
    known = [spec for feature, spec in specs.items() if not feature.startswith("of ")]
    return {f: s for f, s in specs.items() if not f.startswith("of ") or s not in known}


def _backbones_of(
    specs: dict[str, dict[str, Any]], device: str, taxonomy: Taxonomy
) -> list[tuple[TextTemplate, list[tuple[Backbone, list[str]]]]]:
    """The backbones that made features with their outputs, by text template."""
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for feature, spec in specs.items():
        # outputs of one backbone are made together, but texts of two templates are not
        same = (spec["backbone"], spec["dtype"], spec["compute_dtype"])
        templates = {specs[f].get("text_template") for f in grouped.get(same, [])} - {None}
        if templates - {spec.get("text_template")} and spec.get("text_template") is not None:
            same = (*same[:2], f"{same[2]} {spec['text_template']}")
        grouped.setdefault(same, []).append(feature)
    found: dict[str, tuple[TextTemplate, list[tuple[Backbone, list[str]]]]] = {}
    usual = next((s["text_template"] for s in specs.values() if s.get("text_template")), None)
    for features in grouped.values():
        first = specs[features[0]]
        described = {specs[f].get("text_template") for f in features} - {None}
        template = described_template(described.pop() if described else usual, taxonomy)
        options = BackboneOptions(
            text_template=template.describe(),
            dtype=first["dtype"],
            precision=first["compute_dtype"],
        )
        if any(specs[f]["output"] == OUTPUT for f in features):
            options = with_question(options, taxonomy)
        backbone = get_backbone(first["backbone"], options)
        _check_weights(backbone, features[0], first)
        backbone.require()
        outputs = [specs[f]["output"] for f in features]
        backbone.wanted = frozenset(outputs)
        if backbone.needs_load_for_spec:
            backbone.prepare(device)
        for feature in features:
            then = specs[feature]
            difference = first_difference(backbone.spec(then["output"]).to_dict(), then)
            if difference:
                field, now, before = difference
                raise StaleStore(
                    f"the run was trained on {feature} with {field} = {before!r}, this version "
                    f"has {now!r}; embed the training clips again and fit again"
                )
        found.setdefault(template.describe(), (template, []))[1].append((backbone, outputs))
    return list(found.values())


def _check_weights(backbone: Backbone, feature: str, then: dict[str, object]) -> None:
    """Raises StaleStore where a run's features came from weights that its user gave."""
    usual = then["weights"]
    if isinstance(backbone, CheckpointBackbone):
        usual = backbone.weight_file.name
    if then["weights"] != getattr(backbone, "model", usual):
        raise StaleStore(
            f"the run's {feature} was made with --weights {then['weights']}, which only you have: "
            f"{kind_of(then).command(feature, then)} --weights FILE --store STORE, then bsdkit "
            "predict RUN --store STORE"
        )
