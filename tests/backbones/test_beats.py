"""BEATs against reference outputs of a tiny network, and what padding may not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bsdkit.backbones.base import Backbone, BackboneOptions
from bsdkit.backbones.beats import Beats, Sizes, build_network, position_buckets, published_network
from bsdkit.backbones.registry import get_backbone
from bsdkit.errors import BackboneUnavailable
from tests.conftest import shared

SIGNALS = ["sweep3s", "click0p4s", "am14s"]


def tiny_beats(folder: Path) -> Backbone:
    """BEATs with small random weights."""
    torch.manual_seed(11)
    sizes = Sizes(patch_dim=24, dim=32, n_layers=2, n_heads=4, ffn_dim=48, kernel=32, n_groups=4)
    backbone = get_backbone("beats")
    assert isinstance(backbone, Beats)
    backbone.attach(build_network(sizes), "cpu")
    return backbone


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Beats:
    backbone = tiny_beats(tmp_path_factory.mktemp("beats"))
    assert isinstance(backbone, Beats)
    return backbone


def checkpoint() -> dict[str, Any]:
    """A fine-tuned checkpoint around the reference weights."""
    config = json.loads(shared("golden", "beats_tiny_cfg.json").read_text())["cfg"]
    model = load_file(shared("golden", "beats_tiny_state_dict.safetensors"))
    model["predictor.weight"], model["predictor.bias"] = torch.ones(527, 64), torch.ones(527)
    return {"cfg": {**config, "finetuned_model": True}, "model": model, "label_dict": {0: "/m/0"}}


def load(state: object, folder: Path) -> Beats:
    torch.save(state, folder / "weights.pt")
    backbone = get_backbone("beats", BackboneOptions(weights=folder / "weights.pt"))
    backbone.load("cpu")
    assert isinstance(backbone, Beats)
    return backbone


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(shared("golden", "beats_tiny.npz")) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Beats:
    return load(checkpoint(), tmp_path_factory.mktemp("beats"))


def waveform(signal: str) -> np.ndarray:
    with np.load(shared("golden", "waveforms_16000.npz")) as waves:
        return waves[f"{signal}_int16"].astype(np.float32) / 32768


def features(backbone: Beats, fbank: np.ndarray, padded: np.ndarray | None = None) -> np.ndarray:
    mask = None if padded is None else torch.from_numpy(padded)
    with torch.inference_mode():
        return backbone.network(torch.from_numpy(fbank), mask).numpy()


@pytest.mark.parametrize("signal", SIGNALS)
def test_front_end_is_kaldis(backbone: Beats, golden: dict[str, np.ndarray], signal: str) -> None:
    with torch.inference_mode():
        fbank = backbone.front_end(waveform(signal)[None])[0].numpy()
    difference = np.abs(fbank - golden[f"fbank_normalised_{signal}"])
    assert difference.max() < 1e-3 and difference.mean() < 2e-5


@pytest.mark.parametrize("signal", SIGNALS)
def test_network_is_the_reference(
    backbone: Beats, golden: dict[str, np.ndarray], signal: str
) -> None:
    tokens = features(backbone, golden[f"fbank_normalised_{signal}"][None])[0]
    np.testing.assert_allclose(tokens, golden[f"features_{signal}"], atol=1e-4)


def test_every_stage_is_the_reference(backbone: Beats, golden: dict[str, np.ndarray]) -> None:
    seen: dict[str, np.ndarray] = {}
    network: Any = backbone.network
    stages = {
        "patch_embedding": network.patch_embedding,
        "post_extract_proj": network.post_extract_proj,
        "layer0_out": network.encoder.layer_norm,
        "layer1_out": network.encoder.layers[0],
        "layer2_out": network.encoder.layers[1],
    }
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: seen.__setitem__(name, out[0].numpy())
        )
        for name, module in stages.items()
    ]
    features(backbone, golden["fbank_normalised_click0p4s"][None])
    for hook in hooks:
        hook.remove()
    for name in stages:
        expected = golden[f"{name}_click0p4s"]
        np.testing.assert_allclose(seen[name], expected, atol=1e-4, err_msg=name)


def test_position_buckets_and_bias(backbone: Beats, golden: dict[str, np.ndarray]) -> None:
    expected = golden["rel_pos_bucket_of_distance_-1200_to_1200"]
    assert (position_buckets(1201, 320, 800) == expected).all()
    network: Any = backbone.network
    with torch.inference_mode():
        bias = network.encoder.position_bias(40).numpy()
    np.testing.assert_allclose(bias, golden["rel_pos_bias_40x40"], atol=1e-6)


def test_with_the_references_own_mask(backbone: Beats, golden: dict[str, np.ndarray]) -> None:
    audio = np.zeros((2, 160_000), np.float32)
    for row, signal in enumerate(["sweep3s", "click0p4s"]):
        samples = waveform(signal)
        audio[row, : len(samples)] = samples
    padded = golden["padded10s_token_padding_mask"]
    with torch.inference_mode():
        fbank = backbone.front_end(audio).numpy()
    tokens = features(backbone, fbank, padded)
    np.testing.assert_allclose(tokens, golden["padded10s_features_sweep_click"], atol=1e-3)
    means = [tokens[row][~padded[row]].mean(0) for row in range(2)]
    np.testing.assert_allclose(means, golden["padded10s_masked_mean"], atol=1e-4)
    unmasked = features(backbone, fbank).mean(1)
    np.testing.assert_allclose(unmasked, golden["padded10s_nomask_mean"], atol=1e-4)


@pytest.mark.parametrize("signal", SIGNALS)
def test_end_to_end(backbone: Beats, golden: dict[str, np.ndarray], signal: str) -> None:
    samples = waveform(signal)
    vector = backbone.embed(samples[None], np.array([len(samples)]))[""][0]
    expected = golden[f"mean_embedding_{signal}"]
    np.testing.assert_allclose(vector, expected, atol=1e-3)
    cosine = vector @ expected / np.linalg.norm(vector) / np.linalg.norm(expected)
    assert cosine > 0.99999
    assert backbone.spec("").dim == len(vector)


def test_neither_padding_nor_the_batch_changes_a_clip(tiny: Beats) -> None:
    rng = np.random.default_rng(0)
    # 0.4 s is 40 frames that begin in it, so 3 time steps of 16, which end at sample 7920
    clip = np.zeros(8000, np.float32)
    clip[:6400] = 0.1 * rng.standard_normal(6400)
    long = np.zeros((3, 160_000), np.float32)
    long[0, :8000] = clip
    long[1] = 0.3 * rng.standard_normal(160_000)
    long[2, :8000] = clip
    long[2, 8000:] = 0.5  # what follows the last time step that counts has no say
    expected = tiny.embed(clip[None], np.array([6400]))[""]
    assert np.abs(expected).max() > 0.1
    other = clip.copy()
    other[5400:6400] = 0.5  # only in the third time step, of which half the frames are real
    assert np.abs(tiny.embed(other[None], np.array([6400]))[""] - expected).max() > 1e-2
    together = tiny.embed(long, np.array([6400, 160_000, 6400]))[""]
    np.testing.assert_allclose(together[[0]], expected, atol=1e-5)
    np.testing.assert_allclose(together[[2]], expected, atol=1e-5)
    np.testing.assert_allclose(
        tiny.embed(long[[1]], np.array([160_000]))[""], together[[1]], atol=1e-5
    )
    np.testing.assert_allclose(
        tiny.embed(long[[0], :20_000], np.array([6400]))[""], expected, atol=1e-5
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_always_finite(tiny: Beats, precision: Any) -> None:
    half = Beats(BackboneOptions(precision=precision))
    half.attach(tiny.network, "cpu")
    audio = np.zeros((3, 20_000), np.float32)
    audio[1] = np.random.default_rng(1).standard_normal(20_000).clip(-1, 1)
    valid = np.array([1, 20_000, 20_000])
    vectors = half.embed(audio, valid)[""]
    assert vectors.dtype == np.float32 and np.isfinite(vectors).all()
    np.testing.assert_allclose(vectors, tiny.embed(audio, valid)[""], atol=0.05)
    assert np.isfinite(half.embed(audio[:, :1], np.array([1, 1, 1]))[""]).all()


def test_published_size_has_the_published_tensors() -> None:
    keys = json.loads(shared("golden", "beats_iter3plus_full_keys.json").read_text())
    with torch.device("meta"):
        network = published_network()
    found = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    assert found == {name: fact["shape"] for name, fact in keys["tensors"].items()}
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    assert n_parameters == keys["n_params"]
    assert Beats.card.parameters == round(n_parameters / 1e6, 1)


def test_another_file_is_refused(tmp_path: Path, tiny: Beats) -> None:
    model = {name: tensor.clone() for name, tensor in tiny.network.state_dict().items()}
    good = {"cfg": {"max_distance": 800}, "model": model}
    assert load(good, tmp_path).spec("").dim == 32

    def refused(state: object, match: str) -> None:
        with pytest.raises(BackboneUnavailable, match=match):
            load(state, tmp_path)

    refused(model, "holds 'cfg' and 'model'")
    refused({**good, "cfg": {}}, "no max_distance")
    refused({**good, "cfg": {"max_distance": 800, "deep_norm": False}}, "deep_norm = False")
    fc2 = "encoder.layers.1.fc2.weight"
    without = {name: tensor for name, tensor in model.items() if name != fc2}
    refused({**good, "model": without}, rf"tensor {fc2} \(32, 48\) is missing")
    refused(
        {**good, "model": {**model, fc2: torch.zeros(32, 47)}},
        rf"tensor {fc2} is \(32, 47\), expected \(32, 48\); expected beats_iter3plus_as2m.pt",
    )
    refused({**good, "model": {**model, "mask_emb": torch.zeros(32)}}, "tensor mask_emb has no")
    refused({**good, "model": {}}, "tensor patch_embedding.weight is missing")
    assert "1drv.ms" in get_backbone("beats").missing() or Beats.card.file.path.is_file()
