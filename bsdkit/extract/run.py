"""A whole dataset through one or more backbones into a store, as the command line does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bsdkit.backbones.base import BackboneOptions
from bsdkit.backbones.registry import get_outputs
from bsdkit.dataset import Clips
from bsdkit.device import check_device
from bsdkit.errors import RecipeError, StaleStore
from bsdkit.extract.pipeline import Engine, ExtractionSettings, extract
from bsdkit.extract.report import ExtractionReport
from bsdkit.priors.ask import Ask
from bsdkit.priors.llm import SUMMARY
from bsdkit.priors.prompt import clip_contents
from bsdkit.progress import Progress
from bsdkit.store.fill import fill_table, read_for_store
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

__all__ = [
    "described_template",
    "extract_dataset",
    "find_template",
    "without_stale",
]


def extract_dataset(
    data: Path,
    store: Path,
    backbones: Sequence[str],
    *,
    progress: Progress | None = None,
    settings: ExtractionSettings | None = None,
    options: BackboneOptions | None = None,
    engine: Engine | None = None,
    taxonomy: Taxonomy | str = "bst",
    text_template: str = "title-tags-description",
    mask_class_words: bool = False,
    keep_columns: Sequence[str] = (),
    is_replacing: bool = False,
) -> list[ExtractionReport]:
    """Embeds outputs of the backbones and returns one report each.

    Args:
        data: the dataset.
        store: the store's folder; made if it is not there.
        backbones: names, see `get_outputs`.
        progress: who is told what happens; None for the log.
        settings: how it runs.
        options: weights and number types; the text template is filled in.
        engine: what embeds; None for this process.
        taxonomy: see `read_dataset`.
        text_template: name of the template of text outputs, or of texts in the store.
        mask_class_words: whether words of class names are cut out of texts.
        keep_columns: further columns of the metadata that the store keeps.
        is_replacing: whether the dataset may take another's place in the store.

    Raises:
        BsdkitError: see `read_dataset` and `extract`.
    """
    settings, progress = settings or ExtractionSettings(), progress or Progress()
    if settings.shard_clips < 1:
        raise RecipeError(f"--shard-clips {settings.shard_clips}: expected 1 or more")
    if settings.partial not in ("fail", "embed"):
        raise RecipeError(f"--partial {settings.partial}: expected fail or embed")
    check_device(settings.device)
    names = [name.strip() for name in backbones]
    get_outputs(names, options)  # refuses what is not known before anything is read
    clips, filtered = read_for_store(data, store, taxonomy, keep_columns)
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
        opened, clips = fill_table(clips, store, progress, is_replacing=is_replacing)
        template = without_stale(template, store, clips, progress)
        return extract(wanted, clips, opened, template, settings, progress=progress, engine=engine)


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
    template: TextTemplate, store: Path, clips: Clips, progress: Progress
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
    of_these = described_template(texts.spec["text_template"], clips.taxonomy)
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


def described_template(described: object, taxonomy: Taxonomy) -> TextTemplate:
    """The template that a spec describes.

    Raises:
        RecipeError: its texts were written by a language model.
        StaleStore: no template of this version is like it.
    """
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
