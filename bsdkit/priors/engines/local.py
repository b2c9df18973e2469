"""Priors from models that run in this process: they hear the clips, or read their metadata."""

from __future__ import annotations

from bsdkit.backbones.base import BackboneOptions
from bsdkit.backbones.registry import backbone_classes, get_backbone
from bsdkit.dataset import Clips
from bsdkit.device import check_device
from bsdkit.errors import PriorError
from bsdkit.extract.pipeline import ExtractionSettings, extract
from bsdkit.extract.report import summary_lines
from bsdkit.extract.run import without_stale
from bsdkit.priors.ask import Reply
from bsdkit.priors.derived import audio_prior
from bsdkit.priors.engines.audio_language import OUTPUT, with_question
from bsdkit.priors.engines.likelihood import CausalScorer
from bsdkit.priors.llm import Stage, likelihood_question, score_asks
from bsdkit.priors.options import Made, PriorOptions
from bsdkit.progress import Progress
from bsdkit.store.feature import OK, read_feature
from bsdkit.store.store import Store

__all__ = ["make"]


def make(store: Store, clips: Clips, options: PriorOptions, progress: Progress) -> Made:
    """Makes the prior of all clips by a backbone that hears them, or a causal model; see `Engine`.

    Raises:
        PriorError: the model answers no questions, or it hears and there is no audio.
        BackboneUnavailable: the model cannot be loaded.
    """
    if options.model in backbone_classes():
        return _heard(store, clips, options, progress)
    return _scored(store, options, progress)


def _heard(store: Store, clips: Clips, options: PriorOptions, progress: Progress) -> Made:
    template = without_stale(options.template(store), store.path, clips, progress)
    chosen = BackboneOptions(
        text_template=template.describe(), dtype="float32", precision=options.precision
    )
    chosen = with_question(chosen, clips.taxonomy)
    backbone = get_backbone(options.model, chosen)
    if OUTPUT not in backbone.outputs:
        raise PriorError(
            f"{options.model} answers no questions; give an audio language model such as "
            "qwen2-audio, or a model's folder or hub id"
        )
    backbone.wanted = frozenset({OUTPUT})
    if all(path is None for path in clips.audio):
        raise PriorError(f"{options.model} hears the clips: give their dataset by --data DIR")
    check_device(options.device)
    backbone.require()
    with progress:
        reports = extract(
            [(backbone, [OUTPUT])],
            clips,
            store,
            template,
            ExtractionSettings(device=options.device),
            progress=progress,
        )
    path = audio_prior(store, backbone, options.name)
    n_made = int((read_feature(path).state == OK).sum())
    line = f"{path.name.rpartition('-')[0]}: {n_made} of {len(clips)} clips -> {path}"
    return Made((*summary_lines(reports), line), not any(report.failures for report in reports))


def _scored(store: Store, options: PriorOptions, progress: Progress) -> Made:
    check_device(options.device)
    scorer = CausalScorer(
        options.model, revision=options.revision, device=options.device, precision=options.precision
    )
    scorer.load()
    stage = Stage(
        store, likelihood_question(store, scorer, options.template(store), name=options.name)
    )
    with stage.locked():
        todo = stage.todo()
        with progress:
            progress.start(stage.question.name, len(todo), len(stage.asks) - len(todo))

            def keep(replies: list[Reply]) -> None:
                stage.journal.extend(replies)
                progress.advance(stage.question.name, len(replies))

            score_asks(todo, stage.question, scorer, store.clips.taxonomy.labels, keep)
        report = stage.finish({"device": options.device})
    return Made(tuple(report.lines()), not report.missing)
