"""A whole dataset through one or more backbones into a store, as the command line does it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.backbones.registry import get_backbone, get_outputs
from bsdkit.dataset import Clips, inspect_audio, read_dataset
from bsdkit.device import check_device
from bsdkit.errors import RecipeError, StaleStore, StoreError
from bsdkit.extract.pipeline import Engine, ExtractionSettings, Observer, extract
from bsdkit.extract.report import ExtractionReport, Stages
from bsdkit.priors.ask import Ask, slug
from bsdkit.priors.audio_language import OUTPUT, with_question
from bsdkit.priors.derived import make_prior
from bsdkit.priors.llm import LLM, SUMMARY
from bsdkit.priors.prompt import clip_contents
from bsdkit.report.progress import Bar, ConsoleProgress
from bsdkit.store.probabilities import IMPORTED_PROBABILITIES
from bsdkit.store.specs import PRIOR, first_difference
from bsdkit.store.store import Store
from bsdkit.store.texts import find_texts
from bsdkit.taxonomy import Taxonomy
from bsdkit.text import (
    TEMPLATES,
    TextTemplate,
    get_template,
    masked,
    template_name,
    with_texts,
)

if TYPE_CHECKING:  # reading a run brings in torch, which refusing a bad dataset need not
    from bsdkit.recipe.artifacts import Run

__all__ = [
    "bars",
    "extract_dataset",
    "extract_for_run",
    "fill_table",
    "find_template",
    "summary_lines",
    "without_stale",
]

_SHOWN_FAILURES = 3


def extract_dataset(
    data: Path,
    store: Path,
    backbones: Sequence[str],
    *,
    progress: ConsoleProgress,
    settings: ExtractionSettings | None = None,
    options: BackboneOptions | None = None,
    engine: Engine | None = None,
    taxonomy: Taxonomy | str = "bst",
    text_template: str = "title-tags-description",
    mask_class_words: bool = False,
) -> list[ExtractionReport]:
    """Embeds outputs of the backbones and returns one report each.

    Args:
        data: the dataset.
        store: the store's folder; made if it is not there.
        backbones: names, see `get_outputs`.
        progress: where to show what happens.
        settings: how it runs.
        options: weights and number types; the text template is filled in.
        engine: what embeds; None for this process.
        taxonomy: see `read_dataset`.
        text_template: name of the template of text outputs, or of texts in the store.
        mask_class_words: whether words of class names are cut out of texts.

    Raises:
        BsdkitError: see `read_dataset` and `extract`.
    """
    settings = settings or ExtractionSettings()
    if settings.shard_clips < 1:
        raise RecipeError(f"--shard-clips {settings.shard_clips}: expected 1 or more")
    check_device(settings.device)
    names = [name.strip() for name in backbones]
    get_outputs(names, options)  # refuses what is not known before anything is read
    clips, filtered = read_dataset(data, taxonomy)
    template = find_template(text_template, store, clips.taxonomy, is_masked=mask_class_words)
    options = replace(options or BackboneOptions(), text_template=template.describe())
    wanted = get_outputs(names, options)
    if options.weights is not None and len(wanted) > 1:
        raise RecipeError(
            f"--weights {options.weights} is for one backbone, and "
            f"{', '.join(backbone.identity for backbone, _ in wanted)} are asked for; "
            "embed them one after another"
        )
    for backbone, _ in wanted:
        backbone.require()
    for line in filtered.lines():
        progress.line(line)
    with progress:
        opened, clips = fill_table(clips, store, progress)
        template = without_stale(template, store, clips, progress)
        reports = extract(
            wanted,
            clips,
            opened,
            template,
            settings,
            observer=bars(progress),
            engine=engine,
        )
    for line in summary_lines(reports):
        progress.line(line)
    return reports


def find_template(
    name: str, store: Path, taxonomy: Taxonomy, *, is_masked: bool = False
) -> TextTemplate:
    """The text template of that name, or one of texts that a store holds, such as summaries.

    Args:
        name: of a template; or of texts, e.g. ``summary`` (see `find_texts`).
        store: where such texts are.
        taxonomy: whose class words are masked.
        is_masked: whether they are.

    Raises:
        DatasetError: there is no such template.
        StoreError: there are no such texts.
        RecipeError: texts are to be masked.
    """
    usual = next(iter(TEMPLATES.values()))
    is_text = name.partition("@")[0].partition(".")[0] == SUMMARY
    if is_text and is_masked:
        raise RecipeError(
            f"--text {name} cannot be masked: a summary has other words than its metadata; mask "
            "these (bsdkit priors --summaries --mask-class-words)"
        )
    if is_text:
        found = find_texts(store, name)
        return with_texts(usual, found.by_clip, found.origin)
    template = get_template(name)
    return masked(template, taxonomy) if is_masked else template


def without_stale(
    template: TextTemplate, store: Path, clips: Clips, progress: ConsoleProgress
) -> TextTemplate:
    """The template without texts that were made of other metadata than the clips have now.

    Args:
        template: see `find_template`.
        store: where its texts are.
        clips: with their durations, which summaries are made of too.
        progress: where to say how many have none.
    """
    if not template.texts:
        return template
    texts = find_texts(store, template.origin)
    of_these = _template_of(texts.spec["text_template"], clips.taxonomy)
    contents = clip_contents(clips, template=of_these)
    now = {str(c): Ask(str(c), text).sha256 for c, text in zip(clips.ids, contents, strict=True)}
    made_of = dict(zip(texts.rows.ids, texts.rows.source_sha256, strict=True))
    current = {c: text for c, text in template.texts.items() if now.get(c) == made_of[c]}
    n_without = len(clips) - len(current)
    if n_without:
        progress.line(
            f"{n_without} of {len(clips)} clips have no current {texts.name}: their metadata stand "
            "in (bsdkit priors --summaries writes what is missing)"
        )
    return replace(template, texts=current)


def fill_table(clips: Clips, store: Path, progress: ConsoleProgress) -> tuple[Store, Clips]:
    """Reads the audio files' digests and lengths, and writes the clips table of a store.

    Raises:
        StoreError: see `Store.create`.
    """
    clips = inspect_audio(
        clips,
        n_threads=os.cpu_count() or 1,
        progress=lambda n: progress.stage("reading", n, len(clips)),
    )
    before = _taxonomy_of(store)
    opened = Store.create(store, clips)
    if before not in ("", clips.taxonomy.name):
        progress.line(
            f"the taxonomy of {store} changes from {before} to {clips.taxonomy.name}: scores "
            "of runs before and after cannot be compared"
        )
    return opened, clips


def _taxonomy_of(store: Path) -> str:
    """The taxonomy's name in a store's clips table; empty where there is no store."""
    try:
        return Store(store).clips.taxonomy.name
    except StoreError:
        return ""


def bars(progress: ConsoleProgress) -> Observer:
    """Shows a bar a job."""
    bars: dict[str, Bar] = {}

    def start(label: str, todo: int, done: int) -> None:
        bars[label] = progress.bar(label)
        bars[label].start(todo, done)

    return Observer(start, lambda label, n: bars[label].advance(n))


def summary_lines(reports: Sequence[ExtractionReport]) -> list[str]:
    """What a pass did, in a few lines: counts and failures by feature, where the time went."""
    lines = []
    for report in reports:
        left = f", {report.n_left} left to other shards" if report.n_left else ""
        lines.append(
            f"{report.feature}: {report.n_embedded} embedded, {report.n_kept} already there, "
            f"{len(report.failures)} failed{left}"
            + (f" -> {report.path}" if report.path.is_file() else "")
        )
        if report.silent:
            lines.append(
                f"  {len(report.silent)} clips are digital silence (embedded all the same), "
                f"e.g. {report.silent[0]}"
            )
        for kind, n in report.reasons.items():
            lines.append(f"  failed, {kind}: {n}")
            of_kind = [(c, r) for c, r in report.failures.items() if r.split(":")[0] == kind]
            lines += [
                f"    {clip}: {reason.partition(': ')[2]}"
                for clip, reason in of_kind[:_SHOWN_FAILURES]
            ]
    waiting = [report for report in reports if not report.path.is_file()]
    if waiting:
        lines.append(
            "when all parts are done, each with the same --shard-clips: bsdkit store merge "
            f"{waiting[0].path.parent}"
        )
    stages = reports[0].stages
    if any(report.n_embedded for report in reports):
        lines += _stage_lines(stages, max(report.n_embedded for report in reports))
    return lines


def _stage_lines(stages: Stages, n_embedded: int) -> list[str]:
    wall = max(stages.seconds, 1e-9)
    audio = f", {stages.audio_seconds / wall:.0f} s of audio a second" if stages.n_clips else ""
    models = ", ".join(
        f"{name} {seconds:.1f} s" for name, seconds in stages.model_by_backbone.items()
    )
    decoders = f" by {stages.n_decoders} decoders" if stages.n_decoders > 1 else ""
    return [
        f"{wall:.1f} s, {n_embedded / wall:.1f} clips a second{audio}",
        f"  stages, which overlap: decode {stages.decode:.1f} s{decoders}, model "
        f"{stages.model:.1f} s ({models}), write {stages.write:.1f} s; "
        f"the bottleneck was the {stages.bottleneck}",
    ]


def extract_for_run(
    run: Run, data: Path, store: Path, *, member: str = "", device: str, progress: ConsoleProgress
) -> None:
    """Embeds what a run, or one member of it, needs of a dataset, with the specs that it had.

    Raises:
        StaleStore: the backbone as it is now has another spec than the run's features.
        RecipeError: a feature was imported, so nothing here can make it.
    """
    clips, filtered = read_dataset(data, run.clips.taxonomy)
    for line in filtered.lines():
        progress.line(line)
    check_device(device)
    with progress:
        clips = inspect_audio(clips, n_threads=os.cpu_count() or 1)
        opened = Store.create(store, clips)
        specs = _specs_to_embed(run, member, store)
        for template, wanted in _backbones_of(specs, device, run.clips.taxonomy):
            reports = extract(
                wanted,
                clips,
                opened,
                template,
                ExtractionSettings(device=device),
                observer=bars(progress),
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
    progress: ConsoleProgress,
) -> None:
    """Makes those of a run's priors that come from features which were embedded just now."""
    for feature, spec in _specs_of(run, member).items():
        source = spec.get("encoder")
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
    from bsdkit.recipe.predict import needed_features

    return {f: run.facts["features"][f]["spec"] for f in needed_features(run, member)}


def _line_of(feature: str, spec: dict[str, Any]) -> str:
    """The command that makes a language model's prior of that spec."""
    words = ["bsdkit priors", f"--engine {spec['engine']}", f"--model {spec['weights']}"]
    if spec["engine"] == "openai":
        said = spec["parameters"]
        words.append(f"--temperature {said.get('temperature', 'none')}")
        for key in ("top_p", "max_tokens", "reasoning"):
            if key in said:
                words.append(f"--{key.replace('_', '-')} {said[key]}")
        if "body" in said:
            words.append(f"--body '{json.dumps(said['body'])}'")
        if spec["revision_from"] == "user":
            words.append(f"--revision {spec['revision']}")
    if template_name(spec["text_template"]) == "masked":
        words.append("--mask-class-words")
    name = feature.partition("@")[0]
    if name != f"{PRIOR}.{slug(spec['weights'])}":
        words.append(f"--name {name}")
    return " ".join(words)


def _specs_to_embed(run: Run, member: str, store: Path) -> dict[str, dict[str, Any]]:
    """The specs of what has to be embedded for a run's features, by feature.

    Raises:
        RecipeError: a feature came from elsewhere, or from a language model that must be asked.
    """
    specs: dict[str, dict[str, Any]] = {}
    for feature, spec in _specs_of(run, member).items():
        if spec["backbone"] in ("imported", IMPORTED_PROBABILITIES):
            command = "store import" if spec["backbone"] == "imported" else "import"
            raise RecipeError(
                f"{feature} was imported ({spec['origin']}); import it for these clips too "
                f"(bsdkit {command}), then give --store"
            )
        if spec["backbone"] == LLM:
            raise RecipeError(
                f"{feature} is of a language model, which is not asked unasked: "
                f"{_line_of(feature, spec)} --store {store}, then give --store {store} alone"
            )
        if "encoder" in spec:
            specs.setdefault(f"of {feature}", spec["encoder"])
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
        template = _template_of(described.pop() if described else usual, taxonomy)
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
            backbone.load(device)
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
            f"bsdkit extract --data DIR --backbone {backbone.identity} --weights FILE --store "
            "STORE, then bsdkit predict RUN --store STORE"
        )


def _template_of(described: object, taxonomy: Taxonomy) -> TextTemplate:
    if described is None:
        return next(iter(TEMPLATES.values()))
    for template in TEMPLATES.values():
        for one in (template, masked(template, taxonomy)):
            if one.describe() == described:
                return one
    if template_name(str(described)) == SUMMARY:
        origin = str(described).rpartition(" | ")[2]
        raise RecipeError(
            f"the run was trained on {origin}: write summaries of these clips too (bsdkit priors "
            "--summaries --data DIR --store STORE), embed them (bsdkit extract --text summary), "
            "then give --store"
        )
    raise StaleStore(f"no text template of this version gives {described!r}")
