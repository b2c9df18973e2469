"""Priors of audio language models against transformers' own logits, on tiny random models."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from bsdkit.backbones.base import BackboneOptions
from bsdkit.backbones.qwen_base import WINDOW_SAMPLES, QwenBackbone
from bsdkit.backbones.registry import get_backbone, get_outputs
from bsdkit.dataset import inspect_audio, read_dataset
from bsdkit.errors import BackboneUnavailable, PriorError, UnknownBackbone
from bsdkit.extract import ExtractionSettings, extract
from bsdkit.priors.engines.audio_language import AudioLanguageScorer, audio_question, with_question
from bsdkit.store import Store
from bsdkit.store.feature import read_feature
from bsdkit.taxonomy import BST, Taxonomy, TaxonomyClass
from bsdkit.text import get_template

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

from tests.backbones.test_qwen import (  # noqa: E402
    MODELS,
    TEXTS,
    bytes_tokenizer,
    clips,
    save_as_published,
    save_tokenizer,
)

TAXONOMY = Taxonomy(
    "tiny",
    [
        TaxonomyClass("fx-e", "fx", name="Echo", description="{audio} and {text}"),
        TaxonomyClass("fx-ex", "fx", name="Experiment <|im_end|>"),
        TaxonomyClass("m", "m", name="Music"),
    ],
)
OPTIONS = BackboneOptions(text_template=get_template("title").describe())
NAMES = list(MODELS)


def scorer_of(name: str, taxonomy: Taxonomy = TAXONOMY) -> AudioLanguageScorer:
    scorer = AudioLanguageScorer(name, OPTIONS, taxonomy)
    model = MODELS[name]()
    assert isinstance(scorer.backbone, QwenBackbone)
    scorer.backbone.attach(model.model, bytes_tokenizer, "cpu", model.lm_head)
    return scorer


def expected(name: str, row: int, taxonomy: Taxonomy = TAXONOMY) -> list[float]:
    """The model's own forward pass on prompt, clip and answer in one sequence."""
    backbone = scorer_of(name, taxonomy).backbone
    assert isinstance(backbone, QwenBackbone)
    model = MODELS[name]().eval()
    audio, valid = clips()
    extractor = transformers.WhisperFeatureExtractor(feature_size=128)
    inputs = extractor(
        audio[row, : valid[row]],
        sampling_rate=16_000,
        return_tensors="pt",
        return_attention_mask=True,
    )
    n = int(inputs["attention_mask"].sum())
    if name == "qwen2-audio":
        n_states = ((n - 1) // 2 + 1 - 2) // 2 + 1
    else:
        n_states = backbone._n_states(n)  # type: ignore[attr-defined]
    begin, marker, end = backbone.markers
    question = audio_question(taxonomy).words.replace("<|", "< |")
    text = "The uploader's text about this sound: " + TEXTS[row % len(TEXTS)].replace("<|", "< |")
    clip = begin + marker * n_states + end
    if name == "qwen2-audio":
        prompt = f"{question}\n\n{clip}{text}\nLabel:"
        answers = [f" {label}\n" for label in taxonomy.labels]
    else:
        prompt = (
            f"<|im_start|>system\n{question}<|im_end|>\n<|im_start|>user\n{clip}{text}<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        answers = [f"{label}<|im_end|>" for label in taxonomy.labels]
    scores = []
    for answer in answers:
        before, after = bytes_tokenizer(prompt)["input_ids"], bytes_tokenizer(answer)["input_ids"]
        ids = torch.tensor([before + after])
        with torch.inference_mode():
            logits = model(
                input_ids=ids,
                input_features=inputs["input_features"],
                feature_attention_mask=inputs["attention_mask"],
                attention_mask=torch.ones_like(ids),
            ).logits
        logs = logits[0, len(before) - 1 : -1].log_softmax(-1)
        scores.append(float(logs[torch.arange(len(after)), torch.tensor(after)].sum()))
    return scores


def score(scorer: AudioLanguageScorer, rows: list[int]) -> np.ndarray:
    audio, valid = clips()
    return scorer.score_windows(audio[rows], valid[rows], [TEXTS[r % len(TEXTS)] for r in rows])


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_transformers_alone_and_in_a_batch(name: str) -> None:
    scorer, rows = scorer_of(name), [0, 1, 2, 5]
    reference = np.array([expected(name, row) for row in rows])
    assert np.ptp(reference, axis=0).min() > 1e-2  # clips differ
    together = score(scorer, rows)
    assert together.dtype == np.float64
    np.testing.assert_allclose(together, reference, atol=1e-4, rtol=1e-5)
    np.testing.assert_allclose(score(scorer, rows[::-1])[::-1], together, atol=1e-4, rtol=1e-5)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(score(scorer, [row])[0], together[i], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_it_hears_and_reads(name: str) -> None:
    scorer = scorer_of(name)
    audio, valid = clips()
    heard = scorer.score_windows(audio[[0, 2]], valid[[0, 2]])
    read = scorer.score_windows(audio[[0, 0]], valid[[0, 0]], ["a dog", "a cat"])
    for pair in (heard, read):
        assert np.abs(pair[0] - pair[1]).max() > 1e-3
    silent = scorer.score_windows(np.zeros((1, 20_000), np.float32), np.array([1]))
    assert np.isfinite(silent).all()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_close(name: str) -> None:
    full, half = scorer_of(name), scorer_of(name)
    half.backbone.options = replace(half.backbone.options, precision="bfloat16")
    expected, found = score(full, [0, 2]), score(half, [0, 2])
    per_token = np.array([len(label) + 1 for label in TAXONOMY.labels])
    assert np.isfinite(found).all() and (np.abs(found - expected) / per_token).mean() < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_memory_that_runs_out_leaves_no_half_question(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, run = scorer_of(name), QwenBackbone._run
    failures = [torch.OutOfMemoryError("out of memory")]

    def failing(self: QwenBackbone, *arguments: Any) -> Any:
        states = run(self, *arguments)
        if failures:
            raise failures.pop()
        return states

    monkeypatch.setattr(QwenBackbone, "_run", failing)
    with pytest.raises(torch.OutOfMemoryError):
        score(scorer, [0, 5])
    again = score(scorer, [0, 5])
    assert (again == score(scorer_of(name), [0, 5])).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_spec_holds_the_question(name: str) -> None:
    spec = scorer_of(name).backbone.spec("prior")
    assert spec.kind == "prompt" and spec.dim == 3 and spec.dtype == "float32"
    assert spec.prompt is not None and "{fx-e|fx-ex|m}" in spec.prompt and "Echo" in spec.prompt
    assert spec.text_template == OPTIONS.text_template
    classes = [*TAXONOMY.classes[:2], TaxonomyClass("m", "m", name="Musik")]
    other = scorer_of(name, Taxonomy("other", classes)).backbone.spec("prior")
    assert other.to_dict() != spec.to_dict() and other.weights_sha256 == spec.weights_sha256
    assert scorer_of(name, BST).backbone.spec("prior").dim == 23


@pytest.mark.parametrize("name", NAMES)
def test_other_outputs_are_as_without_a_question(name: str) -> None:
    audio, valid = clips()
    model = MODELS[name]()
    plain, asked = get_backbone(name, OPTIONS), get_backbone(name, with_question(OPTIONS, TAXONOMY))
    assert isinstance(plain, QwenBackbone) and isinstance(asked, QwenBackbone)
    plain.attach(model.model, bytes_tokenizer, "cpu")
    asked.attach(model.model, bytes_tokenizer, "cpu", model.lm_head)
    assert set(asked.outputs) - set(plain.outputs) == {"prior"}
    assert "prior" in asked.extra_outputs and "prior" not in plain.outputs
    for output in plain.outputs:
        assert asked.spec(output) == plain.spec(output)
    both = asked.embed_prompts(audio[:2], valid[:2], TEXTS[:2])
    assert set(both) == {"prompt", "prior"}
    alone = plain.embed_prompts(audio[:2], valid[:2], TEXTS[:2])
    assert (both["prompt"] == alone["prompt"]).all() and set(alone) == {"prompt"}
    with pytest.raises(UnknownBackbone, match="has no output 'prior'"):
        get_outputs([f"{name}.prior"], OPTIONS)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_read_with_its_language_head(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = save_as_published(name, tmp_path)
    save_tokenizer(tmp_path)
    options = with_question(BackboneOptions(weights=tmp_path), TAXONOMY)
    options = pickle.loads(pickle.dumps(options))  # as a worker of Ray receives it
    ((backbone, outputs),) = get_outputs([f"{name}.prior"], options)
    assert isinstance(backbone, QwenBackbone) and outputs == ["prior"]
    specs = {output: backbone.spec(output) for output in backbone.outputs}
    backbone.load("cpu")
    assert {output: backbone.spec(output) for output in backbone.outputs} == specs
    audio, valid = clips()
    found = backbone.embed_prompts(audio[:2], valid[:2], TEXTS[:2])
    attached = scorer_of(name)
    assert isinstance(attached.backbone, QwenBackbone)
    attached.backbone.attach(model.model, backbone._tokenizer, "cpu", model.lm_head)
    assert set(found) == {"prior"}
    np.testing.assert_allclose(found["prior"], score(attached, [0, 1]), atol=1e-4, rtol=1e-5)

    rest = load_file(tmp_path / "rest.safetensors")
    head = next(key for key in rest if "lm_head" in key)
    rest[head] += 1
    save_file(rest, tmp_path / "rest.safetensors", metadata={"format": "pt"})
    changed = get_backbone(name, options)
    for output, spec in specs.items():
        is_same = changed.spec(output).weights_sha256 == spec.weights_sha256
        assert is_same == (output != "prior"), output


def test_who_cannot_answer_says_so() -> None:
    with pytest.raises(PriorError, match="minilm has no language head .* known: qwen2-audio"):
        AudioLanguageScorer("minilm", OPTIONS, TAXONOMY)
    backbone = AudioLanguageScorer("qwen2.5-omni", OPTIONS, TAXONOMY).backbone
    assert isinstance(backbone, QwenBackbone)

    def cut(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        split = text == "<|im_end|>"  # as a tokenizer that does not know it
        return {"input_ids": list(text.encode())} if split else bytes_tokenizer(text)

    model = MODELS["qwen2.5-omni"]()
    with pytest.raises(BackboneUnavailable, match=r"makes \[60, .* of <\|im_end\|>"):
        backbone.attach(model.model, cut, "cpu", model.lm_head)


def test_extraction_averages_the_windows_of_a_clip(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    save_as_published("qwen2-audio", tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    noise = 0.1 * np.random.default_rng(2).standard_normal(40 * 16_000).astype(np.float32)
    sounds = {"long": noise, "short": noise[:16_000]}
    for name, samples in sounds.items():
        soundfile.write(tmp_path / f"data/{name}.wav", samples, 16_000, subtype="FLOAT")
    clips_table = inspect_audio(read_dataset(tmp_path / "data")[0])
    template = get_template("title")
    options = BackboneOptions(
        weights=tmp_path / "model", text_template=template.describe(), dtype="float16"
    )
    reports = extract(
        get_outputs(["qwen2-audio.prior"], with_question(options, TAXONOMY)),
        clips_table,
        Store.create(tmp_path / "store", clips_table),
        template,
        ExtractionSettings(device="cpu", batch_seconds=90),
    )
    (report,) = reports
    assert report.feature == "qwen2-audio.prior" and not report.failures
    rows = read_feature(report.path).embedding
    scorer = AudioLanguageScorer("qwen2-audio", options, TAXONOMY)
    scorer.load("cpu")
    audio = np.zeros((3, WINDOW_SAMPLES), np.float32)
    valid = np.array([WINDOW_SAMPLES, 10 * 16_000, 16_000])
    audio[0], audio[1, : valid[1]] = np.split(noise, [WINDOW_SAMPLES])
    audio[2, : valid[2]] = sounds["short"]
    first, second, short = scorer.score_windows(audio, valid, ["long", "long", "short"])
    by_id = {Path(str(clip)).stem: row for clip, row in zip(clips_table.ids, rows, strict=True)}
    assert rows.dtype == np.float32
    np.testing.assert_allclose(by_id["long"], 0.75 * first + 0.25 * second, rtol=1e-5)
    np.testing.assert_allclose(by_id["short"], short, rtol=1e-5)
