"""One contract for every registered backbone that can run here, with the reason for each skip."""

from __future__ import annotations

import functools
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from bsdkit.audio import WindowCutter, window_lengths
from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.checkpoint import CheckpointBackbone
from bsdkit.backbones.registry import backbone_classes, get_backbone
from bsdkit.errors import BackboneUnavailable, UnknownBackbone
from bsdkit.text import get_template
from tests.backbones.test_beats import tiny_beats
from tests.backbones.test_clap import tiny_clap, tiny_clap_fusion, tiny_clap_music
from tests.backbones.test_cp_clap import tiny_cp_clap
from tests.backbones.test_efficientat import tiny_efficientat
from tests.backbones.test_hf import (
    tiny_ast,
    tiny_hubert,
    tiny_roberta,
    tiny_sentence_transformer,
)
from tests.backbones.test_m2d import tiny_m2d, tiny_m2d_32k
from tests.backbones.test_passt import tiny_passt
from tests.backbones.test_qwen import tiny_qwen2_audio, tiny_qwen3_omni, tiny_qwen25_omni
from tests.conftest import shared

OPTIONS = BackboneOptions(text_template=get_template("title").describe())


def from_package(name: str) -> Callable[[Path], Backbone]:
    def make(folder: Path) -> Backbone:
        backbone = get_backbone(name, OPTIONS)
        if backbone.missing():
            pytest.skip(backbone.missing())
        backbone.load("cpu")
        return backbone

    return make


def real_efficientat(folder: Path) -> Backbone:
    weights = shared("weights", "mn04_as_mAP_432.pt")
    backbone = get_backbone("efficientat", BackboneOptions(weights=weights))
    backbone.load("cpu")
    return backbone


def tiny_wav2vec2(folder: Path) -> Backbone:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(4)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 8), conv_stride=(10, 16), conv_kernel=(10, 16), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    transformers.Wav2Vec2Model(config).save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(sampling_rate=16_000).save_pretrained(folder)
    return from_package(f"hf:{folder}")(folder)


def tiny_whisper(folder: Path) -> Backbone:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(5)
    config = transformers.WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=60,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    transformers.WhisperModel(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    return from_package(f"hf:{folder}")(folder)


def tiny_bert(folder: Path) -> Backbone:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(6)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"]
    (folder / "vocab.txt").write_text("\n".join(words))
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=40,
    )  # fmt: skip
    transformers.BertModel(config).save_pretrained(folder)
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return from_package(f"hf:{folder}")(folder)


class HearModel(torch.nn.Module):
    sample_rate, scene_embedding_size = 16_000, 12

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layer = torch.nn.Linear(100, 12)
        self.dropout = torch.nn.Dropout(0.5)  # shows whether the model is in eval mode


def hear_module(folder: Path) -> Backbone:
    module = types.ModuleType("a_hear_module")
    module.load_model = lambda path="": (print("a banner"), HearModel())[1]  # type: ignore[attr-defined]
    module.get_scene_embeddings = (
        lambda audio, model: model.dropout(  # type: ignore[attr-defined]
            model.layer(
                audio[:, : audio.shape[1] // 100 * 100].unflatten(1, (100, -1)).square().mean(2)
            )
        )
    )
    module.__spec__ = importlib.util.spec_from_loader("a_hear_module", loader=None)
    sys.modules["a_hear_module"] = module
    return from_package("hear:a_hear_module")(folder)


MAKERS: dict[str, Callable[[Path], Backbone]] = {
    "aisfx": from_package("aisfx"),
    "beats (tiny, random)": tiny_beats,
    "clap (tiny, random)": tiny_clap,
    "clap-fusion (tiny, random)": tiny_clap_fusion,
    "clap-music (tiny, random)": tiny_clap_music,
    "cp-clap (tiny, random)": tiny_cp_clap,
    "efficientat": real_efficientat,
    "efficientat-mn10 (narrow, random)": lambda folder: tiny_efficientat(
        folder, "efficientat-mn10"
    ),
    "efficientat (narrow, random)": tiny_efficientat,
    "hear: (a test's)": hear_module,
    "hf: ast (tiny, random)": tiny_ast,
    "hf: bert (tiny, random)": tiny_bert,
    "hf: hubert (tiny, random)": tiny_hubert,
    "hf: roberta (tiny, random)": tiny_roberta,
    "hf: sentence-transformers (tiny, random)": tiny_sentence_transformer,
    "hf: wav2vec2 (tiny, random)": tiny_wav2vec2,
    "hf: whisper (tiny, random)": tiny_whisper,
    "m2d (tiny, random)": tiny_m2d,
    "m2d-32k (tiny, random)": tiny_m2d_32k,
    "minilm": from_package("minilm"),
    "passt (tiny, random)": tiny_passt,
    "qwen2-audio (tiny, random)": tiny_qwen2_audio,
    "qwen2.5-omni (tiny, random)": tiny_qwen25_omni,
    "qwen3-omni (tiny, random)": tiny_qwen3_omni,
}


# Other sizes of a network that is tried at its first size.
LARGER = {
    "clap-music (tiny, random)",
    "efficientat-mn10 (narrow, random)",
    "m2d-32k (tiny, random)",
}
BY_COST = [pytest.param(n, marks=pytest.mark.slow) if n in LARGER else n for n in MAKERS]


@pytest.fixture(scope="module", params=BY_COST)
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return MAKERS[request.param](tmp_path_factory.mktemp("model"))


@dataclass(frozen=True)
class Sample:
    """What goes into an output: samples at its rate, and a text."""

    name: str
    audio: np.ndarray
    text: str


@functools.cache
def samples(rate: int) -> list[Sample]:
    """Noise, a sine, a click of 10 ms, no sample at all, silence and 12 seconds; and texts."""
    rng = np.random.default_rng(0)
    time = np.arange(3 * rate) / rate
    return [
        Sample("noise", 0.1 * rng.standard_normal(2 * rate), "a dog barks"),
        Sample("sine", 0.5 * np.sin(2 * np.pi * 440 * time), "a piano, softly " * 60),
        Sample("10 ms", 0.5 * rng.standard_normal(rate // 100), "piano"),
        Sample("nothing", np.zeros(0), ""),
        Sample("silence", np.zeros(rate), "\u00fcn\u00efcode \N{DOG} \u72ac"),
        Sample("12 s", 0.2 * rng.standard_normal(12 * rate), "a while of noise"),
    ]


def embed_all(backbone: Backbone, output: str, which: Sequence[int]) -> np.ndarray:
    """Vectors of some samples as extraction makes them, all of one length in one batch."""
    spec = backbone.spec(output)
    chosen = [samples(spec.sample_rate or 8000)[i] for i in which]
    if spec.kind == "text":
        return backbone.embed_texts([sample.text for sample in chosen])[output]
    shortest = spec.shortest_seconds and round(spec.shortest_seconds * (spec.sample_rate or 1))
    lengths = window_lengths(spec.window_samples, shortest)
    by_length: dict[int, list[tuple[int, np.ndarray, int]]] = {}
    for row, sample in enumerate(chosen):
        cutter = WindowCutter(spec.window_samples, spec.hop_samples, spec.padding, lengths)  # type: ignore[arg-type]
        for cut in (cutter.push(sample.audio.astype(np.float32)), cutter.finish()):
            for window, n_valid in cut:
                by_length.setdefault(len(window), []).append((row, window.copy(), n_valid))
    total = np.zeros((len(chosen), spec.dim))
    weight = np.zeros(len(chosen))
    for windows in by_length.values():
        audio = np.stack([window for _, window, _ in windows])
        valid = np.array([n for *_, n in windows])
        if spec.kind == "audio":
            vectors = backbone.embed(audio, valid)[output]
        else:
            texts = [chosen[row].text for row, *_ in windows]
            vectors = backbone.embed_prompts(audio, valid, texts)[output]
        assert vectors.shape == (len(windows), spec.dim) and vectors.dtype == np.float32
        for (row, _, n), vector in zip(windows, vectors, strict=True):
            total[row] += vector * max(n, 1)
            weight[row] += max(n, 1)
    return (total / weight[:, None]).astype(np.float32)


def everything(backbone: Backbone, output: str) -> list[int]:
    """All samples; without the longest where windows are long and the model slow."""
    return list(range(6 if (backbone.spec(output).window_seconds or 0) <= 10 else 5))


def test_every_backbone_is_tried_here() -> None:
    tried = {name.split()[0].split(":")[0] for name in MAKERS}
    assert {name.rstrip(":") for name in backbone_classes()} == tried


def test_the_contract(backbone: Backbone, capfd: pytest.CaptureFixture[str]) -> None:
    """Dimension, type, finite; the same twice, alone and in any batch; inputs tell apart."""
    for output in backbone.outputs:
        spec = backbone.spec(output)
        which = everything(backbone, output)
        together = embed_all(backbone, output, which)
        assert together.shape == (len(which), spec.dim) and np.isfinite(together).all()
        few = which[:5]  # the longest takes its time
        assert (embed_all(backbone, output, few) == embed_all(backbone, output, few)).all()
        scale = max(1.0, float(np.abs(together).max()))
        for i in which:
            alone = embed_all(backbone, output, [i])[0]
            np.testing.assert_allclose(alone, together[i], atol=1e-4 * scale)
        turned = embed_all(backbone, output, few[::-1])
        np.testing.assert_allclose(turned, together[few][::-1], atol=1e-4 * scale)
        # no sample and silence are alike to a model; all else differs
        pairs = [
            (i, j) for i in which for j in range(i) if {i, j} != {3, 4} or spec.kind != "audio"
        ]
        for i, j in pairs:
            assert np.abs(together[i] - together[j]).max() > 1e-6, (output, i, j)
    assert capfd.readouterr().out == ""


def test_it_is_in_eval_mode_and_frozen(backbone: Backbone) -> None:
    for network in vars(backbone).values():
        if isinstance(network, torch.nn.Module):
            assert not any(module.training for module in network.modules())


def test_spec_is_plain_and_repeatable(backbone: Backbone) -> None:
    for output in backbone.outputs:
        spec = backbone.spec(output)
        assert spec == backbone.spec(output)
        assert all(isinstance(v, str | int | float) for v in spec.to_dict().values())
        assert "/" not in backbone.feature(output) and ":" not in backbone.feature(output)
        if spec.kind != "text":
            assert spec.sample_rate and spec.window_seconds and spec.hop_seconds
            assert spec.hop_seconds <= spec.window_seconds
        assert len(spec.weights_sha256) == 64 and spec.compute_dtype == "float32"


def checkpoint_names() -> list[str]:
    return [n for n, cls in backbone_classes().items() if issubclass(cls, CheckpointBackbone)]


@pytest.mark.parametrize("name", checkpoint_names())
def test_a_wrong_weight_file_is_refused(name: str, tmp_path: Path) -> None:
    page, other = tmp_path / "page.pt", tmp_path / "other.pt"
    page.write_bytes(b"<!DOCTYPE html><html>Sign in</html>")
    torch.save({"state_dict": {"conv.weight": torch.zeros(3, 3)}}, other)
    for path, message in ((page, "web page"), (other, "does not fit|tensor|holds|named")):
        with pytest.raises(BackboneUnavailable, match=message) as caught:
            backbone = get_backbone(name, BackboneOptions(weights=path))
            backbone.wanted = frozenset(o for o, k in backbone.outputs.items() if k == "audio")
            backbone.load("cpu")
        assert "\n" not in str(caught.value)
    with pytest.raises(BackboneUnavailable, match="none"):
        get_backbone(name, BackboneOptions(weights=tmp_path / "none.pt")).load("cpu")


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownBackbone, match="did you mean 'passt'"):
        get_backbone("past")
    with pytest.raises(UnknownBackbone, match="needs something after the colon"):
        get_backbone("hf:")
    with pytest.raises(BackboneUnavailable, match="no module 'nowhere_to_be_found'"):
        get_backbone("hear:nowhere_to_be_found").load("cpu")
    with pytest.raises(BackboneUnavailable, match="not by --weights"):
        get_backbone("hf:x", BackboneOptions(weights=Path("y"))).load("cpu")
    with pytest.raises(BackboneUnavailable, match="no folder /no/such"):
        get_backbone("hf:/no/such/folder").load("cpu")
