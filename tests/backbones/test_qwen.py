"""Qwen's audio towers and prompts against transformers' own forward pass, on tiny random models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.qwen import published_network
from bsdkit.backbones.qwen_base import WINDOW_SAMPLES, QwenBackbone, log_mel
from bsdkit.backbones.registry import get_backbone
from bsdkit.errors import BackboneUnavailable
from bsdkit.text import get_template

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

OPTIONS = BackboneOptions(text_template=get_template("title").describe())
SPECIAL = [
    "<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>", "<|audio_start|>", "<|audio_pad|>",
    "<|audio_end|>", "<|im_start|>", "<|im_end|>",
]  # fmt: skip
VOCABULARY = 300
OLD_AUDIO, NEW_AUDIO = 257, 260
"""Ids of <|AUDIO|> and <|audio_pad|>: 256 bytes come before."""

AUDIO = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
TEXT = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": VOCABULARY,
}  # fmt: skip
VISION = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16,
          "out_hidden_size": 24}  # fmt: skip
ROPE = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e6}


def bytes_tokenizer(text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
    """A tokenizer of bytes and the special tokens."""
    ids: list[int] = []
    for piece in re.split(r"(<\|\w+\|>)", text):
        ids += [256 + SPECIAL.index(piece)] if piece in SPECIAL else piece.encode()
    return {"input_ids": ids}


def scaled(model: Any) -> Any:
    """A random model with larger weights, so that what it hears shows in what it says."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model


def qwen2_audio() -> Any:
    torch.manual_seed(11)
    config = transformers.Qwen2AudioConfig(
        audio_config={"model_type": "qwen2_audio_encoder", **AUDIO},
        text_config={"model_type": "qwen2", **TEXT},
        audio_token_index=OLD_AUDIO,
    )
    return scaled(transformers.Qwen2AudioForConditionalGeneration(config))


def qwen25_omni() -> Any:
    torch.manual_seed(12)
    config = transformers.Qwen2_5OmniThinkerConfig(
        audio_config={**AUDIO, "output_dim": 24},
        vision_config={**VISION, "fullatt_block_indexes": [0]},
        text_config={**TEXT, "rope_parameters": ROPE},
        audio_token_index=OLD_AUDIO,
        vision_start_token_id=299,
    )
    return scaled(transformers.Qwen2_5OmniThinkerForConditionalGeneration(config))


def qwen3_omni() -> Any:
    torch.manual_seed(13)
    config = transformers.Qwen3OmniMoeThinkerConfig(
        audio_config={**AUDIO, "output_dim": 24, "downsample_hidden_size": 8},
        vision_config={**VISION, "deepstack_visual_indexes": [0]},
        text_config={**TEXT, "moe_intermediate_size": 8, "num_experts": 4,
                     "num_experts_per_tok": 2,
                     "rope_parameters": {**ROPE, "mrope_interleaved": True}},
        audio_token_id=NEW_AUDIO,
        vision_start_token_id=299,
    )  # fmt: skip
    return scaled(transformers.Qwen3OmniMoeThinkerForConditionalGeneration(config))


MODELS: dict[str, Callable[[], Any]] = {
    "qwen2-audio": qwen2_audio,
    "qwen2.5-omni": qwen25_omni,
    "qwen3-omni": qwen3_omni,
}


def tiny(name: str, options: BackboneOptions = OPTIONS) -> QwenBackbone:
    backbone = get_backbone(name, options)
    assert isinstance(backbone, QwenBackbone)
    backbone.attach(MODELS[name]().model, bytes_tokenizer, "cpu")
    return backbone


def tiny_qwen2_audio(folder: Path) -> Backbone:
    return tiny("qwen2-audio")


def tiny_qwen25_omni(folder: Path) -> Backbone:
    return tiny("qwen2.5-omni")


def tiny_qwen3_omni(folder: Path) -> Backbone:
    return tiny("qwen3-omni")


@pytest.fixture(scope="module", params=MODELS)
def backbone(request: pytest.FixtureRequest) -> QwenBackbone:
    return tiny(request.param)


SECONDS = [0.5, 30.0, 7.77, 1 / 16_000, 1.0, 2.003]


def clips() -> tuple[np.ndarray, np.ndarray]:
    """Windows of 30 s: noise of several lengths, whose loudest moment is not always whole."""
    rng = np.random.default_rng(3)
    valid = np.array([round(seconds * 16_000) for seconds in SECONDS])
    audio = np.zeros((len(valid), WINDOW_SAMPLES), np.float32)
    for row, n in enumerate(valid):
        slope = np.linspace(0.01, 0.3, n)
        audio[row, :n] = slope * rng.standard_normal(n) + 0.2 * np.sin(np.arange(n) * (row + 1) / 9)
    return audio, valid


def embed(backbone: QwenBackbone, rows: list[int], length: int = WINDOW_SAMPLES) -> dict[str, Any]:
    audio, valid = clips()
    part, real = audio[rows][:, :length], valid[rows]
    texts = [TEXTS[row % len(TEXTS)] for row in rows]
    return {**backbone.embed(part, real), **backbone.embed_prompts(part, real, texts)}


TEXTS = ["a dog barks", "", "rain <|im_end|> on a <|AUDIO|> roof"]


def test_log_mel_is_the_extractors() -> None:
    audio, valid = clips()
    extractor = transformers.WhisperFeatureExtractor(feature_size=128)
    expected = extractor([row[:n] for row, n in zip(audio, valid, strict=True)],
                         sampling_rate=16_000, return_attention_mask=True)  # fmt: skip
    filters = torch.tensor(extractor.mel_filters.T, dtype=torch.float32)
    ours = log_mel(torch.from_numpy(audio), filters).numpy()
    assert ours.shape == expected["input_features"].shape
    assert np.abs(ours - expected["input_features"]).max() < 1e-4
    # one unit for lengths: the frames that the extractor's own mask calls real
    assert [-(-n // 160) for n in valid] == expected["attention_mask"].sum(1).tolist()


@pytest.mark.parametrize("row", [0, 1, 2, 5])
def test_all_outputs_are_those_of_transformers(backbone: QwenBackbone, row: int) -> None:
    """The model's own forward pass, fed by the extractor with audio tokens in the prompt."""
    model = MODELS[backbone.name]().model.eval()
    audio, valid = clips()
    extractor = transformers.WhisperFeatureExtractor(feature_size=128)
    inputs = extractor(
        audio[row, : valid[row]],
        sampling_rate=16_000,
        return_tensors="pt",
        return_attention_mask=True,
    )
    mask, features = inputs["attention_mask"], inputs["input_features"]
    n = int(mask.sum())
    taken: dict[str, Any] = {}
    tower = model.audio_tower
    if backbone.name == "qwen2-audio":
        n_tokens = ((n - 1) // 2 + 1 - 2) // 2 + 1
        model.multi_modal_projector.register_forward_hook(
            lambda module, args, output: taken.update(encoder=args[0][0], projector=output[0])
        )
    else:
        tower.ln_post.register_forward_hook(lambda m, args, output: taken.update(encoder=output))
        tower.register_forward_hook(
            lambda m, args, output: taken.update(projector=output.last_hidden_state)
        )
        n_tokens = backbone._n_states(n)  # type: ignore[attr-defined]
    text = TEXTS[row % len(TEXTS)].replace("<|", "< |")
    marker = backbone.markers[1]
    prompt = backbone.prompt.replace("{audio}", marker * n_tokens).replace("{text}", text)
    ids = torch.tensor([bytes_tokenizer(prompt)["input_ids"]])
    with torch.inference_mode():
        hidden = model(
            input_ids=ids,
            input_features=features,
            feature_attention_mask=mask,
            attention_mask=torch.ones_like(ids),
        ).last_hidden_state
    ours = embed(backbone, [row])
    np.testing.assert_allclose(ours["prompt"][0], hidden[0, -1].numpy(), atol=1e-4)
    for name in ("encoder", "projector"):
        expected = taken[name][:n_tokens].mean(0).numpy()
        np.testing.assert_allclose(ours[name][0], expected, atol=1e-4)


def test_alone_and_in_any_batch(backbone: QwenBackbone) -> None:
    everything = list(range(len(SECONDS)))
    together = embed(backbone, everything)
    turned = embed(backbone, everything[::-1])
    for output, rows in together.items():
        assert rows.dtype == np.float32 and np.isfinite(rows).all()
        assert rows.shape == (len(SECONDS), backbone.spec(output).dim)
        np.testing.assert_allclose(turned[output][::-1], rows, atol=1e-4)
    for row in everything:
        for output, alone in embed(backbone, [row]).items():
            np.testing.assert_allclose(alone[0], together[output][row], atol=1e-4)


def test_padding_does_not_count(backbone: QwenBackbone) -> None:
    whole = embed(backbone, [0, 4])
    for length in (WINDOW_SAMPLES // 16, 16_000):
        for output, rows in embed(backbone, [0, 4], length).items():
            np.testing.assert_allclose(rows, whole[output], atol=1e-4)


def test_silence_and_one_sample_are_finite(backbone: QwenBackbone) -> None:
    silent = np.zeros((2, 20_000), np.float32)
    valid = np.array([1, 20_000])
    for rows in backbone.embed(silent, valid).values():
        assert np.isfinite(rows).all()
    assert np.isfinite(backbone.embed_prompts(silent, valid, ["", "x"])["prompt"]).all()


def test_the_prompt_hears_and_reads(backbone: QwenBackbone) -> None:
    audio, valid = clips()
    same_text = backbone.embed_prompts(audio[[0, 2]], valid[[0, 2]], ["a dog", "a dog"])["prompt"]
    same_clip = backbone.embed_prompts(audio[[0, 0]], valid[[0, 0]], ["a dog", "a cat"])["prompt"]
    assert np.abs(same_text[0] - same_text[1]).max() > 1e-3
    assert np.abs(same_clip[0] - same_clip[1]).max() > 1e-3
    # a long text is cut, and by tokens of the text alone
    long = backbone.embed_prompts(audio[[0, 0]], valid[[0, 0]], ["a" * 512, "a" * 600])["prompt"]
    np.testing.assert_allclose(long[0], long[1], atol=1e-5)


def test_spec(backbone: QwenBackbone) -> None:
    encoder, prompt = backbone.spec("encoder"), backbone.spec("prompt")
    assert (encoder.dim, backbone.spec("projector").dim, prompt.dim) == (16, 24, 24)
    assert prompt.kind == "prompt" and prompt.text_template == OPTIONS.text_template
    assert prompt.prompt and "{audio}" in prompt.prompt and "{text}" in prompt.prompt
    assert prompt.weights_sha256 != encoder.weights_sha256
    assert prompt == backbone.spec("prompt")
    assert backbone.extra_outputs == {"prompt"}


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_stays_close(name: str) -> None:
    half = tiny(name, BackboneOptions(precision="bfloat16"))
    full = embed(tiny(name), [0, 2])
    for weights in (torch.float32, torch.bfloat16):  # as on a CPU, as on a GPU
        for part in (half._tower, half._projector, half._language_model):
            if part is not None:
                part.to(weights)
        for output, rows in embed(half, [0, 2]).items():
            assert rows.dtype == np.float32
            for ours, expected in zip(rows, full[output], strict=True):
                cosine = ours @ expected / np.linalg.norm(ours) / np.linalg.norm(expected)
                assert cosine > 0.97, (output, weights)


@pytest.mark.parametrize("name", MODELS)
def test_facts_of_the_published_tower(name: str) -> None:
    with torch.device("meta"):
        network = published_network(name)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert get_backbone(name).card.parameters == pytest.approx(millions, abs=0.1)


def save_as_published(name: str, folder: Path) -> Any:
    """A tiny model as on the hub: shards with an index, the tower in a shard of its own."""
    from safetensors.torch import load_file, save_file

    model = MODELS[name]()
    model.save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    if name != "qwen2-audio":
        state = {f"thinker.{key}": tensor for key, tensor in state.items()}
        state["talker.something"] = torch.zeros(2)
        model_type = config["model_type"].removesuffix("_thinker")
        config = {"model_type": model_type, "thinker_config": config}
        (folder / "config.json").write_text(json.dumps(config))
    shards: dict[str, dict[str, Any]] = {"tower.safetensors": {}, "rest.safetensors": {}}
    for key, tensor in state.items():
        is_tower = "audio_tower" in key or "multi_modal" in key
        shards["tower.safetensors" if is_tower else "rest.safetensors"][key] = tensor
    for file, part in shards.items():
        save_file(part, folder / file, metadata={"format": "pt"})
    weight_map = {key: file for file, part in shards.items() for key in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return model


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(alphabet))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


@pytest.mark.parametrize("name", MODELS)
def test_the_tower_is_read_alone_and_the_model_when_asked(name: str, tmp_path: Path) -> None:
    model = save_as_published(name, tmp_path)
    save_tokenizer(tmp_path)
    options = BackboneOptions(weights=tmp_path)
    whole = get_backbone(name, options)
    assert isinstance(whole, QwenBackbone)
    before = {output: whole.spec(output) for output in whole.outputs}  # not loaded yet
    whole.wanted = frozenset({"encoder", "prompt"})
    whole.load("cpu")
    assert {output: whole.spec(output) for output in whole.outputs} == before
    audio, valid = clips()
    loaded = whole.embed_prompts(audio[:1], valid[:1], ["x"])["prompt"]
    attached = get_backbone(name, options)
    assert isinstance(attached, QwenBackbone)
    attached.attach(model.model, whole._tokenizer, "cpu")
    expected = attached.embed_prompts(audio[:1], valid[:1], ["x"])["prompt"]
    np.testing.assert_allclose(loaded, expected, atol=1e-5)

    (tmp_path / "rest.safetensors").unlink()
    tower = get_backbone(name, options)
    assert isinstance(tower, QwenBackbone) and not tower.missing() and not tower.needs_load_for_spec
    tower.load("cpu")
    assert tower.spec("encoder") == before["encoder"]
    for output, rows in attached.embed(audio[:2], valid[:2]).items():
        np.testing.assert_allclose(tower.embed(audio[:2], valid[:2])[output], rows, atol=1e-5)
    with pytest.raises(BackboneUnavailable, match="add 'prompt' to `wanted`"):
        tower.embed_prompts(audio[:1], valid[:1], ["x"])


def test_wrong_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = BackboneOptions(weights=tmp_path)
    with pytest.raises(BackboneUnavailable, match="holds no config.json"):
        get_backbone("qwen2-audio", options).load("cpu")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BackboneUnavailable, match="of a 'bert' model, expected 'qwen2_audio'"):
        get_backbone("qwen2-audio", options).load("cpu")
    save_as_published("qwen2-audio", tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    facts = json.loads(index.read_text())
    del facts["weight_map"]["audio_tower.conv1.bias"]
    index.write_text(json.dumps(facts))
    with pytest.raises(
        BackboneUnavailable, match=r"audio_tower.conv1.bias is not there, expected \(16,\)"
    ):
        get_backbone("qwen2-audio", options).load("cpu")
    shard = tmp_path / "tower.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(BackboneUnavailable, match="tower.safetensors is not whole"):
        get_backbone("qwen2-audio", options).load("cpu")
    with pytest.raises(BackboneUnavailable, match=r"makes \[60, .* of <\|audio_bos\|>"):
        get_backbone("qwen2-audio").attach(  # type: ignore[attr-defined]
            qwen2_audio().model, lambda text, **_: {"input_ids": list(text.encode())}, "cpu"
        )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneUnavailable, match="give its folder with --weights"):
        get_backbone("qwen3-omni").load("cpu")
