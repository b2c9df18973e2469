"""A whole dataset through one or more backbones into a store, as the command line does it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.backbones.registry import get_backbone, get_outputs
from bsdkit.dataset import inspect_audio, read_dataset
from bsdkit.device import check_device
from bsdkit.errors import RecipeError, StaleStore, StoreError
from bsdkit.extract.pipeline import Engine, ExtractionSettings, Observer, extract
from bsdkit.extract.report import ExtractionReport, Stages
from bsdkit.report.progress import Bar, ConsoleProgress
from bsdkit.store.probabilities import IMPORTED_PROBABILITIES
from bsdkit.store.specs import first_difference
from bsdkit.store.store import Store
from bsdkit.taxonomy import Taxonomy
from bsdkit.text import TEMPLATES, TextTemplate, get_template

if TYPE_CHECKING:  # reading a run brings in torch, which refusing a bad dataset need not
    from bsdkit.recipe.artifacts import Run

__all__ = ["extract_dataset", "extract_for_run"]

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
        text_template: name of the template of text outputs.

    Raises:
        BsdkitError: see `read_dataset` and `extract`.
    """
    settings = settings or ExtractionSettings()
    if settings.shard_clips < 1:
        raise RecipeError(f"--shard-clips {settings.shard_clips}: expected 1 or more")
    check_device(settings.device)
    template = get_template(text_template)
    options = replace(options or BackboneOptions(), text_template=template.describe())
    wanted = get_outputs([name.strip() for name in backbones], options)
    if options.weights is not None and len(wanted) > 1:
        raise RecipeError(
            f"--weights {options.weights} is for one backbone, and "
            f"{', '.join(backbone.identity for backbone, _ in wanted)} are asked for; "
            "embed them one after another"
        )
    for backbone, _ in wanted:
        backbone.require()
    clips, filtered = read_dataset(data, taxonomy)
    for line in filtered.lines():
        progress.line(line)
    with progress:
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
        reports = extract(
            wanted,
            clips,
            opened,
            template,
            settings,
            observer=_bars(progress),
            engine=engine,
        )
    for line in summary_lines(reports):
        progress.line(line)
    return reports


def _taxonomy_of(store: Path) -> str:
    """The taxonomy's name in a store's clips table; empty where there is no store."""
    try:
        return Store(store).clips.taxonomy.name
    except StoreError:
        return ""


def _bars(progress: ConsoleProgress) -> Observer:
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
        for template, wanted in _backbones_of(run, member, device):
            reports = extract(
                wanted,
                clips,
                opened,
                template,
                ExtractionSettings(device=device),
                observer=_bars(progress),
            )
            for line in summary_lines(reports):
                progress.line(line)


def _backbones_of(
    run: Run, member: str, device: str
) -> list[tuple[TextTemplate, list[tuple[Backbone, list[str]]]]]:
    """The backbones that made a run's features with their outputs, by text template."""
    from bsdkit.recipe.predict import needed_features

    specs = {f: run.facts["features"][f]["spec"] for f in needed_features(run, member)}
    grouped: dict[tuple[str, str, str], list[str]] = {}
    for feature, spec in specs.items():
        if spec["backbone"] in ("imported", IMPORTED_PROBABILITIES):
            command = "store import" if spec["backbone"] == "imported" else "import"
            raise RecipeError(
                f"{feature} was imported ({spec['origin']}); import it for these clips too "
                f"(bsdkit {command}), then give --store"
            )
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
        template = _template_of(described.pop() if described else usual)
        options = BackboneOptions(
            text_template=template.describe(),
            dtype=first["dtype"],
            precision=first["compute_dtype"],
        )
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
        found.setdefault(template.name, (template, []))[1].append((backbone, outputs))
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


def _template_of(described: object) -> TextTemplate:
    if described is None:
        return next(iter(TEMPLATES.values()))
    for template in TEMPLATES.values():
        if template.describe() == described:
            return template
    raise StaleStore(f"no text template of this version gives {described!r}")
