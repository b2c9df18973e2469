"""CP-CLAP: audio against reference outputs, text by its preparation and its shapes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.cp_clap import CpClap, build_network, prepare_text, published_network
from bsdkit.backbones.passt import Sizes, sizes_of
from bsdkit.backbones.registry import get_backbone
from bsdkit.errors import BackboneUnavailable
from bsdkit.text import get_template
from tests.conftest import shared

pytest.importorskip("transformers")

AUDIO = Sizes(dim=64, depth=1, heads=1, hidden=64, rows=8, columns=62, classes=5)
TEXT = {
    "vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 32,
    "max_position_embeddings": 80, "type_vocab_size": 1,
}  # fmt: skip


class Encoding(dict[str, torch.Tensor]):
    def to(self, device: str) -> Encoding:
        return self


def characters(texts: list[str], max_length: int, **_: object) -> Encoding:
    """A tokenizer of characters, in the form of transformers' tokenizers."""
    ids = torch.ones(len(texts), max_length, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        codes = [0, *(3 + ord(c) % 190 for c in text[: max_length - 2]), 2]
        ids[row, : len(codes)], mask[row, : len(codes)] = torch.tensor(codes), 1
    return Encoding(input_ids=ids, attention_mask=mask)


def tiny_network() -> torch.nn.Module:
    torch.manual_seed(14)
    network = build_network(AUDIO, TEXT, 24)
    generator = torch.Generator().manual_seed(14)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network


def tiny_cp_clap(folder: Path) -> Backbone:
    """One block of each tower with random weights, and a tokenizer of characters."""
    options = BackboneOptions(text_template=get_template("title").describe())
    backbone = get_backbone("cp-clap", options)
    assert isinstance(backbone, CpClap)
    backbone.attach(tiny_network(), "cpu")
    backbone.tokenizer = characters
    return backbone


def waveform(signal: str) -> np.ndarray:
    name = "passt_tiny.npz" if signal == "chirp25s" else "waveforms_32000.npz"
    key = f"wave_{signal}_int16" if signal == "chirp25s" else f"{signal}_int16"
    with np.load(shared("golden", name)) as waves:
        return waves[key].astype(np.float32) / 32768


@pytest.fixture(scope="module")
def backbone() -> CpClap:
    """The reference's audio tower, beside a text tower of noise."""
    from safetensors.torch import load_file

    state = load_file(shared("golden", "cpclap_tiny_state_dict.safetensors"))
    passt = {k.removeprefix("net."): v for k, v in state.items() if k.startswith("net.")}
    network: Any = build_network(replace(sizes_of(passt), heads=4), TEXT, 48)
    network.audio_embedding_model["model"]["model"].load_state_dict(passt)
    network.audio_projection.load_state_dict(
        {name: state[f"audio_projection.{name}"] for name in ("weight", "bias")}
    )
    backbone = CpClap()
    backbone.attach(network, "cpu")
    backbone.tokenizer = characters
    return backbone


@pytest.mark.parametrize("signal", ["sweep3s", "click0p4s", "am14s", "chirp25s"])
def test_windows_are_the_reference(backbone: CpClap, signal: str) -> None:
    samples = waveform(signal)
    valid = [min(320_000, len(samples) - start) for start in range(0, len(samples), 320_000)]
    audio = np.zeros((len(valid), 320_000), np.float32)
    audio.ravel()[: len(samples)] = samples
    found = backbone.embed(audio, np.array(valid))["audio"]
    with np.load(shared("golden", "cpclap_tiny.npz")) as golden:
        segments = golden[f"segment_features_{signal}"]
        clip = golden[f"clip_embedding_{signal}"]
    network: Any = backbone.network
    with torch.inference_mode():
        expected = network.audio_projection(torch.from_numpy(segments)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)
    # the reference gives each window the same weight, the store weighs them by samples
    mean = found.mean(axis=0)
    np.testing.assert_allclose(mean, clip, atol=1e-3)
    assert mean @ clip / np.linalg.norm(mean) / np.linalg.norm(clip) > 0.99999


def test_a_short_window_is_completed_and_rows_are_independent(backbone: CpClap) -> None:
    click = waveform("click0p4s")
    audio = np.zeros((2, 40_000), np.float32)
    audio[0, : len(click)] = click
    whole = np.pad(audio, ((0, 0), (0, 280_000)))
    valid = np.array([len(click), 1])
    together = backbone.embed(audio, valid)["audio"]
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together, backbone.embed(whole, valid)["audio"], atol=1e-5)
    alone = backbone.embed(audio[:1], valid[:1])["audio"]
    np.testing.assert_allclose(alone[0], together[0], atol=1e-4)


def test_text_is_prepared_as_the_reference_does(backbone: CpClap) -> None:
    with np.load(shared("golden", "cpclap_tiny.npz")) as golden:
        texts, prepared = golden["text_in"].tolist(), golden["text_after_preprocessing"].tolist()
    assert [prepare_text(text) for text in texts] == prepared
    vectors = backbone.embed_texts(texts)["text"]
    assert vectors.shape == (len(texts), 48) and vectors.dtype == np.float32
    np.testing.assert_allclose(backbone.embed_texts(prepared)["text"], vectors)
    np.testing.assert_allclose(backbone.embed_texts(texts[1:2])["text"][0], vectors[1], atol=1e-5)
    long = "a dog barks " * 40
    assert (backbone.embed_texts([long])["text"] == backbone.embed_texts([long * 2])["text"]).all()
    spec = backbone.spec("text")
    assert (spec.dim, spec.max_tokens, spec.normalize) == (48, 64, "none")


def test_published_network_has_the_keys_of_the_file() -> None:
    with shared("golden", "cpclap_full_keys.json").open() as file:
        tensors = json.load(file)["tensors"]
    with torch.device("meta"):
        network = published_network()
    assert {name: list(tensor.shape) for name, tensor in network.state_dict().items()} == {
        name: facts["shape"] for name, facts in tensors.items()
    }
    n_parameters = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    assert n_parameters == pytest.approx(CpClap.card.parameters, abs=0.005)


def save_tokenizer(folder: Path, size: int) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 4}
    words |= {f"w{i}": i for i in range(5, size)}
    model = tokenizers.models.BPE(vocab=words, merges=[], unk_token="<unk>")
    tokenizers.Tokenizer(model).save(str(folder / "tokenizer.json"))


def test_a_checkpoint_loads_with_the_tokenizer_beside_it(tmp_path: Path) -> None:
    state = tiny_network().state_dict()
    wrapped = {name.replace("text_embedding_model.", "text_embedding_model._orig_mod."): tensor
               for name, tensor in state.items()}  # fmt: skip
    torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "clap.ckpt")
    backbone = CpClap(BackboneOptions(weights=tmp_path / "clap.ckpt"))
    save_tokenizer(tmp_path, 200)
    backbone.load("cpu")
    assert len(backbone.tokenizer) == 200 and backbone.spec("audio").dim == 24
    assert backbone.embed_texts(["rain", "a dog"])["text"].shape == (2, 24)
    save_tokenizer(tmp_path, 60)
    with pytest.raises(BackboneUnavailable, match=r"has 60 tokens, the weights have 200; put"):
        CpClap(BackboneOptions(weights=tmp_path / "clap.ckpt")).load("cpu")
    for_audio = CpClap(BackboneOptions(weights=tmp_path / "clap.ckpt"))
    for_audio.wanted = frozenset({"audio"})
    for_audio.load("cpu")
    assert for_audio.tokenizer is None


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "clap.ckpt"

    def refused(changes: dict[str, torch.Tensor], message: str, without: str = "") -> None:
        state = tiny_network().state_dict() | changes
        state.pop(without, None)
        torch.save({"state_dict": state}, path)
        with pytest.raises(BackboneUnavailable, match=message):
            CpClap(BackboneOptions(weights=path)).load("cpu")

    refused({}, "tensor text_projection.bias .*is missing", without="text_projection.bias")
    refused({"text_projection.bias": torch.zeros(3)}, r"text_projection.bias is \(3,\)")
    refused({"teacher.weight": torch.zeros(3)}, "tensor teacher.weight has no place")
    torch.save({"state_dict": {"a": torch.zeros(3)}}, path)
    with pytest.raises(BackboneUnavailable, match="no tensor whose name begins with 'audio_emb"):
        CpClap(BackboneOptions(weights=path)).load("cpu")


def test_without_weights_it_says_where_to_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BSDKIT_WEIGHTS", str(tmp_path))
    assert "--weights" in CpClap().missing()
    with pytest.raises(BackboneUnavailable, match=r"OptimusPrimus/dcase2026-task1.*clap\.ckpt"):
        CpClap().load("cpu")
