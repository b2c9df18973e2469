"""The adapter of transformers against the models called by hand, on tiny random models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.hf import HuggingFace
from bsdkit.backbones.registry import get_backbone
from bsdkit.errors import BackboneUnavailable
from bsdkit.text import get_template

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEMPLATE = get_template("title").describe()
SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
}  # fmt: skip
WAVEFORM = {
    **SMALL, "conv_dim": (8, 8), "conv_stride": (20, 16), "conv_kernel": (40, 32),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}  # fmt: skip


def opened(folder: Path, **options: Any) -> HuggingFace:
    backbone = get_backbone(f"hf:{folder}", BackboneOptions(text_template=TEMPLATE, **options))
    assert isinstance(backbone, HuggingFace) and not backbone.missing()
    backbone.load("cpu")
    return backbone


def with_extractor(folder: Path, model: Any, has_mask: bool, **options: Any) -> HuggingFace:
    model.save_pretrained(folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(
        sampling_rate=16_000, return_attention_mask=has_mask
    )
    extractor.save_pretrained(folder)
    return opened(folder, **options)


def tiny_hubert(folder: Path) -> Backbone:
    """As hubert-base: group norm, trained without a mask."""
    torch.manual_seed(21)
    return with_extractor(
        folder, transformers.HubertModel(transformers.HubertConfig(**WAVEFORM)), False
    )


def tiny_layer_norm(folder: Path, **options: Any) -> HuggingFace:
    """As wav2vec2-large-lv60: layer norm, trained with a mask."""
    torch.manual_seed(22)
    config = transformers.Wav2Vec2Config(
        **WAVEFORM, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True
    )
    return with_extractor(folder, transformers.Wav2Vec2Model(config), True, **options)


def tiny_wavlm(folder: Path) -> HuggingFace:
    torch.manual_seed(23)
    config = transformers.WavLMConfig(**WAVEFORM, feat_extract_norm="layer", num_buckets=8)
    return with_extractor(folder, transformers.WavLMModel(config), True)


def tiny_ast(folder: Path) -> Backbone:
    torch.manual_seed(24)
    model = transformers.ASTModel(transformers.ASTConfig(**SMALL))
    with torch.no_grad():  # zero before training, and then all columns are alike
        model.embeddings.position_embeddings.normal_()
    model.save_pretrained(folder)
    transformers.ASTFeatureExtractor().save_pretrained(folder)
    return opened(folder)


def tiny_whisper(folder: Path) -> HuggingFace:
    torch.manual_seed(25)
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=60,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    transformers.WhisperModel(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    return opened(folder)


def save_tokenizer(folder: Path) -> None:
    """A tokenizer of bytes with RoBERTa's special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        unk_token="<unk>", cls_token="<s>", sep_token="</s>", mask_token="<mask>",
    )  # fmt: skip
    fast.save_pretrained(folder)


def save_roberta(folder: Path) -> None:
    torch.manual_seed(26)
    config = transformers.RobertaConfig(
        **SMALL, vocab_size=261, max_position_embeddings=66, type_vocab_size=1, pad_token_id=1
    )
    transformers.RobertaModel(config).save_pretrained(folder)
    save_tokenizer(folder)


def tiny_roberta(folder: Path) -> Backbone:
    save_roberta(folder)
    return opened(folder)


def save_sentences(
    folder: Path,
    pooling: dict[str, Any],
    *modules: str,
    transformer: str = "",
    length: int | None = 24,
    is_lower: bool = False,
) -> None:
    """A sentence-transformers model around a tiny RoBERTa."""
    inner = folder / transformer
    inner.mkdir(parents=True, exist_ok=True)
    save_roberta(inner)
    settings = {"max_seq_length": length, "do_lower_case": is_lower}
    (inner / "sentence_bert_config.json").write_text(json.dumps(settings))
    if transformer:  # the top of old models repeats the config
        (folder / "config.json").write_text((inner / "config.json").read_text())
    names = ["Transformer", "Pooling", *modules]
    paths = [transformer, "1_Pooling", *(f"{i + 2}_{name}" for i, name in enumerate(modules))]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def tiny_sentence_transformer(folder: Path) -> Backbone:
    save_sentences(folder, {"pooling_mode_mean_tokens": True}, "Normalize")
    return opened(folder)


AUDIO: dict[str, Callable[[Path], Backbone]] = {
    "hubert, group norm": tiny_hubert,
    "wav2vec2, layer norm": tiny_layer_norm,
    "wavlm": tiny_wavlm,
    "ast": tiny_ast,
    "whisper": tiny_whisper,
}


@pytest.fixture(scope="module", params=AUDIO)
def audio_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> HuggingFace:
    backbone = AUDIO[request.param](tmp_path_factory.mktemp("model"))
    assert isinstance(backbone, HuggingFace)
    return backbone


def clips(window: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of noise with a slope, of several lengths, and one of silence."""
    rng = np.random.default_rng(1)
    valid = np.array([window, 12_345, 1, 400, window])
    audio = np.zeros((len(valid), window), np.float32)
    for row, n in enumerate(valid[:-1]):
        audio[row, :n] = np.linspace(0.05, 0.2, n) * rng.standard_normal(n) + 0.05
    return audio, valid


def test_audio_alone_and_in_any_batch(audio_model: HuggingFace) -> None:
    spec = audio_model.spec("")
    assert spec.kind == "audio" and spec.dim == 16 and spec.version == 3
    audio, valid = clips(spec.window_samples)
    together = audio_model.embed(audio, valid)[""]
    assert together.shape == (5, 16) and together.dtype == np.float32
    assert np.isfinite(together).all()
    for row in range(5):
        alone = audio_model.embed(audio[row : row + 1], valid[row : row + 1])[""]
        np.testing.assert_allclose(alone[0], together[row], atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def by_hand(backbone: HuggingFace, samples: np.ndarray, n_padded: int) -> np.ndarray:
    """The embedding of one clip, each model called as its documentation says."""
    model = backbone._model
    extractor, rate = backbone._extractor, 16_000
    with torch.inference_mode():
        if isinstance(model, transformers.ASTModel):
            values = extractor(samples, sampling_rate=rate, return_tensors="pt")["input_values"]
            hidden = model(values).last_hidden_state[0, 2:].numpy()
            frames = np.arange(101) * 10 * 160 < len(samples)  # 12 rows of 101 columns
            return hidden.reshape(12, 101, 16)[:, frames].mean((0, 1))
        if model.config.model_type == "whisper":
            features = extractor(samples, sampling_rate=rate, return_tensors="pt")
            hidden = model(features["input_features"]).last_hidden_state[0].numpy()
            return hidden[: (len(samples) + 319) // 320].mean(0)
        normed = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
        padded = np.pad(normed, (0, n_padded - len(normed)))
        if extractor.return_attention_mask:
            padded = normed  # alone, without any padding
        hidden = model(torch.from_numpy(padded)[None]).last_hidden_state[0].numpy()
        return hidden[: ((len(samples) - 40) // 20 + 1 - 32) // 16 + 1].mean(0)


@pytest.mark.parametrize("n", [12_345, 160_000])
def test_audio_is_the_model_called_by_hand(audio_model: HuggingFace, n: int) -> None:
    samples = clips(160_000)[0][0, :n]
    window = min(audio_model.spec("").window_samples, 160_000)
    audio = np.zeros((1, window), np.float32)
    audio[0, :n] = samples
    ours = audio_model.embed(audio, np.array([n]))[""][0]
    np.testing.assert_allclose(ours, by_hand(audio_model, samples, window), atol=1e-4)


@pytest.mark.parametrize("make", [tiny_layer_norm, tiny_wavlm, tiny_ast, tiny_whisper])
def test_padding_does_not_count(make: Callable[[Path], HuggingFace], tmp_path: Path) -> None:
    backbone = make(tmp_path)
    audio, _ = clips(40_000)
    valid = np.array([20_000, 12_345])
    audio = np.where(np.arange(40_000) < valid[:, None], audio[:2], 0).astype(np.float32)
    long = backbone.embed(audio, valid)[""]
    short = backbone.embed(audio[:, :20_000], valid)[""]
    np.testing.assert_allclose(long, short, atol=1e-4)


def test_windows_are_as_long_as_the_model_takes(tmp_path: Path) -> None:
    specs = {}
    for name in ("hubert, group norm", "ast", "whisper"):
        folder = tmp_path / name.partition(",")[0]
        specs[folder.name] = AUDIO[name](folder).spec("")
    assert {n: (s.window_seconds, s.shortest_seconds) for n, s in specs.items()} == {
        "hubert": (10.0, 1.25), "ast": (10.0, None), "whisper": (30.0, None),
    }  # fmt: skip


def test_half_precision_is_said_and_stays_close(tmp_path: Path) -> None:
    full, half = tiny_layer_norm(tmp_path), tiny_layer_norm(tmp_path, precision="bfloat16")
    assert (full.spec("").compute_dtype, half.spec("").compute_dtype) == ("float32", "bfloat16")
    audio, valid = clips(20_000)
    one, other = full.embed(audio[:1], valid[:1])[""][0], half.embed(audio[:1], valid[:1])[""][0]
    assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.99


TEXTS = ["a Dog barks", "", "rain", "a piano, softly " * 20]


@pytest.mark.parametrize("make", [tiny_roberta, tiny_sentence_transformer])
def test_texts_alone_and_in_any_batch(make: Callable[[Path], Backbone], tmp_path: Path) -> None:
    backbone = make(tmp_path)
    spec = backbone.spec("")
    assert spec.kind == "text" and spec.dim == 16
    assert spec.max_tokens == (64 if make is tiny_roberta else 24)  # 66 positions, two unused
    assert spec.normalize == ("none" if make is tiny_roberta else "l2")
    together = backbone.embed_texts(TEXTS)[""]
    assert np.isfinite(together).all() and together.shape == (4, 16)
    for i, text in enumerate(TEXTS):
        np.testing.assert_allclose(backbone.embed_texts([text])[""][0], together[i], atol=1e-4)


@pytest.mark.parametrize(
    ("pooling", "reduce"),
    [
        ({"pooling_mode_mean_tokens": True}, lambda h: h.mean(0)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda h: h[0]),
        ({"pooling_mode_max_tokens": True}, lambda h: h.max(0)),
        ({"pooling_mode": "cls", "embedding_dimension": 16}, lambda h: h[0]),
    ],
)
@pytest.mark.parametrize("transformer", ["", "0_Transformer"])
def test_sentence_transformers_pool_as_they_say(
    pooling: dict[str, Any],
    reduce: Callable[[np.ndarray], np.ndarray],
    transformer: str,
    tmp_path: Path,
) -> None:
    save_sentences(tmp_path, pooling, transformer=transformer, length=7, is_lower=True)
    prompts = {"prompts": {"query": "q: "}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    backbone = opened(tmp_path)
    assert backbone.spec("").prompt == "q: " and "lower case" in backbone.spec("").pooling
    ours = backbone.embed_texts(["A Dog barks", "x"])[""]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / transformer)
    model = transformers.AutoModel.from_pretrained(tmp_path / transformer).eval()
    for row, text in zip(ours, ["q: a dog barks", "q: x"], strict=True):
        inputs = tokenizer(text, truncation=True, max_length=7, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state[0].detach().numpy()
        np.testing.assert_allclose(row, reduce(hidden), atol=1e-5)


def test_what_sentence_transformers_would_do_otherwise_is_refused(tmp_path: Path) -> None:
    save_sentences(tmp_path / "a", {"pooling_mode_mean_tokens": True}, "Dense")
    with pytest.raises(BackboneUnavailable, match="its modules.json has Dense, expected"):
        opened(tmp_path / "a")
    save_sentences(tmp_path / "b", {"pooling_mode_weightedmean_tokens": True})
    with pytest.raises(BackboneUnavailable, match="it pools by weightedmean_tokens, expected"):
        opened(tmp_path / "b")


def test_a_missing_model_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, reason in [
        (f"{tmp_path}", "has no config.json"),
        (f"{tmp_path}/none", "no folder"),
        ("nobody/has-this", "no model nobody/has-this from the hub"),
    ]:
        backbone = get_backbone(f"hf:{name}")
        assert reason in backbone.missing() and "\n" not in backbone.missing()
        with pytest.raises(BackboneUnavailable, match=reason):
            backbone.load("cpu")


def test_what_a_folder_says_beside_its_weights_is_in_the_digest(tmp_path: Path) -> None:
    first = tiny_hubert(tmp_path / "a").spec("")
    assert first.backbone == "hf:a" and first.weights == "a"  # not where it lies
    facts = tmp_path / "a/preprocessor_config.json"
    content = json.loads(facts.read_text())
    facts.write_text(json.dumps({**content, "do_normalize": not content.get("do_normalize")}))
    again = get_backbone(f"hf:{tmp_path / 'a'}")
    again.load("cpu")
    assert again.spec("").weights_sha256 != first.weights_sha256


def test_a_model_that_cannot_be_used_says_so_on_loading(tmp_path: Path) -> None:
    config = transformers.CLIPConfig(
        text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                     "intermediate_size": 8, "vocab_size": 40},
        vision_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
                       "intermediate_size": 8, "image_size": 8, "patch_size": 4},
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    with pytest.raises(BackboneUnavailable, match="cannot be (used|loaded)"):
        get_backbone(f"hf:{tmp_path}").load("cpu")
