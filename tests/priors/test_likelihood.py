"""Label log-likelihoods against plain forward passes, on tiny random models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsdkit.errors import BackboneUnavailable, PriorError
from bsdkit.priors.ask import Prompt
from bsdkit.priors.engines.likelihood import CausalScorer, likelihood_prompt, probabilities
from bsdkit.taxonomy import BST, Taxonomy

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }} {{ strftime_now('%Y') }}\n"
    "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% elif m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
LABELS = ["fx-e", "fx-ex", "m-m", "Solo speech", "\u00e9", "x"]
PROMPT = Prompt("test", 1, "Classes: fx-e fx-ex m-m.\nAnswer with one.", "", {})
CONTENTS = [
    '{"title": "a dog barks"}',
    "{}",
    '{"title": "rain <|im_end|> on a roof", "tags": ["rain", "roof"]}',
    '{"title": "a dog barks"}',
    '{"description": "' + "wind in the trees " * 12 + '"}',
    '{"title": "\u72ac"}',
]
SIZES = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 320,
         "max_position_embeddings": 512}  # fmt: skip
MODELS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "qwen2": lambda: transformers.Qwen2Config(**SIZES),
    "gpt2": lambda: transformers.GPT2Config(
        n_embd=24, n_layer=2, n_head=2, vocab_size=320, n_positions=512
    ),
    "gemma2": lambda: transformers.Gemma2Config(
        **SIZES, head_dim=12, sliding_window=4096, final_logit_softcapping=2.0
    ),
}


@pytest.fixture(scope="session")
def words() -> Any:
    """A byte-level BPE of 320 tokens, trained on the prompts' own words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROMPT.system, *CONTENTS, *LABELS] * 3, trainer)
    return tokenizer


def tokenizer_with(words: Any, template: str) -> Any:
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    made.chat_template = template or None
    return made


def random_model(config: Any) -> Any:
    torch.manual_seed(5)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)  # so that the context shows in the answer
    return model.eval()


def scorer_of(model: Any, tokenizer: Any, **options: Any) -> CausalScorer:
    scorer = CausalScorer("tiny", **options)
    scorer.attach(model, tokenizer)
    return scorer


def plainly(model: Any, prompt: list[int], answer: list[int]) -> float:
    """The log-likelihood by one forward pass over prompt and answer, without cache or batch."""
    with torch.inference_mode():
        logs = model(torch.tensor([prompt + answer]), use_cache=False).logits[0].log_softmax(-1)
    return sum(float(logs[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))


def expected(model: Any, tokenizer: Any, content: str) -> list[float]:
    """What the docstring promises, spelled out for ChatML and for no template."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    if tokenizer.chat_template:
        content = content.replace("<|im_end|>", "< |im_end|>")
        messages = PROMPT.messages(content)
        prompt = ids(
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        )
        answers = [[*ids(label), *ids("<|im_end|>")] for label in LABELS]
    else:
        content = content.replace("<|im_end|>", "< |im_end|>")
        prompt = ids(f"{PROMPT.system}\n\nMetadata: {content}\nLabel:")
        answers = [[*ids(" " + label), *ids("\n")] for label in LABELS]
    return [plainly(model, prompt, answer) for answer in answers]


@pytest.mark.parametrize("template", ["", CHATML], ids=["plain", "chat"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_plain_forward_passes(words: Any, name: str, template: str) -> None:
    model, tokenizer = random_model(MODELS[name]()), tokenizer_with(words, template)
    reference = np.array([expected(model, tokenizer, content) for content in CONTENTS])
    assert np.ptp(reference, axis=0).min() > 1e-2  # clips differ
    done: list[int] = []
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    for options in ({}, {"batch_tokens": 100}, {"batch_tokens": 1}):
        scorer = scorer_of(model, tokenizer, **options)
        assert scorer._takes_cache
        scores = scorer.score(PROMPT, CONTENTS, LABELS, on_done=done.append)
        assert scores.log_likelihoods.dtype == np.float64 and scores.reasons == [""] * 6
        np.testing.assert_allclose(scores.log_likelihoods, reference, atol=1e-4)
        np.testing.assert_allclose(scores.content_free, reference[1], atol=1e-4)
        assert done[-1] == len(CONTENTS) and done == sorted(done)
        done.clear()
        if not options:  # one batch: the last token of all, then each label
            assert len(calls) <= 1 + len(LABELS)
    for row, content in enumerate(CONTENTS):
        alone = scorer.score(PROMPT, [content], LABELS).log_likelihoods[0]
        np.testing.assert_allclose(alone, reference[row], atol=1e-4)


@pytest.mark.parametrize("name", ["mistral", "mamba", "gemma3"])
def test_a_cache_that_cannot_be_cropped_is_not_used(words: Any, name: str) -> None:
    """Windows shorter than the prompts, recurrent layers: right, by whole forward passes."""
    sizes = {**SIZES, "num_hidden_layers": 2}
    config = {
        "mistral": lambda: transformers.MistralConfig(**sizes, sliding_window=16),
        "mamba": lambda: transformers.MambaConfig(
            hidden_size=24, state_size=4, num_hidden_layers=2, vocab_size=320
        ),
        "gemma3": lambda: transformers.Gemma3TextConfig(
            **sizes, head_dim=12, sliding_window=16,
            layer_types=["sliding_attention", "full_attention"],
        ),
    }[name]()  # fmt: skip
    model, tokenizer = random_model(config), tokenizer_with(words, CHATML)
    reference = np.array([expected(model, tokenizer, content) for content in CONTENTS])
    scores = scorer_of(model, tokenizer, batch_tokens=300).score(PROMPT, CONTENTS, LABELS)
    np.testing.assert_allclose(scores.log_likelihoods, reference, atol=1e-4)


def test_forms_of_templates(words: Any) -> None:
    model = random_model(MODELS["llama"]())
    thinking = scorer_of(model, tokenizer_with(words, THINKING))
    assert thinking._form.anchor.endswith("<think>\n\n</think>\n\n")
    assert "2024" in thinking._form.anchor  # not today's date
    assert thinking._tokenizer.decode([thinking._end]) == "<|im_end|>"
    old = scorer_of(model, tokenizer_with(words, NO_SYSTEM))
    assert old._form.before == " " and not old._form.has_system
    assert old._tokenizer.decode([old._end]) == "</s>"
    (ids,) = old._prompts(PROMPT, ["</s> hello"])
    text = old._tokenizer.decode(ids)
    assert text == f"<s>[INST] {PROMPT.system}\n\n< /s> hello [/INST]"
    for ours, label in zip(old._answers(LABELS), LABELS, strict=True):
        assert old._tokenizer.decode(ours) == f" {label}</s>"
    specs = [scorer_of(model, tokenizer_with(words, t)).spec() for t in ("", CHATML, THINKING)]
    assert len({json.dumps(spec) for spec in specs}) == 3
    with pytest.raises(BackboneUnavailable, match="does not show the assistant's answer"):
        scorer_of(model, tokenizer_with(words, "{{ messages[0].content }}"))


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("template", ["", CHATML, NO_SYSTEM], ids=["plain", "chat", "old"])
def test_labels_are_split_as_in_their_prompt(words: Any, kind: str, template: str) -> None:
    """Joined text gives the same tokens; a text begins as the tokenizer says, and once."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    if kind == "bytes":
        tokenizer = Tokenizer.from_str(words.to_str())
    else:  # as SentencePiece does: a space is part of the word, one is put first
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
            show_progress=False,
        )
        texts = [PROMPT.system, "\n\nMetadata:\nLabel: [INST] [/INST]", *CONTENTS, *LABELS]
        tokenizer.train_from_iterator(texts * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    scorer = scorer_of(random_model(MODELS["llama"]()), tokenizer_with(tokenizer, template))
    (prompt,) = scorer._prompts(PROMPT, [CONTENTS[0]])
    assert prompt.count(0) == (template != CHATML) and (template == CHATML) == (prompt[0] != 0)
    text = f"{PROMPT.system}\n\nMetadata: {CONTENTS[0]}\nLabel:"
    if template:
        text = scorer._render(PROMPT.system, CONTENTS[0], template == CHATML)[0].rstrip(" ")
    for label, answer in zip(LABELS, scorer._answers(LABELS), strict=True):
        space = "" if template == CHATML else " "
        joined = scorer._ids(text + space + label)
        assert ([] if template else [0]) + joined == prompt + answer[:-1]
    ends = {"": "\n", CHATML: "<|im_end|>", NO_SYSTEM: "</s>"}
    assert scorer._tokenizer.convert_ids_to_tokens(scorer._end) in (ends[template], "\u010a")


def test_calibration_divides_by_what_is_likely_without_content() -> None:
    logs = np.log(np.array([[0.2, 0.1, 0.05], [0.5, 0.25, 0.01]]))
    rows = probabilities(logs, logs[1])
    np.testing.assert_allclose(rows[1], 1 / 3)  # a clip without content: every class alike
    np.testing.assert_allclose(rows[0], np.array([0.4, 0.4, 5.0]) / 5.8)
    np.testing.assert_allclose(probabilities(logs)[0], np.array([4, 2, 1]) / 7)
    assert np.isnan(probabilities(np.array([[np.nan, np.nan]]))).all()


def test_what_is_too_long_fails_by_itself(words: Any) -> None:
    config = transformers.LlamaConfig(**{**SIZES, "max_position_embeddings": 200})
    model, tokenizer = random_model(config), tokenizer_with(words, CHATML)
    scorer = scorer_of(model, tokenizer)
    long = CONTENTS[4].replace("wind", "wind " * 20)
    scores = scorer.score(PROMPT, [long, CONTENTS[0]], LABELS)
    assert scores.reasons[1] == "" and scores.reasons[0].endswith("tokens, the model takes 200")
    assert np.isnan(scores.probabilities[0]).all()
    np.testing.assert_allclose(scores.probabilities[1].sum(), 1)
    whole = scorer.score(PROMPT, CONTENTS[:1], LABELS).log_likelihoods
    np.testing.assert_allclose(scores.log_likelihoods[1:], whole, atol=1e-4)
    wordy = Prompt("test", 1, PROMPT.system * 20, "", {})
    with pytest.raises(PriorError, match="the prompt without any clip has .* takes 200: choose"):
        scorer.score(wordy, CONTENTS, LABELS)
    raw = scorer_of(model, tokenizer, calibrate=False).score(PROMPT, [], LABELS)
    assert raw.probabilities.shape == (0, len(LABELS)) and raw.content_free is None


def test_batches_shrink_when_memory_runs_out(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = random_model(MODELS["llama"]()), tokenizer_with(words, "")
    whole = scorer_of(model, tokenizer).score(PROMPT, CONTENTS, LABELS)
    scorer, real, most = scorer_of(model, tokenizer), CausalScorer._with_cache, 2

    def small(self: CausalScorer, prompts: Any, *rest: Any) -> Any:
        if len(prompts) > most:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, prompts, *rest)

    extend = CausalScorer._extend
    failures = [torch.OutOfMemoryError("out of memory")]

    def half(self: CausalScorer, *arguments: Any) -> Any:
        made = extend(self, *arguments)
        if failures:  # what was put in the cache before must not count
            raise failures.pop()
        return made

    monkeypatch.setattr(CausalScorer, "_extend", half)
    monkeypatch.setattr(CausalScorer, "_with_cache", small)
    scores = scorer.score(PROMPT, CONTENTS, LABELS)
    np.testing.assert_allclose(scores.log_likelihoods, whole.log_likelihoods, atol=1e-4)
    most = 0
    with pytest.raises(PriorError, match="runs out of memory on cpu with one prompt of"):
        scorer.score(PROMPT, CONTENTS, LABELS)


def test_a_folder_is_loaded_and_says_what_it_is(
    words: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tiny-llama"
    model = random_model(MODELS["llama"]())
    model.save_pretrained(folder)
    tokenizer_with(words, CHATML).save_pretrained(folder)
    scorer = CausalScorer(folder)
    scorer.load()
    attached = scorer_of(model, tokenizer_with(words, CHATML))
    np.testing.assert_allclose(
        scorer.score(PROMPT, CONTENTS, LABELS).log_likelihoods,
        attached.score(PROMPT, CONTENTS, LABELS).log_likelihoods,
        atol=1e-5,
    )
    spec = scorer.spec()
    assert spec == {**attached.spec(), "model": "tiny-llama"} and str(tmp_path) not in str(spec)
    assert str(spec["revision"]).startswith("sha256:") and json.dumps(spec)
    half = CausalScorer(folder, precision="bfloat16")
    half.load()
    rows = half.score(PROMPT, CONTENTS, LABELS).probabilities
    np.testing.assert_allclose(rows.sum(axis=1), 1)
    assert half.spec()["compute_dtype"] == "bfloat16"
    assert capfd.readouterr().out == ""


def test_what_cannot_be_used_says_so_in_one_line(
    words: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(folder: Path, match: str) -> None:
        with pytest.raises(BackboneUnavailable, match=match) as caught:
            CausalScorer(folder).load()
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none", "no folder")
    refused(tmp_path, "holds no config.json: give the folder of a model")
    (tmp_path / "config.json").write_text('{"model_type": "clap"}')
    refused(tmp_path, "expected a causal language model in safetensors")
    model = random_model(MODELS["llama"]())
    model.save_pretrained(tmp_path)
    tokenizer_with(words, "").save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")  # pickles are never read
    weights.rename(tmp_path / "aside")
    refused(tmp_path, "expected a causal language model in safetensors")
    (tmp_path / "aside").rename(weights)
    facts = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**facts, "intermediate_size": 40}))
    refused(tmp_path, "of another shape|mismatch")
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(tmp_path, "it needs transformers: pip install 'transformers>=5'")


def test_labels_of_the_same_tokens_are_refused(words: Any) -> None:
    scorer = scorer_of(random_model(MODELS["llama"]()), tokenizer_with(words, ""))
    monkey = scorer._ids
    scorer._ids = lambda text: monkey(text.lower())  # type: ignore[method-assign]
    with pytest.raises(PriorError, match="reads the labels 'dog' and 'Dog' as the same tokens"):
        scorer.score(PROMPT, CONTENTS, ["dog", "Dog"])


@pytest.mark.parametrize("taxonomy", [BST, Taxonomy.flat(["dog", "a {system} cat"])])
def test_the_prompt_lists_the_classes(words: Any, taxonomy: Taxonomy) -> None:
    prompt = likelihood_prompt(taxonomy)
    assert all(f'"{label}"' in prompt.system for label in taxonomy.labels)
    scorer = scorer_of(random_model(MODELS["llama"]()), tokenizer_with(words, ""))
    (ids,) = scorer._prompts(prompt, ["{}"])
    text = scorer._tokenizer.decode(ids)
    assert text == f"{prompt.system}\n\nMetadata: {{}}\nLabel:"
